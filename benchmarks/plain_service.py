"""What a person writes in ten minutes to get attention over HTTP: the yardstick.

The model is asked for ``output_attentions=True`` and everything is returned as nested lists, with
a PCA of the token vectors. Run as ``python -m benchmarks.plain_service FOLDER PORT``.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from sklearn.decomposition import PCA
from transformers import AutoModel, AutoTokenizer


def create_app(folder: str) -> FastAPI:
    """The service over the model in ``folder``."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = 512
    model = AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    app = FastAPI()

    @app.post("/process")
    def process(request: dict[str, Any]):  # type: ignore[no-untyped-def]  # untyped: FastAPI's slow, usual path
        inputs = tokenizer(
            request["text"], return_tensors="pt", truncation=True, padding=False, max_length=512
        )
        with torch.no_grad():
            outputs = model(**inputs, output_attentions=True, output_hidden_states=True)
        vectors = outputs.last_hidden_state[0]
        return {
            "tokens": tokenizer.convert_ids_to_tokens(inputs["input_ids"][0]),
            "embeddings": vectors.tolist(),
            "attention": torch.stack(outputs.attentions)[:, 0].tolist(),
            "pca_2d": PCA(n_components=2).fit_transform(vectors.numpy()).tolist(),
        }

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    return app


if __name__ == "__main__":
    uvicorn.run(create_app(sys.argv[1]), host="127.0.0.1", port=int(sys.argv[2]), log_level="error")

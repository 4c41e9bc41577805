"""From the last hidden state to one vector per text, as the model's repository says.

The steps are those of sentence-transformers repositories (pooling, dense layers, norms); a plain
transformers model gets the pooling that the library would choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pellucid.errors import EmbeddingUnavailable, InvalidRequest
from pellucid.models.backend import EmbeddingInput, ModelKind, Pooling, Truncation
from pellucid.models.embedding.chat_inputs import ChatInputs
from pellucid.models.embedding.matryoshka import matryoshka_dimensions
from pellucid.models.embedding.pooling import Features, PoolingStep
from pellucid.models.embedding.steps import Steps, load_steps
from pellucid.models.sources.repository_layout import RepositoryLayout
from pellucid.models.text.embedding_tokenizer import EmbeddingTokenizer
from pellucid.models.text.tokenization import Tokenizer

# Relative positions take memory with the square of the length: 3 GB at 8,000 tokens and 4 heads,
# so that one long text would end the process.
_NO_LIMIT_OF_ITS_OWN = 4_096


class EmbeddingPipeline:
    """Tokenises and pools for embeddings. Thread-safe, but for being moved."""

    def __init__(
        self,
        *,
        steps: Steps,
        layout: RepositoryLayout,
        tokenizer: Tokenizer,
        chat: ChatInputs | None,
        matryoshka: tuple[int, ...],
    ) -> None:
        self._steps = steps
        self._chat = chat
        self.dimensions: int = min(steps.dimensions, layout.truncate_dim or steps.dimensions)
        self.matryoshka_dimensions = tuple(d for d in matryoshka if d <= self.dimensions)
        self.pooling: str = "+".join(steps.pooling)
        self.prompts: Mapping[str, str] = layout.prompts
        self.default_prompt_name: str | None = layout.default_prompt_name
        self.max_tokens: int = _max_tokens(layout, tokenizer)
        self.tokenizer: EmbeddingTokenizer | None = None  # none where a chat template is needed
        if chat is None:
            self.tokenizer = tokenizer.for_embedding(
                max_tokens=self.max_tokens, pools_prompt=steps.include_prompt
            )

    @classmethod
    def load(
        cls,
        folder: Path,
        *,
        config: Any,
        hidden_size: int,
        model_kind: ModelKind,
        tokenizer: Tokenizer,
        model_id: str | None = None,
        device: torch.device | str = "cpu",
    ) -> EmbeddingPipeline:
        """The pipeline of a model folder, with its own weights on ``device``.

        ``last_hidden_state`` is the encoder's for encoder-decoder models. Raises ModelLoadFailed,
        RemoteCodeRequired, and EmbeddingUnavailable (the model may still be inspected then).
        """
        model_id = model_id or folder.name
        layout = RepositoryLayout.read(folder, model_id=model_id)
        if layout.transformer_task != "feature-extraction":
            reason = f"its repository is made for {layout.transformer_task}"
            raise EmbeddingUnavailable(model_id=model_id, reason=reason)
        if layout.modules is None:
            steps = _plain_steps(config, hidden_size=hidden_size, model_kind=model_kind)
        else:
            steps = load_steps(layout.modules, hidden_size=hidden_size, model_id=model_id)
        pipeline = cls(
            steps=steps,
            layout=layout,
            tokenizer=tokenizer,
            chat=ChatInputs.of(layout, tokenizer, model_id=model_id),
            matryoshka=matryoshka_dimensions(folder, config=config),
        )
        pipeline.to(device)
        return pipeline

    def to(self, device: torch.device | str) -> None:
        """Move the pipeline's own weights."""
        for step in self._steps.steps:
            step.to(device)

    def tokenize_for_embedding(
        self,
        texts: Sequence[str],
        *,
        prompt: str | None = None,
        truncation: Truncation = "end",
    ) -> list[EmbeddingInput]:
        """Texts as the pipeline reads them, each cut at ``max_tokens``, the prompt counted.

        Raises EmptyText, InvalidText, TooManyTokens, InvalidRequest.
        """
        if self.tokenizer is not None:
            return self.tokenizer.tokenize(texts, prompt=prompt, truncation=truncation)
        assert self._chat is not None
        return self._chat.tokenize(
            texts, prompt=prompt, max_tokens=self.max_tokens, truncation=truncation
        )

    def chunk_for_embedding(
        self, texts: Sequence[str], *, prompt: str | None = None
    ) -> list[list[EmbeddingInput]]:
        """Texts in pieces of at most ``max_tokens``. Raises as ``tokenize_for_embedding``."""
        if self.tokenizer is None:
            raise InvalidRequest(
                reason="This model reads texts through its chat template, which cannot be cut in "
                'pieces; use truncate "end", "start" or "error".',
                field="truncate",
            )
        return self.tokenizer.chunk(texts, prompt=prompt)

    def pool(
        self,
        last_hidden_state: torch.Tensor,
        attention_mask: torch.Tensor,
        *,
        prompt_tokens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[batch, seq_len, hidden_size] -> [batch, dimensions] float32.

        ``attention_mask`` [batch, seq_len] with padding on either side; ``prompt_tokens`` [batch]
        leading real tokens to leave out, looked at only by pipelines that leave the prompt out.
        """
        features = Features(
            attention_mask=attention_mask,
            prompt_tokens=prompt_tokens,
            values={"token_embeddings": last_hidden_state.to(torch.float32)},
        )
        for step in self._steps.steps:
            step(features)
        return features.values["sentence_embedding"][:, : self.dimensions]


def _plain_steps(config: Any, *, hidden_size: int, model_kind: ModelKind) -> Steps:
    """The library's choice for models without modules.json: the last token of a causal language
    model, the mean of all tokens otherwise."""
    architectures = getattr(config, "architectures", None) or [""]
    reads_last = (
        model_kind == "decoder"
        and architectures[0].endswith("ForCausalLM")
        and getattr(config, "is_causal", True)
    )
    modes: tuple[Pooling, ...] = ("last_token",) if reads_last else ("mean",)
    return Steps(
        steps=(PoolingStep(modes),), dimensions=hidden_size, pooling=modes, include_prompt=True
    )


def _max_tokens(layout: RepositoryLayout, tokenizer: Tokenizer) -> int:
    """Where the library cuts: max_seq_length, else the tokenizer's own limit; never more than the
    model has positions for. A model without any limit (relative positions, as mT5) gets ours."""
    wanted = layout.max_seq_length or tokenizer.model_max_length
    limits = [limit for limit in (wanted, tokenizer.max_positions) if limit is not None]
    return min(limits, default=_NO_LIMIT_OF_ITS_OWN)

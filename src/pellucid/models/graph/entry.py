"""What one graph's folder holds beside the graph: everything that would otherwise need torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pellucid.models.backend import ModelInfo
from pellucid.models.graph.reference import Reference
from pellucid.models.graph.store import EntryBroken
from pellucid.models.text.embedding_tokenizer import EmbeddingTokenizer

FLOAT32 = "float32.xml"  # weights beside it, in float32.bin
INT8 = "int8.xml"
_MODEL = "model.json"
_REFERENCE = "reference.npz"
_INFO = TypeAdapter(ModelInfo)


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphEntry:
    """One converted model, the graph itself left on disk."""

    info: ModelInfo  # as torch had it
    tokenizer_state: dict[str, Any]
    input_names: tuple[str, ...]  # of the graph, in order
    reference: Reference

    @property
    def tokenizer(self) -> EmbeddingTokenizer:
        """Made anew at every call."""
        return EmbeddingTokenizer.from_state(self.tokenizer_state)

    def write(self, folder: Path) -> None:
        """Raises OSError."""
        facts = {
            "info": _INFO.dump_python(self.info, mode="json"),
            "tokenizer": self.tokenizer_state,
            "inputs": self.input_names,
        }
        (folder / _MODEL).write_text(json.dumps(facts), encoding="utf-8")
        self.reference.save(folder / _REFERENCE)

    @classmethod
    def read(cls, folder: Path) -> GraphEntry:
        """Raises EntryBroken."""
        try:
            facts = json.loads((folder / _MODEL).read_text(encoding="utf-8"))
            return cls(
                info=_INFO.validate_python(facts["info"]),
                tokenizer_state=facts["tokenizer"],
                input_names=tuple(facts["inputs"]),
                reference=Reference.read(folder / _REFERENCE),
            )
        except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
            raise EntryBroken(f"it cannot be read ({error})") from error

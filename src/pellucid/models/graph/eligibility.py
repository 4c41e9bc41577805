"""Which models are worth a graph: those made for embedding, told by their files alone."""

from __future__ import annotations

from pellucid.errors import GraphUnavailable
from pellucid.models.sources.repository_layout import RepositoryLayout, read_object
from pellucid.models.sources.source import ModelSource

_GENERATORS = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def require_encoder(source: ModelSource) -> None:
    """Raises GraphUnavailable for models that generate text, which nobody loads to embed: to
    convert them would cost minutes and the disk space of their weights.

    A sentence-transformers repository is made for embedding, whatever it is made of.
    """
    layout = RepositoryLayout.read(source.folder, model_id=source.model_id)
    if layout.modules is not None:
        return
    config = read_object(layout.transformer_folder / "config.json", model_id=source.model_id)
    architecture = str(next(iter(config.get("architectures") or ()), ""))
    if config.get("is_encoder_decoder") or architecture.endswith(_GENERATORS):
        reason = f"{architecture or 'it'} is made to generate text, not to embed it"
        raise GraphUnavailable(model_id=source.model_id, reason=reason)

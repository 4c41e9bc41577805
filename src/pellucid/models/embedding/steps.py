"""The steps that a repository's module folders describe, loaded without importing their classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import nn

from pellucid.errors import EmbeddingUnavailable, ModelLoadFailed
from pellucid.models.backend import Pooling
from pellucid.models.embedding.pooling import (
    ACTIVATIONS,
    POOLING_OF_FLAG,
    POOLING_OF_WORD,
    DenseStep,
    LayerNormStep,
    NormalizeStep,
    PoolingStep,
    Step,
)
from pellucid.models.sources.repository_layout import PipelineModule, read_object

_Module = TypeVar("_Module", bound=nn.Module)
_TOKENS, _SENTENCE = "token_embeddings", "sentence_embedding"
# Classes that change nothing when a model is only read.
_WITHOUT_EFFECT = frozenset({"Dropout"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Steps in order, and the width of what they write."""

    steps: tuple[Step, ...]
    dimensions: int
    pooling: tuple[Pooling, ...]
    include_prompt: bool


def load_steps(modules: Sequence[PipelineModule], *, hidden_size: int, model_id: str) -> Steps:
    """The steps behind the transformer.

    Raises EmbeddingUnavailable for steps that are not known, ModelLoadFailed for broken files.
    """
    steps: list[Step] = []
    widths = {_TOKENS: hidden_size}
    for module in modules:
        if module.is_library and module.kind in _WITHOUT_EFFECT:
            continue
        step = _load_step(module, widths=widths, model_id=model_id)
        steps.append(step)
    if _SENTENCE not in widths:
        raise EmbeddingUnavailable(model_id=model_id, reason="its pipeline has no pooling")
    poolings = [step for step in steps if isinstance(step, PoolingStep)]
    return Steps(
        steps=tuple(steps),
        dimensions=widths[_SENTENCE],
        pooling=poolings[-1].modes,
        include_prompt=all(step.include_prompt for step in poolings),
    )


def _load_step(module: PipelineModule, *, widths: dict[str, int], model_id: str) -> Step:
    """One step; ``widths`` says how wide each feature is and learns what the step writes."""
    if not module.is_library:
        reason = f"its pipeline runs code of its own ({module.class_name})"
        raise EmbeddingUnavailable(model_id=model_id, reason=reason)
    config = read_object(module.folder / "config.json", model_id=model_id)
    match module.kind:
        case "Pooling":
            pooling = _pooling(config, model_id=model_id)
            widths[_SENTENCE] = widths[_TOKENS] * len(pooling.modes)
            return pooling
        case "Normalize":
            reads, writes = _names(config)
            _check_read(reads, widths, model_id=model_id)
            widths[writes] = widths[reads]
            return NormalizeStep(reads=reads, writes=writes)
        case "Dense":
            dense = _dense(config, model_id=model_id)
            _check_read(dense.reads, widths, model_id=model_id)
            widths[dense.writes] = dense.linear.out_features
            return _with_weights(dense, module.folder, model_id=model_id)
        case "LayerNorm":
            _check_read(_SENTENCE, widths, model_id=model_id)
            norm = LayerNormStep(widths[_SENTENCE])
            return _with_weights(norm, module.folder, model_id=model_id)
    reason = f"its pipeline has a {module.kind} step, which is not supported"
    raise EmbeddingUnavailable(model_id=model_id, reason=reason)


def _pooling(config: dict[str, Any], *, model_id: str) -> PoolingStep:
    word = config.get("pooling_mode")
    if word is None:
        modes = tuple(mode for flag, mode in POOLING_OF_FLAG.items() if config.get(flag, False))
        modes = modes or ("mean",)
    else:
        words = (word,) if isinstance(word, str) else tuple(word)
        if unknown := [word for word in words if word not in POOLING_OF_WORD]:
            reason = f"its pooling {unknown[0]!r} is not known"
            raise EmbeddingUnavailable(model_id=model_id, reason=reason)
        modes = tuple(POOLING_OF_WORD[word] for word in words)
    return PoolingStep(modes, include_prompt=bool(config.get("include_prompt", True)))


def _dense(config: dict[str, Any], *, model_id: str) -> DenseStep:
    name = config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if name not in ACTIVATIONS:
        reason = f"its dense layer has the activation {name!r}, which is not supported"
        raise EmbeddingUnavailable(model_id=model_id, reason=reason)
    reads, writes = _names(config)
    try:
        return DenseStep(
            in_features=int(config["in_features"]),
            out_features=int(config["out_features"]),
            bias=bool(config.get("bias", True)),
            activation=ACTIVATIONS[name](),
            residual=bool(config.get("use_residual", False)),
            reads=reads,
            writes=writes,
        )
    except (KeyError, TypeError, ValueError) as error:
        reason = f"the settings of its dense layer are incomplete ({error!r})"
        raise ModelLoadFailed(model_id=model_id, reason=reason) from error


def _names(config: dict[str, Any]) -> tuple[str, str]:
    reads = config.get("module_input_name") or _SENTENCE
    return reads, config.get("module_output_name") or reads


def _check_read(name: str, widths: dict[str, int], *, model_id: str) -> None:
    if name not in widths:
        reason = f"a step of its pipeline reads {name!r}, which no step before it writes"
        raise EmbeddingUnavailable(model_id=model_id, reason=reason)


def _with_weights(step: _Module, folder: Path, *, model_id: str) -> _Module:
    try:
        step.load_state_dict(_read_weights(folder))
    except Exception as error:  # missing, broken, or of another shape
        reason = f"the weights in {folder.name} cannot be loaded ({error})"
        raise ModelLoadFailed(model_id=model_id, reason=reason) from error
    return step.to(torch.float32).eval().requires_grad_(False)


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    if (path := folder / "model.safetensors").is_file():
        return safetensors.torch.load_file(path)
    # weights_only: a pickle may otherwise run code
    weights: dict[str, torch.Tensor] = torch.load(
        folder / "pytorch_model.bin", map_location="cpu", weights_only=True
    )
    return weights

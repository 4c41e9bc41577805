"""Steps from token embeddings to one vector per text, as sentence-transformers repositories name
them. All are computed in float32, whatever the model's own precision is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from pellucid.models.backend import Pooling

# Names in 1_Pooling/config.json: since version 6 one word, before that one flag each. The order is
# that of concatenation.
POOLING_OF_WORD: Mapping[str, Pooling] = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len",
    "weightedmean": "weighted_mean",
    "lasttoken": "last_token",
}
POOLING_OF_FLAG: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len",
    "pooling_mode_weightedmean_tokens": "weighted_mean",
    "pooling_mode_lasttoken": "last_token",
}

# The activations that a Dense step may name; no other class is ever imported.
ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    f"torch.nn.modules.{name}": activation
    for name, activation in {
        "linear.Identity": nn.Identity,
        "activation.ELU": nn.ELU,
        "activation.GELU": nn.GELU,
        "activation.LeakyReLU": nn.LeakyReLU,
        "activation.Mish": nn.Mish,
        "activation.ReLU": nn.ReLU,
        "activation.ReLU6": nn.ReLU6,
        "activation.SELU": nn.SELU,
        "activation.SiLU": nn.SiLU,
        "activation.Sigmoid": nn.Sigmoid,
        "activation.Softplus": nn.Softplus,
        "activation.Softsign": nn.Softsign,
        "activation.Tanh": nn.Tanh,
    }.items()
}


@dataclass(slots=True)
class Features:
    """What the steps read and write, under the names that repositories use."""

    attention_mask: Tensor  # int64 [batch, seq_len], 1 = real token
    prompt_tokens: Tensor | None  # int64 [batch], leading real tokens that are prompt
    values: dict[str, Tensor]
    """``token_embeddings`` [batch, seq_len, hidden_size], ``sentence_embedding`` [batch, dims]."""


class Step(Protocol):
    """Reads features, writes one back, in place."""

    def __call__(self, features: Features) -> None: ...

    def to(self, device: torch.device | str) -> Any: ...


class PoolingStep:
    """Token embeddings -> one vector; several modes are set side by side."""

    def __init__(self, modes: tuple[Pooling, ...], *, include_prompt: bool = True) -> None:
        self.modes = modes
        self.include_prompt = include_prompt

    def __call__(self, features: Features) -> None:
        real = features.attention_mask.bool()
        kept = real
        if not self.include_prompt and features.prompt_tokens is not None:
            kept = real & (_ranks(real) > features.prompt_tokens.unsqueeze(1))
        token_embeddings = features.values["token_embeddings"]
        features.values["sentence_embedding"] = torch.cat(
            [pooled(token_embeddings, real, kept, mode=mode) for mode in self.modes], dim=-1
        )

    def to(self, device: torch.device | str) -> PoolingStep:
        return self


class DenseStep(nn.Module):
    """A linear layer with an activation, optionally added to its input."""

    def __init__(
        self,
        *,
        in_features: int,
        out_features: int,
        bias: bool,
        activation: nn.Module,
        residual: bool,
        reads: str,
        writes: str,
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        if residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)
        self.activation = activation
        self.has_residual = residual
        self.reads = reads
        self.writes = writes

    def forward(self, features: Features) -> None:
        values = features.values[self.reads]
        result = self.activation(self.linear(values))
        if self.has_residual:
            result = result + (self.residual(values) if hasattr(self, "residual") else values)
        features.values[self.writes] = result


class LayerNormStep(nn.Module):
    """A layer norm of the pooled vector."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dimensions)

    def forward(self, features: Features) -> None:
        features.values["sentence_embedding"] = self.norm(features.values["sentence_embedding"])


class NormalizeStep:
    """Vectors to length 1 (L2)."""

    def __init__(
        self, *, reads: str = "sentence_embedding", writes: str = "sentence_embedding"
    ) -> None:
        self.reads = reads
        self.writes = writes

    def __call__(self, features: Features) -> None:
        values = features.values[self.reads]
        features.values[self.writes] = nn.functional.normalize(values, p=2, dim=-1)

    def to(self, device: torch.device | str) -> NormalizeStep:
        return self


def pooled(token_embeddings: Tensor, real: Tensor, kept: Tensor, *, mode: Pooling) -> Tensor:
    """One vector per text: [batch, seq_len, hidden_size] -> [batch, hidden_size].

    ``real`` and ``kept`` [batch, seq_len] are true for the text's tokens and for those that take
    part (without the prompt). Padding may stand on either side. Each text needs a token to keep.
    """
    if mode == "cls":
        return _picked(token_embeddings, kept.int().argmax(dim=1))
    if mode == "last_token":
        last = kept.shape[1] - 1 - kept.int().flip(1).argmax(dim=1)
        return _picked(token_embeddings, last)
    if mode == "max":
        return token_embeddings.masked_fill(~kept.unsqueeze(-1), float("-inf")).amax(dim=1)
    # Muennighoff 2022 (SGPT): the i-th token weighs i; tokens keep their places without the prompt.
    weights = (_ranks(real) * kept if mode == "weighted_mean" else kept).to(token_embeddings.dtype)
    finite = token_embeddings.masked_fill(~kept.unsqueeze(-1), 0)
    # A sum, not a product of matrices: before one OpenVINO would keep every step in bfloat16, a
    # fifth faster, but short texts would fall below a cosine of 0.9999.
    total = (finite * weights.unsqueeze(-1)).sum(dim=1)
    count = weights.sum(dim=1, keepdim=True)
    return total / (count.sqrt() if mode == "mean_sqrt_len" else count)


def _ranks(real: Tensor) -> Tensor:
    """1, 2, 3, ... for the real tokens of each row, wherever padding stands."""
    return real.long().cumsum(dim=1)  # a graph would count booleans in one byte


def _picked(token_embeddings: Tensor, positions: Tensor) -> Tensor:
    if torch.jit.is_tracing():  # type: ignore[no-untyped-call,attr-defined]
        # an index would be traced with the batch size of the example
        places = torch.arange(token_embeddings.shape[1], device=positions.device)
        picked = (places == positions.unsqueeze(1)).to(token_embeddings.dtype)
        return (token_embeddings * picked.unsqueeze(-1)).sum(dim=1)
    return token_embeddings[torch.arange(len(positions), device=positions.device), positions]

"""What each head writes into the residual stream: needed to weigh attention by its values.

The projection of each attention is found by watching which matrix is fed with the attention's
output as it is; where it is gated or scaled on the way, nothing is found and nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from pellucid.models.attention.function import AttentionCall
from pellucid.models.attention.sites import AttentionSite, SiteKey
from pellucid.models.probe import Probe

LINEAR_MODULES = (nn.Linear, Conv1D)


@dataclass(frozen=True, slots=True)
class OutputProjection:
    """The matrix that joins the heads of one attention (W_O)."""

    module: nn.Module

    def of_head(self, head: int, *, value_dim: int) -> Tensor:
        """The part that belongs to one head: [value_dim, hidden_size], float32."""
        weight = self.module.weight
        assert isinstance(weight, Tensor)
        rows = weight if isinstance(self.module, Conv1D) else weight.T  # [heads * dim, hidden]
        return rows[head * value_dim : (head + 1) * value_dim].float()

    def transformed(self, call: AttentionCall, head: int) -> Tensor:
        """f(x) of Kobayashi et al. 2020 ("Attention is not only a weight"), eq. 3: the value vector
        (its bias included) of every key after this head's output projection, float32
        [batch, key_len, hidden_size]. The projection's own bias belongs to no head."""
        value = call.value[:, head // call.queries_per_key].float()
        return torch.matmul(value, self.of_head(head, value_dim=value.shape[-1]))

    def value_norms(self, call: AttentionCall, *, heads: Sequence[int] | None = None) -> Tensor:
        """||f(x)||, float32 [batch, heads or num_heads, key_len]."""
        chosen = range(call.num_heads) if heads is None else heads
        # head by head: [heads, key_len, hidden_size] at once would be gigabytes for large models
        return torch.stack([self.transformed(call, head).norm(dim=-1) for head in chosen], dim=1)

    def reconstructed(self, call: AttentionCall, weights: Tensor) -> Tensor:
        """The projection's output put together again from weights and f(x):
        [batch, query_len, hidden_size]. Equal to the real one exactly when f is the right f."""
        parts = [
            torch.matmul(weights[:, head], self.transformed(call, head))
            for head in range(call.num_heads)
        ]
        total = torch.stack(parts).sum(dim=0)
        bias = getattr(self.module, "bias", None)
        return total if bias is None else total + bias.float()


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectionFindings:
    """The proved projections, and why there are none where there are none."""

    projections: Mapping[SiteKey, OutputProjection] = field(default_factory=dict)
    reasons: Mapping[SiteKey, str] = field(default_factory=dict)


# Relative to the largest output. In half precision the real output is rounded twice on its way
# (weighted values, product), each time by up to 2^-9 (bfloat16) of terms that may cancel.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


def find_projections(probe: Probe, sites: Sequence[AttentionSite]) -> ProjectionFindings:
    """The output projection of every site, proved by putting its output together again."""
    if not sites:
        return ProjectionFindings()
    search = _ProjectionSearch()
    hooks = [
        hook
        for module in probe.loaded.model.modules()
        if isinstance(module, LINEAR_MODULES)
        for hook in (
            module.register_forward_pre_hook(search.before_linear),
            module.register_forward_hook(search.after_linear),
        )
    ]
    try:
        probe.run(probe.padded, observer=search)
    finally:
        for hook in hooks:
            hook.remove()
    projections: dict[SiteKey, OutputProjection] = {}
    reasons: dict[SiteKey, str] = {}
    tolerance = _TOLERANCE.get(probe.loaded.dtype, 1e-4)
    for site, watched in zip(sites, search.watched, strict=True):
        problem = watched.problem(tolerance=tolerance)
        if problem is None and watched.projection is not None:
            projections[site.key] = watched.projection
        else:
            reasons[site.key] = f"{site.name} of layer {site.layer}: {problem}"
    return ProjectionFindings(projections=projections, reasons=reasons)


@dataclass(slots=True)
class _Watched:
    """One attention and what became of its output."""

    call: AttentionCall
    attended: Tensor  # [batch, query_len, num_heads, value_dim]
    projection: OutputProjection | None = None
    projected: Tensor | None = None

    def is_fed_to(self, module: nn.Module, given: Tensor) -> bool:
        width = self.attended.shape[2] * self.attended.shape[3]
        return (
            given.shape[-1] == width
            and given.numel() == self.attended.numel()
            and bool(torch.equal(given.reshape(-1), self.attended.reshape(-1)))
        )

    def problem(self, *, tolerance: float) -> str | None:
        """Why the projection cannot be trusted, or None."""
        if self.projection is None or self.projected is None:
            return "its output is changed (gated or scaled) before the heads are joined"
        expected = self.projected.float()
        weights = self.call.weights()
        error = self.projection.reconstructed(self.call, weights).reshape(expected.shape) - expected
        relative = float(error.abs().amax() / expected.abs().amax().clamp(min=1e-12))
        if relative <= tolerance:
            return None
        return f"the heads' parts miss its output by {relative:.1e} (allowed: {tolerance:.0e})"


class _ProjectionSearch:
    """Watches attentions and matrices in the order in which they run."""

    def __init__(self) -> None:
        self.watched: list[_Watched] = []

    def attend(self, call: AttentionCall) -> Tensor:
        attended = call.output()
        self.watched.append(_Watched(call, attended))
        return attended

    def before_linear(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if not self.watched or self.watched[-1].projection is not None or not args:
            return
        if self.watched[-1].is_fed_to(module, args[0]):
            self.watched[-1].projection = OutputProjection(module)

    def after_linear(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        if not self.watched:
            return
        last = self.watched[-1]
        if last.projection is not None and last.projection.module is module:
            # the first output after the match; a shared module may run again for the next site
            last.projected = output if last.projected is None else last.projected

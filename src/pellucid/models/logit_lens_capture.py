"""What each layer's hidden state would predict, were it the last (the logit lens).

Source: nostalgebraist 2020, "interpreting GPT: the logit lens". The model's final norm is applied
to every layer but the last, which transformers hands out normalised already.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pellucid.models.backend import LogitLens
from pellucid.models.embedding.text_encoder import LastHiddenState
from pellucid.models.probe import Probe

# Logits in memory at once, as numbers: 64 MB in float32.
_CHUNK = 16_000_000
# Relative to the largest logit; the same matrix product in the same type, but for a cast or two.
_TOLERANCE = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True, slots=True, kw_only=True)
class LogitLensReader:
    """Reads hidden states as predictions of the next token."""

    norm: nn.Module
    head: nn.Module
    scale: float = 1.0  # a constant that some families multiply their logits by
    softcap: float | None = None

    def logits(self, normed: Tensor) -> Tensor:
        """[..., hidden_size] after the final norm -> [..., vocab_size] float32."""
        # state-space models keep their residual stream in float32 beside a half-precision head
        logits: Tensor = self.head(normed.to(next(self.head.parameters()).dtype)).float()
        logits = logits * self.scale
        if self.softcap is None:
            return logits
        return torch.tanh(logits / self.softcap) * self.softcap

    def read(self, hidden_states: Sequence[Tensor], *, top_k: int) -> LogitLens:
        """Of all layers: hidden_states[i] is [batch, seq_len, hidden_size], the last one normed."""
        last = len(hidden_states) - 1
        parts = [
            self._read_layer(state if layer == last else self.norm(state), top_k=top_k)
            for layer, state in enumerate(hidden_states)
        ]
        token_ids, probabilities, entropy = zip(*parts, strict=True)
        return LogitLens(
            token_ids=np.stack(token_ids),
            probabilities=np.stack(probabilities),
            entropy=np.stack(entropy),
        )

    def _read_layer(self, normed: Tensor, *, top_k: int) -> tuple[Any, Any, Any]:
        batch, seq_len, hidden_size = normed.shape
        flat = normed.reshape(-1, hidden_size)
        vocab_size = self.logits(flat[:1]).shape[-1]
        found = []
        for rows in torch.split(flat, max(1, _CHUNK // vocab_size)):
            probabilities = torch.softmax(self.logits(rows), dim=-1)
            top = probabilities.topk(min(top_k, vocab_size), dim=-1)
            # entr is -p ln p with entr(0) = 0, where p * log(p) would be not a number
            found.append((top.indices, top.values, torch.special.entr(probabilities).sum(dim=-1)))
        token_ids, values, entropy = (torch.cat(parts) for parts in zip(*found, strict=True))
        return (
            token_ids.reshape(batch, seq_len, -1).cpu().numpy(),
            values.reshape(batch, seq_len, -1).cpu().numpy(),
            entropy.reshape(batch, seq_len).cpu().numpy(),
        )


def find_logit_lens(probe: Probe) -> LogitLensReader | str:
    """The reader of a causal model, proved on the probe, or why there is none."""
    model: Any = probe.loaded.model
    if probe.loaded.kind != "decoder":
        return f"{type(model).__name__} is not a causal language model"
    head = model.get_output_embeddings()
    if head is None:
        return f"{type(model).__name__} has no output matrix"
    watched = _watch(probe)
    if isinstance(watched, str):
        return watched
    softcap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    with torch.inference_mode():
        plain = LogitLensReader(norm=watched.norm, head=head).logits(watched.last_hidden_state)
        # with a soft cap the factor is 1: the two would not commute
        scale = 1.0 if softcap else _constant_factor(plain, watched.logits)
        reader = LogitLensReader(norm=watched.norm, head=head, scale=scale, softcap=softcap)
        error = (reader.logits(watched.last_hidden_state) - watched.logits).abs().amax()
        relative = float(error / watched.logits.abs().amax().clamp(min=1e-12))
    tolerance = _TOLERANCE.get(probe.loaded.dtype, 1e-4)
    if not relative <= tolerance:
        return (
            f"read from its last layer, the logits miss its own by {relative:.1e} "
            f"of their size (allowed: {tolerance:.0e})"
        )
    return reader


@dataclass(frozen=True, slots=True)
class _Watched:
    norm: nn.Module
    last_hidden_state: Tensor  # [batch, seq_len, hidden_size]
    logits: Tensor  # [batch, seq_len, vocab_size] float32


def _watch(probe: Probe) -> _Watched | str:
    """Run the probe and see which norm gave the last hidden state."""
    normed: list[tuple[nn.Module, Tensor]] = []

    def note(module: nn.Module, args: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            normed.append((module, output))

    hooks = [
        module.register_forward_hook(note)
        for module in probe.loaded.model.modules()
        if "norm" in type(module).__name__.lower()
    ]
    try:
        with LastHiddenState(probe.loaded) as last:
            outputs = probe.run(probe.padded)
    finally:
        for hook in hooks:
            hook.remove()
    logits = outputs.get("logits")
    if logits is None:
        return f"{type(probe.loaded.model).__name__} gives no logits"
    state = last.state
    for module, output in reversed(normed):
        if output.shape == state.shape and torch.equal(output, state):
            return _Watched(module, state, logits.float())
    return "its last hidden state does not come from one final norm"


def _constant_factor(plain: Tensor, logits: Tensor) -> float:
    """The factor that best turns one into the other (least squares); 1 where it is as good as 1."""
    left, right = plain.double().flatten(), logits.double().flatten()
    factor = float(torch.dot(left, right) / torch.dot(left, left).clamp(min=1e-300))
    return 1.0 if abs(factor - 1.0) < 1e-3 else factor

"""The one attention function that every model here runs with, and what it shows of itself.

It is registered with transformers under ``IMPLEMENTATION``, beside the mask function of SDPA (an
implementation without a mask function of the same name would silently lose causality). Unobserved
it is SDPA; observed (``observing``), every attention of the forward pass of this context goes
through the observer, which may look at the weights and may change them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "pellucid"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Edges to remove before the softmax. ``None`` means all."""

    index: int  # of the knock-out in the request
    heads: Sequence[int] | None = None
    query_positions: Sequence[int] | None = None
    key_positions: Sequence[int] | None = None


class NoKeyLeft(Exception):
    """A cut took the last key of a query."""

    def __init__(self, *, index: int, head: int, query_position: int) -> None:
        self.index = index
        self.head = head
        self.query_position = query_position
        super().__init__(index, head, query_position)


@dataclass(frozen=True, slots=True, kw_only=True)
class AttentionCall:
    """The arguments with which a layer asked for attention."""

    module: nn.Module
    query: Tensor  # [batch, num_heads, query_len, head_dim]
    key: Tensor  # [batch, num_key_value_heads, key_len, head_dim]
    value: Tensor  # [batch, num_key_value_heads, key_len, value_dim]
    attention_mask: Tensor | None  # bool (True = look) or additive; [batch | 1, heads | 1, q, k]
    options: Mapping[str, Any]  # scaling, is_causal, position_bias, softcap, s_aux, ...

    @property
    def num_heads(self) -> int:
        return self.query.shape[1]

    @property
    def queries_per_key(self) -> int:
        """Query heads that share one key/value head (GQA)."""
        return self.query.shape[1] // self.key.shape[1]

    @property
    def beyond_sdpa(self) -> bool:
        """Whether the formula holds something that SDPA cannot compute."""
        return self.options.get("softcap") is not None or self.options.get("s_aux") is not None

    def output(self) -> Tensor:
        """[batch, query_len, num_heads, value_dim], by SDPA where that can."""
        if self.beyond_sdpa:
            return self.output_of(self.weights())
        attended, _ = sdpa_attention_forward(
            self.module, self.query, self.key, self.value, self.attention_mask, **self.options
        )
        return attended

    def output_of(self, weights: Tensor) -> Tensor:
        """The weighted sum of values: [batch, num_heads, q, k] -> [batch, q, num_heads, dim]."""
        batch, num_heads, query_len, key_len = weights.shape
        grouped = weights.to(self.value.dtype).reshape(
            batch, self.value.shape[1], self.queries_per_key * query_len, key_len
        )
        attended = torch.matmul(grouped, self.value)
        attended = attended.reshape(batch, num_heads, query_len, self.value.shape[-1])
        return attended.transpose(1, 2).contiguous()

    def weights(self, *, heads: Sequence[int] | None = None, cuts: Sequence[Cut] = ()) -> Tensor:
        """Attention after the softmax, float32 [batch, heads or num_heads, query_len, key_len].

        Rows sum to 1, but for learned sinks (``s_aux``), which take a share that no key gets, and
        for queries that may see no key at all (padding on the left), whose rows are 0. ``cuts``
        need all heads. Raises NoKeyLeft.
        """
        scores = self.scores(heads=heads)
        for cut in cuts:
            self._apply(cut, scores)
        attention = torch.softmax(scores, dim=-1)
        sinks = self.options.get("s_aux")
        if sinks is not None:
            # softmax over keys and one more column s equals softmax over keys * sigmoid(lse - s)
            column = _of_heads(sinks.float().reshape(1, -1, 1, 1), heads)
            attention *= torch.sigmoid(torch.logsumexp(scores, dim=-1, keepdim=True) - column)
        if self.attention_mask is not None or cuts:
            blind = torch.isneginf(scores.amax(dim=-1, keepdim=True))
            attention.masked_fill_(blind, 0.0)
        return attention

    def scores(self, *, heads: Sequence[int] | None = None) -> Tensor:
        """Scaled, capped, biased and masked dot products, float32; -inf where nothing is seen."""
        scores = self._dot_products(heads)
        scaling = self.options.get("scaling")
        scores *= self.query.shape[-1] ** -0.5 if scaling is None else scaling
        softcap = self.options.get("softcap")
        if softcap is not None:
            scores.div_(softcap).tanh_().mul_(softcap)
        position_bias = self.options.get("position_bias")
        if position_bias is not None:
            scores += _of_heads(position_bias, heads)
        return self._masked(scores, heads)

    def _dot_products(self, heads: Sequence[int] | None) -> Tensor:
        if heads is None:
            batch, num_heads, query_len, head_dim = self.query.shape
            # queries of one key head side by side, so that keys need no copies
            grouped = self.query.float().reshape(
                batch, self.key.shape[1], self.queries_per_key * query_len, head_dim
            )
            scores = torch.matmul(grouped, self.key.float().transpose(-1, -2))
            return scores.reshape(batch, num_heads, query_len, self.key.shape[2])
        key_heads = [head // self.queries_per_key for head in heads]
        query = self.query[:, list(heads)].float()
        return torch.matmul(query, self.key[:, key_heads].float().transpose(-1, -2))

    def _masked(self, scores: Tensor, heads: Sequence[int] | None) -> Tensor:
        mask = self.attention_mask
        if mask is None:
            if not self.is_causal:
                return scores
            query_len, key_len = scores.shape[-2:]
            visible = torch.ones(query_len, key_len, dtype=torch.bool, device=scores.device).tril()
            return scores.masked_fill_(~visible, float("-inf"))
        mask = _of_heads(mask, heads)
        if mask.dtype == torch.bool:
            return scores.masked_fill_(~mask, float("-inf"))
        # eager masks say "hidden" with the smallest number of their type, not with -inf
        hidden = mask <= torch.finfo(mask.dtype).min / 2
        return scores.add_(mask).masked_fill_(hidden, float("-inf"))

    @property
    def is_causal(self) -> bool:
        """SDPA's own rule in transformers: the call's word, then the module's, for several rows."""
        is_causal = self.options.get("is_causal")
        if is_causal is None:
            is_causal = getattr(self.module, "is_causal", True)
        return bool(is_causal) and self.query.shape[2] > 1

    def _apply(self, cut: Cut, scores: Tensor) -> None:
        _, num_heads, query_len, key_len = scores.shape
        heads = _indices(cut.heads, num_heads, scores.device)
        queries = _indices(cut.query_positions, query_len, scores.device)
        keys = _indices(cut.key_positions, key_len, scores.device)
        saw_something = ~torch.isneginf(scores.amax(dim=-1))
        scores[:, heads[:, None, None], queries[:, None], keys] = float("-inf")
        if self.options.get("s_aux") is not None:
            return  # the sink is left to look at
        blinded = saw_something & torch.isneginf(scores.amax(dim=-1))
        if blinded.any():
            _, head, query_position = blinded.nonzero()[0].tolist()
            raise NoKeyLeft(index=cut.index, head=head, query_position=query_position)


class AttentionObserver(Protocol):
    """Sees every attention of one forward pass, in order, and gives its output."""

    def attend(self, call: AttentionCall) -> Tensor: ...


_observer: ContextVar[AttentionObserver | None] = ContextVar("attention_observer", default=None)


@contextmanager
def observing(observer: AttentionObserver) -> Iterator[None]:
    """Arm the attention function for forward passes of this context (thread, task) only."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """The registered function, called by the layers of transformers."""
    call = AttentionCall(
        module=module,
        query=query,
        key=key,
        value=value,
        attention_mask=attention_mask,
        options=options,
    )
    observer = _observer.get()
    return (call.output() if observer is None else observer.attend(call)), None


def register() -> None:
    """Make ``IMPLEMENTATION`` known to transformers. Twice is as good as once."""
    AttentionInterface.register(IMPLEMENTATION, cast(Any, attend))
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def _of_heads(values: Tensor, heads: Sequence[int] | None) -> Tensor:
    """The rows of some heads, where axis 1 has heads at all."""
    if heads is None or values.ndim < 4 or values.shape[1] == 1:
        return values
    return values[:, list(heads)]


def _indices(chosen: Sequence[int] | None, count: int, device: torch.device) -> Tensor:
    """The chosen ones, all if None."""
    return torch.as_tensor(
        list(range(count) if chosen is None else chosen), dtype=torch.long, device=device
    )

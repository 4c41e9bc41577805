"""Knock-outs checked before the run: every index in range, and no query left without a key."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pellucid.errors import (
    HeadOutOfRange,
    InvalidRequest,
    KnockoutInvalid,
    LayerOutOfRange,
    PositionOutOfRange,
)
from pellucid.inference.plan import InspectionPlan, Stack
from pellucid.models.backend import Bool, Knockout

MAX_KNOCKOUTS = 1_000  # each is one comparison per layer and head


def check_knockouts(plan: InspectionPlan, *, seq_len: int, target_len: int) -> None:
    """Check the plan's knock-outs against a text of that length.

    Raises InvalidRequest, KnockoutInvalid, LayerOutOfRange, HeadOutOfRange, PositionOutOfRange.
    """
    knockouts = plan.query.knockouts
    if len(knockouts) > MAX_KNOCKOUTS:
        raise InvalidRequest(reason=f"{len(knockouts)} knockouts, the limit is {MAX_KNOCKOUTS}.")
    stacks = {stack.name: stack for stack in plan.stacks}
    for index, knockout in enumerate(knockouts):
        stack = stacks.get(knockout.attention)
        if stack is None:
            names = ", ".join(stacks)
            reason = f"`attention` of {plan.info.model_id} is one of: {names}"
            raise KnockoutInvalid(index=index, reason=reason)
        _check_ranges(plan, index, knockout, stack, stack.lengths(seq_len, target_len))
    for stack in plan.stacks:
        own = [index for index, cut in enumerate(knockouts) if cut.attention == stack.name]
        if own:
            _check_rows(plan, stack, own, stack.lengths(seq_len, target_len))


def visible_keys(knockouts: Sequence[Knockout], *, layer: int, head: int, visible: Bool) -> Bool:
    """``visible`` [query_len, key_len] less the edges that are cut for this layer and head."""
    seen = visible.copy()
    for knockout in knockouts:
        if _names(knockout.layers, layer) and _names(knockout.heads, head):
            queries, keys = (
                range(length) if named is None else named
                for named, length in zip(
                    (knockout.query_positions, knockout.key_positions), visible.shape, strict=True
                )
            )
            seen[np.ix_(queries, keys)] = False
    return seen


def _names(indices: tuple[int, ...] | None, index: int) -> bool:
    return indices is None or index in indices


def _check_ranges(
    plan: InspectionPlan, index: int, knockout: Knockout, stack: Stack, lengths: tuple[int, int]
) -> None:
    model_id = plan.info.model_id
    for field in ("layers", "heads", "query_positions", "key_positions"):
        if getattr(knockout, field) == ():
            raise InvalidRequest(
                reason=f"knockouts[{index}].{field} is empty: leave it out for all."
            )
    for layer in knockout.layers or ():
        if not 0 <= layer < stack.num_layers:
            last = stack.num_layers - 1
            raise LayerOutOfRange(layer=layer, model_id=model_id, last_layer=last)
        if layer not in stack.available_layers:
            reason = f"layer {layer} has no attention that can be cut"
            raise KnockoutInvalid(index=index, reason=reason)
    for head in knockout.heads or ():
        if not 0 <= head < stack.num_heads:
            raise HeadOutOfRange(head=head, model_id=model_id, last_head=stack.num_heads - 1)
    named = (("query_positions", lengths[0]), ("key_positions", lengths[1]))
    for field, length in named:
        for position in getattr(knockout, field) or ():
            if not 0 <= position < length:
                raise PositionOutOfRange(
                    field=f"knockouts[{index}].{field}", position=position, last_position=length - 1
                )


def _check_rows(
    plan: InspectionPlan, stack: Stack, own: list[int], lengths: tuple[int, int]
) -> None:
    """No query may lose all the keys it sees, for no layer and head."""
    causal = stack.name == "decoder_attentions" or plan.info.kind == "decoder"
    visible = np.tri(*lengths, dtype=np.bool_) if causal else np.ones(lengths, dtype=np.bool_)
    checked: set[tuple[int, ...]] = set()
    for layer in stack.available_layers:
        for head in range(stack.num_heads):
            together = tuple(
                index
                for index in own
                if _names(plan.query.knockouts[index].layers, layer)
                and _names(plan.query.knockouts[index].heads, head)
            )
            if not together or together in checked:
                continue
            checked.add(together)
            cuts = [plan.query.knockouts[index] for index in together]
            seen = visible_keys(cuts, layer=layer, head=head, visible=visible)
            if (empty := np.flatnonzero(~seen.any(axis=1))).size:
                reason = f"query {empty[0]} keeps no key in layer {layer}, head {head}"
                raise KnockoutInvalid(index=together[-1], reason=reason)

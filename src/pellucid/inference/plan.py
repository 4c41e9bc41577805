"""What an inspection asks of one model: checked against it, before anything runs."""

from __future__ import annotations

from dataclasses import dataclass

from pellucid.errors import (
    AttentionUnavailable,
    CapabilityMissing,
    HeadOutOfRange,
    InputsConflict,
    InvalidRequest,
    LayerOutOfRange,
    LogitLensUnavailable,
    PairUnsupported,
    TargetUnsupported,
)
from pellucid.inference.engine import Include, InspectionQuery
from pellucid.models.backend import AttentionName, CaptureSpec, ModelInfo

LOGIT_LENS_TOP_K = 5

_OF_ATTENTION: frozenset[Include] = frozenset(
    {"attentions", "statistics", "patterns", "rollout", "norm_weighted"}
)
_INPUTS = ("text", "input_ids", "messages")


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """One kind of attention in the model: of its only stack, or of one of the three."""

    name: AttentionName
    num_layers: int
    num_heads: int
    available_layers: tuple[int, ...]  # those whose attention can be captured

    @property
    def prefix(self) -> str:
        """What names of derived tensors begin with: "" or "encoder_", "decoder_", "cross_"."""
        return self.name.removesuffix("attentions")

    @property
    def is_cross(self) -> bool:
        return self.name == "cross_attentions"

    def lengths(self, seq_len: int, target_len: int) -> tuple[int, int]:
        """Numbers of queries and of keys."""
        if self.is_cross:
            return target_len, seq_len
        length = target_len if self.name == "decoder_attentions" else seq_len
        return length, length


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectionPlan:
    """The query with its choices resolved. Layers and heads are sorted and named once each."""

    info: ModelInfo
    query: InspectionQuery
    stacks: tuple[Stack, ...]
    layers: tuple[int, ...] | None  # None = all
    heads: tuple[int, ...] | None

    def includes(self, *names: Include) -> bool:
        return any(name in self.query.include for name in names)

    @property
    def reads_attention(self) -> bool:
        return bool(self.query.include & _OF_ATTENTION)

    @property
    def needs_forward(self) -> bool:
        return bool(self.query.include or self.query.knockouts)

    def kept_layers(self, stack: Stack) -> tuple[int, ...]:
        """Layers that the answer tells of."""
        if self.layers is None:
            return stack.available_layers
        return tuple(layer for layer in self.layers if layer in stack.available_layers)

    def kept_heads(self, stack: Stack) -> tuple[int, ...]:
        return tuple(range(stack.num_heads)) if self.heads is None else self.heads

    @property
    def captures_everything(self) -> bool:
        """Rollout mixes all layers and heads, whichever the answer tells of."""
        return self.includes("rollout")

    @property
    def answered_layers(self) -> tuple[int, ...]:
        """What index i of a layer axis stands for."""
        if self.layers is not None:
            return self.layers
        if self.reads_attention:
            return max((stack.available_layers for stack in self.stacks), key=len)
        return tuple(range(max(stack.num_layers for stack in self.stacks)))

    @property
    def answered_heads(self) -> tuple[int, ...]:
        if self.heads is not None:
            return self.heads
        return tuple(range(max(stack.num_heads for stack in self.stacks)))

    @property
    def projected_index(self) -> int | None:
        """Index into hidden_states of the layer that is projected, None for all of them."""
        layer = self.query.projection.layer
        return None if layer == "all" else layer % (self.info.num_layers + 1)

    def answered_hidden(self, num_layers: int) -> tuple[int, ...] | None:
        """Indices into the hidden_states of a stack that the answer holds, None = all."""
        if self.query.hidden_layers is not None:
            return tuple(index % (num_layers + 1) for index in self.query.hidden_layers)
        return None if self.layers is None else tuple(layer + 1 for layer in self.layers)

    @property
    def hidden_indices(self) -> tuple[int, ...] | None:
        """Indices into hidden_states that have to be kept, None = all."""
        indices: set[int] = set()
        if self.includes("hidden_states"):
            answered = self.answered_hidden(self.info.num_layers)
            if answered is None:
                return None
            indices.update(answered)
        if self.includes("projection"):
            if self.projected_index is None:
                return None
            indices.add(self.projected_index)
        has_like_stacks = len({stack.num_layers for stack in self.stacks}) == 1
        return tuple(sorted(indices)) if has_like_stacks else None

    def spec(self) -> CaptureSpec:
        """What the backend has to keep of the forward pass, knock-outs applied."""
        everything = self.captures_everything
        return CaptureSpec(
            attentions=self.reads_attention,
            hidden_states=self.includes("hidden_states", "projection"),
            hidden_layers=self.hidden_indices,
            value_norms=self.includes("norm_weighted"),
            logit_lens_top_k=LOGIT_LENS_TOP_K if self.includes("logit_lens") else None,
            layers=None if everything else self.layers,
            heads=None if everything else self.heads,
            knockouts=self.query.knockouts,
        )


def plan_inspection(info: ModelInfo, query: InspectionQuery) -> InspectionPlan:
    """Check the query against the model.

    Raises InputsConflict, InvalidRequest, LayerOutOfRange, HeadOutOfRange, TargetUnsupported,
    PairUnsupported and the errors under CapabilityMissing.
    """
    _check_inputs(info, query)
    stacks = stacks_of(info)
    plan = InspectionPlan(
        info=info,
        query=query,
        stacks=stacks,
        layers=_chosen("layers", query.layers),
        heads=_chosen("heads", query.heads),
    )
    _check_availability(plan)
    for layer in plan.layers or ():
        last = min(stack.num_layers for stack in stacks) - 1
        if not 0 <= layer <= last:
            raise LayerOutOfRange(layer=layer, model_id=info.model_id, last_layer=last)
    for head in plan.heads or ():
        last = min(stack.num_heads for stack in stacks) - 1
        if not 0 <= head <= last:
            raise HeadOutOfRange(head=head, model_id=info.model_id, last_head=last)
    _check_hidden_layers(plan)
    _check_layers(plan)
    return plan


def stacks_of(info: ModelInfo) -> tuple[Stack, ...]:
    """The attentions that a model has, by the names of its tensors."""

    def stack(name: AttentionName, num_layers: int | None, num_heads: int | None) -> Stack:
        return Stack(
            name=name,
            num_layers=num_layers or 0,
            num_heads=num_heads or 0,
            available_layers=tuple(sorted(info.attention.layers.get(name, ()))),
        )

    if info.kind != "encoder-decoder":
        return (stack("attentions", info.num_layers, info.num_heads),)
    return (
        stack("encoder_attentions", info.num_layers, info.num_heads),
        stack("decoder_attentions", info.num_decoder_layers, info.num_decoder_heads),
        stack("cross_attentions", info.num_decoder_layers, info.num_decoder_heads),
    )


def _check_inputs(info: ModelInfo, query: InspectionQuery) -> None:
    given = [name for name in _INPUTS if getattr(query, name) is not None]
    if len(given) != 1:
        raise InputsConflict(given=" and ".join(given) or "none", choices=", ".join(_INPUTS))
    if query.text_pair is not None and query.text is None:
        raise PairUnsupported(reason="a pair goes with `text`")
    if query.target_text is not None and info.kind != "encoder-decoder":
        raise TargetUnsupported(model_id=info.model_id)
    if query.max_tokens is not None and query.max_tokens < 1:
        raise InvalidRequest(reason=f"max_tokens is at least 1, not {query.max_tokens}.")


def _chosen(field: str, indices: tuple[int, ...] | None) -> tuple[int, ...] | None:
    if indices is None:
        return None
    if not indices:
        raise InvalidRequest(reason=f"{field} is empty: leave it out for all.")
    return tuple(sorted(set(indices)))


def _check_hidden_layers(plan: InspectionPlan) -> None:
    """The indices into hidden_states, of which there is one more than layers."""
    indices: list[tuple[int, int]] = []
    if plan.includes("projection") and plan.query.projection.layer != "all":
        indices.append((plan.query.projection.layer, plan.info.num_layers))
    fewest = min(stack.num_layers for stack in plan.stacks)
    if plan.includes("hidden_states"):
        indices += [(index, fewest) for index in plan.query.hidden_layers or ()]
    for index, last in indices:
        if not -last - 1 <= index <= last:
            raise LayerOutOfRange(layer=index, model_id=plan.info.model_id, last_layer=last)


def _check_availability(plan: InspectionPlan) -> None:
    """Raises AttentionUnavailable when heads or attention are asked of a model without."""
    info, support = plan.info, plan.info.attention
    if plan.includes("logit_lens") and info.kind != "decoder":
        raise LogitLensUnavailable(model_id=info.model_id, reason="it is not a causal model")
    needs_attention = plan.reads_attention or plan.query.knockouts or plan.heads is not None
    if needs_attention and not support.available:
        reason = support.reason or "it has no attention"
        raise AttentionUnavailable(model_id=info.model_id, where="", reason=reason)


def _check_layers(plan: InspectionPlan) -> None:
    """Some layers of a hybrid have no attention. Raises AttentionUnavailable, CapabilityMissing."""
    info, support = plan.info, plan.info.attention
    for stack in plan.stacks if plan.reads_attention else ():
        for layer in plan.layers or ():
            if layer not in stack.available_layers:
                raise AttentionUnavailable(
                    model_id=info.model_id,
                    where=f" in layer {layer}",
                    reason=support.reason or "that layer has none",
                )
        if plan.includes("rollout") and len(stack.available_layers) < stack.num_layers:
            missing = sorted(set(range(stack.num_layers)) - set(stack.available_layers))
            raise CapabilityMissing(
                model_id=info.model_id,
                reason=f"rollout needs the attention of every layer, layers {missing} have none",
            )

"""What a request would cost, reckoned before it runs, and whether it may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pellucid.errors import (
    EmptyText,
    InvalidInput,
    PellucidError,
    TextTooLarge,
    TooLarge,
    TooManyInputs,
)
from pellucid.inference.engine import EmbeddingQuery, InspectionQuery, TensorDtype
from pellucid.inference.plan import LOGIT_LENS_TOP_K, InspectionPlan, Stack
from pellucid.settings import Settings

_ITEM_BYTES: dict[TensorDtype, int] = {"float32": 4, "float16": 2, "uint8": 1}
_JSON_BYTES: dict[TensorDtype, int] = {"float32": 11, "float16": 9, "uint8": 4}
_JSON_NUMBER_BYTES = 11  # statistics and coordinates, seven digits
# Of one layer's float32 attention: scores, softmax, the copy handed over, and one scratch array.
_LAYER_COPIES = 4
_ROLLOUT_BYTES = 24  # three float64 matrices [seq_len, seq_len]
_PATTERN_BYTES = 32  # five float32 masks and their making, per cell
_LOGIT_COPIES = 3  # float32 logits of one run and their float64 softmax
# Of [seq_len, hidden_size] float32 in one layer: queries, keys, values, their sum, the residual,
# the feed-forward network (four times as wide, twice), and what the libraries keep for themselves.
_FORWARD_COPIES = 32
_HIDDEN_COPIES = 2  # those chosen, and a view of them made whole


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectionCost:
    """Bytes, rather too many than too few."""

    working_bytes: int  # arrays alive at once, weights of the model not counted
    answer_bytes: int  # on the wire


def check_inspection_text(query: InspectionQuery, *, settings: Settings) -> None:
    """Raises TextTooLarge before anything is tokenised."""
    fields = [("text", query.text), ("text_pair", query.text_pair)]
    fields.append(("target_text", query.target_text))
    messages = query.messages or ()
    fields.append(("messages", "".join(str(m.get("content", "")) for m in messages)))
    for field, text in fields:
        _check_length(text or "", field=field, settings=settings)


def check_embedding_inputs(
    query: EmbeddingQuery, *, settings: Settings
) -> dict[int, PellucidError]:
    """Errors of single inputs by their index, where the query reports them; before anything is
    tokenised. Raises TooManyInputs; TextTooLarge and EmptyText where it does not."""
    if len(query.inputs) > settings.max_inputs:
        raise TooManyInputs(inputs=len(query.inputs), max_inputs=settings.max_inputs)
    refused: dict[int, PellucidError] = {}
    for index, given in enumerate(query.inputs):
        try:
            if not given or (isinstance(given, str) and given.isspace()):
                raise EmptyText(field=query.name_of(index))
            if isinstance(given, str) and len(given) > settings.max_text_characters:
                _check_length(given, field=query.name_of(index), settings=settings)
        except InvalidInput as error:
            if query.on_error == "fail":
                raise
            refused[index] = error
    return refused


def _check_length(text: str, *, field: str, settings: Settings) -> None:
    if len(text) > settings.max_text_characters:
        raise TextTooLarge(
            field=field, characters=len(text), max_characters=settings.max_text_characters
        )


def admit_inspection(
    plan: InspectionPlan, *, seq_len: int, target_len: int, settings: Settings
) -> InspectionCost:
    """The cost, if it is within the limits. Raises TooLarge with the figures and what would fit."""
    cost = inspection_cost(plan, seq_len=seq_len, target_len=target_len)
    limits = (
        ("working_bytes", "The inspection's working memory", "max_inspection_bytes"),
        ("answer_bytes", "The answer", "max_answer_bytes"),
    )
    for field, what, setting in limits:
        limit = getattr(settings, setting)
        if getattr(cost, field) <= limit:
            continue
        fitting = largest_fitting(plan, target_len=target_len, field=field, limit_bytes=limit)
        raise TooLarge(
            what=what,
            needed_bytes=getattr(cost, field),
            limit_bytes=limit,
            setting=setting,
            tokens=seq_len,
            max_tokens=fitting,
            suggestion=_suggestion(plan, fitting=fitting, seq_len=seq_len),
        )
    return cost


def inspection_cost(plan: InspectionPlan, *, seq_len: int, target_len: int) -> InspectionCost:
    """Estimate for a text of ``seq_len`` tokens (and a target of ``target_len``)."""
    working, answer = _hidden_states_cost(plan, seq_len, target_len)
    working += _forward_bytes(plan, seq_len, target_len)
    largest_layer = 0
    for stack in plan.stacks:
        stack_working, stack_answer = _attention_cost(plan, stack, seq_len, target_len)
        working, answer = working + stack_working, answer + stack_answer
        queries, keys = stack.lengths(seq_len, target_len)
        largest_layer = max(largest_layer, stack.num_heads * queries * keys * 4)
    if plan.reads_attention:
        working += largest_layer * _LAYER_COPIES
    if plan.includes("logit_lens"):
        working += _logit_bytes(plan, seq_len, target_len) * _LOGIT_COPIES
        values = (plan.info.num_layers + 1) * seq_len * (2 * LOGIT_LENS_TOP_K + 1)
        answer += values * _JSON_NUMBER_BYTES
    if plan.query.knockouts and plan.info.kind != "encoder":
        working += 2 * _logit_bytes(plan, seq_len, target_len) * _LOGIT_COPIES
    return InspectionCost(working_bytes=working, answer_bytes=answer)


def _forward_bytes(plan: InspectionPlan, seq_len: int, target_len: int) -> int:
    """What the forward pass itself takes, whatever is kept of it."""
    if not plan.needs_forward:
        return 0
    row_bytes = plan.info.hidden_size * 4
    lists = 0
    if plan.includes("hidden_states", "projection", "logit_lens"):
        lists = max(stack.num_layers for stack in plan.stacks) + 1
    return (seq_len + target_len) * row_bytes * (_FORWARD_COPIES + lists) + _logit_bytes(
        plan, seq_len, target_len
    )


def _logit_bytes(plan: InspectionPlan, seq_len: int, target_len: int) -> int:
    """float32 logits of one run: a decoder computes them for every position, asked or not."""
    rows = {"encoder": 0, "decoder": seq_len, "encoder-decoder": target_len}[plan.info.kind]
    return rows * plan.info.vocab_size * 4


def largest_fitting(plan: InspectionPlan, *, target_len: int, field: str, limit_bytes: int) -> int:
    """Most tokens whose cost stays within the limit; 0 when not even one does."""
    low, high = 0, 1
    while high < 1 << 24 and _cost(plan, high, target_len, field) <= limit_bytes:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        if _cost(plan, middle, target_len, field) <= limit_bytes:
            low = middle
        else:
            high = middle
    return low


def _cost(plan: InspectionPlan, seq_len: int, target_len: int, field: str) -> int:
    return int(getattr(inspection_cost(plan, seq_len=seq_len, target_len=target_len), field))


def _hidden_states_cost(plan: InspectionPlan, seq_len: int, target_len: int) -> tuple[int, int]:
    """Working and answer bytes of hidden states and what is made of them."""
    info, working, answer = plan.info, 0, 0
    lengths = [(info.num_layers, seq_len)]
    if info.kind == "encoder-decoder":
        lengths.append((info.num_decoder_layers or 0, target_len))
    kept = plan.hidden_indices
    for num_layers, length in lengths:
        values = (num_layers + 1 if kept is None else len(kept)) * length * info.hidden_size
        if plan.includes("hidden_states", "projection"):
            working += values * 4 * _HIDDEN_COPIES
        if plan.includes("hidden_states"):
            answer += values * _answer_item_bytes(plan, of_attention=False)
            working += values * _ITEM_BYTES["float16"] if plan.query.dtype != "float32" else 0
    if plan.includes("projection"):
        layers = info.num_layers + 1 if plan.projected_index is None else 1
        working += layers * seq_len * info.hidden_size * 8 * 2  # centred in float64, and factors
        answer += layers * seq_len * plan.query.projection.dimensions * _JSON_NUMBER_BYTES
    return working, answer


def _attention_cost(
    plan: InspectionPlan, stack: Stack, seq_len: int, target_len: int
) -> tuple[int, int]:
    """Working and answer bytes of one stack's attention and what is made of it."""
    queries, keys = stack.lengths(seq_len, target_len)
    num_layers, num_heads = len(plan.kept_layers(stack)), len(plan.kept_heads(stack))
    values = num_layers * num_heads * queries * keys
    working = answer = 0
    if plan.includes("attentions"):
        working += values * _ITEM_BYTES[plan.query.dtype]
        answer += values * _answer_item_bytes(plan, of_attention=True)
    if plan.includes("norm_weighted"):
        # The norms come after the last layer, so the weights wait for them in float32.
        working += values * 4 + values * (4 if plan.query.dtype == "float32" else 2)
        answer += values * _answer_item_bytes(plan, of_attention=False)
    if plan.includes("statistics"):
        numbers = num_layers * (num_heads * 14 + 2 * keys + queries)
        answer += numbers * _JSON_NUMBER_BYTES
    if plan.includes("patterns") and not stack.is_cross:
        working += queries * keys * _PATTERN_BYTES
        answer += num_layers * num_heads * 6 * _JSON_NUMBER_BYTES
    if plan.includes("rollout") and not stack.is_cross:
        working += queries * keys * _ROLLOUT_BYTES
        answer += queries * keys * _answer_item_bytes(plan, of_attention=False)
    return working, answer


def _answer_item_bytes(plan: InspectionPlan, *, of_attention: bool) -> int:
    """Bytes of one value on the wire; only attention itself is ever sent as uint8."""
    dtype = plan.query.dtype
    if dtype == "uint8" and not of_attention:
        dtype = "float16"
    table = _JSON_BYTES if plan.query.answer_format == "json" else _ITEM_BYTES
    return table[dtype]


def _suggestion(plan: InspectionPlan, *, fitting: int, seq_len: int) -> str:
    ways: list[str] = []
    if 0 < fitting < seq_len:
        ways.append(f"send at most {fitting} tokens instead of {seq_len}")
    if plan.layers is None or plan.heads is None:
        ways.append("ask for fewer `layers` or `heads`")
    if plan.query.dtype != "uint8" and plan.includes("attentions"):
        ways.append('ask for `"dtype": "uint8"`')
    if plan.query.answer_format == "json":
        ways.append("accept `application/vnd.safetensors`")
    ways.append("raise the setting")
    sentence = _joined(ways)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _joined(ways: Sequence[str]) -> str:
    return ways[0] if len(ways) == 1 else f"{', '.join(ways[:-1])}, or {ways[-1]}"

"""The registered function on its own: every ingredient of the formula, written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pellucid.errors import CaptureIncomplete
from pellucid.models.attention.capture import AttentionCapture
from pellucid.models.attention.function import (
    AttentionCall,
    Cut,
    NoKeyLeft,
    attend,
    observing,
)
from pellucid.models.attention.sites import AttentionSite

BATCH, HEADS, KEY_HEADS, QUERIES, KEYS, DIM = 2, 4, 2, 5, 6, 8


class Layer(nn.Module):
    num_key_value_groups = HEADS // KEY_HEADS
    is_causal = False


def call(*, mask: Tensor | None = None, **options: Any) -> AttentionCall:
    torch.manual_seed(0)
    return AttentionCall(
        module=Layer(),
        query=torch.randn(BATCH, HEADS, QUERIES, DIM) * 2,
        key=torch.randn(BATCH, KEY_HEADS, KEYS, DIM) * 2,
        value=torch.randn(BATCH, KEY_HEADS, KEYS, DIM),
        attention_mask=mask,
        options={"dropout": 0.0, **options},
    )


def per_head_mask() -> Tensor:
    torch.manual_seed(1)
    mask = torch.rand(BATCH, HEADS, QUERIES, KEYS) > 0.4
    mask[..., 0] = True
    return mask


def by_hand(given: AttentionCall) -> Tensor:
    """In float64, head by head, with sinks as one more column."""
    rows = []
    for head in range(HEADS):
        query, key = given.query[:, head].double(), given.key[:, head // 2].double()
        scores = query @ key.transpose(1, 2) * (given.options.get("scaling") or DIM**-0.5)
        if cap := given.options.get("softcap"):
            scores = cap * torch.tanh(scores / cap)
        if (bias := given.options.get("position_bias")) is not None:
            scores = scores + bias[:, head].double()
        if (mask := given.attention_mask) is not None:
            own = mask[:, head if mask.shape[1] > 1 else 0]
            scores = (
                scores.masked_fill(~own, float("-inf"))
                if own.dtype == torch.bool
                else (scores + own.double())
            )
        if (sinks := given.options.get("s_aux")) is not None:
            column = sinks[head].double().expand(BATCH, QUERIES, 1)
            rows.append(torch.softmax(torch.cat([scores, column], -1), -1)[..., :-1])
        else:
            rows.append(torch.softmax(scores, -1))
    return torch.stack(rows, dim=1).float()


CALLS: dict[str, Any] = {
    "plain": lambda: call(),
    "scaling": lambda: call(scaling=0.2),
    "softcap": lambda: call(softcap=1.5),
    "sinks": lambda: call(s_aux=torch.randn(HEADS)),
    "bias": lambda: call(position_bias=torch.randn(1, HEADS, QUERIES, KEYS)),
    "mask": lambda: call(mask=per_head_mask()[:, :1]),
    "mask-per-head": lambda: call(mask=per_head_mask()),
    "additive-mask": lambda: call(mask=torch.randn(BATCH, 1, QUERIES, KEYS)),
    "everything": lambda: call(
        mask=per_head_mask(),
        scaling=0.3,
        softcap=1.5,
        s_aux=torch.randn(HEADS),
        position_bias=torch.randn(1, HEADS, QUERIES, KEYS),
    ),
}


@pytest.mark.parametrize("name", list(CALLS))
def test_weights_are_the_formula(name: str) -> None:
    given = CALLS[name]()

    torch.testing.assert_close(given.weights(), by_hand(given), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", list(CALLS))
def test_some_heads_in_any_order(name: str) -> None:
    given = CALLS[name]()

    some = given.weights(heads=(3, 0, 2))

    torch.testing.assert_close(some, given.weights()[:, [3, 0, 2]], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", list(CALLS))
def test_output_is_the_weighted_sum_of_values(name: str) -> None:
    given = CALLS[name]()
    values = given.value.repeat_interleave(2, dim=1)

    expected = torch.matmul(by_hand(given), values).transpose(1, 2)

    torch.testing.assert_close(given.output(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(given.output_of(given.weights()), expected, rtol=1e-4, atol=1e-5)


def test_causal_without_a_mask() -> None:
    given = call(is_causal=True)

    weights = given.weights()

    assert not weights[:, :, torch.ones(QUERIES, KEYS).triu(1).bool()].any()
    torch.testing.assert_close(given.output(), given.output_of(weights), rtol=1e-4, atol=1e-5)


def test_a_query_that_sees_nothing_has_no_weights() -> None:
    mask = per_head_mask()
    mask[0, :, 2] = False
    given = call(mask=mask)

    weights = given.weights()

    assert torch.isfinite(weights).all()
    assert not weights[0, :, 2].any()
    torch.testing.assert_close(given.output(), given.output_of(weights), rtol=1e-4, atol=1e-5)


def test_smallest_number_of_an_additive_mask_means_hidden() -> None:
    hidden = per_head_mask()[:, :1]
    hidden[0, 0, 1] = False  # the whole row: eager attention would spread it evenly
    smallest = torch.finfo(torch.float32).min
    additive = torch.zeros(hidden.shape).masked_fill(~hidden, smallest)

    torch.testing.assert_close(call(mask=additive).weights(), call(mask=hidden).weights())


def test_cut_edges_are_gone_and_the_rest_fills_up() -> None:
    given = call()
    whole = given.weights()

    cut = given.weights(
        cuts=[Cut(index=0, heads=(1, 2), query_positions=(0, 4), key_positions=(3,))]
    )

    assert not cut[:, 1:3][:, :, [0, 4], 3].any()
    torch.testing.assert_close(cut[:, [0, 3]], whole[:, [0, 3]])
    expected = whole[:, 1, 4].clone()
    expected[:, 3] = 0
    torch.testing.assert_close(cut[:, 1, 4], expected / expected.sum(-1, keepdim=True))


def test_last_key_cannot_be_cut() -> None:
    with pytest.raises(NoKeyLeft) as caught:
        call().weights(cuts=[Cut(index=7, heads=(2,), query_positions=(3,))])

    assert (caught.value.index, caught.value.head, caught.value.query_position) == (7, 2, 3)


def test_rows_that_saw_nothing_before_do_not_count_as_cut() -> None:
    mask = per_head_mask()
    mask[0, :, 2] = False

    call(mask=mask).weights(cuts=[Cut(index=0, query_positions=(2,), key_positions=(1,))])


def site(module: nn.Module, layer: int) -> AttentionSite:
    return AttentionSite(
        name="attentions",
        layer=layer,
        num_heads=HEADS,
        module=module,
        path=f"layers.{layer}",
        beyond_sdpa=False,
    )


def run(given: AttentionCall) -> None:
    attend(given.module, given.query, given.key, given.value, given.attention_mask, **given.options)


def test_a_layer_that_never_ran_is_noticed() -> None:
    given = call()
    sites = [site(given.module, 0), site(Layer(), 1)]
    capture = AttentionCapture(sites, model_id="m", wanted=[s.key for s in sites])

    with observing(capture):
        run(given)

    with pytest.raises(CaptureIncomplete, match=r"attentions\[1\]"):
        capture.require_complete()


def test_a_layer_out_of_order_is_noticed() -> None:
    given = call()
    capture = AttentionCapture([site(Layer(), 0)], model_id="m", wanted=[("attentions", 0)])

    with observing(capture), pytest.raises(CaptureIncomplete, match="out of the known order"):
        run(given)


def test_one_call_too_many_is_noticed() -> None:
    given = call()
    capture = AttentionCapture([site(given.module, 0)], model_id="m")

    with observing(capture):
        run(given)
        with pytest.raises(CaptureIncomplete, match="out of the known order"):
            run(given)


def test_observation_ends_with_its_context() -> None:
    given = call()
    seen: list[AttentionCall] = []

    class Watcher:
        def attend(self, call: AttentionCall) -> Tensor:
            seen.append(call)
            return call.output()

    with observing(Watcher()):
        run(given)
    run(given)

    assert len(seen) == 1

"""Knock-outs: every index in range, no query without a key."""

from __future__ import annotations

from typing import Any

import pytest

from pellucid.errors import (
    HeadOutOfRange,
    InvalidRequest,
    KnockoutInvalid,
    LayerOutOfRange,
    PositionOutOfRange,
)
from pellucid.inference.engine import InspectionQuery
from pellucid.inference.knockouts import MAX_KNOCKOUTS, check_knockouts
from pellucid.inference.plan import plan_inspection
from pellucid.models.backend import Knockout
from pellucid.models.fake.backend import FakeBackend, FakeModel


def check(*knockouts: Knockout, kind: Any = "encoder", seq_len: int = 4) -> None:
    info = FakeBackend(FakeModel(kind=kind)).info
    plan = plan_inspection(info, InspectionQuery(text="a", knockouts=knockouts))
    check_knockouts(plan, seq_len=seq_len, target_len=3)


@pytest.mark.parametrize(
    ("knockout", "error"),
    [
        (Knockout(layers=(2,)), LayerOutOfRange),
        (Knockout(heads=(-1,)), HeadOutOfRange),
        (Knockout(query_positions=(4,)), PositionOutOfRange),
        (Knockout(key_positions=(0, 4)), PositionOutOfRange),
        (Knockout(layers=()), InvalidRequest),
        (Knockout(key_positions=()), InvalidRequest),
        (Knockout(), KnockoutInvalid),
        (Knockout(attention="cross_attentions"), KnockoutInvalid),
    ],
    ids=str,
)
def test_wrong_knockouts_are_refused(knockout: Knockout, error: type[Exception]) -> None:
    with pytest.raises(error):
        check(knockout)


def test_several_together_may_not_empty_a_row() -> None:
    halves = [
        Knockout(layers=(1,), heads=(0,), query_positions=(2,), key_positions=keys)
        for keys in ((0, 1), (2, 3))
    ]
    check(halves[0])
    check(halves[1])
    with pytest.raises(KnockoutInvalid, match="query 2 keeps no key in layer 1, head 0") as caught:
        check(*halves)
    assert caught.value.facts["index"] == 1


def test_cuts_of_different_heads_do_not_add_up() -> None:
    check(
        Knockout(heads=(0,), query_positions=(2,), key_positions=(0, 1)),
        Knockout(heads=(1,), query_positions=(2,), key_positions=(2, 3)),
    )


def test_under_a_causal_mask_fewer_keys_remain() -> None:
    first_sees_itself_only = Knockout(query_positions=(0,), key_positions=(0,))
    check(first_sees_itself_only)
    with pytest.raises(KnockoutInvalid, match="query 0"):
        check(first_sees_itself_only, kind="decoder")


def test_encoder_decoder_models_must_name_the_attention() -> None:
    with pytest.raises(KnockoutInvalid, match="encoder_attentions, decoder_attentions, cross_"):
        check(Knockout(key_positions=(0,)), kind="encoder-decoder")
    check(Knockout(key_positions=(3,), attention="cross_attentions"), kind="encoder-decoder")
    with pytest.raises(PositionOutOfRange):  # the target has 3 tokens
        check(Knockout(query_positions=(3,), attention="cross_attentions"), kind="encoder-decoder")


def test_their_number_is_limited() -> None:
    one = Knockout(query_positions=(1,), key_positions=(0,))
    with pytest.raises(InvalidRequest, match="1001 knockouts"):
        check(*[one] * (MAX_KNOCKOUTS + 1))

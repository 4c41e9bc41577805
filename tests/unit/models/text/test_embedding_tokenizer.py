"""The same ids as the inspecting tokenizer gives, from any thread and from a stored state."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import NormalizedString, PreTokenizedString, pre_tokenizers, processors
from tokenizers import Tokenizer as FastTokenizer

import tiny_models
from pellucid.errors import (
    EmbeddingUnavailable,
    EmptyText,
    GraphUnavailable,
    InvalidInputIds,
    InvalidRequest,
    InvalidText,
    TooManyTokens,
)
from pellucid.models.backend import EmbeddingInput, Truncation
from pellucid.models.text import embedding_tokenizer
from pellucid.models.text.embedding_tokenizer import EmbeddingTokenizer
from pellucid.models.text.tokenization import Tokenizer
from tokenizer_examples import KINDS, ODD_TEXTS, Load

LIMIT = 24
TEXTS = [*ODD_TEXTS.values(), "fox", "word " * 300, " ".join(tiny_models.SENTENCES)]
PROMPT = "a passage: "


@pytest.fixture(scope="session")
def minilm_for_embedding(minilm: Tokenizer) -> EmbeddingTokenizer:
    return minilm.for_embedding(max_tokens=LIMIT, pools_prompt=True)


def ids(inputs: list[EmbeddingInput]) -> list[list[int]]:
    return [one.input_ids.tolist() for one in inputs]


def custom(post_processor: Any = None, pre_tokenizer: Any = None) -> EmbeddingTokenizer:
    """A tokenizer of words with parts of the test's choice."""
    fast = tiny_models.build_tokenizer("wordpiece").backend_tokenizer
    fast.post_processor = None
    if pre_tokenizer is not None:
        fast.pre_tokenizer = pre_tokenizer
    return EmbeddingTokenizer(
        fast,
        post_processor=post_processor,
        model_id="custom",
        max_tokens=LIMIT,
        max_input_tokens=None,
        vocab_size=fast.get_vocab_size(),
        pad_id=0,
        special_ids=(),
        has_segments=True,
        pools_prompt=True,
    )


# ---------------------------------------------------------------------------------- same ids


@pytest.mark.parametrize("truncation", ["end", "start"])
@pytest.mark.parametrize("family", KINDS)
def test_ids_are_those_of_the_inspecting_tokenizer(
    load: Load, family: str, truncation: Truncation
) -> None:
    inspecting = load(family)
    for_embedding = inspecting.for_embedding(max_tokens=LIMIT, pools_prompt=True)
    for text, given_ in zip(
        TEXTS, for_embedding.tokenize(TEXTS, truncation=truncation), strict=True
    ):
        expected = inspecting.tokenize(text, max_tokens=LIMIT, truncation=truncation)
        assert given_.input_ids.tolist() == expected.input_ids.tolist()
        assert given_.input_ids.dtype == np.int64
        assert given_.num_tokens_untruncated == expected.num_tokens_untruncated
        assert given_.truncated == expected.truncated


@pytest.mark.parametrize("family", KINDS)
def test_a_stored_state_gives_the_same_tokenizer(load: Load, family: str) -> None:
    first = load(family).for_embedding(max_tokens=LIMIT, pools_prompt=False)
    state = json.loads(json.dumps(first.state()))
    second = EmbeddingTokenizer.from_state(state)
    assert second.state() == state
    for prompt in (None, PROMPT):
        one, other = (t.tokenize(TEXTS, prompt=prompt) for t in (first, second))
        assert ids(one) == ids(other)
        assert [i.num_prompt_tokens for i in one] == [i.num_prompt_tokens for i in other]
    for name in ("max_tokens", "max_input_tokens", "vocab_size", "pad_id"):
        assert getattr(first, name) == getattr(second, name)


def test_a_stored_tokenizer_needs_neither_torch_nor_transformers(
    minilm_for_embedding: EmbeddingTokenizer,
) -> None:
    program = (
        "import json, sys\n"
        "from pellucid.models.text.embedding_tokenizer import EmbeddingTokenizer\n"
        "tokenizer = EmbeddingTokenizer.from_state(json.load(sys.stdin))\n"
        "print(tokenizer.tokenize(['one word'])[0].input_ids.tolist())\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(minilm_for_embedding.state()),
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["[101, 2028, 2773, 102]", "[]"]


def test_segments_other_than_the_first_are_told() -> None:
    xlnet_like = processors.TemplateProcessing(
        single="$A:0 [SEP]:0 [CLS]:2", pair="$A $B", special_tokens=[("[SEP]", 3), ("[CLS]", 2)]
    )
    (one,) = custom(xlnet_like).tokenize(["fox"])
    assert one.token_type_ids is not None
    assert one.token_type_ids.tolist() == [0] * (one.input_ids.size - 1) + [2]
    assert one.input_ids[-2:].tolist() == [3, 2]
    (plain,) = custom().tokenize(["fox"])
    assert plain.token_type_ids is None


@pytest.mark.parametrize(
    "template", ["[CLS] $A [SEP] $A", "[CLS]", "[CLS] $A:1 [SEP] $A:0"], ids=repr
)
def test_a_frame_that_is_not_set_around_the_text_is_refused(template: str) -> None:
    odd = processors.TemplateProcessing(
        single=template, pair="$A $B", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    with pytest.raises(EmbeddingUnavailable, match="more to a text than set special tokens"):
        custom(odd)


# ----------------------------------------------------------------------------------- threads


@pytest.mark.parametrize("is_shared", [False, True], ids=["cloned", "shared"])
def test_threads_get_the_ids_of_one_caller(
    load: Load, monkeypatch: pytest.MonkeyPatch, is_shared: bool
) -> None:
    if is_shared:
        monkeypatch.setattr(embedding_tokenizer, "_MAX_CLONED_VOCABULARY", 0)
    made: list[FastTokenizer] = []
    clone = embedding_tokenizer._clone
    monkeypatch.setattr(
        embedding_tokenizer, "_clone", lambda fast: made.append(clone(fast)) or made[-1]
    )
    tokenizer = load("gpt2").for_embedding(max_tokens=LIMIT, pools_prompt=True)
    expected = {text: ids(tokenizer.tokenize([text]))[0] for text in TEXTS}
    num_threads, calls = 6, TEXTS * 30
    with ThreadPoolExecutor(num_threads) as threads:
        given_ = list(threads.map(lambda text: ids(tokenizer.tokenize([text]))[0], calls))
    assert given_ == [expected[text] for text in calls]
    assert len(made) <= (0 if is_shared else num_threads + 1)
    assert is_shared or len(made) > 1


def test_parts_in_python_are_shared_and_cannot_be_stored() -> None:
    class Halves:
        def halves(self, _: int, text: NormalizedString) -> list[NormalizedString]:
            middle = len(str(text)) // 2
            return [text[:middle], text[middle:]]

        def pre_tokenize(self, text: PreTokenizedString) -> None:
            text.split(self.halves)

    tokenizer = custom(pre_tokenizer=pre_tokenizers.PreTokenizer.custom(Halves()))
    assert ids(tokenizer.tokenize(["foxfox"])) == ids(custom().tokenize(["fox fox"]))
    with pytest.raises(GraphUnavailable, match="parts in Python"):
        tokenizer.state()


# ----------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("texts", "error", "field"),
    [
        (["ok", " "], EmptyText, r"texts\[1\]"),
        ([""], EmptyText, "^text is"),
        (["a\0b"], InvalidText, "^text"),
        (["ok", "a\ud800"], InvalidText, r"texts\[1\]"),
        (["ok", "ok", "word " * 60], TooManyTokens, r"texts\[2\].* 62 tokens, minilm .* 24"),
    ],
    ids=["blank", "empty", "NUL", "surrogate", "long"],
)
def test_refusals_name_the_text(
    minilm_for_embedding: EmbeddingTokenizer,
    texts: list[str],
    error: type[Exception],
    field: str,
) -> None:
    with pytest.raises(error, match=field):
        minilm_for_embedding.tokenize(texts, truncation="error")


def test_refusals_use_the_callers_names(minilm_for_embedding: EmbeddingTokenizer) -> None:
    with pytest.raises(TooManyTokens, match=r"^inputs\[7\] has"):
        minilm_for_embedding.tokenize(
            ["ok", "word " * 60], truncation="error", fields=["inputs[3]", "inputs[7]"]
        )
    for call in (minilm_for_embedding.tokenize, minilm_for_embedding.chunk):
        with pytest.raises(EmptyText, match=r"^inputs\[7\] is empty"):
            call(["ok", ""], fields=["inputs[3]", "inputs[7]"])


def test_text_that_normalises_to_nothing_is_empty(
    minilm_for_embedding: EmbeddingTokenizer,
) -> None:
    with pytest.raises(EmptyText):
        minilm_for_embedding.tokenize(["\u200d\u200b"])


def test_a_prompt_that_leaves_no_room_is_refused(minilm: Tokenizer) -> None:
    tokenizer = minilm.for_embedding(max_tokens=6, pools_prompt=False)
    (one,) = tokenizer.tokenize(["one word"], prompt="query: ")
    assert one.num_prompt_tokens == 3  # [CLS] query :
    with pytest.raises(InvalidRequest, match="prompt of 9 tokens leaves no room for text"):
        tokenizer.tokenize(["one"], prompt="query: " * 4)
    tiny = minilm.for_embedding(max_tokens=2, pools_prompt=True)
    with pytest.raises(InvalidRequest, match="leaves no room"):
        tiny.tokenize(["one"])


def test_given_ids_are_checked_and_kept(minilm_for_embedding: EmbeddingTokenizer) -> None:
    kept = minilm_for_embedding.checked_ids([101, 2028, 102])
    assert kept.input_ids.tolist() == [101, 2028, 102]
    assert not kept.truncated
    assert kept.token_type_ids is None
    assert minilm_for_embedding.checked_ids([5] * 512).input_ids.size == 512
    with pytest.raises(EmptyText):
        minilm_for_embedding.checked_ids([])
    with pytest.raises(TooManyTokens, match="513 tokens, minilm takes at most 512"):
        minilm_for_embedding.checked_ids([5] * 513)
    for wrong in (-1, 30522, 10**30):
        with pytest.raises(InvalidInputIds, match=rf"input_ids\[1\].*{wrong}|{wrong}.*1"):
            minilm_for_embedding.checked_ids([5, wrong])


# ------------------------------------------------------------------------------------- chunks


def own_part(pieces: list[EmbeddingInput], *, before: int, after: int) -> list[int]:
    return [i for piece in pieces for i in piece.input_ids[before : piece.input_ids.size - after]]


@pytest.fixture(scope="session")
def minilm_of(minilm: Tokenizer) -> Callable[[int], EmbeddingTokenizer]:
    """The real tokenizer with a limit."""
    return cache(lambda limit: minilm.for_embedding(max_tokens=limit, pools_prompt=True))


@given(num_words=st.integers(1, 200), limit=st.sampled_from([3, 4, 7, 16, 40]))
@settings(max_examples=60, deadline=None)
def test_pieces_hold_every_token_once_and_fit(
    minilm_for_embedding: EmbeddingTokenizer,
    minilm_of: Callable[[int], EmbeddingTokenizer],
    num_words: int,
    limit: int,
) -> None:
    tokenizer = minilm_of(limit)
    text = " ".join(f"w{number}" for number in range(num_words))
    (whole,) = minilm_for_embedding._encode([text])
    (pieces,) = tokenizer.chunk([text])
    assert own_part(pieces, before=1, after=1) == whole
    sizes = [piece.input_ids.size for piece in pieces]
    assert max(sizes) <= limit
    assert max(sizes) - min(sizes) <= 1
    assert len(pieces) == -(-len(whole) // (limit - 2))
    for piece in pieces:
        assert (piece.input_ids[0], piece.input_ids[-1]) == (101, 102)
        assert not piece.truncated


@pytest.mark.parametrize("family", KINDS)
def test_the_prompt_stands_before_every_piece(load: Load, family: str) -> None:
    tokenizer = load(family).for_embedding(max_tokens=LIMIT, pools_prompt=False)
    text = tiny_models.LONG_TEXT
    (pieces,) = tokenizer.chunk([text], prompt=PROMPT)
    (prompt_ids,), (both,) = tokenizer._encode([PROMPT]), tokenizer._encode([PROMPT + text])
    frame = tokenizer._frame
    left_out = {piece.num_prompt_tokens for piece in pieces}
    assert len(pieces) > 1
    assert len(left_out) == 1
    before = left_out.pop()
    repeated = before - len(frame.prefix)
    assert 0 < repeated <= len(prompt_ids)
    assert own_part(pieces, before=before, after=len(frame.suffix)) == both[repeated:]
    for piece in pieces:
        assert piece.input_ids.size <= LIMIT
        assert piece.num_added_tokens == before + len(frame.suffix)
        assert tuple(piece.input_ids[:before]) == (*frame.prefix, *both[:repeated])


@pytest.mark.parametrize("family", KINDS)
def test_a_text_that_loses_its_start_keeps_the_prompt(load: Load, family: str) -> None:
    tokenizer = load(family).for_embedding(max_tokens=LIMIT, pools_prompt=False)
    text = tiny_models.LONG_TEXT
    (cut,) = tokenizer.tokenize([text], prompt=PROMPT, truncation="start")
    ((piece, *_),) = tokenizer.chunk([text], prompt=PROMPT)
    (both,) = tokenizer._encode([PROMPT + text])
    before, frame = piece.num_prompt_tokens, tokenizer._frame
    rest = LIMIT - before - len(frame.suffix)
    assert cut.num_prompt_tokens == before
    assert cut.input_ids[:before].tolist() == piece.input_ids[:before].tolist()
    assert cut.input_ids[before:].tolist() == [*both[-rest:], *frame.suffix]
    assert cut.truncated
    assert cut.num_tokens_untruncated == len(both) + len(frame)


def test_a_text_that_fits_is_one_piece_as_without_chunks(
    minilm_for_embedding: EmbeddingTokenizer,
) -> None:
    texts = ["fox", "word " * (LIMIT - 2)]
    pieces = minilm_for_embedding.chunk(texts)
    assert [one.num_added_tokens for (one,) in pieces] == [0, 0]
    assert [ids(one) for one in pieces] == [[i] for i in ids(minilm_for_embedding.tokenize(texts))]


def test_a_prompt_without_room_for_text_cannot_be_chunked(
    minilm_for_embedding: EmbeddingTokenizer,
) -> None:
    with pytest.raises(InvalidRequest, match="no room"):
        minilm_for_embedding.chunk(["fox " * 9], prompt="query " * 40)

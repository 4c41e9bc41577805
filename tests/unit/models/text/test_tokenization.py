"""Tokens, their places in the text, what is cut, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny_models
from pellucid.errors import (
    ChatTemplateMissing,
    EmptyText,
    InvalidInputIds,
    InvalidRequest,
    InvalidText,
    ModelLoadFailed,
    PairUnsupported,
    TargetUnsupported,
    TooManyTokens,
)
from pellucid.models.backend import Encoding, Truncation
from pellucid.models.text.text_check import check_text
from pellucid.models.text.token_pieces import TokenPieces
from pellucid.models.text.token_sequence import kept_lengths
from pellucid.models.text.tokenization import Tokenizer
from tiny_backends import TinyFolder
from tokenizer_examples import KINDS, ODD_TEXTS, Load


def original_ids(folder: Path, *texts: str, **options: Any) -> list[int]:
    """What the transformers library makes of it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids: list[int] = tokenizer(*texts, **options)["input_ids"]
    return ids


def texts_of_tokens(encoding: Encoding, *texts: str) -> list[str]:
    return [
        texts[index][start:end]
        for index, (start, end) in zip(encoding.text_index, encoding.offsets, strict=True)
        if index >= 0
    ]


# ---------------------------------------------------------------------------------- same ids


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
@pytest.mark.parametrize("family", KINDS)
def test_ids_are_those_of_the_models_own_tokenizer(
    load: Load, tiny_folder: TinyFolder, family: str, text: str
) -> None:
    encoding = load(family).tokenize(text)
    assert encoding.input_ids.tolist() == original_ids(tiny_folder(family), text)
    assert not encoding.truncated
    assert encoding.num_tokens_untruncated == len(encoding.tokens) == len(encoding.offsets)


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm_roberta", "t5", "bart"])
@pytest.mark.parametrize("max_tokens", [8, 9, 20, 41])
@pytest.mark.parametrize("sizes", [(1, 3), (3, 1), (2, 2), (0, 2), (2, 0)])
def test_pairs_are_cut_from_the_longer_text_as_the_library_does(
    load: Load,
    tiny_folder: TinyFolder,
    family: str,
    max_tokens: int,
    sizes: tuple[int, int],
) -> None:
    first, second = (" ".join(("fox", *tiny_models.SENTENCES[:size])) for size in sizes)
    encoding = load(family).tokenize(
        first, text_pair=second, max_tokens=max_tokens, truncation="end"
    )
    assert encoding.input_ids.tolist() == original_ids(
        tiny_folder(family), first, second, truncation="longest_first", max_length=max_tokens
    )
    assert len(encoding.input_ids) == max_tokens


@pytest.mark.parametrize("side", ["end", "start"])
@pytest.mark.parametrize("family", KINDS)
def test_cut_texts_keep_their_special_tokens(
    load: Load, tiny_folder: TinyFolder, family: str, side: Truncation
) -> None:
    text = tiny_models.LONG_TEXT
    whole = load(family).tokenize(text)
    encoding = load(family).tokenize(text, max_tokens=10, truncation=side)
    original = transformers.AutoTokenizer.from_pretrained(tiny_folder(family))
    original.truncation_side = {"end": "right", "start": "left"}[side]
    assert (
        encoding.input_ids.tolist() == original(text, truncation=True, max_length=10)["input_ids"]
    )
    assert encoding.truncated
    assert encoding.num_tokens_untruncated == len(whole.input_ids)
    kept = [tuple(span) for span in encoding.offsets[encoding.text_index == 0]]
    spans = [tuple(span) for span in whole.offsets[whole.text_index == 0]]
    assert kept == (spans[: len(kept)] if side == "end" else spans[-len(kept) :])


def test_truncation_and_padding_inside_tokenizer_json_are_switched_off(minilm: Tokenizer) -> None:
    assert minilm.tokenize("one word").input_ids.size == 4
    assert minilm.tokenize("word " * 300).input_ids.size == 302
    with pytest.raises(TooManyTokens, match="602 tokens, minilm takes at most 512"):
        minilm.tokenize("word " * 600)


# ------------------------------------------------------------------------------ readable tokens


def test_wordpiece_tokens_are_those_of_the_vocabulary(minilm: Tokenizer) -> None:
    text = "Embeddings, 漢字! שלום"
    encoding = minilm.tokenize(text)
    assert encoding.tokens == (
        "[CLS]", "em", "##bed", "##ding", "##s", ",", "漢", "[UNK]", "!", "ש", "##ל", "##ו", "##ם",
        "[SEP]",
    )  # fmt: skip
    assert texts_of_tokens(encoding, text) == [
        "Em",
        "bed",
        "ding",
        "s",
        ",",
        "漢",
        "字",
        "!",
        "ש",
        "ל",
        "ו",
        "ם",
    ]


@pytest.mark.parametrize("text", ODD_TEXTS.values(), ids=ODD_TEXTS.keys())
@pytest.mark.parametrize("family", ["gpt2", "llama", "roberta"])
def test_byte_level_pieces_are_readable_and_lie_end_to_end(
    load: Load, family: str, text: str
) -> None:
    encoding = load(family).tokenize(text)
    assert not any(set(token) & set("ĠĊðâŁ\ufffd") for token in encoding.tokens)
    own = encoding.text_index == 0
    position = 0
    for start, end in encoding.offsets[own]:
        assert start in (position, position - 1)  # -1: shares the last character
        position = end
    assert position == len(text)
    tokens = [token for token, is_own in zip(encoding.tokens, own, strict=True) if is_own]
    for token, span in zip(tokens, texts_of_tokens(encoding, text), strict=True):
        assert token == span or "<0x" in token
    restored = b"".join(_bytes_of(token) for token in tokens)
    assert restored.decode() == text


def _bytes_of(token: str) -> bytes:
    if token.startswith("<0x"):
        return bytes.fromhex(token.replace("<0x", "").replace(">", ""))
    return token.encode()


def test_a_character_over_several_tokens_is_shown_by_its_bytes(load: Load) -> None:
    encoding = load("gpt2").tokenize("fox 🦊")
    assert "".join(encoding.tokens).endswith(" <0xF0><0x9F><0xA6><0x8A>")
    shared = encoding.offsets[-4:].tolist()
    assert shared == [[4, 5]] * 4


@pytest.mark.parametrize("family", ["t5", "xlm_roberta"])
def test_metaspace_pieces_show_spaces_only_where_the_text_has_them(load: Load, family: str) -> None:
    text = "The fox jumps"
    encoding = load(family).tokenize(text)
    own = [t for t, i in zip(encoding.tokens, encoding.text_index, strict=True) if i == 0]
    assert "".join(own) == text
    assert own[0].startswith("T")


def test_llama_2_style_pieces_are_readable() -> None:
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, normalizers

    vocabulary = {"<unk>": 0, "▁fox": 1, "<0x0A>": 2, "<0xF0>": 3, "ed": 4, "▁": 5}
    fast = Fast(models.BPE(vocabulary, [], byte_fallback=True))
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    pieces = TokenPieces(fast)
    shown = [pieces.piece(token_id) for token_id in range(7)]
    assert shown == ["<unk>", " fox", "\n", "<0xF0>", "ed", " ", "<id 6>"]


def test_every_piece_of_every_vocabulary_is_free_of_replacement_characters(load: Load) -> None:
    for family in KINDS:
        tokenizer = load(family)
        encoding = tokenizer.encoding_of(range(min(tokenizer.vocab_size, 250)))
        assert not any("\ufffd" in token for token in encoding.tokens)


@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1))
@settings(max_examples=150, deadline=None)
def test_offsets_lie_in_the_text_and_never_run_backwards(load: Load, text: str) -> None:
    for family in ("gpt2", "bert", "t5"):
        try:
            encoding = load(family).tokenize(text, truncation="end")
        except EmptyText:
            continue
        spans = encoding.offsets[encoding.text_index == 0]
        assert (spans >= 0).all()
        assert (spans <= len(text)).all()
        assert (spans[:, 0] <= spans[:, 1]).all()
        assert (np.diff(spans[:, 0]) >= 0).all()


# ------------------------------------------------------------------------------ special tokens


def test_special_tokens_and_pairs(load: Load) -> None:
    encoding = load("bert").tokenize("the [MASK] fox", text_pair="the zzz river")
    shown = list(zip(encoding.tokens, encoding.special, encoding.text_index, strict=True))
    assert shown[0] == ("[CLS]", True, -1)
    assert shown[1] == ("the", False, 0)
    assert shown[2] == ("[MASK]", True, 0)  # written in the text: special, with its place
    assert encoding.offsets[2].tolist() == [4, 10]
    unknown = load("bert").tokenize("the ☃ fox")
    assert unknown.tokens[2] == "[UNK]"
    assert not unknown.special[2]  # stands for text
    assert unknown.offsets[2].tolist() == [4, 5]
    assert encoding.tokens[-1] == "[SEP]"
    assert encoding.text_index[-2] == 1
    assert encoding.text_index.max() == 1
    assert encoding.offsets[-2].tolist() == [8, 13] or encoding.offsets[-2][1] == 13


def test_segments_are_told_where_the_model_has_them(minilm: Tokenizer, load: Load) -> None:
    encoding = minilm.tokenize("one", text_pair="two")
    assert encoding.token_type_ids is not None
    assert encoding.token_type_ids.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_targets_are_decoder_inputs(load: Load, tiny_folder: TinyFolder, family: str) -> None:
    from transformers import AutoModelForSeq2SeqLM

    text = "The quick fox."
    model = AutoModelForSeq2SeqLM.from_pretrained(tiny_folder(family))
    labels = original_ids(tiny_folder(family), text)
    import torch

    shifted = model.prepare_decoder_input_ids_from_labels(labels=torch.tensor([labels]))
    encoding = load(family).tokenize(text, target=True)
    assert encoding.input_ids.tolist() == shifted[0].tolist()
    assert encoding.special[0]
    assert texts_of_tokens(encoding, text)[-1].endswith(".")
    cut = load(family).tokenize(text, target=True, max_tokens=5, truncation="end")
    assert cut.input_ids.tolist() == shifted[0][:5].tolist()


def test_a_model_without_a_decoder_takes_no_target(load: Load) -> None:
    with pytest.raises(TargetUnsupported):
        load("bert").tokenize("text", target=True)


# --------------------------------------------------------------------------------------- chat


def test_messages_go_through_the_chat_template(load: Load) -> None:
    messages = [{"role": "user", "content": "Hello fox"}, {"role": "assistant", "content": "Hi"}]
    encoding = load("llama").tokenize_messages(messages)
    rendered = "<|user|>Hello fox\n<|assistant|>Hi\n"
    assert "".join(encoding.tokens) == rendered
    assert texts_of_tokens(encoding, rendered) == list(encoding.tokens)
    cut = load("llama").tokenize_messages(messages, max_tokens=4, truncation="start")
    assert cut.tokens == encoding.tokens[-4:]
    with pytest.raises(TooManyTokens):
        load("llama").tokenize_messages(messages, max_tokens=4)


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"content": "no role"}],
        [{"role": "user"}],
        [{"role": "user", "content": ["parts"]}],
        ["text"],
    ],
    ids=["none", "no role", "no content", "content of parts", "no object"],
)
def test_malformed_messages_are_refused(load: Load, messages: Any) -> None:
    with pytest.raises(InvalidRequest, match="messages"):
        load("llama").tokenize_messages(messages)


def test_a_template_that_refuses_is_the_requests_fault(load: Load) -> None:
    tokenizer = load("llama")
    strict = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InvalidRequest, match="roles must alternate"):
        tokenizer.chat_template.apply([{"role": "user", "content": "x"}], chat_template=strict)


def test_without_a_chat_template_messages_are_refused(load: Load) -> None:
    with pytest.raises(ChatTemplateMissing):
        load("bert").tokenize_messages([{"role": "user", "content": "x"}])


# ------------------------------------------------------------------------------------ given ids


def test_given_ids_are_taken_as_they_are(load: Load) -> None:
    tokenizer = load("llama")
    ids = tokenizer.tokenize("fox 🦊").input_ids.tolist()
    encoding = tokenizer.encoding_of(ids)
    assert encoding.input_ids.tolist() == ids
    assert encoding.input_ids.dtype == np.int64
    assert encoding.special.tolist() == [True] + [False] * (len(ids) - 1)
    assert not encoding.offsets.any()


@pytest.mark.parametrize("bad", [-1, 10**6])
def test_ids_outside_the_vocabulary_are_refused_with_their_position(load: Load, bad: int) -> None:
    with pytest.raises(InvalidInputIds) as caught:
        load("bert").encoding_of([5, 6, bad])
    assert caught.value.facts["position"] == 2


def test_too_many_or_no_ids_are_refused(load: Load) -> None:
    with pytest.raises(TooManyTokens):
        load("bert").encoding_of([5] * 257)
    with pytest.raises(EmptyText):
        load("bert").encoding_of([])


# ------------------------------------------------------------------------------------- bad text


@pytest.mark.parametrize("text", ["", " ", "\n\t\u2003", "\u200b\u200b"])
def test_nothing_to_read_is_refused(minilm: Tokenizer, text: str) -> None:
    with pytest.raises(EmptyText, match="text_pair"):
        minilm.tokenize("fine", text_pair=text)
    with pytest.raises(EmptyText, match="query"):
        minilm.tokenize(text, field="query")


@pytest.mark.parametrize(
    ("text", "position", "problem"),
    [("ab\ud800c", 2, "surrogate"), ("\udfff", 0, "surrogate"), ("a\0", 1, "NUL")],
)
def test_text_that_is_not_unicode_is_refused(text: str, position: int, problem: str) -> None:
    with pytest.raises(InvalidText, match=problem) as caught:
        check_text(text, field="text")
    assert caught.value.facts["position"] == position


def test_pairs_are_refused_where_the_model_reads_one_text(load: Load) -> None:
    with pytest.raises(PairUnsupported):
        load("gpt2").tokenize("one", text_pair="two")
    with pytest.raises(PairUnsupported):
        load("t5").tokenize("one", text_pair="two", target=True)


def test_a_limit_without_room_for_text_is_refused(load: Load) -> None:
    with pytest.raises(InvalidRequest, match="no room"):
        load("bert").tokenize("some words", max_tokens=2, truncation="end")


# ----------------------------------------------------------------------------------- the limits


def config(**settings: Any) -> transformers.PretrainedConfig:
    return transformers.AutoConfig.for_model(settings.pop("model_type"), **settings)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"model_type": "bert", "max_position_embeddings": 512}, 512),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "mpnet", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "gpt2", "n_positions": 1024}, 1024),
        ({"model_type": "t5", "n_positions": 512}, None),
        ({"model_type": "xlnet"}, None),
        ({"model_type": "bart", "max_position_embeddings": 1024}, 1024),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else str(value),
)
def test_positions_of_a_model(settings: dict[str, Any], expected: int | None) -> None:
    from pellucid.models.text.tokenizer_files import max_positions

    assert max_positions(config(**settings)) == expected


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "bart"])
def test_a_text_of_the_full_length_runs_through_the_model(
    load: Load, tiny_folder: TinyFolder, family: str
) -> None:
    import torch

    tokenizer = load(family)
    encoding = tokenizer.tokenize("fox " * 300, truncation="end")
    assert len(encoding.input_ids) == tokenizer.max_tokens == 256
    model = transformers.AutoModel.from_pretrained(tiny_folder(family)).eval()
    with torch.inference_mode():
        output = model(torch.tensor(encoding.input_ids[None])).last_hidden_state
    assert torch.isfinite(output).all()


def test_the_library_sentinel_is_no_limit() -> None:
    from pellucid.models.text.tokenizer_files import finite_length

    assert finite_length(int(1e30)) is None
    assert finite_length(None) is None
    assert finite_length(512) == 512


@pytest.mark.parametrize("lengths", [(5, 50), (50, 5), (30, 30), (31, 29), (29, 31), (0, 9)])
@pytest.mark.parametrize("room", [7, 8, 20, 55])
def test_kept_lengths_fill_the_room(lengths: tuple[int, int], room: int) -> None:
    kept = kept_lengths(lengths, room=room)
    assert sum(kept) == min(room, sum(lengths))
    assert all(k <= length for k, length in zip(kept, lengths, strict=True))


def test_a_folder_without_a_tokenizer_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelLoadFailed, match="tokenizer files are missing"):
        Tokenizer.load(tmp_path, config=config(model_type="bert"), model_id="tiny/none")


def test_a_broken_tokenizer_file_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": 5}')
    with pytest.raises(ModelLoadFailed, match="its tokenizer cannot be loaded"):
        Tokenizer.load(tmp_path, config=config(model_type="bert"), model_id="tiny/broken")


def test_a_tokenizer_without_a_fast_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "ctrl"}')
    (tmp_path / "vocab.json").write_text('{"a": 0, "<unk>": 1}')
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "CTRLTokenizer"}')
    with pytest.raises(ModelLoadFailed, match="no fast form"):
        Tokenizer.load(tmp_path, config=config(model_type="ctrl"), model_id="tiny/ctrl")

"""Which prompt a text gets."""

from __future__ import annotations

import pytest

from pellucid.errors import PromptUnknown
from pellucid.models.backend import InputType
from pellucid.models.embedding.prompts import choose_prompt

PASSAGE = {"query": "query: ", "passage": "passage: "}
SAVED = {"query": "q: ", "document": "", "passage": "p: "}  # version 6 writes both keys always


@pytest.mark.parametrize(
    ("prompts", "input_type", "prompt_name", "default", "expected"),
    [
        (PASSAGE, None, None, None, None),
        (PASSAGE, None, None, "query", "query: "),
        (PASSAGE, "query", None, None, "query: "),
        (PASSAGE, "document", None, "query", "passage: "),
        ({"corpus": "c: "}, "document", None, None, "c: "),
        (SAVED, "document", None, None, "p: "),
        ({"odd": "o: "}, "query", None, "odd", None),
        ({"odd": "o: "}, "document", None, "odd", None),
        (PASSAGE, "query", "passage", None, "passage: "),
        (SAVED, None, "document", None, None),
        ({}, None, None, "gone", None),
    ],
)
def test_prompt(
    prompts: dict[str, str],
    input_type: InputType | None,
    prompt_name: str | None,
    default: str | None,
    expected: str | None,
) -> None:
    chosen = choose_prompt(
        input_type=input_type,
        prompt_name=prompt_name,
        prompts=prompts,
        default_prompt_name=default,
        model_id="tiny/model",
    )
    assert chosen == expected


def test_an_unknown_name_is_refused_with_those_that_exist() -> None:
    with pytest.raises(PromptUnknown, match="passage, query"):
        choose_prompt(
            input_type=None,
            prompt_name="title",
            prompts=PASSAGE,
            default_prompt_name=None,
            model_id="tiny/model",
        )

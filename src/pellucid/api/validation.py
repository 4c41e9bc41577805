"""What pydantic found, as one error that a person can act on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pellucid.errors import InvalidRequest

_MAX_LISTED = 8
_TYPE_IS_WRONG = "input should be "


def invalid_request(errors: Sequence[Mapping[str, Any]]) -> InvalidRequest:
    """Pydantic's findings as one error that names each field; values are not echoed."""
    problems: dict[str, list[str]] = {}
    outer: set[str] = set()
    for error in errors:
        location = error["loc"]
        field = _field(location)
        sentences = problems.setdefault(field, [])
        if (sentence := _sentence(error)) not in sentences:
            sentences.append(sentence)
        outer |= {_field(location[:end]) for end in range(2, len(location))} - {field}
    # Of a field that may take several forms, the form that was meant got farthest.
    found = [
        {"field": field, "problem": _alternatives(sentences)}
        for field, sentences in problems.items()
        if field not in outer
    ]
    listed = found[:_MAX_LISTED]
    reason = "; ".join(f"{entry['field']}: {entry['problem']}" for entry in listed)
    if len(found) > len(listed):
        reason += f"; and {len(found) - len(listed)} more"
    return InvalidRequest(reason=f"{reason}.", field=found[0]["field"], problems=listed)


def _field(location: Sequence[Any]) -> str:
    """``("body", "layers", 0)`` -> ``layers[0]``; the whole body is ``body``."""
    names = [part for part in location[1:] if not _is_union_branch(part)]
    path = ""
    for name in names:
        path += f"[{name}]" if isinstance(name, int) else f".{name}" if path else str(name)
    return path or str(location[0])


def _alternatives(sentences: Sequence[str]) -> str:
    """What is wrong with one field, in one sentence.

    ``input should be a valid string`` and ``input should be a valid list`` are two forms that it
    may take; where the type is right and only the value is wrong, only that is told.
    """
    of_type = [sentence for sentence in sentences if sentence.startswith(_TYPE_IS_WRONG)]
    of_value = [sentence for sentence in sentences if sentence not in of_type]
    if of_value:
        return "; ".join(of_value)
    return _TYPE_IS_WRONG + " or ".join(part.removeprefix(_TYPE_IS_WRONG) for part in of_type)


def _is_union_branch(part: object) -> bool:
    # Pydantic puts the branch of a union into the path: "list[str]", "constrained-str", "int".
    return isinstance(part, str) and (
        "[" in part or part in ("str", "int", "constrained-str", "constrained-int")
    )


def _sentence(error: Mapping[str, Any]) -> str:
    if error["type"] == "extra_forbidden":
        return "this field is not known (a misspelling?)"
    if error["type"] == "missing":
        is_body = len(error["loc"]) == 1
        return "it is empty, a JSON object is needed" if is_body else "this field is needed"
    if error["type"] in ("model_type", "model_attributes_type"):
        return "input should be a valid object"
    if error["type"] == "too_short":
        has, needs = error["ctx"]["actual_length"], error["ctx"]["min_length"]
        return f"it has {has} items, at least {needs} needed"
    if error["type"] == "string_unicode":
        return "this is not valid Unicode text"
    message = str(error["msg"]).removeprefix("Value error, ")
    return message[:1].lower() + message[1:]

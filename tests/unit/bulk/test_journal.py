from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pellucid.bulk.journal import JobFacts, Journal
from pellucid.errors import InputChanged, OutputUnusable

FACTS = JobFacts(
    inputs=(("a.txt", "lines:text", "0" * 64),), model_id="m", revision="r", options={"n": True}
)


def result(index: int) -> dict[str, Any]:
    return {"index": index, "embedding": [0.5]}


def begun(path: Path, facts: JobFacts = FACTS) -> Journal:
    journal = Journal(path)
    journal.begin(facts)
    return journal


def indices(path: Path) -> list[int]:
    return [json.loads(line)["index"] for line in path.read_text().splitlines()]


def test_goes_on_after_the_last_result(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    first = begun(path)
    first.append([result(0), result(2)], [{"index": 1}])
    first.close()
    second = begun(path)
    assert [second.is_settled(index) for index in range(4)] == [True, True, True, False]
    second.append([result(3)], [])
    second.close()
    assert indices(path) == [0, 2, 3]


@pytest.mark.parametrize("torn", [b'{"index":2,"embed', b"\x00\x00\x00", b"{"])
def test_a_torn_last_line_is_cut_off_and_done_again(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "out.jsonl"
    first = begun(path)
    first.append([result(0), result(1)], [])
    first.close()
    with path.open("ab") as stream:
        stream.write(torn)
    second = begun(path)
    assert second.last_index == 1
    second.append([result(2)], [])
    second.close()
    assert indices(path) == [0, 1, 2]


def test_a_torn_first_line_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    begun(path).close()
    path.write_bytes(b'{"index":0,"emb')
    journal = begun(path)
    assert journal.last_index == -1
    assert path.read_bytes() == b""
    journal.close()


def test_a_last_line_longer_than_one_read(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    first = begun(path)
    first.append([result(0), {"index": 1, "embedding": "x" * 200_000}], [])
    first.close()
    second = begun(path)
    assert second.last_index == 1
    second.close()


def test_killed_between_errors_and_results_leaves_nothing_out(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    first = begun(path)
    first.append([result(0)], [])
    first.append([], [{"index": 2}])  # the results 1 and 3 of that batch were never written
    first.close()
    second = begun(path)
    assert [second.is_settled(index) for index in range(4)] == [True, False, True, False]
    second.close()


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"inputs": (("a.txt", "lines:text", "1" * 64),)}, "sha-256 000000000000"),
        ({"revision": "other"}, "revision r, now it is other"),
        ({"options": {"n": False}}, "options"),
    ],
    ids=["input", "model", "options"],
)
def test_other_facts_are_refused_and_nothing_is_touched(
    tmp_path: Path, changed: dict[str, Any], said: str
) -> None:
    path = tmp_path / "out.jsonl"
    first = begun(path)
    first.append([result(0)], [{"index": 1}])
    first.close()
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(InputChanged, match=said):
        begun(path, replace(FACTS, **changed))
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_file_of_someone_else_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("precious\n")
    with pytest.raises(OutputUnusable, match="--overwrite"):
        begun(path)
    assert path.read_text() == "precious\n"


def test_overwrite_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    path.write_text("precious\n")
    journal = Journal(path)
    journal.begin(FACTS, overwrite=True)
    journal.append([result(0)], [])
    journal.close()
    assert indices(path) == [0]


def test_two_runs_cannot_write_one_output(tmp_path: Path) -> None:
    first = begun(tmp_path / "out.jsonl")
    with pytest.raises(OutputUnusable, match="another run"):
        begun(tmp_path / "out.jsonl")
    first.close()
    begun(tmp_path / "out.jsonl").close()


def test_no_errors_file_without_errors(tmp_path: Path) -> None:
    journal = begun(tmp_path / "out.jsonl")
    journal.append([result(0)], [])
    journal.close()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out.jsonl", "out.jsonl.job.json"]

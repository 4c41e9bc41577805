from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pellucid.bulk.archive import write_npz
from pellucid.bulk.job import Outcome, count_rows, embed_files
from pellucid.bulk.journal import JobFacts, Journal
from pellucid.bulk.rows import InputFile
from pellucid.errors import EmptyText, HubUnreachable
from pellucid.inference.engine import EmbeddingQuery, Embeddings
from stub_engine import STUB_INFO, StubEngine


class LengthEngine(StubEngine):
    """The embedding of a text is its length; blank texts are refused as the real engine does."""

    async def embed(self, query: EmbeddingQuery) -> Embeddings:
        await self._work(query)
        for position, text in enumerate(query.inputs):
            if isinstance(text, str) and not text.strip():
                raise EmptyText(field=f"inputs[{position}]")
        count = len(query.inputs)
        return Embeddings(
            vectors=np.array([[len(text) / 3] for text in query.inputs], dtype=np.float32),
            truncated=tuple(len(text) > 5 for text in query.inputs),
            num_tokens=(1,) * count,
            model=STUB_INFO,
            timing={},
        )


class Kept:
    def __init__(self) -> None:
        self.results: list[Mapping[str, Any]] = []
        self.errors: list[Mapping[str, Any]] = []

    def is_settled(self, index: int) -> bool:
        return False

    def append(
        self, results: Sequence[Mapping[str, Any]], errors: Sequence[Mapping[str, Any]]
    ) -> None:
        self.results += results
        self.errors += errors


def written(path: Path, lines: Sequence[str]) -> list[InputFile]:
    path.write_text("".join(f"{line}\n" for line in lines))
    return [InputFile.of(str(path), field="text", format=None)]


def embed(engine: StubEngine, files: list[InputFile], sink: Any, *, batch_rows: int) -> Outcome:
    query = EmbeddingQuery(inputs=())
    return asyncio.run(embed_files(engine, files, sink, query=query, batch_rows=batch_rows))


def test_a_bad_row_costs_only_itself(tmp_path: Path) -> None:
    lines = [f'"{"x" * length}"' for length in range(1, 10)]
    lines[3], lines[6] = '" "', "not json"
    sink = Kept()
    outcome = embed(LengthEngine(), written(tmp_path / "a.jsonl", lines), sink, batch_rows=4)
    assert [record["index"] for record in sink.results] == [0, 1, 2, 4, 5, 7, 8]
    assert [record["embedding"][0] for record in sink.results] == pytest.approx(
        [length / 3 for length in (1, 2, 3, 5, 6, 8, 9)]
    )
    assert [(record["index"], record["code"]) for record in sink.errors] == [
        (3, "empty_text"),
        (6, "unreadable_row"),
    ]
    assert "a.jsonl, line 4 is empty" in sink.errors[0]["detail"]
    assert outcome == Outcome(embedded=7, truncated=3, bad=2)


def test_what_concerns_all_rows_ends_the_job(tmp_path: Path) -> None:
    sink = Kept()
    engine = LengthEngine(error=HubUnreachable(endpoint="http://hub", reason="refused"))
    with pytest.raises(HubUnreachable):
        embed(engine, written(tmp_path / "a.txt", ["one", "two"]), sink, batch_rows=2)
    assert not sink.results
    assert not sink.errors


def test_nothing_is_embedded_twice_over_interrupted_runs(tmp_path: Path) -> None:
    files = written(tmp_path / "a.txt", [f"row {number}" for number in range(10)])
    facts = JobFacts.of(files, model_id="m", revision="r", options={})
    seen: list[str] = []
    path = tmp_path / "out.jsonl"

    class Killed(Exception):
        pass

    class FailingEngine(LengthEngine):
        async def embed(self, query: EmbeddingQuery) -> Embeddings:
            if len(seen) >= 6:
                raise Killed
            seen.extend(str(text) for text in query.inputs)
            return await super().embed(query)

    def run(engine: StubEngine) -> Outcome:
        journal = Journal(path)
        journal.begin(facts)
        try:
            return embed(engine, files, journal, batch_rows=3)
        finally:
            journal.close()

    with pytest.raises(Killed):
        run(FailingEngine())
    engine = LengthEngine()
    assert run(engine) == Outcome(embedded=4, settled_before=6, truncated=0)
    seen += [str(text) for query in engine.seen for text in query.inputs]
    assert seen == [f"row {number}" for number in range(10)]
    again = LengthEngine()
    assert run(again) == Outcome(settled_before=10)
    assert not again.seen


def test_an_archive_holds_the_same_floats(tmp_path: Path) -> None:
    files = written(tmp_path / "a.txt", ["a", "bb", "ccc"])
    journal = Journal(tmp_path / "out.npz.part", output=tmp_path / "out.npz")
    journal.begin(JobFacts.of(files, model_id="m", revision="r", options={}))
    embed(LengthEngine(), files, journal, batch_rows=2)
    journal.close()
    assert write_npz(journal.path, tmp_path / "out.npz", model_id="m", revision="r") == 3
    with np.load(tmp_path / "out.npz") as archive:
        assert archive["embeddings"].dtype == np.float32
        np.testing.assert_array_equal(
            archive["embeddings"], np.array([[1 / 3], [2 / 3], [1]], dtype=np.float32)
        )
        assert archive["index"].tolist() == [0, 1, 2]
        assert str(archive["model_id"]) == "m"


def test_rows_are_counted_except_in_a_stream(tmp_path: Path) -> None:
    files = written(tmp_path / "a.txt", ["a", "", "b"])
    assert count_rows(files) == 2
    stream = InputFile.of("-", field="text", format=None)
    assert count_rows([*files, stream]) is None

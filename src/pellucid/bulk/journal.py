"""An output that survives a kill: appended in order, begun again where it stopped."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from pellucid.bulk.rows import InputFile
from pellucid.errors import InputChanged, OutputUnusable

_TAIL_BYTES = 1 << 16  # how much is read at a time when looking for the last whole line


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFacts:
    """What an output is made of; resumed only with the very same."""

    inputs: tuple[tuple[str, str, str], ...]  # file, format and field, sha-256
    model_id: str
    revision: str
    options: Mapping[str, Any]

    @classmethod
    def of(
        cls, files: Iterable[InputFile], *, model_id: str, revision: str, options: Mapping[str, Any]
    ) -> JobFacts:
        inputs = tuple((file.name, f"{file.format}:{file.field}", file.digest()) for file in files)
        return cls(inputs=inputs, model_id=model_id, revision=revision, options=dict(options))


class Journal:
    """Result lines of one job in ``path``; ``<output>.job.json`` says what job, and
    ``<output>.errors.jsonl`` holds the rows without a result. ``output`` is ``path`` unless the
    lines are only a step towards another file.

    Bad rows of a batch are written before its results, so whatever stands before the last result
    is settled, and a kill between the two leaves nothing out and nothing twice.
    """

    def __init__(self, path: Path, *, output: Path | None = None) -> None:
        self.path = path
        self.output = output or path
        self.job_path = self.output.with_name(self.output.name + ".job.json")
        self.errors_path = self.output.with_name(self.output.name + ".errors.jsonl")
        self.last_index = -1  # of the last result
        self.bad_indices: set[int] = set()
        self._results: BinaryIO | None = None
        self._errors: BinaryIO | None = None

    def begin(self, facts: JobFacts, *, overwrite: bool = False) -> None:
        """Open for appending, after what is there already.

        Raises InputChanged if that was made of something else, OutputUnusable if it is not ours.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            results = self.path.open("ab+")
        except OSError as error:
            raise OutputUnusable(
                output=str(self.path),
                reason=error.strerror or str(error),
                suggestion="Name another output with `--output`.",
            ) from error
        try:
            _lock(results, self.path)
            if overwrite:
                results.truncate(0)
                self.job_path.unlink(missing_ok=True)
                self.errors_path.unlink(missing_ok=True)
            else:
                self.check_facts(facts)
            self.last_index = _last_index(results, self.path)
            self._errors = self.errors_path.open("ab+")
            self.bad_indices = _indices(self._errors, self.errors_path)
        except BaseException:
            results.close()
            raise
        self._results = results
        _write_whole_file(self.job_path, json.dumps(asdict(facts), indent=1))

    def is_settled(self, index: int) -> bool:
        """Whether the row has its result, or its error."""
        return index <= self.last_index or index in self.bad_indices

    def append(
        self, results: Sequence[Mapping[str, Any]], errors: Sequence[Mapping[str, Any]]
    ) -> None:
        """One batch, each list in the order of ``index``."""
        assert self._results is not None, "begin() comes first"
        assert self._errors is not None
        _append(self._errors, errors)
        self.bad_indices.update(error["index"] for error in errors)
        _append(self._results, results)
        if results:
            self.last_index = results[-1]["index"]

    def errors(self) -> list[dict[str, Any]]:
        """Every row without a result, of earlier runs as well."""
        if not self.errors_path.exists():
            return []
        with self.errors_path.open("rb") as lines:
            return [orjson.loads(line) for line in lines]

    def close(self) -> None:
        for stream in (self._results, self._errors):
            if stream is not None:
                stream.close()
        if self._errors is not None and not self.bad_indices:
            self.errors_path.unlink(missing_ok=True)

    def check_facts(self, facts: JobFacts) -> None:
        """Raises InputChanged, OutputUnusable unless what is there was made of the same."""
        if not self.job_path.exists():
            if not any(path.exists() and path.stat().st_size for path in (self.path, self.output)):
                return
            raise OutputUnusable(
                output=str(self.output),
                reason="it exists and was not begun by this command",
                suggestion="Name another output, or replace it with `--overwrite`.",
            )
        begun = json.loads(self.job_path.read_text(encoding="utf-8"))
        for key, value in json.loads(json.dumps(asdict(facts))).items():
            if begun.get(key) != value:
                raise InputChanged(
                    output=str(self.output),
                    job_file=str(self.job_path),
                    was=f"{key} {_shown(begun.get(key))}",
                    now=_shown(value),
                )


def lines_of(records: Sequence[Mapping[str, Any]]) -> bytes:
    """JSON Lines; float32 vectors in the shortest decimals that read back the same."""
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_APPEND_NEWLINE
    return b"".join(orjson.dumps(record, option=options) for record in records)


def _append(stream: BinaryIO, records: Sequence[Mapping[str, Any]]) -> None:
    if records:
        stream.write(lines_of(records))
        stream.flush()


def _last_index(results: BinaryIO, path: Path) -> int:
    """Cut a torn last line off and return the index of the last whole one, -1 for none."""
    end = _cut_torn_line(results)
    if end == 0:
        return -1
    start = _find_last_newline(results, end - 1) + 1
    results.seek(start)
    try:
        return int(orjson.loads(results.read(end - start))["index"])
    except (ValueError, KeyError, TypeError) as error:
        raise OutputUnusable(
            output=str(path),
            reason="its last line is no result of this command",
            suggestion="Name another output, or replace it with `--overwrite`.",
        ) from error


def _indices(errors: BinaryIO, path: Path) -> set[int]:
    _cut_torn_line(errors)
    errors.seek(0)
    try:
        return {int(orjson.loads(line)["index"]) for line in errors}
    except (ValueError, KeyError, TypeError) as error:
        raise OutputUnusable(
            output=str(path),
            reason="it holds lines that are no errors of this command",
            suggestion="Name another output, or replace it with `--overwrite`.",
        ) from error


def _cut_torn_line(stream: BinaryIO) -> int:
    """A line without its end was being written when the run was killed. Returns the new size."""
    size = stream.seek(0, os.SEEK_END)
    end = _find_last_newline(stream, size) + 1
    if end < size:
        stream.truncate(end)
    stream.seek(end)
    return end


def _find_last_newline(stream: BinaryIO, end: int) -> int:
    """Position of the last LF before ``end``, -1 if there is none."""
    while end > 0:
        start = max(0, end - _TAIL_BYTES)
        stream.seek(start)
        found = stream.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found
        end = start
    return -1


def _write_whole_file(path: Path, text: str) -> None:
    """The old content or the new, never a part: written aside, then put in its place."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def _lock(stream: BinaryIO, path: Path) -> None:
    """Two runs must not write one output."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OutputUnusable(
            output=str(path),
            reason="another run is writing it",
            suggestion="Wait for it, or name another output.",
        ) from error
    except OSError:
        return  # a file system without locks


def _shown(value: object) -> str:
    """A fact, short enough for a sentence."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        return ", ".join(f"{name} (sha-256 {digest[:12]})" for name, _, digest in value)
    return json.dumps(value) if not isinstance(value, str) else value

"""Where results go, by the name given: stdout, JSON Lines, or a numpy archive."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from pellucid.bulk.journal import Journal, lines_of
from pellucid.bulk.rows import STREAM, InputFile
from pellucid.errors import OutputUnusable

_LINES_SUFFIXES = (".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """A name, understood. ``overwrite``: what is there already does not count."""

    name: str
    overwrite: bool = False

    @classmethod
    def of(cls, name: str, *, inputs: Sequence[InputFile], overwrite: bool) -> Output:
        """Raises OutputUnusable where the name does not tell what to write, or a stream would have
        to be read a second time."""
        if name == STREAM:
            return cls(name=name)
        if not name.lower().endswith((*_LINES_SUFFIXES, ".npz")):
            raise OutputUnusable(
                output=name,
                reason="the suffix does not tell what to write",
                suggestion="Name a .jsonl or a .npz file.",
            )
        if any(file.is_stream for file in inputs):
            # What came down a pipe is gone after a kill, so there is nothing to go on from.
            if Path(name).exists() and not overwrite:
                raise OutputUnusable(
                    output=name,
                    reason="it exists, and a run that reads stdin cannot go on from it",
                    suggestion="Name another output, or replace it with `--overwrite`.",
                )
            overwrite = True
        return cls(name=name, overwrite=overwrite)

    @property
    def is_stream(self) -> bool:
        return self.name == STREAM

    @property
    def is_archive(self) -> bool:
        return self.name.lower().endswith(".npz")

    @property
    def path(self) -> Path:
        return Path(self.name)

    def journal(self) -> Journal:
        """An archive is written at the end; until then its results are lines beside it."""
        if self.is_archive:
            return Journal(self.path.with_name(self.path.name + ".part"), output=self.path)
        return Journal(self.path)

    def is_whole(self, journal: Journal) -> bool:
        """Whether there is nothing left to do; an archive appears only when all is in it."""
        there = self.is_archive and self.path.exists() and not journal.path.exists()
        return there and not self.overwrite


class StreamSink:
    """Results down a pipe as they come; what is bad is kept to be listed."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.bad: list[Mapping[str, Any]] = []

    def is_settled(self, index: int) -> bool:
        return False

    def append(
        self, results: Sequence[Mapping[str, Any]], errors: Sequence[Mapping[str, Any]]
    ) -> None:
        self._stream.write(lines_of(results))
        self._stream.flush()
        self.bad += errors

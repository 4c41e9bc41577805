"""Texts out of files, row by row: plain lines, JSON Lines, CSV and TSV, or a stream."""

from __future__ import annotations

import csv
import hashlib
import io
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import orjson

from pellucid.errors import InputUnreadable

RowFormat = Literal["lines", "jsonl", "csv", "tsv"]

STREAM = "-"
_FORMAT_OF_SUFFIX: dict[str, RowFormat] = {
    ".txt": "lines",
    ".text": "lines",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
}
_BOM = b"\xef\xbb\xbf"
_MAX_CELL_CHARACTERS = 2**31 - 1  # the largest that C's long holds everywhere
_HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One text, or why there is none. ``index`` counts over all files, ``line`` within one."""

    index: int
    file: str
    line: int  # from 1; where the row begins
    text: str
    problem: str | None = None  # set: the row cannot be read, text is empty


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """One input: a file, or ``-`` for a stream that can be read only once."""

    name: str
    format: RowFormat
    field: str = "text"  # of JSON objects and of tables with a header

    @classmethod
    def of(cls, name: str, *, field: str, format: RowFormat | None) -> InputFile:
        """With the format that the suffix says, unless one is given. Raises InputUnreadable."""
        suffix = Path(name).suffix.lower()
        known = format or ("lines" if name == STREAM else _FORMAT_OF_SUFFIX.get(suffix))
        if known is None:
            raise InputUnreadable(
                file=name,
                reason=f"the suffix {suffix!r} does not tell how its rows are written",
                suggestion="Say it with `--format` (lines, jsonl, csv or tsv).",
            )
        if name != STREAM and not Path(name).is_file():
            reason = "it is a folder" if Path(name).is_dir() else "there is no such file"
            raise InputUnreadable(file=name, reason=reason, suggestion="Name files, or `-`.")
        return cls(name=name, format=known, field=field)

    @property
    def is_stream(self) -> bool:
        return self.name == STREAM

    def open(self) -> BinaryIO:
        if self.is_stream:
            return sys.stdin.buffer
        try:
            return Path(self.name).open("rb")
        except OSError as error:
            raise InputUnreadable(
                file=self.name, reason=error.strerror or str(error), suggestion="Check its rights."
            ) from error

    def digest(self) -> str:
        """sha-256 of the whole content, by which a change is noticed; a stream has none."""
        if self.is_stream:
            return ""
        digest = hashlib.sha256()
        with self.open() as content:
            while chunk := content.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()


def read_rows(files: Iterable[InputFile]) -> Iterator[Row]:
    """All rows of all files in order. Blank lines are no rows; unreadable rows say why.

    Raises InputUnreadable where a whole file makes no sense (no such column).
    """
    index = 0
    for file in files:
        with file.open() as content:
            for line, text, problem in _READERS[file.format](content, file):
                yield Row(index=index, file=file.name, line=line, text=text, problem=problem)
                index += 1


_Piece = tuple[int, str, str | None]  # line, text, problem


def _lines(content: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Lines that hold anything, without their ends; only LF and CRLF end a line."""
    for number, line in enumerate(content, start=1):
        if number == 1:
            line = line.removeprefix(_BOM)
        if stripped := line.rstrip(b"\r\n"):
            yield number, stripped


def _read_lines(content: BinaryIO, file: InputFile) -> Iterator[_Piece]:
    for number, line in _lines(content):
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            yield number, "", f"not UTF-8 at byte {error.start} of the line"
            continue
        if text.strip():
            yield number, text, None


def _read_jsonl(content: BinaryIO, file: InputFile) -> Iterator[_Piece]:
    for number, line in _lines(content):
        if not line.strip():
            continue
        try:
            value = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            yield number, "", f"not JSON: {error.msg} at character {error.pos}"
            continue
        yield number, *_text_of(value, file.field)


def _text_of(value: Any, field: str) -> tuple[str, str | None]:
    if isinstance(value, str):
        return value, None
    if not isinstance(value, dict):
        return "", f"neither a JSON object nor a string, but {type(value).__name__}"
    if field not in value:
        return "", f"no field {field!r} (it has {', '.join(map(repr, value)) or 'none'})"
    if not isinstance(value[field], str):
        return "", f"field {field!r} is no string, but {type(value[field]).__name__}"
    return value[field], None


def _read_csv(content: BinaryIO, file: InputFile) -> Iterator[_Piece]:
    # csv's own limit of 131,072 characters would end the file at one long text.
    csv.field_size_limit(_MAX_CELL_CHARACTERS)
    # Bytes that are not UTF-8 spoil their own row only.
    decoded = io.TextIOWrapper(content, encoding="utf-8-sig", errors="surrogateescape", newline="")
    table = csv.reader(decoded, delimiter="\t" if file.format == "tsv" else ",")
    column: int | None = None
    begins = 1
    try:
        for cells in table:
            line, begins = begins, table.line_num + 1
            if not cells:
                continue
            if column is None:
                column = _column(cells, file)
            elif column >= len(cells):
                yield (
                    line,
                    "",
                    f"{len(cells)} cells, the column {file.field!r} is number {column + 1}",
                )
            elif not _is_unicode(cells[column]):
                yield line, "", f"column {file.field!r} is not UTF-8"
            else:
                yield line, cells[column], None
    except csv.Error as error:
        raise InputUnreadable(
            file=file.name, reason=f"line {table.line_num}: {error}", suggestion="Mend the table."
        ) from error
    finally:
        decoded.detach()  # whoever opened the content closes it


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:  # bytes that could not be decoded stand in it as surrogates
        return False
    return True


def _column(header: list[str], file: InputFile) -> int:
    if file.field in header:
        return header.index(file.field)
    raise InputUnreadable(
        file=file.name,
        reason=f"it has no column {file.field!r}, but {', '.join(map(repr, header))}",
        suggestion="Name the column with `--field`.",
    )


_READERS = {"lines": _read_lines, "jsonl": _read_jsonl, "csv": _read_csv, "tsv": _read_csv}

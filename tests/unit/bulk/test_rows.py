from __future__ import annotations

from pathlib import Path

import pytest

from pellucid.bulk.rows import InputFile, Row, read_rows
from pellucid.errors import InputUnreadable


def rows_of(path: Path, content: bytes, *, field: str = "text") -> list[Row]:
    path.write_bytes(content)
    return list(read_rows([InputFile.of(str(path), field=field, format=None)]))


def test_lines_keep_their_numbers_and_blank_ones_are_no_rows(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.txt", b"\xef\xbb\xbfone\r\n\n  \nfour\xe2\x80\xa8still four")
    assert [(row.index, row.line, row.text) for row in rows] == [
        (0, 1, "one"),
        (1, 4, "four\u2028still four"),
    ]


def test_a_line_that_is_not_utf8_spoils_only_itself(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.txt", b"one\ntw\xff\nthree\n")
    assert [row.text for row in rows] == ["one", "", "three"]
    assert rows[1].problem == "not UTF-8 at byte 2 of the line"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"text": 3}', "field 'text' is no string, but int"),
        (b'{"other": "x"}', "no field 'text' (it has 'other')"),
        (b"[1]", "neither a JSON object nor a string, but list"),
    ],
)
def test_a_json_row_without_a_text_says_what_it_has(
    tmp_path: Path, line: bytes, problem: str
) -> None:
    rows = rows_of(tmp_path / "a.jsonl", line + b'\n{"text": "good"}\n"plain"\n')
    assert [row.problem for row in rows] == [problem, None, None]
    assert [row.text for row in rows[1:]] == ["good", "plain"]


def test_broken_json_is_a_bad_row(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.jsonl", b'{"text": "one"}\n{"text": \n{"text": "three"}\n')
    assert [bool(row.problem) for row in rows] == [False, True, False]
    assert str(rows[1].problem).startswith("not JSON")


def test_a_table_cell_may_span_lines_and_be_long(tmp_path: Path) -> None:
    long = "x" * 200_000  # csv's own limit is 131,072
    content = f'id,body\n1,"two\nlines"\n2,{long}\n3\n'.encode()
    rows = rows_of(tmp_path / "a.csv", content, field="body")
    assert [(row.line, row.text) for row in rows[:2]] == [(2, "two\nlines"), (4, long)]
    assert rows[2].problem == "1 cells, the column 'body' is number 2"


def test_a_table_with_bytes_that_are_not_utf8(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "a.tsv", b"text\tid\n\xff\t1\ngood\t\xff\n")
    assert [(row.text, row.problem) for row in rows] == [
        ("", "column 'text' is not UTF-8"),
        ("good", None),
    ]


def test_a_table_without_the_column_is_refused_with_those_it_has(tmp_path: Path) -> None:
    with pytest.raises(InputUnreadable, match="no column 'text', but 'id', 'body'"):
        rows_of(tmp_path / "a.csv", b"id,body\n1,x\n")


def test_indices_count_over_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.jsonl"
    first.write_text("one\ntwo\n")
    second.write_text('"three"\n')
    files = [InputFile.of(str(path), field="text", format=None) for path in (first, second)]
    assert [(row.index, row.file, row.line) for row in read_rows(files)] == [
        (0, str(first), 1),
        (1, str(first), 2),
        (2, str(second), 1),
    ]


def test_an_unknown_suffix_needs_a_format(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_text("one\n")
    with pytest.raises(InputUnreadable, match="--format"):
        InputFile.of(str(path), field="text", format=None)
    assert InputFile.of(str(path), field="text", format="lines").format == "lines"


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(InputUnreadable, match="it is a folder"):
        InputFile.of(str(tmp_path / "a.txt"), field="text", format=None)

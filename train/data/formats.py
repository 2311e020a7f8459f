"""Formats of text files: a function reads one file into (row, columns), the row being the line a record begins on."""

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from train.data.files import lines

Rows = Iterator[tuple[int, dict[str, Any]]]


def text_rows(file: Path, *, unit: str) -> Rows:
    """Plain text, one column `text`: the whole file, each line, or each block of lines between blank lines."""
    if unit == "line":
        yield from ((row, {"text": line.strip()}) for row, line in lines(file) if line.strip())
        return
    block: list[str] = []
    start = 1
    for row, line in lines(file):
        if line.strip() or unit == "file":
            start = start if block else row
            block.append(line)
        elif block:
            yield start, {"text": "".join(block).strip()}
            block = []
    if "".join(block).strip():
        yield start, {"text": "".join(block).strip()}


def jsonl_rows(file: Path) -> Rows:
    """One JSON object a line, blank lines aside."""
    for row, line in lines(file):
        if not line.strip():
            continue
        try:
            columns = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}:{row}: not JSON ({error}); expected one object a line") from None
        if not isinstance(columns, dict):
            raise ValueError(f"{file}:{row}: found a JSON {type(columns).__name__}, expected one object a line")
        yield row, columns


def csv_rows(file: Path, *, delimiter: str, header: bool) -> Rows:
    """Separated values; without a header the columns are named "0", "1", ...

    Tab-separated files have no quoting: GLUE's hold bare quotes. All others quote as RFC 4180 does.
    """
    names: list[str] | None = None
    for row, fields in (_tab_fields if delimiter == "\t" else _quoted_fields)(file, delimiter):
        if names is None:
            names = fields if header else [str(i) for i in range(len(fields))]
            if header:
                continue
        if len(fields) != len(names):
            raise ValueError(
                f"{file}:{row}: found {len(fields)} fields, expected {len(names)} "
                f"({', '.join(names)}) as in the first row; check delimiter={delimiter!r} and the quoting"
            )
        yield row, dict(zip(names, fields, strict=True))


def _tab_fields(file: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    return ((row, line.rstrip("\r\n").split(delimiter)) for row, line in lines(file) if line.rstrip("\r\n"))


def _quoted_fields(file: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(sys.maxsize)  # 128 KiB by default, and a document may be longer
    # strict: a stray quote is otherwise read as text, and swallows every row up to the next one
    reader = csv.reader((line for _, line in lines(file)), delimiter=delimiter, strict=True)
    row = 1
    try:
        for fields in reader:
            if fields:
                yield row, fields
            row = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"{file}:{row}: broken row ({error}); check delimiter={delimiter!r} and the quoting") from None

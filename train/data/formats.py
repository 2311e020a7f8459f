"""Formats of text files: a function reads one file into (row, columns), the row being the line a record begins on.

All formats share this form. `names` are the columns that will be used; a format may give more. `tell` is told how many
bytes of the file are read, as they are. In place of columns a row may have the error that says what is wrong with it;
an error that is raised ends the file.
"""

import csv
import itertools
import json
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from train.data.files import Tell, lines, nobody

Rows = Iterator[tuple[int, dict[str, Any] | ValueError]]


def text_rows(file: Path, names: Collection[str], tell: Tell = nobody, *, unit: str) -> Rows:
    """Plain text, one column `text`: the whole file, each line, or each block of lines between blank lines."""
    block: list[str] = []
    start, wrong = 1, None
    for row, line, error in lines(file, tell):
        if line.strip() or unit == "file":
            start = start if block else row
            block.append(line)
            wrong = wrong or error
        if block and (unit == "line" or (unit == "block" and not line.strip())):
            yield start, wrong or {"text": "".join(block).strip()}
            block, wrong = [], None
    if "".join(block).strip():
        yield start, wrong or {"text": "".join(block).strip()}


def parallel_rows(file: Path, names: Collection[str], tell: Tell = nobody, *, text: str, pair: str) -> Rows:
    """Lines of a file and of its `partner`, as columns `text` and `pair`; a row where both are blank is none."""
    theirs = partner(file, text, pair)
    for mine, other in itertools.zip_longest(lines(file, tell), lines(theirs)):
        if mine is None or other is None:
            longer, shorter = (theirs, file) if mine is None else (file, theirs)
            row = (mine or other)[0]
            raise ValueError(
                f"{longer}:{row}: {shorter} has only {row - 1} lines; expected a line for each of the other's"
            )
        row, said, wrong = mine[0], [mine[1].strip(), other[1].strip()], mine[2] or other[2]
        if any(said):
            blank = None if all(said) else ValueError(f"{file}:{row}: blank here or in {theirs}; expected text in both")
            yield row, wrong or blank or dict(zip(("text", "pair"), said, strict=True))


def partner(file: Path, text: str, pair: str) -> Path:
    """`train.de.gz` of `train.en.gz` for text="en" and pair="de". Raises ValueError where there is none."""
    parts = file.name.split(".")
    if text not in parts[1:]:
        raise ValueError(f"{file}: expected a name with .{text} in it, whose partner has .{pair} there")
    at = max(i for i, part in enumerate(parts) if part == text)
    found = file.with_name(".".join([*parts[:at], pair, *parts[at + 1 :]]))
    if not found.is_file():
        raise ValueError(f"{file}: its partner {found} is not there")
    return found


def jsonl_rows(file: Path, names: Collection[str], tell: Tell = nobody) -> Rows:
    """One JSON object a line, blank lines aside."""
    for row, line, wrong in lines(file, tell):
        if line.strip():
            yield row, wrong or _object(line, f"{file}:{row}")


def _object(line: str, where: str) -> dict[str, Any] | ValueError:
    try:
        columns = json.loads(line)
    except (ValueError, RecursionError) as error:
        return ValueError(f"{where}: not JSON ({error}); expected one object a line")
    if not isinstance(columns, dict):
        return ValueError(f"{where}: found a JSON {type(columns).__name__}, expected one object a line")
    return columns


def squad_rows(file: Path, names: Collection[str], tell: Tell = nobody) -> Rows:
    """SQuAD's nested JSON as columns `question`, `context` and `answers`, {"text": [...], "answer_start": [...]}; the
    row is the number of the question in the file.
    """
    read: list[str] = []
    for _, line, wrong in lines(file, tell):
        if wrong:
            raise wrong
        read.append(line)
    row = 0
    try:
        for article in json.loads("".join(read))["data"]:
            for paragraph in article["paragraphs"]:
                for asked in paragraph["qas"]:
                    row += 1
                    yield row, _asked(asked, paragraph["context"], f"{file}:{row}")
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(
            f'{file}: not as SQuAD\'s files ({error!r} after {row} questions); expected {{"data": [{{"paragraphs": '
            '[{"context", "qas": [{"question", "answers": [{"text", "answer_start"}]}]}]}]}'
        ) from None


def _asked(asked: Any, context: str, where: str) -> dict[str, Any] | ValueError:
    """A question's columns, or what is wrong with it."""
    try:
        said = [] if asked.get("is_impossible") else asked["answers"]
        answers = {key: [one[key] for one in said] for key in ("text", "answer_start")}
        for text, start in zip(answers["text"], answers["answer_start"], strict=True):
            if not context.startswith(text, start):
                return ValueError(
                    f"{where}: the answer {text!r} is not at character {start} of the context, which has "
                    f"{context[start : start + len(text)]!r} there"
                )
        return {"question": asked["question"], "context": context, "answers": answers}
    except (TypeError, KeyError, AttributeError) as error:
        return ValueError(
            f'{where}: not a question as in SQuAD\'s files ({error!r}); expected {{"question", "answers": [{{"text", '
            '"answer_start"}]}'
        )


def csv_rows(file: Path, names: Collection[str], tell: Tell = nobody, *, delimiter: str, header: bool) -> Rows:
    """Separated values; without a header the columns are named "0", "1", ...

    Tab-separated files have no quoting: GLUE's hold bare quotes. All others quote as RFC 4180 does; a quote that is
    never closed takes the rest of the file with it.
    """
    found: list[str] | None = None
    for row, fields in (_tab_fields if delimiter == "\t" else _quoted_fields)(file, delimiter, tell):
        if isinstance(fields, ValueError):
            if header and found is None:
                raise fields
            yield row, fields
        elif found is None and header:
            found = fields
        else:
            found = found or [str(i) for i in range(len(fields))]
            if len(fields) == len(found):
                yield row, dict(zip(found, fields, strict=True))
            else:
                yield (
                    row,
                    ValueError(
                        f"{file}:{row}: found {len(fields)} fields, expected {len(found)} ({', '.join(found)}) as in "
                        f"the first row; check delimiter={delimiter!r} and the quoting"
                    ),
                )


Fields = Iterator[tuple[int, list[str] | ValueError]]


def _tab_fields(file: Path, delimiter: str, tell: Tell) -> Fields:
    for row, line, wrong in lines(file, tell):
        if line.rstrip("\r\n"):
            yield row, wrong or line.rstrip("\r\n").split(delimiter)


def _quoted_fields(file: Path, delimiter: str, tell: Tell) -> Fields:
    csv.field_size_limit(sys.maxsize)  # 128 KiB by default, and a document may be longer
    wrong: list[ValueError] = []  # of the lines of one row

    def read() -> Iterator[str]:
        for _, line, error in lines(file, tell):
            if error:
                wrong.append(error)
            yield line

    # strict: a stray quote is otherwise read as text, and swallows every row up to the next one
    reader = csv.reader(read(), delimiter=delimiter, strict=True)
    while True:
        row = reader.line_num + 1
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:  # the reader goes on with the next line
            check = f"check delimiter={delimiter!r} and the quoting"
            yield row, ValueError(f"{file}:{row}: broken row ({error}); {check}")
        else:
            if wrong or fields:
                yield row, wrong[0] if wrong else fields
        wrong.clear()

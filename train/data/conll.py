"""Formats of tagged sentences: a function reads one file into (row, columns), as in `train.data.formats`.

Columns are `text`, the words with a space between each two, and `tags`, as many tags likewise. A space inside a word
becomes a no-break space, so that the words can be told apart. The row is the line of its first word.
"""

from collections.abc import Callable, Collection, Iterator
from pathlib import Path

from train.data.files import Tell, lines, nobody
from train.data.formats import Rows

UNIVERSAL = {"UPOS": 3, "XPOS": 4}  # columns of CoNLL-U that hold a tag
_NO_BREAK = "\u00a0"


def conll_rows(file: Path, names: Collection[str], tell: Tell = nobody, *, tag: int, delimiter: str) -> Rows:
    """A word a line, in its first column, its tag in column `tag` from 0; a blank line between sentences."""

    def parse(line: str) -> tuple[str, str] | None:
        fields = line.split(delimiter)
        if len(fields) <= tag:
            raise ValueError(
                f"found {len(fields)} fields, expected a tag in column {tag}; check tag= and delimiter={delimiter!r}"
            )
        # CoNLL-2003 marks where a document begins by a line that is no word
        return None if fields[0] == "-DOCSTART-" else (fields[0], fields[tag].strip())

    return _sentences(file, tell, parse)


def conllu_rows(file: Path, names: Collection[str], tell: Tell = nobody, *, tag: str) -> Rows:
    """CoNLL-U (https://universaldependencies.org/format.html): the words of its trees, and their `tag`, UPOS or XPOS.

    Comments, lines of multiword tokens (1-2) and empty nodes (1.1) are left out.
    """

    def parse(line: str) -> tuple[str, str] | None:
        if line.startswith("#"):
            return None
        fields = line.split("\t")
        if len(fields) != 10:
            raise ValueError(f"found {len(fields)} fields between tabs, expected the 10 of CoNLL-U")
        return (fields[1], fields[UNIVERSAL[tag]]) if fields[0].isdigit() else None

    return _sentences(file, tell, parse)


def _sentences(file: Path, tell: Tell, parse: Callable[[str], tuple[str, str] | None]) -> Rows:
    """The sentences between blank lines; one with a line that `parse` refuses is the error that says so."""
    words: list[str] = []
    tags: list[str] = []
    start, wrong = 1, None

    def ended() -> Iterator[tuple[int, dict[str, str] | ValueError]]:
        if wrong or words:
            yield start, wrong or {"text": " ".join(words), "tags": " ".join(tags)}

    for row, line, error in lines(file, tell):
        if not line.strip():
            yield from ended()
            words, tags, wrong = [], [], None
            continue
        if not (wrong or words):
            start = row
        try:
            found = parse(line.rstrip("\r\n"))
            if found is not None:
                word, tag = found
                if not word.strip() or not tag or " " in tag:
                    raise ValueError(f"found word {word!r} and tag {tag!r}, expected one of each, no space in the tag")
                words.append(word.replace(" ", _NO_BREAK))
                tags.append(tag)
        except ValueError as refused:
            error = error or ValueError(f"{file}:{row}: {refused}")
        wrong = wrong or error
    yield from ended()

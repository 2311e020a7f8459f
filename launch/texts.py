"""Texts to predict for: records read from files or lines, and a tokenizer that knows [MASK] and T5's sentinels."""

import itertools
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from train.data import files, formats
from train.data.source import Record
from train.data.tokenizer import Tokenizer

MASK = "[MASK]"
_MARK = re.compile(r"(\[MASK\]|<extra_id_\d+>)")


def read(path: str) -> list[Record]:
    """Records of a file of texts: .txt a text a line, or .jsonl, .csv, .tsv with columns `text` and maybe `pair`; in
    .jsonl also `choices`, a list of texts.

    A path may be a pattern or hold variables, and a file may be compressed (.gz, .zst), as for `train.data.source`.
    Raises ValueError where there is no file, another kind of file, or no column `text`.
    """
    out = []
    for file in files.find(path):
        for row, columns in _columns(file):
            if isinstance(columns, ValueError):
                raise columns
            if "text" not in columns:
                raise ValueError(f"{file}:{row}: no column 'text'; columns found: {', '.join(columns)}")
            out.append(record(columns["text"], columns.get("pair"), f"{file}:{row}", columns.get("choices")))
    return out


def _columns(file: Path) -> formats.Rows:
    kind = re.sub(r"\.(gz|zst)$", "", file.name).rpartition(".")[2]
    names = ("text", "pair", "choices")
    if kind == "jsonl":
        return formats.jsonl_rows(file, names)
    if kind in ("csv", "tsv"):
        return formats.csv_rows(file, names, delimiter="," if kind == "csv" else "\t", header=True)
    if kind == "txt":
        return ((row, wrong or {"text": line.strip()}) for row, line, wrong in files.lines(file))
    raise ValueError(f"{file}: expected a name that ends in .txt, .jsonl, .csv or .tsv (and maybe .gz or .zst)")


def lines(given: Iterable[str], where: str) -> list[Record]:
    """A record a line; `where` says what the lines are of."""
    return [record(line.strip(), None, f"{where}:{row}") for row, line in enumerate(given, start=1)]


def record(text: Any, pair: Any, where: str, choices: Any = None) -> Record:
    """A record without a label. Raises ValueError, with `where`, for what is no text or is empty."""
    if not isinstance(choices, list | None):
        raise ValueError(f"{where}: choices is {json.dumps(choices)[:80]}, expected a list of texts")
    given = [
        ("text", text),
        ("pair", pair),
        *((f"text of choice {n}", one) for n, one in enumerate(choices or (), start=1)),
    ]
    for name, value in given:
        if not isinstance(value, str) and not (name == "pair" and value is None):
            raise ValueError(f"{where}: {name} is {json.dumps(value)[:80]}, expected text")
        if value is not None and not value.strip():
            raise ValueError(f"{where}: the {name} is empty")
    return Record(text, pair, None, where, tuple(choices or ()))


class Masking:
    """A tokenizer that reads [MASK] in a text as the mask's id, which no tokenizer here makes from text, and of
    `sentinels` <extra_id_0>, <extra_id_1>, ... as the ids after the tokenizer's; these it writes too.
    """

    def __init__(self, tokenizer: Tokenizer, sentinels: int = 0):
        self._tokenizer, self._sentinels = tokenizer, sentinels
        self.vocab, self.prefix, self.file = tokenizer.vocab, tokenizer.prefix, tokenizer.file
        self.separators = tokenizer.separators
        self._ids = {piece: i for i, piece in enumerate(tokenizer.pieces(range(tokenizer.vocab.size)))}

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        split = [self._split(text) for text in texts]
        # a mark stands for a word and the space before it
        whole = [[part.rstrip() for part in text[:-2:2]] + text[-1:] for text in split]
        parts = iter(self._tokenizer.encode([part for text in whole for part in text]))
        out = []
        for text, marks in zip(whole, (text[1::2] for text in split), strict=True):
            ids = [next(parts)]
            for part, mark in zip(text[1:], marks, strict=True):
                ids += [np.array([self._id(mark)], np.int32), self._going_on(part, next(parts))]
            out.append(np.concatenate(ids))
        return out

    def _split(self, text: str) -> list[str]:
        """What stands between marks, and the marks, in turn."""
        if self._sentinels:
            return _MARK.split(text)
        return [x for part in text.split(MASK) for x in (part, MASK)][:-1]

    def _id(self, mark: str) -> int:
        if mark == MASK:
            return self.vocab.mask
        number = int(mark.strip("<>").rpartition("_")[2])
        if number >= self._sentinels:
            raise ValueError(f"{mark}: there are sentinels from <extra_id_0> to <extra_id_{self._sentinels - 1}> alone")
        return self.vocab.size + number

    def decode(self, ids: Any) -> str:
        out = []
        for known, run in itertools.groupby(map(int, ids), lambda i: i < self.vocab.size):
            found = [*run]
            out += [self._tokenizer.decode(found)] if known else [f"<extra_id_{i - self.vocab.size}>" for i in found]
        return " ".join(x for x in out if x)

    def pieces(self, ids: Any) -> list[str]:
        return self._tokenizer.pieces(ids)

    def _going_on(self, text: str, ids: np.ndarray) -> np.ndarray:
        """The ids of a text as they are right after another, where the tokenizer begins every text with a space."""
        if not self.prefix or not len(ids) or text[0].isspace():
            return ids
        first = self._tokenizer.pieces(ids[:1])[0]
        if first == self.prefix:
            return ids[1:]
        bare = first.removeprefix(self.prefix)
        return np.concatenate([[self._ids[bare]], ids[1:]]).astype(np.int32) if bare in self._ids else ids

"""A tokenizer whose texts are the ids themselves, and records of such texts."""

import re
import time

import numpy as np

from objectives.vocab import Vocab
from train.data.source import Record

PAD, UNK, CLS, SEP, MASK = range(5)


class Numbers:
    """A tokenizer whose texts are the ids themselves: "7 8" is [7, 8]."""

    separators = 1
    prefix = ""
    vocab = Vocab(1000, PAD, UNK, CLS, SEP, MASK, (0, 1, 2, 3, 4), np.ones(1000, bool), "numbers")

    def encode(self, texts):
        return [np.array(text.split(), np.int32) for text in texts]

    def offsets(self, texts):
        return [np.array([m.span() for m in re.finditer(r"\S+", t)], np.int32).reshape(-1, 2) for t in texts]

    def decode(self, ids):
        return " ".join(map(str, ids))

    def pieces(self, ids):
        return list(map(str, ids))


def records(texts, pairs=None, labels=None):
    none = [None] * len(texts)
    columns = zip(texts, pairs or none, labels or none, strict=True)
    return [Record(*fields, where=f"f:{row}") for row, fields in enumerate(columns, 1)]


def some(count, start=5):
    return " ".join(map(str, range(start, start + count)))


class Slow(Numbers):
    """Takes its time over a text, that it can be interrupted."""

    def encode(self, texts):
        time.sleep(0.005 * len(texts))
        return super().encode(texts)

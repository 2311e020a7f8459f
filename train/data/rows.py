"""Rows: tokenized records as arrays of fixed length, in the batch format of `model/types.py` with N rows for the B."""

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from train.data.packing import pack
from train.data.source import Record
from train.data.tokenizer import Tokenizer

_SENTENCE_END = re.compile(r"(?<=[.!?\u3002\uff01\uff1f])\s+|\n+")
_CHUNK = 4096  # records tokenized in one call: enough to share among threads, few enough to hold


@dataclass(frozen=True, eq=False)
class Rows:
    """N rows as they are stored, and a report that counts what went in: plain numbers, to be printed.

    stored:  arrays by name, [N, ...] each: those of the batch's format, but for `sizes` [N, S], the tokens of each
             segment, from which `segments` and `positions` follow, and `index` [N, S], the example each one is
    """

    stored: dict[str, np.ndarray]
    report: dict[str, Any]

    def __len__(self) -> int:
        return len(self.stored["tokens"])

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The rows in the batch's format."""
        return unfold(self.stored)


def pack_documents(source: Iterable[Record], tokenizer: Tokenizer, length: int, segments: int = 8) -> Rows:
    """Rows to pretrain on: `[CLS] tokens [SEP]`, several documents packed to a row.

    A document longer than a row becomes consecutive pieces, each with its own [CLS] and [SEP]; nothing is lost.
    `example` is (0, index of the piece). tokens, segments and positions are [N, length], example [N, segments, 2].

    Raises ValueError where `length` has no room for a token.
    """
    check(length, segments, specials=2)
    vocab = tokenizer.vocab
    cls, sep = (np.array([i], np.int32) for i in (vocab.cls, vocab.sep))
    documents = split = empty = 0
    parts: list[np.ndarray] = []
    sizes: list[int] = []
    for _, (ids, *_) in tokenized(source, tokenizer):
        documents += 1
        empty += not len(ids)
        split += len(ids) > length - 2
        whole, rest = divmod(len(ids), length - 2)
        if whole:
            pieces = np.empty((whole, length), np.int32)
            pieces[:, 0], pieces[:, -1] = cls, sep
            pieces[:, 1:-1] = ids[: whole * (length - 2)].reshape(whole, -1)
            parts.append(pieces.reshape(-1))
            sizes += [length] * whole
        if rest:
            parts += cls, ids[-rest:], sep
            sizes.append(rest + 2)
    flat = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    stored = fill(np.array(sizes, np.int64), {"tokens": flat}, length, segments)
    report = {"documents": documents, "pieces": len(sizes), "split": split, "empty": empty}
    return Rows(stored, report | space(stored))


def pair_sentences(
    source: Iterable[Record], tokenizer: Tokenizer, length: int, segments: int = 1, longest: int | None = None
) -> Rows:
    """Rows for objectives on two spans that follow each other: `[CLS] A [SEP] B [SEP]` with `types` 0 and 1.

    A document's sentences are taken in order, as many as fit `longest` tokens (None: a row's length over `segments`, so
    that as many pairs share a row; next sentence changes the second spans among them), and B begins at the sentence
    nearest to the middle (of a single sentence, at its middle); nothing is lost but documents of a single token,
    counted as `short`. Which span comes first, or whether B follows A, is for the objective to change: next sentence
    (Devlin et al. 2018), sentence order (Lan et al. 2019, https://arxiv.org/abs/1909.11942), contrastive spans.
    `example` is (0, index of the pair); pairs of one document are numbered in its order. Texts that come in pairs are
    `label_examples`' to lay out.

    Raises ValueError for a `length` or `longest` under 6, and for a `longest` above `length`.
    """
    check(length, segments, specials=3)
    longest = length // segments if longest is None else longest
    if not 6 <= longest <= length:  # of four tokens in rows for two one could be left over
        raise ValueError(
            f"length={length}, longest={longest}: expected at least 6 of each, for two spans with their three special "
            "tokens, and no pair longer than a row"
        )
    vocab, room = tokenizer.vocab, longest - 3
    cls, sep = (np.array([i], np.int32) for i in (vocab.cls, vocab.sep))
    documents = short = 0
    parts: list[np.ndarray] = []
    sizes: list[tuple[int, int]] = []  # tokens of type 0 and of type 1
    for sentences in _sentences(source, tokenizer):
        documents += 1
        ids = np.concatenate(sentences) if sentences else np.zeros(0, np.int32)
        short += len(ids) < 2
        starts = np.cumsum([0, *map(len, sentences)])
        at = 0
        while len(ids) - at >= 2:
            # as many whole sentences as fit, else a part of one; no single token may be left over
            ends = starts[np.searchsorted(starts, at + 2) : np.searchsorted(starts, at + room, "right")]
            ends = ends[len(ids) - ends != 1]
            end = int(ends[-1]) if len(ends) else min(at + room, len(ids))
            end -= len(ids) - end == 1
            inside = starts[np.searchsorted(starts, at, "right") : np.searchsorted(starts, end)]
            # of two cuts equally near the first and the last by turns, or lengths would tell which span is which
            odd = len(sizes) % 2
            away = np.abs(2 * inside - at - end)
            near = inside[away == away.min()] if len(inside) else [(at + end + odd) // 2]
            cut = int(near[-odd])
            parts += cls, ids[at:cut], sep, ids[cut:end], sep
            sizes.append((cut - at + 2, end - cut + 1))
            at = end
    flat = {"tokens": np.concatenate(parts) if parts else np.zeros(0, np.int32)}
    flat["types"] = np.repeat(np.tile(np.array([0, 1], np.int32), len(sizes)), np.ravel(sizes).astype(np.int64))
    # of pairs that share a row next sentence changes the second spans: they are to be of different documents
    stored = fill(np.array(sizes, np.int64).reshape(-1, 2).sum(1), flat, length, segments, mixed=True)
    report = {"documents": documents, "pieces": len(sizes), "short": short}
    return Rows(stored, report | space(stored))


def label_examples(
    source: Iterable[Record],
    tokenizer: Tokenizer,
    length: int,
    classes: tuple[str, ...] | None,
    truncate: bool = False,
    segments: int = 1,
    separator: str | None = None,
) -> Rows:
    """Rows to finetune on: `[CLS] text [SEP]`, or `[CLS] text [SEP] pair [SEP]` with `types` 0 and 1, and as many
    separators between the two as the tokenizer's checkpoints were trained with.

    `labels` [N, segments] are indices into `classes` (int32), or numbers where `classes` is None (float32). With a
    `separator`, as "|" in "a|b", a label names any number of classes (an empty one none), and `labels` are int32
    [N, segments, classes] of 0 and 1. A source without labels gives none, for prediction.

    `example` is (0, place of the record in the source), so that predictions find their record. With `segments=1` row i
    is record i; more packs several to a row, labels of absent ones being 0.

    Raises:
      ValueError: a label is not among the classes or is not a number, a separator is empty or without classes, or a
        text is longer than a row and `truncate` is False. With `truncate` the longer of text and pair loses tokens at
        its end first; the report counts the cut.
    """
    check(length, segments, specials=3)
    if separator is not None and (not separator or classes is None):
        raise ValueError(f"separator={separator!r}, classes={classes}: expected text that stands between classes")
    vocab = tokenizer.vocab
    cls, sep = (np.array([i], np.int32) for i in (vocab.cls, vocab.sep))
    between = np.repeat(sep, tokenizer.separators)
    parts: list[np.ndarray] = []
    sizes: list[tuple[int, int]] = []  # tokens of type 0 and of type 1
    labels: list[float | list[int]] = []
    paired = False
    truncated = 0
    for record, (text, *others) in tokenized(source, tokenizer):
        pair = None if record.pair is None else others[0]
        room = length - (2 if pair is None else 2 + len(between))
        found = len(text) + (0 if pair is None else len(pair))
        if found > room:
            if not truncate:
                raise ValueError(
                    f"{record.where}: {found} tokens, and a row of length={length} has room for {room}; "
                    f"set truncate=True or length={found + length - room}"
                )
            truncated += 1
            text, pair = cut(text, pair, room)
        if pair is None:
            parts += cls, text, sep
            sizes.append((len(text) + 2, 0))
        else:
            parts += cls, text, between, pair, sep
            sizes.append((len(text) + 1 + len(between), len(pair) + 1))
            paired = True
        if record.label is not None:
            labels.append(
                label_of(record, classes) if separator is None else _several(record, classes or (), separator)
            )
    if not sizes:
        raise ValueError("the source holds no record; expected at least one")

    flat = {"tokens": np.concatenate(parts)}
    if paired:
        flat["types"] = np.repeat(np.tile(np.array([0, 1], np.int32), len(sizes)), np.ravel(sizes))
    owned = {}
    if labels:
        if len(labels) != len(sizes):
            raise ValueError(f"{len(labels)} of {len(sizes)} records have a label; expected all of them or none")
        owned["labels"] = np.array(labels, np.float32 if classes is None else np.int32)
    stored = fill(np.sum(sizes, axis=1), flat, length, segments, owned)
    return Rows(stored, {"documents": len(sizes), "truncated": truncated} | space(stored))


def check(length: int, segments: int, specials: int) -> None:
    if length <= specials:
        raise ValueError(f"length={length}: expected more than the {specials} special tokens of a segment")
    if segments < 1:
        raise ValueError(f"segments={segments}: expected at least 1 to a row")


def tokenized(source: Iterable[Record], tokenizer: Tokenizer) -> Iterator[tuple[Record, list[np.ndarray]]]:
    """Yields (record, ids of each of its texts)."""
    records = iter(source)
    while chunk := list(itertools.islice(records, _CHUNK)):
        ids = iter(tokenizer.encode([text for record in chunk for text in record.texts]))
        for record in chunk:
            yield record, list(itertools.islice(ids, len(record.texts)))


def _sentences(source: Iterable[Record], tokenizer: Tokenizer) -> Iterator[list[np.ndarray]]:
    """The ids of each document, by sentence."""
    records = iter(source)
    while chunk := list(itertools.islice(records, _CHUNK)):
        split = [[s for s in _SENTENCE_END.split(record.text) if s.strip()] for record in chunk]
        ids = iter(tokenizer.encode([sentence for sentences in split for sentence in sentences]))
        for sentences in split:
            yield [x for x in itertools.islice(ids, len(sentences)) if len(x)]


def cut(text: np.ndarray, pair: np.ndarray | None, room: int) -> tuple[np.ndarray, np.ndarray | None]:
    """What `room` leaves of a text and its pair: the longer loses tokens at its end first."""
    if pair is None:
        return text[:room], None
    # Taking one token at a time from the longer ends here: the shorter whole if it is under half, else half and half.
    keep = max(room - len(pair), min(len(text), room - room // 2))
    return text[:keep], pair[: room - keep]


def label_of(record: Record, classes: tuple[str, ...] | None) -> float:
    """The place of a record's label among `classes`; without, the number that it is."""
    if classes is None:
        try:
            number = float(record.label or "")
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            raise ValueError(
                f"{record.where}: label {record.label!r} is not a finite number; classes=None means regression: "
                "clean the data or give classes=(...)"
            )
        return number
    if record.label not in classes:
        raise ValueError(
            f"{record.where}: label {record.label!r} is not among classes={classes}; add it or filter it out"
        )
    return classes.index(record.label)


def _several(record: Record, classes: tuple[str, ...], separator: str) -> list[int]:
    """0 or 1 for each class."""
    label = record.label or ""
    named = [record._replace(label=name) for name in label.split(separator)] if label else []
    held = {label_of(one, classes) for one in named}
    return [int(c in held) for c in range(len(classes))]


def unfold(stored: Mapping[str, np.ndarray], first_example: int | np.ndarray = 0) -> dict[str, np.ndarray]:
    """Rows of the batch's format, in its dtypes, from stored ones; `first_example` is added to the examples' index."""
    sizes = stored["sizes"].astype(np.int64)
    rest = {name: x for name, x in stored.items() if name not in ("sizes", "index")}
    arrays: dict[str, np.ndarray] = {name: np.asarray(x, dtype(name, x.dtype)) for name, x in rest.items()}
    ends = np.cumsum(sizes, 1)
    place = np.arange(arrays["tokens"].shape[1])
    slot = (place[None, :, None] >= ends[:, None, :]).sum(-1)
    there = place < ends[:, -1:]
    starts = np.take_along_axis(ends - sizes, np.minimum(slot, sizes.shape[1] - 1), 1)
    arrays["segments"] = np.where(there, slot + 1, 0).astype(np.int32)
    arrays["positions"] = np.where(there, place - starts, 0).astype(np.int32)
    index = np.where(sizes > 0, stored["index"].astype(np.int64) + first_example, 0).astype(np.uint32)
    arrays["example"] = np.stack([np.zeros_like(index), index], -1)
    return arrays


def dtype(name: str, stored: np.dtype) -> type:
    """What `model/types.py` says, whatever narrower type is stored."""
    if np.issubdtype(stored, np.floating):
        return np.float32
    return np.uint32 if name == "example" else np.int32


def fill(
    sizes: np.ndarray,
    flat: dict[str, np.ndarray],
    length: int,
    segments: int,
    owned: Mapping[str, np.ndarray] | None = None,
    mixed: bool = False,
) -> dict[str, np.ndarray]:
    """Lays pieces of `sizes` [P] out in rows, as they are stored.

    flat:   arrays by name of all pieces' tokens one after the other, int32 [sum of sizes]
    owned:  arrays by name of what a piece has as a whole, [P, ...], which become [N, segments, ...]
    mixed:  pieces that follow each other in different rows, see `train.data.packing.pack`
    """
    places = pack(sizes, length, segments, mixed)
    first = np.cumsum(sizes) - sizes
    to = np.arange(sizes.sum()) + np.repeat(places.row * length + places.offset - first, sizes)

    def laid_out(values: np.ndarray) -> np.ndarray:
        stored = narrow(values)
        out = np.zeros(places.rows * length, stored.dtype)
        out[to] = stored
        return out.reshape(places.rows, length)

    def by_slot(values: np.ndarray) -> np.ndarray:
        out = np.zeros((places.rows, segments, *values.shape[1:]), values.dtype)
        out[places.row, places.slot] = values
        return out

    stored = {name: laid_out(values) for name, values in flat.items()}
    whole = {"sizes": sizes, "index": np.arange(len(sizes))} | dict(owned or {})
    return stored | {name: by_slot(narrow(values)) for name, values in whole.items()}


def narrow(x: np.ndarray) -> np.ndarray:
    """Whole numbers in the narrowest type that holds them, which files and memory are spared for."""
    if np.issubdtype(x.dtype, np.floating):
        return x
    low, high = (int(x.min()), int(x.max())) if x.size else (0, 0)
    return x.astype(np.result_type(np.min_scalar_type(low), np.min_scalar_type(high)))


def space(stored: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Counts of a filled layout: tokens with [CLS] and [SEP], rows, and the share of positions that is padding."""
    filled = int(stored["sizes"].sum(dtype=np.int64))
    rows, length = stored["tokens"].shape
    return {"tokens": filled, "rows": rows, "padding": 1 - filled / max(1, rows * length)}

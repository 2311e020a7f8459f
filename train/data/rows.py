"""Rows: tokenized records as arrays of fixed length, in the batch format of `model/types.py` with N rows for the B."""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from train.data.packing import pack
from train.data.source import Record
from train.data.tokenizer import Tokenizer

_CHUNK = 4096  # records tokenized in one call: enough to share among threads, few enough to hold


class Rows(NamedTuple):
    """`arrays` by name, [N, ...] each; `report` counts what went in: plain numbers, to be printed."""

    arrays: dict[str, np.ndarray]
    report: dict[str, Any]


def pack_documents(source: Iterable[Record], tokenizer: Tokenizer, length: int, segments: int = 8) -> Rows:
    """Rows to pretrain on: `[CLS] tokens [SEP]`, several documents packed to a row.

    A document longer than a row becomes consecutive pieces, each with its own [CLS] and [SEP]; nothing is lost.
    `example` is (0, index of the piece). tokens, segments and positions are [N, length], example [N, segments, 2].

    Raises ValueError where `length` has no room for a token.
    """
    _check(length, segments, specials=2)
    vocab = tokenizer.vocab
    cls, sep = (np.array([i], np.int32) for i in (vocab.cls, vocab.sep))
    documents = split = empty = 0
    parts: list[np.ndarray] = []
    sizes: list[int] = []
    for _, ids, _ in _tokenized(source, tokenizer):
        documents += 1
        empty += not len(ids)
        split += len(ids) > length - 2
        for start in range(0, len(ids), length - 2):
            piece = ids[start : start + length - 2]
            parts += cls, piece, sep
            sizes.append(len(piece) + 2)
    flat = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    arrays = _fill(np.array(sizes, np.int64), {"tokens": flat}, length, segments)
    report = {"documents": documents, "pieces": len(sizes), "split": split, "empty": empty}
    return Rows(arrays, report | _space(arrays))


def label_examples(
    source: Iterable[Record],
    tokenizer: Tokenizer,
    length: int,
    classes: tuple[str, ...] | None,
    truncate: bool = False,
    segments: int = 1,
) -> Rows:
    """Rows to finetune on: `[CLS] text [SEP]`, or `[CLS] text [SEP] pair [SEP]` with `types` 0 and 1.

    `labels` [N, segments] are indices into `classes` (int32), or numbers where `classes` is None (float32); a source
    without labels gives none, for prediction. `example` is (0, place of the record in the source), so that predictions
    find their record. With `segments=1` row i is record i; more packs several to a row, labels of absent ones being 0.

    Raises:
      ValueError: a label is not among the classes or is not a number, or a text is longer than a row and `truncate` is
        False. With `truncate` the longer of text and pair loses tokens at its end first; the report counts the cut.
    """
    _check(length, segments, specials=3)
    vocab = tokenizer.vocab
    cls, sep = (np.array([i], np.int32) for i in (vocab.cls, vocab.sep))
    parts: list[np.ndarray] = []
    sizes: list[tuple[int, int]] = []  # tokens of type 0 and of type 1
    labels: list[float] = []
    paired = False
    truncated = 0
    for record, text, pair in _tokenized(source, tokenizer):
        room = length - (2 if pair is None else 3)
        found = len(text) + (0 if pair is None else len(pair))
        if found > room:
            if not truncate:
                raise ValueError(
                    f"{record.where}: {found} tokens, and a row of length={length} has room for {room}; "
                    f"set truncate=True or length={found + length - room}"
                )
            truncated += 1
            text, pair = _cut(text, pair, room)
        if pair is None:
            parts += cls, text, sep
            sizes.append((len(text) + 2, 0))
        else:
            parts += cls, text, sep, pair, sep
            sizes.append((len(text) + 2, len(pair) + 1))
            paired = True
        if record.label is not None:
            labels.append(_label(record, classes))
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
    arrays = _fill(np.sum(sizes, axis=1), flat, length, segments, owned)
    return Rows(arrays, {"documents": len(sizes), "truncated": truncated} | _space(arrays))


def empty_rows(arrays: Mapping[str, np.ndarray], n: int) -> dict[str, np.ndarray]:
    """`n` rows like those of `arrays` that are padding alone: everything is 0, segments too, so that nothing counts."""
    return {name: np.zeros((n, *array.shape[1:]), array.dtype) for name, array in arrays.items()}


def _check(length: int, segments: int, specials: int) -> None:
    if length <= specials:
        raise ValueError(f"length={length}: expected more than the {specials} special tokens of a segment")
    if segments < 1:
        raise ValueError(f"segments={segments}: expected at least 1 to a row")


def _tokenized(
    source: Iterable[Record], tokenizer: Tokenizer
) -> Iterator[tuple[Record, np.ndarray, np.ndarray | None]]:
    """Yields (record, ids of its text, ids of its pair or None)."""
    records = iter(source)
    while chunk := list(itertools.islice(records, _CHUNK)):
        texts = tokenizer.encode([record.text for record in chunk])
        pairs = iter(tokenizer.encode([record.pair for record in chunk if record.pair is not None]))
        for record, text in zip(chunk, texts, strict=True):
            yield record, text, None if record.pair is None else next(pairs)


def _cut(text: np.ndarray, pair: np.ndarray | None, room: int) -> tuple[np.ndarray, np.ndarray | None]:
    if pair is None:
        return text[:room], None
    # Taking one token at a time from the longer ends here: the shorter whole if it is under half, else half and half.
    keep = max(room - len(pair), min(len(text), room - room // 2))
    return text[:keep], pair[: room - keep]


def _label(record: Record, classes: tuple[str, ...] | None) -> float:
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


def _fill(
    sizes: np.ndarray,
    flat: dict[str, np.ndarray],
    length: int,
    segments: int,
    owned: Mapping[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Lays pieces of `sizes` [P] out in rows.

    flat:   arrays by name of all pieces' tokens one after the other, int32 [sum of sizes]
    owned:  arrays by name of what a piece has as a whole, [P], which become [N, segments]
    """
    places = pack(sizes, length, segments)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    to = np.repeat(places.row * length + places.offset, sizes) + within

    def laid_out(values: np.ndarray) -> np.ndarray:
        out = np.zeros(places.rows * length, np.int32)
        out[to] = values
        return out.reshape(places.rows, length)

    arrays = {name: laid_out(values) for name, values in flat.items()}
    arrays["segments"] = laid_out(np.repeat(places.slot + 1, sizes))
    arrays["positions"] = laid_out(within)
    arrays["example"] = np.zeros((places.rows, segments, 2), np.uint32)
    arrays["example"][places.row, places.slot, 1] = np.arange(len(sizes))
    for name, values in (owned or {}).items():
        arrays[name] = np.zeros((places.rows, segments), values.dtype)
        arrays[name][places.row, places.slot] = values
    return arrays


def _space(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Counts of a filled layout: tokens with [CLS] and [SEP], rows, and the share of positions that is padding."""
    filled = int(np.count_nonzero(arrays["segments"]))
    return {"tokens": filled, "rows": len(arrays["segments"]), "padding": 1 - filled / max(1, arrays["segments"].size)}

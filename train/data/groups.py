"""Rows of groups: the texts of a record, each a segment: an anchor with positives, a query with candidates, choices."""

import json
from collections.abc import Iterable

import numpy as np

from train.data.packing import pack
from train.data.rows import Rows, check, cut, label_of, narrow, space, tokenized
from train.data.source import Record
from train.data.tokenizer import Tokenizer


def text_groups(
    source: Iterable[Record],
    tokenizer: Tokenizer,
    length: int,
    segments: int,
    classes: tuple[str, ...] | None = None,
    joined: bool = False,
    truncate: bool = False,
    longest: int | None = None,
) -> Rows:
    """Rows of groups: the texts of a record, each a segment `[CLS] text [SEP]`, next to each other in one row.

    An anchor with its positive and hard negatives; a query with candidates; two sentences and how alike they are. With
    `joined` the first text is read with each of the others, in segments as `label_examples` lays pairs out, `types` 0
    and 1: a question with its choices.

    `group` int32 [N, segments] numbers a row's groups from 1, 0 where no segment is. Where `segments` is twice the
    texts of a record or more, whole groups are packed to a row; else row i is record i. `example` is (0, index of the
    segment), in the order of the source.
    `labels` [N, segments] belong to the texts after the first, which has 0 where it is a segment. With `classes` the
    record's label tells which of them is right: 1 there, else 0 (int32). Without, it is a number for each: "2.5" for
    one, "[3, 0, 1]" for three (float32): a similarity, grades of relevance. Of a source without labels a text's pair is
    the right one, 1, and all after it 0; with `joined` there are none.

    A row may be longer than the backbone's `max_length`, which a segment may not: four choices of 512 tokens are rows
    of length=2048 with longest=512.

    Raises:
      ValueError: a record of fewer than two segments, or of more than `segments`; a label that does not fit its texts;
        a group longer than a row, or a segment longer than `longest` tokens, where `truncate` is False. With
        `truncate` its longest segments lose tokens at their end first, of two texts the longer; the report counts the
        groups cut.
    """
    check(length, segments, specials=2)
    vocab = tokenizer.vocab
    cls, sep = (np.array([i], np.int32) for i in (vocab.cls, vocab.sep))
    between = np.repeat(sep, tokenizer.separators)
    groups: list[list[tuple[np.ndarray, int]]] = []  # segments: ids, and how many of type 0
    labels: list[np.ndarray] = []
    truncated = 0
    for record, texts in tokenized(source, tokenizer):
        parts: list[tuple[np.ndarray, np.ndarray | None]] = [(text, None) for text in texts]
        if joined:
            parts = [(texts[0], other) for other in texts[1:]]
        if not 2 <= len(parts) <= segments:
            raise ValueError(
                f"{record.where}: {len(texts)} texts, which are {len(parts)} segments; expected 2 to segments="
                f"{segments}. The columns after the first are named by pair= and more= of the source"
            )
        sizes = np.array([len(a) + (0 if b is None else len(b)) for a, b in parts])
        around = 2 + len(between) if joined else 2
        room, most = length - len(parts) * around, (longest or length) - around
        if sizes.sum() > room or sizes.max() > most:
            if not truncate or room < len(parts) or most < 1:
                enough = [f"length={length - room + sizes.sum()}"] if sizes.sum() > room else []
                enough += [f"longest={sizes.max() + around}"] if longest and sizes.max() > most else []
                own = "" if longest is None else f", a segment of longest={longest} for {most} of its {sizes.max()}"
                raise ValueError(
                    f"{record.where}: {sizes.sum()} tokens in {len(parts)} segments, and a row of length={length} has "
                    f"room for {room}{own}; set truncate=True or {', '.join(enough)}"
                )
            truncated += 1
            kept = _level(np.minimum(sizes, most), room).tolist()
            parts = [cut(a, b, n) for (a, b), n in zip(parts, kept, strict=True)]
        groups.append(
            [
                (np.concatenate([cls, a, sep] if b is None else [cls, a, between, b, sep]), 1 + len(a) + len(between))
                for a, b in parts
            ]
        )
        if record.label is not None:
            labels.append(_group_labels(record, len(parts), classes, joined))
    if not groups:
        raise ValueError("the source holds no record; expected at least one")
    if labels and len(labels) != len(groups):
        raise ValueError(f"{len(labels)} of {len(groups)} records have a label; expected all of them or none")
    if not labels and not joined:
        kind = np.float32 if classes is None else np.int32
        labels = [(np.arange(len(group)) == 1).astype(kind) for group in groups]

    counts = np.array([len(group) for group in groups])
    lengths = np.array([sum(len(ids) for ids, _ in group) for group in groups])
    places = pack(lengths, length, segments // int(counts.max()))
    first = np.cumsum(counts) - counts
    per_token = {name: np.zeros((places.rows, length), np.int32) for name in ("tokens", *["types"][: int(joined)])}
    names = ("sizes", "index", "group")
    by_slot: dict[str, np.ndarray] = {name: np.zeros((places.rows, segments), np.int64) for name in names}
    if labels:
        by_slot["labels"] = np.zeros((places.rows, segments), labels[0].dtype)
    used = np.zeros(places.rows, np.int64)  # segments so far
    for g in np.lexsort((places.slot, places.row)).tolist():
        row, at = places.row[g], places.offset[g]
        here = slice(used[row], used[row] + counts[g])
        by_slot["sizes"][row, here] = [len(ids) for ids, _ in groups[g]]
        by_slot["index"][row, here] = first[g] + np.arange(counts[g])
        by_slot["group"][row, here] = places.slot[g] + 1
        if labels:
            by_slot["labels"][row, here] = labels[g]
        used[row] += counts[g]
        for ids, ones in groups[g]:
            per_token["tokens"][row, at : at + len(ids)] = ids
            if joined:
                per_token["types"][row, at + ones : at + len(ids)] = 1
            at += len(ids)
    stored = {name: narrow(x) for name, x in (per_token | by_slot).items()}
    report = {"documents": len(groups), "pieces": int(counts.sum()), "truncated": truncated}
    return Rows(stored, report | space(stored))


def _level(sizes: np.ndarray, room: int) -> np.ndarray:
    """What is left of `sizes` [n] when tokens are taken one at a time from the longest, until `room` is enough."""
    if sizes.sum() <= room:
        return sizes
    heights = np.arange(sizes.max() + 1)
    height = int(np.searchsorted(np.minimum(sizes, heights[:, None]).sum(1), room, "right")) - 1
    kept = np.minimum(sizes, height)
    kept[np.flatnonzero(sizes > height)[: room - kept.sum()]] += 1
    return kept


def _group_labels(record: Record, count: int, classes: tuple[str, ...] | None, joined: bool) -> np.ndarray:
    """The labels of a group's `count` segments, see `text_groups`."""
    others = count if joined else count - 1
    labels = np.zeros(count, np.float32 if classes is None else np.int32)
    if classes is not None:
        right = int(label_of(record, classes))
        if right >= others:
            raise ValueError(
                f"{record.where}: label {record.label!r} is number {right} of classes={classes}, and there are "
                f"{others} texts to choose from"
            )
        labels[count - others + right] = 1
        return labels
    text = record.label or ""
    try:
        numbers = [float(x) for x in (json.loads(text) if text.startswith("[") else [text])]
    except (ValueError, TypeError):
        numbers = []
    if len(numbers) != others or not np.isfinite(numbers).all():
        raise ValueError(
            f"{record.where}: label {record.label!r} is not a number for each of the {others} texts after the first; "
            'expected one, as "2.5", or a list, as "[3, 0, 1]"; or give classes=(...), of which a label is one'
        )
    labels[count - others :] = numbers
    return labels

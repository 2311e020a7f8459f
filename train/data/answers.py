"""Rows for questions whose answers are spans of a text: `[CLS] question [SEP] window of the text [SEP]`."""

import json
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from train.data.rows import Rows, check, fill, space, tokenized
from train.data.source import Record
from train.data.tokenizer import Aligned


class Answer(NamedTuple):
    """A span of a context: its text, and the character that it begins at."""

    text: str
    start: int


def answers_of(record: Record) -> tuple[Answer, ...] | None:
    """The answers that a record's label holds, as SQuAD's files have them: {"text": ["1066"], "answer_start": [52]}, in
    JSON. Empty lists are a question that its context does not answer. None where there is no label.

    Raises ValueError for a label of another kind, and where the context does not say an answer where it should begin.
    """
    if record.label is None:
        return None
    try:
        held = json.loads(record.label)
        found = tuple(Answer(*one) for one in zip(held["text"], held["answer_start"], strict=True))
        right = all(
            isinstance(text, str) and text.strip() and type(start) is int and start >= 0 for text, start in found
        )
    except (ValueError, TypeError, KeyError):
        right = False
    if not right:
        raise ValueError(
            f"{record.where}: label {record.label[:80]!r} holds no answers; expected "
            '{"text": ["an answer"], "answer_start": [its first character]}'
        )
    context = record.pair or ""
    for text, start in found:
        if context[start : start + len(text)] != text:
            raise ValueError(
                f"{record.where}: the answer {text!r} is not at character {start} of the context, which has "
                f"{context[start : start + len(text)]!r} there"
            )
    return found


def answer_windows(
    source: Iterable[Record],
    tokenizer: Aligned,
    length: int,
    stride: int = 128,
    question: int = 64,
    segments: int = 1,
) -> Rows:
    """Rows to finetune `objectives.answer` on: `[CLS] question [SEP] context [SEP]`, `types` 0 and 1.

    A record's text is the question, its pair the context, its label its answers, see `answers_of`;
    `train.data.source:squad` gives such. A question keeps its first `question` tokens. Of a context too long for a row
    there are several windows, each `stride` tokens after the one before or as many as a window holds, if fewer (Devlin
    et al. 2018, run_squad.py): each is an example. With `segments` above 1 several share a row.

    `answers` int32 [N, segments, 2] are the positions, in the segment, of the first and the last token of the record's
    first answer, and 0, those of [CLS], where the window does not hold all of it. A source without labels gives none,
    for prediction. `origin` int32 [N, segments, 2] tell the place of the record, and which token of its context stood
    at position 0, were it that long: token `origin[1] + p` is at p. `example` is (0, index of the window).

    Raises:
      ValueError: a record without a context, answers of the wrong kind, or a row with no room for a context beside a
        question. The report counts windows as `pieces`, questions `truncated`, and answers `lost` that no window holds.
    """
    between = tokenizer.separators
    check(length, segments, specials=2 + between)
    if question < 1 or stride < 1 or length - 2 - between - question < 1:
        raise ValueError(
            f"length={length}, question={question}, stride={stride}: a row must hold a question, {2 + between} special "
            f"tokens and at least one of the context; set length={question + 128} or more, or a shorter question="
        )
    vocab = tokenizer.vocab
    cls, sep = (np.array([i], np.int32) for i in (vocab.cls, vocab.sep))
    parts: list[np.ndarray] = []
    sizes: list[tuple[int, int]] = []  # tokens of type 0 and of type 1
    origin: list[tuple[int, int]] = []
    labels: list[tuple[int, int]] = []
    documents = labelled = truncated = lost = 0
    offsets: tuple[str | None, np.ndarray] = (None, np.zeros((0, 2), np.int32))  # of the latest context
    for place, (record, (asked, *others)) in enumerate(tokenized(source, tokenizer)):
        if record.pair is None or not len(context := others[0]):
            raise ValueError(f"{record.where}: no context; expected a text with the answer in it, named by pair=")
        documents += 1
        truncated += len(asked) > question
        asked = asked[:question]
        lead = len(asked) + 1 + between
        room = length - lead - 1
        answers = answers_of(record)
        labelled += answers is not None
        span = None
        if answers:
            if offsets[0] != record.pair:
                offsets = record.pair, tokenizer.offsets([record.pair or ""])[0]
            span = _tokens(offsets[1], answers[0])
        starts = range(0, max(1, len(context) - room + min(stride, room)), min(stride, room))
        held = False
        for start in starts:
            window = context[start : start + room]
            here = span is not None and start <= span[0] and span[1] < start + len(window)
            held |= here
            parts += cls, asked, np.repeat(sep, between), window, sep
            sizes.append((lead, len(window) + 1))
            origin.append((place, start - lead))
            labels.append((span[0] - start + lead, span[1] - start + lead) if span and here else (0, 0))
        lost += span is not None and not held
    if not sizes:
        raise ValueError("the source holds no record; expected at least one")
    if labelled not in (0, documents):
        raise ValueError(f"{labelled} of {documents} records have answers; expected all of them or none")
    flat = {"tokens": np.concatenate(parts)}
    flat["types"] = np.repeat(np.tile(np.array([0, 1], np.int32), len(sizes)), np.ravel(sizes))
    owned = {"origin": np.array(origin, np.int32)} | ({"answers": np.array(labels, np.int32)} if labelled else {})
    stored = fill(np.sum(sizes, axis=1), flat, length, segments, owned)
    counts = {"documents": documents, "pieces": len(sizes), "truncated": truncated, "lost": lost}
    return Rows(stored, counts | space(stored))


def _tokens(offsets: np.ndarray, answer: Answer) -> tuple[int, int]:
    """The first and the last token of an answer, from each token's characters [tokens, 2]; of one that no token stands
    for, the nearest.
    """
    text = answer.text.strip()
    start = answer.start + answer.text.index(text)
    first = min(int(np.searchsorted(offsets[:, 1], start, "right")), len(offsets) - 1)
    last = int(np.searchsorted(offsets[:, 0], start + len(text))) - 1
    return first, max(first, last)

"""Rows to tag: a sentence's words as tokens, and at the first token of each word its tag."""

from collections.abc import Iterable

import numpy as np

from train.data.rows import Rows, check, fill, space
from train.data.source import Record
from train.data.tokenizer import Tokenizer


def tag_words(
    source: Iterable[Record],
    tokenizer: Tokenizer,
    length: int,
    classes: tuple[str, ...],
    truncate: bool = False,
    segments: int = 1,
) -> Rows:
    """Rows to finetune `objectives.tag` on: `[CLS] words [SEP]`.

    A record's text is words, its label as many tags, each with a space between two, as `train.data.source:tagged` and
    `conllu` give them. Every word is tokenized by itself, as it is after a space, and one that the tokenizer makes
    nothing of is [UNK]. `tags` int32 [N, length] are 1 + the place among `classes` at the first token of each word, and
    0 elsewhere; a source without labels gives none, for prediction. `example` is (0, place of the record).

    Raises:
      ValueError: tags and words differ in number, a tag is not among the classes, or a sentence is longer than a row
        and `truncate` is False. With `truncate` it loses tokens at its end; the report counts the sentences and the
        words that lost their first token, which no score counts: leave it False where rows are evaluated.
    """
    check(length, segments, specials=2)
    vocab, room = tokenizer.vocab, length - 2
    lead = "" if tokenizer.prefix else " "  # of a word that is not a text's first
    records = list(source)
    if not records:
        raise ValueError("the source holds no record; expected at least one")
    sentences = [record.text.split(" ") for record in records]
    # a word comes often, and is tokenized once: first in its sentence, or not
    said = {word: i for i, word in enumerate({(lead if j else "") + w for s in sentences for j, w in enumerate(s)})}
    known = tokenizer.encode(list(said))
    number = {name: i + 1 for i, name in enumerate(classes)}
    parts: list[np.ndarray] = []
    tags: list[np.ndarray] = []
    truncated = lost = 0
    for record, words in zip(records, sentences, strict=True):
        ids = [known[said[(lead if j else "") + word]] for j, word in enumerate(words)]
        ids = [x if len(x) else np.array([vocab.unk], np.int32) for x in ids]
        first = np.cumsum([0, *map(len, ids)])
        if first[-1] > room:
            if not truncate:
                raise ValueError(
                    f"{record.where}: {first[-1]} tokens, and a row of length={length} has room for {room}; "
                    f"set truncate=True or length={first[-1] + 2}"
                )
            truncated += 1
            lost += int((first[:-1] >= room).sum())
        kept = np.concatenate(ids)[:room]
        parts.append(np.array([vocab.cls, *kept, vocab.sep], np.int32))
        if record.label is not None:
            tag = np.zeros(first[-1], np.int32)
            tag[first[:-1]] = _numbers(record, words, number)
            tags.append(np.pad(tag[:room], 1))
    flat = {"tokens": np.concatenate(parts)}
    if tags:
        if len(tags) != len(parts):
            raise ValueError(f"{len(tags)} of {len(parts)} records have tags; expected all of them or none")
        flat["tags"] = np.concatenate(tags)
    stored = fill(np.array([len(part) for part in parts], np.int64), flat, length, segments)
    counts = {"documents": len(parts), "truncated": truncated, "words lost": lost}
    return Rows(stored, counts | space(stored))


def _numbers(record: Record, words: list[str], number: dict[str, int]) -> list[int]:
    names = (record.label or "").split(" ")
    if len(names) != len(words):
        raise ValueError(f"{record.where}: {len(names)} tags of {len(words)} words; expected one for each")
    if unknown := [name for name in names if name not in number]:
        raise ValueError(
            f"{record.where}: tag {unknown[0]!r} is not among classes={tuple(number)}; add it or filter it out"
        )
    return [number[name] for name in names]

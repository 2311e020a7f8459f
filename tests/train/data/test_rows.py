"""Rows hold every token once and in order, within their length and segments; labels stay with their text."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbers_as_text import CLS, PAD, SEP, Numbers, records, some

from train.data.packing import pack
from train.data.rows import label_examples, pack_documents, pair_sentences


def segments_of(arrays):
    """(source index, tokens, positions, types) of every segment, in the order of `example`; checks the layout."""
    found = []
    for row in range(len(arrays["tokens"])):
        present = arrays["segments"][row]
        n = present.max()
        filled = np.count_nonzero(present)
        assert (np.diff(present[:filled]) >= 0).all(), "segments lie one after the other, padding last"
        assert (present[filled:] == 0).all()
        assert (arrays["tokens"][row, filled:] == PAD).all()
        assert n <= arrays["example"].shape[1]
        assert (arrays["example"][row, n:] == 0).all()
        assert (arrays["example"][row, :, 0] == 0).all()
        for s in range(n):
            at = present == s + 1
            np.testing.assert_array_equal(arrays["positions"][row, at], np.arange(at.sum()))
            types = arrays["types"][row, at].tolist() if "types" in arrays else None
            found.append((int(arrays["example"][row, s, 1]), arrays["tokens"][row, at].tolist(), types))
    return sorted(found)


DTYPES = {"tokens": "int32", "segments": "int32", "positions": "int32", "types": "int32", "example": "uint32"}
documents = st.lists(st.lists(st.integers(5, 999), max_size=40), min_size=1, max_size=30).filter(any)


@given(documents, st.integers(3, 20), st.integers(1, 5))
def test_packing_keeps_every_token_once_and_in_order(docs, length, segments):
    rows = pack_documents(records([" ".join(map(str, d)) for d in docs]), Numbers(), length, segments)
    arrays, report = rows.arrays, rows.report
    n = len(arrays["tokens"])
    assert {k: (v.shape, str(v.dtype)) for k, v in arrays.items()} == {
        "tokens": ((n, length), "int32"),
        "segments": ((n, length), "int32"),
        "positions": ((n, length), "int32"),
        "example": ((n, segments, 2), "uint32"),
    }
    found = segments_of(arrays)
    assert [index for index, _, _ in found] == list(range(len(found))), "an index of its own for every piece"
    pieces = [tokens for _, tokens, _ in found]
    assert all(p[0] == CLS and p[-1] == SEP and 3 <= len(p) <= length for p in pieces)
    assert [t for p in pieces for t in p[1:-1]] == [t for d in docs for t in d]
    assert [p[1:-1] for p in pieces] == [d[i : i + length - 2] for d in docs for i in range(0, len(d), length - 2)]
    assert report == {
        "documents": len(docs),
        "pieces": len(pieces),
        "split": sum(len(d) > length - 2 for d in docs),
        "empty": docs.count([]),
        "tokens": sum(map(len, pieces)),
        "rows": n,
        "padding": pytest.approx(1 - sum(map(len, pieces)) / (n * length)),
    }


@given(st.lists(st.integers(1, 30), min_size=1, max_size=80), st.integers(1, 6))
def test_pack_needs_few_rows(sizes, segments):
    rows = pack(np.array(sizes), 30, segments).rows
    fewest = max(-(-sum(sizes) // 30), -(-len(sizes) // segments), sum(size > 15 for size in sizes))
    assert fewest <= rows <= len(sizes)
    if segments == 1:
        assert rows == len(sizes)
    if segments > 30:  # the bound knows no limit on segments
        assert rows <= 11 / 9 * fewest + 1


def test_pack_fits_best():
    places = pack(np.array([6, 5, 4, 3, 2]), 10, 8)
    assert places.row.tolist() == [0, 1, 0, 1, 1]
    assert places.offset.tolist() == [0, 0, 6, 5, 8]
    assert places.slot.tolist() == [0, 0, 1, 1, 2]


def test_rows_do_not_depend_on_how_many_documents_are_tokenized_at_once(monkeypatch):
    docs = records([some(n) for n in (3, 30, 0, 7, 12)])
    whole = pack_documents(docs, Numbers(), 10, 4).arrays
    monkeypatch.setattr("train.data.rows._CHUNK", 2)
    np.testing.assert_equal(pack_documents(docs, Numbers(), 10, 4).arrays, whole)


def test_documents_without_a_token_make_no_row():
    rows = pack_documents(records(["", " "]), Numbers(), 8, 4)
    arrays, report = rows.arrays, rows.report
    assert {name: array.shape for name, array in arrays.items()} == {
        "tokens": (0, 8), "segments": (0, 8), "positions": (0, 8), "example": (0, 4, 2)
    }  # fmt: skip
    assert report == {"documents": 2, "pieces": 0, "split": 0, "empty": 2, "tokens": 0, "rows": 0, "padding": 1}


def test_label_examples_one_to_a_row():
    source = records(["7 8", "", "9"], labels=["no", "yes", "yes"])
    rows = label_examples(source, Numbers(), 6, classes=("no", "yes"))
    arrays, report = rows.arrays, rows.report
    assert arrays["tokens"].tolist() == [[CLS, 7, 8, SEP, 0, 0], [CLS, SEP, 0, 0, 0, 0], [CLS, 9, SEP, 0, 0, 0]]
    assert arrays["labels"].tolist() == [[0], [1], [1]]
    assert arrays["labels"].dtype == np.int32
    assert arrays["example"][:, 0, 1].tolist() == [0, 1, 2]
    assert "types" not in arrays
    assert report == {"documents": 3, "truncated": 0, "tokens": 9, "rows": 3, "padding": 0.5}


def test_label_examples_with_pairs():
    arrays = label_examples(records(["7 8"], ["9"], ["2.5"]), Numbers(), 7, classes=None).arrays
    assert arrays["tokens"].tolist() == [[CLS, 7, 8, SEP, 9, SEP, 0]]
    assert arrays["types"].tolist() == [[0, 0, 0, 0, 1, 1, 0]]
    assert arrays["positions"].tolist() == [[0, 1, 2, 3, 4, 5, 0]]
    assert arrays["labels"].tolist() == [[2.5]]
    assert arrays["labels"].dtype == np.float32


def test_as_many_separators_as_the_tokenizer_has(monkeypatch):
    monkeypatch.setattr(Numbers, "separators", 2)
    arrays = label_examples(records(["7 8 9"], ["9 10"], ["1"]), Numbers(), 8, classes=None, truncate=True).arrays
    assert arrays["tokens"].tolist() == [[CLS, 7, 8, SEP, SEP, 9, 10, SEP]]
    assert arrays["types"].tolist() == [[0, 0, 0, 0, 0, 1, 1, 1]]


def test_without_labels_there_is_no_array_of_labels():
    assert "labels" not in label_examples(records(["7"]), Numbers(), 6, classes=("no", "yes")).arrays


@given(
    st.lists(st.tuples(st.integers(0, 8), st.integers(0, 8), st.sampled_from("abc")), min_size=1, max_size=20),
    st.integers(4, 24),
    st.integers(1, 4),
)
def test_labels_stay_with_their_text_however_packed(sizes, length, segments):
    texts, pairs, labels = zip(*((some(a, 10), some(b, 100), label) for a, b, label in sizes), strict=True)
    source = records(texts, pairs, labels)
    rows = label_examples(source, Numbers(), length, ("a", "b", "c"), truncate=True, segments=segments)
    arrays, report = rows.arrays, rows.report
    assert {k: str(v.dtype) for k, v in arrays.items()} == DTYPES | {"labels": "int32"}
    assert arrays["labels"].shape == arrays["example"].shape[:2]
    room = length - 3
    truncated = 0
    for (index, tokens, types), (a, b, _) in zip(segments_of(arrays), sizes, strict=True):
        kept_a, kept_b = a, b
        while kept_a + kept_b > room:  # the published rule, a token at a time
            kept_a, kept_b = (kept_a - 1, kept_b) if kept_a > kept_b else (kept_a, kept_b - 1)
        truncated += (kept_a, kept_b) != (a, b)
        expected = [CLS, *range(10, 10 + kept_a), SEP, *range(100, 100 + kept_b), SEP]
        assert (tokens, types) == (expected, [0] * (kept_a + 2) + [1] * (kept_b + 1)), index
    assert report["truncated"] == truncated
    present = arrays["segments"].max(1)[:, None] > np.arange(segments)
    for index, label in zip(arrays["example"][present][:, 1], arrays["labels"][present], strict=True):
        assert "abc"[label] == labels[index]
    assert (arrays["labels"][~present] == 0).all()


def test_a_text_is_cut_at_its_end():
    rows = label_examples(records(["5 6 7 8 9", "5"]), Numbers(), 5, None, truncate=True)
    arrays, report = rows.arrays, rows.report
    assert arrays["tokens"].tolist() == [[CLS, 5, 6, 7, SEP], [CLS, 5, SEP, 0, 0]]
    assert report["truncated"] == 1


CLASSES = ("no", "yes")
ERRORS = [
    (
        lambda: label_examples(records(["7", some(9)]), Numbers(), 8, CLASSES),
        r"f:2: 9 tokens, .*length=8 has room for 6; set truncate=True or length=11",
    ),
    (
        lambda: label_examples(records([some(4)], [some(5)]), Numbers(), 8, CLASSES),
        r"f:1: 9 tokens, .* has room for 5; set .*length=12",
    ),
    (
        lambda: label_examples(records(["7"], labels=["maybe"]), Numbers(), 8, CLASSES),
        r"f:1: label 'maybe' is not among classes=\('no', 'yes'\)",
    ),
    (
        lambda: label_examples(records(["7"], labels=["good"]), Numbers(), 8, None),
        "f:1: label 'good' is not a finite number; classes=None means",
    ),
    (
        lambda: label_examples(records(["7"], labels=["nan"]), Numbers(), 8, None),
        "f:1: label 'nan' is not a finite number",
    ),
    (
        lambda: label_examples(records(["7", "8"], labels=["yes", None]), Numbers(), 8, CLASSES),
        "1 of 2 records have a label; expected all",
    ),
    (lambda: label_examples([], Numbers(), 8, CLASSES), "the source holds no record"),
    (
        lambda: label_examples(records(["7"]), Numbers(), 3, CLASSES),
        "length=3: expected more than the 3 special tokens",
    ),
    (lambda: pack_documents(records(["7"]), Numbers(), 2), "length=2: expected more than the 2 special tokens"),
    (lambda: pack_documents(records(["7"]), Numbers(), 8, 0), "segments=0: expected at least 1 to a row"),
]


@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@given(st.lists(st.lists(st.integers(0, 30), max_size=6), max_size=8), st.integers(6, 24), st.integers(1, 3), st.data())
def test_pairs_of_sentences_hold_every_token_in_order(documents, length, segments, data):
    counter = itertools.count(5)
    texts = ["\n".join(" ".join(str(next(counter)) for _ in range(n)) for n in sizes) for sizes in documents]
    longest = data.draw((st.none() if length >= 6 * segments else st.nothing()) | st.integers(6, length))
    rows = pair_sentences(records(texts), Numbers(), length, segments, longest)
    assert rows.stored["sizes"].max(initial=0) <= (longest or length // segments)
    want = [[int(i) for i in text.split()] for text in texts]
    starts = {int(line.split()[0]) for text in texts for line in text.splitlines() if line.split()}
    arrays, found = rows.arrays, {}
    for b, s in zip(*np.nonzero(np.arange(1, segments + 1) <= arrays["segments"].max(1)[:, None]), strict=True):
        here = arrays["segments"][b] == s + 1
        ids, types = arrays["tokens"][b][here], arrays["types"][b][here]
        assert (np.diff(types) >= 0).all()
        first, second = ids[types == 0].tolist(), ids[types == 1].tolist()
        assert (first[0], first[-1], second[-1]) == (CLS, SEP, SEP)
        first, second = first[1:-1], second[:-1]
        assert first
        assert second
        if inside := starts & {*first[1:], *second}:  # at a sentence, where there is one
            assert second[0] in inside
        found[int(arrays["example"][b, s, 1])] = first + second
    assert sorted(found) == list(range(rows.report["pieces"]))
    assert [i for n in sorted(found) for i in found[n]] == [i for ids in want if len(ids) > 1 for i in ids]
    assert rows.report["short"] == sum(len(ids) < 2 for ids in want)


def test_pairs_that_share_a_row_are_of_different_documents():
    texts = [" ".join(str(n) for n in range(100 * d + 5, 100 * d + 95)) for d in range(40)]
    rows = pair_sentences(records(texts), Numbers(), 36, 3).arrays
    several = rows["segments"].max(1) >= 2
    assert several.mean() > 0.9
    first, second = ((rows["tokens"] * (rows["segments"] == s)).max(1)[several] // 100 for s in (1, 2))
    assert (first == second).mean() < 0.1
    again = pair_sentences(records(texts), Numbers(), 36, 3, 12).arrays
    assert all((again[k] == rows[k]).all() for k in rows)


# words of a sentence: two cuts are equally near the middle, or there is none
@pytest.mark.parametrize("words, longest", [(1, 20), (2, 17), (90, 20)])
def test_lengths_do_not_tell_which_span_is_first(words, longest):
    """Where the spans cannot be alike, the first is the longer as often as the second."""
    texts = ["\n".join(" ".join("7" for _ in range(words)) for _ in range(n)) for n in range(40, 80)]
    arrays = pair_sentences(records(texts), Numbers(), 24, 1, longest).arrays
    second = ((arrays["types"] == 1) & (arrays["segments"] > 0)).sum(1) - 1  # less their special tokens
    first = ((arrays["types"] == 0) & (arrays["segments"] > 0)).sum(1) - 2
    unlike = first != second
    assert unlike.sum() > 30
    assert abs((first > second)[unlike].mean() - 0.5) < 0.12


def test_pairs_of_sentences():
    text = "5 6 7\n8 9\n10 11 12 13\n14"
    rows = pair_sentences(records([text, "15"]), Numbers(), 12)
    said = [row[row > 0].tolist() for row in rows.arrays["tokens"]]
    assert said == [[CLS, 5, 6, 7, SEP, 8, 9, SEP], [CLS, 10, 11, 12, 13, SEP, 14, SEP]]
    assert rows.arrays["types"][0].tolist() == [0] * 5 + [1] * 3 + [0] * 4
    assert {k: rows.report[k] for k in ("documents", "pieces", "short")} == {"documents": 2, "pieces": 2, "short": 1}
    for length, longest in ((5, None), (12, 5), (12, 13)):
        with pytest.raises(ValueError, match="expected at least 6 of each, for two spans"):
            pair_sentences(records([text]), Numbers(), length, 1, longest)

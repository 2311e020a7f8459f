"""Groups of texts: every text a segment of its row, labels at their texts, and the sources that hold several."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numbers_as_text import CLS, SEP, Numbers, some

from objectives.types import Objective
from train import build, checks
from train.data import source
from train.data.groups import text_groups
from train.data.source import Record


def record(*texts, label=None, row=1):
    return Record(texts[0], None, label, f"f:{row}", texts[1:])


def groups_of(arrays):
    """[[(index, tokens, label), ...] of each group], in the order of their first index."""
    found = {}
    for b in range(len(arrays["tokens"])):
        for s in range(arrays["segments"][b].max()):
            here = arrays["segments"][b] == s + 1
            np.testing.assert_array_equal(arrays["positions"][b][here], np.arange(here.sum()))
            label = float(arrays["labels"][b, s]) if "labels" in arrays else None
            segment = (int(arrays["example"][b, s, 1]), arrays["tokens"][b][here].tolist(), label)
            found.setdefault((b, int(arrays["group"][b, s])), []).append(segment)
        assert (np.diff(arrays["group"][b][: arrays["segments"][b].max()]) >= 0).all()
        assert (arrays["group"][b][arrays["segments"][b].max() :] == 0).all()
    return sorted(found.values())


texts = st.lists(st.integers(5, 999), max_size=8)


@given(st.lists(st.lists(texts, min_size=2, max_size=4), min_size=1, max_size=10), st.sampled_from([4, 8, 12]))
def test_every_text_is_a_segment_of_its_group(given, segments):
    rows = text_groups([record(*(" ".join(map(str, t)) for t in g)) for g in given], Numbers(), 40, segments)
    found = groups_of(rows.arrays)
    assert [[tokens for _, tokens, _ in group] for group in found] == [[[CLS, *t, SEP] for t in g] for g in given]
    assert [i for group in found for i, _, _ in group] == list(range(sum(map(len, given)))), "an index for every text"
    assert rows.report["documents"] == len(given)
    assert rows.report["pieces"] == sum(map(len, given))
    if segments == 4 and max(map(len, given)) > 2:
        assert len(rows) == len(given), "a row is a record"


def test_groups_are_packed_whole():
    rows = text_groups([record(some(4), some(4)) for _ in range(5)], Numbers(), 24, 4)
    assert rows.arrays["group"].tolist() == [[1, 1, 2, 2], [1, 1, 2, 2], [1, 1, 0, 0]]


def test_a_number_for_a_pair_and_grades_for_candidates():
    rows = text_groups([Record("7", "8", "2.5", "f:1")], Numbers(), 8, 2).arrays
    assert rows["labels"].tolist() == [[0, 2.5]]
    assert rows["labels"].dtype == np.float32
    rows = text_groups([record("7", "8", "9", label="[3, 0]"), record("7", "8", label="[1]")], Numbers(), 12, 3).arrays
    assert rows["labels"].tolist() == [[0, 3, 0], [0, 1, 0]]


def test_the_right_choice():
    given = [record("7 8", "9", "10", label="B"), record("7", "9", "10", label="A")]
    joined = text_groups(given, Numbers(), 16, 2, classes=("A", "B"), joined=True).arrays
    assert joined["tokens"][0, :11].tolist() == [CLS, 7, 8, SEP, 9, SEP, CLS, 7, 8, SEP, 10]
    assert joined["types"][0].tolist() == [0, 0, 0, 0, 1, 1] * 2 + [0] * 4
    assert joined["labels"].tolist() == [[0, 1], [1, 0]]
    assert joined["labels"].dtype == np.int32
    apart = text_groups(given, Numbers(), 16, 3, classes=("A", "B")).arrays
    assert apart["labels"].tolist() == [[0, 0, 1], [0, 1, 0]]
    assert "types" not in apart


def test_the_longest_is_cut_first():
    rows = text_groups([record(some(9), some(3), some(5)), record("5", "6")], Numbers(), 18, 3, truncate=True)
    (first, second) = groups_of(rows.arrays)
    assert [len(tokens) - 2 for _, tokens, _ in first] == [5, 3, 4]
    assert first[0][1] == [CLS, 5, 6, 7, 8, 9, SEP]
    assert [tokens for _, tokens, _ in second] == [[CLS, 5, SEP], [CLS, 6, SEP]]
    assert rows.report["truncated"] == 1
    joined = text_groups([record(some(9), some(3), "5")], Numbers(), 20, 2, truncate=True, joined=True).arrays
    assert np.bincount(joined["segments"][0])[1:].tolist() == [10, 10]
    assert np.bincount(joined["segments"][0] * 2 + joined["types"][0])[2:].tolist() == [6, 4, 8, 2]


def test_a_segment_has_a_length_of_its_own():
    given = [record(some(9), some(3), some(5)), record("5", "6")]
    rows = text_groups(given, Numbers(), 40, 3, truncate=True, longest=6)
    (first, second) = groups_of(rows.arrays)
    assert [len(tokens) - 2 for _, tokens, _ in first] == [4, 3, 4]
    assert [len(tokens) - 2 for _, tokens, _ in second] == [1, 1]
    assert rows.report["truncated"] == 1


ERRORS = [
    (
        [record("5")],
        dict(),
        "f:1: 1 texts, which are 1 segments; expected 2 to segments=3. The columns after the first",
    ),
    ([record("5", "6")], dict(joined=True), "2 texts, which are 1 segments"),
    ([record(*"5678")], dict(), "4 texts, which are 4 segments; expected 2 to segments=3"),
    ([record(some(9), "5")], dict(), "10 tokens in 2 segments, and a row of length=12 has room for 8; .*length=14"),
    (
        [record(some(6), "5")],
        dict(longest=6),
        "7 tokens in 2 segments, .* room for 8, a segment of longest=6 for 4 of its 6; set truncate=True or longest=8$",
    ),
    ([record("5", "6", label="1"), record("5", "6")], dict(), "1 of 2 records have a label"),
    ([record("5", "6", "7", label="1.5")], dict(), "label '1.5' is not a number for each of the 2 texts"),
    ([record("5", "6", label="[nan]")], dict(), r"label '\[nan\]' is not a number for each of the 1 texts"),
    ([record("5", "6", label="x")], dict(), "label 'x' is not a number for each"),
    ([record("5", "6", label="C")], dict(classes=("A", "B", "C")), "label 'C' is number 2 .* 1 texts to choose from"),
    ([record("5", "6", label="D")], dict(classes=("A", "B")), "label 'D' is not among classes"),
    ([], dict(), "the source holds no record"),
]


@pytest.mark.parametrize(("given", "options", "message"), ERRORS)
def test_errors(given, options, message):
    with pytest.raises(ValueError, match=message):
        text_groups(given, Numbers(), 12, 3, **options)


def test_no_room_for_the_special_tokens():
    with pytest.raises(ValueError, match=r"18 tokens in 3 segments, and a row of length=7 has room for 1; .*length=24"):
        text_groups([record(some(6), some(6), some(6))], Numbers(), 7, 3, truncate=True)


def test_sources_of_several_texts(tmp_path):
    (tmp_path / "a.csv").write_text("q,good,bad,worse,label\none,two,three,,A\none,two,three,four,B\n")
    read = source.csv(str(tmp_path / "a.csv"), "q", "good", "label", more=("bad", "worse"))
    assert [r.texts for r in read] == [("one", "two", "three"), ("one", "two", "three", "four")]
    assert [r.label for r in read] == ["A", "B"]
    plain = source.csv(str(tmp_path / "a.csv"), "q", "good", "label")
    assert plain.fingerprint != read.fingerprint
    assert len(list(source.csv(str(tmp_path / "a.csv"), "q", "good", unique=True))) == 1
    assert len(list(source.csv(str(tmp_path / "a.csv"), "q", "good", more=("worse",), unique=True))) == 2
    (tmp_path / "hole.csv").write_text("q,a,b,c\none,x,,z\n")
    with pytest.raises(ValueError, match="b is empty, and a text after it is not"):
        list(source.csv(str(tmp_path / "hole.csv"), "q", more=("a", "b", "c")))
    lines = [
        {"query": "one", "hits": ["two", "three"], "grades": [2, 0]},
        {"query": "four", "hits": [5], "grades": "[1]"},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    read = list(source.jsonl(str(tmp_path / "a.jsonl"), "query", label="grades", more=("hits",)))
    assert [(r.texts, r.label) for r in read] == [(("one", "two", "three"), "[2, 0]"), (("four", "5"), "[1]")]
    with pytest.raises(ValueError, match="no column 'docs'"):
        list(source.jsonl(str(tmp_path / "a.jsonl"), "query", more=("docs",)))
    (tmp_path / "b.jsonl").write_text('{"query": "one", "hits": ["two", null]}\n')
    with pytest.raises(ValueError, match="column 'hits' holds null, expected text"):
        list(source.jsonl(str(tmp_path / "b.jsonl"), "query", more=("hits",)))


def test_what_an_objective_needs():
    """Groups where there are none, and labels for scores alone, are errors before training."""
    grouped = Objective("contrastive", lambda: None, dict, needs=("group",))
    scored = Objective("contrastive", lambda: None, dict, scores=("spearman",), scored=("labels", "group"))
    rows = text_groups([record("5", "6")], Numbers(), 12, 3).arrays
    checks.needs(grouped, rows, "pretrain.data")
    checks.needs(scored, {"tokens": 0}, "pretrain.data")
    with pytest.raises(
        ValueError, match=r"pretrain.data: contrastive reads group, .*`group` is of train.data.groups:text_gr"
    ):
        checks.needs(grouped, {"tokens": 0}, "pretrain.data")
    rows = {k: x for k, x in rows.items() if k != "labels"}
    with pytest.raises(ValueError, match=r"evals.dev: contrastive reads labels, and these rows hold example, group"):
        checks.needs(scored, rows, "evals.dev", scored=True)


def test_without_labels_a_texts_pair_is_the_right_one():
    """And hard negatives are not."""
    given = [Record("5 6", "7 8", None, "here", ("9 10",)), Record("5", "6", None, "there")]
    arrays = text_groups(given, Numbers(), 32, 3).arrays
    assert arrays["labels"].tolist() == [[0, 1, 0], [0, 1, 0]]
    assert "labels" not in text_groups(given[:1], Numbers(), 32, 3, joined=True).arrays


@pytest.mark.parametrize(
    ("columns", "options"),
    [
        (dict(pair="b", label="score"), dict()),
        (dict(pair="b", more=("c",)), dict()),
        (dict(more=("b", "c", "d"), label="right"), dict(classes=("0", "1", "2"), joined=True)),
        (dict(more=("candidates",), label="grades"), dict()),
    ],
)
def test_a_plan_knows_the_shapes_without_a_text(columns, options):
    data = dict(factory="train.data.groups:text_groups", length=64, segments=4, source=columns, **options)
    found = build.example_batch(SimpleNamespace(data=data, batch=8), "pretrain", Numbers.vocab)
    want = {"tokens": (8, 64), "segments": (8, 64), "positions": (8, 64), "example": (8, 4, 2), "group": (8, 4)}
    want |= {"labels": (8, 4)} | ({"types": (8, 64)} if options else {})
    assert {name: x.shape for name, x in found.items()} == want

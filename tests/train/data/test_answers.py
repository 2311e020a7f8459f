"""Questions on texts as rows: windows that lose nothing, answers found again in them, SQuAD's files, clear refusals."""

import gzip
import json
import re

import numpy as np
import pytest
import vocabularies
from hypothesis import given
from hypothesis import strategies as st
from numbers_as_text import Numbers, some

from train.data import source
from train.data.answers import answer_windows, answers_of
from train.data.source import Record
from train.data.tokenizer import train_sentencepiece


def asked(question: str, context: str, *answers: tuple[str, int] | str) -> Record:
    found = [(a, context.index(a)) if isinstance(a, str) else a for a in answers]
    label = {"text": [a for a, _ in found], "answer_start": [start for _, start in found]}
    return Record(question, context, json.dumps(label), "f:1")


def test_a_row_by_hand():
    rows = answer_windows([asked("7 8", "20 21 22 23", "21 22")], Numbers(), 12, question=4)
    row = {k: x[0].tolist() for k, x in rows.arrays.items()}
    assert row["tokens"][:9] == [2, 7, 8, 3, 20, 21, 22, 23, 3]
    assert row["types"][:9] == [0] * 4 + [1] * 5
    assert row["answers"] == [[5, 6]]
    assert row["origin"] == [[0, -4]]


@given(
    contexts=st.lists(st.integers(1, 60), min_size=1, max_size=4), length=st.integers(14, 30),
    stride=st.integers(1, 20), segments=st.integers(1, 3), seed=st.integers(0, 9),
)  # fmt: skip
def test_windows_hold_every_token_and_every_answer_that_fits(contexts, length, stride, segments, seed):
    rng = np.random.default_rng(seed)
    spans, records = [], []
    for n in contexts:
        first = int(rng.integers(n))
        last = min(n - 1, first + int(rng.integers(3)))
        spans.append((first, last))
        ids = [str(100 + i) for i in range(n)]
        start = len(" ".join(ids[:first])) + (first > 0)
        records.append(asked(some(int(rng.integers(1, 9))), " ".join(ids), (" ".join(ids[first : last + 1]), start)))
    rows = answer_windows(records, Numbers(), length, stride, question=5, segments=segments)
    arrays = rows.arrays
    seen = [set() for _ in contexts]
    held = [False for _ in contexts]
    for b, s in np.argwhere(arrays["segments"].max(1)[:, None] > np.arange(segments)):
        place, shift = arrays["origin"][b, s]
        here = arrays["segments"][b] == s + 1
        tokens, types = arrays["tokens"][b, here], arrays["types"][b, here]
        assert tokens[0] == 2 and tokens[-1] == 3 and here.sum() <= length
        at = np.flatnonzero((types == 1) & (tokens != 3))
        np.testing.assert_array_equal(tokens[at], 100 + at + shift)
        seen[place] |= set((at + shift).tolist())
        first, last = arrays["answers"][b, s]
        if last:
            held[place] = True
            assert (first + shift, last + shift) == spans[place]
        else:
            assert first == 0 and not {spans[place][0], spans[place][1]} <= set((at + shift).tolist())
    assert [len(found) for found in seen] == contexts
    assert rows.report["lost"] == held.count(False)
    assert rows.report["pieces"] == (arrays["segments"].max(1)).sum()


def test_a_window_begins_a_stride_after_another():
    rows = answer_windows([asked("7", some(40, 100), "120")], Numbers(), 16, stride=5, question=4).arrays
    assert (rows["origin"][:, 0, 1] + 3).tolist() == [0, 5, 10, 15, 20, 25, 30]  # 12 of the context in each
    assert [bool(last) for last in rows["answers"][:, 0, 1]] == [False, False, True, True, True, False, False]


TEXT = "The café’s ﬁne menu (No. 5) — £3.50 for “naïve” 漢字 cats; don't\tmat \U0001f600 done."  # noqa: RUF001


@pytest.fixture(scope="module", params=[*vocabularies.FAMILIES, "trained"])
def tokenizer(request):
    if request.param != "trained":
        return vocabularies.published(request.param)
    lines = [Record(line, None, None, "x") for line in vocabularies.LINES * 9]
    return train_sentencepiece(lines, size=290, lowercase=True)


def test_offsets_are_of_the_ids_that_encode_gives(tokenizer):
    texts = [TEXT, "", *vocabularies.LINES]
    for text, ids, offsets in zip(texts, tokenizer.encode(texts), tokenizer.offsets(texts), strict=True):
        assert offsets.shape == (len(ids), 2)
        assert (np.diff(offsets, axis=0) >= 0).all() and (offsets[:, 0] <= offsets[:, 1]).all()
        assert not len(text) or offsets.max() == len(text)
        for word in re.finditer(r"\S+", text if text != TEXT else ""):
            here = (offsets[:, 1] > word.start()) & (offsets[:, 0] < word.end())
            assert tokenizer.vocab.unk in ids[here] or tokenizer.decode(ids[here]).strip() == word[0]


@pytest.mark.parametrize(
    "answer", ["café", "ﬁne", "No. 5", "£3.50", "“naïve”", "漢", "字", "cats", "don't", "done.", "\U0001f600"]
)
def test_an_answer_is_cut_from_the_text_again(tokenizer, answer):
    rows = answer_windows([asked("the cat", TEXT, answer)], tokenizer, 250).arrays
    (origin,), ((first, last),) = rows["origin"][0], rows["answers"][0]
    assert last >= first > 0
    (offsets,) = tokenizer.offsets([TEXT])
    found = TEXT[offsets[origin[1] + first, 0] : offsets[origin[1] + last, 1]]
    assert answer in found and len(found.strip()) <= len(answer) + 2, found


SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "It was 1066.",
                    "qas": [
                        {"id": "a", "question": "When?", "answers": [{"text": "1066", "answer_start": 7}] * 2},
                        {"id": "b", "question": "Who?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}


def test_squad_s_files_and_columns_are_the_same_records(tmp_path):
    import pyarrow
    from pyarrow import parquet

    with gzip.open(tmp_path / "a.json.gz", "wt") as file:
        json.dump(SQUAD, file, indent=1)
    nested = list(source.squad(str(tmp_path / "a.json.gz")))
    assert [(r.text, r.pair) for r in nested] == [("When?", "It was 1066."), ("Who?", "It was 1066.")]
    assert [answers_of(r) for r in nested] == [(("1066", 7), ("1066", 7)), ()]
    assert nested[1].where.endswith("a.json.gz:2")
    flat = [dict(question=r.text, context=r.pair, answers=json.loads(r.label)) for r in nested]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flat))
    kinds = pyarrow.struct(
        [("text", pyarrow.list_(pyarrow.string())), ("answer_start", pyarrow.list_(pyarrow.int32()))]
    )
    schema = pyarrow.schema([("question", pyarrow.string()), ("context", pyarrow.string()), ("answers", kinds)])
    parquet.write_table(pyarrow.Table.from_pylist(flat, schema), tmp_path / "a.parquet")
    for kind in ("jsonl", "parquet"):
        found = list(getattr(source, kind)(str(tmp_path / f"a.{kind}"), "question", "context", "answers"))
        assert [(r.text, r.pair, answers_of(r)) for r in found] == [(r.text, r.pair, answers_of(r)) for r in nested]


def test_a_question_that_is_wrong_can_be_skipped_alone(tmp_path):
    good = SQUAD["data"][0]["paragraphs"][0]["qas"][0]
    wrong = [
        {"question": "Where?", "answers": [{"text": "1066", "answer_start": 6}]},
        {"question": "Which?"},
        {"question": "How?", "answers": [{"text": "1066"}]},
    ]
    never = {"question": "Why?", "answers": good["answers"], "is_impossible": True}
    paragraph = {"context": "It was 1066.", "qas": [good, *wrong, never]}
    (tmp_path / "a.json").write_text(json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    with pytest.raises(ValueError, match=r"a\.json:2.*'1066' is not at character 6 of the context, which has ' 106'"):
        list(source.squad(str(tmp_path / "a.json")))
    read = source.squad(str(tmp_path / "a.json"), on_error="skip")
    assert [(r.text, len(answers_of(r))) for r in read] == [("When?", 2), ("Why?", 0)]


@pytest.mark.parametrize(
    "record, message",
    [
        (Record("7", "20", "3", "f:1"), "f:1: label '3' holds no answers; expected"),
        (Record("7", "20", '{"text": ["20"], "answer_start": []}', "f:1"), "holds no answers"),
        (Record("7", "20", '{"text": [""], "answer_start": [0]}', "f:1"), "holds no answers"),
        (Record("7", "20 21", '{"text": [" "], "answer_start": [2]}', "f:1"), "holds no answers"),
        (asked("7", "20 21", ("21", 2)), "the answer '21' is not at character 2 of the context, which has ' 2' there"),
        (Record("7", None, None, "f:1"), "f:1: no context"),
        (Record("7", "", None, "f:1"), "f:1: no context"),
    ],
)
def test_records_that_are_no_questions(record, message):
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        answer_windows([record], Numbers(), 16, question=4)


def test_other_refusals(tmp_path):
    one = asked("7", "20 21", "21")
    with pytest.raises(
        ValueError, match="a row must hold a question, 3 special tokens and at least one of the context"
    ):
        answer_windows([one], Numbers(), 67)
    with pytest.raises(ValueError, match="1 of 2 records have answers"):
        answer_windows([one, one._replace(label=None)], Numbers(), 16, question=4)
    with pytest.raises(ValueError, match="the source holds no record"):
        answer_windows([], Numbers(), 16, question=4)
    for content, message in (("[]", "not as SQuAD's files"), ('{"data": [{"paragraphs": [{}]}]}', "after 0 questions")):
        (tmp_path / "x.json").write_text(content)
        with pytest.raises(ValueError, match=message):
            list(source.squad(str(tmp_path / "x.json")))

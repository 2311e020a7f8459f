"""Sentences of CoNLL files as rows to tag: which token has which tag, what is lost, and an error for each mistake."""

import gzip

import numpy as np
import pytest
import vocabularies
from numbers_as_text import UNK, Numbers, records

from train.data import source
from train.data.words import tag_words

CONLL = "\n\nIn\tO\nNew\tB-p\nYork\tI-p\n\nGo\tO\n"
CONLLU = (
    "# text = vámonos a casa\n1-2\tvámonos\t_\t_\t_\t_\t_\t_\t_\t_\n1\tvamos\tir\tVERB\tV\t_\t0\troot\t_\t_\n"
    "2\tnos\tnosotros\tPRON\tP\t_\t1\tobj\t_\t_\n2.1\tx\tx\tX\tX\t_\t_\t_\t_\t_\n"
    "3\t10 000\t_\tNUM\tN\t_\t1\tobl\t_\t_\n\n"
)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_records(tmp_path, compress):
    end = "" if compress is bytes else ".gz"
    for name, content in (("a.conll", CONLL), ("a.conllu", CONLLU)):
        (tmp_path / (name + end)).write_bytes(compress(content.encode()))
    first, second = source.tagged(str(tmp_path / f"a.conll{end}"))
    assert (first.text, first.label) == ("In New York", "O B-p I-p")
    assert first.where.endswith(":3") and second.where.endswith(":7")
    assert (second.text, second.label) == ("Go", "O")
    path = str(tmp_path / f"a.conllu{end}")
    (only,) = source.conllu(path)
    assert (only.text, only.label) == ("vamos nos 10\u00a0000", "VERB PRON NUM")
    assert only.where.endswith(":3")
    (other,) = source.conllu(path, tag="XPOS")
    assert other.label == "V P N"
    assert source.conllu(path).fingerprint != source.conllu(path, tag="XPOS").fingerprint


@pytest.mark.parametrize(
    "content, message",
    [
        ("a\tO\nb\n", r"a\.conll:2: found 1 fields, expected a tag in column 1"),
        ("a\tO\n\tO\n", r"a\.conll:2: found word '' and tag 'O'"),
        ("a\tO\n\nb\tO X\n", r"a\.conll:3: .* no space in the tag"),
    ],
)
def test_a_broken_sentence_is_said_or_skipped(tmp_path, content, message):
    (tmp_path / "a.conll").write_text(content + "\nfine\tO\n")
    path = str(tmp_path / "a.conll")
    with pytest.raises(ValueError, match=message):
        list(source.tagged(path))
    kept = [record.text for record in source.tagged(path, on_error="skip")]
    assert kept[-1] == "fine" and "b" not in " ".join(kept)


def test_wrong_arguments(tmp_path):
    (tmp_path / "a.conllu").write_text("1\ta\n")
    with pytest.raises(ValueError, match="found 2 fields between tabs, expected the 10"):
        list(source.conllu(str(tmp_path / "a.conllu")))
    with pytest.raises(ValueError, match="tag='upos' must be one of UPOS, XPOS"):
        source.conllu("a.conllu", tag="upos")
    with pytest.raises(ValueError, match="tag=0: expected"):
        source.tagged("a.conll", tag=0)


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    from train.data.tokenizer import load

    file = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    vocabularies.wordpiece().save(str(file))
    return load(file)


def test_the_first_token_of_a_word_has_its_tag(pieces):
    given = records(["unbelievable cat \u200b the"], labels=["A N X D"])
    rows = tag_words(given, pieces, 10, ("A", "N", "D", "X"))
    assert pieces.pieces(rows.arrays["tokens"][0]) == [
        "[CLS]", "un", "##believ", "##able", "cat", "[UNK]", "the", "[SEP]", "[PAD]", "[PAD]",
    ]  # fmt: skip
    assert rows.arrays["tags"].tolist() == [[0, 1, 0, 0, 2, 4, 3, 0, 0, 0]]
    assert rows.arrays["tags"].dtype == np.int32


def test_a_word_is_as_it_is_after_a_space():
    from train.data.published import Published

    text = vocabularies.LINES[0]
    made = vocabularies.byte_level()
    tokenizer = Published(made.to_str().encode())
    rows = tag_words(records([text]), tokenizer, 64, ())
    want = tokenizer.encode([text])[0]
    assert rows.arrays["tokens"][0, 1 : 1 + len(want)].tolist() == want.tolist()
    assert "tags" not in rows.arrays


def test_what_is_cut_is_counted():
    given = records(["5 6 7 8", "9"], labels=["a b a b", "a"])
    rows = tag_words(given, Numbers(), 5, ("a", "b"), truncate=True)
    assert rows.arrays["tags"].tolist() == [[0, 1, 2, 1, 0], [0, 1, 0, 0, 0]]
    assert rows.report["truncated"] == 1 and rows.report["words lost"] == 1
    with pytest.raises(ValueError, match=r"f:1: 4 tokens, .* room for 3; set truncate=True or length=6"):
        tag_words(given, Numbers(), 5, ("a", "b"))


@pytest.mark.parametrize(
    "texts, labels, message",
    [
        (["5 6"], ["a"], "f:1: 1 tags of 2 words"),
        (["5 6"], ["a c"], "f:1: tag 'c' is not among classes"),
        (["5", "6"], ["a", None], "1 of 2 records have tags"),
        ([], [], "holds no record"),
    ],
)
def test_rows_errors(texts, labels, message):
    with pytest.raises(ValueError, match=message):
        tag_words(records(texts, labels=labels), Numbers(), 8, ("a", "b"))


def test_a_word_that_is_nothing_is_unknown():
    tokens = tag_words(records(["5  6"], labels=["a b a"]), Numbers(), 8, ("a", "b")).arrays["tokens"]
    assert tokens[0, :5].tolist() == [2, 5, UNK, 6, 3]

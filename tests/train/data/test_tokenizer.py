"""The trained tokenizer: fixed special ids, a round trip for any text, the same bytes every time, clear refusals."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from train.data.source import Record
from train.data.tokenizer import (
    _MAX_CHARACTERS,
    FILES,
    SPACE,
    SPECIAL,
    _sentences,
    find,
    load,
    save,
    train_sentencepiece,
)

TEXT = "the cat sat on a mat while rain fell over green hills and slow rivers ran down to cold seas again"
WORDS = TEXT.split()
CORPUS = [Record(" ".join(WORDS[i % 7 : i % 13 + 7] + WORDS[:: i % 5 + 1]), None, None, f"x:{i}") for i in range(60)]


@pytest.fixture(scope="module")
def tokenizer():
    return train_sentencepiece(CORPUS, size=290)


def test_vocab(tokenizer):
    vocab = tokenizer.vocab
    assert tokenizer.pieces(range(5)) == list(SPECIAL)
    assert (vocab.size, vocab.pad, vocab.unk, vocab.cls, vocab.sep, vocab.mask) == (290, 0, 1, 2, 3, 4)
    assert vocab.special == (0, 1, 2, 3, 4)
    pieces = tokenizer.pieces(range(290))
    assert vocab.word_starts.dtype == bool
    assert vocab.word_starts.tolist() == [i < 5 or piece[0] == SPACE for i, piece in enumerate(pieces)]


def test_encode(tokenizer):
    one, none, spelled = tokenizer.encode(["the cat", "", "[MASK] [CLS]"])
    assert one.dtype == none.dtype == np.int32
    assert none.shape == (0,)
    assert tokenizer.pieces(one)[0].startswith(SPACE)
    assert min(spelled) > 4, "a text that spells a special piece is text"
    assert tokenizer.decode(spelled) == "[MASK] [CLS]"
    assert tokenizer.decode(np.array([2, *one, 3, 0])) == "the cat"


@given(st.lists(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "So"]), min_size=1), min_size=1))
def test_every_text_comes_back(tokenizer, words):
    import unicodedata

    text = unicodedata.normalize("NFKC", " ".join(words))
    ids = tokenizer.encode([text])[0]
    assert tokenizer.vocab.unk not in ids
    again = tokenizer.encode([tokenizer.decode(ids)])[0]
    np.testing.assert_array_equal(again, ids)


def test_words_begin_where_words_begin(tokenizer):
    text = TEXT
    assert tokenizer.vocab.word_starts[tokenizer.encode([text])[0]].sum() == len(WORDS)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_is_deterministic(kind):
    made = [train_sentencepiece(CORPUS, 290, kind, sentences=40) for _ in range(2)]
    assert made[0].vocab.fingerprint == made[1].vocab.fingerprint
    assert made[0].file == made[1].file


def test_loading_gives_the_same_tokenizer(tmp_path, tokenizer, monkeypatch):
    assert find(tmp_path / "new") is None
    file = save(tokenizer, tmp_path / "new")
    assert file == find(tmp_path / "new") == tmp_path / "new" / FILES[0]
    assert list(file.parent.iterdir()) == [file]
    monkeypatch.setenv("MINE", str(tmp_path))
    for again in (load(file), load(file.parent), load("$MINE/new")):
        assert again.file == tokenizer.file
        assert again.vocab.fingerprint == tokenizer.vocab.fingerprint
        np.testing.assert_array_equal(again.encode(["the cat"])[0], tokenizer.encode(["the cat"])[0])


def test_lowercase():
    tokenizer = train_sentencepiece(CORPUS, 290, lowercase=True)
    np.testing.assert_array_equal(*tokenizer.encode(["The CAT", "the cat"]))


def test_without_byte_fallback_an_unseen_character_is_unknown():
    tokenizer = train_sentencepiece(CORPUS, 34, byte_fallback=False)
    assert tokenizer.vocab.unk in tokenizer.encode(["\u6f22"])[0]


def test_pairs_are_trained_on_too():
    records = [record._replace(pair="zebra") for record in CORPUS]
    assert "z" in train_sentencepiece(records, 300, "bpe").pieces(range(300))


def published(**options) -> bytes:
    """A SentencePiece model with special pieces as published ones have them."""
    import io

    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([record.text for record in CORPUS]), model_writer=model, hard_vocab_limit=False,
        vocab_size=60, minloglevel=2, pad_id=0, bos_id=-1, eos_id=-1, **options,
    )  # fmt: skip
    return model.getvalue()


DEBERTA = dict(unk_id=3, pad_piece="[PAD]", unk_piece="[UNK]", control_symbols=["[CLS]", "[SEP]"])
ALBERT = dict(unk_id=1, control_symbols=["[CLS]", "[SEP]", "[MASK]"])


@pytest.mark.parametrize("options", [DEBERTA, ALBERT])
def test_a_published_sentencepiece_model(tmp_path, options):
    import sentencepiece

    model = published(**options)
    (tmp_path / "spm.model").write_bytes(model)
    made, theirs = load(tmp_path / "spm.model"), sentencepiece.SentencePieceProcessor(model_proto=model)
    texts = [record.text for record in CORPUS] + [" the   Cat \u6f22 [MASK]"]
    for got, want in zip(made.encode(texts), theirs.encode(texts), strict=True):
        assert got.tolist() == want
    size = theirs.get_piece_size()
    assert made.pieces([made.vocab.cls, made.vocab.mask, made.vocab.unk]) == [
        "[CLS]",
        "[MASK]",
        theirs.id_to_piece(theirs.unk_id()),
    ]
    assert made.vocab.mask == (size if options is DEBERTA else 4)  # one it lacks follows the last piece
    assert made.vocab.size == max(size, made.vocab.mask + 1)
    assert made.decode([made.vocab.cls, *made.encode(["the cat"])[0], made.vocab.mask]) == "the cat"
    again = load(save(made, tmp_path / "kept"))
    assert again.vocab.fingerprint == made.vocab.fingerprint


def test_as_a_tokenizer_json(tokenizer):
    """What the conversion of a SentencePiece model says of a text is what the model says."""
    import json

    from train.data.published import Published, unigram

    made = Published(json.dumps(unigram(tokenizer.file[1])).encode())
    texts = [record.text for record in CORPUS] + ["", "  Two   spaces \u6f22\ufb01 \u00bd\n new line "]
    for got, want in zip(made.encode(texts), tokenizer.encode(texts), strict=True):
        np.testing.assert_array_equal(got, want)
    for field in ("size", "pad", "unk", "cls", "sep", "mask", "special"):
        assert getattr(made.vocab, field) == getattr(tokenizer.vocab, field)
    np.testing.assert_array_equal(made.vocab.word_starts, tokenizer.vocab.word_starts)
    with pytest.raises(ValueError, match=r"of kind BPE, which has no tokenizer\.json; expected UNIGRAM"):
        unigram(train_sentencepiece(CORPUS, 290, "bpe").file[1])
    with pytest.raises(ValueError, match="it is no SentencePiece model"):
        unigram(b"garbage")


def test_training_is_silent(capfd):
    train_sentencepiece(CORPUS, 290)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_a_size_too_large_says_the_largest_that_works(kind):
    with pytest.raises(ValueError, match=r"size=5000: the texts carry at most \d+ pieces; set size=") as caught:
        train_sentencepiece(CORPUS, 5000, kind)
    largest = int(str(caught.value).rsplit("set size=", 1)[1].split()[0])
    assert train_sentencepiece(CORPUS, largest, kind).vocab.size == largest


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        (CORPUS, {"size": 50}, r"size=50: characters, bytes and specials alone take \d+; set size above"),
        (CORPUS, {"kind": "wordpiece"}, 'kind=\'wordpiece\': expected "unigram" or "bpe"'),
        ([Record(" \n", None, None, "x:1")], {}, "the source holds no text to train a tokenizer on"),
    ],
)
def test_training_errors(source, arguments, message):
    with pytest.raises(ValueError, match=message):
        train_sentencepiece(source, **arguments)


def test_loading_errors(tmp_path):
    import io

    import sentencepiece

    for path in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(
            ValueError, match=r"no tokenizer at .*; expected a tokenizer.model or a tokenizer.json, or a w"
        ):
            load(path)
    for content in (b"garbage", b"[PAD]\n[UNK]\n"):
        (tmp_path / "a.model").write_bytes(content)
        with pytest.raises(
            ValueError, match=r"a\.model is neither a SentencePiece model nor a tokenizer.json; a vocab.t"
        ):
            load(tmp_path / "a.model")
    for name in FILES:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=r"holds tokenizer.model and tokenizer.json; expected one of them: remove"):
        load(tmp_path)
    model = io.BytesIO()
    texts = iter([record.text for record in CORPUS])
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=model, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    (tmp_path / "b.model").write_bytes(model.getvalue())
    with pytest.raises(ValueError, match=r"b.model: the model has no piece \[PAD\] or <pad>: train it here, or load"):
        load(tmp_path / "b.model")


@given(st.lists(st.text(st.sampled_from("ab\u6f22 \n\t"), max_size=5).map(lambda s: s * 700), max_size=3))
def test_sentences_are_short_and_lose_nothing(texts):
    found = list(_sentences(Record(text, None, None, "") for text in texts))
    assert all(0 < len(sentence) <= _MAX_CHARACTERS for sentence in found)
    assert "".join("".join(found).split()) == "".join("".join(texts).split())


def test_sentences_are_cut_at_spaces():
    text = " ".join(["abcdefg"] * 1000)
    assert [
        word for sentence in _sentences([Record(text, None, None, "")]) for word in sentence.split()
    ] == text.split()


def test_the_trainer_skips_no_sentence():
    odd = [record._replace(text=f"zebra \0 \u2585 {record.text}") for record in CORPUS]
    assert "z" in train_sentencepiece(odd, 300, "bpe").pieces(range(300))

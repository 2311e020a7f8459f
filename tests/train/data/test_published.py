"""Published tokenizers: the ids of BERT's own procedure and of the library, words that begin where words do."""

import gzip
import json
import os
import unicodedata
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vocabularies import BERT, FAMILIES, LINES, ROBERTA, WORDS, published, wordpiece

from model import random
from objectives.masking import masking
from train.data.published import Published, _separators, load_wordpiece
from train.data.rows import pack_documents
from train.data.source import Record
from train.data.tokenizer import SPACE, find, load, save

TEXT = "The cat's unbelievable mat:\n\tHÉLLO wörld  \u200b漢字かな 한국 x\u0301 [MASK] <mask> </s> 5.00 \U0001f600"


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    file = tmp_path_factory.mktemp("wordpiece") / "vocab.txt"
    file.write_text("\n".join([*BERT, *WORDS]) + "\n", encoding="utf-8")
    return file


@pytest.fixture(params=FAMILIES)
def family(request):
    return request.param


def bert(text: str, vocab: dict[str, int], lowercase: bool) -> list[int]:
    """BERT's procedure (https://arxiv.org/abs/1810.04805, the code released with it), written again."""
    kept = "".join(" " if c in "\t\n\r" else c for c in text
                   if c in "\t\n\r" or not (c in "\0\ufffd" or unicodedata.category(c) in ("Cc", "Cf")))  # fmt: skip
    if lowercase:
        kept = unicodedata.normalize("NFD", kept).lower()
        kept = "".join(c for c in kept if unicodedata.category(c) != "Mn")
    spaced = "".join(f" {c} " if chinese(ord(c)) or punctuation(c) else c for c in kept)
    return [i for word in spaced.split() for i in longest_first(word, vocab)]


def chinese(c: int) -> bool:
    return any(lo <= c <= hi for lo, hi in [(0x4E00, 0x9FFF), (0x3400, 0x4DBF), (0x20000, 0x2A6DF), (0x2A700, 0x2CEAF),
                                            (0xF900, 0xFAFF), (0x2F800, 0x2FA1F)])  # fmt: skip


def punctuation(c: str) -> bool:
    return (c.isascii() and c.isprintable() and not c.isalnum() and c != " ") or unicodedata.category(c)[0] == "P"


def longest_first(word: str, vocab: dict[str, int]) -> list[int]:
    ids, start = [], 0
    while start < len(word):
        lead = "##" if start else ""
        ends = (end for end in range(len(word), start, -1) if lead + word[start:end] in vocab)
        if len(word) > 100 or (end := next(ends, None)) is None:
            return [vocab["[UNK]"]]
        ids.append(vocab[lead + word[start:end]])
        start = end
    return ids


@pytest.mark.parametrize(
    "text, lowercase, pieces",
    [
        ("unbelievables", True, "un ##believ ##able ##s"),
        ("Unbelievable", False, "Un ##believ ##able"),
        ("Unbelievable", True, "un ##believ ##able"),
        ("HÉllo", True, "h ##e ##llo"),
        ("HÉllo", False, "[UNK]"),
        ("H\u00e9", False, "H ##é"),
        ("H\u0065\u0301", True, "h ##e"),
        ("h\0e\u200bl\x07l\ufffdo,", True, "h ##e ##llo ,"),
        ("h\u00a0un\r\nh", True, "h un h"),
        ("un漢字un", True, "un 漢 字 un"),
        ("don't", True, "don ' t"),
        ("[MASK] [UNK]", True, "[ mask ] [ [UNK] ]"),
        ("un" + "s" * 98 + " un" + "s" * 99, True, "un" + " ##s" * 98 + " [UNK]"),
        (" \n", True, ""),
    ],
)
def test_wordpiece(vocabulary, text, lowercase, pieces):
    tokenizer = load_wordpiece(vocabulary, lowercase)
    (ids,) = tokenizer.encode([text])
    assert tokenizer.pieces(ids) == pieces.split()
    assert ids.tolist() == bert(text, {piece: i for i, piece in enumerate([*BERT, *WORDS])}, lowercase)


@pytest.mark.skipif("ROOTSTOCK_DATA" not in os.environ, reason="ROOTSTOCK_DATA is unset")
@pytest.mark.parametrize("lowercase", [True, False])
def test_wordpiece_on_real_text(lowercase):
    data = Path(os.environ["ROOTSTOCK_DATA"])
    tokenizer = load_wordpiece("$ROOTSTOCK_DATA/vocab/bert-base-uncased-vocab.txt", lowercase)
    with gzip.open(data / "agnews/train10k.tsv.gz", "rt", encoding="utf-8") as file:
        texts = [next(file).rpartition("\t")[0] for _ in range(1000)] + [TEXT]
    vocab = {piece: i for i, piece in enumerate(tokenizer.pieces(range(tokenizer.vocab.size)))}
    assert len(vocab) == 30_522
    for text, ids in zip(texts, tokenizer.encode(texts), strict=True):
        assert ids.tolist() == bert(text, vocab, lowercase), text


def test_ids_are_the_librarys(family):
    ours, made = published(family), FAMILIES[family]()
    made.no_truncation()
    made.no_padding()
    texts = [*LINES * 9, "", "[CLS", "a    mat", "漢 Ġ\u2581\u00a0x"]
    found = ours.encode(texts)
    for ids, theirs in zip(found, made.encode_batch(texts, add_special_tokens=False), strict=True):
        assert ids.dtype == np.int32
        assert ids.tolist() == theirs.ids
        assert ours.decode(ids) == made.decode(theirs.ids)
    assert found[-4].shape == (0,)
    assert ours.encode([]) == []
    np.testing.assert_array_equal(ours.encode([LINES[2]])[0], found[2])


def test_vocab(family):
    vocab, made = published(family).vocab, FAMILIES[family]()
    names = BERT if family == "wordpiece" else [ROBERTA[i] for i in (1, 3, 0, 2, 4)]
    assert [vocab.pad, vocab.unk, vocab.cls, vocab.sep, vocab.mask] == [made.token_to_id(name) for name in names]
    assert vocab.size == made.get_vocab_size()
    assert vocab.special == tuple(sorted(made.token_to_id(name) for name in names))
    assert vocab.word_starts.shape == (vocab.size,)
    assert vocab.word_starts[list(vocab.special)].all()


def test_special_ids_leave_nothing(family):
    tokenizer = published(family)
    vocab, (ids,) = tokenizer.vocab, tokenizer.encode([LINES[0]])
    assert tokenizer.decode([vocab.cls, *ids, vocab.sep, vocab.pad, vocab.mask]) == tokenizer.decode(ids)


def test_a_text_that_spells_a_special_token_is_text(family):
    tokenizer = published(family)
    spelled = tokenizer.encode([f"a {name} mat {name}" for name in [*BERT, *ROBERTA]])
    forbidden = set(tokenizer.vocab.special) - {tokenizer.vocab.unk}
    assert not forbidden.intersection(np.concatenate(spelled).tolist())


@given(text=st.text(st.characters(codec="utf-8")))
def test_bytes_bring_every_text_back(text):
    tokenizer = published("bytes")
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text
    assert tokenizer.vocab.unk not in ids


@pytest.mark.parametrize("family", ["bytes", "bytes, prefixed", "unigram"])
def test_whole_words_are_hidden_together(family):
    """One draw a word of white space, the first of a text and of a row's second document too."""
    tokenizer = published(family)
    texts = [f"{LINES[1]}\n{LINES[2]}", LINES[0]]
    rows = pack_documents([Record(text, None, None, "") for text in texts], tokenizer, 96, segments=2).arrays
    row = jax.tree.map(lambda x: x[0], rows)
    ordinary = ~np.isin(row["tokens"], tokenizer.vocab.special) & (row["segments"] > 0)
    _, luck, _ = masking("mlm", tokenizer.vocab, rate=0.5, unit="word").choose(random.key(0), row, 0)
    for segment, text in enumerate(texts, start=1):
        at = np.flatnonzero(ordinary & (row["segments"] == segment))
        cuts = at[1:][np.diff(luck[at]) != 0]
        words = np.split(row["tokens"][at], np.searchsorted(at, cuts))
        assert [tokenizer.decode(word).strip() for word in words if tokenizer.decode(word).strip()] == text.split()


def test_wordpiece_words(vocabulary):
    tokenizer = load_wordpiece(vocabulary)
    assert tokenizer.vocab.word_starts.tolist() == [not piece.startswith("##") for piece in [*BERT, *WORDS]]


def test_added_tokens_begin_words_and_can_be_hidden():
    tokenizer = published("bytes")
    (ids,) = tokenizer.encode(["a    mat"])
    (spaces,) = (i for i in ids if tokenizer.pieces([i]) == ["    "])
    assert tokenizer.vocab.word_starts[spaces]
    assert spaces not in tokenizer.vocab.special


@pytest.mark.parametrize(
    "family, prefix", [("wordpiece", ""), ("bytes", ""), ("bytes, prefixed", "Ġ"), ("unigram", SPACE)]
)
def test_prefix(family, prefix):
    assert published(family).prefix == prefix


def test_kept_and_found(vocabulary, tmp_path):
    """The one file says it all, lowercase or not."""
    prints = set()
    for lowercase in (True, False):
        tokenizer = load_wordpiece(vocabulary, lowercase)
        file = save(tokenizer, tmp_path)
        assert file == find(tmp_path) == tmp_path / "tokenizer.json"
        again = load(tmp_path)
        assert again.vocab.fingerprint == tokenizer.vocab.fingerprint
        assert again.file == tokenizer.file
        np.testing.assert_array_equal(*(t.encode(["HÉllo Un"])[0] for t in (again, tokenizer)))
        prints.add(tokenizer.vocab.fingerprint)
    assert len(prints) == 2


def file_with(**changes):
    def write(path):
        spec = json.loads(FAMILIES["unigram"]().to_str())
        path.write_text(json.dumps({k: v for k, v in (spec | changes).items() if v != "absent"}))

    return write


ERRORS = [
    (file_with(model="absent"), r"a\.json: no tokenizer.json that the library reads \(.*Model missing"),
    (lambda path: path.write_bytes(b"{\xff"), r"a\.json: no tokenizer.json that the library reads"),
    (
        file_with(added_tokens=[{"id": 3, "content": "<unk>", "special": True, "single_word": False, "lstrip": False,
                                 "rstrip": False, "normalized": False}]),
        r"a\.json: no special token for pad \(\[PAD\] or <pad>\), cls .*, mask \(\[MASK\] or .*\); its special "
        "tokens are <unk>: add what is missing",
    ),
    (file_with(pre_tokenizer={"type": "WhitespaceSplit"}), "a.json: no sign of where words begin; expected byte-level"),
]  # fmt: skip


@pytest.mark.parametrize("write, message", ERRORS)
def test_errors(tmp_path, write, message):
    write(tmp_path / "a.json")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a.json")


@pytest.mark.parametrize(
    "content, message",
    [
        (None, r"no vocabulary at .*vocab.txt; expected a BERT's vocab.txt"),
        (b"[PAD]\n[UNK]\nthe\n", r"vocab.txt has no line \[CLS\], \[SEP\], \[MASK\]; expected a BERT's vocab.txt, a p"),
        (b"[PAD]\n\xff\n", r"vocab.txt is not UTF-8 text \(.*\); expected a BERT's"),
    ],
)
def test_vocabulary_errors(tmp_path, content, message):
    if content is not None:
        (tmp_path / "vocab.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_wordpiece(tmp_path / "vocab.txt")


def test_an_id_that_is_nobodys_has_no_piece():
    spec = json.loads(wordpiece().to_str())
    spec["model"]["vocab"]["zebra"] = 40
    tokenizer = Published(json.dumps(spec).encode())
    assert tokenizer.vocab.size == 41
    assert tokenizer.pieces([39, 40]) == ["", "zebra"]


def test_separators_are_those_of_the_file():
    """RoBERTa's two between a text and its pair, whichever way its file says so; one where it says nothing."""
    made = json.loads(published("bytes").file[1])
    for spec, want in (
        (None, 1),
        ({"type": "RobertaProcessing", "sep": ["</s>", 2], "cls": ["<s>", 0]}, 2),
        (_template("</s>", "</s>"), 2),
        (_template("</s>"), 1),
        ({"type": "Sequence", "processors": [{"type": "ByteLevel"}, _template("</s>", "</s>")]}, 2),
    ):
        assert _separators(spec) == want
    assert Published(json.dumps(made).encode()).separators == _separators(made.get("post_processor"))


def _template(*between: str) -> dict:
    special = lambda name: {"SpecialToken": {"id": name, "type_id": 0}}
    text = lambda name: {"Sequence": {"id": name, "type_id": 0}}
    pair = [special("<s>"), text("A"), *map(special, between), text("B"), special("</s>")]
    return {"type": "TemplateProcessing", "pair": pair}


def test_what_a_berts_tokenizer_config_says_beside(tmp_path):
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "fur", "f\u00fcr", "\u6771", "\u6771\u4eac"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))

    def said(text, *how):
        tokenizer = load_wordpiece(tmp_path / "vocab.txt", *how)
        return tokenizer.pieces(tokenizer.encode([text])[0])

    assert said("F\u00fcr") == ["fur"]
    assert said("F\u00fcr", True, False) == ["f\u00fcr"]
    assert said("\u6771\u4eac") == ["\u6771", "[UNK]"]
    assert said("\u6771\u4eac", True, None, False) == ["\u6771\u4eac"]

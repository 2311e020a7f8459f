"""Tokenizers of published checkpoints, by the `tokenizers` library: a tokenizer.json, or what one is made of: a BERT's
vocab.txt, a SentencePiece model.
"""

import base64
import json
import os
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from objectives.vocab import Vocab
from train.data.files import expand
from train.data.tokenizer import FILES, NAMES, SPACE, SPECIAL, special_pieces

_BYTE_SPACE = chr(256 + ord(" "))  # byte-level BPE writes a byte of 0 to 32 as the character 256 further
_BYTE_SPACES = (_BYTE_SPACE, *(chr(256 + ord(c)) for c in "\t\n\v\f\r"))


class Published:
    """A Tokenizer over the bytes of a tokenizer.json, made by `load_wordpiece` or `train.data.tokenizer.load`.

    Ids are the library's, without special tokens and without the file's truncation and padding. A text that spells a
    special token is text, where the library would make it the token.

    A word begins at a piece without "##" (or what the file has for it); in byte-level BPE at one that begins with white
    space; else at one that begins with "\u2581"; and at whatever the file adds to the vocabulary. In byte-level BPE the
    first piece of a text has no mark: masking, like any reader of `word_starts`, goes by the [CLS] before it.
    """

    def __init__(self, content: bytes):
        import tokenizers

        try:
            made = tokenizers.Tokenizer.from_str(content.decode())
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"no tokenizer.json that the library reads ({error})") from None
        made.no_truncation()
        made.no_padding()
        made.encode_special_tokens = True  # as the text they are
        added = made.get_added_tokens_decoder()
        special = {token.content: i for i, token in added.items() if token.special}
        found = {role: [special[name] for name in names if name in special] for role, names in NAMES.items()}
        if missing := [f"{role} ({' or '.join(NAMES[role])})" for role, ids in found.items() if not ids]:
            raise ValueError(
                f"no special token for {', '.join(missing)}; its special tokens are {', '.join(special) or 'none'}: "
                "add what is missing to its added_tokens"
            )
        self._tokenizer = made
        size = max(made.get_vocab().values()) + 1
        self.separators = _separators(json.loads(content).get("post_processor"))
        word_starts, self.prefix = _words(made, self.pieces(range(size)))
        word_starts[list(added)] = True
        roles = {role: ids[0] for role, ids in found.items()}
        reserved = tuple(sorted(special.values()))
        fingerprint = blake2b(content, digest_size=16).hexdigest()
        self.vocab = Vocab(size, **roles, special=reserved, word_starts=word_starts, fingerprint=fingerprint)
        self._reserved = np.isin(np.arange(size), reserved)
        self.file = (FILES[1], content)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        found = self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        ids = (np.array(one.ids, np.int32) for one in found)
        # a unigram model has special tokens among its pieces and finds them in texts
        return [np.where(self._reserved[x], np.int32(self.vocab.unk), x) for x in ids]

    def offsets(self, texts: list[str]) -> list[np.ndarray]:
        found = self._tokenizer.encode_batch(texts, add_special_tokens=False)
        return [np.array(one.offsets, np.int32).reshape(-1, 2) for one in found]

    def decode(self, ids: Any) -> str:
        return self._tokenizer.decode([int(i) for i in ids])

    def pieces(self, ids: Any) -> list[str]:
        return [self._tokenizer.id_to_token(int(i)) or "" for i in ids]  # an id may be nobody's


def load_wordpiece(
    path: str | os.PathLike, lowercase: bool = True, strip_accents: bool | None = None, chinese: bool = True
) -> Published:
    """Loads a BERT's vocab.txt: a piece a line, those that go on with a word led by "##".

    Texts are normalised and split as BERT's are: control characters go, Chinese characters and punctuation stand alone,
    and with `lowercase`, as in "uncased" checkpoints, accents go too. `strip_accents` says so of accents alone, and
    without `chinese` Chinese characters stand as they are written. `path` is read as by `train.data.tokenizer.load`.

    Raises:
      ValueError: there is no such file, it is no UTF-8 text, or it lacks one of [PAD], [UNK], [CLS], [SEP], [MASK].
    """
    path = Path(expand(os.fspath(path)))
    if not path.is_file():
        raise ValueError(f"no vocabulary at {path}; expected a BERT's vocab.txt")
    try:
        vocab = {piece: i for i, piece in enumerate(path.read_text("utf-8").removesuffix("\n").split("\n"))}
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); expected a BERT's vocab.txt") from None
    if missing := [names[0] for names in NAMES.values() if names[0] not in vocab]:
        raise ValueError(f"{path} has no line {', '.join(missing)}; expected a BERT's vocab.txt, a piece a line")
    return Published(json.dumps(_wordpiece(vocab, lowercase, strip_accents, chinese), ensure_ascii=False).encode())


def load_sentencepiece(
    path: str | os.PathLike, lowercase: bool = True, accents: bool = True, quotes: bool = False
) -> Published:
    """Loads a SentencePiece model whose texts are changed first, as an ALBERT's spiece.model: lowercased, their accents
    taken off, and with `quotes` two of a kind made one of the other.

    Others are read by `train.data.tokenizer.load`, by SentencePiece itself. `path` is read as there.
    Raises ValueError: there is no such file, or `unigram` refuses it.
    """
    path = Path(expand(os.fspath(path)))
    if not path.is_file():
        raise ValueError(f"no model at {path}; expected one of SentencePiece")
    try:
        return Published(
            json.dumps(unigram(path.read_bytes(), lowercase, accents, quotes), ensure_ascii=False).encode()
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def unigram(model: bytes, lowercase: bool = False, accents: bool = True, quotes: bool = False) -> dict[str, Any]:
    """The tokenizer.json of a SentencePiece model, for programs that read no other.

    Ids are the model's. Texts get the same ones but for ties: `tokenizers` adds scores up in float64, SentencePiece in
    float32; and a text that spells a special token is text to SentencePiece alone.
    Raises ValueError for what is no such model, is not of kind unigram, or lacks a special token.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    made: Any = sentencepiece_model_pb2  # its classes are made when it is imported
    proto = made.ModelProto()
    try:
        proto.ParseFromString(model)
    except DecodeError:
        raise ValueError("it is no SentencePiece model") from None
    normal, trained = proto.normalizer_spec, proto.trainer_spec
    kind = trained.ModelType.Name(trained.model_type)
    if kind != "UNIGRAM" or not proto.pieces:
        raise ValueError(f"it is a SentencePiece model of kind {kind}, which has no tokenizer.json; expected UNIGRAM")
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    reserved = {p.piece: i for i, p in enumerate(proto.pieces) if p.type in (p.CONTROL, p.UNKNOWN)}
    roles = special_pieces([piece for piece, _ in pieces])
    names = {role: pieces[i][0] if i < len(pieces) else SPECIAL[-1] for role, i in roles.items()}
    special = reserved | {names[role]: i for role, i in roles.items()}
    two = ("``", "''") if quotes else ()
    normalizers: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": one}, "content": '"'} for one in two]
    normalizers += [] if accents else [{"type": "NFKD"}, {"type": "StripAccents"}]
    normalizers += [{"type": "Lowercase"}] if lowercase else []
    if normal.precompiled_charsmap:
        charsmap = base64.b64encode(normal.precompiled_charsmap).decode()
        normalizers.append({"type": "Precompiled", "precompiled_charsmap": charsmap})
    if normal.remove_extra_whitespaces:
        normalizers.append({"type": "Strip", "strip_left": True, "strip_right": True})
        normalizers.append({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "})
    scheme = "always" if normal.add_dummy_prefix else "never"
    metaspace = {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": scheme, "split": True}
    return {
        "version": "1.0",
        "added_tokens": _added(special),
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "pre_tokenizer": metaspace,
        "post_processor": _surrounded(special, names["cls"], names["sep"]),
        "decoder": metaspace,
        "model": {
            "type": "Unigram",
            "unk_id": trained.unk_id,
            "vocab": pieces,
            "byte_fallback": trained.byte_fallback,
        },
    }


def _added(special: dict[str, int]) -> list[dict[str, Any]]:
    options = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return [
        {"id": i, "content": name, "special": True, **options}
        for name, i in sorted(special.items(), key=lambda x: x[1])
    ]


def _surrounded(special: dict[str, int], cls: str, sep: str) -> dict[str, Any]:
    """`[CLS] text [SEP]`, or `[CLS] text [SEP] pair [SEP]`, where another program asks the file for special tokens."""
    token = lambda name, kind: {"SpecialToken": {"id": name, "type_id": kind}}
    text = lambda name, kind: {"Sequence": {"id": name, "type_id": kind}}
    single = [token(cls, 0), text("A", 0), token(sep, 0)]
    return {
        "type": "TemplateProcessing",
        "single": single,
        "pair": [*single, text("B", 1), token(sep, 1)],
        "special_tokens": {name: {"id": name, "ids": [special[name]], "tokens": [name]} for name in (cls, sep)},
    }


def _wordpiece(vocab: dict[str, int], lowercase: bool, strip_accents: bool | None, chinese: bool) -> dict[str, Any]:
    """The tokenizer.json of a BERT, written here and not by the library, whose next version may write it otherwise."""
    special = {name: vocab[name] for name in SPECIAL}
    return {
        "version": "1.0",
        "added_tokens": _added(special),
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": chinese,
            "strip_accents": strip_accents,  # None: where it lowercases
            "lowercase": lowercase,
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": _surrounded(special, "[CLS]", "[SEP]"),
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": NAMES["unk"][0],
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


def _separators(spec: dict[str, Any] | None) -> int:
    """How many special tokens a file's post-processor puts between a text and its pair."""
    for part in [spec, *(spec or {}).get("processors", [])]:
        if part and part["type"] == "RobertaProcessing":
            return 2
        if part and part["type"] == "TemplateProcessing":
            kinds = [next(iter(piece)) for piece in part["pair"]]
            first = kinds.index("Sequence")
            return max(1, kinds.index("Sequence", first + 1) - first - 1)
    return 1


def _words(made: Any, pieces: list[str]) -> tuple[np.ndarray, str]:
    """(which pieces begin a word, bool [size]; what is put before a text as if it followed a space)."""
    parts = [part for stage in (made.normalizer, made.pre_tokenizer) if stage for part in _parts(stage)]
    byte_level = [part for part in parts if part["type"] == "ByteLevel"]
    if byte_level:
        prefix = _BYTE_SPACE if any(part.get("add_prefix_space") for part in byte_level) else ""
        return np.array([piece.startswith(_BYTE_SPACES) for piece in pieces]), prefix
    if going_on := getattr(made.model, "continuing_subword_prefix", None):
        return np.array([not piece.startswith(going_on) for piece in pieces]), ""
    if any(SPACE in part.values() for part in parts):
        put = any(part["type"] == "Prepend" or part.get("prepend_scheme") in ("first", "always") for part in parts)
        return np.array([piece.startswith(SPACE) for piece in pieces]), SPACE if put else ""
    raise ValueError(
        f'no sign of where words begin; expected byte-level BPE, spaces written as "{SPACE}", or "##" (or the like) '
        "before pieces that go on with a word"
    )


def _parts(stage: Any) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the file has it; those of a sequence, if it is one."""
    spec = json.loads(stage.__getstate__())
    return spec.get("normalizers") or spec.get("pretokenizers") or [spec]

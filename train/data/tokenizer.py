"""Tokenizers: text to ids and back; SentencePiece models trained here, and the one file that a workdir keeps."""

import io
import os
import random
import re
import uuid
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from objectives.vocab import Vocab
from train.data.files import expand
from train.data.source import Record

# of the special tokens, as BERT, RoBERTa, Gemma and T5 have them; what is trained here has BERT's, as ids 0 to 4
NAMES = {
    "pad": ("[PAD]", "<pad>"),
    "unk": ("[UNK]", "<unk>"),
    "cls": ("[CLS]", "<s>", "<bos>", "</s>"),  # T5's end of a text is its only one
    "sep": ("[SEP]", "</s>", "<eos>"),
    "mask": ("[MASK]", "<mask>", "<extra_id_0>"),
}
SPECIAL = tuple(names[0] for names in NAMES.values())
FILES = ("tokenizer.model", "tokenizer.json")  # a workdir keeps one of them
SPACE = "\u2581"  # SentencePiece writes a space as this and puts it at the front of a word

_MAX_CHARACTERS = 1000  # of a training sentence; UTF-8 makes at most 4 bytes of each
# As many words as fit, else a cut through a word too long (or through a script without spaces).
_SENTENCE = re.compile(rf"\S(?:.{{0,{_MAX_CHARACTERS - 2}}}\S)?(?=\s|$)|\S{{1,{_MAX_CHARACTERS}}}", re.MULTILINE)
_RESERVED = str.maketrans({"\0": " ", "\u2585": " "})  # the trainer skips a sentence that holds one of these
# The sums of a thread are rounded in its order, so pieces depend on the number of threads: one number for all machines.
_TRAINER_THREADS = 16


class Tokenizer(Protocol):
    """What the pipeline asks of a tokenizer. `vocab.fingerprint` tells two apart."""

    @property
    def vocab(self) -> Vocab: ...

    @property
    def prefix(self) -> str:
        """What `encode` puts before a text as if it followed a space, in pieces; empty where it puts nothing."""
        ...

    @property
    def separators(self) -> int:
        """How many separators stand between a text and its pair; RoBERTa has two."""
        ...

    @property
    def file(self) -> tuple[str, bytes]:
        """(name, content) of the file that `load` makes this tokenizer from."""
        ...

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """The ids of each text, int32 [tokens], with no special ids added."""
        ...

    def decode(self, ids: Any) -> str:
        """The text of ids [tokens]; special ids leave nothing."""
        ...

    def pieces(self, ids: Any) -> list[str]:
        """The piece of each id, to show what the model sees."""
        ...


class Aligned(Tokenizer, Protocol):
    """A tokenizer, as all that are trained or loaded here, that tells where in a text its ids are."""

    def offsets(self, texts: list[str]) -> list[np.ndarray]:
        """Where each id of `encode` stands in its text: the characters from and to, int32 [tokens, 2].

        A space before a word may be the word's. Ids of parts of a character have the whole of it.
        """
        ...


class SentencePiece:
    """A Tokenizer over the bytes of a SentencePiece model, made by `train_sentencepiece` or `load`.

    A mask that the model lacks follows its last piece, as in DeBERTa-v3.
    """

    prefix = SPACE
    separators = 1

    def __init__(self, model: bytes):
        import sentencepiece

        self._processor = made = sentencepiece.SentencePieceProcessor(model_proto=model)
        self._size = made.get_piece_size()
        self._pieces = made.id_to_piece(list(range(self._size)))
        roles = special_pieces(self._pieces)
        if roles["mask"] == self._size:
            self._pieces.append(SPECIAL[-1])
        reserved = {i for i in range(self._size) if made.is_control(i) or made.is_unknown(i)} | set(roles.values())
        special = tuple(sorted(reserved))
        word_starts = np.array([piece.startswith(SPACE) for piece in self._pieces])
        word_starts[list(special)] = True
        fingerprint = blake2b(model, digest_size=16).hexdigest()
        self.vocab = Vocab(
            len(self._pieces), **roles, special=special, word_starts=word_starts, fingerprint=fingerprint
        )
        self.file = (FILES[0], model)

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        return self._processor.encode_as_numpy(texts, num_threads=os.cpu_count())

    def offsets(self, texts: list[str]) -> list[np.ndarray]:
        found = self._processor.encode(texts, return_type="offset_mapping", num_threads=os.cpu_count())
        return [_whole(np.array(one["offsets"], np.int32).reshape(-1, 2)) for one in found]

    def decode(self, ids: Any) -> str:
        return self._processor.decode([int(i) for i in ids if i < self._size])

    def pieces(self, ids: Any) -> list[str]:
        return [self._pieces[int(i)] for i in ids]


def _whole(offsets: np.ndarray) -> np.ndarray:
    """Of bytes [n, 2] of a character the model gives it to the last alone: all of them get it."""
    begins = np.append(offsets[1:, 0], -1)
    for i in np.flatnonzero((offsets[:, 0] == offsets[:, 1]) & (offsets[:, 0] == begins))[::-1].tolist():
        offsets[i, 1] = offsets[i + 1, 1]
    return offsets


def special_pieces(pieces: list[str]) -> dict[str, int]:
    """The ids of the special tokens among the pieces of a SentencePiece model; a mask that it lacks follows the last.

    Raises ValueError where it lacks another.
    """
    found = {role: [pieces.index(name) for name in names if name in pieces] for role, names in NAMES.items()}
    if missing := [" or ".join(NAMES[role]) for role, ids in found.items() if not ids and role != "mask"]:
        raise ValueError(
            f"the model has no piece {', '.join(missing)}: train it here, or load a published one's tokenizer.json"
        )
    return {role: ids[0] if ids else len(pieces) for role, ids in found.items()}


def load(path: str | os.PathLike) -> Tokenizer:
    """Loads a SentencePiece model, trained here or published (spm.model), a published tokenizer.json, or whichever of
    them a workdir keeps.

    `path` may hold variables and `package:`, as for `train.data.files.find`.

    Raises:
      ValueError: there is no such file, it is neither, or it lacks a special token.
    """
    from train.data.published import Published

    path = Path(expand(os.fspath(path)))
    file = find(path) if path.is_dir() else path
    if file is None or not file.is_file():
        raise ValueError(f"no tokenizer at {path}; expected a {' or a '.join(FILES)}, or a workdir with one")
    content = file.read_bytes()
    try:
        return Published(content) if content.lstrip().startswith(b"{") else SentencePiece(content)
    except RuntimeError:
        raise ValueError(
            f"{file} is neither a SentencePiece model nor a tokenizer.json; a vocab.txt is read by "
            "train.data.published:load_wordpiece"
        ) from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def find(folder: Path) -> Path | None:
    """The file of the tokenizer that a workdir keeps, or None. Raises ValueError where there are two."""
    found = [folder / name for name in FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{folder} holds {' and '.join(FILES)}; expected one of them: remove the other")
    return found[0] if found else None


def beside(rows: Path) -> Path:
    """The folder that keeps the tokenizer of prepared rows: their own, or their workdir. Raises ValueError for none."""
    for place in (rows, rows.resolve().parent.parent):
        if find(place) is not None:
            return place
    raise ValueError(f"neither {rows} nor {rows.resolve().parent.parent} keeps a tokenizer; give --tokenizer")


def save(tokenizer: Tokenizer, folder: Path) -> Path:
    """Writes the tokenizer's file to a folder, made where absent; whole or not at all."""
    name, content = tokenizer.file
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{name}.{uuid.uuid4().hex}"
    partial.write_bytes(content)
    return partial.replace(folder / name)


def train_sentencepiece(
    source: Iterable[Record],
    size: int = 8192,
    kind: str = "unigram",
    lowercase: bool = False,
    byte_fallback: bool = True,
    sentences: int = 20_000,
) -> SentencePiece:
    """Trains a vocabulary of `size` pieces on the texts and pairs of `source`.

    Texts are cut into sentences of at most 1,000 characters, at spaces, of which a uniform sample of at most
    `sentences` is used. The same source and arguments give the same bytes. Ids: 0 [PAD], 1 [UNK], 2 [CLS], 3 [SEP],
    4 [MASK]; with `byte_fallback` the next 256 are bytes, so that nothing is unknown.

    Raises:
      ValueError: the texts cannot carry a vocabulary of this size (it says which they can), or there is no text.
    """
    import sentencepiece

    if kind not in ("unigram", "bpe"):
        raise ValueError(f'kind={kind!r}: expected "unigram" or "bpe"')
    sample = _sample(_sentences(source), sentences)
    if not sample:
        raise ValueError("the source holds no text to train a tokenizer on; expected at least one word")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type=kind,
            vocab_size=size,
            byte_fallback=byte_fallback,
            normalization_rule_name="nmt_nfkc_cf" if lowercase else "nmt_nfkc",
            max_sentence_length=4 * _MAX_CHARACTERS,
            num_threads=_TRAINER_THREADS,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=SPECIAL[0],
            unk_piece=SPECIAL[1],
            bos_piece=SPECIAL[2],
            eos_piece=SPECIAL[3],
            control_symbols=[SPECIAL[4]],  # the first free id, and never made from a text that spells it
            minloglevel=2,
        )
    except RuntimeError as error:
        raise _size_error(size, str(error)) from error
    return SentencePiece(model.getvalue())


def _size_error(size: int, message: str) -> Exception:
    if found := re.search(r"too high .* <= (\d+)", message):
        return ValueError(
            f"size={size}: the texts carry at most {found[1]} pieces; set size={found[1]} or give more text"
        )
    if found := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return ValueError(
            f"size={size}: characters, bytes and specials alone take {found[1]}; set size above {found[1]}"
        )
    return RuntimeError(message)


def _sentences(source: Iterable[Record]) -> Iterator[str]:
    for record in source:
        for text in record.texts:
            yield from _SENTENCE.findall(text.translate(_RESERVED))


def _sample(items: Iterable[str], most: int) -> list[str]:
    """A uniform sample (Vitter 1985, algorithm R). Not left to the trainer, whose own draw is seeded by the clock."""
    rng = random.Random(0)
    sample: list[str] = []
    for n, item in enumerate(items):
        if n < most:
            sample.append(item)
        elif (place := rng.randrange(n + 1)) < most:
            sample[place] = item
    return sample

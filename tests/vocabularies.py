"""Small tokenizers of the families that are published, of the `tokenizers` library's own making."""

import functools

from train.data.published import Published
from train.data.tokenizer import SPACE

BERT = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
ROBERTA = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
WORDS = [
    "un", "##believ", "##able", "##s", "Un", "H", "##é", "h", "##e", "##llo", "漢", "字", ",", ".", "[", "]", "mask",
    "5", "the", "cat", "don", "'", "t",
]  # fmt: skip
LINES = ["the cat sat on a mat", "rain fell over green hills,", "and slow rivers ran down to cold seas again."]


def wordpiece():
    """BERT's WordPiece, of a few words."""
    from tokenizers import BertWordPieceTokenizer

    return BertWordPieceTokenizer({piece: i for i, piece in enumerate([*BERT, *WORDS])})._tokenizer


def byte_level(prefix: bool = False):
    """Byte-level BPE as RoBERTa's and ModernBERT's; with `prefix`, every text begins with a space."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[*ROBERTA[:4], AddedToken(ROBERTA[4], lstrip=True)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(LINES, trainer)
    made.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    made.enable_truncation(8)
    made.enable_padding(length=8)
    made.add_tokens(["    "])  # as ModernBERT's runs of spaces
    return made


def unigram():
    """A SentencePiece model as XLM-R's file has it, special pieces among the others."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

    letters = sorted({c for line in LINES for c in line} - {" "} | set("<>/"))
    pieces = [*ROBERTA[:4], SPACE, *letters, *(SPACE + word for word in LINES[0].split()), SPACE + "<"]
    made = Tokenizer(models.Unigram([(p, 0.0 if i < 4 else -2.0 - len(p) / 9) for i, p in enumerate(pieces)], unk_id=3))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    made.decoder = decoders.Metaspace()
    made.add_special_tokens([*ROBERTA[:4], AddedToken(ROBERTA[4], lstrip=True)])
    return made


FAMILIES = {
    "wordpiece": wordpiece,
    "bytes": byte_level,
    "bytes, prefixed": lambda: byte_level(True),
    "unigram": unigram,
}


@functools.cache
def published(family: str) -> Published:
    return Published(FAMILIES[family]().to_str().encode())

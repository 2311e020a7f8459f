"""What an objective may know of a tokenizer. Without jax, so that processes that only tokenize start quickly."""

from typing import NamedTuple

import numpy as np

LONGEST_WORD = 16  # tokens; what goes on longer, as a text without spaces, is no word


class Vocab(NamedTuple):
    """What an objective may know of the tokenizer.

    size:         number of ids, special ones included
    pad .. mask:  ids of the special tokens
    special:      every id that no corruption may touch
    word_starts:  bool [size], true where the piece begins a word
    fingerprint:  hash of the tokenizer; carry refuses a backbone trained on another
    """

    size: int
    pad: int
    unk: int
    cls: int
    sep: int
    mask: int
    special: tuple[int, ...]
    word_starts: np.ndarray
    fingerprint: str

    def absent(self, V: int, more: int = 0) -> np.ndarray:
        """bool [V]: the ids, of so many embeddings, that no token has, nor any of `more` sentinels after the tokens."""
        return np.arange(V) >= self.size + more

"""Eight simulated devices, strict ranks, compiled programs kept on disk, and the toy vocabulary and rows."""

import os
from functools import partial
from pathlib import Path

# tests check numbers, not speed: a light LLVM pass halves their time
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_llvm_disable_expensive_passes=true"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import jax
import numpy as np
import pytest

from model import random
from objectives.types import Vocab
from train import step as training

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/rootstock/tests").expanduser()))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)

V = 61
SPECIAL = (0, 1, 2, 3, 4)


@pytest.fixture(scope="session")
def vocab() -> Vocab:
    return Vocab(V, *SPECIAL, special=SPECIAL, word_starts=np.arange(V) % 3 != 0, fingerprint="toy")


def params_of(bb, objective=None, seed: int = 0):
    """Fresh params, in one program: op by op it would compile hundreds."""
    make = bb.init if objective is None else partial(training.init, backbone=bb, objective=objective)
    return jax.jit(make)(random.generator(seed))


def pack(lengths: list[list[int]], length: int, segments: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows from a layout: for each row the numbers of the documents it holds.

    Document d has a length, tokens and labels that depend on d alone, so that two layouts of the same documents
    differ in nothing but where they lie.
    """
    B = len(lengths)
    out = dict(
        tokens=np.zeros((B, length), np.int32), segments=np.zeros((B, length), np.int32),
        positions=np.zeros((B, length), np.int32), types=np.zeros((B, length), np.int32),
        example=np.zeros((B, segments, 2), np.uint32), labels=np.zeros((B, segments), np.int32),
    )  # fmt: skip
    for b, documents in enumerate(lengths):
        at = 0
        for s, d in enumerate(documents):
            rng = np.random.default_rng((seed, d))
            n = int(rng.integers(5, 17))
            here = slice(at, at + n)
            out["tokens"][b, here] = [2, *rng.integers(5, V, n - 2), 3]
            out["segments"][b, here] = s + 1
            out["positions"][b, here] = np.arange(n)
            out["types"][b, here] = np.arange(n) >= n // 2
            out["example"][b, s] = (7, d)
            out["labels"][b, s] = rng.integers(0, 3)
            at += n
    return out


DOCUMENTS = 16


@pytest.fixture(scope="session")
def alone() -> dict[str, np.ndarray]:
    """Sixteen documents, one a row."""
    return pack([[d] for d in range(DOCUMENTS)], 16, 1)


@pytest.fixture(scope="session")
def packed() -> dict[str, np.ndarray]:
    """The same documents packed to uneven rows of up to three, in another order, and an empty row."""
    layout = [[5, 0, 9], [1], [12, 3], [2, 15], [4, 6, 7], [], [8, 11], [14, 10, 13]]
    return pack(layout + [[] for _ in range(8)], 48, 3)

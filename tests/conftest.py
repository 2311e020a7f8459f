"""Eight simulated devices, strict ranks, compiled programs kept on disk, and the toy vocabulary and rows."""

import os
from pathlib import Path

# tests check numbers, not speed: LLVM's expensive passes would only make them wait
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_llvm_disable_expensive_passes=true"
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
# eight devices that wait for each other in a pool of as many threads as cores can wait for ever: XLA then aborts
os.environ.setdefault("NPROC", "32")

import jax
import numpy as np
import pytest
from toys import SPECIAL, V, pack

from objectives.types import Vocab

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/rootstock/tests").expanduser()))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


@pytest.fixture(scope="session")
def vocab() -> Vocab:
    return Vocab(V, *SPECIAL, special=SPECIAL, word_starts=np.arange(V) % 3 != 0, fingerprint="toy")


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

"""Eight simulated devices, strict ranks, compiled programs kept on disk, and the toy vocabulary and rows."""

import os
from importlib.metadata import version
from pathlib import Path

# the suite's time is compilation: programs that run once need not be fast (less than half the time to compile)
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + (
    " --xla_backend_optimization_level=0"
    " --xla_cpu_collective_call_warn_stuck_timeout_seconds=30"
    " --xla_cpu_collective_call_terminate_timeout_seconds=300"
    # this and NPROC: see train.sharding; here, since a test may make the devices before any mesh
    " --xla_cpu_enable_concurrency_optimized_scheduler=false"
)
if int(version("jaxlib").split(".")[1]) < 11:  # jaxlib 0.11 has lost this flag, and ends at one it does not know
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("NPROC", "64")
os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"

import hypothesis
import jax
import numpy as np
import pytest
from toys import SPECIAL, V, pack

from objectives.types import Vocab

hypothesis.settings.register_profile("untimed", deadline=None)  # nothing here fails for being slow
hypothesis.settings.load_profile("untimed")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_traceback_in_locations_limit", 0)  # a sixth of the time to lower a step
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

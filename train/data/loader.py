"""Seekable batches: global batch n is a function of (rows, batch, seed, n), and a process reads only its own part."""

import collections
import concurrent.futures
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from train.data.rows import empty_rows
from train.data.shuffle import order

Batch = dict[str, jax.Array]


@dataclass(frozen=True, eq=False)
class Loader:
    """Batches of `batch` rows without end, epoch after epoch; nothing is dropped where an epoch ends inside a batch.

    arrays:   by name, [N, ...] each, in memory or mapped
    batch:    rows of a global batch, over all processes
    seed:     of the order, which is new in every epoch
    shuffle:  False reads the rows in order, the same in every epoch

    Raises:
      ValueError: no rows, arrays of different lengths, a batch of none, a negative seed.
    """

    arrays: Mapping[str, np.ndarray]
    batch: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self):
        counts = {name: len(array) for name, array in self.arrays.items()}
        if len(set(counts.values())) != 1 or not self.rows:
            raise ValueError(f"rows of each array: {counts}; expected one number for all, at least 1")
        if self.batch < 1:
            raise ValueError(f"batch={self.batch}: expected at least 1 row")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: expected 0 <= seed < 2**63")

    @property
    def rows(self) -> int:
        """N, the number of rows of an epoch."""
        return len(next(iter(self.arrays.values()), ()))

    @property
    def steps_per_epoch(self) -> float:
        """Batches of an epoch, with its fraction: an epoch may end inside a batch."""
        return self.rows / self.batch

    def index(self, n: int) -> np.ndarray:
        """The row numbers of global batch `n`, int64 [batch]."""
        places = np.arange(n * self.batch, (n + 1) * self.batch)
        return order(places, self.rows, self.seed) if self.shuffle else places % self.rows

    def read(self, n: int, rows: slice | None = None) -> dict[str, np.ndarray]:
        """Global batch `n`, or only its `rows`, in the dtypes of `model/types.py`."""
        return _read(self.arrays, self.index(n)[rows or slice(None)])

    def device(self, n: int, sharding: jax.sharding.NamedSharding) -> Batch:
        """Global batch `n` on the devices of `sharding`, which splits axis 0. Only what this process holds is read."""
        index = self.index(n)
        return _place(lambda rows: _read(self.arrays, index[rows]), self.batch, sharding)


def prefetch(
    loader: Loader, start: int, stop: int, sharding: jax.sharding.NamedSharding, depth: int = 2
) -> Iterator[tuple[int, Batch]]:
    """Yields (n, batch n on the devices) for n from `start` to `stop`, reading up to `depth` batches ahead in a thread.

    An error of the thread is raised at the batch it concerns. Close the generator to stop the thread early.
    """
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="prefetch")
    ahead: collections.deque[concurrent.futures.Future[Batch]] = collections.deque()
    try:
        for n in range(start, stop):
            while len(ahead) <= depth and n + len(ahead) < stop:
                ahead.append(pool.submit(loader.device, n + len(ahead), sharding))
            yield n, ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def evaluation_batches(
    arrays: Mapping[str, np.ndarray], batch: int, sharding: jax.sharding.NamedSharding
) -> Iterator[Batch]:
    """Every row once, in order, on the devices; the last batch is filled up with empty rows (segments 0)."""
    total = Loader(arrays, batch, shuffle=False).rows

    def read(rows: np.ndarray) -> dict[str, np.ndarray]:
        there = _read(arrays, rows[rows < total])
        missing = empty_rows(there, int((rows >= total).sum()))
        return {name: np.concatenate([there[name], missing[name]]) for name in there}

    for start in range(0, total, batch):
        yield _place(lambda rows, start=start: read(start + rows), batch, sharding)  # type: ignore[misc]


def _read(arrays: Mapping[str, np.ndarray], index: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.asarray(array[index], _dtype(name, array.dtype)) for name, array in arrays.items()}


def _dtype(name: str, stored: np.dtype) -> type:
    """What `model/types.py` says, whatever narrower type is stored."""
    if np.issubdtype(stored, np.floating):
        return np.float32
    return np.uint32 if name == "example" else np.int32


def _place(
    read: Callable[[np.ndarray], dict[str, np.ndarray]], batch: int, sharding: jax.sharding.NamedSharding
) -> Batch:
    """Places a batch whose rows, given their ascending numbers in the batch, `read` returns."""
    try:
        sharding.shard_shape((batch,))
    except ValueError:
        raise ValueError(
            f"batch={batch} does not divide evenly by {sharding.spec} over the mesh {dict(sharding.mesh.shape)}; "
            "choose a multiple of the devices along axis 0"
        ) from None
    spans = [index[0] for index in sharding.addressable_devices_indices_map((batch,)).values() if index is not None]
    # The union, read once: devices may hold the same rows, and a process's rows need not be neighbours.
    rows = np.unique(np.concatenate([np.arange(batch)[span] for span in spans]))
    local = read(rows)

    def place(array: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(batch)
            low, high = np.searchsorted(rows, (start, stop))
            return array[low:high]

        return jax.make_array_from_callback((batch, *array.shape[1:]), sharding, part)

    return {name: place(array) for name, array in local.items()}

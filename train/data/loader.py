"""Seekable batches: global batch n is a function of (rows, batch, seed, n), and a process reads only its own part."""

import collections
import concurrent.futures
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from train.data.rows import empty_rows
from train.data.table import Arrays, Table, table

Batch = dict[str, jax.Array]


@dataclass(frozen=True, eq=False)
class Loader:
    """Batches of `batch` rows without end, epoch after epoch; nothing is dropped where an epoch ends inside a batch.

    rows:     a table, or arrays by name, [N, ...] each
    batch:    rows of a global batch, over all processes
    seed:     of the order, which is new in every epoch
    shuffle:  False reads the rows in order, the same in every epoch

    Raises:
      ValueError: no rows, arrays of different lengths, a batch of none, a negative seed.
    """

    rows: Table | Arrays
    batch: int
    seed: int = 0
    shuffle: bool = True

    def __post_init__(self):
        if not len(self.table):
            raise ValueError("there are no rows to load; expected at least 1")
        if self.batch < 1:
            raise ValueError(f"batch={self.batch}: expected at least 1 row")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed}: expected 0 <= seed < 2**63")

    @functools.cached_property
    def table(self) -> Table:
        return table(self.rows)

    @property
    def steps_per_epoch(self) -> float:
        """Batches of an epoch, with its fraction: an epoch may end inside a batch."""
        return len(self.table) / self.batch

    def index(self, n: int) -> np.ndarray:
        """The row numbers of global batch `n`, int64 [batch]."""
        places = np.arange(n * self.batch, (n + 1) * self.batch)
        return self.table.shuffled(places, self.seed) if self.shuffle else places % len(self.table)

    def read(self, n: int, rows: slice | None = None) -> dict[str, np.ndarray]:
        """Global batch `n`, or only its `rows`, in the dtypes of `model/types.py`."""
        return self.table.read(self.index(n)[rows or slice(None)])

    def device(self, n: int, sharding: jax.sharding.NamedSharding) -> Batch:
        """Global batch `n` on the devices of `sharding`, which splits axis 0. Only what this process holds is read."""
        index = self.index(n)
        return _place(lambda rows: self.table.read(index[rows]), self.batch, sharding)


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


def evaluation_batches(rows: Table | Arrays, batch: int, sharding: jax.sharding.NamedSharding) -> Iterator[Batch]:
    """Every row once, in order, on the devices; the last batch is filled up with empty rows (segments 0)."""
    source = Loader(rows, batch, shuffle=False).table
    total = len(source)

    def read(numbers: np.ndarray) -> dict[str, np.ndarray]:
        # at least one, for the names and shapes: a process's part of the last batch may be padding alone
        there = source.read(np.minimum(numbers[: max(1, int((numbers < total).sum()))], total - 1))
        there = {name: array[: int((numbers < total).sum())] for name, array in there.items()}
        missing = empty_rows(there, int((numbers >= total).sum()))
        return {name: np.concatenate([there[name], missing[name]]) for name in there}

    for start in range(0, total, batch):
        yield _place(lambda numbers, start=start: read(start + numbers), batch, sharding)  # type: ignore[misc]


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

"""Seekable batches: global batch n is a function of (rows, batch, seed, n), and a process reads only its own part."""

import collections
import concurrent.futures
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from train.data.layout import Layout, laid_out
from train.data.table import Arrays, Filled, Table, table

Batch = dict[str, jax.Array]


@dataclass(frozen=True, eq=False)
class Loader:
    """Batches of `batch` rows without end, epoch after epoch; nothing is dropped where an epoch ends inside a batch.

    rows:     a table, or arrays by name, [N, ...] each
    batch:    rows of the table in a global batch, over all processes
    seed:     of the order, which is new in every epoch
    shuffle:  False reads the rows in order, the same in every epoch
    layout:   how the batch's examples lie in it, see `train.data.layout`; None for rows as they are stored
    ids:      the vocabulary's size, if it is to be held: an accelerator reads whatever lies outside of an array

    Raises:
      ValueError: no rows, arrays of different lengths, a batch of none, a negative seed; and, in reading, a token that
        is not below `ids`.
    """

    rows: Table | Arrays
    batch: int
    seed: int = 0
    shuffle: bool = True
    layout: Layout | None = None
    ids: int | None = None

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

    def shapes(self, n: int) -> dict[str, jax.ShapeDtypeStruct]:
        """The shapes and dtypes of global batch `n`."""
        count, read = self._reader(n)
        return {k: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype) for k, x in read(np.arange(1)).items()}

    def read(self, n: int, rows: slice | None = None) -> dict[str, np.ndarray]:
        """Global batch `n`, or only its `rows`, in the dtypes of `model/types.py`."""
        count, read = self._reader(n)
        return read(np.arange(count)[rows or slice(None)])

    def device(self, n: int, sharding: jax.sharding.NamedSharding) -> Batch:
        """Global batch `n` on the devices of `sharding`, which splits axis 0. Only what this process holds is read."""
        count, read = self._reader(n)
        return _place(read, count, sharding)

    def _reader(self, n: int) -> tuple[int, Callable[[np.ndarray], dict[str, np.ndarray]]]:
        """(rows of batch n, what reads those of ascending numbers)."""
        index = self.index(n)
        if self.layout is None:
            return self.batch, lambda rows: self._table_rows(index[rows])
        index = index[self.table.sizes[index] > 0]  # one that is empty has no place
        (count, length), places = self.layout.arrange(self.table.sizes[index])
        segments = self.layout.segments

        def read(rows: np.ndarray) -> dict[str, np.ndarray]:
            mine = np.flatnonzero(np.isin(places.row, rows))
            here = places._replace(
                row=np.searchsorted(rows, places.row[mine]), slot=places.slot[mine], offset=places.offset[mine]
            )
            return laid_out(self._table_rows(index[mine]), here, (len(rows), length), segments)

        return count, read

    def _table_rows(self, numbers: np.ndarray) -> dict[str, np.ndarray]:
        # at least one row, for the names and shapes: all that a process holds of a batch may be padding
        arrays = self.table.read(numbers if len(numbers) else np.zeros(1, np.int64))
        arrays = {name: array[: len(numbers)] for name, array in arrays.items()}
        if self.ids is not None and (tokens := arrays["tokens"]).size:
            low, high = int(tokens.min()), int(tokens.max())
            if low < 0 or high >= self.ids:
                wrong = numbers[((tokens < 0) | (tokens >= self.ids)).reshape(len(numbers), -1).any(1)].tolist()
                raise ValueError(
                    f"rows {wrong[:10]} hold ids from {low} to {high}, and the vocabulary has {self.ids}: they were "
                    "made with another tokenizer, or are damaged; prepare them again"
                )
        return arrays


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
    rows: Table | Arrays,
    batch: int,
    sharding: jax.sharding.NamedSharding,
    layout: Layout | None = None,
    ids: int | None = None,
) -> Iterator[Batch]:
    """Every row once, in order, on the devices; the last batch is filled up with empty rows (segments 0)."""
    filled = Filled(Loader(rows, batch).table, batch)
    loader = Loader(filled, batch, shuffle=False, layout=layout, ids=ids)
    for n in range(len(filled) // batch):
        yield loader.device(n, sharding)


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

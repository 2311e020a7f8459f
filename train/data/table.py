"""Tables: what a loader reads. Rows by their number, from memory, from shards on disk, or from a mixture of tables."""

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from train.data import shards
from train.data.rows import dtype, unfold
from train.data.shuffle import order

Arrays = Mapping[str, np.ndarray]


class Table(Protocol):
    """N rows, each with the same arrays."""

    @property
    def fingerprint(self) -> str:
        """What tells these rows from others; "" where nobody asked."""
        ...

    def __len__(self) -> int: ...

    @property
    def sizes(self) -> np.ndarray:
        """The tokens of each row, int64 [N]."""
        ...

    @property
    def longest(self) -> int:
        """The tokens of the longest segment."""
        ...

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The rows of these numbers, int64 [n] -> by name [n, ...], in the dtypes of `model/types.py`."""
        ...

    def shuffled(self, places: np.ndarray, seed: int) -> np.ndarray:
        """Which rows lie at `places` [n] of an endless sequence, int64 [n]."""
        ...


class Memory:
    """A table of arrays [N, ...], in memory or mapped. Raises ValueError where their lengths differ."""

    fingerprint = ""

    def __init__(self, arrays: Arrays):
        counts = {name: len(array) for name, array in arrays.items()}
        if len(set(counts.values())) > 1:
            raise ValueError(f"rows of each array: {counts}; expected one number for all")
        self._arrays, self._rows = arrays, next(iter(counts.values()), 0)

    def __len__(self) -> int:
        return self._rows

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        return (self._arrays["segments"] > 0).sum(1)

    @property
    def longest(self) -> int:
        return int(np.max(self._arrays["positions"], initial=-1)) + 1

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.asarray(array[rows], dtype(name, array.dtype)) for name, array in self._arrays.items()}

    def shuffled(self, places: np.ndarray, seed: int) -> np.ndarray:
        return order(places, len(self), seed)


class Shards:
    """The table that `train.data.prepare` left in a folder. Rows are read from the files.

    `report` counts what went in. Raises ValueError where the folder is unfinished, or a file is missing or is not
    what was written (by its size; by its checksum too where the whole is small).
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.manifest = shards.manifest(folder)
        self.report: dict[str, Any] = self.manifest["report"]
        shards.check(folder, self.manifest)
        self._names = [shard["name"] for shard in self.manifest["shards"]]
        counts = [shard["rows"] for shard in self.manifest["shards"]]
        self._ends = np.cumsum(counts)
        self._starts = self._ends - counts
        examples = np.array([shard["examples"] for shard in self.manifest["shards"]])
        self._first_example = np.cumsum(examples) - examples
        if examples.sum() > 2**32:
            raise ValueError(
                f"{folder} holds {examples.sum():,} examples, and 2**32 can be told apart: split the source"
            )

    @property
    def fingerprint(self) -> str:
        """Hash of the bytes of all its rows."""
        return shards.fingerprint(self.manifest)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        return np.concatenate([sizes.sum(1, dtype=np.int64) for sizes in self._segments()])

    @property
    def longest(self) -> int:
        return max(int(sizes.max(initial=0)) for sizes in self._segments())

    def _segments(self) -> Iterator[np.ndarray]:
        """Of each shard the tokens of each row's segments, [n, S]."""
        return (shards.arrays(self.folder, name)["sizes"] for name in self._names)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        at = np.searchsorted(self._ends, rows, side="right")
        by_shard = np.argsort(at, kind="stable")
        pieces = []
        for same in np.split(by_shard, np.flatnonzero(np.diff(at[by_shard])) + 1):
            number = int(at[same[0]])
            pieces.append(shards.read(self.folder, self._names[number], rows[same] - self._starts[number]))
        back = np.argsort(by_shard)
        stored = {name: np.concatenate([piece[name] for piece in pieces])[back] for name in pieces[0]}
        return unfold(stored, self._first_example[at][:, None])

    def shuffled(self, places: np.ndarray, seed: int) -> np.ndarray:
        return order(places, len(self), seed)


class Mixture:
    """Tables by weight, evenly interleaved: of the first p rows each table has its share, to within a few rows, and of
    every cycle of the weights (of 0.7 and 0.3 a cycle is ten rows) exactly.

    A table's own rows come in its own shuffled order, epoch after epoch, whatever the others do. Weights are the
    decimals they are written as, rounded to millionths of the whole. Rows are numbered table after table; `example`
    holds the table's number as its source.

    Raises ValueError for no table, a weight that is not above zero, a mixture inside a mixture, or tables whose arrays
    differ in name, shape or type.
    """

    def __init__(self, tables: Sequence[Table], weights: Sequence[float]):
        if len(tables) != len(weights) or not tables:
            raise ValueError(f"{len(tables)} tables and {len(weights)} weights; expected as many of each, at least one")
        if any(not weight > 0 for weight in weights):
            raise ValueError(f"weights={tuple(weights)}: expected numbers above zero; leave out a table not wanted")
        if any(isinstance(table, Mixture) for table in tables):
            raise ValueError(
                "a mixture may not hold a mixture: give all tables in one, with the products of the weights"
            )
        looks = [{k: (x.shape[1:], x.dtype.name) for k, x in t.read(np.arange(1)).items()} for t in tables]
        if any(look != looks[0] for look in looks):
            raise ValueError(f"tables of a mixture must be alike, and these have {' / '.join(map(str, looks))}")
        self._tables = tables
        sizes = [len(table) for table in tables]
        self._ends = np.cumsum(sizes)
        self._starts = self._ends - sizes
        self._counts = _whole(weights)

    @property
    def fingerprint(self) -> str:
        return " ".join(table.fingerprint for table in self._tables)

    def __len__(self) -> int:
        return int(self._ends[-1])

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        return np.concatenate([table.sizes for table in self._tables])

    @property
    def longest(self) -> int:
        return max(table.longest for table in self._tables)

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        at = np.searchsorted(self._ends, rows, side="right")
        out: dict[str, np.ndarray] = {}
        for number in np.unique(at):
            same = np.flatnonzero(at == number)
            for name, array in self._tables[number].read(rows[same] - self._starts[number]).items():
                if name == "example":
                    array[..., 0] = number
                out.setdefault(name, np.empty((len(rows), *array.shape[1:]), array.dtype))[same] = array
        return out

    def shuffled(self, places: np.ndarray, seed: int) -> np.ndarray:
        out = np.empty_like(places)
        rest, at = np.arange(len(places)), places.astype(np.int64)
        whole = sum(self._counts)
        for table, count, start in zip(self._tables, self._counts, self._starts, strict=True):
            # of what the tables before have left, places 0, 1, ..., this one takes every whole/count-th
            before = at * count // whole
            mine = (at + 1) * count // whole > before
            out[rest[mine]] = start + table.shuffled(before[mine], seed)
            rest, at = rest[~mine], (at - before)[~mine]
            whole -= count
        return out


class Filled:
    """A table with empty rows (segments 0) after its own, as many as make whole batches of it: each row once, in order,
    that all processes take equal steps.
    """

    def __init__(self, table: Table, batch: int):
        self._table, self._rows = table, -(-len(table) // batch) * batch

    @property
    def fingerprint(self) -> str:
        return self._table.fingerprint

    def __len__(self) -> int:
        return self._rows

    @functools.cached_property
    def sizes(self) -> np.ndarray:
        sizes = self._table.sizes
        return np.pad(sizes, (0, self._rows - len(sizes)))

    @property
    def longest(self) -> int:
        return self._table.longest

    def read(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        there = rows < len(self._table)
        arrays = self._table.read(np.where(there, rows, 0))
        for array in arrays.values():
            array[~there] = 0
        return arrays

    def shuffled(self, places: np.ndarray, seed: int) -> np.ndarray:
        raise ValueError("a table that is filled up is read in order")


def _whole(weights: Sequence[float]) -> list[int]:
    """Whole numbers in the proportion of the weights, as small as they can be; at most a million or so together."""
    shares = [Fraction(str(weight)) for weight in weights]
    parts = [share / sum(shares) for share in shares]
    cycle = math.lcm(*(part.denominator for part in parts))
    return [int(part * cycle) if cycle <= 10**6 else max(1, round(part * 10**6)) for part in parts]


def table(rows: Table | Arrays) -> Table:
    """A table, also of plain arrays."""
    return Memory(rows) if isinstance(rows, Mapping) else rows

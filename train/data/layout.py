"""How the examples of a batch lie in its rows: padded, each in a row of its own; bucketed, in rows no longer than the
longest of them needs; or packed, several to a row.

Batch n holds the same examples in all three, and its loss and gradients are the same. So that a step is compiled three
times at most, a batch has one of three shapes, chosen for the lengths that there are.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from train.data.packing import Places, pack
from train.data.table import Table

LAYOUTS = ("padded", "bucketed", "packed")
PER_TOKEN = ("tokens", "segments", "positions", "types", "reach", "tags")
_SAMPLED = 2**16  # examples drawn to choose shapes
_STEP = 8  # lengths are multiples of it

Shape = tuple[int, int]


@dataclass(frozen=True)
class Layout:
    """The shapes (rows, length) that a batch may have, smallest first, and how many examples a row may hold."""

    shapes: tuple[Shape, ...]
    segments: int

    def arrange(self, sizes: np.ndarray) -> tuple[Shape, Places]:
        """The least shape that holds examples of `sizes` [n] tokens, and where in it each lies."""
        places = pack(sizes, self.shapes[-1][1], self.segments)
        longest = int((places.offset + sizes).max(initial=0))
        fitting = (shape for shape in self.shapes if shape[0] >= places.rows and shape[1] >= longest)
        return next(fitting), places


def layout(name: str, table: Table, batch: int, multiple: int = 1) -> Layout | None:
    """The layout of that name for batches of `batch` examples, or None for "padded", which is how rows are stored.

    `multiple` is what a number of rows must divide by, for devices and microbatches.
    Raises ValueError for a name that is none, or rows that hold more than one example.
    """
    if name not in LAYOUTS:
        raise ValueError(f"layout={name!r} must be one of {', '.join(LAYOUTS)}")
    if name == "padded":
        return None
    row = table.read(np.arange(1))
    length, held = row["tokens"].shape[1], row["example"].shape[1]
    if held > 1:
        raise ValueError(f"layout={name!r} is for rows of one example, and these hold up to {held}: prepare segments=1")
    sizes = table.sizes
    drawn = np.random.default_rng(0).choice(sizes, (max(16, min(512, _SAMPLED // batch)), batch))
    if name == "bucketed":
        lengths = _three(drawn.max(1), int(sizes.max()), lambda n: min(length, -(-n // _STEP) * _STEP))
        return Layout(tuple((batch, n) for n in lengths), 1)
    # slots enough that they are never what is missing, few enough that those left empty cost nothing
    segments = min(batch, -(-2 * length // max(1, int(sizes.mean()))))
    needed = np.array([pack(one, length, segments).rows for one in drawn])
    up = lambda n: -(-n // multiple) * multiple
    # what is hardly ever exceeded, and something less that is commonly enough; a row for each, that nothing is lost
    most = min(batch, int(max(needed.max(), needed.mean() + 5 * needed.std())) + 1)
    common = min({up(int(n)) for n in needed}, key=lambda a: np.where(needed <= a, a, up(most)).mean())
    rows = {common, up(most), up(batch)}
    return Layout(tuple((n, length) for n in sorted(rows)), segments)


def laid_out(arrays: Mapping[str, np.ndarray], places: Places, shape: Shape, segments: int) -> dict[str, np.ndarray]:
    """Rows of one example each, [n, ...], in a batch's rows: per token [rows, length], else [rows, segments, ...].

    `places` may be of some of the batch's examples, with rows numbered from 0.
    """
    rows, length = shape
    tokens = arrays["segments"] > 0
    to = ((places.row * length + places.offset)[:, None] + arrays["positions"])[tokens]
    out = {}
    for name, x in arrays.items():
        if name in PER_TOKEN:
            values = np.broadcast_to(places.slot[:, None] + 1, tokens.shape) if name == "segments" else x
            flat = np.zeros(rows * length, x.dtype)
            flat[to] = values[tokens]
            out[name] = flat.reshape(rows, length)
        else:
            out[name] = np.zeros((rows, segments, *x.shape[2:]), x.dtype)
            out[name][places.row, places.slot] = x[:, 0]
    return out


def _three(needed: np.ndarray, most: int, up: Callable[[int], int]) -> list[int]:
    """At most three numbers, rounded `up`, the last for `most`: the least that is enough costs least on average."""
    choices = sorted({up(int(n)) for n in needed} | {up(most)})

    def cost(a: int, b: int) -> float:
        return float(np.where(needed <= a, a, np.where(needed <= b, b, choices[-1])).mean())

    pairs = [(a, b) for i, a in enumerate(choices) for b in choices[i:]]
    return sorted({*min(pairs, key=lambda pair: cost(*pair)), choices[-1]})

"""From one stage's parameters to the next's: which leaf comes from where, and a report that accounts for every one."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train import tree

# fresh path -> path among the restored, as re.sub has it; the first pattern that matches the whole path decides
KEEP_BACKBONE: tuple[tuple[str, str | None], ...] = ((r"(backbone/.*)", r"\1"),)


class Line(NamedTuple):
    """What became of a leaf: "taken", "renamed", "resized", "fresh" or "dropped"."""

    path: str
    what: str
    source: str
    shape: tuple[int, ...]
    came_as: tuple[int, ...]


def reading(shapes: Any, fresh: Any, rules: Sequence[tuple[str, str | None]] = KEEP_BACKBONE) -> Any:
    """How a checkpoint of these shapes is to be read for `carry`: the `place` of `train.checkpoint.read_params`.

    A leaf is read in the dtype and to the places of the fresh one that takes it, and not at all where none does; one
    whose shape differs, whole to every place.
    """
    takes: dict[str, Any] = {}
    for name, leaf in tree.leaves(fresh).items():
        if (source := _source(name, rules)) is not None:
            takes.setdefault(source, leaf)

    def read(path, x):
        if (leaf := takes.get(tree.path_of(path))) is None:
            return x
        here = leaf.sharding
        if leaf.shape != x.shape and isinstance(here, jax.NamedSharding):
            here = here.update(spec=jax.P())
        return jax.ShapeDtypeStruct(x.shape, leaf.dtype, sharding=here)

    return jax.tree_util.tree_map_with_path(read, shapes)


def carry(
    restored: Any,
    fresh: Any,
    rules: Sequence[tuple[str, str | None]] = KEEP_BACKBONE,
    resize: Sequence[str] = (),
) -> tuple[Any, list[Line]]:
    """Grafts restored leaves into a fresh tree -> (params, report). Pure: trees in, tree out.

    Args:
      restored: the params of the checkpoint; of a leaf that nothing takes its shape will do.
      fresh: the new stage's initialised params; a leaf no rule speaks of stays fresh, and keeps its dtype.
      rules: pairs (pattern, source): a fresh path that matches takes the restored leaf at the path that `re.sub` makes
        of it; None keeps it fresh. The default takes the backbone and nothing else.
      resize: patterns of paths whose axes may differ in length: what both have is taken, the rest stays fresh.

    Raises ValueError, with both trees, where a source is missing or a shape differs and resizing is not allowed.
    """
    have = tree.leaves(restored)
    used: set[str] = set()
    report: list[Line] = []
    faults: list[str] = []

    def graft(path, leaf):
        name = tree.path_of(path)
        source = _source(name, rules)
        if source is None:
            report.append(Line(name, "fresh", "", leaf.shape, ()))
            return leaf
        if source not in have:
            faults.append(f"{name} should come from {source}, which the checkpoint does not have")
            return leaf
        old = have[source].copy() if source in used else have[source]  # no two leaves are one array
        used.add(source)
        if old.shape == leaf.shape:
            report.append(Line(name, "taken" if source == name else "renamed", source, leaf.shape, old.shape))
            return old.astype(leaf.dtype, copy=False)
        if old.ndim == leaf.ndim and any(re.fullmatch(p, name) for p in resize):
            report.append(Line(name, "resized", source, leaf.shape, old.shape))
            common = tuple(slice(0, min(a, b)) for a, b in zip(leaf.shape, old.shape, strict=True))
            return leaf.at[common].set(jnp.asarray(old[common], leaf.dtype))
        faults.append(
            f"{name} is {leaf.shape} and {source} is {old.shape}: make the configs agree, or name it in resize"
        )
        return leaf

    params = jax.tree_util.tree_map_with_path(graft, fresh)
    if faults:
        raise ValueError(
            "the checkpoint does not fit:\n  " + "\n  ".join(faults)
            + "\nthe checkpoint holds:\n" + _listing(have) + "\nthe new tree is:\n" + _listing(tree.leaves(fresh))
        )  # fmt: skip
    report += [Line(name, "dropped", name, (), x.shape) for name, x in have.items() if name not in used]
    return params, report


def _source(name: str, rules: Sequence[tuple[str, str | None]]) -> str | None:
    for pattern, source in rules:
        if re.fullmatch(pattern, name):
            return None if source is None else re.sub(pattern, source, name)
    return None


def _listing(leaves: dict[str, Any]) -> str:
    return "\n".join(f"  {name} {tuple(x.shape)}" for name, x in leaves.items())


def summary(report: Sequence[Line]) -> str:
    """The report as a table, one line a leaf, and a last one with the totals."""
    width = max(len(line.path) for line in report)
    rows = []
    for line in report:
        shape = "x".join(map(str, line.shape or line.came_as)) or "scalar"
        note = f"from {line.source} {line.came_as}" if line.what in ("renamed", "resized") else ""
        rows.append(f"  {line.path:<{width}}  {line.what:<8} {shape} {note}".rstrip())
    counts = dict.fromkeys(("taken", "renamed", "resized", "fresh", "dropped"), 0)
    for line in report:
        counts[line.what] += int(np.prod(line.shape or line.came_as))
    total = ", ".join(f"{n:,} parameters {what}" for what, n in counts.items() if n)
    return "\n".join([*rows, f"  {total}"])

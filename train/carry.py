"""From one stage's parameters to the next's: which leaf comes from where, and a report that accounts for every one."""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from train import tree

# fresh path -> path among the restored, a template as of re.sub; the first pattern that matches the whole path decides
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
      rules: pairs (pattern, source): a fresh path that matches takes the restored leaf at the path that the
        template makes of it; None keeps it fresh. The default takes the backbone and nothing else.
      resize: patterns of paths whose axes may differ in length: what both have is taken, the rest stays fresh.

    Raises ValueError, with both trees, where a source is missing, a shape differs and resizing is not allowed, or a
    rule speaks of no leaf.
    """
    report = plan(restored, fresh, rules, resize)
    have, of = tree.leaves(restored), {line.path: line for line in report if line.what != "dropped"}
    used: set[str] = set()

    def graft(path, leaf):
        line = of[tree.path_of(path)]
        if line.what == "fresh":
            return leaf
        old = have[line.source].copy() if line.source in used else have[line.source]  # no two leaves are one array
        used.add(line.source)
        if line.what != "resized":
            return old.astype(leaf.dtype, copy=False)
        common = tuple(slice(0, min(a, b)) for a, b in zip(leaf.shape, old.shape, strict=True))
        return leaf.at[common].set(jnp.asarray(old[common], leaf.dtype))

    return jax.tree_util.tree_map_with_path(graft, fresh), report


def plan(
    restored: Any,
    fresh: Any,
    rules: Sequence[tuple[str, str | None]] = KEEP_BACKBONE,
    resize: Sequence[str] = (),
) -> list[Line]:
    """What `carry` would do, of shapes alone. Raises what it raises."""
    have = tree.leaves(restored)
    report: list[Line] = []
    faults: list[str] = []
    names = list(tree.leaves(fresh))
    for pattern, _ in rules:
        if not any(re.fullmatch(pattern, name) for name in names):
            faults.append(f"the rule {pattern!r} matches no parameter of the new tree")
    strangers: dict[str, int] = {}  # keys of the tree that the checkpoint lacks whole, and how many leaves ask for them
    for name, leaf in tree.leaves(fresh).items():
        source = _source(name, rules)
        if source is None:
            report.append(Line(name, "fresh", "", leaf.shape, ()))
        elif source not in have:
            owner = source.partition("/")[0]
            if owner in restored:
                faults.append(f"{name} should come from {source}, which the checkpoint does not have")
            else:
                strangers[owner] = strangers.get(owner, 0) + 1
        elif have[source].shape == leaf.shape:
            what = "taken" if source == name else "renamed"
            report.append(Line(name, what, source, leaf.shape, leaf.shape))
        elif len(have[source].shape) == len(leaf.shape) and any(re.fullmatch(p, name) for p in resize):
            report.append(Line(name, "resized", source, leaf.shape, have[source].shape))
        else:
            faults.append(
                f"{name} is {leaf.shape} and {source} is {have[source].shape}: make the configs agree, or name it in "
                "resize"
            )
    faults += [
        f"{n} leaves should come from {owner}/, and the checkpoint holds {', '.join(restored)} alone: nothing of that "
        "name was trained in it, as no decoder is with an encoder. Leave the rule out, and they begin fresh"
        for owner, n in strangers.items()
    ]
    if faults:
        raise ValueError(
            "the checkpoint does not fit:\n  " + "\n  ".join(faults)
            + "\nthe checkpoint holds:\n" + _listing(have) + "\nthe new tree is:\n" + _listing(tree.leaves(fresh))
        )  # fmt: skip
    used = {line.source for line in report}
    return report + [Line(name, "dropped", name, (), x.shape) for name, x in have.items() if name not in used]


def _source(name: str, rules: Sequence[tuple[str, str | None]]) -> str | None:
    for pattern, source in rules:
        if found := re.fullmatch(pattern, name):
            return None if source is None else found.expand(source)
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
    shapes = {line.path: line.came_as for line in report if line.what == "dropped"}
    both = [line.path for line in report if line.what == "fresh" and shapes.get(line.path) == line.shape]
    if both:  # as a decoder, which both stages have
        owners = "|".join(sorted({"backbone", *(path.split("/")[0] for path in both)}))
        rows.append(
            f'  {len(both)} leaves are fresh and dropped at once: rules=((r"(({owners})/.*)", r"\\1"),) of carry would '
            "take them"
        )
    return "\n".join([*rows, f"  {total}"])

"""The language of `model.published.families`: from a table's line to names of tensors, and from their axes to ours."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import einops
import numpy as np

from model.config import BackboneConfig
from model.published.families import Table

# our leaf's axes from theirs: n heads of h channels; part counts queries, keys, values. A map of torch's is [out, in]
LAYOUTS = {
    "attention/qkv/kernel": "part (n h) d -> d n part h",
    "attention/qkv/bias": "part (n h) -> n part h",
    "attention/out/kernel": "d (n h) -> n h d",
    "conv/map/kernel": "o i t -> i t o",
    "kernel": "o i -> i o",
}
_SUFFIX = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}  # of a leaf in a module; other leaves stand alone


class Line(NamedTuple):
    """One or more of our leaves, and the tensors they are made of.

    paths:  of ours, [part]
    names:  of theirs, in nested lists where layers and parts are counted
    how:    the einops pattern from their tensors, stacked by those lists, to our leaves, stacked by `paths`
    """

    paths: tuple[str, ...]
    names: Any
    how: str


def lines(table: Table, leaves: Mapping[str, Any], root: str, prefix: str, layers: int) -> list[Line]:
    """A table's lines for the leaves of a tree, by path, that lie under `root`: every leaf in exactly one.

    `layers` are those stacked in our leaves. Raises ValueError for a leaf that the table does not have.
    """
    made: list[Line] = []
    done: set[str] = set()
    for key, value in sorted(table.items(), key=lambda entry: "[" not in entry[0]):  # first those of several of ours
        name, how = value if isinstance(value, tuple) else (value, None)
        modules = list(flat(expand(key, layers)))
        for leaf in ("", *_SUFFIX):
            paths = tuple("/".join(filter(None, (root, module, leaf))) for module in modules)
            if not any(path in done or path not in leaves for path in paths):
                names = expand(prefix + name + _SUFFIX.get(leaf, ".weight"), layers)
                made.append(Line(paths, names, _how(paths, name, how)))
                done |= set(paths)
    if missing := sorted(leaves.keys() - done):
        raise ValueError(f"the family has no tensors for {', '.join(missing)}")
    return made


def expand(text: str, layers: int) -> Any:
    """A name's text as nested lists: one level for `{n..}` and one for `[a|b]`, in their order."""
    found = re.search(r"\{(\d+)\.\.\}|\[([^\]]*)\]", text)
    if not found:
        return text
    before, after = text[: found.start()], text[found.end() :]
    if found[1] is not None:
        return [expand(f"{before}{i}{after}", layers) for i in range(int(found[1]), layers)]
    several = [expand(before + choice + after, layers) for choice in found[2].split("|")]
    if "{" in found[2]:  # a run of layers and what stands in for one more: all on one level
        return [name for one in several for name in (one if isinstance(one, list) else [one])]
    return several


def flat(names: Any) -> Iterator[str]:
    """The names of nested lists, in order."""
    if isinstance(names, str):
        yield names
    else:
        for one in names:
            yield from flat(one)


def _how(paths: tuple[str, ...], name: str, how: str | None) -> str:
    """The pattern, with the axes that are stacked."""
    if how is None:
        how = next((layout for leaf, layout in LAYOUTS.items() if paths[0].endswith(leaf)), "... -> ...")
    theirs, ours = how.split(" -> ")
    if "{" in name:
        theirs, ours = f"layer {theirs}", f"layer {ours}"
    if len(paths) > 1:  # stacked before the layers
        theirs = theirs if "part" in theirs else theirs.replace("layer", "layer part", 1)
        ours = "part " + ours.replace("part ", "")
    return f"{theirs} -> {ours}"


def to_ours(line: Line, read: Callable[[str], np.ndarray], cfg: BackboneConfig) -> list[np.ndarray]:
    """The leaves of a line, by its paths; `read` gives a tensor by name."""

    def stack(names: Any) -> np.ndarray:
        return read(names) if isinstance(names, str) else np.stack([stack(one) for one in names])

    x = _rearrange(stack(line.names), line.how, line, cfg)
    return list(x) if len(line.paths) > 1 else [x]


def to_theirs(line: Line, leaves: Mapping[str, Any], cfg: BackboneConfig) -> list[np.ndarray]:
    """The tensors of a line, in the order of its names, from leaves by path."""
    ours = [np.asarray(leaves[path]) for path in line.paths]
    theirs, back = line.how.split(" -> ")
    x = _rearrange(np.stack(ours) if len(ours) > 1 else ours[0], f"{back} -> {theirs}", line, cfg)
    depth, names = 0, line.names
    while not isinstance(names, str):
        depth, names = depth + 1, names[0]
    return list(x.reshape(-1, *x.shape[depth:])) if depth else [x]


def _rearrange(x: np.ndarray, how: str, line: Line, cfg: BackboneConfig) -> np.ndarray:
    sizes = {"n": cfg.heads, "h": cfg.H} | ({"part": len(line.paths)} if len(line.paths) > 1 else {})
    grouped = set(re.findall(r"\w+", " ".join(re.findall(r"\(([^)]*)\)", how.partition(" -> ")[0]))))
    return einops.rearrange(x, how, **{axis: size for axis, size in sizes.items() if axis in grouped})

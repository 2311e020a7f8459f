"""Parameter trees by path: names of leaves, rules on names, and the split into learned and frozen.

A rule is a pair (pattern, value); the pattern is a regular expression that must match a leaf's whole path, such as
"backbone/layers/.*/bias". The first that matches decides. A value may be a tuple with one entry a layer, for leaves
stacked on a `layers` axis.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

Tree = Any
Rules = Sequence[tuple[str, Any]]


def is_none(x: Any) -> bool:
    return x is None


def path_of(path: Iterable[Any]) -> str:
    return "/".join(str(getattr(p, "key", getattr(p, "idx", getattr(p, "name", p)))) for p in path)


def leaves(tree: Tree, is_leaf=None) -> dict[str, Any]:
    """{path: leaf}, in the tree's order."""
    return {path_of(p): x for p, x in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)}


def is_axes(x: Any) -> bool:
    """A tuple of logical axis names, the leaf of an axes tree."""
    return isinstance(x, tuple) and not hasattr(x, "_fields")


def matches(pattern: str, tree: Tree) -> bool:
    """Whether any leaf's path matches."""
    return any(re.fullmatch(pattern, name) for name in leaves(tree))


def resolve(rules: Rules, tree: Tree, default: Any) -> Tree:
    """The tree with each leaf replaced by its first matching rule's value, else `default`.

    Raises ValueError for a pattern that matches no leaf: a misspelt rule would otherwise do nothing, silently.
    """
    names = list(leaves(tree))
    for pattern, value in rules:
        hits = [n for n in names if re.fullmatch(pattern, n)]
        if not hits:
            raise ValueError(f"the rule {pattern!r} matches no parameter; they are:\n  " + "\n  ".join(names))
        if isinstance(value, tuple | list):
            for n in hits:
                layers = leaves(tree)[n].shape[:1]
                if layers != (len(value),):
                    raise ValueError(
                        f"the rule {pattern!r} gives {len(value)} values, one a layer, but {n} has a leading axis of "
                        f"{layers[0] if layers else 'none'}"
                    )

    def value_of(path, leaf):
        name = path_of(path)
        return next((value for pattern, value in rules if re.fullmatch(pattern, name)), default)

    return jax.tree_util.tree_map_with_path(value_of, tree)


def split(params: Tree, learned: Tree) -> tuple[Tree, Tree]:
    """(learned, frozen): the same tree twice, None where a leaf is wholly in the other.

    `learned` holds a bool for each leaf, or a tuple of one a layer; then each side has its own layers of the leaf.
    """

    def take(params, learned, wanted):
        if isinstance(learned, tuple | list):
            return params[np.flatnonzero(np.array(learned) == wanted)]
        return params if bool(learned) == wanted else None

    structure: Any = jax.tree.structure(params)
    values = structure.flatten_up_to(learned)
    flat = structure.flatten_up_to(params)
    sides = [[take(p, v, wanted) for p, v in zip(flat, values, strict=True)] for wanted in (True, False)]
    return structure.unflatten(sides[0]), structure.unflatten(sides[1])


def split_axes(axes: Tree, learned: Tree) -> tuple[Tree, Tree]:
    """The axis names of (learned, frozen); a leaf of which some layers are learned is in both."""
    flat = jax.tree.leaves(axes, is_leaf=is_axes)
    structure: Any = jax.tree.structure(axes, is_leaf=is_axes)
    values = structure.flatten_up_to(learned)

    def side(wanted):
        some = [wanted in v if isinstance(v, tuple | list) else bool(v) == wanted for v in values]
        return structure.unflatten([names if s else None for names, s in zip(flat, some, strict=True)])

    return side(True), side(False)


def merge(learned_params: Tree, frozen_params: Tree, learned: Tree) -> Tree:
    """Undoes `split`."""
    flat = jax.tree.leaves(learned_params, is_leaf=is_none)
    structure: Any = jax.tree.structure(learned_params, is_leaf=is_none)
    frozen = structure.flatten_up_to(frozen_params)
    values = structure.flatten_up_to(learned)

    def join(mine, theirs, value):
        if isinstance(value, tuple | list):
            order = np.concatenate([np.flatnonzero(np.array(value) == side) for side in (True, False)])
            return jnp.concatenate([mine, theirs])[np.argsort(order)]
        return mine if value else theirs

    return structure.unflatten([join(*x) for x in zip(flat, frozen, values, strict=True)])

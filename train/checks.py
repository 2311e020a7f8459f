"""What is wrong with an objective or its rows, said before anything compiles."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from model import random
from model.types import Backbone, Encoded
from objectives import types
from objectives.types import Objective, Ratio, Sums, Term
from train import evaluate, tree
from train import step as training
from train.data.layout import PER_TOKEN, Layout
from train.data.table import Table


def needs(objective: Objective, arrays: Mapping[str, Any], where: str, scored: bool = False) -> None:
    """Raises ValueError where rows of these arrays lack what the objective reads, with its scores if `scored`, or a
    score is none that there is.
    """
    for part in objective.parts or (objective,):
        for score in part.scores:
            evaluate.check_score(score)
        told = (part.truth, *part.scored) if scored and part.scores else ()
        if missing := [need for need in dict.fromkeys((*part.needs, *told)) if need not in arrays]:
            raise ValueError(
                f"{where}: {part.name} reads {', '.join(missing)}, and these rows hold {', '.join(sorted(arrays))}. "
                + " ".join(_NEEDS[need] for need in missing if need in _NEEDS)
            )


_NEEDS = {
    "types": "`types` are of pairs: train.data.rows:pair_sentences makes them of documents, label_examples of a source "
    "that names the column of its second text by pair=.",
    "labels": "`labels` are of a source that names their column by label=.",
    "group": "`group` is of train.data.groups:text_groups, from records of several texts.",
    "tags": "`tags` are of train.data.words:tag_words.",
    "answers": "`answers` are of train.data.answers:answer_windows.",
}


def contents(
    bb: Backbone,
    objective: Objective,
    some: Mapping[str, Any],
    where: str,
    classes: Sequence[Any],
    scored: bool = False,
) -> None:
    """Raises ValueError where rows hold what would train nothing, what is none of the model's or, if `scored`, what no
    score could be of; `some` are looked at.

    classes: of each objective, their number or names, None where it has none.
    """
    second_NS = None
    if "types" in some:
        most = int(some["types"].max(initial=0))
        if 1 < bb.config.types <= most:  # a table of one row is every token's
            raise ValueError(
                f"{where}: these rows have types up to {most}, and the backbone embeds types={bb.config.types}: set "
                f"backbone types={most + 1}, or 0 for none"
            )
        segments_NSL = some["segments"][:, None] == np.arange(1, some["example"].shape[1] + 1)[None, :, None]
        second_NS = (segments_NSL & (some["types"] == 1)[:, None]).sum(-1)
    for part, names in zip(objective.parts or (objective,), classes, strict=True):
        if "types" in part.needs and second_NS is not None and second_NS.max(initial=0) < 2:  # a [SEP] alone
            raise ValueError(
                f"{where}: {part.name} reads pairs, and in the {len(second_NS)} rows looked at each second text is "
                "empty: see which column the source's pair= names"
            )
        if wrong := part.refuse(dict(some)):
            raise ValueError(f"{where}: {part.name} {wrong}")
        if scored and {"pearson", "spearman"} & {*part.scores} and "group" in some:
            group = some["group"]
            ranked = (group[:, 1:] == group[:, :-1]) & (group[:, 1:] > 0)
            if ranked.any() and len(np.unique(some["labels"][:, 1:][ranked])) < 2:
                raise ValueError(
                    f"{where}: {part.name} correlates its numbers with labels, and in the {len(group)} rows looked at "
                    "these are all alike: name their column by the source's label=, or rank, as by mrr"
                )
        known = len(names) if isinstance(names, tuple) else names
        if known is None or part.truth not in some or not np.issubdtype(some[part.truth].dtype, np.integer):
            continue
        found = int(some[part.truth].max(initial=0)) - (part.truth in PER_TOKEN)  # tags are stored as 1 + class
        if found >= known and some[part.truth].ndim == 2:
            raise ValueError(
                f"{where}: these rows have class {found}, counted from 0, and {part.name} has {known} classes: give it "
                "those that the rows were prepared with"
            )


def length(bb: Backbone, held: Table, where: str) -> None:
    """Raises ValueError where a segment is longer than the backbone has places for; a row may be."""
    length, most = held.read(np.arange(1))["tokens"].shape[1], bb.config.max_length
    if length > most and (longest := held.longest) > most:
        raise ValueError(
            f"{where}: its longest text has {longest} tokens, and the backbone has max_length={most}: make the rows' "
            f"length={most}, or `longest` where they take one, or the backbone longer"
        )


def axes(part: Objective) -> None:
    """Raises ValueError where an objective's axes do not name those of its params."""
    made = tree.leaves(jax.eval_shape(part.init, jax.eval_shape(random.generator, 0)))
    said = tree.leaves(part.axes, is_leaf=tree.is_axes)
    if {k: x.ndim for k, x in made.items()} != {k: len(names) for k, names in said.items()}:
        raise ValueError(
            f"{part.name}: init makes {', '.join(f'{k} {x.shape}' for k, x in made.items()) or 'no params'}, and axes "
            f"names {', '.join(f'{k} {names}' for k, names in said.items()) or 'none'}; expected a name for each axis "
            "of each, as embed or vocab, see train.sharding"
        )


def batches(how: Layout | None, batch: int, some: Mapping[str, Any]) -> list[dict[str, jax.ShapeDtypeStruct]]:
    """The shapes that a batch of rows like these may have, laid out so."""

    def one(rows: int, length: int, segments: int) -> dict[str, jax.ShapeDtypeStruct]:
        of = lambda k, x: (rows, length) if k in PER_TOKEN else (rows, segments, *x.shape[2:])
        return {k: jax.ShapeDtypeStruct(of(k, x), x.dtype) for k, x in some.items()}

    if how is None:
        return [{k: jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for k, x in some.items()}]
    return [one(rows, length, how.segments) for rows, length in how.shapes]


def trace(
    params: Any, rows: Mapping[str, jax.ShapeDtypeStruct], where: str, bb: Backbone, objective: Objective
) -> tuple[str, ...]:
    """The names of what a batch reports. Raises what the objective refuses of it, and ValueError for a loss that
    returns something else than it should. Nothing is computed, and the backbone is left out.

    params, rows: their shapes.
    """

    def encode(batch, key=None, *, at=None, **how):
        if how:
            return bb.encode(params_of["backbone"], batch, key, at=at, **how)
        places = batch["tokens"] if at is None else at
        return Encoded(jnp.zeros((*places.shape, bb.config.D), bb.config.dtype))

    params_of: dict = {}
    reported: list[str] = []

    def traced(params, batch, key, step):
        params = objective.view(params)
        params_of["backbone"] = params["backbone"]
        rows = training.corrupted(batch, key, step, objective)
        out = objective.loss(params, encode, rows, key, step)
        if objective.join is not None:
            _check_outputs(out, objective.name)
            out = objective.join(params, out, rows)
        _check_sums(out, objective.name)
        reported.extend(types.report(out))
        _check_says(objective, objective.predict(params, encode, batch))
        return [term.weight for term in out.terms.values()]

    step = jax.ShapeDtypeStruct((), np.int32)
    try:
        jaxpr = jax.make_jaxpr(traced)(params, rows, jax.eval_shape(random.key, 0), step).jaxpr
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    _, read = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    if any(read[: len(jax.tree.leaves(params))]):
        raise ValueError(
            f"{objective.name}: the weight of a term depends on params, and must on the batch alone: it divides the "
            "loss, and no gradient passes it"
        )
    return tuple(reported)


def apart(objective: Objective, view: str) -> None:
    """Raises ValueError for an objective that itself moves params, as a teacher: it would not see what a view does."""
    for part in objective.parts or (objective,):
        moved = {k for k in ("after", "view") if getattr(part, k) is not Objective._field_defaults[k]}
        if moved:
            raise ValueError(
                f"{view}: {part.name} moves params by itself ({', '.join(sorted(moved))}), and would read those that "
                "no view has seen: train it without"
            )


def best(wanted: str, found: Sequence[str], where: str) -> None:
    """Raises ValueError for a `best` that is none of the metrics found by evaluation, as "dev/accuracy"."""
    if (name := wanted.lstrip("-")) in found:
        return
    near = difflib.get_close_matches(name, found, 1)
    raise ValueError(
        f"{where}.best={wanted!r} is no metric of its evaluations"
        + (f"; did you mean {near[0]!r}? " if near else ". ")
        + f"They are {', '.join(found)}. (BLEU and SQuAD's scores are of `launch.predict --evaluate` alone.)"
    )


def _check_sums(out: Any, name: str) -> None:
    if not isinstance(out, Sums):
        raise ValueError(f"{name}: its loss is a {type(out).__name__}; expected objectives.types.Sums")
    for what, kind, held in (("term", Term, out.terms), ("metric", Ratio, out.metrics)):
        for key, x in held.items():
            if not isinstance(x, kind):
                raise ValueError(f"{name}: its {what} {key!r} is no objectives.types.{kind.__name__}: {x}")
            if shapes := [np.shape(part) for part in x if np.shape(part)]:
                raise ValueError(
                    f"{name}: its {what} {key!r} has arrays of shape {shapes[0]}; expected sums, one number"
                )


def _check_says(objective: Objective, found: Mapping[str, Any]) -> None:
    for part in objective.parts or (objective,):
        wanted = types.SAID.get(part.says)
        if wanted is None:
            raise ValueError(f"{part.name} says {part.says!r}; expected one of {', '.join(map(repr, types.SAID))}")
        at = f"{part.name}/" if objective.parts else ""
        if missing := [k for k in wanted if at + k not in found]:
            raise ValueError(
                f"{part.name} says {part.says!r}, by which its `predict` should give {' and '.join(wanted)}, and there "
                f"is no {' and no '.join(missing)}"
            )


def _check_outputs(out: Any, name: str) -> None:
    for path, x in tree.leaves(out).items():
        if not np.shape(x)[:1] or not jnp.issubdtype(jnp.result_type(x), jnp.floating):
            raise ValueError(
                f"{name} has a join, and its loss gives {path or 'an array'} {jnp.result_type(x)}{list(np.shape(x))}; "
                "expected floats of each row, [B, ...]"
            )

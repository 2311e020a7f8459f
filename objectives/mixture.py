"""Several objectives at once: a weighted sum of their losses, or one of them at each step."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model import ops
from model.types import Backbone, Batch, Encoded
from objectives import types
from objectives.types import Array, Objective, Sums

_PLACES = ("segments", "positions", "types", "example")  # what changes one of these moves tokens
_GOLDEN = np.uint32(0x9E3779B9)  # 2**32 / golden ratio: its multiples spread evenly, modulo 2**32


def mix(
    *weighted: tuple[float, Objective], backbone: Backbone, alternate: bool = False, name: str = "mixture"
) -> Objective:
    """The sum of weight * loss over (weight, objective) pairs; or, with `alternate`, one of the losses a step.

    BERT's pretraining is `mix((1.0, mlm(...)), (1.0, nsp(...)), backbone=...)`, and costs one pass through the
    backbone: a corruption that moves tokens (next sentence) is done first, and one that hides tokens (masking) to what
    it left. Two that move do not share a pass, nor two that hide; what corrupts nothing reads the text as it is, and
    shares with its like. A pass is shared where `encode` is called with the batch and the key that the loss was given,
    and `at` alone; another batch, a second dropout view (`random.view(key, 1)`) and `capture` are passes of their own.

    Args:
      weighted: each objective owns its key of the params tree, as it does alone: what a mixture trains carries to a
        stage of one objective and back.
      backbone: what all of them were made for.
      alternate: each step has the loss of one objective; the shares of any run of steps are as the weights.
        Evaluation has all of them, weighted by their shares. What the others own has gradients of zero then: an
        optimizer with momentum or decay moves it all the same, and Adam by more the rarer its own steps are.

    A corrupted row holds under `name`, for the objectives that share a pass (their names, split by blanks), what their
    corruptions changed. `predict` gives the arrays of all, as `{objective}/{array}`, and evaluation the scores of each
    likewise; the likelihood is that of the first that has one.
    Raises ValueError for weights that are not above 0, two objectives of one name or one with a blank in it, a mixture
    in a mixture, or (while tracing) two terms or metrics of one, and for an objective that freezes what the others
    train without making it of leaves that they can train (`Objective.view`), or two that do.
    """
    parts = tuple(objective for _, objective in weighted)
    names = [part.name for part in parts]
    wrong = [f"{part.name}={w!r}" for w, part in weighted if not (isinstance(w, int | float) and 0 < w < np.inf)]
    if wrong or not parts:
        found = ", ".join(wrong) or "no objective"
        raise ValueError(
            f"a mixture's weights must be numbers above 0, found {found}: leave out what is not to be trained"
        )
    if len({*names, name, "backbone"}) < len(names) + 2:
        raise ValueError(
            f"the objectives of a mixture need names of their own, none of them {name} or backbone; found "
            + ", ".join(names)
        )
    if blank := [part for part in names if not re.fullmatch(r"[^\s/]+", part)]:
        raise ValueError(f"a mixture's objectives have names without blanks and slashes; found {blank[0]!r}")
    if inner := [part.name for part in parts if part.parts]:
        raise ValueError(f"{', '.join(inner)} is a mixture itself: give all its parts in the outer one")
    total = sum(weight for weight, _ in weighted)
    frozen = tuple(pattern for part in parts for pattern in part.frozen)
    freezing = [part for part in parts if any(pattern.startswith("backbone") for pattern in part.frozen)]
    for part in freezing:
        if len(parts) > 1 and part.view is Objective._field_defaults["view"]:
            raise ValueError(
                f"{part.name} freezes {', '.join(part.frozen)}, which the other objectives of the mixture would train"
            )
    if len(freezing) > 1:
        raise ValueError(
            f"{' and '.join(part.name for part in freezing)} each make a leaf of the backbone of leaves of their own "
            f"({', '.join(frozen)}), and it can be made once: let one share it (rtd sharing='tied')"
        )

    def corrupt(key: Array, row: dict, step: Array) -> dict:
        made = {part.name: part.corrupt(key, row, step) for part in parts}
        groups = [[part] for part in parts] if alternate else _groups(parts, row, made)
        changed = {}
        for first, *others in groups:
            new = made[first.name]
            for part in others:
                new = part.corrupt(key, new, step)
            label = " ".join(part.name for part in (first, *others))
            changed[label] = {k: v for k, v in new.items() if v is not row.get(k)}
        return row | {name: changed}

    def passes(batch: Batch) -> Iterator[tuple[dict, list[Objective]]]:
        """Yields (a batch as corrupted, the objectives that read it)."""
        clean = {k: v for k, v in batch.items() if k != name}
        for label, changed in batch[name].items():
            yield clean | changed, [part for part in parts if part.name in label.split()]

    def weights(key: Array | None, step: Array) -> dict[str, Any]:
        given = {part.name: weight for weight, part in weighted}
        if not alternate:
            return given
        if key is None:
            return {part: weight / total for part, weight in given.items()}
        ends = np.cumsum(list(given.values())) / total * 2**32
        place = jnp.asarray(step).astype(jnp.uint32) * _GOLDEN
        before = jnp.asarray(ends[:-1].astype(np.uint32)) <= place[None]
        return {part: (before.sum() == i).astype(jnp.float32) for i, part in enumerate(names)}

    def loss(params: dict, encode, batch, key, step) -> Any:
        now = weights(key, step)
        found: dict[str, Any] = {}
        for rows, sharing in passes(batch):
            for part, of in zip(sharing, _sharing(backbone, sharing, params, encode, rows, key, step), strict=True):
                found[part.name] = _if(now[part.name], of) if alternate and key is not None else of()
        if joins:
            several = {
                part.name: found[part.name] if part.join else _row_of(types.floats(found[part.name])) for part in parts
            }
            return several | {name: _row_of(now)}
        return _weighed(found, now)

    def join(params: dict, outputs: Any, batch) -> Sums:
        now = {part: weight[0] for part, weight in outputs[name].items()}
        found = {}
        for rows, sharing in passes(batch):
            for part in sharing:
                mine = outputs[part.name]
                of = partial(types.add, mine) if part.join is None else partial(part.join, params, mine, rows)
                found[part.name] = _if(now[part.name], of) if alternate else of()
        return _weighed(found, now)

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        return {f"{part.name}/{k}": v for part in parts for k, v in part.predict(params, encode, batch, key).items()}

    def init(key: Array) -> dict:
        return {part.name: part.init(k) for part, k in zip(parts, jax.random.split(key, len(parts)), strict=True)}

    def begin(params: dict) -> dict:
        for part in parts:
            params = part.begin(params)
        return params

    def after(params: dict, step: Array) -> dict:
        for part in parts:
            params = part.after(params, step)
        return params

    def view(params: dict) -> dict:
        for part in parts:
            params = part.view(params)
        return params

    joins = any(part.join is not None for part in parts)
    axes = {part.name: part.axes for part in parts}
    needs = tuple(dict.fromkeys(need for part in parts for need in part.needs))
    return Objective(
        name,
        loss,
        predict,
        init,
        axes,
        corrupt,
        begin=begin,
        after=after,
        view=view,
        frozen=frozen,
        join=join if joins else None,
        needs=needs,
        parts=parts,
        likelihood=next((part.likelihood for part in parts if part.likelihood is not None), None),
    )


def _groups(parts: tuple[Objective, ...], row: dict, made: dict[str, dict]) -> list[list[Objective]]:
    """Which objectives share a pass, those that move tokens before those that hide them. What narrows the view, as
    causal does, has its own: [CLS] would see nothing of a pair.
    """

    def kind(part: Objective) -> str:
        if "reach" in made[part.name]:
            return "narrows"
        changed = {k for k in row if made[part.name][k] is not row[k]}
        return "moves" if changed & {*_PLACES} else "hides" if changed else "reads"

    of = {k: [part for part in parts if kind(part) == k] for k in ("moves", "hides", "narrows", "reads")}
    n = max(len(of["moves"]), len(of["hides"]))
    pairs = [of["moves"][i : i + 1] + of["hides"][i : i + 1] for i in range(n)]
    return pairs + [[part] for part in of["narrows"]] + ([of["reads"]] if of["reads"] else [])


def _sharing(
    backbone: Backbone, parts: list[Objective], params: dict, encode, rows: dict, key: Array | None, step: Array
) -> list[Callable[[], Any]]:
    """The losses of objectives that share a pass through the backbone.

    What each reads is heard first, from losses of states that are all zeros, which the compiler drops. Then one pass
    gives them all their places.
    """
    asked: list[Array | None] = []

    def mine(batch, of_key, how) -> bool:
        return batch is rows and of_key is key and not how

    def hear(batch, of_key=None, *, at=None, **how) -> Encoded:
        if how:
            like = jax.eval_shape(lambda: encode(batch, of_key, at=at, **how))
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
        if mine(batch, of_key, how):
            asked.append(at)
        places = batch["tokens"] if at is None else at
        return Encoded(jnp.zeros((*places.shape, backbone.config.D), backbone.config.dtype))

    if len(parts) > 1:
        for part in parts:
            part.loss(params, hear, rows, key, step)
    if len(asked) < 2:
        return [partial(part.loss, params, encode, rows, key, step) for part in parts]

    widths = [rows["tokens"].shape[1] if at is None else at.shape[1] for at in asked]
    ends = np.cumsum(widths)
    places = [at for at in asked if at is not None]
    few = len(places) == len(asked) and ends[-1] < rows["tokens"].shape[1]
    hidden = encode(rows, key, at=jnp.concatenate(places, 1) if few else None).hidden
    told = iter(zip(asked, ends - widths, ends, strict=True))  # the losses ask again, in the same order

    def tell(batch, of_key=None, *, at=None, **how) -> Encoded:
        if not mine(batch, of_key, how):
            return encode(batch, of_key, at=at, **how)
        _, start, end = next(told)
        return Encoded(hidden[:, start:end] if few else ops.pick(hidden, at))

    found = [part.loss(params, tell, rows, key, step) for part in parts]
    return [partial(_same, x) for x in found]


def _same(x: Any) -> Any:
    return x


def _if(now: Array, of: Callable[[], Any]) -> Any:
    """What `of` gives, computed where `now` is above 0 and zeros elsewhere."""

    def arrays() -> Any:
        return jax.tree.map(jnp.asarray, of())

    like = jax.eval_shape(arrays)
    return jax.lax.cond(now > 0, arrays, lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like))


def _row_of(x: Any) -> Any:
    """Of each number an array of one, as a joined loss has its outputs: by row."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], x)


def _weighed(found: dict[str, Sums], now: dict[str, Any]) -> Sums:
    terms: dict[str, types.Term] = {}
    metrics: dict[str, types.Ratio] = {}
    for part, sums in found.items():
        if twice := sorted((terms.keys() | metrics.keys()) & (sums.terms.keys() | sums.metrics.keys())):
            raise ValueError(
                f"the objectives of a mixture tell of {', '.join(twice)} twice, {part} for the second time: rename one"
            )
        terms |= {k: t._replace(coefficient=t.coefficient * now[part]) for k, t in sums.terms.items()}
        metrics |= sums.metrics
    return Sums(terms, metrics)

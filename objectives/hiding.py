"""Hiding tokens of a row: some are chosen and become [MASK], another token or themselves, and are to be predicted."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from model import ops, random
from model.heads import pool
from objectives.masking import Rate, masking, rank
from objectives.types import Array, Ratio, Vocab


def hiding(
    name: str,
    vocab: Vocab,
    *,
    rate: Rate,
    mask: float = 1.0,
    replace: float = 0.0,
    choice: str = "exact",
    unit: str = "token",
    span: float = 3.0,
    ngrams: str | Sequence[Sequence[int]] | None = None,
    capacity: float | None = None,
) -> Callable[[Array, dict, Array], dict]:
    """The `corrupt` of objectives that predict hidden tokens; see `objectives.mlm.mlm` for the hyperparameters.

    A corrupted row holds the new `tokens`, and under `name`, of P places: `index` int32 [P], `target` int32 [P] (what
    stood there), `weight` float32 [P] (1 where a token was chosen, else 0: the place is as it was), `surplus` (how many
    were chosen beyond P), and `seen` int32 [L], the segments without the chosen tokens.
    Raises ValueError for shares outside [0, 1] or an unknown choice or unit, naming the objective.
    """
    choose, replaced, room = masking(
        name, vocab, rate=rate, mask=mask, replace=replace, choice=choice, unit=unit, span=span, ngrams=ngrams
    )
    if capacity is not None and not 0 < capacity <= 1:
        raise ValueError(f"{name} capacity={capacity} is a share of the row's places, above 0 and at most 1")

    def corrupt(key: Array, row: dict, step: Array) -> dict:
        tokens_L, segments_L, ids_L = row["tokens"], row["segments"], random.tokens(row)
        key = random.fold(key, name)
        chosen_L, luck_L, units_L = choose(key, row, step)
        if capacity is None:
            P = room(tokens_L.size, row["example"].shape[0])
        else:
            P = min(tokens_L.size, math.ceil(capacity * tokens_L.size))
        # the luckiest first: a surplus drops at random, not at the row's end, and in whole units
        fits_L = chosen_L
        if unit != "token":
            fits_L &= rank(jnp.ones_like(segments_L), luck_L, chosen_L) < P
        order_L = jnp.where(fits_L, luck_L, 2.0)
        carried = (jnp.arange(tokens_L.size, dtype=jnp.int32), fits_L, ids_L, tokens_L)
        _, index_P, taken_P, ids_P, target_P = (x[:P] for x in jax.lax.sort((order_L, *carried), num_keys=1))
        weight_P = taken_P.astype(jnp.float32)
        units_P = ops.take(units_L, index_P) if unit == "span" else ids_P
        new_P = replaced(key, ids_P, units_P, target_P)
        tokens_L = tokens_L.at[index_P].set(jnp.where(weight_P > 0, new_P, target_P))
        hidden = dict(
            index=index_P, target=target_P, weight=weight_P, surplus=chosen_L.sum() - weight_P.sum(),
            seen=jnp.where(chosen_L, 0, segments_L),
        )  # fmt: skip
        return row | {"tokens": tokens_L, name: hidden}

    return corrupt


def original(batch: Any, name: str) -> Array:
    """int32 [B, L]: the tokens before those under `name` were hidden."""
    return set_at(batch["tokens"], batch[name]["index"], batch[name]["target"])


def surplus_share(mine: dict) -> Ratio:
    """Of the tokens chosen those that there was no place for, from what an objective keeps under its name."""
    surplus = mine["surplus"].sum()
    return Ratio(surplus, mine["weight"].sum() + surplus)


def spread(targets_BLD: Array, batch: Any, name: str) -> Ratio:
    """How far apart vectors to be predicted are: their variance, of hidden tokens about the mean of the segment, a
    channel. Where it goes to 0 so does the loss, and nothing is learned: all tokens have one target.
    """
    mine = batch[name]
    mean_BPD = ops.pick(
        pool(targets_BLD, batch, "mean"), ops.pick(jnp.maximum(batch["segments"] - 1, 0), mine["index"])
    )
    away_BP = ((ops.pick(targets_BLD, mine["index"]) - mean_BPD) ** 2).mean(-1)
    return Ratio((away_BP * mine["weight"]).sum(), mine["weight"].sum())


def set_at(x_BL: Array, index_BP: Array, values_BP: Array) -> Array:
    """x with `values` at the places `index` of each row, no two alike."""
    rows_B1 = jnp.arange(len(index_BP))[:, None]
    return jnp.asarray(x_BL).at[rows_B1, index_BP].set(values_BP.astype(x_BL.dtype))


def boundaries(row: dict, name: str) -> dict[str, Array]:
    """Where the runs of hidden tokens lie: `left` and `right` int32 [P], the places beside the run that each hidden
    token is of, `place` int32 [P], how far from the run's first it is, and `bounded` float32 [P], 1 where both are
    places of its segment.
    """
    segments_L, mine = row["segments"], row[name]
    L, index_P = segments_L.size, mine["index"]
    place_L = jnp.arange(L, dtype=jnp.int32)
    hidden_L = jnp.zeros(L, bool).at[index_P].set(mine["weight"] > 0)
    run_L = jnp.where(hidden_L, segments_L, 0)  # 0 where no run is
    edge_L = run_L != jnp.roll(run_L, 1)
    first_L = jax.lax.cummax(jnp.where(edge_L.at[0].set(True), place_L, 0))
    last_L = jax.lax.cummin(jnp.where(jnp.roll(edge_L, -1).at[-1].set(True), place_L, L - 1), reverse=True)
    left_P, right_P = ops.take(first_L, index_P) - 1, ops.take(last_L, index_P) + 1
    place_P = index_P - left_P - 1
    inside_P = (left_P >= 0) & (right_P < L)
    left_P, right_P = jnp.maximum(left_P, 0), jnp.minimum(right_P, L - 1)
    own_P = ops.take(segments_L, index_P)
    both_P = inside_P & (ops.take(segments_L, left_P) == own_P) & (ops.take(segments_L, right_P) == own_P)
    return dict(left=left_P, right=right_P, place=place_P, bounded=both_P * mine["weight"])

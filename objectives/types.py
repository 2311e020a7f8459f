"""What an objective is: a name, parameters of its own, a corruption of one row, and a loss that is a sum."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from objectives.vocab import Vocab as Vocab

Array = jax.Array


class Term(NamedTuple):
    """One part of a loss: `coefficient * sum / weight` once everything is added up.

    `weight` depends on the batch alone, never on params: the step totals it before it differentiates. It is added over
    microbatches and evaluation batches, as the sum is, and so must be a count of what the sum adds up, as a number of
    tokens; a constant would be added as often as there are microbatches. (In `join`, which is called once for the whole
    batch, it may be one.)
    """

    sum: Array
    weight: Array
    coefficient: Any = 1.0


class Ratio(NamedTuple):
    """A metric that is a ratio of sums, such as accuracy."""

    numerator: Array
    denominator: Array


class Sums(NamedTuple):
    """A monoid: added over microbatches, devices, hosts and evaluation batches, and divided only at the end."""

    terms: dict[str, Term]
    metrics: dict[str, Ratio] = {}  # noqa: RUF012  (a NamedTuple default, never mutated)


def add(sums: Sums, axis: int = 0) -> Sums:
    """Adds a stack of Sums, every leaf `[n, ...]`. Coefficients are equal over it: the first stands for all."""
    terms = {name: Term(t.sum.sum(axis), t.weight.sum(axis), t.coefficient[0]) for name, t in sums.terms.items()}
    return Sums(terms, jax.tree.map(lambda x: x.sum(axis), sums.metrics))


def floats(sums: Sums) -> Sums:
    """Counts of whole numbers or of truths as floats, which alone can be differentiated."""
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x, float)), sums)


def loss(sums: Sums) -> Array:
    """The scalar loss: sum over terms of coefficient * sum / weight; a term of no weight adds nothing.

    No gradient flows into a weight: it depends on the batch alone.
    """
    total = jnp.zeros((), jnp.float32)
    for term in sums.terms.values():
        weight = jax.lax.stop_gradient(term.weight)
        total = total + jax.lax.stop_gradient(term.coefficient) * term.sum / jnp.where(weight == 0, 1, weight)
    return total


def report(sums: Sums) -> dict[str, Array]:
    """Scalars to log: `loss`, each term and each metric divided out; nan where nothing was counted."""
    terms = {name: t.sum / t.weight for name, t in sums.terms.items()}
    return {"loss": loss(sums)} | terms | {name: m.numerator / m.denominator for name, m in sums.metrics.items()}


def _no_params(key: Array) -> dict:
    return {}


def _as_it_is(key: Array, row: dict, step: Array) -> dict:
    return row


def _unchanged(params: dict, step: Array) -> dict:
    return params


def _as_made(params: dict) -> dict:
    return params


def _nothing_wrong(rows: dict) -> str:
    return ""


Says = Literal["", "pieces", "class", "tags", "answer", "choice", "mask", "filled", "text"]
SAID: dict[Says, tuple[str, ...]] = {  # the arrays that `predict` gives for each
    "": (),
    "pieces": (),
    "class": ("prediction", "probabilities"),
    "tags": ("prediction",),
    "answer": ("prediction", "score"),
    "choice": ("prediction",),
    "mask": ("prediction", "probability"),
    "filled": ("prediction",),
    "text": ("prediction", "score"),
}


class Objective(NamedTuple):
    """A training task as pure functions, made by a factory `(backbone, vocab, **hyperparameters) -> Objective`.

    name:     the objective's key in the params tree and in the corrupted row
    loss:     (params, encode, batch, key, step) -> Sums, or per-example outputs [B, ...] where `join` is given.
              `encode(batch, key=None, *, at=None, capture=(), ...) -> Encoded` already holds the backbone's params;
              of places `at` [B, P] it gives their states alone, and spares the last layer the rest; `capture` names
              what else of it is asked for, see `model.backbone.backbone`. `key` is None in evaluation; a second dropout
              view of a text is asked for by number, `random.view(key, 1)`
    predict:  (params, encode, batch, key=None) -> dict of arrays [B, ...], for evaluation and inference
    init:     key -> params of its own, {} if none
    axes:     logical axis names of those, same tree
    corrupt:  (key, row, step) -> row; ONE row, the step vmaps it. Draws come from `model.random` by token or segment
    begin:    params -> params, once, before a fresh stage's first step: after `init` and after what is carried (an EMA
              teacher that begins as the student); not where a run is resumed or forked
    after:    (params, step) -> params, once an update is done (an EMA teacher)
    view:     params -> params, before each use in training and evaluation: a frozen leaf made of learned ones
              (gradient-disentangled embeddings), which `after` keeps in the tree for whoever reads it without
    frozen:   patterns of paths in the whole tree that no gradient is for, as a teacher's, which `after` alone moves;
              `train.build` puts them before the stage's `learned` rules
    join:     (params, outputs, batch) -> Sums where the loss couples examples (contrastive); `outputs` is then the
              whole batch's, and the step differentiates through it exactly, microbatch by microbatch
              (gradient caching, Gao et al. 2021, https://arxiv.org/abs/2101.06983)
    needs:    what its rows must hold beside tokens, as "labels" or "types"; rows without are an error before training
    refuse:   rows -> what is wrong with them, "" if nothing: numpy arrays [N, ...] of some of a data set, that hold
              what it needs. Rows of which nothing could be learned are an error before training
    says:     what `prediction` of `predict` is, by which `launch.predict` puts it in words:
              "class", one of each segment [B, S], or of several which hold [B, S, C], of `probabilities` [B, S, C];
              "tags", a class of each token [B, L]; "answer", a span's first and last token [B, S, 2], of a `score`
              [B, S] (and of `null`, none's, where there may be none); "choice", the probability of each segment in its
              group [B, S]; "text", ids of one for each segment [B, S, T], of a `score` [B, S];
              "mask", ids for every [MASK] [B, L], of a `probability` each; "filled", ids [B, L] where no [MASK] is
              left, drawn by a key; "pieces", ids [B, L], told with the other arrays beside the text's own pieces.
              Else all arrays are told by name, and are numbers
    sentinels: how many ids after the tokenizer's stand for spans, in what is read and written
    scores:   names of evaluation scores that are not ratios of sums, computed on `prediction` [B, S, ...] of `predict`,
              of the segments that its `scored` bool [B, S] tells, by default all
    truth:    the batch's array that `prediction` is held against in them: "labels" [B, S, ...] of each segment, or
              "tags" [B, L] of the tokens that have one
    classes:  names of the classes, for scores that read them
    scored:   what rows must hold beside `needs` and `truth` to be scored
    likelihood: (params, encode, batch) -> float [B, S], the log-likelihood of each packed segment, or what stands for
              it; None where the objective has none. From left to right it is of all tokens after the first, [SEP] among
              them; a pseudo-likelihood is of ordinary tokens alone
    parts:    the objectives of a mixture; `init` and `axes` are then by their names, each a key of the params tree

    `params` is always the whole tree, `{"backbone": ..., name: ...}`.
    """

    name: str
    loss: Callable[..., Any]
    predict: Callable[..., dict[str, Array]]
    init: Callable[[Array], dict] = _no_params
    axes: Any = {}  # noqa: RUF012  (a NamedTuple default, never mutated)
    corrupt: Callable[[Array, dict, Array], dict] = _as_it_is
    begin: Callable[[dict], dict] = _as_made
    after: Callable[[dict, Array], dict] = _unchanged
    view: Callable[[dict], dict] = _as_made
    frozen: tuple[str, ...] = ()
    join: Callable[..., Sums] | None = None
    scores: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()
    refuse: Callable[[dict], str] = _nothing_wrong
    truth: str = "labels"
    classes: tuple[str, ...] = ()
    scored: tuple[str, ...] = ()
    says: Says = ""
    sentinels: int = 0
    likelihood: Callable[..., Array] | None = None
    parts: tuple["Objective", ...] = ()

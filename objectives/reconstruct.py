"""Predicting the embeddings of hidden tokens, as vectors: no vocabulary is read."""

from collections.abc import Sequence

import jax

from model import ops
from model.heads import token_head
from model.types import Backbone
from objectives.hiding import hiding, original, spread, surplus_share
from objectives.masking import Rate
from objectives.types import Array, Objective, Sums, Term, Vocab


def reconstruct(
    backbone: Backbone,
    vocab: Vocab,
    *,
    rate: Rate = 0.15,
    mask: float = 0.8,
    replace: float = 0.1,
    choice: str = "exact",
    unit: str = "token",
    span: float = 3.0,
    ngrams: str | Sequence[Sequence[int]] | None = None,
    capacity: float | None = None,
    name: str = "reconstruct",
) -> Objective:
    """Mean squared error, over E channels, of a linear map of each hidden token's state against the token's row of the
    embedding table; the relation of `objectives.data2vec` with the input in the teacher's place.

    No gradient flows into the target, but the table learns as the model's input, and equal rows would make the loss
    zero: carry a trained table and freeze it by the stage's rule `("backbone/embed/tokens", False)`. The metric
    `{name}_spread` is the targets' variance within a text: a loss near it has learned no more than the mean.

    Args:
      rate .. capacity: of what is hidden, see `objectives.mlm.mlm`.

    A corrupted row holds what `objectives.hiding.hiding` says. `predict` gives `prediction` float32 [B, L, E].
    Raises ValueError for what hiding refuses.
    """
    head = token_head(backbone.config, backbone.config.E, dropout=0.0)
    hide = hiding(name, vocab, rate=rate, mask=mask, replace=replace, choice=choice, unit=unit, span=span,
                  ngrams=ngrams, capacity=capacity)  # fmt: skip

    def loss(params: dict, encode, batch, key, step) -> Sums:
        mine = batch[name]
        found_BPE = head.apply(params[name], encode(batch, key, at=mine["index"]).hidden, batch)
        table_VE = jax.lax.stop_gradient(params["backbone"]["embed"]["tokens"])
        true_BLE = ops.wide(ops.take(table_VE, original(batch, name)))
        error_BP = ((found_BPE - ops.pick(true_BLE, mine["index"])) ** 2).mean(-1)
        count = mine["weight"].sum()
        term = Term((error_BP * mine["weight"]).sum(), count)
        surplus = surplus_share(mine)
        return Sums({name: term}, {f"{name}_surplus": surplus, f"{name}_spread": spread(true_BLE, batch, name)})

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        return dict(prediction=head.apply(params[name], encode(batch, key).hidden, batch))

    return Objective(name, loss, predict, head.init, head.axes, hide)

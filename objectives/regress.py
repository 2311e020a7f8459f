"""Regression of a number from a text or a pair of texts, such as a similarity."""

from model.heads import pooled_head, present
from model.types import Backbone
from objectives.labels import numbers_of
from objectives.types import Array, Objective, Sums, Term, Vocab


def regress(
    backbone: Backbone,
    vocab: Vocab,
    *,
    pooling: str = "first",
    activation: str = "tanh",
    norm: bool = False,
    dropout: float = 0.1,
    name: str = "regress",
) -> Objective:
    """The mean of (w h + b - label)^2 on the pooled segment, as BERT is finetuned on STS-B (Devlin et al. 2018,
    https://arxiv.org/abs/1810.04805, section 4.1).

    The batch's `labels` are float32 [B, S]. See `objectives.classify` for the head's options. `predict` gives
    `prediction` float32 [B, S]. Raises ValueError for labels that are classes.
    """
    head = pooled_head(
        backbone.config, 1, pooling=pooling, activation=activation, norm=norm, dropout=dropout, name=name
    )

    def outputs(params: dict, encode, batch, key) -> Array:
        return head.apply(params[name], encode, batch, key)[..., 0]

    def loss(params: dict, encode, batch, key, step) -> Sums:
        present_BS = present(batch)
        error_BS = outputs(params, encode, batch, key) - numbers_of(batch, name)
        return Sums({name: Term((error_BS**2 * present_BS).sum(), present_BS.sum())})

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        return dict(prediction=outputs(params, encode, batch, key))

    return Objective(name, loss, predict, head.init, head.axes, scores=("pearson", "spearman"), needs=("labels",))

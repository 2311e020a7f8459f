"""Classification of a text or a pair of texts, each packed segment by itself."""

import jax
import jax.numpy as jnp

from model import ops
from model.heads import pooled_head, present
from model.types import Backbone
from objectives.labels import classes_of
from objectives.types import Array, Objective, Ratio, Sums, Term, Vocab


def classify(
    backbone: Backbone,
    vocab: Vocab,
    *,
    classes: int,
    pooling: str = "first",
    activation: str = "tanh",
    norm: bool = False,
    dropout: float = 0.1,
    name: str = "classify",
) -> Objective:
    """Cross-entropy over `classes` on the pooled segment: the mean of -log softmax(W h + b)[label] (Devlin et al. 2018,
    https://arxiv.org/abs/1810.04805, section 4.1).

    The batch's `labels` are int [B, S]. `pooling` is one of `model.heads.pool`; `activation` and `norm` follow the
    pooler's linear map (as published families have them); `dropout` is on the pooled vector.
    `predict` gives `prediction` int32 [B, S] and `probabilities` [B, S, classes].
    Raises ValueError for fewer than two classes, an unknown pooling, and labels that are not a class each.
    """
    if classes < 2:
        raise ValueError(f"classify needs at least 2 classes, not {classes}; for a number use objectives.regress")
    head = pooled_head(
        backbone.config, classes, pooling=pooling, activation=activation, norm=norm, dropout=dropout, name=name
    )

    def logits(params: dict, encode, batch, key) -> Array:
        return head.apply(params[name], encode, batch, key)

    def loss(params: dict, encode, batch, key, step) -> Sums:
        present_BS = present(batch)
        nll_BS, hit_BS = ops.cross_entropy(logits(params, encode, batch, key), classes_of(batch, name))
        count = present_BS.sum()
        return Sums(
            {name: Term((nll_BS * present_BS).sum(), count)},
            {f"{name}_accuracy": Ratio((hit_BS * present_BS).sum(), count)},
        )

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        p_BSC = jax.nn.softmax(logits(params, encode, batch, key))
        return dict(prediction=p_BSC.argmax(-1).astype(jnp.int32), probabilities=p_BSC)

    return Objective(
        name, loss, predict, head.init, head.axes, scores=("accuracy", "f1", "matthews"), needs=("labels",),
        classes=tuple(map(str, range(classes))), says="class",
    )  # fmt: skip


def multilabel(
    backbone: Backbone,
    vocab: Vocab,
    *,
    classes: int,
    pooling: str = "first",
    activation: str = "tanh",
    norm: bool = False,
    dropout: float = 0.1,
    threshold: float = 0.5,
    name: str = "classify",
) -> Objective:
    """Any number of `classes` for a text: a logistic regression for each, on one pooled segment.

    The batch's `labels` are int [B, S, classes], 1 for each class that holds, as `train.data.rows:label_examples` makes
    them where it is given a `separator`. The loss is the mean over classes of -log sigmoid(+-logit), and over segments.
    The head and its options are those of `classify`, a checkpoint of which is carried leaf by leaf.
    `predict` gives `probabilities` [B, S, classes] and `prediction` int32 likewise, 1 where one reaches `threshold`.
    Raises ValueError for no class, a threshold that is no probability, an unknown pooling, and labels of another kind
    or number.
    """
    if classes < 1:
        raise ValueError(f"multilabel needs at least 1 class, not {classes}")
    if not 0 < threshold < 1:
        raise ValueError(f"multilabel threshold={threshold} is a probability, between 0 and 1")
    head = pooled_head(
        backbone.config, classes, pooling=pooling, activation=activation, norm=norm, dropout=dropout, name=name
    )

    def logits(params: dict, encode, batch, key) -> Array:
        return head.apply(params[name], encode, batch, key)

    def loss(params: dict, encode, batch, key, step) -> Sums:
        present_BS, logits_BSC = present(batch), logits(params, encode, batch, key)
        labels_BSC = classes_of(batch, "multilabel", several=classes)
        # log(1 + exp(x)) - y x: both signs in one, and finite for any logit
        nll_BS = (jax.nn.softplus(logits_BSC) - labels_BSC * logits_BSC).mean(-1)
        return Sums({name: Term((nll_BS * present_BS).sum(), present_BS.sum())})

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        p_BSC = jax.nn.sigmoid(logits(params, encode, batch, key))
        return dict(prediction=(p_BSC >= threshold).astype(jnp.int32), probabilities=p_BSC)

    scores = ("exact_match", "f1_micro", "f1_macro")
    return Objective(name, loss, predict, head.init, head.axes, scores=scores, needs=("labels",), says="class")

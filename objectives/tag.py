"""Tagging: a class for each word, as its part of speech or the entity it belongs to."""

import jax
import jax.numpy as jnp

from model import ops
from model.heads import token_head
from model.types import Backbone
from objectives.types import Array, Objective, Ratio, Sums, Term, Vocab


def tag(
    backbone: Backbone,
    vocab: Vocab,
    *,
    classes: tuple[str, ...],
    activation: str | None = None,
    norm: bool = False,
    dropout: float = 0.1,
    name: str = "tag",
) -> Objective:
    """Cross-entropy over `classes` at the first token of each word: the mean of -log softmax(W h_i + b)[tag_i] (Devlin
    et al. 2018, https://arxiv.org/abs/1810.04805, section 5.3).

    The batch's `tags` are int32 [B, L], 1 + the class, and 0 at every token that has none, which counts for nothing;
    `train.data.words:tag_words` makes them. `activation` and `norm` are those of `model.heads.token_head`.
    `predict` gives, at every token, `prediction` int32 [B, L] and `probabilities` [B, L, classes].
    Where the names are those of IOB or IOBES (O, and B-, I-, E- or S- before a kind of entity), evaluation finds
    `entity_f1` beside the accuracy, see `train.evaluate.score`.
    Raises ValueError for fewer than two classes, one that is named twice, or a string for their tuple.
    """
    if isinstance(classes, str) or len(set(classes)) != len(classes) or len(classes) < 2:
        raise ValueError(f"tag classes={classes!r}: expected a tuple of at least two names, none twice")
    head = token_head(backbone.config, len(classes), activation=activation, norm=norm, dropout=dropout, name=name)
    entities = all(c == "O" or c.startswith(("B-", "I-", "E-", "S-")) for c in classes)

    def logits(params: dict, encode, batch, key) -> Array:
        return head.apply(params[name], encode(batch, key).hidden, batch, key)

    def loss(params: dict, encode, batch, key, step) -> Sums:
        class_BL = batch["tags"] - 1
        there_BL = (class_BL >= 0).astype(jnp.float32)
        nll_BL, hit_BL = ops.cross_entropy(logits(params, encode, batch, key), jnp.maximum(class_BL, 0))
        count = there_BL.sum()
        return Sums(
            {name: Term((nll_BL * there_BL).sum(), count)},
            {f"{name}_accuracy": Ratio((hit_BL * there_BL).sum(), count)},
        )

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        p_BLC = jax.nn.softmax(logits(params, encode, batch, key))
        return dict(prediction=p_BLC.argmax(-1).astype(jnp.int32), probabilities=p_BLC)

    scores = ("entity_f1",) if entities else ()
    return Objective(
        name, loss, predict, head.init, head.axes, scores=scores, needs=("tags",), truth="tags",
        classes=tuple(classes), says="tags",
    )  # fmt: skip

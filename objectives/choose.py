"""Multiple choice: one of a group of segments is right, as the answer to a question among several."""

import jax
import jax.numpy as jnp

from model import ops
from model.heads import pooled_head
from model.types import Backbone
from objectives.groups import CORPUS, check_scores, together
from objectives.types import Array, Objective, Ratio, Sums, Term, Vocab


def choose(
    backbone: Backbone,
    vocab: Vocab,
    *,
    pooling: str = "first",
    activation: str = "tanh",
    norm: bool = False,
    dropout: float = 0.1,
    scores: tuple[str, ...] = (),
    name: str = "choose",
) -> Objective:
    """A number for each segment, and cross-entropy over those of a group (Radford et al. 2018, section 3.2; Zellers et
    al. 2018, https://arxiv.org/abs/1808.05326, as BERT is finetuned on it).

    Rows hold groups, as `train.data.groups:text_groups` with `joined` makes them: a question with each of its choices,
    a query with each candidate. `labels` [B, S] are above 0 at the right segment; of several right ones each is a
    choice by itself. See `objectives.classify` for the head's options.
    `predict` gives `logits` float32 [B, S], and of rows with groups `prediction` float32 [B, S], the probability of
    each within its group. `scores` rank by it, see `train.ranking`: ("mrr", "ndcg@10"). Pairs that are judged each for
    itself, with no group to choose from, are `objectives.classify` or `regress` on the rows of `label_examples`.
    """
    check_scores(name, scores)
    if afar := [score for score in scores if score.startswith(CORPUS)]:
        raise ValueError(
            f"choose reads each candidate with its question, and cannot rank a whole corpus by {afar[0]!r}"
        )
    head = pooled_head(
        backbone.config, 1, pooling=pooling, activation=activation, norm=norm, dropout=dropout, name=name
    )

    def logits(params: dict, encode, batch, key) -> Array:
        return head.apply(params[name], encode, batch, key)[..., 0]

    def loss(params: dict, encode, batch, key, step) -> Sums:
        own_BS = logits(params, encode, batch, key)
        right_BS = (batch["labels"] > 0).astype(jnp.float32)
        nll_BS, hit_BS = ops.cross_entropy(_choices(own_BS, batch), _places(batch))
        count = right_BS.sum()
        return Sums(
            {name: Term((nll_BS * right_BS).sum(), count)},
            {f"{name}_accuracy": Ratio((hit_BS * right_BS).sum(), count)},
        )

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        own_BS = logits(params, encode, batch, key)
        if "group" not in batch:
            return dict(logits=own_BS)
        p_BSS = jax.nn.softmax(_choices(own_BS, batch))
        return dict(logits=own_BS, prediction=jnp.diagonal(p_BSS, axis1=1, axis2=2))

    def refuse(rows: dict) -> str:
        if (rows["labels"] > 0).any():
            return ""
        N = len(rows["labels"])
        return f"chooses the texts that have a label above 0, and in the {N} rows looked at there is none"

    return Objective(
        name, loss, predict, head.init, head.axes, scores=tuple(scores), needs=("labels", "group", "types"),
        refuse=refuse, says="choice",
    )  # fmt: skip


def _choices(own_BS: Array, batch) -> Array:
    """[B, S, S]: for each segment the logits of its group, and next to nothing for what is not in it."""
    apart = jnp.asarray(-1e9, own_BS.dtype)  # finite: an empty place is in no group
    return jnp.where(together(batch), own_BS[:, None, :], apart)


def _places(batch) -> Array:
    return jnp.broadcast_to(jnp.arange(batch["group"].shape[1]), batch["group"].shape)

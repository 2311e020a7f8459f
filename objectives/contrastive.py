"""Contrastive learning of one vector a text: near to that of its positive, far from all others of the batch."""

import math

import jax.numpy as jnp
import numpy as np

from model import ops, random
from model.heads import members, pooled, present
from model.types import Backbone
from objectives.groups import check_scores, leaders
from objectives.types import Array, Objective, Ratio, Sums, Term, Vocab

POSITIVES, SIMILARITIES = ("dropout", "group"), ("cosine", "dot")


def contrastive(
    backbone: Backbone,
    vocab: Vocab,
    *,
    positives: str = "dropout",
    pooling: str = "mean",
    similarity: str = "cosine",
    temperature: float = 0.05,
    scores: tuple[str, ...] = (),
    name: str = "contrastive",
) -> Objective:
    """Cross-entropy of an anchor's positive among the candidates of the whole batch, over all devices and microbatches:
    -log exp(s(a, p) / T) / sum over candidates c of exp(s(a, c) / T) (InfoNCE, van den Oord et al. 2018,
    https://arxiv.org/abs/1807.03748). A candidate that is the same text as the anchor or as its positive, token by
    token, is no negative of it, and left out of the sum: texts come twice in a data set, and at the end of an epoch.

    positives: "dropout": every segment is encoded twice, with other units dropped; the first view is the anchor, the
               second views are the candidates (SimCSE, Gao et al. 2021, https://arxiv.org/abs/2104.08821, equation 4).
               "group": of each group (rows of `train.data.groups:text_groups`) the first segment is the anchor, the
               second its positive, and the rest hard negatives; candidates are the second and later ones of all groups
               (equation 5)
    pooling:   one of `model.heads.pooled`
    similarity:  s, "cosine" or "dot"
    temperature: T
    scores:    of evaluations on groups with labels: how `prediction` correlates with a similarity ("spearman") or ranks
               a group's candidates ("mrr", see `train.ranking`); with "corpus_" before it, as "corpus_recall@10", of
               rankings of all candidates of the data set

    `predict` gives `embedding` float32 [B, S, D], of length one where similarity is cosine; of rows with groups also
    `prediction` float32 [B, S], the similarity to the first of the group, and `scored` bool [B, S], false for that
    first one itself.
    Dropout alone tells the views of "dropout" apart: in evaluation, without, its loss is of equal views. The loss hangs
    on how many texts are compared: those of evaluations compare where their batches are alike. "group" reads no labels:
    a record's second text is its first's positive, whatever they say.
    Raises ValueError for a word that is none of these, a temperature that is not positive, and while tracing for a
    batch with room for one text, and where two views are to be trained without dropout.
    """
    for key, value, known in (("positives", positives, POSITIVES), ("similarity", similarity, SIMILARITIES)):
        if value not in known:
            raise ValueError(f"contrastive {key}={value!r} must be one of {', '.join(known)}")
    if not 0 < temperature < math.inf:
        raise ValueError(f"contrastive temperature={temperature} divides the similarities and must be above 0")
    check_scores(name, scores)
    head = pooled(backbone.config, pooling)

    def embed(params: dict, encode, batch, key) -> Array:
        x_BSD = ops.wide(head.apply(params.get(name, {}), encode, batch, key))
        if similarity == "dot":
            return x_BSD
        square_BS1 = jnp.einsum("BSD,BSD->BS", x_BSD, x_BSD, precision="highest")[..., None]
        return x_BSD / jnp.sqrt(jnp.maximum(square_BS1, 1e-24))  # no less, for places without a segment

    def loss(params: dict, encode, batch, key, step) -> Array:
        """[B, S, views, D]."""
        if positives == "group":
            return embed(params, encode, batch, key)[:, :, None]
        if key is not None and not max(backbone.config.dropout, backbone.config.attention_dropout):
            raise ValueError(
                f"{name} tells two views of a text apart by the backbone's dropout, which is 0: set backbone "
                "dropout=0.1, attention_dropout=0.1"
            )
        return jnp.stack([embed(params, encode, batch, random.view(key, number)) for number in (0, 1)], 2)

    def join(params: dict, outputs: Array, batch) -> Sums:
        D = outputs.shape[-1]
        anchors_ND, candidates_ND = (outputs[:, :, view].reshape(-1, D) for view in (0, -1))
        N = len(anchors_ND)
        if N < 2:
            raise ValueError(
                "contrastive compares the texts of a batch, and this one holds a single text: a larger batch"
            )
        text_N2 = _texts(batch).reshape(N, 2)
        if positives == "group":
            group_BS = batch["group"]
            first_BS = (leaders(batch) == jnp.arange(group_BS.shape[1])[None]) & (group_BS > 0)
            candidate_N = ((group_BS > 0) & ~first_BS).reshape(-1)
            anchor_N = (first_BS & (jnp.pad(group_BS[:, 1:], ((0, 0), (0, 1))) == group_BS)).reshape(-1)
            positive_N = jnp.minimum(jnp.arange(N) + 1, N - 1)
        else:
            anchor_N = candidate_N = present(batch).reshape(-1) > 0
            positive_N = jnp.arange(N)
        scores_NN = jnp.einsum("AD,CD->AC", anchors_ND, candidates_ND, precision="highest") / temperature
        alike_NN = _alike(text_N2, text_N2) | _alike(ops.take(text_N2, positive_N), text_N2)
        negative_NN = candidate_N[None] & ~alike_NN
        counted_NN = negative_NN | (positive_N[:, None] == jnp.arange(N)[None])
        scores_NN = jnp.where(counted_NN, scores_NN, jnp.asarray(-1e9, scores_NN.dtype))
        nll_N, hit_N = ops.cross_entropy(scores_NN, positive_N)
        anchor_N = anchor_N.astype(jnp.float32)
        count = anchor_N.sum()
        return Sums(
            {name: Term((nll_N * anchor_N).sum(), count)}, {f"{name}_accuracy": Ratio((hit_N * anchor_N).sum(), count)}
        )

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        x_BSD = embed(params, encode, batch, key)
        if "group" not in batch:
            return dict(embedding=x_BSD)
        first_BS = leaders(batch)
        likeness_BS = jnp.einsum("BSD,BSD->BS", x_BSD, ops.pick(x_BSD, first_BS), precision="highest")
        scored_BS = (batch["group"] > 0) & (first_BS != jnp.arange(first_BS.shape[1])[None])
        return dict(embedding=x_BSD, prediction=likeness_BS, scored=scored_BS)

    def refuse(rows: dict) -> str:
        if positives == "dropout":
            return ""
        group_NS = rows["group"]
        length_NS = (rows["segments"][:, None] == np.arange(1, group_NS.shape[1] + 1)[None, :, None]).sum(-1)
        follows_NS = (group_NS > 0) & (group_NS == np.pad(group_NS[:, :-1], ((0, 0), (1, 0))))
        if (length_NS[follows_NS] > 2).any():  # more than [CLS] and [SEP]
            return ""
        return (
            f"draws a text near to the second of its group, and in the {len(group_NS)} rows looked at no group has a "
            "second that is not empty: see which columns the source's pair= and more= name"
        )

    return Objective(
        name, loss, predict, head.init, head.axes, join=join, scores=tuple(scores), scored=("group",), refuse=refuse,
        needs=("group",) if positives == "group" else (),
    )  # fmt: skip


def _texts(batch) -> Array:
    """uint32 [B, S, 2]: two hashes of each segment's tokens, equal where these are."""
    each_BL, of_BSL = random.fold(random.key(0), batch["tokens"], batch["positions"]), members(batch)

    def added(site: str) -> Array:
        return jnp.where(of_BSL, random.fold(each_BL, site)[:, None], 0).sum(-1, dtype=jnp.uint32)

    return jnp.stack([added("first"), added("second")], -1)


def _alike(a_N2: Array, b_N2: Array) -> Array:
    return (a_N2[:, None] == b_N2[None]).all(-1)

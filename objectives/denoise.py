"""The whole text from a spoilt one: tokens hidden or replaced, shuffled in windows, spans out of order."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from model import ops, random
from model.heads import mlm_head, score_words, words
from model.types import Backbone
from objectives.masking import Rate, masking, ordinary
from objectives.spans import ordered, permuted, stretch
from objectives.types import Array, Objective, Ratio, Sums, Term, Vocab


def denoise(
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
    shuffle: float = 0.05,
    window: int = 3,
    permute: float = 0.0,
    tied: bool = True,
    softcap: float | None = None,
    activation: str = "layers",
    name: str = "denoise",
) -> Objective:
    """The mean of -log p(x_i | the spoilt text) over all ordinary tokens of the text as it was, each predicted at its
    own place.

    Spoilt in this order: tokens change places within windows (StructBERT's word structural objective, Wang et al. 2019,
    https://arxiv.org/abs/1908.04577, section 2.2, which takes the loss where tokens moved or are hidden alone), spans
    change places (as sentences in BART, Lewis et al. 2019, https://arxiv.org/abs/1910.13461, section 2.2), and tokens
    at chosen places are hidden. Special tokens stay, and nothing moves past one. What changes a text's length, as
    deletion and infilling, leaves open which place is to predict which token: that needs a decoder.

    Every token reaches the vocabulary: about 1 / rate times the head's cost in `objectives.mlm`.

    Args:
      rate, mask, replace, choice, unit, span, ngrams: of what is hidden, see `objectives.mlm.mlm`; mask=0 and
        replace=0 hide nothing, whatever else they are.
      shuffle: share of the windows, of `window` tokens, whose tokens are put in a random order.
      permute: share of the segments whose spans (runs of words with mean length `span`) are put in a random order.
      tied, softcap, activation: see `model.heads.mlm_head`.

    A corrupted row holds under `name` `target` int32 [L], `weight` float32 [L], 1 at ordinary tokens, and `changed`
    float32 [L], 1 at those that are no longer what they were.
    `predict` gives `prediction` int32 [B, L], the likeliest token at every place, and its `probability` [B, L].
    Raises ValueError for shares outside [0, 1], a window below 2, or an unknown choice or unit.
    """
    hide = None
    if not (mask or replace or shuffle or permute):
        raise ValueError(f"{name} hides nothing and moves nothing: each token would be read where it is predicted")
    if not span >= 1:
        raise ValueError(f"{name} span={span} is a mean length in words and must be at least 1")
    if mask or replace:
        hide = masking(
            name, vocab, rate=rate, mask=mask, replace=replace, choice=choice, unit=unit, span=span, ngrams=ngrams
        )
    for what, share in dict(shuffle=shuffle, permute=permute).items():
        if not 0 <= share <= 1:
            raise ValueError(f"{name} {what}={share} must be a share between 0 and 1")
    if window < 2:
        raise ValueError(f"{name} window={window} must be 2 tokens or more, or nothing can change places")
    absent_V = vocab.absent(backbone.config.V)
    head = mlm_head(backbone.config, absent_V, tied=tied, softcap=softcap, activation=activation)
    logits = partial(words, head, name)

    def corrupt(key: Array, row: dict, step: Array) -> dict:
        key = random.fold(key, name)
        tokens_L, ids_L, ordinary_L = row["tokens"], random.tokens(row), ordinary(row, vocab)
        new_L = tokens_L
        if shuffle:
            new_L = ops.take(new_L, shuffled(random.fold(key, "shuffle"), row, ordinary_L, shuffle, window))
        if permute:
            own = random.fold(key, "permute")
            new_L = ops.take(new_L, permuted(own, row | {"tokens": new_L}, vocab, permute, span))
        if hide is not None:
            chosen_L, _, units_L = hide.choose(key, row | {"tokens": new_L}, step)
            new_L = jnp.where(chosen_L, hide.replaced(key, ids_L, units_L, new_L), new_L)
        mine = dict(weight=ordinary_L.astype(jnp.float32), changed=(new_L != tokens_L).astype(jnp.float32))
        return row | {"tokens": new_L, name: mine | {"target": tokens_L}}

    def loss(params: dict, encode, batch, key, step) -> Sums:
        mine = batch[name]
        nll_BL, hit_BL = score_words(
            backbone.config, partial(logits, params), encode(batch, key).hidden, mine["target"]
        )
        weight_BL, changed_BL = mine["weight"], mine["changed"]
        count = weight_BL.sum()
        metrics = {
            f"{name}_accuracy": Ratio((hit_BL * weight_BL).sum(), count),
            f"{name}_repaired": Ratio((hit_BL * changed_BL).sum(), changed_BL.sum()),  # accuracy on the changed
            f"{name}_changed": Ratio(changed_BL.sum(), count),
        }
        return Sums({name: Term((nll_BL * weight_BL).sum(), count)}, metrics)

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        p_BLV = jax.nn.softmax(logits(params, encode(batch, key).hidden, wide=True))
        return dict(prediction=p_BLV.argmax(-1).astype(jnp.int32), probability=p_BLV.max(-1))

    return Objective(name, loss, predict, head.init, head.axes, corrupt, says="mask")


def shuffled(key: Array, row: dict, ordinary_L: Array, share: float, window: int) -> Array:
    """int32 [L]: which place each place's token comes from. A share of the windows, of so many ordinary tokens (the
    last before a special token or a segment's end may be shorter), is in a random order.
    """
    ids_L, first_L = random.tokens(row), stretch(row, ordinary_L)
    place_L = jnp.arange(ids_L.size)
    begin_L = place_L - (place_L - first_L) % window  # of the window
    drawn_L = random.uniform(random.fold(key, "window"), ids_L)[begin_L] < share
    luck_L = jnp.where(drawn_L, random.uniform(random.fold(key, "order"), ids_L), 0.0)
    return ordered(begin_L, luck_L)

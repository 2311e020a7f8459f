"""Masked language modelling: hide some tokens, predict them from the rest (Devlin et al. 2018)."""

from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp

from model import ops
from model.heads import bag_head, boundary_head, mlm_head, score_words, words
from model.types import Backbone
from objectives.hiding import boundaries, hiding, surplus_share
from objectives.likelihood import pseudo
from objectives.masking import Rate
from objectives.types import Array, Objective, Ratio, Sums, Term, Vocab


def mlm(
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
    tied: bool = True,
    softcap: float | None = None,
    activation: str = "layers",
    bag: float = 0.0,
    boundary: float = 0.0,
    name: str = "mlm",
) -> Objective:
    """BERT's objective (Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 3.1, task 1): the mean over the
    chosen positions i of -log p(x_i | what is seen of x).

    Args:
      rate: share of the ordinary tokens that is chosen; or three numbers, (0.3, 0.15, 10_000): it goes from the first
        to the second in a straight line over so many steps, and stays there (Ankner et al. 2024,
        https://arxiv.org/abs/2305.15096, section 2); evaluation keeps the first.
      mask, replace: shares of the chosen that become [MASK], or a random ordinary token; the rest stay as they are.
        Each token by itself, of a word too; with unit="span" all of a span alike, as in SpanBERT.
      choice: "exact" chooses rate * n of a segment's n units, rounded at random; "independent" draws each unit with
        probability `rate`. Either way each token is hidden at the rate, of a long word as of a short one.
      unit: what is chosen together: "token", "word" (pieces of a word; Cui et al. 2019,
        https://arxiv.org/abs/1906.08101), "span" (runs of whole words, geometric in length with mean `span` words,
        as in SpanBERT, https://arxiv.org/abs/1907.10529, but not cut at ten words) or "ngram" (occurrences of
        `ngrams`, and else words). A segment that is one unit, as a short one of a span may be, is hidden whole, or not.
      ngrams: for unit="ngram", n-grams of token ids, or a file with one a line, its ids parted by spaces. Found from
        left to right, the longest first, where they are whole words; collocations by their pointwise mutual
        information, as `train.data.collocations` lists those of prepared rows, make the PMI-masking of Levine et al.
        2020 (https://arxiv.org/abs/2010.01825, section 3).
      capacity: positions a row that reach the vocabulary, as a share of the row; None is room enough that a surplus
        is rare. A surplus stays unmasked, in whole units, and is counted in the metric `surplus`.
      tied, softcap, activation: see `model.heads.mlm_head`.
      bag: coefficient of a second term, `{name}_bag`, in which the segment as a whole predicts what was hidden in it:
        cross-entropy of the same targets under one distribution a segment, made from the mean state of its tokens
        that were not chosen (bag-of-words prediction; Ma et al. 2024, https://arxiv.org/abs/2401.11248, section 3.2,
        here of the hidden tokens alone). It teaches what a text is about, which the term by position learns last.
      boundary: coefficient of a term `{name}_boundary`, SpanBERT's span-boundary objective (section 3.2): each hidden
        token of a run is predicted again, from the states of the two tokens beside the run and its place in it alone.
        A run that begins or ends its segment has but one, and is left out.

    A corrupted row holds under `name` what `objectives.hiding.hiding` says, and with `boundary` what
    `objectives.hiding.boundaries` says too.
    Raises ValueError for shares outside [0, 1], an unknown choice or unit, a negative coefficient, and n-grams without
    unit="ngram" or the other way round.
    """
    hide = hiding(
        name, vocab, rate=rate, mask=mask, replace=replace, choice=choice, unit=unit, span=span, ngrams=ngrams,
        capacity=capacity,
    )  # fmt: skip
    for what, coefficient in dict(bag=bag, boundary=boundary).items():
        if not 0 <= coefficient < jnp.inf:
            raise ValueError(f"{name} {what}={coefficient} is the coefficient of a loss term and must not be negative")
    absent_V = vocab.absent(backbone.config.V)
    head = mlm_head(backbone.config, absent_V, tied=tied, softcap=softcap, activation=activation)
    logits = partial(words, head, name)
    whole, beside = bag_head(backbone.config), boundary_head(backbone.config)

    def corrupt(key: Array, row: dict, step: Array) -> dict:
        row = hide(key, row, step)
        return row | {name: row[name] | boundaries(row, name)} if boundary else row

    def bag_term(params: dict, hidden_BLD: Array, batch) -> Term:
        mine = batch[name]
        said_BSV = whole.apply(params[name]["bag"], hidden_BLD, batch | {"segments": mine["seen"]})
        logp_BSV = jax.nn.log_softmax(ops.without(said_BSV, absent_V))
        segment_BP = ops.pick(batch["segments"], mine["index"])
        row_B1 = jnp.arange(len(segment_BP))[:, None]
        logp_BP = ops.take(logp_BSV, row_B1, jnp.maximum(segment_BP - 1, 0), mine["target"])
        return Term(-(logp_BP * mine["weight"]).sum(), mine["weight"].sum(), bag)

    def boundary_term(params: dict, beside_BPD: list[Array], mine: dict) -> Term:
        tokens_VE = params["backbone"]["embed"]["tokens"]
        said_BPV = beside.apply(params[name]["boundary"], *beside_BPD, mine["place"], tokens_VE)
        nll_BP, _ = ops.cross_entropy(ops.without(said_BPV, absent_V), mine["target"])
        return Term((nll_BP * mine["bounded"]).sum(), mine["bounded"].sum(), boundary)

    def loss(params: dict, encode, batch, key, step) -> Sums:
        mine = batch[name]
        wanted = [mine["index"], *((mine["left"], mine["right"]) if boundary else ())]
        at = jnp.concatenate(wanted, 1)
        # all places are read where the whole segment predicts, else those wanted alone
        hidden = encode(batch, key, at=None if bag else at).hidden
        hidden_BPD, *beside_BPD = jnp.split(ops.pick(hidden, at) if bag else hidden, len(wanted), 1)
        nll_BP, hit_BP = score_words(backbone.config, partial(logits, params), hidden_BPD, mine["target"])
        weight_BP = mine["weight"]
        count = weight_BP.sum()
        terms = {name: Term((nll_BP * weight_BP).sum(), count)}
        if bag:
            terms[f"{name}_bag"] = bag_term(params, hidden, batch)
        if boundary:
            terms[f"{name}_boundary"] = boundary_term(params, beside_BPD, mine)
        accuracy = Ratio((hit_BP * weight_BP).sum(), count)
        return Sums(terms, {f"{name}_accuracy": accuracy, f"{name}_surplus": surplus_share(mine)})

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        """The likeliest token at every position, int32 [B, L], and its probability [B, L]."""
        p_BLV = jax.nn.softmax(logits(params, encode(batch, key).hidden, wide=True))
        return dict(prediction=p_BLV.argmax(-1).astype(jnp.int32), probability=p_BLV.max(-1))

    more = {k: part for k, part in dict(bag=whole, boundary=beside).items() if dict(bag=bag, boundary=boundary)[k]}

    def init(key: Array) -> dict:
        keys = jax.random.split(jax.random.fold_in(key, 1), 2)  # the head's own key is as without these
        return head.init(key) | {k: part.init(own) for (k, part), own in zip(more.items(), keys, strict=False)}

    axes = head.axes | {k: part.axes for k, part in more.items()}
    of = pseudo(partial(logits, wide=True), vocab)
    return Objective(name, loss, predict, init, axes, corrupt, likelihood=of, says="mask")

"""Objectives on two spans that follow each other: is the second the next, and are they in order."""

import jax
import jax.numpy as jnp
import numpy as np

from model import ops, random
from model.heads import pooled_head, present
from model.types import Backbone
from objectives.types import Array, Objective, Ratio, Sums, Term, Vocab


def nsp(backbone: Backbone, vocab: Vocab, *, rate: float = 0.5, dropout: float = 0.1, name: str = "nsp") -> Objective:
    """Next-sentence prediction (Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 3.1, task 2): the mean
    over pairs of -log p(label | A, B), by a softmax of BERT's pooler.

    Rows hold pairs packed, as `train.data.rows:pair_sentences` with `segments` makes them. The pairs of a row whose
    second spans are nearest in length make couples (the last of an odd number three), and each couple exchanges its
    second spans with probability `rate`. Exchanged or not, these lose tokens at their end until all of a couple have
    one length, drawn between three quarters of their shortest and all of it but a token. So neither lengths tell the
    label nor which spans end with a sentence (the paper draws other texts to one length, and cuts a few). A pair that
    has a row to itself, or no second span, counts for nothing. With whom a pair changes hangs on how pairs are packed
    (`pair_sentences` puts those of a document in different rows): this objective is exempt from invariance to packing.

    A corrupted row holds the new `tokens`, `segments`, `positions` and `types`, and under `name` `label` int32 [S], 0
    where the second span follows the first and 1 where it does not.
    `predict` gives `prediction` int32 [B, S] and `probabilities` [B, S, 2].
    Raises ValueError unless `rate` lies between 0 and 1, and for rows that hold one pair alone; rows are refused of
    which none holds two.
    """
    if not 0 < rate < 1:
        raise ValueError(f"{name} rate={rate} is the share of pairs that lose their second span, between 0 and 1")

    def corrupt(key: Array, row: dict, step: Array) -> dict:
        if row["example"].shape[0] < 2:
            raise ValueError(
                f"{name} changes the second spans of the pairs that share a row, and these rows hold one pair: set the "
                f"data's segments=4, or the like"
            )
        key, ids_S = random.fold(key, name), random.segments(row)
        first_S, second_S = lengths(row)
        there_S = second_S > 1  # a [SEP] alone is no span
        next_S, shortest_S = _couples(second_S, there_S, random.uniform(random.fold(key, "couple"), ids_S))
        counted_S = there_S & (there_S.sum() > 1)
        # one draw for all of a couple
        changed_S = counted_S & (ops.take(random.uniform(key, ids_S), shortest_S) < rate)
        source_S = jnp.where(changed_S, next_S, jnp.arange(len(ids_S)))
        share_S = 1 - random.uniform(random.fold(key, "cut"), ids_S) / 4
        words_S = jnp.minimum(((second_S - 1) * share_S).astype(jnp.int32), second_S - 2)
        kept_S = jnp.where(counted_S, ops.take(jnp.maximum(words_S, 1) + 1, shortest_S), second_S)
        row = _joined(row, first_S, second_S, source_S, kept_S, vocab.pad)
        return row | {name: dict(label=changed_S.astype(jnp.int32), there=counted_S.astype(jnp.float32))}

    def refuse(rows: dict) -> str:
        spans_NS = _spans(rows) > 1
        if (spans_NS.sum(-1) > 1).any() or spans_NS.shape[1] < 2:  # which is refused while tracing
            return ""
        return (
            f"changes the second spans of pairs that share a row, and in the {len(spans_NS)} rows looked at each pair "
            "with one has a row to itself: make the pairs shorter (longest=), or the rows longer"
        )

    return _binary(backbone, name, corrupt, dropout)._replace(refuse=refuse)


def _spans(rows: dict) -> np.ndarray:
    """int [N, S]: tokens of type 1 of each packed segment."""
    of_NSL = rows["segments"][:, None] == np.arange(1, rows["example"].shape[1] + 1)[None, :, None]
    return (of_NSL & (rows["types"] == 1)[:, None]).sum(-1)


def _couples(second_S: Array, there_S: Array, luck_S: Array) -> tuple[Array, Array]:
    """int32 [S], twice: the next pair in each pair's couple, of three round it, and the couple's pair with the shortest
    second span. Neighbours in the order of length make a couple, the last of an odd number with the two before it.
    """
    S, n = len(second_S), there_S.sum()
    order_S = jnp.lexsort((luck_S, jnp.where(there_S, second_S, jnp.iinfo(second_S.dtype).max)))
    place_S = jnp.zeros_like(order_S).at[order_S].set(jnp.arange(S))
    couple_of = lambda place_S: jnp.minimum(place_S // 2, jnp.maximum(n // 2 - 1, 0))
    shortest_S = jnp.minimum(2 * couple_of(place_S), S - 1)
    inside_S = (place_S + 1 < n) & (couple_of(place_S + 1) == couple_of(place_S))
    return ops.take(order_S, jnp.where(inside_S, place_S + 1, shortest_S)), ops.take(order_S, shortest_S)


def sop(backbone: Backbone, vocab: Vocab, *, rate: float = 0.5, dropout: float = 0.1, name: str = "sop") -> Objective:
    """Sentence-order prediction (Lan et al. 2019, https://arxiv.org/abs/1909.11942, section 3.1): the spans of a pair
    change places with probability `rate`, and the loss is the mean over pairs of -log p(whether they did).

    Rows hold pairs, as `train.data.rows:pair_sentences` makes them. A corrupted row holds the new `tokens` and `types`,
    and under `name` `label` int32 [S], 1 where they changed, and `there` float32 [S], 0 of a text alone, which is
    neither changed nor counted. `predict` as of `nsp`.
    Raises ValueError unless `rate` lies between 0 and 1; rows are refused whose spans two separators part (as RoBERTa's
    tokenizer has it in `label_examples`).
    """
    if not 0 < rate < 1:
        raise ValueError(f"{name} rate={rate} is the share of pairs that change order, between 0 and 1")

    def corrupt(key: Array, row: dict, step: Array) -> dict:
        first_S, second_S = lengths(row)
        luck_S = random.uniform(random.fold(key, name), random.segments(row))
        there_S = second_S > 1  # a [SEP] alone is no span
        changed_S = (luck_S < rate) & there_S
        index_L = jnp.maximum(row["segments"] - 1, 0)
        first_L, second_L, changed_L = (ops.take(x, index_L) for x in (first_S - 1, second_S, changed_S))
        at_L = row["positions"] - 1  # among the two spans, each with its [SEP]; the [CLS] stays
        from_L = (at_L + first_L) % jnp.maximum(first_L + second_L, 1)
        moves_L = changed_L & (at_L >= 0) & (row["segments"] > 0)
        place_L = jnp.arange(at_L.size)
        tokens_L = ops.take(row["tokens"], jnp.where(moves_L, place_L - at_L + from_L, place_L))
        types_L = jnp.where(moves_L, (at_L >= second_L).astype(row["types"].dtype), row["types"])
        mine = dict(label=changed_S.astype(jnp.int32), there=there_S.astype(jnp.float32))
        return row | {"tokens": tokens_L, "types": types_L, name: mine}

    def refuse(rows: dict) -> str:
        ends_NL = (rows["tokens"] == vocab.sep) & (rows["segments"] > 0)
        last_NL = ends_NL[:, 1:] & (rows["types"][:, 1:] == 0) & (rows["segments"][:, 1:] == rows["segments"][:, :-1])
        if not (last_NL & ends_NL[:, :-1]).any():
            return ""
        return (
            "changes the order of spans that end in one separator each, and in these rows the first ends in two, which "
            "would tell it: prepare them by train.data.rows:pair_sentences"
        )

    return _binary(backbone, name, corrupt, dropout)._replace(refuse=refuse)


def lengths(row: dict) -> tuple[Array, Array]:
    """int32 [S], twice: tokens of type 0 and of type 1 of each packed segment."""
    S = row["example"].shape[0]
    of_SL = row["segments"][None] == jnp.arange(1, S + 1)[:, None]
    second_S = (of_SL & (row["types"] == 1)[None]).sum(-1)
    return of_SL.sum(-1) - second_S, second_S


def _joined(row: dict, first_S: Array, second_S: Array, source_S: Array, kept_S: Array, pad: int) -> dict:
    """The row with each pair's second span taken from pair `source_S`, which is a permutation: of its tokens the first
    `kept_S` less one, and the last, [SEP].
    """
    L, S = row["tokens"].shape[0], len(first_S)
    start_S = jnp.argmax(row["segments"][None] == jnp.arange(1, S + 1)[:, None], -1)  # where each begins, as it is
    ends_S = jnp.cumsum(first_S + kept_S)
    place_L = jnp.arange(L)
    in_L = jnp.minimum((place_L[:, None] >= ends_S[None]).sum(-1), S - 1)  # the pair that lies there now
    at_L = place_L - ops.take(ends_S - first_S - kept_S, in_L)
    from_L = ops.take(source_S, in_L)
    first_L = ops.take(first_S, in_L)
    ends_L = at_L == first_L + ops.take(kept_S, in_L) - 1
    second_L = ops.take(start_S + first_S, from_L) + jnp.where(ends_L, ops.take(second_S, from_L) - 1, at_L - first_L)
    old_L = jnp.where(at_L < first_L, ops.take(start_S, in_L) + at_L, second_L)
    there_L = place_L < ends_S[-1]
    old_L = jnp.where(there_L, old_L, 0)
    new = dict(segments=in_L + 1, positions=at_L, types=at_L >= first_L)
    new = {k: jnp.where(there_L, v, 0).astype(row[k].dtype) for k, v in new.items()}
    return row | new | {"tokens": jnp.where(there_L, ops.take(row["tokens"], old_L), pad).astype(row["tokens"].dtype)}


def _binary(backbone: Backbone, name: str, corrupt, dropout: float) -> Objective:
    """Two classes on the pooled segment, by BERT's pooler."""
    head = pooled_head(backbone.config, 2, dropout=dropout, name=name)

    def loss(params: dict, encode, batch, key, step) -> Sums:
        present_BS = present(batch) * batch[name]["there"]
        logits_BSC = head.apply(params[name], encode, batch, key)
        nll_BS, hit_BS = ops.cross_entropy(logits_BSC, batch[name]["label"])
        count = present_BS.sum()
        accuracy, changed = (hit_BS * present_BS).sum(), (batch[name]["label"] * present_BS).sum()
        metrics = {f"{name}_accuracy": Ratio(accuracy, count), f"{name}_changed": Ratio(changed, count)}
        return Sums({name: Term((nll_BS * present_BS).sum(), count)}, metrics)

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        p_BSC = jax.nn.softmax(head.apply(params[name], encode, batch, key))
        return dict(prediction=p_BSC.argmax(-1).astype(jnp.int32), probabilities=p_BSC)

    return Objective(name, loss, predict, head.init, head.axes, corrupt, needs=("types",), says="class")

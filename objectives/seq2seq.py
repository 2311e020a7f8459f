"""Sequence to sequence: an encoder reads one stream, a decoder writes another. Both are made on device of one row."""

import math
from collections.abc import Callable
from functools import partial
from numbers import Real

import jax
import jax.numpy as jnp
import numpy as np

from model import beam, ops, random
from model.decoder import decoder
from model.heads import mlm_head, present, score_words
from model.types import Backbone
from objectives.masking import rank
from objectives.spans import permuted, spans
from objectives.types import Array, Objective, Ratio, Sums, Term, Vocab

NOISES = ("infill", "delete")
# (key, row) -> (read [L, R], kept bool [L, R], written [L, W], kept bool [L, W]): each place's tokens in two streams
_Task = Callable[[Array, dict], tuple[Array, Array, Array, Array]]


def translate(
    backbone: Backbone,
    vocab: Vocab,
    *,
    layers: int | None = None,
    source_length: int | None = None,
    target_length: int | None = None,
    smoothing: float = 0.0,
    tied: bool = True,
    beams: int = 1,
    penalty: float = 0.0,
    name: str = "seq2seq",
) -> Objective:
    """The second text of each pair from the first: the mean of -log p(y_t | y_0 .. y_{t-1}, x) over the target's tokens
    and its [SEP], by a decoder on the backbone (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762).

    Rows hold pairs, as `train.data.rows:label_examples` makes them: `[CLS] source [SEP] target [SEP]` with `types`. The
    encoder reads what is of type 0; the decoder writes what is of type 1, and reads [CLS] first. Segments of a row see
    nothing of each other.

    Any backbone is an encoder to it, and the decoder is the objective's own, under `{name}`: after `span_corruption` or
    `bart` it is carried by a rule, `carry=dict(stage="pretrain", rules=((r"(backbone|seq2seq)/(.*)", r"\\1/\\2"),))`;
    after an objective without a decoder it begins fresh.

    Args:
      layers: of the decoder; None for as many as the backbone has.
      source_length, target_length: places of a row in either stream, no more than the row's own; what does not fit is
        cut at the row's end. None for as many as the row has.
      smoothing: of the loss this share is that of a uniform distribution over the ids that can be written (Szegedy et
        al. 2015, https://arxiv.org/abs/1512.00567, section 7).
      tied: the decoder's outputs are scored by the backbone's token embeddings, which it reads by in any case.
      beams, penalty: of `predict`, see `model.beam.search`; one beam is greedy.

    A corrupted row is as it was, and holds under `name` `source`, a batch of `tokens`, `segments` and `positions`
    [source_length]; `target`, another, of what the decoder reads; `label` int32 [target_length], what it is to write;
    `surplus`, how many tokens of that were cut, and `lost`, how many of the source; of a segment whose source is lost
    whole nothing is written.
    `predict` gives `prediction` int32 [B, S, T], T the least of target_length and the backbone's max_length, which ends
    in [SEP] if it is finished, [PAD] following, `score` float32 [B, S], and `lost` float32 [B], how many tokens of a
    row's sources were not read. Of a row without types it reads all.
    Raises ValueError for what is out of bounds.
    """

    def task(key: Array, row: dict) -> tuple[Array, Array, Array, Array]:
        second_L = row["types"] == 1
        return row["tokens"][:, None], ~second_L[:, None], row["tokens"][:, None], second_L[:, None]

    return _objective(
        backbone, vocab, task, layers=layers, source_length=source_length, target_length=target_length,
        smoothing=smoothing, tied=tied, beams=beams, penalty=penalty, name=name, needs=("types",),
    )  # fmt: skip


def span_corruption(
    backbone: Backbone,
    vocab: Vocab,
    *,
    rate: float = 0.15,
    span: float = 3.0,
    sentinels: int = 100,
    layers: int | None = None,
    source_length: int | None = None,
    target_length: int | None = None,
    smoothing: float = 0.0,
    tied: bool = True,
    beams: int = 1,
    penalty: float = 0.0,
    name: str = "seq2seq",
) -> Objective:
    """T5's objective (Raffel et al. 2019, https://arxiv.org/abs/1910.10683, section 3.1.4): spans of a text are each
    replaced by a sentinel, and the decoder writes every sentinel and what it stands for, then [SEP] (the paper's
    targets have one more sentinel before it).

    Args:
      rate, span: the share of tokens in spans, and their mean length, see `objectives.spans.spans`. A segment's first
        and last token ([CLS] and [SEP]) are in none.
      sentinels: how many there are, the ids from `vocab.size` on, in a segment the first first.
      target_length: None for what is needed at most.
      the rest: see `translate`.

    A corrupted row and `predict` are as `translate` says; what is given to `predict` is read as it is.
    Raises ValueError where the backbone has no embeddings for the sentinels, a row may have more spans than there are
    sentinels, or a share or length cannot be; and for what `translate` refuses.
    """
    _check_spans("span_corruption", rate, span)
    if sentinels < 1 or vocab.size + sentinels > backbone.config.V:
        raise ValueError(
            f"span_corruption sentinels={sentinels} have the ids after the tokenizer's {vocab.size}, and the backbone "
            f"has V={backbone.config.V}: set backbone V={vocab.size + max(sentinels, 1)}"
        )

    def task(key: Array, row: dict) -> tuple[Array, Array, Array, Array]:
        L, S = row["tokens"].shape[0], row["example"].shape[0]
        _check_length("span_corruption", L, rate, span)
        most = math.ceil(_most(L, 1, rate) / span)
        if most > sentinels:
            raise ValueError(
                f"span_corruption: a row of {L} tokens may have {most} spans, and there are sentinels={sentinels}: set "
                f"sentinels={most} and backbone V={vocab.size + most}"
            )
        noise_L, last_L = _noise(key, row, rate, span), _last(row)
        starts_L = _starts(row, noise_L)
        of_SL = row["segments"][None] == jnp.arange(1, S + 1)[:, None]
        number_L = (jnp.cumsum(of_SL & starts_L[None], 1) * of_SL).sum(0) - 1
        sentinel_L = (vocab.size + number_L).astype(row["tokens"].dtype)
        written_L2 = jnp.stack([sentinel_L, jnp.where(last_L, vocab.sep, row["tokens"])], 1)
        kept_L2 = jnp.stack([starts_L, noise_L | last_L], 1)
        read_L = jnp.where(noise_L, sentinel_L, row["tokens"])
        return read_L[:, None], (starts_L | ~noise_L)[:, None], written_L2, kept_L2

    def enough(L: int, S: int) -> int:
        n = _most(L, S, rate)
        return min(L, math.ceil(n + n / span + S / 2) + S)

    return _objective(
        backbone, vocab, task, layers=layers, source_length=source_length, target_length=target_length,
        smoothing=smoothing, tied=tied, beams=beams, penalty=penalty, name=name, enough=enough, sentinels=sentinels,
    )  # fmt: skip


def bart(
    backbone: Backbone,
    vocab: Vocab,
    *,
    noise: str = "infill",
    rate: float = 0.3,
    span: float = 3.0,
    empty: float = 0.0,
    permute: float = 0.0,
    sentence: float = 20.0,
    layers: int | None = None,
    source_length: int | None = None,
    target_length: int | None = None,
    smoothing: float = 0.0,
    tied: bool = True,
    beams: int = 1,
    penalty: float = 0.0,
    name: str = "seq2seq",
) -> Objective:
    """BART's objective (Lewis et al. 2019, https://arxiv.org/abs/1910.13461, section 2.2): the decoder writes the whole
    text, of which the encoder reads what noise has left.

    Args:
      noise: "infill", each span becomes one [MASK], or "delete", nothing. Spans are `objectives.spans.spans`'.
      rate, span: as of `span_corruption`; of BART's deletion span=1.
      empty: with "infill", for each span about so many more that hold nothing: a [MASK] where no token was. Of BART's
        lengths, Poisson's of mean 3, one in 20 is 0: empty=0.05. Never more than tokens that the spans took away.
      permute: share of the texts whose sentences are read in a random order, as all of BART's are. Pieces tell no
        sentences: runs of `sentence` words or so stand for them.
      the rest: see `translate`.

    A corrupted row and `predict` are as `translate` says; what is given to `predict` is read as it is.
    Raises ValueError for another noise, a share or length that cannot be, and for what `translate` refuses.
    """
    if noise not in NOISES:
        raise ValueError(f"bart noise={noise!r} must be one of {', '.join(NOISES)}")
    _check_spans("bart", rate, span)
    if not 0 <= empty < math.inf or (empty and noise != "infill") or not 0 <= permute <= 1 or not sentence >= 1:
        raise ValueError(
            f"bart empty={empty}, permute={permute}, sentence={sentence} with noise={noise!r}: expected a number of "
            "empty spans for each span of infill, a share of the texts, and a mean length in words of at least 1"
        )

    def task(key: Array, row: dict) -> tuple[Array, Array, Array, Array]:
        _check_length("bart", row["tokens"].shape[0], rate, span)
        tokens_L, noise_L = row["tokens"], _noise(key, row, rate, span)
        written_L = jnp.where(_last(row), vocab.sep, tokens_L)
        if permute:
            own = random.fold(key, "permute")
            tokens_L = ops.take(tokens_L, permuted(own, row, vocab, permute, sentence))
        read_L = jnp.where(noise_L, vocab.mask, tokens_L)
        kept_L = ~noise_L | _starts(row, noise_L) if noise == "infill" else ~noise_L
        read_L1, kept_L1 = read_L[:, None].astype(tokens_L.dtype), kept_L[:, None]
        if empty:  # before any token but a segment's first, and not next to a span
            luck_L = random.uniform(random.fold(key, "empty"), random.tokens(row))
            here_L = (luck_L < empty * rate / span) & (row["positions"] > 0) & ~noise_L
            here_L &= ~jnp.zeros_like(noise_L).at[1:].set(noise_L[:-1])
            gone_LL = (row["segments"][:, None] == row["segments"][None]) & ~kept_L[None]
            here_L &= rank(row["segments"], luck_L, here_L) < gone_LL.sum(-1)  # no text is longer than it was
            read_L1 = jnp.concatenate([jnp.full_like(read_L1, vocab.mask), read_L1], 1)
            kept_L1 = jnp.concatenate([here_L[:, None], kept_L1], 1)
        return read_L1, kept_L1, written_L[:, None], (row["positions"] > 0)[:, None]

    return _objective(
        backbone, vocab, task, layers=layers, source_length=source_length, target_length=target_length,
        smoothing=smoothing, tied=tied, beams=beams, penalty=penalty, name=name,
    )  # fmt: skip


def _check_spans(name: str, rate: float, span: float) -> None:
    if not isinstance(rate, Real) or not 0 < rate < 1:
        raise ValueError(f"{name} rate={rate!r} is the share of tokens in spans, one number between 0 and 1")
    if not span >= 1:
        raise ValueError(f"{name} span={span} is a mean length in tokens and must be at least 1")


def _check_length(name: str, L: int, rate: float, span: float) -> None:
    if span > math.ceil(rate * L):
        raise ValueError(f"{name} span={span}: rows of {L} tokens have {math.ceil(rate * L)} in spans at rate={rate}")


def _most(L: int, S: int, rate: float) -> int:
    """Tokens in spans of a row, at most."""
    return math.ceil(rate * L) + S


def _last(row: dict) -> Array:
    """Whether a place is its segment's last."""
    after_L = jnp.zeros_like(row["segments"]).at[:-1].set(row["segments"][1:])
    return (row["segments"] > 0) & (row["segments"] != after_L)


def _noise(key: Array, row: dict, rate: float, span: float) -> Array:
    free_L = (row["segments"] > 0) & (row["positions"] > 0) & ~_last(row)
    return spans(key, row, free_L, rate=rate, span=span)


def _starts(row: dict, noise_L: Array) -> Array:
    """Where a span begins; no span is a segment's first token."""
    return noise_L & ~jnp.zeros_like(noise_L).at[1:].set(noise_L[:-1])


def _objective(
    backbone: Backbone,
    vocab: Vocab,
    task: _Task,
    *,
    layers: int | None,
    source_length: int | None,
    target_length: int | None,
    smoothing: float,
    tied: bool,
    beams: int,
    penalty: float,
    name: str,
    enough: Callable[[int, int], int] = lambda L, S: L,
    needs: tuple[str, ...] = (),
    sentinels: int = 0,
) -> Objective:
    """`enough` are the places that targets take, of rows of L tokens in S segments."""
    cfg = backbone.config
    for what, length in dict(source_length=source_length, target_length=target_length).items():
        if length is not None and length < 1:
            raise ValueError(f"{name} {what}={length} is a number of places in a row and must be at least 1")
    if not 0 <= smoothing < 1:
        raise ValueError(f"{name} smoothing={smoothing} is a share of the loss and must be in [0, 1)")
    if beams < 1 or not 0 <= penalty < math.inf or (beams == 1 and penalty):
        raise ValueError(
            f"{name} beams={beams}, penalty={penalty}: expected at least 1 beam, and a penalty above 0 of several alone"
        )
    absent_V = vocab.absent(cfg.V, sentinels)
    writer, head = decoder(cfg, backbone.constrain, layers=layers), mlm_head(cfg, absent_V, tied=tied, activation=None)
    banned_V = absent_V | np.isin(np.arange(cfg.V), np.setdiff1d([vocab.pad, vocab.cls, vocab.mask], [vocab.sep]))

    def corrupt(key: Array, row: dict, step: Array) -> dict:
        L, S = row["tokens"].shape[0], row["example"].shape[0]
        read_LR, kept_LR, written_LW, kept_LW = task(random.fold(key, name), row)
        source, lost = _stream(row, read_LR, kept_LR, min(source_length or L, L))
        there_S = (source["segments"][None] == jnp.arange(1, S + 1)[:, None]).any(-1)  # of others nothing is read
        read_LW = kept_LW & ops.take(there_S, jnp.maximum(row["segments"] - 1, 0))[:, None]
        target, surplus = _stream(row, written_LW, read_LW, min(target_length or enough(L, S), L))
        surplus += ((kept_LW & ~read_LW).sum(1) * (row["segments"] > 0)).sum()
        label_T = target["tokens"]
        before_T = jnp.where(target["positions"] == 0, vocab.cls, jnp.roll(label_T, 1)).astype(label_T.dtype)
        target["tokens"] = jnp.where(target["segments"] > 0, before_T, vocab.pad).astype(label_T.dtype)
        return row | {name: dict(source=source, target=target, label=label_T, surplus=surplus, lost=lost)}

    def scored(params: dict, hidden: Array, wide: bool = False) -> Array:
        return head.apply(params[name]["head"], hidden, params["backbone"]["embed"]["tokens"], wide)

    def loss(params: dict, encode, batch, key, step) -> Sums:
        mine = batch[name]
        source, target = (mine[k] | {"example": batch["example"]} for k in ("source", "target"))
        memory_BMD = encode(source, key).hidden
        hidden_BTD = writer.decode(params[name]["decoder"], params["backbone"], target, source, memory_BMD, key)
        of = partial(_smoothed, over_V=~banned_V) if smoothing else ops.cross_entropy
        nll_BT, hit_BT, *more = score_words(cfg, partial(scored, params), hidden_BTD, mine["label"], of)
        weight_BT = (target["segments"] > 0).astype(jnp.float32)
        count, nll = weight_BT.sum(), (nll_BT * weight_BT).sum()
        total = nll + smoothing * sum((above_BT * weight_BT).sum() for above_BT in more)
        surplus, lost, read = mine["surplus"].sum(), mine["lost"].sum(), (source["segments"] > 0).sum()
        metrics = {
            f"{name}_accuracy": Ratio((hit_BT * weight_BT).sum(), count),
            f"{name}_nll": Ratio(nll, count),
            f"{name}_surplus": Ratio(surplus, count + surplus),
            f"{name}_lost": Ratio(lost, read + lost),
        }
        return Sums({name: Term(total, count)}, metrics)

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        batch = dict(batch)
        (B, L), S = batch["tokens"].shape, batch["example"].shape[1]
        kept_BL = batch["types"] == 0 if needs and "types" in batch else jnp.ones((B, L), bool)
        rows = {k: batch[k] for k in ("tokens", "segments", "positions")}

        def read(row: dict, kept_L: Array) -> tuple[dict, Array]:
            return _stream(row, row["tokens"][:, None], kept_L[:, None], min(source_length or L, L))

        source, lost_B = jax.vmap(read)(rows, kept_BL)
        source |= {"example": batch["example"]}
        segments_BQ = jnp.broadcast_to(jnp.repeat(jnp.arange(1, S + 1, dtype=jnp.int32), beams)[None], (B, S * beams))
        steps = min(target_length or enough(L, S), cfg.max_length)
        own, memory_BMD = params[name], encode(source).hidden
        cache, step = writer.start(own["decoder"], params["backbone"], source, memory_BMD, segments_BQ, steps)

        def write(tokens_BQ, cache):
            hidden_BQD, cache = step(tokens_BQ, cache)
            return scored(params, hidden_BQD, wide=True), cache

        prediction_BST, score_BS = beam.search(
            write, lambda cache, index_BQ: cache.take(index_BQ), cache, present(source) > 0,
            start=vocab.cls, end=vocab.sep, pad=vocab.pad, banned_V=jnp.asarray(banned_V), beams=beams, steps=steps,
            penalty=penalty,
        )  # fmt: skip
        return dict(prediction=prediction_BST, score=score_BS, lost=lost_B)

    def init(key: Array) -> dict:
        a, b = jax.random.split(key)
        return {"decoder": writer.init(a), "head": head.init(b)}

    axes = {"decoder": writer.axes, "head": head.axes}
    return Objective(name, loss, predict, init, axes, corrupt, needs=needs, says="text", sentinels=sentinels)


def _smoothed(logits_BTV: Array, label_BT: Array, over_V: np.ndarray) -> tuple[Array, Array, Array]:
    """Cross-entropy, hits, and by how much the mean over some ids of -log p exceeds it: as the label's logit does the
    mean of theirs.
    """
    wide_BTV = ops.wide(logits_BTV)
    mean_BT = wide_BTV.mean(-1, where=jnp.asarray(over_V))
    above_BT = jnp.take_along_axis(wide_BTV, label_BT[..., None], 2)[..., 0] - mean_BT
    return *ops.cross_entropy(logits_BTV, label_BT), above_BT


def _stream(row: dict, tokens_LW: Array, kept_LW: Array, length: int) -> tuple[dict, Array]:
    """(tokens, segments and positions [length] of what is kept of a row, in order; how much did not fit)."""
    segments_LW = jnp.broadcast_to(row["segments"][:, None], kept_LW.shape)
    kept_N = (kept_LW & (segments_LW > 0)).reshape(-1)
    to_N = jnp.where(kept_N, jnp.cumsum(kept_N) - 1, length)

    def laid(x_LW: Array) -> Array:
        return jnp.zeros(length, x_LW.dtype).at[to_N].set(x_LW.reshape(-1), mode="drop")

    segments_M, place_M = laid(segments_LW), jnp.arange(length, dtype=jnp.int32)
    begins_M = segments_M != jnp.zeros_like(segments_M).at[1:].set(segments_M[:-1])
    positions_M = jnp.where(segments_M > 0, place_M - jax.lax.cummax(jnp.where(begins_M, place_M, 0)), 0)
    surplus = jnp.maximum(kept_N.sum() - length, 0).astype(jnp.float32)
    return dict(tokens=laid(tokens_LW), segments=segments_M, positions=positions_M.astype(jnp.int32)), surplus

"""Extractive question answering: where in a text the answer to a question begins and ends."""

import jax
import jax.numpy as jnp

from model.heads import firsts, members, present, token_head
from model.types import Backbone
from objectives.types import Array, Objective, Ratio, Sums, Term, Vocab

_LOW = -1e9


def answer(
    backbone: Backbone,
    vocab: Vocab,
    *,
    longest: int = 30,
    unanswerable: bool = False,
    activation: str | None = None,
    norm: bool = False,
    dropout: float = 0.0,
    name: str = "answer",
) -> Objective:
    """The answer's first and last token, each by a softmax over the segment: the mean of the two cross-entropies
    (Devlin et al. 2018, https://arxiv.org/abs/1810.04805, section 4.2).

    The batch's `answers` are int [B, S, 2], positions in the segment; 0 and 0, those of [CLS], stand for no answer
    here (section 4.3). `train.data.answers:answer_windows` makes them.
    `predict` gives `prediction` int32 [B, S, 2], the span of highest start + end logits among those of at most
    `longest` tokens in the second text, where `types` are 1, and `score` float32 [B, S], that sum of logits: windows of
    one text compare by it. With `unanswerable`, for questions that may have no answer, also `null` float32 [B, S], the
    sum at [CLS]: where it is more, there is none.
    The metrics `{name}_exact` and `{name}_overlap` hold prediction against label by tokens, F1 for the latter, over
    windows with an answer (`unanswerable`: over all). `launch.predict --evaluate` adds SQuAD's own, by text.
    `activation` and `norm` are those of `model.heads.token_head`.
    Raises ValueError for `longest` under 1.
    """
    if longest < 1:
        raise ValueError(f"answer longest={longest}: an answer has at least 1 token")
    head = token_head(backbone.config, 2, activation=activation, norm=norm, dropout=dropout, name=name)

    def logits(params: dict, encode, batch, key) -> Array:
        logits_BL2 = head.apply(params[name], encode(batch, key).hidden, batch, key)
        return jnp.where(members(batch)[..., None], logits_BL2[:, None], _LOW)

    def found(batch, logits_BSL2: Array) -> dict[str, Array]:
        first_BS = firsts(batch)
        legal_BL = (batch["types"] == 1) & (batch["tokens"] != vocab.sep)
        legal_BSL = legal_BL[:, None] & members(batch)
        span_BS2, score_BS = best_span(logits_BSL2, legal_BSL, longest)
        span_BS2 = jnp.where(legal_BSL.any(-1)[..., None], span_BS2 - first_BS[..., None], 0)
        out = dict(prediction=span_BS2, score=score_BS)
        return out | (dict(null=_at(logits_BSL2, jnp.stack([first_BS, first_BS], -1)).sum(-1)) if unanswerable else {})

    def loss(params: dict, encode, batch, key, step) -> Sums:
        present_BS, logits_BSL2 = present(batch), logits(params, encode, batch, key)
        answers_BS2 = batch["answers"]
        logp_BSL2 = jax.nn.log_softmax(logits_BSL2, 2)
        nll_BS = -_at(logp_BSL2, answers_BS2 + firsts(batch)[..., None]).mean(-1)
        said = found(batch, jax.lax.stop_gradient(logits_BSL2))
        said_BS2 = said["prediction"]
        if unanswerable:
            said_BS2 = jnp.where((said["null"] > said["score"])[..., None], 0, said_BS2)
        counted_BS = present_BS * (unanswerable | (answers_BS2[..., 1] > 0))
        begin_BS = jnp.maximum(said_BS2[..., 0], answers_BS2[..., 0])
        shared_BS = jnp.maximum(jnp.minimum(said_BS2[..., 1], answers_BS2[..., 1]) - begin_BS + 1, 0)
        tokens_BS = (said_BS2[..., 1] - said_BS2[..., 0] + 1) + (answers_BS2[..., 1] - answers_BS2[..., 0] + 1)
        overlap_BS = 2 * shared_BS.astype(nll_BS.dtype) / tokens_BS.astype(nll_BS.dtype)
        exact_BS = (said_BS2 == answers_BS2).all(-1)
        count = counted_BS.sum()
        return Sums(
            {name: Term((nll_BS * present_BS).sum(), present_BS.sum())},
            {
                f"{name}_exact": Ratio((exact_BS * counted_BS).sum(), count),
                f"{name}_overlap": Ratio((overlap_BS * counted_BS).sum(), count),
            },
        )

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        return found(batch, logits(params, encode, batch, key))

    return Objective(
        name, loss, predict, head.init, head.axes, needs=("answers", "types"), truth="answers", says="answer"
    )


def best_span(logits_BSL2: Array, legal_BSL: Array, longest: int) -> tuple[Array, Array]:
    """The span of the highest start + end logit, of those of at most `longest` tokens with both ends legal; legal
    tokens follow each other. int32 [B, S, 2], its first and last token, and float32 [B, S], that sum.

    A running maximum over the starts that each end may have: no table of pairs.
    """
    start_BSL, end_BSL = (jnp.where(legal_BSL, logits_BSL2[..., i], _LOW) for i in (0, 1))
    window = dict(window_dimensions=(1, 1, longest), window_strides=(1, 1, 1))
    before = ((0, 0), (0, 0), (longest - 1, 0))
    best_BSL = jax.lax.reduce_window(start_BSL, -jnp.inf, jax.lax.max, **window, padding=before) + end_BSL
    last_BS = best_BSL.argmax(-1).astype(jnp.int32)
    at_11L = jnp.arange(legal_BSL.shape[-1])[None, None]
    within_BSL = (at_11L <= last_BS[..., None]) & (at_11L > last_BS[..., None] - longest)
    first_BS = jnp.where(within_BSL, start_BSL, -jnp.inf).argmax(-1).astype(jnp.int32)
    return jnp.stack([first_BS, last_BS], -1), best_BSL.max(-1)


def _at(x_BSL2: Array, at_BS2: Array) -> Array:
    """[B, S, 2]: each of the two at a token of its own."""
    return jnp.take_along_axis(x_BSL2, at_BS2[:, :, None], 2)[:, :, 0]

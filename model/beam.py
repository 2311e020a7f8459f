"""Beam search: the likeliest texts that a model writes token by token; with one beam, greedy."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model import ops
from model.types import Array


class _State(NamedTuple):
    """B rows, S texts to be written in each, K beams of each."""

    at: Array  # tokens written
    tokens: Array  # int32 [B, S, K, T], of unfinished beams
    total: Array  # float32 [B, S, K], their log-likelihood
    best: Array  # int32 [B, S, T], the best that is finished
    score: Array  # float32 [B, S], how good that is
    last: Array  # int32 [B, S, K], what each beam reads next
    cache: Any


def search(
    step: Callable[[Array, Any], tuple[Array, Any]],
    take: Callable[[Any, Array], Any],
    cache: Any,
    wanted_BS: Array,
    *,
    start: int,
    end: int,
    pad: int,
    banned_V: Array,
    beams: int,
    steps: int,
    penalty: float,
) -> tuple[Array, Array]:
    """(tokens int32 [B, S, steps], score float32 [B, S]) of the best text of each that is wanted, bool [B, S].

    A text is finished by `end`, which is its last token, or by having `steps` tokens; `pad` follows. Its score is
    log p(text) / ((5 + tokens) / 6) ** penalty (Wu et al. 2016, https://arxiv.org/abs/1609.08144, equation 14). Of each
    step's candidates the `beams` likeliest are finished where they end, and the likeliest that do not end go on. The
    search ends when none that goes on can become better than what is finished.

    Args:
      step: (tokens int32 [B, S * K], cache) -> (logits [B, S * K, V], cache)
      take: (cache, int32 [B, S * K]) -> the cache of each row's beams at these places
      banned_V: bool [V], what is never written
    """
    (B, S), K, V = wanted_BS.shape, beams, len(banned_V)
    never = -jnp.inf

    def worth(total: Array, length: Array | int) -> Array:
        return total / ((5.0 + length) / 6.0) ** penalty

    def goes_on(s: _State) -> Array:
        # no total is above 0 and none rises: a text is worth most if it reaches the greatest length at no loss
        could_BS = worth(s.total.max(-1), steps)
        return (s.at < steps) & (wanted_BS & (could_BS > s.score)).any()

    def go_on(s: _State) -> _State:
        logits_BQV, cache = step(s.last.reshape(B, S * K), s.cache)
        said_BSKV = jax.nn.log_softmax(ops.wide(logits_BQV)).reshape(B, S, K, V)
        said_BSKV = jnp.where(banned_V[None, None, None], never, said_BSKV)
        total_BSC, which_BSC = jax.lax.top_k((s.total[..., None] + said_BSKV).reshape(B, S, K * V), min(2, V) * K)
        parent_BSC, token_BSC = which_BSC // V, which_BSC % V
        tokens_BSCT = jnp.take_along_axis(s.tokens, parent_BSC[..., None], 2).at[..., s.at].set(token_BSC)
        ends_BSC = token_BSC == end
        among_C = (jnp.arange(total_BSC.shape[-1]) < K)[None, None]
        best, score = _better(
            s.best, s.score, tokens_BSCT, jnp.where(ends_BSC & among_C, worth(total_BSC, s.at + 1), never)
        )
        total_BSK, kept_BSK = jax.lax.top_k(jnp.where(ends_BSC, never, total_BSC), K)
        tokens_BSKT = jnp.take_along_axis(tokens_BSCT, kept_BSK[..., None], 2)
        if K > 1:
            parent_BSK = jnp.take_along_axis(parent_BSC, kept_BSK, 2) + K * jnp.arange(S)[None, :, None]
            cache = take(cache, parent_BSK.reshape(B, S * K))
        last_BSK = jnp.take_along_axis(token_BSC, kept_BSK, 2)
        return _State(s.at + 1, tokens_BSKT, total_BSK, best, score, last_BSK, cache)

    nothing = jnp.full((B, S, K, steps), pad, jnp.int32)
    alike = jnp.full((B, S, K), never, jnp.float32).at[..., 0].set(0.0)  # all beams begin as one
    first = _State(
        jnp.int32(0), nothing, alike, nothing[:, :, 0], jnp.full((B, S), never, jnp.float32),
        jnp.full((B, S, K), start, jnp.int32), cache,
    )  # fmt: skip
    s = jax.lax.while_loop(goes_on, go_on, first)
    best, score = _better(s.best, s.score, s.tokens, worth(s.total, s.at))
    return jnp.where(wanted_BS[..., None], best, pad), jnp.where(wanted_BS, score, 0.0)


def _better(best_BST: Array, score_BS: Array, tokens_BSCT: Array, worth_BSC: Array) -> tuple[Array, Array]:
    top_BS1 = worth_BSC.argmax(-1)[..., None]
    found_BS = jnp.take_along_axis(worth_BSC, top_BS1, 2)[..., 0]
    found_BST = jnp.take_along_axis(tokens_BSCT, top_BS1[..., None], 2)[:, :, 0]
    better_BS = found_BS > score_BS
    return jnp.where(better_BS[..., None], found_BST, best_BST), jnp.where(better_BS, found_BS, score_BS)

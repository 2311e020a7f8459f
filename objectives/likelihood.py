"""What a masked model holds of a text: its pseudo-log-likelihood."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from model import ops
from objectives.masking import ordinary
from objectives.types import Array
from objectives.vocab import Vocab


def pseudo(logits: Callable[[dict, Array], Array], vocab: Vocab, *, before: int = 0) -> Callable[..., Array]:
    """(params, encode, batch) -> float32 [B, S]: of each packed segment the sum, over its ordinary tokens, of
    log p(token | all others), each hidden in a pass of its own (Salazar et al. 2020, https://arxiv.org/abs/1910.14659,
    equation 2).

    A pass hides one token of every segment, so that there are as many passes as the longest has tokens.

    Args:
      logits: (params, hidden [B, P, D]) -> [B, P, V], of float32 at least: many are added up.
      before: how many places before a token the state stands that predicts it; a segment's first have none, and are
        left out.
    """

    def likelihood(params: dict, encode, batch) -> Array:
        batch = {k: v for k, v in batch.items() if k != "reach"}
        tokens_BL, segments_BL, positions_BL = (jnp.asarray(batch[k]) for k in ("tokens", "segments", "positions"))
        of_BSL = segments_BL[:, None] == jnp.arange(1, batch["example"].shape[1] + 1)[None, :, None]
        ordinary_BL = ordinary(batch, vocab)

        def one_more(position: Array, total_BS: Array) -> Array:
            here_BL = ordinary_BL & (positions_BL == position) & (positions_BL >= before)
            here_BSL = here_BL[:, None] & of_BSL
            at_BS = here_BSL.argmax(-1)
            hidden_BL = jnp.where(here_BL, vocab.mask, tokens_BL).astype(tokens_BL.dtype)
            state_BSD = encode(batch | {"tokens": hidden_BL}, at=jnp.maximum(at_BS - before, 0)).hidden
            nll_BS, _ = ops.cross_entropy(logits(params, state_BSD), ops.pick(tokens_BL, at_BS))
            return (total_BS - jnp.where(here_BSL.any(-1), nll_BS, 0.0)).astype(total_BS.dtype)

        start_BS = jnp.zeros(of_BSL.shape[:2], jnp.float32)
        return jax.lax.fori_loop(0, positions_BL.max() + 1, one_more, start_BS)

    return likelihood

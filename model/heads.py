"""Heads: what an objective grows on the hidden states. Their params live under the objective's name."""

import dataclasses
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model import ops, parts, random
from model.config import BackboneConfig
from model.parts import Part
from model.types import Array, Batch, Encoded


class _MlmHead(nn.Module):
    cfg: BackboneConfig
    tied: bool
    softcap: float | None
    activation: str | None

    @nn.compact
    def __call__(self, x_BPD: Array, tokens_VE: Array, wide: bool = False) -> Array:
        cfg = self.cfg
        B, P, D = x_BPD.shape
        dtype = jnp.promote_types(cfg.dtype, jnp.float32) if wide else jnp.dtype(cfg.dtype)
        x_1RE = x_BPD.reshape(1, B * P, D)
        if self.activation is not None or cfg.E != cfg.D:
            x_1RE = parts.Linear(cfg, (cfg.D, cfg.E), ("embed", "embed_out"), 1, name="transform")(x_1RE)
        if self.activation is not None:
            x_1RE = parts.Norm(cfg, name="norm")(_activated(cfg, self.activation, x_1RE))
        if not self.tied:
            tokens_VE = self.param("decoder", parts.kernel(cfg, "vocab", "embed"), (cfg.V, cfg.E), cfg.param_dtype)
        logits_RV = jnp.einsum(
            "RE,VE->RV", x_1RE.reshape(B * P, cfg.E), tokens_VE.astype(cfg.dtype), preferred_element_type=dtype
        )
        zeros = parts.named(nn.initializers.zeros, ("vocab",))
        bias_V = self.param("bias", zeros, (cfg.V,), cfg.param_dtype)
        logits_BPV = ops.add_bias(logits_RV, bias_V.astype(dtype)).reshape(B, P, cfg.V)
        if self.softcap is not None:
            logits_BPV = self.softcap * jnp.tanh(logits_BPV / self.softcap)
        return logits_BPV


def _activated(cfg: BackboneConfig, activation: str, x: Array) -> Array:
    return ops.ACTIVATIONS[parts.MLPS[cfg.mlp][1] if activation == "layers" else activation](x)


def _check_activation(activation: str) -> None:
    if activation not in ("layers", *ops.ACTIVATIONS):
        raise ValueError(f"activation={activation!r} must be one of layers, {', '.join(ops.ACTIVATIONS)}")


def _check_dropout(dropout: float) -> None:
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout={dropout} is the rate of a head's and must be in [0, 1)")


def mlm_head(
    cfg: BackboneConfig,
    absent_V: np.ndarray | None = None,
    *,
    tied: bool = True,
    softcap: float | None = None,
    activation: str | None = "layers",
) -> Part:
    """Transform, activation, norm, decoder: `apply(params, hidden [B, P, D], token embeddings [V, E], wide=False) ->
    [B, P, V]`.

    absent_V: bool, the ids that have no probability, as those that no token has
    wide:    logits of float32, as added up, for what ranks words or adds up many: rounded to bfloat16 the likeliest may
             tie. Training spares the memory
    tied:    decode with the token embeddings (Devlin et al. 2018); else with a matrix of the head's own
    softcap: squash the logits to (-softcap, softcap) (Gemma 2, https://arxiv.org/abs/2408.00118, section 2)
    activation: one of `model.ops.ACTIVATIONS`, or "layers" for that of the layers; None leaves transform, activation
             and norm away
    """
    if activation is not None:
        _check_activation(activation)
    if softcap is not None and not softcap > 0:
        raise ValueError(f"softcap={softcap} must be positive, or None for no cap")
    x = jax.ShapeDtypeStruct((1, 1, cfg.D), cfg.dtype)
    tokens = jax.ShapeDtypeStruct((cfg.V, cfg.E), cfg.param_dtype)
    head = parts.part(_MlmHead(cfg, tied, softcap, activation), x, tokens)
    if absent_V is None:
        return head
    return head._replace(apply=lambda *given: ops.without(head.apply(*given), absent_V))


def words(head: Part, name: str, params: dict, hidden: Array, wide: bool = False) -> Array:
    """[B, P, V] of an `mlm_head` whose params lie under `name`, on the backbone's embeddings."""
    return head.apply(params[name], hidden, params["backbone"]["embed"]["tokens"], wide)


_FEW, _PARTS = 32, 8  # places of a row that are worth a part of their own; parts at most


def score_words(
    cfg: BackboneConfig,
    logits: Callable[[Array], Array],
    hidden_BPD: Array,
    labels_BP: Array,
    of: Callable[[Array, Array], tuple[Array, ...]] = ops.cross_entropy,
) -> tuple[Array, ...]:
    """`of(logits(hidden) [B, P, V], labels)`, arrays [B, P]: by default -log p(label) and whether it scores highest.

    Where the backbone's `remat` asks for memory rather than speed, a part of each row's places at a time, and once more
    in the backward pass: of P places P / 32 parts, eight at most, so that of rows of 256 and more an eighth of the
    logits, which of all places are the largest array of a step, is there at once. The cost is one product with the
    vocabulary in four, and on several devices the head's gradient is added over them once a part.
    """
    B, P = labels_BP.shape
    n = min(_PARTS, P // _FEW)
    if cfg.remat == "none" or n < 2:
        return of(logits(hidden_BPD), labels_BP)
    more = -P % n

    def cut(x: Array) -> Array:  # [parts, B, places, ...]: rows stay whole, so that none leaves its device
        x = jnp.pad(x, ((0, 0), (0, more), *[(0, 0)] * (x.ndim - 2)))
        return x.reshape(B, n, -1, *x.shape[2:]).swapaxes(0, 1)

    # in a loop nothing can be merged with the forward pass, and what each turn has alike may leave it
    one = jax.checkpoint(lambda given: of(logits(given[0]), given[1]), prevent_cse=False)
    scored = jax.lax.map(one, (cut(hidden_BPD), cut(labels_BP)))
    return tuple(x.swapaxes(0, 1).reshape(B, -1)[:, :P] for x in scored)


class _BagHead(nn.Module):
    cfg: BackboneConfig

    @nn.compact
    def __call__(self, x_BSD: Array) -> Array:
        cfg = self.cfg
        # zeros: every segment begins with the same distribution, and what tells them apart is learned alone
        zeros = lambda *axes: parts.named(nn.initializers.zeros, axes)
        kernel_DV = self.param("kernel", zeros("embed", "vocab"), (cfg.D, cfg.V), cfg.param_dtype)
        bias_V = self.param("bias", zeros("vocab"), (cfg.V,), cfg.param_dtype)
        B, S, D = x_BSD.shape
        logits_RV = jnp.einsum("RD,DV->RV", x_BSD.reshape(B * S, D), kernel_DV.astype(cfg.dtype))
        logits_RV = ops.add_bias(logits_RV, bias_V.astype(cfg.dtype))
        return ops.wide(logits_RV).reshape(B, S, cfg.V)


def bag_head(cfg: BackboneConfig) -> Part:
    """One distribution over the vocabulary for each packed segment, from the mean of its tokens' states.

    `apply(params, hidden [B, L, D], batch) -> logits [B, S, V]`. The mean of n states is multiplied by
    sqrt(n): as n grows what is particular to a text would vanish beside what all share, and be learned slowly.
    """
    head = parts.part(_BagHead(cfg), jax.ShapeDtypeStruct((1, 1, cfg.D), cfg.dtype))

    def apply(params, hidden_BLD: Array, batch: Batch) -> Array:
        return head.apply(params, pool(hidden_BLD, batch, "root"))

    return head._replace(apply=apply)


_PLACES = 32  # of a run that have an embedding of their own; those further on share the last


class _BoundaryHead(nn.Module):
    cfg: BackboneConfig

    @nn.compact
    def __call__(self, left_BPD: Array, right_BPD: Array, place_BP: Array, tokens_VE: Array) -> Array:
        cfg = self.cfg
        B, P, D = left_BPD.shape
        table = parts.kernel(cfg, "positions", "embed")
        place_RD = self.param("places", table, (_PLACES, D), cfg.param_dtype).astype(cfg.dtype)
        place_BPD = ops.take(place_RD, jnp.minimum(place_BP, _PLACES - 1))
        x = jnp.stack([left_BPD, right_BPD, place_BPD], 2).reshape(1, B * P, 3 * D)
        first = parts.Linear(cfg, (3, D, D), ("parts", "embed", "embed_out"), 1, name="first")
        x_1RD = parts.Norm(cfg, name="first_norm")(ops.gelu(first(x)))
        x_1RE = parts.Linear(cfg, (D, cfg.E), ("embed", "embed_out"), 1, name="second")(x_1RD)
        x_1RE = parts.Norm(cfg, name="second_norm")(ops.gelu(x_1RE))
        logits_RV = jnp.einsum("RE,VE->RV", x_1RE[0], tokens_VE.astype(cfg.dtype))
        bias_V = self.param("bias", parts.named(nn.initializers.zeros, ("vocab",)), (cfg.V,), cfg.param_dtype)
        return ops.add_bias(logits_RV, bias_V.astype(cfg.dtype)).reshape(B, P, cfg.V)


def boundary_head(cfg: BackboneConfig) -> Part:
    """A hidden token from the two states beside its run and its place in the run (Joshi et al. 2019,
    https://arxiv.org/abs/1907.10529, section 3.2): `apply(params, left [B, P, D], right [B, P, D], place int [B, P],
    token embeddings [V, E]) -> [B, P, V]`. Two layers with GELU and a norm each, of the three vectors end to end.
    """
    x, place = jax.ShapeDtypeStruct((1, 1, cfg.D), cfg.dtype), jax.ShapeDtypeStruct((1, 1), jnp.int32)
    tokens = jax.ShapeDtypeStruct((cfg.V, cfg.E), cfg.param_dtype)
    return parts.part(_BoundaryHead(cfg), x, x, place, tokens)


class _Outputs(nn.Module):
    """A map from D to D with an activation, a norm if asked for, dropout, and a linear map to the outputs."""

    cfg: BackboneConfig
    outputs: int
    activation: str | None
    norm: bool
    dropout: float
    first: str
    site: str

    @nn.compact
    def __call__(self, x_BLD: Array, ids_BL: Array, key: Array | None) -> Array:
        cfg, C = self.cfg, self.outputs
        if self.activation is not None:
            x_BLD = parts.Linear(cfg, (cfg.D, cfg.D), ("embed", "embed_out"), 1, name=self.first)(x_BLD)
            x_BLD = _activated(cfg, self.activation, x_BLD)
        if self.norm:
            x_BLD = parts.Norm(cfg, name="norm")(x_BLD)
        site = None if key is None else random.fold(key, self.site, "outputs")
        x_BLD = ops.wide(random.dropout(x_BLD, self.dropout, site, ids_BL))
        # not rounded to bfloat16, in which half of all choices would tie and a regression have a few values
        wide = dataclasses.replace(cfg, dtype=x_BLD.dtype.name)
        return parts.Linear(wide, (cfg.D, C), ("embed", "classes"), 1, bias=True, name="out")(x_BLD)


def pooled_head(
    cfg: BackboneConfig,
    outputs: int,
    *,
    pooling: str = "first",
    activation: str = "tanh",
    norm: bool = False,
    dropout: float = 0.1,
    name: str = "",
) -> Part:
    """BERT's pooler and a linear map: `apply(params, encode, batch, key) -> [B, S, outputs]` in float32.

    With `outputs` classes it is a classifier, with one a regressor. `encode(batch, key, at=...)` holds the backbone's
    params. `pooling` makes one vector of each packed segment, see `pool`; the pooler's `activation` and `norm` are as
    the family has them. What is dropped is drawn by `name`, the objective's.
    """
    if pooling not in POOLS:
        raise ValueError(f"pooling={pooling!r} must be one of {', '.join(POOLS)}")
    _check_activation(activation)
    _check_dropout(dropout)
    x, ids = jax.ShapeDtypeStruct((1, 1, cfg.D), cfg.dtype), jax.ShapeDtypeStruct((1, 1), jnp.uint32)
    head = parts.part(_Outputs(cfg, outputs, activation, norm, dropout, "pooler", name), x, ids, None)

    def apply(params, encode: Callable[..., Encoded], batch: Batch, key: Array | None = None) -> Array:
        return head.apply(params, _pooled(encode, batch, key, pooling), random.segments(dict(batch)), key)

    return head._replace(apply=apply)


def token_head(
    cfg: BackboneConfig,
    outputs: int,
    *,
    activation: str | None = None,
    norm: bool = False,
    dropout: float = 0.1,
    name: str = "",
) -> Part:
    """Outputs for each token: `apply(params, hidden [B, L, D], batch, key) -> [B, L, outputs]` in float32.

    A linear map, of a transform with an `activation` (and a `norm`) where one is given. Two outputs are the start and
    the end of an answer (Devlin et al. 2018, section 4.2), one tells replaced tokens from true ones (Clark et al.
    2020, https://arxiv.org/abs/2003.10555), more are tags. What is dropped is drawn by `name`, the objective's.
    """
    if activation is not None:
        _check_activation(activation)
    _check_dropout(dropout)
    x, ids = jax.ShapeDtypeStruct((1, 1, cfg.D), cfg.dtype), jax.ShapeDtypeStruct((1, 1), jnp.uint32)
    head = parts.part(_Outputs(cfg, outputs, activation, norm, dropout, "transform", name), x, ids, None)

    def apply(params, hidden_BLD: Array, batch: Batch, key: Array | None = None) -> Array:
        return head.apply(params, hidden_BLD, random.tokens(dict(batch)), key)

    return head._replace(apply=apply)


class _Attended(nn.Module):
    cfg: BackboneConfig

    @nn.compact
    def __call__(self, x_BLD: Array, member_BSL: Array) -> Array:
        cfg = self.cfg
        # zeros: at first it is the mean
        query_D = self.param("query", parts.named(nn.initializers.zeros, ("embed",)), (cfg.D,), cfg.param_dtype)
        logits_BL = ops.wide(jnp.einsum("BLD,D->BL", x_BLD, query_D.astype(cfg.dtype))) * cfg.D**-0.5
        logits_BSL = jnp.where(member_BSL, logits_BL[:, None, :], jnp.asarray(-1e9, logits_BL.dtype))
        weights_BSL = jax.nn.softmax(logits_BSL) * member_BSL.astype(logits_BL.dtype)
        return jnp.einsum("BSL,BLD->BSD", weights_BSL.astype(x_BLD.dtype), x_BLD)


def pooled(cfg: BackboneConfig, pooling: str) -> Part:
    """One vector for each packed segment: `apply(params, encode, batch, key) -> [B, S, D]`.

    pooling: as of `pool`, with no params; or "attention", the mean of a segment's states weighted by a softmax of their
    products with a learned query, over sqrt(D).
    """
    if pooling not in (*POOLS, "attention"):
        raise ValueError(f"pooling={pooling!r} must be one of {', '.join((*POOLS, 'attention'))}")
    if pooling != "attention":
        return Part(lambda key: {}, {}, lambda params, encode, batch, key=None: _pooled(encode, batch, key, pooling))
    x, member = jax.ShapeDtypeStruct((1, 1, cfg.D), cfg.dtype), jax.ShapeDtypeStruct((1, 1, 1), jnp.bool_)
    head = parts.part(_Attended(cfg), x, member)

    def apply(params, encode: Callable[..., Encoded], batch: Batch, key: Array | None = None) -> Array:
        return head.apply(params, encode(batch, key).hidden, members(batch))

    return head._replace(apply=apply)


POOLS = ("first", "mean", "root")


def _pooled(encode: Callable[..., Encoded], batch: Batch, key: Array | None, how: str) -> Array:
    if how == "first":
        return encode(batch, key, at=firsts(batch)).hidden
    return pool(encode(batch, key).hidden, batch, how)


def pool(hidden_BLD: Array, batch: Batch, how: str) -> Array:
    """One vector for each packed segment, [B, S, D].

    how: "first" (its first token's), "mean" over its n tokens, or "root", the sum divided by sqrt(n).
    """
    if how == "first":
        return ops.pick(hidden_BLD, firsts(batch))
    member_BSL = members(batch)
    count_BS1 = jnp.maximum(member_BSL.sum(-1, keepdims=True), 1)
    # added and counted in float32: bfloat16 has no 257
    wide = ops.wide(jnp.zeros((), hidden_BLD.dtype)).dtype
    member_BSL = member_BSL.astype(hidden_BLD.dtype)
    total_BSD = jnp.einsum("BSL,BLD->BSD", member_BSL, hidden_BLD, preferred_element_type=wide)
    count_BS1 = count_BS1.astype(wide)
    return (total_BSD / (count_BS1 if how == "mean" else jnp.sqrt(count_BS1))).astype(hidden_BLD.dtype)


def firsts(batch: Batch) -> Array:
    """int32 [B, S]: where each packed segment begins; 0 for the empty places."""
    return jnp.argmax(members(batch) & (batch["positions"][:, None, :] == 0), -1).astype(jnp.int32)


def members(batch: Batch) -> Array:
    S = batch["example"].shape[1]
    return batch["segments"][:, None, :] == jnp.arange(1, S + 1)[None, :, None]


def present(batch: Batch) -> Array:
    """float32 [B, S]: 1 for the packed segments that are there, 0 for the empty places."""
    S = batch["example"].shape[1]
    return (batch["segments"].max(1)[:, None] >= jnp.arange(1, S + 1)[None]).astype(jnp.float32)

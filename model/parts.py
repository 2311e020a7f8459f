"""Flax modules with their logical axis names beside each parameter, and how a module becomes pure functions.

Shapes: B rows, L tokens, D width, N heads, H channels of a head, F feed-forward width, K parts of a fused kernel.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import ops, random
from model.config import BackboneConfig

Array = jax.Array


class Part(NamedTuple):
    """A module without Flax: init(key) -> params, axes (the same tree with names), apply(params, *args)."""

    init: Callable[[Array], dict]
    axes: Any
    apply: Callable[..., Any]


class Named(nn.Partitioned):
    """A parameter with its axis names. Unlike its base it leaves placement alone, whatever mesh is in use."""

    def unbox(self, apply_constraint: bool = True) -> Any:
        return self.value


def named(init: Callable, names: tuple[str, ...]) -> Callable:
    """The initializer `init`, its result carrying `names`."""
    return lambda *args: Named(init(*args), names=names)


def part(module: nn.Module, *example: Any) -> Part:
    """Unboxes a linen module. `example` are arguments, or their shapes, that it can be called with."""

    @partial(jax.jit, inline=True)  # traced once, for the axes and for init
    def boxed(key):
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), example)
        return module.init(key, *zeros).get("params", {})

    def is_box(x):
        return isinstance(x, Named)

    boxes = jax.eval_shape(boxed, jax.eval_shape(random.generator, 0))
    axes = jax.tree.map(lambda box: box.names, boxes, is_leaf=is_box)
    return Part(
        init=lambda key: nn.meta.unbox(boxed(key)),
        axes=axes,
        apply=lambda params, *args, **kwargs: module.apply({"params": params}, *args, **kwargs),
    )


def stacked(one: Part, n: int) -> Part:
    """n copies of a part with their params stacked on a leading `layers` axis; `apply` takes one copy's params."""
    return Part(
        init=lambda key: jax.vmap(one.init)(jax.random.split(key, n)),
        axes=jax.tree.map(lambda names: ("layers", *names), one.axes, is_leaf=lambda x: isinstance(x, tuple)),
        apply=one.apply,
    )


def kernel(cfg: BackboneConfig, *names: str, scale: float = 1.0):
    """An initializer, truncated normal with standard deviation `cfg.init_std * scale`, that carries its axis names."""
    # a normal cut at two deviations has 0.88 of its deviation left
    init = nn.initializers.truncated_normal(cfg.init_std * scale / 0.87962566103423978)
    return named(init, names)


class Linear(nn.Module):
    """x [B, L, *in] times a kernel [*in, *out], plus a bias: the kernel's last `out` axes are the result's.

    The product is one of two matrices, whose gradient XLA makes without transposed copies. So that merged axes can be
    split over a mesh, the axis that is split comes first among `in`, and first among `out`.

    `only` are the first and the end of the parts to compute, of a kernel with an axis "parts".
    """

    cfg: BackboneConfig
    shape: tuple[int, ...]
    names: tuple[str, ...]
    out: int
    residual: bool = False
    bias: bool | None = None  # None: as the config says

    @nn.compact
    def __call__(self, x: Array, only: tuple[int, int] | None = None) -> Array:
        cfg = self.cfg

        def cut(param: Array, names: tuple[str, ...]) -> Array:
            return param if only is None else jax.lax.slice_in_dim(param, *only, axis=names.index("parts"))

        factor = (2 * cfg.layers) ** -0.5 if self.residual and cfg.residual_init else 1.0
        w = self.param("kernel", kernel(cfg, *self.names, scale=factor), self.shape, cfg.param_dtype)
        w = cut(w.astype(cfg.dtype), self.names)
        out = w.shape[-self.out :]
        w = w.reshape(-1, math.prod(out))
        y = jnp.dot(x.reshape(-1, w.shape[0]), w).reshape(*x.shape[:2], *out)
        if not (cfg.bias if self.bias is None else self.bias):
            return y
        names = self.names[-self.out :]
        bias = self.param("bias", named(nn.initializers.zeros, names), self.shape[-self.out :], cfg.param_dtype)
        return ops.add_bias(y, cut(bias.astype(cfg.dtype), names))


class Convolution(nn.Module):
    """x [B, L, D], each place with those up to `cfg.conv // 2` away in its segment, through one linear map."""

    cfg: BackboneConfig

    @nn.compact
    def __call__(self, x: Array, segments: Array) -> Array:
        cfg, (_, L, D) = self.cfg, x.shape
        taps = []
        for away in range(-(cfg.conv // 2), cfg.conv // 2 + 1):
            other = jnp.arange(L) + away
            same = (jnp.roll(segments, -away, 1) == segments) & ((other >= 0) & (other < L))[None]
            taps.append(jnp.where(same[..., None], jnp.roll(x, -away, 1), 0))
        return Linear(cfg, (D, cfg.conv, D), ("embed", "taps", "embed_out"), 1, name="map")(jnp.stack(taps, 3))


class Norm(nn.Module):
    """LayerNorm or RMSNorm over the last axis, its statistics in float32; the result in `cfg.dtype`."""

    cfg: BackboneConfig
    name_of_axis: str = "embed"

    @nn.compact
    def __call__(self, x: Array) -> Array:
        cfg = self.cfg
        x = ops.wide(x)
        if cfg.norm == "layer":
            x = x - x.mean(-1)[..., None]
        x = x * jax.lax.rsqrt((x * x).mean(-1) + cfg.eps)[..., None]
        ones = named(nn.initializers.ones, (self.name_of_axis,))
        x = ops.scale(x, self.param("scale", ones, x.shape[-1:], cfg.param_dtype).astype(x.dtype))
        if cfg.norm == "layer" and cfg.bias:
            zeros = named(nn.initializers.zeros, (self.name_of_axis,))
            x = ops.add_bias(x, self.param("bias", zeros, x.shape[-1:], cfg.param_dtype).astype(x.dtype))
        return x.astype(cfg.dtype)


class Mlp(nn.Module):
    """D -> F -> D with an activation between."""

    cfg: BackboneConfig
    activation: str

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        D, F = self.cfg.D, self.cfg.F
        h_BLF = Linear(self.cfg, (D, F), ("embed", "mlp"), 1, name="wi")(x_BLD)
        h_BLF = ops.ACTIVATIONS[self.activation](h_BLF)
        return Linear(self.cfg, (F, D), ("mlp", "embed"), 1, residual=True, name="wo")(h_BLF)


class GatedMlp(nn.Module):
    """A second map of the input, through an activation, gates the first (https://arxiv.org/abs/2002.05202)."""

    cfg: BackboneConfig
    activation: str

    @nn.compact
    def __call__(self, x_BLD: Array) -> Array:
        D, F = self.cfg.D, self.cfg.F
        gate_BLF = Linear(self.cfg, (D, F), ("embed", "mlp"), 1, name="gate")(x_BLD)
        h_BLF = Linear(self.cfg, (D, F), ("embed", "mlp"), 1, name="wi")(x_BLD)
        h_BLF = ops.ACTIVATIONS[self.activation](gate_BLF) * h_BLF
        return Linear(self.cfg, (F, D), ("mlp", "embed"), 1, residual=True, name="wo")(h_BLF)


MLPS = {  # by the config's name
    "gelu": (Mlp, "gelu"),
    "gelu_tanh": (Mlp, "gelu_tanh"),
    "relu": (Mlp, "relu"),
    "silu": (Mlp, "silu"),
    "geglu": (GatedMlp, "gelu"),
    "geglu_tanh": (GatedMlp, "gelu_tanh"),
    "swiglu": (GatedMlp, "silu"),
}
AXES = {"tokens": "vocab", "positions": "positions", "types": "types"}  # of the embedding's tables, by row


class Embedding(nn.Module):
    """Tokens, and where the config has them learned positions and token types; a norm where it says so: [B, L, E].

    `inputs` [B, L, E] stands in for the token embeddings.
    """

    cfg: BackboneConfig
    constrain: Callable[[Array, tuple[str, ...]], Array] = lambda x, names: x

    @nn.compact
    def __call__(self, batch: dict, inputs: Array | None = None) -> Array:
        cfg = self.cfg

        def table(name: str, rows: int) -> Array:
            param = self.param(name, kernel(cfg, AXES[name], "embed"), (rows, cfg.E), cfg.param_dtype)
            # gathered over fsdp before the lookup: the partitioner would else replicate what is looked up
            return self.constrain(param, (AXES[name], "width"))

        tokens_VE = table("tokens", cfg.V)
        x_BLE = ops.take(tokens_VE, batch["tokens"]) if inputs is None else inputs
        if batch["tokens"].shape[1] > cfg.max_length:  # no place for a token of a longer segment, nor a silent one
            x_BLE = jnp.where((batch["positions"] < cfg.max_length)[..., None], x_BLE, jnp.nan)
        if cfg.position == "learned":
            table_PE = table("positions", cfg.first_position + cfg.max_length)
            x_BLE = x_BLE + ops.take(table_PE, batch["positions"] + cfg.first_position)
        if cfg.types:
            types_TE = table("types", cfg.types)
            x_BLE = x_BLE + (
                ops.take(types_TE, batch["types"]) if "types" in batch and cfg.types > 1 else types_TE[None, :1]
            )
        return Norm(cfg, name="norm")(x_BLE) if cfg.embed_norm else x_BLE.astype(cfg.dtype)

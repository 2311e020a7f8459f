"""The Transformer encoder: an embedding, a stack of blocks, and nothing that knows a task."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from model import attention, parts, random
from model.config import BackboneConfig
from model.types import Array, Backbone, Batch, Encoded, Params

CAPTURES = ("hidden", "attention")


class Attention(nn.Module):
    """Multi-head self-attention with one fused kernel for queries, keys and values."""

    cfg: BackboneConfig

    @nn.compact
    def __call__(self, x_BLD: Array, view: attention.View, key: Array | None) -> tuple[Array, Array]:
        cfg = self.cfg
        D, N, H = cfg.D, cfg.heads, cfg.H
        qkv = parts.Linear(cfg, (D, N, 3, H), ("embed", "heads", "parts", "head"), 3, name="qkv")(x_BLD)
        q_BLNH, k_BLNH, v_BLNH = (x.squeeze(3) for x in jnp.split(qkv, 3, axis=3))
        if cfg.qk_norm:
            q_BLNH = parts.Norm(cfg, "head", name="q_norm")(q_BLNH)
            k_BLNH = parts.Norm(cfg, "head", name="k_norm")(k_BLNH)
        site = None if key is None else random.fold(key, "attention")
        out, probs = attention.attend(q_BLNH, k_BLNH, v_BLNH, view, rate=cfg.attention_dropout, key=site)
        names = ("heads", "head", "embed")
        return parts.Linear(cfg, (N, H, D), names, 1, residual=True, name="out")(out), probs


def _pre(x: Array, norm: Callable, branch: Callable) -> Array:
    return x + branch(norm(x))


def _post(x: Array, norm: Callable, branch: Callable) -> Array:
    return norm(x + branch(x))


class Block(nn.Module):
    """Attention and a feed-forward layer, each a residual branch with its norm."""

    cfg: BackboneConfig

    @nn.compact
    def __call__(
        self, x_BLD: Array, view: attention.View, ids_BL: Array, key: Array | None
    ) -> tuple[Array, Array | None]:
        cfg = self.cfg
        residual = {"pre": _pre, "post": _post}[cfg.norm_at]
        feed = {"gelu": parts.Mlp, "geglu": parts.GatedMlp}[cfg.mlp](cfg, name="mlp")
        probs = None

        def attend(x):
            nonlocal probs
            x, probs = Attention(cfg, name="attention")(x, view, key)
            return _drop(cfg, x, key, "attention_out", ids_BL)

        x_BLD = residual(x_BLD, parts.Norm(cfg, name="attention_norm"), attend)
        x_BLD = residual(x_BLD, parts.Norm(cfg, name="mlp_norm"), lambda x: _drop(cfg, feed(x), key, "mlp_out", ids_BL))
        return x_BLD, probs


def _drop(cfg: BackboneConfig, x: Array, key: Array | None, site: str, ids: Array) -> Array:
    return x if key is None else random.dropout(x, cfg.dropout, random.fold(key, site), ids)


def backbone(
    cfg: BackboneConfig, constrain: Callable[[Array, tuple[str, ...]], Array] = lambda x, names: x
) -> Backbone:
    """The encoder of a config.

    Args:
      cfg: the architecture.
      constrain: places an activation by its logical axis names, `(x, ("batch", "length", "width")) -> x`; applied at
        block boundaries. The default leaves placement to the compiler.

    `encode` raises ValueError for a row longer than `max_length` or an unknown capture. Captures are "hidden"
    [layers + 1, B, L, D] (the embedding's output first) and "attention" [layers, B, N, L, L] (probabilities before
    dropout).

    Example:
      >>> bert = backbone(sized("tiny", V=30522))
      >>> hidden_BLD = bert.encode(bert.init(jax.random.key(0)), batch).hidden
    """
    # shapes alone: each operation on a device would be a program to compile
    ids = jax.ShapeDtypeStruct((1, 2), jnp.uint32)
    example: Any = {
        name: jax.ShapeDtypeStruct((1, 2), jnp.int32) for name in ("tokens", "segments", "positions", "types")
    }
    example["example"] = jax.ShapeDtypeStruct((1, 1, 2), jnp.uint32)
    x = jax.ShapeDtypeStruct((1, 2, cfg.D), cfg.dtype)
    view = jax.eval_shape(partial(attention.view, window=None, theta=None, H=cfg.H), example, ids)
    embed = parts.part(parts.Embedding(cfg, constrain), example)
    block = parts.part(Block(cfg), x, view, ids, None)
    layers = parts.stacked(block, cfg.layers)
    final = parts.part(parts.Norm(cfg), x) if cfg.norm_at == "pre" else None
    owned = {"embed": embed, "layers": layers} | ({"norm": final} if final else {})

    def init(key: Array) -> Params:
        return {name: p.init(k) for (name, p), k in zip(owned.items(), jax.random.split(key, len(owned)), strict=True)}

    def encode(
        params: Params,
        batch: Batch,
        key: Array | None = None,
        *,
        inputs: Array | None = None,
        capture: Iterable[str] = (),
    ) -> Encoded:
        capture = tuple(capture)
        _check(cfg, batch, capture)
        ids_BL = random.tokens(dict(batch))
        views = {
            kind: attention.view(
                dict(batch),
                ids_BL,
                window=cfg.window if kind == "local" else None,
                theta=None if cfg.position != "rope" else {"global": cfg.theta, "local": cfg.local_theta}[kind],
                H=cfg.H,
                dense="attention" in capture,
            )
            for kind in set(cfg.pattern)
        }

        def run(kind: str, x_BLD: Array, params_l: Params, index: Array):
            key_l = None if key is None else random.fold(key, index)
            x_BLD, probs = block.apply(params_l, x_BLD, views[kind], ids_BL, key_l)
            x_BLD = constrain(x_BLD, ("batch", "length", "width"))
            return x_BLD, {k: v for k, v in {"hidden": x_BLD, "attention": probs}.items() if k in capture}

        x_BLD = embed.apply(params["embed"], dict(batch), inputs)
        x_BLD = _drop(cfg, constrain(x_BLD, ("batch", "length", "width")), key, "embed", ids_BL)
        first = x_BLD
        x_BLD, captured = _stack(cfg, run, x_BLD, params["layers"])
        if "hidden" in capture:
            captured["hidden"] = jnp.concatenate([first[None], captured["hidden"]])
        if final:
            x_BLD = final.apply(params["norm"], x_BLD)
        return Encoded(x_BLD, captured)

    return Backbone(init, encode, {name: p.axes for name, p in owned.items()}, cfg)


def _stack(cfg: BackboneConfig, run: Callable, x: Array, params: Params) -> tuple[Array, dict[str, Array]]:
    """Runs the layers one after another: whole periods of the pattern scanned or unrolled, the rest unrolled."""
    policies = {
        "none": None,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    kinds: dict[str, Callable] = {k: partial(run, k) for k in cfg.pattern}
    if cfg.remat != "none":
        kinds = {k: jax.checkpoint(f, policy=policies[cfg.remat]) for k, f in kinds.items()}
    kinds = {k: jax.jit(f, inline=True) for k, f in kinds.items()}  # traced once, whatever the number of layers
    period = len(cfg.pattern)
    scanned = cfg.layers // period * period if cfg.scan else 0
    captured = []

    if scanned:
        grouped = jax.tree.map(lambda p: p[:scanned].reshape(-1, period, *p.shape[1:]), params)

        def group(x, params_and_index):
            params_g, index = params_and_index
            outs = []
            for i, params_l in enumerate(_unstack(params_g, period)):
                x, out = kinds[cfg.pattern[i]](x, params_l, index * period + i)
                outs.append(out)
            return x, jax.tree.map(lambda *o: jnp.stack(o), *outs)

        x, out = jax.lax.scan(group, x, (grouped, jnp.arange(scanned // period, dtype=jnp.uint32)))
        captured.append(jax.tree.map(lambda o: o.reshape(-1, *o.shape[2:]), out))
    rest = jax.tree.map(lambda p: p[scanned:], params) if scanned else params
    for i, params_l in enumerate(_unstack(rest, cfg.layers - scanned), start=scanned):
        x, out = kinds[cfg.pattern[i % period]](x, params_l, jnp.uint32(i))
        captured.append(jax.tree.map(lambda o: o[None], out))
    return x, jax.tree.map(lambda *o: jnp.concatenate(o), *captured)


def _unstack(params: Params, n: int) -> list[Params]:
    """Splits stacked leaves into n trees. A split, not n indexings: its gradient is one concatenation."""

    def parts_of(leaf):
        # of four axes at most: XLA is many times slower to compile a concatenation of five for CPUs
        few = leaf.reshape(*leaf.shape[:3], -1) if leaf.ndim > 4 else leaf
        return [part.reshape(leaf.shape[1:]) for part in jax.lax.split(few, (1,) * n, axis=0)]

    leaves, treedef = jax.tree.flatten(params)
    return [jax.tree.unflatten(treedef, layer) for layer in zip(*map(parts_of, leaves), strict=True)] if n else []


def _check(cfg: BackboneConfig, batch: Batch, capture: tuple[str, ...]) -> None:
    if unknown := [c for c in capture if c not in CAPTURES]:
        raise ValueError(f"capture {unknown[0]!r} is unknown; what can be captured is {', '.join(CAPTURES)}")
    length = batch["tokens"].shape[1]
    if length > cfg.max_length:
        raise ValueError(f"rows of {length} tokens do not fit a backbone of max_length={cfg.max_length}")

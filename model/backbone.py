"""The Transformer encoder: an embedding, a stack of blocks, and nothing that knows a task."""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from model import attention, ops, parts, random, relative
from model.config import BackboneConfig
from model.types import Array, Backbone, Batch, Encoded, Params

CAPTURES = ("hidden", "attention", "mlp")


class Past(NamedTuple):
    """Of a step's queries, each with keys and values of its own before it: [B, Q, T, N, H], and the place [] of the
    query's own among them.
    """

    keys: Array
    values: Array
    at: Array


class Attention(nn.Module):
    """Multi-head attention with one fused kernel for queries, keys and values."""

    cfg: BackboneConfig

    def setup(self):
        cfg = self.cfg
        D, N, H = cfg.D, cfg.heads, cfg.H
        self.qkv = parts.Linear(cfg, (D, N, 3, H), ("embed", "heads", "parts", "head"), 3)
        self.out = parts.Linear(cfg, (N, H, D), ("heads", "head", "embed"), 1, residual=True)
        if cfg.qk_norm:
            self.q_norm, self.k_norm = parts.Norm(cfg, "head"), parts.Norm(cfg, "head")

    def _split(self, x: Array, only: tuple[int, int] | None = None) -> list[Array]:
        x = self.qkv(x, only)
        return [part.squeeze(3) for part in jnp.split(x, x.shape[3], axis=3)]

    def keys(self, memory_BKD: Array) -> tuple[Array, Array]:
        """Keys and values [B, K, N, H] of what queries of other places read."""
        k_BKNH, v_BKNH = self._split(memory_BKD, (1, 3))
        return (self.k_norm(k_BKNH) if self.cfg.qk_norm else k_BKNH), v_BKNH

    def __call__(
        self,
        x_BQD: Array,
        view: attention.View,
        key: Array | None,
        memory: tuple[Array, Array] | None = None,
        past: Past | None = None,
    ) -> tuple[Array, Array, Past | None]:
        """The queries of x on `memory`, keys and values of other places, else on x itself, or on the past and x."""
        cfg = self.cfg
        if memory is None:
            q_BQNH, k_BKNH, v_BKNH = self._split(x_BQD)
            k_BKNH = self.k_norm(k_BKNH) if cfg.qk_norm else k_BKNH
        else:
            (q_BQNH,), (k_BKNH, v_BKNH) = self._split(x_BQD, (0, 1)), memory
        if cfg.qk_norm:
            q_BQNH = self.q_norm(q_BQNH)
        shape = q_BQNH.shape
        if past is not None:
            past = Past(
                past.keys.at[:, :, past.at].set(k_BKNH), past.values.at[:, :, past.at].set(v_BKNH), past.at
            )  # fmt: skip
            k_BKNH, v_BKNH = (x.reshape(-1, *x.shape[2:]) for x in past[:2])  # a query is a row
            q_BQNH = q_BQNH.reshape(-1, 1, *shape[2:])
        more = None
        if view.apart is not None:
            q_1RNH, k_1RNH = self._split(view.apart.embedded[None], (0, 2))
            more = attention.disentangled(q_BQNH, k_BKNH, q_1RNH[0], k_1RNH[0], view.apart.bucket)
        site = None if key is None else random.fold(key, "attention")
        out, probs = attention.attend(
            q_BQNH, k_BKNH, v_BKNH, view, scale=cfg.scale, more=more, rate=cfg.attention_dropout, key=site
        )
        return self.out(out.reshape(shape)), probs, past


def _pre(stream: tuple[Array, ...], branch: Callable, norm: Callable, at: Array | None = None) -> tuple[Array, ...]:
    x, read = stream
    x = ops.pick(x, at) + branch(read)
    return x, norm(x)


def _post(stream: tuple[Array, ...], branch: Callable, norm: Callable, at: Array | None = None) -> tuple[Array, ...]:
    (x,) = stream
    return (norm(ops.pick(x, at) + branch(x)),)


_RESIDUALS = {"pre": _pre, "post": _post}


class Block(nn.Module):
    """Attention and a feed-forward layer, each added to the residual stream, and a norm of each sum; between the two,
    where there is something `across`, attention to it.

    The stream is (x,), or with norm_at="pre" (x, norm(x)), of which the next branch reads the latter. It goes on at
    the places `at` [B, P] alone, where they are given; `view` and `ids` are theirs. `across` is another stream's last
    states [B, K, D], or the keys and values that `Attention.keys` made of them, and the view of it. Beside the stream
    it gives what can be captured of it, by name, and the past with this step in it.
    """

    cfg: BackboneConfig

    @nn.compact
    def __call__(
        self,
        stream: tuple[Array, ...],
        view: attention.View,
        ids_BL: Array,
        key: Array | None,
        at: Array | None = None,
        across: tuple[Any, attention.View] | None = None,
        past: Past | None = None,
    ) -> tuple[tuple[Array, ...], dict[str, Array | None], Past | None]:
        cfg = self.cfg
        residual = _RESIDUALS[cfg.norm_at]
        kind, activation = parts.MLPS[cfg.mlp]
        feed = kind(cfg, activation, name="mlp")
        own = Attention(cfg, name="attention")
        inner: dict[str, Array | None] = {}

        def attend(x):
            nonlocal past
            memory = None if at is None else own.keys(x)
            x, inner["attention"], past = own(ops.pick(x, at), view, key, memory, past)
            return _drop(cfg, x, key, "attention_out", ids_BL)

        def transform(x):
            inner["mlp"] = added = feed(x)
            return _drop(cfg, added, key, "mlp_out", ids_BL)

        stream = residual(stream, attend, parts.Norm(cfg, name="attention_norm"), at)
        if across is not None:
            other, (memory, seen) = Attention(cfg, name="cross"), across
            memory = memory if isinstance(memory, tuple) else other.keys(memory)
            site = None if key is None else random.fold(key, "cross")
            stream = residual(
                stream,
                lambda x: _drop(cfg, other(x, seen, site, memory)[0], key, "cross_out", ids_BL),
                parts.Norm(cfg, name="cross_norm"),
            )
        stream = residual(stream, transform, parts.Norm(cfg, name="mlp_norm"))
        return stream, inner, past


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

    `encode` of places `at` int32 [B, P] gives `hidden` [B, P, D] of these alone: the last layer then computes no more
    than they need, all keys and values but their queries, sums and feed-forward (unless it attends by blocks, or
    something is captured).

    A row may be longer than `max_length`, a segment of it not: `encode` raises ValueError where it can see that, and
    inside jit makes such tokens nan. It raises ValueError for an unknown capture too. Captures are "hidden"
    [layers + 1, B, L, D] (the embedding's output first), "mlp" [layers, B, L, D] (what each feed-forward adds to the
    stream) and "attention" [layers, B, N, L, L] (probabilities); the latter two before dropout.

    Example:
      >>> bert = backbone(sized("tiny", V=30522))
      >>> hidden_BLD = bert.encode(bert.init(jax.random.key(0)), batch).hidden
    """
    ids, batch = like()
    view = jax.eval_shape(partial(attention.view, window=None, theta=None, H=cfg.H), batch, ids)
    near = None if cfg.relative == "none" else relative.KINDS[cfg.relative](cfg)
    mine, block = tower(cfg, near, view)
    owned = embedding(cfg, constrain) | convolution(cfg) | mine

    def init(key: Array) -> Params:
        return {name: p.init(k) for (name, p), k in zip(owned.items(), jax.random.split(key, len(owned)), strict=True)}

    def encode(
        params: Params,
        batch: Batch,
        key: Array | None = None,
        *,
        inputs: Array | None = None,
        capture: Iterable[str] = (),
        at: Array | None = None,
    ) -> Encoded:
        capture = tuple(capture)
        _check(cfg, batch, capture)
        ids_BL = random.tokens(dict(batch))

        through = partial(applied, owned, params)

        def view_of(kind: str, at: Array | None = None) -> attention.View:
            theta = None if cfg.position != "rope" else {"global": cfg.theta, "local": cfg.local_theta}[kind]
            window = cfg.window if kind == "local" else None
            dense = "attention" in capture
            view = attention.view(dict(batch), ids_BL, window=window, theta=theta, H=cfg.H, dense=dense, at=at)
            return through("relative", view)

        kinds = [cfg.pattern[i % len(cfg.pattern)] for i in range(cfg.layers)]
        views = {kind: view_of(kind) for kind in set(kinds)}
        if narrow := at is not None and not capture and views[kinds[-1]].block is None:
            views["last"] = view_of(kinds[-1], at)
            kinds[-1] = "last"
        if "conv" in owned:
            views["first"] = views[kinds[0]]
            kinds[0] = "first"

        def run(kind: str, stream: tuple[Array, ...], params_l: Params, index: Array):
            key_l = None if key is None else random.fold(key, index)
            at_l = at if kind == "last" else None
            stream, inner, _ = block.apply(params_l, stream, views[kind], ops.pick(ids_BL, at_l), key_l, at_l)
            if kind == "first":
                stream = _RESIDUALS[cfg.norm_at](stream, near_tokens, partial(through, "conv_norm"))
            stream = tuple(constrain(x, ("batch", "length", "width")) for x in stream)
            return stream, {k: v for k, v in (inner | {"hidden": stream[0]}).items() if k in capture}

        def near_tokens(_):
            found = owned["conv"].apply(params["conv"], x_BLD, batch["segments"])
            return nn.gelu(_drop(cfg, found, key, "conv", ids_BL), approximate=False)

        x_BLD = embed(cfg, owned, params, batch, ids_BL, key, constrain, inputs)
        stream = begin(cfg, owned, params, x_BLD)
        stream, captured = stack(cfg, run, kinds, stream, params["layers"])
        if "hidden" in capture:
            captured["hidden"] = jnp.concatenate([x_BLD[None], captured["hidden"]])
        return Encoded(stream[-1] if narrow else ops.pick(stream[-1], at), captured)

    return Backbone(init, encode, {name: p.axes for name, p in owned.items()}, cfg, constrain)


def like() -> tuple[Any, Any]:
    """Shapes of tokens' ids and of a batch, to make parts by."""
    # shapes alone: each operation on a device would be a program to compile
    ids = jax.ShapeDtypeStruct((1, 2), jnp.uint32)
    batch: Any = {
        name: jax.ShapeDtypeStruct((1, 2), jnp.int32) for name in ("tokens", "segments", "positions", "types")
    }
    batch["example"] = jax.ShapeDtypeStruct((1, 1, 2), jnp.uint32)
    return ids, batch


def embedding(cfg: BackboneConfig, constrain: Callable) -> dict[str, parts.Part]:
    """The parts from tokens to a stream; an absent part has no params and leaves what it is given as it is."""
    owned: dict[str, parts.Part] = {"embed": parts.part(parts.Embedding(cfg, constrain), like()[1])}
    if cfg.embed_width is not None:
        x_BLE = jax.ShapeDtypeStruct((1, 2, cfg.E), cfg.dtype)
        owned["widen"] = parts.part(parts.Linear(cfg, (cfg.E, cfg.D), ("embed", "embed_out"), 1, bias=True), x_BLE)
    return owned


def convolution(cfg: BackboneConfig) -> dict[str, parts.Part]:
    """The parts of what the first layer's output has added of the embedded tokens near each."""
    if not cfg.conv:
        return {}
    x_BLD = jax.ShapeDtypeStruct((1, 2, cfg.D), cfg.dtype)
    segments = like()[1]["segments"]
    return {
        "conv": parts.part(parts.Convolution(cfg), x_BLD, segments),
        "conv_norm": parts.part(parts.Norm(cfg), x_BLD),
    }


def tower(
    cfg: BackboneConfig, near: nn.Module | None, view: attention.View, across: Any = None
) -> tuple[dict[str, parts.Part], parts.Part]:
    """What a stack of blocks owns, and its block. `near` makes a view one that knows of distances, see
    `model.relative`.
    """
    owned: dict[str, parts.Part] = {}
    x_BLD = jax.ShapeDtypeStruct((1, 2, cfg.D), cfg.dtype)
    if cfg.norm_at == "pre" and not cfg.embed_norm:
        owned["norm"] = parts.part(parts.Norm(cfg), x_BLD)
    if near is not None:
        owned["relative"] = parts.part(near, view)
        view = jax.eval_shape(
            lambda v, k: owned["relative"].apply(owned["relative"].init(k), v), view, random.generator(0)
        )
    stream = (x_BLD,) if cfg.norm_at == "post" else (x_BLD, x_BLD)
    block = parts.part(Block(cfg), stream, view, like()[0], None, None, across)
    return owned | {"layers": parts.stacked(block, cfg.layers // cfg.share)}, block


def applied(owned: dict[str, parts.Part], params: Params, name: str, x: Any) -> Any:
    """A part of x, or x where there is no such part."""
    return owned[name].apply(params[name], x) if name in owned else x


def embed(
    cfg: BackboneConfig,
    owned: dict[str, parts.Part],
    params: Params,
    batch: Batch,
    ids_BL: Array,
    key: Array | None,
    constrain: Callable,
    inputs: Array | None = None,
) -> Array:
    """[B, L, D] of tokens, by the parts of `embedding`."""
    x_BLE = owned["embed"].apply(params["embed"], dict(batch), inputs)
    x_BLE = _drop(cfg, constrain(x_BLE, ("batch", "length", "width")), key, "embed", ids_BL)
    return applied(owned, params, "widen", x_BLE)


def begin(cfg: BackboneConfig, owned: dict[str, parts.Part], params: Params, x_BLD: Array) -> tuple[Array, ...]:
    """The residual stream that the first block reads."""
    return (x_BLD,) if cfg.norm_at == "post" else (x_BLD, applied(owned, params, "norm", x_BLD))


def stack(cfg: BackboneConfig, run: Callable, kinds: list[str], x: Any, params: Params) -> tuple[Any, dict[str, Array]]:
    """Runs the layers, of these kinds, one after another: whole periods of the pattern scanned or unrolled, the rest,
    with those of the kinds "first" and "last", unrolled.
    """
    policies = {
        "none": None,
        "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        "full": jax.checkpoint_policies.nothing_saveable,
    }
    layer: dict[str, Callable] = {k: partial(run, k) for k in kinds}
    if cfg.remat != "none":
        layer = {k: jax.checkpoint(f, policy=policies[cfg.remat]) for k, f in layer.items()}
    layer = {k: jax.jit(f, inline=True) for k, f in layer.items()}  # traced once, whatever the number of layers
    period = math.lcm(len(cfg.pattern), cfg.share)
    lead = min(period, cfg.layers) if cfg.scan and kinds[0] == "first" else 0
    alike = cfg.layers - (kinds[-1] == "last") - lead
    scanned = max(alike, 0) // period * period if cfg.scan else 0
    captured = []

    def cut(start, end):  # of the stacked params
        return jax.tree.map(lambda p: p[start // cfg.share : end // cfg.share], params)

    def several(x, params, first, kinds):  # layers from `first`, whose params these are
        each = _unstack(params, len(kinds) // cfg.share)
        outs = []
        for i, kind in enumerate(kinds):
            x, out = layer[kind](x, each[i // cfg.share], first + np.uint32(i))
            outs.append(out)
        return x, jax.tree.map(lambda *o: jnp.stack(o), *outs)

    if lead:
        x, out = several(x, cut(0, lead), np.uint32(0), kinds[:lead])
        captured.append(out)
    done = lead + scanned
    if scanned:
        of = kinds[lead : lead + period]
        grouped = jax.tree.map(lambda p: p.reshape(-1, period // cfg.share, *p.shape[1:]), cut(lead, done))
        firsts = jnp.arange(lead, done, period, dtype=jnp.uint32)
        x, out = jax.lax.scan(lambda x, given: several(x, *given, of), x, (grouped, firsts))
        captured.append(jax.tree.map(lambda o: o.reshape(-1, *o.shape[2:]), out))
    if done < cfg.layers:
        x, out = several(x, cut(done, cfg.layers), np.uint32(done), kinds[done:])
        captured.append(out)
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
    if batch["tokens"].shape[1] > cfg.max_length and not isinstance(batch["positions"], jax.core.Tracer):
        longest = int(batch["positions"].max()) + 1
        if longest > cfg.max_length:
            raise ValueError(f"segments of {longest} tokens do not fit a backbone of max_length={cfg.max_length}")

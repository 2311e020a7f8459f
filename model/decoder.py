"""The Transformer decoder: blocks that see what is written so far and an encoder's states, in one pass or by steps."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from model import attention, random, relative
from model.backbone import Attention, Past, applied, begin, embed, embedding, like, stack, tower
from model.config import BackboneConfig
from model.types import Array, Batch, Params


class Decoder(NamedTuple):
    """A decoder as pure functions. `base` are the params of the backbone, whose embedding it reads by.

    init:    key -> params
    decode:  (params, base, target, source, memory [B, M, D], key=None) -> [B, T, D], after each token of `target`. It
             sees its own segment up to itself, and of `memory`, the encoder's states of `source`, the segment of its
             number. `target` and `source` are batches as `model.types` says
    start:   (params, base, source, memory, segments int32 [B, Q], steps) -> (Cache, step): Q texts are written in each
             row, each reading one segment; step is (tokens int32 [B, Q], Cache) -> ([B, Q, D], Cache)
    axes:    logical axis names of params
    """

    init: Callable[[Array], Params]
    decode: Callable[..., Array]
    start: Callable[..., tuple["Cache", Callable]]
    axes: Any


class Cache(NamedTuple):
    """Keys and values [layers, B, Q, T, N, H] of what is written, and how many tokens that is, int32 []."""

    keys: Array
    values: Array
    at: Array

    def take(self, index_BQ: Array) -> "Cache":
        """Each row's texts at these places."""
        keys, values = (jnp.take_along_axis(x, index_BQ[None, :, :, None, None, None], 2) for x in self[:2])
        return Cache(keys, values, self.at)


def decoder(
    cfg: BackboneConfig,
    constrain: Callable[[Array, tuple[str, ...]], Array] = lambda x, names: x,
    *,
    layers: int | None = None,
) -> Decoder:
    """The decoder that belongs to an encoder (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.1), made
    as that is: norms, feed-forward, positions. All its layers attend globally. Where the encoder's attention knows of
    relative distances, this one's has a number for each head and bucket of them (T5), but not towards the memory.

    It reads tokens by the backbone's embedding, as of type 1 where there are types. `layers` is its depth, None for the
    encoder's. Raises ValueError for less than one layer.
    """
    if layers is not None and layers < 1:
        raise ValueError(f"decoder layers={layers} must be at least 1, or None for the encoder's {cfg.layers}")
    cfg = dataclasses.replace(cfg, layers=layers or cfg.layers, share=1, pattern=("global",), conv=0)
    theta = cfg.theta if cfg.position == "rope" else None
    view_of = partial(attention.view, window=None, theta=theta, H=cfg.H)
    ids, batch = like()
    view = jax.eval_shape(partial(view_of, H=cfg.H), batch | {"reach": batch["positions"]}, ids)
    seen = jax.eval_shape(attention.across, batch, ids, batch)
    near = None if cfg.relative == "none" else relative.Bias(cfg, past=True)
    memory = jax.ShapeDtypeStruct((1, 2, cfg.D), cfg.dtype)
    owned, block = tower(cfg, near, view, (memory, seen))
    reading = embedding(cfg, constrain)

    def init(key: Array) -> Params:
        return {name: p.init(k) for (name, p), k in zip(owned.items(), jax.random.split(key, len(owned)), strict=True)}

    def stream(params: Params, base: Params, target: dict, ids: Array, key: Array | None) -> tuple[Array, ...]:
        target = target | {"types": jnp.ones_like(target["tokens"])}
        return begin(cfg, owned, params, embed(cfg, reading, base, target, ids, key, constrain))

    def placed(stream: tuple[Array, ...]) -> tuple[Array, ...]:
        return tuple(constrain(x, ("batch", "length", "width")) for x in stream)

    def decode(
        params: Params, base: Params, target: Batch, source: Batch, memory_BMD: Array, key: Array | None = None
    ) -> Array:
        target = dict(target) | {"reach": target["positions"]}
        key = None if key is None else random.fold(key, "decoder")
        ids_BT = random.tokens(target)
        view = applied(owned, params, "relative", view_of(target, ids_BT))
        seen = attention.across(target, ids_BT, dict(source))

        def run(kind: str, x: tuple[Array, ...], params_l: Params, index: Array):
            key_l = None if key is None else random.fold(key, index)
            x, _, _ = block.apply(params_l, x, view, ids_BT, key_l, None, (memory_BMD, seen))
            return placed(x), {}

        x, _ = stack(cfg, run, ["global"] * cfg.layers, stream(params, base, target, ids_BT, key), params["layers"])
        return x[-1]

    def start(
        params: Params, base: Params, source: Batch, memory_BMD: Array, segments_BQ: Array, steps: int
    ) -> tuple[Cache, Callable[[Array, Cache], tuple[Array, Cache]]]:
        keys_of = partial(Attention(cfg).apply, method="keys")
        memory = jax.vmap(lambda p: keys_of({"params": p}, memory_BMD))(params["layers"]["cross"])
        empty = jnp.zeros((cfg.layers, *segments_BQ.shape, steps, cfg.heads, cfg.H), cfg.dtype)
        ids_BQ = jnp.zeros(segments_BQ.shape, jnp.uint32)  # no dropout, nobody draws by them
        place_1T = jnp.arange(steps, dtype=jnp.int32)[None]
        written = dict(segments=jnp.ones_like(place_1T), positions=place_1T, reach=place_1T)

        def step(tokens_BQ: Array, cache: Cache) -> tuple[Array, Cache]:
            target = dict(tokens=tokens_BQ, segments=segments_BQ, positions=jnp.full_like(tokens_BQ, cache.at))
            view = view_of(written, jnp.zeros(place_1T.shape, jnp.uint32), at=cache.at[None, None])
            view = applied(owned, params, "relative", view)
            seen = attention.across(target, ids_BQ, dict(source))

            def run(kind: str, x: tuple[Array, ...], held: Any, index: Array):
                past = Past(held["keys"], held["values"], cache.at)
                across = held["memory"], seen
                x, _, past = block.apply(held["params"], x, view, ids_BQ, None, None, across, past)
                return placed(x), dict(keys=past.keys, values=past.values)

            # what a layer holds is stacked as its params are
            held = dict(params=params["layers"], memory=memory, keys=cache.keys, values=cache.values)
            x, past = stack(cfg, run, ["global"] * cfg.layers, stream(params, base, target, ids_BQ, None), held)
            return x[-1], Cache(past["keys"], past["values"], cache.at + 1)

        return Cache(empty, empty, jnp.int32(0)), step

    return Decoder(init, decode, start, {name: p.axes for name, p in owned.items()})

"""Attention by relative distance: what a query's view of its keys gains from how far they are, in buckets."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from model import attention, ops, parts
from model.config import BackboneConfig
from model.types import Array


class Bias(nn.Module):
    """A learned number for each head and bucket, added to the scores (Raffel et al. 2019, section 2.1).

    The same in all layers, so that the view's bias is made once. Of the buckets half are for keys that come later,
    none where queries see the past alone.
    """

    cfg: BackboneConfig
    past: bool = False

    @nn.compact
    def __call__(self, view: attention.View) -> attention.View:
        cfg = self.cfg
        table_RN = self.param("table", parts.kernel(cfg, "buckets", "heads"), (cfg.buckets, cfg.heads), cfg.param_dtype)
        found_GQKN = ops.take(table_RN, _bucket(view.distance, cfg, _past if self.past else _halves))
        return view._replace(bias=view.bias + jnp.moveaxis(ops.wide(found_GQKN), -1, 1))


class Disentangled(nn.Module):
    """An embedding for each bucket, with a norm, which every layer maps to queries and keys (He et al. 2020)."""

    cfg: BackboneConfig

    @nn.compact
    def __call__(self, view: attention.View) -> attention.View:
        cfg = self.cfg
        table_RD = self.param("table", parts.kernel(cfg, "buckets", "embed"), (2 * cfg.buckets, cfg.D), cfg.param_dtype)
        embedded_RD = parts.Norm(cfg, name="norm")(table_RD)
        return view._replace(apart=attention.Apart(_bucket(view.distance, cfg, _sides), embedded_RD))


KINDS = {"bias": Bias, "disentangled": Disentangled}


def _bucket(distance: Array, cfg: BackboneConfig, of) -> Array:
    """By table, made on the host: logarithms at the steps' edges are to round alike on every machine."""
    table = of(np.arange(1 - cfg.max_length, cfg.max_length), cfg.buckets, cfg.distance)
    # across segments positions can be further apart than any row is long, and are not seen
    at = jnp.clip(distance, 1 - cfg.max_length, cfg.max_length - 1) + (cfg.max_length - 1)
    return ops.take(table.astype(np.int32), at)


def _halves(distance: np.ndarray, buckets: int, furthest: int) -> np.ndarray:
    """T5's: half of the buckets for either sign."""
    half = buckets // 2
    return np.where(distance < 0, half, 0) + _steps(abs(distance), half, furthest)


def _past(distance: np.ndarray, buckets: int, furthest: int) -> np.ndarray:
    """T5's in its decoder, where no key comes later."""
    return _steps(np.maximum(distance, 0), buckets, furthest)


def _steps(far: np.ndarray, buckets: int, furthest: int) -> np.ndarray:
    """Half of the buckets are a distance each, half are steps of its logarithm."""
    exact = buckets // 2
    steps = np.log(np.maximum(far, 1).astype(np.float32) / exact) / np.log(furthest / exact) * (buckets - exact)
    by_log = np.minimum(exact + steps.astype(np.float32).astype(np.int64), buckets - 1)
    return np.where(far < exact, far, by_log)


def _sides(distance: np.ndarray, buckets: int, furthest: int) -> np.ndarray:
    """DeBERTa's: `buckets` for either sign; of these half are a distance each, half are steps of its logarithm."""
    exact = buckets // 2
    far = np.maximum(abs(distance), exact - 1)
    steps = np.log(far / exact) / np.log((furthest - 1) / exact) * (exact - 1)
    by_log = np.sign(distance) * (np.ceil(steps) + exact)
    return np.clip(np.where(abs(distance) <= exact, distance, by_log) + buckets, 0, 2 * buckets - 1).astype(np.int64)

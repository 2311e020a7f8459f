import dataclasses

import jax
import pytest

from model.backbone import backbone
from model.config import SIZES, BackboneConfig, sized


@pytest.mark.parametrize(
    "changes, says",
    [
        (dict(D=10, heads=4), "D=10 must be divisible by heads=4"),
        (dict(D=6, heads=2, position="rope"), "must be even"),
        (dict(norm_at="middle"), "norm_at='middle' must be one of pre, post"),
        (dict(pattern=("global", "lokal")), "pattern='lokal' must be one of global, local"),
        (dict(dropout=1.0), r"dropout=1.0 must be in \[0, 1\)"),
        (dict(layers=0), "layers=0 must be at least 1"),
        (dict(pattern=()), "pattern is empty"),
        (dict(conv=2), "conv=2 must be 0, or odd"),
        (dict(conv=3, layers=1), "conv=3 must be 0, or odd and in a backbone of several layers; it has layers=1"),
    ],
)
def test_what_cannot_be_is_refused(changes, says):
    with pytest.raises(ValueError, match=says):
        BackboneConfig(V=10, **changes)


def test_unknown_size_and_field():
    with pytest.raises(ValueError, match="the sizes are tiny, mini"):
        sized("huge", V=10)
    with pytest.raises(ValueError, match="no field 'depth'"):
        sized("tiny", V=10, depth=3)


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        BackboneConfig(V=10).D = 3


# parameters of the encoder with embeddings at V=30522, 512 positions and 2 types, without pooler: what the released
# BERT models hold (https://github.com/google-research/bert) less their poolers D * D + D
PUBLISHED = {"tiny": 4_369_408, "mini": 11_104_768, "small": 28_500_992, "medium": 41_110_528, "base": 108_891_648}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes(size):
    cfg = sized(size, V=30522)
    shapes = jax.eval_shape(backbone(cfg).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == PUBLISHED[size]


def test_modern_base():
    """149,014,272 as released (answerdotai/ModernBERT-base)."""
    cfg = sized("modern-base", V=50368)
    shapes = jax.eval_shape(backbone(cfg).init, jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 149_014_272


@pytest.mark.parametrize("size", SIZES)
def test_axes_name_every_dimension(size):
    bb = backbone(sized(size, V=50))
    shapes = jax.eval_shape(bb.init, jax.random.key(0))
    assert jax.tree.structure(shapes) == jax.tree.structure(bb.axes, is_leaf=lambda x: isinstance(x, tuple))
    jax.tree.map(lambda x, names: len(x.shape) == len(names) or pytest.fail(f"{names}"), shapes, bb.axes)
    layers = jax.tree.leaves(bb.axes["layers"], is_leaf=lambda x: isinstance(x, tuple))
    assert all(names[0] == "layers" for names in layers)

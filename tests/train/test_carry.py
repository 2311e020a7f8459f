import jax.numpy as jnp
import numpy as np
import pytest

from train.carry import KEEP_BACKBONE, carry, summary

OLD = {
    "backbone": {
        "embed": {"tokens": np.ones((6, 2)), "positions": np.ones((4, 2))},
        "layers": {"w": np.ones((3, 2, 2))},
    },
    "mlm": {"bias": np.ones(6)},
}


def new(positions=4):
    zeros = lambda *shape: jnp.zeros(shape)
    embed = {"tokens": zeros(6, 2), "positions": zeros(positions, 2)}
    return {"backbone": {"embed": embed, "layers": {"w": zeros(3, 2, 2)}}, "classify": {"out": zeros(2, 2)}}


def test_every_leaf_is_accounted_for():
    params, report = carry(OLD, new())
    assert {line.path: line.what for line in report} == {
        "backbone/embed/positions": "taken",
        "backbone/embed/tokens": "taken",
        "backbone/layers/w": "taken",
        "classify/out": "fresh",
        "mlm/bias": "dropped",
    }
    assert (params["backbone"]["layers"]["w"] == 1).all()
    assert (params["classify"]["out"] == 0).all()
    assert "32 parameters taken, 4 parameters fresh, 6 parameters dropped" in summary(report)


def test_renamed_and_kept_fresh():
    rules = [("classify/out", r"backbone/layers/w"), ("backbone/embed/.*", None), *KEEP_BACKBONE]
    fresh = new()
    fresh["classify"]["out"] = jnp.zeros((3, 2, 2))
    params, report = carry(OLD, fresh, rules)
    what = [(line.path, line.what) for line in report]
    assert ("classify/out", "renamed") in what
    assert ("backbone/embed/tokens", "fresh") in what
    assert ("backbone/embed/tokens", "dropped") in what
    assert (params["classify"]["out"] == 1).all()


@pytest.mark.parametrize("rows", [2, 7])
def test_resized(rows):
    params, report = carry(OLD, new(positions=rows), resize=["backbone/embed/positions"])
    got = params["backbone"]["embed"]["positions"]
    assert got.shape == (rows, 2)
    assert int(got.sum()) == 2 * min(rows, 4)
    assert [line.what for line in report if line.path == "backbone/embed/positions"] == ["resized"]


def test_what_does_not_fit_lists_both_trees():
    with pytest.raises(
        ValueError, match=r"(?s)\(7, 2\).*\(4, 2\).*the checkpoint holds:.*mlm/bias.*new tree is:.*classify"
    ):
        carry(OLD, new(positions=7))
    with pytest.raises(ValueError, match="which the checkpoint does not have"):
        carry({"mlm": OLD["mlm"]}, new())

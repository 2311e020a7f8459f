import jax
import jax.numpy as jnp
import numpy as np
import pytest

from train import checkpoint, sharding
from train.carry import KEEP_BACKBONE, carry, plan, reading, summary
from train.state import TrainState

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


def test_a_rule_of_nothing_and_one_that_may_match_nothing_more():
    with pytest.raises(ValueError, match=r"the rule 'backbones/\(\.\*\)' matches no parameter of the new tree"):
        plan(OLD, new(), [*KEEP_BACKBONE, ("backbones/(.*)", r"\1")])
    old = {"old": OLD["backbone"]}
    report = plan(old, {"backbone": OLD["backbone"]}, [("backbone/(.*)", r"old/\1")])
    assert report == plan(old, {"backbone": OLD["backbone"]}, [("(?:backbone/)?(.*)", r"old/\1")])
    assert {line.what for line in report} == {"renamed"}


def test_what_is_taken_twice_is_two_arrays():
    """A step that gives its state away could not give one array away twice."""
    old = {"backbone": {"w": jnp.ones((2, 2))}}
    params, _ = carry(
        old,
        {"backbone": {"w": jnp.zeros((2, 2))}, "teacher": {"w": jnp.zeros((2, 2))}},
        [("(?:backbone|teacher)/w", "backbone/w")],
    )
    one, other = params["backbone"]["w"], params["teacher"]["w"]
    assert one.unsafe_buffer_pointer() != other.unsafe_buffer_pointer()
    np.testing.assert_array_equal(one, other)


def test_a_checkpoint_is_read_to_where_it_is_taken(tmp_path):
    """Each device has its part of what fits, in the new stage's dtype; what nothing takes is not read."""
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4, "tensor": 1})
    split = jax.NamedSharding(mesh, jax.P(None, "fsdp"))
    w = np.arange(64.0, dtype=np.float32).reshape(4, 16)
    store = checkpoint.Store(tmp_path, None)
    saved = {"backbone": {"w": w, "positions": w}, "mlm": {"w": w}}
    store.save(TrainState(jnp.int32(3), saved, {}), 3, {"tokenizer": "t"})
    store.close()
    put = lambda shape: jax.device_put(jnp.zeros(shape, jnp.bfloat16), split)
    fresh = {"backbone": {"w": put((4, 16)), "positions": put((2, 16))}, "tag": {"w": put((4, 16))}}
    restored, facts, step = checkpoint.read_params(tmp_path, place=lambda shapes: reading(shapes, fresh))
    assert (facts["tokenizer"], step) == ("t", 3)
    assert restored["backbone"]["w"].sharding == split
    assert {part.data.shape for part in restored["backbone"]["w"].addressable_shards} == {(4, 4)}
    assert isinstance(restored["mlm"]["w"], jax.ShapeDtypeStruct)
    params, report = carry(restored, fresh, resize=["backbone/positions"])
    assert params["backbone"]["w"] is restored["backbone"]["w"]
    assert params["backbone"]["w"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(params["backbone"]["w"], np.float32), w)
    np.testing.assert_array_equal(np.asarray(params["backbone"]["positions"], np.float32), w[:2])
    assert [line.path for line in report if line.what == "dropped"] == ["mlm/w"]


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
    with pytest.raises(ValueError, match="backbone/layers/w should come from backbone/layers/w, which the checkpoint"):
        carry({"backbone": {"embed": OLD["backbone"]["embed"]}}, new())


def test_a_decoder_asked_of_an_encoder():
    """Said in a line, not in one for each leaf."""
    fresh = new() | {"seq2seq": {"decoder": {"w": jnp.zeros((2, 2)), "v": jnp.zeros(2)}}}
    with pytest.raises(ValueError, match=r"2 leaves should come from seq2seq/, .* holds backbone, mlm alone"):
        plan(OLD, fresh, [*KEEP_BACKBONE, ("(seq2seq/.*)", r"\1")])


def test_what_both_have_and_no_rule_takes_is_told():
    old = OLD | {"seq2seq": {"w": np.ones(2)}}
    fresh = new() | {"seq2seq": {"w": jnp.zeros(2)}}
    _, report = carry(old, fresh)
    rules = (((r"((backbone|seq2seq)/.*)"), r"\1"),)
    said = r'1 leaves are fresh and dropped at once: rules=((r"((backbone|seq2seq)/.*)", r"\1"),) of carry'
    assert said in summary(report)
    _, report = carry(old, fresh, rules)  # as it says
    assert {line.what for line in report if line.path.split("/")[0] in ("backbone", "seq2seq")} == {"taken"}
    assert "at once" not in summary(report)
    _, report = carry(old, new() | {"seq2seq": {"w": jnp.zeros(3)}})  # of another shape, which no rule could take
    assert "at once" not in summary(report)

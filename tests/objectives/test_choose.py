"""Multiple choice against a softmax over each group's segments, in a loop."""

from functools import partial

import jax
import numpy as np
import pytest
from toys import V, pack, params_of

from model.backbone import backbone
from model.config import sized
from objectives import types
from objectives.choose import choose

LAYOUT = [[0, 1, 2], [3, 4], [5, 6, 7, 8], []]
RIGHT = [[0, 1, 0, 0], [1, 0, 0, 0], [0, 2, 0, 1], [0, 0, 0, 0]]  # graded: two of the last are right


@pytest.fixture(scope="module")
def rows():
    return pack(LAYOUT, 72, 4) | {"labels": np.array(RIGHT, np.int32)}


def test_by_a_loop(vocab, rows):
    with jax.enable_x64(True):
        cfg = sized("tiny", V=V, D=16, heads=4, F=32, layers=1, max_length=72, dtype="float64", param_dtype="float64")
        bb = backbone(cfg)
        objective = choose(bb, vocab)
        params = params_of(bb, objective)
        encode = partial(bb.encode, params["backbone"])
        split = rows | {"group": np.array([[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 2, 2], [0] * 4])}
        for batch, groups in ((rows, [[0, 1, 2, 3]] * 3), (split, [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1], [2, 3]])):
            sums = jax.jit(lambda rows: objective.loss(params, encode, rows, None, 0))(batch)
            said = jax.device_get(jax.jit(lambda rows: objective.predict(params, encode, rows))(batch))
            losses, hits = [], []
            for b, members in zip([0, 1, 2, 2], groups, strict=False):
                members = [s for s in members if batch["group"][b, s]]
                p = np.exp(said["logits"][b, members])
                p /= p.sum()
                np.testing.assert_allclose(said["prediction"][b, members], p, rtol=1e-10)
                for at, s in enumerate(members):
                    if RIGHT[b][s]:
                        losses.append(-np.log(p[at]))
                        hits.append(p.argmax() == at)
            assert len(losses) == 4
            got = types.report(sums)
            np.testing.assert_allclose([got["choose"], got["choose_accuracy"]], [np.mean(losses), np.mean(hits)])


def test_a_text_without_a_group_has_its_number(vocab, rows):
    bb = backbone(sized("tiny", V=V, D=16, heads=4, F=32, layers=1, max_length=72))
    objective = choose(bb, vocab)
    params = params_of(bb, objective)
    alone = {k: v for k, v in rows.items() if k not in ("group", "labels")}
    said = objective.predict(params, partial(bb.encode, params["backbone"]), alone)
    assert said["logits"].shape == (4, 4)
    assert said.keys() == {"logits"}

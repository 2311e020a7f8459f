"""Regression: head, mean squared error and correlations by hand."""

from functools import partial

import jax
import numpy as np
from scipy import stats
from toys import V, pack, params_of

from model.backbone import backbone
from model.config import sized
from objectives.regress import regress
from train import evaluate


def test_by_hand(vocab):
    bb = backbone(sized("tiny", V=V, D=16, heads=2, F=32, layers=1, max_length=64))
    objective = regress(bb, vocab, pooling="mean")
    params, rows = params_of(bb, objective), pack([[5, 0, 9], [1], [], [12, 3]], 48, 3)
    rows["labels"] = rows["labels"].astype(np.float32) * 0.7
    hidden = np.asarray(bb.encode(params["backbone"], rows).hidden, np.float64)
    own = jax.tree.map(np.float64, params["regress"])
    said, true = [], []
    for b in range(len(hidden)):
        for s in range(rows["segments"][b].max()):
            x = hidden[b][rows["segments"][b] == s + 1].mean(0)
            x = np.tanh(x @ own["pooler"]["kernel"] + own["pooler"]["bias"])
            said.append((x @ own["out"]["kernel"] + own["out"]["bias"]).item())
            true.append(rows["labels"][b, s])
    found = evaluate.evaluate(jax.jit(evaluate.evaluator(bb, objective)), params, [rows], objective)
    np.testing.assert_allclose(found["regress"], np.mean(np.square(np.subtract(said, true))), rtol=1e-5)
    np.testing.assert_allclose(found["pearson"], stats.pearsonr(said, true)[0], rtol=1e-5)
    np.testing.assert_allclose(found["spearman"], stats.spearmanr(said, true)[0], rtol=1e-5)


def test_numbers_are_not_rounded_to_bfloat16(vocab):
    """Of which a freshly made head says a few values alone."""
    bb = backbone(sized("tiny", V=V, D=16, heads=2, F=32, layers=1, max_length=64, dtype="bfloat16"))
    objective = regress(bb, vocab)
    rows = pack([[d] for d in range(40)], 20, 1)
    params = params_of(bb, objective)
    said = objective.predict(params, partial(bb.encode, params["backbone"]), rows)["prediction"]
    assert said.dtype == np.float32
    assert len(np.unique(np.asarray(said))) > 35

"""Classification: head, cross-entropy and accuracy by hand."""

import jax
import numpy as np
import pytest
from toys import V, pack, params_of

from model.backbone import backbone
from model.config import sized
from objectives.classify import classify
from train import evaluate


def test_by_hand(vocab):
    bb = backbone(sized("tiny", V=V, D=16, heads=2, F=32, layers=1, max_length=64))
    objective = classify(bb, vocab, classes=3)
    params, rows = params_of(bb, objective), pack([[5, 0, 9], [1], [], [12, 3]], 48, 3)
    hidden = np.asarray(bb.encode(params["backbone"], rows).hidden, np.float64)
    own = jax.tree.map(np.float64, params["classify"])
    losses, hits = [], []
    for b in range(len(hidden)):
        for s in range(rows["segments"][b].max()):
            x = hidden[b][rows["segments"][b] == s + 1][0]
            x = np.tanh(x @ own["pooler"]["kernel"] + own["pooler"]["bias"])
            logits = x @ own["out"]["kernel"] + own["out"]["bias"]
            label = rows["labels"][b, s]
            losses.append(np.log(np.exp(logits).sum()) - logits[label])
            hits.append(logits.argmax() == label)
    found = evaluate.evaluate(jax.jit(evaluate.evaluator(bb, objective)), params, [rows], objective)
    np.testing.assert_allclose(found["classify"], np.mean(losses), rtol=1e-5)
    assert found["accuracy"] == pytest.approx(np.mean(hits))

"""Next sentence and sentence order against a loop over pairs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import V, pack, params_of

from model import random
from model.backbone import backbone
from model.config import sized
from objectives import pairs as pairs_of
from objectives import types
from objectives.pairs import nsp, sop
from train import step as training

LAYOUT = [[5, 0, 9], [1], [12, 3], [2, 15], [4, 6, 7], [], [8, 11], [14, 10, 13]] * 12


@pytest.fixture(scope="module")
def bb():
    return backbone(sized("tiny", V=V, D=16, heads=4, F=32, max_length=64))


def pairs(rows, b):
    """[first span with CLS and SEP, second span with SEP] of each pair of a row, checking what a row must be."""
    out = []
    for s in range(1, rows["segments"][b].max() + 1):
        here = rows["segments"][b] == s
        assert rows["positions"][b][here].tolist() == list(range(here.sum()))
        assert (np.diff(np.flatnonzero(here)) == 1).all()
        types = rows["types"][b][here]
        assert (np.diff(types) >= 0).all()
        out.append([rows["tokens"][b][here][types == kind].tolist() for kind in (0, 1)])
    return out


@pytest.fixture(scope="module")
def rows():
    rows = pack(LAYOUT, 48, 3)
    rows["example"][..., 1] += 100 * np.arange(len(LAYOUT), dtype=np.uint32)[:, None]  # none twice
    for b in range(len(LAYOUT)):  # each span ends in [SEP]
        types = rows["types"][b]
        rows["tokens"][b][np.flatnonzero((types == 1) & (np.roll(types, 1) == 0)) - 1] = 3
    return rows


def corrupt(objective, rows, step=0):
    make = jax.jit(partial(training.corrupted, objective=objective))
    return jax.device_get(make(rows, random.fold(random.key(9), step), jnp.int32(step)))


def test_next_sentences(bb, vocab, rows):
    """Couples of nearest length, by a loop, that exchange their second spans or keep them, cut to one length."""
    drawn, counted, lengths = 0, 0, set()
    out = corrupt(nsp(bb, vocab, rate=0.6), rows)
    for b in range(len(LAYOUT)):
        before, after = pairs(rows, b), pairs(out, b)
        n, labels, there = len(before), out["nsp"]["label"][b], out["nsp"]["there"][b]
        assert [pair[0] for pair in before] == [pair[0] for pair in after]
        assert there.tolist() == [float(s < n and n > 1) for s in range(3)]
        if n < 2:
            assert after == before and not labels.any()
            continue
        # of two or three pairs all are one couple
        got = [second for _, second in after]
        short, kept = min(len(pair[1]) for pair in before) - 1, len(got[0]) - 1
        assert max(1, int(0.75 * short)) <= kept <= max(1, short - 1)
        lengths.add(kept / short)
        cut = [[*second[:kept], second[-1]] for _, second in before]
        assert sorted(got) == sorted(cut)
        assert len(set(labels[:n].tolist())) == 1 and not labels[n:].any()
        assert [x == y for x, y in zip(got, cut, strict=True)] == [not labels[0]] * n
        drawn, counted = drawn + labels[:n].any(), counted + 1
        assert (out["tokens"][b][out["segments"][b] == 0] == 0).all()
    assert abs(drawn - 0.6 * counted) < 4.5 * np.sqrt(0.24 * counted)
    assert len(lengths) > 3


def test_couples_are_of_nearest_length():
    """Of pairs of 9, none, 5, 30, 6 and 31 tokens: 5 with 6, and 9, 30 and 31 round."""
    second = jnp.array([9, 0, 5, 30, 6, 31])
    following, shortest = pairs_of._couples(second, second > 1, jnp.linspace(0, 1, 6))
    there = np.array([0, 2, 3, 4, 5])
    assert np.asarray(following)[there].tolist() == [3, 4, 5, 2, 0]
    assert np.asarray(shortest)[there].tolist() == [0, 2, 0, 2, 0]


def test_what_is_no_pair_changes_with_nobody(bb, vocab):
    """An empty second text, and a pair that is left without another."""
    rows = pack([[0, 1, 2], [3, 4]], 48, 3)
    for b, s in ((0, 1), (1, 0)):  # a [SEP] alone
        here = np.flatnonzero(rows["segments"][b] == s + 1)
        rows["types"][b][here] = np.arange(len(here)) == len(here) - 1
    for step in range(6):
        out = corrupt(nsp(bb, vocab), rows, step)
        assert out["nsp"]["there"].tolist() == [[1, 0, 1], [0, 0, 0]]
        assert pairs(out, 1) == pairs(rows, 1) and pairs(out, 0)[1] == pairs(rows, 0)[1]


def test_sentence_order(bb, vocab, rows):
    out, kinds = corrupt(sop(bb, vocab), rows), []
    for b in range(len(LAYOUT)):
        labels = out["sop"]["label"][b]
        for s, ((a, second), after) in enumerate(zip(pairs(rows, b), pairs(out, b), strict=True)):
            kinds.append(labels[s])
            assert after == ([[2, *second], a[1:]] if labels[s] else [a, second])
    assert abs(np.mean(kinds) - 0.5) < 4.5 * np.sqrt(0.25 / len(kinds))
    np.testing.assert_array_equal(out["segments"], rows["segments"])


@pytest.mark.parametrize("make", [nsp, sop])
def test_the_loss_by_hand(bb, vocab, rows, make):
    """Pooler, softmax and cross-entropy over the pairs; a text without a second span counts for nothing."""
    objective = make(bb, vocab)
    params = params_of(bb, objective)
    few = {k: x[:8].copy() for k, x in rows.items()}
    few["types"][1] = 0  # the only text of its row: no pair; another such row has one of sop alone
    batch = corrupt(objective, few)
    encode = partial(bb.encode, params["backbone"])
    hidden = np.asarray(encode(batch).hidden, np.float64)
    own = jax.tree.map(np.float64, params[objective.name])
    total, hits, said = [], [], objective.predict(params, encode, batch)
    for b in range(8):
        for s in range(batch["segments"][b].max()):
            first = np.flatnonzero(batch["segments"][b] == s + 1)[0]
            x = np.tanh(hidden[b, first] @ own["pooler"]["kernel"] + own["pooler"]["bias"])
            logits = x @ own["out"]["kernel"] + own["out"]["bias"]
            p = np.exp(logits) / np.exp(logits).sum()
            np.testing.assert_allclose(said["probabilities"][b, s], p, rtol=1e-4)
            assert int(said["prediction"][b, s]) == p.argmax()
            if b != 1:
                total.append(-np.log(p[batch[objective.name]["label"][b, s]]))
                hits.append(p.argmax() == batch[objective.name]["label"][b, s])
    report = types.report(objective.loss(params, encode, batch, None, 0))
    np.testing.assert_allclose(report[objective.name], np.mean(total), rtol=1e-5)
    np.testing.assert_allclose(report[f"{objective.name}_accuracy"], np.mean(hits), rtol=1e-6)


@pytest.mark.parametrize("objective", [nsp, sop])
def test_refusals(bb, vocab, objective):
    with pytest.raises(ValueError, match=rf"{objective.__name__} rate=1 is the share of pairs"):
        objective(bb, vocab, rate=1)


def test_changed_pairs_have_their_places(vocab):
    """A row may be longer than the backbone: no pair is longer than it was."""
    short, rows = backbone(sized("tiny", V=V, D=16, heads=4, F=32, max_length=16)), pack([[0, 1, 2]], 80, 3)
    changed = 0
    for step in range(20):
        out = jax.device_get(training.corrupted(rows, random.key(step), 0, nsp(short, vocab)))
        assert out["positions"].max() <= rows["positions"].max() < 16
        changed += out["nsp"]["label"].sum()
    assert changed

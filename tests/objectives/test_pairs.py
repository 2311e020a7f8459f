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
    drawn = 0
    out = corrupt(nsp(bb, vocab, rate=0.6), rows)
    for b in range(len(LAYOUT)):
        before, after, labels = pairs(rows, b), pairs(out, b), out["nsp"]["label"][b][: len(LAYOUT[b])]
        assert [pair[0] for pair in before] == [pair[0] for pair in after]
        # second spans of a row are as long as its shortest, each with its [SEP]
        short = min((len(pair[1]) for pair in before), default=0)
        before = [[first, [*second[: short - 1], second[-1]]] for first, second in before]
        changed = np.flatnonzero(labels)
        assert len(changed) != 1
        drawn += len(changed)
        for place, s in enumerate(changed):
            assert after[s][1] == before[changed[(place + 1) % len(changed)]][1]
        for s in np.flatnonzero(labels == 0):
            assert after[s] == before[s]
        assert (out["tokens"][b][out["segments"][b] == 0] == 0).all()
    there = sum(len(row) for row in LAYOUT if len(row) > 1)
    assert abs(drawn - 0.6 * there) < 4.5 * np.sqrt(len(LAYOUT))


@pytest.mark.parametrize("rate", [0.2, 0.5, 0.9])
def test_so_many_lose_their_second_span(rate):
    """`rate` of the pairs of rows with two or more, each pair as likely, and never one of a row alone."""
    ids = np.arange(4000 * 4, dtype=np.uint32).reshape(4000, 4)
    example = np.stack([np.zeros_like(ids), ids], -1)
    for n in (1, 2, 3, 4):
        there = np.isin(np.arange(4), np.random.default_rng(n).permutation(4)[:n])
        draw = jax.vmap(lambda e, there=there: pairs_of._drawn(random.key(3), {"example": e}, there, rate))
        drawn = np.asarray(jax.jit(draw)(example))
        assert set(drawn.sum(1)) <= {0, 2, 3, 4}
        assert not drawn[:, ~there].any()
        want = rate if n > 1 else 0.0
        np.testing.assert_allclose(drawn[:, there].mean(0), want, atol=4.5 * np.sqrt(0.25 / 4000))
        if rate * n >= 2:
            assert abs(drawn.sum(1) - rate * n).max() < 1


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
    few["types"][1] = 0  # the only text of its row: no pair
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
    short, rows = backbone(sized("tiny", V=V, D=16, heads=4, F=32, max_length=16)), pack([[0, 1, 2]], 80, 3)
    with pytest.raises(ValueError, match=r"nsp joins the spans of any two pairs .* up to \d+ tokens together"):
        training.corrupted(rows, random.key(0), 0, nsp(short, vocab))

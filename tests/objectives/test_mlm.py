"""Masking against the binomial it claims, by a loop over rows, and the loss against its closed form."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import SPECIAL, V, params_of

from model import random
from model.backbone import backbone
from model.config import sized
from objectives import types
from objectives.causal import causal
from objectives.denoise import denoise
from objectives.hiding import boundaries
from objectives.hybrid import hybrid
from objectives.masking import masking
from objectives.mlm import mlm
from train import step as training

B, L = 400, 64


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    tokens = rng.integers(5, V, (B, L)).astype(np.int32)
    tokens[:, 0], tokens[:, -1], tokens[:, 30] = 2, 3, 3
    return dict(
        tokens=tokens,
        segments=np.ones((B, L), np.int32),
        positions=np.tile(np.arange(L, dtype=np.int32), (B, 1)),
        example=np.stack([np.zeros(B), np.arange(B)], -1).astype(np.uint32)[:, None],
    )


@pytest.fixture(scope="module")
def bb():
    return backbone(sized("tiny", V=V, D=16, heads=4, F=32, max_length=64))


def corrupt(objective, rows, step=0):
    return jax.jit(partial(training.corrupted, objective=objective))(
        rows, random.fold(random.key(9), step), jnp.int32(step)
    )


def chosen_of(out) -> np.ndarray:
    chosen = np.zeros(out["tokens"].shape, bool)
    for b in range(len(chosen)):
        index = np.asarray(out["mlm"]["index"][b])[np.asarray(out["mlm"]["weight"][b]) > 0]
        assert len(set(index)) == len(index)
        chosen[b, index] = True
    return chosen


@pytest.mark.parametrize("choice", ["exact", "independent"])
@pytest.mark.parametrize("unit", ["token", "word", "span"])
def test_statistics(bb, vocab, rows, choice, unit):
    rate = 0.25
    out = corrupt(mlm(bb, vocab, rate=rate, choice=choice, unit=unit), rows)
    chosen, tokens = chosen_of(out), rows["tokens"]
    ordinary = ~np.isin(tokens, SPECIAL)
    assert not chosen[~ordinary].any()
    assert int(out["mlm"]["surplus"].sum()) <= (
        0 if unit == "token" or choice == "independent" else 0.02 * chosen.sum()
    )
    per_row, n = chosen.sum(1), int(ordinary[0].sum())
    if unit == "token" and choice == "exact":
        assert set(per_row) <= {int(rate * n), int(rate * n) + 1}
        deviation = np.sqrt(0.25 / B)
    else:
        # units of up to k tokens spread the count k times as far
        deviation = np.sqrt(n * rate * (1 - rate) * {"token": 1, "word": 2, "span": 8}[unit] / B)
    assert abs(per_row.mean() - rate * n) < 4.5 * deviation
    # 80/10/10, the random tenth now and then being the token itself
    new, count = np.asarray(out["tokens"]), chosen.sum()
    assert (new[~chosen] == tokens[~chosen]).all()
    masked, same = (new == 4) & chosen, (new == tokens) & chosen
    for share, want in ((masked.sum() / count, 0.8), (same.sum() / count, 0.1 + 0.1 / (V - 5))):
        assert abs(share - want) < 4.5 * np.sqrt(want * (1 - want) / count)
    other = chosen & ~masked & ~same
    assert not np.isin(new[other], SPECIAL).any()
    # the targets are what stood there
    index = np.asarray(out["mlm"]["index"])
    np.testing.assert_array_equal(np.take_along_axis(tokens, index, 1), out["mlm"]["target"])


@pytest.mark.parametrize("choice", ["exact", "independent"])
@pytest.mark.parametrize("unit", ["word", "span"])
def test_words_are_whole(bb, vocab, rows, choice, unit):
    chosen = chosen_of(corrupt(mlm(bb, vocab, rate=0.3, choice=choice, unit=unit), rows))
    starts = vocab.word_starts[rows["tokens"]]
    special = np.isin(rows["tokens"], SPECIAL)
    runs = []
    for b in range(B):
        word: list[int] = []
        for i in [*range(L), None]:
            if i is None or special[b, i] or starts[b, i] or (word and special[b, i - 1]):
                assert len({chosen[b, j] for j in word}) <= 1
                word = []
            if i is not None and not special[b, i]:
                word.append(i)
        edges = np.flatnonzero(np.diff(np.r_[0, chosen[b].astype(int), 0]))
        runs += (edges[1::2] - edges[::2]).tolist()
    # spans of three words are longer than single words
    assert (np.mean(runs) > 3.0) == (unit == "span")


def test_a_span_becomes_all_of_a_kind(bb, vocab, rows):
    """Hidden or left by a coin: of neighbours half differ, of those in one span none."""
    inside = ~np.isin(rows["tokens"], SPECIAL)
    beside = inside[:, 1:] & inside[:, :-1]
    begins = vocab.word_starts[rows["tokens"]][:, 1:][beside].mean()
    for unit, expected in (("word", 0.5), ("span", 0.5 * begins / 3)):
        objective = mlm(bb, vocab, rate=1.0, mask=0.5, replace=0.0, choice="independent", unit=unit, capacity=1.0)
        hidden = corrupt(objective, rows)["tokens"] == vocab.mask
        switches = (hidden[:, 1:] != hidden[:, :-1])[beside]
        assert abs(switches.mean() - expected) < 5 * np.sqrt(expected / switches.size)


@pytest.mark.parametrize("choice", ["exact", "independent"])
def test_long_words_are_hidden_as_often_as_short_ones(bb, vocab, rows, choice):
    """Of 12 words of one token and two of ten."""
    one, begins, goes_on = 5, 7, 6  # ids that three divides go on with a word
    assert vocab.word_starts[[one, begins, goes_on]].tolist() == [True, True, False]
    tokens = np.zeros((B, L), np.int32)
    words = [one] * 6 + [begins] + [goes_on] * 9 + [one] * 6 + [begins] + [goes_on] * 9
    tokens[:, : len(words) + 2] = [2, *words, 3]
    batch = rows | {"tokens": tokens, "segments": (tokens > 0).astype(np.int32)}
    objective = mlm(bb, vocab, rate=0.3, unit="word", choice=choice, capacity=1.0)
    chosen = np.mean([chosen_of(corrupt(objective, batch, step)) for step in range(5)], 0).mean(0)
    np.testing.assert_allclose(chosen[1 : len(words) + 1], 0.3, atol=5 * np.sqrt(0.21 / (5 * B)))


def test_a_text_without_spaces_is_no_single_word(bb, vocab, rows):
    """As one in Chinese, of which no piece begins a word: it is cut, hidden at the rate, and little is surplus."""
    tokens = np.where(np.isin(rows["tokens"], SPECIAL), rows["tokens"], 6).astype(np.int32)
    short = {k: x[:, :32] if x.shape[1:] == (L,) else x for k, x in (rows | {"tokens": tokens}).items()}
    few = corrupt(mlm(bb, vocab, rate=0.15, unit="word"), short)  # two words, of which one may be hidden
    assert chosen_of(few).sum() and int(few["mlm"]["surplus"].sum()) == 0
    for unit in ("word", "span"):
        out = corrupt(mlm(bb, vocab, rate=0.3, unit=unit), rows | {"tokens": tokens})
        hidden, surplus = chosen_of(out).sum(), int(out["mlm"]["surplus"].sum())
        ordinary = (tokens == 6).sum()
        assert abs((hidden + surplus) / ordinary - 0.3) < 5 * np.sqrt(0.21 * 48 / ordinary)
        assert surplus < 0.2 * hidden


def test_no_probability_for_ids_that_no_token_has(vocab, rows):
    bb = backbone(sized("tiny", V=128, D=16, heads=4, F=32, max_length=64))
    for objective in (mlm(bb, vocab, bag=1.0), causal(bb, vocab), hybrid(bb, vocab), denoise(bb, vocab)):
        params = params_of(bb, objective)
        params[objective.name]["bias"][V:] = 50.0
        few = {k: x[:4] for k, x in rows.items()}
        sums = objective.loss(params, partial(bb.encode, params["backbone"]), corrupt(objective, few), None, 0)
        assert float(types.loss(sums)) < 20
        found = objective.predict(params, partial(bb.encode, params["backbone"]), few)
        assert found["prediction"].max() < V


def test_every_position_has_its_share(bb, vocab, rows):
    chosen = np.mean([chosen_of(corrupt(mlm(bb, vocab, rate=0.2), rows, step)) for step in range(5)], 0).mean(0)
    ordinary = np.delete(chosen, [0, 30, L - 1])
    assert abs(ordinary - 0.2).max() < 5 * np.sqrt(0.16 / (5 * B))


def test_the_rate_goes_down_over_training(bb, vocab, rows):
    objective = mlm(bb, vocab, rate=(0.4, 0.2, 100))
    n = int((~np.isin(rows["tokens"], SPECIAL))[0].sum())
    for step, rate in ((0, 0.4), (50, 0.3), (100, 0.2), (5000, 0.2)):
        share = chosen_of(corrupt(objective, rows, step)).sum(1).mean() / n
        assert abs(share - rate) < 4.5 * np.sqrt(0.25 / B) / n
    for wrong in ((0.4, 0.2), (0.4, 0.2, 0), (0.4, 0.2, 5, 6)):
        with pytest.raises(ValueError, match=r"mlm rate=.* must be a share, or .first"):
            mlm(bb, vocab, rate=wrong)
    with pytest.raises(ValueError, match=r"mlm rate=2 must be a share"):
        mlm(bb, vocab, rate=(0.4, 2, 9))


def test_a_surplus_is_counted_and_left_alone(bb, vocab, rows):
    out = corrupt(mlm(bb, vocab, rate=0.4, choice="independent", capacity=0.25), rows)
    assert out["mlm"]["index"].shape == (B, 16)
    assert int(out["mlm"]["surplus"].sum()) > B
    assert (np.asarray(out["tokens"]) != rows["tokens"]).sum(1).max() <= 16


def test_initial_loss_is_that_of_guessing(vocab, rows):
    bb = backbone(sized("tiny", V=V, max_length=64))
    objective = mlm(bb, vocab)
    params = jax.jit(partial(training.init, backbone=bb, objective=objective))(random.generator(0))
    batch = corrupt(objective, rows)
    sums = jax.jit(lambda p, b: objective.loss(p, partial(bb.encode, p["backbone"]), b, None, 0))(params, batch)
    assert abs(float(types.loss(sums)) / np.log(V) - 1) < 0.02


def test_loss_is_the_mean_over_the_chosen(bb, vocab, rows):
    objective = mlm(bb, vocab, tied=False)
    params = params_of(bb, objective)
    batch = corrupt(objective, rows)

    @jax.jit
    def both(params, batch):
        encode = partial(bb.encode, params["backbone"])
        return types.report(objective.loss(params, encode, batch, None, 0)), objective.predict(params, encode, batch)

    report, found = both(params, batch)
    chosen = chosen_of(batch)
    # the head by hand, in float64
    own = jax.tree.map(np.float64, params["mlm"])
    x = np.asarray(bb.encode(params["backbone"], batch).hidden, np.float64)[chosen]
    x = x @ own["transform"]["kernel"] + own["transform"]["bias"]
    x = layer_norm(0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2))), own["norm"])
    logits = x @ own["decoder"].T + own["bias"]
    nll = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(logits, rows["tokens"][chosen][:, None], 1)[:, 0]
    np.testing.assert_allclose(float(report["mlm"]), nll.mean(), rtol=1e-5)
    np.testing.assert_allclose(
        float(report["mlm_accuracy"]), (logits.argmax(-1) == rows["tokens"][chosen]).mean(), 1e-6
    )
    accuracy = (np.asarray(found["prediction"]) == rows["tokens"])[chosen].mean()
    assert abs(float(report["mlm_accuracy"]) - accuracy) < 1e-6
    assert ((found["probability"] > 0) & (found["probability"] <= 1)).all()


def test_bag_against_a_loop(bb, vocab, packed):
    """The segment's own words, each under the segment's distribution, written out by hand."""
    objective = mlm(bb, vocab, rate=0.4, bag=3.0)
    params = params_of(bb, objective)
    batch = corrupt(objective, packed)
    sums = jax.jit(lambda p, b: objective.loss(p, partial(bb.encode, p["backbone"]), b, None, 0))(params, batch)
    hidden, bag = np.asarray(jax.jit(bb.encode)(params["backbone"], batch).hidden, np.float64), params["mlm"]["bag"]
    chosen, total = chosen_of(batch), 0.0
    for b, s in zip(*np.nonzero(packed["example"].any(-1)), strict=True):
        mine = packed["segments"][b] == s + 1
        seen = hidden[b][mine & ~chosen[b]]
        logits = seen.sum(0) / np.sqrt(len(seen)) @ bag["kernel"] + bag["bias"]
        logp = logits - np.log(np.exp(logits).sum())
        total -= logp[packed["tokens"][b][mine & chosen[b]]].sum()
    assert total > 100
    np.testing.assert_allclose(float(sums.terms["mlm_bag"].sum), total, rtol=1e-5)
    assert float(sums.terms["mlm_bag"].weight) == chosen.sum()
    assert sums.terms["mlm_bag"].coefficient == 3.0


def layer_norm(x, params):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12) * params["scale"] + params["bias"]


def test_boundary_against_a_loop(bb, vocab, packed):
    """Each hidden token from the two states beside its run, found by walking, and the head written out by hand."""
    objective = mlm(bb, vocab, rate=0.5, unit="span", boundary=3.0)
    params = params_of(bb, objective)
    batch = corrupt(objective, packed)
    sums = jax.jit(lambda p, b: objective.loss(p, partial(bb.encode, p["backbone"]), b, None, 0))(params, batch)
    hidden = np.asarray(jax.jit(bb.encode)(params["backbone"], batch).hidden, np.float64)
    own, tokens = jax.tree.map(np.float64, params["mlm"]["boundary"]), params["backbone"]["embed"]["tokens"]
    gelu = lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / np.sqrt(2)))
    chosen, segments, total, count, places = chosen_of(batch), packed["segments"], 0.0, 0, set()
    for b, i in zip(*np.nonzero(chosen), strict=True):
        left, right = i - 1, i + 1
        while left >= 0 and segments[b, left] == segments[b, i] and chosen[b, left]:
            left -= 1
        while right < segments.shape[1] and segments[b, right] == segments[b, i] and chosen[b, right]:
            right += 1
        places.add(i - left - 1)
        x = np.stack([hidden[b, left], hidden[b, right], own["places"][i - left - 1]])
        x = gelu(np.einsum("kd,kde->e", x, own["first"]["kernel"]) + own["first"]["bias"])
        x = gelu(layer_norm(x, own["first_norm"]) @ own["second"]["kernel"] + own["second"]["bias"])
        logits = tokens @ layer_norm(x, own["second_norm"]) + own["bias"]
        total += np.log(np.exp(logits).sum()) - logits[packed["tokens"][b, i]]
        count += 1
    assert len(places) > 4
    np.testing.assert_allclose(float(sums.terms["mlm_boundary"].sum), total, rtol=1e-5)
    assert float(sums.terms["mlm_boundary"].weight) == count
    assert sums.terms["mlm_boundary"].coefficient == 3.0


def test_a_run_at_a_segments_edge_has_no_boundary():
    """Segments 1 1 1 1 2 2 2 and a row's end: runs that touch an edge, one that does not, and two side by side."""
    row = dict(segments=jnp.array([1, 1, 1, 1, 2, 2, 2, 2, 2]))
    index, weight = jnp.array([3, 4, 6, 1, 8, 2, 0]), jnp.array([1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0])
    found = boundaries(row | {"mlm": dict(index=index, weight=weight)}, "mlm")
    np.testing.assert_array_equal(found["bounded"], [0, 0, 1, 0, 0, 0, 0])
    assert (int(found["left"][2]), int(found["right"][2]), int(found["place"][2])) == (5, 7, 0)
    np.testing.assert_array_equal(found["place"][jnp.array([0, 5, 1])], [1, 0, 0])


@pytest.mark.parametrize("choice", ["exact", "independent"])
def test_ngrams_are_whole(bb, vocab, rows, choice):
    listed = [(7, 8), (7, 8, 10), (10, 11, 12, 13), (22, 25)]
    tokens = rows["tokens"].copy()
    for b in range(B):  # so that they occur
        tokens[b, 3:7], tokens[b, 9:12], tokens[b, 15:18], tokens[b, 20] = (7, 8, 10, 11), (7, 8, 13), (22, 25, 5), 10
    objective = mlm(bb, vocab, rate=0.3, choice=choice, unit="ngram", ngrams=listed)
    out = corrupt(objective, rows | {"tokens": tokens})
    chosen = chosen_of(out)
    for unit in ([3, 4, 5], [9, 10], [15, 16]):
        together = chosen[:, unit]
        assert (together.all(1) == together.any(1)).all()
        assert 0.15 < together.any(1).mean() < 0.45
    assert (chosen[:, 5] != chosen[:, 6]).mean() > 0.2  # the next word is another unit
    assert int(out["mlm"]["surplus"].sum()) == 0


@pytest.mark.parametrize(
    "wrong, says",
    [
        (dict(rate=1.5), "rate=1.5 must be a share"),
        (dict(rate="0.3"), "rate='0.3' must be a share, or"),
        (dict(mask=0, replace=0), "mask=0, replace=0 leaves each chosen token as it is"),
        (dict(mask=0.9, replace=0.2), "mask_and_replace=1.1"),
        (dict(choice="some"), "choice='some'"),
        (dict(unit="line"), "unit='line'"),
        (dict(rate=(0.3, 0.1, math.nan)), "must be a share, or .first"),
        (dict(rate=(0.3, 0.1, None)), "must be a share, or .first"),
        (dict(span=math.nan, unit="span"), "span=nan is a mean length"),
        (dict(bag=math.nan), "bag=nan is the coefficient"),
        (dict(bag=-1.0), "bag=-1.0 is the coefficient"),
        (dict(boundary=-1.0), "boundary=-1.0 is the coefficient"),
        (dict(unit="ngram"), 'unit="ngram" and a list of ngrams belong together'),
        (dict(ngrams=[(7, 8)]), 'unit="ngram" and a list of ngrams belong together'),
        (dict(softcap=-1.0), "softcap=-1.0 must be positive"),
    ],
)
def test_bad_hyperparameters(bb, vocab, wrong, says):
    with pytest.raises(ValueError, match=says):
        mlm(bb, vocab, **wrong)


def test_spans_have_geometric_lengths(vocab):
    """p(k) = (1 - 1 / span) ** (k - 1) / span, where every token is a word; the last of a text is cut off."""
    length, n, span = 400, 64, 3.0
    every = vocab._replace(word_starts=np.ones(V, bool))
    hide = masking("x", every, rate=0.15, unit="span", span=span)
    rows = dict(
        tokens=np.full((n, length), 9, np.int32), segments=np.ones((n, length), np.int32),
        positions=np.tile(np.arange(length, dtype=np.int32), (n, 1)),
        example=np.arange(2 * n, dtype=np.uint32).reshape(n, 1, 2),
    )  # fmt: skip
    units = np.asarray(jax.vmap(lambda row: hide.choose(random.key(5), row, 0)[2])(rows))
    edges = np.diff(units, axis=1) != 0
    lengths = np.concatenate([np.diff(np.flatnonzero(np.r_[True, row])) for row in edges])
    for k in range(1, 8):
        want = (1 - 1 / span) ** (k - 1) / span
        assert abs((lengths == k).mean() - want) < 4.5 * np.sqrt(want * (1 - want) / len(lengths)), k

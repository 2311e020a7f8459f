"""Two streams from one row, against loops; losses against the peer's arithmetic; what is written against a loop."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toys import V, pack, params_of

from model import random
from model.backbone import backbone
from model.config import sized
from model.decoder import decoder
from model.heads import mlm_head
from model.types import Encoded
from objectives import types
from objectives.seq2seq import bart, span_corruption, translate
from train import step as training

LAYOUT = [[5, 0, 9], [1], [12, 3], [2, 15]]
CLS, SEP, MASK = 2, 3, 4


@pytest.fixture(scope="module")
def bb():
    return backbone(sized("tiny", V=V + 8, D=8, heads=2, F=12, max_length=64, dropout=0.0, attention_dropout=0.0))


def corrupt(objective, rows, step=0):
    make = jax.jit(partial(training.corrupted, objective=objective))
    return jax.device_get(make(rows, random.fold(random.key(9), step), jnp.int32(step)))


def texts(batch, tokens, b):
    """The tokens of each segment of a row, whose layout is checked."""
    out = []
    for s in range(batch["segments"][b].max()):
        at = np.flatnonzero(batch["segments"][b] == s + 1)
        assert (np.diff(at) == 1).all()
        assert batch["positions"][b][at].tolist() == list(range(len(at)))
        out.append(tokens[b][at].tolist())
    filled = (batch["segments"][b] > 0).sum()
    assert sum(map(len, out)) == filled and (batch["segments"][b][:filled] > 0).all()
    assert not tokens[b][filled:].any()
    return out


def pairs(rows):
    """(what is of type 0, what is of type 1) of each segment of each row."""
    for b in range(len(rows["tokens"])):
        at = [rows["segments"][b] == s + 1 for s in range(rows["segments"][b].max())]
        yield [tuple(rows["tokens"][b][x & (rows["types"][b] == k)].tolist() for k in (0, 1)) for x in at]


def test_pairs_become_two_streams(bb, vocab):
    rows = pack(LAYOUT, 48, 3)
    mine = corrupt(translate(bb, vocab), rows)["seq2seq"]
    for b, want in enumerate(pairs(rows)):
        assert texts(mine["source"], mine["source"]["tokens"], b) == [list(first) for first, _ in want]
        assert texts(mine["target"], mine["label"], b) == [list(second) for _, second in want]
        assert texts(mine["target"], mine["target"]["tokens"], b) == [[CLS, *second[:-1]] for _, second in want]
    assert not mine["surplus"].any()


def test_what_does_not_fit_is_cut_and_counted(bb, vocab):
    rows = pack(LAYOUT, 48, 3)
    whole, mine = (
        corrupt(translate(bb, vocab, **how), rows)["seq2seq"] for how in ({}, dict(source_length=9, target_length=10))
    )
    for name in ("tokens", "segments", "positions"):
        np.testing.assert_array_equal(mine["source"][name], whole["source"][name][:, :9])
    wanted, read = (np.asarray(whole[stream]["segments"]) for stream in ("target", "source"))
    orphans = 0
    for b, segments in enumerate(wanted):
        of_read = [s for s in segments if s and s in read[b, :9]]  # nothing is written of what is not read
        np.testing.assert_array_equal(mine["target"]["segments"][b], np.pad(of_read, (0, 10))[:10])
        orphans += (segments > 0).sum() - len(of_read)
    assert orphans
    there = (np.asarray(mine["target"]["segments"]) > 0).sum(1)
    assert mine["surplus"].tolist() == ((wanted > 0).sum(1) - there).tolist()
    assert mine["lost"].tolist() == np.maximum((read > 0).sum(1) - 9, 0).tolist()


@pytest.mark.parametrize("make", [partial(span_corruption, sentinels=8), bart, partial(bart, noise="delete", span=1.0)])
def test_streams_are_the_same_however_packed(bb, vocab, make, alone, packed):
    found = []
    for rows in (alone, packed):
        mine = corrupt(make(bb, vocab, rate=0.4), rows)["seq2seq"]
        here = {}
        for b in range(len(rows["tokens"])):
            said = zip(
                texts(mine["source"], mine["source"]["tokens"], b), texts(mine["target"], mine["label"], b), strict=True
            )
            here |= {tuple(rows["example"][b, s]): pair for s, pair in enumerate(said)}
        assert not mine["surplus"].any()
        found.append(here)
    assert found[0] == found[1]
    assert len(found[0]) == 16


def documents(rows, mine):
    for b in range(len(rows["tokens"])):
        for s, (read, written) in enumerate(
            zip(
                texts(mine["source"], mine["source"]["tokens"], b), texts(mine["target"], mine["label"], b), strict=True
            )
        ):
            yield rows["tokens"][b][rows["segments"][b] == s + 1].tolist(), read, written


def test_two_of_a_kind_draw_their_own_luck(bb, vocab, alone):
    two = [bart(bb, vocab, name=name, empty=0.0) for name in ("bart", "again")]
    sources = [corrupt(objective, alone)[objective.name]["source"]["tokens"] for objective in two]
    assert (sources[0] != sources[1]).any(1).mean() > 0.5


def test_spans_go_to_the_decoder_behind_sentinels(bb, vocab):
    """The spans put back where their sentinels are give the text; so many tokens, in so many spans."""
    rows = pack([[d, d + 1] for d in range(0, 40, 2)], 36, 2)
    hidden = free = 0
    for step in range(3):
        mine = corrupt(span_corruption(bb, vocab, rate=0.3, span=2.0, sentinels=8), rows, step)["seq2seq"]
        for text, read, written in documents(rows, mine):
            assert written[-1] == SEP
            spans = []
            for token in written[:-1]:
                if token >= V:
                    assert token == V + len(spans)
                    spans.append([])
                else:
                    spans[-1].append(token)
            assert [t for t in read if t >= V] == [V + i for i in range(len(spans))]
            assert [t for r in read for t in (spans[r - V] if r >= V else [r])] == text
            n, m = sum(map(len, spans)), len(text) - 2
            assert n in (max(1, int(0.3 * m)), max(1, int(0.3 * m) + 1))
            assert len(spans) == max(1, round(n / 2))
            assert all(spans)
            hidden, free = hidden + n, free + m
    assert abs(hidden / free - 0.3) < 0.04  # a segment has one hidden at least


def test_all_ways_to_hide_are_as_likely(bb, vocab):
    """Two spans of three tokens among six: 2 ways to cut, and 6 pairs of the 4 places beside the others."""
    n, one = 1200, np.array([CLS, 5, 6, 7, 8, 9, 10, SEP], np.int32)
    rows = dict(
        tokens=np.tile(one, (n, 1)), segments=np.ones((n, 8), np.int32),
        positions=np.tile(np.arange(8, dtype=np.int32), (n, 1)),
        example=np.stack([np.zeros(n, np.uint32), np.arange(n, dtype=np.uint32)], -1)[:, None],
    )  # fmt: skip
    mine = corrupt(span_corruption(bb, vocab, rate=0.5, span=1.5, sentinels=8), rows)["seq2seq"]
    ways, counts = np.unique(mine["source"]["tokens"], axis=0, return_counts=True)
    assert len(ways) == 12
    assert ((counts - 100) ** 2 / 100).sum() < 31.3  # chi-squared of 11, .999


@pytest.mark.parametrize("noise", ["infill", "delete"])
def test_denoising_writes_the_whole_text(bb, vocab, noise):
    rows = pack(LAYOUT, 48, 3)
    mine = corrupt(bart(bb, vocab, noise=noise, rate=0.4, span=2.0), rows)["seq2seq"]
    masks = 0
    for text, read, written in documents(rows, mine):
        assert written == text[1:]
        masks += read.count(MASK)
        assert len(read) < len(text)
        rest = iter(text)
        assert all(token in rest for token in read if token != MASK)  # in order
        kept = sum(token != MASK for token in read)
        n = len(text) - kept
        assert read.count(MASK) == (max(1, round(n / 2)) if noise == "infill" else 0)
    assert (masks > 0) == (noise == "infill")


def test_spans_of_nothing_and_sentences_out_of_order(bb, vocab):
    """What is read has the text's tokens, some hidden, in runs that changed places; more masks than spans."""
    rows = pack(LAYOUT, 48, 3)
    made = lambda rate=0.2, span=1.0, **how: corrupt(bart(bb, vocab, rate=rate, span=span, **how), rows)["seq2seq"]
    spans = dict(rate=0.4, span=3.0)
    fewer = {tuple(text): read for text, read, _ in documents(rows, made(**spans))}
    plain = {tuple(text): read for text, read, _ in documents(rows, made())}
    more = moved = 0
    for text, read, written in documents(rows, made(empty=3.0, **spans)):
        assert written == text[1:]
        assert [t for t in read if t != MASK] == [t for t in fewer[tuple(text)] if t != MASK]
        assert read[0] == text[0] and read[-1] == text[-1]
        assert len(read) <= len(text), "or it might have no place"
        more += read.count(MASK) - fewer[tuple(text)].count(MASK)
    total = sum(read.count(MASK) for read in fewer.values())
    assert total / 2 < more < 2 * total, "of the tokens that are in no span"
    assert {tuple(text): read for text, read, _ in documents(rows, made(empty=3.0))} == plain, "nothing is taken away"
    for text, read, written in documents(rows, made(permute=1.0, sentence=3.0)):
        assert written == text[1:] and len(read) == len(text) and read[0] == text[0] and read[-1] == text[-1]
        rest = list(text)
        for token in read:
            if token != MASK:
                rest.remove(token)
        assert len(rest) == plain[tuple(text)].count(MASK)
        moved += [t for t in read if t != MASK] != [t for t, p in zip(text, read, strict=True) if p != MASK]
    assert moved > 5


def sums(objective, bb, params, batch):
    found = objective.loss(params, partial(bb.encode, params["backbone"]), batch, None, jnp.int32(0))
    return {k: float(x) for k, x in types.report(found).items()}


def test_the_loss_by_a_loop(bb, vocab):
    """Each text alone, its prefix read anew for every token, the smoothed part from all the probabilities."""
    objective = translate(bb, vocab, smoothing=0.2, layers=1)
    params = jax.device_put(params_of(bb, objective))
    rows = pack([[5, 0], [1]], 40, 2)
    writer, head = decoder(bb.config, layers=1), mlm_head(bb.config, activation=None)
    own, base = params["seq2seq"], params["backbone"]

    @jax.jit
    def said(source, read):
        row = lambda tokens: dict(
            tokens=tokens, segments=jnp.ones_like(tokens), positions=jnp.arange(tokens.size, dtype=jnp.int32)[None],
            example=jnp.zeros((1, 1, 2), jnp.uint32),
        )  # fmt: skip
        hidden = writer.decode(own["decoder"], base, row(read), row(source), bb.encode(base, row(source)).hidden)
        said = head.apply(own["head"], hidden, base["embed"]["tokens"])[..., :V]  # no token has the other ids
        return jax.nn.log_softmax(said)[0, -1]

    nll, smooth, n = 0.0, 0.0, 0
    for row in pairs(rows):
        for first, second in row:
            for i, token in enumerate(second):
                logp = np.array(said(np.array([first], np.int32), np.array([[CLS, *second[:i]]], np.int32)))
                written = np.setdiff1d(np.arange(V), [vocab.pad, CLS, vocab.mask])
                nll, smooth, n = nll - logp[token], smooth - logp[written].mean(), n + 1
    got = sums(objective, bb, params, corrupt(objective, rows))
    np.testing.assert_allclose(got["seq2seq_nll"], nll / n, rtol=1e-5)
    np.testing.assert_allclose(got["seq2seq"], (0.8 * nll + 0.2 * smooth) / n, rtol=1e-5)


@pytest.mark.parametrize("beams", [1, 3])
def test_what_is_written(bb, vocab, beams):
    """Every segment's text is the one it has alone in a row, and its score the likelihood that the loss gives it."""
    objective = translate(bb, vocab, beams=beams, target_length=14, layers=1)
    params = jax.device_put(params_of(bb, objective))
    write = jax.jit(lambda batch: objective.predict(params, partial(bb.encode, params["backbone"]), batch))
    packed, alone = pack([[5, 0, 9], [1]], 48, 3), pack([[5], [0], [9], [1]], 16, 1)
    together, single = jax.device_get((write(packed), write(alone)))
    assert together["prediction"].shape == (2, 3, 14) and not together["lost"].any()
    places = [(0, 0), (0, 1), (0, 2), (1, 0)]
    for d, place in enumerate(places):
        assert together["prediction"][place].tolist() == single["prediction"][d, 0].tolist()
        np.testing.assert_allclose(together["score"][place], single["score"][d, 0], rtol=1e-4)
    assert not together["prediction"][1, 1:].any()
    lengths = (single["prediction"] > 0).sum(-1)[:, 0]
    for d in range(len(places)):
        first = alone["tokens"][d][alone["types"][d] == 0]
        first = first[first > 0]
        second = single["prediction"][d, 0][: lengths[d]]
        n = len(first) + len(second)
        row = {k: x[d : d + 1] for k, x in alone.items()} | dict(
            tokens=np.r_[first, second][None].astype(np.int32), segments=np.ones((1, n), np.int32),
            positions=np.arange(n, dtype=np.int32)[None], types=(np.arange(n) >= len(first)).astype(np.int32)[None],
        )  # fmt: skip
        nll = sums(objective, bb, params, corrupt(objective, row))["seq2seq_nll"]
        np.testing.assert_allclose(-nll * len(second), single["score"][d, 0], rtol=1e-4)


ERRORS = [
    (lambda bb, v: translate(bb, v, source_length=0), "seq2seq source_length=0 is a number of places"),
    (lambda bb, v: translate(bb, v, smoothing=1.0), r"smoothing=1.0 is a share of the loss and must be in \[0, 1\)"),
    (lambda bb, v: translate(bb, v, beams=0), "beams=0, penalty=0.0: expected at least 1 beam"),
    (lambda bb, v: translate(bb, v, penalty=0.6), "beams=1, penalty=0.6: .* of several alone"),
    (lambda bb, v: translate(bb, v, layers=0), "decoder layers=0 must be at least 1"),
    (lambda bb, v: span_corruption(bb, v), "sentinels=100 have the ids after .* 61, .* V=69: set backbone V=161"),
    (lambda bb, v: span_corruption(bb, v, rate=1.0, sentinels=8), "span_corruption rate=1.0 is the share"),
    (lambda bb, v: span_corruption(bb, v, rate=(0.3, 0.15, 9), sentinels=8), "one number between 0 and 1"),
    (
        lambda bb, v: corrupt(bart(bb, v, span=9.0, rate=0.1), pack([[0, 1]], 48, 2)),
        "rows of 48 tokens have 5 in spans",
    ),
    (lambda bb, v: bart(bb, v, span=0.5), "bart span=0.5 is a mean length"),
    (lambda bb, v: bart(bb, v, noise="delete", empty=0.1), "empty=0.1, permute=0.0, .* with noise='delete'"),
    (lambda bb, v: bart(bb, v, permute=1.5), "permute=1.5, sentence=20.0 with"),
    (lambda bb, v: bart(bb, v, noise="rotate"), "noise='rotate' must be one of infill, delete"),
    (
        lambda bb, v: corrupt(span_corruption(bb, v, rate=0.5, span=1.0, sentinels=8), pack([[0, 1]], 48, 2)),
        "a row of 48 tokens may have 25 spans, and there are sentinels=8: set sentinels=25 and backbone V=86",
    ),
]


@pytest.mark.parametrize(("make", "message"), ERRORS)
def test_errors(bb, vocab, make, message):
    with pytest.raises(ValueError, match=message):
        make(bb, vocab)


def test_the_decoder_is_placed_as_the_backbone_is(bb, vocab):
    placed = set()

    def constrain(x, names):
        placed.add((x.shape, names))
        return x

    bb = backbone(bb.config, constrain)
    objective = bart(bb, vocab, target_length=40)
    params = jax.eval_shape(lambda: params_of(bb, objective))
    rows = training.corrupted(pack(LAYOUT, 48, 3), random.key(0), jnp.int32(0), objective)
    encode = lambda batch, key: Encoded(jnp.zeros((*batch["tokens"].shape, 8)))
    jax.eval_shape(lambda p: objective.loss(p, encode, rows, None, 0), params)
    assert ((4, 40, 8), ("batch", "length", "width")) in placed

"""Collocations against a loop over runs of words and all ways to cut them."""

import itertools
from collections import Counter

import numpy as np
import pytest
from toys import pack

from objectives.ngrams import ngrams
from train.data import tokenizer as tokenizers
from train.data.collocations import collocations, main


def by_loop(rows, vocab, longest, least):
    """{token ids: (count, score)}."""
    runs = []  # of words, each a tuple of ids
    for tokens, segments in zip(rows["tokens"], rows["segments"], strict=True):
        kinds = zip(segments.tolist(), np.isin(tokens, vocab.special).tolist(), strict=True)
        for _, group in itertools.groupby(enumerate(kinds), lambda x: x[1]):
            at = [i for i, _ in group]
            if segments[at[0]] == 0 or tokens[at[0]] in vocab.special:
                continue
            words: list[list[int]] = []
            for i in at:
                if vocab.word_starts[tokens[i]] or not words:
                    words.append([])
                words[-1].append(int(tokens[i]))
            runs.append([tuple(word) for word in words])
    counts = {
        n: Counter(tuple(run[i : i + n]) for run in runs for i in range(len(run) - n + 1))
        for n in range(1, longest + 1)
    }
    total = {n: sum(c.values()) for n, c in counts.items()}
    p = lambda words: counts[len(words)][words] / total[len(words)]

    def ways(words):
        for cuts in itertools.product((False, True), repeat=len(words) - 1):
            if any(cuts):
                edges = [0, *(i + 1 for i, cut in enumerate(cuts) if cut), len(words)]
                yield np.prod([p(words[a:b]) for a, b in itertools.pairwise(edges)])

    return {
        sum(words, ()): (count, np.log(p(words) / max(ways(words))))
        for n in range(2, longest + 1) for words, count in counts[n].items() if count >= least
    }  # fmt: skip


def test_against_a_loop(vocab):
    rows = pack([[3 * d, 3 * d + 1, 3 * d + 2] for d in range(300)], 48, 3)
    rows["tokens"] = np.where(rows["tokens"] > 4, 5 + rows["tokens"] % 7, rows["tokens"])  # of few kinds
    want = by_loop(rows, vocab, 4, 3)
    found = collocations(rows, vocab, longest=4, least=3, most=10**6)
    assert len(found) > 100 and max(len(run.ids) for run in found) > 4
    assert {run.ids: run.times for run in found} == {ids: count for ids, (count, _) in want.items()}
    for run in found:
        np.testing.assert_allclose(run.score, want[run.ids][1], rtol=1e-9, atol=1e-12)
    scores = [run.score for run in found]
    assert scores == sorted(scores, reverse=True)
    assert collocations(rows, vocab, longest=4, least=3, most=7) == found[:7]


def test_what_is_said_together_is_found(vocab):
    """Two words that never go without each other, among words drawn by themselves."""
    rng = np.random.default_rng(0)
    tokens = rng.choice([7, 8, 10, 11, 13], (200, 40)).astype(np.int32)
    tokens[:, 10:12], tokens[:100, 20:22] = (40, 41), (40, 41)
    rows = dict(tokens=tokens, segments=np.ones_like(tokens))
    assert collocations(rows, vocab, longest=3)[0].ids == (40, 41)
    with pytest.raises(ValueError, match="longest=1, least=10, most=20000: expected runs of 2 words"):
        collocations(rows, vocab, longest=1)


@pytest.mark.parametrize("n, most", [(8, 16), (9, 0)])
def test_no_run_is_longer_than_a_word_may_be(vocab, n, most):
    assert vocab.word_starts[[7, 6]].tolist() == [True, False]
    tokens = np.tile(np.int32([7, *[6] * (n - 1)]), (20, 3))
    found = collocations(dict(tokens=tokens, segments=np.ones_like(tokens)), vocab)
    assert max((len(run.ids) for run in found), default=0) == most


def test_the_command(tmp_path, capsys):
    from toys import config_of, write_reviews

    from train import build

    write_reviews(tmp_path / "reviews.tsv")
    stage = build.stage(config_of(tmp_path), "pretrain", tmp_path / "work")
    out = tmp_path / "ngrams.txt"
    main([str(stage.rows.folder), f"--out={out}", "--least=3"])
    said = capsys.readouterr().out
    lines = out.read_text().splitlines()
    assert f"{len(lines):,} runs of words, from {len(stage.rows):,} rows" in said
    tok = tokenizers.load(tmp_path / "work")
    assert said.splitlines()[0].endswith(tok.decode(np.array([int(x) for x in lines[0].split()])))
    assert ngrams(str(out), tok.vocab.size).length > 2  # as masking reads it
    with pytest.raises(SystemExit, match="is there already: take another name"):
        main([str(stage.rows.folder), f"--out={out}"])

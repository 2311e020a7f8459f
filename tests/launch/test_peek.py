"""Peek shows what the step's own corruption makes of a batch: position by position, and no more marks than changes."""

import dataclasses
import subprocess
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from launch import peek as peeking
from launch.peek import Row, Segment, Token, peek, show
from model import random
from objectives.types import Ratio, Sums, Term
from train import build, loop, sharding
from train import step as training
from train.data.loader import Loader


def printed(rows, **options):
    console = Console(record=True, width=100, **options)
    with console.capture() as capture:
        for row in rows:
            show(row, console)
    return capture.get()


def seen_by_the_step(stage, n):
    """(tokens before, batch as the loss receives it) of step n: the loss hands it out as a metric."""

    def loss(params, encode, batch, key, step):
        nothing = jax.tree.leaves(params)[0].sum() * 0
        mine = {f"mlm/{k}": x for k, x in batch["mlm"].items()}
        # float32, since the step differentiates through metrics: exact for numbers as small as these
        out = {k: Ratio(x.astype(jnp.float32), jnp.ones(())) for k, x in (batch | mine).items() if k != "mlm"}
        return Sums({"none": Term(nothing, jnp.ones(()))}, out)

    run = partial(
        training.step, backbone=stage.backbone, objective=stage.objective._replace(loss=loss),
        optimizer=stage.optimizer, learned=stage.learned,
    )  # fmt: skip
    state = jax.jit(loop.fresh(stage))(random.generator(0))._replace(step=jnp.int32(n))
    batch = Loader(stage.rows, stage.batch, stage.seed).device(n, sharding.rows(stage.mesh))
    _, sums = jax.jit(run)(state, batch, random.key(stage.seed))
    kinds = {k: np.float32 if k in ("mlm/weight", "mlm/surplus") else np.int32 for k in sums.metrics}
    found = {k: np.asarray(m.numerator).astype(kinds[k]) for k, m in sums.metrics.items()}
    return np.asarray(batch["tokens"]), found


def test_rows_are_what_the_steps_loss_receives(toy):
    n = 2
    stage = build.stage(toy.config, "pretrain", toy.workdir)
    tokenizer = build.tokenizer(toy.config, toy.workdir)
    before, after = seen_by_the_step(stage, n)
    rows = peek(toy.config, "pretrain", toy.workdir, n, stage.batch)
    assert len(rows) == stage.batch
    masked = 0
    for i, row in enumerate(rows):
        assert row.number == Loader(stage.rows, stage.batch, stage.seed).index(n)[i]
        tokens = [token for segment in row.segments for token in segment.tokens]
        ids, filled = after["tokens"][i], len(tokens)
        assert [t.piece for t in tokens] == tokenizer.pieces(ids[:filled])
        assert [bool(t.mark) for t in tokens] == (ids != before[i])[:filled].tolist()
        assert [t.mark == "masked" for t in tokens] == (ids == stage.vocab.mask)[:filled].tolist()
        assert (after["segments"][i][filled:] == 0).all()
        assert row.padding == 1 - filled / ids.size
        chosen = after["mlm/weight"][i] > 0
        order = np.argsort(after["mlm/index"][i][chosen])
        positions = after["mlm/index"][i][chosen][order]
        assert [t.position for t in row.targets] == positions.tolist()
        assert [t.piece for t in row.targets] == tokenizer.pieces(before[i][positions])
        assert [t.seen for t in row.targets] == tokenizer.pieces(ids[positions])
        sizes = [len(segment.tokens) for segment in row.segments]
        assert sizes == np.bincount(after["segments"][i])[1:].tolist()
        assert [list(s.example) for s in row.segments] == after["example"][i][: len(sizes)].tolist()
        masked += sum(t.mark == "masked" for t in tokens)
    assert masked > 10
    plain = printed(rows)
    assert plain.count("⟦[MASK]⟧") == masked
    assert plain.count("⟦") == sum(bool(t.mark) for row in rows for s in row.segments for t in s.tokens)
    assert f"{len(rows[0].targets)} targets" in plain
    assert "mlm/surplus float32 scalar: 0" in plain
    coloured = printed(rows, force_terminal=True, color_system="standard", no_color=False)
    assert "⟦" not in coloured
    assert coloured.count("\x1b[1;31m[MASK]") == masked


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (["[CLS]", "the", "punish", "##ing", "film", ".", "[SEP]"], "[CLS] the ⟦punish⟧ing film . [SEP]"),
        (["[CLS]", "The", "Ġpunish", "ing", "Ġfilm", ".", "[SEP]"], "[CLS]The ⟦punish⟧ing film. [SEP]"),
        (["[CLS]", "▁The", "▁punish", "ing", "▁film", ".", "[SEP]"], "[CLS] The ⟦punish⟧ing film. [SEP]"),
    ],
)
def test_words_are_told_apart_as_the_vocabulary_does(pieces, said):
    tokens = [Token(piece, "replaced" if piece.endswith("punish") else "") for piece in pieces]
    row = Row(0, [Segment((0, 0), tokens, {}, None)], None, {}, {}, 0.0, ("mlm",))
    assert said in printed([row])


def test_labels_types_and_examples_of_a_finetuning_stage(toy):
    rows = peek(toy.config, "finetune", toy.workdir, 1, 8)
    for row in rows:
        (segment,) = row.segments
        record = toy.records[segment.example[1]]
        assert segment.label == f"{('no', 'yes').index(record['label'])} ({record['label']})"
        pieces = [t.piece for t in segment.tokens]
        first = pieces.index("[SEP]") + 1
        assert segment.types == {0: first, 1: len(pieces) - first}
        text = "".join(pieces[1 : first - 1]).replace("\u2581", " ").strip()
        assert text == record["text"]
        assert not any(t.mark for t in segment.tokens)
        assert row.targets is None
        assert row.others == {}
    assert "label 1 (yes)" in printed(rows)


def test_any_other_array_of_a_corruption_is_listed(toy):
    stage = build.stage(toy.config, "finetune", toy.workdir)
    tokenizer = build.tokenizer(toy.config, toy.workdir)
    before = {k: x[0] for k, x in Loader(stage.rows, 1, shuffle=False).read(0).items()}
    reach = np.arange(32, dtype=np.int32)
    extra = {"reach": reach, "classify": {"share": np.float32([0.5, 0.25])}, "positions": before["positions"] + 1}
    row = peeking._row(stage, tokenizer, None, 0, before, before | extra, ("classify",))
    assert set(row.others) == {"reach", "classify/share", "positions"}
    text = printed([row])
    assert "  reach int32 32: 0 1 2 3 4 5 6 7 …\n" in text
    assert "  classify/share float32 2: 0.5 0.25\n" in text


def test_a_generator_is_shown_the_masked_text_and_a_decoders_texts_are_spelled(toy):
    """With T5's sentinels, which the tokenizer has no pieces for."""
    of = lambda objective, **more: (
        toy.config | {"pretrain": toy.config["pretrain"] | {"objective": objective, "backbone": more}}
    )
    row, *_ = peek(of(dict(factory="objectives.rtd:rtd", rate=0.3)), "pretrain", toy.workdir, 0, 1)
    marks = [t.mark for segment in row.segments for t in segment.tokens]
    assert marks.count("masked") == len(row.targets) > 0 and "rtd/tokens" not in row.others
    size = build.tokenizer(toy.config, toy.workdir).vocab.size
    config = of(dict(factory="objectives.seq2seq:span_corruption", sentinels=8), V=size + 8)
    row, *_ = peek(config, "pretrain", toy.workdir, 0, 1)
    read, written = row.texts["seq2seq/source/tokens"], row.texts["seq2seq/label"]
    assert "<0>" in read and written[0] == "<0>" and written[-1] == "[SEP]"
    text = [t.piece for segment in row.segments[:1] for t in segment.tokens]
    first = read.index("<0>")
    assert read[:first] == text[:first]
    assert written[1] == text[first]
    assert "seq2seq/label: <0> " in printed([row])


def test_a_mixture_is_seen_as_each_of_its_passes_sees_it(toy, tmp_path):
    """A row twice: masked, with its targets, and as it is."""
    mixture = dict(
        mlm=dict(factory="objectives.mlm:mlm", rate=0.3, weight=1.0),
        causal=dict(factory="objectives.causal:causal", weight=0.5),
    )
    config = toy.config | {"pretrain": toy.config["pretrain"] | {"objective": dict(mixture=mixture)}}
    masked, whole, *_ = rows = peek(config, "pretrain", toy.workdir, 0, 2)
    assert [(row.number, row.readers) for row in rows[:2]] == [(masked.number, ("mlm",)), (masked.number, ("causal",))]
    marks = [t.mark for segment in masked.segments for t in segment.tokens]
    assert masked.targets and len(masked.targets) >= sum(map(bool, marks)) > 0
    assert not any(t.mark for segment in whole.segments for t in segment.tokens)
    assert " of mlm: " in printed(rows) and " of causal: " in printed(rows)


def test_answers_and_tags_are_shown_in_words(toy):
    from objectives.types import Objective

    stage = build.stage(toy.config, "finetune", toy.workdir)
    tokenizer = build.tokenizer(toy.config, toy.workdir)
    before = {k: x[0] for k, x in Loader(stage.rows, 1, shuffle=False).read(0).items() if k != "labels"}
    pieces = tokenizer.pieces(before["tokens"])
    tags = np.zeros_like(before["tokens"])
    tags[[1, 3]] = 2, 1
    show = lambda **more: peeking._row(stage, tokenizer, None, 0, before, before | more, ("x",)).segments[0].label
    assert show(answers=np.array([[2, 3]])) == f"answer {pieces[2]} {pieces[3]}"
    assert show(answers=np.array([[0, 0]])) == "no answer here"
    stage = dataclasses.replace(stage, objective=Objective("tag", lambda: None, dict, classes=("NOUN", "VERB")))
    assert show(tags=tags) == f"{pieces[1]}/VERB {pieces[3]}/NOUN"


ERRORS = [
    ({"name": "x"}, "the config has no stage 'x'"),
    ({"step": 4}, "--step=4: pretrain takes 4 steps, numbered 0 to 3"),
    ({"rows": 0}, "--rows=0: this batch of pretrain has 8 rows, so take 1 to 8"),
]


@pytest.mark.parametrize(("arguments", "message"), ERRORS)
def test_errors(toy, arguments, message):
    with pytest.raises(ValueError, match=message):
        peek(toy.config, workdir=toy.workdir, **({"name": "pretrain"} | arguments))


def test_the_command(toy):
    def run(*arguments):
        command = [sys.executable, "-m", "launch.peek", f"--config={toy.file}", f"--workdir={toy.workdir}", *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    before = sorted(toy.workdir.rglob("*"))
    done = run("--step=2", "--rows=3")
    assert done.returncode == 0, done.stderr
    assert done.stdout == printed(peek(toy.config, "pretrain", toy.workdir, 2, 3))
    assert sorted(toy.workdir.rglob("*")) == before
    failed = run("--config.pretrain.stps=2")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: pretrain has no key 'stps'; did you mean 'steps'?")

"""The loop on real files: resume to the bit, one compilation a stage, what stops a run, and what it refuses."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from toys import config_of, write_reviews

from train import build, checkpoint, loop, tree
from train.__main__ import run

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loop")
    write_reviews(folder / "reviews.tsv")
    return folder


@pytest.fixture(scope="module")
def whole(folder):
    """The recipe, run without a break."""
    run(config_of(folder), folder / "whole")
    return folder / "whole"


def params_at(workdir: Path, stage: str, kind: str = "checkpoints") -> dict:
    return tree.leaves(checkpoint.read_params(workdir / stage / kind)[0])


def lines(workdir: Path, stage: str) -> list[dict]:
    return [json.loads(line) for line in (workdir / stage / "metrics.jsonl").read_text().splitlines()]


def test_the_whole_way(whole):
    pretrain, finetune = lines(whole, "pretrain"), lines(whole, "finetune")
    assert [line["step"] for line in pretrain] == list(range(1, 9))
    assert {"loss", "mlm", "mlm_accuracy", "mlm_surplus", "gradient_norm", "learning_rate"} <= pretrain[0].keys()
    last = [line for line in finetune if "dev/accuracy" in line][-1]
    assert {"dev/loss", "dev/f1", "dev/matthews"} <= last.keys()
    best = checkpoint.read_provenance(whole / "finetune" / "best")
    assert best["score"] == best["metrics"]["dev/accuracy"] > 0.9  # the label is a word
    assert any(p.name.startswith("events") for p in (whole / "pretrain").iterdir())
    origin = checkpoint.read_provenance(whole / "finetune" / "checkpoints")
    assert origin["backbone"]["D"] == 16
    assert origin["special"]["mask"] == 4


def test_resumed_is_unbroken_to_the_bit(folder, whole):
    """Stopped at step 4 of 8, begun again by another process's worth of state: the same parameters."""
    broken = folder / "broken"
    run(config_of(folder, steps=4), broken, "pretrain")
    run(config_of(folder, log_every=1), broken, "pretrain")
    want, got = params_at(whole, "pretrain"), params_at(broken, "pretrain")
    for name in want:
        np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_mesh_and_microbatches_may_change(folder, whole):
    other = folder / "other"
    run(config_of(folder, steps=4), other, "pretrain")
    run(config_of(folder, mesh="data=4,tensor=2", microbatches=2), other, "pretrain")
    want, got = params_at(whole, "pretrain"), params_at(other, "pretrain")
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=2e-4, err_msg=name)


def test_a_layout_changes_no_step(folder, whole):
    """Examples packed, and after a resume bucketed: the steps are those of a run that pads."""
    other = folder / "layouts"
    shutil.copytree(whole, other, ignore=shutil.ignore_patterns("finetune"))
    config = config_of(folder)
    del config["finetune"]["epochs"]
    for steps, layout in ((4, "packed"), (8, "bucketed")):
        config["finetune"] |= dict(steps=steps, layout=layout, eval_every=4)
        run(config, other, "finetune")
    want, got = ([x for x in lines(workdir, "finetune") if "loss" in x][:8] for workdir in (whole, other))
    assert [line["step"] for line in got] == list(range(1, 9))
    for a, b in zip(want, got, strict=True):
        np.testing.assert_allclose(b["loss"], a["loss"], rtol=1e-4)
        np.testing.assert_allclose(b["gradient_norm"], a["gradient_norm"], rtol=1e-3)
    assert len([line for line in lines(other, "finetune") if "dev/loss" in line]) == 2


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(seed=1), "seed: was 0, is 1"),
        (dict(objective=dict(factory="objectives.mlm:mlm", rate=0.2)), "objective.rate: was 0.3, is 0.2"),
        (dict(backbone=dict(F=64)), "backbone.F: was 32, is 64"),
        (dict(batch=16), "batch: was 8, is 16"),
        (dict(optimizer=dict(factory="train.optimizer:lion")), "optimizer.factory: was train.optimizer:adamw, is"),
    ],
)
def test_another_experiment_is_refused(folder, whole, change, says):
    before = params_at(whole, "pretrain")
    with pytest.raises(ValueError, match=f"(?s)holds another experiment:.*{says}.*--fork="):
        run(config_of(folder, **change), whole, "pretrain")
    np.testing.assert_array_equal(params_at(whole, "pretrain")["mlm/bias"], before["mlm/bias"])


def test_fork(folder, whole):
    forked = folder / "forked"
    run(config_of(folder, seed=1, steps=10), forked, "pretrain", fork=whole)
    assert [line["step"] for line in lines(forked, "pretrain")] == [9, 10]


def test_another_tokenizer_section_is_another_experiment(folder, whole):
    config = config_of(folder)
    config["tokenizer"]["size"] = 36
    with pytest.raises(ValueError, match=r"(?s)another experiment:.*tokenizer.size: was 40, is 36"):
        run(config, whole, "pretrain")


def test_a_fork_of_what_is_done(folder, whole):
    """Later stages find it in its new workdir."""
    run(config_of(folder, seed=1), folder / "twin", fork=whole)
    for stage in ("pretrain", "finetune"):
        want, got = params_at(whole, stage), params_at(folder / "twin", stage)
        for name in want:
            np.testing.assert_array_equal(got[name], want[name], err_msg=name)


def test_a_fork_with_another_optimizer_or_architecture(folder, whole, capsys):
    other = folder / "another optimizer"
    made = config_of(folder, steps=9, optimizer=dict(factory="train.optimizer:lion"))
    run(made, other, "pretrain", fork=whole)
    assert [line["step"] for line in lines(other, "pretrain")] == [9]
    assert "the optimizer begins anew: its state differs, as " in capsys.readouterr().err
    want, got = params_at(whole, "pretrain"), params_at(other, "pretrain")
    assert all(0 < abs(got[name] - want[name]).max() < 0.01 for name in want if want[name].size > 1)
    with pytest.raises(ValueError, match=r"params of other shapes, as .*: was \(2, 32\), is \(2, 64\)"):
        run(config_of(folder, steps=9, backbone=dict(F=64)), folder / "wider", "pretrain", fork=whole)


def test_a_later_stage_s_mistake_is_said_first(folder):
    config = config_of(folder)
    config["finetune"]["layouts"] = "packed"
    with pytest.raises(ValueError, match="finetune has no key 'layouts'; did you mean 'layout'"):
        run(config, folder / "ahead")
    assert not (folder / "ahead").exists()


def test_one_compilation_a_stage(folder, monkeypatch):
    """Programs that the compiler is asked for between the first step and the last: none (a first save has its own)."""
    events = []
    monkeypatch.setattr(loop.Log, "steps", lambda self, numbers, *a: events.append(numbers[-1]))
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *a, **k: events.append(name) if name.endswith("backend_compile_duration") else None
    )
    run(config_of(folder, save_every=100), folder / "counted", "pretrain")
    first, last = events.index(1), events.index(8)
    assert any(isinstance(e, str) for e in events[:first])
    assert [e for e in events[first:last] if isinstance(e, str)] == []


def test_a_loss_that_is_not_finite(folder):
    """Says the step, the last good checkpoint and the rows, and saves nothing more."""
    workdir = folder / "hot"
    run(config_of(folder, steps=4), workdir, "pretrain")
    stage = build.stage(build.plain(config_of(folder)), "pretrain", workdir)
    poisoned = stage.optimizer._replace(
        update=lambda g, s, p: (jax.tree.map(lambda x: x * np.nan, g), stage.optimizer.update(g, s, p)[1])
    )
    import dataclasses

    with pytest.raises(loop.Stopped, match=r"(?s)loss of step 6 is nan; the last good checkpoint is of step 4 .*Rows"):
        loop.fit(dataclasses.replace(stage, optimizer=poisoned), workdir)
    assert checkpoint.steps_in(workdir / "pretrain" / "checkpoints")[-1] == 4


def test_a_gradient_that_is_not_finite(folder):
    """The loss is of the params before the step; those after it are never saved."""
    import dataclasses

    workdir = folder / "steep"
    run(config_of(folder, steps=2, save_every=2), workdir, "pretrain")
    stage = build.stage(build.plain(config_of(folder, save_every=2)), "pretrain", workdir)

    def loss(params, encode, batch, key, step):
        sums = stage.objective.loss(params, encode, batch, key, step)
        nothing = jax.numpy.where(step == 3, params["mlm"]["bias"].sum() * 0.0, 0.0)
        return sums._replace(terms={k: t._replace(sum=t.sum + jax.numpy.sqrt(nothing)) for k, t in sums.terms.items()})

    steep = dataclasses.replace(stage, objective=stage.objective._replace(loss=loss))
    with pytest.raises(loop.Stopped, match=r"gradient norm of step 4 is nan; the last good checkpoint is of step 2 "):
        loop.fit(steep, workdir)
    assert checkpoint.steps_in(workdir / "pretrain" / "checkpoints") == [2]


def test_an_id_that_no_tokenizer_has(folder):
    """Of embeddings more than pieces: else its loss would be infinite."""
    import dataclasses

    stage = build.stage(build.plain(config_of(folder, backbone=dict(V=48))), "pretrain", folder / "ids")
    rows = stage.rows.read(np.arange(64))
    rows["tokens"] = np.where(rows["positions"] == 3, 45, rows["tokens"])
    with pytest.raises(ValueError, match=r"hold ids from \d+ to 45, and the vocabulary has 40"):
        loop.fit(dataclasses.replace(stage, rows=rows), folder / "ids")


def test_early_stopping_stays_stopped(folder, whole):
    config = config_of(folder)
    config["finetune"] |= dict(
        patience=1, eval_every=1, epochs=40.0, schedule=dict(factory="train.schedule:constant", peak=0.0)
    )
    workdir = folder / "patient"
    run(config | {"stages": ("pretrain", "finetune")}, workdir)
    assert checkpoint.steps_in(workdir / "finetune" / "checkpoints") == [2]
    run(config, workdir, "finetune")
    assert checkpoint.steps_in(workdir / "finetune" / "checkpoints") == [2]


def judged(folder: Path, workdir: Path, **changes) -> list[tuple[int, float]]:
    """Finetunes with an evaluation a step; (step, loss) of those that were logged."""
    config = config_of(folder)
    config["finetune"] |= dict(
        epochs=None, steps=8, eval_every=1, save_every=3, best="-dev/loss", patience=2, carry=None,
        schedule=dict(factory="train.schedule:constant", peak=1e-3),
    ) | changes  # fmt: skip
    run(config, workdir, "finetune")
    return sorted({line["step"]: line["dev/loss"] for line in lines(workdir, "finetune") if "dev/loss" in line}.items())


@pytest.fixture
def cut_off(monkeypatch):
    """A function that makes the evaluation after a step the last thing that the process does."""

    class Killed(Exception):
        pass

    def at(step: int) -> type[Exception]:
        say = loop.Log.evaluation

        def evaluation(log, number, metrics):
            if number == step:
                raise Killed
            say(log, number, metrics)

        monkeypatch.setattr(loop.Log, "evaluation", evaluation)
        return Killed

    yield at


def test_a_run_that_was_cut_off_judges_as_an_unbroken_one(folder, cut_off, monkeypatch):
    """The best that it had found after its last checkpoint neither counts as there, nor stays in the way."""
    unbroken, broken = folder / "judged", folder / "cut off"
    want = judged(folder, unbroken)
    assert len(want) == 8
    with pytest.raises(cut_off(6)):
        judged(folder, broken)
    assert checkpoint.steps_in(broken / "finetune" / "checkpoints") == [3]
    assert checkpoint.steps_in(broken / "finetune" / "best") == [5]
    monkeypatch.undo()
    assert judged(folder, broken) == want
    for kind in ("checkpoints", "best"):
        at = [checkpoint.steps_in(workdir / "finetune" / kind) for workdir in (unbroken, broken)]
        assert at[0] == at[1]
        held = [checkpoint.read_provenance(workdir / "finetune" / kind) for workdir in (unbroken, broken)]
        assert [x.get("judged") for x in held] == [held[0].get("judged")] * 2
        assert [x.get("score") for x in held] == [held[0].get("score")] * 2


def test_a_done_stage_is_evaluated_where_that_was_cut_off_or_asked_for_since(folder, cut_off, monkeypatch):
    workdir = folder / "evaluated late"
    once = dict(eval_every=0, patience=None)
    with pytest.raises(cut_off(8)):
        judged(folder, workdir, **once)
    monkeypatch.undo()
    assert checkpoint.steps_in(workdir / "finetune" / "checkpoints")[-1] == 8
    assert judged(folder, workdir, **once) == judged(folder, folder / "judged")[-1:]
    best = workdir / "finetune" / "best"
    assert checkpoint.read_provenance(best)["score"] == -judged(folder, workdir, **once)[0][1]
    said = lines(workdir, "finetune")
    judged(folder, workdir, **once)
    assert lines(workdir, "finetune") == said
    judged(folder, workdir, **once | dict(best="dev/accuracy"))
    held = checkpoint.read_provenance(best)
    assert held["score"] == held["metrics"]["dev/accuracy"]
    assert checkpoint.steps_in(best) == [8]


def test_a_stage_of_no_steps_is_evaluated_as_it_begins(folder, whole):
    """And saved, once: what it carries, beside a head that has learned nothing."""
    workdir = folder / "no steps"
    carried = dict(steps=0, patience=None, carry=dict(checkpoint=str(whole / "pretrain")))
    assert [step for step, _ in judged(folder, workdir, **carried)] == [0]
    assert checkpoint.steps_in(workdir / "finetune" / "checkpoints") == [0]
    name = "backbone/embed/tokens"
    np.testing.assert_array_equal(params_at(workdir, "finetune")[name], params_at(whole, "pretrain")[name])
    said = lines(workdir, "finetune")
    judged(folder, workdir, **carried)
    assert lines(workdir, "finetune") == said


def test_asked_to_stop_while_it_is_evaluated(folder, monkeypatch):
    """The stage is done, and the next does not begin."""
    config = config_of(folder)
    config["pretrain"] |= dict(steps=1, evals=dict(valid=config["pretrain"]["data"]))
    say = loop.Log.evaluation

    def evaluation(*given):
        say(*given)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(loop.Log, "evaluation", evaluation)
    with pytest.raises(loop.Stopped, match="pretrain is done, and the same command goes on"):
        run(config, folder / "asked")
    assert "valid/loss" in lines(folder / "asked", "pretrain")[-1]
    assert not (folder / "asked" / "finetune").exists()


def test_what_was_carried_has_gone_on(folder, whole, capsys):
    """Said, since the stage is what it was."""
    workdir = folder / "gone on"
    shutil.copytree(whole, workdir)
    run(config_of(folder), workdir, "finetune")
    assert "note: " not in capsys.readouterr().err
    run(config_of(folder, steps=9), workdir)
    assert re.search(r"note: finetune began with step 8 of .*, where there is step 9 now", capsys.readouterr().err)


def test_a_workdir_is_a_folder(folder):
    with pytest.raises(ValueError, match=r"--workdir=gs:/+bucket/run: expected a folder"):
        run(config_of(folder), Path("gs://bucket/run"))


def test_a_fork_of_nothing(folder, whole, capsys):
    with pytest.raises(ValueError, match=r"--fork=.*nosuch: no such folder"):
        run(config_of(folder), folder / "unforked", fork=folder / "nosuch")
    with pytest.raises(ValueError, match="no tokenizer and no checkpoint of finetune there"):
        run(config_of(folder), folder / "unforked", "finetune", fork=folder)
    run(config_of(folder), whole, "pretrain", fork=folder / "nosuch")  # it has begun: what it came from may be gone
    assert "pretrain is done at step 8" in capsys.readouterr().err


def test_a_teacher_begins_as_what_is_carried(folder, whole):
    """With a decay of 1 the teacher stays what it began as: the carried student. A resume does not begin again."""
    config = config_of(folder)
    config["finetune"] |= dict(
        objective=dict(factory="objectives.data2vec:data2vec", top=2, decay=1.0, final_decay=1.0),
        data=config["pretrain"]["data"], mesh="data=2,tensor=2,fsdp=2", evals={}, best=None, epochs=None, save_every=2,
    )  # fmt: skip
    broken, unbroken = folder / "teacher", folder / "unbroken-teacher"
    for workdir, steps in ((broken, (2, 4)), (unbroken, (4,))):
        shutil.copytree(whole, workdir, ignore=shutil.ignore_patterns("finetune"))
        for n in steps:
            config["finetune"]["steps"] = n
            run(config, workdir, "finetune")
    want, got, other = params_at(whole, "pretrain"), params_at(broken, "finetune"), params_at(unbroken, "finetune")
    for name in got:
        np.testing.assert_array_equal(got[name], other[name], err_msg=name)
        if "/teacher/" in name:
            np.testing.assert_array_equal(got[name], want[name.replace("data2vec/teacher", "backbone")], err_msg=name)
    assert (got["backbone/embed/tokens"] != want["backbone/embed/tokens"]).any()


def test_another_tokenizer_is_refused(folder, whole):
    config = config_of(folder)
    config["tokenizer"]["size"] = 36
    build.tokenizer(build.plain(config), folder / "refork")
    with pytest.raises(ValueError, match=r"--fork: .* was trained with another tokenizer .* fork into a new workdir"):
        run(config, folder / "refork", "pretrain", fork=whole)
    config["finetune"]["carry"] = dict(checkpoint=str(whole / "pretrain"))
    with pytest.raises(ValueError, match="trained with another tokenizer"):
        run(config, folder / "retokenized", "finetune")


CONFIG_FILE = """
import json, ml_collections
def get_config():
    return ml_collections.ConfigDict(json.loads({text!r}))
"""


def command(
    folder: Path, *arguments: str, config: dict | None = None, devices: int = 2, path: Path | str = ""
) -> subprocess.Popen:
    file = folder / f"config{len(list(folder.glob('config*')))}.py"
    file.write_text(CONFIG_FILE.format(text=json.dumps(config or config_of(folder, mesh="data=-1"))))
    cache = jax.config.jax_compilation_cache_dir
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": cache,
        "PYTHONPATH": str(path),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "train", f"--config={file}", *arguments],
        cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def several(count: int, folder: Path, config: dict, *arguments: str) -> list[subprocess.Popen]:
    """The same command as `count` processes, eight devices together."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        address = f"localhost:{s.getsockname()[1]}"
    flags = [f"--distributed={i}/{count}@{address}" for i in range(count)]
    return [command(folder, *arguments, flag, config=config, devices=8 // count) for flag in flags]


def ended(processes: list[subprocess.Popen]) -> list[str]:
    """What each said, once all have ended."""
    with ThreadPoolExecutor(len(processes)) as pool:  # one whose pipe is full would wait for ever
        return [said for _, said in pool.map(lambda p: p.communicate(timeout=300), processes)]


def test_two_processes_are_one(folder, whole):
    """Pretrained by two processes, gone on with by one, and carried, finetuned and scored by two again."""
    workdir = folder / "two"
    first = several(2, folder, config_of(folder, steps=4), f"--workdir={workdir}", "--stage=pretrain")
    said = ended(first)
    assert [p.returncode for p in first] == [0, 0], said
    run(config_of(folder), workdir, "pretrain")
    want, got = params_at(whole, "pretrain"), params_at(workdir, "pretrain")
    for name in want:
        np.testing.assert_allclose(got[name], want[name], atol=2e-4, err_msg=name)
    config = config_of(folder)
    config["finetune"] |= dict(epochs=0.2)
    config["backbone"] = dict(checkpoint=str(workdir / "pretrain"))  # which the first process reads before the other
    second = several(2, folder, config, f"--workdir={workdir}", "--stage=finetune")
    said = ended(second)
    assert [p.returncode for p in second] == [0, 0], said
    assert "parameters taken" in said[0]
    want, got = lines(whole, "finetune"), lines(workdir, "finetune")
    np.testing.assert_allclose(got[0]["loss"], want[0]["loss"], atol=1e-4)
    assert {"dev/loss", "dev/accuracy", "dev/f1"} <= got[-1].keys()


def test_two_processes_end_with_one_error(folder):
    config = config_of(folder)
    config["pretrain"]["data"]["source"]["path"] = "nowhere.tsv"
    both = several(2, folder, config, f"--workdir={folder / 'two wrong'}")
    said = ended(both)
    assert [p.returncode for p in both] == [1, 1], said
    assert all("nowhere.tsv" in s and "Traceback" not in s for s in said), said


def test_a_mixture_goes_on_from_four_processes_on_two(folder):
    """Packed rows of two sources: every step sees the rows, and so has the loss, of one process's unbroken run."""
    config = config_of(folder)
    whole = config["pretrain"]["data"]
    part = lambda lo, hi, weight: whole | dict(source=whole["source"] | dict(split=(lo, hi)), weight=weight)
    config["pretrain"]["data"] = dict(mixture=dict(a=part(0, 0.4, 0.7), b=part(0.4, 1, 0.3)))
    run(config, folder / "mixed", "pretrain")
    workdir = folder / "four"
    for count, steps in ((4, 4), (2, 8)):
        config["pretrain"]["steps"] = steps
        processes = several(count, folder, config, f"--workdir={workdir}", "--stage=pretrain")
        said = ended(processes)
        assert [p.returncode for p in processes] == [0] * count, said
    assert "resumed pretrain at step 4" in "".join(said)
    want, got = lines(folder / "mixed", "pretrain"), lines(workdir, "pretrain")
    assert [line["step"] for line in got] == list(range(1, 9))
    losses = [line["loss"] for line in want]
    assert min(np.abs(np.diff(losses))) > 1e-3
    np.testing.assert_allclose([line["loss"] for line in got], losses, atol=1e-4)


def test_one_of_two_processes_is_terminated(folder):
    """Both save and stop after the same step."""
    workdir = folder / "one_of_two"
    config = config_of(folder, steps=100_000)
    both = several(2, folder, config, f"--workdir={workdir}", "--stage=pretrain")
    wait_for_steps(workdir, 3)
    both[1].send_signal(signal.SIGTERM)
    said = ended(both)
    assert [p.returncode for p in both] == [1, 1], said
    step = checkpoint.steps_in(workdir / "pretrain" / "checkpoints")[-1]
    assert all(f"asked to stop: saved step {step}" in s for s in said), said


def wait_for_steps(workdir: Path, n: int) -> None:
    metrics = workdir / "pretrain" / "metrics.jsonl"
    deadline = time.time() + 240
    while not (metrics.exists() and metrics.read_text().count("\n") > n) and time.time() < deadline:
        time.sleep(0.2)


def test_terminated_saved_and_resumed(folder):
    """A second process, asked to end by SIGTERM mid-run, saves and says so; the same command goes on from there."""
    workdir = folder / "terminated"
    config = config_of(folder, mesh="data=-1", steps=100_000, log_every=1)
    process = command(folder, f"--workdir={workdir}", "--stage=pretrain", config=config)
    wait_for_steps(workdir, 3)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1, said
    step = checkpoint.steps_in(workdir / "pretrain" / "checkpoints")[-1]
    assert f"asked to stop: saved step {step}" in said
    config["pretrain"]["steps"] = step + 1
    process = command(folder, f"--workdir={workdir}", "--stage=pretrain", config=config)
    said = process.communicate(timeout=240)[1]
    assert process.returncode == 0, said
    assert f"resumed pretrain at step {step}" in said
    assert lines(workdir, "pretrain")[-1]["step"] == step + 1


def test_where_a_user_s_own_objective_fails_is_shown(folder):
    (folder / "mine.py").write_text(
        "from objectives.mlm import mlm\n"
        "def mine(backbone, vocab, **how):\n"
        "    made = mlm(backbone, vocab, **how)\n"
        "    def loss(params, encode, batch, key, step):\n"
        "        raise ValueError('two shapes do not fit')\n"
        "    return made._replace(loss=loss)\n"
    )
    config = config_of(folder, objective=dict(factory="mine:mine", rate=0.2), mesh="data=-1")
    process = command(folder, f"--workdir={folder / 'mine'}", "--stage=pretrain", config=config, path=folder)
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "mine.py" in said and "raise ValueError('two shapes" in said
    assert said.splitlines()[-1] == "error: pretrain.data: two shapes do not fit"


def test_a_user_sees_no_traceback(folder):
    process = command(folder, f"--workdir={folder / 'x'}", "--config.pretrain.data.source.path=nowhere.tsv")
    said = process.communicate(timeout=120)[1]
    assert process.returncode == 1
    assert "nowhere.tsv" in said
    assert "error: " in said
    assert "Traceback" not in said

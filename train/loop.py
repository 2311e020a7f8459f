"""The only loop: start or resume, step, log, evaluate, save, stop."""

import hashlib
import json
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from model import random
from objectives import types
from train import carry, checkpoint, evaluate, flops, sharding, tree
from train import step as training
from train.data.layout import Layout, layout
from train.data.loader import Loader, evaluation_batches, prefetch
from train.data.table import Table, table
from train.log import Log
from train.stage import Stage
from train.state import TrainState


class Stopped(Exception):
    """Training ended before its last step, for a reason that the user should read; the state was saved or is older."""


def fit(stage: Stage, workdir: Path, *, fork: Path | None = None) -> TrainState:
    """Trains a stage in `workdir / stage.name`, from its newest checkpoint where there is one.

    Leaves there `checkpoints/` and, where `stage.best` is set, `best/` (the best on dev), `metrics.jsonl` and
    TensorBoard events. Resuming on the same mesh gives the parameters of an unbroken run, bit for bit (on GPUs with
    XLA_FLAGS=--xla_gpu_deterministic_ops=true).

    Args:
      stage: what to train.
      workdir: of the whole recipe.
      fork: another workdir, whose newest checkpoint of this stage a new run starts from, whatever differs but the
        shapes of params and the tokenizer; an optimizer whose state differs begins anew.

    Raises:
      ValueError: the workdir holds another experiment (the message names the differences), or what is carried does
        not fit.
      Stopped: the loss or its gradient was not finite, or the process was asked to end (SIGTERM, SIGINT).
    """
    like = shapes(stage)
    folder = workdir / stage.name
    store = checkpoint.Store(folder / "checkpoints", stage.keep)
    best = checkpoint.Store(folder / "best", 1) if stage.best else None
    log = Log(folder, stage, partial(flops_a_step, stage, like))
    try:
        with _ask_to_stop() as asked:
            origin = _origin(stage, workdir, store, fork)
            _check_alike(stage, origin)
            _tell_what_went_on(stage, origin, log)
            judge = Judge(stage, best, log, origin)
            if origin.step >= stage.steps or judge.patience_is_over():
                asked_for = "" if origin.step == stage.steps else f", where {stage.steps} are asked for"
                log.say(f"{stage.name} is done at step {origin.step}{asked_for}")
                state = _state(stage, like, origin, log)
                if origin.folder != store.folder:  # forked, or of no steps: later stages may carry from it
                    store.save(state, origin.step, provenance(stage) | _kept(judge, origin))
                if _first_says(judge.is_due(origin.step)):
                    judge.look(state, origin.step)
            else:
                if origin.folder is None:
                    _check_carried(stage, like)
                loader = loader_of(stage)
                compiling = in_background(lowered_step(stage, like, loader.shapes(origin.step)).compile)
                if origin.says:
                    log.say(origin.says)
                state = _state(stage, like, origin, log)
                state = _run(stage, loader, state, like, origin, compiling, store, judge, log, asked)
            if asked.now(True):  # while it was evaluated: the next stage does not begin
                raise Stopped(f"asked to stop: {stage.name} is done, and the same command goes on from there")
            return state
    finally:
        store.close()
        if best:
            best.close()
        log.close()


def fresh(stage: Stage) -> Callable[[jax.Array], TrainState]:
    """key -> the state before the first step."""

    def make(key: jax.Array) -> TrainState:
        params = training.init(key, backbone=stage.backbone, objective=stage.objective)
        learned, _ = tree.split(params, stage.learned)
        return TrainState(jnp.int32(0), params, stage.optimizer.init(learned))

    return make


def shapes(stage: Stage) -> TrainState:
    """The state without its numbers: shapes, dtypes and shardings."""
    state = jax.eval_shape(fresh(stage), jax.eval_shape(random.generator, 0))
    placed = sharding.state_shardings(state, training.axes(stage.backbone, stage.objective), stage.mesh)
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, placed)


def lowered_step(stage: Stage, like: TrainState, batch: Any) -> Any:
    """The step for these shapes and shardings, to be compiled once: a batch of another shape is an error then."""
    one = partial(
        training.step, backbone=stage.backbone, objective=stage.objective, optimizer=stage.optimizer,
        learned=stage.learned, view=stage.view, microbatches=stage.microbatches,
        constrain=sharding.constrainer(stage.mesh),
    )  # fmt: skip
    everywhere = jax.NamedSharding(stage.mesh, jax.P())
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.rows(stage.mesh)), batch)
    jitted = jax.jit(one, donate_argnums=0, out_shardings=(_placed(like), everywhere))
    return jitted.lower(like, rows, random.key(stage.seed))


def first_state(stage: Stage, like: TrainState) -> TrainState:
    """A fresh state, placed as `like`."""
    return jax.jit(fresh(stage), out_shardings=_placed(like))(random.generator(stage.seed))


def in_background(work: Callable[[], Any]) -> Future:
    """Begins work that needs no Python, as a compilation. The caller goes on; the process ends no sooner than it."""
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


class _Origin(NamedTuple):
    """Where a stage's state comes from, and how far it is; `folder` is None for a fresh one."""

    folder: Path | None
    step: int
    says: str
    judged: dict = {}  # noqa: RUF012  (what `Judge` had found by then; never mutated)
    carried: int | None = None  # the step of the checkpoint that the stage began with


def _origin(stage: Stage, workdir: Path, store: checkpoint.Store, fork: Path | None) -> _Origin:
    latest = store.latest()
    if latest is not None:
        saved = checkpoint.read_provenance(store.folder, latest)
        _check_same(stage, saved, workdir)
        rather = "" if fork is None else f", and not from {fork}"
        says = f"resumed {stage.name} at step {latest}{rather}"
        return _Origin(store.folder, latest, says, saved.get("judged", {}), saved.get("carried"))
    if fork is None:
        return _Origin(None, 0, "", carried=_newest(stage))
    other = fork / stage.name / "checkpoints"
    if steps := checkpoint.steps_in(other):
        theirs = checkpoint.read_provenance(other, steps[-1]).get("tokenizer", stage.vocab.fingerprint)
        if theirs != stage.vocab.fingerprint:
            raise ValueError(
                f"--fork: {other} was trained with another tokenizer (fingerprint {theirs[:12]}) than {workdir} has "
                f"({stage.vocab.fingerprint[:12]}): fork into a new workdir, which takes the tokenizer too"
            )
        return _Origin(other, steps[-1], f"forked {stage.name} from {fork} at step {steps[-1]}")
    says = f"{fork} has no checkpoint of {stage.name}: it begins at its first step"
    return _Origin(None, 0, says, carried=_newest(stage))


def _tell_what_went_on(stage: Stage, origin: _Origin, log: Log) -> None:
    newest = _newest(stage)
    if stage.carry is not None and None not in (newest, origin.carried) and newest != origin.carried:
        log.say(
            f"note: {stage.name} began with step {origin.carried} of {stage.carry.folder}, where there is step "
            f"{newest} now; another workdir would begin with that"
        )


def _newest(stage: Stage) -> int | None:
    """The newest step of what the stage carries from."""
    return None if stage.carry is None else max(checkpoint.steps_in(stage.carry.folder), default=None)


def _state(stage: Stage, like: TrainState, origin: _Origin, log: Log) -> TrainState:
    """Restored, or fresh with what it carries and what the objective then begins with."""
    if origin.folder is None:
        return _begun(stage, _carried(stage, first_state(stage, like), log))
    if not origin.judged:  # forked: anything may differ
        other = checkpoint.unlike(origin.folder, origin.step, like)
        if other["params"]:
            raise ValueError(
                f"--fork: {origin.folder} holds params of other shapes, as {other['params'][0]} (one of "
                f"{len(other['params'])}). A stage's `carry` takes what fits into another architecture"
            )
        if other["opt_state"]:
            log.say(f"the optimizer begins anew: its state differs, as {other['opt_state'][0]}")
            fresh = first_state(stage, like)
            params, _, _ = checkpoint.read_params(origin.folder, origin.step, place=lambda shapes: like.params)
            return fresh._replace(step=jax.device_put(np.int32(origin.step), like.step.sharding), params=params)
    return checkpoint.restore(origin.folder, origin.step, like)


def _check_alike(stage: Stage, origin: _Origin) -> None:
    """Raises ValueError where this process does not begin as the others do."""
    if jax.process_count() == 1:
        return
    from jax.experimental import multihost_utils

    said = json.dumps([origin.step, stage.name, stage.steps, stage.identity], sort_keys=True)
    mine = np.frombuffer(hashlib.blake2b(said.encode(), digest_size=8).digest(), np.uint32)
    all_of_them = multihost_utils.process_allgather(mine)
    if (all_of_them != all_of_them[:1]).any():
        raise ValueError(
            f"the processes do not begin {stage.name} alike (this one at step {origin.step}): start all of them by one "
            "command, on one --workdir that all see"
        )


def _first_says(true: bool) -> bool:
    """What the first process says: files may look otherwise to others."""
    if jax.process_count() == 1:
        return true
    from jax.experimental import multihost_utils

    return bool(multihost_utils.broadcast_one_to_all(np.array(true)))


def _placed(like: TrainState) -> TrainState:
    return jax.tree.map(lambda x: x.sharding, like)


def loader_of(stage: Stage) -> Loader:
    """What the stage trains on, batch by batch."""
    layout = layout_of(stage, table(stage.rows), stage.microbatches)
    return Loader(stage.rows, stage.batch, stage.seed, layout=layout, ids=stage.vocab.size)


def layout_of(stage: Stage, rows: Table, microbatches: int = 1) -> Layout | None:
    """How the stage's batches lie, for the lengths of these rows."""
    return layout(stage.layout, rows, stage.batch, microbatches * sharding.row_parts(dict(stage.mesh.shape)))


def _check_carried(stage: Stage, like: TrainState) -> None:
    """Raises what is wrong with what the stage carries, before anything compiles."""
    if stage.carry is not None:
        held, origin, _ = checkpoint.read_params(stage.carry.folder, place=lambda shapes: shapes)
        if origin["tokenizer"] != stage.vocab.fingerprint:
            raise ValueError(
                f"{stage.carry.folder} was trained with another tokenizer (fingerprint {origin['tokenizer'][:12]}) "
                f"than this stage's ({stage.vocab.fingerprint[:12]}): its embeddings mean other pieces. Use the "
                f"tokenizer of that checkpoint's workdir, or pretrain again"
            )
        carry.plan(held, like.params, stage.carry.rules, stage.carry.resize)


def _carried(stage: Stage, state: TrainState, log: Log) -> TrainState:
    if stage.carry is None:
        return state
    rules = stage.carry.rules
    restored, _, step = checkpoint.read_params(
        stage.carry.folder, place=lambda shapes: carry.reading(shapes, state.params, rules)
    )
    # what fits was read to its place in its dtype, so that nothing is computed, and no program compiled
    params, report = carry.carry(restored, state.params, rules, stage.carry.resize)
    params = jax.device_put(params, _placed(state).params)
    log.say(f"carried from {stage.carry.folder} at step {step}:\n{carry.summary(report)}")
    return state._replace(params=params)


def _begun(stage: Stage, state: TrainState) -> TrainState:
    begin = jax.jit(stage.objective.begin, donate_argnums=0, out_shardings=_placed(state).params)
    return state._replace(params=begin(state.params))


def _check_same(stage: Stage, saved: dict, workdir: Path) -> None:
    was, now = (dict(_flat(x)) for x in (saved["identity"], _jsonable(stage.identity)))
    differing = [f"{k}: was {was.get(k, 'absent')}, is {now.get(k, 'absent')}"
                 for k in sorted(was.keys() | now.keys()) if not _alike(k, was.get(k), now.get(k))]  # fmt: skip
    if differing:
        raise ValueError(
            f"{workdir / stage.name} holds another experiment:\n  " + "\n  ".join(differing)
            + "\nTake another --workdir, or start one from it with --fork=" + str(workdir)
        )  # fmt: skip


def _alike(key: str, was: Any, now: Any) -> bool:
    """Of a checkpoint's path that is spelled otherwise, whether it is the same place."""
    if key.endswith(".checkpoint") and isinstance(was, str) and isinstance(now, str):
        return was == now or os.path.realpath(was) == os.path.realpath(now)
    return was == now


def _flat(x: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(x, dict) and x:
        for k, v in x.items():
            yield from _flat(v, f"{prefix}.{k}" if prefix else str(k))
    else:
        yield prefix, x


def _jsonable(x: Any) -> Any:
    return json.loads(json.dumps(x))


def flops_a_step(stage: Stage, like: TrainState) -> int:
    """Of the first batch; others may have other shapes."""
    return flops.of_loss(stage.backbone, stage.objective, like.params, loader_of(stage).shapes(0), stage.view)


def _run(
    stage: Stage, loader: Loader, state: TrainState, like: TrainState, origin: _Origin, compiling: Future,
    store: checkpoint.Store, judge: "Judge", log: Log, asked: "_Asked",
) -> TrainState:  # fmt: skip
    key, start = random.key(stage.seed), origin.step
    steps = {_shape(loader.shapes(start)): compiling.result()}
    pending: list[tuple[int, Any]] = []  # (step, Sums on the device) not looked at yet

    def settle() -> None:
        """Waits for the steps so far and logs them; the only place where the loop reads from the device."""
        reports = jax.device_get([jax.tree.map(jnp.asarray, types.report(sums)) for _, sums in pending])
        for (n, _), report in zip(pending, reports, strict=True):
            if wrong := [k for k in ("loss", "gradient_norm") if not math.isfinite(report.get(k, 0.0))]:
                rows = loader.index(n)
                ids = loader.table.read(rows)["example"].tolist()
                raise Stopped(
                    f"the {wrong[0].replace('_', ' ')} of step {n + 1} is {report[wrong[0]]}; the last good checkpoint "
                    f"is of step {store.latest() or 'none'} in {store.folder}. Rows of the batch: {rows.tolist()}, "
                    f"their examples (source, index): {ids}"
                )
        if pending:
            log.steps([n + 1 for n, _ in pending], reports, stage.schedule)
        pending.clear()

    def save(step: int) -> None:
        settle()
        store.save(state, step, provenance(stage) | _kept(judge, origin))

    step = start
    log.begin(start)
    for n, batch in prefetch(loader, start, stage.steps, sharding.rows(stage.mesh)):
        if _shape(batch) not in steps:  # of few: a layout has three shapes at most
            steps[_shape(batch)] = lowered_step(stage, like, batch).compile()
        state, sums = steps[_shape(batch)](state, batch, key)
        pending.append((n, sums))
        step = n + 1
        if step % stage.log_every == 0 or step == start + 1:
            settle()
        if stage.evals and stage.eval_every and step % stage.eval_every == 0:
            settle()
            if not judge.look(state, step):
                break
        if step % stage.save_every == 0:
            save(step)
        if asked.now(step % stage.log_every == 0):
            save(step)
            raise Stopped(f"asked to stop: saved step {step} in {store.folder}; the same command goes on from there")
    save(step)
    if stage.evals and judge.looked != step:
        judge.look(state, step)
    return state


def _shape(batch: Any) -> tuple[int, ...]:
    return batch["tokens"].shape


def provenance(stage: Stage) -> dict:
    """What every checkpoint of a stage says of itself."""
    return stage.provenance | {"identity": stage.identity}


def _kept(judge: "Judge", origin: _Origin) -> dict:
    """What a resumed run must know beside."""
    return {"judged": judge.found(), "carried": origin.carried}


class Judge:
    """Evaluates, keeps the best checkpoint, and says when to stop waiting for a better.

    Every checkpoint tells what was `found` by then, so that a resumed run judges as an unbroken one would: a best of a
    later step, which a run found that was then cut off, is found again.
    """

    def __init__(self, stage: Stage, best: checkpoint.Store | None, log: Log, origin: _Origin):
        self.stage, self.store, self.log = stage, best, log
        self.run = jax.jit(evaluate.evaluator(stage.backbone, stage.objective, stage.view))
        self.looked: int | None = None
        self.waited, self.top = 0, -math.inf  # evaluations since the best, and its score
        if origin.judged and origin.judged["best"] == stage.best:
            top = origin.judged["top"]
            self.waited, self.top = origin.judged["waited"], -math.inf if top is None else top
        held = self._held()
        if held and held["step"] <= origin.step and held["score"] > self.top:  # found once the last step was saved
            self.waited, self.top = 0, held["score"]

    def found(self) -> dict:
        """What a resumed run must know, as JSON."""
        top = self.top if math.isfinite(self.top) else None
        return {"best": self.stage.best, "waited": self.waited, "top": top}

    def _held(self) -> dict | None:
        """What `best/` says of its checkpoint, where that is the best by this metric."""
        latest = self.store.latest() if self.store else None
        if self.store is None or latest is None:
            return None
        held = checkpoint.read_provenance(self.store.folder, latest)
        return held | {"step": latest} if held.get("best") == self.stage.best else None

    def is_due(self, step: int) -> bool:
        """Whether a done stage wants an evaluation: one that was cut off, or that the config has got since."""
        logged = self.log.evaluated(step)
        if not self.stage.evals.keys() <= {name.partition("/")[0] for name in logged}:
            return True
        if self.store is None:
            return False
        held = self._held()
        name, score = self._score(logged)
        return name not in logged or score > (held["score"] if held else -math.inf)

    def _score(self, metrics: dict[str, float]) -> tuple[str, float]:
        """(The metric that picks the best, how good it is: more is better, and nan no score.)"""
        wanted = self.stage.best or ""
        name = wanted.lstrip("-")
        return name, (-1 if wanted.startswith("-") else 1) * metrics.get(name, math.nan)

    def patience_is_over(self) -> bool:
        return self.stage.patience is not None and self.waited >= self.stage.patience

    def look(self, state: TrainState, step: int) -> bool:
        """Whether training should go on."""
        stage, self.looked = self.stage, step
        metrics: dict[str, float] = {}
        for name, rows in stage.evals.items():
            how = layout_of(stage, table(rows))
            batches = evaluation_batches(rows, stage.batch, sharding.rows(stage.mesh), how, stage.vocab.size)
            found = evaluate.evaluate(self.run, state.params, batches, stage.objective)
            metrics |= {f"{name}/{k}": v for k, v in found.items()}
        self.log.evaluation(step, metrics)
        if self.store is None:
            return True
        name, score = self._score(metrics)
        if name not in metrics:
            raise ValueError(f"best={stage.best!r} is no metric of {stage.name}; they are {', '.join(metrics)}")
        if score > self.top:
            self.top, self.waited = score, 0
            said = {"best": stage.best, "score": score, "metrics": metrics}
            self.store.save(state, step, provenance(stage) | said, anew=True)
            return True
        self.waited += 1
        if self.patience_is_over():
            self.log.say(f"stopped early at step {step}: {name} has not improved for {self.waited} evaluations")
        return not self.patience_is_over()


_ONE_SIGNAL = 2.0  # seconds


class _Asked:
    stop = False

    def now(self, together: bool) -> bool:
        """Whether to stop after this step. Several processes must do so after the same: they agree when `together`."""
        if jax.process_count() == 1:
            return self.stop
        from jax.experimental import multihost_utils

        return together and bool(multihost_utils.process_allgather(np.array(self.stop)).any())


@contextmanager
def _ask_to_stop() -> Iterator[_Asked]:
    """SIGTERM and SIGINT end the run after the step under way; a second one ends it at once, but for one that follows
    so closely that it is the first again, as from a terminal and from the program that began this one.
    """
    asked = _Asked()
    before: dict[Any, Any] = {}
    first = math.inf

    def handler(number, frame):
        nonlocal first
        first = min(first, time.monotonic())
        asked.stop = True
        if time.monotonic() - first > _ONE_SIGNAL:
            signal.signal(number, before[number])
            signal.raise_signal(number)

    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            before[number] = signal.signal(number, handler)
    except ValueError:  # not in the main thread, as in some notebooks: then signals are the host's business
        before = {}
    try:
        yield asked
    finally:
        for number, old in before.items():
            signal.signal(number, old)

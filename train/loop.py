"""The only loop: start or resume, step, log, evaluate, save, stop."""

import math
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from model import random
from objectives import types
from train import carry, checkpoint, evaluate, flops, sharding
from train import step as training
from train.log import Log
from train.stage import Stage
from train.state import TrainState


class Stopped(Exception):
    """Training ended before its last step, for a reason that the user should read; the state was saved or is older."""


def fit(stage: Stage, workdir: Path, *, fork: Path | None = None) -> TrainState:
    """Trains a stage in `workdir / stage.name`, from its newest checkpoint where there is one.

    Leaves there `checkpoints/` and, where `stage.best` is set, `best/` (the best on dev), `metrics.jsonl` and
    TensorBoard events. Resuming on the same mesh gives the parameters of an unbroken run, bit for bit.

    Args:
      stage: what to train.
      workdir: of the whole recipe.
      fork: another workdir, whose newest checkpoint of this stage a new run starts from, whatever differs but shapes.

    Raises:
      ValueError: the workdir holds another experiment (the message names the differences), or what is carried does
        not fit.
      Stopped: the loss was not finite, or the process was asked to end (SIGTERM, SIGINT).
    """
    folder = workdir / stage.name
    store = checkpoint.Store(folder / "checkpoints", stage.keep)
    best = checkpoint.Store(folder / "best", 1) if stage.best else None
    log = Log(folder, stage, _flops(stage))
    try:
        with _ask_to_stop() as asked:
            state, start, waited = _begin(stage, workdir, store, fork, log)
            judge = Judge(stage, best, log, waited)
            if start >= stage.steps or judge.patience_is_over():
                log.say(f"{stage.name} is done: {start} of {stage.steps} steps")
                return state
            return _run(stage, state, start, store, judge, log, asked)
    finally:
        store.close()
        if best:
            best.close()
        log.close()


def fresh(stage: Stage) -> Callable[[jax.Array], TrainState]:
    """key -> the state before the first step."""

    def make(key: jax.Array) -> TrainState:
        params = training.init(key, backbone=stage.backbone, objective=stage.objective)
        learned, _ = training.tree.split(params, stage.learned)
        return TrainState(jnp.int32(0), params, stage.optimizer.init(learned))

    return make


def compiled_step(stage: Stage, state: Any, batch: Any) -> Any:
    """The step, compiled once for these shapes and shardings. A batch of another shape is an error, not a recompile."""
    one = partial(
        training.step, backbone=stage.backbone, objective=stage.objective, optimizer=stage.optimizer,
        learned=stage.learned, view=stage.view, microbatches=stage.microbatches,
        constrain=sharding.constrainer(stage.mesh),
    )  # fmt: skip
    placed = jax.tree.map(lambda x: x.sharding, state)
    everywhere = jax.NamedSharding(stage.mesh, jax.P())
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding.rows(stage.mesh)), batch)
    jitted = jax.jit(one, donate_argnums=0, out_shardings=(placed, everywhere))
    return jitted.lower(state, shapes, random.key(stage.seed)).compile()


def _begin(stage: Stage, workdir: Path, store: checkpoint.Store, fork: Path | None, log: Log) -> tuple:
    """(state, its step, evaluations without a new best): resumed, forked, carried or fresh."""
    key = random.generator(stage.seed)
    shapes = jax.eval_shape(fresh(stage), key)
    axes = training.axes(stage.backbone, stage.objective)
    placed = sharding.state_shardings(shapes, axes, stage.mesh)
    like = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, placed)
    waited = 0
    latest = store.latest()
    if latest is not None:
        origin = store.provenance(latest)
        _check_same(stage, origin, workdir)
        state, waited = store.restore(latest, like), origin["waited"]
        log.say(f"resumed {stage.name} at step {latest}")
    elif fork is not None and checkpoint.steps_in(fork / stage.name / "checkpoints"):
        other = checkpoint.Store(fork / stage.name / "checkpoints", None)
        latest = checkpoint.steps_in(other.folder)[-1]
        state = other.restore(latest, like)
        other.close()
        log.say(f"forked {stage.name} from {fork} at step {latest}")
    else:
        state = jax.jit(fresh(stage), out_shardings=placed)(key)
        if stage.carry:
            state = _carried(stage, state, placed, log)
    return state, int(state.step), waited


def _batch_shapes(stage: Stage) -> dict[str, jax.ShapeDtypeStruct]:
    from train.data.loader import Loader

    row = Loader(stage.rows, 1, stage.seed).read(0)
    return {k: jax.ShapeDtypeStruct((stage.batch, *x.shape[1:]), x.dtype) for k, x in row.items()}


def _carried(stage: Stage, state: TrainState, placed: TrainState, log: Log) -> TrainState:
    assert stage.carry is not None
    restored, origin, step = checkpoint.read_params(stage.carry.folder)
    if origin["tokenizer"] != stage.vocab.fingerprint:
        raise ValueError(
            f"{stage.carry.folder} was trained with another tokenizer (fingerprint {origin['tokenizer'][:12]}) than "
            f"this stage's ({stage.vocab.fingerprint[:12]}): its embeddings mean other pieces. Use the tokenizer.model "
            f"of that checkpoint's workdir, or pretrain again"
        )
    # on the host: a carry touches every leaf once, and must not compile a program for each
    params, report = carry.carry(restored, state.params, stage.carry.rules, stage.carry.resize)
    params = jax.device_put(params, placed.params)
    log.say(f"carried from {stage.carry.folder} at step {step}:\n{carry.summary(report)}")
    return state._replace(params=params)


def _check_same(stage: Stage, saved: dict, workdir: Path) -> None:
    was, now = (dict(_flat(x)) for x in (saved["identity"], _jsonable(stage.identity)))
    differing = [f"{k}: was {was.get(k, 'absent')}, is {now.get(k, 'absent')}"
                 for k in sorted(was.keys() | now.keys()) if was.get(k) != now.get(k)]  # fmt: skip
    if differing:
        raise ValueError(
            f"{workdir / stage.name} holds another experiment:\n  " + "\n  ".join(differing)
            + "\nTake another --workdir, or start one from it with --fork=" + str(workdir)
        )  # fmt: skip


def _flat(x: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(x, dict) and x:
        for k, v in x.items():
            yield from _flat(v, f"{prefix}.{k}" if prefix else str(k))
    else:
        yield prefix, x


def _jsonable(x: Any) -> Any:
    import json

    return json.loads(json.dumps(x))


def _flops(stage: Stage) -> int:
    shapes = _batch_shapes(stage)
    params = jax.eval_shape(fresh(stage), random.generator(0)).params
    return flops.of_loss(stage.backbone, stage.objective, params, shapes, stage.view)


def _run(
    stage: Stage, state: TrainState, start: int, store: checkpoint.Store, judge: "Judge", log: Log, asked: "_Asked"
) -> TrainState:
    from train.data.loader import Loader, prefetch

    loader = Loader(stage.rows, stage.batch, stage.seed)
    key = random.key(stage.seed)
    run_step = compiled_step(stage, state, _batch_shapes(stage))
    pending: list[tuple[int, Any]] = []  # (step, Sums on the device) not looked at yet

    def settle() -> None:
        """Waits for the steps so far and logs them; the only place where the loop reads from the device."""
        reports = jax.device_get([jax.tree.map(jnp.asarray, types.report(sums)) for _, sums in pending])
        for (n, _), report in zip(pending, reports, strict=True):
            if not math.isfinite(report["loss"]):
                rows = loader.index(n)
                ids = np.asarray(stage.rows["example"][rows]).tolist()
                raise Stopped(
                    f"the loss of step {n + 1} is {report['loss']}; the last good checkpoint is of step "
                    f"{store.latest() or 'none'} in {store.folder}. Rows of the batch: {rows.tolist()}, their examples "
                    f"(source, index): {ids}"
                )
        if pending:
            log.steps([n + 1 for n, _ in pending], reports, stage.schedule)
        pending.clear()

    def save(step: int) -> None:
        settle()
        store.save(state, step, provenance(stage) | {"waited": judge.waited})

    step = start
    log.begin(start)
    for n, batch in prefetch(loader, start, stage.steps, sharding.rows(stage.mesh)):
        state, sums = run_step(state, batch, key)
        pending.append((n, sums))
        step = n + 1
        if step % stage.log_every == 0 or step == start + 1:
            settle()
        if stage.evals and stage.eval_every and step % stage.eval_every == 0 and step < stage.steps:
            settle()
            if not judge.look(state, step):
                break
        if step % stage.save_every == 0:
            save(step)
        if asked.stop:
            save(step)
            raise Stopped(f"asked to stop: saved step {step} in {store.folder}; the same command goes on from there")
    save(step)
    if stage.evals and not judge.patience_is_over():
        judge.look(state, step)
    return state


def provenance(stage: Stage) -> dict:
    """What every checkpoint of a stage says of itself."""
    return stage.provenance | {"identity": stage.identity}


class Judge:
    """Evaluates, keeps the best checkpoint, and says when to stop waiting for a better."""

    def __init__(self, stage: Stage, best: checkpoint.Store | None, log: Log, waited: int):
        self.stage, self.store, self.log, self.waited = stage, best, log, waited
        self.run = jax.jit(evaluate.evaluator(stage.backbone, stage.objective, stage.view))
        latest = best.latest() if best else None
        self.top = best.provenance(latest)["score"] if best and latest is not None else -math.inf

    def patience_is_over(self) -> bool:
        return self.stage.patience is not None and self.waited >= self.stage.patience

    def look(self, state: TrainState, step: int) -> bool:
        """Whether training should go on."""
        from train.data.loader import evaluation_batches

        stage = self.stage
        metrics: dict[str, float] = {}
        for name, rows in stage.evals.items():
            batches = evaluation_batches(rows, stage.batch, sharding.rows(stage.mesh))
            found = evaluate.evaluate(self.run, state.params, batches, stage.objective.scores)
            metrics |= {f"{name}/{k}": v for k, v in found.items()}
        self.log.evaluation(step, metrics)
        if self.store is None:
            return True
        wanted = stage.best or ""
        name = wanted.lstrip("-")
        if name not in metrics:
            raise ValueError(f"best={wanted!r} is no metric of {stage.name}; they are {', '.join(metrics)}")
        score = -metrics[name] if wanted.startswith("-") else metrics[name]
        if score > self.top:
            self.top, self.waited = score, 0
            self.store.save(state, step, provenance(stage) | {"score": score, "metrics": metrics})
            return True
        self.waited += 1
        if self.patience_is_over():
            self.log.say(f"stopped early at step {step}: {name} has not improved for {self.waited} evaluations")
        return not self.patience_is_over()


class _Asked:
    stop = False


@contextmanager
def _ask_to_stop() -> Iterator[_Asked]:
    """SIGTERM and SIGINT end the run after the step under way; a second one ends it at once."""
    asked = _Asked()
    before: dict[Any, Any] = {}

    def handler(number, frame):
        asked.stop = True
        signal.signal(number, before[number])

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

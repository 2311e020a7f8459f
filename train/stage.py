"""A stage, whole: what `train.loop.fit` runs, and nothing that must be looked up elsewhere."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optax
from jax.sharding import Mesh

from model.types import Backbone
from objectives.types import Objective, Vocab
from train import step as training
from train.carry import KEEP_BACKBONE
from train.data.table import Arrays, Table


@dataclass(frozen=True)
class Carry:
    """Where the parameters come from: a stage's folder, and the rules of `train.carry.carry`."""

    folder: Path
    rules: Sequence[tuple[str, str | None]] = KEEP_BACKBONE
    resize: Sequence[str] = ()


@dataclass(frozen=True)
class Stage:
    """One training run. `train.build.stage` makes it from a config; a notebook may make it by hand.

    rows:        the training data, a table or arrays [N, ...] in the batch's format; batch n is a function of (rows,
                 seed, n)
    batch:       rows of `rows` that a step takes
    layout:      how they lie in a batch: "padded" (as they are), "bucketed" or "packed", see `train.data.layout`
    evals:       data sets by name, each evaluated every `eval_every` steps (0: at the end alone)
    learned:     for each leaf of params a bool, or one a layer (see `train.tree.split`)
    schedule:    step -> learning rate, the one inside `optimizer`; logged
    best:        metric that picks the checkpoint under `best/`, as "dev/accuracy", or "-dev/loss" to minimise
    patience:    evaluations without a new best after which training stops; None for never
    identity:    what may not change when a run is resumed
    provenance:  what the checkpoint says of its origin, JSON
    """

    name: str
    backbone: Backbone
    objective: Objective
    vocab: Vocab
    rows: Table | Arrays
    batch: int
    steps: int
    optimizer: optax.GradientTransformation
    schedule: Callable
    learned: Any
    mesh: Mesh
    seed: int = 0
    microbatches: int = 1
    layout: str = "padded"
    view: Callable[[Any], Any] = training.identity
    carry: Carry | None = None
    evals: dict[str, Table | Arrays] = field(default_factory=dict)
    eval_every: int = 0
    log_every: int = 10
    save_every: int = 500
    keep: int = 2
    best: str | None = None
    patience: int | None = None
    identity: dict = field(default_factory=dict)
    provenance: dict = field(default_factory=dict)

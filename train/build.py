"""From a config to a Stage: the one place where names become objects, every key checked against what takes it."""

import dataclasses
import difflib
import hashlib
import importlib
import importlib.metadata
import inspect
import io
import json
import math
import os
import re
import textwrap
import tokenize
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from model import random
from model.backbone import backbone
from model.config import BackboneConfig, sized
from model.types import Backbone
from objectives.mixture import mix
from objectives.types import Objective, Vocab
from train import checkpoint, checks, evaluate, sharding, tree
from train import step as training
from train.data.layout import LAYOUTS, layout
from train.data.table import table
from train.stage import Carry, Stage

# what an objective's key in the params, in a row and among the metrics cannot be
_TAKEN = {
    "backbone", "loss", "tokens", "segments", "positions", "types", "example", "labels", "group", "tags", "answers",
    "reach",
}  # fmt: skip
_SPECIAL = ("pad", "unk", "cls", "sep", "mask")
_LOOKED_AT = 256  # rows of a table that are checked for what they hold


@dataclass(frozen=True)
class Spec:
    """The keys of a stage in a config. Those that name a `factory` ("module:function", or a function itself, as a
    notebook has it) hold its arguments beside it.

    backbone:    `size` (see `model.config`) or `checkpoint` (a stage's folder, to be like it), and changes to it;
                 merged over the config's own `backbone`. V is the tokenizer's, or given, for more embeddings than ids
    objective:   a factory of `objectives/`; or `mixture`, several of these by name, each with its `weight`, and
                 `alternate` (see `objectives.mixture`); or `checkpoint` (a stage's folder) and changes to its
    data:        a factory of `train.data.rows`, with its `source`; or `prepared`, a folder of `train.data.prepare`; or
                 `mixture`, several of these by name, each with its `weight`
    optimizer:   a factory of `train.optimizer`
    schedule:    a factory of `train.schedule`
    batch:       rows of data a step, over the whole mesh
    layout:      of finetuning examples in a batch: "padded", "bucketed" or "packed"
    steps, epochs:  one of them, the other absent or 0
    mesh:        "data=2,fsdp=4,tensor=1"; -1 for what is left
    carry:       `stage` (of this workdir) or `checkpoint` (a stage's folder), with `rules` and `resize`; `best` to take
                 the best on dev rather than the last
    learned:     rules [(pattern of paths, False or one bool a layer)]; what no rule names is learned
    view:        import path of a function of the params tree, applied before it is used
    evals:       data by name, each as `data`
    the rest:    see `train.stage.Stage`
    """

    objective: dict
    data: dict
    optimizer: dict
    schedule: dict
    batch: int
    backbone: dict = field(default_factory=dict)
    steps: int | None = None
    epochs: float | None = None
    seed: int = 0
    mesh: str = "data=-1"
    microbatches: int = 1
    layout: str = "padded"
    carry: dict | None = None
    learned: tuple = ()
    view: str | Callable | None = None
    evals: dict = field(default_factory=dict)
    eval_every: int = 0
    log_every: int = 10
    save_every: int = 500
    keep: int = 2
    best: str | None = None
    patience: int | None = None


# what may not change under a workdir; the rest (steps, evaluations, logging, mesh, microbatches, layout) may
_IDENTITY = ("objective", "data", "optimizer", "schedule", "batch", "seed", "carry", "learned", "view")
_LEAST = dict(
    steps=0, epochs=0, batch=1, microbatches=1, keep=1, log_every=1, save_every=1, eval_every=0, patience=1, seed=0
)
_RUNTIME = ("scan", "remat")  # of the backbone: how, not what


def plain(config: Any) -> Any:
    """A config as plain dicts, tuples and values."""
    if isinstance(config, Mapping) or hasattr(config, "items"):
        return {k: plain(v) for k, v in config.items()}
    if isinstance(config, list | tuple):
        return tuple(plain(v) for v in config)
    return config.item() if isinstance(config, np.generic) else config


def stages(config: dict) -> tuple[str, ...]:
    """The names of a config's stages, in order. Raises ValueError for a config without, or with a stray key."""
    if not config.get("stages"):
        raise ValueError('the config names no stages: set config.stages = ("pretrain", ...) and a section for each')
    names = tuple(config["stages"])
    if left := [k for k, v in config.items() if isinstance(v, dict) and "objective" in v and k not in names]:
        raise ValueError(
            f"the config has a section {left[0]!r} that is not among its stages={names}: add it, or drop it"
        )
    _check_keys("the config", config, {"stages", "tokenizer", "backbone", *names}, {"tokenizer", *names})
    return names


def spec(config: dict, name: str) -> Spec:
    """A stage's section, checked."""
    if name not in stages(config):
        raise ValueError(f"the config has no stage {name!r}; its stages are {', '.join(config['stages'])}")
    section = dict(config[name])
    required = {f.name for f in dataclasses.fields(Spec) if _required(f)}
    _check_keys(name, section, {f.name for f in dataclasses.fields(Spec)}, required)
    _check_types(Spec, section, name)
    section["backbone"] = config.get("backbone", {}) | section.get("backbone", {})
    section["objective"] = _published(section["objective"])
    lasts = [k for k in ("steps", "epochs") if section.get(k) is not None]
    if len(lasts) == 2:  # a command line, which takes no key away, unsets one by 0
        section |= {k: section[k] or None for k in lasts}
    made = Spec(**section)
    if (made.steps is None) == (made.epochs is None):
        found = ", ".join(f"{k}={config[name].get(k)}" for k in ("steps", "epochs"))
        raise ValueError(f"{name} needs either steps or epochs, and the other 0 or absent; found {found}")
    for key, least in _LEAST.items():
        if (value := getattr(made, key)) is not None and value < least:
            raise ValueError(f"{name}.{key}={value} must be at least {least}")
    return made


def _published(objective: dict) -> dict:
    """An objective's section; with a `checkpoint`, that of the stage that wrote it, and the other keys in its place."""
    if "checkpoint" not in objective:
        return objective
    keys = dict(objective)
    origin = checkpoint.read_provenance(Path(keys.pop("checkpoint")) / "checkpoints")
    return _published(plain(origin["config"][origin["stage"]]["objective"])) | keys


def _required(f: dataclasses.Field) -> bool:
    return f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING


def _check_keys(where: str, found: dict, known: set[str], required: set[str]) -> None:
    for key in sorted(found.keys() - known):
        near = difflib.get_close_matches(key, known, 1)
        hint = f"did you mean {near[0]!r}?" if near else f"it knows {', '.join(sorted(known))}"
        raise ValueError(f"{where} has no key {key!r}; {hint}")
    if missing := sorted(required - found.keys()):
        raise ValueError(f"{where} lacks {', '.join(missing)}")


def load(factory: str | Callable) -> Callable:
    """The object at "module:name"; a function is that object itself."""
    if not isinstance(factory, str):
        if not hasattr(factory, "__qualname__"):  # such as a partial, which no checkpoint could tell from another
            raise ValueError(
                f"the factory {factory!r} is neither a function nor its import path: give the function, and its "
                f"hyperparameters as keys beside it"
            )
        return factory
    module, _, name = factory.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        if module == "__main__":
            raise ValueError(
                f"{name} is a function of the script or notebook that trained by it, and is not here: move it to a "
                f'module, name it factory="MODULE:{name}" there, and train on for a step'
            ) from None
        raise ValueError(f'no such factory as {factory!r} ({error}); write "module:function"') from error


def path_of(function: Callable) -> str:
    return f"{function.__module__}:{function.__qualname__}"


def version_of(function: Callable) -> str:
    """Its path; of a function that is none of ours its name with a hash of its source, comments aside, so that one that
    is edited is another, and one that has moved to a module is not. The path too where no source is kept.
    """
    if function.__module__.partition(".")[0] in _OURS:
        return path_of(function)
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        return path_of(function)
    kept = (t.string for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type not in _SILENT)
    return f"{function.__qualname__} (source {hashlib.blake2b(' '.join(kept).encode(), digest_size=4).hexdigest()})"


_OURS = ("model", "objectives", "train")
_SILENT = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT)


def loaded(config: Any) -> Any:
    """A plain config with functions in the place of the import paths of factories that are none of ours."""
    if isinstance(config, tuple):
        return tuple(map(loaded, config))
    if not isinstance(config, dict):
        return config
    found = {k: loaded(v) for k, v in config.items()}
    factory = found.get("factory")
    if isinstance(factory, str) and factory.partition(":")[0].partition(".")[0] not in _OURS:
        found["factory"] = load(factory)
    return found


def named(config: Any, name: Callable[[Callable], str] = path_of) -> Any:
    """A plain config with a name in the place of each function, so that it is JSON."""
    if isinstance(config, dict):
        return {k: named(v, name) for k, v in config.items()}
    if isinstance(config, tuple):
        return tuple(named(v, name) for v in config)
    return name(config) if callable(config) else config


def bind(section: dict, where: str, *given: str) -> tuple[Callable, dict]:
    """(factory, its keyword arguments) of a section; `given` are the parameters that the caller passes.

    Raises ValueError for a key that the factory does not take, naming the nearest, and for one that it lacks; so too
    in nested sections.
    """
    if "factory" not in section:
        raise ValueError(f'{where} needs a factory, as in factory="objectives.mlm:mlm"')
    factory = load(section["factory"])
    parameters = inspect.signature(factory).parameters.values()
    if lacking := [g for g in given if g not in {p.name for p in parameters} and not any(map(_takes_all, parameters))]:
        raise ValueError(
            f"{where}: {named(section['factory'])} is called with {' and '.join(given)}, by these names, and takes no "
            f"{lacking[0]}: its parameters are {', '.join(p.name for p in parameters)}"
        )
    keys = {k: v for k, v in section.items() if k != "factory"}
    known = {p.name for p in parameters} - set(given) | (set(keys) if any(map(_takes_all, parameters)) else set())
    single = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    required = {p.name for p in single if p.default is p.empty} - set(given)
    _check_keys(f"{where} ({named(section['factory'])})", keys, known, required)
    _check_types(factory, keys, where)
    for k, v in keys.items():
        if isinstance(v, dict) and "factory" in v:
            bind(v, f"{where}.{k}")
    return factory, keys


def _takes_all(parameter: inspect.Parameter) -> bool:
    return parameter.kind is parameter.VAR_KEYWORD


def _check_types(factory: Callable, keys: dict, where: str) -> None:
    """Raises ValueError for a key whose value is not of the type that the factory is annotated with."""
    from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

    def fits(value: Any, kind: Any) -> bool:
        try:
            check_type(value, kind, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError:
            return False
        return True

    parameters = inspect.signature(factory).parameters
    for key, value in keys.items():
        parameter = parameters.get(key)
        if parameter is None or isinstance(value, dict):  # nested sections are what they make
            continue
        kind = parameter.annotation
        # an annotation may be text that means something to its author alone; a default is right in any case
        if kind is parameter.empty or isinstance(kind, str) or value is parameter.default:
            continue
        if not fits(value, kind) and not fits(_lists(value), kind):  # a config's lists are tuples here
            said = inspect.formatannotation(kind).replace("collections.abc.", "")
            raise ValueError(f"{where}.{key}={value!r}: {path_of(factory)} takes {said}")


def _lists(value: Any) -> Any:
    return list(map(_lists, value)) if isinstance(value, tuple) else value


def call(section: dict, where: str, **given: Any) -> Any:
    """Calls a section's `factory` with `given` and the section's other keys, nested factories made first."""
    factory, keys = bind(section, where, *given)
    made = {k: call(v, f"{where}.{k}") if isinstance(v, dict) and "factory" in v else v for k, v in keys.items()}
    return factory(**given, **made)


def check_keys(config: dict, made: Spec, name: str) -> None:
    """Every key of a stage against what takes it, before any text is read."""
    bind(config["tokenizer"], "tokenizer")
    for where, _, section in _objectives(made.objective, f"{name}.objective"):
        bind(section, where, "backbone", "vocab")
    bind(made.optimizer, f"{name}.optimizer", "axes", "schedule")
    bind(made.schedule, f"{name}.schedule", "steps")
    for where, section in {"data": made.data, **{f"evals.{k}": v for k, v in made.evals.items()}}.items():
        _check_data(section, f"{name}.{where}")
        for at, _, objective in _objectives(made.objective, f"{name}.objective"):
            _check_classes(objective.get("classes"), at, section, f"{name}.{where}")


def _check_classes(classes: Any, at: str, section: dict, where: str) -> None:
    """The classes of an objective, their number or their names, against those of its data."""
    for part, data in section["mixture"].items() if "mixture" in section else ():
        _check_classes(classes, at, data, f"{where}.mixture.{part}")
    theirs = section.get("classes")
    if not isinstance(theirs, tuple) or classes is None:
        return
    alike = classes == theirs if isinstance(classes, tuple) else classes == len(theirs)
    if not alike:
        raise ValueError(
            f"{at} has classes={classes}, and {where} has {len(theirs)}: {', '.join(map(str, theirs))}. Labels are "
            "their places, so that both need the same, in one order"
        )


def _check_data(section: dict, where: str) -> None:
    if "mixture" in section:
        _check_keys(where, section, {"mixture"}, set())
        for name, part in _weighted(section["mixture"], where):
            if "mixture" in part:
                raise ValueError(f"{where}.mixture.{name} is a mixture itself: give all its parts in the outer one")
            _check_data({k: v for k, v in part.items() if k != "weight"}, f"{where}.mixture.{name}")
    elif "prepared" in section:
        _check_keys(where, section, {"prepared"}, set())
    elif "source" not in section:
        raise ValueError(f"{where} lacks a source, or the folder of prepared rows, or a mixture of such")
    else:
        bind({k: v for k, v in section.items() if k != "source"}, where, "source", "tokenizer")
        bind(section["source"], f"{where}.source")


def model(made: Spec, name: str, vocab: Vocab, mesh=None) -> tuple[Backbone, Objective]:
    """The backbone and the objective of a stage."""
    keys = dict(made.backbone)
    known = {f.name for f in dataclasses.fields(BackboneConfig)}
    if "checkpoint" in keys:
        _check_keys(f"{name}.backbone", keys, known | {"checkpoint"}, set())
        origin = checkpoint.read_provenance(Path(keys.pop("checkpoint")) / "checkpoints")
        _check_types(BackboneConfig, keys, f"{name}.backbone")
        config = BackboneConfig(**{k: _tuple(v) for k, v in (origin["backbone"] | keys).items()})
    else:
        _check_keys(f"{name}.backbone", keys, known | {"size"}, {"size"})
        _check_types(BackboneConfig, keys, f"{name}.backbone")
        config = sized(keys.pop("size"), **{"V": vocab.size} | keys)
    if vocab.size > config.V:
        raise ValueError(f"{name}.backbone has V={config.V} embeddings, and the tokenizer has {vocab.size} ids")
    bb = backbone(config, sharding.constrainer(mesh))
    parts = [
        (weight, call(section, where, backbone=bb, vocab=vocab))
        for where, weight, section in _objectives(made.objective, f"{name}.objective")
    ]
    for _, part in parts:
        if part.name in _TAKEN or not re.fullmatch(r"[^\s/]+", part.name):
            raise ValueError(
                f"{name}.objective: the name {part.name!r} is that of something else in a batch, in params or the log, "
                "or has a blank or a slash in it; take another"
            )
        checks.axes(part)
    if "mixture" not in made.objective:
        return bb, parts[0][1]
    how = {k: v for k, v in made.objective.items() if k != "mixture"}
    _check_types(mix, how, f"{name}.objective")
    return bb, mix(*parts, backbone=bb, **how)


def _objectives(section: dict, where: str) -> Iterator[tuple[str, float, dict]]:
    """Yields (where, weight, section) of each objective of a stage."""
    if "mixture" not in section:
        yield where, 1.0, section
        return
    _check_keys(where, section, {"mixture", "alternate"}, set())
    for name, part in _weighted(section["mixture"], where):
        if part.get("name", name) != name:
            raise ValueError(f"{where}.mixture.{name} has name={part['name']!r}: a part is called as its key is")
        yield (
            f"{where}.mixture.{name}",
            part["weight"],
            {k: v for k, v in part.items() if k != "weight"} | {"name": name},
        )


def _weighted(mixture: Any, where: str) -> Iterator[tuple[str, dict]]:
    """The parts of a mixture by name, each a section with a weight above 0."""
    if not isinstance(mixture, dict) or not all(isinstance(part, dict) for part in mixture.values()):
        raise ValueError(f"{where}.mixture={mixture!r}: expected sections by name, each with its weight")
    for name, part in mixture.items():
        if "weight" not in part:
            raise ValueError(f"{where}.mixture.{name} lacks a weight")
        weight = part["weight"]
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < math.inf:
            raise ValueError(
                f"{where}.mixture.{name} has weight={weight!r}: expected a number above 0; leave out what is not wanted"
            )
    yield from mixture.items()


def _tuple(x: Any) -> Any:
    return tuple(x) if isinstance(x, list) else x


def tokenizer(config: dict, workdir: Path) -> Any:
    """The config's tokenizer, kept in the workdir: trained or loaded there once, and found there ever after."""
    from train.data import tokenizer as tokenizers

    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"the workdir {workdir} is a file: take a folder, or one that is yet to be made")
    if (kept := tokenizers.find(workdir)) is not None:
        return tokenizers.load(kept)
    made = call(config["tokenizer"], "tokenizer")
    tokenizers.save(made, workdir)
    return made


def to_prepare(section: dict, where: str) -> Iterator[tuple[str, dict]]:
    """Yields (where, section) of what a `data` section has to have prepared: a mixture's parts, not the mixture."""
    if "mixture" in section:
        for name, part in section["mixture"].items():
            yield from to_prepare({k: v for k, v in part.items() if k != "weight"}, f"{where}.mixture.{name}")
    elif "prepared" not in section:
        yield where, section


def rows(section: dict, where: str, tok: Any, workdir: Path, **how: Any) -> Any:
    """The table of a `data` section, prepared in the workdir under a hash of all that it is made from.

    `how` goes to `train.data.prepare.prepare`: this machine's share. Raises ValueError for rows that were
    prepared with another tokenizer, and for all that `prepare` refuses.
    """
    from train.data.files import expand
    from train.data.prepare import prepare
    from train.data.shards import key_of, name_of
    from train.data.table import Mixture, Shards

    if "mixture" in section:
        parts = section["mixture"].items()
        made = [
            rows({k: v for k, v in p.items() if k != "weight"}, f"{where}.mixture.{n}", tok, workdir) for n, p in parts
        ]
        return Mixture(made, [part["weight"] for _, part in parts])
    if "prepared" in section:
        found = Shards(Path(expand(section["prepared"])))
        if (other := found.manifest["key"]["tokenizer"]) != tok.vocab.fingerprint:
            raise ValueError(
                f"{found.folder} was prepared with another tokenizer (fingerprint {other[:12]}) than this run's "
                f"({tok.vocab.fingerprint[:12]}): its ids mean other pieces. Prepare again, or load that tokenizer"
            )
        return found
    source = call(section["source"], f"{where}.source")
    # not where the source lies: its fingerprint tells what it holds
    section = {k: v for k, v in section.items() if k != "source"}
    facts = {"section": named(section, version_of), "source": source.fingerprint, "tokenizer": tok.vocab.fingerprint}
    factory, keys = bind(section, where, "source", "tokenizer")
    folder = workdir / "data" / name_of(key_of(facts))
    return prepare(folder, source, tok, partial(factory, **keys), facts, title=f"preparing {where}", **how)


def stage(config: dict, name: str, workdir: Path) -> Stage:
    """A stage, ready to run on this machine's devices.

    Raises ValueError for anything in the config that cannot be: an unknown key, a head count that does not divide, a
    mesh that does not match the devices, a file that is not there.
    """
    made = spec(config, name)
    mesh = sharding.make_mesh(sharding.parse(made.mesh))
    check_offline(made, name, dict(mesh.shape))
    check_keys(config, made, name)
    tok = tokenizer(config, workdir)
    bb, objective = model(made, name, tok.vocab, mesh)
    if made.view:
        checks.apart(objective, f"{name}.view={named(made.view)}")
    data = rows(made.data, f"{name}.data", tok, workdir)
    steps = made.steps or math.ceil((made.epochs or 0) * len(data) / made.batch)
    schedule, optimizer, learned = optimization(made, name, bb, objective, steps)
    evals = {k: rows(v, f"{name}.evals.{k}", tok, workdir) for k, v in made.evals.items()}
    classes = [section.get("classes") for _, _, section in _objectives(made.objective, name)]
    traced: dict[tuple, tuple[str, ...]] = {}  # what rows like these report
    metrics: list[str] = []
    for where, held in {"data": data, **{f"evals.{k}": v for k, v in evals.items()}}.items():
        some = table(held).read(np.unique(np.linspace(0, len(held) - 1, _LOOKED_AT).astype(np.int64)))
        checks.needs(objective, some, f"{name}.{where}", scored=where != "data")
        checks.length(bb, table(held), f"{name}.{where}")
        checks.contents(bb, objective, some, f"{name}.{where}", classes, scored=where != "data")
        parts = sharding.row_parts(dict(mesh.shape)) * (made.microbatches if where == "data" else 1)
        how = layout(made.layout, table(held), made.batch, parts)
        for batch in checks.batches(how, made.batch, some):
            looks = tuple((k, x.shape, x.dtype.name) for k, x in sorted(batch.items()))
            if looks not in traced:
                traced[looks] = checks.trace(shapes(bb, objective), batch, f"{name}.{where}", bb, objective)
        names = (*traced[looks], *evaluate.scores(objective))
        metrics += [f"{where.removeprefix('evals.')}/{metric}" for metric in names] * (where != "data")
    if made.best is not None:
        checks.best(made.best, metrics, name)
    source_of = {"data": data.fingerprint, "tokenizer": tok.vocab.fingerprint}
    identity = identity_of(made) | {"sources": source_of, "tokenizer": named(loaded(config["tokenizer"]), version_of)}
    return Stage(
        name=name, backbone=bb, objective=objective, vocab=tok.vocab, rows=data, batch=made.batch, steps=steps,
        optimizer=optimizer, schedule=schedule, learned=learned, mesh=mesh, seed=made.seed,
        microbatches=made.microbatches, layout=made.layout, view=load(made.view) if made.view else training.identity,
        carry=_carry(made, name, workdir), evals=evals, eval_every=made.eval_every, log_every=made.log_every,
        save_every=made.save_every, keep=made.keep, best=made.best, patience=made.patience, identity=identity,
        provenance=origin(config | {name: {**config[name], "objective": made.objective}}, name, bb.config, tok.vocab),
    )  # fmt: skip


def check_ahead(config: dict, names: tuple[str, ...]) -> None:
    """What is wrong with any of these stages as their keys alone tell, before the first is trained."""
    for name in names:
        if "checkpoint" in config[name].get("objective", {}):  # perhaps of a stage that is yet to be trained
            continue
        made = spec(config, name)
        check_offline(made, name, dict(sharding.make_mesh(sharding.parse(made.mesh)).shape))
        check_keys(config, made, name)


def check_offline(made: Spec, name: str, mesh_shape: dict[str, int]) -> None:
    """What is wrong with numbers alone, before any data is read."""
    if made.layout not in LAYOUTS:
        raise ValueError(f"{name}.layout={made.layout!r} must be one of {', '.join(LAYOUTS)}")
    if made.layout != "packed":  # which makes as many rows as divide
        try:
            sharding.check_rows(made.batch, made.microbatches, mesh_shape)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    if made.best is not None and made.best.lstrip("-").split("/")[0] not in made.evals:
        raise ValueError(
            f"{name}.best={made.best!r} must be a metric of one of its evals ({', '.join(made.evals) or 'none'}), as "
            f"in "
            f'"dev/accuracy", or "-dev/loss" for the least'
        )
    if made.patience is not None and made.best is None:
        raise ValueError(f"{name}.patience={made.patience} waits for a better {name}.best, which is not set")


def optimization(made: Spec, name: str, bb: Backbone, objective: Objective, steps: int) -> tuple:
    """(schedule, optimizer, learned): the optimizer over the learned leaves alone."""
    schedule = call(made.schedule, f"{name}.schedule", steps=steps)
    rules = [*((pattern, False) for pattern in objective.frozen), *map(tuple, made.learned)]
    learned = tree.resolve(rules, shapes(bb, objective), True)
    axes, _ = tree.split_axes(training.axes(bb, objective), learned)
    return schedule, call(made.optimizer, f"{name}.optimizer", axes=axes, schedule=schedule), learned


def shapes(bb: Backbone, objective: Objective) -> Any:
    """The shapes of a params tree, without making it."""
    key = jax.eval_shape(random.generator, 0)
    return jax.eval_shape(lambda key: training.init(key, backbone=bb, objective=objective), key)


def _carry(made: Spec, name: str, workdir: Path) -> Carry | None:
    if made.carry is None:
        return None
    _check_keys(f"{name}.carry", made.carry, {"stage", "checkpoint", "best", "rules", "resize"}, set())
    if ("stage" in made.carry) == ("checkpoint" in made.carry):
        raise ValueError(f"{name}.carry needs either stage or checkpoint; found {made.carry}")
    folder = workdir / made.carry["stage"] if "stage" in made.carry else Path(made.carry["checkpoint"])
    options = {k: v for k, v in made.carry.items() if k in ("rules", "resize")}
    _check_types(Carry, options, f"{name}.carry")
    return Carry(folder / ("best" if made.carry.get("best") else "checkpoints"), **options)


def identity_of(made: Spec) -> dict:
    """What of a stage may not change under its workdir."""
    kept = {k: getattr(made, k) for k in _IDENTITY}
    kept |= {
        "backbone": {k: v for k, v in made.backbone.items() if k not in _RUNTIME}, "objective": read(made.objective),
    }  # fmt: skip
    return named(loaded(kept), version_of)


def read(config: Any) -> Any:
    """A plain config with a hash of its content beside the path of each file, so that an edited one is another."""
    if isinstance(config, dict):
        return {k: read(v) for k, v in config.items()}
    if isinstance(config, str) and os.path.isfile(path := os.path.expandvars(config)):
        return f"{config} (content {hashlib.blake2b(Path(path).read_bytes(), digest_size=4).hexdigest()})"
    return config


def origin(config: dict, name: str, cfg: BackboneConfig, vocab: Vocab) -> dict:
    """What a checkpoint says of itself: config, architecture, tokenizer, special ids, dtypes, versions."""
    packages = ("rootstock", "jax", "flax", "optax", "orbax-checkpoint")
    return {
        "stage": name,
        "config": named(config),
        "backbone": dataclasses.asdict(cfg),
        "tokenizer": vocab.fingerprint,
        "special": {k: int(getattr(vocab, k)) for k in _SPECIAL},
        "versions": {p: importlib.metadata.version(p) for p in packages},
    }


def example_batch(made: Spec, name: str, vocab: Vocab) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a stage's batch, from its `data` section with a word in place of its source: no file is read.

    Rows that are prepared already tell their own shapes.
    """
    from train.data.files import expand
    from train.data.source import Record
    from train.data.table import Shards

    data = made.data
    while "mixture" in data:  # alike in shape, every part of it
        data = {k: v for k, v in next(iter(data["mixture"].values())).items() if k != "weight"}
    if "prepared" in data:
        row = Shards(Path(expand(data["prepared"]))).read(np.arange(1))
        return {k: jax.ShapeDtypeStruct((made.batch, *x.shape[1:]), x.dtype) for k, x in row.items()}
    section = data.get("source", {})
    classes = data.get("classes")
    pair, more = section.get("pair") is not None, tuple("a" for _ in section.get("more", ()))
    if more:  # of a group at least two texts beside the first: a column may hold a list of them
        more += ("a",) * (2 - pair - len(more))
    number = json.dumps([0] * (pair + len(more))) if more else "0"
    label = None if section.get("label") is None else (str(classes[0]) if classes else number)
    made_by = load(data["factory"]).__name__
    if made_by == "tag_words":
        label = str(data["classes"][0])
    if made_by == "answer_windows":
        pair, label = True, '{"text": ["a"], "answer_start": [0]}'
    record = Record("a", "a" if pair else None, label, "a stand-in", more)

    class OneToken:
        separators, prefix = 1, ""

        def __init__(self):
            self.vocab = vocab

        def encode(self, texts):
            return [np.array([vocab.size - 1], np.int32) for _ in texts]

        def offsets(self, texts):
            return [np.array([[0, 1]], np.int32) for _ in texts]

    keys = {k: v for k, v in data.items() if k != "source"}
    arrays = call(keys, f"{name}.data", source=[record], tokenizer=OneToken()).arrays
    return {k: jax.ShapeDtypeStruct((made.batch, *x.shape[1:]), _device_dtype(k, x)) for k, x in arrays.items()}


def _device_dtype(name: str, x: np.ndarray) -> Any:
    return {"example": np.uint32, "labels": x.dtype}.get(name, np.int32)


def stand_in_vocab(config: dict) -> Vocab:
    """The vocabulary of the config's tokenizer, for plans; one of its size where it is yet to be trained."""
    section = config["tokenizer"]
    if "source" not in section:
        return call(section, "tokenizer").vocab
    if "size" not in section:
        raise ValueError("the config's tokenizer gives no size; a plan without data needs one")
    size = section["size"]
    return Vocab(size, 0, 1, 2, 3, 4, (0, 1, 2, 3, 4), np.ones(size, bool), "none")

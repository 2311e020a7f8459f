"""What a stage will take, before there are devices or data: every leaf's place and bytes, and the FLOPs of a step."""

import math
from typing import Any

_HELP = """Plans the stages of a config for a mesh: what lies where, bytes a device, FLOPs a step. No device, no data.

  python -m launch.plan --config=configs/demo.py
  python -m launch.plan --config=configs/demo.py --stage=pretrain --mesh=data=2,fsdp=4,tensor=2
  python -m launch.plan --config=configs/demo.py --mesh=fsdp=16 --config.pretrain.batch=1024
  python -m launch.plan --config=configs/demo.py --json | jq '.[].totals'
  python -m launch.plan --config=configs/demo.py --stage=pretrain --memory=tpu:v5e:4x4

The mesh may be larger than this machine; without --mesh it is the config's, where -1 counts as 1. A dimension that its
mesh axis does not divide stays whole, and is marked with *. Gradients are counted as lying like their parameters;
activations are the compiler's affair: --memory asks it, for a TPU topology of that many chips.
"""


def plan(config: Any, name: str, mesh: str | None = None, memory: str | None = None) -> dict[str, Any]:
    """The plan of a stage as plain values, ready for JSON.

    Args:
      config: as a config file gives it; any key of it may have been changed.
      name: of the stage.
      mesh: "data=2,fsdp=4,tensor=1", of any size; None for the config's. -1 counts as 1, or with `memory` as what the
        topology leaves.
      memory: "tpu:TOPOLOGY", as in "tpu:v5e:4x4", to compile the step for; needs libtpu.

    `leaves` of params and of the optimizer's state have path, axes (logical names), shape, dtype, spec (mesh axes by
    dimension), whole (dimensions that should be split and do not divide) and bytes a device. `totals` has parameters
    and learned parameters; bytes a device of params, optimizer, gradients and batch; flops of a step, over all
    devices, and of a token; steps (None where the config gives epochs: they depend on the data).

    Raises ValueError for a config or a mesh that cannot be, or a stage that the topology has no memory for.
    """
    import jax

    from model import random
    from train import build, flops, loop, sharding, tree
    from train import step as training

    config = build.plain(config)
    made = build.spec(config, name)
    shape = sharding.parse(made.mesh if mesh is None else mesh)
    notes = []
    concrete = None
    if memory is not None:
        concrete = sharding.make_mesh(shape, _topology(memory))
        shape = dict(concrete.shape)
    elif -1 in shape.values():
        notes.append(f"mesh {made.mesh if mesh is None else mesh}: -1 counted as 1")
        shape = {axis: 1 if n == -1 else n for axis, n in shape.items()}
    build.check_offline(made, name, shape)
    if made.layout != "padded":
        notes.append(f"layout {made.layout}: counted as padded; how much less it is, the lengths of the texts decide")
    where = sharding.abstract_mesh(shape)
    stage, batch = _offline(config, name, made, concrete)
    state = jax.eval_shape(loop.fresh(stage), random.generator(0))
    axes = training.axes(stage.backbone, stage.objective)
    leaves = _leaves(state, axes, where)
    gradient = jax.eval_shape(lambda params: tree.split(params, stage.learned)[0], state.params)
    learned_axes, _ = tree.split_axes(axes, stage.learned)
    specs = jax.tree.leaves(sharding.specs(learned_axes, gradient, where), is_leaf=_is_spec)
    rows = sharding.rows(where).spec
    count = flops.of_loss(stage.backbone, stage.objective, state.params, batch, stage.view)
    tokens = math.prod(batch["tokens"].shape)
    totals = {
        "parameters": sum(x.size for x in jax.tree.leaves(state.params)),
        "learned": sum(x.size for x in jax.tree.leaves(gradient)),
        "params_bytes": sum(leaf["bytes"] for leaf in leaves if leaf["path"].startswith("params/")),
        "optimizer_bytes": sum(leaf["bytes"] for leaf in leaves if leaf["path"].startswith("opt_state/")),
        "gradient_bytes": sum(_bytes(x, s, shape) for x, s in zip(jax.tree.leaves(gradient), specs, strict=True)),
        "batch_bytes": sum(_bytes(x, rows, shape) for x in jax.tree.leaves(batch)),
        "tokens": tokens,
        "flops": count,
        "flops_per_token": round(count / tokens),
        "steps": made.steps,
    }
    if made.steps is None:
        notes.append(f"epochs={made.epochs}: the number of steps depends on the data")
    out: dict[str, Any] = {"stage": name, "mesh": shape, "notes": notes, "leaves": leaves, "totals": totals}
    if memory is not None:
        out["memory"] = _compiled(stage, batch) | {"topology": memory}
    return out


def _offline(config: dict, name: str, made: Any, mesh: Any) -> tuple[Any, dict]:
    """(Stage without rows or devices, the shapes of its batch)."""
    from train import build, checks
    from train import step as training
    from train.stage import Stage

    build.check_keys(config, made, name)
    vocab = build.stand_in_vocab(config)
    batch = build.example_batch(made, name, vocab)
    bb, objective = build.model(made, name, vocab, mesh)
    checks.needs(objective, batch, f"{name}.data")
    # where the config gives epochs: more than any warmup asks for, since only shapes come of it
    steps = made.steps if made.steps is not None else 10**9
    schedule, optimizer, learned = build.optimization(made, name, bb, objective, steps)
    stage = Stage(
        name=name, backbone=bb, objective=objective, vocab=vocab, rows={}, batch=made.batch, steps=steps,
        optimizer=optimizer, schedule=schedule, learned=learned, mesh=mesh, seed=made.seed,
        microbatches=made.microbatches, view=build.load(made.view) if made.view else training.identity,
    )  # fmt: skip
    return stage, batch


def _leaves(state: Any, axes: Any, mesh: Any) -> list[dict[str, Any]]:
    import jax

    from train import sharding, tree

    out = []

    def add(path, x, names):
        spec = sharding.spec(names, x.shape, mesh)
        # every mesh axis divides 0: the spec of a leaf that fits
        wanted = sharding.spec(names, (0,) * x.ndim, mesh)
        entries, full = (tuple(s) + (None,) * (x.ndim - len(s)) for s in (spec, wanted))
        out.append({
            "path": tree.path_of(path), "axes": list(names), "shape": list(x.shape), "dtype": str(x.dtype),
            "spec": [list(e) if isinstance(e, tuple) else e for e in entries],
            "whole": [i for i, (e, f) in enumerate(zip(entries, full, strict=True)) if e != f],
            "bytes": _bytes(x, spec, dict(mesh.shape)),
        })  # fmt: skip

    jax.tree_util.tree_map_with_path(add, state, sharding.state_axes(state, axes))
    return out


def _is_spec(x: Any) -> bool:
    import jax

    return isinstance(x, jax.P)


def _bytes(x: Any, spec: Any, mesh: dict[str, int]) -> int:
    """Bytes of x on one device."""
    from train import sharding

    axes = [a for entry in spec if entry for a in ((entry,) if isinstance(entry, str) else entry)]
    return sharding.bytes_of(x) // math.prod(mesh[a] for a in axes)


def _topology(memory: str) -> list:
    """The devices of "tpu:v5e:4x4", described by libtpu; none of them is here."""
    import importlib.util
    import os

    from jax.experimental import topologies

    platform, _, name = memory.partition(":")
    if platform != "tpu" or not name:
        raise ValueError(f"--memory={memory}: expected tpu:TOPOLOGY, as in tpu:v5e:4x4 or tpu:v5p:2x2x2")
    if importlib.util.find_spec("libtpu") is None:
        raise ValueError('--memory needs libtpu, which is not installed: pip install -e ".[tpu]"')
    # there is no metadata server to ask, and no TPU to lock
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"--memory={memory}: libtpu knows no such topology ({str(error).splitlines()[0]})") from None


def _compiled(stage: Any, batch: dict) -> dict[str, Any]:
    """Bytes a device that the compiler says the step takes. Raises ValueError where they do not fit."""
    import jax

    from train import loop

    try:
        found = loop.lowered_step(stage, loop.shapes(stage), batch).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise ValueError(
            f"{stage.name} does not fit: {str(error).splitlines()[0]}\nTake more microbatches, backbone.remat, a "
            f"smaller batch, or a mesh with more fsdp"
        ) from None
    # the state is donated: its new value takes the old one's place
    parts = {
        "arguments": found.argument_size_in_bytes,
        "temporary": found.temp_size_in_bytes,
        "outputs": found.output_size_in_bytes - found.alias_size_in_bytes,
        "program": found.generated_code_size_in_bytes,
    }
    return parts | {"total": sum(parts.values())}


def show(plan: dict[str, Any], console: Any) -> None:
    """Prints a plan for people, on a rich console."""
    from rich.table import Table

    mesh = ", ".join(f"{axis}={n}" for axis, n in plan["mesh"].items())
    devices = math.prod(plan["mesh"].values())
    table = Table("leaf", "logical axes", "shape", "dtype", "partition", "bytes a device", highlight=False)
    table.title = f"{plan['stage']}: {mesh} ({devices} device{'s' * (devices > 1)})"
    table.columns[-1].justify = "right"
    table.columns[0].overflow = "fold"
    before = ""
    for leaf in plan["leaves"]:
        owner = leaf["path"].split("/")[0]
        if before not in ("", owner):
            table.add_section()
        before = owner
        shape = "x".join(f"{n}*" if i in leaf["whole"] else str(n) for i, n in enumerate(leaf["shape"]))
        table.add_row(
            leaf["path"], " ".join(leaf["axes"]), shape or "scalar", leaf["dtype"], _partition(leaf["spec"]),
            f"{leaf['bytes']:,}",
        )  # fmt: skip
    console.print(table, markup=False)
    if any(leaf["whole"] for leaf in plan["leaves"]):
        console.print("* stays whole: its mesh axis does not divide it")
    for line in _summary(plan, devices):
        console.print(line, highlight=False, markup=False)
    console.print()


def _partition(spec: list) -> str:
    if not any(spec):
        return "everywhere"
    return ", ".join("-" if e is None else e if isinstance(e, str) else "+".join(e) for e in spec)


def _summary(plan: dict[str, Any], devices: int) -> list[str]:
    t = plan["totals"]
    kinds = {k: t[f"{k}_bytes"] for k in ("params", "optimizer", "gradient", "batch")}
    frozen = f", {t['parameters'] - t['learned']:,} of them frozen" if t["learned"] != t["parameters"] else ""
    lines = [
        f"parameters   {t['parameters']:,}{frozen}",
        f"a device     {_size(sum(kinds.values()))}: " + ", ".join(f"{k} {_size(n)}" for k, n in kinds.items()),
        f"a step       {_short(t['flops'])}FLOP over {t['tokens']:,} tokens ({_short(t['flops_per_token'])}FLOP a token"
        f", {_short(t['flops'] / devices)}FLOP a device)",
    ]
    if t["steps"] is not None:
        lines.append(f"the run      {t['steps']:,} steps, {_short(t['steps'] * t['flops'])}FLOP")
    if "memory" in plan:
        m = plan["memory"]
        parts = ", ".join(f"{k} {_size(m[k])}" for k in ("arguments", "temporary", "outputs", "program"))
        lines.append(f"the compiler {_size(m['total'])} a device of {m['topology']}: {parts}")
    return lines + [f"note: {note}" for note in plan["notes"]]


def _size(n: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if n < 1024 or unit == "GiB":
            break
        n /= 1024
    return f"{n:,.0f} {unit}" if unit == "B" else f"{n:,.2f} {unit}"


def _short(n: float) -> str:
    for unit in ("", "k", "M", "G", "T", "P", "E", "Z", "Y"):
        if n < 1000 or unit == "Y":
            break
        n /= 1000
    return f"{n:.3g} {unit}"


def main() -> None:
    from absl import flags, logging

    from train import command

    stage = flags.DEFINE_string("stage", None, "the one stage to plan, instead of all")
    mesh = flags.DEFINE_string("mesh", None, "the mesh to plan for, as in data=2,fsdp=4,tensor=1")
    as_json = flags.DEFINE_bool("json", False, "print JSON, a list with one object a stage")
    memory = flags.DEFINE_string("memory", None, "a TPU topology to compile for, as in tpu:v5e:4x4")

    def work(config: Any) -> None:
        import jax

        logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a read

        # whatever accelerator is here, another program may hold it, and none is needed
        jax.config.update("jax_platforms", "cpu")
        from train import build

        names = build.stages(build.plain(config)) if stage.value is None else (stage.value,)
        plans = [plan(config, name, mesh.value, memory.value) for name in names]
        if as_json.value:
            import json

            print(json.dumps(plans, indent=1))
            return
        import sys

        from rich.console import Console

        console = Console(width=None if sys.stdout.isatty() else 200)
        for one in plans:
            show(one, console)

    command.main(_HELP, work)


if __name__ == "__main__":
    main()

"""Checkpoints through Orbax: params as an item of their own, the rest of the state beside it, provenance as JSON."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from train import tree
from train.state import TrainState

if TYPE_CHECKING:
    import orbax.checkpoint as ocp  # else where it is used: a run's first step need not wait for the import


def _manager(folder: Path, keep: int | None, **others: Any) -> "ocp.CheckpointManager":
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True)
    # named handlers: a manager that has saved nothing yet could not read an item's metadata without
    handlers = {
        "params": ocp.StandardCheckpointHandler(),
        "rest": ocp.StandardCheckpointHandler(),
        "provenance": ocp.JsonCheckpointHandler(),
    } | others
    return ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)


class Store:
    """The checkpoints of one stage in one folder. Saving is asynchronous: `close` waits for what is under way."""

    def __init__(self, folder: Path, keep: int | None):
        self.folder, self.keep = folder, keep

    @cached_property
    def _manager(self) -> "ocp.CheckpointManager":
        return _manager(self.folder, self.keep)

    def latest(self) -> int | None:
        """The number of the newest whole checkpoint, None where there is none."""
        if "_manager" in self.__dict__:  # one may be under way
            self._manager.wait_until_finished()
        return max(steps_in(self.folder), default=None)

    def save(self, state: TrainState, step: int, provenance: dict, anew: bool = False) -> None:
        """Saves unless that step is there already; with `anew` in the place of that and of all later ones."""
        import orbax.checkpoint as ocp

        there = [held for held in self._manager.all_steps() if held >= step]
        if anew and there:
            self._manager.wait_until_finished()
            for held in there:
                self._manager.delete(held)
        elif step in there:
            return
        rest = {"step": state.step, "opt_state": state.opt_state}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),
                rest=ocp.args.StandardSave(rest),
                provenance=ocp.args.JsonSave(provenance),
            ),
        )

    def close(self) -> None:
        if "_manager" in self.__dict__:
            self._manager.wait_until_finished()
            self._manager.close()


def restore(folder: Path, step: int, like: TrainState) -> TrainState:
    """The state of a checkpoint; `like` has its shapes, dtypes and shardings."""
    import orbax.checkpoint as ocp

    rest = {"step": like.step, "opt_state": like.opt_state}
    items = ocp.args.Composite(params=ocp.args.StandardRestore(like.params), rest=ocp.args.StandardRestore(rest))
    with _manager(folder, None) as manager:
        got = manager.restore(step, args=items)
    return TrainState(got["rest"]["step"], got["params"], got["rest"]["opt_state"])


def read_params(
    folder: Path, step: int | None = None, place: Callable[[Any], Any] | None = None
) -> tuple[Any, dict, int]:
    """(params, provenance, step) of a stage's checkpoint, the newest unless a step is given.

    place: of the checkpoint's jax.ShapeDtypeStruct tree makes one of how to read it: each leaf in a dtype, and straight
      to where its sharding says. A leaf without a sharding is not read, and comes back as it is. None reads all leaves
      as numpy arrays.

    Raises ValueError where there is no such checkpoint.
    """
    import orbax.checkpoint as ocp

    step = _step(folder, step)
    with _manager(folder, None, params=ocp.PyTreeCheckpointHandler()) as manager:
        held = manager.item_metadata(step)["params"].tree
        shapes = jax.tree.map(lambda m: jax.ShapeDtypeStruct(m.shape, m.dtype), held)
        like = (place or _on_one_device)(shapes)
        item = jax.tree.map(lambda x: ocp.PLACEHOLDER if x.sharding is None else x, like)
        args = ocp.args.PyTreeRestore(item=item, restore_args=ocp.checkpoint_utils.construct_restore_args(item))
        got = manager.restore(step, args=ocp.args.Composite(params=args, provenance=ocp.args.JsonRestore()))
    params = jax.tree.map(lambda x, read: x if x.sharding is None else read, like, got["params"])
    return params if place else jax.tree.map(np.asarray, params), got["provenance"], step


def read_provenance(folder: Path, step: int | None = None) -> dict:
    """What a checkpoint says of itself; raises ValueError where there is none.

    Without Orbax, whose manager waits for all processes: one of them alone may ask.
    """
    return json.loads((folder / str(_step(folder, step)) / "provenance" / "metadata").read_text())


def unlike(folder: Path, step: int, like: TrainState) -> dict[str, list[str]]:
    """Of "params" and "opt_state" the leaves that are not in both, a checkpoint and `like`, or differ in shape."""
    with _manager(folder, None) as manager:
        held = manager.item_metadata(step)

    def shapes(x: Any) -> dict[str, tuple[int, ...]]:
        return {path: tuple(leaf.shape) for path, leaf in tree.leaves(x).items()}

    pairs = dict(params=(held["params"].tree, like.params), opt_state=(held["rest"].tree["opt_state"], like.opt_state))
    found = {name: (shapes(was), shapes(now)) for name, (was, now) in pairs.items()}
    return {
        name: [
            f"{path}: was {was.get(path, 'absent')}, is {now.get(path, 'absent')}"
            for path in sorted(was.keys() | now.keys())
            if was.get(path) != now.get(path)
        ]
        for name, (was, now) in found.items()
    }


def _step(folder: Path, step: int | None) -> int:
    steps = steps_in(folder)
    if not steps or (step is not None and step not in steps):
        wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
        workdir = folder.parent.parent
        others = sorted(p.parent.name for p in workdir.glob(f"*/{folder.name}") if steps_in(p))
        there = f"stages of {workdir} with one: {', '.join(others) or 'none'}"
        if not workdir.is_dir():
            there = f"there is no folder {workdir}"
        raise ValueError(f"{folder} holds {wanted}; {f'found {steps}' if steps else there}")
    return steps[-1] if step is None else step


def _on_one_device(shapes: Any) -> Any:
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)


def steps_in(folder: Path) -> list[int]:
    """Numbers of the whole checkpoints in a folder; one that was being written when its run was killed is none."""
    return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit()) if folder.is_dir() else []

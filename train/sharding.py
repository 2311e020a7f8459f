"""Where arrays live: one mesh of three axes, one table from logical names to mesh axes.

`pmap` is not used: a jitted program over a one-axis mesh does its work, and the same program runs on any other mesh.
"""

import math
import os
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from train import tree

MESH_AXES = ("data", "fsdp", "tensor")
_SCHEDULER = "xla_cpu_enable_concurrency_optimized_scheduler"

# logical name -> the mesh axes that split it, if they divide it
RULES: dict[str, tuple[str, ...]] = {
    # activations
    "batch": ("data", "fsdp"),
    "length": (),
    "width": (),
    # parameters
    "layers": (),
    "vocab": ("tensor",),
    "embed": ("fsdp",),
    "embed_out": (),
    "heads": ("tensor",),
    "head": (),
    "mlp": ("tensor",),
    "parts": (),
    "taps": (),
    "positions": (),
    "buckets": (),
    "types": (),
    "classes": (),
}


def parse(text: str) -> dict[str, int]:
    """ "data=2,fsdp=4,tensor=1" -> {"data": 2, "fsdp": 4, "tensor": 1}; axes left out are 1. -1 takes the rest."""
    shape = dict.fromkeys(MESH_AXES, 1)
    for part in filter(None, text.split(",")):
        name, _, size = part.partition("=")
        if name not in shape or not size.lstrip("-").isdigit() or int(size) == 0 or int(size) < -1:
            raise ValueError(f"mesh {text!r}: {part!r} must be one of {', '.join(MESH_AXES)} = a number, as in data=2")
        shape[name] = int(size)
    return shape


def make_mesh(shape: dict[str, int], devices: list | None = None) -> Mesh:
    """A mesh over all devices. One axis may be -1: what the others leave."""
    devices = _devices() if devices is None else devices
    known = math.prod(n for n in shape.values() if n != -1)
    if list(shape.values()).count(-1) == 1 and len(devices) % known == 0:
        shape = {name: len(devices) // known if n == -1 else n for name, n in shape.items()}
    if math.prod(shape.values()) != len(devices):
        wanted = ", ".join(f"{name}={n}" for name, n in shape.items())
        n, cpu = abs(math.prod(shape.values())), devices[0].platform == "cpu"
        raise ValueError(
            f"the mesh {wanted} needs {abs(math.prod(shape.values()))} devices, and there are {len(devices)}: change "
            f"mesh in the config, or see a larger one with `python -m launch.plan`"
            + (f"; JAX_NUM_CPU_DEVICES={n} before the command simulates as many" if len(devices) < n and cpu else "")
        )
    # Auto: under the default, Explicit, a sharding constraint is an assertion
    types = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=types, devices=devices)


def _devices() -> list:
    enough_threads()
    return jax.devices()


def simulate(n: int) -> None:
    """Makes n devices of this machine's CPU, to try a mesh without accelerators. Before anything asks for a device:
    raises RuntimeError after.
    """
    jax.config.update("jax_num_cpu_devices", n)
    jax.config.update("jax_platforms", "cpu")
    enough_threads()


def enough_threads() -> None:
    """Threads and an order of work for simulated devices, where there are such. Before anything asks for a device."""
    # Simulated devices start collectives that do not depend on each other in any order, and each that waits holds a
    # thread. In XLA's pool of as many threads as cores, seven devices were seen to wait in one all-reduce while the
    # eighth waited in an all-gather, for ever. With threads enough all of them are begun, and the wait ends; and with
    # the scheduler that is not XLA's default, each device begins them in the same order. Both are read when the
    # devices are made.
    if jax.config.values["jax_num_cpu_devices"] > 1:
        os.environ.setdefault("NPROC", "64")
        flags = os.environ.get("XLA_FLAGS", "")
        if _SCHEDULER not in flags:
            os.environ["XLA_FLAGS"] = f"{flags} --{_SCHEDULER}=false".strip()


def abstract_mesh(shape: dict[str, int]) -> AbstractMesh:
    """A mesh with no devices, for plans."""
    return AbstractMesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def spec(names: tuple[str | None, ...], shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """The partition of an array by its logical names. A dimension that its mesh axes do not divide stays whole."""
    sizes = dict(mesh.shape)
    out: list[Any] = []
    for name, n in zip(names, shape, strict=False):
        if name is not None and name not in RULES:
            raise ValueError(f"the logical axis {name!r} has no rule; train/sharding.py knows {', '.join(RULES)}")
        split = tuple(a for a in RULES[name] if sizes[a] > 1) if name else ()
        out.append(split if split and n % math.prod(sizes[a] for a in split) == 0 else None)
    while out and out[-1] is None:
        out.pop()
    return PartitionSpec(*[s[0] if isinstance(s, tuple) and len(s) == 1 else s for s in out])


def specs(axes: Any, shapes: Any, mesh: Mesh | AbstractMesh) -> Any:
    """A PartitionSpec for each leaf of a params tree."""
    return jax.tree.map(lambda names, x: spec(names, x.shape, mesh), axes, shapes, is_leaf=tree.is_axes)


def state_axes(state: Any, axes: Any) -> Any:
    """Logical names for each leaf of a TrainState's shapes: a moment has its parameter's, all else has none, ().

    A leaf of the optimizer's state belongs to the parameter whose path ends its own and whose shape it has.
    """
    owners = {name: (names, x.shape) for (name, names), x in zip(
        tree.leaves(axes, is_leaf=tree.is_axes).items(), jax.tree.leaves(state.params), strict=True
    )}  # fmt: skip

    def named(path, x):
        name = tree.path_of(path)
        for owner, (names, shape) in owners.items():
            # a leaf of which some layers are frozen has moments for the others only
            if name.endswith("/" + owner) and len(shape) == x.ndim and shape[1:] == x.shape[1:]:
                return names
        return ()

    return jax.tree_util.tree_map_with_path(named, state)


def state_shardings(state: Any, axes: Any, mesh: Mesh) -> Any:
    """NamedSharding for each leaf of a TrainState's shapes: moments lie as their parameters, all else is everywhere."""
    return jax.tree.map(
        lambda x, names: NamedSharding(mesh, spec(names, x.shape, mesh)), state, state_axes(state, axes)
    )  # fmt: skip


def constrainer(mesh: Mesh | None) -> Callable[[jax.Array, tuple[str | None, ...]], jax.Array]:
    """`(x, logical names) -> x`, placed; what the model and the step call on activations."""
    if mesh is None:
        return lambda x, names: x

    def constrain(x, names):
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec(names, x.shape, mesh)))

    return constrain


def rows(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Of a batch: rows over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(RULES["batch"]))


def row_parts(mesh_shape: dict[str, int]) -> int:
    """Into how many parts a mesh splits a batch's rows."""
    return math.prod(mesh_shape[a] for a in RULES["batch"])


def check_rows(batch: int, microbatches: int, mesh_shape: dict[str, int]) -> None:
    """Raises ValueError unless a batch divides into microbatches and each of those over the mesh."""
    parts = row_parts(mesh_shape)
    if batch % (microbatches * parts):
        raise ValueError(
            f"a batch of {batch} rows does not divide into {microbatches} microbatches over {parts} devices "
            f"(data * fsdp): make it a multiple of {microbatches * parts}"
        )


def bytes_of(x: Any) -> int:
    return int(np.prod(x.shape, dtype=np.int64)) * np.dtype(x.dtype).itemsize

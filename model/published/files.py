"""The tensors of a folder in Hugging Face's layout, by name, read one at a time."""

import json
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

_WHOLE = {"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool"}
DTYPES = {"F32": "float32", "F64": "float64", "F16": "float16", "BF16": "bfloat16"} | _WHOLE
_OF_TORCH = {f"torch.{dtype}": name for name, dtype in DTYPES.items()}


class Tensor(NamedTuple):
    """A tensor in a file: its shape, its dtype as safetensors has it, and how to read it."""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], np.ndarray]


def json_of(file: Path) -> Any:
    """What a JSON file says. Raises ValueError, naming it, where it is none."""
    try:
        return json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not whole JSON ({error}): fetch it again") from None


def tensors(source: Path, unpickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a folder, or of a file in one, by name; none is read yet.

    Raises ValueError where there are no whole weights, or they are pickled and `unpickle` is not set.
    """
    found: dict[str, Tensor] = {}
    for file in _files(source):
        if file.suffix == ".safetensors":
            found |= _safe(file)
        elif unpickle:
            found |= _pickled(file)
        else:
            raise ValueError(
                f"{file} is a pickle, which can run code as it is read: convert it to safetensors, or ask for it with "
                "--unpickle, which reads tensors and nothing else"
            )
    return found


def _files(source: Path) -> list[Path]:
    if source.is_file() and source.suffix != ".json":
        return [source]
    folder = source if source.is_dir() else source.parent
    for name in ("model.safetensors", "pytorch_model.bin"):
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            told = json_of(index)
            if not isinstance(told, dict) or not isinstance(told.get("weight_map"), dict):
                raise ValueError(f"{index} has no weight_map, which tells the shards")
            parts = sorted(set(told["weight_map"].values()))
            if missing := [part for part in parts if not (folder / part).is_file()]:
                raise ValueError(f"{index} names files that are not there: {', '.join(missing)}")
            return [folder / part for part in parts]
    found = ", ".join(sorted(p.name for p in folder.iterdir())) if folder.is_dir() else "no such folder"
    raise ValueError(f"{source}: expected a folder with config.json and model.safetensors (found: {found})")


def _safe(file: Path) -> dict[str, Tensor]:
    import ml_dtypes  # noqa: F401  # numpy learns bfloat16 by it
    import safetensors

    try:
        opened = safetensors.safe_open(file, "numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{file} is not a whole safetensors file ({error}): fetch it again") from None
    found = {}
    for name in opened.keys():  # noqa: SIM118  # it has no other iteration
        at = opened.get_slice(name)
        found[name] = Tensor(tuple(at.get_shape()), at.get_dtype(), partial(opened.get_tensor, name))
    return found


def _pickled(file: Path) -> dict[str, Tensor]:
    try:
        import torch
    except ImportError:
        raise ValueError(f"{file} is read by torch, which is not installed: install it, or take safetensors") from None
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # a file cut short raises whatever its bytes lead to
        raise ValueError(f"{file} holds more than tensors, or is cut short ({type(error).__name__}: {error})") from None
    if not isinstance(loaded, dict) or not all(
        isinstance(k, str) and isinstance(x, torch.Tensor) for k, x in loaded.items()
    ):
        raise ValueError(f"{file} holds something else than tensors by name: save the model's state_dict() alone")
    return {
        name: Tensor(tuple(x.shape), _OF_TORCH.get(str(x.dtype), str(x.dtype)), partial(_of_torch, x.detach()))
        for name, x in loaded.items()
    }


def _of_torch(x: Any) -> np.ndarray:
    import ml_dtypes
    import torch

    bits = x.view(torch.uint16).numpy() if x.dtype == torch.bfloat16 else x.numpy()
    return bits.view(ml_dtypes.bfloat16) if x.dtype == torch.bfloat16 else bits

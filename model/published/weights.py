"""Published checkpoints into params trees, and params trees into published checkpoints: `read` and `write`.

Both go by the tables of `model.published.families`, leaf by leaf. What a table does not explain is an error that lists
names, and writes nothing.
"""

import itertools
import json
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from model import heads, random
from model.backbone import backbone
from model.config import BackboneConfig
from model.published import files
from model.published.architecture import config_json, config_of, family_of, first_kind
from model.published.families import FAMILIES, Family, Head, Table
from model.published.files import DTYPES, Tensor
from model.published.tables import Line, flat, lines, to_ours, to_theirs
from model.types import Params

SHARD = 5 * 10**9  # bytes of a file of weights
_THEIRS = {ours: theirs for theirs, ours in DTYPES.items()}
_TOKENS = "backbone/embed/tokens"
_RENAMED = {".gamma": ".weight", ".beta": ".bias"}  # of norms, in files of TensorFlow's days


class Published(NamedTuple):
    """A checkpoint of another tool, read.

    params:  "backbone" and a key for each head, numpy arrays in the config's `param_dtype`
    heads:   of those keys, what `model.heads` makes them by
    record:  JSON, from which `write` makes the same files again: config.json, each tensor's dtype, and what stands in
             the file beside our leaves
    """

    config: BackboneConfig
    params: Params
    heads: dict[str, Head]
    record: dict[str, Any]


def read(source: Path, *, unpickle: bool = False, ignore: Sequence[str] = (), **changes: Any) -> Published:
    """Reads a published checkpoint, leaf by leaf.

    Args:
      source: a folder in Hugging Face's layout, or the file of weights in one.
      unpickle: allow a pytorch_model.bin, read by torch as tensors and nothing else.
      ignore: patterns of names of tensors to leave out, each to match a whole name.
      changes: to our config, such as dtype="bfloat16".

    Raises ValueError for an architecture that is not ours, and, listing all names, where tensors are missing, unknown
    or of another shape, and for files that are cut short.
    """
    source = Path(source)
    if not source.exists():
        raise ValueError(f"{source}: no such folder or file; nothing is fetched by its name on a hub")
    folder = source if source.is_dir() else source.parent
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json, which tells the architecture; expected Hugging Face's layout")
    theirs = files.json_of(folder / "config.json")
    family, cfg = family_of(theirs), config_of(theirs, **changes)
    held = files.tensors(source, unpickle)
    patterns = [_pattern(one) for one in (*family.beside, *ignore)]
    out = [name for name in held if any(pattern.fullmatch(name) for pattern in patterns)]
    file = _File({name: tensor for name, tensor in held.items() if name not in out}, family)
    found = _match(file, family, cfg, theirs)
    leaves: dict[str, np.ndarray] = {}
    for line in found.lines:
        for path, x in zip(line.paths, to_ours(line, file.read, cfg), strict=True):
            leaves[path] = np.ascontiguousarray(x).astype(found.leaves[path].dtype, copy=False)
    record = {
        "config": theirs,
        "dtypes": {name: tensor.dtype for name, tensor in file.tensors.items()},
        "names": {ours: name for ours, name in file.names.items() if ours != name},
        "repeated": found.repeated,
        "unused": {name: file.tensors[name].read().tolist() for name in found.unused},
        "left_out": out,
        "exact": all(_holds(cfg.param_dtype, tensor.dtype) for tensor in file.tensors.values()),
    }
    params = _tree({path: leaves[path] for path in found.leaves})
    return Published(cfg, params, found.heads, record)


def _pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise ValueError(f"{text!r} is no regular expression ({error}), as in 'lm_predictions\\..*'") from None


def _holds(param_dtype: str, theirs: str) -> bool:
    """Whether our params keep every bit of what the file has."""
    exact = {"float64": ("F64", "F32", "F16", "BF16"), "float32": ("F32", "F16", "BF16"), "bfloat16": ("BF16",)}
    return theirs in exact[param_dtype] or theirs not in ("F64", "F32", "F16", "BF16")


class _File:
    """Tensors by the names that the tables have for them, whatever the file's own are."""

    def __init__(self, tensors: dict[str, Tensor], family: Family):
        self.tensors = tensors
        embedding = family.table["embed/tokens"]
        bare = family.prefix if f"{embedding}.weight" in tensors else ""  # a bare encoder's names lack its prefix
        self.bare = bool(bare)
        self.names: dict[str, str] = {}  # the tables' -> the file's
        for name in tensors:
            suffix = next((old for old in _RENAMED if name.endswith(old)), "")
            ours = bare + name.removesuffix(suffix) + _RENAMED.get(suffix, "")
            if (other := self.names.setdefault(ours, name)) != name:
                raise ValueError(f"the file has {other} and {name}, two names of one tensor: leave one out by --ignore")

    def of(self, name: str) -> Tensor:
        return self.tensors[self.names[name]]

    def read(self, name: str) -> np.ndarray:
        return self.of(name).read()

    def equal(self, a: str, b: str) -> bool:
        return self.of(a).shape == self.of(b).shape and np.array_equal(self.read(a), self.read(b))


class _Match(NamedTuple):
    """Shapes by path; lines; the heads; names of tensors that repeat a leaf, with its path; the unused."""

    leaves: dict[str, Any]
    lines: list[Line]
    heads: dict[str, Head]
    repeated: dict[str, str]
    unused: list[str]


def _match(file: _File, family: Family, cfg: BackboneConfig, theirs: Mapping[str, Any]) -> _Match:
    """Every tensor's place. Raises ValueError with all that is wrong."""
    architecture = (theirs.get("architectures") or [""])[0]
    layers = cfg.layers // cfg.share
    leaves = _backbone_leaves(cfg)
    made = lines(family.table, leaves, "backbone", family.prefix, layers)
    tokens = f"{family.prefix}{family.table['embed/tokens']}.weight"
    missing = [name for line in made for name in flat(line.names) if name not in file.names]
    left = file.names.keys() - {name for line in made for name in flat(line.names)}
    may_repeat = dict(family.repeated)
    dead = {family.prefix + one for one in family.unused}
    found: dict[str, Head] = {}
    # the architecture's own head first: another may have tensors of the same names
    for key, head in sorted(family.heads.items(), key=lambda item: architecture != family.title + item[1].architecture):
        own = [name for name, path in head.repeated.items() if path == _TOKENS and name in file.names]
        untied = bool(own) and tokens in file.names and not file.equal(own[0], tokens)
        out = f"{head.table.get('out')}.weight"
        outputs = file.of(out).shape[0] if out in file.names else 1
        wanted = head_leaves(head, key, cfg, outputs, tied=not untied)
        twin = _second_bias(head) if untied else ""
        split = twin in file.names
        of_head = lines(_untied(head) if split else head.table, wanted, key, "", layers)
        names = [name for line in of_head for name in flat(line.names)]
        if absent := [name for name in names if name not in left]:
            # a bare encoder may say that it was part of more
            if architecture == family.title + head.architecture and head.of != "pooler" and not file.bare:
                missing += absent
            continue
        left -= set(names)
        leaves |= wanted
        made += of_head
        found[key] = head._replace(options={**head.options, **_told(head, theirs)})
        may_repeat |= {name: path for name, path in head.repeated.items() if not (untied and path == _TOKENS)}
        if split and (bias := f"{head.table['']}.bias") in left:
            if file.equal(bias, twin):
                may_repeat[bias] = head.repeated[twin]
            else:
                dead.add(bias)
    repeated = {name: path for name, path in may_repeat.items() if name in left}
    unused = sorted(name for name in left if name in dead)
    faults = [f"missing: {name}" for name in sorted(set(missing))]
    faults += [f"not known: {file.names[n]} {file.of(n).shape}" for n in sorted(left - repeated.keys() - set(unused))]
    for line in made:
        if not any(name in missing for name in flat(line.names)):
            faults += _shape_faults(line, file, leaves, cfg)
    floats = ("F32", "F16", "BF16", *(["F64"] if cfg.param_dtype == "float64" else []))
    for name in sorted({name for line in made for name in flat(line.names)} & file.names.keys()):
        if (dtype := file.of(name).dtype) not in floats:
            more = " (read them with param_dtype='float64', under JAX_ENABLE_X64=1)" if dtype == "F64" else ""
            faults.append(f"{file.names[name]} is of {dtype}, expected {' or '.join(floats)}{more}")
    if not faults:
        of = {path: next(flat(line.names)) for line in made for path in line.paths}
        twins = {name: of[path] for name, path in repeated.items()}
        faults = [f"{a} differs from {b}, which it should repeat" for a, b in twins.items() if not file.equal(a, b)]
    if faults:
        held = "\n  ".join(f"{name} {tensor.shape}" for name, tensor in sorted(file.tensors.items()))
        raise ValueError(
            f"the tensors are not those of a {architecture or family.title} as config.json describes it:\n  "
            + "\n  ".join(faults) + f"\nthe file holds:\n  {held}"
        )  # fmt: skip
    return _Match(leaves, made, found, repeated, [file.names[name] for name in unused])


def _second_bias(head: Head) -> str:
    """The second name of an output's bias, if it has two: transformers adds this one where the output is not tied."""
    return next((name for name, path in head.repeated.items() if path.endswith("/bias")), "")


def _untied(head: Head) -> Table:
    """The table of a head whose output is a matrix of its own."""
    return {**head.table, "": head.table["decoder"]} if _second_bias(head) else head.table


def _told(head: Head, theirs: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a head that config.json chooses."""
    out = {}
    for key, (option, values) in head.told.items():
        value = theirs.get(key, next(iter(values)))
        if value not in values:
            raise ValueError(f"config.json has {key}={value!r}, which is not built here; known are {', '.join(values)}")
        out[option] = values[value]
    return out


def _shape_faults(line: Line, file: _File, leaves: Mapping[str, Any], cfg: BackboneConfig) -> list[str]:
    blank = {path: np.broadcast_to(np.bool_(0), leaves[path].shape) for path in line.paths}
    return [
        f"{file.names[name]} is {file.of(name).shape}, expected {x.shape}"
        for name, x in zip(flat(line.names), to_theirs(line, blank, cfg), strict=True)
        if file.of(name).shape != x.shape
    ]


def head_leaves(head: Head, key: str, cfg: BackboneConfig, outputs: int, tied: bool = True) -> dict[str, Any]:
    """The shapes of a head's leaves, by path, under the key `key` of the tree."""
    inits: dict[str, Callable[[], Callable]] = {
        "mlm": lambda: heads.mlm_head(cfg, tied=tied, **head.options).init,
        "pooled": lambda: heads.pooled_head(cfg, outputs, **head.options).init,
        "token": lambda: heads.token_head(cfg, outputs, **head.options).init,
        "pooler": lambda: lambda key: heads.pooled_head(cfg, 1).init(key)["pooler"],
    }
    return _leaves({key: jax.eval_shape(inits[head.of](), random.generator(0))})


def _backbone_leaves(cfg: BackboneConfig) -> dict[str, Any]:
    return _leaves({"backbone": jax.eval_shape(backbone(cfg).init, random.generator(0))})


def _leaves(tree: Any) -> dict[str, Any]:
    return {"/".join(k.key for k in path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _tree(leaves: Mapping[str, Any]) -> Params:
    tree: Params = {}
    for path, x in leaves.items():
        *folders, name = path.split("/")
        at = tree
        for folder in folders:
            at = at.setdefault(folder, {})
        at[name] = x
    return tree


def tensors(params: Params, cfg: BackboneConfig, kind: str) -> Iterator[tuple[str, np.ndarray]]:
    """Yields what a file of the family `kind` holds for a params tree: (name, tensor), a line of the table at a time.

    Raises ValueError for a key of the tree that is no head of the family, or a leaf that it has no place for.
    """
    family = FAMILIES[kind]
    if unknown := sorted(params.keys() - {"backbone"} - family.heads.keys()):
        raise ValueError(f"{kind} has no head {', '.join(unknown)}; it has {', '.join(family.heads) or 'none'}")
    for key in params:
        leaves = _leaves({key: params[key]})
        table, prefix = (family.table, family.prefix) if key == "backbone" else (family.heads[key].table, "")
        untied = f"{key}/decoder" in leaves
        for line in lines(
            _untied(family.heads[key]) if untied else table, leaves, key, prefix, cfg.layers // cfg.share
        ):
            yield from zip(flat(line.names), to_theirs(line, leaves, cfg), strict=True)
        if untied and _second_bias(family.heads[key]):  # which is there, and is not read
            yield f"{table['']}.bias", leaves[f"{key}/bias"]


def write(
    folder: Path,
    params: Params,
    cfg: BackboneConfig,
    kind: str | None = None,
    *,
    record: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    shard: int = SHARD,
) -> None:
    """Writes config.json and model.safetensors, or shards of it and an index where it is larger than `shard` bytes.

    Args:
      folder: made where absent; nothing in it is overwritten.
      params: "backbone" and the heads, under the keys that the family has for them.
      kind: the family, as config.json's model_type has it; None for the first that can say the config.
      record: `read`'s, to give the same files again: names, dtypes, config.json.
      extra: further keys for config.json, such as the ids of special tokens.

    Raises ValueError for what the family has no place for, and where the folder holds such files already.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; expected a folder, or nothing yet")
    taken = [p.name for p in folder.glob("*") if p.name == "config.json" or p.name.startswith("model")]
    if taken:
        raise ValueError(f"{folder} holds {', '.join(sorted(taken))} already; take another folder")
    kind = record["config"]["model_type"] if record else kind or first_kind(cfg)
    if record:
        if not record["exact"]:
            raise ValueError(f"{cfg.param_dtype} does not hold what the files held, which cannot be written again")
        config, named = dict(record["config"]), partial(_as_it_was, params, cfg, kind, record)
        if record["left_out"]:  # the architecture without it
            config["architectures"] = _config(params, cfg, kind)["architectures"]
    else:
        config, named = _config(params, cfg, kind) | dict(extra or {}), partial(_as_a_model, params, cfg, kind)
    config_of(config)  # what `extra` says must not be of another architecture
    _check_whole(params, cfg, kind)
    unfinished = folder.parent / f".{folder.name}.{uuid.uuid4().hex}"
    try:
        unfinished.mkdir(parents=True)
        _save(unfinished, named, shard)
        (unfinished / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        folder.mkdir(exist_ok=True)
        for file in sorted(unfinished.iterdir(), key=lambda file: file.name != "config.json", reverse=True):
            file.rename(folder / file.name)  # config.json last: without it the folder is nothing
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _check_whole(params: Params, cfg: BackboneConfig, kind: str) -> None:
    """Raises ValueError, listing both sides, unless a params tree has the leaves of the family's modules."""
    family, found = FAMILIES[kind], _leaves(params)
    want = _backbone_leaves(cfg)
    for key in params.keys() & family.heads.keys():
        bias = found.get(f"{key}/out/bias")
        outputs = 1 if bias is None else bias.shape[0]
        want |= head_leaves(family.heads[key], key, cfg, outputs, tied=f"{key}/decoder" not in found)
    # a head that the family lacks is told by `tensors`
    known = {path: x for path, x in found.items() if path.split("/")[0] in {"backbone", *family.heads}}
    faults = [f"missing: {path} {want[path].shape}" for path in want.keys() - known.keys()]
    faults += [f"not known: {path} {known[path].shape}" for path in known.keys() - want.keys()]
    faults += [
        f"{path} is {known[path].shape}, expected {x.shape}"
        for path, x in want.items()
        if path in known and known[path].shape != x.shape
    ]
    if faults:
        raise ValueError("the params are not those of this config:\n  " + "\n  ".join(sorted(faults)))


def _as_it_was(params: Params, cfg: BackboneConfig, kind: str, record: Mapping) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of the file that was read, in its names and dtypes."""
    import ml_dtypes  # noqa: F401  # numpy learns bfloat16 by it

    leaves = _leaves(params)
    of_ours = {name: leaves[path] for name, path in record["repeated"].items()}
    held = record["dtypes"].keys() - record["unused"].keys()
    for ours, x in itertools.chain(tensors(params, cfg, kind), of_ours.items()):
        name = record["names"].get(ours, ours)
        if name not in held:  # of an untied output's two biases one may not be there, or not be read
            continue
        held.remove(name)
        yield name, np.asarray(x).astype(DTYPES[record["dtypes"][name]])
    for name, values in record["unused"].items():
        yield name, np.array(values, DTYPES[record["dtypes"][name]])


def _as_a_model(params: Params, cfg: BackboneConfig, kind: str) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a model, or of a bare encoder, whose names lack the prefix."""
    family = FAMILIES[kind]
    poolers = {key for key, head in family.heads.items() if head.of == "pooler"}
    bare = params.keys() <= {"backbone"} | poolers
    for name, x in tensors(params, cfg, kind):
        yield name.removeprefix(family.prefix) if bare else name, x


def _config(params: Params, cfg: BackboneConfig, kind: str) -> dict[str, Any]:
    """config.json of a params tree."""
    family = FAMILIES[kind]
    keys = [key for key in params if key != "backbone" and key in family.heads]
    out = {
        "architectures": [family.title + _architecture(keys, kind)],
        "tie_word_embeddings": "decoder" not in params.get("mlm", {}),
    }
    for key in keys:
        if family.heads[key].architecture in ("ForSequenceClassification", "ForTokenClassification"):
            labels = {str(i): f"LABEL_{i}" for i in range(params[key]["out"]["bias"].size)}
            out |= {"id2label": labels, "label2id": {label: int(i) for i, label in labels.items()}}
    return config_json(cfg, kind) | out


def _architecture(keys: list[str], kind: str) -> str:
    """What a model with these heads is called, after the family's name."""
    family = FAMILIES[kind]
    if not (named := [key for key in keys if family.heads[key].of != "pooler"]):
        return family.bare
    if set(keys) in ({"mlm", "nsp"}, {"mlm", "sop"}):
        return "ForPreTraining"
    if keys == ["nsp"]:
        return "ForNextSentencePrediction"
    if len(keys) > 1 or named == ["sop"]:
        raise ValueError(f"no model of {kind} has {', '.join(keys)} and no other head; export others by --heads")
    return family.heads[named[0]].architecture


def _save(folder: Path, named: Callable[[], Iterator[tuple[str, np.ndarray]]], most: int) -> None:
    """Writes tensors to files of at most so many bytes, one tensor in memory at a time: the iterator is made twice, for
    what the files say of their tensors before these, and for the tensors.
    """
    held: list[dict[str, Any]] = []  # of each file: name -> what the format says of a tensor
    end = most
    for name, x in named():
        if not held or end + x.nbytes > most:
            held.append({})
            end = 0
        held[-1][name] = dict(dtype=_THEIRS[x.dtype.name], shape=list(x.shape), data_offsets=[end, end + x.nbytes])
        end += x.nbytes
    count = len(held)
    names = [
        f"model-{i + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors" for i in range(count)
    ]
    rest = named()
    for name, inside in zip(names, held, strict=True):
        with (folder / name).open("wb") as file:
            head = json.dumps({"__metadata__": {"format": "pt"}} | inside).encode()
            head += b" " * (-len(head) % 8)  # what follows is aligned
            file.write(len(head).to_bytes(8, "little") + head)
            for tensor in inside:
                found, x = next(rest)
                assert found == tensor
                file.write(np.ascontiguousarray(x).view(np.uint8).data)
    if count > 1:
        total = sum(
            tensor["data_offsets"][1] - tensor["data_offsets"][0] for inside in held for tensor in inside.values()
        )
        where = {tensor: name for name, inside in zip(names, held, strict=True) for tensor in inside}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")

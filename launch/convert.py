"""Published checkpoints into ours, and ours into Hugging Face's layout."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_EXAMPLES = """examples:
  python -m launch.convert import --source=bert-base-uncased --out=runs/bert
  python -m launch.convert import --source=deberta-v3-base --out=runs/deberta --unpickle \\
      --ignore='lm_predictions.*' --ignore='mask_predictions.*'
  python -m launch.convert export --checkpoint=runs/wiki/pretrain --out=exported
  python -m launch.convert export --checkpoint=runs/sst2/finetune --best --out=exported

A source is a folder with config.json, model.safetensors (whole, or in shards with their index) and tokenizer.json,
vocab.txt, spm.model or spiece.model. What is imported is a workdir: the tokenizer, and the checkpoint of a stage
`import`. A config takes its architecture by backbone=dict(checkpoint="runs/bert/import"), and its params by
carry=dict(checkpoint=...).

What was imported and not trained since is exported bit for bit. Else the family is the first that can say the
architecture, or --family, and the heads are those of the checkpoint, or --heads. Nothing is overwritten.
"""
_STAGE = "import"


def import_(
    source: Path, out: Path, *, unpickle: bool = False, ignore: Sequence[str] = (), **changes: Any
) -> dict[str, Any]:
    """Reads a published checkpoint into a workdir: its tokenizer, and the checkpoint of a stage `import`.

    `changes` are to the config of the backbone, such as dtype="bfloat16". Returns what the checkpoint says of itself.
    Raises ValueError for what `model.published.weights.read` refuses, where `out` has such a stage already, and for a
    tokenizer that is not the one it keeps.
    """
    import jax
    import jax.numpy as jnp

    from model.published import weights
    from train import build, checkpoint
    from train.data import tokenizer as tokenizers
    from train.state import TrainState

    source, out = Path(source), Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out is a folder")
    folder = out / _STAGE / "checkpoints"
    if checkpoint.steps_in(folder):
        raise ValueError(f"{folder} holds a checkpoint already; take another --out")
    if changes.get("param_dtype") == "float64" and not jax.config.values["jax_enable_x64"]:
        raise ValueError("params in float64 are made float32 by JAX unless the environment has JAX_ENABLE_X64=1")
    found = weights.read(source, unpickle=unpickle, ignore=ignore, **changes)
    tokenizer = tokenizers.load(out) if tokenizers.find(out) else None
    beside = source if source.is_dir() else source.parent
    published = _tokenizer(beside)
    _check_added(beside, published)
    if tokenizer is not None and tokenizer.vocab.fingerprint != published.vocab.fingerprint:
        raise ValueError(f"{out} keeps another tokenizer than {source} has; take another --out")
    vocab = published.vocab
    if vocab.size > found.config.V:
        raise ValueError(f"{source}: the tokenizer has {vocab.size} ids, and the model embeddings of {found.config.V}")
    origin = build.origin(_config(found, out), _STAGE, found.config, vocab) | {"published": found.record}
    tokenizers.save(published, out)
    store = checkpoint.Store(folder, keep=None)
    store.save(TrainState(jnp.int32(0), _moved(found.params), {}), 0, origin)
    store.close()
    return origin


def _moved(params: dict[str, Any]) -> dict[str, Any]:
    """The leaves as arrays of JAX on the host, each taken out of `params`: Orbax makes copies of numpy's."""
    import jax

    cpu = jax.devices("cpu")[0]
    leaves = ((name, params.pop(name)) for name in list(params))
    return {name: _moved(x) if isinstance(x, dict) else jax.device_put(x, cpu) for name, x in leaves}


def _tokenizer(folder: Path) -> Any:
    """The tokenizer of a published checkpoint."""
    from model.published.files import json_of
    from train.data import published
    from train.data import tokenizer as tokenizers

    config, facts = json_of(folder / "config.json"), folder / "tokenizer_config.json"
    told = json_of(facts) if facts.is_file() else {}
    if not isinstance(told, dict):
        raise ValueError(f"{facts} is a {type(told).__name__}; expected an object")
    if told.get("split_by_punct") or told.get("word_tokenizer_type", "basic") != "basic":
        raise ValueError(f"{facts} splits words by rules that are not built here (split_by_punct, word_tokenizer_type)")
    if (folder / "tokenizer.json").is_file():
        normal = (json_of(folder / "tokenizer.json") or {}).get("normalizer") or {}
        if normal.get("type") == "BertNormalizer" and normal["lowercase"] != told.get(
            "do_lower_case", normal["lowercase"]
        ):
            raise ValueError(
                f"{folder}: tokenizer.json has lowercase={normal['lowercase']}, and tokenizer_config.json "
                f"do_lower_case={told['do_lower_case']}: make the two say the same"
            )
        return tokenizers.load(folder / "tokenizer.json")
    if (folder / "vocab.txt").is_file():
        kind = str(told.get("tokenizer_class") or config.get("tokenizer_class") or "BertTokenizer")
        kind = kind.removesuffix("Fast")
        if kind not in ("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"):
            raise ValueError(f"{folder} has a vocab.txt of a {kind}, which is not BERT's: put its tokenizer.json there")
        return published.load_wordpiece(
            folder / "vocab.txt", told.get("do_lower_case", True), told.get("strip_accents"),
            told.get("tokenize_chinese_chars", True),
        )  # fmt: skip
    for name in ("spm.model", "spiece.model"):
        if (folder / name).is_file():
            if (kind := config.get("model_type")) == "t5":
                raise ValueError(
                    f"{folder} has a T5's {name}, which lacks its 100 sentinels: put its tokenizer.json there"
                )
            albert = kind == "albert"
            if told.get("do_lower_case", albert) or albert:
                return published.load_sentencepiece(
                    folder / name, told.get("do_lower_case", albert), told.get("keep_accents", not albert), albert
                )
            return tokenizers.load(folder / name)
    raise ValueError(
        f"{folder} has no tokenizer.json, vocab.txt, spm.model or spiece.model: put the checkpoint's tokenizer there"
    )


def _check_added(folder: Path, tokenizer: Any) -> None:
    """Raises ValueError for tokens that the files beside a tokenizer add, and it lacks."""
    from model.published.files import json_of
    from train.data.tokenizer import NAMES

    added: set[str] = set()
    if (file := folder / "added_tokens.json").is_file():
        added |= json_of(file).keys()
    if (file := folder / "tokenizer_config.json").is_file():
        added |= {token["content"] for token in json_of(file).get("added_tokens_decoder", {}).values()}
    added -= {name for names in NAMES.values() for name in names}
    if lacking := sorted(added - set(tokenizer.pieces(range(tokenizer.vocab.size)))):
        raise ValueError(
            f"{folder} adds tokens to its vocabulary ({', '.join(lacking[:5])}): put its tokenizer.json there"
        )


def _config(found: Any, out: Path) -> dict[str, Any]:
    """A config of a stage that is never run: what reads a checkpoint's config (`launch.predict`) finds the model."""
    backbone = {"size": "tiny"} | dataclasses.asdict(found.config)
    section: dict[str, Any] = dict(
        backbone=backbone, objective={}, data={}, optimizer={}, schedule={}, batch=32, steps=0
    )
    theirs = found.record["config"]
    labels = theirs.get("id2label") or {}
    if not isinstance(labels, dict) or not all(str(i).isdigit() for i in labels):
        raise ValueError(f"config.json has id2label={labels!r}; expected names by number, as {{'0': 'no', '1': 'yes'}}")
    for key, head in found.heads.items():
        if head.of == "mlm":
            tied = "decoder" not in found.params[key]
            section["objective"] = dict(factory="objectives.mlm:mlm", tied=tied, **head.options)
            break
        if key == "classify" and found.params[key]["out"]["bias"].size == 1:
            section["objective"] = dict(factory="objectives.regress:regress", name=key, **head.options)
            break
        if key == "answer":
            section["objective"] = dict(factory="objectives.answer:answer", **head.options)
            break
        if key in ("classify", "tag"):
            names = tuple(str(name) for _, name in sorted(labels.items(), key=lambda x: int(x[0])))
            classes = found.params[key]["out"]["bias"].size
            if len(set(names)) != classes:
                names = tuple(map(str, range(classes)))
            if key == "tag":
                section["objective"] = dict(factory="objectives.tag:tag", classes=names, **head.options)
                break
            if theirs.get("problem_type") == "regression":
                raise ValueError(f"config.json has problem_type='regression' of {classes} numbers; known is one number")
            several = theirs.get("problem_type") == "multi_label_classification"
            factory = f"objectives.classify:{'multilabel' if several else 'classify'}"
            section["objective"] = dict(factory=factory, classes=classes, **head.options)
            section["data"] = dict(classes=names)
            break
    return {"stages": (_STAGE,), "tokenizer": dict(factory="train.data.tokenizer:load", path=str(out)), _STAGE: section}


def export(
    folder: Path,
    out: Path,
    *,
    best: bool = False,
    step: int | None = None,
    family: str | None = None,
    heads: Sequence[str] | None = None,
) -> None:
    """Writes a stage's checkpoint in Hugging Face's layout, the file of its workdir's tokenizer beside it.

    Args:
      folder: of the stage.
      best, step: the checkpoint that was best, or that of a step, instead of the newest.
      family: as config.json's model_type; None for the first that can say the architecture.
      heads: keys of the params tree to write beside the backbone; None for all.

    Raises ValueError for what the family cannot say, and where `out` holds a model already.
    """
    from model.config import BackboneConfig
    from model.published import weights
    from model.published.architecture import family_of, first_kind
    from train import build, checkpoint
    from train.data import tokenizer as tokenizers

    folder, out = Path(folder), Path(out)
    params, origin, _ = checkpoint.read_params(folder / ("best" if best else "checkpoints"), step)
    config = build.plain(origin["config"])
    cfg = BackboneConfig(**build.plain(origin["backbone"]))
    keys = [key for key in params if key != "backbone"] if heads is None else list(heads)
    if unknown := [key for key in keys if key not in params]:
        raise ValueError(f"{folder} has no head {', '.join(unknown)}; it has {', '.join(params.keys() - {'backbone'})}")
    kept = {"backbone": params["backbone"]} | {key: params[key] for key in keys}
    record = origin.get("published")
    kept_file = tokenizers.find(folder.parent)
    beside = {} if kept_file is None else tokenizer_files(tokenizers.load(kept_file), cfg.max_length, cfg.types > 1)
    if taken := [name for name in beside if (out / name).exists()]:
        raise ValueError(f"{out} holds {', '.join(taken)} already; take another folder")
    if record is not None and record["exact"] and family is None and heads is None:
        weights.write(out, kept, cfg, record=record)
        if record["left_out"]:
            print(
                f"left out, as on import: {len(record['left_out'])} tensors ({', '.join(record['left_out'][:3])}, ...)"
            )
    else:
        section = config[origin["stage"]]
        if section.get("view"):
            kept = build.load(section["view"])(params) | {key: kept[key] for key in keys}
            kept = {key: kept[key] for key in ("backbone", *keys)}
        kind = family or first_kind(cfg)
        family_of({"model_type": kind})  # or an error that names those there are
        named = {key: _named(key, section.get("objective", {}), kind, cfg) for key in kept}
        extra = _facts(origin, section)
        for _, told in named.values():
            extra |= told
        weights.write(out, {named[key][0]: _judging(x) for key, x in kept.items()}, cfg, kind, extra=extra)
    for name, content in beside.items():
        (out / name).write_bytes(content)


def tokenizer_files(tokenizer: Any, max_length: int, types: bool) -> dict[str, bytes]:
    """By name, the files by which transformers reads a tokenizer, and its own where that is another. `types`: whether
    the model takes token types.

    A SentencePiece model of kind bpe leaves by its own alone: its merges cannot be told from it.
    """
    from train.data import published

    name, content = tokenizer.file
    files = {name: content}
    if name == "tokenizer.model":
        try:
            files["tokenizer.json"] = json.dumps(published.unigram(content), ensure_ascii=False).encode()
        except ValueError:
            return files
    vocab = tokenizer.vocab
    roles = dict(pad=vocab.pad, unk=vocab.unk, cls=vocab.cls, sep=vocab.sep, mask=vocab.mask)
    facts: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": max_length}
    facts["model_input_names"] = ["input_ids", *(["token_type_ids"] if types else []), "attention_mask"]
    facts |= {f"{role}_token": tokenizer.pieces([i])[0] for role, i in roles.items()}
    return files | {"tokenizer_config.json": json.dumps(facts, indent=2, ensure_ascii=False).encode()}


# of our objectives, the family's key for the head and what its config.json tells beside
_HEADS: dict[str, tuple[str, dict[str, Any]]] = {
    "mlm": ("mlm", {}),
    "classify": ("classify", {}),
    "multilabel": ("classify", {"problem_type": "multi_label_classification"}),
    "regress": ("classify", {"problem_type": "regression"}),
    "tag": ("tag", {}),
    "answer": ("answer", {}),
}
# options of a head that a family does not speak of
_USUAL: dict[str, dict[str, Any]] = {
    "mlm": {"activation": "layers", "softcap": None, "bag": 0.0},
    "pooled": {"pooling": "first", "activation": "tanh", "norm": False},
    "token": {"activation": None, "norm": False},
}


def _named(key: str, objective: Mapping[str, Any], kind: str, cfg: Any) -> tuple[str, dict[str, Any]]:
    """The family's key for a head of ours, and what config.json tells of it.

    Raises ValueError where its options are not the family's.
    """
    from model import parts
    from model.published.families import FAMILIES

    mixed = [{**part, "name": name} for name, part in objective.get("mixture", {}).items()]
    arguments = [_arguments(section) for section in mixed or [dict(objective)]]
    if not (found := [(of, given) for of, given in arguments if of in _HEADS and given["name"] == key]):
        return key, {}
    of, given = found[0]
    named, told = _HEADS[of][0], dict(_HEADS[of][1])
    if of == "tag":
        told |= _labels(given["classes"])
    if (head := FAMILIES[kind].heads.get(named)) is not None:
        wanted = {**_USUAL[head.of], **head.options}
        for x in (given, wanted):
            x["activation"] = parts.MLPS[cfg.mlp][1] if x["activation"] == "layers" else x["activation"]
        for theirs, (option, values) in head.told.items():
            if chosen := [value for value, ours in values.items() if ours == given[option]]:
                told[theirs], wanted[option] = chosen[0], given[option]
        if differing := [f"{k}={given[k]!r}" for k, v in wanted.items() if given[k] != v]:
            raise ValueError(
                f"{kind}'s {named} is not {key}'s, which has {', '.join(differing)}; export --heads= without it"
            )
    return named, told


def _arguments(section: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """The name of an objective's factory, and all its arguments if it is among `_HEADS`."""
    import inspect

    from train import build

    of = str(section.get("factory", "")).rpartition(":")[2]
    if of not in _HEADS:  # a notebook's own could not be found here
        return of, {}
    usual = {k: p.default for k, p in inspect.signature(build.load(section["factory"])).parameters.items()}
    return of, usual | dict(section)


def _labels(classes: Sequence[Any]) -> dict[str, Any]:
    """As config.json names classes."""
    return {
        "id2label": {str(i): str(name) for i, name in enumerate(classes)},
        "label2id": {str(name): i for i, name in enumerate(classes)},
    }


def _judging(head: dict[str, Any]) -> dict[str, Any]:
    """A head's params; of replaced-token detection's the discriminator's, as published ones are."""
    return {k: x for k, x in head.items() if k not in ("words", "delta", "generator")} if "generator" in head else head


def _facts(origin: Mapping[str, Any], section: Mapping[str, Any]) -> dict[str, Any]:
    """What config.json tells beside the architecture: special ids, names of classes."""
    special = origin["special"]
    out = {"pad_token_id": special["pad"], "bos_token_id": special["cls"], "eos_token_id": special["sep"]}
    out |= {"cls_token_id": special["cls"], "sep_token_id": special["sep"], "dtype": origin["backbone"]["param_dtype"]}
    return out | (_labels(classes) if (classes := section.get("data", {}).get("classes")) else {})


def _parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m launch.convert", description=__doc__, epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    into = commands.add_parser("import", help="a published checkpoint into a workdir")
    into.add_argument(
        "--source", type=Path, required=True, help="a folder in Hugging Face's layout, or its weights' file"
    )
    into.add_argument("--out", type=Path, required=True, help="the workdir, made where absent")
    into.add_argument("--unpickle", action="store_true", help="allow pytorch_model.bin: tensors alone, by torch")
    into.add_argument(
        "--ignore", action="append", default=[], metavar="PATTERN", help="leave out tensors of such names"
    )
    into.add_argument("--dtype", default="float32", help="of the computation (default: float32)")
    into.add_argument("--param_dtype", default="float32", help="of the params (default: float32)")
    outof = commands.add_parser("export", help="a stage's checkpoint into Hugging Face's layout")
    outof.add_argument("--checkpoint", type=Path, required=True, help="the stage's folder, as in runs/demo/pretrain")
    outof.add_argument("--out", type=Path, required=True, help="a new folder")
    outof.add_argument("--best", action="store_true", help="the checkpoint that was best on dev, instead of the newest")
    outof.add_argument("--step", type=int, help="the checkpoint of this step, instead of the newest")
    outof.add_argument("--family", help="as model_type in config.json (default: the first that fits)")
    outof.add_argument("--heads", help="keys of heads, split by commas, or empty for the encoder alone (default: all)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = _parsed(argv)
    from absl import logging

    logging.set_verbosity(logging.WARNING)  # Orbax tells every step of a save
    try:
        if args.command == "import":
            given = dict(dtype=args.dtype, param_dtype=args.param_dtype)
            origin = import_(args.source, args.out, unpickle=args.unpickle, ignore=args.ignore, **given)
            record = origin["published"]
            kept, left = len(record["dtypes"]), len(record["left_out"])
            print(
                f"{args.out / _STAGE}: {kept} tensors of a {record['config']['model_type']}"
                + (f", {left} left out" * bool(left))
            )
        else:
            heads = None if args.heads is None else [key for key in args.heads.split(",") if key]
            export(args.checkpoint, args.out, best=args.best, step=args.step, family=args.family, heads=heads)
            print(f"{args.out}: {', '.join(sorted(p.name for p in args.out.iterdir()))}")
    except ValueError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()

"""A classifier on any csv, tsv or jsonl of texts and labels, grown on the backbone of a checkpoint.

    python -m train --workdir=runs/sst2 \\
      --config='configs/finetune_classification.py:from=runs/wiki,train=train.tsv,dev=dev.tsv,text=sentence'

After the colon come key=value pairs, split by commas:

    from        workdir of the pretraining run: its tokenizer, and its stage's checkpoint
    stage       that stage's name (default: pretrain)
    train, dev  files; .csv, .tsv and .jsonl (each also .gz) are told apart by their names
    text, pair, label   columns (defaults: text, none, label); a number counts columns of a file without header
    classes     labels, split by | (default: 0|1)
    separator   what stands between labels where a text may have several or none: objectives.classify:multilabel, the
                best by dev/f1_micro (default: none, one label each)
    length      tokens a row; a longer text is cut (default: 128)

Everything else is a key of the config: --config.finetune.schedule.peak=3e-4 --config.finetune.epochs=5
"""

import ml_collections

DEFAULTS = {
    "stage": "pretrain",
    "text": "text",
    "label": "label",
    "pair": "",
    "classes": "0|1",
    "length": "128",
    "separator": "",
}
REQUIRED = ("from", "train", "dev")


def get_config(arguments: str = "from=runs/pretrain,train=train.csv,dev=dev.csv") -> ml_collections.ConfigDict:
    given = dict(part.partition("=")[::2] for part in arguments.split(",") if part)
    if unknown := sorted(given.keys() - DEFAULTS.keys() - set(REQUIRED)):
        raise ValueError(f"{unknown[0]!r} is no argument of this config; they are {', '.join([*REQUIRED, *DEFAULTS])}")
    if missing := [key for key in REQUIRED if key not in given]:
        raise ValueError(f"this config needs {', '.join(missing)}, as in --config=FILE:from=DIR,train=FILE,dev=FILE")
    at = DEFAULTS | given
    classes = tuple(at["classes"].split("|"))

    def examples(path: str) -> dict:
        columns: dict = {k: int(v) if v.isdigit() else v for k, v in at.items() if k in ("text", "pair", "label") and v}
        kind = path.removesuffix(".gz").removesuffix(".zst").rpartition(".")[2]
        if kind == "jsonl":
            source = dict(factory="train.data.source:jsonl", path=path, **columns)
        elif kind in ("csv", "tsv"):
            source = dict(
                factory="train.data.source:csv", path=path, delimiter="," if kind == "csv" else "\t",
                header=not isinstance(columns["text"], int), **columns,
            )  # fmt: skip
        else:
            raise ValueError(f"{path}: expected a name that ends in .jsonl, .csv or .tsv (and maybe .gz or .zst)")
        return dict(
            factory="train.data.rows:label_examples", source=source, length=int(at["length"]), classes=classes,
            truncate=True, separator=at["separator"] or None,
        )  # fmt: skip

    several = bool(at["separator"])
    config = ml_collections.ConfigDict()
    config.stages = ("finetune",)
    config.tokenizer = dict(factory="train.data.tokenizer:load", path=at["from"])
    config.backbone = dict(checkpoint=f"{at['from']}/{at['stage']}", dropout=0.1)
    config.finetune = dict(
        objective=dict(
            factory=f"objectives.classify:{'multilabel' if several else 'classify'}",
            classes=len(classes),
            pooling="mean",
        ),
        data=examples(at["train"]),
        evals=dict(dev=examples(at["dev"])),
        carry=dict(checkpoint=f"{at['from']}/{at['stage']}"),
        optimizer=dict(factory="train.optimizer:adamw", b2=0.98, weight_decay=0.01),
        schedule=dict(factory="train.schedule:linear", peak=1e-4, warmup=0.1),
        batch=32,
        layout="packed",  # several short texts to a row: the same loss, and little padding
        epochs=3.0,
        seed=0,
        eval_every=500,
        save_every=1000,
        log_every=50,
        best="dev/f1_micro" if several else "dev/accuracy",
    )
    return config

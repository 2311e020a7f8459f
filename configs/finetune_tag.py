"""A tagger of words, from any checkpoint: entities (WNUT-17) or parts of speech (UD's English Web Treebank).

    python -m launch.convert import --source=MODEL --out=runs/minilm
    python -m train --workdir=runs/ewt --config=configs/finetune_tag.py:task=EWT,from=runs/minilm,stage=import

After the colon come key=value pairs, split by commas:

    task    WNUT or EWT
    from    the workdir of the backbone: its tokenizer, and its stage's checkpoint
    stage   that stage's name (default: pretrain)
    data    the folder of the two tasks' folders, wnut17 and ud_ewt (default: $ROOTSTOCK_DATA)
    frozen  yes: the backbone stays as it is, and a linear map of its last states is learned: a probe (default: no)
    seed    (default: 0)

WNUT-17 (Derczynski et al. 2017, doi.org/10.18653/v1/W17-4418) is scored by the F1 of its entities, EWT (Silveira et al.
2014, https://universaldependencies.org) by the share of words with the right tag.

Seen: all-MiniLM-L6-v2 on EWT, one epoch (--config.finetune.epochs=1.0, 392 steps), seed 0: 95.89 % of the words
of dev, in 20 minutes on two CPU cores that were busy with much else. On WNUT, five epochs (531 steps), seed 0: F1 57.1
of dev's entities, 95.35 % of its words. What backbones pretrained by each objective score on EWT, whole and frozen, is
in objectives/README.md.

Everything else is a key of the config: --config.finetune.schedule.peak=1e-4 --config.finetune.epochs=5
"""

import ml_collections

_ENTITIES = ("corporation", "creative-work", "group", "location", "person", "product")
_UNIVERSAL = (
    "ADJ", "ADP", "ADV", "AUX", "CCONJ", "DET", "INTJ", "NOUN", "NUM", "PART", "PRON", "PROPN", "PUNCT", "SCONJ", "SYM",
    "VERB", "X",
)  # fmt: skip
# task: the source's factory, its files, classes, the metric
TASKS = {
    "WNUT": (
        "tagged", "wnut17/{}.conll", ("O", *(f"{begin}-{kind}" for kind in _ENTITIES for begin in "BI")), "entity_f1"
    ),
    "EWT": ("conllu", "ud_ewt/{}.conllu.gz", _UNIVERSAL, "tag_accuracy"),
}  # fmt: skip
DEFAULTS = {
    "task": "EWT", "from": "runs/pretrain", "stage": "pretrain", "data": "$ROOTSTOCK_DATA", "frozen": "no", "seed": "0",
}  # fmt: skip


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    given = dict(part.partition("=")[::2] for part in arguments.split(",") if part)
    if unknown := sorted(given.keys() - DEFAULTS.keys()):
        raise ValueError(f"{unknown[0]!r} is no argument of this config; they are {', '.join(DEFAULTS)}")
    at = DEFAULTS | given
    if at["task"] not in TASKS:
        raise ValueError(f"task={at['task']} is not one of {', '.join(TASKS)}")
    if at["frozen"] not in ("yes", "no"):
        raise ValueError(f"frozen={at['frozen']} is not one of yes, no")
    kind, files, classes, metric = TASKS[at["task"]]
    checkpoint = f"{at['from']}/{at['stage']}"

    def sentences(split: str) -> dict:
        source = dict(factory=f"train.data.source:{kind}", path=f"{at['data']}/{files.format(split)}")
        # of what is scored nothing may be lost: words that are cut would count for no score
        return dict(
            factory="train.data.words:tag_words", source=source, length=128, classes=classes, truncate=split == "train"
        )

    config = ml_collections.ConfigDict()
    config.stages = ("finetune",)
    config.tokenizer = dict(factory="train.data.tokenizer:load", path=at["from"])
    config.backbone = dict(checkpoint=checkpoint, dropout=0.1, attention_dropout=0.1)
    config.finetune = dict(
        objective=dict(factory="objectives.tag:tag", classes=classes),
        data=sentences("train"),
        evals=dict(dev=sentences("dev")),
        carry=dict(checkpoint=checkpoint, rules=(("(backbone/.*)", r"\1"),)),
        learned=(("backbone/.*", False),) if at["frozen"] == "yes" else (),
        optimizer=dict(factory="train.optimizer:adamw", weight_decay=0.0, clip=1.0),
        schedule=dict(factory="train.schedule:linear", peak=1e-4, warmup=0.1),
        batch=32,
        layout="packed",
        epochs=3.0,
        seed=int(at["seed"]),
        log_every=50,
        save_every=10_000,
        best=f"dev/{metric}",
    )
    return config

"""GLUE's small tasks (Wang et al. 2018, https://arxiv.org/abs/1804.07461), any of them, from any checkpoint.

    python -m launch.convert import --source=MODEL --out=runs/minilm
    python -m train --workdir=runs/rte --config=configs/finetune_glue.py:task=RTE,from=runs/minilm,stage=import

After the colon come key=value pairs, split by commas:

    task    CoLA, MRPC, RTE, SST-2 or STS-B
    from    the workdir of the backbone: its tokenizer, and its stage's checkpoint
    stage   that stage's name (default: pretrain)
    data    the folder of the tasks (default: $ROOTSTOCK_DATA/glue), each in a folder of its name, as GLUE has them
    pooler  where the checkpoint has a pooler to carry too: pooler in a bare published BERT, nsp/pooler in one with its
            heads, classify/pooler in a classifier; fresh (the default): one of its own
    seed    (default: 0)

Scores on dev of all-MiniLM-L6-v2, batches of 32, seeds 0 to 4, here and by Hugging Face's Trainer, mean and deviation
(python -m launch.bench_glue --source=MODEL --out=runs/glue --seeds=0,1,2,3,4; SST-2 with --epochs=1 --seeds=0):

    CoLA   Matthews, 3 epochs   28.3 ± 2.0   26.2 ± 2.3
    MRPC   F1, 3 epochs         85.5 ± 1.2   85.4 ± 0.5
    RTE    accuracy, 3 epochs   56.0 ± 1.6   54.7 ± 1.2
    SST-2  accuracy, 1 epoch    89.2         89.1
    STS-B  Spearman, 3 epochs   84.7 ± 0.3   85.1 ± 0.3

STS-B's difference is no bug that was found: without dropout 40 steps have Trainer's losses and gradient norms to 1e-5.

Speed on two cores of an AMD EPYC (Zen 5) with nothing else running, in rounds of steps in turn with Trainer (...
--steps=8 --sides=ours,trainer,trainer_128), examples/s here, and times what Trainer does that pads each batch to its
longest text, and one that pads to 128 tokens:

    CoLA   236   2.9  15.9
    MRPC    61   2.4   4.2
    RTE     50   3.4   3.3
    SST-2  191   3.6  13.1
    STS-B  109   3.8   7.4

Everything else is a key of the config: --config.finetune.schedule.peak=1e-4 --config.finetune.epochs=5
"""

import ml_collections

# task: columns of the text, the pair and the label (numbers where the file has no header), classes, the metric
TASKS = {
    "CoLA": (3, None, 1, ("0", "1"), "matthews"),
    "MRPC": ("#1 String", "#2 String", "Quality", ("0", "1"), "f1"),
    "RTE": ("sentence1", "sentence2", "label", ("entailment", "not_entailment"), "accuracy"),
    "SST-2": ("sentence", None, "label", ("0", "1"), "accuracy"),
    "STS-B": ("sentence1", "sentence2", "score", None, "spearman"),
}
DEFAULTS = {
    "task": "RTE", "from": "runs/pretrain", "stage": "pretrain", "data": "$ROOTSTOCK_DATA/glue", "pooler": "fresh",
    "seed": "0",
}  # fmt: skip


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    given = dict(part.partition("=")[::2] for part in arguments.split(",") if part)
    if unknown := sorted(given.keys() - DEFAULTS.keys()):
        raise ValueError(f"{unknown[0]!r} is no argument of this config; they are {', '.join(DEFAULTS)}")
    at = DEFAULTS | given
    if at["task"] not in TASKS:
        raise ValueError(f"task={at['task']} is not one of {', '.join(TASKS)}")
    text, pair, label, classes, metric = TASKS[at["task"]]
    checkpoint = f"{at['from']}/{at['stage']}"

    def examples(split: str) -> dict:
        columns: dict = {"text": text, "label": label} | ({} if pair is None else {"pair": pair})
        source = dict(
            factory="train.data.source:csv", path=f"{at['data']}/{at['task']}/{split}.tsv*", delimiter="\t",
            header=isinstance(text, str), **columns,
        )  # fmt: skip
        return dict(factory="train.data.rows:label_examples", source=source, length=128, classes=classes, truncate=True)

    config = ml_collections.ConfigDict()
    config.stages = ("finetune",)
    config.tokenizer = dict(factory="train.data.tokenizer:load", path=at["from"])
    config.backbone = dict(checkpoint=checkpoint, dropout=0.1, attention_dropout=0.1)
    if classes is None:
        objective: dict = dict(factory="objectives.regress:regress", pooling="first")
    else:
        objective = dict(factory="objectives.classify:classify", classes=len(classes), pooling="first")
    rules = [("(backbone/.*)", r"\1")]
    if at["pooler"] != "fresh":
        rules.append((r"(?:classify|regress)/pooler/(.*)", rf"{at['pooler']}/\1"))
    config.finetune = dict(
        objective=objective,
        data=examples("train"),
        evals=dict(dev=examples("dev")),
        carry=dict(checkpoint=checkpoint, rules=tuple(rules)),
        optimizer=dict(factory="train.optimizer:adamw", weight_decay=0.0, clip=1.0),
        schedule=dict(factory="train.schedule:linear", peak=5e-5, warmup=0.0),
        batch=32,
        layout="packed",
        epochs=3.0,
        seed=int(at["seed"]),
        log_every=50,
        save_every=10_000,
        best=f"dev/{metric}",
    )
    return config

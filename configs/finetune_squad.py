"""Answers to questions, from any checkpoint: SQuAD 1.1 (Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250), 2.0
(Rajpurkar et al. 2018, https://arxiv.org/abs/1806.03822), or whatever is written as they are.

    python -m launch.convert import --source=MODEL --out=runs/bert
    python -m train --workdir=runs/squad --config=configs/finetune_squad.py:from=runs/bert,stage=import,data=squad
    python -m launch.predict --workdir=runs/squad --stage=finetune --best --evaluate       # exact match and F1, by text
    python -m launch.predict --workdir=runs/squad --stage=finetune --best --texts=asked.jsonl   # text and pair

After the colon come key=value pairs, split by commas:

    data     the folder of train-v1.1.json and dev-v1.1.json, of version 2 train-v2.0.json and dev-v2.0.json
    version  1.1, or 2.0, where a question may have no answer (default: 1.1)
    from     the workdir of the backbone: its tokenizer, and its stage's checkpoint
    stage    that stage's name (default: pretrain)
    head     carry a published head for question answering too: yes or no (default: no)
    seed     (default: 0)

Everything else is a key of the config: --config.finetune.schedule.peak=5e-5 --config.finetune.epochs=3
"""

import ml_collections

DEFAULTS = {
    "data": "squad", "version": "1.1", "from": "runs/pretrain", "stage": "pretrain", "head": "no", "seed": "0",
}  # fmt: skip


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    given = dict(part.partition("=")[::2] for part in arguments.split(",") if part)
    if unknown := sorted(given.keys() - DEFAULTS.keys()):
        raise ValueError(f"{unknown[0]!r} is no argument of this config; they are {', '.join(DEFAULTS)}")
    at = DEFAULTS | given
    for key, choices in {"version": ("1.1", "2.0"), "head": ("yes", "no")}.items():
        if at[key] not in choices:
            raise ValueError(f"{key}={at[key]} is not one of {', '.join(choices)}")
    checkpoint = f"{at['from']}/{at['stage']}"

    def questions(split: str) -> dict:
        source = dict(factory="train.data.source:squad", path=f"{at['data']}/{split}-v{at['version']}.json")
        return dict(factory="train.data.answers:answer_windows", source=source, length=384, stride=128, question=64)

    config = ml_collections.ConfigDict()
    config.stages = ("finetune",)
    config.tokenizer = dict(factory="train.data.tokenizer:load", path=at["from"])
    config.backbone = dict(checkpoint=checkpoint, dropout=0.1, attention_dropout=0.1)
    rules: tuple = (("(backbone/.*)", r"\1"),)
    objective: dict = dict(factory="objectives.answer:answer")
    if at["head"] == "yes":  # with its layers, which ModernBERT's has between
        objective = dict(checkpoint=checkpoint)
        rules += (("(answer/.*)", r"\1"),)
    config.finetune = dict(
        objective=objective | dict(unanswerable=at["version"] == "2.0"),
        data=questions("train"),
        evals=dict(dev=questions("dev")),
        carry=dict(checkpoint=checkpoint, rules=rules),
        optimizer=dict(factory="train.optimizer:adamw", weight_decay=0.01, clip=1.0),
        schedule=dict(factory="train.schedule:linear", peak=5e-5, warmup=0.1),
        batch=32,
        layout="packed",
        epochs=2.0,
        seed=int(at["seed"]),
        log_every=50,
        save_every=1000,
        eval_every=1000,
        best="dev/answer_overlap",
    )
    return config

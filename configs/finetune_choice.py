"""Multiple choice, or the ranking of candidates, each read together with the question, from any checkpoint.

    python -m launch.convert import --source=MODEL --out=runs/bert
    python -m train --workdir=runs/swag \\
      --config='configs/finetune_choice.py:from=runs/bert,stage=import,train=train.jsonl,dev=dev.jsonl'
    python -m launch.predict --workdir=runs/swag --stage=finetune --best --texts=asked.jsonl     # text and choices

Files are jsonl, one question a line, as {"question": "...", "choices": ["...", "...", "..."], "label": 1}: the label is
the number of the right choice, from 0. With `rank` the label is a list of a grade for each candidate, as [0, 2, 1],
more than 0 for what is relevant: each of those is to be chosen, and the score of that name is reported and kept best.
After the colon come key=value pairs, split by commas:

    from        the workdir of the backbone: its tokenizer, and its stage's checkpoint
    stage       that stage's name (default: pretrain)
    train, dev  files; a name may end in .gz
    question, choices, label   keys (defaults: those above); choices may be several keys of a text each, split by |
    most        the most choices that a question has (default: 4)
    length      tokens of a question with all its choices; longer ones are cut (default: 512)
    longest     tokens of a question with one of them, no more than the backbone's max_length; what is longer is cut
                (default: 512). Four choices of so many each are length=2048
    rank        mrr, ndcg@10, recall@5, ...: see train.ranking (default: none, choose by accuracy)

Candidates by the million are embedded, each once, by objectives.contrastive: see configs/retrieve_multi30k.py.
Everything else is a key of the config: --config.finetune.schedule.peak=3e-5 --config.finetune.epochs=5
"""

import ml_collections

DEFAULTS = {
    "stage": "pretrain", "question": "question", "choices": "choices", "label": "label", "most": "4", "length": "512",
    "longest": "512", "rank": "none",
}  # fmt: skip
REQUIRED = ("from", "train", "dev")


def get_config(arguments: str = "from=runs/pretrain,train=train.jsonl,dev=dev.jsonl") -> ml_collections.ConfigDict:
    given = dict(part.partition("=")[::2] for part in arguments.split(",") if part)
    if unknown := sorted(given.keys() - DEFAULTS.keys() - set(REQUIRED)):
        raise ValueError(f"{unknown[0]!r} is no argument of this config; they are {', '.join([*REQUIRED, *DEFAULTS])}")
    if missing := [key for key in REQUIRED if key not in given]:
        raise ValueError(f"this config needs {', '.join(missing)}, as in --config=FILE:from=DIR,train=FILE,dev=FILE")
    at = DEFAULTS | given
    most, ranked = int(at["most"]), at["rank"] != "none"
    checkpoint = f"{at['from']}/{at['stage']}"

    def questions(path: str) -> dict:
        source = dict(
            factory="train.data.source:jsonl", path=path, text=at["question"], more=tuple(at["choices"].split("|")),
            label=at["label"],
        )  # fmt: skip
        return dict(
            factory="train.data.groups:text_groups", source=source, length=int(at["length"]), segments=most,
            classes=None if ranked else tuple(map(str, range(most))), joined=True, truncate=True,
            longest=int(at["longest"]),
        )  # fmt: skip

    config = ml_collections.ConfigDict()
    config.stages = ("finetune",)
    config.tokenizer = dict(factory="train.data.tokenizer:load", path=at["from"])
    config.backbone = dict(checkpoint=checkpoint, dropout=0.1, attention_dropout=0.1)
    config.finetune = dict(
        objective=dict(factory="objectives.choose:choose", scores=(at["rank"],) if ranked else ()),
        data=questions(at["train"]),
        evals=dict(dev=questions(at["dev"])),
        carry=dict(checkpoint=checkpoint, rules=(("(backbone/.*)", r"\1"),)),
        optimizer=dict(factory="train.optimizer:adamw", weight_decay=0.01, clip=1.0),
        schedule=dict(factory="train.schedule:linear", peak=5e-5, warmup=0.1),
        batch=16,
        epochs=3.0,
        seed=0,
        eval_every=500,
        save_every=1000,
        log_every=50,
        best=f"dev/{at['rank'] if ranked else 'choose_accuracy'}",
    )
    return config

"""Sentence embeddings without labels, by SimCSE (Gao et al. 2021, https://arxiv.org/abs/2104.08821), scored on STS-B.

    python -m launch.convert import --source=MODEL --out=runs/bert
    python -m train --workdir=runs/simcse --config=configs/contrastive_stsb.py:from=runs/bert,stage=import

After the colon come key=value pairs, split by commas:

    from    the workdir of the backbone: its tokenizer, and its stage's checkpoint
    stage   that stage's name (default: pretrain)
    text    jsonl with `text` (default: $ROOTSTOCK_DATA/pretrain/wiki_train.jsonl.gz)
    close   a tsv of pairs that mean the same, sentence1 and sentence2, to learn by instead of `text` and its dropout
    pairs   STS-B's dev.tsv (default: $ROOTSTOCK_DATA/glue/STS-B/dev.tsv)
    seed    (default: 0)

Pieces of 32 tokens, each encoded twice under dropout. `dev/spearman` is that of the pairs' cosine with their score.

Seen, one seed each: all-MiniLM-L6-v2, which knows such pairs already, goes from 86.7 to 87.4 in 250 steps
(--config.simcse.steps=250), under five minutes of two CPU cores. Two layers of 128 channels are too small for it: the
mlm of configs/compare_objectives.py (1,250 steps) goes from 48.7 to 43.8 in these 1,000 steps, its loss from 1.40 to
0.007; the same backbone untrained (steps=1) from 60.9 to 55.1 in 250. Whatever tells pieces of Wikipedia apart will do,
and their words do at once. Labels help: with the 1,406 pairs of STS-B's train.tsv that are rated 4 or more the mlm goes
from 48.7 to 61.8:

    awk -F'\\t' 'NR == 1 || $10 >= 4' $ROOTSTOCK_DATA/glue/STS-B/train.tsv > close.tsv
    python -m train --workdir=runs/close --config=configs/contrastive_stsb.py:from=runs/mlm,close=close.tsv \\
      --config.simcse.steps=100 --config.simcse.schedule.peak=3e-4

For triples of anchor, positive and hard negative, as of a csv of three columns:

    data=dict(factory="train.data.groups:text_groups", length=96, segments=3, truncate=True, source=dict(
        factory="train.data.source:csv", path="nli.csv", text="sent0", pair="sent1", more=("hard_neg",)))
    objective=dict(factory="objectives.contrastive:contrastive", positives="group")
"""

import ml_collections

DEFAULTS = {
    "from": "runs/pretrain", "stage": "pretrain", "text": "$ROOTSTOCK_DATA/pretrain/wiki_train.jsonl.gz",
    "close": "", "pairs": "$ROOTSTOCK_DATA/glue/STS-B/dev.tsv", "seed": "0",
}  # fmt: skip


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    given = dict(part.partition("=")[::2] for part in arguments.split(",") if part)
    if unknown := sorted(given.keys() - DEFAULTS.keys()):
        raise ValueError(f"{unknown[0]!r} is no argument of this config; they are {', '.join(DEFAULTS)}")
    at = DEFAULTS | given
    checkpoint = f"{at['from']}/{at['stage']}"
    text = dict(factory="train.data.source:jsonl", path=at["text"])
    tsv = dict(factory="train.data.source:csv", delimiter="\t", text="sentence1", pair="sentence2")
    pairs = tsv | dict(path=at["pairs"], label="score")
    data = dict(factory="train.data.rows:pack_documents", source=text, length=32, segments=1)
    if at["close"]:
        data = dict(
            factory="train.data.groups:text_groups", source=tsv | dict(path=at["close"]), length=128, segments=4,
            truncate=True,
        )  # fmt: skip
    config = ml_collections.ConfigDict()
    config.stages = ("simcse",)
    config.tokenizer = dict(factory="train.data.tokenizer:load", path=at["from"])
    config.backbone = dict(checkpoint=checkpoint, dropout=0.1, attention_dropout=0.1)
    config.simcse = dict(
        objective=dict(
            factory="objectives.contrastive:contrastive",
            pooling="mean",
            temperature=0.05,
            scores=("spearman",),
            positives="group" if at["close"] else "dropout",
        ),
        data=data,
        evals=dict(
            dev=dict(factory="train.data.groups:text_groups", source=pairs, length=128, segments=4, truncate=True)
        ),
        carry=dict(checkpoint=checkpoint),
        optimizer=dict(factory="train.optimizer:adamw", weight_decay=0.0, clip=1.0),
        schedule=dict(factory="train.schedule:linear", peak=3e-5, warmup=0.0),
        batch=64,
        steps=1000,
        seed=int(at["seed"]),
        eval_every=125,
        log_every=50,
        save_every=10_000,
        best="dev/spearman",
    )
    return config

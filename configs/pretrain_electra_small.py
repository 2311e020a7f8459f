"""ELECTRA small, replaced-token detection as published: Clark et al. 2020, https://arxiv.org/abs/2003.10555, table 6.

    python -m train --config=configs/pretrain_electra_small.py --workdir=runs/electra-small

From the paper: 12 layers of 256 on embeddings of 128, a generator of a quarter of the width that shares them, 15 % of
the tokens masked for it, a discriminator's loss of weight 50, dropout 0.1, Adam at 5e-4 (0.9, 0.999, 1e-6) with decay
0.01, 10,000 steps of warmup and a linear decay over 1,000,000 steps of 128 rows of 128 tokens. Ours: documents are
packed rather than cut, gradients are clipped at 1.0 (as the released code does), the generator keeps as many channels a
head, and the vocabulary is a SentencePiece model of the same size. Not run here: `python -m launch.plan
--config=configs/pretrain_electra_small.py` counts 14.2 million parameters and 1.2e18 FLOPs (the paper: 14 million and
1.4e18).

What is kept is the backbone, the discriminator: `--config=configs/finetune_glue.py:task=RTE,from=runs/electra-small`.

`$ROOTSTOCK_DATA` names a folder with `pretrain/*.jsonl.gz` (field `text`); change `source` for text of your own.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    source = dict(
        factory="train.data.source:jsonl",
        path=("$ROOTSTOCK_DATA/pretrain/wiki_train.jsonl.gz", "$ROOTSTOCK_DATA/pretrain/books_train.jsonl.gz"),
    )
    valid = dict(factory="train.data.source:jsonl", path="$ROOTSTOCK_DATA/pretrain/wiki_valid.jsonl.gz")
    rows = dict(factory="train.data.rows:pack_documents", length=128)

    config = ml_collections.ConfigDict()
    config.stages = ("pretrain",)
    config.tokenizer = dict(
        factory="train.data.tokenizer:train_sentencepiece", source=source, size=30_522, lowercase=True
    )
    config.backbone = dict(
        size="base", D=256, heads=4, F=1024, embed_width=128, dtype="bfloat16", scan=True, dropout=0.1,
        attention_dropout=0.1,
    )  # fmt: skip
    config.pretrain = dict(
        objective=dict(factory="objectives.rtd:rtd", rate=0.15, coefficient=50.0),
        data=dict(rows, source=source),
        evals=dict(valid=dict(rows, source=valid)),
        optimizer=dict(factory="train.optimizer:adamw", b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01, clip=1.0),
        schedule=dict(factory="train.schedule:linear", peak=5e-4, warmup=10_000),
        batch=128,
        steps=1_000_000,
        eval_every=10_000,
        save_every=5_000,
        log_every=100,
    )
    return config

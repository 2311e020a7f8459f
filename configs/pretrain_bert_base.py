"""BERT base, masked language modelling as published: Devlin et al. 2018, https://arxiv.org/abs/1810.04805, A.2.

    python -m train --config=configs/pretrain_bert_base.py --workdir=runs/bert-base

From the paper: 12 layers of 768, 15 % of the tokens (80/10/10), dropout 0.1, Adam at 1e-4 (0.9, 0.999) with decay 0.01,
10,000 steps of warmup and a linear decay over 1,000,000 steps of 256 sequences; 90 % of the steps at 128 tokens, the
rest at 512. Ours: next-sentence prediction is left out, documents are packed rather than cut, gradients are clipped at
1.0 (as the released code does), and the vocabulary is a SentencePiece model of the same size. Not run here: see
`python -m launch.plan --config=configs/pretrain_bert_base.py --mesh=data=16` for what it takes.

`$ROOTSTOCK_DATA` names a folder with `pretrain/*.jsonl.gz` (field `text`); change `source` for text of your own.
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    source = dict(
        factory="train.data.source:jsonl",
        path=("$ROOTSTOCK_DATA/pretrain/wiki_train.jsonl.gz", "$ROOTSTOCK_DATA/pretrain/books_train.jsonl.gz"),
    )
    valid = dict(factory="train.data.source:jsonl", path="$ROOTSTOCK_DATA/pretrain/wiki_valid.jsonl.gz")

    def stage(length: int, batch: int, steps: int, **more) -> dict:
        rows = dict(factory="train.data.rows:pack_documents", length=length)
        return dict(
            objective=dict(factory="objectives.mlm:mlm", rate=0.15, mask=0.8, replace=0.1),
            data=dict(rows, source=source),
            evals=dict(valid=dict(rows, source=valid)),
            optimizer=dict(
                factory="train.optimizer:adamw", b1=0.9, b2=0.999, eps=1e-6, weight_decay=0.01, clip=1.0
            ),
            batch=batch,
            steps=steps,
            eval_every=10_000,
            save_every=5_000,
            log_every=100,
            **more,
        )  # fmt: skip

    config = ml_collections.ConfigDict()
    config.stages = ("short", "long")
    config.tokenizer = dict(
        factory="train.data.tokenizer:train_sentencepiece", source=source, size=30_522, lowercase=True
    )
    config.backbone = dict(size="base", dtype="bfloat16", scan=True, dropout=0.1, attention_dropout=0.1)
    falling = dict(factory="train.schedule:linear", peak=1e-4, warmup=10_000, end=0.1)
    config.short = stage(128, 256, 900_000, schedule=falling)
    # the last tenth of the line, from where the short rows left it
    last = dict(factory="train.schedule:linear", peak=1e-5, warmup=0.0)
    carried = dict(stage="short", rules=(("(.*)", r"\1"),))
    config.long = stage(512, 256, 100_000, schedule=last, carry=carried)
    return config

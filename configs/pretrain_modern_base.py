"""ModernBERT base, first phase: Warner et al. 2024, https://arxiv.org/abs/2412.13663, section 2.2 and appendix A.

    python -m train --config=configs/pretrain_modern_base.py --workdir=runs/modern-base

From the paper: 22 layers of 768 with GeGLU, alternating attention (every third layer global, window 128) and RoPE; 30 %
of the tokens masked; rows of 1,024 tokens; peak learning rate 8e-4 held after a warmup of 3 billion tokens; weight
decay 1e-5; betas (0.9, 0.98), eps 1e-6; batches of 4,608 rows; 1.719 trillion tokens. Ours: AdamW with clipping for
their StableAdamW, no batch-size warmup, and a SentencePiece vocabulary of the same size. Not run here: see
`python -m launch.plan --config=configs/pretrain_modern_base.py --mesh=data=64` for what it takes.

`$ROOTSTOCK_DATA` names a folder with `pretrain/*.jsonl.gz` (field `text`); change `source` for text of your own.
"""

import ml_collections

ROW, ROWS = 1024, 4608
TOKENS, WARMUP_TOKENS = 1.719e12, 3e9


def get_config() -> ml_collections.ConfigDict:
    source = dict(
        factory="train.data.source:jsonl",
        path=("$ROOTSTOCK_DATA/pretrain/wiki_train.jsonl.gz", "$ROOTSTOCK_DATA/pretrain/books_train.jsonl.gz"),
    )
    valid = dict(factory="train.data.source:jsonl", path="$ROOTSTOCK_DATA/pretrain/wiki_valid.jsonl.gz")
    rows = dict(factory="train.data.rows:pack_documents", length=ROW)

    config = ml_collections.ConfigDict()
    config.stages = ("pretrain",)
    config.tokenizer = dict(factory="train.data.tokenizer:train_sentencepiece", source=source, size=50_368)
    config.backbone = dict(size="modern-base", dtype="bfloat16", scan=True)
    config.pretrain = dict(
        objective=dict(factory="objectives.mlm:mlm", rate=0.3, mask=0.8, replace=0.1),
        data=dict(rows, source=source),
        evals=dict(valid=dict(rows, source=valid)),
        optimizer=dict(factory="train.optimizer:adamw", b1=0.9, b2=0.98, eps=1e-6, weight_decay=1e-5, clip=1.0),
        # the decay to zero belongs to the last phase, on longer rows
        schedule=dict(factory="train.schedule:constant", peak=8e-4, warmup=round(WARMUP_TOKENS / ROW / ROWS)),
        batch=ROWS,
        microbatches=4,
        steps=round(TOKENS / ROW / ROWS),
        eval_every=10_000,
        save_every=5_000,
        log_every=100,
    )
    return config

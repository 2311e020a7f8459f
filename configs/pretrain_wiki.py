"""A small backbone on 51 MB of Wikipedia, in minutes on two cores: something to finetune where there is no accelerator.

    python -m train --config=configs/pretrain_wiki.py --workdir=runs/wiki
    python -m train --workdir=runs/sst2 --config.finetune.epochs=1 --config.finetune.schedule.peak=1e-3 \\
      --config='configs/finetune_classification.py:from=runs/wiki,train=train.tsv.gz,dev=dev.tsv,text=sentence,length=64'

The second command, on the files of SST-2 (67,349 and 872 sentences), gave 82.5 % on dev after one epoch (82.3 % at step
1,500 of 2,105), one seed, the learning rate not tuned. That was before masks were drawn as they are now, and
GEGLU's kernels kept; it has not been run again.

`$ROOTSTOCK_DATA` names a folder with `pretrain/wiki_train.jsonl.gz` and `pretrain/wiki_valid.jsonl.gz` (field `text`).
"""

import ml_collections


def get_config() -> ml_collections.ConfigDict:
    train = dict(factory="train.data.source:jsonl", path="$ROOTSTOCK_DATA/pretrain/wiki_train.jsonl.gz")
    valid = dict(factory="train.data.source:jsonl", path="$ROOTSTOCK_DATA/pretrain/wiki_valid.jsonl.gz")
    rows = dict(factory="train.data.rows:pack_documents", length=128)
    config = ml_collections.ConfigDict()
    config.stages = ("pretrain",)
    config.tokenizer = dict(
        factory="train.data.tokenizer:train_sentencepiece", source=train, size=8192, lowercase=True, sentences=20_000
    )
    # at init_std 0.02 a small backbone stays long on the unigram plateau
    config.backbone = dict(
        size="tiny", F=256, position="rope", norm_at="pre", mlp="geglu", bias=False, types=0, init_std=0.06, eps=1e-5,
        dropout=0.0, attention_dropout=0.0, max_length=128,
    )  # fmt: skip
    config.pretrain = dict(
        objective=dict(factory="objectives.mlm:mlm", rate=0.3, mask=1.0, replace=0.0, bag=0.5),
        data=dict(rows, source=train),
        evals=dict(valid=dict(rows, source=valid)),
        optimizer=dict(factory="train.optimizer:adamw", b2=0.98, weight_decay=0.01),
        schedule=dict(factory="train.schedule:linear", peak=4e-3, warmup=0.05),
        batch=16,
        steps=2500,
        save_every=1000,
        eval_every=2500,
        log_every=100,
    )
    return config

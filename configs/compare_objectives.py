"""Objectives side by side: one backbone, the same tokens of Wikipedia, then GLUE, tagging and BLiMP.

    python -m launch.compare --out=runs/compare --objectives=mlm,causal,hybrid,rtd --steps=2500
    python -m train --workdir=runs/mlm --config=configs/compare_objectives.py:objective=mlm

The first trains each objective by this config, finetunes it on launch.compare.TASKS and prints one table, as in
objectives/README.md; the second is one of those trainings. After the colon come key=value pairs, split by commas:

    objective  one of OBJECTIVES below (default: mlm)
    size       of the backbone, see model.config (default: tiny)
    batch      rows of 128 tokens a step (default: 32); of those with pairs of sentences, half as many of 256
    steps      (default: 2500)
    peak       of the learning rate (default: `peak` of size and batch below, which suits mlm)
    seed       (default: 0)

PMI-masking is mlm-word with a list of what goes together, made of the rows:

    python -m train.data.collocations runs/compare/data/DIR --tokenizer=runs/compare/mlm_tiny_1250x32_0.002_0 \\
      --out=ngrams.txt
    python -m train --workdir=runs/pmi --config=configs/compare_objectives.py:objective=mlm-word,steps=1250 \\
      --config.pretrain.objective.unit=ngram --config.pretrain.objective.ngrams=ngrams.txt

`$ROOTSTOCK_DATA` names a folder with `pretrain/wiki_train.jsonl.gz` and `pretrain/wiki_valid.jsonl.gz` (field `text`);
launch.compare needs `glue`, `ud_ewt` and `blimp` there too, for the tasks that it is asked for. See the README's table.
"""

import ml_collections

_MLM = dict(factory="objectives.mlm:mlm", rate=0.3, mask=1.0, replace=0.0)
_CAUSAL = dict(factory="objectives.causal:causal")
_NSP, _SOP = dict(factory="objectives.pairs:nsp"), dict(factory="objectives.pairs:sop")
OBJECTIVES: dict[str, dict] = {
    "mlm": _MLM,
    "mlm-bert": dict(factory="objectives.mlm:mlm"),
    "mlm-word": _MLM | dict(unit="word"),
    "mlm-span": _MLM | dict(unit="span"),
    "mlm-boundary": _MLM | dict(unit="span", boundary=1.0),
    "mlm-falling": _MLM | dict(rate=(0.3, 0.15)),  # over the whole run
    "mlm-bag": _MLM | dict(bag=0.5),
    "causal": _CAUSAL,
    "prefix": _CAUSAL | dict(prefix=True),
    "hybrid": dict(factory="objectives.hybrid:hybrid", rate=0.3, mask=1.0, replace=0.0),
    "diffusion": dict(factory="objectives.diffusion:diffusion", least=0.05),
    "rtd": dict(factory="objectives.rtd:rtd"),
    "rtd-none": dict(factory="objectives.rtd:rtd", sharing="none"),
    "rtd-gdes": dict(factory="objectives.rtd:rtd", sharing="gdes"),
    "denoise": dict(factory="objectives.denoise:denoise"),
    "reconstruct": dict(factory="objectives.reconstruct:reconstruct"),
    "data2vec": dict(  # hidden as its authors' code has it for text; the teacher follows sooner, of fewer steps
        factory="objectives.data2vec:data2vec",
        rate=0.35,
        mask=1.0,
        replace=0.0,
        unit="span",
        span=4.0,
        top=2,
        decay=0.99,
        final_decay=0.999,
        decay_steps=1000,
    ),
    "contrastive": dict(factory="objectives.contrastive:contrastive"),
    "t5": dict(factory="objectives.seq2seq:span_corruption", sentinels=32),
    "bart": dict(factory="objectives.seq2seq:bart"),
    "bart-delete": dict(factory="objectives.seq2seq:bart", noise="delete", span=1.0),
    "mlm+nsp": dict(mixture=dict(mlm=_MLM | dict(weight=1.0), nsp=_NSP | dict(weight=1.0))),
    "mlm+sop": dict(mixture=dict(mlm=_MLM | dict(weight=1.0), sop=_SOP | dict(weight=1.0))),
    "mlm+contrastive": dict(
        mixture=dict(
            mlm=_MLM | dict(weight=1.0), contrastive=dict(factory="objectives.contrastive:contrastive", weight=0.1)
        )
    ),
    "mlm|causal": dict(mixture=dict(mlm=_MLM | dict(weight=1.0), causal=_CAUSAL | dict(weight=1.0)), alternate=True),
}
# at init_std 0.02 a small backbone stays long on the unigram plateau; wider ones want less of it by the square root of
# the width over that of tiny
WIDER = {"tiny": 1.0, "mini": 2**0.5, "small": 2.0, "medium": 2.0, "base": 6**0.5, "large": 8**0.5}
VOCABULARY = 8192
PAIRS = ("mlm+nsp", "mlm+sop")  # their rows hold pairs of spans
DROPOUT = ("contrastive", "mlm+contrastive")  # the two views of a text are two draws of it
DEFAULTS = {"objective": "mlm", "size": "tiny", "batch": "32", "steps": "2500", "peak": "", "seed": "0"}


def peak(size: str, batch: int) -> float:
    """The learning rate: smaller by the square roots of the width over that of tiny and of 32 over the rows a step."""
    return 2e-3 / WIDER[size] * (batch / 32) ** 0.5


def get_config(arguments: str = "") -> ml_collections.ConfigDict:
    given = dict(part.partition("=")[::2] for part in arguments.split(",") if part)
    if unknown := sorted(given.keys() - DEFAULTS.keys()):
        raise ValueError(f"{unknown[0]!r} is no argument of this config; they are {', '.join(DEFAULTS)}")
    at = DEFAULTS | given
    if at["objective"] not in OBJECTIVES:
        raise ValueError(f"objective={at['objective']} is not one of {', '.join(OBJECTIVES)}")
    if at["size"] not in WIDER:
        raise ValueError(f"size={at['size']} is not one of {', '.join(WIDER)}")
    wider, batch = WIDER[at["size"]], int(at["batch"])
    learning_rate = float(at["peak"] or peak(at["size"], batch))
    train = dict(factory="train.data.source:jsonl", path="$ROOTSTOCK_DATA/pretrain/wiki_train.jsonl.gz")
    valid = dict(factory="train.data.source:jsonl", path="$ROOTSTOCK_DATA/pretrain/wiki_valid.jsonl.gz")
    rows: dict = dict(factory="train.data.rows:pack_documents", length=128)
    length = 128
    if at["objective"] in PAIRS:  # several to a row, whose second spans change; of 128 tokens, for whole sentences
        length, batch = 256, max(batch // 2, 1)
        rows = dict(factory="train.data.rows:pair_sentences", length=length, segments=4, longest=128)
    # T5's sentinels have the ids after the tokenizer's
    more = dict(V=VOCABULARY + OBJECTIVES[at["objective"]].get("sentinels", 0))
    objective, dropout = OBJECTIVES[at["objective"]], 0.1 if at["objective"] in DROPOUT else 0.0
    if isinstance(objective.get("rate"), tuple):
        objective = objective | dict(rate=(*objective["rate"], int(at["steps"])))
    config = ml_collections.ConfigDict()
    config.stages = ("pretrain",)
    config.tokenizer = dict(
        factory="train.data.tokenizer:train_sentencepiece",
        source=train,
        size=VOCABULARY,
        lowercase=True,
        sentences=20_000,
    )
    config.backbone = dict(
        size=at["size"], position="rope", norm_at="pre", mlp="geglu", bias=False, types=2, init_std=0.06 / wider,
        eps=1e-5, dropout=dropout, attention_dropout=dropout, max_length=length, **more,
    )  # fmt: skip
    config.pretrain = dict(
        objective=objective,
        data=dict(rows, source=train),
        evals=dict(valid=dict(rows, source=valid)),
        optimizer=dict(factory="train.optimizer:adamw", b2=0.98, weight_decay=0.01),
        schedule=dict(factory="train.schedule:linear", peak=learning_rate, warmup=0.05),
        batch=batch,
        steps=int(at["steps"]),
        seed=int(at["seed"]),
        save_every=1000,
        log_every=100,
    )
    return config

"""The published families of encoders: which of our modules is which of theirs, and what their config.json says of ours.

All of it is data, read in both directions by `model.published.weights`. A table's left column is a module of our params
(or a leaf that is its module's only one), its right column theirs, in the names of Hugging Face's `transformers`.
`{0..}` counts layers, from 0 or another number; `[a|b]` are several, in order. An encoder's names are without its
family's prefix. Where a tensor's axes are not those that `model.published.tables.LAYOUTS` has for our leaf, they stand
beside its name.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

Table = Mapping[str, str | tuple[str, str]]


class Head(NamedTuple):
    """A head of a family, which becomes a key of the params tree.

    of:            its shape: "mlm", "pooled" (one vector a text), "token" (one a token), or "pooler" (that alone)
    architecture:  what a config.json calls a model with this head, after the family's name
    table:         as a family's, of modules in this head
    options:       of `model.heads`, as the family has them
    repeated:      tensors that a file may hold a second time: their name, and the path of the leaf they repeat
    told:          keys of config.json that choose an option: (option, {their value: ours}); the first is the default
    """

    of: str
    architecture: str
    table: Table
    options: Mapping[str, Any] = {}
    repeated: Mapping[str, str] = {}
    told: Mapping[str, tuple[str, Mapping[str, Any]]] = {}


class Family(NamedTuple):
    """A family.

    title:    the start of its classes' names
    prefix:   before the names of the encoder's tensors in a model with a head
    fields:   key of config.json -> field of our config
    fixed:    fields of our config that are the same in the whole family
    only:     keys of config.json that have one value here, or are absent; another value is another architecture
    table:    of modules in the backbone
    heads:    key of the params tree -> head, those first that would be mistaken for others
    defaults: what config.json means by a key that it lacks, where that is not our field's default
    least:    keys of config.json that are at least so many
    derive:   (config.json's values, our fields so far) -> fields that follow from several keys
    restore:  our config -> the keys of config.json that `derive` reads
    repeated: as a head's
    unused:   tensors that older files hold and nothing reads
    beside:   patterns of tensors of another part of the model, which are left out
    bare:     what an encoder without a head is called, after the title
    """

    title: str
    prefix: str
    fields: Mapping[str, str]
    table: Table
    heads: Mapping[str, Head]
    fixed: Mapping[str, Any] = {}
    only: Mapping[str, Any] = {}
    defaults: Mapping[str, Any] = {}
    least: Mapping[str, int] = {}
    derive: Callable[[dict, dict], dict] = lambda theirs, ours: {}
    restore: Callable[[Any], dict] = lambda cfg: {}
    repeated: Mapping[str, str] = {}
    unused: tuple[str, ...] = ("embeddings.position_ids", "embeddings.token_type_ids")
    beside: tuple[str, ...] = ()
    bare: str = "Model"


# their name of an activation -> ours; the first of several is written
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}

_FIELDS = {
    "vocab_size": "V",
    "num_hidden_layers": "layers",
    "hidden_size": "D",
    "num_attention_heads": "heads",
    "intermediate_size": "F",
    "max_position_embeddings": "max_length",
    "type_vocab_size": "types",
    "layer_norm_eps": "eps",
    "hidden_dropout_prob": "dropout",
    "attention_probs_dropout_prob": "attention_dropout",
    "initializer_range": "init_std",
    "hidden_act": "mlp",
}
_TYPES = {"type_vocab_size": 1}  # their embedding cannot do without
_LENGTH = {"max_position_embeddings": 512}
_ENCODER = {"is_decoder": False, "add_cross_attention": False}
_ABSOLUTE = _ENCODER | {"position_embedding_type": "absolute"}

_BERT = {
    "embed/tokens": "embeddings.word_embeddings",
    "embed/positions": "embeddings.position_embeddings",
    "embed/types": "embeddings.token_type_embeddings",
    "embed/norm": "embeddings.LayerNorm",
    "layers/attention/qkv": "encoder.layer.{0..}.attention.self.[query|key|value]",
    "layers/attention/out": "encoder.layer.{0..}.attention.output.dense",
    "layers/attention_norm": "encoder.layer.{0..}.attention.output.LayerNorm",
    "layers/mlp/wi": "encoder.layer.{0..}.intermediate.dense",
    "layers/mlp/wo": "encoder.layer.{0..}.output.dense",
    "layers/mlp_norm": "encoder.layer.{0..}.output.LayerNorm",
}
_TAG = Head("token", "ForTokenClassification", {"out": "classifier"})
_ANSWER = Head("token", "ForQuestionAnswering", {"out": "qa_outputs"})
_BERT_MLM = Head(
    "mlm",
    "ForMaskedLM",
    {
        "transform": "cls.predictions.transform.dense",
        "norm": "cls.predictions.transform.LayerNorm",
        "": "cls.predictions",
        "decoder": "cls.predictions.decoder",
    },
    repeated={
        "cls.predictions.decoder.weight": "backbone/embed/tokens",
        "cls.predictions.decoder.bias": "mlm/bias",
    },
)
_FROM_FIRST = {"pooler": "classifier.dense", "out": "classifier.out_proj"}
_LM_HEAD = Head(
    "mlm",
    "ForMaskedLM",
    {"transform": "lm_head.dense", "norm": "lm_head.layer_norm", "": "lm_head", "decoder": "lm_head.decoder"},
    {"activation": "gelu"},
    repeated={"lm_head.decoder.weight": "backbone/embed/tokens", "lm_head.decoder.bias": "mlm/bias"},
)

BERT = Family(
    title="Bert",
    prefix="bert.",
    fields=_FIELDS,
    only=_ABSOLUTE,
    least=_TYPES,
    table=_BERT,
    heads={
        "mlm": _BERT_MLM,
        "nsp": Head("pooled", "ForPreTraining", {"pooler": "bert.pooler.dense", "out": "cls.seq_relationship"}),
        "classify": Head("pooled", "ForSequenceClassification", {"pooler": "bert.pooler.dense", "out": "classifier"}),
        "tag": _TAG,
        "answer": _ANSWER,
        "pooler": Head("pooler", "Model", {"": "bert.pooler.dense"}),
    },
)


def _offset(theirs: dict, ours: dict) -> dict:
    """Positions are counted from that of the padding, plus one."""
    return dict(first_position=2, max_length=ours["max_length"] - 2)


def _put_offset(cfg: Any) -> dict:
    return {"max_position_embeddings": cfg.max_length + cfg.first_position, "pad_token_id": 1}


ROBERTA = Family(
    title="Roberta",
    prefix="roberta.",
    fields=_FIELDS,
    only=_ABSOLUTE | {"pad_token_id": 1},
    defaults=_LENGTH,
    least=_TYPES,
    table=_BERT,
    heads={
        "mlm": _LM_HEAD,
        "classify": Head("pooled", "ForSequenceClassification", _FROM_FIRST),
        "tag": _TAG,
        "answer": _ANSWER,
        "pooler": Head("pooler", "Model", {"": "roberta.pooler.dense"}),
    },
    derive=_offset,
    restore=_put_offset,
)

DISTILBERT = Family(
    title="DistilBert",
    prefix="distilbert.",
    fields={
        "vocab_size": "V",
        "n_layers": "layers",
        "dim": "D",
        "n_heads": "heads",
        "hidden_dim": "F",
        "max_position_embeddings": "max_length",
        "dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "initializer_range": "init_std",
        "activation": "mlp",
    },
    fixed=dict(types=0, eps=1e-12),
    table={
        "embed/tokens": "embeddings.word_embeddings",
        "embed/positions": "embeddings.position_embeddings",
        "embed/norm": "embeddings.LayerNorm",
        "layers/attention/qkv": "transformer.layer.{0..}.attention.[q_lin|k_lin|v_lin]",
        "layers/attention/out": "transformer.layer.{0..}.attention.out_lin",
        "layers/attention_norm": "transformer.layer.{0..}.sa_layer_norm",
        "layers/mlp/wi": "transformer.layer.{0..}.ffn.lin1",
        "layers/mlp/wo": "transformer.layer.{0..}.ffn.lin2",
        "layers/mlp_norm": "transformer.layer.{0..}.output_layer_norm",
    },
    heads={
        "mlm": Head(
            "mlm",
            "ForMaskedLM",
            {
                "transform": "vocab_transform",
                "norm": "vocab_layer_norm",
                "": "vocab_projector",
                "decoder": "vocab_projector",
            },
            repeated={"vocab_projector.weight": "backbone/embed/tokens"},
        ),
        "classify": Head(
            "pooled",
            "ForSequenceClassification",
            {"pooler": "pre_classifier", "out": "classifier"},
            {"activation": "relu"},
        ),
        "tag": _TAG,
        "answer": _ANSWER,
    },
)


def _narrower(theirs: dict, ours: dict) -> dict:
    return dict(embed_width=None) if ours["embed_width"] == ours["D"] else {}


ELECTRA = Family(
    title="Electra",
    prefix="electra.",
    fields=_FIELDS | {"embedding_size": "embed_width"},
    only=_ABSOLUTE,
    defaults={"embedding_size": 128},
    least=_TYPES,
    table=_BERT | {"widen": "embeddings_project"},
    heads={
        "mlm": Head(
            "mlm",
            "ForMaskedLM",
            {
                "transform": "generator_predictions.dense",
                "norm": "generator_predictions.LayerNorm",
                "": "generator_lm_head",
                "decoder": "generator_lm_head",
            },
            {"activation": "gelu"},
            repeated={"generator_lm_head.weight": "backbone/embed/tokens"},
        ),
        "rtd": Head(
            "token",
            "ForPreTraining",
            {
                "transform": "discriminator_predictions.dense",
                "out": "discriminator_predictions.dense_prediction",
            },
            {"activation": "layers"},
        ),
        "classify": Head("pooled", "ForSequenceClassification", _FROM_FIRST, {"activation": "gelu"}),
        "tag": _TAG,
        "answer": _ANSWER,
    },
    derive=_narrower,
    restore=lambda cfg: {"embedding_size": cfg.E},
)

_ALBERT_LAYER = "encoder.albert_layer_groups.{0..}.albert_layers.0"
ALBERT = Family(
    title="Albert",
    prefix="albert.",
    fields=_FIELDS | {"embedding_size": "embed_width"},
    only=_ABSOLUTE | {"inner_group_num": 1},
    defaults={
        "hidden_act": "gelu_new",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "embedding_size": 128,
        "num_hidden_groups": 1,
    },
    least=_TYPES | {"num_hidden_groups": 1},
    table={
        "embed/tokens": "embeddings.word_embeddings",
        "embed/positions": "embeddings.position_embeddings",
        "embed/types": "embeddings.token_type_embeddings",
        "embed/norm": "embeddings.LayerNorm",
        "widen": "encoder.embedding_hidden_mapping_in",
        "layers/attention/qkv": f"{_ALBERT_LAYER}.attention.[query|key|value]",
        "layers/attention/out": f"{_ALBERT_LAYER}.attention.dense",
        "layers/attention_norm": f"{_ALBERT_LAYER}.attention.LayerNorm",
        "layers/mlp/wi": f"{_ALBERT_LAYER}.ffn",
        "layers/mlp/wo": f"{_ALBERT_LAYER}.ffn_output",
        "layers/mlp_norm": f"{_ALBERT_LAYER}.full_layer_layer_norm",
    },
    heads={
        "mlm": Head(
            "mlm",
            "ForMaskedLM",
            {
                "transform": "predictions.dense",
                "norm": "predictions.LayerNorm",
                "": "predictions",
                "decoder": "predictions.decoder",
            },
            repeated={"predictions.decoder.weight": "backbone/embed/tokens", "predictions.decoder.bias": "mlm/bias"},
        ),
        "sop": Head("pooled", "ForPreTraining", {"pooler": "albert.pooler", "out": "sop_classifier.classifier"}),
        "classify": Head("pooled", "ForSequenceClassification", {"pooler": "albert.pooler", "out": "classifier"}),
        "tag": _TAG,
        "answer": _ANSWER,
        "pooler": Head("pooler", "Model", {"": "albert.pooler"}),
    },
    derive=lambda theirs, ours: dict(share=ours["layers"] // theirs["num_hidden_groups"]),
    restore=lambda cfg: {"num_hidden_groups": cfg.layers // cfg.share, "embedding_size": cfg.E},
)


def _modern(theirs: dict, ours: dict) -> dict:
    """Layer kinds and RoPE's bases, as transformers 5 writes them or as 4 did."""
    kinds = {"full_attention": "global", "sliding_attention": "local"}
    if "layer_types" in theirs:
        if unknown := sorted(set(map(str, theirs["layer_types"])) - kinds.keys()):
            raise ValueError(f"config.json has layer_types {', '.join(unknown)}; known are {', '.join(kinds)}")
        pattern = tuple(kinds[kind] for kind in theirs["layer_types"])
        if len(pattern) != ours["layers"]:
            raise ValueError(f"config.json has {len(pattern)} layer_types for {ours['layers']} layers")
    else:
        every = theirs.get("global_attn_every_n_layers", 3)
        pattern = tuple("local" if i % every else "global" for i in range(ours["layers"]))
    told = theirs.get("rope_parameters") or {}
    if told.keys() - kinds.keys() or theirs.get("rope_scaling"):
        more = told if told.keys() - kinds.keys() else theirs["rope_scaling"]
        raise ValueError(f"config.json has the RoPE of {more}; known is a rope_theta each of {', '.join(kinds)}")
    rope = {kind: told.get(kind) or {} for kind in kinds}
    if any(one.get("rope_type", "default") != "default" for one in rope.values()):
        raise ValueError(f"rope_parameters={told}: expected rope_type default")
    usual = {
        "full_attention": theirs.get("global_rope_theta") or 160_000.0,
        "sliding_attention": theirs.get("local_rope_theta") or 10_000.0,
    }
    theta, local_theta = (float(rope[kind].get("rope_theta", usual[kind])) for kind in kinds)
    return dict(pattern=_period(pattern), theta=theta, local_theta=local_theta)


def _period(pattern: tuple[str, ...]) -> tuple[str, ...]:
    """The shortest pattern that repeats to this one."""
    return next(
        pattern[:n] for n in range(1, len(pattern) + 1) if all(kind == pattern[i % n] for i, kind in enumerate(pattern))
    )


def _put_modern(cfg: Any) -> dict:
    kinds = {"global": "full_attention", "local": "sliding_attention"}
    return {
        "layer_types": [kinds[cfg.pattern[i % len(cfg.pattern)]] for i in range(cfg.layers)],
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": cfg.theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": cfg.local_theta},
        },
        "embedding_dropout": cfg.dropout,
    }


_MODERN_HEAD = {"transform": "head.dense", "norm": "head.norm", "out": "classifier"}
_MODERN_OPTIONS = {"activation": "gelu", "norm": True}
MODERNBERT = Family(
    title="ModernBert",
    prefix="model.",
    fields={
        "vocab_size": "V",
        "num_hidden_layers": "layers",
        "hidden_size": "D",
        "num_attention_heads": "heads",
        "intermediate_size": "F",
        "max_position_embeddings": "max_length",
        "norm_eps": "eps",
        "mlp_dropout": "dropout",
        "attention_dropout": "attention_dropout",
        "initializer_range": "init_std",
        "local_attention": "window",
    },
    fixed=dict(types=0, position="rope", norm_at="pre", mlp="geglu", bias=False),
    only={
        "hidden_activation": "gelu", "norm_bias": False, "attention_bias": False, "mlp_bias": False,
        "decoder_bias": True, "classifier_bias": False, "classifier_activation": "gelu",
    },
    least={"global_attn_every_n_layers": 1},
    defaults={"norm_eps": 1e-5, "mlp_dropout": 0.0, "attention_dropout": 0.0, "max_position_embeddings": 8192},
    table={
        "embed/tokens": "embeddings.tok_embeddings",
        "embed/norm": "embeddings.norm",
        "layers/attention/qkv": ("layers.{0..}.attn.Wqkv", "(part n h) d -> d n part h"),
        "layers/attention/out": "layers.{0..}.attn.Wo",
        "layers/attention_norm": "layers.{0..}.mlp_norm",
        "layers/mlp/[gate|wi]": ("layers.{0..}.mlp.Wi", "(part f) d -> part d f"),
        "layers/mlp/wo": "layers.{0..}.mlp.Wo",
        "layers/mlp_norm": "[layers.{1..}.attn_norm|final_norm]",
    },
    heads={
        "mlm": Head(
            "mlm",
            "ForMaskedLM",
            {"transform": "head.dense", "norm": "head.norm", "": "decoder", "decoder": "decoder"},
            repeated={"decoder.weight": "backbone/embed/tokens"},
        ),
        "classify": Head(
            "pooled",
            "ForSequenceClassification",
            {"pooler": "head.dense", "norm": "head.norm", "out": "classifier"},
            _MODERN_OPTIONS,
            told={"classifier_pooling": ("pooling", {"cls": "first", "mean": "mean"})},
        ),
        "tag": Head("token", "ForTokenClassification", _MODERN_HEAD, _MODERN_OPTIONS),
        "answer": Head("token", "ForQuestionAnswering", _MODERN_HEAD, _MODERN_OPTIONS),
    },
    derive=_modern,
    restore=_put_modern,
)  # fmt: skip


def _deberta(theirs: dict, ours: dict) -> dict:
    """Scores are of three terms, and divided by the root of three times the width of a head."""
    furthest = theirs.get("max_relative_positions", -1)
    learned = theirs.get("position_biased_input", True)
    if ours["conv"] and theirs.get("conv_act", "tanh") != "gelu":
        raise ValueError(f"config.json has conv_act={theirs.get('conv_act', 'tanh')!r}; expected 'gelu'")
    return dict(
        distance=furthest if furthest > 0 else ours["max_length"],
        position="learned" if learned else "none",
        scale=(3 * ours["D"] // ours["heads"]) ** -0.5,
    )


DEBERTA = Family(
    title="DebertaV2",
    prefix="deberta.",
    fields=_FIELDS | {"position_buckets": "buckets", "conv_kernel_size": "conv"},
    fixed=dict(relative="disentangled"),
    only=_ENCODER
    | {
        "relative_attention": True,
        "share_att_key": True,
        "norm_rel_ebd": "layer_norm",
        "legacy": True,
        "conv_groups": 1,
        "pooler_hidden_act": "gelu",
        "pos_att_type": (["p2c", "c2p"], ["c2p", "p2c"], "p2c|c2p", "c2p|p2c"),
    },
    defaults=_LENGTH
    | {"layer_norm_eps": 1e-7, "type_vocab_size": 0, "relative_attention": False, "pos_att_type": [],
       "position_buckets": -1, "conv_kernel_size": 0, "norm_rel_ebd": "none", "share_att_key": False},
    table=_BERT
    | {
        "relative/table": "encoder.rel_embeddings",
        "relative/norm": "encoder.LayerNorm",
        "conv/map": "encoder.conv.conv",
        "conv_norm": "encoder.conv.LayerNorm",
        "layers/attention/qkv": "encoder.layer.{0..}.attention.self.[query_proj|key_proj|value_proj]",
    },
    heads={
        "mlm": _BERT_MLM,
        "classify": Head(
            "pooled",
            "ForSequenceClassification",
            {"pooler": "pooler.dense", "out": "classifier"},
            {"activation": "gelu"},
        ),
        "tag": _TAG,
        "answer": _ANSWER,
    },
    derive=_deberta,
    restore=lambda cfg: {
        "max_relative_positions": cfg.distance,
        "position_biased_input": cfg.position == "learned",
        "pooler_hidden_size": cfg.D,
    }
    | ({"conv_act": "gelu"} if cfg.conv else {}),
)  # fmt: skip

MPNET = Family(
    title="MPNet",
    prefix="mpnet.",
    fields={key: field for key, field in _FIELDS.items() if key != "type_vocab_size"}
    | {"relative_attention_num_buckets": "buckets"},
    fixed=dict(types=0, relative="bias", distance=128),
    only={"pad_token_id": 1},
    defaults=_LENGTH,
    table={key: name for key, name in _BERT.items() if key != "embed/types"}
    | {
        "relative/table": "encoder.relative_attention_bias",
        "layers/attention/qkv": "encoder.layer.{0..}.attention.attn.[q|k|v]",
        "layers/attention/out": "encoder.layer.{0..}.attention.attn.o",
        "layers/attention_norm": "encoder.layer.{0..}.attention.LayerNorm",
    },
    heads={
        "mlm": _LM_HEAD,
        "classify": Head("pooled", "ForSequenceClassification", _FROM_FIRST),
        "tag": _TAG,
        "answer": _ANSWER,
        "pooler": Head("pooler", "Model", {"": "mpnet.pooler.dense"}),
    },
    derive=_offset,
    restore=_put_offset,
)

_T5_MLPS = {
    "relu": "relu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "silu": "silu",
    "gated-gelu": "geglu_tanh",
    "gated-silu": "swiglu",
}
_T5_NAMES = {ours: theirs for theirs, ours in _T5_MLPS.items()}


def _t5(theirs: dict, ours: dict) -> dict:
    mlp = theirs.get("feed_forward_proj", "relu")
    if not isinstance(mlp, str) or mlp not in _T5_MLPS:
        raise ValueError(f"feed_forward_proj={mlp!r}: expected one of {', '.join(_T5_MLPS)}")
    return dict(
        mlp=_T5_MLPS[mlp],
        attention_dropout=ours["dropout"],
        max_length=theirs.get("n_positions", 512),
        embed_norm=False,
    )


T5_ENCODER = Family(
    title="T5",
    prefix="",
    fields={
        "vocab_size": "V",
        "num_layers": "layers",
        "d_model": "D",
        "num_heads": "heads",
        "d_kv": "head_width",
        "d_ff": "F",
        "layer_norm_epsilon": "eps",
        "dropout_rate": "dropout",
        "relative_attention_num_buckets": "buckets",
        "relative_attention_max_distance": "distance",
    },
    fixed=dict(types=0, position="none", relative="bias", scale=1.0, norm_at="pre", norm="rms", bias=False),
    defaults={"layer_norm_epsilon": 1e-6, "dropout_rate": 0.1, "d_kv": 64},
    table={
        "embed/tokens": "shared",
        "relative/table": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias",
        "norm": "encoder.block.0.layer.0.layer_norm",
        "layers/attention/qkv": "encoder.block.{0..}.layer.0.SelfAttention.[q|k|v]",
        "layers/attention/out": "encoder.block.{0..}.layer.0.SelfAttention.o",
        "layers/attention_norm": "encoder.block.{0..}.layer.1.layer_norm",
        "layers/mlp/[gate|wi]": "encoder.block.{0..}.layer.1.DenseReluDense.[wi_0|wi_1]",
        "layers/mlp/wi": "encoder.block.{0..}.layer.1.DenseReluDense.wi",
        "layers/mlp/wo": "encoder.block.{0..}.layer.1.DenseReluDense.wo",
        "layers/mlp_norm": "encoder.[block.{1..}.layer.0.layer_norm|final_layer_norm]",
    },
    heads={},
    derive=_t5,
    restore=lambda cfg: {"feed_forward_proj": _T5_NAMES.get(cfg.mlp, cfg.mlp), "n_positions": cfg.max_length},
    repeated={"encoder.embed_tokens.weight": "backbone/embed/tokens"},
    beside=(r"decoder\..*", r"lm_head\..*"),
    bare="EncoderModel",
)  # fmt: skip

# by config.json's model_type
FAMILIES: dict[str, Family] = {
    "bert": BERT,
    "roberta": ROBERTA,
    "xlm-roberta": ROBERTA._replace(title="XLMRoberta"),
    "distilbert": DISTILBERT,
    "electra": ELECTRA,
    "modernbert": MODERNBERT,
    "albert": ALBERT,
    "deberta-v2": DEBERTA,
    "mpnet": MPNET,
    "t5": T5_ENCODER,
}

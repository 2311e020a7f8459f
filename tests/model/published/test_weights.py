"""Published checkpoints: what `peers.py` wrote down of transformers' models, and the way there and back."""

import json
import re
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
from safetensors.numpy import load_file, save_file
from toys import params_of

from model import heads, ops
from model.backbone import backbone
from model.config import sized
from model.published import architecture, weights
from model.published.families import FAMILIES

BERT = peers.GOLDEN / "bert-forpretraining"
_KEYS = re.compile(r"\.(key|k_lin|k)\.bias$")
KINDS = {family.title: kind for kind, family in FAMILIES.items()}


def folder_of(kind: str) -> Path:
    title = FAMILIES[kind].title
    return peers.GOLDEN / peers.name(title, peers.PEERS[title][1][0])


def rows(given: dict, packed: bool) -> tuple[dict, np.ndarray, np.ndarray]:
    """(a batch, and of each token of the inputs that is there its row and its column in it)."""
    there, (B, L) = given["there"], given["there"].shape
    counts = there.sum(1)
    row, slot, start = np.arange(B), np.zeros(B, int), np.zeros(B, int)
    if packed:  # the last two share a row, the other way round
        row, slot, start = np.array([0, 1, 1]), np.array([0, 1, 0]), np.array([0, counts[2], 0])
        L = counts[1] + counts[2] + 1
    N, S = row.max() + 1, slot.max() + 1
    batch = {name: np.zeros((N, L), np.int32) for name in ("tokens", "segments", "positions", "types")}
    batch["example"] = np.zeros((N, S, 2), np.uint32)
    for i, n in enumerate(counts):
        at = row[i], slice(start[i], start[i] + n)
        batch["tokens"][at], batch["types"][at] = given["tokens"][i, :n], given["types"][i, :n]
        batch["segments"][at], batch["positions"][at] = slot[i] + 1, np.arange(n)
        batch["example"][row[i], slot[i], 1] = i
    where, place = np.nonzero(there)
    return batch, row[where], start[where] + place


def answers(found: weights.Published, title: str, head: str, given: dict, packed: bool, gradients: bool = True) -> dict:
    """What `peers.answer` says, by our code: logits and hidden states are of the tokens that are there."""
    cfg = found.config
    bb = backbone(cfg)
    batch, row, column = rows(given, packed)
    there = np.nonzero(given["there"])
    present = np.asarray(heads.present(batch)) > 0
    weight = given["weights"].astype(np.float32)

    def outputs(params):
        hidden = bb.encode(params["backbone"], batch).hidden
        out = {"hidden": hidden[row, column]}
        for key, one in found.heads.items():
            options = dict(one.options)
            if one.of == "mlm":
                made = heads.mlm_head(cfg, tied="decoder" not in params[key], **options)
                out["logits"] = made.apply(params[key], hidden, params["backbone"]["embed"]["tokens"])[row, column]
            elif one.of == "pooled":
                made = heads.pooled_head(cfg, params[key]["out"]["bias"].size, **options)
                name = "pair" if head == "ForPreTraining" else "logits"
                examples = batch["example"][..., 1]
                texts = [np.argwhere((examples == i) & present)[0] for i in range(len(weight))]
                out[name] = made.apply(params[key], partial(bb.encode, params["backbone"]), batch)[
                    tuple(np.transpose(texts))
                ]
            elif one.of == "token":
                made = heads.token_head(cfg, params[key]["out"]["bias"].size, **options)
                out["logits"] = made.apply(params[key], hidden, batch)[row, column]
        return out

    def weighted(logits):
        if len(logits) == len(weight):
            return (logits * weight[:, 0, : logits.shape[-1]]).sum()
        return (logits * weight[there][:, : logits.shape[-1]]).sum()

    def loss(params):
        out = outputs(params)
        if head == "ForMaskedLM":
            labels = given["labels"][there]
            nll, _ = ops.cross_entropy(out["logits"], jnp.maximum(labels, 0))
            return (nll * (labels >= 0)).sum() / (labels >= 0).sum(), out
        named = [out[name] for name in ("logits", "pair") if name in out] or [out["hidden"]]
        return sum(weighted(x) for x in named), out

    with jax.default_matmul_precision("highest"):
        if not gradients:
            value, out = jax.jit(loss)(found.params)
            return out | {"loss": value}
        (value, out), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(found.params)
    return out | {"loss": value, "grads": weights.tensors(grads, cfg, KINDS[title])}


def agree(
    found: weights.Published, title: str, head: str, given: dict, wanted: dict, packed: bool, gradients: bool = True
) -> None:
    got = answers(found, title, head, given, packed, gradients)
    close = partial(np.testing.assert_allclose, rtol=1e-5)
    for name in ("hidden", "logits", "pair"):
        if name in wanted:
            want = wanted[name]
            want = want[np.nonzero(given["there"])] if want.ndim == 3 else want
            close(got[name], want, atol=1e-5 * np.abs(want).max(), err_msg=name)
    close(got["loss"], wanted["loss"], atol=1e-5)
    if not gradients:
        return
    grads = {name.removeprefix("grad/"): x for name, x in wanted.items() if name.startswith("grad/")}
    names = found.record["names"]
    ours = {names.get(name, name): x for name, x in got["grads"]}
    size = np.sqrt(sum((x**2).sum() for x in grads.values()))
    assert grads.keys() <= ours.keys(), grads.keys() - ours.keys()
    for name, x in ours.items():
        want = grads.get(name, np.zeros_like(x))  # what no loss reads has none
        # those of the biases of keys are nought, but for rounding
        close(x, want, atol=1e-5 * size if _KEYS.search(name) else 3e-5 * np.abs(want).max(), err_msg=name)


@pytest.mark.parametrize("title, head", peers.CASES)
def test_a_family_is_what_transformers_makes_of_it(title, head):
    folder = peers.GOLDEN / peers.name(title, head)
    found = weights.read(folder)
    wanted = load_file(folder / "expected.safetensors")
    first = head == peers.PEERS[title][1][0]  # gradients of the other heads: test_parity.py
    agree(found, title, head, peers.inputs(title), wanted, packed=False, gradients=first)


@pytest.mark.parametrize("title", peers.PEERS)
def test_packed_rows_are_as_rows_of_their_own(title):
    head = peers.PEERS[title][1][-4:][0]
    folder = peers.GOLDEN / peers.name(title, head)
    wanted = load_file(folder / "expected.safetensors")
    agree(weights.read(folder), title, head, peers.inputs(title), wanted, packed=True)


@pytest.mark.parametrize("kind, changes", [("t5", dict(feed_forward_proj="relu")), ("bert", dict(hidden_act="relu"))])
def test_configs_of_a_family_that_are_not_its_first(kind, changes):
    """The plain T5 has one map where the gated has two; names alike."""
    theirs = json.loads((folder_of(kind) / "config.json").read_text()) | changes
    cfg = architecture.config_of(theirs)
    assert cfg.mlp == "relu"
    params = params_of(backbone(cfg))
    names = dict(weights.tensors({"backbone": params}, cfg, kind))
    assert not any("wi_0" in name for name in names)
    assert architecture.config_of(architecture.config_json(cfg, kind)) == cfg


@pytest.mark.parametrize(
    "changes, message",
    [
        (dict(rope_scaling={"rope_type": "linear", "factor": 4.0}), "has the RoPE of {'rope_type': 'linear'"),
        (dict(rope_parameters={"rope_theta": 5.0}), "has the RoPE of {'rope_theta': 5.0}; known is a rope_theta each"),
        (dict(layer_types=["full_attention"]), "has 1 layer_types for 5 layers"),
        (dict(global_attn_every_n_layers=0), "global_attn_every_n_layers=0; a ModernBert has at least 1"),
    ],
)
def test_what_of_modernbert_is_not_built(changes, message):
    theirs = json.loads((folder_of("modernbert") / "config.json").read_text()) | changes
    with pytest.raises(ValueError, match=message):
        architecture.config_of(theirs)


@pytest.mark.parametrize("title, head", peers.CASES)
def test_there_and_back_is_bit_for_bit(title, head, tmp_path):
    folder = peers.GOLDEN / peers.name(title, head)
    found = weights.read(folder)
    weights.write(tmp_path, found.params, found.config, record=found.record)
    same_files(folder, tmp_path)


def same_files(a: Path, b: Path) -> None:
    want, got = (load_file(folder / "model.safetensors") for folder in (a, b))
    assert want.keys() == got.keys()
    for name, x in want.items():
        assert x.dtype == got[name].dtype and x.shape == got[name].shape
        assert x.tobytes() == got[name].tobytes(), name
    assert json.loads((a / "config.json").read_text()) == json.loads((b / "config.json").read_text())


def changed(tmp_path: Path, change, config=None) -> Path:
    """BERT's folder with its tensors changed, and config.json."""
    held = load_file(BERT / "model.safetensors")
    change(held)
    tmp_path.mkdir(exist_ok=True)
    save_file(held, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = json.loads((BERT / "config.json").read_text()) | (config or {})
    (tmp_path / "config.json").write_text(json.dumps(theirs))
    return tmp_path


KEY = "bert.encoder.layer.1.attention.self.key.weight"
NORM = "bert.embeddings.LayerNorm.weight"


@pytest.mark.parametrize(
    "change, config, message",
    [
        (lambda x: x.pop(KEY), {}, f"missing: {KEY}"),
        (lambda x: x.update(strange=x[KEY]), {}, r"not known: strange \(8, 8\)"),
        (lambda x: x.update({KEY: x[KEY][:, :4].copy()}), {}, rf"{KEY} is \(8, 4\), expected \(8, 8\)"),
        (lambda x: x.pop("cls.seq_relationship.bias"), {}, "missing: cls.seq_relationship.bias"),
        (lambda x: x.update({"cls.predictions.decoder.bias": np.zeros(40, np.float32)}), {}, "differs from"),
        (lambda x: None, dict(num_hidden_layers=3), "missing: bert.encoder.layer.2.attention.output.LayerNorm.bias"),
        (lambda x: None, dict(model_type="gpt2"), "model_type 'gpt2'; known are bert, roberta"),
        (lambda x: None, dict(is_decoder=True), "is_decoder=True, which is not built here; expected False"),
        (lambda x: None, dict(hidden_act="mish"), "activation 'mish'; known are gelu"),
        (lambda x: None, dict(hidden_act=["gelu"]), r"hidden_act=\['gelu'\], of another kind"),
        (lambda x: None, dict(hidden_size="8"), "hidden_size='8', of another kind than a Bert's"),
        (lambda x: None, dict(num_hidden_layers=2.0), "num_hidden_layers=2.0, of another kind"),
        (lambda x: None, dict(type_vocab_size="2"), "type_vocab_size='2'; a Bert has at least 1"),
        (lambda x: None, dict(model_type=["bert"]), r"model_type \['bert'\]; known are bert"),
        (lambda x: x.update({NORM.replace("weight", "gamma"): x[NORM] + 1}), {}, "two names of one tensor"),
        (lambda x: None, dict(hidden_size=None), "config.json lacks hidden_size"),
    ],
)
def test_what_does_not_fit_is_said_by_name(tmp_path, change, config, message):
    with pytest.raises(ValueError, match=message):
        weights.read(changed(tmp_path, change, config))


def test_both_sides_of_a_mismatch_are_listed(tmp_path):
    folder = changed(tmp_path, lambda x: (x.pop(KEY), x.update(strange=np.zeros(3, np.float32))))
    with pytest.raises(ValueError) as error:
        weights.read(folder)
    assert f"missing: {KEY}" in str(error.value) and "not known: strange (3,)" in str(error.value)
    assert "the file holds:\n  bert.embeddings.LayerNorm.bias (8,)" in str(error.value)
    assert weights.read(changed(tmp_path, lambda x: x.update(strange=np.zeros(3))), ignore=["str.*"]).record["left_out"]


def test_files_that_are_not_whole(tmp_path):
    folder = changed(tmp_path / "cut", lambda x: None)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        weights.read(folder)
    file.unlink()
    with pytest.raises(ValueError, match=r"expected a folder with config.json and model.safetensors \(found: config"):
        weights.read(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "b.safetensors"}}))
    with pytest.raises(ValueError, match=r"names files that are not there: b.safetensors"):
        weights.read(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        weights.read(folder)


def test_a_pickle_is_not_read_unasked(tmp_path):
    folder = changed(tmp_path, lambda x: None)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"is a pickle, which can run code"):
        weights.read(folder)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_return(tmp_path, dtype):
    import ml_dtypes

    to = dict(float16=np.float16, bfloat16=ml_dtypes.bfloat16, float32=np.float32)[dtype]
    folder = changed(tmp_path / "a", lambda x: x.update({name: value.astype(to) for name, value in x.items()}))
    found = weights.read(folder)
    assert found.params["backbone"]["embed"]["tokens"].dtype == np.float32
    weights.write(tmp_path / "b", found.params, found.config, record=found.record)
    same_files(folder, tmp_path / "b")


def test_older_files(tmp_path):
    """Norms of TensorFlow's days, buffers, tied tensors that are there twice, a checkpoint in shards."""

    def age(x):
        for name in list(x):
            for new, old in ((".LayerNorm.weight", ".LayerNorm.gamma"), (".LayerNorm.bias", ".LayerNorm.beta")):
                if name.endswith(new):
                    x[name.removesuffix(new) + old] = x.pop(name)
        x["bert.embeddings.position_ids"] = np.arange(32)[None]
        x["cls.predictions.decoder.weight"] = x["bert.embeddings.word_embeddings.weight"].copy()
        x["cls.predictions.decoder.bias"] = x["cls.predictions.bias"].copy()

    folder = changed(tmp_path / "a", age)
    found = weights.read(folder)
    assert found.params["mlm"].keys() == {"transform", "norm", "bias"}  # still tied
    weights.write(tmp_path / "b", found.params, found.config, record=found.record, shard=4000)
    assert len(list((tmp_path / "b").glob("model-*-of-*.safetensors"))) > 2
    again = weights.read(tmp_path / "b")
    weights.write(tmp_path / "c", again.params, again.config, record=found.record)
    same_files(folder, tmp_path / "c")
    with pytest.raises(ValueError, match=r"holds config.json, model.safetensors already"):
        weights.write(tmp_path / "c", found.params, found.config, record=found.record)


def test_neither_way_holds_a_second_copy(tmp_path):
    """Peak memory is that of the model and of its largest leaf, once more for what stacks it."""
    import tracemalloc

    cfg = sized("tiny", V=3000, layers=6, D=128, heads=2, F=512)
    params = {"backbone": params_of(backbone(cfg))}
    sizes = [x.nbytes for x in jax.tree.leaves(params)]
    assert max(sizes) < sum(sizes) / 4
    tracemalloc.start()
    try:
        weights.write(tmp_path / "a", params, cfg)
        wrote = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        found = weights.read(tmp_path / "a")
        read = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert wrote < 1.5 * max(sizes)
    assert read < sum(sizes) + 2.5 * max(sizes)
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_an_untied_output_is_a_leaf_of_its_own(tmp_path):
    other = lambda x: x.update({"cls.predictions.decoder.weight": x["bert.embeddings.word_embeddings.weight"] + 1})
    folder = changed(tmp_path / "a", other)
    found = weights.read(folder)
    assert found.params["mlm"]["decoder"].shape == (40, 8)
    weights.write(tmp_path / "b", found.params, found.config, record=found.record)
    same_files(folder, tmp_path / "b")
    weights.write(tmp_path / "c", found.params, found.config, "bert")
    assert json.loads((tmp_path / "c" / "config.json").read_text())["tie_word_embeddings"] is False


@pytest.mark.parametrize("size", ["tiny", "modern-base"])
def test_what_was_trained_here_leaves_as_the_first_family_that_can_say_it(tmp_path, size):
    cfg = sized(size, V=40, layers=4, D=8, heads=2, F=12, max_length=32, dropout=0.0, attention_dropout=0.0)
    params = {"backbone": params_of(backbone(cfg)), "mlm": params_of(heads.mlm_head(cfg))}
    weights.write(tmp_path, params, cfg)
    found = weights.read(tmp_path, residual_init=cfg.residual_init)
    assert found.record["config"]["architectures"] == [
        {"tiny": "Bert", "modern-base": "ModernBert"}[size] + "ForMaskedLM"
    ]
    assert found.config == cfg
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


@pytest.mark.parametrize(
    "change, config, how, message",
    [
        (lambda x: x.update({KEY: x[KEY].astype(np.int32)}), {}, {}, rf"{KEY} is of I32, expected F32 or F16 or BF16"),
        (lambda x: x.update({KEY: x[KEY].astype(np.float64)}), {}, {}, r"is of F64, expected .* param_dtype='float64'"),
        (lambda x: None, dict(type_vocab_size=0), {}, "type_vocab_size=0; a Bert has at least 1"),
        (lambda x: None, {}, dict(ignore=["*.decoder"]), r"'\*\.decoder' is no regular expression"),
    ],
)
def test_more_that_does_not_fit(tmp_path, change, config, how, message):
    with pytest.raises(ValueError, match=message):
        weights.read(changed(tmp_path, change, config), **how)


def test_a_folder_that_is_not_there_is_not_the_one_above_it(tmp_path):
    changed(tmp_path / "a", lambda x: None)
    with pytest.raises(ValueError, match=r"checkpoint-5000: no such folder or file; nothing is fetched"):
        weights.read(str(tmp_path / "a" / "checkpoint-5000"))
    (tmp_path / "a" / "config.json").write_text('{"model_type": ')
    with pytest.raises(ValueError, match=r"config\.json is not whole JSON"):
        weights.read(tmp_path / "a")


def test_narrower_params_are_not_the_file(tmp_path):
    """What bfloat16 made of float32 is not written as if it were what was read."""
    found = weights.read(BERT, param_dtype="bfloat16")
    with pytest.raises(ValueError, match="bfloat16 does not hold what the files held"):
        weights.write(tmp_path / "a", found.params, found.config, record=found.record)
    weights.write(tmp_path / "a", found.params, found.config, "bert")
    again = weights.read(tmp_path / "a", param_dtype="bfloat16")
    assert again.record["exact"] and set(again.record["dtypes"].values()) == {"BF16"}
    jax.tree.map(np.testing.assert_array_equal, again.params, found.params)


def test_whole_numbers_that_nothing_reads_come_back(tmp_path):
    folder = changed(
        tmp_path / "a", lambda x: x.update({"bert.embeddings.position_ids": np.arange(32, dtype=np.int32)})
    )
    found = weights.read(folder)
    weights.write(tmp_path / "b", found.params, found.config, record=found.record)
    same_files(folder, tmp_path / "b")


def test_what_was_left_out_is_not_claimed(tmp_path):
    bare = changed(
        tmp_path / "a", lambda x: x.pop("cls.seq_relationship.bias"), dict(architectures=["BertForMaskedLM"])
    )
    found = weights.read(bare, ignore=[r"cls\.seq.*", r"bert\.pooler.*"])
    found.record["config"]["architectures"] = ["BertForPreTraining"]
    weights.write(tmp_path / "b", found.params, found.config, record=found.record)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["architectures"] == ["BertForMaskedLM"]


def test_an_encoder_without_types_is_a_distilbert(tmp_path):
    assert architecture.first_kind(sized("tiny", V=40, types=0)) == "distilbert"
    for kind in ("bert", "roberta", "electra", "albert"):
        with pytest.raises(ValueError, match="type_vocab_size=0"):
            architecture.config_json(sized("tiny", V=40, types=0), kind)


def test_params_that_are_not_whole(tmp_path):
    found = weights.read(BERT)
    with pytest.raises(ValueError, match=r"missing: backbone/embed/norm/bias \(8,\)"):
        weights.write(tmp_path / "a", {"mlm": found.params["mlm"]}, found.config)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file is a file; expected a folder"):
        weights.write(tmp_path / "file", found.params, found.config)
    few = jax.tree.map(lambda x: x, found.params)
    few["backbone"]["embed"]["tokens"] = few["backbone"]["embed"]["tokens"][:30]
    few["backbone"]["embed"]["more"] = np.zeros(3)
    with pytest.raises(
        ValueError, match=r"(?s)embed/tokens is \(30, 8\), expected \(40, 8\).*not known: .*more \(3,\)"
    ):
        weights.write(tmp_path / "a", few, found.config)
    with pytest.raises(ValueError, match=r"pad_token_id=0, which is not built here"):
        roberta = weights.read(peers.GOLDEN / "roberta-formaskedlm")
        weights.write(tmp_path / "a", roberta.params, roberta.config, "roberta", extra={"pad_token_id": 0})
    assert not (tmp_path / "a").exists()


def test_a_bare_encoder_may_say_that_it_was_part_of_more(tmp_path):
    found = weights.read(peers.GOLDEN / "mpnet-formaskedlm")
    weights.write(tmp_path / "a", {"backbone": found.params["backbone"]}, found.config, "mpnet")
    config = json.loads((tmp_path / "a" / "config.json").read_text()) | {"architectures": ["MPNetForMaskedLM"]}
    (tmp_path / "a" / "config.json").write_text(json.dumps(config))
    again = weights.read(tmp_path / "a")
    assert again.params.keys() == {"backbone"}
    weights.write(tmp_path / "b", again.params, again.config, record=again.record)
    same_files(tmp_path / "a", tmp_path / "b")


def test_how_a_modernbert_pools(tmp_path):
    folder = peers.GOLDEN / "modernbert-forsequenceclassification"
    for value, pooling in (("cls", "first"), ("mean", "mean")):
        config = json.loads((folder / "config.json").read_text()) | {"classifier_pooling": value}
        (tmp_path / "config.json").write_text(json.dumps(config))
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        assert weights.read(tmp_path).heads["classify"].options["pooling"] == pooling


def test_what_no_family_has(tmp_path):
    cfg = sized("tiny", V=40, qk_norm=True)
    with pytest.raises(ValueError, match=r"bert: there is no such encoder with qk_norm=True"):
        weights.write(tmp_path / "a", {"backbone": params_of(backbone(cfg))}, cfg)
    found = weights.read(BERT)
    with pytest.raises(ValueError, match=r"bert has no head bag; it has mlm, nsp"):
        weights.write(tmp_path / "a", found.params | {"bag": {}}, found.config)
    with pytest.raises(ValueError, match=r"no model of bert has .*, answer and no other head"):
        span = {"out": {"kernel": np.zeros((8, 2)), "bias": np.zeros(2)}}
        weights.write(tmp_path / "a", found.params | {"answer": span}, found.config)
    assert not list(tmp_path.iterdir())

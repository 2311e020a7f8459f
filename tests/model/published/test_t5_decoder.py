"""The decoder and its loss against transformers' T5, where torch is installed (the extra `parity`)."""

import importlib.util
from functools import partial

import jax
import numpy as np
import peers
import pytest

from model.backbone import backbone
from model.published import weights
from objectives.seq2seq import translate
from objectives.vocab import Vocab

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed: pip install -e '.[parity]'", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs

D, N, H, T = 8, 2, 6, 11


def decoder_params(state: dict, layers: int) -> dict:
    """T5's decoder as ours: a norm here follows a sum, so that the norm before a branch is the one after the last."""

    def kernel(name, *shape):
        return state[f"{name}.weight"].T.reshape(shape)

    def attention(name):
        q, k, v = (kernel(f"{name}.{part}", D, N, H) for part in "qkv")
        return dict(qkv=dict(kernel=np.stack([q, k, v], 2)), out=dict(kernel=kernel(f"{name}.o", N, H, D)))

    names = dict(gate="wi_0", wi="wi_1", wo="wo")

    def layer(i):
        at = f"decoder.block.{i}.layer"
        after = f"decoder.block.{i + 1}.layer.0.layer_norm" if i + 1 < layers else "decoder.final_layer_norm"
        # the logits are of states divided by sqrt(D), which the last norm's scale can do
        last = 1.0 if i + 1 < layers else D**-0.5
        dense = f"{at}.2.DenseReluDense"
        return dict(
            attention=attention(f"{at}.0.SelfAttention"),
            attention_norm=dict(scale=state[f"{at}.1.layer_norm.weight"]),
            cross=attention(f"{at}.1.EncDecAttention"),
            cross_norm=dict(scale=state[f"{at}.2.layer_norm.weight"]),
            mlp={k: dict(kernel=state[f"{dense}.{v}.weight"].T) for k, v in names.items()},
            mlp_norm=dict(scale=last * state[f"{after}.weight"]),
        )  # fmt: skip

    table = state["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    stacked = jax.tree.map(lambda *x: np.stack(x), *map(layer, range(layers)))
    norm = dict(scale=state["decoder.block.0.layer.0.layer_norm.weight"])
    return dict(norm=norm, relative=dict(table=table), layers=stacked)


def test_loss_and_gradient_are_those_of_t5(tmp_path):
    import torch
    import transformers

    made = peers.model("T5", "ForConditionalGeneration", num_decoder_layers=3, relative_attention_max_distance=12,
                       relative_attention_num_buckets=8, decoder_start_token_id=0)  # fmt: skip
    encoder = transformers.T5EncoderModel(made.config)
    encoder.load_state_dict({k: v for k, v in made.state_dict().items() if k.startswith(("shared", "encoder"))})
    encoder.save_pretrained(tmp_path)
    found = weights.read(tmp_path)
    vocab = Vocab(peers.V, 0, 2, 0, 1, 3, (0, 1, 2, 3), np.ones(peers.V, bool), "t5")
    bb = backbone(found.config)
    objective = translate(bb, vocab, layers=3)
    state = {k: v.numpy() for k, v in made.state_dict().items()}
    head = dict(bias=np.zeros(peers.V, np.float32))
    params = dict(backbone=found.params["backbone"], seq2seq=dict(decoder=decoder_params(state, 3), head=head))
    params = jax.device_put(params)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params["seq2seq"]) == jax.tree.map(lambda x: x.shape, shapes)

    given = peers.inputs("T5")
    source, there = given["tokens"].astype(np.int32), given["there"]
    target = np.random.default_rng(3).integers(5, peers.V, (len(source), T)).astype(np.int32)
    said = np.arange(T) < np.array([T, 8, 4])[:, None]
    out = made(
        input_ids=torch.tensor(source).long(), attention_mask=torch.tensor(there).long(),
        labels=torch.tensor(np.where(said, target, -100)).long(),
    )  # fmt: skip
    made.zero_grad()
    out.loss.backward()

    def stream(tokens, there):
        places = np.where(there, np.arange(tokens.shape[1], dtype=np.int32)[None], 0)
        return dict(tokens=np.where(there, tokens, 0), segments=there.astype(np.int32), positions=places)

    label = np.where(said, target, 0)
    read = stream(np.pad(label, ((0, 0), (1, 0)))[:, :-1], said)  # T5 begins with padding, id 0
    none = np.zeros(len(source), np.float32)
    mine = dict(source=stream(source, there), target=read, label=label, surplus=none, lost=none)
    batch = dict(seq2seq=mine, example=np.zeros((len(source), 1, 2), np.uint32))

    def loss(params):
        term = objective.loss(params, partial(bb.encode, params["backbone"]), batch, None, 0).terms["seq2seq"]
        return term.sum / term.weight

    got, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(got, out.loss.item(), rtol=1e-5)
    theirs = {k: v.grad.numpy() for k, v in made.named_parameters()}
    layers = grads["seq2seq"]["decoder"]["layers"]
    agree = partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-4)
    agree(grads["backbone"]["embed"]["tokens"], theirs["shared.weight"])
    name = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    agree(grads["seq2seq"]["decoder"]["relative"]["table"], theirs[name])
    for i in range(3):
        at = f"decoder.block.{i}.layer"
        agree(layers["cross"]["qkv"]["kernel"][i, :, :, 1].reshape(D, -1).T, theirs[f"{at}.1.EncDecAttention.k.weight"])
        agree(layers["attention"]["out"]["kernel"][i].reshape(-1, D).T, theirs[f"{at}.0.SelfAttention.o.weight"])
        agree(layers["mlp"]["wi"]["kernel"][i].T, theirs[f"{at}.2.DenseReluDense.wi_1.weight"])

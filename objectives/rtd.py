"""Replaced-token detection: a small generator fills in masked tokens, the backbone tells which are not the text's."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from model import ops, random
from model.backbone import backbone as transformer
from model.heads import mlm_head, token_head
from model.types import Backbone
from objectives.hiding import hiding, set_at, surplus_share
from objectives.masking import Rate
from objectives.types import Array, Objective, Ratio, Sums, Term, Vocab

SHARING = ("tied", "none", "gdes")
TABLES = dict(tokens=("V",), positions=("position", "first_position"), types=("types",))  # and what shapes them


def rtd(
    backbone: Backbone,
    vocab: Vocab,
    *,
    generator: dict[str, Any] | None = None,
    coefficient: float = 50.0,
    rate: Rate = 0.15,
    choice: str = "exact",
    unit: str = "token",
    span: float = 3.0,
    ngrams: str | Sequence[Sequence[int]] | None = None,
    capacity: float | None = None,
    sharing: str = "tied",
    name: str = "rtd",
) -> Objective:
    """ELECTRA's objective (Clark et al. 2020, https://arxiv.org/abs/2003.10555, section 2): the loss of a masked
    language model on the chosen tokens, plus `coefficient` times that of telling at every position whether the token
    is the text's or the generator's sample. No gradient flows through the samples.

    A finetuned model keeps the backbone, the discriminator, and drops the rest. The discriminator's head lies where a
    published one is imported to, `{name}/transform` and `{name}/out`, and can be carried like it.

    Args:
      generator: changes to the backbone's config that make the generator's. None takes a quarter of the heads (the
        nearest whole number, at least one: half of two), with width and feed-forward in proportion.
      rate, choice, unit, span, ngrams, capacity: of the generator's task, see `objectives.mlm.mlm`; chosen tokens all
        become [MASK].
      sharing: of embeddings. "tied": the generator reads and predicts by the backbone's, with its positions and types
        where both have the like, and both losses train them (section 3.2). "none": each has its own. "gdes":
        gradient-disentangled (He et al. 2021, https://arxiv.org/abs/2111.09543, section 3.2 and equation 5): the
        generator's E is trained by its own loss alone, and the discriminator reads E + delta, where delta begins at
        zero and the discriminator's loss trains it alone, in a mixture those of the other objectives too. E is
        `{name}/generator/embed/tokens` and delta `{name}/delta`; `backbone/embed/tokens` is a frozen leaf that begins
        as E (what is carried becomes E, less a carried delta) and after each update is made their sum, so that the
        backbone alone is the whole discriminator, for whoever carries it. That is a third table, without moments.

    A corrupted row is as it was, and holds under `name` what `objectives.hiding.hiding` says, with `tokens`, the masked
    ones: the generator alone reads them, and the backbone what it draws in their place.
    `predict` gives `prediction` float32 [B, L], the probability that a token is replaced.
    Raises ValueError for what hiding refuses, an unknown sharing, and a generator that is larger than the backbone or
    of another vocabulary or length.
    """
    cfg = backbone.config
    small = _smaller(cfg) if generator is None else dict(generator)
    if sharing not in SHARING:
        raise ValueError(f"rtd sharing={sharing!r} must be one of {', '.join(SHARING)}")
    if sharing != "none":
        if (own := small.get("embed_width", cfg.E)) != cfg.E:
            raise ValueError(
                f"rtd's generator shares the backbone's embedding of {cfg.E} channels and cannot have embed_width={own}"
            )
        small["embed_width"] = cfg.E if small.get("D", cfg.D) != cfg.E else None
    if unknown := sorted(small.keys() - {f.name for f in dataclasses.fields(cfg)}):
        raise ValueError(f"rtd generator has no key {unknown[0]!r}; its keys are fields of the backbone's config")
    try:
        made = dataclasses.replace(cfg, **small)
        author = transformer(made, backbone.constrain)
        theirs = _size(author)
    except (TypeError, ValueError) as error:
        raise ValueError(f"rtd generator={generator or small}, changes to the backbone's config: {error}") from None
    unlike = [f"{k}={getattr(made, k)}" for k in ("V", "max_length") if getattr(made, k) != getattr(cfg, k)]
    if unlike:
        raise ValueError(f"rtd's generator reads the backbone's rows and cannot have {', '.join(unlike)} of its own")
    larger = [f"{k}={getattr(made, k)}" for k in ("layers", "D", "F", "E") if getattr(made, k) > getattr(cfg, k)]
    if not larger and theirs > (ours := _size(backbone)):
        larger = [f"{theirs:,} parameters beside the embeddings, and the backbone has {ours:,}"]
    if larger:
        raise ValueError(f"rtd's generator is larger than its backbone: {', '.join(larger)}; make it smaller")
    if not 0 <= coefficient < jnp.inf:
        raise ValueError(f"rtd coefficient={coefficient} is that of a loss term and must not be negative")
    hide = hiding(name, vocab, rate=rate, choice=choice, unit=unit, span=span, ngrams=ngrams, capacity=capacity)
    alike = lambda table: all(getattr(made, field) == getattr(cfg, field) for field in TABLES[table])
    tied = [k for k in TABLES if k in author.axes["embed"] and alike(k)] if sharing == "tied" else []
    words, judge = mlm_head(made, vocab.absent(cfg.V)), token_head(cfg, 1, activation="layers", dropout=0.0)

    def corrupt(key: Array, row: dict, step: Array) -> dict:
        hidden = hide(key, row, step)
        return row | {name: hidden[name] | {"tokens": hidden["tokens"]}}

    def loss(params: dict, encode, batch, key, step) -> Sums:
        own, mine = params[name], batch[name]
        theirs = own["generator"]
        if sharing == "tied":
            theirs = _with(theirs, **{k: params["backbone"]["embed"][k] for k in tied})
        site = None if key is None else random.fold(key, name, "generator")
        masked = dict(batch) | {"tokens": mine["tokens"]}
        hidden_BPD = author.encode(theirs, masked, site, at=mine["index"]).hidden
        logits_BPV = words.apply(own["words"], hidden_BPD, theirs["embed"]["tokens"])
        nll_BP, _ = ops.cross_entropy(logits_BPV, mine["target"])
        chance = random.fold(random.key(0) if key is None else key, name, "sample")
        ids_BP = ops.pick(random.tokens(dict(batch)), mine["index"])
        luck_BPV = random.gumbel(chance, ids_BP, logits_BPV.shape[-1])
        sample_BP = (jax.lax.stop_gradient(ops.wide(logits_BPV)) + luck_BPV).argmax(-1)
        target_BP, weight_BP = mine["target"], mine["weight"]
        new_BP = jnp.where(weight_BP > 0, sample_BP, target_BP)
        tokens_BL = set_at(batch["tokens"], mine["index"], new_BP)
        wrong_BL = set_at(jnp.zeros(tokens_BL.shape, jnp.float32), mine["index"], new_BP != target_BP)
        seen = dict(batch) | {"tokens": tokens_BL}
        score_BL = judge.apply(own, encode(seen, key).hidden, seen, key)[..., 0]
        real_BL = (batch["segments"] > 0).astype(score_BL.dtype)
        bce_BL = jax.nn.softplus(score_BL) - score_BL * wrong_BL
        hit_BL = ((score_BL > 0) == (wrong_BL > 0)).astype(score_BL.dtype)
        count, real = weight_BP.sum(), real_BL.sum()
        terms = {
            f"{name}_mlm": Term((nll_BP * weight_BP).sum(), count),
            name: Term((bce_BL * real_BL).sum(), real, coefficient),
        }
        found = ((score_BL > 0) * wrong_BL).sum()
        metrics = {
            f"{name}_accuracy": Ratio((hit_BL * real_BL).sum(), real),
            f"{name}_recall": Ratio(found, wrong_BL.sum()),  # of the replaced
            f"{name}_replaced": Ratio(wrong_BL.sum(), real),
            f"{name}_surplus": surplus_share(mine),
        }
        return Sums(terms, metrics)

    def predict(params: dict, encode, batch, key=None) -> dict[str, Array]:
        return dict(prediction=jax.nn.sigmoid(judge.apply(params[name], encode(batch, key).hidden, batch)[..., 0]))

    def init(key: Array) -> dict:
        a, b, c = jax.random.split(key, 3)
        theirs = author.init(a)
        made = judge.init(c) | {"generator": _without(theirs, tied), "words": words.init(b)}
        return made | ({"delta": jnp.zeros_like(theirs["embed"]["tokens"])} if sharing == "gdes" else {})

    axes = judge.axes | {"generator": _without(author.axes, tied), "words": words.axes}
    if sharing != "gdes":
        return Objective(name, loss, predict, init, axes, corrupt)

    def begin(params: dict) -> dict:
        # delta is zero, or carried with a backbone that is already the sum
        tokens_VE = params["backbone"]["embed"]["tokens"] - params[name]["delta"]
        own = params[name]["generator"]
        theirs = _with(own, tokens=tokens_VE.astype(own["embed"]["tokens"].dtype))
        return params | {name: params[name] | {"generator": theirs}}

    def view(params: dict) -> dict:
        summed_VE = jax.lax.stop_gradient(params[name]["generator"]["embed"]["tokens"]) + params[name]["delta"]
        summed_VE = summed_VE.astype(params["backbone"]["embed"]["tokens"].dtype)
        return params | {"backbone": _with(params["backbone"], tokens=summed_VE)}

    def after(params: dict, step: Array) -> dict:
        return view(params)

    axes |= {"delta": author.axes["embed"]["tokens"]}
    return Objective(
        name, loss, predict, init, axes, corrupt, begin=begin, after=after, view=view,
        frozen=("backbone/embed/tokens",),
    )  # fmt: skip


def _smaller(cfg) -> dict[str, Any]:
    """A quarter of the heads, or as nearly as there are whole ones, each as wide as the backbone's."""
    heads = max(1, round(cfg.heads / 4))
    return dict(D=heads * cfg.D // cfg.heads, heads=heads, F=max(1, heads * cfg.F // cfg.heads))


def _size(model: Backbone) -> int:
    """Parameters beside the embeddings."""
    made = jax.eval_shape(model.init, random.generator(0))
    return sum(x.size for x in jax.tree.leaves({k: v for k, v in made.items() if k != "embed"}))


def _with(params: dict, **tables: Array) -> dict:
    return params | {"embed": params["embed"] | tables}


def _without(params: dict, tables: Sequence[str]) -> dict:
    return params | {"embed": {k: v for k, v in params["embed"].items() if k not in tables}}

"""config.json to our config, and back."""

import math
from collections.abc import Callable, Mapping
from typing import Any, get_type_hints

from model.config import BackboneConfig
from model.published.families import ACTIVATIONS, FAMILIES, Family

# fields of ours that no family's architecture is told by
_FREE = ("dtype", "param_dtype", "scan", "remat", "residual_init", "dropout", "attention_dropout", "init_std")
_NEEDED = ("V", "layers", "D", "heads", "F")
# Python's types of a field; JSON has whole numbers for some that are none
_KINDS: dict[str, Any] = {
    field: kind | int if kind is float else kind for field, kind in get_type_hints(BackboneConfig).items()
}
# fields that say nothing while another has some value
_IDLE: dict[str, Callable[[BackboneConfig], bool]] = {
    "window": lambda cfg: "local" not in cfg.pattern,
    "local_theta": lambda cfg: cfg.position != "rope" or "local" not in cfg.pattern,
    "theta": lambda cfg: cfg.position != "rope" or "global" not in cfg.pattern,
    "buckets": lambda cfg: cfg.relative == "none",
    "distance": lambda cfg: cfg.relative == "none",
    "head_width": lambda cfg: cfg.D // cfg.heads == cfg.H,
}


def family_of(theirs: Mapping[str, Any]) -> Family:
    """The family of a config.json. Raises ValueError for one that is not among them."""
    if not isinstance(theirs, Mapping):
        raise ValueError(f"config.json is a {type(theirs).__name__}; expected an object with model_type and sizes")
    if not isinstance(kind := theirs.get("model_type"), str) or kind not in FAMILIES:
        raise ValueError(f"model_type {kind!r}; known are {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def config_of(theirs: Mapping[str, Any], **changes: Any) -> BackboneConfig:
    """Our config of a config.json, with changes. Raises ValueError for what our encoder is not."""
    family = family_of(theirs)
    theirs = {**family.defaults} | {key: value for key, value in theirs.items() if value is not None}
    for key, allowed in family.only.items():
        several = allowed if isinstance(allowed, tuple) else (allowed,)
        if theirs.get(key) is not None and theirs[key] not in several:
            raise ValueError(f"config.json has {key}={theirs[key]!r}, which is not built here; expected {several[0]!r}")
    for key, least in family.least.items():
        if not isinstance(value := theirs.get(key, least), int) or value < least:
            raise ValueError(f"config.json has {key}={value!r}; a {family.title} has at least {least}")
    ours = {field: theirs[key] for key, field in family.fields.items() if theirs.get(key) is not None}
    if missing := [key for key, field in family.fields.items() if field in _NEEDED and field not in ours]:
        raise ValueError(f"config.json lacks {', '.join(missing)}")
    for key, field in family.fields.items():
        if field in ours and (not isinstance(ours[field], _KINDS[field]) or isinstance(ours[field], bool)):
            raise ValueError(f"config.json has {key}={ours[field]!r}, of another kind than a {family.title}'s")
    if "mlp" in ours:
        if ours["mlp"] not in ACTIVATIONS:
            raise ValueError(f"config.json has the activation {ours['mlp']!r}; known are {', '.join(ACTIVATIONS)}")
        ours["mlp"] = ACTIVATIONS[ours["mlp"]]
    ours |= family.fixed
    return BackboneConfig(**ours | family.derive(dict(theirs), ours) | changes)


def config_json(cfg: BackboneConfig, kind: str) -> dict[str, Any]:
    """The config.json of our config in the family `kind`. Raises ValueError where the family cannot say it."""
    family = family_of({"model_type": kind})
    names = {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}
    written = {"model_type": kind}
    written |= {key: value[0] if isinstance(value, tuple) else value for key, value in family.only.items()}
    for key, field in family.fields.items():
        value = getattr(cfg, field)
        written[key] = names.get(value, value) if field == "mlp" else value
    try:
        written |= family.restore(cfg)
        back = config_of(written, **{field: getattr(cfg, field) for field in _FREE})
    except ValueError as error:
        raise ValueError(f"{kind}: {error}") from None
    if differing := [f"{k}={v!r}" for k, v in vars(cfg).items() if not _same(cfg, back, k)]:
        raise ValueError(f"{kind}: there is no such encoder with {', '.join(differing)}")
    return written


def first_kind(cfg: BackboneConfig) -> str:
    """The first family that can say a config. Raises ValueError, with each one's reason, where there is none."""
    faults = []
    for kind in FAMILIES:
        try:
            config_json(cfg, kind)
        except ValueError as error:
            faults.append(str(error))
        else:
            return kind
    raise ValueError("no published family has this architecture:\n  " + "\n  ".join(faults))


def _same(a: BackboneConfig, b: BackboneConfig, field: str) -> bool:
    """Whether a field of two configs makes them two encoders."""
    if getattr(a, field) == getattr(b, field):
        return True
    if field == "scale":
        return math.isclose(a.scale or a.H**-0.5, b.scale or b.H**-0.5)
    if field == "pattern":
        return all(a.pattern[i % len(a.pattern)] == b.pattern[i % len(b.pattern)] for i in range(a.layers))
    return field in _IDLE and _IDLE[field](a) and _IDLE[field](b)

"""The one config that spans the encoder families, and the table of named sizes."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class BackboneConfig:
    """Architecture of a Transformer encoder. The defaults are BERT's; `SIZES` names the published ones.

    V:                 vocabulary
    layers, D, heads, F:  depth, width, attention heads, width of the feed-forward layer
    max_length:        longest sequence; the number of learned positions where there are any
    types:             rows of the token-type table; 0 for none
    position:          "learned" (added to the embedding) or "rope" (Su et al. 2021, https://arxiv.org/abs/2104.09864)
    theta, local_theta:  RoPE's base in global and in local layers
    pattern:           the kinds of attention, repeated over the layers: ("global", "local", "local")
    window:            a local layer's query sees the keys at most window // 2 away, in its own segment
    norm_at:           "post" (after the residual sum) or "pre" (before the part, and once after the last layer)
    norm, eps:         "layer" or "rms" (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467)
    mlp:               "gelu" (exact, erf) or "geglu" (Shazeer 2020, https://arxiv.org/abs/2002.05202)
    bias:              biases in every linear map and norm
    embed_norm:        a norm after the embedding
    qk_norm:           a norm of each head's queries and keys (Henry et al. 2020, https://arxiv.org/abs/2010.04245)
    dropout, attention_dropout:  rates on the residual branches, on the attention probabilities
    init_std, residual_init:  kernels are truncated normal; True divides those that write to the residual stream
                       by sqrt(2 * layers) (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053)
    dtype, param_dtype:  of the computation, of the parameters
    scan:              loop over the layers in the program (compiles faster) or unroll them (runs faster on CPUs)
    remat:             what the backward pass computes again: "none", "dots" (all but matrix products), "full"

    Raises ValueError, naming the field, what was found and what was expected.
    """

    V: int
    layers: int = 2
    D: int = 128
    heads: int = 2
    F: int = 512
    max_length: int = 512
    types: int = 2
    position: str = "learned"
    theta: float = 10_000.0
    local_theta: float = 10_000.0
    pattern: tuple[str, ...] = ("global",)
    window: int = 128
    norm_at: str = "post"
    norm: str = "layer"
    eps: float = 1e-12
    mlp: str = "gelu"
    bias: bool = True
    embed_norm: bool = True
    qk_norm: bool = False
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init_std: float = 0.02
    residual_init: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    scan: bool = False
    remat: str = "none"

    def __post_init__(self):
        for name in ("V", "layers", "D", "heads", "F", "max_length", "window"):
            if getattr(self, name) < 1:
                raise ValueError(f"backbone {name}={getattr(self, name)} must be at least 1")
        if self.D % self.heads:
            raise ValueError(f"backbone D={self.D} must be divisible by heads={self.heads}")
        if self.position == "rope" and self.H % 2:
            raise ValueError(f"RoPE turns pairs of channels: D/heads={self.H} must be even")
        for name, choices in _CHOICES.items():
            found = getattr(self, name)
            for value in found if isinstance(found, tuple) else (found,):
                if value not in choices:
                    raise ValueError(f"backbone {name}={value!r} must be one of {', '.join(choices)}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"backbone {name}={getattr(self, name)} must be in [0, 1)")
        if not self.pattern:
            raise ValueError('backbone pattern is empty; it names the kinds of attention, as in ("global", "local")')

    @property
    def H(self) -> int:
        """Channels of one attention head."""
        return self.D // self.heads


_CHOICES = dict(
    position=("learned", "rope"),
    pattern=("global", "local"),
    norm_at=("pre", "post"),
    norm=("layer", "rms"),
    mlp=("gelu", "geglu"),
    dtype=("float32", "bfloat16", "float64"),
    param_dtype=("float32", "bfloat16", "float64"),
    remat=("none", "dots", "full"),
)

# Warner et al. 2024, https://arxiv.org/abs/2412.13663, tables 3 and 4
_MODERN: dict[str, Any] = dict(
    max_length=8192, types=0, position="rope", theta=160_000.0, local_theta=10_000.0,
    pattern=("global", "local", "local"), window=128, norm_at="pre", eps=1e-5, mlp="geglu", bias=False,
    dropout=0.0, attention_dropout=0.0, residual_init=True,
)  # fmt: skip

# Devlin et al. 2018 and Turc et al. 2019, https://arxiv.org/abs/1908.08962, table 1
SIZES: dict[str, dict[str, Any]] = {
    "tiny": dict(layers=2, D=128, heads=2, F=512),
    "mini": dict(layers=4, D=256, heads=4, F=1024),
    "small": dict(layers=4, D=512, heads=8, F=2048),
    "medium": dict(layers=8, D=512, heads=8, F=2048),
    "base": dict(layers=12, D=768, heads=12, F=3072),
    "large": dict(layers=24, D=1024, heads=16, F=4096),
    "modern-base": dict(layers=22, D=768, heads=12, F=1152, **_MODERN),
    "modern-large": dict(layers=28, D=1024, heads=16, F=2624, **_MODERN),
}


def sized(size: str, **changes: Any) -> BackboneConfig:
    """The config of a named size, with changes: `sized("tiny", V=8192, dropout=0.0)`."""
    if size not in SIZES:
        raise ValueError(f"backbone size={size!r} is unknown; the sizes are {', '.join(SIZES)}")
    known = {f.name for f in fields(BackboneConfig)}
    if unknown := sorted(set(changes) - known):
        raise ValueError(f"backbone has no field {unknown[0]!r}; its fields are {', '.join(sorted(known))}")
    # lists come from JSON and configs
    merged: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in (SIZES[size] | changes).items()}
    return BackboneConfig(**merged)

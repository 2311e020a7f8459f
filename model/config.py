"""The one config that spans the encoder families, and the table of named sizes."""

from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class BackboneConfig:
    """Architecture of a Transformer encoder. The defaults are BERT's; `SIZES` names the published ones.

    V:                 vocabulary
    layers, D, heads, F:  depth, width, attention heads, width of the feed-forward layer
    embed_width:       width of the embedding where it is not D: a linear map leads from it to D (Lan et al. 2019,
                       https://arxiv.org/abs/1909.11942, section 3.1); the property E is the one or the other
    head_width:        channels of a head where they are not D / heads; the property H is the one or the other
    share:             successive layers that have their parameters in common: `layers` for all of them (ALBERT)
    max_length:        longest sequence; the number of learned positions where there are any
    first_position:    rows before the first of the table of positions, never read (2 in RoBERTa's)
    types:             rows of the token-type table; 0 for none
    position:          "learned" (added to the embedding), "rope" (Su et al. 2021, https://arxiv.org/abs/2104.09864) or
                       "none"
    theta, local_theta:  RoPE's base in global and in local layers
    relative:          what attention scores have added for the distance of query and key: "none", "bias", a number a
                       head and bucket of distances, the same in all layers (Raffel et al. 2019,
                       https://arxiv.org/abs/1910.10683, section 2.1), or "disentangled", products of contents and
                       embedded distances (He et al. 2020, https://arxiv.org/abs/2006.03654, equation 4)
    buckets, distance: of relative distances: how many, in logarithmic steps up to `distance`, which all further share
    scale:             of queries in attention; None for 1 / sqrt(H)
    pattern:           the kinds of attention, repeated over the layers: ("global", "local", "local")
    window:            a local layer's query sees the keys at most window // 2 away, in its own segment
    norm_at:           where a part's input comes from: "post", the residual stream, which is normed after each sum, or
                       "pre", a norm of the stream (the last norm's output is then the encoder's)
    norm, eps:         "layer" or "rms" (Zhang & Sennrich 2019, https://arxiv.org/abs/1910.07467)
    mlp:               an activation between two maps: "gelu" (exact, erf), "gelu_tanh" (its approximation), "relu",
                       "silu"; or one that gates: "geglu", "geglu_tanh", "swiglu" (Shazeer 2020,
                       https://arxiv.org/abs/2002.05202)
    bias:              biases in every linear map and norm
    embed_norm:        the stream begins with a norm of the embedding; else, with norm_at="pre", the first part alone
                       reads one
    conv:              taps, an odd number, of a convolution over a segment's embedded tokens, which the output of the
                       first layer has added (DeBERTa-v2, https://github.com/microsoft/DeBERTa); 0 for none
    qk_norm:           a norm of each head's queries and keys (Henry et al. 2020, https://arxiv.org/abs/2010.04245)
    dropout, attention_dropout:  rates on the residual branches, on the attention probabilities
    init_std, residual_init:  kernels are truncated normal; True divides those that write to the residual stream
                       by sqrt(2 * layers) (Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053)
    dtype, param_dtype:  of the computation, of the parameters
    scan:              loop over the layers in the program (compiles faster) or unroll them (runs faster on CPUs)
    remat:             what the backward pass computes again: "none", "dots" (all but matrix products), "full"; with
                       either, words are scored a part at a time, see `model.heads.score_words`

    Raises ValueError, naming the field, what was found and what was expected.
    """

    V: int
    layers: int = 2
    D: int = 128
    heads: int = 2
    F: int = 512
    embed_width: int | None = None
    head_width: int | None = None
    share: int = 1
    max_length: int = 512
    first_position: int = 0
    types: int = 2
    position: str = "learned"
    theta: float = 10_000.0
    local_theta: float = 10_000.0
    relative: str = "none"
    buckets: int = 32
    distance: int = 128
    scale: float | None = None
    pattern: tuple[str, ...] = ("global",)
    window: int = 128
    norm_at: str = "post"
    norm: str = "layer"
    eps: float = 1e-12
    mlp: str = "gelu"
    bias: bool = True
    embed_norm: bool = True
    conv: int = 0
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
        for name in ("V", "layers", "D", "heads", "F", "embed_width", "head_width", "share", "max_length", "window"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"backbone {name}={value} must be at least 1")
        if self.D % self.heads and self.head_width is None:
            raise ValueError(f"backbone D={self.D} must be divisible by heads={self.heads}, or head_width be given")
        if self.layers % self.share:
            raise ValueError(f"backbone layers={self.layers} must be divisible by share={self.share}")
        if self.first_position < 0 or self.types < 0:
            raise ValueError(f"backbone first_position={self.first_position}, types={self.types}: neither is below 0")
        if self.conv < 0 or (self.conv and (self.conv % 2 == 0 or self.layers <= self.share)):
            raise ValueError(
                f"backbone conv={self.conv} must be 0, or odd and in a backbone of several layers; it has layers="
                f"{self.layers}, share={self.share}"
            )
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
        if self.relative != "none" and not 4 <= self.buckets <= 2 * self.distance:
            raise ValueError(
                f"backbone buckets={self.buckets} of distances must be from 4 to twice distance={self.distance}"
            )
        if self.relative == "disentangled" and "local" in self.pattern:
            raise ValueError('backbone relative="disentangled" attends globally; found "local" in the pattern')

    @property
    def E(self) -> int:
        """Width of the embedding."""
        return self.embed_width or self.D

    @property
    def H(self) -> int:
        """Channels of one attention head."""
        return self.head_width or self.D // self.heads


_CHOICES = dict(
    position=("learned", "rope", "none"),
    relative=("none", "bias", "disentangled"),
    pattern=("global", "local"),
    norm_at=("pre", "post"),
    norm=("layer", "rms"),
    mlp=("gelu", "gelu_tanh", "relu", "silu", "geglu", "geglu_tanh", "swiglu"),
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

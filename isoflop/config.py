"""ModelConfig, the architecture and size of a GPT, and PRESETS. Plain arithmetic, no torch.

A preset is a row of PRESETS; `--depth N` is a family with one knob. Any field may be given on top of either. model.py
builds what is described here, flops.py counts it.
"""

import math
from dataclasses import asdict, dataclass, replace

from isoflop.options import UserError, check, option


@dataclass(frozen=True)
class ModelConfig:
    """Architecture and size of a model. Counts, FLOPs and memory are functions of these fields alone.

    UserError where a field is out of bounds or two of them contradict each other. n_head, head_size, n_kv_head and
    n_ffn are numbers once it is made.
    """

    n_layer: int = option(2, "transformer blocks", group="model", min=1, max=10_000)
    n_embd: int = option(64, "width of the residual stream", min=1, max=2**20)
    n_head: int | None = option(None, "attention heads (default: heads of at most 64)", min=1, max=2**20)
    block_size: int = option(128, "context length in tokens", min=1, max=2**22)
    vocab_size: int = option(
        50257, "rows of the embedding; train.py takes it from the data", min=1, max=2**24, flag=False
    )
    rope_theta: float = option(10000.0, "base of the rotary frequencies", above=0, max=1e12, rare=True)
    rope_scaling: tuple[float, ...] | None = option(
        None, "Llama 3.1's: factor, low and high frequency factor, old context", above=0, max=1e9, flag=False
    )  # as export.py --from_hf finds it
    head_size: int | None = option(
        None, "of a head, without --n_head (default: at most 64)", min=1, max=2**20, rare=True
    )
    n_kv_head: int | None = option(None, "key and value heads, shared (default: n_head)", min=1, max=2**20, rare=True)
    n_ffn: int | None = option(None, "width of the MLP (default: ffn_mult x n_embd)", min=1, max=2**24, rare=True)
    ffn_mult: float = option(4.0, "width of the MLP over n_embd, up to a multiple of 8", above=0, max=1024, rare=True)
    activation: str = option(
        "relu2", "of the MLP; swiglu has a gate", choices=("relu2", "gelu", "gelu_tanh", "swiglu"), rare=True
    )
    norm: str = option("rmsnorm", "normalization of each half-block", choices=("rmsnorm", "layernorm"), rare=True)
    norm_gain: bool = option(False, "learned gains (and biases, with bias) in the normalizations", rare=True)
    norm_eps: float = option(1e-6, "added to the mean square before its root", above=0, max=1, rare=True)
    position: str = option("rope", "rotary positions or a learned table", choices=("rope", "learned"), rare=True)
    bias: bool = option(False, "biases in the linear layers, and in LayerNorm", rare=True)
    qk_norm: bool = option(True, "RMS-normalize queries and keys, without gains", rare=True)
    tied: bool = option(False, "one matrix for the embedding and the head", rare=True)
    logit_softcap: float | None = option(None, "bend logits to cap * tanh(logits / cap)", above=0, max=1e6, rare=True)
    init: str = option(
        "scaled",
        "scaled: unit outputs at any width; normal: GPT-2's N(0, 0.02)",
        choices=("scaled", "normal"),
        rare=True,
    )

    @classmethod
    def add_flags(cls, parser):
        """--preset and --depth, which choose several fields at once."""
        parser.flag("preset", "str | None", None, "architecture and sizes by name, as gpt2 or llama-7b", group="model")
        text = "one knob: N layers, width 64 N, --hparams depth"
        parser.flag("depth", "int | None", None, text, group="model", min=1, max=10_000)

    @classmethod
    def from_flags(cls, args, **given):
        """The configuration of typed flags: a preset or depth first, single fields on top."""
        return configure(args.preset, args.depth, **given)

    def __post_init__(self):
        check(self)
        if self.rope_scaling is not None:
            object.__setattr__(self, "rope_scaling", tuple(self.rope_scaling))  # JSON has lists
            if len(self.rope_scaling) != 4 or self.rope_scaling[1] >= self.rope_scaling[2]:
                raise UserError(f"rope_scaling {self.rope_scaling} is not (factor, low, high, context) with low < high")
        self._fill_in_heads()
        if self.n_ffn is None:
            object.__setattr__(self, "n_ffn", -(-round(self.ffn_mult * self.n_embd, 6) // 8) * 8)  # rounded up
        object.__setattr__(self, "n_ffn", int(self.n_ffn))

    @property
    def in_one_piece(self) -> bool:
        """Whether it has the default's blocks and ends, of any size: kernels/gpt.py computes these."""
        blocks = self.norm == "rmsnorm" and not self.norm_gain and not self.bias and self.activation == "relu2"
        mixing = self.position == "rope" and self.qk_norm and self.n_kv_head == self.n_head
        return blocks and mixing and not self.tied and not self.logit_softcap

    def _fill_in_heads(self):
        """n_head, head_size and n_kv_head where they are not given; UserError where they don't fit each other."""
        if self.n_head is None:
            object.__setattr__(self, "n_head", _default_heads(self.n_embd, self.head_size or 64))
        elif self.head_size and self.n_head * self.head_size != self.n_embd:
            raise UserError(
                f"--n_head {self.n_head} x --head_size {self.head_size} is not --n_embd {self.n_embd}; leave one out"
            )
        if self.n_embd % self.n_head or (self.position == "rope" and (self.n_embd // self.n_head) % 2):
            step = self.n_head * (2 if self.position == "rope" else 1)
            below = self.n_embd - self.n_embd % step
            near = " or ".join(str(w) for w in (below, below + step) if w > 0)
            even = " of even size (rotary positions turn pairs)" if self.position == "rope" else ""
            raise UserError(
                f"--n_embd {self.n_embd} is not divisible by --n_head {self.n_head} into heads{even}; "
                f"try --n_embd {near}"
            )
        object.__setattr__(self, "head_size", self.n_embd // self.n_head)
        if self.n_kv_head is None:
            object.__setattr__(self, "n_kv_head", self.n_head)
        if self.n_head % self.n_kv_head:
            near = ", ".join(str(k) for k in range(1, self.n_head + 1) if self.n_head % k == 0)
            raise UserError(f"--n_kv_head {self.n_kv_head} does not divide --n_head {self.n_head}; try one of {near}")

    def identity(self) -> dict:
        """The part of a run_id that stands for the model: sizes, and what differs from the default architecture."""
        sizes = {k: getattr(self, k) for k in ("n_layer", "n_embd", "n_head", "block_size", "vocab_size", "rope_theta")}
        plain = ModelConfig(**sizes)
        derived_from = ("ffn_mult", "head_size")  # n_ffn and n_head stand for them
        other = {k: v for k, v in asdict(self).items() if k not in derived_from and v != getattr(plain, k)}
        return sizes | other


def _default_heads(n_embd: int, most: int) -> int:
    """The fewest heads of an even size of at most `most`; 1 where there is none, which ModelConfig then refuses."""
    for n_head in range(1, n_embd + 1):
        if n_embd % (2 * n_head) == 0 and n_embd // n_head <= most:
            return n_head
    return 1


# ----- presets -----

_GPT2 = dict(
    vocab_size=50257, block_size=1024, head_size=64, activation="gelu_tanh", norm="layernorm", norm_gain=True,
    norm_eps=1e-5, position="learned", bias=True, qk_norm=False, tied=True, init="normal",
)  # fmt: skip
_LLAMA = dict(
    vocab_size=32000, block_size=2048, head_size=128, activation="swiglu", ffn_mult=2.6875, norm="rmsnorm",
    norm_gain=True, norm_eps=1e-6, qk_norm=False, init="normal",
)  # fmt: skip
_LLAMA2 = _LLAMA | dict(block_size=4096, norm_eps=1e-5)
_LLAMA3 = _LLAMA | dict(
    vocab_size=128256, block_size=8192, norm_eps=1e-5, rope_theta=500000.0, n_kv_head=8, ffn_mult=3.5
)

# Radford et al. 2019; Touvron et al. 2023, arXiv:2302.13971 and 2307.09288; Llama team 2024, arXiv:2407.21783.
PRESETS = {
    "default": dict(),
    "gpt2": _GPT2 | dict(n_layer=12, n_embd=768),
    "gpt2-medium": _GPT2 | dict(n_layer=24, n_embd=1024),
    "gpt2-large": _GPT2 | dict(n_layer=36, n_embd=1280),
    "gpt2-xl": _GPT2 | dict(n_layer=48, n_embd=1600),
    "nanogpt": _GPT2 | dict(n_layer=12, n_embd=768, vocab_size=50304, activation="gelu", bias=False),
    "llama": _LLAMA | dict(n_layer=32, n_embd=4096),
    "llama-7b": _LLAMA | dict(n_layer=32, n_embd=4096),
    "llama-13b": _LLAMA | dict(n_layer=40, n_embd=5120, ffn_mult=2.7),
    "llama-30b": _LLAMA | dict(n_layer=60, n_embd=6656, ffn_mult=17920 / 6656),
    "llama-65b": _LLAMA | dict(n_layer=80, n_embd=8192, norm_eps=1e-5),
    "llama2-7b": _LLAMA2 | dict(n_layer=32, n_embd=4096),
    "llama2-13b": _LLAMA2 | dict(n_layer=40, n_embd=5120, ffn_mult=2.7),
    "llama2-70b": _LLAMA2 | dict(n_layer=80, n_embd=8192, ffn_mult=3.5, n_kv_head=8),
    "llama3": _LLAMA3 | dict(n_layer=32, n_embd=4096),
    "llama3-8b": _LLAMA3 | dict(n_layer=32, n_embd=4096),
    "llama3-70b": _LLAMA3 | dict(n_layer=80, n_embd=8192),
    "llama3-405b": _LLAMA3 | dict(n_layer=126, n_embd=16384, ffn_mult=3.25),
}


def configure(preset: str | None = None, depth: int | None = None, **given) -> ModelConfig:
    """A ModelConfig: a preset or the depth family, and the given fields on top.

    At another width a preset keeps its head size (or the next smaller one that divides the width), its number of key
    heads as far as it divides the heads, and its ratio of MLP to width.

    UserError for an unknown preset, and where fields are out of bounds or contradict each other.
    """
    if preset is not None and preset not in PRESETS:
        raise UserError(f"--preset {preset} is unknown; known: {', '.join(PRESETS)}")
    if depth is not None and depth < 1:
        raise UserError(f"--depth {depth} must be at least 1")
    row = dict(PRESETS[preset or "default"])
    if depth is not None:
        row |= from_depth(depth)
    if "n_head" in given:
        row.pop("head_size", None)
    shared = row.pop("n_kv_head", None)
    cfg = ModelConfig(**{**row, **given})
    if shared and given.get("n_kv_head") is None:
        cfg = replace(cfg, n_kv_head=math.gcd(shared, cfg.n_head))
    if given.get("head_size") not in (None, cfg.head_size):
        raise UserError(
            f"--n_embd {cfg.n_embd} is not divisible into heads of --head_size {given['head_size']}; "
            f"the next smaller size is {cfg.head_size}"
        )
    return cfg


def from_depth(depth: int) -> dict[str, int]:
    """The family with one knob: n_layer = depth, n_embd = 64 depth, heads of 64 (nanochat has heads of 128)."""
    return {"n_layer": depth, "n_embd": 64 * depth, "head_size": 64}

"""The GPT that every run trains, in every architecture that ModelConfig describes.

The default is a decoder-only transformer of today:

- RMSNorm without gain before each half of a block: the residual stream is an
  identity path at any depth, and all parameters are matrices and an embedding;
- rotary positions (Su et al. 2021, arXiv:2104.09864): nothing to learn, and no
  weights that fix the length of the context;
- normalized queries and keys (QK-norm, Dehghani et al. 2023, arXiv:2302.05442):
  attention can't saturate at the high learning rates that short runs want
  (width 64, 2 layers, 1.5e11 FLOPs: 3.69 instead of 3.75 nats, LOG 2026-11-23);
- no biases: they cost memory traffic and change no measured loss (PaLM,
  Chowdhery et al. 2022, section 2);
- squared ReLU in an MLP of four widths (Primer, So et al. 2021,
  arXiv:2109.08668): as good as gated units at these sizes, with two matrices
  instead of three;
- separate head and embedding: an embedding costs no FLOPs, so tying them would
  save memory and no compute.

Each of these is a field. GPT-2, nanoGPT's model and the LLaMAs are rows of
config.PRESETS, equal to the originals in every parameter and logit.

    python model.py --preset gpt2
    python model.py --preset llama3 --n_layer 18 --n_embd 2048
    python model.py --depth 12 --plot_flops flops.png

prints weights by component and FLOPs per token in each convention.
"""

import isoflop.installed  # noqa: F401 isort: skip
import argparse
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from isoflop.cli import Parser, run_main
from isoflop.config import ModelConfig
from isoflop.device import fused
from isoflop.files import read_json, regular, write_json
from isoflop.flops import count_params, describe
from isoflop.kernels import gpt
from isoflop.kernels.attention import self_attention
from isoflop.kernels.cross_entropy import head_loss
from isoflop.kernels.elementwise import embedding, gelu, layer_norm, norm, norm_rotate, relu_squared, rotate, swiglu
from isoflop.options import UserError, integer
from isoflop.tensors import is_sharded, read_parts, write_tensors

# ----- the model -----


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension, (..., C) -> (..., C); without norm_gain it has no parameters."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.kind, self.eps = cfg.norm, cfg.norm_eps
        self.weight = nn.Parameter(torch.ones(cfg.n_embd)) if cfg.norm_gain else None
        with_bias = cfg.norm_gain and cfg.bias and cfg.norm == "layernorm"
        self.bias = nn.Parameter(torch.zeros(cfg.n_embd)) if with_bias else None

    def forward(self, x):
        if self.kind == "layernorm":
            return layer_norm(x, self.weight, self.bias, self.eps)
        return norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Causal self-attention, (B, T, C) -> (B, T, C).

    Each key and value head serves n_head / n_kv_head query heads (Ainslie et al. 2023, arXiv:2305.13245).
    In comments nh is n_head, nkv n_kv_head, hs head_size.

    rotary : (cos, sin) of the positions, (T, hs / 2) each; None with learned positions.
    cache : LayerCache of the positions before x, which x is added to; None: x starts at position 0.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.n_head, self.n_kv_head, self.head_size = cfg.n_head, cfg.n_kv_head, cfg.head_size
        self.qk_norm, self.eps = cfg.qk_norm, cfg.norm_eps
        self.c_attn = nn.Linear(cfg.n_embd, (cfg.n_head + 2 * cfg.n_kv_head) * cfg.head_size, bias=cfg.bias)
        self.c_proj = nn.Linear(cfg.n_embd, cfg.n_embd, bias=cfg.bias)

    def forward(self, x, rotary=None, cache=None):
        B, T, C = x.shape
        heads = self.c_attn(x).view(B, T, -1, self.head_size)  # (B, T, nh + 2 nkv, hs)
        if cache is None:
            eps = self.eps if self.qk_norm else None
            return self.c_proj(self_attention(heads, self.n_head, rotary, eps))
        # (B, T, nh + 2 nkv, hs) -> (B, nh + nkv, T, hs) and (B, nkv, T, hs)
        qk, v = heads.transpose(1, 2).split((self.n_head + self.n_kv_head, self.n_kv_head), dim=1)
        if self.qk_norm:
            qk = norm_rotate(qk, *rotary, self.eps) if rotary else norm(qk, eps=self.eps)
        elif rotary:
            qk = rotate(qk, *rotary)
        q, k = qk.split((self.n_head, self.n_kv_head), dim=1)
        y = cached_attention(q, *cache.extend(k, v))
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


def cached_attention(q, k, v):
    """Attention of queries (B, nh, T, hs) at the last T of S positions over keys and values (B, nkv, S, hs)."""
    T, S = q.size(2), k.size(2)
    causal_mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=causal_mask, enable_gqa=True)


ACTIVATION = {"relu2": relu_squared, "gelu": gelu, "gelu_tanh": partial(gelu, tanh=True), "swiglu": swiglu}


class MLP(nn.Module):
    """Two linear layers with an activation between them, gated for swiglu: (B, T, C) -> (B, T, C)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        gated = cfg.activation == "swiglu"
        self.activation = ACTIVATION[cfg.activation]
        self.c_fc = nn.Linear(cfg.n_embd, 2 * cfg.n_ffn if gated else cfg.n_ffn, bias=cfg.bias)
        self.c_proj = nn.Linear(cfg.n_ffn, cfg.n_embd, bias=cfg.bias)

    def forward(self, x):
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    """Attention, then MLP, each on a normalized input and added to the residual stream: (B, T, C) -> (B, T, C)."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.ln_1, self.attn = Norm(cfg), Attention(cfg)
        self.ln_2, self.mlp = Norm(cfg), MLP(cfg)

    def forward(self, x, rotary=None, cache=None):
        x = x + self.attn(self.ln_1(x), rotary, cache)
        return x + self.mlp(self.ln_2(x))


def slowed(frequencies, factor: float, low: float, high: float, context: float):
    """Rotary frequencies of Llama 3.1: those that turn less than `low` times in the old context are divided by factor,
    those that turn more than `high` times stay, and between them the share that stays is linear in the turns (Llama
    team 2024, arXiv:2407.21783; config.json's rope_type llama3)."""
    turns = context * frequencies / (2 * torch.pi)
    stays = ((turns - low) / (high - low)).clamp(0, 1)
    return frequencies * (stays + (1 - stays) / factor)


class GPT(nn.Module):
    """The model that a ModelConfig describes: from token ids to logits, or to the loss."""

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.config = cfg
        self.wte = nn.Embedding(cfg.vocab_size, cfg.n_embd)
        if cfg.position == "learned":
            self.wpe = nn.Embedding(cfg.block_size, cfg.n_embd)
        else:
            frequencies = cfg.rope_theta ** (-torch.arange(0, cfg.head_size, 2, dtype=torch.float32) / cfg.head_size)
            if cfg.rope_scaling:
                frequencies = slowed(frequencies, *cfg.rope_scaling)
            positions = torch.arange(cfg.block_size, dtype=torch.float32)
            angles = torch.outer(positions, frequencies)  # (block_size, hs / 2)
            self.register_buffer("cos", angles.cos(), persistent=False)
            self.register_buffer("sin", angles.sin(), persistent=False)
        self.h = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer))
        self.ln_f = Norm(cfg)
        self.lm_head = nn.Linear(cfg.n_embd, cfg.vocab_size, bias=False)
        if cfg.tied:
            self.lm_head.weight = self.wte.weight
        self.in_one_piece = cfg.in_one_piece  # optim.parallel.shard() takes it back
        self.workspace = None  # kernels/gpt.py's
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """Initial weights by config.init. Gains start at one, biases at zero.

        scaled : every product starts with outputs of size one, or zero, at any width. Matrices have variance
            1 / fan_in; those that write into the residual stream, and the head, are zero: each block is the identity
            at first and the first loss is ln(vocab_size) exactly. With that, one table of learning rates serves all
            widths (optim/hparams.py; Yang et al. 2022, arXiv:2203.03466). A head that is also the embedding can't be
            zero, and has variance 1 / fan_in.
        normal : N(0, 0.02), over sqrt(2 n_layer) in the matrices that write into the residual stream, so that it
            does not grow with the depth (Radford et al. 2019, section 2.3).
        """
        cfg = self.config
        scaled = cfg.init == "scaled"
        std = cfg.n_embd**-0.5 if scaled else 0.02
        tables = [self.wte, self.wpe] if cfg.position == "learned" else [self.wte]
        for table in tables:
            table.weight.normal_(std=1.0 if scaled and not cfg.tied else std)
        # Draws in another order would give the same seed other weights, and make every run another run.
        for block in self.h:
            for first in (block.attn.c_attn, block.mlp.c_fc):
                first.weight.normal_(std=std)
            for last in (block.attn.c_proj, block.mlp.c_proj):  # these write into the residual stream
                if scaled:
                    last.weight.zero_()
                else:
                    last.weight.normal_(std=std / (2 * cfg.n_layer) ** 0.5)
        if scaled and not cfg.tied:
            self.lm_head.weight.zero_()
        elif not cfg.tied:
            self.lm_head.weight.normal_(std=std)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                p.zero_()

    @property
    def runs_in_one_piece(self) -> bool:
        """Whether kernels/gpt.py computes the loss."""
        return self.in_one_piece and fused(self.wte.weight) and not torch.is_autocast_enabled("cpu")

    def forward(self, idx, targets=None, reduction="mean", z_loss=0.0, cache=None):
        """(logits, None) without targets, (None, loss) with them.

        Parameters
        ----------
        idx : token ids, int64 (B, T), T at most block_size.
        targets : the next tokens, int64 (B, T). None: the logits are computed, float32 (B, T, V).
        reduction : "mean" for the mean cross-entropy in nats per token, "none" for one loss a token, (B, T).
        z_loss : weight of a penalty that is added to the mean, the mean squared log of the softmax's denominator.
        cache : from new_cache(): idx continues the positions in it, and is added to it.
        """
        cfg = self.config
        first = cache[0].length if cache else 0  # the position of idx[:, 0]
        last = first + idx.size(1)
        assert last <= cfg.block_size, f"sequence of {last} tokens, block_size is {cfg.block_size}"
        if targets is not None and self.runs_in_one_piece:
            if reduction == "mean" or not torch.is_grad_enabled():
                return None, gpt.loss(self, idx, targets, reduction, z_loss)
        x, rotary = embedding(idx, self.wte.weight), None  # (B, T, C)
        if cfg.position == "learned":
            x = x + self.wpe.weight[first:last]
        else:
            rotary = self.cos[first:last].to(x.dtype), self.sin[first:last].to(x.dtype)  # (T, hs / 2) each
        for block, layer_cache in zip(self.h, cache or [None] * cfg.n_layer, strict=True):
            x = block(x, rotary, layer_cache)
        x = self.ln_f(x)
        if targets is not None:  # without keeping (B, T, V) logits
            return None, head_loss(x, self.lm_head.weight, targets, reduction, cfg.logit_softcap, z_loss)
        logits = self.lm_head(x).float()  # (B, T, V)
        if cfg.logit_softcap:
            logits = cfg.logit_softcap * torch.tanh(logits / cfg.logit_softcap)
        return logits, None

    def new_cache(self, batch_size: int) -> list["LayerCache"]:
        """An empty cache with room for block_size positions of each layer, on the model's device and in its type."""
        like = self.lm_head.weight
        return [LayerCache(self.config, batch_size, like.device, like.dtype) for _ in self.h]


class LayerCache:
    """Keys and values of one layer at the positions so far."""

    def __init__(self, cfg: ModelConfig, batch_size: int, device, dtype):
        shape = (2, batch_size, cfg.n_kv_head, cfg.block_size, cfg.head_size)
        self.kv = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0  # positions filled

    def extend(self, k, v):
        """Append k and v, (B, nkv, T, hs), and return those of all positions, (B, nkv, length, hs)."""
        first = self.length
        self.length += k.size(2)
        self.kv[0, :, :, first : self.length] = k
        self.kv[1, :, :, first : self.length] = v
        return self.kv[:, :, :, : self.length].unbind()


# ----- generation -----


@torch.no_grad()
def draw(
    model, idx, temperature: float = 0.8, top_k: int | None = 50, top_p: float | None = None, generator=None,
    cache: bool = True, usable: int | None = None,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Next tokens without end, each int64 (B,) on the CPU, for idx int64 (B, T).

    Parameters
    ----------
    temperature : divides the logits; 0 is greedy.
    top_k, top_p : draw from the most probable tokens only: the top_k first (0 or None: all), then the fewest of them
        with a total probability of top_p (nucleus sampling, Holtzman et al. 2019, arXiv:1904.09751).
    generator : a torch.Generator, or one for each row: then a row's tokens don't depend on the other rows.
    cache : keep keys and values; the logits are those of the whole pass up to rounding.
    usable : number of ids that the tokenizer has; those from it on are rows without a token, and never drawn.
    """
    size, device = model.config.block_size, idx.device
    kv_cache = None
    while True:
        if cache and kv_cache is not None and kv_cache[0].length < size:
            # one position; never compiled (model.forward, not model): the cache grows with each token
            logits = model.forward(idx[:, -1:], cache=kv_cache)[0]
        elif cache and idx.size(1) < size:
            kv_cache = model.new_cache(len(idx))
            logits = model.forward(idx, cache=kv_cache)[0]
        else:  # the window slides: every token has another position than before, and no key can be kept
            kv_cache = None
            logits = model(idx[:, -size:])[0]
        token = pick(logits[:, -1].float().cpu()[:, :usable], temperature, top_k, top_p, generator)
        yield token
        idx = torch.cat((idx[:, -size:], token[:, None].to(device)), dim=1)


def pick(logits, temperature: float, top_k: int | None, top_p: float | None, generator):
    """One token for each row of logits float32 (B, V): int64 (B,)."""
    if not torch.isfinite(logits.amax(-1)).all():
        raise UserError("the model's logits are not finite: its training has diverged; use an earlier checkpoint")
    if temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k:
        smallest = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    probs = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True, stable=True)
        beyond = ranked.cumsum(-1) - ranked >= top_p  # the tokens ranked higher hold top_p already
        probs = probs.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0)
    if isinstance(generator, list):
        rows = [torch.multinomial(p, 1, generator=g) for p, g in zip(probs, generator, strict=True)]
        return torch.cat(rows)
    return torch.multinomial(probs, 1, generator=generator)[:, 0]


def generate(model, idx, count: int, temperature: float = 0.8, top_k: int | None = 50, generator=None, **more):
    """idx int64 (B, T) -> (B, T + count): `count` tokens drawn one after the other; `more` goes to draw()."""
    tokens = draw(model, idx, temperature, top_k, generator=generator, **more)
    for _ in range(count):
        idx = torch.cat((idx, next(tokens)[:, None].to(idx.device)), dim=1)
    return idx


# ----- weights and configuration on disk -----

CONFIG_BYTES = 2**16  # a larger config.json is not read; ours have half a kilobyte
MOST_POSITIONS = 2**22  # a longer block_size is refused: the rotary tables have its length, whatever the weights are
FLOAT_TYPES = ("F64", "F32", "BF16", "F16")  # as safetensors names them


def save_model(model: GPT, folder: Path):
    """Write config.json and then model.safetensors to a folder, which is made; each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", asdict(model.config))  # first: where there are weights, all is there
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    if model.config.tied:
        del state["lm_head.weight"]  # it is wte.weight, and safetensors refuses tensors that share memory
    write_tensors(folder / "model.safetensors", state)


def load_model(folder: Path | str) -> GPT:
    """The model that save_model wrote, on the CPU in float32. UserError names the folder and the reason.

    The configuration is compared with the shapes in the file's header before anything of its sizes is allocated.
    """
    folder = Path(folder)
    try:
        cfg = ModelConfig(**read_json(folder / "config.json", CONFIG_BYTES))
        if is_sharded(folder):
            return load_parts(cfg, folder)
        check_shapes(cfg, folder / "model.safetensors")
        model = GPT(cfg)
        state = load_file(folder / "model.safetensors")
        if cfg.tied:
            state["lm_head.weight"] = state.get("wte.weight")
        model.load_state_dict(state)
    except (OSError, TypeError, ValueError, RuntimeError, RecursionError, OverflowError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{folder} holds no usable model ({reason}); train.py writes one to its --out_dir") from None
    return model


def load_parts(cfg: ModelConfig, folder: Path) -> GPT:
    """The model of a checkpoint that several processes wrote with --shard, each its own part."""
    size = sum(path.stat().st_size for path in folder.glob("shard-*.safetensors"))
    if 4 * count_params(cfg)["total"] > size or cfg.block_size > MOST_POSITIONS:
        raise ValueError(f"its {size:,} bytes of weights are not the model of config.json")
    model = GPT(cfg)
    read_parts(folder, {f"weights.{name}": p.data for name, p in model.named_parameters()}, alone=True)
    return model


def check_shapes(cfg: ModelConfig, path: Path):
    """ValueError unless a safetensors file holds exactly the weights of this configuration; reads its header only."""
    found = {}
    with safe_open(regular(path), "pt") as f:
        for name in f.keys():
            weight = f.get_slice(name)
            found[name] = tuple(weight.get_shape()), weight.get_dtype()
    if cfg.n_layer > len(found) or cfg.block_size > MOST_POSITIONS:  # the two sizes that no shape in the file bounds
        raise ValueError(f"config.json has {cfg.n_layer:,} layers and a context of {cfg.block_size:,}")
    with torch.device("meta"):
        expected = {name: tuple(w.shape) for name, w in GPT(cfg).state_dict().items()}
    if cfg.tied:
        del expected["lm_head.weight"]
    different = sorted(expected.keys() ^ found.keys())
    if different:
        problem = "lacks" if different[0] in expected else "has an unknown"
        raise ValueError(f"{path.name} {problem} {different[0]}")
    for name, (shape, dtype) in found.items():
        if shape != expected[name] or dtype not in FLOAT_TYPES:
            raise ValueError(f"{name} is {dtype} {shape}, not {expected[name]} as config.json says")


# ----- command line -----


def make_parser() -> Parser:
    parser = Parser("model.py", __doc__, ModelConfig)
    words = {"type": integer, "metavar": "N", "help": "tokens in the vocabulary (default: the preset's)"}
    parser.add_argument("--vocab_size", default=argparse.SUPPRESS, **words)
    parser.add_argument("--plot_flops", metavar="PATH", help="draw exact FLOPs over 6ND by depth, width and context")
    return parser


def run(parser: Parser, args):
    cfg = parser.read(ModelConfig, args)
    print(" ".join(f"{k}={v}" for k, v in asdict(cfg).items()))
    print(f"\n{describe(cfg)}")
    if args.plot_flops:
        from isoflop.fit.flops_figure import plot_flops

        plot_flops(cfg, args.plot_flops)
        print(Path(args.plot_flops).resolve())


def main(argv=None):
    return run_main(make_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())

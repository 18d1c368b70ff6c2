"""The GPT that every run trains: one class, and every architecture that shapes.ModelConfig describes.

The default is a decoder-only transformer of today:

- pre-norm with RMSNorm that has no gain: the residual stream stays an identity path at any depth, and the only
  parameters left are matrices and the look-up table, so that counting them needs no footnotes;
- rotary positions (Su et al. 2021, arXiv:2104.09864): nothing to learn, no table whose size depends on the context;
- queries and keys are normalised (QK-norm, Dehghani et al. 2023, arXiv:2302.05442): attention can't saturate at the
  high rates that short runs want (64 wide, 2 layers, 1.5e11 FLOPs: 3.69 instead of 3.75 nats, LOG 2026-11-23);
- no biases: they cost memory traffic and change no measured loss (PaLM, Chowdhery et al. 2022, section 2);
- squared ReLU in an MLP of four widths (Primer, So et al. 2021, arXiv:2109.08668): as good as gated units at these
  sizes, two matrices instead of three, and a layer is 12 n_embd^2 exactly;
- head and embedding are separate weights: a look-up costs no FLOPs, so tying would save memory and no compute.

Each of these is a field; GPT-2, nanoGPT's model and the LLaMAs are other rows of the same table (shapes.PRESETS), to
the parameter and to the logit.

    python model.py --preset gpt2                                   # weights by component, FLOPs, N's conventions
    python model.py --preset llama3 --n_layer 18 --n_embd 2048      # any field on top
    python model.py --depth 12 --plot_flops flops.png               # when is 6ND good enough?
"""

import argparse
import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from isoflop.cli import Parser
from isoflop.config import ModelConfig
from isoflop.fit.figures import plot_flops
from isoflop.flops import describe
from isoflop.kernels.attention import self_attention
from isoflop.kernels.cross_entropy import head_loss
from isoflop.kernels.elementwise import gelu, layer_norm, norm, norm_rotate, relu_squared, rotate, swiglu
from isoflop.options import integer

# ----- the model -----


class Norm(nn.Module):
    """RMSNorm or LayerNorm over the last dimension; it has parameters only where the configuration asks for gains."""

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
    """Each key and value head serves n_head / n_kv_head query heads (Ainslie et al. 2023, arXiv:2305.13245)."""

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
            return self.c_proj(self_attention(heads, self.n_head, rotary, self.eps if self.qk_norm else None))
        qk, v = heads.transpose(1, 2).split((self.n_head + self.n_kv_head, self.n_kv_head), dim=1)
        if self.qk_norm:
            qk = norm_rotate(qk, *rotary, self.eps) if rotary else norm(qk, eps=self.eps)
        elif rotary:
            qk = rotate(qk, *rotary)
        q, k = qk.split((self.n_head, self.n_kv_head), dim=1)
        y = cached_attention(q, *cache.extend(k, v))
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))


def cached_attention(q, k, v):
    """Queries (B, nh, T, hs) are those of the last T positions of the keys and values, (B, nkv, S, hs)."""
    T, S = q.size(2), k.size(2)
    seen = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
    return F.scaled_dot_product_attention(q, k.to(q.dtype), v.to(q.dtype), attn_mask=seen, enable_gqa=True)


ACTIVATION = {"relu2": relu_squared, "gelu": gelu, "gelu_tanh": partial(gelu, tanh=True), "swiglu": swiglu}


class MLP(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        gated = cfg.activation == "swiglu"
        self.activation = ACTIVATION[cfg.activation]
        self.c_fc = nn.Linear(cfg.n_embd, 2 * cfg.n_ffn if gated else cfg.n_ffn, bias=cfg.bias)
        self.c_proj = nn.Linear(cfg.n_ffn, cfg.n_embd, bias=cfg.bias)

    def forward(self, x):
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.ln_1, self.attn = Norm(cfg), Attention(cfg)
        self.ln_2, self.mlp = Norm(cfg), MLP(cfg)

    def forward(self, x, rotary=None, cache=None):
        x = x + self.attn(self.ln_1(x), rotary, cache)
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    """forward(idx (B, T) int64, targets (B, T) or None) -> (logits, loss).

    With targets: loss is the mean cross-entropy in nats per token, or with reduction="none" one number a token, and
    logits is None; z_loss is the weight of kernels.head_loss's penalty in the mean. Without: the logits,
    (B, T, vocab_size) in float32, and loss is None. With a cache from new_cache(), idx continues what the cache has
    seen, and is added to it.
    """

    def __init__(self, cfg: ModelConfig):
        super().__init__()
        self.config = cfg
        self.wte = nn.Embedding(cfg.vocab_size, cfg.n_embd)
        if cfg.position == "learned":
            self.wpe = nn.Embedding(cfg.block_size, cfg.n_embd)
        else:
            angles = torch.outer(
                torch.arange(cfg.block_size, dtype=torch.float32),
                cfg.rope_theta ** (-torch.arange(0, cfg.head_size, 2, dtype=torch.float32) / cfg.head_size),
            )  # (block_size, hs / 2)
            self.register_buffer("cos", angles.cos(), persistent=False)
            self.register_buffer("sin", angles.sin(), persistent=False)
        self.h = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer))
        self.ln_f = Norm(cfg)
        self.lm_head = nn.Linear(cfg.n_embd, cfg.vocab_size, bias=False)
        if cfg.tied:
            self.lm_head.weight = self.wte.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """The start that the configuration names. Gains start at one, biases at zero.

        scaled : every product starts with outputs of size one, or zero, at any width. Matrices have variance
            1 / fan_in; those that write into the residual stream, and the head, are zero: each block is the identity
            at first and the first loss is ln(vocab_size) exactly. With that, one table of learning rates serves all
            widths (optim.py scales the rates of the matrices by width; Yang et al. 2022, arXiv:2203.03466). A head
            that is also the embedding can't be zero, and has variance 1 / fan_in.
        normal : N(0, 0.02), over sqrt(2 n_layer) in the matrices that write into the residual stream, so that it
            does not grow with the depth (Radford et al. 2019, section 2.3).
        """
        cfg = self.config
        scaled = cfg.init == "scaled"
        std = cfg.n_embd**-0.5 if scaled else 0.02
        tables = [self.wte, self.wpe] if cfg.position == "learned" else [self.wte]
        for table in tables:
            table.weight.normal_(std=1.0 if scaled and not cfg.tied else std)
        for block in self.h:
            for reader in (block.attn.c_attn, block.mlp.c_fc):
                reader.weight.normal_(std=std)
            for writer in (block.attn.c_proj, block.mlp.c_proj):
                writer.weight.zero_() if scaled else writer.weight.normal_(std=std / (2 * cfg.n_layer) ** 0.5)
        if not cfg.tied:
            self.lm_head.weight.zero_() if scaled else self.lm_head.weight.normal_(std=std)
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                p.zero_()

    def forward(self, idx, targets=None, reduction="mean", z_loss=0.0, cache=None):
        cfg = self.config
        first = cache[0].length if cache else 0  # the position of idx[:, 0]
        last = first + idx.size(1)
        assert last <= cfg.block_size, f"sequence of {last} tokens, block_size is {cfg.block_size}"
        x, rotary = self.wte(idx), None  # (B, T, C)
        if cfg.position == "learned":
            x = x + self.wpe.weight[first:last]
        else:
            rotary = self.cos[first:last].to(x.dtype), self.sin[first:last].to(x.dtype)
        for block, seen in zip(self.h, cache or [None] * cfg.n_layer, strict=True):
            x = block(x, rotary, seen)
        x = self.ln_f(x)
        if targets is None:
            logits, cap = self.lm_head(x).float(), cfg.logit_softcap  # (B, T, V)
            return (cap * torch.tanh(logits / cap) if cap else logits), None
        return None, head_loss(x, self.lm_head.weight, targets, reduction, cfg.logit_softcap, z_loss)

    def new_cache(self, batch_size: int) -> list["LayerCache"]:
        """An empty cache with room for block_size positions of each layer, on the model's device and in its type."""
        like = self.lm_head.weight
        return [LayerCache(self.config, batch_size, like.device, like.dtype) for _ in self.h]


class LayerCache:
    """Keys and values of one layer at the positions seen so far: what a next token needs of them."""

    def __init__(self, cfg: ModelConfig, batch_size: int, device, dtype):
        shape = (2, batch_size, cfg.n_kv_head, cfg.block_size, cfg.head_size)
        self.kv, self.length = torch.empty(shape, device=device, dtype=dtype), 0

    def extend(self, k, v):
        """Append k and v, (B, nkv, T, hs), and return those of all positions."""
        first, self.length = self.length, self.length + k.size(2)
        self.kv[0, :, :, first : self.length] = k
        self.kv[1, :, :, first : self.length] = v
        return self.kv[:, :, :, : self.length].unbind()


# ----- weights and configuration on disk -----

CONFIG_BYTES = 2**16  # ours has half a kilobyte
MOST_POSITIONS = 2**22  # of a context: its rotary tables are made before any weight is read


def save_model(model: GPT, folder: Path):
    """model.safetensors and config.json, each written under another name and renamed: never half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.contiguous() for k, v in model.state_dict().items()}
    if model.config.tied:
        del state["lm_head.weight"]  # it is wte.weight; safetensors holds nothing twice
    save_file(state, folder / "model.safetensors.part")
    (folder / "config.json.part").write_text(json.dumps(asdict(model.config), indent=2))
    for name in ("config.json", "model.safetensors"):
        os.replace(folder / f"{name}.part", folder / name)


def load_model(folder: Path | str) -> GPT:
    """The model that save_model wrote, on the CPU in float32. ValueError names the folder and what is wrong in it.

    The configuration is held against the shapes in the file's header before anything of its sizes is allocated.
    """
    folder = Path(folder)
    try:
        if (size := (folder / "config.json").stat().st_size) > CONFIG_BYTES:
            raise ValueError(f"config.json has {size:,} bytes")
        cfg = ModelConfig(**json.loads((folder / "config.json").read_text()))
        check_shapes(cfg, folder / "model.safetensors")
        model = GPT(cfg)
        state = load_file(folder / "model.safetensors")
        if cfg.tied:
            state["lm_head.weight"] = state.get("wte.weight")
        model.load_state_dict(state)
    except (OSError, TypeError, ValueError, RuntimeError, RecursionError, OverflowError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} holds no usable model ({reason}); train.py writes one to its --out_dir") from None
    return model


def check_shapes(cfg: ModelConfig, path: Path):
    """ValueError unless a safetensors file holds exactly the weights of this configuration; reads its header only."""
    with safe_open(path, "pt") as f:
        held = {name: (tuple(f.get_slice(name).get_shape()), f.get_slice(name).get_dtype()) for name in f.keys()}
    if cfg.n_layer > len(held) or cfg.block_size > MOST_POSITIONS:  # the two sizes that no shape here bounds
        raise ValueError(f"config.json asks for {cfg.n_layer:,} layers and a context of {cfg.block_size:,}")
    with torch.device("meta"):
        expected = {name: tuple(w.shape) for name, w in GPT(cfg).state_dict().items()}
    if cfg.tied:
        del expected["lm_head.weight"]
    if odd := sorted(expected.keys() ^ held.keys()):
        raise ValueError(f"{path.name} {'lacks' if odd[0] in expected else 'has a foreign'} {odd[0]}")
    for name, (shape, dtype) in held.items():
        if shape != expected[name] or dtype not in ("F64", "F32", "BF16", "F16"):
            raise ValueError(f"{name} is {dtype} {shape}, not {expected[name]} as config.json says")


# ----- command line -----


def parse(argv=None):
    parser = Parser("model.py", __doc__, ModelConfig)
    parser.add_argument("--vocab_size", type=integer, default=argparse.SUPPRESS, help="tokens in the vocabulary")
    parser.add_argument("--plot_flops", metavar="PATH", help="draw exact FLOPs over 6ND by depth, width and context")
    return parser, parser.parse_args(argv)


def main(argv=None):
    parser, args = parse(argv)
    try:
        cfg = parser.read(ModelConfig, args)
        print(" ".join(f"{k}={v}" for k, v in asdict(cfg).items()), describe(cfg), sep="\n\n")
        if args.plot_flops:
            plot_flops(cfg, args.plot_flops)
            print(f"{Path(args.plot_flops).resolve()}")
    except (ValueError, OSError) as error:
        parser.fail(error)


# ----- drawing -----


@torch.no_grad()
def draw(
    model, idx, temperature: float = 0.8, top_k: int | None = 50, top_p: float | None = None, generator=None,
    cache: bool = True, usable: int | None = None,
) -> Iterator[torch.Tensor]:  # fmt: skip
    """Next tokens without end, (B,) int64 on the CPU each, for idx (B, T) int64.

    Parameters
    ----------
    temperature : divides the logits; 0 is greedy.
    top_k, top_p : draw from the likeliest tokens only; the k likeliest (0 or None: all), then the fewest of them that
        hold the probability top_p (Holtzman et al. 2019, arXiv:1904.09751).
    generator : a torch.Generator, or one for each row: then a row is drawn alike in any batch.
    cache : keep keys and values; the numbers are those of the whole pass up to rounding.
    usable : ids from here on are never drawn: rows of the embedding that no token has.
    """
    size, device = model.config.block_size, idx.device
    held = None
    while True:
        if cache and held is not None and held[0].length < size:
            logits = model.forward(idx[:, -1:], cache=held)[0][:, -1]  # never compiled: the cache grows with each token
        else:  # the first pass, or the window slides: every token has another position than before
            held = model.new_cache(len(idx)) if cache and idx.size(1) < size else None
            call = model if held is None else model.forward
            logits = call(idx[:, -size:], cache=held)[0][:, -1]
        token = pick(logits.float().cpu()[:, :usable], temperature, top_k, top_p, generator)
        yield token
        idx = torch.cat((idx[:, -size:], token[:, None].to(device)), dim=1)


def pick(logits, temperature: float, top_k: int | None, top_p: float | None, generator):
    """One token of each row of logits (B, V): (B,) int64."""
    if temperature == 0:
        return logits.argmax(-1)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature
    if top_k:
        least = logits.topk(min(top_k, logits.size(-1))).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probs = logits.softmax(-1)
    if top_p is not None and top_p < 1:
        ranked, order = probs.sort(dim=-1, descending=True, stable=True)
        beyond = ranked.cumsum(-1) - ranked >= top_p  # what comes before a token already holds top_p
        probs = probs.masked_fill(torch.zeros_like(beyond).scatter(-1, order, beyond), 0)
    if isinstance(generator, list):
        rows = [torch.multinomial(p, 1, generator=g) for p, g in zip(probs, generator, strict=True)]
        return torch.cat(rows)
    return torch.multinomial(probs, 1, generator=generator)[:, 0]


def generate(model, idx, count: int, temperature: float = 0.8, top_k: int | None = 50, generator=None, **more):
    """idx (B, T) int64 -> (B, T + count), each token drawn from what the model says after the last block_size."""
    tokens = draw(model, idx, temperature, top_k, generator=generator, **more)
    drawn = [next(tokens) for _ in range(count)]
    return torch.cat((idx, *(token[:, None].to(idx.device) for token in drawn)), dim=1)


if __name__ == "__main__":
    main()

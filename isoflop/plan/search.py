"""Architectures near a parameter count that fit a device."""

import math
import shlex
from dataclasses import replace

from isoflop.config import PRESETS, ModelConfig, configure, from_depth
from isoflop.flops import count_params, flops_per_token, flops_per_token_exact
from isoflop.plan.estimate import CHINCHILLA, Chosen

# ----- the search -----

HEAD_SIZES = (64, 128)
WIDTH_PER_LAYER = (32, 128)  # from GPT-2 XL's 33 to LLaMA-7B's and GPT-3's 128
SEARCH_BLOCK = 1024  # context of a search where neither --family nor --block_size says otherwise
NEAR_RATIO = 0.05  # how far from D = ratio x N a row of the constrained leaderboard may be


def architectures(family: str, given: dict, n_about: float, span: float = 30.0):
    """Configurations of a family, at widths that hardware likes, within a factor `span` of n_about matmul parameters.

    Widths are multiples of 64 up to 1024, of 128 up to 4096, of 256 above; depths keep width over layers between 32
    and 128; heads have the family's size, or 64 below 1024 and 128 from there on; shared key heads are as many of the
    family's as divide the heads, at least 4.
    """
    if family not in PRESETS:
        raise ValueError(f"--family {family} is unknown; known: {', '.join(PRESETS)}")
    row = {k: v for k, v in PRESETS[family].items() if k not in ("n_layer", "n_embd", "n_ffn")} | given
    if family == "default":
        row = {"block_size": SEARCH_BLOCK} | row
    widths = [*range(64, 1024, 64), *range(1024, 4096, 128), *range(4096, 20480 + 1, 256)]
    for width in widths:
        heads = _heads(width, row, given)
        if heads is None:
            continue
        base = ModelConfig(**{**row, **heads, "n_embd": width, "n_layer": 1})
        one, head = count_params(base)["matmul"], base.vocab_size * width
        shallow, deep = max(1, math.ceil(width / WIDTH_PER_LAYER[1])), max(1, width // WIDTH_PER_LAYER[0])
        for layers in range(shallow, deep + 1):
            if n_about / span <= head + layers * (one - head) <= n_about * span:
                yield replace(base, n_layer=layers)


def _heads(width: int, row: dict, given: dict) -> dict | None:
    """head_size and n_kv_head for a width, or None where it has no sensible ones; typed fields are kept."""
    wanted = row.get("head_size") or HEAD_SIZES[width >= 1024]
    sizes = [wanted] if "head_size" in given else [wanted, *HEAD_SIZES]
    size = width // given["n_head"] if "n_head" in given else next((s for s in sizes if width % s == 0), None)
    if size is None or size < 16 or size % 2 or width % size:
        return None
    heads, shared = width // size, row.get("n_kv_head")
    if shared is None:
        return {"head_size": size}
    if "n_kv_head" in given:
        return {"head_size": size} if heads % shared == 0 else None
    groups = max(k for k in range(1, min(heads, shared) + 1) if heads % k == 0)
    return {"head_size": size, "n_kv_head": groups} if groups >= min(4, shared) else None


def search(flops: float, chosen: Chosen, family="default", given=None, ratio=CHINCHILLA, exact=True, top=8) -> dict:
    """The architectures of least predicted loss that spend `flops`, with and without D = ratio x N.

    Parameters
    ----------
    flops : of the whole run. exact : with attention, what the hardware does; else 6ND, the currency of train.py.
    chosen : the law that ranks; N is counted as it was fitted.
    given : fields that every candidate has.
    top : rows of each leaderboard, the best depth of each width.

    Returns
    -------
    dict with `best` and `constrained`, lists of rows (name, cfg, n, tokens, ratio, loss, gap to the best), and
    `optimum`, the law's own N and D at C = 6ND.
    """
    if not 0 < flops < math.inf:
        raise ValueError(f"--flop_budget {flops:g} must be a positive finite number")
    n_opt, d_opt = (float(x) for x in chosen.law.optimum(flops))
    rows = []
    for cfg in architectures(family, given or {}, n_opt):
        n = chosen.n(count_params(cfg))
        d = flops / (flops_per_token_exact(cfg) if exact else flops_per_token(cfg))
        rows.append({"cfg": cfg, "n": n, "tokens": d, "ratio": d / n, "loss": float(chosen.law.loss(n, d))})
    if not rows:
        raise ValueError(
            f"--flop_budget {flops:g} is best spent on some {n_opt:.3g} parameters, and family {family} with its "
            "vocabulary has nothing near that size; raise it, or lower --vocab_size"
        )
    least = min(r["loss"] for r in rows)
    near = [r for r in rows if abs(math.log(r["ratio"] / ratio)) <= NEAR_RATIO]
    near = near or sorted(rows, key=lambda r: abs(math.log(r["ratio"] / ratio)))[:1]
    for r in rows:
        r["gap"] = r["loss"] - least
    out = {"flops": flops, "law": chosen.name, "family": family, "candidates": len(rows), "ratio": ratio}
    out |= {"convention": chosen.count, "exact": exact, "optimum": {"n": n_opt, "tokens": d_opt}}
    out |= {"best": _leaders(rows, top), "constrained": _leaders(near, top)}
    first = out["best"][0]
    out["warnings"] = chosen.outside(N=first["n"], D=first["tokens"], C=flops)
    return out


def _leaders(rows, top):
    """The best depth of each width, best first."""
    best = {}
    for r in sorted(rows, key=lambda r: r["loss"]):
        best.setdefault(r["cfg"].n_embd, r)
    return list(best.values())[:top]


# ----- the command that trains it -----


def architecture_flags(cfg: ModelConfig, preset: str | None = None, depth: int | None = None) -> list[str]:
    """The fewest flags of train.py that make cfg; its vocabulary comes from the data.

    From the preset (or the depth family) field by field: what a given width implies is not said again.
    """
    said = {"vocab_size": cfg.vocab_size}
    out = ["--preset", preset] if preset else []
    out += ["--depth", str(depth)] if depth else []
    start = from_depth(depth) if depth else {}
    first = ["n_layer", "n_embd", "n_head", "n_kv_head"]  # what decides whether the rest can be built
    unsaid = ["vocab_size", "head_size", "ffn_mult"]  # of the data; implied by n_head and n_ffn
    for name in first + [f for f in ModelConfig.__dataclass_fields__ if f not in first + unsaid]:
        value = getattr(cfg, name)
        try:
            implied = getattr(configure(preset, depth, **said), name)
        except ValueError:  # heads of the preset do not divide the new width, and are about to be given
            implied = None
        if name in ("n_layer", "n_embd") and not preset and name not in start or value != implied:
            said[name] = value
            if isinstance(value, bool):
                out.append(f"--{name}" if value else f"--no-{name}")
            else:
                out += [f"--{name}", f"{value:g}" if isinstance(value, float) else str(value)]
    return out


def commands(cfg: ModelConfig, plan, micro, n_gpus, preset=None, depth=None, more=(), data_dir=None, unique=None):
    """Shell commands: the data that this vocabulary needs, and the training run, which train.py's parser accepts."""
    V, note = cfg.vocab_size, None
    if abs(V - 50257) <= 64:
        kind, folder = "gpt2", "data/fineweb_gpt2"
        if V != 50257:
            note = f"the data has GPT-2's 50,257 tokens: train.py builds the model with those, not with {V:,}"
    else:
        kind, folder = f"bpe:{V}", f"data/fineweb_bpe{V}"
        if V > 2**16:
            note = f"a vocabulary of {V:,} learnt by data.py stands in for a published one of that size"
    data = f"python data.py --tokenizer {kind} --num_tokens {int(unique or plan.tokens)} --out_dir {folder}"
    if data_dir:
        data, folder, note = None, data_dir, f"the model gets the vocabulary of {data_dir}"
    start = ["python", "train.py"]
    if n_gpus > 1:
        start = ["torchrun", "--standalone", f"--nproc_per_node={n_gpus}", "train.py"]
    flags = ["--data_dir", folder, *architecture_flags(cfg, preset, depth)]
    flags += ["--max_iters", str(plan.steps), "--total_batch_size", str(plan.tokens_per_step)]
    flags += [*(["--micro_batch_size", str(micro)] if micro < plan.batch_size else []), *more]
    return {"data": data, "train": shlex.join(start + flags), "note": note}

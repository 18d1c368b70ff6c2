"""Parameter and FLOP counts of a ModelConfig: plain arithmetic, no torch."""

from isoflop.config import ModelConfig
from isoflop.display import count, fixed, percent, text_table

# ----- counts -----


def param_table(cfg: ModelConfig) -> dict[str, int]:
    """Weights by component: embedding, positions, attention, mlp, norms, biases, head (0 where it is tied)."""
    C, F, L, V = cfg.n_embd, cfg.n_ffn, cfg.n_layer, cfg.vocab_size
    kv = 2 * cfg.n_kv_head * cfg.head_size  # columns of keys and values
    inner = 2 * F if cfg.activation == "swiglu" else F  # columns of the MLP's first product
    norms = (2 * L + 1) * C if cfg.norm_gain else 0
    biases = 0
    if cfg.bias:
        biases = L * (C + kv + C + inner + C)  # c_attn, its c_proj, c_fc, its c_proj
        if cfg.norm == "layernorm":
            biases += norms
    return {
        "embedding": V * C,
        "positions": cfg.block_size * C if cfg.position == "learned" else 0,
        "attention": L * (C * (C + kv) + C * C),
        "mlp": L * (C * inner + F * C),
        "norms": norms,
        "biases": biases,
        "head": 0 if cfg.tied else V * C,
    }


def count_params(cfg: ModelConfig) -> dict[str, int]:
    """Parameters of the model under each convention in use, from the configuration alone.

    Returns
    -------
    dict with
        total : every weight once.
        non_embedding : total without embeddings, of tokens and positions, and without the head (Kaplan et al. 2020,
            section 2.1).
        matmul : every weight of a matrix that multiplies an activation, the head included, tied or not; embeddings,
            gains and biases left out. This is N in C = 6ND throughout this project: it is what the hardware
            multiplies.
    """
    table = param_table(cfg)
    total = sum(table.values())
    return {
        "total": total,
        "non_embedding": total - table["embedding"] - table["positions"] - table["head"],
        "matmul": table["attention"] + table["mlp"] + cfg.vocab_size * cfg.n_embd,
    }


def flops_per_token(cfg: ModelConfig) -> int:
    """Training FLOPs per token, 6N with N = matmul parameters: 2N forward, 4N backward. Budgets are counted in it.

    Kaplan et al. 2020 (arXiv:2001.08361), section 2.1, with the head counted.
    """
    return 6 * count_params(cfg)["matmul"]


def flops_per_token_exact(cfg: ModelConfig) -> int:
    """Training FLOPs per token: 6N plus attention's two products, q k^T and the weighted sum of v.

    Per layer and token each product is 2 T C forward and twice that backward, with T = block_size and C = n_embd. It
    is the full T x T square, as torch.utils.flop_counter counts it; a causal kernel may skip up to half of it. Shared
    key heads save memory and no product.
    """
    return flops_per_token(cfg) + cfg.n_layer * 12 * cfg.block_size * cfg.n_embd


# ----- tables -----


def describe(cfg: ModelConfig) -> str:
    """Weights by component, and 6N under each convention of N beside the exact FLOPs per token."""
    counts, exact = count_params(cfg), flops_per_token_exact(cfg)
    weights = []
    for name, n in param_table(cfg).items():
        per_layer = count(n // cfg.n_layer) if name in ("attention", "mlp") else ""
        if name == "head" and cfg.tied:
            name = "head (tied: the embedding's)"
        weights.append([name, count(n), per_layer, percent(n / counts["total"])])
    flops = [[name, count(n), count(6 * n), fixed(exact / (6 * n), 3)] for name, n in counts.items()]
    flops.append(["exact", "", count(exact), ""])
    by_component = text_table(["weights", "", "per layer", "share"], weights)
    by_convention = text_table(["FLOPs per token", "N", "6N", "exact / 6N"], flops)
    return f"{by_component}\n\n{by_convention}"

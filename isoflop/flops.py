"""Parameter and FLOP counts of a ModelConfig: plain arithmetic, no torch."""

from isoflop.config import ModelConfig

# ----- counts -----


def param_table(cfg: ModelConfig) -> dict[str, int]:
    """Weights by component: embedding, positions, attention, mlp, norms, biases, head (0 where it is tied)."""
    C, F, L, V = cfg.n_embd, cfg.n_ffn, cfg.n_layer, cfg.vocab_size
    kv = 2 * cfg.n_kv_head * cfg.head_size  # columns of keys and values
    inner = 2 * F if cfg.activation == "swiglu" else F  # columns of the MLP's first product
    norms = (2 * L + 1) * C if cfg.norm_gain else 0
    return {
        "embedding": V * C,
        "positions": cfg.block_size * C if cfg.position == "learned" else 0,
        "attention": L * (C * (C + kv) + C * C),
        "mlp": L * (C * inner + F * C),
        "norms": norms,
        "biases": (L * (C + kv + C + inner + C) + (norms if cfg.norm == "layernorm" else 0)) if cfg.bias else 0,
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
        matmul : every weight of a matrix that multiplies an activation, the head included, tied or not; look-ups,
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
    """6N with N = matmul parameters: 2N for the forward pass, 4N for the backward. The currency of budgets.

    Kaplan et al. 2020 (arXiv:2001.08361), section 2.1, with the head counted.
    """
    return 6 * count_params(cfg)["matmul"]


def flops_per_token_exact(cfg: ModelConfig) -> int:
    """6N plus attention's two products (q k^T and the weighted sum of v), forward and backward.

    Per layer and token each product is 2 T C forward with T = block_size and C = n_embd, as the full T x T square:
    that is what torch.utils.flop_counter counts; a causal kernel may skip up to half of it. Shared key heads save
    memory and no product.
    """
    return flops_per_token(cfg) + cfg.n_layer * 12 * cfg.block_size * cfg.n_embd


# ----- for people -----


def describe(cfg: ModelConfig) -> str:
    """Weights by component, and 6N under each convention of N beside the exact FLOPs per token."""
    table, counts, exact = param_table(cfg), count_params(cfg), flops_per_token_exact(cfg)
    lines = [f"{'weights':<16}{'':>22}{'per layer':>18}{'share':>9}"]
    for name, n in table.items():
        each = f"{n // cfg.n_layer:,}" if name in ("attention", "mlp") else ""
        tied = "  (tied: the embedding's)" if name == "head" and cfg.tied else ""
        lines.append(f"{name:<16}{n:>22,}{each:>18}{n / counts['total']:>9.1%}{tied}")
    lines += ["", f"{'FLOPs per token':<16}{'N':>22}{'6N':>18}{'exact / 6N':>12}"]
    for name, n in counts.items():
        lines.append(f"{name:<16}{n:>22,}{6 * n:>18,}{exact / (6 * n):>12.3f}")
    lines.append(f"{'exact':<16}{'':>22}{exact:>18,}")
    return "\n".join(lines)

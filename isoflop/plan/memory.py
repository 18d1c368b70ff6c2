"""Memory of a training step by component."""

from isoflop.config import ModelConfig
from isoflop.flops import count_params, param_table

# ----- memory -----

QUERY_BLOCK = 128  # kernels.QUERY_BLOCK, which can't be imported without torch; a test compares the two
FP32 = 4


def head_rows(vocab_size: int, path: str) -> int:
    """kernels.head_rows, likewise."""
    if path != "cpu":
        return max(1, 2**28 // vocab_size)
    return 512 if vocab_size <= 2**14 else 1024


def saved_per_layer(cfg: ModelConfig, rows: int, width: int, path: str) -> float:
    """Bytes that one block keeps for its backward pass.

    Parameters
    ----------
    rows : sequences of block_size tokens in a forward pass.
    width : bytes of the compute type: 2 for bfloat16, 4 for float32.
    path : "cpu" is kernels.py's fused pieces; "cuda" the plain ones under autocast, with a flash kernel that keeps
        queries, keys, values, its output and one float32 number per query.
    """
    C, F, T, s = cfg.n_embd, cfg.n_ffn, cfg.block_size, width
    nh, kv = cfg.n_head, cfg.n_kv_head * cfg.head_size
    tokens = rows * T
    hidden = {"relu2": 2 * F, "gelu": 2 * F, "gelu_tanh": 2 * F, "swiglu": 4 * F}[cfg.activation]
    rope = cfg.position == "rope"
    if path == "cpu":
        plain = cfg.norm == "rmsnorm" and not cfg.norm_gain
        norm = (C + 1) if plain else (2 * C + 2)  # normalised, inverse root; with gains or LayerNorm one more
        mixed = C + 2 * kv + C  # queries, keys, values, and their output
        if cfg.qk_norm:
            mixed += (C + kv if rope else 0) + nh + cfg.n_kv_head  # before the turn
        scores = sum((last - first) * last for first, last in _blocks(T)) / T * nh
        tables = 2 * T * cfg.head_size if cfg.qk_norm and rope else 0
        return s * (tokens * (2 * norm + mixed + scores + C + hidden) + tables)
    stream = FP32 * (C + 1) + s * C  # the residual stream stays float32; the product's input is its copy
    mixed = s * (C + 2 * kv) + s * C + FP32 * nh
    if rope or cfg.qk_norm:
        mixed += s * (C + kv)
    if cfg.activation == "relu2" and s != FP32:  # autocast takes a power in float32
        hidden += 2 * F
    return tokens * (2 * stream + mixed + s * hidden)


def _blocks(T: int):
    return [(first, min(first + QUERY_BLOCK, T)) for first in range(0, T, QUERY_BLOCK)]


def memory(
    cfg: ModelConfig, rows: int, dtype="bfloat16", path="cuda", n_gpus=1, optimizer="adamw", ema=False, val_tokens=2**17
) -> dict:
    """Bytes that one process of train.py holds, by component, and the most at any moment.

    Parameters
    ----------
    rows : sequences in a forward pass (the micro-batch).
    dtype : "bfloat16" or "float32", what products are computed in.
    path : "cpu" (weights in `dtype` beside their float32 master) or "cuda" (float32 weights, autocast).
    n_gpus : processes, over which ZeRO-1 shares the optimizer's state.
    optimizer : "adamw", or "muon", which has one moment for the hidden matrices.
    ema : whether a running mean of the weights is kept.
    val_tokens : length of the validation range.

    Returns
    -------
    dict of bytes
        weights : what forward and backward see, with autocast's copies of the matrices.
        gradients : the flat float32 buffer; autograd's own live only from backward to gather.
        optimizer, optimizer_zero1 : moments, the mean, and the float32 master where weights are a copy; whole and
            shared out (ZeRO-1 has a master of its own part always).
        activations, activations_checkpointed : kept for the backward pass; with checkpointing each block keeps its
            input alone and one block at a time is computed again (train.py has no such option yet).
        logits : the head's buffers at their largest.
        evaluation : what a forward pass over the validation text holds at most.
        peak, peak_zero1, peak_checkpointed, peak_zero1_checkpointed : the largest sum at any moment of a run.
    """
    table, s = param_table(cfg), {"bfloat16": 2, "float32": 4}[dtype]
    P, C, V, L, tokens = sum(table.values()), cfg.n_embd, cfg.vocab_size, cfg.n_layer, rows * cfg.block_size
    cpu = path == "cpu"
    seen = s if cpu else FP32  # bytes of a weight
    casts = s * count_params(cfg)["matmul"] if s < FP32 and not cpu else 0  # live from forward to backward
    moments = FP32 * (2 * P - (table["attention"] + table["mlp"] if optimizer == "muon" else 0) + P * bool(ema))
    stream = s if cpu else FP32
    layer = saved_per_layer(cfg, rows, s, path)
    kept = {"": L * layer, "_checkpointed": min(L * layer, L * tokens * C * stream + layer)}
    ends = tokens * (stream * C + 16)  # the last normalisation; indices and targets, 8 bytes each
    logits = _head(cfg, tokens, s, path)
    mlp = s * (tokens * C + V * C + tokens * cfg.n_ffn + cfg.n_ffn * C)  # when the last block's backward begins
    out = {
        "weights": seen * P + casts,
        "gradients": FP32 * P,
        "optimizer": moments + (FP32 * P if seen < FP32 else 0),
        "optimizer_zero1": (moments + FP32 * P) / n_gpus,
        "activations": kept[""] + ends,
        "activations_checkpointed": kept["_checkpointed"] + ends,
        "logits": logits,
        "evaluation": _evaluation(cfg, path, val_tokens),
    }
    for zero in ("", "_zero1"):
        held = out["weights"] - casts + out["gradients"] + out["optimizer" + zero]
        for kind, layers in kept.items():
            building = FP32 * P  # the model as built, before it becomes a view of the buffers
            step = casts + layers + ends + max(logits, mlp)
            done = seen * P  # the backward pass has left autograd's gradients alone
            out["peak" + zero + kind] = held + max(building, step, done, out["evaluation"])
    return out


def _head(cfg: ModelConfig, tokens: int, s: int, path: str) -> float:
    """Bytes of the last product and the loss, at their most."""
    C, V = cfg.n_embd, cfg.vocab_size
    if cfg.logit_softcap:
        return 3 * FP32 * tokens * V  # log-probabilities, their gradient, and that of the logits, all float32
    chunk = s * min(tokens, head_rows(V, path)) * V
    return max(s * tokens * C + s * V * C + chunk, 2 * s * tokens * C + 2 * s * V * C)


def _evaluation(cfg: ModelConfig, path: str, val_tokens: int) -> float:
    """Bytes of eval.evaluate()'s forward pass: float32 weights on a CPU, some 8,192 tokens, no gradients."""
    C, F, T, V = cfg.n_embd, cfg.n_ffn, cfg.block_size, cfg.vocab_size
    tokens = max(1, min(2**13, 2**26 // V, val_tokens) // T) * T
    if path != "cpu":
        return tokens * (10 * V + 16 * C)
    scores = sum((last - first) * last for first, last in _blocks(T)) / T * cfg.n_head
    hidden = {"relu2": 3 * F, "swiglu": 4 * F}.get(cfg.activation, 2 * F)
    keys = cfg.n_kv_head * cfg.head_size
    columns = C + 2 * keys  # of queries, keys, values, as made and as packed
    turned = C + keys if cfg.qk_norm and cfg.position == "rope" else 0
    attention, mlp, head = 4 * C + 2 * columns + turned + scores, 3 * C + hidden, 2 * C
    return FP32 * max(tokens * attention, tokens * mlp, tokens * head + 2 * head_rows(V, path) * V)

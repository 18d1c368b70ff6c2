"""Memory of a training step by component: arithmetic, without torch."""

from dataclasses import dataclass

from isoflop.config import ModelConfig
from isoflop.flops import count_params, param_table

QUERY_BLOCK = 128  # kernels.attention.QUERY_BLOCK, which can't be imported without torch; a test compares the two
FP32 = 4  # bytes


@dataclass(frozen=True)
class Memory:
    """Bytes that one process of train.py holds, by component, and the most at any moment.

    weights : what forward and backward see, with autocast's copies of the matrices.
    gradients : the flat float32 buffer; autograd's own live only from backward to gather.
    optimizer : moments, the mean of the weights, and the float32 master where weights are a copy.
    weights_shard, gradients_shard, optimizer_shard : with --shard a process's part, in float32. The weights that it
        gathers for a pass, and their gradients, are in peak_shard.
    activations : kept for the backward pass.
    logits : the head's buffers at their largest.
    evaluation : what a forward pass over the validation text holds at most.
    peak, peak_shard : the largest sum at any moment of a run. Components do not all overlap.
    fits, fits_shard : whether the peak is within the device's memory; None where that is unknown.
    """

    micro_batch_size: int  # sequences of a forward pass
    dtype: str
    path: str
    weights: float
    gradients: float
    optimizer: float
    weights_shard: float
    gradients_shard: float
    optimizer_shard: float
    activations: float
    logits: float
    evaluation: float
    peak: float
    peak_shard: float
    fits: bool | None = None
    fits_shard: bool | None = None


def head_rows(vocab_size: int, path: str) -> int:
    """kernels.cross_entropy.head_rows, likewise."""
    if path != "cpu":
        return max(1, 2**28 // vocab_size)
    return max(512, 2**20 // vocab_size) if vocab_size <= 2**14 else 1024


def saved_per_layer(cfg: ModelConfig, rows: int, width: int, path: str) -> float:
    """Bytes that one block keeps for its backward pass.

    Parameters
    ----------
    rows : sequences of block_size tokens in a forward pass.
    width : bytes of the compute type: 2 for bfloat16, 4 for float32.
    path : "cpu" is the fused pieces of isoflop/kernels; "cuda" the plain ones under autocast, with a flash kernel that
        keeps queries, keys, values, its output and one float32 number per query.
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
            mixed += nh + cfg.n_kv_head
        tables = 0
        if rope:
            tables = 2 * T * cfg.head_size
        scores = _score_columns(T) * nh
        return s * (tokens * (2 * norm + mixed + scores + hidden) + tables)
    stream = FP32 * (C + 1) + s * C  # the residual stream stays float32; the product's input is its copy
    mixed = s * (C + 2 * kv) + s * C + FP32 * nh
    if rope or cfg.qk_norm:
        mixed += s * (C + kv)
    if cfg.activation == "relu2" and s != FP32:  # autocast takes a power in float32
        hidden += 2 * F
    return tokens * (2 * stream + mixed + s * hidden)


def workspace(cfg: ModelConfig, tokens: int, width: int) -> float:
    """Bytes of kernels.gpt.Workspace for a training step of `tokens` tokens, but for the head's logits.

    width : bytes of the compute type.
    """
    C, F, T, nh, hs = cfg.n_embd, cfg.n_ffn, cfg.block_size, cfg.n_head, cfg.head_size
    scores = _score_columns(T) * nh
    layer = 6 * C + 2 * F + scores + 2 + 2 * nh
    shared = 10 * C + scores + 2 + 2 * nh  # the residual stream, scratch, gradients
    return width * (tokens * (cfg.n_layer * layer + shared) + T * (1.5 * hs + _score_columns(T))) + 8 * tokens


def _chunk(tokens: int, vocab_size: int) -> int:
    """Tokens whose logits are made at a time in kernels.gpt: parts of equal size."""
    return -(-tokens // -(-tokens // head_rows(vocab_size, "cpu")))


def _score_columns(T: int) -> float:
    """Attention scores kept per query and head, on average: queries go in blocks, each sees the keys up to its end."""
    whole, rest = divmod(T, QUERY_BLOCK)
    entries = QUERY_BLOCK**2 * whole * (whole + 1) // 2 + rest * T
    return entries / T


def estimate_memory(
    cfg: ModelConfig, micro_batch_size: int, dtype: str = "bfloat16", path: str = "cuda", n_gpus: int = 1,
    optimizer: str = "adamw", ema: bool = False, val_tokens: int = 2**17,
) -> Memory:  # fmt: skip
    """Memory of one process of train.py.

    Parameters
    ----------
    micro_batch_size : sequences of block_size tokens in a forward pass.
    dtype : "bfloat16" or "float32", what products are computed in.
    path : "cpu" (weights in `dtype` beside their float32 master) or "cuda" (float32 weights, autocast).
    n_gpus : processes, over which --shard shares out weights, gradients and the optimizer's state.
    optimizer : "adamw", or "muon", which has one moment for the hidden matrices.
    ema : whether a running mean of the weights is kept.
    val_tokens : length of the validation range.

    Returns
    -------
    Memory : in bytes. On a CPU within 5% of the allocator's peak (docs/results.md); "cuda" is not yet measured.
    """
    table, s = param_table(cfg), {"bfloat16": 2, "float32": 4}[dtype]
    P, C, L, tokens = sum(table.values()), cfg.n_embd, cfg.n_layer, micro_batch_size * cfg.block_size
    master = casts = 0
    if path == "cpu":
        seen = stream = s  # bytes of a weight, and of a number in the residual stream
        if s < FP32:
            master = FP32 * P
    else:
        seen = stream = FP32
        if s < FP32:
            casts = s * count_params(cfg)["matmul"]  # autocast's copies, live from forward to backward
    moments = 2 * P
    if optimizer == "muon":
        moments -= table["attention"] + table["mlp"]
    if ema:
        moments += P

    ends = tokens * (stream * C + 16)  # the last normalization; indices and targets, 8 bytes each
    activations = saved = L * saved_per_layer(cfg, micro_batch_size, s, path) + ends
    logits = saved_logits = _head(cfg, tokens, s, path)
    evaluation = _evaluation(cfg, s, path, val_tokens)
    last_mlp = s * (tokens * C + cfg.vocab_size * C + tokens * cfg.n_ffn + cfg.n_ffn * C)  # its backward begins
    building = FP32 * P  # the model as built, before it becomes a view of the buffers
    step = casts + activations + max(logits, last_mlp)
    if path == "cpu" and cfg.in_one_piece:  # but with --shard, which takes the modules
        activations = workspace(cfg, tokens, s) + 24 * tokens  # and indices and targets as read and as taken
        logits = s * cfg.vocab_size * _chunk(tokens, cfg.vocab_size)
        embedding = FP32 * table["embedding"] + (FP32 * tokens * C if s < FP32 else 0)  # its gradient, as summed
        step = activations + logits + s * P + embedding
    evaluated = s * P if path == "cpu" and s < FP32 else 0  # the last weights, in the compute type
    moment = max(building, step, seen * P, evaluation + evaluated)  # seen * P: autograd's own gradients

    whole = FP32 * moments + master
    shards = FP32 * P / n_gpus, FP32 * P / n_gpus, FP32 * moments / n_gpus  # weights, gradients, moments
    peak_shard = sum(shards) + _gathered(table, L, s, saved, saved_logits, last_mlp, evaluation)
    if path == "cpu":
        peak_shard = max(peak_shard, building + shards[0])  # elsewhere it is built beside the device
    return Memory(
        micro_batch_size, dtype, path, seen * P + casts, FP32 * P, whole, *shards, activations, logits, evaluation,
        peak=seen * P + FP32 * P + whole + moment, peak_shard=peak_shard,
    )  # fmt: skip


def _gathered(table, L: int, s: int, activations: float, logits: float, last_mlp: float, evaluation: float) -> float:
    """Bytes that --shard holds beside the shards, at most: what optim.parallel.shard() gathers, and what computes.

    Everything outside of the blocks is there for the whole pass, of the blocks the one that computes and the next, all
    in the compute type (s bytes). A gradient is reduced from a float32 copy.
    """
    root = sum(table[name] for name in ("embedding", "positions", "head"))
    block = (table["attention"] + table["mlp"]) / L  # norms and biases are nothing beside them
    weights = s * (root + 2 * block)
    backward = activations + max(logits, last_mlp + (s + FP32) * block)
    return max(weights + backward, weights + evaluation, (2 * s + FP32) * root)  # the last: embedding's gradient


def _head(cfg: ModelConfig, tokens: int, s: int, path: str) -> float:
    """Bytes of the last product and the loss, at their most."""
    C, V = cfg.n_embd, cfg.vocab_size
    if cfg.logit_softcap:
        return 3 * FP32 * tokens * V  # log-probabilities, their gradient, and that of the logits, all float32
    chunk = s * min(tokens, head_rows(V, path)) * V
    return max(s * tokens * C + s * V * C + chunk, 2 * s * tokens * C + 2 * s * V * C)


def _evaluation(cfg: ModelConfig, s: int, path: str, val_tokens: int) -> float:
    """Bytes of train.validation.evaluate(): a forward pass of some 8,192 tokens, or on a CPU 2,048 with weights in
    the compute type, of s bytes."""
    C, F, T, V = cfg.n_embd, cfg.n_ffn, cfg.block_size, cfg.vocab_size
    chunk = 2**11 if path == "cpu" else 2**13  # train.validation.CHUNK_TOKENS
    tokens = max(1, min(chunk, 2**26 // V, val_tokens) // T) * T
    if path != "cpu":
        return tokens * (10 * V + 16 * C)
    logits = min(tokens, head_rows(V, path) // 4) * V * 2 * FP32
    if cfg.in_one_piece:
        layer = 12 * C + 2 * F + _score_columns(T) * cfg.n_head + 2 + 2 * cfg.n_head
        return max(s * (tokens * layer + T * _score_columns(T)), s * tokens * C + logits)
    scores = _score_columns(T) * cfg.n_head
    hidden = {"relu2": 3 * F, "swiglu": 4 * F}.get(cfg.activation, 2 * F)
    keys = cfg.n_kv_head * cfg.head_size
    columns = C + 2 * keys  # of queries, keys, values, as made and as packed
    attention, mlp = 4 * C + 2 * columns + scores, 3 * C + hidden
    return max(s * tokens * attention, s * tokens * mlp, s * tokens * 2 * C + logits)

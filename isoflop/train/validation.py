"""Validation loss over one fixed range of tokens, shared out over the ranks."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from isoflop.distributed import DistributedEnv
from isoflop.options import UserError

if TYPE_CHECKING:
    from isoflop.data.reader import TokenData

CHUNK_TOKENS = {"cpu": 2**11, "cuda": 2**13}  # of a forward pass; a CPU's caches hold what 2,048 tokens make
CHUNK_LOGITS = 2**26  # the logits are the largest tensor here


def validation_rows(tokens: TokenData, block_size: int, val_tokens: int) -> int:
    """Sequences of the validation range: the first val_tokens tokens of the split, or all of it if it is shorter.

    UserError for fewer than two: one has no standard error.
    """
    rows = min(val_tokens, len(tokens.val) - 1) // block_size
    if rows < 2:
        raise UserError(
            f"--val_tokens {val_tokens} and a validation split of {len(tokens.val):,} tokens hold {rows} sequences of "
            f"--block_size {block_size}; at least 2 are needed: lower --block_size or prepare more text"
        )
    return rows


@torch.no_grad()
def evaluate(
    model, tokens: TokenData, token_bytes, rows: int, env: DistributedEnv, autocast, chunk_tokens: int | None = None
) -> dict:
    """Loss over the fixed range, each rank taking every env.size-th sequence; sums are reduced once.

    A mean of the ranks' means, or fresh random batches, would be too noisy for a fit.

    Parameters
    ----------
    token_bytes : int64 tensor (vocab_size,), bytes of each token's text; 0 for end-of-text. None: unknown.
    rows : sequences of block_size tokens in the range.
    chunk_tokens : of a forward pass, CHUNK_TOKENS by default.

    Returns
    -------
    dict with val_loss (nats per token), val_loss_se (its standard error, from the spread between sequences: how well
    this text was sampled; runs that share the range share most of that error), bits_per_byte (loss of the tokens that
    have bytes, over those bytes; None where they are unknown).
    """
    T, V = model.config.block_size, model.config.vocab_size
    mine = list(range(env.rank, rows, env.size))
    chunk_tokens = chunk_tokens or CHUNK_TOKENS["cpu" if env.device == "cpu" else "cuda"]
    per_chunk = max(1, min(chunk_tokens, CHUNK_LOGITS // V) // T)
    n = total = squares = text_loss = text_bytes = 0.0
    most = -(-rows // env.size)  # of any rank: all call a model that is sharded as often as each other
    for i in range(0, most, per_chunk):
        chunk = mine[i : i + per_chunk]
        at = torch.tensor(chunk or [0])[:, None] * T + torch.arange(T + 1)
        seq = torch.from_numpy(tokens.val[at.numpy()].astype("int64"))  # (rows, T + 1)
        x, y = seq[:, :-1].to(env.device), seq[:, 1:].to(env.device)
        with autocast:
            loss = model(x, y, reduction="none")[1].cpu().double()  # (rows, T); float64, which MPS lacks
        if not chunk:
            continue
        row_means = loss.mean(dim=1)
        n += len(row_means)
        total += row_means.sum().item()
        squares += row_means.square().sum().item()
        if token_bytes is not None:
            length = token_bytes[seq[:, 1:]]
            text_loss += loss[length > 0].sum().item()
            text_bytes += length.sum().item()
    n, total, squares, text_loss, text_bytes = env.sum(n, total, squares, text_loss, text_bytes)
    mean = total / n
    variance = max(0.0, squares / n - mean**2) * n / (n - 1)
    bits_per_byte = text_loss / text_bytes / math.log(2) if text_bytes else None
    return {"val_loss": mean, "val_loss_se": math.sqrt(variance / n), "bits_per_byte": bits_per_byte}

"""Validation loss over one fixed token range, shared out over the ranks."""

import math

import torch

from isoflop.data import reader
from isoflop.distributed import World

# ----- loss on a text -----


def validation_rows(tokens: reader.TokenData, block_size: int, val_tokens: int) -> int:
    """Sequences of the validation range: the first val_tokens tokens of the split, or all of it if it is shorter."""
    rows = min(val_tokens, len(tokens.val) - 1) // block_size
    if rows < 2:
        raise ValueError(
            f"--val_tokens {val_tokens} and a validation split of {len(tokens.val):,} tokens hold {rows} sequences of "
            f"--block_size {block_size}; at least 2 are needed: lower --block_size or prepare more text"
        )
    return rows


@torch.no_grad()
def evaluate(model, tokens: reader.TokenData, spelled, rows: int, world: World, autocast, chunk_tokens=2**13) -> dict:
    """Loss over the fixed range, each rank taking every world.size-th sequence; sums are reduced once.

    Parameters
    ----------
    spelled : int64 tensor (vocab_size,), the bytes that each token spells; 0 for end-of-text. None: not known.
    rows : sequences of block_size tokens in the range.

    Returns
    -------
    dict with val_loss (nats per token), val_loss_se (its standard error, from the spread between sequences: it says
    how well this text was sampled; runs that share the range share most of that error), bits_per_byte (losses of
    tokens that spell bytes, over those bytes; None where that is not known).
    """
    T, V = model.config.block_size, model.config.vocab_size
    mine = range(world.rank, rows, world.size)
    per_chunk = max(1, min(chunk_tokens, 2**26 // V) // T)  # the logits are the largest thing here
    n = total = squares = text_loss = text_bytes = 0.0
    for i in range(0, len(mine), per_chunk):
        at = torch.tensor(mine[i : i + per_chunk])[:, None] * T + torch.arange(T + 1)
        seq = torch.from_numpy(tokens.val[at.numpy()].astype("int64"))  # (rows, T + 1)
        x, y = seq[:, :-1].to(world.device), seq[:, 1:].to(world.device)
        with autocast:
            loss = model(x, y, reduction="none")[1].cpu().double()  # summed in float64, which MPS lacks
        length = torch.zeros_like(seq[:, 1:]) if spelled is None else spelled[seq[:, 1:]]
        row_means = loss.mean(dim=1)
        n += len(row_means)
        total += row_means.sum().item()
        squares += row_means.square().sum().item()
        text_loss += loss[length > 0].sum().item()
        text_bytes += length.sum().item()
    n, total, squares, text_loss, text_bytes = world.sum(n, total, squares, text_loss, text_bytes)
    mean = total / n
    variance = max(0.0, squares / n - mean**2) * n / (n - 1)
    bits_per_byte = text_loss / text_bytes / math.log(2) if text_bytes else None
    return {"val_loss": mean, "val_loss_se": math.sqrt(variance / n), "bits_per_byte": bits_per_byte}

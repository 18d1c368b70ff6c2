"""Buckets: stretches of the flat buffers that processes sum, and share out, one at a time."""

from collections import defaultdict
from dataclasses import dataclass, field

BUCKET = 2**22  # gradients that processes sum in one call: 16 MB, large enough that the start of a call doesn't count


@dataclass
class Bucket:
    """A stretch of the flat buffers of weights and gradients: parameters of one group, and perhaps padding."""

    group: dict
    params: list
    at: list[int]  # where each of them starts
    span: slice  # the stretch
    mine: slice  # the part of it that this process updates: the whole, or one of `ranks` equal parts
    own: slice  # where that part lies in the buffers of what this process owns: master, m, v, ema
    flat: tuple = ()  # views of that part of master, grad, m and v
    missing: int = 0  # parameters whose gradient has not arrived in this backward pass
    matrices: dict = field(default_factory=dict)  # Muon's, in `mine`: shape -> where they start in it


def lay_out(groups: list[dict], limit: float, rank: int = 0, ranks: int = 1) -> list[Bucket]:
    """Buckets of about `limit` weights, each shared out over `ranks` in equal contiguous parts.

    AdamW works on single weights, so its buckets are cut anywhere. Muon needs whole matrices: each goes to one rank,
    and a bucket holds several for each. With one rank there is no padding.
    """
    buckets = []
    start, owned = 0, 0
    for group in groups:
        whole_matrices = bool(group.get("muon")) and ranks > 1
        least = 4 * ranks if whole_matrices else 1
        for params in _chunks(group["params"], limit, least):
            if whole_matrices:
                piles = _share_out(params, ranks)
                part = max(n_weights(pile) for pile in piles)
            else:
                piles = [params]
                part = -(-n_weights(params) // ranks)
            bucket = _bucket(group, piles, start, part, rank, ranks, owned)
            buckets.append(bucket)
            start = bucket.span.stop
            owned += part
    return buckets


def _bucket(group, piles, start, part, rank, ranks, owned) -> Bucket:
    """One bucket at `start`, its i-th pile at the i-th part; this rank owns the part of its number."""
    params, places = [], []
    for i, pile in enumerate(piles):
        place = start + i * part
        for p in pile:
            params.append(p)
            places.append(place)
            place += p.numel()
    mine = slice(start + rank * part, start + (rank + 1) * part)
    bucket = Bucket(group, params, places, slice(start, start + ranks * part), mine, slice(owned, owned + part))
    if group.get("muon"):
        bucket.matrices = defaultdict(list)
        for p, place in zip(params, places, strict=True):
            if mine.start <= place < mine.stop:
                bucket.matrices[tuple(p.shape)].append(place - mine.start)
    return bucket


def _share_out(params, ranks: int) -> list[list]:
    """Whole matrices to ranks: the largest first, to the rank that has least."""
    piles = [[] for _ in range(ranks)]
    for p in sorted(params, key=lambda p: -p.numel()):
        min(piles, key=n_weights).append(p)
    return piles


def n_weights(params) -> int:
    return sum(p.numel() for p in params)


def _chunks(params, limit: float, least: int) -> list[list]:
    """Runs of at least `least` parameters, and no more than it takes to reach `limit` weights."""
    chunks = [[]]
    for i, p in enumerate(params):
        full = n_weights(chunks[-1]) + p.numel() > limit and len(chunks[-1]) >= least
        if full and len(params) - i >= least:
            chunks.append([])
        chunks[-1].append(p)
    return chunks

"""Batches of tokens for training, at any position without state: a resume needs the number of the next sequence.

Loader(tokens, T)                      windows of T tokens side by side, each once per epoch, in a new order
Loader(tokens, T, mode="random")       windows from anywhere, with replacement, as nanoGPT takes them
Loader(tokens, T, mode="bos", eot=i)   rows that begin where a document does, filled by best fit, as nanochat packs them
"""

from bisect import bisect_right, insort

import numpy as np

from isoflop.options import UserError

MODES = ("windows", "random", "bos")
RAM_BYTES = 2**28  # a smaller split is copied into memory
BUFFER_DOCS = 1000  # documents among which the best fit is looked for, as in nanochat
SCAN = 2**24  # tokens searched for document ends at a time


class Loader:
    """Batches of consecutive tokens, without replacement within an epoch.

    Window i of n_windows = (len(tokens) - 1) // T has idx = tokens[iT : iT + T] and as targets the same shifted by one:
    over an epoch every token is an input once (but for a rest of fewer than T). Sequence number s is at position
    s % n_windows of the order of epoch s // n_windows, which depends on (seed, epoch) only. So a resume needs one
    integer, and rank r of W reads the slice first + r*B : first + (r+1)*B of each global batch of W*B sequences.
    seed=None keeps the order of the file, as for validation.

    mode "random": sequence s begins at a hash of (seed, s); n_windows only says how many make up as many tokens as
    there are. mode "bos": the sequences are rows of T + 1 tokens, the same every epoch, each beginning with the
    end-of-text token that stands before a document; `cropped` is the share of tokens that are in none of them.

    Parameters
    ----------
    tokens : 1-D array of token ids, or reader.Tokens.
    eot : the id that ends each document; only "bos" needs it.
    """

    def __init__(self, tokens, block_size: int, seed: int | None = 0, mode: str = "windows", eot: int | None = None):
        if mode not in MODES:
            raise UserError(f"mode {mode!r} must be one of {', '.join(MODES)}")
        self.length, self.block_size, self.seed, self.mode = len(tokens), block_size, seed, mode
        self.n_windows = (self.length - 1) // block_size
        if self.n_windows < 1:
            raise UserError(f"{len(tokens):,} tokens do not fill one window of --block_size {block_size} and a target")
        if tokens.nbytes <= RAM_BYTES:
            tokens = np.array(tokens)  # a copy in memory: no page faults in the training loop
        self.tokens, self.windows = tokens, None
        if isinstance(tokens, np.ndarray):
            self.windows = np.lib.stride_tricks.sliding_window_view(tokens, block_size + 1)  # views, no copy
        self.cropped = 0.0
        if mode == "bos":
            self.rows, self.begins, self.lengths = pack(*documents(tokens, eot), block_size + 1, seed)
            self.n_windows = len(self.rows) - 1
            self.cropped = 1 - self.n_windows * (block_size + 1) / self.length
        self.epoch, self.order = -1, None  # of the order computed last

    def batch(self, first: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """(idx, targets), int64 of shape (count, T): the sequences first .. first + count - 1."""
        chunk = self.sequences(first, count)
        return chunk[:, :-1].copy(), chunk[:, 1:].copy()

    def sequences(self, first: int, count: int) -> np.ndarray:
        """int64 (count, T + 1): idx is all but the last column, targets all but the first."""
        assert first >= 0 and count >= 1, (first, count)
        if self.mode == "random":
            seed = 0 if self.seed is None else self.seed
            return self.read(hashed(seed, first, count) % np.uint64(self.length - self.block_size))
        found, s = [], first
        while s < first + count:  # once, or once per epoch where a batch straddles several
            epoch, position = divmod(s, self.n_windows)
            if epoch != self.epoch:
                self.epoch, self.order = epoch, self.epoch_order(epoch)
            found.append(self.order[position : position + first + count - s])
            s += len(found[-1])
        indices = np.concatenate(found).astype(np.int64)
        if self.mode == "bos":
            return np.stack([self.packed(row) for row in indices])
        return self.read(indices * self.block_size)

    def read(self, starts: np.ndarray) -> np.ndarray:
        """int64 (len(starts), T + 1): the windows that begin at these tokens."""
        if self.windows is not None:
            return self.windows[starts].astype(np.int64)
        return np.stack([self.tokens[int(s) : int(s) + self.block_size + 1] for s in starts]).astype(np.int64)

    def packed(self, row: int) -> np.ndarray:
        """int64 (T + 1,): one row of mode "bos"."""
        found = []
        for i in range(self.rows[row], self.rows[row + 1]):
            begin, length = int(self.begins[i]), int(self.lengths[i])
            if begin < 0:  # the first document: the end-of-text token before it is the last one of all
                found.append(self.tokens[-1:])
                begin, length = 0, length - 1
            found.append(self.tokens[begin : begin + length])
        return np.concatenate(found).astype(np.int64)

    def epoch_order(self, epoch: int) -> np.ndarray:
        order = np.arange(self.n_windows, dtype=np.int32)  # 4 bytes a window: 40 MB for 10B tokens in windows of 1,024
        return order if self.seed is None else np.random.default_rng((self.seed, epoch)).permutation(order)


def hashed(seed: int, first: int, count: int) -> np.ndarray:
    """uint64 (count,): a well-mixed number for each of seed, first .. first + count - 1 (splitmix64's steps)."""
    with np.errstate(over="ignore"):
        x = np.arange(first, first + count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x += np.random.SeedSequence(seed).generate_state(1, np.uint64)[0]
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


# ----- packing -----


def documents(tokens, eot: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(begins, lengths): each document with the end-of-text token before it; every token belongs to one.

    Where documents are followed by end-of-text, as here, the first one begins at -1: at the last token of all.
    """
    if eot is None:
        raise UserError(
            "--pack bos: rows that begin with a document need the end-of-text token, and this data folder has none; "
            "leave --pack out"
        )
    found = []
    for i in range(0, len(tokens), SCAN):
        found.append(np.flatnonzero(np.asarray(tokens[i : i + SCAN]) == eot) + i)
    ends = np.concatenate(found).astype(np.int64)
    if len(ends) and ends[0] == 0:  # other people's: end-of-text stands before each document
        return ends, np.diff(np.append(ends, len(tokens)))
    if not len(ends) or ends[-1] != len(tokens) - 1:
        raise UserError(
            f"--pack bos: the tokens neither begin nor end with the end-of-text token {eot}, so their documents are "
            "unknown; leave --pack out"
        )
    begins = np.concatenate([[-1], ends[:-1]])
    return begins, ends - begins


def pack(begins: np.ndarray, lengths: np.ndarray, capacity: int, seed: int | None):
    """Rows of exactly `capacity` tokens out of documents, in the order that the seed gives them.

    Of BUFFER_DOCS documents the longest that still fits is taken; where none fits, the shortest fills the row and its
    rest is left out. Rows cut nothing that fits, at the price of what is left out (nanochat, dataloader.py).

    Returns
    -------
    (rows, begins, lengths) : row r holds the documents rows[r] .. rows[r + 1] - 1, cut to these lengths.
    """
    order = np.arange(len(begins))
    if seed is not None:
        order = np.random.default_rng((seed, 2**32)).permutation(len(begins))
    sizes, waiting = lengths.tolist(), iter(order.tolist())
    buffer: list[tuple[int, int]] = []  # (size, document), sorted
    rows, taken, kept = [0], [], []
    while True:
        room = capacity
        while room:
            # Refill the buffer.
            while len(buffer) < BUFFER_DOCS and (i := next(waiting, None)) is not None:
                insort(buffer, (sizes[i], i))
            if not buffer:
                break
            # Take the longest document that fits, else the shortest.
            best = bisect_right(buffer, (room, len(sizes))) - 1
            size, i = buffer.pop(max(0, best))
            taken.append(i)
            kept.append(min(size, room))
            room -= kept[-1]
        if room:  # the documents are used up: what is in the last row is left out
            break
        rows.append(len(taken))
    taken = np.array(taken[: rows[-1]], dtype=np.int64)
    return np.array(rows), begins[taken], np.array(kept[: rows[-1]], dtype=np.int64)

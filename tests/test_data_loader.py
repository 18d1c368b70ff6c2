"""isoflop/data/loader.py: every mode covers what it says, at any position."""

from collections import Counter

import numpy as np
import pytest

from isoflop.data import loader as loading
from isoflop.data.loader import Loader
from isoflop.options import UserError

EOT = 9


def corpus(n_docs: int = 400, longest: int = 90, seed: int = 0) -> tuple[np.ndarray, list[np.ndarray]]:
    """(tokens, documents): tokens are numbered, so that each can be told from all others; documents end with EOT."""
    rng, docs, at = np.random.default_rng(seed), [], 100
    for length in rng.integers(0, longest, n_docs):
        docs.append(np.arange(at, at + length))
        at += length
    return np.concatenate([np.append(doc, EOT) for doc in docs]).astype(np.uint32), docs


# ----- windows -----


@pytest.mark.parametrize("n_ranks", [1, 3])
@pytest.mark.parametrize("n_tokens", [8 * 16 + 1, 1000, 1003])
def test_every_token_once_per_epoch(n_tokens, n_ranks):
    T, B = 8, 2
    tokens = np.arange(n_tokens, dtype=np.uint16)
    n = (n_tokens - 1) // T
    loaders = [Loader(tokens, T, seed=5) for _ in range(n_ranks)]
    assert loaders[0].n_windows == n
    seen, first = [], 0
    while first < 2 * n:
        for rank, loader in enumerate(loaders):
            idx, targets = loader.batch(first + rank * B, B)
            assert idx.shape == targets.shape == (B, T) and idx.dtype == targets.dtype == np.int64
            np.testing.assert_array_equal(targets, idx + 1)
            seen.append(idx)
        first += n_ranks * B
    rows = np.concatenate(seen)[: 2 * n]  # in global order: the last step may run into the third epoch
    for epoch in (rows[:n], rows[n:]):
        np.testing.assert_array_equal(np.sort(epoch.ravel()), np.arange(n * T))
    assert not np.array_equal(rows[:n], rows[n:]), "the second epoch has another order"


def test_ranks_see_what_one_process_sees():
    tokens = np.random.default_rng(0).integers(0, 500, 5000).astype(np.uint16)
    alone, shared = Loader(tokens, 16, seed=1), [Loader(tokens, 16, seed=1) for _ in range(8)]
    for first in range(0, 960, 96):
        whole = alone.batch(first, 96)
        parts = [loader.batch(first + 12 * rank, 12) for rank, loader in enumerate(shared)]
        for i in range(2):
            np.testing.assert_array_equal(whole[i], np.concatenate([p[i] for p in parts]))


def test_order_depends_on_seed_and_position_only():
    tokens = np.arange(4001, dtype=np.uint16)
    straight, jumping = Loader(tokens, 8, seed=3), Loader(tokens, 8, seed=3)
    for first in (1200, 0, 499, 700, 3):  # 500 windows: later epochs, back again, and across a border
        np.testing.assert_array_equal(straight.batch(first, 7)[0], jumping.batch(first, 7)[0])
    across = Loader(tokens, 8, seed=3).batch(497, 600)[0]  # three epochs in one batch
    np.testing.assert_array_equal(across, np.concatenate([straight.batch(s, 1)[0] for s in range(497, 1097)]))
    assert not np.array_equal(Loader(tokens, 8, seed=4).batch(0, 8)[0], straight.batch(0, 8)[0])
    np.testing.assert_array_equal(Loader(tokens, 8, seed=None).batch(0, 500)[0].ravel(), np.arange(4000))


@pytest.mark.parametrize("n_tokens", [0, 1, 64])
def test_a_split_shorter_than_a_window_is_refused(n_tokens):
    with pytest.raises(UserError, match="--block_size 64"):
        Loader(np.zeros(n_tokens, dtype=np.uint16), 64)
    assert Loader(np.zeros(65, dtype=np.uint16), 64).n_windows == 1


# ----- random windows -----


def test_random_windows_at_any_position():
    tokens = np.arange(5000, dtype=np.uint16)
    one, two = Loader(tokens, 16, seed=3, mode="random"), Loader(tokens, 16, seed=3, mode="random")
    whole = one.batch(0, 4000)[0]
    np.testing.assert_array_equal(np.diff(whole, axis=1), 1)
    for first in (3990, 7, 1234):
        np.testing.assert_array_equal(two.batch(first, 10)[0], whole[first : first + 10])
    assert not np.array_equal(Loader(tokens, 16, seed=4, mode="random").batch(0, 50)[0], whole[:50])
    starts = whole[:, 0]
    assert starts.min() < 20 and starts.max() > 4964 and starts.max() + 16 < len(tokens)
    counts = np.histogram(starts, bins=10)[0]
    assert counts.min() > 320 and counts.max() < 480, "from everywhere alike: 400 of each tenth, give or take"
    assert len(set(starts.tolist())) < 3000, "with replacement"


def test_random_windows_reach_the_last_token():
    tokens = np.arange(9, dtype=np.uint16)
    idx, targets = Loader(tokens, 4, mode="random").batch(0, 500)
    assert set(idx[:, 0].tolist()) == {0, 1, 2, 3, 4} and targets.max() == 8


# ----- rows that begin with a document -----


@pytest.mark.parametrize("in_front", [False, True])
def test_rows_begin_with_a_document_and_hold_each_token_once(in_front):
    tokens, docs = corpus()
    if in_front:  # as llm.c writes them
        tokens = np.concatenate([[EOT], tokens[:-1]]).astype(np.uint32)
    T = 64
    loader = Loader(tokens, T, seed=1, mode="bos", eot=EOT)
    n = loader.n_windows
    rows = loader.sequences(0, n)
    assert rows.shape == (n, T + 1) and (rows[:, 0] == EOT).all()
    inside = Counter(rows[rows != EOT].tolist())
    assert set(inside.values()) == {1}, "no token twice"
    assert loader.cropped == pytest.approx(1 - rows.size / len(tokens)) and 0 < loader.cropped < 0.25
    whole = {doc.tobytes() for doc in docs}
    for row in rows:
        pieces = np.split(row, np.flatnonzero(row == EOT))[1:]
        assert all(piece[1:].astype(docs[0].dtype).tobytes() in whole for piece in pieces[:-1]), "only the last is cut"
        last = pieces[-1][1:]
        assert len(last) == 0 or (np.diff(last) == 1).all()


def test_rows_over_epochs_and_ranks():
    tokens, _ = corpus()
    alone = Loader(tokens, 32, seed=2, mode="bos", eot=EOT)
    n = alone.n_windows
    both = alone.sequences(0, 2 * n)
    order = [[tuple(row) for row in epoch.tolist()] for epoch in (both[:n], both[n:])]
    assert Counter(order[0]) == Counter(order[1]) and order[0] != order[1]
    shared = [Loader(tokens, 32, seed=2, mode="bos", eot=EOT) for _ in range(3)]
    for first in range(0, 60, 12):
        parts = [part.batch(first + 4 * rank, 4)[1] for rank, part in enumerate(shared)]
        np.testing.assert_array_equal(np.concatenate(parts), alone.batch(first, 12)[1])


def test_the_longest_that_fits_is_taken():
    lengths = np.array([5, 3, 8, 2, 7])
    rows, begins, kept = loading.pack(np.arange(5) * 10, lengths, 10, None)
    assert [(b // 10, k) for b, k in zip(begins, kept, strict=True)] == [(2, 8), (3, 2), (4, 7), (1, 3)]
    assert rows.tolist() == [0, 2, 4], "the 5 left over fill no row"
    rows, begins, kept = loading.pack(np.arange(3) * 10, np.array([6, 9, 7]), 10, None)
    assert kept.tolist() == [9, 1] and begins.tolist() == [10, 0], "where none fits the shortest is cut"


def test_rows_need_documents():
    for eot, says in ((None, "has none"), (7, "neither begin nor end with the end-of-text token 7")):
        with pytest.raises(UserError, match=says):
            Loader(np.arange(10, 500, dtype=np.uint16), 16, mode="bos", eot=eot)
    with pytest.raises(UserError, match="mode 'dense' must be one of windows, random, bos"):
        Loader(np.arange(100), 16, mode="dense")


@pytest.mark.parametrize("mode", loading.MODES)
def test_modes_read_maps_as_they_read_memory(mode, tmp_path, monkeypatch):
    tokens, _ = corpus()
    tokens.astype(np.uint32).tofile(tmp_path / "t.bin")
    mapped = np.memmap(tmp_path / "t.bin", np.uint32, "r")
    in_memory = Loader(mapped, 32, seed=0, mode=mode, eot=EOT).batch(5, 40)
    monkeypatch.setattr(loading, "RAM_BYTES", 0)
    for a, b in zip(Loader(mapped, 32, seed=0, mode=mode, eot=EOT).batch(5, 40), in_memory, strict=True):
        np.testing.assert_array_equal(a, b)

"""isoflop/train/prefetch.py: batches are the loader's, and errors and ends of its thread are seen."""

import threading

import numpy as np
import pytest

from isoflop.data.loader import Loader
from isoflop.train.prefetch import Batches


@pytest.mark.parametrize("threaded", [False, True])
def test_batches_are_the_loaders(threaded):
    tokens = np.arange(3000, dtype=np.uint16)
    plain = Loader(tokens, 16, seed=1)
    for rank in range(2):
        made = list(Batches(Loader(tokens, 16, seed=1), 40 + rank * 4, 8, 4, 30, "cpu", threaded=threaded))
        assert len(made) == 30
        for step, (idx, targets) in enumerate(made):
            a, b = plain.batch(40 + rank * 4 + step * 8, 4)
            assert idx.tolist() == a.tolist() and targets.tolist() == b.tolist() and idx.is_contiguous()


@pytest.mark.parametrize("threaded", [False, True])
def test_what_fails_while_reading_fails_the_step(threaded):
    class Torn:
        def sequences(self, first, count):
            if first >= 20:
                raise OSError("the disk is gone")
            return np.zeros((count, 5), np.int64)

    batches = Batches(Torn(), 0, 10, 2, 100, "cpu", threaded=threaded)
    assert next(batches) and next(batches)
    with pytest.raises(OSError, match="the disk is gone"):
        next(batches)
    batches.close()
    with pytest.raises(StopIteration):
        next(batches)


def test_a_closed_reader_ends_its_thread():
    before = set(threading.enumerate())
    batches = Batches(Loader(np.arange(3000), 16), 0, 4, 4, 10**6, "cpu", threaded=True)
    next(batches)
    (mine,) = (t for t in set(threading.enumerate()) - before if t.name.endswith("(work)"))
    batches.close()
    mine.join(5)
    assert not mine.is_alive()

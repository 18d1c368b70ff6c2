"""Which errors are a status of a run, and the advice when memory is short."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from isoflop.train.failures import find_micro_batch, note_failure, status_of


@pytest.mark.parametrize(
    "error, status",
    [
        (torch.OutOfMemoryError("CUDA out of memory"), "oom"),
        (MemoryError(), "oom"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "oom"),
        (dist.DistBackendError("NCCL error"), "peer_lost"),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), "peer_lost"),
        (RuntimeError("shapes do not match"), None),
    ],
)
def test_errors_that_are_a_status(error, status):
    assert status_of(error) == status
    progress = SimpleNamespace(status="ok", problem="")
    if status is None:
        with pytest.raises(RuntimeError, match="shapes"), note_failure(progress):
            raise error
        assert progress.status == "ok"
    else:
        with note_failure(progress):
            raise error
        assert progress.status == status


@pytest.mark.parametrize("room, advice", [(20, "add --micro_batch_size 12,"), (1, "add --micro_batch_size 1,"),
                                          (0, "not even one sequence")])  # fmt: skip
def test_the_largest_part_that_fits_is_found(room, advice):
    tried = []

    def attempt(rows):
        tried.append(rows)
        if rows > room:
            raise torch.OutOfMemoryError("no")

    assert advice in find_micro_batch(attempt, 50, "cpu")
    assert tried == [rows for rows in (25, 12, 6, 3, 1) if rows >= min(tried)]


def test_another_error_while_trying_is_raised():
    def attempt(rows):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        find_micro_batch(attempt, 8, "cpu")

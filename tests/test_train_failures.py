"""Which errors are a status of a run, and the advice when memory is short."""

from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from isoflop.train.failures import blown_up, find_micro_batch, note_failure, status_of

LONG = SimpleNamespace(steps=100, warmup_steps=10, tokens=100_000)
FALLING = [5.0, 4.0, 3.5, 3.3, 3.2, 3.1, 3.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    "val_loss, tenths, plan, expected",
    [
        (3.0, FALLING, LONG, False),
        (6.4, FALLING, LONG, True),  # above ln 512 = 6.24
        (6.2, FALLING, LONG, False),
        (4.0, [9.0, 4.0, 3.2, 3.0, 3.0, 3.1, 3.3, 3.4, 3.6, 4.0], LONG, True),  # rose by 1 from its lowest tenth
        (3.4, [9.0, 4.0, 3.2, 3.0, 3.0, 3.1, 3.3, 3.4, 3.4, 3.4], LONG, False),  # by 0.4
        (3.0, [9.0, 4.0, 3.2, 5.0, 6.0, 5.1, 3.3, 3.1, 3.0, 3.0], LONG, False),  # a spike that it came down from
        (5.0, [1.0, *[5.0] * 9], LONG, False),  # the warm-up does not count
        (4.0, [9.0, *[3.0] * 8, 4.0], SimpleNamespace(steps=100, warmup_steps=10, tokens=9000), False),  # noise
    ],
)
def test_a_loss_that_is_no_result(val_loss, tenths, plan, expected):
    for log_every in (1, 5, 10):  # whatever the interval of the log
        curve = []
        for step in range(log_every, 101, log_every):
            curve.append({"step": step, "loss": tenths[(step - 1) // 10]})
        assert blown_up(val_loss, curve, plan, 512) is expected


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


@pytest.mark.parametrize("room, advice", [(20, "--micro_batch_size 12,"), (27, "--micro_batch_size 12,"),
                                          (1, "--micro_batch_size 1,"), (0, "not even one sequence")])  # fmt: skip
def test_the_largest_part_that_fits_is_found(room, advice):
    tried = []

    def attempt(rows):
        tried.append(rows)
        if rows > room:
            raise torch.OutOfMemoryError("no")

    assert advice in find_micro_batch(attempt, 50, "cpu")
    assert tried == [rows for rows in (28, 13, 6, 3, 1) if rows >= min(tried)]


def test_another_error_while_trying_is_raised():
    def attempt(rows):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        find_micro_batch(attempt, 8, "cpu")

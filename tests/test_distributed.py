"""The processes of a run: launch and resume commands, signals, devices; sums over real ranks are in test_train.py."""

import errno
import io
import os
import signal
import sys

import pytest

from isoflop import distributed
from isoflop.device import pick_device
from isoflop.distributed import DistributedEnv, launch, launch_command, resume_command, stop_signals


def test_one_process_sends_nothing(capsys):
    env = DistributedEnv()
    assert env.sum(1.5, 2) == [1.5, 2] and env.any(True) and not env.any(False)
    env.barrier()
    env.print0("a", 1)
    DistributedEnv(rank=1, size=2).print0("not shown")
    assert capsys.readouterr().out == "a 1\n"
    with launch("cpu") as env:
        assert env == DistributedEnv(0, 1, "cpu")


def test_the_command_that_resumes():
    command = "python train.py --n_embd 64 --resume"
    assert resume_command(["--n_embd", "64"]) == command
    assert resume_command(["--n_embd", "64", "--resume"]) == command
    assert resume_command(["--resume", "--n_embd", "64"]) == command
    assert resume_command(["--resume", "a/b", "--n_embd", "64"]) == command
    assert resume_command(["--resume=a/b", "--n_embd", "64"]) == command
    assert resume_command(["--out_dir", "my run"]) == "python train.py --out_dir 'my run' --resume"


def test_the_launch_command_of_two_nodes_has_an_address_to_fill_in(monkeypatch):
    for name, value in (("WORLD_SIZE", "16"), ("GROUP_WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    nodes = ["--nnodes=2", "--rdzv_backend=c10d", "--rdzv_endpoint=HOST:PORT"]
    assert launch_command() == ["torchrun", *nodes, "--nproc_per_node=8"]
    monkeypatch.setenv("GROUP_WORLD_SIZE", "1")
    assert launch_command() == ["torchrun", "--nproc_per_node=8"]


def test_the_first_signal_is_noted_and_the_second_is_the_former_handler_s():
    received = []
    before = signal.signal(signal.SIGTERM, lambda *_: received.append("former"))
    try:
        with stop_signals() as stop:
            assert not stop()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop() and not received
            os.kill(os.getpid(), signal.SIGTERM)
            assert received == ["former"]
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("rank, ends_by", [("0", "exit"), ("1", "_exit"), (None, "exit")])
def test_ranks_other_than_0_leave_without_clean_up(monkeypatch, rank, ends_by):
    said = []
    monkeypatch.delenv("RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(os, "_exit", lambda status: said.append(("_exit", status)) or sys.exit(status))
    with pytest.raises(SystemExit) as stop:
        distributed.leave(3)
    assert stop.value.code == 3 and bool(said) == (ends_by == "_exit")


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(distributed.torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="--device cuda: torch finds no such device here; use --device cpu"):
        pick_device("cuda")


def test_a_full_disk_under_stdout_does_not_end_a_run(monkeypatch, capsys):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    DistributedEnv().print0("step 1")
    DistributedEnv().print0("step 2")
    says = "warning: standard output: No space left on device; the run continues without it\n"
    assert capsys.readouterr().err == says, "once"

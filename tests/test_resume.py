"""Kills, signals, full disks and damaged files: what a run leaves, and that it goes on as if nothing had been."""

import dataclasses
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import train as train_module
from isoflop.config import ModelConfig
from isoflop.distributed import resume_command
from isoflop.train import checkpoint
from isoflop.train.plan import TrainConfig
from train import INTERRUPTED, Interrupted, train

ROOT = Path(__file__).resolve().parent.parent
MC = ModelConfig(n_layer=1, n_embd=16, block_size=32)
FLAGS = ["--n_layer", "1", "--n_embd", "16", "--block_size", "32", "--device", "cpu", "--val_tokens", "2048"]


def config(toy_data, out_dir, **more):
    defaults = dict(max_iters=40, batch_size=4, data_dir=toy_data, out_dir=str(out_dir), val_tokens=2048)
    return TrainConfig(**{**defaults, **more})


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def equal(a, b):
    a, b = weights(a), weights(b)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def interrupt(mc, tc, steps):
    """Run `steps` steps further and leave a checkpoint there, as a signal does."""
    left, before = iter(range(steps - 1)), _done(Path(tc.out_dir)) if tc.resume else 0
    with pytest.raises(Interrupted) as end:
        train(mc, tc, quiet=True, stop=lambda: next(left, None) is None)
    assert end.value.step == before + steps
    return end.value.saved


# ----- the same weights -----


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stopped_at_ten_random_steps(toy_data, tmp_path, dtype):
    whole = train(MC, config(toy_data, tmp_path / "whole", dtype=dtype), quiet=True)
    tc = config(toy_data, tmp_path / "parts", dtype=dtype, resume="auto")
    for step in sorted(random.Random(0).sample(range(1, 40), 10)):
        interrupt(MC, tc, step - _done(tmp_path / "parts"))
    record = train(MC, tc, quiet=True)
    assert equal(tmp_path / "whole", tmp_path / "parts")
    same = ("run_id", "val_loss", "bits_per_byte", "train_loss", "tokens", "flops")
    assert [getattr(record, k) for k in same] == [getattr(whole, k) for k in same]
    curves = [(tmp_path / d / "log.jsonl").read_text().splitlines() for d in ("whole", "parts")]
    assert [json.loads(x)["loss"] for x in curves[0]] == [json.loads(x)["loss"] for x in curves[1]]
    assert train(MC, tc, quiet=True) == record, "a finished run is not trained again"


def _done(folder):
    there = checkpoint.all_in(folder / "checkpoints")
    return int(there[-1].name[5:]) if there else 0


def test_a_branch_equals_the_run_on_its_own(toy_data, tmp_path):
    """One trunk at a constant rate, two cooldowns off it (Haegele et al. 2024)."""
    wsd = dict(schedule="wsd", cooldown_frac=0.25, warmup_frac=0.0, lr=0.02)
    keep = {15: tmp_path / "at15", 30: tmp_path / "at30"}
    train(MC, config(toy_data, tmp_path / "trunk", **wsd, max_iters=80), quiet=True, keep=keep)
    for steps, folder in ((20, keep[15]), (40, keep[30])):
        tc = config(toy_data, tmp_path / f"alone{steps}", **wsd, max_iters=steps)
        alone = train(MC, tc, quiet=True)
        branch = train(MC, dataclasses.replace(tc, out_dir=str(tmp_path / f"b{steps}")), quiet=True, start=folder)
        assert branch.val_loss == alone.val_loss and branch.run_id == alone.run_id
        assert equal(tmp_path / f"alone{steps}", tmp_path / f"b{steps}")


@pytest.mark.slow
def test_ten_sigkills(toy_data, tmp_path):
    """A checkpoint every third step, SIGKILL at random moments: inside a write too."""
    flags = [*FLAGS, "--max_iters", "400", "--batch_size", "4", "--data_dir", toy_data, "--log_every", "40"]
    command = [sys.executable, "train.py", *flags, "--ckpt_every", "3", "--resume"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    assert subprocess.run([*command, "--out_dir", tmp_path / "whole"], cwd=ROOT, env=env).returncode == 0
    kills, luck = 0, random.Random(1)
    for _ in range(60):
        out = open(tmp_path / "out.txt", "w")
        run = subprocess.Popen([*command, "--out_dir", tmp_path / "parts"], cwd=ROOT, env=env, stdout=out, stderr=out)
        begun = _done(tmp_path / "parts")
        while run.poll() is None and _done(tmp_path / "parts") == begun:
            time.sleep(0.01)
        time.sleep(luck.uniform(0, 0.3))
        if kills < 10 and run.poll() is None:
            run.send_signal(signal.SIGKILL)
            kills += 1
        if run.wait() == 0:
            break
    assert kills == 10
    assert equal(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_resumes_on_another_number_of_processes(toy_data, tmp_path, script):
    flags = ["train.py", *FLAGS, "--max_iters", 20, "--total_batch_size", 256, "--data_dir", toy_data,
             "--dtype", "float32", "--log_every", 1]  # fmt: skip
    alone = script(*flags, "--out_dir", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    launcher = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node=2",
        "--rdzv_backend=c10d",
        "--rdzv_endpoint=localhost:0",
    ]
    tc = config(toy_data, tmp_path / "two", max_iters=20, batch_size=None, total_batch_size=256, dtype="float32")
    interrupt(MC, tc, 9)
    rest = script(*launcher, *flags, "--out_dir", tmp_path / "two", "--resume", timeout=240)
    assert rest.returncode == 0, rest.stderr
    curves = [[json.loads(x)["loss"] for x in open(tmp_path / d / "log.jsonl")] for d in ("one", "two")]
    assert np.abs(np.subtract(curves[0][9:], curves[1][-11:])).max() < 1e-5
    assert "resuming after step 9" in rest.stdout


# ----- what is refused -----


def test_a_damaged_checkpoint_is_refused_and_the_one_before_named(toy_data, tmp_path):
    tc = config(toy_data, tmp_path / "run", resume="auto")
    first, second = interrupt(MC, tc, 5), interrupt(MC, tc, 5)
    assert (first.name, second.name) == ("step_00000005", "step_00000010")
    for name in sorted(p.name for p in second.iterdir()):
        good = (second / name).read_bytes()
        for bad in (good[:-2], good[:20] + bytes([good[20] ^ 1]) + good[21:], None):
            (second / name).unlink() if bad is None else (second / name).write_bytes(bad)
            with pytest.raises(ValueError, match="damaged.*--resume .*step_00000005"):
                train(MC, tc, quiet=True)
            (second / name).write_bytes(good)
    shutil.rmtree(first)
    (second / "state.json").write_text("{}")
    with pytest.raises(ValueError, match="start without --resume"):
        train(MC, tc, quiet=True)
    assert not (tmp_path / "run" / "run.json").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(lr=0.01), "another learning rate: at step 1"),
        (dict(max_iters=50), "another learning rate"),
        (dict(seed=1), "another seed"),
        (dict(batch_size=8), "--total_batch_size 128"),
        (dict(beta2=0.9), "another beta2"),
        (dict(resume="nowhere"), "--resume nowhere: no such checkpoint"),
    ],
)
def test_another_run_does_not_take_the_checkpoint(toy_data, tmp_path, change, message):
    saved = interrupt(MC, config(toy_data, tmp_path / "run", lr=0.02), 5)
    tc = config(toy_data, tmp_path / "other", **{"lr": 0.02, "resume": str(saved), **change})
    with pytest.raises(ValueError, match=message):
        train(MC, tc, quiet=True)
    assert not (tmp_path / "other").exists()


# ----- the disk -----


def test_the_last_good_checkpoint_survives_a_full_disk(toy_data, tmp_path, monkeypatch, capsys):
    tc = config(toy_data, tmp_path / "run", ckpt_every=5, resume="auto")
    good, saved = interrupt(MC, tc, 5), []

    def full(state, path):
        saved.append(path)
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    record = train(MC, tc)
    assert record.status == "ok" and len(saved) == 6
    assert capsys.readouterr().out.count("No space left on device") == 6
    assert checkpoint.all_in(good.parent) == [good] and sorted(p.name for p in good.parent.iterdir()) == [good.name]
    monkeypatch.undo()
    assert checkpoint.find(tmp_path / "run", "auto").step == 5


def test_a_disk_without_room_for_the_weights_keeps_the_record(toy_data, tmp_path, monkeypatch, capsys):
    import model

    def full(state, path):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model, "save_file", full)
    record = train(MC, config(toy_data, tmp_path / "run"))
    assert record.status == "ok"
    assert json.loads((tmp_path / "run" / "run.json").read_text()) == dataclasses.asdict(record)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["log.jsonl", "run.json", "tokenizer.json"]
    assert "the weights could not be written" in capsys.readouterr().out
    monkeypatch.setattr(checkpoint, "write_text", lambda path, text: full(None, path))
    with pytest.raises(OSError):
        train(MC, config(toy_data, tmp_path / "other"))
    shown = next(x for x in capsys.readouterr().out.splitlines() if x.startswith('{"run_id"'))
    assert json.loads(shown)["val_loss"] == record.val_loss, "the record is on the screen, if nowhere else"


def test_old_checkpoints_go(toy_data, tmp_path):
    train(MC, config(toy_data, tmp_path / "run", ckpt_every=6), quiet=True)
    left = [p.name for p in checkpoint.all_in(tmp_path / "run" / "checkpoints")]
    assert left == ["step_00000030", "step_00000036"]


# ----- signals, memory, other ranks -----


def start(tmp_path, *command):
    out = open(tmp_path / "out.txt", "w")
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *map(str, command)], cwd=ROOT, env=env, stdout=out, stderr=out)


def wait_for(path, text, seconds=60):
    end = time.time() + seconds
    while text not in (shown := path.read_text()):
        assert time.time() < end, shown
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_says_how_to_go_on(toy_data, tmp_path, script, number):
    run = start(tmp_path, "train.py", *FLAGS, "--max_iters", 20000, "--log_every", 20, "--batch_size", 4,
                "--data_dir", toy_data, "--out_dir", tmp_path / "run")  # fmt: skip
    wait_for(tmp_path / "out.txt", "step 00040/")
    run.send_signal(number)
    assert run.wait(timeout=30) == INTERRUPTED
    lines = (tmp_path / "out.txt").read_text().splitlines()
    assert lines[-1].startswith("python train.py --n_layer 1") and lines[-1].endswith("--resume")
    assert "interrupted after step" in lines[-2]
    found = checkpoint.find(tmp_path / "run", "auto")
    assert found.step >= 40 and str(found.folder) in lines[-2]
    assert not (tmp_path / "run" / "run.json").exists(), "an interrupted run has no record yet"


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_too(toy_data, tmp_path):
    run = start(tmp_path, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d",
                "--rdzv_endpoint=localhost:0", "train.py", *FLAGS, "--max_iters", 20000, "--log_every", 20,
                "--batch_size", 4, "--data_dir", toy_data, "--out_dir", tmp_path / "run")  # fmt: skip
    wait_for(tmp_path / "out.txt", "step 00040/")
    run.send_signal(signal.SIGTERM)
    assert run.wait(timeout=60) != 0
    assert checkpoint.find(tmp_path / "run", "auto").step >= 40
    assert "torchrun --nproc_per_node=2 train.py" in (tmp_path / "out.txt").read_text()


@pytest.mark.slow
def test_a_rank_that_dies_is_a_status(toy_data, tmp_path):
    run = start(tmp_path, "-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d",
                "--rdzv_endpoint=localhost:0", "train.py", *FLAGS, "--max_iters", 20000, "--log_every", 20,
                "--batch_size", 4, "--data_dir", toy_data, "--out_dir", tmp_path / "run")  # fmt: skip
    wait_for(tmp_path / "out.txt", "step 00040/")
    ranks = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
    assert len(ranks) == 2
    os.kill(int(ranks[1]), signal.SIGKILL)
    assert run.wait(timeout=60) != 0
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "peer_lost" and record["val_loss"] is None and record["steps"] >= 40


@pytest.mark.slow
def test_out_of_memory_names_a_batch_that_fits(toy_data, tmp_path):
    """A real lack of it: the process may map no more than it has, and half a gigabyte."""
    code = """
import resource, sys, torch, train
torch.ones(8, 8) @ torch.ones(8, 8)
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 2**29,) * 2)
sys.exit(train.main(sys.argv[1:]))
"""
    flags = [*FLAGS, "--max_iters", "3", "--batch_size", "1500", "--dtype", "float32", "--data_dir", toy_data]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *flags, "--out_dir", tmp_path / "run", "--n_embd", "256"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["status"] == "oom" and record["val_loss"] is None
    assert "sequences at a time fit: add --micro_batch_size" in done.stdout
    rows = done.stdout.split("add --micro_batch_size ")[1].split(",")[0]
    done = subprocess.run([*command, "--micro_batch_size", rows], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_command_that_goes_on():
    assert (
        resume_command(["--n_embd", "64", "--resume", "--max_iters", "5"])
        == "python train.py --n_embd 64 --max_iters 5 --resume"
    )
    assert resume_command(["--resume", "a/b", "--n_embd", "64"]) == "python train.py --n_embd 64 --resume"
    assert resume_command(["--resume"]) == "python train.py --resume"


def test_the_command_that_goes_on_over_two_nodes_can_rendezvous(monkeypatch):
    for name, value in (("WORLD_SIZE", "16"), ("GROUP_WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    said = resume_command(["--max_iters", "5"])
    assert said == (
        "torchrun --nnodes=2 --rdzv_backend=c10d --rdzv_endpoint=HOST:PORT --nproc_per_node=8 "
        "train.py --max_iters 5 --resume"
    )


# ----- watching -----


def test_samples_and_picture(toy_data, tmp_path, capsys):
    flags = [*FLAGS, "--max_iters", "20", "--batch_size", "4", "--data_dir", toy_data]
    assert train_module.main([*flags, "--out_dir", str(tmp_path / "a"), "--sample_every", "10"]) == 0
    assert capsys.readouterr().out.count("sample | ") == 2
    assert train_module.main([*flags, "--out_dir", str(tmp_path / "b")]) == 0
    assert equal(tmp_path / "a", tmp_path / "b"), "a sample changes nothing"
    assert (tmp_path / "b" / "loss.png").read_bytes().startswith(b"\x89PNG")

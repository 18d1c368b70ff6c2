"""Resuming to the bit after stops and kills; damaged files, other runs' checkpoints and full disks."""

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
from helpers import (
    SMALL_FLAGS,
    SMALL_MODEL,
    curve_of,
    failing_drive,
    interrupted_run,
    record_of,
    same_weights,
    small_run,
    torchrun,
)
from safetensors.torch import load_file

from isoflop import tensors
from isoflop.config import ModelConfig
from isoflop.files import sha256
from isoflop.train import checkpoint
from train import train

ROOT = Path(__file__).resolve().parent.parent
MC = ModelConfig(**SMALL_MODEL)


def config(toy_data, out_dir, **more):
    return small_run(toy_data, out_dir, **{"max_iters": 40} | more)


# ----- the same weights -----


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_stopped_at_ten_random_steps(toy_data, tmp_path, dtype):
    whole = train(MC, config(toy_data, tmp_path / "whole", dtype=dtype), quiet=True)
    tc = config(toy_data, tmp_path / "parts", dtype=dtype, resume="auto")
    for step in sorted(random.Random(0).sample(range(1, 40), 10)):
        interrupted_run(MC, tc, step - _done(tmp_path / "parts"))
    record = train(MC, tc, quiet=True)
    assert same_weights(tmp_path / "whole", tmp_path / "parts")
    same = ("run_id", "val_loss", "bits_per_byte", "train_loss", "tokens", "flops")
    assert [getattr(record, k) for k in same] == [getattr(whole, k) for k in same]
    assert curve_of(tmp_path / "whole") == curve_of(tmp_path / "parts")
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
        assert same_weights(tmp_path / f"alone{steps}", tmp_path / f"b{steps}")


@pytest.mark.slow
def test_ten_sigkills(toy_data, tmp_path):
    """A checkpoint every third step, SIGKILL at random moments: inside a write too."""
    flags = [*SMALL_FLAGS, "--max_iters", "400", "--batch_size", "4", "--data_dir", toy_data, "--log_every", "40"]
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
    assert same_weights(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_resumes_on_another_number_of_processes(toy_data, tmp_path, script):
    flags = ["train.py", *SMALL_FLAGS, "--max_iters", 20, "--total_batch_size", 256, "--data_dir", toy_data,
             "--dtype", "float32", "--log_every", 1]  # fmt: skip
    alone = script(*flags, "--out_dir", tmp_path / "one")
    assert alone.returncode == 0, alone.stderr
    tc = config(toy_data, tmp_path / "two", max_iters=20, batch_size=None, total_batch_size=256, dtype="float32")
    interrupted_run(MC, tc, 9)
    rest = torchrun(script, 2, *flags, "--out_dir", tmp_path / "two", "--resume", "--ckpt_every", 15)
    assert rest.returncode == 0, rest.stderr
    curves = [curve_of(tmp_path / d) for d in ("one", "two")]
    assert np.abs(np.subtract(curves[0][9:], curves[1][-11:])).max() < 1e-5
    assert "resuming after step 9" in rest.stdout
    saved = tmp_path / "two" / "checkpoints" / "step_00000015"  # by two processes
    last = script(*flags, "--out_dir", tmp_path / "two", "--overwrite", "--resume", saved)
    assert last.returncode == 0 and "resuming after step 15" in last.stdout, last.stderr
    assert np.abs(np.subtract(curves[0][15:], curve_of(tmp_path / "two")[-5:])).max() < 1e-5


def test_a_checkpoint_of_zero1_resumes(toy_data, tmp_path):
    """The --zero1 of before left the flat moments in one part a rank."""
    whole = train(MC, config(toy_data, tmp_path / "whole", ckpt_every=30), quiet=True)
    saved = tmp_path / "whole" / "checkpoints" / "step_00000030"
    flat = load_file(saved / "optimizer-00000.safetensors")
    for rank, cut in enumerate((slice(0, 3001), slice(3001, None))):
        part = {kind: flat[kind][cut].clone() for kind in ("m", "v")}
        tensors.write_tensors(saved / f"optimizer-{rank:05d}.safetensors", {"first": torch.tensor(3001 * rank)} | part)
    state = json.loads((saved / "state.json").read_text())
    state["files"] = {name: sha256(saved / name) for name in os.listdir(saved) if name != "state.json"}
    (saved / "state.json").write_text(json.dumps(state))
    rest = train(MC, config(toy_data, tmp_path / "rest", resume=str(saved)), quiet=True)
    assert rest.val_loss == whole.val_loss and same_weights(tmp_path / "whole", tmp_path / "rest")


# ----- what is refused -----


def test_a_damaged_checkpoint_is_refused_and_the_one_before_named(toy_data, tmp_path):
    tc = config(toy_data, tmp_path / "run", resume="auto")
    first, second = interrupted_run(MC, tc, 5), interrupted_run(MC, tc, 5)
    assert (first.name, second.name) == ("step_00000005", "step_00000010")
    for name in sorted(p.name for p in second.iterdir()):
        good = (second / name).read_bytes()
        for bad in (good[:-2], good[:20] + bytes([good[20] ^ 1]) + good[21:], None):
            (second / name).unlink() if bad is None else (second / name).write_bytes(bad)
            with pytest.raises(ValueError, match="damaged.*--resume .*step_00000005"):
                train(MC, tc, quiet=True)
            (second / name).write_bytes(good)
    for name in ("state.json", "model.safetensors"):
        with failing_drive(name), pytest.raises(OSError, match=name):
            checkpoint.remove_damaged(first.parent)  # by a sweep
    assert checkpoint.all_in(first.parent) == [first, second]
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
    saved = interrupted_run(MC, config(toy_data, tmp_path / "run", lr=0.02), 5)
    tc = config(toy_data, tmp_path / "other", **{"lr": 0.02, "resume": str(saved), **change})
    with pytest.raises(ValueError, match=message):
        train(MC, tc, quiet=True)
    assert not (tmp_path / "other").exists()


# ----- the disk -----


def test_the_last_good_checkpoint_survives_a_full_disk(toy_data, tmp_path, monkeypatch, capsys):
    tc = config(toy_data, tmp_path / "run", ckpt_every=5, resume="auto")
    good, saved = interrupted_run(MC, tc, 5), []

    def full(path, state):
        saved.append(path)
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_tensors", full)
    record = train(MC, tc)
    assert record.status == "ok" and len(saved) == 6
    assert capsys.readouterr().out.count("No space left on device") == 6
    assert checkpoint.all_in(good.parent) == [good] and sorted(p.name for p in good.parent.iterdir()) == [good.name]
    monkeypatch.undo()
    assert checkpoint.find(tmp_path / "run", "auto").step == 5


def test_a_disk_without_room_for_the_weights_keeps_the_record(toy_data, tmp_path, monkeypatch, capsys):
    def full(state, path, metadata):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    record = train(MC, config(toy_data, tmp_path / "run"))
    assert record.status == "ok"
    assert record_of(tmp_path / "run") == dataclasses.asdict(record)
    left = ["config.json", "log.jsonl", "run.json", "tokenizer.json"]
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == left
    shown = capsys.readouterr().out
    assert f"{tmp_path}/run/model.safetensors could not be written (No space left on device); make room" in shown
    assert "the run continues" not in shown

    def full_log(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(checkpoint, "write_text", full_log)
    with pytest.raises(OSError, match="log.jsonl"):
        train(MC, config(toy_data, tmp_path / "other"))
    assert record_of(tmp_path / "other")["val_loss"] == record.val_loss, "the record is written first"
    shown = next(x for x in capsys.readouterr().out.splitlines() if x.startswith('{"run_id"'))
    assert json.loads(shown)["val_loss"] == record.val_loss, "the record is on the screen, if nowhere else"


def test_whenever_it_is_killed_weights_have_all_that_goes_with_them(toy_data, tmp_path, monkeypatch):
    """A run over another one of other tokens: after each change of its folder weights have their own companions."""
    folder, bins = tmp_path / "run", tmp_path / "bins"
    train(MC, config(toy_data, folder, max_iters=10, eval_every=5), quiet=True)
    bins.mkdir()
    (bins / "meta.json").write_text('{"vocab_size": 300}')  # of an unknown tokenizer
    for name in ("train.bin", "val.bin"):
        np.random.default_rng(0).integers(0, 300, 4000).astype(np.uint16).tofile(bins / name)
    replace, states = os.replace, []

    def noted(source, target):
        replace(source, target)
        if Path(target).parent == folder:
            states.append({path.name for path in folder.iterdir()} - {".lock"})

    monkeypatch.setattr(os, "replace", noted)
    for data, others in ((bins, set()), (toy_data, {"tokenizer.json", "evals.jsonl"})):
        del states[:]
        train(MC, config(data, folder, max_iters=10, eval_every=5 if others else None, overwrite=True), quiet=True)
        all_files = {"config.json", "log.jsonl", "run.json", "model.safetensors"} | others
        assert states[-1] == all_files and len(states) == len(all_files)
        assert [state for state in states if "model.safetensors" in state] == [all_files]


def test_old_checkpoints_go(toy_data, tmp_path):
    train(MC, config(toy_data, tmp_path / "run", ckpt_every=6), quiet=True)
    left = [p.name for p in checkpoint.all_in(tmp_path / "run" / "checkpoints")]
    assert left == ["step_00000030", "step_00000036"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "limit, status, left", [(30_000, 1, ["config.json", "log.jsonl", "run.json", "tokenizer.json"]), (1000, 2, [])]
)
def test_files_that_may_not_grow(toy_data, tmp_path, limit, status, left):
    """A real limit on the size of files: room for the record and not for the weights, then for neither."""
    code = "import resource, sys, train; resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2); "
    code += "sys.exit(train.main(sys.argv[2:]))"
    flags = [*SMALL_FLAGS, "--max_iters", 20, "--batch_size", 4, "--data_dir", toy_data, "--out_dir", tmp_path / "run"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, [limit, *flags])]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stdout + done.stderr
    there = {p.name for p in (tmp_path / "run").iterdir()} - {".lock"}
    assert there - {"loss.png"} == set(left) - {"loss.png"}
    if left:
        assert "model.safetensors could not be written" in done.stdout and "make room" in done.stdout
        assert record_of(tmp_path / "run")["status"] == "ok"
    else:
        assert f"{tmp_path}/run/run.json: File too large" in done.stderr and done.stderr.count("\n") == 1

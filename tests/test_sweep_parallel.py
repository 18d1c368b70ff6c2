"""Cells side by side, trunks and branches, cells that fail, rows that are damaged: what is kept and what is said."""

import csv
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import sweep
from isoflop import files
from isoflop.config import ModelConfig
from isoflop.data import reader
from isoflop.distributed import World
from isoflop.sweep import cells as cells_
from isoflop.sweep import grid, results, workers
from isoflop.train.plan import TrainConfig
from train import train

ROOT = Path(__file__).resolve().parent.parent
SMALL = "--n_embds 8 12 16 24 --n_layers 1 1 1 2 --block_size 32 --val_tokens 1024 --device cpu".split()
BUDGETS = "--flop_budgets 1e8 2e8 4e8".split()


def rows(folder, name="runs.csv"):
    with open(Path(folder) / name, newline="") as f:
        return list(csv.DictReader(f))


def losses(folder):
    return {r["run_id"]: (r["status"], r["val_loss"], r["train_loss"], r["tokens"]) for r in rows(folder)}


def run(*flags):
    """Exit status of sweep.py in this process, without pictures."""
    with pytest.MonkeyPatch.context() as patch:
        whole = sweep.fit.run
        patch.setattr(sweep.fit, "run", lambda paths, **more: whole(paths, **more | {"plots": False, "bootstrap": 0}))
        try:
            return sweep.main([str(f) for f in flags])
        except SystemExit as stop:
            return stop.code


@pytest.fixture(scope="module")
def in_turn(toy_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("turn") / "out"
    assert run(*BUDGETS, *SMALL, "--data_dir", toy_data, "--out_dir", folder, "--parallel", "data") == 0
    return folder


# ----- side by side -----


def test_workers_give_the_rows_of_one_process(toy_data, in_turn, tmp_path, script):
    flags = [*BUDGETS, *SMALL, "--data_dir", toy_data, "--out_dir", tmp_path / "out"]
    done = script("sweep.py", *flags, "--parallel", "runs", "--workers", 2, timeout=240)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "out") == losses(in_turn) and len(losses(in_turn)) == 12
    order = [float(r["flop_budget"]) for r in rows(tmp_path / "out")]
    assert order[0] == 4e8 and order[-1] == 1e8, "longest first"


@pytest.mark.slow
def test_ranks_take_whole_cells(toy_data, in_turn, tmp_path, script):
    flags = [*BUDGETS, *SMALL, "--data_dir", toy_data, "--out_dir", tmp_path / "out"]
    torchrun = "-m torch.distributed.run --nproc_per_node=3 --rdzv_backend=c10d --rdzv_endpoint=localhost:0".split()
    done = script(*torchrun, "sweep.py", "--parallel", "runs", *flags, timeout=240)
    assert done.returncode == 0, done.stderr
    assert losses(tmp_path / "out") == losses(in_turn)
    assert {r["world_size"] for r in rows(tmp_path / "out")} == {"1"} and done.stdout.count("[12/12]") == 1


def worker_pids(parent):
    """Processes started by `parent` that run workers.py."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
            line = (path.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == parent and b"--worker" in line:
            found.append(int(path.parent.name))
    return sorted(found)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds workers in /proc")
def test_a_dead_worker_leaves_its_cell_and_the_others_go_on(toy_data, tmp_path):
    flags = ["--flop_budgets", "1e9", "2e9", *SMALL, "--data_dir", toy_data, "--out_dir", str(tmp_path / "out")]
    command = [sys.executable, "sweep.py", *flags, "--parallel", "runs", "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)
    until = time.monotonic() + 120
    while not (tmp_path / "out" / "runs.csv").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.2)
    victims = worker_pids(process.pid)
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and len(rows(tmp_path / "out")) == 7, out
    assert "ended with status -9" in out and out.splitlines()[-1].startswith("1 of 8 cells have no result (1 not run)")
    assert not any(Path(f"/proc/{pid}").exists() for pid in victims)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and len(rows(tmp_path / "out")) == 8


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["data", "runs"])
def test_a_signal_leaves_a_checkpoint_and_the_same_command_goes_on(toy_data, tmp_path, parallel):
    flags = ["--flop_budgets", "3e9", *SMALL, "--data_dir", toy_data, "--out_dir", str(tmp_path / "out")]
    command = [sys.executable, "sweep.py", *flags, "--parallel", parallel]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)
    until = time.monotonic() + 120
    while not (tmp_path / "out" / "runs.csv").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(0.4)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command goes on" in err, (out, err)
    assert list((tmp_path / "out" / "cells").glob("*/checkpoints/*")) or "interrupted after" not in out
    assert subprocess.run(command, cwd=ROOT, env=env, capture_output=True).returncode == 0
    whole = tmp_path / "whole"
    assert run(*[str(whole) if f == str(tmp_path / "out") else f for f in flags], "--parallel", "data") == 0
    assert losses(tmp_path / "out") == losses(whole)
    assert not list((tmp_path / "out" / "cells").glob("*/checkpoints"))
    assert results.ResultsFile(tmp_path / "out").spent() == sum(float(r["flops_spent"]) for r in rows(tmp_path / "out"))


# ----- trunk and branch -----


def test_a_branch_equals_its_run_alone_to_the_bit(toy_data, tmp_path):
    flags = [*BUDGETS, "--n_embds", 12, 16, "--n_layers", 1, 1, *SMALL[10:], "--data_dir", toy_data]
    flags += ["--schedule", "wsd", "--reuse_trunk"]
    assert run(*flags, "--out_dir", tmp_path / "out") == 0
    table = rows(tmp_path / "out")
    branches = [r for r in table if r["trunk"]]
    assert len(table) == 6 and len(branches) == 4
    own, spent = (sum(float(r[k]) for r in table) for k in ("flops", "flops_spent"))
    assert abs(spent / (2 * (4e8 + 0.2 * 3e8)) - 1) < 0.05 and own > 1.4 * spent
    assert not (tmp_path / "out" / "trunks").exists(), "checkpoints are removed when their branches have run"
    tokens, given = reader.open_data(toy_data), {"block_size": 32, "val_tokens": 1024, "data_dir": toy_data}
    planner = cells_.Planner(tmp_path, given | {"device": "cpu", "schedule": "wsd"}, tokens, World())
    cells = {c.run_id: c for c in planner.family((16, 1, None), [1e8, 2e8, 4e8])}
    for r in branches:
        if r["n_embd"] == "16":
            c = cells[r["run_id"]]
            alone = train(
                c.mc, dataclasses.replace(c.tc, out_dir=str(tmp_path / "alone" / c.run_id)), World(), quiet=True
            )
            assert alone.run_id == r["run_id"] and str(alone.val_loss) == r["val_loss"]
            weights = [tmp_path / k / c.run_id / "model.safetensors" for k in ("out/cells", "alone")]
            assert weights[0].read_bytes() == weights[1].read_bytes()
            assert r["flops"] == str(alone.flops) and float(r["flops_spent"]) < 0.25 * alone.flops


def test_a_run_too_short_for_a_cooldown_is_trained_alone(toy_data, tmp_path):
    given = {"block_size": 32, "data_dir": toy_data, "device": "cpu", "schedule": "wsd", "batch_size": 8}
    planner = cells_.Planner(tmp_path, given, reader.open_data(toy_data), World())
    short, middle, trunk = planner.family((16, 1, None), [2e7, 2e8, 4e8])
    assert short.plan.cooldown_steps == 0 and short.start is None and short.trunk is None
    at = middle.plan.steps - middle.plan.cooldown_steps
    assert middle.trunk == trunk.run_id and middle.start_step == at and trunk.keep == ((at, middle.start),)


def test_reuse_trunk_needs_a_constant_stretch(toy_data, tmp_path, capsys):
    assert run(*BUDGETS, *SMALL, "--data_dir", toy_data, "--reuse_trunk", "--out_dir", tmp_path / "out") == 2
    assert "--schedule wsd" in capsys.readouterr().err and not (tmp_path / "out").exists()


# ----- cells that fail -----


def test_a_cell_that_fails_is_a_row_and_retry_runs_just_those(toy_data, tmp_path, capsys):
    flags = ["--flop_budgets", "5e7", "1e8", *SMALL, "--data_dir", toy_data, "--out_dir", tmp_path / "out"]

    def fragile(mc, tc, *args, **more):
        if mc.n_embd == 24:
            raise RuntimeError("a kernel is missing")
        record = train(mc, tc, *args, **more)
        return dataclasses.replace(record, status="diverged", val_loss=None) if mc.n_embd == 12 else record

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "train", fragile)
        assert run(*flags) == 1
    table, out = rows(tmp_path / "out"), capsys.readouterr().out
    status = {w: {r["status"] for r in table if r["n_embd"] == w} for w in ("8", "12", "16", "24")}
    assert status == {"8": {"ok"}, "12": {"diverged"}, "16": {"ok"}, "24": {"failed"}}
    assert out.splitlines()[-1].startswith("4 of 8 cells have no result (2 diverged, 2 failed); to run just those: ")
    assert "--retry --lr" in out.splitlines()[-1]
    assert run(*flags) == 1 and len(rows(tmp_path / "out")) == 8, "the same command does not run them again"
    assert run(*flags, "--retry", "--lr", "0.01") == 0
    table = rows(tmp_path / "out")
    assert len(table) == 12 and {r["lr_from"] for r in table[8:]} == {"given"}
    assert {r["n_embd"] for r in table[8:]} == {"12", "24"}


def test_one_cell_that_can_t_be_planned_does_not_stop_the_rest(toy_data, tmp_path, capsys):
    flags = ["--flop_budgets", "5e7", "1e9", "--n_embds", 8, 256, "--block_size", 32, "--val_tokens", 1024]
    assert run(*flags, "--data_dir", toy_data, "--out_dir", tmp_path / "out", "--device", "cpu") == 1
    table, out = rows(tmp_path / "out"), capsys.readouterr().out
    assert sorted(r["status"] for r in table) == ["ok", "ok", "ok", "refused"]
    assert "--flop_budget 5e+07 buys" in out and "(1 refused)" in out.splitlines()[-1]
    assert run(*flags, "--data_dir", toy_data, "--out_dir", tmp_path / "out", "--device", "cpu") == 1
    assert len(rows(tmp_path / "out")) == 4


def test_rates_are_probed_at_both_ends_and_read_between(toy_data, tmp_path):
    flags = ["--flop_budgets", "5e7", *SMALL, "--data_dir", toy_data, "--out_dir", tmp_path / "out", "--tune_lr"]
    assert run(*flags) == 0
    probes, table = rows(tmp_path / "out", "probes.csv"), rows(tmp_path / "out")
    assert len(probes) == 10 and {r["n_embd"] for r in probes} == {"8", "24"}
    assert (
        len(table) == 4
        and {r["lr_from"] for r in table} == {"tuned"}
        and {r["lr_on_edge"] for r in table} <= {"0", "1"}
    )
    by = sorted((int(r["n_params_matmul"]), float(r["lr"])) for r in table)
    for n, lr in by[1:3]:
        assert abs(lr / grid.rate_between(n, [by[0], by[-1]]) - 1) < 1e-6
    before = (tmp_path / "out" / "runs.csv").read_bytes()
    assert run(*flags) == 0 and (tmp_path / "out" / "runs.csv").read_bytes() == before


# ----- the CSV, the caps, the folder -----


def fake(run_id, **more):
    return {name: 1 for name in results.HEADER} | {"run_id": run_id, "status": "ok", "trunk": "", **more}


def test_a_damaged_last_row_is_moved_aside_and_an_earlier_one_is_named(tmp_path):
    path = tmp_path / "runs.csv"
    for name in ("one", "two"):
        results.append_row(path, fake(name))
    whole = path.read_bytes()
    for junk in (b"\x00\xff\x00\n", b"three,ok,1\n", whole.splitlines(keepends=True)[1].replace(b",1,", b",", 1)):
        path.write_bytes(whole + junk)
        assert [r["run_id"] for r in results.read_rows(path)] == ["one", "two"] and path.read_bytes() == whole
        assert junk in (tmp_path / "runs.torn").read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[0] + b"junk\n" + lines[2])
    with pytest.raises(ValueError, match="line 2 is damaged; delete that line"):
        results.read_rows(path)


def test_a_run_that_was_cut_off_counts_in_full(tmp_path):
    cell = cells_.Cell("abc", (8, 1, None), 1e9, 0, plan=type("P", (), {"flops": 900, "steps": 10})())
    book = results.ResultsFile(tmp_path)
    book.begin(cell)
    book.begin(cell)
    assert results.ResultsFile(tmp_path).spent() == 1800
    book.withdraw(cell)
    assert book.spent() == results.ResultsFile(tmp_path).spent() == 900
    book.add(cell, fake("abc", steps=10, flops=900), "trained")
    assert book.spent() == results.ResultsFile(tmp_path).spent() == 900


def test_hours_are_capped_too(in_turn, toy_data, tmp_path, capsys):
    shutil.copytree(in_turn, tmp_path / "out")
    took = results.ResultsFile(tmp_path / "out").hours()
    flags = ["--flop_budgets", "4e8", "8e8", *SMALL, "--data_dir", toy_data, "--out_dir", tmp_path / "out"]
    assert run(*flags, "--max_hours", took) == 1
    assert len(rows(tmp_path / "out")) == 12 and "stopped: --max_hours" in capsys.readouterr().out


def test_the_second_sweep_names_the_first(tmp_path):
    with files.folder_lock(tmp_path, "sweep"):
        with pytest.raises(ValueError, match=f"process {os.getpid()} on .* since 20"):
            with files.folder_lock(tmp_path, "sweep"):
                pass


@pytest.mark.slow
def test_a_full_disk_loses_no_row(toy_data, in_turn, tmp_path):
    """A tmpfs too small for the grid: one line, exit 2; with room, the same command ends complete and equal."""
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", out], capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        flags = [*BUDGETS, *SMALL, "--data_dir", toy_data, "--out_dir", str(out)]
        command = [sys.executable, "sweep.py", *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr, done.stderr
        kept = len(rows(out)) if (out / "runs.csv").exists() else 0
        assert 0 < kept < 12
        subprocess.run(["mount", "-o", "remount,size=50m", out], check=True)
        assert subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0
        assert losses(out) == losses(in_turn)
        subprocess.run(["mount", "-o", "remount,ro", out], check=True)
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 2 and "name another folder" in done.stderr and done.stderr.count("\n") == 1
    finally:
        subprocess.run(["umount", out], check=True)


def test_what_a_worker_needs_survives_the_wire():
    mc, tc = ModelConfig(2, 48, vocab_size=300), TrainConfig(flop_budget=1e9, lr=0.1)
    cell = cells_.Cell("abc", (48, 2, None), 1e9, 0, mc, tc, start="x", keep=((3, "y"),))
    assert workers.unpack(workers.pack(cell)) == (mc, tc, "x", [[3, "y"]])

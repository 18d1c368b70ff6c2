"""Whole sweeps: rows and budgets, cells that fail, caps, mistakes, and what a kill at any moment leaves behind."""

import dataclasses
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import SMALL_BUDGETS, SMALL_SIZES, losses_of, quick_fits, rows_of, run_script, run_sweep, wait_for

import sweep
from isoflop import files
from isoflop.data import reader
from isoflop.distributed import DistributedEnv
from isoflop.options import UserError
from isoflop.sweep import grid, results
from isoflop.sweep.cells import ModelSize, Planner
from train import train

ROOT = Path(__file__).resolve().parent.parent
ENV = {**os.environ, "OMP_NUM_THREADS": "1"}
TORCHRUN = "-m torch.distributed.run --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=localhost:0".split()


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    quick_fits(monkeypatch)


@pytest.fixture(scope="module")
def undisturbed(toy_data, tmp_path_factory):
    """(folder, flags, what was printed) of a sweep of 12 cells."""
    folder = tmp_path_factory.mktemp("sweep") / "out"
    flags = [*SMALL_BUDGETS, *SMALL_SIZES, "--data_dir", toy_data, "--out_dir"]
    done = run_script("sweep.py", *flags, folder)
    assert done.returncode == 0, done.stderr
    return folder, flags, done.stdout


# ----- rows -----


def test_rows_budgets_and_outputs(undisturbed):
    folder, _, out = undisturbed
    table = rows_of(folder)
    assert len(table) == 12 and list(table[0]) == results.HEADER
    for r in table:
        assert r["status"] == "ok"
        step = 6 * int(r["n_params_matmul"]) * int(r["tokens_per_step"])
        assert int(r["flops"]) == step * int(r["steps"])
        assert abs(int(r["flops"]) - float(r["flop_budget"])) <= max(0.005 * float(r["flop_budget"]), step / 2)
        assert float(r["flops_exact_over_6nd"]) > 1
        assert (folder / "cells" / r["run_id"] / "model.safetensors").exists()
    assert (folder / "fit.json").exists()
    assert "12 runs" in out and "[12/12]" in out


def test_the_same_command_again_trains_nothing(undisturbed, capsys):
    folder, flags, _ = undisturbed
    before = (folder / "runs.csv").read_bytes()
    assert run_sweep(*flags, folder) == 0
    out = capsys.readouterr().out
    assert "[1/" not in out and out.count("done") >= 12
    assert (folder / "runs.csv").read_bytes() == before


def test_a_row_lost_between_record_and_csv_is_recovered(undisturbed, tmp_path, capsys):
    folder, flags, _ = undisturbed
    mine = tmp_path / "out"
    shutil.copytree(folder, mine)
    lines = (mine / "runs.csv").read_text().splitlines(keepends=True)
    (mine / "runs.csv").write_text("".join(lines[:-3]))
    assert run_sweep(*flags, mine) == 0
    assert losses_of(mine) == losses_of(folder)
    assert "val loss" not in capsys.readouterr().out, "a finished run was trained again"


@pytest.mark.slow
def test_under_torchrun_each_cell_is_trained_together(toy_data, tmp_path, script):
    flags = ["--flop_budgets", "1e8", "2e8", "--n_embds", "8", "16", "--n_layers", "1", "1", "--block_size", "32"]
    flags += ["--val_tokens", 1024, "--data_dir", toy_data, "--out_dir", tmp_path / "out", "--device", "cpu"]
    done = script(*TORCHRUN, "sweep.py", *flags, timeout=240)
    assert done.returncode == 0, done.stderr
    table = rows_of(tmp_path / "out")
    assert len(table) == 4 and {r["world_size"] for r in table} == {"2"}
    assert done.stdout.count("[4/4]") == 1


def test_branches_share_their_trunk_s_steps(toy_data, tmp_path):
    """Each branch's losses and weights are those of its run alone; flops_spent says what was saved."""
    flags = [*SMALL_BUDGETS, "--n_embds", 12, 16, "--n_layers", 1, 1, *SMALL_SIZES[10:], "--data_dir", toy_data]
    flags += ["--schedule", "wsd", "--reuse_trunk"]
    assert run_sweep(*flags, "--out_dir", tmp_path / "out") == 0
    table = rows_of(tmp_path / "out")
    branches = [r for r in table if r["trunk"]]
    assert len(table) == 6 and len(branches) == 4
    own, spent = (sum(float(r[k]) for r in table) for k in ("flops", "flops_spent"))
    assert abs(spent / (2 * (4e8 + 0.2 * 3e8)) - 1) < 0.05 and own > 1.4 * spent
    assert not (tmp_path / "out" / "trunks").exists(), "checkpoints are removed when their branches have run"
    given = {"block_size": 32, "val_tokens": 1024, "data_dir": toy_data, "device": "cpu", "schedule": "wsd"}
    planner = Planner(tmp_path, given, reader.open_data(toy_data), DistributedEnv())
    cells = {c.run_id: c for c in planner.family(ModelSize(16, 1), [1e8, 2e8, 4e8])}
    alone_too = [r for r in branches if r["n_embd"] == "16"]
    assert len(alone_too) == 2
    for r in alone_too:
        c = cells[r["run_id"]]
        folder = tmp_path / "alone" / c.run_id
        alone = train(c.mc, dataclasses.replace(c.tc, out_dir=str(folder)), DistributedEnv(), quiet=True)
        assert alone.run_id == r["run_id"] and str(alone.val_loss) == r["val_loss"]
        weights = (tmp_path / "out" / "cells" / c.run_id / "model.safetensors").read_bytes()
        assert weights == (folder / "model.safetensors").read_bytes()
        assert r["flops"] == str(alone.flops) and float(r["flops_spent"]) < 0.25 * alone.flops


@pytest.mark.slow
def test_rates_are_probed_at_both_ends_and_read_between(toy_data, tmp_path):
    flags = ["--flop_budgets", "5e7", *SMALL_SIZES, "--data_dir", toy_data, "--out_dir", tmp_path / "out", "--tune_lr"]
    assert run_sweep(*flags) == 0
    probes, table = rows_of(tmp_path / "out", "probes.csv"), rows_of(tmp_path / "out")
    assert len(probes) == 10 and {r["n_embd"] for r in probes} == {"8", "24"}
    assert len(table) == 4 and {r["lr_from"] for r in table} == {"tuned"}
    assert {r["lr_on_edge"] for r in table} <= {"0", "1"}
    by = sorted((int(r["n_params_matmul"]), float(r["lr"])) for r in table)
    for n, lr in by[1:3]:
        assert abs(lr / grid.rate_between(n, [by[0], by[-1]]) - 1) < 1e-6
    before = (tmp_path / "out" / "runs.csv").read_bytes()
    assert run_sweep(*flags) == 0 and (tmp_path / "out" / "runs.csv").read_bytes() == before


@pytest.mark.slow
def test_rates_at_batches_are_all_run_and_their_law_is_fitted(toy_data, tmp_path, monkeypatch, capsys):
    def bowl(mc, tc, *args, **more):
        record = train(mc, tc, *args, **more)
        off = np.log([record.lr / 0.02 * (record.n_params_matmul / 1e4) ** 0.5, record.tokens_per_step / 64])
        return dataclasses.replace(record, val_loss=float(3 * np.exp(0.01 * off @ off)))

    monkeypatch.setattr(sweep, "train", bowl)
    flags = ["--flop_budgets", "1e8", "--n_embds", 8, 16, 24, "--n_layers", 1, 1, 1, *SMALL_SIZES[10:]]
    flags += ["--lrs", 0.01, 0.02, 0.04, "--batches", 32, 64, 128, "--data_dir", toy_data]
    assert run_sweep(*flags, "--out_dir", tmp_path / "out") == 0
    rows = rows_of(tmp_path / "out")
    assert len({(r["n_embd"], r["lr"], r["tokens_per_step"]) for r in rows}) == len(rows) == 27
    law = json.loads((tmp_path / "out" / "fit" / "hparams" / "fit.json").read_text())["hparams"]
    assert "lr* = " in capsys.readouterr().out and len(law["cells"]) == 3
    assert [cell["batch"]["point"] for cell in law["cells"]] == pytest.approx([64] * 3, rel=0.05)
    before = (tmp_path / "out" / "runs.csv").read_bytes()
    assert run_sweep(*flags, "--out_dir", tmp_path / "out") == 0
    assert (tmp_path / "out" / "runs.csv").read_bytes() == before


@pytest.mark.parametrize("flags", [["--lrs", 0.25, 0.5, 0.7], ["--lrs", 0.25, 0.5, 0.7, "--seeds", 0, 1]])
def test_a_probe_that_is_a_cell_s_own_run_is_its_row(toy_data, tmp_path, monkeypatch, flags):
    """Where the best rate is the first or last tried, the cell can be the very run that tried it: it gets a row, once,
    and no second run."""
    trained = []

    def counted(mc, tc, *args, **more):
        record = train(mc, tc, *args, **more)
        trained.append(record.run_id)
        return dataclasses.replace(record, val_loss=2 + record.lr)  # the smallest rate is best

    monkeypatch.setattr(sweep, "train", counted)
    out = tmp_path / "out"
    flags = ["--flop_budgets", "2e7", "4e7", "--n_embds", 8, 16, *SMALL_SIZES[10:], "--data_dir", toy_data, *flags]
    assert run_sweep(*flags, "--out_dir", out) == 0
    rows, probes = rows_of(out), rows_of(out, "probes.csv")
    cells = 8 if "--seeds" in flags else 4
    both = {r["run_id"] for r in rows} & {r["run_id"] for r in probes}
    assert len(losses_of(out)) == cells and both, "no cell is a probe; the test shows nothing"
    assert {r["status"] for r in rows} == {"ok"} and {r["lr_from"] for r in rows} == {"tuned"}
    assert len(trained) == len(set(trained)) == len(rows) + len(probes) - len(both)
    spent = results.ResultsFile(out).spent()
    assert spent == sum(float(r["flops"]) for r in [*rows, *probes]) - sum(
        float(r["flops"]) for r in rows if r["run_id"] in both
    )
    before = (out / "runs.csv").read_bytes()
    (out / "runs.csv").write_bytes(before[: before.rstrip().rfind(b"\n") + 1])  # as if killed before the last row
    assert run_sweep(*flags, "--out_dir", out) == 0
    assert (out / "runs.csv").read_bytes() == before and len(trained) == len(set(trained))
    assert results.ResultsFile(out).spent() == spent


def test_two_budgets_that_make_one_run_both_have_its_result(toy_data, tmp_path):
    flags = ["--n_embds", 8, 16, *SMALL_SIZES[10:], "--data_dir", toy_data, "--out_dir", tmp_path / "out"]
    assert run_sweep("--flop_budgets", "2.2e7", "2.2001e7", *flags) == 0
    assert len(losses_of(tmp_path / "out")) == 2


# ----- cells that fail, caps -----


def test_a_cell_that_fails_is_a_row_and_retry_runs_just_those(toy_data, tmp_path, capsys, monkeypatch):
    flags = ["--flop_budgets", "5e7", "1e8", *SMALL_SIZES, "--data_dir", toy_data, "--out_dir", tmp_path / "out"]

    def fragile(mc, tc, *args, **more):
        if mc.n_embd == 24:
            raise RuntimeError("a kernel is missing")
        record = train(mc, tc, *args, **more)
        if mc.n_embd == 12:
            record = dataclasses.replace(record, status="diverged", val_loss=None)
        return record

    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train", fragile)
        assert run_sweep(*flags) == 1
    table, out = rows_of(tmp_path / "out"), capsys.readouterr().out
    status = {w: {r["status"] for r in table if r["n_embd"] == w} for w in ("8", "12", "16", "24")}
    assert status == {"8": {"ok"}, "12": {"diverged"}, "16": {"ok"}, "24": {"failed"}}
    assert out.splitlines()[-1].startswith("4 of 8 cells have no result (2 diverged, 2 failed); to run just those: ")
    assert "--retry --lr" in out.splitlines()[-1]
    assert run_sweep(*flags) == 1 and len(rows_of(tmp_path / "out")) == 8, "the same command does not run them again"
    assert run_sweep(*flags, "--retry", "--lr", "0.01") == 0
    table = rows_of(tmp_path / "out")
    assert len(table) == 12 and {r["lr_from"] for r in table[8:]} == {"given"}
    assert {r["n_embd"] for r in table[8:]} == {"12", "24"}


@pytest.mark.parametrize(
    "error, status", [(files.Unwritable("--out_dir", "c", OSError(28, "No space")), 2), (UserError("no such text"), 1)]
)
def test_what_the_machine_refuses_is_no_row(toy_data, tmp_path, capsys, monkeypatch, error, status):
    """A disk without room ends the sweep; of data that are gone for a moment one cell is left, and no FLOPs count."""
    flags = ["--flop_budgets", "5e7", "--n_embds", 8, 16, *SMALL_SIZES[10:], "--data_dir", toy_data, "--out_dir"]
    left = iter(range(1))

    def once_gone(mc, tc, *args, **more):
        if next(left, None) is not None:
            raise error
        return train(mc, tc, *args, **more)

    monkeypatch.setattr(sweep, "train", once_gone)
    assert run_sweep(*flags, tmp_path / "out") == status
    said = capsys.readouterr()
    assert str(error) in said.out + said.err
    if status == 1:
        assert results.ResultsFile(tmp_path / "out").cut_off() == 0 and "--retry" not in said.out.splitlines()[-1]
        assert [r["status"] for r in rows_of(tmp_path / "out")] == ["ok"]
        assert run_sweep(*flags, tmp_path / "out") == 0 and len(losses_of(tmp_path / "out")) == 2


def test_data_that_change_under_a_sweep_give_no_row(toy_data, tmp_path, capsys, monkeypatch):
    """Its losses would be of another text than those before."""
    text = tmp_path / "text"
    shutil.copytree(toy_data, text)
    flags = ["--flop_budgets", "5e7", "--n_embds", 8, 16, *SMALL_SIZES[10:], "--data_dir", text, "--out_dir"]

    def rebuilt_after(*args, **more):
        record = train(*args, **more)
        meta = (text / "meta.json").read_text()
        (text / "meta.json").write_text(re.sub(r'("corpus_sha256": ")....', r"\g<1>beef", meta))
        return record

    monkeypatch.setattr(sweep, "train", rebuilt_after)
    assert run_sweep(*flags, tmp_path / "out") == 1
    assert "its data have changed since it was planned" in capsys.readouterr().out
    assert len(rows_of(tmp_path / "out")) == 1 and results.ResultsFile(tmp_path / "out").cut_off() == 0
    assert run_sweep(*flags, tmp_path / "out") == 2 and "runs on another text" in capsys.readouterr().err


def test_a_cell_begins_anew_where_its_checkpoint_or_its_trunk_s_is_damaged(toy_data, tmp_path, capsys):
    given = {"block_size": 32, "val_tokens": 1024, "data_dir": toy_data, "device": "cpu"}
    planner = Planner(str(tmp_path / "out"), given, reader.open_data(toy_data), DistributedEnv())
    cell, left, trunk = planner.cell(ModelSize(8, 1), 5e7), iter(range(3)), tmp_path / "trunk"

    def run(**more):
        return sweep.run_cell(cell.mc, cell.tc, str(trunk), [], DistributedEnv(), **more)

    whole = run()["record"]
    shutil.rmtree(cell.tc.out_dir)
    assert run(stop=lambda: next(left, None) is None)["saved"]
    saved = next(Path(cell.tc.out_dir).glob("checkpoints/step_*"))
    shutil.copytree(saved, trunk)
    for folder in (saved, trunk):
        (folder / "model.safetensors").write_bytes(b"torn")
    again = run()["record"]
    assert f"{saved} is damaged" in capsys.readouterr().out
    assert (again["run_id"], again["val_loss"]) == (whole["run_id"], whole["val_loss"])


def test_one_cell_that_can_t_be_planned_does_not_stop_the_rest(toy_data, tmp_path, capsys):
    flags = ["--flop_budgets", "5e7", "1e9", "--n_embds", 8, 256, "--block_size", 32, "--val_tokens", 1024]
    flags += ["--data_dir", toy_data, "--out_dir", tmp_path / "out", "--device", "cpu"]
    assert run_sweep(*flags) == 1
    table, out = rows_of(tmp_path / "out"), capsys.readouterr().out
    assert sorted(r["status"] for r in table) == ["ok", "ok", "refused", "refused"]
    assert "--flop_budget 5e+07 buys" in out and "(2 refused)" in out.splitlines()[-1]
    assert "1 step, " in out and "add --allow_few_steps to train it all the same" in out
    assert run_sweep(*flags) == 1
    assert len(rows_of(tmp_path / "out")) == 4
    assert run_sweep(*flags, "--allow_few_steps") == 1
    assert sorted(r["status"] for r in rows_of(tmp_path / "out")) == ["ok", "ok", "ok", "refused", "refused"]
    capsys.readouterr()
    assert run_sweep(*flags) == 1, "a cell of few steps that has run is no refused one"
    assert len(rows_of(tmp_path / "out")) == 5 and "(1 refused)" in capsys.readouterr().out.splitlines()[-1]


def test_a_sweep_of_one_step_cells_is_refused_before_anything_is_written(toy_data, tmp_path, monkeypatch, capsys):
    """One line, with a way out that works; and a sweep of one budget says what it can't give."""
    monkeypatch.chdir(tmp_path)
    flags = ["--flop_budgets", "3e7", "--n_embds", 48, 64, "--block_size", 32, "--val_tokens", 1024]
    flags += ["--data_dir", toy_data, "--device", "cpu"]
    assert run_sweep(*flags) == 2
    err = capsys.readouterr().err
    assert "step" in err and "off the budget: leave its size or budget out, or add --allow_few_steps" in err
    assert "(and 1 more cells)" in err and err.count("\n") == 1 and not list(tmp_path.iterdir())
    run_sweep(*flags, "--allow_few_steps")
    out, table = capsys.readouterr().out, rows_of("sweep_results")
    assert len(table) == 2 and all(0 < int(r["steps"]) < 10 for r in table), "trained, whatever became of it"
    assert out.startswith("note: 0 of 1 budgets have 4 or more sizes: "), out[:200]


def test_hours_are_capped_too(undisturbed, tmp_path, capsys):
    folder, flags, _ = undisturbed
    shutil.copytree(folder, tmp_path / "out")
    took = results.ResultsFile(tmp_path / "out").hours()
    larger = [{"1e8": "4e8", "2e8": "8e8", "4e8": "8e8"}.get(flag, flag) for flag in flags]
    assert run_sweep(*larger, tmp_path / "out", "--max_hours", took) == 1
    assert len(rows_of(tmp_path / "out")) == 12 and "stopped: --max_hours" in capsys.readouterr().out


# ----- mistakes, dry run -----


@pytest.mark.slow
def test_dry_run_writes_nothing(undisturbed, tmp_path, script):
    done = script("sweep.py", *undisturbed[1], tmp_path / "out", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "12 of 12 cells to run" in done.stdout and done.stdout.count(" GB ") == 12
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--n_embds", "8", "16", "--n_layers", "1"], "--n_layers has 1 values and --n_embds 2"),
        (["--n_layers", "1", "2"], "--n_layers is paired with --n_embds"),
        (["--n_experts", "8"], "--n_experts"),
        (["--flop_budgets", "0"], "--flop_budgets 0"),
        (["--flop_budgets", "1e12x"], "1e12x"),
        (["--flop_budgets", "nan"], "--flop_budgets nan"),
        (["--flop_budgets", "1e99"], "--flop_budgets 1e+99 must be above 0 and at most 1e+40"),
        (["--sizes", "1e9"], "--sizes 1000000000 must be at least 1 and at most 38"),
        (["--n_embds", "1e30"], "--n_embds"),
        (["--n_embds", "9", "--n_layers", "1", "--flop_budgets", "1e9"], "--n_embd 9 is not divisible"),
        (["--flop_budgets", "10"], "--flop_budget 10 buys"),
        (["--parallel", "rows"], "--parallel rows must be one of cells, ddp"),
        (["--lrs", "0.1", "0.1", "0.2"], "--lrs has 2 rates; a parabola needs 3"),
        (["--batches", "64", "128", "256"], "--batches needs --lrs"),
        (["--lrs", ".1", ".2", ".3", "--batches", "64", "128"], "--batches has 2 batches; their law needs 3"),
        (["--lrs", ".1", ".2", ".3", "--batches", "64", "99", "128"], "--total_batch_size 99 is not a multiple"),
        (["--depth", "4"], "--depths 4 6 8 10"),
        (["--seed", "1", "--seeds", "1", "2"], "--seed and --seeds exclude each other"),
        (["--reuse_trunk", *SMALL_SIZES], "--reuse_trunk needs --schedule wsd"),
        (["--data_dir", "nowhere"], "data.py"),
    ],
)
def test_mistakes_are_one_line(toy_data, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    if "--data_dir" not in flags:
        flags = [*flags, "--data_dir", toy_data]
    assert run_sweep(*flags, "--block_size", "32") == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir()), "something was written"


def test_old_spellings_still_work():
    assert sweep.SweepConfig(parallel="runs").parallel == sweep.SweepConfig(parallel="cells").parallel == "cells"
    assert sweep.SweepConfig(parallel="data").parallel == "ddp" and sweep.SweepConfig().parallel is None
    parser = sweep.Parser("sweep.py", "", sweep.SweepConfig)
    for flag in ("--study", "--ablation"):
        assert parser.read(sweep.SweepConfig, parser.parse_args([flag, "porian"])).ablation == "porian"
    assert "--study" not in parser.flags()


# ----- kills, signals, full disks -----


def lock_is_held(folder):
    import fcntl

    try:
        with open(folder / ".lock") as f:
            fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return False
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True


@pytest.mark.slow
def test_ten_kills(undisturbed, tmp_path):
    """kill -9 at ten random moments, then once to the end: the rows of a sweep that nobody disturbed."""
    folder, flags, _ = undisturbed
    mine = tmp_path / "out"
    command = [sys.executable, "sweep.py", *flags, str(mine)]
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    killed, progress = 0, []
    while killed < 10:
        process = subprocess.Popen(command, cwd=ROOT, env=ENV, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # from the moment that it holds the folder, for up to several cells: the start-up is no test
        wait_for(lambda: lock_is_held(mine), process)
        time.sleep(rng.uniform(0.2, 2.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        progress.append(len(rows_of(mine)) if (mine / "runs.csv").exists() else 0)
        if progress[-1] == 12:  # it got through: start over, the kills must fall within a sweep
            shutil.rmtree(mine)
    done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, (seed, done.stderr)
    assert losses_of(mine) == losses_of(folder) and len(losses_of(mine)) == 12, f"seed {seed}"
    assert max(progress) > 0, "no kill fell after a finished cell; the test shows nothing"


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "cells"])
def test_a_signal_leaves_a_checkpoint_and_the_same_command_resumes(toy_data, tmp_path, parallel):
    flags = ["--flop_budgets", "3e9", *SMALL_SIZES, "--data_dir", toy_data, "--out_dir"]
    command = [sys.executable, "sweep.py", *flags, str(tmp_path / "out"), "--parallel", parallel]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENV)
    wait_for(lambda: (tmp_path / "out" / "runs.csv").exists(), process)
    begun = tmp_path / "out" / "begun.jsonl"
    wait_for(lambda: len(begun.read_text().splitlines()) > len(rows_of(tmp_path / "out")), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command resumes" in err, (out, err)
    saved = list((tmp_path / "out" / "cells").glob("*/checkpoints/step_*"))
    assert "interrupted after" in out and saved, "a running cell left no checkpoint"
    assert subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True).returncode == 0
    assert run_sweep(*flags, tmp_path / "whole", "--parallel", "ddp") == 0
    assert losses_of(tmp_path / "out") == losses_of(tmp_path / "whole")
    assert not list((tmp_path / "out" / "cells").glob("*/checkpoints"))
    spent = sum(float(r["flops_spent"]) for r in rows_of(tmp_path / "out"))
    assert results.ResultsFile(tmp_path / "out").spent() == spent


@pytest.mark.slow
def test_a_full_disk_loses_no_row(undisturbed, tmp_path):
    """A tmpfs too small for the grid: one line, exit 2; with room, the same command ends complete and equal."""
    folder, flags, _ = undisturbed
    out = tmp_path / "out"
    out.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", out], capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        command = [sys.executable, "sweep.py", *flags, str(out)]
        done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left" in done.stderr, done.stderr
        kept = len(rows_of(out)) if (out / "runs.csv").exists() else 0
        assert 0 < kept < 12
        subprocess.run(["mount", "-o", "remount,size=50m", out], check=True)
        assert subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True).returncode == 0
        assert losses_of(out) == losses_of(folder)
        subprocess.run(["mount", "-o", "remount,ro", out], check=True)
        done = subprocess.run(command, cwd=ROOT, env=ENV, capture_output=True, text=True)
        assert done.returncode == 2 and "name another folder" in done.stderr and done.stderr.count("\n") == 1
    finally:
        subprocess.run(["umount", out], check=True)


def test_without_a_data_dir_the_text_is_train_pys_default_where_it_is_there(tmp_path, monkeypatch):
    """A sweep that has begun on another text stays with that."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep.data, "prepare", lambda cfg: f"data/{cfg.source}_bpe512")
    assert sweep.default_text("out") == "data/stdlib_bpe512"
    Path("data/fineweb_gpt2").mkdir(parents=True)
    assert sweep.default_text("out") == "data/fineweb_gpt2"
    Path("out").mkdir()
    for name in ("stdlib_bpe512", "fineweb_gpt2"):
        Path("out/runs.csv").write_text(f"run_id,data\na,{name}@0123abcd\n")
        assert sweep.default_text("out") == f"data/{name}"

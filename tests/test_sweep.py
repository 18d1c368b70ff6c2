"""The grid, its CSV, and what a kill at any moment leaves behind."""

import csv
import os
import random
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
from isoflop.flops import count_params
from isoflop.sweep import cells, grid, results

ROOT = Path(__file__).resolve().parent.parent
GRID = "--flop_budgets 1e8 2e8 4e8 --n_embds 8 12 16 24 --n_layers 1 1 1 2 --block_size 32 --val_tokens 1024".split()


def rows(folder):
    with open(Path(folder) / "runs.csv", newline="") as f:
        return list(csv.DictReader(f))


def losses(folder):
    return {r["run_id"]: (r["status"], r["val_loss"], r["tokens"]) for r in rows(folder)}


@pytest.fixture(scope="module")
def undisturbed(toy_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "out"
    command = [sys.executable, "sweep.py", *GRID, "--data_dir", toy_data, "--out_dir", str(folder), "--device", "cpu"]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, command, done.stdout


def test_rows_budgets_and_outputs(undisturbed):
    folder, _, out = undisturbed
    table = rows(folder)
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


def test_the_same_command_again_trains_nothing(undisturbed):
    folder, command, _ = undisturbed
    before = (folder / "runs.csv").read_bytes()
    start = time.monotonic()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and time.monotonic() - start < 60
    assert "[1/" not in done.stdout and done.stdout.count("done") >= 12
    assert (folder / "runs.csv").read_bytes() == before


@pytest.mark.slow
def test_ten_kills(undisturbed, tmp_path):
    """kill -9 at ten random moments, then once to the end: the rows of a sweep that nobody disturbed."""
    folder, command, _ = undisturbed
    mine = tmp_path / "out"
    command = [str(mine) if part == str(folder) else part for part in command]
    seed = random.randrange(10**6)
    rng = random.Random(seed)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    killed, progress = 0, []
    while killed < 10:
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # from the moment that it holds the folder, for up to several cells: the start-up is no test
        while process.poll() is None and not lock_is_held(mine):
            time.sleep(0.01)
        time.sleep(rng.uniform(0.2, 2.5))
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        progress.append(len(rows(mine)) if (mine / "runs.csv").exists() else 0)
        if progress[-1] == 12:  # it got through: start over, the kills must fall within a sweep
            shutil.rmtree(mine)
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (seed, done.stderr)
    assert losses(mine) == losses(folder), f"seed {seed}"
    assert len(rows(mine)) == 12
    assert max(progress) > 0, "no kill fell after a finished cell; the test shows nothing"


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


def fake_row(run_id="abc", **more):
    return {**{name: 1 for name in results.HEADER}, "run_id": run_id, "status": "ok", **more}


def test_a_torn_row_is_moved_aside_and_its_run_done_again(tmp_path):
    path = tmp_path / "runs.csv"
    results.append_row(path, fake_row("one"))
    results.append_row(path, fake_row("two", mfu=None))
    whole = path.read_bytes()
    for cut in (1, 5, len(whole) // 4, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        found = [r["run_id"] for r in results.read_rows(path)]
        assert found == ["one"] if whole[:-cut].count(b"\n") == 2 else found == []
        assert path.read_bytes() == whole[: whole[:-cut].rfind(b"\n") + 1]
        assert (tmp_path / "runs.torn").exists()
        for run in ("one", "two"):
            if run not in found:
                results.append_row(path, fake_row(run))
        assert [r["run_id"] for r in results.read_rows(path)] == ["one", "two"]


def test_a_foreign_csv_is_refused_and_untouched(tmp_path):
    path = tmp_path / "runs.csv"
    for text in ("run_id,loss\na,3.0\n", "run_id,loss\na,3.0", "\x00\n", results.HEADER[0] + ",x\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="another header.*name another --out_dir"):
            results.read_rows(path)
        assert path.read_text() == text and not path.with_name("runs.torn").exists()


def test_a_row_lost_between_record_and_csv_is_recovered(undisturbed, tmp_path):
    folder, command, _ = undisturbed
    mine = tmp_path / "out"
    shutil.copytree(folder, mine)
    lines = (mine / "runs.csv").read_text().splitlines(keepends=True)
    (mine / "runs.csv").write_text("".join(lines[:-3]))
    command = [str(mine) if part == str(folder) else part for part in command]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert losses(mine) == losses(folder)
    assert "val loss" not in done.stdout, "a finished run was trained again"


def test_two_sweeps_in_one_folder(tmp_path):
    with files.folder_lock(tmp_path, "sweep"):
        with pytest.raises(ValueError, match="in use by another sweep"):
            with files.folder_lock(tmp_path, "sweep"):
                pass
    with files.folder_lock(tmp_path, "sweep"):
        pass


def test_default_sizes_surround_the_guess():
    for flops in (5e10, 1e12, 1e15):
        shapes = grid.default_sizes(flops, 512, 5)
        ns = [count_params(ModelConfig(d, w, vocab_size=512))["matmul"] for w, d, _ in shapes]
        assert len(ns) == 5 and ns == sorted(ns)
        assert ns[0] < grid.guess_n_opt(flops) < ns[-1]


def test_widths_alone_take_the_ladder_s_depths():
    assert [cells.default_depth(w) for w in (8, 32, 64, 96, 100, 768, 4000)] == [1, 1, 2, 3, 3, 12, 36]


def test_dry_run_writes_nothing(toy_data, tmp_path, script):
    done = script(
        "sweep.py", *GRID, "--data_dir", toy_data, "--out_dir", tmp_path / "out", "--dry_run", "--device", "cpu"
    )
    assert done.returncode == 0, done.stderr
    assert "12 of 12 cells to run" in done.stdout and done.stdout.count(" GB ") == 12
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--n_embds", "8", "16", "--n_layers", "1"], "--n_layers has 1 values and --n_embds 2"),
        (["--n_layers", "1", "2"], "--n_layers is paired with --n_embds"),
        (["--n_embd", "8"], "--n_embd"),
        (["--flop_budgets", "0"], "--flop_budgets 0"),
        (["--flop_budgets", "1e12x"], "1e12x"),
        (["--flop_budgets", "nan"], "--flop_budgets nan"),
        (["--n_embds", "9", "--n_layers", "1", "--flop_budgets", "1e9"], "--n_embd 9 is not divisible"),
        (["--flop_budgets", "10"], "--flop_budget 10 buys"),
        (["--data_dir", "nowhere"], "data.py"),
    ],
)
def test_mistakes_are_one_line(toy_data, tmp_path, monkeypatch, capsys, flags, words):
    monkeypatch.chdir(tmp_path)
    flags = flags if "--data_dir" in flags else [*flags, "--data_dir", toy_data]
    with pytest.raises(SystemExit) as stop:
        sweep.main([*flags, "--block_size", "32"])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert words in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir()), "something was written"


def test_under_torchrun_each_cell_is_trained_together(toy_data, tmp_path, script):
    flags = ["--flop_budgets", "1e8", "2e8", "--n_embds", "8", "16", "--n_layers", "1", "1", "--block_size", "32"]
    done = script("-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d",
                  "--rdzv_endpoint=localhost:0", "sweep.py", *flags, "--val_tokens", 1024, "--data_dir", toy_data,
                  "--out_dir", tmp_path / "out", "--device", "cpu", timeout=240)  # fmt: skip
    assert done.returncode == 0, done.stderr
    table = rows(tmp_path / "out")
    assert len(table) == 4 and {r["world_size"] for r in table} == {"2"}
    assert done.stdout.count("[4/4]") == 1

"""Cells side by side: the queue and its caps, workers here and under torchrun, workers that die."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import SMALL_BUDGETS, SMALL_SIZES, losses_of, row_of_ones, rows_of, run_script, wait_for

from isoflop.config import ModelConfig
from isoflop.distributed import DistributedEnv
from isoflop.sweep import executors, workers
from isoflop.sweep.cells import Cell, ModelSize
from isoflop.sweep.results import ResultsFile
from isoflop.train.plan import TrainConfig

ROOT = Path(__file__).resolve().parent.parent
TORCHRUN = "-m torch.distributed.run --nproc_per_node=3 --rdzv_backend=c10d --rdzv_endpoint=localhost:0".split()
NO_LIMITS = SimpleNamespace(total_flops=None, max_hours=None)


def planned(run_id, flops=100.0, **about):
    plan = SimpleNamespace(flops=flops, steps=10, n_params_matmul=1000)
    return Cell(run_id, ModelSize(8, 1), flops, 0, mc=SimpleNamespace(n_embd=8), plan=plan, **about)


# ----- the queue -----


def test_a_branch_waits_for_its_trunk(tmp_path):
    branch, trunk = planned("branch", trunk="trunk", start="x", start_step=8), planned("trunk")
    queue = executors.Queue([branch, trunk], ResultsFile(tmp_path), NO_LIMITS)
    assert queue.take() is trunk and queue.take() is None and queue.left()
    queue.ended(trunk)
    assert queue.take() is branch and not queue.left()
    assert ResultsFile(tmp_path).spent() == 100 + 20, "both are noted as begun"


def test_a_cap_counts_what_is_running(tmp_path):
    limits = SimpleNamespace(total_flops=250.0, max_hours=None)
    queue = executors.Queue([planned(name) for name in "abc"], ResultsFile(tmp_path), limits)
    assert queue.take() and queue.take() and queue.take() is None
    assert queue.capped.startswith("--total_flops 250: 200 FLOPs are spent or begun") and not queue.left()


def test_hours_are_foretold_from_the_nearest_size(tmp_path):
    results = ResultsFile(tmp_path)
    for n, seconds in ((900, 36), (100, 3600)):
        results.rows.append({k: str(v) for k, v in row_of_ones(n_params_matmul=n, train_s=seconds).items()})
        results.rows[-1] |= {"eval_s": "0", "startup_s": "0", "flops_spent": "100", "flops": "100"}
    assert executors.expected_hours(planned("a", 200.0), results) == pytest.approx(0.02)
    limits = SimpleNamespace(total_flops=None, max_hours=1.02)
    assert executors.over_cap(planned("a", 200.0), results, limits, 0).startswith("--max_hours 1.02: runs in")
    assert not executors.over_cap(planned("a", 20.0), results, limits, 0)


def test_a_run_that_a_signal_ended_ends_the_stage(tmp_path):
    queue = executors.Queue([planned("a"), planned("b")], ResultsFile(tmp_path), NO_LIMITS)
    here = executors.InGroup(DistributedEnv(), lambda cell: {"status": "interrupted", "error": "", "saved": True})
    assert [cell.run_id for cell, _ in here.run(queue)] == ["a"] and queue.interrupted


# ----- workers -----


def test_what_a_worker_needs_survives_the_wire():
    mc, tc = ModelConfig(2, 48, vocab_size=300), TrainConfig(flop_budget=1e9, lr=0.1)
    cell = Cell("abc", ModelSize(48, 2), 1e9, 0, mc, tc, start="x", keep=((3, "y"),))
    assert workers.unpack(workers.pack(cell)) == (mc, tc, "x", [[3, "y"]])


def test_the_longest_start_first_unless_there_is_a_cap():
    pool = SimpleNamespace()
    cells = [planned("a", 100.0), planned("b", 300.0), planned("c", 200.0)]
    assert [c.run_id for c in workers.Pool.in_order(pool, cells, NO_LIMITS)] == ["b", "c", "a"]
    assert workers.Pool.in_order(pool, cells, SimpleNamespace(total_flops=1.0, max_hours=None)) == cells


@pytest.mark.slow
def test_a_worker_ends_quietly_with_its_parent():
    """The pipe closes, and no thread holds a lock of stdin that Python's end would stumble over."""
    code = "from isoflop.sweep import workers; import threading, time\n"
    code += "threading.Thread(target=workers.end_with_parent, daemon=True).start()\n"
    quick = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    assert quick.wait(60) == 0 and quick.stderr.read() == b"", "ends while the thread reads"
    slow = subprocess.Popen([sys.executable, "-c", code + "time.sleep(600)"], cwd=ROOT, stdin=subprocess.PIPE)
    slow.stdin.close()
    assert slow.wait(60) == 3


@pytest.fixture(scope="module")
def in_turn(toy_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("turn") / "out"
    flags = [*SMALL_BUDGETS, *SMALL_SIZES, "--data_dir", toy_data, "--out_dir", folder, "--parallel", "ddp"]
    assert run_script("sweep.py", *flags).returncode == 0
    return folder


@pytest.mark.slow
def test_workers_give_the_rows_of_one_process(toy_data, in_turn, tmp_path, script):
    flags = [*SMALL_BUDGETS, *SMALL_SIZES, "--data_dir", toy_data, "--out_dir", tmp_path / "out"]
    done = script("sweep.py", *flags, "--parallel", "cells", "--workers", 2, timeout=240)
    assert done.returncode == 0, done.stderr
    assert losses_of(tmp_path / "out") == losses_of(in_turn) and len(losses_of(in_turn)) == 12
    order = [float(r["flop_budget"]) for r in rows_of(tmp_path / "out")]
    assert order[0] == 4e8 and order[-1] == 1e8, "longest first"


@pytest.mark.slow
def test_ranks_take_whole_cells(toy_data, in_turn, tmp_path, script):
    flags = [*SMALL_BUDGETS, *SMALL_SIZES, "--data_dir", toy_data, "--out_dir", tmp_path / "out"]
    done = script(*TORCHRUN, "sweep.py", "--parallel", "cells", *flags, timeout=240)
    assert done.returncode == 0, done.stderr
    assert losses_of(tmp_path / "out") == losses_of(in_turn)
    assert {r["world_size"] for r in rows_of(tmp_path / "out")} == {"1"} and done.stdout.count("[12/12]") == 1


def worker_pids(parent):
    """Processes started by `parent` that are workers."""
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
def test_a_dead_worker_leaves_its_cell_and_the_others_carry_on(toy_data, tmp_path):
    flags = ["--flop_budgets", "5e8", "1e9", *SMALL_SIZES, "--data_dir", toy_data, "--out_dir", str(tmp_path / "out")]
    command = [sys.executable, "sweep.py", *flags, "--parallel", "cells", "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, env=os.environ)
    wait_for(lambda: (tmp_path / "out" / "runs.csv").exists(), process)
    wait_for(lambda: len((tmp_path / "out" / "begun.jsonl").read_text().splitlines()) >= 3, process)
    victims = worker_pids(process.pid)
    assert len(victims) == 2
    os.kill(victims[0], signal.SIGKILL)
    out, _ = process.communicate(timeout=240)
    assert process.returncode == 1 and len(rows_of(tmp_path / "out")) == 7, out
    assert "ended with status -9" in out and out.splitlines()[-1].startswith("1 of 8 cells have no result (1 not run)")
    assert not any(Path(f"/proc/{pid}").exists() for pid in victims)
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and len(rows_of(tmp_path / "out")) == 8


def test_a_worker_s_full_disk_ends_the_sweep(tmp_path, monkeypatch):
    """What concerns every cell is raised where the sweep is planned."""
    store = {"done/1": b'{"fatal": "no room"}'}
    pool = SimpleNamespace(store=SimpleNamespace(check=lambda keys: keys[0] in store, get=store.get), dead={})
    with pytest.raises(OSError, match="no room"):
        workers.Pool._answer(pool, 1, "0", late=False)
    assert workers.Pool._answer(pool, 2, "0", late=False) is None
    assert workers.Pool._answer(pool, 2, "0", late=True)["status"] == "died"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("flags", [["--sweeps", "lrs"], ["--sweeps", "trunks", "--signal", "TERM"]])
def test_sweeps_under_torchrun_survive_kills(toy_data, flags):
    """A rank or torchrun itself is killed while a cell runs; the same command ends with the rows of undisturbed."""
    done = run_script("bench/bench_sweep_kills.py", "--kills", 1, "--data_dir", toy_data, *flags, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    table = [line.split() for line in done.stdout.splitlines()]
    # kills, sweeps, ended, with equal rows, calls that failed undisturbed, those aborted: rarely a rank
    # ends by SIGABRT, not explained (docs/robustness.md); the same command goes on
    (counts,) = [[int(v) for v in line[1:]] for line in table if line[:1] == ["all"]]
    assert counts[:4] == [6, 6, 6, 6] and counts[4] == counts[5] <= 1, done.stdout

"""What several test files share. A helper of one subject has a clearly named function of its own."""

import csv
from pathlib import Path

# ----- sweeps -----


def rows_of(folder, name="runs.csv") -> list[dict]:
    """The rows of a sweep's CSV."""
    with open(Path(folder) / name, newline="") as f:
        return list(csv.DictReader(f))


def run_sweep(*flags) -> int:
    """Exit status of sweep.py in this process."""
    import sweep

    try:
        return sweep.main([str(flag) for flag in flags])
    except SystemExit as stop:
        return stop.code


def quick_fits(patch):
    """Let sweep.py fit without pictures and with few resamples, which take seconds; test_report.py has them drawn."""
    import sweep

    whole = sweep.fit.run
    patch.setattr(sweep.fit, "run", lambda paths, **more: whole(paths, **more | {"plots": False, "bootstrap": 400}))


def sweep_planner(folder, flags=None, vocab_size=512):
    """A Planner without a text."""
    from isoflop.distributed import World
    from isoflop.sweep.cells import Planner, stand_in

    return Planner(str(folder), flags or {}, stand_in(vocab_size, "trained"), World())


def run_for_ever(mc, tc, start, keep, world, stop):
    """Stands for sweep.py's run_cell() in a process that is killed: asks stop() after each step, of a millisecond."""
    import time

    while not stop():
        time.sleep(0.001)


SMALL_SIZES = "--n_embds 8 12 16 24 --n_layers 1 1 1 2 --block_size 32 --val_tokens 1024 --device cpu".split()
SMALL_BUDGETS = "--flop_budgets 1e8 2e8 4e8".split()


def losses_of(folder) -> dict:
    """{run_id: what must be equal in two sweeps of the same cells}; fails where a run has two rows."""
    rows = rows_of(folder)
    found = {r["run_id"]: (r["status"], r["val_loss"], r["train_loss"], r["tokens"], r["lr"]) for r in rows}
    assert len(found) == len(rows), "a run has two rows"
    return found


def row_of_ones(run_id="abc", **more) -> dict:
    """A whole row of a sweep's CSV, its numbers 1."""
    from isoflop.sweep.results import HEADER

    return {name: 1 for name in HEADER} | {"run_id": run_id, "status": "ok", "trunk": "", **more}


def wait_for(condition, process=None, seconds=120.0):
    """Wait until condition() holds or a process has ended; fails after so many seconds."""
    import time

    until = time.monotonic() + seconds
    while not condition() and (process is None or process.poll() is None):
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def run_script(*args, timeout=240):
    """CompletedProcess of a script run from the checkout on one thread: the fixture `script` of any scope."""
    import os
    import subprocess
    import sys

    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, *map(str, args)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=timeout)

"""What several test files share. One section per subject."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isoflop import laws

# ----- fits: reference data and simulated runs -----

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT.parent / "shared" / "reference"
needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="../shared/reference is not here")


def reference_results():
    """reference_results.json: what is known of the reference data."""
    return json.loads((REFERENCE / "reference_results.json").read_text())


def reference_table(name, **options):
    """Table of the runs in a file of the reference folder; options as of isoflop.fit.table.read."""
    from isoflop.fit import table

    return table.read([str(REFERENCE / name)], **options)


def isoflop_runs(law, noise=0.003, seed=0, budgets=(1e18, 3e18, 1e19, 3e19, 1e20), sizes=7, span=30.0):
    """n, d, c, loss of runs drawn from a law on an isoFLOP grid about its own optima."""
    n, d, c = laws.isoflop_grid(law, budgets, sizes, span)
    return n, d, c, laws.simulate(law, n, d, noise, seed)


SEVEN_BUDGETS = tuple(10.0 ** np.arange(17, 20.1, 0.5))


def simulated_table(law, budgets=SEVEN_BUDGETS, sizes=7, span=20.0, noise=0.003, seed=1):
    """Table of runs drawn from a law on an isoFLOP grid, without a file."""
    from isoflop.fit.table import Table

    n, d, c, loss = isoflop_runs(law, noise, seed, budgets, sizes, span)
    order = np.lexsort((n, c))
    names = np.array([f"sim-{i:04d}" for i in range(len(n))], object)
    info = {"files": ["simulated"], "rows_read": len(n), "rows_used": len(n), "dropped": [], "dropped_counts": {}}
    info |= {"columns": {}, "n_convention": "simulated N", "notes": []}
    return Table(names, n[order], d[order], c[order], loss[order], np.arange(1, len(n) + 1), info=info)


def write_runs(path, columns, separator=",", line_end="\n", extra=()):
    """A CSV of columns {name: values} and of further lines; returns its path as text."""
    lines = [separator.join(columns)]
    for cells in zip(*columns.values(), strict=True):
        lines.append(separator.join(map(str, cells)))
    text = line_end.join([*lines, *extra]) + line_end
    path.write_bytes(text.encode())
    return str(path)


def run_python(code, *args, check=True, **env):
    """A program as text, run from the checkout in another process; check=True asserts that it succeeds."""
    command = [sys.executable, "-c", code, *map(str, args)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stderr
    return done


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
    """Let sweep.py fit without pictures, which take seconds, and with few resamples; test_fit_report.py draws."""
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

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

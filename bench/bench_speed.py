"""Wall time of the default sweep against another checkout of this project, in turn.

    git worktree add --detach ../old c635e57
    python bench/bench_speed.py ../old                       # 3 rounds: six sweeps, eight minutes on two cores
    python bench/bench_speed.py ../old --rounds 1 --flags "--flop_budgets 2e10 5e10"

Each sweep starts in a folder of its own, without results; the text is prepared once before. Printed: seconds of each
sweep, the median of the pairs' ratios, whether run_ids and validation losses are equal to the bit, and where the time
of this checkout's runs went. Nothing else may run; with --pause the two have a rest between them.
"""

import argparse
import csv
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("train_s", "eval_s", "startup_s")


def sweep(checkout: Path, flags: list[str], out: str) -> tuple[float, list[dict]]:
    """(wall seconds, rows of runs.csv) of one sweep; a sweep that fails ends the bench with its last lines."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "sweep.py", "--out_dir", out, *flags], cwd=checkout, capture_output=True, text=True
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        sys.exit(f"{checkout}/sweep.py ended with {done.returncode}:\n{(done.stdout + done.stderr)[-2000:]}")
    with open(Path(out, "runs.csv"), newline="") as f:
        return seconds, list(csv.DictReader(f))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the other checkout")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--flags", default="", help="of both sweeps, in one word")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds before each sweep")
    args = parser.parse_args()
    sides = {"other": args.other.resolve(), "this": ROOT}
    flags, found, losses, last = shlex.split(args.flags), {"other": [], "this": []}, {}, []
    for checkout in sides.values():  # the text is no part of the time
        subprocess.run([sys.executable, "data.py", "--source", "stdlib"], cwd=checkout, capture_output=True)
    for turn in range(args.rounds):
        order = list(sides) if turn % 2 == 0 else list(sides)[::-1]
        for side in order:
            time.sleep(args.pause)
            with tempfile.TemporaryDirectory() as out:
                seconds, rows = sweep(sides[side], flags, out)
            found[side].append(seconds)
            losses[side] = {row["run_id"]: row["val_loss"] for row in rows}
            last = rows if side == "this" else last
            print(f"round {turn + 1}, {side}: {seconds:.1f} s, load {os.getloadavg()[0]:.1f}", flush=True)
    ratios = [ours / other for ours, other in zip(found["this"], found["other"], strict=True)]
    spread = f"{min(ratios):.2f} .. {max(ratios):.2f}"
    print(f"this / other: {statistics.median(ratios):.3f} ({spread}), median of {args.rounds}")
    equal = sum(losses["other"].get(run_id) == loss for run_id, loss in losses["this"].items())
    print(f"{equal} of {len(losses['this'])} runs have the other's run_id and val_loss")
    parts = {name: sum(float(row[name]) for row in last) for name in PARTS}
    print("seconds of the runs here, over all workers: " + ", ".join(f"{n} {s:.1f}" for n, s in parts.items()))


if __name__ == "__main__":
    main()

"""What the arithmetic of a sweep's steps takes by itself: a floor under the sweep's time.

    python sweep.py --out_dir sweep_results && python bench/bench_floor.py sweep_results/runs.csv

For each run, of the default architecture: its matrix products (forward, gradients of inputs and of weights, those of
attention) and the exponentials of attention and loss, each called alone, over and over, into memory that is there. All
else is left out: norms, sums, copies, the optimizer, validation, and that memory is cold. Nothing else may run.
Printed: seconds over all steps, and as a share of the rows' train_s.
"""

import argparse
import csv
import functools
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

TURNS = 7


def timed(call) -> float:
    """Seconds of one call: the median of TURNS rounds of ten milliseconds or so."""
    start = time.perf_counter()
    call()
    call()
    calls = max(3, int(0.02 / (time.perf_counter() - start)))
    rounds = []
    for _ in range(TURNS):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        rounds.append((time.perf_counter() - start) / calls)
    return statistics.median(rounds)


@functools.cache
def product(batch: int, rows: int, inner: int, columns: int, dtype: torch.dtype) -> float:
    """Seconds of (rows, inner) x (inner, columns), `batch` of them."""
    a, b = torch.ones(batch, rows, inner, dtype=dtype), torch.ones(batch, inner, columns, dtype=dtype)
    out = torch.empty(batch, rows, columns, dtype=dtype)
    if batch == 1:
        a, b, out = a[0], b[0], out[0]
    return timed(lambda: torch.matmul(a, b, out=out))


@functools.cache
def exponentials(count: int, dtype: torch.dtype) -> float:
    x, out = torch.zeros(count, dtype=dtype), torch.empty(count, dtype=dtype)
    return timed(lambda: torch.exp2(x, out=out))


def floor_of(row: dict) -> tuple[float, float]:
    """Seconds a step of (products, exponentials) of a row of runs.csv."""
    dtype = getattr(torch, row["dtype"])
    names = ("n_embd", "n_layer", "n_head", "block_size", "batch_size", "vocab_size")
    C, L, nh, T, B, V = (int(row[name]) for name in names)
    R, hs = B * T, C // nh

    def linear(width_in, width_out):  # forward, and the gradients of input and weight
        sizes = (R, width_in, width_out), (R, width_out, width_in), (width_out, R, width_in)
        return sum(product(1, *size, dtype) for size in sizes)

    # scores and their gradient's twin are (T, hs) x (hs, T); the mixing and three gradients (T, T) x (T, hs)
    attention = 2 * product(B * nh, T, hs, T, dtype) + 4 * product(B * nh, T, T, hs, dtype)
    blocks = linear(C, 3 * C) + linear(C, C) + linear(C, 4 * C) + linear(4 * C, C) + attention
    return L * blocks + linear(C, V), L * exponentials(B * nh * T * T, dtype) + exponentials(R * V, dtype)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="runs.csv of a sweep with one thread a run")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with open(args.runs, newline="") as f:
        rows = list(csv.DictReader(f))
    totals = [0.0, 0.0, 0.0]
    print("width depth tokens/step steps | ms a step: in the sweep, products, exponentials")
    for row in rows:
        steps, train_s = int(row["steps"]), float(row["train_s"])
        products, exps = floor_of(row)
        totals = [a + b for a, b in zip(totals, (train_s, steps * products, steps * exps), strict=True)]
        sizes = f"{row['n_embd']:>5} {row['n_layer']:>5} {row['tokens_per_step']:>11} {steps:>5}"
        print(f"{sizes} | {1e3 * train_s / steps:.2f} {1e3 * products:.2f} {1e3 * exps:.2f}", flush=True)
    train_s, products, exps = totals
    print(f"all runs: {train_s:.1f} s of steps; products {products:.1f} s ({products / train_s:.0%}), "
          f"exponentials {exps:.1f} s ({exps / train_s:.0%})")  # fmt: skip


if __name__ == "__main__":
    main()

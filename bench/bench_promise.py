"""What `sweep.py --design adaptive --dry_run` promises, against what comes: pi95 of the loss and of N*, simulated.

    python bench/bench_promise.py                                        # three budgets, four laws
    python bench/bench_promise.py --shares 0.03 --prior_laws 12 --laws   # one budget, laws drawn from the public prior

A promise, a median and a range over laws, is made before any run, and again in the folder after a tenth of the budget.
What comes is the width that the sweep's last line says. `off` is came / median - 1. Laws of the prior are those that
the promise expects: the range, of 8 rehearsals, should hold 7 of 9 (other draws of the prior than those it is made of).
"""

import argparse
import contextlib
import io
import math
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

import sweep
from isoflop.distributed import DistributedEnv
from isoflop.fit import families
from isoflop.fit.coupled import PUBLIC
from isoflop.sweep import money
from isoflop.sweep.results import ResultsFile

LAWS = {
    "hoffmann": "hoffmann",
    "besiroglu": "besiroglu",
    "asymmetric": "E=1.8,A=150,B=2000,alpha=0.28,beta=0.40",
    "E = 0": "E=1e-9,A=20,B=25,alpha=0.10,beta=0.12",
}
SHARES = (0.03, 0.1, 0.3)


def promised(folder: str, law: str, target: float, spend: float):
    """[[median, least, most] of the loss, of N*]: pi95 that a dry run promises for `spend` FLOPs more."""
    sc = sweep.SweepConfig(
        design="adaptive",
        target_flops=target,
        simulate=law,
        dry_run=True,
        out_dir=folder,
        vocab_size=32000,
        noise=0.003,
    )
    job = sweep.set_up(sc, {"block_size": 1024}, DistributedEnv(), lambda: False)
    results = ResultsFile.open(folder, job.planner.source, job.texts, repair=False)
    row = money.width_of_money(job.design, results, spend)
    return [[getattr(row[end], key) for end in ("width", "least", "most")] for key in ("pi95_loss", "pi95_n")]


def swept(folder: str, law: str, target: float, total: float, seed: int):
    """Width after a sweep of `total` FLOPs."""
    flags = ["--design", "adaptive", "--target_flops", target, "--total_flops", total, "--simulate", law]
    flags += ["--noise", 0.003, "--vocab_size", 32000, "--block_size", 1024, "--seed", seed, "--out_dir", folder]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        sweep.main([str(flag) for flag in flags])
    last = re.findall(r"pi95 of the loss is ([0-9.]+)% \(N\* x([0-9.]+)\)", out.getvalue())[-1]
    return float(last[0]) / 100, math.log(float(last[1]))


def prior_laws(count: int, target: float, seed: int, loss: float = 3.0) -> dict[str, str]:
    """Laws drawn from the public prior about a run of a hundredth of the target, D/N 20, of `loss` nats."""
    rng, level = np.random.default_rng(seed), np.log(loss) * np.array([1, 1, 0, 0, 1, 0])
    theta = np.array(PUBLIC.mean) + level + np.array(PUBLIC.sd) * rng.standard_normal((count, 6))
    theta[:, 2:4] = np.clip(theta[:, 2:4], 0.05, 1.5)
    n = math.sqrt(target / 100 / 6 / 20)
    drawn = families.law_of(theta, (math.log(n), math.log(20 * n)))
    names = ("E", "A", "B", "alpha", "beta", "p")
    columns = zip(*(getattr(drawn, name) for name in names), strict=True)
    texts = [",".join(f"{name}={value:.6g}" for name, value in zip(names, row, strict=True)) for row in columns]
    return {f"prior {i}": text for i, text in enumerate(texts)}


def summary(found: dict):
    """For each time of promise and quantity: how far off the median is, and how many the range holds."""
    for (when, what), rows in found.items():
        middle, least, most, came = np.array(rows).T
        off = came / middle - 1
        inside = (least <= came) & (came <= most)
        near = (least / 1.3 <= came) & (came <= 1.3 * most)
        text = f"{when:>7} {what}: median off {np.median(off):+.0%}, within 30% in {np.sum(np.abs(off) <= 0.3)}"
        text += f"; in the range {inside.sum()}, within 30% of it {near.sum()}, of {len(rows)}"
        print(f"{text}; its ends are a factor {np.median(most / least):.2f} apart")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, default=1e21, help="FLOPs")
    parser.add_argument("--shares", type=float, nargs="+", default=SHARES, help="of the target's FLOPs")
    parser.add_argument("--laws", nargs="*", default=list(LAWS), choices=LAWS, help="of fixed ones")
    parser.add_argument("--prior_laws", type=int, default=0, help="laws drawn from the public prior")
    parser.add_argument("--seed", type=int, default=1, help="of those draws; the dry run's own is 0")
    args = parser.parse_args()
    sweep.fit.run = lambda *args, **more: (_ for _ in ()).throw(ValueError("left out"))
    print(f"{'law':<12} {'share':>6} {'when':>7} | loss: median (least to most) came off | N*: the same")
    tried, found = {name: LAWS[name] for name in args.laws} | prior_laws(args.prior_laws, args.target, args.seed), {}
    for name, law in tried.items():
        for share in args.shares:
            spend = share * args.target
            with tempfile.TemporaryDirectory() as folder:
                before = promised(folder, law, args.target, spend)
                swept(folder, law, args.target, 0.1 * spend, 0)
                after = promised(folder, law, args.target, 0.9 * spend)
                came = swept(folder, law, args.target, spend, 0)
            for when, widths in (("before", before), ("after", after)):
                text = f"{name:<12} {share:>6.0%} {when:>7}"
                for what, promise, width in zip(("loss", "N*"), widths, came, strict=True):
                    found.setdefault((when, what), []).append([*promise, width])
                    middle, least, most = promise
                    text += f" | {middle:.4f} ({least:.4f} to {most:.4f}) {width:.4f} {width / middle - 1:+.0%}"
                print(text, flush=True)
    summary(found)


if __name__ == "__main__":
    main()

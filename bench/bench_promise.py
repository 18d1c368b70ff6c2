"""What `sweep.py --design adaptive --dry_run` promises, against what comes: pi95 of the loss and of N*, simulated.

    python bench/bench_promise.py            # three budgets, four laws
    python bench/bench_promise.py 1e21 0.03  # one target, one budget

A promise is made before any run, and again in the folder after a tenth of the budget. What comes is the width that the
sweep's last line says. `off` is came / promised - 1.
"""

import contextlib
import io
import re
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import sweep
from isoflop.distributed import DistributedEnv
from isoflop.sweep import money
from isoflop.sweep.results import ResultsFile

LAWS = {
    "hoffmann": "hoffmann",
    "besiroglu": "besiroglu",
    "asymmetric": "E=1.8,A=150,B=2000,alpha=0.28,beta=0.40",
    "E = 0": "E=1e-9,A=20,B=25,alpha=0.10,beta=0.12",
}
SHARES = (0.03, 0.1, 0.3)
SEEDS = (0,)


def promised(folder: str, law: str, target: float, spend: float):
    """Width that a dry run promises for `spend` FLOPs more."""
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
    money.SHARES = (spend / target,)
    (row,) = money.widths_of_money(job.design, results)
    return row["width"].pi95_loss, row["width"].pi95_n


def swept(folder: str, law: str, target: float, total: float, seed: int):
    """Width after a sweep of `total` FLOPs."""
    flags = ["--design", "adaptive", "--target_flops", target, "--total_flops", total, "--simulate", law]
    flags += ["--noise", 0.003, "--vocab_size", 32000, "--block_size", 1024, "--seed", seed, "--out_dir", folder]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        sweep.main([str(flag) for flag in flags])
    last = re.findall(r"pi95 of the loss is ([0-9.]+)% \(N\* x([0-9.]+)\)", out.getvalue())[-1]
    import math

    return float(last[0]) / 100, math.log(float(last[1]))


def main(targets=(1e21,), shares=SHARES):
    sweep.fit.run = lambda *args, **more: (_ for _ in ()).throw(ValueError("left out"))
    print(f"{'law':<12} {'share':>6} {'seed':>4} {'when':>7} | loss: promised, came, off | N*: promised, came, off")
    for target in targets:
        for name, law in LAWS.items():
            for share in shares:
                for seed in SEEDS:
                    with tempfile.TemporaryDirectory() as folder:
                        before = promised(folder, law, target, share * target)
                        swept(folder, law, target, 0.1 * share * target, seed)
                        after = promised(folder, law, target, 0.9 * share * target)
                        came = swept(folder, law, target, share * target, seed)
                    for when, width in (("before", before), ("after", after)):
                        text = f"{name:<12} {share:>6.0%} {seed:>4} {when:>7}"
                        for promise, found in zip(width, came, strict=True):
                            text += f" | {promise:.4f} {found:.4f} {found / promise - 1:+.0%}"
                        print(text, flush=True)


if __name__ == "__main__":
    numbers = [float(text) for text in sys.argv[1:]]
    main(tuple(numbers[:1]) or (1e21,), tuple(numbers[1:]) or SHARES)

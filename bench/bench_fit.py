"""
fit.py against the usual way: scipy's L-BFGS-B from a grid of starts, then again for every bootstrap resample.

    python bench/bench_fit.py [runs.csv] [--drop_top_loss 5]

Both minimise the same objective (Hoffmann et al. 2022, section D.2: summed Huber of log-sum-exp residuals, delta 1e-3)
on the same runs in one process; the usual way gets exact gradients, is given its published starting grid, and its
bootstrap (which starts at the optimum) is timed on a few resamples and scaled. Without a file, 240 simulated runs.
"""

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from scipy.optimize import minimize  # noqa: E402

from isoflop import laws  # noqa: E402
from isoflop.fit import coupled, huber, parametric  # noqa: E402
from isoflop.fit import table as runs  # noqa: E402

# Hoffmann et al. 2022, section D.2: a and b in {0, 5, .., 25}, alpha and beta in {0, 0.5, .., 2}, e in {-1, .., 1}
GRID = list(itertools.product(range(0, 30, 5), range(0, 30, 5), *[np.arange(0, 2.5, 0.5)] * 2, np.arange(-1, 1.5, 0.5)))


def objective(theta, x, y, z, w, delta=1e-3):
    """Summed Huber and its gradient in (ln A, ln B, alpha, beta, ln E)."""
    u = np.stack([theta[0] - theta[2] * x, theta[1] - theta[3] * y, np.full(len(x), theta[4])])
    top = u.max(0)
    e = np.exp(u - top)
    total = e.sum(0)
    r = z - top - np.log(total)
    psi = np.clip(r, -delta, delta)
    p = w * psi * e / total
    return (w * psi * (r - psi / 2)).sum(), -np.array([p[0].sum(), p[1].sum(), -(p[0] @ x), -(p[1] @ y), p[2].sum()])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?")
    parser.add_argument("--drop_top_loss", type=int, default=0)
    parser.add_argument("--starts", type=int, default=300, help="starts timed, of the grid of 4500")
    parser.add_argument("--resamples", type=int, default=40, help="bootstrap resamples timed, of 4000")
    args = parser.parse_args()
    if args.file:
        table = runs.read([args.file], drop_top_loss=args.drop_top_loss)
        n, d, loss = table.n, table.d, table.loss
    else:
        law = laws.PUBLISHED["besiroglu"]
        n, d, _ = laws.isoflop_grid(law, 10 ** np.linspace(18, 21, 15), 16, 30.0)
        loss = laws.simulate(law, n, d, 0.005, 0)
    x, y, z, ones = np.log(n), np.log(d), np.log(loss), np.ones(len(n))

    start = time.perf_counter()
    ours = parametric.fit_parametric(n, d, loss, resamples=0)
    t_fit = time.perf_counter() - start
    start = time.perf_counter()
    booted = parametric.fit_parametric(n, d, loss, resamples=4000)
    t_boot = time.perf_counter() - start - t_fit

    start = time.perf_counter()
    forecast = coupled.fit_coupled(n, d, loss)
    t_coupled = time.perf_counter() - start

    rng = np.random.default_rng(0)
    pick = [GRID[i] for i in rng.choice(len(GRID), args.starts, replace=False)]
    start, found = time.perf_counter(), []
    for a, b, alpha, beta, e in pick:
        found.append(minimize(objective, (a, b, alpha, beta, e), (x, y, z, ones), "L-BFGS-B", jac=True))
    s_fit = (time.perf_counter() - start) * len(GRID) / args.starts
    best = min(f.fun for f in found)
    claimed = np.mean([f.success for f in found])
    reached = np.mean([f.fun <= ours.objective * 1.01 for f in found])
    start, short = time.perf_counter(), []
    law = ours.law
    at = [np.log(law.A), np.log(law.B), law.alpha, law.beta, np.log(law.E)]
    for _ in range(args.resamples):
        w = np.bincount(rng.integers(len(n), size=len(n)), minlength=len(n)).astype(float)
        short.append((w, minimize(objective, at, (x, y, z, w), "L-BFGS-B", jac=True).fun))
    s_boot = (time.perf_counter() - start) * 4000 / args.resamples
    w = np.array([v for v, _ in short])
    centred = np.stack([x, y]) - ours.mu[:, None]
    j, starts = huber.jacobian(ours.theta, centred, True), np.repeat(ours.theta[None], len(w), 0)
    _, low, _ = huber.descend(starts, huber.Regressors(centred), z, w, 1e-3, True, 0.1 * j.T @ j)
    excess = np.array([v for _, v in short]) / low - 1

    print(f"{len(n)} runs")
    print(f"{'':<34}{'fit.py':>12}{'L-BFGS-B':>12}{'ratio':>8}")
    print(f"{'fit: 100 starts | grid of 4500':<34}{t_fit:>10.3f} s{s_fit:>10.1f} s{s_fit / t_fit:>8.0f}")
    print(f"{'bootstrap: 4000 resamples':<34}{t_boot:>10.3f} s{s_boot:>10.1f} s{s_boot / t_boot:>8.0f}")
    print(f"{'both':<34}{t_fit + t_boot:>10.3f} s{s_fit + s_boot:>10.1f} s{(s_fit + s_boot) / (t_fit + t_boot):>8.0f}")
    print(f"objective {ours.objective:.11e} ({ours.starts_agreeing} of {ours.starts} starts) | {best:.11e}")
    print(f"L-BFGS-B: {claimed:.0%} of its starts report success, {reached:.0%} come within 1% of the minimum;")
    share, typical = np.mean(excess < 1e-4), np.median(excess)
    print(f"          {share:.0%} of its resamples come within 0.01% of their minimum (median {typical:.1%} above)")
    print(f"fit.py:   {booted.bootstrap['unconverged']} of {booted.bootstrap['resamples']} resamples not converged")
    draws = forecast.bootstrap["resamples"]
    print(f"coupled:  {t_coupled:.3f} s with {draws} draws: family {forecast.family}, p {forecast.law.p:.2f}")
    if args.file:
        command = [sys.executable, str(ROOT / "fit.py"), args.file, "--drop_top_loss", str(args.drop_top_loss)]
        with tempfile.TemporaryDirectory() as out:
            walls = []
            for _ in range(3):
                start = time.perf_counter()
                subprocess.run([*command, "--no_plots", "--out_dir", out], check=True, capture_output=True)
                walls.append(time.perf_counter() - start)
        print(f"          whole process, all methods, 4000 resamples, no plots: {sorted(walls)[1]:.2f} s (median of 3)")


if __name__ == "__main__":
    main()

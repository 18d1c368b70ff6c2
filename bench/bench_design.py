"""
Replays on real runs: what a share of a pool's FLOPs tells of runs beyond it, by how the runs are chosen.

    python bench/bench_design.py [--reference ../shared/reference] [--draws 10] [--sets study farseer]

Pools are real sweeps; the dearer runs of each are held out, and the target is those of them near their frontier (of
Farseer and of our study: all that are held out). The first draw is the whole pool, the others leave out a random tenth
of it. Each way of choosing has a share of the whole pool's FLOPs to spend, then the coupled law is fitted to what it
chose, with the prior that the other families of sweeps give (learn_prior of bench_forecast.py), and held against the
target: mean absolute error of ln L in percent, mean over the draws [least, most].

- adaptive: isoflop/fit/design.py, planned again after every second run, later after every fourth of the runs known.
- isoFLOP grid: budgets a factor 2 apart, 7 sizes each, spread over the sizes that the pool has at that budget.
- cheapest first; random; D-optimal: greedily the largest determinant of the coupled law's information under the prior.
"""

import argparse
import os
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from bench.bench_forecast import GRIDS, OTHERS, learn_prior  # noqa: E402
from isoflop import laws  # noqa: E402
from isoflop.display import markdown_table  # noqa: E402
from isoflop.fit import table as tables  # noqa: E402
from isoflop.fit.coupled import fit_coupled, frontier_rise  # noqa: E402
from isoflop.fit.design import Candidates, Runs, Target, choose, expected_widths  # noqa: E402
from isoflop.fit.isoflop import fit_isoflop  # noqa: E402
from isoflop.fit.knowledge import Knowledge, State  # noqa: E402
from isoflop.fit.surface import forecast  # noqa: E402

SHARES = (0.01, 0.05, 0.10, 0.20)
METHODS = ("adaptive", "isoFLOP grid", "cheapest first", "random", "D-optimal")
PORIAN = "porian owt2, mean of 5"
MOST_RUNS = 60  # that an adaptive replay chooses
NEAR_FRONTIER = 0.02  # ln L by which a target lies above the frontier of what is held out, at most
SIMULATED_LAWS = {
    "hoffmann": laws.PUBLISHED["hoffmann"],
    "alpha .45, beta .25": laws.Law(1.8, 2400.0, 250.0, 0.45, 0.25),
    "coupled, p = 2": laws.Law(1.7, 400.0, 900.0, 0.3, 0.3, p=2.0),
    "E = 0": laws.Law(0.0, 9.46, 19.5, 0.1, 0.12),
}
SIMULATED_TARGET, SIMULATED_SPEND, SIMULATED_NOISE = 1e21, 3e19, 0.003
THIN = 400  # rows of a pool; of more every so many


@dataclass(frozen=True)
class Rows:
    """(R,) arrays of runs."""

    n: np.ndarray
    d: np.ndarray
    c: np.ndarray
    loss: np.ndarray

    def __getitem__(self, keep):
        return Rows(self.n[keep], self.d[keep], self.c[keep], self.loss[keep])

    def __len__(self):
        return len(self.n)


# ----- data -----


def read_sets(folder):
    """{name: (family, pool, target)}."""
    every = {}
    study, held = (tables.read([str(ROOT / "results" / f"{name}.csv")]) for name in ("cpu", "cpu_heldout"))
    every["study"] = ("cpu", rows_of(study), rows_of(held))
    farseer = rows_of(tables.read([str(folder / "more/farseer.csv")]))
    every["farseer"] = ("farseer", *split(farseer, 1.2e21, np.inf))
    points = rows_of(tables.read([str(folder / "chinchilla_epoch.csv")], drop_top_loss=5))
    every["chinchilla"] = ("chinchilla", *split(points, points.c.max() / 8))
    curve = tables.read([str(folder / "gemstones_hot_477.csv")]).curve
    points = Rows(*(curve[name] for name in ("n", "d", "c", "loss")))
    every["gemstones"] = ("gemstones", *split(points, points.c.max() / 4))
    for name, family, file in GRIDS:
        if family == "porian":
            points = rows_of(tables.read([str(folder / file)]))
            every[name] = (family, *split(points, points.c.max() / 6))
    return every


def rows_of(table):
    return Rows(table.n, table.d, table.c, table.loss)


def split(rows, c, near=NEAR_FRONTIER):
    """(runs of at most c FLOPs, the others as far as they are near their own frontier), each thinned to THIN."""
    pool, held = rows[rows.c <= c], rows[rows.c > c]
    held = held[frontier_rise(held.c, held.loss) <= near]
    return [part[:: -(-len(part) // THIN)] for part in (pool, held)]


def read_priors(folder):
    """{family: the prior that the other families of sweeps give}."""
    learned_from = []
    for _, family, file in (*GRIDS, *OTHERS):
        dropped = 5 if family == "chinchilla" else 0
        learned_from.append((family, tables.read([str(folder / file)], drop_top_loss=dropped)))
    c4 = tables.read([str(folder / "kempner_fineweb_edu.csv")], columns={"loss": "loss_c4_val"})
    learned_from.append(("kempner", c4))
    for family, name in (("cpu", "cpu"), ("cpu4096", "porian_4096")):
        learned_from.append((family, tables.read([str(ROOT / "results" / f"{name}.csv")])))
    return {name: learn_prior(learned_from, name) for name in ("cpu", "farseer", "chinchilla", "gemstones", "porian")}


# ----- ways of choosing: (pool, target, what may be spent, prior, generator) -> indices -----


def adaptive(pool, target, spend, prior, rng):
    chosen, free = [], np.ones(len(pool), bool)
    aim = Target(n=target.n, d=target.d)
    while len(chosen) < MOST_RUNS:
        left = spend - pool.c[chosen].sum()
        free[chosen] = False
        open_rows = np.flatnonzero(free & (pool.c <= left * (1 + 1e-9)))
        if not len(open_rows):
            break
        known, some = pool[chosen], pool[open_rows]
        runs, candidates = Runs(known.n, known.d, known.loss, known.c), Candidates(some.n, some.d, some.c, some.c)
        count = max(2, len(chosen) // 4) if chosen else MOST_RUNS
        choice = choose(runs, candidates, aim, count, left, prior=prior)
        if not choice.decisions:
            break
        chosen += [int(open_rows[decision.index]) for decision in choice.decisions]
    return chosen


def isoflop_grid(pool, target, spend, prior, rng, budgets=5, sizes=7):
    """The dearest grid that can be paid."""
    best = []
    for top in np.sort(np.unique(pool.c))[::-1]:
        chosen = []
        for k in range(budgets):
            near = np.flatnonzero(np.abs(np.log(pool.c / top) + k * np.log(2.0)) < 0.35)
            near = near[np.argsort(pool.n[near], kind="stable")]
            if len(near):
                chosen += list(near[np.unique(np.linspace(0, len(near) - 1, sizes).round().astype(int))])
        best = sorted(set(chosen))
        if pool.c[best].sum() <= spend:
            return best
    return []


def in_order(pool, order, spend):
    """Runs in this order, each that can still be paid."""
    chosen = []
    for j in order:
        if pool.c[j] <= spend:
            chosen.append(int(j))
            spend -= pool.c[j]
    return chosen


def cheapest_first(pool, target, spend, prior, rng):
    return in_order(pool, np.argsort(pool.c, kind="stable"), spend)


def at_random(pool, target, spend, prior, rng):
    return in_order(pool, rng.permutation(len(pool)), spend)


def d_optimal(pool, target, spend, prior, rng):
    candidates = Candidates(pool.n, pool.d, pool.c, pool.c)
    knowledge = Knowledge(Runs.none(), candidates, prior)
    state = State(knowledge, candidates, Target(n=target.n, d=target.d), Runs.none(), pool.c.max())
    chosen, free = [], np.ones(len(pool), bool)
    while len(chosen) < MOST_RUNS:
        free &= pool.c <= spend * (1 + 1e-9)
        if not free.any():
            break
        information = (state.root[:, : len(pool)] ** 2).sum(0) / state.noise
        j = int(np.argmax(np.where(free, information, -1.0)))
        chosen.append(j)
        spend -= pool.c[j]
        free[j] = False
        state.observe(j)
    return chosen


WAYS = dict(zip(METHODS, (adaptive, isoflop_grid, cheapest_first, at_random, d_optimal), strict=True))


def errors_of(pool, chosen, target, prior):
    """(mean absolute error of ln L in %, R2 of the loss) on the target; NaN where no law can be fitted."""
    known = pool[chosen]
    law = None
    if len(known) >= 3:
        law = fit_coupled(known.n, known.d, known.loss, known.c, prior=prior, resamples=0).law
    if law is None:
        return np.nan, np.nan
    predicted = law.loss(target.n, target.d)
    spread = ((target.loss - target.loss.mean()) ** 2).sum()
    r2 = 1 - ((target.loss - predicted) ** 2).sum() / spread
    return 100 * float(np.abs(np.log(target.loss / predicted)).mean()), float(r2)


# ----- replays -----


def replay(family, pool, target, prior, draws, progress, methods=METHODS, shares=SHARES):
    """{(method, share): (draws, 3) array of error, R2, number of runs}; method "whole pool" at share 1."""
    out = {}
    for draw in range(draws):
        rng = np.random.default_rng(draw)
        some = pool
        if draw:
            some = pool[np.sort(rng.choice(len(pool), int(0.9 * len(pool)), replace=False))]
        out.setdefault(("whole pool", 1.0), []).append((*errors_of(some, slice(None), target, prior), len(some)))
        for share in shares:
            for method in methods:
                chosen = WAYS[method](some, target, share * pool.c.sum(), prior, np.random.default_rng(draw))
                found = (*errors_of(some, chosen, target, prior), len(chosen))
                out.setdefault((method, share), []).append(found)
            progress()
    return {key: np.array(rows) for key, rows in out.items()}


def bar(total):
    """A progress bar on standard error: a function to call once a step."""
    start, done = time.time(), [0]

    def step():
        done[0] += 1
        share = done[0] / total
        left = (time.time() - start) * (1 - share) / share
        print(f"\r[{'#' * int(30 * share):<30}] {share:4.0%}, {left:4.0f} s left", end="", file=sys.stderr, flush=True)
        if done[0] == total:
            print(file=sys.stderr)

    return step


def cell(values):
    """Mean [least, most] as text, and in how many draws no law could be fitted."""
    known = values[np.isfinite(values)]
    if not len(known):
        return "-"
    text = f"{known.mean():.2f} [{known.min():.2f}, {known.max():.2f}]"
    if len(known) < len(values):
        text += f" ({len(values) - len(known)} without a law)"
    return text


def show(found):
    for name, rows in found.items():
        whole, shares = rows["whole pool", 1.0], sorted({share for _, share in rows if share < 1})
        print(f"\n{name}: mean absolute error of ln L, %; whole pool {cell(whole[:, 0])}\n")
        lines = []
        for method in METHODS:
            if (method, shares[0]) in rows:
                lines.append([method, *(cell(rows[method, share][:, 0]) for share in shares)])
        if ("adaptive", shares[0]) in rows:
            ours = [rows["adaptive", share] for share in shares]
            lines.append(["runs of the adaptive", *(f"{values[:, 2].mean():.0f}" for values in ours)])
            if name == "farseer":
                lines.append(["R2 of the adaptive", *(cell(values[:, 1]) for values in ours)])
        print(markdown_table(["", *(f"{share:.0%}" for share in shares)], lines))


def verdict(found, share=0.10, most=1.25):
    """Adaptive at a tenth against the whole pool, Porian's five sets as one."""
    pairs = {}
    for name, rows in found.items():
        if ("adaptive", share) in rows:
            group = PORIAN if name.startswith("owt2") else name
            pair = (np.nanmean(rows["adaptive", share][:, 0]), np.nanmean(rows["whole pool", 1.0][:, 0]))
            pairs.setdefault(group, []).append(pair)
    lines, held = [], 0
    for name, values in pairs.items():
        ours, whole = np.mean(values, 0)
        held += ours <= most * whole
        lines.append([name, f"{ours:.2f}", f"{whole:.2f}", f"{ours / whole:.2f}"])
    print(f"\nAdaptive at {share:.0%} against the whole pool: within {most} times in {held} of {len(lines)}\n")
    print(markdown_table(["", "adaptive", "whole pool", "ratio"], lines))


# ----- simulations: choosing must not fool the interval -----


def simulated_sweep(law, seed, spend=SIMULATED_SPEND, workers=4):
    """
    An adaptive sweep whose losses are drawn from a law, and its forecast at SIMULATED_TARGET FLOPs against the truth.

    Returns
    -------
    dict: runs, error (of ln L), n_error (of ln N*), half and promised (pi95 of ln L, its half: of the forecast, and
    of expected_widths after the first round), loss and n_opt (whether pi95 holds the truth)
    """
    n, d = (v.ravel() for v in np.meshgrid(np.geomspace(5e6, 2e9, 22), np.geomspace(1e8, 1e11, 22)))
    keep = (d / n >= 1) & (d / n <= 1000) & (6 * n * d <= spend / 2)
    n, d = n[keep], d[keep]
    loss = laws.simulate(law, n, d, SIMULATED_NOISE, seed)
    target, chosen, promised = Target(flops=SIMULATED_TARGET), [], None
    while True:
        left = spend - 6 * (n * d)[chosen].sum()
        free = np.setdiff1d(np.flatnonzero(6 * n * d <= left), chosen)
        if not len(free):
            break
        runs, candidates = Runs(n[chosen], d[chosen], loss[chosen]), Candidates(n[free], d[free], 6 * n[free] * d[free])
        if chosen and promised is None:
            promised = expected_widths(runs, candidates, target, [left])[0][1].pi95_loss
        choice = choose(runs, candidates, target, workers, left)
        if not choice.decisions:
            break
        chosen += [int(free[decision.index]) for decision in choice.decisions]
    n, d, loss = n[chosen], d[chosen], loss[chosen]
    c = 6 * n * d
    isoflop, coupled = fit_isoflop(n, d, c, loss, resamples=200), fit_coupled(n, d, loss, c, resamples=400)
    (row,), _ = forecast(isoflop, coupled, [SIMULATED_TARGET], laws.SIX_ND, c.max())
    true = {"loss": law.frontier_loss(SIMULATED_TARGET), "n_opt": law.optimum(SIMULATED_TARGET)[0]}
    out = {"runs": len(n), "promised": promised, "half": float(np.log(row.loss.pi95[1] / row.loss.pi95[0]) / 2)}
    out |= {
        "error": float(np.log(row.loss.point / true["loss"])),
        "n_error": float(np.log(row.n_opt.point / true["n_opt"])),
    }
    for key, value in true.items():
        low, high = getattr(row, key).pi95
        out[key] = bool(low <= value <= high)
    return out


def simulations(count):
    step, lines, every = bar(count * len(SIMULATED_LAWS)), [], []
    for name, law in SIMULATED_LAWS.items():
        rows = []
        for seed in range(count):
            rows.append(simulated_sweep(law, seed))
            step()
        lines.append([name, *_simulated(rows)])
        every += rows
    lines.append(["all", *_simulated(every)])
    header = [
        "law",
        "runs",
        "error of ln L, %",
        "error of ln N*",
        "pi95 holds L",
        "pi95 holds N*",
        "half-width, %",
        "promised, %",
    ]
    spent = f"{SIMULATED_SPEND / SIMULATED_TARGET:.0%} of the target's FLOPs, noise {SIMULATED_NOISE:.1%}"
    print(f"\nSimulated adaptive sweeps, {count} of each law, {spent}\n")
    print(markdown_table(header, lines))


def _simulated(rows):
    column = {key: np.array([row[key] for row in rows], float) for key in rows[0]}
    cells = [f"{column['runs'].mean():.0f}", f"{100 * np.abs(column['error']).mean():.2f}"]
    cells += [
        f"{np.abs(column['n_error']).mean():.2f}",
        f"{column['loss'].mean():.0%}",
        f"{column['n_opt'].mean():.0%}",
    ]
    return cells + [f"{100 * np.median(column[key]):.2f}" for key in ("half", "promised")]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", default=str(ROOT.parent / "shared" / "reference"), help="folder of public runs")
    parser.add_argument("--draws", type=int, default=10, help="random nine tenths of each pool")
    parser.add_argument("--sets", nargs="+", help="names to replay (default: all)")
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--shares", nargs="+", type=float, default=SHARES)
    parser.add_argument("--simulations", type=int, default=10, help="adaptive sweeps of each of four laws; 0 for none")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    sets, priors = read_sets(Path(args.reference)), read_priors(Path(args.reference))
    names = [name for name in sets if not args.sets or any(name.startswith(word) for word in args.sets)]
    step, found = bar(len(names) * args.draws * len(args.shares)), {}
    for name in names:
        family, pool, target = sets[name]
        found[name] = replay(family, pool, target, priors[family], args.draws, step, args.methods, args.shares)
    show(found)
    verdict(found)
    if args.simulations:
        simulations(args.simulations)


if __name__ == "__main__":
    main()

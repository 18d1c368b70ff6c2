"""
The minima of isoFLOP curves by every method of fit_isoflop: "pooled" is the default, "local" was it before.

    python bench/bench_minima.py [--reference ../shared/reference] [--seeds 40]

Four tables: a on the OpenWebText2 sweeps of Porian et al. 2024 against their own; bias without noise on grids about a
known law; the regret of the N predicted for budgets held out of public sweeps; errors and 95% intervals with noise.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from scipy.interpolate import PchipInterpolator  # noqa: E402

from isoflop import laws  # noqa: E402
from isoflop.display import text_table  # noqa: E402
from isoflop.fit.coupled import fit_coupled  # noqa: E402
from isoflop.fit.isoflop import expected_bias, fit_isoflop, hold_bias  # noqa: E402
from isoflop.fit.minima import MIN_SIZES  # noqa: E402
from isoflop.fit.table import read  # noqa: E402

METHODS = ("pooled", "local", "akima", "parabola")
PORIAN = {  # Akima minima of 1000 noise draws, as they published a
    "base_long_kaplan_kaplan_train": 0.8635,
    "base_long_kaplan_standard_val": 0.699,
    "base_short_kaplan_standard_val": 0.603,
    "base_short_chinchilla_standard_val": 0.574,
    "tuned_short_const_standard_val": 0.518,
}
KEMPNER = ("kempner_fineweb_edu.csv", "more/kempner_slimpajama.csv", "more/kempner_proof_pile.csv")


def public_sweeps(reference):
    """{family:name: Table} of the isoFLOP sweeps in the reference folder, runs beyond the grid left out."""
    out = {}
    for name in PORIAN:
        out[f"porian:{name}"] = read([str(reference / f"more/porian_owt2_{name}.csv")])
    for file in KEMPNER:
        for column in ("loss", "loss_c4_val"):
            where = ["is_extrapolation == 0"]
            table = read([str(reference / file)], columns={"loss": column}, where=where)
            out[f"kempner:{Path(file).stem}:{column}"] = table
    out["marin:dclm"] = read([str(reference / "more/marin_dclm.csv")])
    out["llama:dclm_ctx2048"] = read([str(reference / "more/llama_dclm_ctx2048.csv")])
    out["hoffmann:epoch"] = read([str(reference / "chinchilla_epoch.csv")], drop_top_loss=5)
    return out


# ----- grids about a known law -----


def coupled(p):
    """E + [(A / N^alpha)^p + (B / D^beta)^p]^(1 / p): terms that are not additive."""
    return lambda n, d: 1.7 + ((400 / n**0.3) ** p + (900 / d**0.3) ** p) ** (1 / p)


LAWS = {
    "besiroglu": laws.PUBLISHED["besiroglu"].loss,
    "hoffmann": laws.PUBLISHED["hoffmann"].loss,
    "coupled p=2": coupled(2.0),
    "coupled p=.7": coupled(0.7),
}


def exact_optimum(law, c):
    ln_n = np.linspace(np.log(1e5), np.log(1e13), 400_001)
    return ln_n[np.argmin(law(np.exp(ln_n), c / 6 / np.exp(ln_n)))]


def grids(law):
    """Nine budgets by grid: ln C (9,), exact ln N_opt (9,) and {grid: [ln N (S,) per budget]}."""
    budgets = np.geomspace(1e18, 1e21, 9)
    best = np.array([exact_optimum(law, c) for c in budgets])
    sizes = np.log(np.geomspace(2e7, 6e10, 24))
    out = {"symmetric, 9 sizes": [], "lopsided, .5 to 40x": [], "lopsided, 1/30 to 2x": [], "one list of sizes": []}
    out |= {"drifting window": [], "6 sizes": []}
    for i, x in enumerate(best):
        out["symmetric, 9 sizes"].append(x + np.linspace(-1.7, 1.7, 9))
        out["lopsided, .5 to 40x"].append(x + np.log(np.geomspace(0.5, 40, 9)))
        out["lopsided, 1/30 to 2x"].append(x + np.log(np.geomspace(1 / 30, 2, 8)))
        out["one list of sizes"].append(sizes[(sizes > x - 1.3) & (sizes < x + 2.5)])
        out["drifting window"].append(x + np.linspace(-1.2, 3.2, 9) - i / 4)
        out["6 sizes"].append(x + 0.1 * ((i * 7) % 5 - 2) + np.linspace(-1.4, 1.4, 6))
    return np.log(budgets), best, out


def runs_of(law, ln_c, ln_n):
    """n, d, c and the law's loss of a grid, as flat arrays."""
    c = np.exp(np.repeat(ln_c, [len(x) for x in ln_n]))
    n = np.exp(np.concatenate(ln_n))
    d = c / 6 / n
    return n, d, c, law(n, d)


def errors_of(fit, ln_c, best):
    """Errors of ln N_opt by budget, and of a against the line through the exact optima of the same budgets."""
    known = [v for v in fit.budgets if v.status == "ok"]
    at = np.array([np.argmin(np.abs(ln_c - np.log(v.flops))) for v in known])
    exact = np.polyfit(ln_c[at], best[at], 1)[0]
    return np.log([v.n_opt for v in known]) - best[at], fit.a - exact


# ----- the tables -----


def porian_table(sweeps):
    rows, errors = [], {method: [] for method in METHODS}
    for name, published in PORIAN.items():
        t = sweeps[f"porian:{name}"]
        row = [name, f"{published:.4f}"]
        for method in METHODS:
            a = fit_isoflop(t.n, t.d, t.c, t.loss, how=method, resamples=0).a
            errors[method].append(a - published)
            row.append(f"{a:.4f}")
        rows.append(row)
    rmse = {method: float(np.sqrt(np.mean(np.square(e)))) for method, e in errors.items()}
    rows.append(["rmse", "", *(f"{rmse[method]:.4f}" for method in METHODS)])
    return text_table(["a of Porian et al., OpenWebText2", "published", *METHODS], rows), rmse


def bias_table():
    """Largest bias over the grids of each law: {(law, method): (of a, of ln N_opt)}."""
    rows, worst = [], {}
    for name, law in LAWS.items():
        ln_c, best, windows = grids(law)
        for method in METHODS:
            of_a, of_n = 0.0, 0.0
            for ln_n in windows.values():
                fit = fit_isoflop(*runs_of(law, ln_c, ln_n), how=method, resamples=0)
                miss, miss_a = errors_of(fit, ln_c, best)
                of_a, of_n = max(of_a, abs(miss_a)), max(of_n, float(np.abs(miss).max()))
            worst[name, method] = of_a, of_n
            rows.append([name, method, f"{of_a:.5f}", f"{np.expm1(of_n):.2%}"])
    return text_table(["no noise, worst of six grids", "method", "bias of a", "bias of N*"], rows), worst


def of_four_sizes(fit, n):
    """The budgets with sizes enough for a minimum that has an error; n (R,), of all runs."""
    return [v for v in fit.budgets if (np.diff(np.sort(np.log(n[v.rows]))) > 1e-3).sum() + 1 >= MIN_SIZES]


def regrets(table, method):
    """Excess of ln L at the N predicted for every budget above the fitted ones; NaN where it is not in the sizes."""
    full = fit_isoflop(table.n, table.d, table.c, table.loss, how=method, resamples=0)
    budgets = of_four_sizes(full, table.n)
    out = []
    for k in range(3, len(budgets)):
        below = table.c < np.sqrt(budgets[k - 1].flops * budgets[k].flops)
        columns = (v[below] for v in (table.n, table.d, table.c, table.loss))
        fit = fit_isoflop(*columns, how=method, resamples=0)
        for held in budgets[k:]:
            out.append(np.nan)
            order = held.rows[np.argsort(table.n[held.rows])]
            x, y = np.log(table.n[order]), np.log(table.loss[order])
            if fit.a is None or (np.diff(x) < 1e-6).any() or not 0 < np.argmin(y) < len(y) - 1:
                continue
            at = float(np.log(fit.optimum(held.flops)[0]))
            if x[0] <= at <= x[-1]:
                out[-1] = float(PchipInterpolator(x, y)(at) - y.min())
    return np.array(out)


def regret_table(sweeps):
    rows, pooled = [], {method: [] for method in METHODS}
    for name, table in sweeps.items():
        if name.startswith(("hoffmann", "llama")):  # no grid; too few budgets
            continue
        found = {method: regrets(table, method) for method in METHODS}
        both = np.isfinite(found["pooled"]) & np.isfinite(found["local"])
        for method in METHODS:
            pooled[method].append(found[method][both])
        rows.append([name, f"{both.sum()}", *(f"{np.nanmean(found[m][both]):.3%}" for m in METHODS)])
    mean = {method: float(np.nanmean(np.concatenate(v))) for method, v in pooled.items()}
    rows.append(["all", "", *(f"{mean[method]:.3%}" for method in METHODS)])
    rows.append(["all, median", "", *(f"{np.nanmedian(np.concatenate(v)):.3%}" for v in pooled.values())])
    return text_table(["regret at budgets held out", "n", *METHODS], rows), mean


def noise_table(seeds, noises=(0.003, 0.01), methods=("pooled", "local"), resamples=500):
    """
    Errors and coverage of ci95 by method, over the grids of two laws and the noises: text, {(method, quantity): mean},
    and coverage of a by "pooled" {(law, grid, noise): share}.
    """
    rows, every, of_a = [], {}, {}
    for name in ("besiroglu", "coupled p=2"):
        ln_c, best, windows = grids(LAWS[name])
        for grid, ln_n in windows.items():
            for noise in noises:
                held = noisy_sweeps(LAWS[name], ln_c, best, ln_n, noise, seeds, methods, resamples)
                row = [name, grid, f"{noise:g}"]
                for method in methods:
                    for key, values in held[method].items():
                        every.setdefault((method, key), []).append(np.mean(values))
                    row += [f"{np.mean(held[method][key]):.2f}" for key in ("a", "N*", "loss")]
                    row.append(f"{np.sqrt(np.mean(held[method]['error of N*'])):.3f}")
                    row.append(f"{np.median(held[method]['half-width of a']):.4f}")
                rows.append(row)
                of_a[name, grid, noise] = float(np.mean(held[methods[0]]["a"]))
    mean = {k: float(np.mean(v)) for k, v in every.items()}
    head = ["law", "grid", "noise"]
    for method in methods:
        head += [f"a in ci95, {method}", "N*", "loss", "rmse ln N*", "half-width of a"]
    return text_table(head, rows), mean, of_a


def noisy_sweeps(law, ln_c, best, ln_n, noise, seeds, methods=("pooled",), resamples=500):
    """{method: {quantity: list}} of sweeps about a law, fitted as fit.py does: ci95 holds the bias of the minima."""
    n, d, c, clean = runs_of(law, ln_c, ln_n)
    keys = ("a", "N*", "loss", "error of a", "error of N*", "half-width of a")
    held = {method: {key: [] for key in keys} for method in methods}
    for seed in range(seeds):
        draw = np.random.default_rng(1000 + seed).standard_normal(len(n))
        loss = clean * np.exp(noise * draw)
        surface = fit_coupled(n, d, loss, c, resamples=0).law
        for method in methods:
            fit = fit_isoflop(n, d, c, loss, how=method, resamples=resamples, seed=seed)
            if surface is not None:
                fit = hold_bias(fit, expected_bias(fit, surface, n, d, c, others=()))
            if fit.a is not None:
                _score(fit, law, ln_c, best, held[method])
    return held


def _score(fit, law, ln_c, best, held):
    miss, miss_a = errors_of(fit, ln_c, best)
    held["error of a"].append(miss_a**2)
    held["error of N*"].append(float(np.mean(miss**2)))
    if "a" in fit.draws:
        low, high = np.percentile(fit.draws["a"], (2.5, 97.5))
        held["a"].append(low <= fit.a - miss_a <= high)
        held["half-width of a"].append(0.5 * (high - low))
    for v in fit.budgets:
        if v.ci:
            i = int(np.argmin(np.abs(ln_c - np.log(v.flops))))
            n = np.exp(best[i])
            held["N*"].append(v.ci["n_opt"][0] <= n <= v.ci["n_opt"][1])
            held["loss"].append(v.ci["loss"][0] <= law(n, v.flops / 6 / n) <= v.ci["loss"][1])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, default=ROOT.parent / "shared" / "reference")
    parser.add_argument("--seeds", type=int, default=40, help="simulated sweeps per grid and noise")
    args = parser.parse_args()
    print(bias_table()[0])
    if args.reference.is_dir():
        sweeps = public_sweeps(args.reference)
        print(f"\n{porian_table(sweeps)[0]}\n\n{regret_table(sweeps)[0]}")
    print(f"\n{noise_table(args.seeds)[0]}")


if __name__ == "__main__":
    main()

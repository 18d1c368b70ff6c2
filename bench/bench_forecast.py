"""
How well each law forecasts: fitted to the cheaper runs of public sweeps, held against the dearer ones.

    python bench/bench_forecast.py [--reference ../shared/reference] [--simulations 8]

1. Sweeps on isoFLOP grids: fitted up to a budget, the best run of every higher budget predicted. Mean absolute error of
   ln L, in percent, by how much more compute the predicted run had.
2. Sweeps on no grid and this project's own study: the runs below a compute, the runs at the top; and every run above a
   compute by fit.py's forecast of single runs, with the intervals that held.
3. Simulated sweeps under Hoffmann's law: what the coupled law loses where Hoffmann's is exactly true.

Every family of sweeps is forecast with the prior that the other families give (learn_prior).
"""

import argparse
import os
import sys
import warnings
from collections import defaultdict
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402

from isoflop import laws  # noqa: E402
from isoflop.display import text_table  # noqa: E402
from isoflop.fit import table as runs  # noqa: E402
from isoflop.fit.compare import compare_families  # noqa: E402
from isoflop.fit.coupled import PUBLIC, Prior, fit_coupled  # noqa: E402
from isoflop.fit.isoflop import fit_isoflop, group_budgets  # noqa: E402
from isoflop.fit.parametric import fit_parametric  # noqa: E402
from isoflop.fit.power_law import fit_power_law  # noqa: E402
from isoflop.fit.surface import forecast_runs  # noqa: E402

RATIOS = (2, 4, 10, 20)
GRIDS = (  # name, family, file
    ("owt2 long kaplan, kaplan N", "porian", "more/porian_owt2_base_long_kaplan_kaplan_train.csv"),
    ("owt2 long kaplan", "porian", "more/porian_owt2_base_long_kaplan_standard_val.csv"),
    ("owt2 short chinchilla", "porian", "more/porian_owt2_base_short_chinchilla_standard_val.csv"),
    ("owt2 short kaplan", "porian", "more/porian_owt2_base_short_kaplan_standard_val.csv"),
    ("owt2 tuned", "porian", "more/porian_owt2_tuned_short_const_standard_val.csv"),
    ("kempner fineweb-edu", "kempner", "kempner_fineweb_edu.csv"),
    ("kempner slimpajama", "kempner", "more/kempner_slimpajama.csv"),
    ("kempner proof-pile", "kempner", "more/kempner_proof_pile.csv"),
    ("marin", "marin", "more/marin_dclm.csv"),
    ("llama", "llama", "more/llama_dclm_ctx2048.csv"),
    ("cs336 (no noise)", "cs336", "cs336_isoflops.csv"),
)
OTHERS = (
    ("gadre", "gadre", "more/gadre_c4.csv"),
    ("farseer", "farseer", "more/farseer.csv"),
    ("chinchilla", "chinchilla", "chinchilla_epoch.csv"),
)
NESTED = {  # how E = 0 and alpha = beta could answer -> which of them
    "by evidence": ("E = 0", "alpha = beta"),
    "by both": ("E = 0", "alpha = beta"),
    "E = 0 by both": ("E = 0",),
    "alpha = beta by both": ("alpha = beta",),
}
LAWS = ("Hoffmann as was", "Hoffmann weighted", "coupled", "coupled, p free", *NESTED)
CLEAR = 3.0  # nats by which a nested law must lead to answer "by both"
LINES = ("line E + k C^-g", ".7 line + .3 log-log")


# ----- methods: arrays of runs -> ln L of other runs -----


def surfaces(n, d, c, loss, prior):
    """Method -> Law or None. As was: refused where E runs to 0. By evidence, by both: see nested()."""
    classical = fit_parametric(n, d, loss, resamples=0, n_grid=6)
    auto = fit_coupled(n, d, loss, c, prior=prior, resamples=0)
    return {
        "Hoffmann as was": classical.law if classical.family == "hoffmann" else None,
        "Hoffmann weighted": fit_coupled(n, d, loss, c, family="hoffmann", prior=False, resamples=0).law,
        "coupled": auto.law,
        "coupled, p free": fit_coupled(n, d, loss, c, family="coupled", prior=prior, resamples=0).law,
        **nested(n, d, c, loss, prior, auto),
    }


def nested(n, d, c, loss, prior, auto):
    """
    Method -> Law: what would answer if the cases of NESTED could, where `auto` answers now.

    By evidence: the first of all families. By both: the first that leads the answering one by CLEAR nats and misses its
    back-tests no more than that one does; else the answering one.
    """
    rows = compare_families(n, d, loss, c, prior)
    answering = [row for row in rows if row.family == auto.family]
    found = dict.fromkeys(NESTED, auto.law)
    for method, cases in NESTED.items():
        if not answering:
            break
        ours = answering[0]
        for row in rows:
            if not row.family.endswith(cases):
                continue
            leads = row.behind < ours.behind
            if method != "by evidence":
                tested = row.backtest is not None and ours.backtest is not None and row.backtest <= ours.backtest
                leads = tested and row.behind < ours.behind - CLEAR
            if leads:
                found[method] = row.law
                break
    return found


def lines(n, d, c, loss):
    """Method -> ln L as a function of C, or None."""
    budgets = [v for v in fit_isoflop(n, d, c, loss, resamples=0).budgets if v.status == "ok"]
    none = dict.fromkeys(LINES)
    if len(budgets) < 4:
        return none
    x, y = np.array([v.flops for v in budgets]), np.array([v.loss for v in budgets])
    power = fit_power_law(x, y)
    if power.k is None:
        return none
    last = np.polyfit(np.log(x[-3:]), np.log(y[-3:]), 1)
    return {
        LINES[0]: lambda flops: np.log(power(flops)),
        LINES[1]: lambda flops: 0.7 * np.log(power(flops)) + 0.3 * np.polyval(last, np.log(flops)),
    }


# ----- priors -----


def learn_prior(tables, leave_out=None):
    """Prior from full sweeps: mean and spread over families, each family the mean of its sweeps."""
    wide = Prior(PUBLIC.mean, tuple(5 * v for v in PUBLIC.sd))
    found = defaultdict(list)
    for family, table in tables:
        same = leave_out is not None and family.startswith(leave_out)  # cpu leaves out cpu4096, too
        if same or family == "cs336":
            continue
        fit = fit_coupled(table.n, table.d, table.loss, table.c, family="coupled", prior=wide, resamples=0)
        level = np.average(np.log(table.loss), weights=fit.weights)
        found[family].append(fit.theta - level * np.array([1, 1, 0, 0, 1, 0]))
    means = np.array([np.mean(v, 0) for v in found.values()])
    return Prior(tuple(means.mean(0)), tuple(means.std(0, ddof=1)), f"{len(means)} families")


# ----- hold-outs -----


def budget_holdouts(table):
    """(runs fitted, run predicted, its compute over the largest fitted): from 3 budgets on, all higher ones."""
    groups = group_budgets(table.c, min_runs=1)
    for i in range(2, len(groups) - 1):
        fitted = np.sort(np.concatenate(groups[: i + 1]))
        for group in groups[i + 1 :]:
            ratio = table.c[group].mean() / table.c[groups[i]].mean()
            if len(fitted) >= 12 and 2**0.5 <= ratio <= 20 * 2**0.5:
                yield fitted, group[np.argmin(table.loss[group])], ratio


def on_grids(tables, priors):
    """{(sweep, method): [(nearest ratio, error of ln L or nan)]}."""
    out = defaultdict(list)
    for name, family, table in tables:
        held = {}
        for fitted, run, ratio in budget_holdouts(table):
            if len(fitted) not in held:
                arrays = (table.n[fitted], table.d[fitted], table.c[fitted], table.loss[fitted])
                held[len(fitted)] = surfaces(*arrays, priors[family]), lines(*arrays)
            near = min(RATIOS, key=lambda r: abs(np.log(r / ratio)))
            for method, law in held[len(fitted)][0].items():
                error = np.nan
                if law is not None:
                    error = np.log(table.loss[run] / law.loss(table.n[run], table.d[run]))
                out[name, method].append((near, float(error)))
            for method, line in held[len(fitted)][1].items():
                error = np.log(table.loss[run]) - line(table.c[run]) if line else np.nan
                out[name, method].append((near, float(error)))
    return out


def mean_error(pairs, ratio=None, where=None):
    """Mean absolute error in percent as text, and how many answered of how many."""
    errors = np.array([e for r, e in pairs if ratio in (None, r)])
    if where is not None:
        errors = errors[where]
    known = errors[np.isfinite(errors)]
    text = f"{100 * np.abs(known).mean():.2f}" if len(known) else "-"
    return text if len(known) == len(errors) else f"{text} ({len(known)} of {len(errors)})"


def grid_tables(errors, names):
    methods = (*LAWS, *LINES)
    pooled = {m: [pair for name in names for pair in errors[name, m]] for m in methods}
    rows = [[m, *(mean_error(pooled[m], r) for r in RATIOS)] for m in methods]
    count = [sum(r == near for near, _ in pooled["coupled"]) for r in RATIOS]
    print(f"\nMean absolute error of ln L, %; {sum(count)} hold-outs ({', '.join(map(str, count))})")
    print(text_table(["method", *(f"{r}x" for r in RATIOS)], rows))
    rows = []
    for m in methods:
        cells = []
        for ratio in RATIOS:
            every = np.array([[e for r, e in pooled[k] if r == ratio] for k in methods])
            cells.append(mean_error(pooled[m], ratio, np.isfinite(every).all(0)))
        rows.append([m, *cells])
    print("\nThe same, of the hold-outs for which every method answers")
    print(text_table(["method", *(f"{r}x" for r in RATIOS)], rows))
    rows = [[name, *(mean_error(errors[name, m]) for m in methods)] for name in names if errors[name, "coupled"]]
    print("\nBy sweep, all ratios")
    print(text_table(["sweep", *methods], rows))


def top_holdout(fit_table, top_table, prior):
    """Method -> mean absolute error in % (bias in %, and R2 of 3 or more runs) on the runs of top_table, as text."""
    out = {}
    for method, law in surfaces(fit_table.n, fit_table.d, fit_table.c, fit_table.loss, prior).items():
        out[method] = "refused"
        if law is not None:
            predicted = law.loss(top_table.n, top_table.d)
            error = 100 * np.log(top_table.loss / predicted)
            spread = ((top_table.loss - top_table.loss.mean()) ** 2).sum()
            out[method] = f"{np.abs(error).mean():.2f} ({error.mean():+.2f})"
            if len(top_table.n) > 2:
                r2 = 1 - ((top_table.loss - predicted) ** 2).sum() / spread
                out[method] = f"{np.abs(error).mean():.2f} ({error.mean():+.2f}, R2 {r2:.2f})"
    return out


def other_tables(tables, priors, study):
    rows = []
    for name, family, table in tables:
        for ratio in (1.7, 4, 10):
            low, top = table.c < table.c.max() / ratio, table.c >= table.c.max() / min(ratio, 2)
            if low.sum() < 12:
                continue
            found = top_holdout(table.select(low), table.select(top), priors[family])
            rows.append([f"{name}, top {ratio:g}x", f"{low.sum()}", f"{top.sum()}", *(found[m] for m in LAWS)])
    fitted, held = study
    for label, keep in (("3x", held.c < 1e14), ("10x", held.c > 1e14)):
        found = top_holdout(fitted, held.select(keep), priors["cpu"])
        rows.append([f"our study, {label}", f"{len(fitted.n)}", f"{keep.sum()}", *(found[m] for m in LAWS)])
    print("\nRuns at the top of sweeps without a grid: mean absolute error of ln L in % (bias, R2 of the loss)")
    print(text_table(["sweep", "fitted", "predicted", *LAWS], rows))


def forecast_row(fit_table, top_table, prior, resamples=1000):
    """Error, R2, runs inside pi95 and inside ci95, and median half-width of pi95 of fit.py's forecast, as numbers."""
    n, d, c, loss = fit_table.n, fit_table.d, fit_table.c, fit_table.loss
    isoflop = fit_isoflop(n, d, c, loss, resamples=resamples)
    coupled = fit_coupled(n, d, loss, c, prior=prior, resamples=resamples)
    rows = forecast_runs(isoflop, coupled, top_table, laws.cost_of(n, d, c), float(c.max()))
    predicted = np.array([row["loss"]["point"] for row in rows])
    ends = np.log([row["loss"]["pi95"] for row in rows])
    spread = ((top_table.loss - top_table.loss.mean()) ** 2).sum() or np.nan
    return {
        "runs": len(rows),
        "error": float(np.abs(np.log(top_table.loss / predicted)).mean()),
        "r2": 1 - float(((top_table.loss - predicted) ** 2).sum() / spread),
        "in_pi95": sum(row["in_pi95"] for row in rows),
        "in_ci95": sum(row["in_ci95"] for row in rows),
        "half": float(np.median(ends[:, 1] - ends[:, 0]) / 2),
    }


def forecast_table(tables, priors, study):
    """The forecast of every run above C_max / ratio from those below."""
    cases = []
    for name, family, table in tables:
        for ratio in (1.7, 4, 10):
            low = table.c < table.c.max() / ratio
            if low.sum() >= 12:
                cases.append((f"{name}, top {ratio:g}x", table.select(low), table.select(~low), priors[family]))
    fitted, held = study
    cases.append(("our study, 3x and 10x", fitted, held, priors["cpu"]))
    rows = []
    for label, below, above, prior in cases:
        found = forecast_row(below, above, prior)
        r2 = f"{found['r2']:.3f}" if found["runs"] > 2 else "-"
        row = [label, len(below.n), found["runs"], f"{100 * found['error']:.2f}", r2]
        rows.append(row + [found["in_pi95"], f"{100 * found['half']:.2f}", found["in_ci95"]])
    print("\nEvery run above that compute by the forecast: mean absolute error of ln L in %, runs inside pi95")
    head = ["sweep", "fitted", "predicted", "error", "R2", "in pi95", "half-width, %", "in ci95"]
    print(text_table(head, rows))


# ----- simulations -----


def simulated(count):
    """Error of ln L at 10x under Hoffmann's law, exactly true."""
    rows, worst, extra = [], -np.inf, []
    for name in ("hoffmann", "besiroglu", "muennighoff"):
        law = laws.PUBLISHED[name]
        for budgets, sizes in ((np.geomspace(1e17, 1e19, 5), 7), (np.geomspace(1e18, 1e21, 7), 9)):
            for noise in (0.002, 0.005, 0.01):
                errors = defaultdict(list)
                for seed in range(count):
                    n, d, c = laws.isoflop_grid(law, budgets, sizes)
                    loss = laws.simulate(law, n, d, noise, seed)
                    at = law.optimum(10 * c.max())
                    for method, fitted in surfaces(n, d, c, loss, True).items():
                        error = np.nan if fitted is None else np.log(fitted.loss(*at) / law.loss(*at))
                        errors[method].append((10, float(error)))
                grid = f"{len(budgets)} x {sizes}"
                rows.append([f"{name}, {grid}, noise {noise:.1%}", *(mean_error(errors[m]) for m in LAWS)])
                now = np.nanmean(np.abs([e for _, e in errors["Hoffmann as was"]]))
                extra.append(100 * (np.mean(np.abs([e for _, e in errors["coupled"]])) - now))
                worst = max(worst, extra[-1])
    print(f"\nSimulated under Hoffmann's law, {count} sweeps each: mean absolute error of ln L at 10x, %")
    print(text_table(["law, budgets x sizes", *LAWS], rows))
    print(f"coupled minus Hoffmann as was: mean {np.mean(extra):+.2f} points, worst {worst:+.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", default=str(ROOT.parent / "shared" / "reference"), help="folder of public runs")
    parser.add_argument("--simulations", type=int, default=8, help="simulated sweeps of each kind; 0 for none")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    folder = Path(args.reference)
    sets = {}
    for name, family, file in (*GRIDS, *OTHERS):
        drop = 5 if family == "chinchilla" else 0
        sets[name] = (family, runs.read([str(folder / file)], drop_top_loss=drop))
    c4 = runs.read([str(folder / "kempner_fineweb_edu.csv")], columns={"loss": "loss_c4_val"})
    study, held, small = (
        runs.read([str(ROOT / "results" / f"{k}.csv")]) for k in ("cpu", "cpu_heldout", "porian_4096")
    )
    learned_from = [*sets.values(), ("kempner", c4), ("cpu", study), ("cpu4096", small)]
    families = sorted({family for family, _ in learned_from})
    priors = {family: learn_prior(learned_from, family) for family in families}
    print("prior of all families: mean", np.round(learn_prior(learned_from).mean, 3), end=" ")
    print("sd", np.round(learn_prior(learned_from).sd, 3))
    grids = [(name, *sets[name]) for name, _, _ in GRIDS]
    grid_tables(on_grids(grids, priors), [name for name, _, _ in GRIDS if name != "cs336 (no noise)"])
    others = [(name, *sets[name]) for name, _, _ in OTHERS]
    other_tables(others, priors, (study, held))
    forecast_table(others, priors, (study, held))
    if args.simulations:
        simulated(args.simulations)


if __name__ == "__main__":
    main()

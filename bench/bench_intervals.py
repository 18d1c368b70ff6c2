"""
The forecast of fit/forecast.py against every budget held out of public isoFLOP sweeps: errors, coverage, scores.

    python bench/bench_intervals.py [--reference ../shared/reference] [--least 4] [--draws 100]

For every sweep and every number of its smallest budgets from --least on: fit those, forecast all larger ones (and runs
of 1e21 FLOPs where there are some), up to 30 times the largest compute fitted. The loss is held against the best run of
a budget, N_opt against the minimum of its curve when all of the sweep is fitted.

Then simulated sweeps (--draws of each kind) about laws that hold exactly: how often ci95 holds the truth at 10 C_max,
and the error of the forecast against that of the line E + k C^-g through local parabolas (the default of c635e57).
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(ROOT / "bench"))

import numpy as np  # noqa: E402
from bench_minima import KEMPNER, of_four_sizes, public_sweeps  # noqa: E402

from isoflop import laws  # noqa: E402
from isoflop.display import text_table  # noqa: E402
from isoflop.fit.coupled import fit_coupled  # noqa: E402
from isoflop.fit.forecast import HEAD_START, LossLine, forecast_isoflop, line_forecast, noise_of  # noqa: E402
from isoflop.fit.isoflop import expected_bias, fit_isoflop, hold_bias  # noqa: E402
from isoflop.fit.power_law import fit_power_law  # noqa: E402
from isoflop.fit.table import read  # noqa: E402

RESAMPLES = 400  # for ci95, which pi95 of N_opt holds
FURTHEST = 30.0  # times the largest compute fitted
DISTANCES = ((1, 3), (3, 6), (6, 13.5), (13.5, 30))
BEFORE = 0.0126  # half-width of pi95 over ln(C / C_max) + .5 that the issue proposed for the line
AHEAD, OWN_PRIOR = 4, 4.0
MISS = 0.05  # of pi95: how often it may miss
TRUE_LAWS = {
    "hoffmann": laws.PUBLISHED["hoffmann"],
    "besiroglu": laws.PUBLISHED["besiroglu"],
    "alpha .45, beta .25": laws.Law(1.8, 2400.0, 250.0, 0.45, 0.25),
    "alpha .25, beta .45": laws.Law(1.8, 80.0, 14000.0, 0.25, 0.45),
    "coupled, p = 2": laws.Law(1.7, 400.0, 900.0, 0.3, 0.3, p=2.0),
}
TRUE_GRIDS = {"centred": 1.0, "1.8x too large": 1.8}  # sizes over those about the optimum
TRUE_NOISES = (0.001, 0.002, 0.005)
AHEAD_OF_GRID = 10.0  # where the truth is held against the forecast, in C_max


def beyond_grid(reference):
    """{sweep: [(C, loss)]} of Kempner's runs far beyond their grids."""
    out = {}
    for file in KEMPNER:
        for column in ("loss", "loss_c4_val"):
            table = read([str(reference / file)], columns={"loss": column}, where=["is_extrapolation == 1"])
            key = f"kempner:{Path(file).stem}:{column}"
            out[key] = [(float(c), float(loss)) for c, loss in zip(table.c, table.loss, strict=True)]
    return out


def older_lines(known, c):
    """ln loss at c by E + k C^-g, and by .7 of that + .3 of the line in logs through the last three minima."""
    flops, loss = [v.flops for v in known], [v.loss for v in known]
    tail = np.polyval(np.polyfit(np.log(flops[-3:]), np.log(loss[-3:]), 1), np.log(c))
    law = fit_power_law(flops, loss)
    if law.g is None:
        law = fit_power_law(flops, loss, offset=False)
    if law.g is None:
        return tail, tail
    line = float(np.log(law(c)))
    return line, 0.7 * line + 0.3 * tail


def hold_outs(name, table, beyond=(), least=4):
    """One dict per budget forecast: family, sweep, distance, errors and half-widths of pi95 in ln loss and ln N_opt."""
    full = fit_isoflop(table.n, table.d, table.c, table.loss, resamples=0)
    budgets = of_four_sizes(full, table.n)
    rows = []
    for k in range(least, len(budgets) + 1):
        top = budgets[k - 1].flops
        edge = np.inf
        if k < len(budgets):
            edge = np.sqrt(top * budgets[k].flops)
        below = table.c < edge
        fit = fit_isoflop(*(v[below] for v in (table.n, table.d, table.c, table.loss)), resamples=RESAMPLES)
        known = [v for v in fit.budgets if v.status == "ok"]
        if len(known) < least or fit.a is None:
            continue
        targets = [(v.flops, float(table.loss[v.rows].min()), v.n_opt) for v in budgets[k:]]
        targets += [(c, loss, None) for c, loss in beyond]
        c_max = float(table.c[below].max())
        targets = [v for v in targets if v[0] < FURTHEST * c_max]
        if not targets:
            continue
        found, _ = forecast_isoflop(fit, [c for c, _, _ in targets], c_max)
        own = own_factor(known, fit)
        slope = LossLine([v.flops for v in known], [v.loss for v in known]).slope
        for forecast, (c, loss, n_opt) in zip(found, targets, strict=True):
            line, mixed = older_lines(known, c)
            row = {"family": name.partition(":")[0], "sweep": name, "distance": float(np.log(c / c_max))}
            row |= {
                "slope": slope,
                "own": own,
                "error": np.log(loss / forecast.loss.point),
                "half": _half(forecast.loss),
            }
            row |= {"line": np.log(loss) - line, "mixed": np.log(loss) - mixed, "error_n": np.nan, "half_n": np.nan}
            if n_opt is not None:
                power = np.log(n_opt / fit.optimum(c)[0])
                row |= {"error_n": np.log(n_opt / forecast.n_opt.point), "half_n": _half(forecast.n_opt)}
                row["power_n"] = power
            rows.append(row)
    return rows


def own_factor(known, fit):
    """
    How far a sweep's own back-tests would widen or narrow pi95: from 3 minima on, 1 to AHEAD budgets ahead.

    The root mean square of error over half-width; the population is worth OWN_PRIOR of them, and each counts half,
    since they share their runs.
    """
    columns = [np.array([getattr(v, k) for v in known]) for k in ("flops", "loss", "n_opt", "d_opt")]
    square = []
    for i in range(3, len(known)):
        ahead = slice(i, i + AHEAD)
        found = line_forecast(*(v[:i] for v in columns), columns[0][ahead], None, noise_of(fit))
        for forecast, loss in zip(found, columns[1][ahead], strict=True):
            square.append((1.96 * np.log(loss / forecast.loss.point) / _half(forecast.loss)) ** 2)
    return float(np.sqrt((OWN_PRIOR + 0.5 * np.sum(square)) / (OWN_PRIOR + 0.5 * len(square))))


def _half(quantity):
    return 0.5 * float(np.log(quantity.pi95[1] / quantity.pi95[0]))


def column(rows, key):
    return np.array([row.get(key, np.nan) for row in rows], float)


def interval_score(error, half):
    """Gneiting and Raftery 2007: width, and 2 / MISS for each unit beyond it."""
    return float(np.mean(2 * half + 2 / MISS * np.maximum(np.abs(error) - half, 0.0)))


def left_out(rows, error, shape):
    """Half-widths of each family: `shape` times the factor that holds 95% of all others' errors."""
    families = np.array([row["family"] for row in rows])
    half = np.zeros(len(rows))
    for family in np.unique(families):
        mine = families == family
        half[mine] = shape[mine] * np.quantile(np.abs(error[~mine]) / shape[~mine], 1 - MISS)
    return half


def error_table(rows):
    out, distance = [], column(rows, "distance")
    for low, high in DISTANCES:
        near = (distance >= np.log(low)) & (distance < np.log(high))
        some = [row for row, keep in zip(rows, near, strict=True) if keep]
        error, half, error_n = (column(some, k) for k in ("error", "half", "error_n"))
        line = [f"{low:g} to {high:g} C_max", len(some)]
        line += [f"{np.mean(np.abs(column(some, k))):.2%}" for k in ("line", "mixed", "error")]
        line += [f"{np.mean(np.abs(error) < half):.1%}", f"{np.median(half):.2%}"]
        has = np.isfinite(error_n)
        rmse = [np.sqrt(np.mean(column(some, k)[has] ** 2)) for k in ("power_n", "error_n")]
        half_n = column(some, "half_n")[has]
        covered = np.mean(np.abs(error_n[has]) < half_n)
        line += [f"{rmse[0]:.3f}", f"{rmse[1]:.3f}", f"{covered:.1%}", f"{np.median(half_n):.2f}"]
        out.append(line)
    head = ["distance", "n", "E + kC^-g", ".7/.3", "forecast", "in pi95", "half-width"]
    head += ["ln N*: power law", "forecast", "in pi95", "half-width"]
    return text_table(head, out)


def coverage_table(rows):
    out = []
    for family in sorted({row["family"] for row in rows}) + ["all"]:
        some = [row for row in rows if family in (row["family"], "all")]
        error, half, error_n, half_n = (column(some, k) for k in ("error", "half", "error_n", "half_n"))
        has = np.isfinite(error_n)
        line = [family, len(some), f"{np.mean(np.abs(error)):.2%}", f"{np.mean(np.abs(error) < half):.1%}"]
        line += [f"{np.median(half):.2%}", int(has.sum()), f"{np.mean(np.abs(error_n[has]) < half_n[has]):.1%}"]
        out.append(line)
    return text_table(["family", "n", "mean error", "loss in pi95", "half-width", "n", "N* in pi95"], out)


def left_out_table(rows):
    """Shapes of pi95 with the factor from the other families: coverage, interval score; and the forecast's as it is."""
    distance, error = column(rows, "distance") + HEAD_START, column(rows, "error")
    shapes = {"forecast": column(rows, "half"), "slope x distance": column(rows, "slope") * distance}
    shapes["distance alone"] = distance
    shapes["forecast x own back-tests"] = column(rows, "half") * column(rows, "own")
    out = []
    for name, shape in shapes.items():
        half = left_out(rows, error, shape)
        out.append([name, f"{np.mean(np.abs(error) < half):.1%}", f"{100 * interval_score(error, half):.2f}"])
    half, mixed = BEFORE * distance, column(rows, "mixed")
    out.append([".7/.3, .0126 x distance, as it is", f"{np.mean(np.abs(mixed) < half):.1%}"])
    out[-1].append(f"{100 * interval_score(mixed, half):.2f}")
    half = left_out(rows, mixed, distance)
    out.append([".7/.3, distance alone", f"{np.mean(np.abs(mixed) < half):.1%}"])
    out[-1].append(f"{100 * interval_score(mixed, half):.2f}")
    some = [row for row in rows if np.isfinite(row["error_n"])]
    error_n, half_n = column(some, "error_n"), column(some, "half_n")
    half = left_out(some, error_n, half_n)
    out.append(["N*: forecast", f"{np.mean(np.abs(error_n) < half):.1%}", f"{interval_score(error_n, half):.3f}"])
    half = left_out(some, error_n, np.ones(len(some)))
    out.append(["N*: constant", f"{np.mean(np.abs(error_n) < half):.1%}", f"{interval_score(error_n, half):.3f}"])
    return text_table(["factor from the other families", "covered", "score (loss: in %)"], out)


def all_hold_outs(reference, least=4):
    beyond = beyond_grid(reference)
    rows = []
    for name, table in public_sweeps(reference).items():
        rows += hold_outs(name, table, beyond.get(name, ()), least)
    return rows


# ----- sweeps about a law that holds exactly -----


def under_a_law(law, shift, noise, seed, resamples=RESAMPLES):
    """One sweep of 5 budgets x 7 sizes: what ci95 holds, errors of ln L at AHEAD_OF_GRID; None without intervals."""
    n, _, c = laws.isoflop_grid(law, np.geomspace(1e18, 1e20, 5), 7)
    n = shift * n
    d = c / 6 / n
    loss = laws.simulate(law, n, d, noise, seed)
    fit = fit_isoflop(n, d, c, loss, resamples=resamples, seed=seed)
    if "a" not in fit.draws:
        return None
    surface = fit_coupled(n, d, loss, c, resamples=0).law
    at = AHEAD_OF_GRID * c.max()
    fit = hold_bias(fit, expected_bias(fit, surface, n, d, c, others=()))
    (row,), _ = forecast_isoflop(fit, [at], c.max())
    least, best, (a, _) = law.frontier_loss(at), law.optimum(at)[0], law.exponents()
    a_low, a_high = np.percentile(fit.draws["a"], (2.5, 97.5))
    low, high = row.loss.ci95
    before = [v for v in fit_isoflop(n, d, c, loss, how="local", resamples=0).budgets if v.status == "ok"]
    power = fit_power_law([v.flops for v in before], [v.loss for v in before])
    return {
        "loss": low <= least <= high,
        "N*": row.n_opt.ci95[0] <= best <= row.n_opt.ci95[1],
        "a": a_low <= a <= a_high,
        "half": 0.5 * np.log(high / low),
        "error": np.log(row.loss.point / least),
        "line": np.nan if power.g is None else np.log(power(at) / least),
        "surface": np.log(surface.frontier_loss(at) / least),
    }


def true_law_rows(draws, noises=TRUE_NOISES, grids=tuple(TRUE_GRIDS)):
    """One dict per sweep: law, grid, noise, and under_a_law()."""
    rows = []
    for name, law in TRUE_LAWS.items():
        for grid in grids:
            for noise in noises:
                for seed in range(draws):
                    found = under_a_law(law, TRUE_GRIDS[grid], noise, seed)
                    if found is not None:
                        rows.append({"law": name, "grid": grid, "noise": noise, **found})
    return rows


def true_law_table(rows):
    out, kinds = [], dict.fromkeys((row["law"], row["grid"], row["noise"]) for row in rows)
    for kind in [*kinds, "all"]:
        some = [row for row in rows if kind in ((row["law"], row["grid"], row["noise"]), "all")]
        label = ["all", "", ""] if kind == "all" else [*kind[:2], f"{kind[2]:.1%}"]
        line = [*label, len(some), *(f"{np.mean(column(some, k)):.0%}" for k in ("loss", "N*", "a"))]
        error, before = np.abs(column(some, "error")), np.abs(column(some, "line"))
        line += [f"{np.median(column(some, 'half')):.2%}", f"{100 * np.mean(column(some, 'error')):+.2f}%"]
        both = np.isfinite(before)
        line += [f"{np.mean(error):.2%}", f"{np.mean(np.abs(column(some, 'surface'))):.2%}"]
        line += [f"{np.mean(before[both]):.2%}", f"{100 * np.mean(error[both] - before[both]):+.2f}"]
        line.append(f"{100 * np.quantile(error[both] - before[both], 0.95):+.2f}")
        out.append(line)
    head = ["law, exactly true", "sizes", "noise", "n", "loss in ci95", "N*", "a", "half-width", "bias", "mean error"]
    head += ["surface", "E + kC^-g", "points lost", "by 1 in 20"]
    return text_table(head, out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, default=ROOT.parent / "shared" / "reference")
    parser.add_argument("--least", type=int, default=4, help="minima that a fit needs")
    parser.add_argument("--draws", type=int, default=100, help="simulated sweeps of each kind; 0 for none")
    args = parser.parse_args()
    if not args.reference.is_dir():
        sys.exit(f"bench_intervals.py: error: --reference {args.reference}: no such folder; name the reference data's")
    rows = all_hold_outs(args.reference, args.least)
    print(f"{error_table(rows)}\n\n{coverage_table(rows)}\n\n{left_out_table(rows)}")
    if args.draws:
        print(
            f"\nSimulated, 5 budgets x 7 sizes, at {AHEAD_OF_GRID:g} C_max\n{true_law_table(true_law_rows(args.draws))}"
        )


if __name__ == "__main__":
    main()

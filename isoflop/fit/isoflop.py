"""
Approach 2 of Hoffmann et al. 2022, isoFLOP: the best N of every compute budget, then power laws in logs.

N_opt = k C^a and D_opt = k' C^b, without a law of N and D. A minimum at the smallest or largest size of its budget is
none: such budgets are named and left out.

    >>> fit = fit_isoflop(n, d, c, loss)
    >>> fit.a, fit.optimum(1e21)
"""

from dataclasses import dataclass, field, replace

import numpy as np

from isoflop.fit.huber import PERCENTILES, RESAMPLES, Refusal, resample_budget, resample_counts
from isoflop.fit.minima import METHODS, MIN_SIZES, STATUS, Minima, curve_minima
from isoflop.laws import SIX_ND
from isoflop.options import UserError

BUDGET_TOL = 0.1  # runs within this of a common C (as a ratio, either side) share a budget
MAX_BUDGETS = 200
MANY_ROWS = 2000  # of one budget: beyond it resampling runs is replaced by its normal limit
MAX_SIZES = 200  # of one budget: beyond it sizes are rounded together
AKIMA_RESAMPLES = 200  # scipy interpolates one resample at a time
MAX_LOST = 0.25  # share of resamples without a line, above which there is no interval


@dataclass(frozen=True)
class Budget:
    """One isoFLOP curve. n_opt, d_opt, loss are None unless status is ok."""

    flops: float
    n_runs: int
    status: str  # ok | edge | concave | extrapolated | too_few_sizes
    n_opt: float | None = None
    d_opt: float | None = None
    loss: float | None = None
    method: str = ""
    rows: np.ndarray | None = None  # indices of its runs
    ci: dict = field(default_factory=dict)  # n_opt, d_opt, loss -> (low, high)


@dataclass(frozen=True)
class IsoflopFit:
    """N_opt = exp(ln_k_n) C**a, D_opt = exp(ln_k_d) C**b over the budgets whose minimum lies inside."""

    budgets: tuple = ()
    a: float | None = None
    ln_k_n: float | None = None
    b: float | None = None
    ln_k_d: float | None = None
    scatter: float | None = None  # sd of ln N_opt about its line
    draws: dict = field(default_factory=dict)  # a, ln_k_n, b, ln_k_d (B,); loss (B, budgets ok)
    all_points: dict = field(default_factory=dict)  # the parabola over all sizes: a, b, ln_k_n, ln_k_d, n_opt
    lowest_runs: dict = field(default_factory=dict)  # the lowest run of every budget as its optimum: same keys
    lost: float = 0.0  # share of resamples without a line
    refusals: tuple = ()
    warnings: tuple = ()

    def optimum(self, c):
        """N_opt and D_opt at compute c (FLOPs), from the two lines."""
        ln_c = np.log(np.asarray(c, float))
        return np.exp(self.ln_k_n + self.a * ln_c), np.exp(self.ln_k_d + self.b * ln_c)


# ----- runs of one budget -----


def group_budgets(c, tol=BUDGET_TOL, min_runs=3):
    """
    Rows that share a budget, by the densest windows of ln C (never by equality: budgets are met to within a step).

    Parameters
    ----------
    c : (R,) array
        FLOPs of each run (or the requested budget).
    tol : float
        Half-width of a window in ln C.

    Returns
    -------
    list of index arrays, by rising C; rows in no window belong to no budget.
    """
    x = np.log(np.asarray(c, float))
    bins, place = np.unique(np.round(x, 4), return_inverse=True)  # compressed, so that a million rows cost nothing
    counts = np.bincount(place).astype(float)
    groups = []
    while len(groups) < MAX_BUDGETS:
        cumulative = np.r_[0.0, np.cumsum(counts)]
        end = np.searchsorted(bins, bins + 2 * tol + 1e-9, side="right")
        inside = cumulative[end] - cumulative[:-1]
        i = int(np.argmax(inside))
        if inside[i] < min_runs:
            break
        take = np.zeros(len(bins), bool)
        take[i : end[i]] = True
        groups.append(np.flatnonzero(take[place] & (counts[place] > 0)))
        counts[i : end[i]] = 0.0
    return sorted(groups, key=lambda rows: x[rows].mean())


@dataclass(frozen=True)
class Curve:
    """The R runs of one budget, collapsed to S distinct sizes. Differences in C are removed along N ~ C**0.5."""

    rows: np.ndarray  # (R,) indices
    ln_c: float  # mean over the runs
    off: np.ndarray  # (R,) ln C of each run minus ln_c
    ln_n: np.ndarray  # (S,) rising
    ln_d: np.ndarray  # (S,)
    size: np.ndarray  # (R,) index of each run's size

    @classmethod
    def of(cls, n, d, c, rows):
        ln_c = np.log(c[rows])
        off = ln_c - ln_c.mean()
        off = np.where(np.abs(off) < 1e-6, 0.0, off)
        ln_n = np.log(n[rows]) - 0.5 * off  # the minimum moves so, to first order
        finest = 3 if np.ptp(off) > 0 else 6
        for decimals in (finest, 2, 1):
            values, size = np.unique(np.round(ln_n, decimals), return_inverse=True)
            if len(values) <= MAX_SIZES:
                break
        count = np.bincount(size)
        x = np.bincount(size, ln_n) / count
        ln_d = np.bincount(size, np.log(d[rows]) - 0.5 * off) / count
        return cls(rows, ln_c.mean(), off, x, ln_d, size)

    def tokens(self, ln_n):
        """ln D at ln N, read along the budget's own runs."""
        return np.interp(ln_n, self.ln_n, self.ln_d)

    def mean_losses(self, loss):
        """Mean loss of each size (1, S), and how many runs it has (1, S). loss (R,)."""
        count = np.bincount(self.size).astype(float)
        return (np.bincount(self.size, loss) / count)[None], count[None]

    def resampled_losses(self, loss, resamples, rng):
        """mean_losses() of B resamples of the runs: (B, S) each. Of many runs the means are drawn as normals."""
        (mean,), (count,) = self.mean_losses(loss)
        n_sizes = len(mean)
        if len(loss) > MANY_ROWS:
            spread = np.bincount(self.size, (loss - mean[self.size]) ** 2, n_sizes) / np.maximum(count - 1, 1)
            spread = np.where(count > 1, spread, (count * spread).sum() / count.sum())
            mean = mean + np.sqrt(spread / count) * rng.standard_normal((resamples, n_sizes))
            return mean, np.broadcast_to(count, mean.shape)
        onto = np.zeros((len(loss), n_sizes))
        onto[np.arange(len(loss)), self.size] = 1.0
        times = resample_counts(rng, len(loss), resamples)
        count = times @ onto
        with np.errstate(invalid="ignore", divide="ignore"):
            return np.where(count > 0, (times * loss) @ onto / count, loss.mean()), count


def _at_common_compute(curves, loss):
    """
    The losses of each curve's runs as if every run had its budget's mean C: a list of (R,) arrays.

    The slope of loss in ln C is that of a parabola (a line through two) through the lowest loss of each budget, never
    upwards. A slope fitted within budgets would take a curve that is no parabola for an effect of C, a hundred times
    the real one where budgets are met to within a step. One budget alone gives none.
    """
    own = [loss[curve.rows] for curve in curves]
    widest = max(np.abs(curve.off).max() for curve in curves)
    if widest == 0 or len(curves) < 2:
        return own
    ln_c = np.array([curve.ln_c for curve in curves])
    lowest = [values.min() for values in own]
    trend = np.polyfit(ln_c - ln_c.mean(), lowest, min(2, len(lowest) - 1))
    slopes = np.minimum(0.0, np.polyval(np.polyder(trend), ln_c - ln_c.mean()))
    return [values - curve.off * slope for values, curve, slope in zip(own, curves, slopes, strict=True)]


def _optima(curves, loss, method, resamples=0, rng=None):
    """
    Minima and ln D_opt of G curves, (B, G) each: of the runs themselves (B = 1), or of resamples within each budget.

    ln D_opt is nonsense where the minimum is not ok.
    """
    found, ln_d = [], []
    for curve, own in zip(curves, _at_common_compute(curves, loss), strict=True):
        if resamples:
            mean, runs = curve.resampled_losses(own, resamples, rng)
        else:
            mean, runs = curve.mean_losses(own)
        minima = curve_minima(curve.ln_n, mean, runs, method)
        found.append(minima)
        ln_d.append(curve.tokens(np.where(np.isfinite(minima.ln_n), minima.ln_n, 0.0)))
    columns = [np.stack([getattr(m, k) for m in found], 1) for k in ("ln_n", "loss", "status")]
    return Minima(*columns), np.stack(ln_d, 1)


# ----- the fit -----


def fit_isoflop(n, d, c, loss, budget=None, tol=BUDGET_TOL, how="local", resamples=RESAMPLES, seed=0):
    """
    Approach 2 of Hoffmann et al. 2022: the loss-minimising N of every budget, then power laws in logs.

    Parameters
    ----------
    n, d, c, loss : (R,) arrays
        Parameters, tokens, FLOPs spent, loss in nats.
    budget : (R,) array, optional
        FLOPs requested; groups runs better than what was spent.
    tol : float
        Half-width of a budget in ln C.
    how : {"local", "akima", "parabola"}
        Parabola of the loss in ln N through the sizes near the minimum (weights 1 / (1 + (rise / LOCAL_RISE)^2)),
        Akima's interpolant of ln loss in ln N, or a parabola through all sizes alike.
    resamples : int
        Bootstrap: runs are resampled within their budget; scatter of the optima about the line that within-budget noise
        does not explain is added to every draw.

    Returns
    -------
    IsoflopFit
        Budgets whose lowest run is the smallest or largest size ("edge"), that open downwards ("concave") or whose
        vertex is outside the sizes ("extrapolated") are named and take no part in the power laws. D_opt is read from
        the budget's own runs, not from C / 6N.

    Raises
    ------
    UserError
        `how` is none of the three.
    """
    if how not in METHODS:
        raise UserError(f"--isoflop_method {how} is not known; use one of {', '.join(METHODS)}")
    n, d, c, loss = (np.asarray(v, float) for v in (n, d, c, loss))
    curves, too_small = _split(n, d, c, budget, tol)
    if not curves:
        why = f"no budget has {MIN_SIZES} or more model sizes (runs within {tol:.0%} of one C); add sizes per budget"
        return IsoflopFit(tuple(too_small), refusals=(Refusal("isoflop", "no_budgets", why),))
    minima, ln_d = _optima(curves, loss, how)
    drawn, rng = None, np.random.default_rng(seed)
    if how == "akima":
        resamples = min(resamples, AKIMA_RESAMPLES)
    else:
        resamples = resample_budget(min(len(n), MANY_ROWS), resamples)
    if resamples:
        drawn = _optima(curves, loss, how, resamples, rng)
    budgets = _budgets(curves, minima, ln_d, drawn, how) + too_small
    fit = IsoflopFit(tuple(sorted(budgets, key=lambda v: v.flops)))
    fit = _with_lines(replace(fit, warnings=_left_out(fit.budgets)), curves, minima, ln_d)
    if fit.a is None:
        return fit
    fit = _with_draws(fit, curves, minima, drawn, rng)
    return replace(fit, all_points=_all_points(curves, loss), lowest_runs=_lowest_runs(curves, n, d, loss, minima.ok))


def _split(n, d, c, budget, tol):
    """The curves of the budgets with MIN_SIZES sizes or more, and the other budgets as a list of Budget."""
    curves, too_small = [], []
    for rows in group_budgets(c if budget is None else budget, tol):
        n_sizes = (np.diff(np.sort(np.log(n[rows]))) > 1e-3).sum() + 1
        if n_sizes < MIN_SIZES:
            flops = float(np.exp(np.log(c[rows]).mean()))
            too_small.append(Budget(flops, len(rows), "too_few_sizes", rows=rows))
        else:
            curves.append(Curve.of(n, d, c, rows))
    return curves, too_small


def _budgets(curves, minima, ln_d, drawn, method):
    """One Budget per curve, with percentile intervals where more than half of the resamples have a minimum."""
    budgets = []
    for g, curve in enumerate(curves):
        flops, status = float(np.exp(curve.ln_c)), STATUS[minima.status[0, g]]
        if status != "ok":
            budgets.append(Budget(flops, len(curve.rows), status, method=method, rows=curve.rows))
            continue
        n_opt, d_opt = float(np.exp(minima.ln_n[0, g])), float(np.exp(ln_d[0, g]))
        ci = {}
        if drawn is not None:
            draws, drawn_ln_d = drawn
            inside = draws.ok[:, g]
            if inside.mean() > 0.5:
                ci["n_opt"] = np.exp(np.percentile(draws.ln_n[inside, g], PERCENTILES))
                ci["d_opt"] = np.exp(np.percentile(drawn_ln_d[inside, g], PERCENTILES))
                ci["loss"] = np.percentile(draws.loss[inside, g], PERCENTILES)
        loss = float(minima.loss[0, g])
        budgets.append(Budget(flops, len(curve.rows), status, n_opt, d_opt, loss, method, curve.rows, ci))
    return budgets


def _left_out(budgets):
    """The warning that names the budgets without a minimum, as a tuple; empty without such."""
    names = [f"{v.flops:.3g} ({v.status})" for v in budgets if v.status != "ok"]
    if not names:
        return ()
    return (Refusal("isoflop", "budgets_left_out", f"left out of the power laws: {', '.join(names)}"),)


def _with_lines(fit, curves, minima, ln_d):
    """The fit with its two power laws and the scatter about them, or with the reason why there are none."""
    n_ok = int(minima.ok.sum())
    if n_ok < 2:
        code, what, add = "one_budget", "only one budget has", "budgets"
        if n_ok == 0:
            code, what = "no_interior_minimum", "no budget has"
        if fit.warnings:
            add = "sizes on the open side"
        why = f"{what} its minimum inside the sizes tried; add {add}"
        return replace(fit, refusals=(Refusal("isoflop", code, why),))
    ln_c = np.array([curve.ln_c for curve in curves])
    (a,), (ln_k_n,), _ = _lines(ln_c, minima.ln_n, minima.ok)
    (b,), (ln_k_d,), _ = _lines(ln_c, ln_d, minima.ok)
    if not 0 < a < 1:
        why = "N_opt does not rise with C between 0 and 1 in logs: the optima are noise; add sizes, seeds or budgets"
        return replace(fit, refusals=(Refusal("isoflop", "runaway_exponent", why),))
    rest = (minima.ln_n - ln_k_n - a * ln_c)[minima.ok]
    scatter = float(np.sqrt((rest**2).sum() / max(n_ok - 2, 1)))
    return replace(fit, a=float(a), ln_k_n=float(ln_k_n), b=float(b), ln_k_d=float(ln_k_d), scatter=scatter)


def _with_draws(fit, curves, minima, drawn, rng):
    """The fit with the lines of all resamples, or with the reason why there is no interval."""
    if minima.ok.sum() == 2:
        why = "two budgets fix a line exactly and say nothing of its error; add a third budget for an interval"
        return replace(fit, refusals=(Refusal("isoflop.interval", "two_budgets", why),))
    if drawn is None:
        return fit
    ln_c = np.array([curve.ln_c for curve in curves])
    draws, lost = _draw_lines(ln_c, *drawn, minima.ok[0], fit.scatter, rng)
    if lost > MAX_LOST:
        why = f"{lost:.0%} of the resamples have fewer than two interior minima; add sizes or seeds"
        return replace(fit, lost=lost, refusals=(Refusal("isoflop.interval", "unstable_resamples", why),))
    return replace(fit, draws=draws, lost=lost)


def _draw_lines(ln_c, draws, ln_d, ok, scatter, rng):
    """
    Lines through the minima of every resample: ({a, ln_k_n, b, ln_k_d (B,), loss (B, budgets ok)}, share lost).

    Scatter of the optima about their line beyond what resampling shows is added to each draw, as misfit of the line.
    """
    inside = draws.ok & ok
    within = np.zeros(len(ln_c))
    for g in range(len(ln_c)):
        if inside[:, g].sum() > 1:
            within[g] = np.var(draws.ln_n[inside[:, g], g])
    excess = np.sqrt(max(0.0, scatter**2 - float(np.mean(within[ok]))))
    extra = excess * rng.standard_normal(draws.ln_n.shape)
    a, ln_k_n, count = _lines(ln_c, draws.ln_n + extra, inside)
    b, ln_k_d, _ = _lines(ln_c, ln_d - extra, inside)
    sound = (count >= 2) & np.isfinite(a) & np.isfinite(b)
    out = {"a": a[sound], "ln_k_n": ln_k_n[sound], "b": b[sound], "ln_k_d": ln_k_d[sound]}
    out["loss"] = np.where(inside, draws.loss, np.nan)[sound][:, ok]
    return out, float(1 - sound.mean())


def _lines(ln_c, y, ok):
    """Straight lines y ~ ln_c over ok, for B resamples: slope, intercept, how many points. y, ok (B, G)."""
    m = ok.astype(float)
    count = m.sum(1)
    y = np.where(ok, y, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        cx, cy = (m @ ln_c) / count, y.sum(1) / count
        dx = ln_c - cx[:, None]
        slope = (m * dx * (y - cy[:, None])).sum(1) / (m * dx**2).sum(1)
    return slope, cy - slope * cx, count


# ----- beside it: the rules of other papers -----


def _all_points(curves, loss):
    """The parabola through all sizes of every budget, as Hoffmann et al. did it: a, b, intercepts and optima."""
    minima, ln_d = _optima(curves, loss, "parabola")
    return _plain_lines(curves, minima.ln_n, ln_d, minima.ok)


def _lowest_runs(curves, n, d, loss, ok):
    """The lowest run of every budget taken for its optimum: simple, and tied to the grid of sizes."""
    at = [curve.rows[np.argmin(loss[curve.rows])] for curve in curves]
    return _plain_lines(curves, np.log(n[at])[None], np.log(d[at])[None], ok)


def _plain_lines(curves, ln_n, ln_d, ok):
    if ok.sum() < 2:
        return {}
    ln_c = np.array([curve.ln_c for curve in curves])
    a, ln_k_n, _ = _lines(ln_c, ln_n, ok)
    b, ln_k_d, _ = _lines(ln_c, ln_d, ok)
    n_opt = [float(np.exp(v)) if good else None for v, good in zip(ln_n[0], ok[0], strict=True)]
    out = {"a": float(a[0]), "b": float(b[0]), "ln_k_n": float(ln_k_n[0]), "ln_k_d": float(ln_k_d[0])}
    return out | {"n_opt": n_opt}


def parabola_bias(fit, law, n, d, c, cost=SIX_ND):
    """
    What the isoFLOP fits would answer on these very runs if `law` were exact and there were no noise.

    The isoFLOP curve of a sum of two exponentials in ln N is not a parabola; sampled unevenly about its minimum, the
    vertex moves (arXiv 2603.22339). Refits noise-free losses of the law at the runs of every budget.

    Returns
    -------
    dict, or None with fewer than two budgets
        surface_a, local_a, parabola_a, local_bias_a, parabola_bias_a, and local_n_ratio / parabola_n_ratio, the factor
        on N_opt at the largest budget.
    """
    groups = [v.rows for v in fit.budgets if v.status == "ok"]
    if len(groups) < 2:
        return None
    truth, _ = law.exponents(cost)
    clean = law.loss(n, d)
    curves = [Curve.of(n, d, c, rows) for rows in groups]
    ln_c = np.array([curve.ln_c for curve in curves])
    top = ln_c.max()
    exact = np.log(law.optimum(np.exp(top), cost)[0])
    out = {"surface_a": float(truth)}
    for method in ("local", "parabola"):
        minima, _ = _optima(curves, clean, method)
        if minima.ok.sum() < 2:
            continue
        a, ln_k_n, _ = _lines(ln_c, minima.ln_n, minima.ok)
        out |= {f"{method}_a": float(a[0]), f"{method}_bias_a": float(a[0] - truth)}
        out[f"{method}_n_ratio"] = float(np.exp(ln_k_n[0] + a[0] * top - exact))
    return out

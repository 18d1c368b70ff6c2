"""
Approach 2 of Hoffmann et al. 2022, isoFLOP: the best N of every compute budget, then power laws in logs.

N_opt = k C^a and D_opt = k' C^b, without a law of N and D. A minimum at the smallest or largest size of its budget is
none: such budgets are named and left out.

    >>> fit = fit_isoflop(n, d, c, loss)
    >>> fit.a, fit.optimum(1e21)
"""

from dataclasses import dataclass, field, replace

import numpy as np

from isoflop.fit.budgets import BUDGET_TOL, MANY_ROWS, BudgetRuns, at_common_compute, group_budgets
from isoflop.fit.huber import PERCENTILES, RESAMPLES, Refusal, resample_budget
from isoflop.fit.minima import (
    EDGE,
    EXACT_SIZES,
    METHODS,
    MIN_SIZES,
    STATUS,
    Curve,
    Minima,
    PooledFit,
    curve_minima,
    fit_pooled,
)
from isoflop.laws import SIX_ND
from isoflop.options import UserError

EXACT_SPAN = 2.0  # factor from the smallest to the largest of three sizes, below which their parabola is noise
AKIMA_RESAMPLES = 200  # scipy interpolates one resample at a time
POOLED = ("ok", "extrapolated")  # status of the budgets that fit_pooled was given
MIN_CURVATURE = 4  # budgets
MIN_DRAWS = 100
MAX_LOST = 0.25  # share of resamples without a line, above which there is no interval


@dataclass(frozen=True)
class Budget:
    """One isoFLOP curve. n_opt, d_opt, loss are None unless status is ok or exact."""

    flops: float
    n_runs: int
    status: str  # ok | edge | concave | extrapolated | too_few_sizes | exact, the parabola through three sizes
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
    curvature: dict = field(default_factory=dict)  # see _curvature
    draws: dict = field(default_factory=dict)  # a, ln_k_n, b, ln_k_d (B,); loss (B, budgets ok)
    all_points: dict = field(default_factory=dict)  # the parabola over all sizes: a, b, ln_k_n, ln_k_d, n_opt
    lowest_runs: dict = field(default_factory=dict)  # the lowest run of every budget as its optimum: same keys
    exact_line: dict = field(default_factory=dict)  # without `a`: through all minima, those of three sizes, too
    lost: float = 0.0  # share of resamples without a line
    bias_held: dict = field(default_factory=dict)  # what hold_bias() put into the draws: a, n_ratio at `flops`
    pooled: PooledFit | None = None  # of the budgets "ok" and "extrapolated", by rising C; method "pooled" only
    refusals: tuple = ()
    warnings: tuple = ()

    def smooth_curves(self):
        """{FLOPs of a budget: (N, loss) along the smooth curve that its minimum is of}; empty but for "pooled"."""
        if self.pooled is None:
            return {}
        inside = [budget for budget in self.budgets if budget.status in POOLED]
        return {budget.flops: tuple(np.exp(self.pooled.curve(g))) for g, budget in enumerate(inside)}

    def optimum(self, c):
        """N_opt and D_opt at compute c (FLOPs), from the two lines."""
        ln_c = np.log(np.asarray(c, float))
        return np.exp(self.ln_k_n + self.a * ln_c), np.exp(self.ln_k_d + self.b * ln_c)


# ----- minima of all budgets -----


def _optima(curves, loss, method, resamples=0, rng=None):
    """Minima of G curves, (B, G): of the runs themselves (B = 1), or of resamples within each budget."""
    found = []
    for curve, own in zip(curves, at_common_compute(curves, loss), strict=True):
        if resamples:
            mean, runs = curve.resampled_losses(own, resamples, rng)
        else:
            mean, runs = curve.mean_losses(own)
        found.append(curve_minima(curve.ln_n, mean, runs, method))
    return Minima(*(np.stack([getattr(m, k) for m in found], 1) for k in ("ln_n", "loss", "status")))


def _pooled_optima(curves, loss, resamples, rng):
    """
    By fit_pooled, over the curves whose lowest run is inside: Minima of the runs, of draws or None, and the PooledFit.

    Draws add noise to the runs instead of resampling them: a budget has too few to spare any.
    """
    n_curves, smooth = len(curves), []
    inside = np.full(n_curves, False)
    for g, (curve, own) in enumerate(zip(curves, at_common_compute(curves, loss), strict=True)):
        (mean,), (runs,) = curve.mean_losses(own)
        if 0 < np.argmin(mean) < len(mean) - 1:
            inside[g] = True
            smooth.append(Curve(curve.ln_c, curve.ln_n, np.log(mean), runs))

    def spread_out(found, draws):
        ln_n, value = np.full((draws, n_curves), np.nan), np.full((draws, n_curves), np.nan)
        status = np.full((draws, n_curves), EDGE)
        ln_n[:, inside], value[:, inside], status[:, inside] = found.ln_n, found.loss, found.status
        return Minima(ln_n, value, status)

    if not smooth:
        nowhere = Minima(*(np.zeros((1, 0)),) * 3)
        return spread_out(nowhere, 1), None, None
    pooled, drawn = fit_pooled(smooth), None
    if resamples:
        drawn = spread_out(pooled.draw(resamples, rng), resamples)
    return spread_out(pooled.minima(), 1), drawn, pooled


def _tokens(curves, ln_n):
    """ln D at minima (B, G), read along each budget's own runs; nonsense where there is no minimum."""
    ln_n = np.where(np.isfinite(ln_n), ln_n, 0.0)
    return np.stack([curve.tokens(ln_n[:, g]) for g, curve in enumerate(curves)], 1)


# ----- the fit -----


def fit_isoflop(n, d, c, loss, budget=None, tol=BUDGET_TOL, how="pooled", resamples=RESAMPLES, seed=0, others=True):
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
    how : {"pooled", "local", "akima", "parabola"}
        The mean of three smooth curves chosen over all budgets (minima.fit_pooled), a parabola of the loss in ln N
        through the sizes near the minimum (weights 1 / (1 + (rise / LOCAL_RISE)^2)), Akima's interpolant of ln loss in
        ln N, or a parabola through all sizes alike.
    resamples : int
        Bootstrap: noise is added to the runs ("pooled"), or they are resampled within their budget; scatter of the
        optima about the line that within-budget noise does not explain is added to every draw.
    others : bool
        False leaves out all_points and lowest_runs.

    Returns
    -------
    IsoflopFit
        Budgets whose lowest run is the smallest or largest size ("edge"), that open downwards ("concave") or whose
        vertex is outside the sizes ("extrapolated") are named and take no part in the power laws. Neither do those of
        three sizes ("exact"): nothing is left to tell their error by; `exact_line` goes through them, too. D_opt is
        read from the budget's own runs, not from C / 6N.

    Raises
    ------
    UserError
        `how` is none of the four.
    """
    if how not in METHODS:
        raise UserError(f"--isoflop_method {how} is not known; use one of {', '.join(METHODS)}")
    n, d, c, loss = (np.asarray(v, float) for v in (n, d, c, loss))
    curves, small = _split(n, d, c, budget, tol, loss)
    if not curves:
        return IsoflopFit(tuple(small), exact_line=_exact_line(small), refusals=(_no_budgets(small, tol),))
    minima, drawn, pooled, rng = _point_and_draws(curves, loss, how, resamples, seed)
    budgets = sorted(_budgets(curves, minima, drawn, how) + small, key=lambda v: v.flops)
    fit = IsoflopFit(tuple(budgets), pooled=pooled)
    fit = _with_lines(replace(fit, warnings=_left_out(fit.budgets)), curves, minima)
    if drawn is not None:
        fit = replace(fit, warnings=fit.warnings + _without_interval(fit.budgets))
    if pooled is not None and pooled.outliers:
        fit = replace(fit, warnings=fit.warnings + _named_outliers(fit))
    if fit.a is None:
        return replace(fit, exact_line=_exact_line(fit.budgets))
    fit = _with_draws(fit, curves, minima, drawn, rng)
    if not others:
        return fit
    return replace(fit, all_points=_all_points(curves, loss), lowest_runs=_lowest_runs(curves, n, d, loss, minima.ok))


def _point_and_draws(curves, loss, how, resamples, seed):
    """Minima of the runs, Minima of the draws (None without resamples), PooledFit or None, the generator."""
    rng = np.random.default_rng(seed)
    if how == "pooled":
        return *_pooled_optima(curves, loss, resamples, rng), rng
    if how == "akima":
        resamples = min(resamples, AKIMA_RESAMPLES)
    else:
        resamples = resample_budget(min(len(loss), MANY_ROWS), resamples)
    drawn = None
    if resamples:
        drawn = _optima(curves, loss, how, resamples, rng)
    return _optima(curves, loss, how), drawn, None, rng


def _split(n, d, c, budget, tol, loss):
    """The curves of the budgets with MIN_SIZES sizes or more, and the other budgets as a list of Budget."""
    curves, of_three, small = [], [], []
    for rows in group_budgets(c if budget is None else budget, tol):
        n_sizes = (np.diff(np.sort(np.log(n[rows]))) > 1e-3).sum() + 1
        if n_sizes >= MIN_SIZES:
            curves.append(BudgetRuns.of(n, d, c, rows))
        elif n_sizes == EXACT_SIZES and n[rows].max() >= EXACT_SPAN * n[rows].min():
            of_three.append(BudgetRuns.of(n, d, c, rows))
        else:
            flops = float(np.exp(np.log(c[rows]).mean()))
            small.append(Budget(flops, len(rows), "too_few_sizes", rows=rows))
    if of_three:
        for found in _budgets(of_three, _optima(of_three, loss, "parabola"), None, "parabola"):
            small.append(replace(found, status="exact" if found.status == "ok" else found.status))
    return curves, sorted(small, key=lambda v: v.flops)


def _no_budgets(small, tol):
    """Why there is no power law where no budget has MIN_SIZES sizes."""
    why = f"no budget has {MIN_SIZES} or more model sizes (runs within {tol:.0%} of one C)"
    count = sum(v.status == "exact" for v in small)
    if count:
        why += f"; the parabola through three is exact, its minimum has no error, in {count} of them"
    return Refusal("isoflop", "no_budgets", f"{why}; add sizes per budget")


def _exact_line(budgets):
    """The lines through all minima as in _plain_lines, where some are of three sizes: they have no interval."""
    known = [v for v in budgets if v.n_opt is not None]
    if len(known) < 2 or all(v.status == "ok" for v in known):
        return {}
    ln_c, ln_n, ln_d = (np.log([getattr(v, k) for v in known]) for k in ("flops", "n_opt", "d_opt"))
    (a, ln_k_n), (b, ln_k_d) = np.polyfit(ln_c, ln_n, 1), np.polyfit(ln_c, ln_d, 1)
    line = {"a": float(a), "b": float(b), "ln_k_n": float(ln_k_n), "ln_k_d": float(ln_k_d)}
    return line | {"n_opt": [v.n_opt for v in known]}


def _budgets(curves, minima, drawn, method):
    """One Budget per curve, with percentile intervals where more than half of the resamples have a minimum."""
    budgets, ln_d = [], _tokens(curves, minima.ln_n)
    if drawn is not None:
        drawn_ln_d = _tokens(curves, drawn.ln_n)
    for g, curve in enumerate(curves):
        flops, status = float(np.exp(curve.ln_c)), STATUS[minima.status[0, g]]
        if status != "ok":
            budgets.append(Budget(flops, len(curve.rows), status, method=method, rows=curve.rows))
            continue
        n_opt, d_opt = float(np.exp(minima.ln_n[0, g])), float(np.exp(ln_d[0, g]))
        ci = {}
        if drawn is not None:
            inside = drawn.ok[:, g]
            if inside.mean() > 0.5:
                ci["n_opt"] = np.exp(np.percentile(drawn.ln_n[inside, g], PERCENTILES))
                ci["d_opt"] = np.exp(np.percentile(drawn_ln_d[inside, g], PERCENTILES))
                ci["loss"] = np.percentile(drawn.loss[inside, g], PERCENTILES)
        loss = float(minima.loss[0, g])
        budgets.append(Budget(flops, len(curve.rows), status, n_opt, d_opt, loss, method, curve.rows, ci))
    return budgets


def _left_out(budgets):
    """The warning that names the budgets without a minimum, as a tuple; empty without such."""
    names = [f"{v.flops:.3g} ({v.status})" for v in budgets if v.status != "ok"]
    if not names:
        return ()
    return (Refusal("isoflop", "budgets_left_out", f"left out of the power laws: {', '.join(names)}"),)


def _named_outliers(fit):
    inside = [v for v in fit.budgets if v.status in POOLED]
    names = []
    for g, j in fit.pooled.outliers:
        names.append(f"size {j + 1} of {inside[g].flops:.3g}")
    why = f"runs left out of the minima as outliers (sizes counted from the smallest): {', '.join(names)}"
    return (Refusal("isoflop", "outliers", why),)


def _without_interval(budgets):
    """The warning that names the budgets whose minimum too few draws have, as a tuple; empty without such."""
    names = [f"{v.flops:.3g}" for v in budgets if v.status == "ok" and not v.ci]
    if not names:
        return ()
    why = f"no interval of the minimum, half of the draws have none: {', '.join(names)}; add sizes or seeds"
    return (Refusal("isoflop", "budgets_without_interval", why),)


def is_exponent(a) -> bool:
    """Whether a in N_opt ~ C^a lies between 0 and 1; an end that is met to within rounding is no exponent, either."""
    return bool(1e-9 < a < 1 - 1e-9)


def _with_lines(fit, curves, minima):
    """The fit with its two power laws and the scatter about them, or with the reason why there are none."""
    n_ok = int(minima.ok.sum())
    if n_ok < 2:
        code, what, add = "one_budget", "only one budget has", "budgets"
        if n_ok == 0:
            code, what = "no_interior_minimum", "no budget has"
        others = {v.status for v in fit.budgets} - {"ok"}
        if others - {"exact", "too_few_sizes"}:
            add = "sizes on the open side"
        elif others:
            add = "sizes to the budgets that are left out"
        why = f"{what} its minimum inside the sizes tried; add {add}"
        return replace(fit, refusals=(Refusal("isoflop", code, why),))
    ln_c = np.array([curve.ln_c for curve in curves])
    (a,), (ln_k_n,), _ = _lines(ln_c, minima.ln_n, minima.ok)
    (b,), (ln_k_d,), _ = _lines(ln_c, _tokens(curves, minima.ln_n), minima.ok)
    if not is_exponent(a):
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
    draws, lost = _draw_lines(ln_c, drawn, _tokens(curves, drawn.ln_n), minima.ok[0], fit.scatter, rng)
    if lost > MAX_LOST:
        why = f"{lost:.0%} of the resamples have fewer than two interior minima; add sizes or seeds"
        return replace(fit, lost=lost, refusals=(Refusal("isoflop.interval", "unstable_resamples", why),))
    ok = minima.ok[0]
    whole = drawn.ok[:, ok].all(1)
    curvature = _curvature(ln_c[ok], minima.ln_n[0, ok], drawn.ln_n[whole][:, ok], rng)
    return replace(fit, draws=draws, lost=lost, curvature=curvature)


def _curvature(ln_c, ln_n, draws, rng):
    """
    Does ln N_opt bend over ln C? The parabola through the minima of MIN_CURVATURE budgets or more.

    Returns
    -------
    dict, empty with fewer
        point and ci95 of d^2 ln N / d(ln C)^2; bends, whether 0 is outside; a_low and a_high, the slopes of the
        parabola at the smallest and largest budget. ln_n (G,), draws (B, G) finite.
    """
    if len(ln_c) < MIN_CURVATURE or len(draws) < MIN_DRAWS:
        return {}
    x = ln_c - ln_c.mean()
    powers = np.vander(x, 3)
    solve = np.linalg.pinv(powers)
    square, slope, _ = solve @ ln_n
    rest = ln_n - powers @ (solve @ ln_n)
    scatter = float((rest**2).sum() / (len(x) - 3))
    excess = np.sqrt(max(0.0, scatter - float(draws.var(0).mean())))
    spread = 2 * ((draws + excess * rng.standard_normal(draws.shape)) @ solve[0])
    low, high = np.percentile(spread - np.median(spread) + 2 * square, PERCENTILES)
    return {
        "point": float(2 * square),
        "ci95": (float(low), float(high)),
        "bends": bool(low > 0 or high < 0),
        "a_low": float(slope + 2 * square * x.min()),
        "a_high": float(slope + 2 * square * x.max()),
    }


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
    minima = _optima(curves, loss, "parabola")
    return _plain_lines(curves, minima.ln_n, _tokens(curves, minima.ln_n), minima.ok)


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


def expected_bias(fit, law, n, d, c, cost=SIX_ND, others=("local", "parabola")):
    """
    What the isoFLOP fits would answer on these very runs if `law` were exact and there were no noise.

    The isoFLOP curve of a sum of two exponentials in ln N is not a parabola; sampled unevenly about its minimum, the
    vertex moves (arXiv 2603.22339). Fits noise-free losses of the law at the runs of every budget, "pooled" with the
    smooth curves that were chosen on the runs.

    Returns
    -------
    dict, or None with fewer than two budgets
        surface_a, the law's own; for the fit's method and the `others`: {method}_a, {method}_bias_a,
        {method}_n_ratio, the factor on N_opt at the largest budget; and budgets: [{flops, n_ratio}], the factor on each
        budget's own minimum by the fit's method.
    """
    known = [v for v in fit.budgets if v.status == "ok"]
    if len(known) < 2:
        return None
    clean = law.loss(n, d)
    curves = [BudgetRuns.of(n, d, c, v.rows) for v in known]
    ln_c = np.array([curve.ln_c for curve in curves])
    exact = np.log(law.optimum(np.exp(ln_c), cost)[0])
    truth, _ = law.exponents(cost)
    out = {"surface_a": float(truth), "budgets": []}
    for method in dict.fromkeys((known[0].method, *others)):
        if method == "pooled":
            minima = _pooled_minima_of(fit, clean, n, d, c)
        else:
            minima = _optima(curves, clean, method)
        if minima.ok.sum() < 2:
            continue
        a, ln_k_n, _ = _lines(ln_c, minima.ln_n, minima.ok)
        out |= {f"{method}_a": float(a[0]), f"{method}_bias_a": float(a[0] - truth)}
        out[f"{method}_n_ratio"] = float(np.exp(ln_k_n[0] + a[0] * ln_c[-1] - exact[-1]))
        if method == known[0].method:
            for g in np.flatnonzero(minima.ok[0]):
                ratio = float(np.exp(minima.ln_n[0, g] - exact[g]))
                out["budgets"].append({"flops": known[g].flops, "n_ratio": ratio})
    return out


def hold_bias(fit, bias, cost=SIX_ND):
    """
    The fit whose intervals hold the bias of its minima: every second draw of the lines is moved by minus the bias.

    Draws know the noise of the runs, and not that a smooth curve chosen on them lies off to one side where the sizes
    lie to one side of the optimum. Half of the draws take the law's word for how far: about a line that is off so, and
    about one that is not, the percentiles of all draws hold 95%.

    Parameters
    ----------
    bias : dict or None
        Of expected_bias(), by a law fitted to these runs.

    Returns
    -------
    IsoflopFit, its `bias_held` filled; the same fit without draws or without a bias of its method
    """
    known = [v for v in fit.budgets if v.status == "ok"]
    if bias is None or "a" not in fit.draws or f"{known[0].method}_bias_a" not in bias:
        return fit
    a, n_ratio = bias[f"{known[0].method}_bias_a"], bias[f"{known[0].method}_n_ratio"]
    ln_k_n = np.log(n_ratio) - a * np.log(known[-1].flops)
    share = 1 + cost.rho  # of an error of ln N in ln D at one C
    draws, half = dict(fit.draws), np.arange(len(fit.draws["a"])) % 2
    for name, off in (("a", a), ("ln_k_n", ln_k_n), ("b", -share * a), ("ln_k_d", -share * ln_k_n)):
        draws[name] = draws[name] - off * half
    return replace(fit, draws=draws, bias_held={"a": a, "n_ratio": n_ratio, "flops": known[-1].flops})


def _pooled_minima_of(fit, clean, n, d, c):
    """Minima (1, budgets ok) of noise-free losses by the smooth curves of a fit."""
    inside = [v for v in fit.budgets if v.status in POOLED]  # what fit.pooled is about, in its order
    curves = [BudgetRuns.of(n, d, c, v.rows) for v in inside]
    ln_losses = []
    for curve, own in zip(curves, at_common_compute(curves, clean), strict=True):
        (mean,), _ = curve.mean_losses(own)
        ln_losses.append(np.log(mean))
    minima = fit.pooled.minima(ln_losses)
    ok = np.array([v.status == "ok" for v in inside])
    return Minima(minima.ln_n[:, ok], minima.loss[:, ok], minima.status[:, ok])

"""
Approaches 1 and 2 of Hoffmann et al. 2022: the compute-optimal frontier without a law of N and D.

Approach 2 (isoFLOP) finds the best N of every compute budget; approach 1 (envelope) follows the lowest of all training
curves. Both end in N_opt = k C^a and D_opt = k' C^b, fitted in logs. Minima at an edge are no minima: they are named
and left out.

    >>> fit = fit_isoflop(n, d, c, loss)
    >>> fit.a, fit.optimum(1e21)
"""

from dataclasses import dataclass, field

import numpy as np

from isoflop.fit.huber import PERCENTILES, RESAMPLES, Refusal, resample_budget, resample_counts
from isoflop.laws import SIX_ND

# ----- approach 2: isoFLOP -----

BUDGET_TOL = 0.1  # runs within this of a common C (as a ratio, either side) share a budget
MANY_ROWS = 2000  # of one budget: beyond it resampling runs is replaced by its normal limit
MIN_SIZES = 4  # a parabola through three points has no residual
# Runs whose loss is this far above the minimum weigh half in the local parabola: narrow enough to leave a bias under
# 0.001 in `a` on published grids; the nearest half of the sizes alone made `a` three times as noisy on Kempner's grid.
LOCAL_RISE = 0.05


@dataclass(frozen=True)
class Budget:
    """One isoFLOP valley. n_opt, d_opt, loss are None unless status is ok."""

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
        c = np.log(np.asarray(c, float))
        return np.exp(self.ln_k_n + self.a * c), np.exp(self.ln_k_d + self.b * c)


def group_budgets(c, tol=BUDGET_TOL, min_runs=3):
    """
    Rows that share a budget, by the densest windows of ln C (never by equality: budgets are met to within a step).

    Parameters
    ----------
    c : (R,) array
        FLOPs of each run (or what was asked for).
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
    while len(groups) < 200:
        cum = np.r_[0.0, np.cumsum(counts)]
        end = np.searchsorted(bins, bins + 2 * tol + 1e-9, side="right")
        inside = cum[end] - cum[:-1]
        i = int(np.argmax(inside))
        if inside[i] < min_runs:
            break
        take = np.zeros(len(bins), bool)
        take[i : end[i]] = True
        groups.append(np.flatnonzero(take[place] & (counts[place] > 0)))
        counts[i : end[i]] = 0.0
    return sorted(groups, key=lambda rows: x[rows].mean())


def _vertex(x, y, w):
    """Weighted parabolas y ~ x for B resamples: vertex, value there, curvature, each (B,). x (M,), y and w (B, M)."""
    u = x - x.mean()
    powers = u[:, None] ** np.arange(5)
    s, t = w @ powers, (w * y) @ powers[:, :3]
    m = np.stack([s[:, i : i + 3] for i in range(3)], 1)
    m = m + 1e-13 * (s[:, 0] + s[:, 2] + s[:, 4])[:, None, None] * np.eye(3)
    c0, c1, c2 = np.linalg.solve(m, t[..., None])[..., 0].T
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = -c1 / (2 * c2)
    return x.mean() + shift, c0 + 0.5 * c1 * shift, c2


def _valley(x, y, w, how):
    """
    Optimum of one budget for B resamples: ln N_opt (B,), loss (B,), status (B,) codes into STATUS.

    x (M,) sorted distinct ln N; y (B, M) mean loss per size; w (B, M) runs per size (0: absent from the resample).
    """
    there = w > 0
    lowest = np.where(there, y, np.inf).argmin(1)
    first, last = there.argmax(1), len(x) - 1 - there[:, ::-1].argmax(1)
    if how == "akima":
        at, value, curve = _akima_minima(x, y, there)
    else:
        at, value, curve = _vertex(x, y, w)
        for _ in range(3 if how == "local" else 0):
            sound = (curve > 0) & (at > x[first]) & (at < x[last])
            center = np.where(sound, at, x[lowest])
            floor = np.where(sound, value, y[np.arange(len(y)), lowest])
            bend = np.where(sound, curve, 0.1 * floor)  # no valley yet: look about the lowest run
            rise = bend[:, None] * (x - center[:, None]) ** 2 / floor[:, None]
            at, value, curve = _vertex(x, y, w / (1 + (rise / LOCAL_RISE) ** 2))
    status = np.zeros(len(y), int)
    status[~((at > x[first]) & (at < x[last]))] = 3
    status[~(curve > 0)] = 2
    status[(lowest == first) | (lowest == last)] = 1
    status[there.sum(1) < min(MIN_SIZES - 1, len(x))] = 4
    return at, value, status


STATUS = ("ok", "edge", "concave", "extrapolated", "too_few_sizes")


def _akima_minima(x, y, there):
    """Minimum of the Akima interpolant of ln loss in ln N, one resample at a time (scipy)."""
    from scipy.interpolate import Akima1DInterpolator

    at, value = np.full(len(y), np.nan), np.full(len(y), np.nan)
    for i in range(len(y)):
        if there[i].sum() < 3:
            continue
        f = Akima1DInterpolator(x[there[i]], np.log(np.maximum(y[i, there[i]], 1e-300)))
        roots = f.derivative().roots(extrapolate=False)
        points = np.r_[x[there[i]], roots[np.isfinite(roots)]]
        j = np.nanargmin(f(points))
        at[i], value[i] = points[j], np.exp(f(points)[j])
    return at, value, np.where(np.isfinite(at), 1.0, -1.0)


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


class _Groups:
    """The runs of each budget, collapsed to distinct sizes; jitter in C is taken out along the valley."""

    def __init__(self, n, d, c, loss, groups):
        self.rows = groups
        ln_n, ln_d, ln_c = np.log(n), np.log(d), np.log(c)
        self.ln_c = np.array([ln_c[g].mean() for g in groups])
        off = [ln_c[g] - ln_c[g].mean() for g in groups]
        self.x, self.size, self.ln_d, self.shift = [], [], [], []
        for g, o in zip(groups, off, strict=True):
            o = np.where(np.abs(o) < 1e-6, 0.0, o)
            x = ln_n[g] - 0.5 * o  # along N ~ C**0.5, the direction of the valley to first order
            for decimals in (3 if np.ptp(o) > 0 else 6, 2, 1):  # a few hundred sizes at most
                values, size = np.unique(np.round(x, decimals), return_inverse=True)
                if len(values) <= 200:
                    break
            count = np.bincount(size)
            self.x.append(np.bincount(size, x) / count)
            self.ln_d.append(np.bincount(size, ln_d[g] - 0.5 * o) / count)
            self.size.append(size)
            self.shift.append(o)
        self.shift = self._jitter(loss)

    def _jitter(self, loss):
        """
        Loss to take off each run for its C not being its budget's: the frontier's slope in ln C times the distance.

        The slope is that of a parabola (a line through two) in ln C through the lowest loss of each budget, never
        upwards. A slope fitted within budgets would take a valley that is no parabola for an effect of C, a hundred
        times the real one where budgets are met to within a step. One budget alone gives none.
        """
        if max(np.abs(o).max() for o in self.shift) == 0 or len(self.rows) < 2:
            return [np.zeros_like(o) for o in self.shift]
        least = [loss[rows].min() for rows in self.rows]
        curve = np.polyfit(self.ln_c - self.ln_c.mean(), least, min(2, len(least) - 1))
        slope = np.minimum(0.0, np.polyval(np.polyder(curve), self.ln_c - self.ln_c.mean()))
        return [o * s for o, s in zip(self.shift, slope, strict=True)]

    def optima(self, loss, how, b=0, rng=None):
        """
        ln N_opt, loss and status per budget, (B, G) each: of the runs themselves (B = 1), or of b resamples of them.

        Runs are resampled within their budget; beyond MANY_ROWS the mean of each size is drawn as a normal instead.
        """
        out = []
        for g, rows in enumerate(self.rows):
            y, m = loss[rows] - self.shift[g], len(self.x[g])
            count = np.bincount(self.size[g], minlength=m).astype(float)
            mean = np.bincount(self.size[g], y, m) / count
            if b and len(rows) > MANY_ROWS:
                spread = np.bincount(self.size[g], (y - mean[self.size[g]]) ** 2, m) / np.maximum(count - 1, 1)
                spread = np.where(count > 1, spread, (count * spread).sum() / count.sum())
                mean = mean + np.sqrt(spread / count) * rng.standard_normal((b, m))
                count = np.broadcast_to(count, mean.shape)
            elif b:
                onto = np.zeros((len(rows), m))
                onto[np.arange(len(rows)), self.size[g]] = 1.0
                w = resample_counts(rng, len(rows), b)
                count = w @ onto
                with np.errstate(invalid="ignore", divide="ignore"):
                    mean = np.where(count > 0, (w * y) @ onto / count, y.mean())
            out.append(_valley(self.x[g], np.atleast_2d(mean), np.atleast_2d(count), how))
        return tuple(np.stack(v, 1) for v in zip(*out, strict=True))

    def tokens(self, ln_n):
        """ln D at ln N, read along each budget's own runs: (B, G)."""
        cols = [np.interp(ln_n[:, g], self.x[g], self.ln_d[g]) for g in range(len(self.x))]
        return np.stack(cols, 1)


def fit_isoflop(n, d, c, loss, budget=None, tol=BUDGET_TOL, how="local", resamples=RESAMPLES, seed=0):
    """
    Approach 2 of Hoffmann et al. 2022: the loss-minimising N of every budget, then power laws in logs.

    Parameters
    ----------
    n, d, c, loss : (R,) arrays
        Parameters, tokens, FLOPs spent, loss in nats.
    budget : (R,) array, optional
        FLOPs asked for; groups runs better than what was spent.
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
    """
    n, d, c, loss = (np.asarray(v, float) for v in (n, d, c, loss))
    groups = group_budgets(c if budget is None else budget, tol)
    few = [g for g in groups if (np.diff(np.sort(np.log(n[g]))) > 1e-3).sum() + 1 < MIN_SIZES]
    named = [Budget(float(np.exp(np.log(c[g]).mean())), len(g), "too_few_sizes", rows=g) for g in few]
    groups = [g for g in groups if not any(g is f for f in few)]
    if not groups:
        why = f"no budget has {MIN_SIZES} or more model sizes (runs within {tol:.0%} of one C); add sizes per budget"
        return IsoflopFit(tuple(named), refusals=(Refusal("isoflop", "no_budgets", why),))
    held = _Groups(n, d, c, loss, groups)
    x, value, status = held.optima(loss, how)
    ln_d = held.tokens(x)
    ok = status == 0
    every, lowest = _all_points(held, loss), _lowest_runs(held, n, d, loss, ok)

    b = resample_budget(min(len(n), MANY_ROWS), resamples) if how != "akima" else min(resamples, 200)
    draws, lost, bands, refusals, warnings = {}, 0.0, {}, [], []
    if b:
        rng = np.random.default_rng(seed)
        bx, bv, bs = held.optima(loss, how, b, rng)
        bok = (bs == 0) & ok
        bd = held.tokens(np.where(np.isfinite(bx), bx, 0.0))
        for g in np.flatnonzero(ok[0]):
            if bok[:, g].mean() > 0.5:
                q = [np.percentile(v[bok[:, g], g], PERCENTILES) for v in (bx, bd, bv)]
                bands[g] = {"n_opt": np.exp(q[0]), "d_opt": np.exp(q[1]), "loss": q[2]}
    budgets = []
    for g, rows in enumerate(groups):
        good = bool(ok[0, g])
        numbers = (float(np.exp(x[0, g])), float(np.exp(ln_d[0, g])), float(value[0, g])) if good else (None,) * 3
        flops = float(np.exp(held.ln_c[g]))
        budgets.append(Budget(flops, len(rows), STATUS[status[0, g]], *numbers, how, rows, bands.get(g, {})))
    budgets = tuple(sorted(budgets + named, key=lambda v: v.flops))
    left = [v for v in budgets if v.status != "ok"]
    if left:
        text = ", ".join(f"{v.flops:.3g} ({v.status})" for v in left)
        warnings.append(Refusal("isoflop", "budgets_left_out", f"left out of the power laws: {text}"))
    n_ok = int(ok.sum())
    if n_ok < 2:
        code = "no_interior_minimum" if n_ok == 0 else "one_budget"
        what = "no budget has" if n_ok == 0 else "only one budget has"
        why = f"{what} its minimum inside the sizes tried; add {'sizes on the open side' if left else 'budgets'}"
        return IsoflopFit(budgets, refusals=(Refusal("isoflop", code, why),), warnings=tuple(warnings))
    a, k_n, _ = _lines(held.ln_c, x, ok)
    bb, k_d, _ = _lines(held.ln_c, ln_d, ok)
    if not 0 < a[0] < 1:
        why = "N_opt does not rise with C between 0 and 1 in logs: the optima are noise; add sizes, seeds or budgets"
        return IsoflopFit(budgets, refusals=(Refusal("isoflop", "runaway_exponent", why),), warnings=tuple(warnings))
    rest = (x - k_n[:, None] - a[:, None] * held.ln_c)[ok]
    scatter = float(np.sqrt((rest**2).sum() / max(n_ok - 2, 1)))
    if n_ok == 2:
        why = "two budgets fix a line exactly and say nothing of its error; add a third budget for an interval"
        refusals.append(Refusal("isoflop.interval", "two_budgets", why))
    elif b:
        within = np.array([np.var(bx[bok[:, g], g]) if bok[:, g].sum() > 1 else 0.0 for g in range(len(groups))])
        excess = np.sqrt(max(0.0, scatter**2 - float(np.mean(within[ok[0]]))))
        extra = excess * rng.standard_normal(bx.shape)  # misfit of the line that resampling runs cannot show
        ba, bkn, count = _lines(held.ln_c, bx + extra, bok)
        bb_, bkd, _ = _lines(held.ln_c, bd - extra, bok)
        sound = (count >= 2) & np.isfinite(ba) & np.isfinite(bb_)
        lost = float(1 - sound.mean())
        if lost > 0.25:
            why = f"{lost:.0%} of the resamples have fewer than two interior minima; add sizes or seeds"
            refusals.append(Refusal("isoflop.interval", "unstable_resamples", why))
        else:
            draws = {"a": ba[sound], "ln_k_n": bkn[sound], "b": bb_[sound], "ln_k_d": bkd[sound]}
            draws["loss"] = np.where(bok, bv, np.nan)[sound][:, ok[0]]
    return IsoflopFit(
        budgets,
        *(float(v[0]) for v in (a, k_n, bb, k_d)),
        scatter,
        draws,
        every,
        lowest,
        lost,
        tuple(refusals),
        tuple(warnings),
    )


def _all_points(held, loss):
    """The parabola through all sizes of every budget, as Hoffmann et al. did it: a, b, intercepts and optima."""
    x, _, status = held.optima(loss, "parabola")
    return _plain_lines(held.ln_c, x, held.tokens(x), status == 0)


def _lowest_runs(held, n, d, loss, ok):
    """The lowest run of every budget taken for its optimum: simple, and tied to the grid of sizes."""
    at = [rows[np.argmin(loss[rows])] for rows in held.rows]
    return _plain_lines(held.ln_c, np.log(n[at])[None], np.log(d[at])[None], ok)


def _plain_lines(ln_c, ln_n, ln_d, ok):
    if ok.sum() < 2:
        return {}
    (a, k_n, _), (b, k_d, _) = _lines(ln_c, ln_n, ok), _lines(ln_c, ln_d, ok)
    out = {"a": float(a[0]), "b": float(b[0]), "ln_k_n": float(k_n[0]), "ln_k_d": float(k_d[0])}
    return out | {"n_opt": [float(np.exp(v)) if good else None for v, good in zip(ln_n[0], ok[0], strict=True)]}


def parabola_bias(fit, law, n, d, c, cost=SIX_ND):
    """
    What the isoFLOP fits would answer on these very runs if `law` were exact and there were no noise.

    The valley of a sum of two exponentials in ln N is not a parabola; sampled unevenly about its minimum, the vertex
    moves (arXiv 2603.22339). Refits noise-free losses of the law at the runs of every budget.

    Returns
    -------
    dict: surface_a, local_a, parabola_a, local_bias_a, parabola_bias_a, and parabola_n_ratio / local_n_ratio, the
    factor on N_opt at the largest budget.
    """
    truth, _ = law.exponents(cost)
    clean = law.loss(n, d)
    groups = [v.rows for v in fit.budgets if v.status == "ok"]
    if len(groups) < 2:
        return None
    held = _Groups(n, d, c, clean, groups)
    out = {"surface_a": float(truth)}
    for how, name in (("local", "local"), ("parabola", "parabola")):
        x, _, status = held.optima(clean, how)
        ok = status == 0
        if ok.sum() < 2:
            continue
        a, k, _ = _lines(held.ln_c, x, ok)
        top = held.ln_c.max()
        exact = np.log(law.optimum(np.exp(top), cost)[0])
        out |= {f"{name}_a": float(a[0]), f"{name}_bias_a": float(a[0] - truth)}
        out[f"{name}_n_ratio"] = float(np.exp(k[0] + a[0] * top - exact))
    return out

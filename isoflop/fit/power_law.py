"""One-variable power laws with and without a floor, and Kaplan's law."""

from dataclasses import dataclass, field

import numpy as np

from isoflop.fit.huber import (
    E_FLOOR,
    EXPONENT_RANGE,
    RESAMPLES,
    Refusal,
    _best,
    _grid_starts,
    _jacobian,
    _newton,
    _Rows,
    resample_counts,
)

# ----- power laws of one variable -----


@dataclass(frozen=True)
class PowerLaw:
    """y = E + k x**-g; E is 0 in the form without it. Numbers are None when refused."""

    E: float | None = None
    k: float | None = None
    g: float | None = None
    r2: float | None = None  # of ln y
    n_points: int = 0
    draws: dict = field(default_factory=dict)  # E, k, g (B,)
    refusals: tuple = ()

    def __call__(self, x):
        return self.E + self.k * np.asarray(x, float) ** -self.g

    def inverse(self, y):
        """x at which the law reaches y; inf where it never does."""
        gap = np.asarray(y, float) - self.E
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.where(gap > 0, (self.k / np.where(gap > 0, gap, 1.0)) ** (1.0 / self.g), np.inf)


def fit_power_law(x, y, y_draws=None, offset=True, method="power_law"):
    """
    y = E + k x**-g by least squares in ln y.

    Parameters
    ----------
    x, y : (P,) arrays
        Positive; at least 4 points with E, 3 without.
    y_draws : (B, P) array, optional
        Bootstrap draws of y (NaN where a draw lacks the point); each is refitted for the intervals.
    offset : bool
        False fixes E at 0: a straight line in logs, as in Kaplan et al. 2020.

    Returns
    -------
    PowerLaw
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    need = 4 if offset else 3
    if len(np.unique(np.round(np.log(x), 6))) < need:
        why = f"{len(x)} points; y = {'E + ' if offset else ''}k x^-g needs {need} at different x"
        return PowerLaw(n_points=len(x), refusals=(Refusal(method, "too_few_points", why),))
    if not (y > 0).all():
        why = "the frontier is not positive: the noise is larger than the law"
        return PowerLaw(n_points=len(x), refusals=(Refusal(method, "not_positive", why),))
    mu = np.log(x).mean()
    u, z = np.log(x)[None] - mu, np.log(y)
    if offset:
        theta, f, gn, _ = _best(_grid_starts(u, z, np.geomspace(0.02, 1.3, 24)), u, z, None, np.inf, True, 4)
        bad = None
        if not EXPONENT_RANGE[0] / 4 <= theta[1] <= EXPONENT_RANGE[1] or not gn < 1e-4:
            bad = "runaway_exponent", "the exponent runs away: the points do not bend; use the form without E"
        elif np.exp(theta[2]) < E_FLOOR * y.min():
            bad = "e_at_zero", "E is pinned at 0: no floor can be seen yet; use the form without E"
        if bad:
            return PowerLaw(n_points=len(x), refusals=(Refusal(method, *bad),))
    else:
        slope, c = np.polyfit(u[0], z, 1)
        theta, f = np.array([c, -slope]), 0.5 * float(((z - c - slope * u[0]) ** 2).sum())
    spread = float(((z - z.mean()) ** 2).sum())
    draws = {}
    if y_draws is not None and len(y_draws):
        there = np.isfinite(y_draws) & (np.nan_to_num(y_draws) > 0)
        w, zz = there.astype(float), np.log(np.where(there, y_draws, 1.0))
        enough = w.sum(1) >= need
        w, zz = w[enough], zz[enough]
        if offset:
            j = _jacobian(theta, u, True)
            metric = j.T @ j + 1e-9 * np.trace(j.T @ j) * np.eye(3)
            t = _newton(np.repeat(theta[None], len(w), 0), _Rows(u), zz, w, np.inf, True, metric)[0]
            draws = {"E": np.exp(t[:, 2])}
        else:
            m = w.sum(1)
            cu, cz = (w * u).sum(1) / m, (w * zz).sum(1) / m
            du = u - cu[:, None]
            b = (w * du * (zz - cz[:, None])).sum(1) / (w * du**2).sum(1)
            t = np.stack([cz - b * cu, -b], 1)
            draws = {"E": np.zeros(len(t))}
        with np.errstate(over="ignore"):
            draws |= {"k": np.exp(t[:, 0] + t[:, 1] * mu), "g": t[:, 1]}
        sound = np.isfinite(draws["k"]) & (draws["g"] > 0) & (draws["g"] < EXPONENT_RANGE[1])
        draws = {k: v[sound] for k, v in draws.items()}
    e = float(np.exp(theta[2])) if offset else 0.0
    k = float(np.exp(theta[0] + theta[1] * mu))
    return PowerLaw(e, k, float(theta[1]), 1 - 2 * f / spread if spread else None, len(x), draws)


def fit_kaplan(x, loss, resamples=RESAMPLES, seed=0, method="kaplan"):
    """
    L(N) or L(D) of Kaplan et al. 2020 (eq. 1.1, 1.2): the lowest loss of each x, as far as it keeps falling with x.

    In an isoFLOP sweep no size is trained to convergence, so this is the envelope of the runs, not their limit.

    Parameters
    ----------
    x, loss : (R,) arrays
        N (or D) and loss of each run; values of x within 2% of a neighbour are one.
    resamples : int
        Case bootstrap over runs, 300 at most.

    Returns
    -------
    dict of PowerLaw: with_E and without_E
    """
    order = np.argsort(x, kind="stable")
    x, loss = np.log(np.asarray(x, float)[order]), np.asarray(loss, float)[order]
    first = np.flatnonzero(np.r_[True, np.diff(x) > 0.02])
    best = np.minimum.reduceat(loss, first)
    keep = best <= np.minimum.accumulate(best)
    at = np.exp(np.add.reduceat(x, first) / np.diff(np.r_[first, len(x)]))[keep]
    draws = None
    if resamples and len(x) <= 5000:
        counts = resample_counts(np.random.default_rng(seed), len(x), min(resamples, 300))
        draws = np.minimum.reduceat(np.where(counts > 0, loss, np.inf), first, axis=1)[:, keep]
        draws = np.where(np.isfinite(draws), draws, np.nan)
    return {
        form: fit_power_law(at, best[keep], draws, form == "with_E", f"{method}.{form}")
        for form in ("with_E", "without_E")
    }

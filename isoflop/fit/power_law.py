"""One-variable power laws with and without a floor, and Kaplan's law."""

from dataclasses import dataclass, field

import numpy as np

from isoflop.fit.huber import (
    E_FLOOR,
    EXPONENT_RANGE,
    RESAMPLES,
    Refusal,
    Regressors,
    best_of,
    descend,
    grid_starts,
    jacobian,
    resample_counts,
)


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
    Fit y = E + k x**-g by least squares in ln y.

    Parameters
    ----------
    x, y : (P,) arrays
        Positive; at least 4 points with E, 3 without.
    y_draws : (B, P) array, optional
        Bootstrap draws of y (NaN where a draw lacks the point); each is refitted for the intervals.
    offset : bool
        False fixes E at 0: a straight line in logs, as in Kaplan et al. 2020.
    method : str
        Name under which a refusal is listed.

    Returns
    -------
    PowerLaw
        With `refusals` and without numbers where the points do not carry the law.

    Notes
    -----
    With E, starts are a grid of 24 exponents in 0.02..1.3 with the other two parameters by linear least squares; the
    best four are minimised by Newton's method with exact derivatives.

    References
    ----------
    Kaplan et al. 2020, arXiv 2001.08361, eq. 1.1 to 1.3 (E = 0).
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
        starts = grid_starts(u, z, np.geomspace(0.02, 1.3, 24))
        theta, f, gradient, _ = best_of(starts, u, z, None, np.inf, True, tries=4, patience=25)
        refusal = _undefended(theta, gradient, y)
        if refusal:
            return PowerLaw(n_points=len(x), refusals=(Refusal(method, *refusal),))
    else:
        slope, c = np.polyfit(u[0], z, 1)
        theta, f = np.array([c, -slope]), 0.5 * float(((z - c - slope * u[0]) ** 2).sum())
    draws = {}
    if y_draws is not None and len(y_draws):
        draws = _draws(theta, u, y_draws, offset, need, mu)
    spread = float(((z - z.mean()) ** 2).sum())
    r2 = 1 - 2 * f / spread if spread else None
    e = float(np.exp(theta[2])) if offset else 0.0
    return PowerLaw(e, float(np.exp(theta[0] + theta[1] * mu)), float(theta[1]), r2, len(x), draws)


def _undefended(theta, gradient, y):
    """None, or (code, message): why the law with E is not reported."""
    if not EXPONENT_RANGE[0] / 4 <= theta[1] <= EXPONENT_RANGE[1] or not gradient < 1e-4:
        return "runaway_exponent", "the exponent runs away: the points do not bend; use the form without E"
    if np.exp(theta[2]) < E_FLOOR * y.min():
        return "e_at_zero", "E is pinned at 0: no floor can be seen yet; use the form without E"
    return None


def _draws(theta, u, y_draws, offset, need, mu):
    """The law refitted to draws of y (B, P): dict of E, k and g, (B,) each; draws without a sound fit are left out."""
    there = np.isfinite(y_draws) & (np.nan_to_num(y_draws) > 0)
    w, z = there.astype(float), np.log(np.where(there, y_draws, 1.0))
    enough = w.sum(1) >= need
    w, z = w[enough], z[enough]
    if offset:
        j = jacobian(theta, u, True)
        metric = j.T @ j + 1e-9 * np.trace(j.T @ j) * np.eye(3)
        found = descend(np.repeat(theta[None], len(w), 0), Regressors(u), z, w, np.inf, True, metric)[0]
        draws = {"E": np.exp(found[:, 2])}
    else:
        found = _lines(u, z, w)
        draws = {"E": np.zeros(len(found))}
    with np.errstate(over="ignore"):
        draws |= {"k": np.exp(found[:, 0] + found[:, 1] * mu), "g": found[:, 1]}
    sound = np.isfinite(draws["k"]) & (draws["g"] > 0) & (draws["g"] < EXPONENT_RANGE[1])
    return {k: v[sound] for k, v in draws.items()}


def _lines(u, z, w):
    """Weighted straight lines z ~ u: intercept and minus the slope, (B, 2). u (1, P), z and w (B, P)."""
    count = w.sum(1)
    mean_u, mean_z = (w * u).sum(1) / count, (w * z).sum(1) / count
    du = u - mean_u[:, None]
    slope = (w * du * (z - mean_z[:, None])).sum(1) / (w * du**2).sum(1)
    return np.stack([mean_z - slope * mean_u, -slope], 1)


def fit_kaplan(x, loss, resamples=RESAMPLES, seed=0, method="kaplan"):
    """
    Fit L(N) or L(D): a power law through the lowest loss of each x, as far as it keeps falling with x.

    In an isoFLOP sweep no size is trained to convergence, so this is the envelope of the runs, not their limit.

    Parameters
    ----------
    x, loss : (R,) arrays
        N (or D) and loss of each run; values of x within 2% of a neighbour are one.
    resamples : int
        Case bootstrap over runs, 300 at most.
    seed : int
        Of the resampling.
    method : str
        Name under which refusals are listed.

    Returns
    -------
    dict of PowerLaw: with_E and without_E

    References
    ----------
    Kaplan et al. 2020, arXiv 2001.08361, eq. 1.1 and 1.2.
    """
    order = np.argsort(x, kind="stable")
    x, loss = np.log(np.asarray(x, float)[order]), np.asarray(loss, float)[order]
    # runs of one x
    first = np.flatnonzero(np.r_[True, np.diff(x) > 0.02])
    best = np.minimum.reduceat(loss, first)
    falling = best <= np.minimum.accumulate(best)
    group_x = np.exp(np.add.reduceat(x, first) / np.diff(np.r_[first, len(x)]))[falling]
    # the lowest loss of each, in every resample
    draws = None
    if resamples and len(x) <= 5000:
        counts = resample_counts(np.random.default_rng(seed), len(x), min(resamples, 300))
        draws = np.minimum.reduceat(np.where(counts > 0, loss, np.inf), first, axis=1)[:, falling]
        draws = np.where(np.isfinite(draws), draws, np.nan)
    fits = {}
    for form in ("with_E", "without_E"):
        fits[form] = fit_power_law(group_x, best[falling], draws, form == "with_E", f"{method}.{form}")
    return fits

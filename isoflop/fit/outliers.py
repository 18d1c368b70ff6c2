"""Runs that do not follow the parametric fit, the fit without them, and weights of runs by their errors."""

from dataclasses import dataclass, field

import numpy as np

from isoflop.fit.parametric import OUTLIER_MADS, ParametricFit, fit_parametric

SMALLEST = 1e-4  # of ln L: residuals below it are no outliers, however regular the others are
LISTED = 100


@dataclass(frozen=True)
class Outlier:
    """One run far off the fit."""

    index: int  # in the table
    residual: float  # ln L - ln law
    mads: float  # distance from the median residual, in median absolute deviations
    top_loss: bool  # among the highest losses, all of which are outliers


@dataclass(frozen=True)
class Outliers:
    """The outliers, farthest first (LISTED at most), and fits without them: {name: (number of runs left out, fit)}."""

    runs: tuple[Outlier, ...] = ()
    refits: dict[str, tuple[int, ParametricFit]] = field(default_factory=dict)


def find_outliers(table, fit, weights=None):
    """
    Runs more than OUTLIER_MADS median absolute deviations (and 0.01%) off the law, and the law without them.

    Where the k highest losses are all outliers, the law without just these is fitted too: a high-loss corner is the
    usual culprit, and --drop_top_loss k is the remedy that others can repeat.

    Parameters
    ----------
    table : Table
    fit : ParametricFit
        Of all runs; a refused one has no outliers.
    weights : (R,) array, optional
        As in the fit.

    Returns
    -------
    Outliers
    """
    if fit.law is None:
        return Outliers()
    off = np.abs(fit.residuals - np.median(fit.residuals))
    mads = off / max(np.median(off), 1e-300)
    bad = (mads > OUTLIER_MADS) & (off > SMALLEST)
    by_loss = np.argsort(-table.loss, kind="stable")
    corner = int(np.argmin(bad[by_loss])) if bad.any() else 0  # so many of the highest losses are outliers
    top = np.isin(np.arange(len(bad)), by_loss[:corner])
    farthest = np.flatnonzero(bad)[np.argsort(-mads[bad])]
    runs = []
    for i in farthest[:LISTED]:
        runs.append(Outlier(int(i), float(fit.residuals[i]), float(mads[i]), bool(top[i])))

    left_out = {}
    if bad.any():
        left_out["without_outliers"] = bad
    if top.any() and top.sum() != bad.sum():
        left_out["without_top_loss"] = top
    refits = {}
    for name, gone in left_out.items():
        keep = ~gone
        kept_weights = None if weights is None else weights[keep]
        refit = fit_parametric(table.n[keep], table.d[keep], table.loss[keep], kept_weights, fit.delta, 0, near=fit)
        if refit.law is not None:
            refits[name] = (int(gone.sum()), refit)
    return Outliers(tuple(runs), refits)


def loss_weights(table):
    """Weights of runs by the standard errors of their losses, of mean 1 and within 0.1 to 10 before that; or None."""
    if table.loss_se is None:
        return None
    relative = table.loss_se / table.loss
    usable = np.where(relative > 0, relative, np.nan)
    weights = np.clip(np.nanmedian(relative) / usable, 0.1, 10)
    weights = np.where(np.isfinite(weights), weights, 1.0)
    return weights / weights.mean()

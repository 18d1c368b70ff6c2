"""Runs of one compute budget: grouped by compute, collapsed to distinct sizes, resampled."""

from dataclasses import dataclass

import numpy as np

from isoflop.fit.huber import resample_counts

BUDGET_TOL = 0.1  # runs within this of a common C (as a ratio, either side) share a budget
MAX_BUDGETS = 200
MANY_ROWS = 2000  # of one budget: beyond it resampling runs is replaced by its normal limit
MAX_SIZES = 200  # of one budget: beyond it sizes are rounded together


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
class BudgetRuns:
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


def at_common_compute(curves, loss):
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

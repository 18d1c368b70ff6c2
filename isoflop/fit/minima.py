"""
The minimum of one isoFLOP curve: loss against ln N at one training compute, for many resamples at once.

    >>> minima = curve_minima(ln_n, loss[None], runs[None], "local")
    >>> minima.ln_n, minima.loss, STATUS[minima.status[0]]
"""

from dataclasses import dataclass

import numpy as np

METHODS = ("local", "akima", "parabola")
STATUS = ("ok", "edge", "concave", "extrapolated", "too_few_sizes")
OK, EDGE, CONCAVE, EXTRAPOLATED, TOO_FEW_SIZES = range(5)

MIN_SIZES = 4  # a parabola through three points has no residual
# Runs whose loss is this far above the minimum weigh half in the local parabola: narrow enough to leave a bias under
# 0.001 in `a` on published grids; the nearest half of the sizes alone made `a` three times as noisy on Kempner's grid.
LOCAL_RISE = 0.05
LOCAL_STEPS = 3  # of reweighting about the last minimum


@dataclass(frozen=True)
class Minima:
    """Minima of isoFLOP curves, all arrays of one shape: (B,) of one curve, (B, G) of G curves, B resamples."""

    ln_n: np.ndarray
    loss: np.ndarray
    status: np.ndarray  # indices into STATUS

    @property
    def ok(self):
        return self.status == OK


def curve_minima(ln_n, loss, runs, method):
    """
    Minimum of one isoFLOP curve for B resamples.

    Parameters
    ----------
    ln_n : (S,) array
        Distinct sizes, rising.
    loss : (B, S) array
        Mean loss of the runs of each size.
    runs : (B, S) array
        Runs of each size, as weights; 0 where a resample lacks the size.
    method : {"local", "akima", "parabola"}
        See fit_isoflop.

    Returns
    -------
    Minima, arrays (B,)
    """
    present = runs > 0
    lowest = np.where(present, loss, np.inf).argmin(1)
    first, last = present.argmax(1), len(ln_n) - 1 - present[:, ::-1].argmax(1)
    if method == "akima":
        at, value, curvature = _akima(ln_n, loss, present)
    elif method == "parabola":
        at, value, curvature = parabola(ln_n, loss, runs)
    else:
        at, value, curvature = _local_parabola(ln_n, loss, runs, lowest, first, last)

    # the last assignment that applies wins: few sizes explain an edge, an edge explains a wrong curvature
    status = np.full(len(loss), OK)
    status[~((at > ln_n[first]) & (at < ln_n[last]))] = EXTRAPOLATED
    status[~(curvature > 0)] = CONCAVE
    status[(lowest == first) | (lowest == last)] = EDGE
    status[present.sum(1) < min(MIN_SIZES - 1, len(ln_n))] = TOO_FEW_SIZES
    return Minima(at, value, status)


def parabola(x, y, weights):
    """Weighted parabolas y ~ x for B problems: vertex, value there, curvature, each (B,). x (S,); y, weights (B, S)."""
    u = x - x.mean()
    powers = u[:, None] ** np.arange(5)
    s, t = weights @ powers, (weights * y) @ powers[:, :3]
    m = np.stack([s[:, i : i + 3] for i in range(3)], 1)
    m = m + 1e-13 * (s[:, 0] + s[:, 2] + s[:, 4])[:, None, None] * np.eye(3)
    c0, c1, c2 = np.linalg.solve(m, t[..., None])[..., 0].T
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = -c1 / (2 * c2)
    return x.mean() + shift, c0 + 0.5 * c1 * shift, c2


def _local_parabola(x, y, weights, lowest, first, last):
    """parabola(), with weights 1 / (1 + (rise / LOCAL_RISE)^2) by the rise of the last parabola above its minimum."""
    at, value, curvature = parabola(x, y, weights)
    lowest_loss = y[np.arange(len(y)), lowest]
    for _ in range(LOCAL_STEPS):
        sound = (curvature > 0) & (at > x[first]) & (at < x[last])
        center = np.where(sound, at, x[lowest])
        floor = np.where(sound, value, lowest_loss)
        bend = np.where(sound, curvature, 0.1 * floor)  # no minimum yet: look about the lowest run
        rise = bend[:, None] * (x - center[:, None]) ** 2 / floor[:, None]
        at, value, curvature = parabola(x, y, weights / (1 + (rise / LOCAL_RISE) ** 2))
    return at, value, curvature


def _akima(x, y, present):
    """Minimum of the Akima interpolant of ln loss in ln N, one resample at a time (scipy)."""
    from scipy.interpolate import Akima1DInterpolator

    at, value = np.full(len(y), np.nan), np.full(len(y), np.nan)
    for i in range(len(y)):
        if present[i].sum() < 3:
            continue
        curve = Akima1DInterpolator(x[present[i]], np.log(np.maximum(y[i, present[i]], 1e-300)))
        roots = curve.derivative().roots(extrapolate=False)
        points = np.r_[x[present[i]], roots[np.isfinite(roots)]]
        j = np.nanargmin(curve(points))
        at[i], value[i] = points[j], np.exp(curve(points)[j])
    return at, value, np.where(np.isfinite(at), 1.0, -1.0)

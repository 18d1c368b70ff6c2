"""The envelope of training curves: the lower hull of loss against compute."""

from dataclasses import dataclass, field

import numpy as np

from isoflop.fit.huber import Refusal
from isoflop.fit.isoflop import IsoflopFit

# ----- approach 1: envelope of training curves -----

N_BINS = 1500  # log-spaced C of the binned rule, as in Hoffmann et al. 2022, section 3.1
HULL_RESAMPLES = 300  # the hull is a walk from point to point, not a matrix product


@dataclass(frozen=True)
class EnvelopeFit:
    """N_opt = exp(ln_k_n) C**a and D_opt = exp(ln_k_d) C**b along the lower envelope of training curves."""

    rule: str = ""
    ends_dropped: bool = True
    a: float | None = None
    ln_k_n: float | None = None
    b: float | None = None
    ln_k_d: float | None = None
    points: dict = field(default_factory=dict)  # flops, n, d, loss of the envelope points used
    draws: dict = field(default_factory=dict)  # a, ln_k_n, b, ln_k_d (B,)
    variants: tuple = ()  # the same under every rule, with and without the end sizes
    refusals: tuple = ()

    optimum = IsoflopFit.optimum


def _hull(x, y):
    """Indices of the lower convex hull of points, left to right, as far as it falls."""
    hull = []
    xs, ys = x.tolist(), y.tolist()
    for i in np.lexsort((y, x)).tolist():
        while len(hull) > 1:
            p, q = hull[-2], hull[-1]
            if (xs[q] - xs[p]) * (ys[i] - ys[p]) > (ys[q] - ys[p]) * (xs[i] - xs[p]):
                break
            hull.pop()
        hull.append(i)
    return np.array(hull[: int(np.argmin(y[hull])) + 1])


def _binned(run, x, y, grid):
    """ln loss of every curve on the grid (R, G), inf outside the curve."""
    out = np.full((run.max() + 1, len(grid)), np.inf)
    for r in range(len(out)):
        rows = np.flatnonzero(run == r)
        rows = rows[np.argsort(x[rows])]
        out[r] = np.interp(grid, x[rows], y[rows], left=np.inf, right=np.inf)
    return out


def fit_envelope(curve, rule="hull", keep_ends=False, resamples=1000, seed=0):
    """
    Approach 1 of Hoffmann et al. 2022: which model has the lowest loss at each C, over training curves.

    Parameters
    ----------
    curve : dict of (rows,) arrays
        run (int, one number per training run), n, d, c, loss.
    rule : {"hull", "bins"}
        "hull": points of the lower convex hull of (ln C, ln loss) as far as it falls (McLeish et al. 2025); "bins":
        the lowest curve, interpolated in logs, at 1500 log-spaced C (Hoffmann et al. 2022).
    keep_ends : bool
        Keep points won by the smallest or the largest model. They are censored, like an edge minimum: a smaller or
        larger model might have won there.
    resamples : int
        Bootstrap over runs (a whole curve at a time); the hull takes 300 at most.

    Returns
    -------
    EnvelopeFit
    """
    method = "envelope"
    if not curve:
        why = "every run has one row; give training curves (several rows per run_id, or log.jsonl beside the CSV)"
        return EnvelopeFit(rule, not keep_ends, refusals=(Refusal(method, "no_curves", why),))
    rows_per_run = np.bincount(curve["run"])
    keep = rows_per_run[curve["run"]] >= 3
    _, run = np.unique(curve["run"][keep], return_inverse=True)
    n, d, c, loss = (np.asarray(curve[k], float)[keep] for k in ("n", "d", "c", "loss"))
    if len(np.unique(n)) < 4:
        why = f"{len(np.unique(n))} sizes with a training curve; needs 4, of which the smallest and largest are ends"
        return EnvelopeFit(rule, not keep_ends, refusals=(Refusal(method, "too_few_curves", why),))
    x, y, ln_d = np.log(c), np.log(loss), np.log(d)
    size = np.zeros(run.max() + 1)
    size[run] = np.log(n)
    grid = np.linspace(x.min(), x.max(), N_BINS)
    table, tokens = _binned(run, x, y, grid), _binned(run, x, ln_d, grid)
    mine = [np.flatnonzero(run == r) for r in range(len(size))]
    able = np.concatenate([m[_hull(x[m], y[m])] for m in mine])  # a hull of all consists of points of each one's hull
    ends = (size.min(), size.max())

    def points(which, present):
        """(ln C, ln N, ln D, ln L) along the envelope of the runs present."""
        if which == "hull":
            at = able[present[run[able]]]
            at = at[_hull(x[at], y[at])]
            return x[at], size[run[at]], ln_d[at], y[at]
        held = np.where(present[:, None], table, np.inf)
        win = held.argmin(0)
        low = held[win, np.arange(N_BINS)]
        at = np.isfinite(low)
        return grid[at], size[win[at]], tokens[win, np.arange(N_BINS)][at], low[at]

    def line(which, present, all_sizes):
        px, pn, pd, py = points(which, present)
        inner = np.full(len(px), True) if all_sizes else (pn > ends[0]) & (pn < ends[1])
        if len(np.unique(pn[inner])) < 2 or np.ptp(px[inner]) == 0:
            return None
        (a, kn), (b, kd) = np.polyfit(px[inner], pn[inner], 1), np.polyfit(px[inner], pd[inner], 1)
        return (float(a), float(kn), float(b), float(kd)), (px[inner], pn[inner], pd[inner], py[inner])

    everyone = np.full(len(size), True)
    variants = []
    for which in ("hull", "bins"):
        for all_sizes in (False, True):
            got = line(which, everyone, all_sizes)
            values = {"a": got[0][0], "b": got[0][2]} if got else {"a": None, "b": None}
            variants.append({"rule": which, "ends_dropped": not all_sizes, **values})
    got = line(rule, everyone, keep_ends)
    if not got:
        why = "fewer than two sizes other than the smallest and largest ever hold the lowest loss; train more sizes"
        return EnvelopeFit(rule, not keep_ends, refusals=(Refusal(method, "no_interior_size", why),))
    if not 0 < got[0][0] < 1:
        why = "N_opt does not rise with C between 0 and 1 in logs along the envelope; train more sizes"
        return EnvelopeFit(rule, not keep_ends, refusals=(Refusal(method, "runaway_exponent", why),))
    rng = np.random.default_rng(seed)
    b = min(resamples, HULL_RESAMPLES if rule == "hull" else max(50, 40_000_000 // table.size))
    draws = []
    for _ in range(b):
        out = line(rule, np.bincount(rng.integers(len(size), size=len(size)), minlength=len(size)) > 0, keep_ends)
        draws += [out[0]] if out else []
    refusals = []
    if b and len(draws) < 0.75 * b:
        refusals.append(
            Refusal("envelope.interval", "unstable_resamples", "most resamples of the runs have no envelope")
        )
    draws = dict(zip(("a", "ln_k_n", "b", "ln_k_d"), np.array(draws).T, strict=True)) if draws and not refusals else {}
    used = dict(zip(("flops", "n", "d", "loss"), (np.exp(v) for v in got[1]), strict=True))
    return EnvelopeFit(rule, not keep_ends, *got[0], used, draws, tuple(variants), tuple(refusals))

"""
Approach 1 of Hoffmann et al. 2022: the envelope of training curves, and power laws in logs along it.

    >>> fit = fit_envelope({"run": run, "n": n, "d": d, "c": c, "loss": loss})
    >>> fit.a, fit.optimum(1e21)
"""

from dataclasses import dataclass, field, replace

import numpy as np

from isoflop.fit.huber import Refusal
from isoflop.fit.isoflop import IsoflopFit, is_exponent
from isoflop.options import UserError

RULES = ("hull", "bins")
N_BINS = 1500  # log-spaced C of the binned rule, as in Hoffmann et al. 2022, section 3.1
MIN_ROWS = 3  # of a training curve
MIN_SIZES = 4
HULL_RESAMPLES = 300  # the hull is a walk from point to point, not a matrix product
BINS_ELEMENTS = 40_000_000  # runs x bins x resamples that take about a second; never under MIN_RESAMPLES
MIN_RESAMPLES = 50
MIN_KEPT = 0.75  # share of resamples with an envelope, below which there is no interval


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


def fit_envelope(curve, rule="hull", keep_ends=False, resamples=1000, seed=0):
    """
    Approach 1 of Hoffmann et al. 2022: which model has the lowest loss at each C, over training curves.

    Parameters
    ----------
    curve : dict of (rows,) arrays
        run (int, one number per training run), n (parameters), d (tokens), c (FLOPs), loss (nats).
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

    Raises
    ------
    UserError
        `rule` is neither of the two.
    """
    if rule not in RULES:
        raise UserError(f"--envelope_rule {rule} is not known; use one of {', '.join(RULES)}")
    fit = EnvelopeFit(rule, not keep_ends)
    if not curve:
        why = "every run has one row; give training curves (several rows per run_id, or log.jsonl beside the CSV)"
        return _refused(fit, "no_curves", why)
    curves = _Curves(curve)
    sizes = len(np.unique(curves.ln_n))
    if sizes < MIN_SIZES:
        why = f"{sizes} sizes with a training curve; needs {MIN_SIZES}, of which the smallest and largest are ends"
        return _refused(fit, "too_few_curves", why)
    variants = _variants(curves)
    line, points = curves.line(rule, keep_ends)
    if line is None:
        why = "fewer than two sizes other than the smallest and largest ever hold the lowest loss; train more sizes"
        return _refused(fit, "no_interior_size", why)
    if not is_exponent(line["a"]):
        why = "N_opt does not rise with C between 0 and 1 in logs along the envelope; train more sizes"
        return _refused(fit, "runaway_exponent", why)
    draws, refusals = _draws(curves, rule, keep_ends, resamples, np.random.default_rng(seed))
    used = {"flops": points.ln_c, "n": points.ln_n, "d": points.ln_d, "loss": points.ln_loss}
    used = {k: np.exp(v) for k, v in used.items()}
    return replace(fit, **line, points=used, draws=draws, variants=variants, refusals=refusals)


def _refused(fit, code, why):
    return replace(fit, refusals=(Refusal("envelope", code, why),))


def _variants(curves):
    """Both rules, with and without the end sizes: a tuple of {rule, ends_dropped, a, b}, None where there is none."""
    out = []
    for rule in RULES:
        for keep_ends in (False, True):
            line, _ = curves.line(rule, keep_ends)
            row = {"rule": rule, "ends_dropped": not keep_ends, "a": None, "b": None}
            if line:
                row |= {"a": line["a"], "b": line["b"]}
            out.append(row)
    return tuple(out)


def _draws(curves, rule, keep_ends, resamples, rng):
    """Bootstrap over runs: ({a, ln_k_n, b, ln_k_d (B,)}, refusals); empty without resamples or a stable interval."""
    n_runs = len(curves.ln_n)
    most = HULL_RESAMPLES
    if rule == "bins":
        most = max(MIN_RESAMPLES, BINS_ELEMENTS // curves.table.size)
    resamples = min(resamples, most)
    lines = []
    for _ in range(resamples):
        present = np.bincount(rng.integers(n_runs, size=n_runs), minlength=n_runs) > 0
        line, _ = curves.line(rule, keep_ends, present)
        if line:
            lines.append(line)
    if resamples and len(lines) < MIN_KEPT * resamples:
        why = "most resamples of the runs have no envelope"
        return {}, (Refusal("envelope.interval", "unstable_resamples", why),)
    if not lines:
        return {}, ()
    return {k: np.array([line[k] for line in lines]) for k in lines[0]}, ()


@dataclass(frozen=True)
class _Points:
    """Points along an envelope, (P,) each."""

    ln_c: np.ndarray
    ln_n: np.ndarray
    ln_d: np.ndarray
    ln_loss: np.ndarray

    def select(self, keep):
        return _Points(self.ln_c[keep], self.ln_n[keep], self.ln_d[keep], self.ln_loss[keep])


class _Curves:
    """Training curves of MIN_ROWS rows or more, in logs: what every envelope of some of the runs is made from."""

    def __init__(self, curve):
        rows_per_run = np.bincount(curve["run"])
        keep = rows_per_run[curve["run"]] >= MIN_ROWS
        _, self.run = np.unique(curve["run"][keep], return_inverse=True)
        n, d, c, loss = (np.asarray(curve[k], float)[keep] for k in ("n", "d", "c", "loss"))
        self.x, self.y, self.ln_d = np.log(c), np.log(loss), np.log(d)
        n_runs = 0
        if len(self.run):
            n_runs = self.run.max() + 1
        self.ln_n = np.zeros(n_runs)  # of each run
        self.ln_n[self.run] = np.log(n)
        if not n_runs:
            return
        self.grid = np.linspace(self.x.min(), self.x.max(), N_BINS)
        self.table = self._on_grid(self.y)  # ln loss (runs, bins)
        self.tokens = self._on_grid(self.ln_d)
        candidates = []
        for r in range(n_runs):
            rows = np.flatnonzero(self.run == r)
            candidates.append(rows[lower_hull(self.x[rows], self.y[rows])])
        self.candidates = np.concatenate(candidates)  # the hull of all is made of points of each curve's hull

    def _on_grid(self, values):
        """`values` of every curve on the grid, inf outside the curve: (runs, bins)."""
        out = np.full((len(self.ln_n), len(self.grid)), np.inf)
        for r in range(len(out)):
            rows = np.flatnonzero(self.run == r)
            rows = rows[np.argsort(self.x[rows])]
            out[r] = np.interp(self.grid, self.x[rows], values[rows], left=np.inf, right=np.inf)
        return out

    def envelope(self, rule, present):
        """_Points along the lowest of the runs that are present, (runs,) bool."""
        if rule == "hull":
            at = self.candidates[present[self.run[self.candidates]]]
            at = at[lower_hull(self.x[at], self.y[at])]
            return _Points(self.x[at], self.ln_n[self.run[at]], self.ln_d[at], self.y[at])
        table = np.where(present[:, None], self.table, np.inf)
        winner = table.argmin(0)
        lowest = table[winner, np.arange(N_BINS)]
        at = np.isfinite(lowest)
        tokens = self.tokens[winner, np.arange(N_BINS)]
        return _Points(self.grid[at], self.ln_n[winner[at]], tokens[at], lowest[at])

    def line(self, rule, keep_ends, present=None):
        """
        Power laws along an envelope.

        Returns
        -------
        {a, ln_k_n, b, ln_k_d} and the _Points they went through, or (None, None) with fewer than two sizes on it
        """
        if present is None:
            present = np.full(len(self.ln_n), True)
        points = self.envelope(rule, present)
        if not keep_ends:
            points = points.select((points.ln_n > self.ln_n.min()) & (points.ln_n < self.ln_n.max()))
        if len(np.unique(points.ln_n)) < 2 or np.ptp(points.ln_c) == 0:
            return None, None
        a, ln_k_n = np.polyfit(points.ln_c, points.ln_n, 1)
        b, ln_k_d = np.polyfit(points.ln_c, points.ln_d, 1)
        return {"a": float(a), "ln_k_n": float(ln_k_n), "b": float(b), "ln_k_d": float(ln_k_d)}, points


def lower_hull(x, y):
    """Indices of the lower convex hull of points (P,), left to right, as far as it falls."""
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

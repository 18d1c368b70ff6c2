"""
Minima of isoFLOP curves: loss against ln N at one training compute each.

The default finds the minima of all budgets together: three smooth curves, whose width, degree, asymmetry, length and
noise are chosen over all budgets at once, and the mean of their minima. All three are linear in the losses once that is
chosen, so that thousands of draws are a matrix product.

    >>> fit = fit_pooled([Curve(ln_c, ln_n, ln_loss, runs), ...])
    >>> fit.minima().ln_n, fit.draw(4000, rng).ln_n

curve_minima() has the classical rules, one budget at a time.
"""

from dataclasses import dataclass, replace

import numpy as np

METHODS = ("pooled", "local", "akima", "parabola")
STATUS = ("ok", "edge", "concave", "extrapolated", "too_few_sizes")
OK, EDGE, CONCAVE, EXTRAPOLATED, TOO_FEW_SIZES = range(5)
MIN_SIZES = 4
EXACT_SIZES = 3  # a parabola through three points has no residual: its minimum is shown, and has no error


@dataclass(frozen=True)
class Minima:
    """Minima of isoFLOP curves, all arrays of one shape: (B,) of one curve, (B, G) of G curves, B resamples."""

    ln_n: np.ndarray
    loss: np.ndarray
    status: np.ndarray  # indices into STATUS

    @property
    def ok(self):
        return self.status == OK


# ----- all budgets together -----

# Rise of ln L above the minimum at which a run weighs half, and the degrees of the local polynomial.
RISES = (0.02, 0.05, 0.1, np.inf)
DEGREES = (2, 3, 4)
# The asymmetric curve 1, exp(-s ln N), exp(t ln N): a Hoffmann law at one C has s = alpha, t = beta (published ones lie
# in 0.2 to 0.5), and few steps or a long warm-up make the side of large N steeper.
ASYMMETRIC_RISES = (0.03, 0.1, 0.3)
RATES = (0.1, 0.3, 0.6, 1.0, 1.6)
TRENDS = (-0.8, -0.4, 0.0, 0.4, 0.8)  # ln of s and t at the largest budget over their middle, less at the smallest
TREND_GAIN = 0.95  # a trend must lower the error this far: on five grids of Porian et al. to 0.9, elsewhere to 0.98
# The Gaussian process: a parabola plus exp(-(distance / length)^2 / 2) in ln N, and the noise over its variance.
LENGTHS = np.array([0.5, 0.8, 1.2, 2.0, 3.5])
NOISES = np.array([1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0])
WEIGHT_STEPS = 3  # of reweighting by the rise of the last fit
NEAR = 2  # sizes either side of the lowest run whose left-out error counts
GRID = 129  # points over the sizes of a budget, between which a minimum is refined by a parabola
COARSE = 17  # points for the rise of a trial fit
# A run near the minimum whose left-out error of the polynomial is this many robust standard deviations is an outlier:
# none in 120 simulated sweeps without any; two thirds of those 5% too high at a noise of 0.4%.
OUTLIER = 6.0
OUTLIER_ROUNDS = 2  # one per budget each
# Draws hold the choice of width, degree, length and so on fixed. Noise wider by this gives the intervals of N_opt their
# 95% on simulated grids, lopsided and drifting ones too (91.5% without it; bench/bench_minima.py).
CHOICE = 1.15


@dataclass(frozen=True)
class Curve:
    """Runs of one budget by size, (S,) each: ln N rising, ln of the mean loss, how many runs; and ln C."""

    ln_c: float
    ln_n: np.ndarray
    ln_loss: np.ndarray
    runs: np.ndarray


@dataclass(frozen=True)
class Smoother:
    """A smooth curve of every budget, linear in ln loss; M is the most sizes of a budget."""

    error: float  # mean absolute left-out error of ln loss near the minima
    at_runs: np.ndarray  # (G, M, M): ln loss -> fit at the sizes
    at_grid: np.ndarray  # (G, GRID, M): ln loss -> fit on the grid
    left_out: np.ndarray  # (G, M): ln loss minus its prediction without that run
    choice: dict


class _Padded:
    """Curves as arrays of one width: x = (ln N - middle), y = ln loss, runs 0 where a budget has no more sizes."""

    def __init__(self, curves):
        width = max(len(curve.ln_n) for curve in curves)
        shape = len(curves), width
        self.x, self.y, self.runs = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.middle, self.half = np.zeros(shape[0]), np.zeros(shape[0])
        for g, curve in enumerate(curves):
            low, high = curve.ln_n[0], curve.ln_n[-1]
            self.middle[g], self.half[g] = 0.5 * (low + high), 0.5 * (high - low)
            sizes = slice(len(curve.ln_n))
            self.x[g, sizes] = curve.ln_n - self.middle[g]
            self.y[g, sizes] = curve.ln_loss
            self.runs[g, sizes] = curve.runs
        ln_c = np.array([curve.ln_c for curve in curves])
        self.along = np.zeros(shape[0])  # -1 at the smallest budget, 1 at the largest
        if np.ptp(ln_c) > 0:
            self.along = 2 * (ln_c - ln_c.min()) / np.ptp(ln_c) - 1
        present = self.runs > 0
        lowest = np.where(present, self.y, np.inf).argmin(1)[:, None]
        place = np.arange(width)
        last = present.sum(1)[:, None] - 1
        self.near = (np.abs(place - lowest) <= NEAR) & (place > 0) & (place < last)
        self.rise = np.where(present, self.y - np.take_along_axis(self.y, lowest, 1), 0.0)
        self.grid = np.linspace(-1, 1, GRID)  # times half
        self.coarse = np.linspace(-1, 1, COARSE)

    def error(self, left_out):
        """Mean absolute left-out error near the minima of (..., G, M)."""
        return np.where(self.near, np.abs(left_out), 0.0).sum((-2, -1)) / self.near.sum()


def _polynomial_basis(x, degree):
    return x[..., None] ** np.arange(degree + 1)


def _asymmetric_basis(x, s, t):
    """1, exp(-s x) and exp(t x) as combinations close to 1, x, x^2: x (G, M), s and t (..., G) -> (..., G, M, 3)."""
    s, t = s[..., None], t[..., None]
    left, right = np.expm1(-s * x), np.expm1(t * x)
    out = np.ones((*np.broadcast_shapes(left.shape, right.shape), 3))
    out[..., 1] = (right - left) / (s + t)
    out[..., 2] = 2 * (left / s + right / t) / (s + t)
    return out


def _coefficients(basis, weights, values):
    """Weighted least squares: basis (..., M, P), weights (..., M), values (..., M, Q) -> coefficients (..., P, Q)."""
    weighted = np.swapaxes(basis * weights[..., None], -1, -2)
    gram = weighted @ basis
    size = gram.shape[-1]
    ridge = 1e-12 * np.trace(gram, axis1=-2, axis2=-1)[..., None, None]
    return np.linalg.solve(gram + ridge * np.eye(size), weighted @ values)


def _local_fits(data, basis, coarse_basis, rises):
    """
    Fits of K bases by R widths, weighted by 1 / (1 + (rise / RISE)^2) with the rise of the last fit above its minimum.

    basis (K, G, M, P), coarse_basis (K, G, COARSE, P), rises (R,). Returns the matrices from losses to coefficients
    (K, R, G, P, M), the left-out errors (K, R, G, M) at those weights, in closed form, and their means near the minima.
    """
    basis, coarse_basis = basis[:, None], coarse_basis[:, None]
    rises, rise = rises[:, None, None], data.rise
    for _ in range(WEIGHT_STEPS):
        weights = data.runs / (1 + (rise / rises) ** 2)
        coefficients = _coefficients(basis, weights, data.y[..., None])
        fit = (basis @ coefficients)[..., 0]
        floor = (coarse_basis @ coefficients)[..., 0].min(-1)
        rise = np.maximum(fit - floor[..., None], 0.0)
    solve = _coefficients(basis, weights, np.eye(data.y.shape[1]))
    own = (basis * np.swapaxes(solve, -1, -2)).sum(-1)
    left_out = (data.y - fit) / np.maximum(1 - own, 1e-6)
    return solve, left_out, data.error(left_out)


def _polynomial(data):
    """The local polynomial of least left-out error over DEGREES and RISES; budgets of few sizes take a lower degree."""
    best, rises = None, np.array(RISES)
    unit = data.x / data.half[:, None]
    for degree in DEGREES:
        most = np.clip((data.runs > 0).sum(1) - 3, 2, degree)
        kept = (np.arange(degree + 1) <= most[:, None])[:, None]
        basis = _polynomial_basis(unit, degree) * kept
        coarse = _polynomial_basis(data.coarse, degree) * kept
        solve, left_out, errors = _local_fits(data, basis[None], coarse[None], rises)
        solve, left_out, errors = solve[0], left_out[0], errors[0]
        i = int(np.argmin(errors))
        if best is None or errors[i] < best.error:
            choice = {"degree": degree, "rise": float(rises[i])}
            at_grid = (_polynomial_basis(data.grid, degree) * kept) @ solve[i]
            best = Smoother(float(errors[i]), basis @ solve[i], at_grid, left_out[i], choice)
    return best


def _asymmetric(data):
    """The asymmetric curve of least left-out error over RATES and ASYMMETRIC_RISES, and over TRENDS where they help."""
    x_coarse = data.coarse * data.half[:, None]

    def fits(s, t, rises):
        basis, coarse = _asymmetric_basis(data.x, s, t), _asymmetric_basis(x_coarse, s, t)
        return _local_fits(data, basis, coarse, np.array(rises))

    n_budgets = len(data.half)
    rates = np.array(RATES)
    pairs = np.repeat(rates, len(rates)), np.tile(rates, len(rates))
    level = np.ones(n_budgets)
    solve, left_out, errors = fits(pairs[0][:, None] * level, pairs[1][:, None] * level, ASYMMETRIC_RISES)
    i, j = np.unravel_index(np.argmin(errors), errors.shape)
    s, t, rise = pairs[0][i], pairs[1][i], ASYMMETRIC_RISES[j]
    choice = {"s": float(s), "t": float(t), "rise": rise, "s_trend": 0.0, "t_trend": 0.0}
    solve, left_out, error = solve[i, j], left_out[i, j], errors[i, j]
    if n_budgets > 2:
        trends = np.array(TRENDS)
        pairs = np.repeat(trends, len(trends)), np.tile(trends, len(trends))
        factors = [np.exp(v[:, None] * data.along) for v in pairs]
        bent, bent_left_out, errors = fits(s * factors[0], t * factors[1], [rise])
        i = int(np.argmin(errors[:, 0]))
        if errors[i, 0] < TREND_GAIN * error:
            choice |= {"s_trend": float(pairs[0][i]), "t_trend": float(pairs[1][i])}
            solve, left_out, error = bent[i, 0], bent_left_out[i, 0], errors[i, 0]
    s = s * np.exp(choice["s_trend"] * data.along)
    t = t * np.exp(choice["t_trend"] * data.along)
    at_grid = _asymmetric_basis(data.grid * data.half[:, None], s, t) @ solve
    return Smoother(float(error), _asymmetric_basis(data.x, s, t) @ solve, at_grid, left_out, choice)


def _kernel(x, other, length):
    return np.exp(-0.5 * ((x[:, None] - other) / length) ** 2)


def _gaussian_process(data):
    """The Gaussian process about a parabola whose length and noise have the largest restricted likelihood of all."""
    length, noise = _most_likely(data)
    (n_curves, width), lefts = data.x.shape, np.zeros(data.x.shape)
    at_runs, at_grid = np.zeros((n_curves, width, width)), np.zeros((n_curves, GRID, width))
    for g in range(n_curves):
        there = np.flatnonzero(data.runs[g] > 0)
        x, y, half = data.x[g, there], data.y[g, there], data.half[g]
        inverse = np.linalg.inv(_kernel(x, x, length) + np.diag(noise / data.runs[g, there]))
        mean = _polynomial_basis(x / half, 2)
        to_mean = np.linalg.solve(mean.T @ inverse @ mean, mean.T @ inverse)
        to_rest = inverse - inverse @ mean @ to_mean
        for out, points in ((at_runs, data.x[g]), (at_grid, data.grid * half)):
            fit = _polynomial_basis(points / half, 2) @ to_mean + _kernel(points, x, length) @ to_rest
            out[g][:, there] = fit
        lefts[g, there] = to_rest @ y / np.diag(to_rest)
    choice = {"length": float(length), "noise": float(noise)}
    return Smoother(float(data.error(lefts)), at_runs, at_grid, lefts, choice)


def _most_likely(data):
    """Length and noise of the Gaussian process: the restricted likelihood of all budgets, one variance for all."""
    square, ln_det = np.zeros((len(LENGTHS), len(NOISES))), np.zeros((len(LENGTHS), len(NOISES)))
    freedom = 0
    for g in range(len(data.x)):
        there = data.runs[g] > 0
        x, scale = data.x[g, there], np.sqrt(data.runs[g, there])
        mean = _polynomial_basis(x / data.half[g], 2) * scale[:, None]
        contrasts = np.linalg.qr(mean, mode="complete")[0][:, 3:]
        kernels = _kernel(x, x, LENGTHS[:, None, None]) * np.outer(scale, scale)
        values, vectors = np.linalg.eigh(contrasts.T @ kernels @ contrasts)
        z = (contrasts.T @ (scale * data.y[g, there])) @ vectors
        variance = np.maximum(values, 0.0)[:, :, None] + NOISES
        square += (z[..., None] ** 2 / variance).sum(1)
        ln_det += np.log(variance).sum(1)
        freedom += len(x) - 3
    likelihood = -0.5 * (freedom * np.log(np.maximum(square, 1e-300)) + ln_det)
    i, j = np.unravel_index(np.argmax(likelihood), likelihood.shape)
    return LENGTHS[i], NOISES[j]


def _lowest(grid, values):
    """Where curves (..., GRID) are lowest, refined by a parabola, and the value there."""
    i = np.clip(values.argmin(-1), 1, len(grid) - 2)[..., None]
    left, middle, right = (np.take_along_axis(values, i + k, -1)[..., 0] for k in (-1, 0, 1))
    bend = left - 2 * middle + right
    with np.errstate(divide="ignore", invalid="ignore"):
        shift = np.where(bend > 0, 0.5 * (left - right) / bend, 0.0)
    shift = np.clip(shift, -1, 1)
    return grid[i[..., 0]] + shift * (grid[1] - grid[0]), middle - 0.25 * (left - right) * shift


@dataclass(frozen=True)
class PooledFit:
    """What fit_pooled chose; minima() of the runs, of other losses at the same sizes, and of draws."""

    members: dict  # name -> Smoother
    shares: dict  # name -> weight of its minimum in the mean
    sd: float  # of ln loss of one run, from the residuals near the minima
    freedom: float  # degrees of freedom of sd
    data: _Padded
    sizes: tuple  # of each budget, the sizes used, as indices; outliers are not among them
    outliers: tuple = ()  # (budget, size), as indices

    def minima(self, ln_losses=None):
        """Minima of all budgets, (1, G). ln_losses: a law's at all sizes of each budget, smoothed as the runs were."""
        y = self.data.y.copy()
        if ln_losses is not None:
            for g, (values, sizes) in enumerate(zip(ln_losses, self.sizes, strict=True)):
                y[g, : len(sizes)] = values[sizes]
        found = [self._of(g, y[g][None]) for g in range(len(y))]
        return Minima(*(np.stack([getattr(m, k) for m in found], 1) for k in ("ln_n", "loss", "status")))

    def curve(self, g):
        """The mean of the smooth curves of budget g: ln N and ln loss, (GRID,) each."""
        ln_loss = sum(self.shares[name] * (member.at_grid[g] @ self.data.y[g]) for name, member in self.members.items())
        return self.data.middle[g] + self.data.half[g] * self.data.grid, ln_loss

    def draw(self, draws, rng):
        """
        Minima (B, G) of the runs with noise of CHOICE * sd added once more to each: their spread is that of the minima.

        A draw weighs the members at random (a flat Dirichlet about their shares), so that their spread is in it, and
        has an sd of its own (of few runs it is not well known: Student's t, not a normal).
        """
        found, sd = [], CHOICE * self.sd * np.sqrt(self.freedom / rng.chisquare(self.freedom, (draws, 1)))
        for g, y in enumerate(self.data.y):
            runs = self.data.runs[g]
            scale = np.where(runs > 0, 1 / np.sqrt(np.maximum(runs, 1.0)), 0.0)
            found.append(self._of(g, y + sd * scale * rng.standard_normal((draws, len(y))), rng))
        return Minima(*(np.stack([getattr(m, k) for m in found], 1) for k in ("ln_n", "loss", "status")))

    def _of(self, g, y, rng=None):
        """Minima (B,) of one budget from ln losses (B, M)."""
        at, value, total = np.zeros(len(y)), np.zeros(len(y)), np.zeros(len(y))
        inside = np.full(len(y), True)
        for name, smoother in self.members.items():
            where, low = _lowest(self.data.grid, y @ smoother.at_grid[g].T)
            share = self.shares[name]
            if rng is not None:
                share = share * rng.standard_exponential(len(y))
            at += share * where
            value += share * low
            total += share
            inside &= np.abs(where) < 1
        ln_n = self.data.middle[g] + self.data.half[g] * at / total
        return Minima(ln_n, np.exp(value / total), np.where(inside, OK, EXTRAPOLATED))


def fit_pooled(curves):
    """
    Smooth curves through the runs of all budgets, chosen over all of them, for the mean of their minima.

    Three members: a polynomial of ln N, local in the rise of the loss (degree and width by left-out error near the
    minima); 1, exp(-s ln N), exp(t ln N), local too, with s and t common to all budgets or with a trend along ln C (by
    the same error); a Gaussian process about a parabola (length and noise by restricted likelihood). A member's minimum
    weighs by the inverse of its left-out error. Outliers near the minima are left out, one per budget and round.

    Parameters
    ----------
    curves : list of Curve
        At least MIN_SIZES sizes each, the lowest run inside.

    Returns
    -------
    PooledFit
    """
    sizes, outliers = [np.arange(len(curve.ln_n)) for curve in curves], []
    fit = _fit(curves, sizes)
    for _ in range(OUTLIER_ROUNDS):
        found = _outliers(fit)
        if not found:
            break
        for g, j in found:
            outliers.append((g, int(sizes[g][j])))
            sizes[g] = np.delete(sizes[g], j)
        fit = _fit(curves, sizes)
    return replace(fit, outliers=tuple(outliers))


def _fit(curves, sizes):
    """PooledFit of the given sizes of every curve."""
    kept = []
    for curve, own in zip(curves, sizes, strict=True):
        kept.append(Curve(curve.ln_c, curve.ln_n[own], curve.ln_loss[own], curve.runs[own]))
    data = _Padded(kept)
    members = {
        "polynomial": _polynomial(data),
        "asymmetric": _asymmetric(data),
        "gaussian_process": _gaussian_process(data),
    }
    precision = {name: 1 / max(member.error, 1e-9) for name, member in members.items()}
    total = sum(precision.values())
    shares = {name: v / total for name, v in precision.items()}
    sd, freedom = _noise(data, members, shares)
    return PooledFit(members, shares, sd, freedom, data, tuple(sizes))


def _outliers(fit):
    """(budget, index of its size) of the worst outlier of each budget, if the rest of it still has a minimum inside."""
    data, found = fit.data, []
    left_out = np.where(data.near, np.abs(fit.members["polynomial"].left_out), 0.0)
    sd = 1.4826 * np.median(left_out[data.near])
    for g in range(len(left_out)):
        j, n_sizes = int(np.argmax(left_out[g])), int((data.runs[g] > 0).sum())
        rest = np.delete(data.y[g, :n_sizes], j)
        inside = 0 < np.argmin(rest) < len(rest) - 1
        if left_out[g, j] > OUTLIER * sd + 1e-9 and n_sizes > MIN_SIZES + 1 and inside:
            found.append((g, j))
    return found


def _noise(data, members, shares):
    """Sd of ln loss of one run, from residuals of the mean fit near the minima over what it leaves; their freedom."""
    smooth = sum(shares[name] * member.at_runs for name, member in members.items())
    residual = data.y - (smooth @ data.y[..., None])[..., 0]
    per_run = 1 / np.maximum(data.runs, 1.0)
    left = ((np.eye(data.x.shape[1]) - smooth) ** 2 @ per_run[..., None])[..., 0]
    freedom = float((left / per_run)[data.near].sum())
    return float(np.sqrt((residual**2)[data.near].sum() / left[data.near].sum())), max(freedom, 1.0)


# ----- one budget at a time: the classical rules -----

# Runs whose loss is this far above the minimum weigh half in the local parabola: narrow enough to leave a bias under
# 0.001 in `a` on published grids; the nearest half of the sizes alone made `a` three times as noisy on Kempner's grid.
LOCAL_RISE = 0.05
LOCAL_STEPS = 3  # of reweighting about the last minimum


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

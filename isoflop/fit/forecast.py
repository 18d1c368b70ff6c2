"""
The forecast from isoFLOP minima: loss, N and D at a compute beyond (or between) the budgets, with two intervals.

    >>> fit = fit_isoflop(n, d, c, loss)
    >>> rows, refusals = forecast_isoflop(fit, [1e21, 1e22])
    >>> rows[0].loss.point, rows[0].loss.pi95

`ci95` says where the line lies. `pi95` says where the best run of a new budget would land; its constants are those of a
population of public sweeps, below.
"""

from dataclasses import dataclass

import numpy as np

from isoflop.fit.huber import PERCENTILES, Refusal
from isoflop.laws import cost_of

MIN_OPTIMA = 3
Z95 = 1.96

# The loss of the optima: L = E + k (C / C_last)^-g, averaged over all E, k and g by how well they fit and by priors of
# g and of phi, the share of E in the loss of the last. Published laws have phi .7 to .9 at their last runs (0 in
# Kaplan's) and g .15 to .18.
PHI, PHI_SD = 0.7, 0.2
GROWTH, GROWTH_SD_LN = 0.18, 0.4
GROWTH_GRID = np.geomspace(0.02, 1.0, 400)
OPTIMUM_SE = 0.6  # standard error of a minimum's ln loss over the sd of one run, of 6 to 12 sizes
T_LESS_Z = 1.2  # Student's t at 95% is wider than a normal by this over its degrees of freedom
LEAST_SE = 1e-4  # what smooth curves are off by without any noise
# No sweep obeys such a law to its noise. An optimum's ln L misses it by MISFIT, and by MISFIT_RATE more per e-fold of C
# below the last: what lies far back says little of what comes. Both may be smaller by these factors f. The forecast
# itself has a prior of f^3: on public sweeps its mean error is .82% so, .98% with a flat one. ci95 asks where the line
# lies if such a law holds, so that there all factors count alike, 0 (all budgets count by their noise) among them.
MISFIT, MISFIT_RATE = 0.003, 0.008
MISFIT_FACTORS = np.array([0.0, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0])
MISFIT_POWER = 3.0

# pi95 of ln L: the hypotenuse of one run's sd and LOSS_RATE x slope x (ln(C / C_max) + 1/2), where the slope is
# -d ln L / d ln C at the last minimum: steep curves are further off. From the hold-outs of public sweeps in
# bench/bench_intervals.py (Porian et al. on OpenWebText2, Kempner Institute, Marin, Hoffmann's points as read by
# Besiroglu et al.; 1 to 30 times C_max). By interval score, one family left out at a time, a constant rate in place of
# the slope is 24% worse with four minima or more and 62% with three or more. The sweep's own multi-step back-tests on
# top of it would gain 1 to 3%, less than one sweep more or less does: they are left out.
LOSS_RATE = 0.17
HEAD_START = 0.5  # of the distance in ln C: fits are already off at their edge

# ln N_opt: a line in ln C of slope .5 +- .1 before there are data (a of public grids: .36 to .86, most .45 to .6). The
# minima scatter about it by SIZE_SD unless enough of them say otherwise, and by SIZE_DRIFT more per e-fold below the
# last.
SLOPE, SLOPE_SD = 0.5, 0.1
SIZE_SD, SIZE_SD_WEIGHT = 0.08, 4.0  # the latter in degrees of freedom
SIZE_DRIFT = 0.05
SIZE_HALF = 1.9  # pi95 in hypotenuses of the line's sd and one minimum's, from the same hold-outs; it holds ci95


@dataclass(frozen=True)
class Quantity:
    """A number with the interval of the line and that of a new run, each (low, high)."""

    point: float
    ci95: tuple
    pi95: tuple


@dataclass(frozen=True)
class Forecast:
    """What to expect at `flops`; loss of the best run in nats, parameters and tokens of the best run."""

    flops: float
    method: str
    loss: Quantity
    n_opt: Quantity
    d_opt: Quantity
    tokens_per_param: Quantity


class LossLine:
    """
    Posterior of the loss along the optima.

    Parameters
    ----------
    flops, loss : (K,) arrays
        Compute and loss of each budget's minimum, by rising compute.
    se : float or (K,) array
        Standard error of ln loss.

    Notes
    -----
    Given g and a misfit the law is linear in E and k: its posterior is normal, in closed form. A grid of E and g is too
    coarse at a noise of 0.1%: it put the forecast 0.8% below Besiroglu's law at 10 C_max.
    """

    def __init__(self, flops, loss, se=0.0):
        ln_c, loss = np.log(np.asarray(flops, float)), np.asarray(loss, float)
        self.last, self.unit = ln_c[-1], loss[-1]
        back, y = ln_c - self.last, loss / self.unit
        misfit = MISFIT**2 + (MISFIT_RATE * back) ** 2
        prior = -0.5 * (np.log(GROWTH_GRID / GROWTH) / GROWTH_SD_LN) ** 2
        means, covariances, ln_p = [], [], []
        for factor in MISFIT_FACTORS:
            variance = factor**2 * misfit + np.square(se) + LEAST_SE**2
            mean, covariance, ln_likelihood = _floor_and_fall(back, y, variance * y**2)
            means.append(mean)
            covariances.append(covariance)
            ln_p.append(prior + ln_likelihood)
        self.mean, self.covariance = np.array(means), np.array(covariances)  # of E and k: (factors, g, 2), (.., 2, 2)
        self.p_if_exact = _normalised(np.array(ln_p))  # (factors, g)
        self.p = _normalised(self.p_if_exact * MISFIT_FACTORS[:, None] ** MISFIT_POWER, logs=False)
        self.slope = float((self.p * self.mean[..., 1] * GROWTH_GRID).sum())  # -d ln L / d ln C at the last minimum

    def _moments(self, flops, p):
        """Mean and standard deviation of the loss over `unit` at compute (M,), with (factors, g) weighted by p."""
        ahead = np.log(np.asarray(flops, float)) - self.last
        fall = np.exp(-GROWTH_GRID * ahead[:, None])[:, None]  # (M, 1, g)
        each = self.mean[..., 0] + self.mean[..., 1] * fall  # (M, factors, g)
        floor, both, falls = (self.covariance[..., i, j] for i, j in ((0, 0), (0, 1), (1, 1)))
        variance = floor + 2 * both * fall + falls * fall**2
        mean = (p * each).sum((1, 2))
        return mean, np.sqrt((p * (variance + (each - mean[:, None, None]) ** 2)).sum((1, 2)))

    def at(self, flops):
        """Mean and standard error of ln L at compute (M,): the line's, without a run's noise or misfit beyond."""
        mean, sd = self._moments(flops, self.p)
        return np.log(mean * self.unit), sd / mean

    def interval(self, flops):
        """
        ci95 of ln L at compute: (M,) low, (M,) high.

        Where 95% of the lines lie if such a law holds, widened to hold at(): the guard against misfit and the priors
        pull that one, by up to half a percent at 10 C_max where a law is exact, and the interval says so.
        """
        mean, sd = self._moments(flops, self.p_if_exact)
        centre, half, point = np.log(mean * self.unit), Z95 * sd / mean, self.at(flops)[0]
        return np.minimum(centre - half, point), np.maximum(centre + half, point)


def _normalised(weights, logs=True):
    if logs:
        weights = np.exp(weights - weights.max())
    return weights / weights.sum()


def _floor_and_fall(back, y, variance):
    """
    Posterior of E and k in y = E + k exp(-g back) for every g of GROWTH_GRID: means (g, 2), covariances (g, 2, 2), and
    the logs of the marginal likelihoods (g,). The prior of phi is one more row: (1 - PHI) E - PHI k = 0 +- PHI_SD.
    """
    n_g = len(GROWTH_GRID)
    falls = np.exp(-GROWTH_GRID[:, None] * back)
    design = np.empty((n_g, len(back) + 1, 2))
    design[:, :-1, 0], design[:, :-1, 1] = 1.0, falls
    design[:, -1] = 1 - PHI, -PHI
    y, precision = np.append(y, 0.0), 1 / np.append(variance, PHI_SD**2)
    weighted = design * precision[:, None]
    gram = np.swapaxes(weighted, 1, 2) @ design
    covariance = np.linalg.inv(gram)
    mean = (covariance @ (np.swapaxes(weighted, 1, 2) @ y)[..., None])[..., 0]
    rest = y - (design @ mean[..., None])[..., 0]
    ln_likelihood = -0.5 * (rest**2 @ precision - np.log(precision).sum() + np.linalg.slogdet(gram)[1])
    return mean, covariance, ln_likelihood


def size_line(flops, n_opt, at):
    """
    ln N_opt at compute `at` by a line through the minima with a weak prior of its slope.

    Parameters
    ----------
    flops, n_opt : (K,) arrays
        By rising compute, K >= 3.
    at : (M,) array
        FLOPs.

    Returns
    -------
    mean, sd : (M,) arrays
        Of the line.
    scatter : float
        Standard deviation of one budget's ln N_opt about it.
    """
    ln_c, ln_n = np.log(np.asarray(flops, float)), np.log(np.asarray(n_opt, float))
    back, ahead = ln_c - ln_c[-1], np.log(np.asarray(at, float)) - ln_c[-1]
    rest = ln_n - np.polyval(np.polyfit(back, ln_n, 1), back)
    freedom = SIZE_SD_WEIGHT + len(back) - 2
    scatter2 = (SIZE_SD_WEIGHT * SIZE_SD**2 + (rest**2).sum()) / freedom
    precision = 1 / (scatter2 + (SIZE_DRIFT * back) ** 2)
    design = np.stack([np.ones_like(back), back], 1)
    covariance = np.linalg.inv(design.T @ (design * precision[:, None]) + np.diag([0.0, 1 / SLOPE_SD**2]))
    line = covariance @ (design.T @ (precision * ln_n) + np.array([0.0, SLOPE / SLOPE_SD**2]))
    to = np.stack([np.ones_like(ahead), ahead], 1)
    return to @ line, np.sqrt(((to @ covariance) * to).sum(1)), float(np.sqrt(scatter2))


def _quantity(ln_point, ln_low, ln_high, ln_half, widen):
    """
    exp of logs, ci95 inside pi95: pi95 is widened to hold it, or ci95 cut to what new runs have shown.

    The loss of public sweeps says that its line leaves less open than it claims; of N the runs may leave more open than
    those sweeps did, and a cut interval then misses the truth.
    """
    low, high = ln_point - ln_half, ln_point + ln_half
    ln_low, ln_high = min(ln_low, ln_point), max(ln_high, ln_point)
    if widen:
        low, high = min(low, ln_low), max(high, ln_high)
    ends = np.exp([max(low, ln_low), min(high, ln_high), low, high])
    ci_low, ci_high, low, high = (float(v) for v in ends)
    return Quantity(float(np.exp(ln_point)), (ci_low, ci_high), (low, high))


def line_forecast(flops, loss, n_opt, d_opt, at, c_max=None, noise=0.0, se=0.0, drawn=None):
    """
    Loss, N and D at compute `at`, from the minima of isoFLOP curves.

    Parameters
    ----------
    flops, loss, n_opt, d_opt : (K,) arrays
        The minima: FLOPs, nats per token, parameters, tokens.
    at : (M,) array
        FLOPs.
    c_max : float, optional
        Largest compute of any run, from where distance counts; the last minimum's without it.
    noise : float
        Standard deviation of ln loss of one run.
    se : float or (K,) array
        Standard error of the minima's ln loss.
    drawn : (slopes (B,), intercepts (B,)), optional
        Of lines of ln N_opt over ln C, bootstrapped: ci95 of N and D is theirs. Without them it is size_line's.

    Returns
    -------
    tuple of M Forecast
        Empty with fewer than MIN_OPTIMA minima. D is what is left of C at N, by the cost of the minima's own N and D.
    """
    if len(flops) < MIN_OPTIMA:
        return ()
    flops, loss, n_opt, d_opt, at = (np.asarray(v, float) for v in (flops, loss, n_opt, d_opt, at))
    se = np.broadcast_to(se, flops.shape)
    order = np.argsort(flops)
    flops, loss, n_opt, d_opt = flops[order], loss[order], n_opt[order], d_opt[order]
    se = se[order]
    if c_max is None:
        c_max = flops[-1]
    line = LossLine(flops, loss, se)
    ln_loss = line.at(at)[0]
    loss_low, loss_high = line.interval(at)
    distance = np.maximum(0.0, np.log(at / c_max)) + HEAD_START
    loss_half = np.hypot(LOSS_RATE * line.slope * distance, noise)
    ln_n, n_sd, scatter = size_line(flops, n_opt, at)
    n_low, n_high = ln_n - Z95 * n_sd, ln_n + Z95 * n_sd
    if drawn is not None:
        lines = drawn[1][:, None] + drawn[0][:, None] * np.log(at)
        n_low, n_high = np.percentile(lines, PERCENTILES, axis=0)
    n_half = SIZE_HALF * np.hypot(n_sd, scatter)
    cost = cost_of(n_opt, d_opt, flops)
    ln_d = np.log(cost.tokens(np.exp(ln_n), at))
    share = 1 + cost.rho  # of an error of ln N in ln D at one C
    out = []
    for i, c in enumerate(at):
        loss = _quantity(ln_loss[i], loss_low[i], loss_high[i], loss_half[i], widen=False)
        sizes = [_quantity(ln_n[i], n_low[i], n_high[i], n_half[i], widen=True)]
        below, above = ln_n[i] - n_low[i], n_high[i] - ln_n[i]
        for ln_point, factor in ((ln_d[i], share), (ln_d[i] - ln_n[i], 1 + share)):  # D and D / N fall where N rises
            ends = ln_point - factor * above, ln_point + factor * below
            sizes.append(_quantity(ln_point, *ends, factor * n_half[i], widen=True))
        out.append(Forecast(float(c), "isoflop", loss, *sizes))
    return tuple(out)


def forecast_isoflop(fit, at, c_max=None):
    """line_forecast from an IsoflopFit: (tuple of Forecast, tuple of Refusal)."""
    known = [v for v in fit.budgets if v.status == "ok"]
    if len(known) < MIN_OPTIMA or fit.a is None:
        why = f"{len(known)} budgets have a minimum inside their sizes; a forecast needs {MIN_OPTIMA}; add budgets"
        return (), (Refusal("forecast", "too_few_minima", why),)
    if known[-1].loss >= known[0].loss:
        why = "the least loss does not fall from the smallest budget to the largest; look at these runs again"
        return (), (Refusal("forecast", "loss_does_not_fall", why),)
    minima = [[getattr(v, k) for v in known] for k in ("flops", "loss", "n_opt", "d_opt")]
    if c_max is None:
        c_max = max(v.flops for v in fit.budgets)
    noise, drawn = noise_of(fit), None
    se = OPTIMUM_SE * noise
    if fit.pooled is not None:
        se *= 1 + T_LESS_Z / fit.pooled.freedom
    if "a" in fit.draws:
        drawn = fit.draws["a"], fit.draws["ln_k_n"]
    return line_forecast(*minima, at, c_max, noise, se, drawn), ()


def noise_of(fit):
    """Standard deviation of ln loss of one run in an IsoflopFit; without a pooled fit that of the minima, or 0."""
    if fit.pooled is not None:
        return fit.pooled.sd
    widths = [np.log(v.ci["loss"][1] / v.ci["loss"][0]) / (2 * Z95) for v in fit.budgets if v.ci]
    if not widths:
        return 0.0
    return float(np.median(widths))

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

from isoflop.fit.huber import Refusal
from isoflop.laws import cost_of

MIN_OPTIMA = 3
Z95 = 1.96

# The loss of the optima: L = v [phi + (1 - phi) (C / C_last)^-g], E = phi v, averaged over all phi and g by how well
# they fit and by these priors. Published laws have phi .7 to .9 at their last runs (0 in Kaplan's) and g .15 to .18.
PHI, PHI_SD = 0.7, 0.2
GROWTH, GROWTH_SD_LN = 0.18, 0.4
PHI_GRID = np.linspace(0.0, 0.975, 40)
GROWTH_GRID = np.geomspace(0.03, 0.8, 40)
# The priors pull where a law holds exactly with a phi far from PHI: standard errors wider by this let ci95 hold the
# truth at 10 C_max in 93% of simulated sweeps about three laws (57 to 73% about Besiroglu's at a noise of 0.2%).
PULL = 1.3
OPTIMUM_SE = 0.6  # standard error of a minimum's ln loss over the sd of one run, of 6 to 12 sizes
# No sweep obeys such a law to its noise. An optimum's ln L misses it by MISFIT, and by MISFIT_RATE more per e-fold of C
# below the last: what lies far back says little of what comes. Both may be smaller, by these factors f, with a prior
# of f^3 (and each factor's own likelihood): where a law holds exactly, all budgets count.
MISFIT, MISFIT_RATE = 0.003, 0.008
MISFIT_FACTORS = np.array([1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0])
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
SIZE_HALF = 2.0  # pi95 in hypotenuses of the line's sd and one minimum's, from the same hold-outs


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
    """

    def __init__(self, flops, loss, se=0.0):
        ln_c, ln_loss = np.log(np.asarray(flops, float)), np.log(np.asarray(loss, float))
        self.last = ln_c[-1]
        back = ln_c - self.last
        phi, growth = (v.ravel() for v in np.meshgrid(PHI_GRID, GROWTH_GRID, indexing="ij"))
        self.phi, self.growth = phi, growth
        residual = ln_loss - self._shape(back)  # (curves, K), of which the level is the mean
        prior = -0.5 * ((phi - PHI) / PHI_SD) ** 2 - 0.5 * (np.log(growth / GROWTH) / GROWTH_SD_LN) ** 2
        misfit = MISFIT**2 + (MISFIT_RATE * back) ** 2
        levels, ln_p, variances = [], [], []
        for factor in MISFIT_FACTORS:
            variance = factor**2 * misfit + np.square(se)
            precision = 1 / variance
            level = residual @ precision / precision.sum()
            square = (residual - level[:, None]) ** 2 @ precision
            ln_det = np.log(variance).sum() + np.log(precision.sum())
            levels.append(level)
            variances.append(1 / precision.sum())
            ln_p.append(prior + MISFIT_POWER * np.log(factor) - 0.5 * (square + ln_det))
        p = np.exp(np.array(ln_p) - np.max(ln_p))
        self.p = (p / p.sum()).ravel()  # (factors x curves,)
        self.level = np.concatenate(levels)
        self.level_variance = float(self.p.reshape(p.shape).sum(1) @ variances)
        self.slope = float(
            self.p.reshape(p.shape).sum(0) @ ((1 - phi) * growth)
        )  # -d ln L / d ln C at the last minimum

    def _shape(self, distance):
        """ln L over its level, (curves, K), at distances (K,) in ln C from the last optimum."""
        fall = np.exp(-self.growth[:, None] * distance)
        return np.log(self.phi[:, None] + (1 - self.phi[:, None]) * fall)

    def at(self, flops):
        """Mean and standard error of ln L at compute (M,): the line's, without a run's noise or misfit beyond."""
        shape = self._shape(np.log(np.asarray(flops, float)) - self.last)
        ln_loss = self.level[:, None] + np.tile(shape, (len(MISFIT_FACTORS), 1))
        mean = self.p @ ln_loss
        variance = self.p @ (ln_loss - mean) ** 2
        return mean, PULL * np.sqrt(variance + self.level_variance)


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


def _quantity(ln_point, ln_se, ln_half):
    """exp of a normal. What the line leaves open is never more than what new runs have shown: ci95 is inside pi95."""
    ends = []
    for half in (min(Z95 * ln_se, ln_half), ln_half):
        ends.append((float(np.exp(ln_point - half)), float(np.exp(ln_point + half))))
    return Quantity(float(np.exp(ln_point)), *ends)


def line_forecast(flops, loss, n_opt, d_opt, at, c_max=None, noise=0.0, se=0.0):
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
    ln_loss, loss_sd = line.at(at)
    distance = np.maximum(0.0, np.log(at / c_max)) + HEAD_START
    loss_half = np.hypot(LOSS_RATE * line.slope * distance, noise)
    ln_n, n_sd, scatter = size_line(flops, n_opt, at)
    n_half = SIZE_HALF * np.hypot(n_sd, scatter)
    cost = cost_of(n_opt, d_opt, flops)
    ln_d = np.log(cost.tokens(np.exp(ln_n), at))
    share = 1 + cost.rho  # of an error of ln N in ln D at one C
    out = []
    for i, c in enumerate(at):
        out.append(
            Forecast(
                float(c),
                "isoflop",
                _quantity(ln_loss[i], loss_sd[i], loss_half[i]),
                _quantity(ln_n[i], n_sd[i], n_half[i]),
                _quantity(ln_d[i], share * n_sd[i], share * n_half[i]),
                _quantity(ln_d[i] - ln_n[i], (1 + share) * n_sd[i], (1 + share) * n_half[i]),
            )
        )
    return tuple(out)


def forecast_isoflop(fit, at, c_max=None):
    """line_forecast from an IsoflopFit: (tuple of Forecast, tuple of Refusal)."""
    known = [v for v in fit.budgets if v.status == "ok"]
    if len(known) < MIN_OPTIMA or fit.a is None:
        why = f"{len(known)} budgets have a minimum inside their sizes; a forecast needs {MIN_OPTIMA}; add budgets"
        return (), (Refusal("forecast", "too_few_minima", why),)
    minima = [[getattr(v, k) for v in known] for k in ("flops", "loss", "n_opt", "d_opt")]
    if c_max is None:
        c_max = max(v.flops for v in fit.budgets)
    noise = noise_of(fit)
    return line_forecast(*minima, at, c_max, noise, OPTIMUM_SE * noise), ()


def noise_of(fit):
    """Standard deviation of ln loss of one run in an IsoflopFit; without a pooled fit that of the minima, or 0."""
    if fit.pooled is not None:
        return fit.pooled.sd
    widths = [np.log(v.ci["loss"][1] / v.ci["loss"][0]) / (2 * Z95) for v in fit.budgets if v.ci]
    if not widths:
        return 0.0
    return float(np.median(widths))

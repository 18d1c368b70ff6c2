"""
One forecast: from the isoFLOP minima where there are enough of them, else from the coupled law; single runs from both.

    >>> rows, refusals = forecast(fit_isoflop(n, d, c, loss), fit_coupled(n, d, loss, c), [1e21], cost, c.max())
    >>> rows[0].loss.pi95, rows[0].method

The line through the minima (forecast.py) is the better forecast of the best run. Off the optimum only a law of N and
D answers: its loss is moved by as much as the line and the law's own least loss differ at that compute, so that both
agree on the optimum.
"""

import functools

import numpy as np

from isoflop.fit.forecast import (
    HEAD_START,
    LOSS_RATE,
    MIN_OPTIMA,
    SIZE_HALF,
    SIZE_SD,
    Z95,
    Forecast,
    Quantity,
    forecast_isoflop,
)
from isoflop.fit.predict import equivalent_compute, run_row

METHOD = "forecast"  # name of single runs' rows in predictions.runs


def forecast(isoflop, coupled, at, cost, c_max):
    """
    One Forecast per compute: (tuple of Forecast, tuple of Refusal).

    Parameters
    ----------
    isoflop : IsoflopFit
    coupled : CoupledFit
    at : sequence of float
        FLOPs.
    cost : Cost
        What a run of N and D costs.
    c_max : float
        Largest compute of any run, from where distance counts.
    """
    rows, refusals = forecast_isoflop(isoflop, at, c_max)
    if rows:
        return rows, ()
    if coupled.law is None:
        return (), (*refusals, *coupled.refusals)
    return tuple(_at(coupled, float(c), cost, c_max) for c in at), ()


def _at(coupled, c, cost, c_max):
    """The coupled law's Forecast at compute c."""
    law = coupled.law
    n, d = law.optimum(c, cost)
    slope = np.log(law.frontier_loss(c_max, cost) / law.frontier_loss(1.01 * c_max, cost)) / np.log(1.01)
    distance = max(0.0, np.log(c / c_max)) + HEAD_START
    loss_half = np.hypot(LOSS_RATE * slope * distance, coupled.sigma)
    drawn = None
    if coupled.draws is not None:
        drawn_n, drawn_d = coupled.draws.optimum(c, cost)
        drawn = {"loss": coupled.draws.frontier_loss(c, cost), "n_opt": drawn_n, "d_opt": drawn_d}
        drawn["tokens_per_param"] = drawn_d / drawn_n
    share = 1 + cost.rho  # of an error of ln N in ln D at one C
    halves = {"n_opt": SIZE_SD, "d_opt": share * SIZE_SD, "tokens_per_param": (1 + share) * SIZE_SD}
    points = {"loss": law.frontier_loss(c, cost), "n_opt": n, "d_opt": d, "tokens_per_param": d / n}
    quantities = {}
    for name, point in points.items():
        ln_sd, ci = _spread(drawn[name] if drawn else None)
        if name == "loss":
            half = np.hypot(loss_half, Z95 * ln_sd)
        else:
            half = SIZE_HALF * np.hypot(halves[name], ln_sd)
        pi = (float(point * np.exp(-half)), float(point * np.exp(half)))
        if ci is not None:  # an interval for a new run is never inside the law's own
            pi = (min(pi[0], ci[0]), max(pi[1], ci[1]))
        quantities[name] = Quantity(float(point), ci, pi)
    return Forecast(c, "coupled", **quantities)


def _spread(values):
    """Robust standard deviation of ln values, and their 95% interval; 0 and None without draws."""
    if values is None:
        return 0.0, None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(np.log(high / low) / (2 * Z95)), (float(low), float(high))


# ----- single runs -----


def forecast_runs(isoflop, coupled, targets, cost, c_max):
    """
    Rows of predictions.runs by the forecast: the loss of given (N, D), measured or not.

    Parameters
    ----------
    targets : Table
        n, d and where known loss.

    Returns
    -------
    list of dict: as predict.predict_runs(), method "forecast". Empty where the coupled law was refused.

    Notes
    -----
    ln L(N, D) = ln law(N, D) + ln line(C) - ln law's least loss at C. The half-width of pi95 is the hypotenuse of the
    forecast's at C (of the best run of a budget, with one sd of noise), of 1.96 standard deviations of the law's
    ln(L(N, D) / least loss at C) over its draws, and of the noise that brings the sds of this one run to 1.96.
    """
    if coupled.law is None:
        return []
    rows = []
    anchored = sum(budget.status == "ok" for budget in isoflop.budgets) >= MIN_OPTIMA and isoflop.a is not None
    least = min((budget.flops for budget in isoflop.budgets if budget.status == "ok"), default=0.0)
    for i in range(len(targets.n)):
        n, d = float(targets.n[i]), float(targets.d[i])
        c = float(cost.flops(n, d))
        at = max(c, least) if anchored else c  # below the budgets the line says nothing: its first shift holds
        best = forecast(isoflop, coupled, [at], cost, c_max)[0][0].loss
        shift = best.point / float(coupled.law.frontier_loss(at, cost))
        loss = _run_loss(coupled, n, d, c, cost, shift, best)
        expected = functools.partial(_shifted, coupled.law, shift)
        equivalent = functools.partial(equivalent_compute, expected, n, d, cost=cost)
        rows.append(run_row(targets.run_id[i], n, d, METHOD, loss, targets.loss[i], equivalent))
    return rows


def _shifted(law, shift, n, d):
    return law.loss(n, d) * shift


def _run_loss(coupled, n, d, c, cost, shift, best):
    """{point, ci95, pi95} of one run's loss."""
    point = float(coupled.law.loss(n, d)) * shift
    off_sd = 0.0
    if coupled.draws is not None:
        off_sd, _ = _spread(coupled.draws.loss(n, d) / coupled.draws.frontier_loss(c, cost))
    ends = {}
    for key in ("ci95", "pi95"):
        known = getattr(best, key)
        ends[key] = None
        if known is not None:
            half = np.hypot(np.log(known[1] / known[0]) / 2, Z95 * off_sd)
            if key == "pi95":
                half = np.hypot(half, np.sqrt(Z95**2 - 1) * coupled.sigma)
            ends[key] = (float(point * np.exp(-half)), float(point * np.exp(half)))
    return {"point": point, **ends}

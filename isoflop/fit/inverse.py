"""
The forecast read backwards: the compute at which a size is the best one, and the compute that reaches a loss.

    >>> answer = lambda at: forecast(isoflop, coupled, at, cost, c_max)[0]
    >>> forecast_params(answer, [1e9], cost, c_max), forecast_target(answer, [2.5], c_max)

An interval of C holds every C whose own interval of N* (of the loss) holds what was asked for. Rows are those of
predictions.params and predictions.target_loss, method "forecast".
"""

import numpy as np

from isoflop.fit.huber import Refusal
from isoflop.fit.surface import METHOD, forecast

BELOW, ABOVE, STEPS = 1e-15, 1e20, 351  # the C tried, over the largest of the runs
ENDS = ("ci95", "pi95")


def put_before(predictions, fits, sizes, losses, cost, c_max):
    """The rows of the forecast by `fits`, IsoflopFit and CoupledFit, go first in predictions; returns Refusals."""

    def answer(at):
        return forecast(*fits, at, cost, c_max)[0]

    found = {
        "params": forecast_params(answer, sizes, cost, c_max),
        "target_loss": forecast_target(answer, losses, c_max),
    }
    refusals = []
    for question, (rows, refused) in found.items():
        predictions[question] = rows + predictions[question]
        refusals += refused
    return refusals


def forecast_params(answer, sizes, cost, c_max):
    """Rows of the tokens for which a model of n parameters is the best at its compute, and Refusals."""
    rows, refusals, curve = [], [], _curve(answer, c_max, sizes)
    for n in map(float, sizes):
        found = _compute(curve, "n_opt", n, 1)
        if found["point"] is None:
            why = f"no compute within {BELOW:g} and {ABOVE:g} times these runs' has {n:g} as its best size"
            refusals += [Refusal("forecast.predict_params", "out_of_reach", why)] if curve else []
            continue
        row = {"params": n, "method": METHOD, "flops": found["point"]}
        row["d_opt"] = _each(found, lambda c, n=n: float(cost.tokens(n, c)))
        row["tokens_per_param"] = _each(found, lambda c, n=n: float(cost.tokens(n, c) / n))
        rows.append(row)
    return rows, refusals


def forecast_target(answer, losses, c_max):
    """Rows of the compute, N* and D* for a loss, and Refusals."""
    rows, refusals, curve = [], [], _curve(answer, c_max, losses)
    for loss in map(float, losses):
        found = _compute(curve, "loss", loss, -1)
        if found["point"] is None:
            why = (
                f"the forecast is never at a loss of {loss:g} within {BELOW:g} and {ABOVE:g} times these runs' compute"
            )
            refusals += [Refusal("forecast.target_loss", "below_floor", why)] if curve else []
            continue
        row = {"target_loss": loss, "method": METHOD, "flops": found}
        best = answer([found["point"]])[0]
        for key in ("n_opt", "d_opt"):
            row[key] = {"point": getattr(best, key).point}
            for which in ENDS:
                row[key][which] = _ends_at(answer, found[which], key, which)
        rows.append(row)
    return rows, refusals


def _curve(answer, c_max, asked):
    """Forecasts over all C that are tried; empty where nothing is asked, or nothing can be said."""
    return answer(np.geomspace(BELOW * c_max, ABOVE * c_max, STEPS)) if len(asked) else ()


def _compute(curve, key, target, sign):
    """{point, ci95, pi95} of the C at which a quantity is `target`. sign : 1 where it rises with C, or -1."""
    found = {"point": None, "ci95": None, "pi95": None}
    if not curve:
        return found
    ln_c = np.log([row.flops for row in curve])
    over = {"point": [getattr(row, key).point for row in curve]}
    for which in ENDS:
        if getattr(curve[0], key).ci95 is not None or which == "pi95":
            low, high = np.transpose([getattr(getattr(row, key), which) for row in curve])
            over[which] = (high, low) if sign > 0 else (low, high)  # the first is at the target at less compute
    over = {name: sign * (np.log(values) - np.log(target)) for name, values in over.items()}
    after = np.flatnonzero(over["point"] >= 0)
    if not len(after) or after[0] == 0:
        return found
    at = int(after[0])
    found["point"] = _crossing(ln_c, over["point"], at)
    for which in over.keys() & set(ENDS):
        early, late = over[which]
        below, above = np.flatnonzero(early[:at] < 0), np.flatnonzero(late[at:] >= 0)
        first = _crossing(ln_c, early, int(below[-1]) + 1) if len(below) else None
        last = _crossing(ln_c, late, at + int(above[0])) if len(above) else None
        found[which] = (first, last)
    return found


def _crossing(ln_c, over, i):
    """C between the points i - 1 and i, where `over` goes through 0."""
    return float(np.exp(ln_c[i] - (ln_c[i] - ln_c[i - 1]) * over[i] / (over[i] - over[i - 1])))


def _each(found, quantity):
    """A quantity of C at the point and at both ends."""
    out = {"point": quantity(found["point"])}
    for which in ENDS:
        ends = found[which]
        out[which] = None if ends is None else tuple(None if c is None else quantity(c) for c in ends)
    return out


def _ends_at(answer, ends, key, which):
    """The lower end of N* or D* at the lower end of C, the upper one at the upper."""
    if ends is None:
        return None
    return tuple(None if c is None else getattr(getattr(answer([c])[0], key), which)[i] for i, c in enumerate(ends))

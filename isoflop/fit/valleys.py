"""
Every isoFLOP minimum held against the law of N and D: where do they differ by more than their errors?

    >>> for row in against_surface(isoflop.budgets, coupled, cost):
    ...     print(row["n_ratio"], row["n_differs"], row["loss_ratio"], row["loss_differs"])
"""

import numpy as np

from isoflop.laws import SIX_ND

Z95 = 1.96
LEAST_MISS = 0.001  # of the loss: less than this far off is no difference, however small the errors


def against_surface(budgets, coupled, cost=SIX_ND):
    """
    The minimum of every budget over the law's, in N and in loss.

    Parameters
    ----------
    budgets : sequence of Budget
        Of fit_isoflop.
    coupled : CoupledFit
        The law that forecasts, with its draws.
    cost : Cost

    Returns
    -------
    list, as long as budgets; None for a budget without a minimum and where the law is refused, else a dict
        n_ratio: measured N_opt over the law's; n_error: 95% half-width of its log, of both errors together; n_differs;
        loss_ratio, loss_error, loss_differs: the same of the loss at the measured minimum. The errors and what they
        decide are None where the minimum has no interval.
    """
    return [_held(budget, coupled, cost) for budget in budgets]


def _held(budget, coupled, cost):
    if budget.status != "ok" or coupled.law is None:
        return None
    law, draws, where = coupled.law, coupled.draws, (budget.n_opt, budget.d_opt)
    row = {"n_ratio": float(budget.n_opt / law.optimum(budget.flops, cost)[0])}
    row |= {"n_error": None, "n_differs": None, "loss_ratio": float(budget.loss / law.loss(*where))}
    row |= {"loss_error": None, "loss_differs": None}
    if not budget.ci:
        return row
    n_sd = loss_sd = 0.0
    if draws is not None:
        n_sd, loss_sd = _sd_ln(draws.optimum(budget.flops, cost)[0]), _sd_ln(draws.loss(*where))
    row["n_error"] = float(np.hypot(_half_ln(budget.ci["n_opt"]), Z95 * n_sd))
    row["loss_error"] = float(np.hypot(_half_ln(budget.ci["loss"]), Z95 * loss_sd))
    row["n_differs"] = bool(abs(np.log(row["n_ratio"])) > row["n_error"])
    row["loss_differs"] = bool(abs(np.log(row["loss_ratio"])) > max(row["loss_error"], LEAST_MISS))
    return row


def _half_ln(ends):
    return 0.5 * np.log(ends[1] / ends[0])


def _sd_ln(values):
    """Standard deviation of ln values from their middle 95%, which a few wild draws cannot spoil."""
    low, high = np.percentile(np.log(values), (2.5, 97.5))
    return (high - low) / (2 * Z95)

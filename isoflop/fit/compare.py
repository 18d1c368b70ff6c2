"""
Evidence between the families of laws: which one do these runs prefer, and by how much?

    >>> for row in compare_families(n, d, loss, c):
    ...     print(row.family, row.behind, row.leave_one_out, row.backtest)
"""

from dataclasses import dataclass, replace

import numpy as np

from isoflop.fit import families
from isoflop.fit.backtest import multi_step
from isoflop.fit.coupled import fit_coupled
from isoflop.fit.isoflop import group_budgets
from isoflop.laws import Law

# name -> constraints of families.family(); the first that a user reads is the most general
NESTED = {
    "coupled": {},
    "hoffmann": {"name": "hoffmann"},
    "coupled, E = 0": {"floor": False},
    "hoffmann, E = 0": {"name": "hoffmann", "floor": False},
    "coupled, alpha = beta": {"equal_exponents": True},
    "hoffmann, alpha = beta": {"name": "hoffmann", "equal_exponents": True},
}
HELD = (5, 4, 3, 2, 1)  # budgets held out in the back-tests
STEPS = 4  # back-tests predict this many budgets ahead
MIN_BUDGETS = 3  # fitted in the shortest back-test


@dataclass(frozen=True)
class FamilyEvidence:
    """
    One family against the others.

    Parameters
    ----------
    family : str
    law : Law
    free : int
        Free parameters.
    behind : float
        Nats of evidence (BIC under a Laplace likelihood) short of the best family; 0 for the best.
    leave_one_out : float
        Weighted mean absolute error of ln L of each run predicted without it (one Newton step from the full fit).
    backtest : float or None
        Root mean square error of ln L over back-tests 1 to 4 budgets ahead; None with fewer than 4 budgets.
    n_backtests : int
    tests : tuple of dict
        Rows of backtest.multi_step(): the mean ln L of each budget ahead, predicted and measured.
    """

    family: str
    law: Law
    free: int
    behind: float
    leave_one_out: float
    backtest: float | None
    n_backtests: int
    tests: tuple = ()


def compare_families(n, d, loss, c=None, prior=True, names=tuple(NESTED), tested=None, held=HELD, known=None):
    """
    Rank families of laws by evidence, the best first.

    Parameters
    ----------
    n, d, loss, c, prior
        As in fit_coupled.
    names : sequence of str
        Of NESTED.
    tested : sequence of str, optional
        The names that are back-tested, which takes most of the time; default all.
    held : sequence of int
        Budgets that each back-test holds out, as far as MIN_BUDGETS are left to fit.
    known : CoupledFit, optional
        One family's fit to these very runs, which is then not fitted again.

    Returns
    -------
    tuple of FamilyEvidence
        By `behind`; without refused families.

    Notes
    -----
    All families see the same weights, so that their evidence can be compared. In a back-test the runs below a budget
    are fitted and the runs of each of the next STEPS budgets are predicted; its error is the weighted mean residual.
    """
    n, d, loss = (np.asarray(v, float) for v in (n, d, loss))
    c = 6.0 * n * d if c is None else np.asarray(c, float)
    splits = _splits(c, held)
    rows = []
    for name in names:
        family = families.family(**NESTED[name])
        fit = known
        if known is None or known.family != name:
            fit = fit_coupled(n, d, loss, c, family=family, prior=prior, resamples=0)
        if fit.law is None:
            continue
        tests = []
        if tested is None or name in tested:
            tests = _backtest(fit, (n, d, loss, c), splits, prior, family)
        errors = [test["error_ln"] for test in tests]
        rms = float(np.sqrt(np.mean(np.square(errors)))) if errors else None
        short, left_out = -fit.log_evidence, _leave_one_out(fit)
        rows.append(FamilyEvidence(name, fit.law, family.free, short, left_out, rms, len(errors), tuple(tests)))
    if not rows:
        return ()
    best = min(row.behind for row in rows)
    ranked = sorted(rows, key=lambda row: row.behind)
    return tuple(replace(row, behind=row.behind - best) for row in ranked)


def _leave_one_out(fit):
    """Weighted mean absolute residual of runs predicted without themselves: r / (1 - leverage)."""
    without = np.abs(fit.residuals) / np.maximum(1.0 - fit.leverage, 0.05)
    return float(np.average(without, weights=fit.weights))


def _splits(c, held):
    """(runs fitted, [runs of each of the next budgets]) where so many budgets are held out; by falling number."""
    groups = group_budgets(c)
    if len(groups) <= MIN_BUDGETS or sum(map(len, groups)) <= len(c) / 2:  # no grid: bins of equal count
        count = min(8, len(c) // 5)
        groups = np.array_split(np.argsort(c, kind="stable"), count) if count > MIN_BUDGETS else []
    most = max(0, len(groups) - MIN_BUDGETS)
    splits = []
    for out in sorted({min(out, most) for out in held} - {0}, reverse=True):
        fitted = np.sort(np.concatenate(groups[:-out]))
        splits.append((fitted, groups[-out:][:STEPS]))
    return splits


def _backtest(fit, runs, splits, prior, family):
    """Rows of multi_step() of each budget ahead of each split: mean ln L, weighted as in the fit to all runs."""
    n, d, loss, c = runs
    rows = []
    for fitted, ahead in splits:
        arrays = (n[fitted], d[fitted], loss[fitted], c[fitted])
        part = fit_coupled(*arrays, family=family, prior=prior, resamples=0, near=fit)
        if part.law is None:
            continue
        for group in ahead:
            weights = fit.weights[group]
            means = []
            for values in (c[group], part.law.loss(n[group], d[group]), loss[group]):
                means.append(np.exp(np.average(np.log(values), weights=weights)))
            rows.append(multi_step("coupled", c[fitted].max(), *means))
    return rows

"""
Back-tests: fit the smaller budgets, predict the larger ones.

    >>> rows = backtest(table, tol=0.1, delta=1e-3)
    >>> [row["error_ln"] for row in rows]
"""

from dataclasses import dataclass, replace

import numpy as np

from isoflop.fit.envelope import fit_envelope
from isoflop.fit.forecast import forecast_isoflop
from isoflop.fit.isoflop import Budget, IsoflopFit, fit_isoflop, group_budgets
from isoflop.fit.parametric import fit_parametric
from isoflop.fit.power_law import fit_power_law
from isoflop.fit.predictors import line_predictor, parametric_predictor
from isoflop.laws import cost_of

LOWEST = 3  # budgets that every back-test may fit
MIN_RUNS = 4  # of a budget
STEPS = 4  # budgets ahead that the forecast is tested on
MIN_FITTED = 6  # runs below it: the law has five parameters


def pseudo_budgets(c, tol):
    """Budgets of 4 or more runs, by rising C; where C is scattered, up to 8 bins of equal count; none from under 4."""
    groups = [group for group in group_budgets(c, tol) if len(group) >= MIN_RUNS]
    if len(groups) > LOWEST:
        return groups
    if sum(map(len, groups)) > len(c) / 2:  # a sweep of too few budgets to hold one out
        return []
    order = np.argsort(c, kind="stable")
    count = min(8, len(c) // 5)
    if count <= LOWEST:
        return []
    return [group for group in np.array_split(order, count) if len(group)]


@dataclass(frozen=True)
class Split:
    """The runs of one budget held out, those below it, and what isoFLOP curves make of both."""

    held: np.ndarray  # indices of the budget's runs
    fitted: np.ndarray  # mask of the runs below
    flops: float  # of the budget
    c_max: float  # largest compute fitted
    own: Budget | None  # the budget's own minimum
    below: IsoflopFit  # of the runs below


def splits_of(table, tol, how):
    """Splits of a table: every budget beyond the LOWEST that has MIN_FITTED runs below it, by rising C."""
    splits = []
    alone = "local" if how == "pooled" else how  # one budget has nothing to be pooled with
    for held in pseudo_budgets(table.c, tol)[LOWEST:]:
        ln_c = np.log(table.c[held])
        fitted = np.log(table.c) < min(ln_c.min(), ln_c.mean() - tol)
        if fitted.sum() < MIN_FITTED:
            continue
        at = float(np.exp(ln_c.mean()))
        own = fit_isoflop(*_runs(table, held), np.full(len(held), at), 1.0, alone, 0)
        own = next((budget for budget in own.budgets if budget.status == "ok"), None)
        below = fit_isoflop(*_runs(table, fitted), None, tol, how, 0, others=False)
        splits.append(Split(held, fitted, at, float(table.c[fitted].max()), own, below))
    return splits


def _runs(table, some):
    return table.n[some], table.d[some], table.c[some], table.loss[some]


def forecast_tests(splits):
    """
    The forecast from the minima below each budget, against the minima of the next STEPS budgets.

    Parameters
    ----------
    splits : list of Split

    Returns
    -------
    list of dict
        method "forecast", flops_fitted (largest C fitted), flops, predicted, measured, error_ln (ln of measured over
        predicted), pi95.
    """
    rows = []
    for i, split in enumerate(splits):
        ahead = [other for other in splits[i : i + STEPS] if other.own is not None]
        best, _ = forecast_isoflop(split.below, [other.flops for other in ahead], split.c_max)
        for row, other in zip(best, ahead, strict=False):
            rows.append(multi_step("forecast", split.c_max, row.flops, row.loss.point, other.own.loss, row.loss.pi95))
    return rows


def multi_step(method, flops_fitted, flops, predicted, measured, pi95=None):
    """A row of fit.json's `backtests`."""
    row = {"method": method, "flops_fitted": float(flops_fitted), "flops": float(flops), "predicted": float(predicted)}
    error = float(np.log(measured / predicted))
    return row | {"measured": float(measured), "error_ln": error, "pi95": pi95}


def backtest(table, tol, delta, how="local", near=None, splits=None):
    """
    For every budget above the lowest three: fit on the runs below it, predict it.

    Parameters
    ----------
    table : Table
        Runs n, d, c, loss, and curve.
    tol : float
        Half-width of a budget in ln C.
    delta : float
        Huber threshold of the parametric refits.
    how : str
        Method of fit_isoflop.
    near : ParametricFit, optional
        The fit to all runs, as one more start of every refit.
    splits : list of Split, optional
        splits_of() this table, where they are known.

    Returns
    -------
    list of dict
        method, flops, flops_fitted (largest C fitted), log_distance, n_fit, n_runs, predicted, actual, error_nats
        (actual - predicted), error_ln, se_ln (statistical, None if not known), equivalent_compute (the C at which the
        method would have expected the actual loss, over the real C; None beyond its floor), n_opt and n_opt_actual.
        Parametric rows compare the mean of the budget's own runs, the others the budget's least loss.
    """
    rows = []
    for split in splits_of(table, tol, how) if splits is None else splits:
        rows += _predict_budget(table, split, delta, near)
    return rows + _backtest_envelope(table)


def _predict_budget(table, split, delta, near):
    """Back-test rows of one split."""
    held, fitted, at, own = split.held, split.fitted, split.flops, split.own
    n, d, c, loss = _runs(table, fitted)
    held_n, held_d, held_loss = table.n[held], table.d[held], table.loss[held]
    base = {"flops": at, "flops_fitted": split.c_max, "log_distance": float(np.log(at / split.c_max))}
    base |= {"n_fit": int(fitted.sum()), "n_runs": len(held), "n_opt_actual": own.n_opt if own else None}
    rows = []

    parametric = fit_parametric(n, d, loss, None, delta, 0, n_grid=3, near=near)
    if parametric.law is not None:
        predictor = parametric_predictor(parametric, cost_of(n, d, c))
        expected = float(np.log(parametric.law.loss(held_n, held_d)).mean())
        error = float(np.mean(np.log(held_loss)) - expected)
        se = float(np.hypot(parametric.ln_loss_se(held_n, held_d), parametric.sigma / np.sqrt(len(held))))
        rows.append(_row(predictor, base, np.exp(expected), error, se))

    inside = [budget for budget in split.below.budgets if budget.status == "ok"]
    power = None
    if len(inside) >= 4:
        power = fit_power_law([budget.flops for budget in inside], [budget.loss for budget in inside])
    predictor = line_predictor("isoflop", split.below, power)
    if predictor is not None and own is not None:
        expected = error = None
        if predictor.has_least_loss:
            expected = float(predictor.least_loss(at))
            error = float(np.log(own.loss / expected))
        rows.append(_row(predictor, base, expected, error))
    return rows


def _row(predictor, base, expected, error, se=None):
    """One back-test: what the predictor expected, and the error of ln L; both None for one that predicts no loss."""
    row = {"method": predictor.name, **base, "predicted": None, "actual": None, "error_nats": None, "error_ln": error}
    row |= {"se_ln": se, "equivalent_compute": None, "n_opt": float(predictor.optimum(base["flops"])[0])}
    if error is not None:
        actual = float(expected * np.exp(error))
        at_optimum = float(predictor.least_loss(base["flops"])) * np.exp(error)
        ratio = float(predictor.compute_for(at_optimum)) / base["flops"]
        row |= {"predicted": float(expected), "actual": actual, "error_nats": actual - float(expected)}
        row["equivalent_compute"] = ratio if np.isfinite(ratio) else None
    return row


def _backtest_envelope(table):
    """Envelope and its compute law from the curves below each of five C, against the envelope at the next."""
    if not table.curve:
        return []
    rows, c = [], table.curve["c"]
    levels = np.exp(np.linspace(np.log(np.quantile(c, 0.4)), np.log(c.max()), 6))
    whole = fit_envelope(table.curve, "hull", True, 0)
    for low, high in zip(levels[:-1], levels[1:], strict=True):
        below = c <= low
        fit = fit_envelope({key: values[below] for key, values in table.curve.items()}, "hull", False, 0)
        if fit.a is None or whole.a is None or len(fit.points["flops"]) < 4:
            continue
        predictor = line_predictor("envelope", fit, fit_power_law(fit.points["flops"], fit.points["loss"]))
        base = {"flops": float(high), "flops_fitted": float(low), "log_distance": float(np.log(high / low))}
        base |= {"n_fit": int(below.sum()), "n_runs": 1, "n_opt_actual": None}
        expected = error = None
        if predictor.has_least_loss:
            ln_c = np.log(whole.points["flops"])
            actual = float(np.exp(np.interp(np.log(high), ln_c, np.log(whole.points["loss"]))))
            expected = float(predictor.least_loss(high))
            error = float(np.log(actual / expected))
        rows.append(_row(predictor, base, expected, error))
    return rows


def conventions(table, tol, delta, how):
    """Every N convention in the table, fitted and ranked by the root mean square of its back-test errors of ln L."""
    columns = {k: v for k, v in table.conventions.items() if np.isfinite(v).all() and (v > 0).all()}
    if len(columns) < 2:
        return []
    spent = table.c / (6.0 * table.d)
    if not any(np.allclose(n, spent, rtol=1e-6) for n in columns.values()):
        columns["flops / 6D"] = spent
    rows = []
    for name, n in columns.items():
        fit = fit_parametric(n, table.d, table.loss, None, delta, 0, n_grid=6)
        row = {"n": name, "default": name == table.info["n_convention"], "status": "ok" if fit.law else "refused"}
        if fit.law is not None:
            a, b = fit.law.exponents(cost_of(n, table.d, table.c))
            tests = backtest(replace(table, n=n, curve={}), tol, delta, how, fit)
            errors = [test["error_ln"] for test in tests if test["method"] == "parametric"]
            row |= {**fit.law.params, "a": a, "b": b, "objective": fit.objective, "n_tests": len(errors)}
            row["backtest_rms_ln"] = float(np.sqrt(np.mean(np.square(errors)))) if errors else None
        rows.append(row)
    return sorted(rows, key=_by_error)


def _by_error(row):
    """Sorts rows by their error; those without one come last."""
    error = row.get("backtest_rms_ln")
    return np.inf if error is None else error

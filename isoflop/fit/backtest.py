"""Back-tests: fit the smaller budgets, predict the larger ones."""

from types import SimpleNamespace

import numpy as np

from isoflop.fit.envelope import fit_envelope
from isoflop.fit.isoflop import fit_isoflop, group_budgets
from isoflop.fit.parametric import fit_parametric
from isoflop.fit.power_law import fit_power_law
from isoflop.fit.predict import line_predictor, parametric_predictor
from isoflop.laws import cost_of

# ----- back-tests -----


def pseudo_budgets(c, tol):
    """Budgets of 4 or more runs, by rising C; where C is scattered, up to 8 bins of equal count; none from under 4."""
    groups = [g for g in group_budgets(c, tol) if len(g) >= 4]
    if len(groups) >= 4:
        return groups
    if sum(map(len, groups)) > len(c) / 2:  # a sweep of too few budgets to hold one out
        return []
    order = np.argsort(c, kind="stable")
    count = min(8, len(c) // 5)
    return [g for g in np.array_split(order, count) if len(g)] if count >= 4 else []


def backtest(table, tol, delta, how="local", near=None):
    """
    For every budget above the lowest three: fit on the runs below it, predict it.

    Parameters
    ----------
    table : object with (R,) arrays n, d, c, loss, and curve
    tol : float
        Half-width of a budget in ln C.
    delta : float
        Huber threshold of the parametric refits.
    near : ParametricFit, optional
        The fit to all runs, as one more start of every refit.

    Returns
    -------
    list of dict
        method, flops, flops_fitted (largest C fitted), log_distance, n_fit, n_runs, predicted, actual, error_nats
        (actual - predicted), error_ln, se_ln (statistical, None if not known), equivalent_compute (the C at which the
        method would have expected the actual loss, over the real C; None beyond its floor), n_opt and n_opt_actual.
        Parametric rows compare the mean of the budget's own runs, the others the budget's least loss.
    """
    rows = []
    groups = pseudo_budgets(table.c, tol)
    for i in range(3, len(groups)):
        held = groups[i]
        floor = np.log(table.c[held]).min()
        fitted = np.log(table.c) < min(floor, np.log(table.c[held]).mean() - tol)
        if fitted.sum() < 6:
            continue
        n, d, c, loss = (getattr(table, k)[fitted] for k in ("n", "d", "c", "loss"))
        hn, hd, hc, hl = (getattr(table, k)[held] for k in ("n", "d", "c", "loss"))
        cost, at = cost_of(n, d, c), float(np.exp(np.log(hc).mean()))
        own = fit_isoflop(hn, hd, hc, hl, np.full(len(held), at), 1.0, how, 0)
        own = next((v for v in own.budgets if v.status == "ok"), None)
        base = {"flops": at, "flops_fitted": float(c.max()), "log_distance": float(np.log(at / c.max()))}
        base |= {"n_fit": int(fitted.sum()), "n_runs": len(held), "n_opt_actual": own.n_opt if own else None}
        p = fit_parametric(n, d, loss, None, delta, 0, n_grid=3, near=near)
        if p.law is not None:
            expected = float(np.log(p.law.loss(hn, hd)).mean())
            error = float(np.mean(np.log(hl)) - expected)
            se = float(np.hypot(p.ln_loss_se(hn, hd), p.sigma / np.sqrt(len(held))))
            rows.append(_row("parametric", base, parametric_predictor(p, cost), np.exp(expected), error, se))
        q = fit_isoflop(n, d, c, loss, None, tol, how, 0)
        inside = [v for v in q.budgets if v.status == "ok"]
        power = fit_power_law([v.flops for v in inside], [v.loss for v in inside]) if len(inside) >= 4 else None
        face = line_predictor("isoflop", q, power)
        if face and own:
            expected = float(face.frontier(at)) if face.frontier else None
            error = float(np.log(own.loss / expected)) if expected else None
            rows.append(_row("isoflop", base, face, expected, error, None))
    return rows + _backtest_envelope(table)


def _row(method, base, face, expected, error, se):
    """One line of the back-test table."""
    out = {"method": method, **base, "predicted": None, "actual": None, "error_nats": None, "error_ln": error}
    out |= {"se_ln": se, "equivalent_compute": None, "n_opt": float(face.optimum(base["flops"])[0])}
    if error is not None:
        actual = float(expected * np.exp(error))
        at_optimum = float(face.frontier(base["flops"])) * np.exp(error)
        ratio = float(face.compute_for(at_optimum)) / base["flops"]
        out |= {"predicted": float(expected), "actual": actual, "error_nats": actual - float(expected)}
        out["equivalent_compute"] = ratio if np.isfinite(ratio) else None
    return out


def _backtest_envelope(table):
    """Envelope and its compute law from the curves below each of five C, against the envelope at the next."""
    if not table.curve:
        return []
    rows, c = [], table.curve["c"]
    levels = np.exp(np.linspace(np.log(np.quantile(c, 0.4)), np.log(c.max()), 6))
    top = fit_envelope(table.curve, "hull", True, 0)
    for low, high in zip(levels[:-1], levels[1:], strict=True):
        keep = c <= low
        fit = fit_envelope({k: v[keep] for k, v in table.curve.items()}, "hull", False, 0)
        if fit.a is None or top.a is None or len(fit.points["flops"]) < 4:
            continue
        face = line_predictor("envelope", fit, fit_power_law(fit.points["flops"], fit.points["loss"]))
        x = np.log(top.points["flops"])
        actual = float(np.exp(np.interp(np.log(high), x, np.log(top.points["loss"]))))
        base = {"flops": float(high), "flops_fitted": float(low), "log_distance": float(np.log(high / low))}
        base |= {"n_fit": int(keep.sum()), "n_runs": 1, "n_opt_actual": None}
        expected = float(face.frontier(high)) if face.frontier else None
        rows.append(_row("envelope", base, face, expected, expected and float(np.log(actual / expected)), None))
    return rows


def conventions(table, tol, delta, how):
    """Every N convention in the table, fitted and ranked by the root mean square of its back-test errors of ln L."""
    columns = {k: v for k, v in table.conventions.items() if np.isfinite(v).all() and (v > 0).all()}
    if len(columns) < 2:
        return []
    spent = table.c / (6.0 * table.d)
    if not any(np.allclose(n, spent, rtol=1e-6) for n in columns.values()):
        columns["flops / 6D"] = spent
    out = []
    for name, n in columns.items():
        fit = fit_parametric(n, table.d, table.loss, None, delta, 0, n_grid=6)
        row = {"n": name, "default": name == table.info["n_convention"], "status": "ok" if fit.law else "refused"}
        if fit.law:
            a, b = fit.law.exponents(cost_of(n, table.d, table.c))
            part = SimpleNamespace(n=n, d=table.d, c=table.c, loss=table.loss, curve={})
            tests = backtest(part, tol, delta, how, fit)
            errors = [r["error_ln"] for r in tests if r["method"] == "parametric"]
            row |= {**fit.law.params, "a": a, "b": b, "objective": fit.objective, "n_tests": len(errors)}
            row["backtest_rms_ln"] = float(np.sqrt(np.mean(np.square(errors)))) if errors else None
        out.append(row)
    return sorted(out, key=lambda r: (r.get("backtest_rms_ln") is None, r.get("backtest_rms_ln") or 0.0))

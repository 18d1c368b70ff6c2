"""Back-tests: only lower budgets are fitted, errors are measured, conventions are ranked."""

import numpy as np
import pytest
from helpers import isoflop_runs

from isoflop import laws
from isoflop.fit.backtest import backtest, conventions, forecast_tests, pseudo_budgets, splits_of
from isoflop.fit.table import Table

LAW = laws.PUBLISHED["besiroglu"]
BUDGETS = 10 ** np.linspace(17, 20, 7)
METHODS = {"tol": 0.1, "delta": 1e-3}


def table_of(n, d, c, loss, **more):
    return Table(None, n, d, c, loss, None, **more)


def parametric_rows(table):
    return [row for row in backtest(table, **METHODS) if row["method"] == "parametric"]


def test_every_budget_above_three_is_predicted_from_below():
    n, d, c, loss = isoflop_runs(LAW, 0.0, 0, BUDGETS, 9)
    rows = parametric_rows(table_of(n, d, c, loss))
    assert [row["n_fit"] for row in rows] == [27, 36, 45, 54]
    assert all(row["flops_fitted"] < row["flops"] for row in rows)
    assert all(abs(row["error_ln"]) < 1e-6 and abs(row["equivalent_compute"] - 1) < 1e-3 for row in rows)


def test_only_its_own_back_test_sees_a_budget_that_leaves_the_law():
    n, d, c, loss = isoflop_runs(LAW, 0.0, 0, BUDGETS, 9)
    rows = parametric_rows(table_of(n, d, c, np.where(c > 5e19, 0.9 * loss, loss)))
    assert [abs(row["error_ln"]) > 0.05 for row in rows] == [False, False, False, True]


def test_rows_of_isoflop_measure_the_optimum():
    n, d, c, loss = isoflop_runs(LAW, 0.0, 0, BUDGETS, 9)
    rows = [row for row in backtest(table_of(n, d, c, loss), **METHODS) if row["method"] == "isoflop"]
    assert len(rows) == 4 and rows[0]["predicted"] is None  # three budgets below: no law with a floor
    for row in rows[1:]:
        assert row["actual"] - row["predicted"] == row["error_nats"] and abs(row["error_ln"]) < 1e-3
        assert abs(np.log(row["n_opt"] / row["n_opt_actual"])) < 0.02


def test_the_forecast_is_tested_one_to_four_budgets_ahead():
    n, d, c, loss = isoflop_runs(LAW, 0.002, 0, BUDGETS, 9)
    rows = forecast_tests(splits_of(table_of(n, d, c, loss), 0.1, "pooled"))
    assert [round(row["flops_fitted"] / 1e17, 1) for row in rows] == [10.0] * 4 + [31.6] * 3 + [100.0] * 2 + [316.2]
    np.testing.assert_allclose([row["flops"] for row in rows[:4]], BUDGETS[3:], rtol=1e-6)
    assert all(row["pi95"][0] < row["measured"] < row["pi95"][1] for row in rows)
    assert all(row["error_ln"] == np.log(row["measured"] / row["predicted"]) for row in rows)
    bent = forecast_tests(splits_of(table_of(n, d, c, np.where(c > 5e19, 0.9 * loss, loss)), 0.1, "pooled"))
    assert [row["predicted"] for row in bent] == [row["predicted"] for row in rows]  # nothing later moves a prediction
    moved = [was["measured"] != now["measured"] for was, now in zip(rows, bent, strict=True)]
    assert moved == [row["flops"] > 5e19 for row in rows]
    assert forecast_tests([]) == []


@pytest.mark.slow
def test_envelopes_are_tested_on_curves_cut_at_five_computes():
    sizes, tokens = np.geomspace(1e7, 1e9, 15), np.geomspace(2e8, 2e11, 60)
    n, d = np.repeat(sizes, 60), np.tile(tokens, 15)
    curve = {"run": np.repeat(np.arange(15), 60), "n": n, "d": d, "c": 6 * n * d, "loss": LAW.loss(n, d)}
    rows = backtest(table_of(n, d, 6 * n * d, LAW.loss(n, d), curve=curve), **METHODS)
    rows = [row for row in rows if row["method"] == "envelope"]
    assert rows and all(row["flops_fitted"] < row["flops"] for row in rows)
    assert all(abs(row["error_ln"]) < 0.02 for row in rows)


def test_scattered_compute_falls_into_bins_and_few_budgets_into_none():
    c = np.geomspace(1e17, 1e20, 80)
    groups = pseudo_budgets(c, 0.01)
    assert [len(group) for group in groups] == [10] * 8 and np.concatenate(groups).tolist() == list(range(80))
    assert pseudo_budgets(np.repeat([1e17, 1e18, 1e19], 8), 0.1) == []
    assert pseudo_budgets(np.geomspace(1e17, 1e20, 19), 0.01) == []


def test_conventions_are_ranked_by_their_back_tests():
    n, d, c, loss = isoflop_runs(LAW, 0.002, 1, BUDGETS, 9)
    odd = n * (1 + 0.5 * np.sin(3 * np.log(n)))  # a convention in which the law does not hold
    ways = {"n_params": odd, "n_params_matmul": n}
    table = table_of(n, d, c, loss, conventions=ways, info={"n_convention": "n_params_matmul"})
    rows = conventions(table, 0.1, 1e-3, "local")
    assert [row["n"] for row in rows if row["status"] == "ok"][0] == "n_params_matmul" and rows[0]["default"]
    errors = [row["backtest_rms_ln"] for row in rows if row.get("backtest_rms_ln") is not None]
    assert errors == sorted(errors) and errors[-1] > 2 * errors[0]
    del ways["n_params"]
    assert conventions(table, 0.1, 1e-3, "local") == []

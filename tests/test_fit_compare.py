"""Families of laws ranked: the true one first, by evidence, leave-one-out and back-tests."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import isoflop_runs

from isoflop import laws
from isoflop.fit.compare import NESTED, compare_families
from isoflop.fit.coupled import fit_coupled

BUDGETS = 10.0 ** np.linspace(18, 21, 7)
TRUE = {
    "coupled": laws.Law(1.6, 40.0, 120.0, 0.25, 0.32, p=2.5),
    "hoffmann": laws.PUBLISHED["besiroglu"],
    "coupled, alpha = beta": laws.Law(1.6, 40.0, 90.0, 0.25, 0.25, p=2.5),
}


@pytest.mark.parametrize("name", TRUE)
def test_the_true_family_comes_first(name):
    n, d, c, loss = isoflop_runs(TRUE[name], 0.002, 1, budgets=BUDGETS, sizes=9)
    rows = compare_families(n, d, loss, c)
    assert rows[0].family == name and rows[0].behind == 0 and len(rows) == len(NESTED)
    behind = [row.behind for row in rows]
    assert behind == sorted(behind) and behind[-1] > 20
    assert rows[0].n_backtests == 10  # 4 + 3 + 2 + 1 budgets ahead
    assert [test["flops"] > test["flops_fitted"] for test in rows[0].tests] == [True] * 10
    rms = np.sqrt(np.mean([np.log(test["measured"] / test["predicted"]) ** 2 for test in rows[0].tests]))
    assert abs(rms / rows[0].backtest - 1) < 1e-9
    assert rows[0].backtest < 0.008 < rows[-1].backtest
    assert 0.001 < rows[0].leave_one_out < 0.004 < rows[-1].leave_one_out
    assert {row.family: row.free for row in rows}["hoffmann, alpha = beta"] == 4


def test_leave_one_out_is_that_of_fits_without_each_run():
    n, d, c, loss = isoflop_runs(TRUE["hoffmann"], 0.004, 2, budgets=BUDGETS[:4], sizes=6)
    (row,) = compare_families(n, d, loss, c, names=("hoffmann",))
    full = fit_coupled(n, d, loss, c, family="hoffmann", resamples=0)
    errors = []
    for i in range(len(n)):
        keep = np.arange(len(n)) != i
        part = fit_coupled(n[keep], d[keep], loss[keep], c[keep], family="hoffmann", resamples=0, near=full)
        errors.append(abs(np.log(loss[i] / part.law.loss(n[i], d[i]))))
    assert abs(row.leave_one_out / np.average(errors, weights=full.weights) - 1) < 0.25


def test_without_a_grid_and_with_few_runs():
    rng = np.random.default_rng(0)
    n, d = np.exp(rng.uniform(16, 20, 40)), np.exp(rng.uniform(20, 24, 40))
    rows = compare_families(n, d, laws.simulate(TRUE["coupled"], n, d, 0.003), names=("coupled", "hoffmann"))
    assert rows[0].n_backtests > 5
    rows = compare_families(n[:9], d[:9], TRUE["coupled"].loss(n[:9], d[:9]), names=("coupled", "hoffmann"))
    assert {row.backtest for row in rows} == {None} and {row.n_backtests for row in rows} == {0}
    assert compare_families(n[:2], d[:2], np.array([3.0, 2.9])) == ()


def test_only_those_asked_for_are_back_tested_and_what_is_known_is_not_fitted_again():
    n, d, c, loss = isoflop_runs(TRUE["coupled"], 0.002, 1, budgets=BUDGETS, sizes=5)
    names = ("coupled", "hoffmann")
    rows = {row.family: row for row in compare_families(n, d, loss, c, names=names, tested=names[:1], held=(9, 1))}
    assert rows["coupled"].n_backtests == 5 and rows["hoffmann"].backtest is None  # 9 are 4: three are always fitted
    known = fit_coupled(n, d, loss, c, resamples=0)
    marked = replace(known, log_evidence=known.log_evidence + 5)
    again = compare_families(n, d, loss, c, names=names, tested=(), known=marked)
    assert known.family == "coupled" == again[0].family
    assert again[1].behind == pytest.approx(rows["hoffmann"].behind + 5, abs=1e-6)

"""Outliers of the parametric fit, the fit without them, and weights."""

import numpy as np
import pytest
from helpers import needs_reference, reference_results, reference_table, simulated_table

from isoflop import laws
from isoflop.fit.outliers import Outliers, find_outliers, loss_weights
from isoflop.fit.parametric import ParametricFit, fit_parametric

LAW = laws.PUBLISHED["besiroglu"]


def fitted(table):
    return fit_parametric(table.n, table.d, table.loss, resamples=0)


def test_runs_off_the_law_are_found_farthest_first_and_left_out_of_a_refit():
    table = simulated_table(LAW, noise=0.001)
    table.loss[[10, 30]] *= [1.03, 1.1]
    found = find_outliers(table, fitted(table))
    assert [run.index for run in found.runs][:2] == [30, 10]
    assert found.runs[0].residual == pytest.approx(np.log(1.1), abs=0.01) and found.runs[0].mads > 30
    left_out, refit = found.refits["without_outliers"]
    assert left_out == len(found.runs) and abs(refit.law.alpha - LAW.alpha) < 0.02


def test_a_corner_of_high_losses_is_left_out_alone():
    table = simulated_table(LAW, noise=0.002)
    table.loss[np.argsort(table.loss)[-3:]] *= 1.08
    table.loss[np.argsort(table.loss)[5]] *= 0.97
    found = find_outliers(table, fitted(table))
    assert sum(run.top_loss for run in found.runs) == 3
    assert [found.refits[name][0] for name in ("without_outliers", "without_top_loss")] == [len(found.runs), 3]


def test_none_without_noise_or_without_a_fit():
    table = simulated_table(LAW, noise=0.0)
    assert find_outliers(table, fitted(table)) == Outliers()
    assert find_outliers(table, ParametricFit(None)) == Outliers()


def test_weights_fall_with_the_standard_error():
    table = simulated_table(LAW, sizes=5, budgets=(1e18,))
    table.loss_se = table.loss * [0.01, 0.02, 0.005, np.nan, 0.0]
    weights = loss_weights(table)
    assert weights.mean() == pytest.approx(1)
    assert weights[0] / weights[1] == pytest.approx(2) and weights[2] / weights[0] == pytest.approx(2)
    assert weights[3] == weights[4]
    table.loss_se = None
    assert loss_weights(table) is None


@needs_reference
def test_the_five_highest_losses_of_the_chinchilla_runs_are_named():
    table = reference_table("chinchilla_epoch.csv")
    fit = fitted(table)
    known = reference_results()["chinchilla_epoch"]["reference_245_rows_delta_1e3"]
    assert fit.objective <= known["objective_sum"] * (1 + 1e-9) and round(fit.law.beta, 3) == 0.453
    found = find_outliers(table, fit)
    top = [table.loss[run.index] for run in found.runs if run.top_loss]
    assert sorted(top) == np.sort(table.loss)[-5:].tolist()
    left_out, refit = found.refits["without_top_loss"]
    assert left_out == 5 and round(refit.law.beta, 3) == 0.367

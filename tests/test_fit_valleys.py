"""isoflop/fit/valleys.py: minima held against the law of N and D."""

import numpy as np
import pytest

from isoflop.fit.coupled import CoupledFit, fit_coupled
from isoflop.fit.findings import remarks
from isoflop.fit.isoflop import fit_isoflop
from isoflop.fit.valleys import against_surface
from isoflop.laws import Law, isoflop_grid, simulate

TRUTH = Law(1.7, 400.0, 1200.0, 0.34, 0.36)
BUDGETS = np.geomspace(1e18, 1e20, 5)


def fits(bend=0.0, lift=0.0, resamples=300):
    """Fits to runs of five budgets; the middle one's minimum moved by `bend` in ln N, its losses by `lift` in ln L."""
    n, d, c = isoflop_grid(TRUTH, BUDGETS, 9)
    loss = simulate(TRUTH, n, d, 0.001, 0)
    middle = np.isclose(c, BUDGETS[2])
    loss[middle] = simulate(TRUTH, n[middle] / np.exp(bend), d[middle] * np.exp(bend), 0.001, 1) * np.exp(lift)
    return fit_isoflop(n, d, c, loss, resamples=resamples), fit_coupled(n, d, loss, c, resamples=resamples)


def test_minima_under_an_exact_law_agree_with_it():
    rows = against_surface(fits()[0].budgets, fits()[1])
    assert len(rows) == 5 and sum(row["n_differs"] for row in rows) <= 1
    assert not any(row["loss_differs"] for row in rows)
    assert all(abs(np.log(row["n_ratio"])) < 0.1 and abs(row["loss_ratio"] - 1) < 0.002 for row in rows)


@pytest.mark.parametrize(("bend", "lift", "key"), [(0.5, 0.0, "n"), (-0.5, 0.0, "n"), (0.0, 0.02, "loss")])
def test_a_budget_that_is_off_is_named_whichever_it_is(bend, lift, key):
    isoflop, coupled = fits(bend, lift)
    rows = against_surface(isoflop.budgets, coupled)
    assert rows[2][f"{key}_differs"]
    off = np.log(rows[2]["n_ratio"]) if key == "n" else np.log(rows[2]["loss_ratio"])
    assert np.sign(off) == np.sign(bend + lift) and abs(off) > rows[2][f"{key}_error"]


def test_without_draws_or_a_law_or_a_minimum_nothing_is_decided():
    isoflop, coupled = fits(resamples=0)
    (row, *_) = against_surface(isoflop.budgets, coupled)
    assert row["n_differs"] is None and row["loss_differs"] is None and row["n_ratio"] == pytest.approx(1, abs=0.1)
    assert against_surface(isoflop.budgets, CoupledFit(None)) == [None] * 5
    n, d, c = isoflop_grid(TRUTH, BUDGETS, 9)
    edge = fit_isoflop(4 * n, d / 4, c, TRUTH.loss(4 * n, d / 4), resamples=0)
    assert against_surface(edge.budgets, coupled) == [None] * 5


def test_the_sentences_name_the_budgets_and_the_bend():
    isoflop, coupled = fits(0.5)
    budgets = []
    for budget, held in zip(isoflop.budgets, against_surface(isoflop.budgets, coupled), strict=True):
        budgets.append({"flops": budget.flops, "over_surface": held})
    result = {"isoflop": {"status": "ok", "budgets": budgets, "curvature_ln_n": isoflop.curvature}}
    result["coupled"] = {"family": "coupled"}
    differ, bend = remarks(result)
    assert "budgets' minima differ" in differ and "1e19 (N* x 1." in differ
    assert "over ln C: second derivative" in bend
    for row in budgets:
        row["over_surface"] |= {"n_differs": False, "loss_differs": False}
    assert remarks(result)[0] == "all 5 budgets' minima agree with the coupled law's"

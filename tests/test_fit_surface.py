"""isoflop/fit/surface.py: one forecast per compute and per run, from the minima or from the coupled law."""

from pathlib import Path

import numpy as np
import pytest

from bench.bench_forecast import forecast_row
from isoflop.fit.coupled import fit_coupled
from isoflop.fit.isoflop import fit_isoflop
from isoflop.fit.surface import forecast, forecast_runs
from isoflop.fit.table import Table, read
from isoflop.laws import SIX_ND, Law, isoflop_grid, simulate

FARSEER = Path(__file__).parents[2] / "shared" / "reference" / "more" / "farseer.csv"
TRUTH = Law(1.7, 400.0, 1200.0, 0.34, 0.36)


def fits(budgets, noise=0.002):
    n, d, c = isoflop_grid(TRUTH, budgets, 9, 16.0)
    loss = simulate(TRUTH, n, d, noise, 0)
    return fit_isoflop(n, d, c, loss, resamples=0), fit_coupled(n, d, loss, c, resamples=200), float(c.max())


@pytest.fixture(scope="module")
def grid():
    return fits([1e18, 3e18, 1e19, 3e19])


def runs(n, d, loss):
    names = np.array([f"r{i}" for i in range(len(n))], object)
    n, d = np.asarray(n, float), np.asarray(d, float)
    return Table(names, n, d, 6 * n * d, np.asarray(loss, float), np.arange(len(n)), info={})


def test_minima_answer_where_there_are_enough(grid):
    (row,), refusals = forecast(*grid[:2], [3e20], SIX_ND, grid[2])
    assert row.method == "isoflop" and refusals == ()
    assert row.loss.point == pytest.approx(TRUTH.frontier_loss(3e20), rel=0.01)
    assert row.loss.pi95[0] < TRUTH.frontier_loss(3e20) < row.loss.pi95[1]
    assert row.n_opt.pi95[0] < TRUTH.optimum(3e20)[0] < row.n_opt.pi95[1]


def test_the_coupled_law_answers_with_fewer(grid):
    two = fits([1e18, 1e19])
    (row,), refusals = forecast(*two[:2], [1e20], SIX_ND, two[2])
    assert row.method == "coupled" and refusals == ()
    assert row.loss.pi95[0] < TRUTH.frontier_loss(1e20) < row.loss.pi95[1]
    for quantity in (row.loss, row.n_opt, row.d_opt, row.tokens_per_param):
        assert quantity.pi95[0] <= quantity.ci95[0] <= quantity.point <= quantity.ci95[1] <= quantity.pi95[1]


def test_nothing_answers_two_runs():
    nothing = fit_coupled([1e6, 2e6], [1e8, 1e8], [4.0, 3.9], resamples=0)
    isoflop = fit_isoflop(*(np.array(v) for v in ([1e6, 2e6], [1e8, 1e8], [6e14, 12e14], [4.0, 3.9])), resamples=0)
    rows, refusals = forecast(isoflop, nothing, [1e16], SIX_ND, 1e15)
    assert rows == () and refusals[0].method == "forecast"
    assert forecast_runs(isoflop, nothing, runs([1e6], [1e8], [np.nan]), SIX_ND, 1e15) == []


def test_a_run_at_the_laws_optimum_is_forecast_as_the_line_says(grid):
    isoflop, coupled, c_max = grid
    c = 1e20
    n, d = coupled.law.optimum(c)
    (best,), _ = forecast(isoflop, coupled, [c], SIX_ND, c_max)
    (row,) = forecast_runs(isoflop, coupled, runs([n], [d], [best.loss.point]), SIX_ND, c_max)
    assert row["loss"]["point"] == pytest.approx(best.loss.point, rel=1e-6)
    assert row["in_pi95"] and row["error_nats"] == pytest.approx(0.0, abs=1e-5)


def test_runs_off_the_optimum_are_held(grid):
    n = np.array([2e8, 1e9, 5e9])
    d = 1e20 / 6 / n
    rows = forecast_runs(*grid[:2], runs(n, d, TRUTH.loss(n, d)), SIX_ND, grid[2])
    assert all(row["in_pi95"] for row in rows)
    assert max(abs(row["error_nats"]) for row in rows) < 0.03


def test_the_equivalent_compute_is_where_the_law_has_the_measured_loss(grid):
    """Runs as good as one of half the compute at their D/N: below, at and above the best N; and one under the floor."""
    n = np.array([2e8, 1e9, 5e9, 1e9])
    d, half = 1e20 / 6 / n, np.sqrt(0.5)
    measured = np.append(TRUTH.loss(n * half, d * half)[:3], 0.5 * TRUTH.E)
    rows = forecast_runs(*grid[:2], runs(n, d, measured), SIX_ND, grid[2])
    assert [row["equivalent_compute"] for row in rows[:3]] == pytest.approx([0.5] * 3, rel=0.1)
    assert rows[3]["equivalent_compute"] is None


@pytest.mark.skipif(not FARSEER.is_file(), reason="../shared/reference is not here")
@pytest.mark.slow
@pytest.mark.parametrize(("ratio", "error", "r2"), [(1.7, 0.0015, 0.99), (10, 0.005, 0.97)])
def test_farseers_dearest_runs_are_forecast(ratio, error, r2):
    table = read([str(FARSEER)])
    low = table.c < table.c.max() / ratio
    found = forecast_row(table.select(low), table.select(~low), True)
    assert found["error"] < error and found["r2"] > r2 and found["half"] < 0.015
    assert found["runs"] > 15 and found["in_pi95"] >= 0.9 * found["runs"]

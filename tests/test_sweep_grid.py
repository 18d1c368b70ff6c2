"""Guesses of the best size and rate from the runs so far."""

import numpy as np
import pytest

from isoflop.sweep import grid


def test_best_guess_of_edges_and_few_budgets():
    def row(n, c, loss):
        return {
            "status": "ok",
            "n_params_matmul": n,
            "tokens": c / 6 / n,
            "flops": c,
            "flop_budget": c,
            "val_loss": loss,
        }

    falling = [row(n, 1e12, 5 - k * 0.1) for k, n in enumerate((1e4, 2e4, 4e4, 8e4))]
    assert grid.best_guess(1e12, falling) is None, "a budget does not guess for itself"
    assert np.isclose(grid.best_guess(4e12, falling), 8e4 * 2), "from the lowest run, at an end, with slope 1/2"
    valley = [row(n, 1e12, 3 + np.log(n / 3e4) ** 2) for n in (1e4, 2e4, 4e4, 8e4)]
    assert np.isclose(grid.best_guess(1e14, valley), 3e5, rtol=0.02)


def test_best_rate_is_the_vertex_or_an_edge():
    rates = [0.01, 0.02, 0.04, 0.08, 0.16]
    losses = [3 + 0.1 * np.log(r / 0.03) ** 2 for r in rates]
    at, edge = grid.best_rate(rates, losses)
    assert not edge and np.isclose(at, 0.03, rtol=1e-6)
    assert grid.best_rate(rates, [1, 2, 3, 4, 5]) == (pytest.approx(0.01), True)
    assert grid.best_rate(rates[::-1], [5, 4, 3, 2, 1][::-1]) == (pytest.approx(0.16), True)
    assert np.isclose(grid.rate_between(2e4, [(1e4, 0.04), (4e4, 0.01)]), 0.02)

"""Minima of isoFLOP curves: the pooled smooth curves and the classical rules."""

from pathlib import Path

import numpy as np
import pytest

from bench import bench_minima
from isoflop.fit import minima
from isoflop.fit.isoflop import fit_isoflop

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="../shared/reference is not here")


def curves(noise=0.0, seed=0, left=0.3, right=0.5, n_budgets=6, sizes=9, window=(-1.5, 2.0)):
    """Curves exp(-left u) / left + exp(right u) / right of ln loss about ln N = 18, 19, ..., and the exact minima."""
    rng, out, exact = np.random.default_rng(seed), [], 18.0 + np.arange(n_budgets)
    for g, best in enumerate(exact):
        u = np.linspace(*window, sizes)
        y = 1.0 - 0.05 * g + 0.05 * (np.exp(-left * u) / left + np.exp(right * u) / right)
        y = y + noise * rng.standard_normal(sizes)
        out.append(minima.Curve(40.0 + 2.0 * g, best + u, y, np.ones(sizes)))
    return out, exact


def test_lopsided_curves_have_their_minima_where_they_are():
    some, exact = curves()
    fit = minima.fit_pooled(some)
    assert sum(fit.shares.values()) == pytest.approx(1)
    found = fit.minima()
    np.testing.assert_allclose(found.ln_n[0], exact, atol=0.01)
    np.testing.assert_allclose(np.log(found.loss[0]), 1.0 - 0.05 * np.arange(6) + 0.05 * (1 / 0.3 + 1 / 0.5), atol=1e-4)
    assert found.ok.all() and not fit.outliers
    x, y = fit.curve(2)
    assert (x[0], x[-1]) == (some[2].ln_n[0], some[2].ln_n[-1])
    np.testing.assert_allclose(np.interp(some[2].ln_n, x, y), some[2].ln_loss, atol=2e-4)


def test_closed_form_left_out_errors_are_those_of_fits_without_the_run():
    some, _ = curves(0.003)
    data = minima._Padded(some)
    process = minima._gaussian_process(data)
    g, j = 2, int(np.flatnonzero(data.near[2])[1])
    length, noise = process.choice["length"], process.choice["noise"]
    keep = np.arange(9) != j
    x, y = data.x[g], data.y[g]
    kernel = minima._kernel(x[keep], x[keep], length) + noise * np.eye(8)
    mean = minima._polynomial_basis(x / data.half[g], 2)
    inverse = np.linalg.inv(kernel)
    line = np.linalg.solve(mean[keep].T @ inverse @ mean[keep], mean[keep].T @ inverse @ y[keep])
    rest = inverse @ (y[keep] - mean[keep] @ line)
    guess = mean[j] @ line + minima._kernel(x[[j]], x[keep], length)[0] @ rest
    assert process.left_out[g, j] == pytest.approx(y[j] - guess, rel=1e-6)
    basis = minima._polynomial_basis(x / data.half[g], 3)
    local = minima._local_fits(data, minima._polynomial_basis(data.x / data.half[:, None], 3)[None],
                               np.broadcast_to(minima._polynomial_basis(data.coarse, 3), (1, 6, 17, 4)),
                               np.array([np.inf]))  # fmt: skip
    coefficients = np.linalg.lstsq(basis[keep], y[keep], rcond=None)[0]
    assert local[1][0, 0, g, j] == pytest.approx(y[j] - basis[j] @ coefficients, rel=1e-5)


def test_smoothers_are_linear_and_reproduce_parabolas():
    some, _ = curves(0.004, 1)
    fit = minima.fit_pooled(some)
    parabola = 0.02 * (fit.data.x - 0.1) ** 2 * (fit.data.runs > 0)
    for name in ("polynomial", "gaussian_process"):
        smooth = (fit.members[name].at_runs @ parabola[..., None])[..., 0]
        np.testing.assert_allclose(smooth, parabola, atol=1e-8)
    one = (fit.members["asymmetric"].at_runs @ np.ones((9, 1)))[..., 0]
    np.testing.assert_allclose(one, 1, atol=1e-8)


def test_budgets_of_different_sizes_and_replicates():
    some, exact = curves(0.002, 2)
    short = minima.Curve(some[0].ln_c, some[0].ln_n[2:7], some[0].ln_loss[2:7], some[0].runs[2:7])
    often = minima.Curve(some[1].ln_c, some[1].ln_n, some[1].ln_loss, np.full(9, 16.0))
    fit = minima.fit_pooled([short, often, *some[2:]])
    np.testing.assert_allclose(fit.minima().ln_n[0], exact, atol=0.3)
    spread = fit.draw(2000, np.random.default_rng(0)).ln_n.std(0)
    assert spread[1] < 0.8 * spread[2:].mean()  # 16 runs of each size; what is left is the members' own spread


def test_draws_spread_as_repetitions_do():
    fitted, exact = [], None
    for seed in range(40):
        some, exact = curves(0.004, seed)
        fitted.append(minima.fit_pooled(some).minima().ln_n[0] - exact)
    some, _ = curves(0.004, 100)
    draws = minima.fit_pooled(some).draw(2000, np.random.default_rng(0))
    assert draws.ok.mean() > 0.99
    assert 0.7 < draws.ln_n.std(0).mean() / np.std(fitted) < 1.6


def test_an_outlier_is_left_out_and_named():
    some, exact = curves(0.002, 3)
    some[2].ln_loss[4] += 0.06
    fit = minima.fit_pooled(some)
    assert fit.outliers == ((2, 4),)
    assert abs(fit.minima().ln_n[0, 2] - exact[2]) < 0.15
    assert 4 not in fit.sizes[2] and len(fit.sizes[1]) == 9


def test_a_law_is_smoothed_as_the_runs_were():
    some, exact = curves(0.004, 5)
    clean, _ = curves()
    fit = minima.fit_pooled(some)
    found = fit.minima([curve.ln_loss for curve in clean])
    np.testing.assert_allclose(found.ln_n[0], exact, atol=0.05)


@pytest.mark.parametrize("law", ["besiroglu", "hoffmann", "coupled p=2"])
def test_no_bias_on_lopsided_grids_without_noise(law):
    """Six grids of nine budgets, windows from 1/30 to 40 times the optimum: a within .001, every N_opt within 2%."""
    ln_c, best, windows = bench_minima.grids(bench_minima.LAWS[law])
    for ln_n in windows.values():
        runs = bench_minima.runs_of(bench_minima.LAWS[law], ln_c, ln_n)
        miss, miss_a = bench_minima.errors_of(fit_isoflop(*runs, resamples=0), ln_c, best)
        assert abs(miss_a) < 1e-3 and np.abs(miss).max() < 0.02


@reference
def test_published_exponents_of_porian():
    _, rmse = bench_minima.porian_table(bench_minima.public_sweeps(REFERENCE))
    assert rmse["pooled"] <= 0.010 < rmse["local"]


@reference
@pytest.mark.slow
def test_regret_at_budgets_held_out():
    table, mean = bench_minima.regret_table(bench_minima.public_sweeps(REFERENCE))
    print(table)
    assert mean["pooled"] < mean["local"] < mean["parabola"]


@pytest.mark.slow
def test_intervals_of_minima_hold_95_percent():
    """Two laws, six grids, two noises: ci95 of N_opt, of the loss there and of a; those of "local" miss far more."""
    table, mean, of_a = bench_minima.noise_table(seeds=10)
    print(table)
    assert min(of_a.values()) >= 0.8  # of 10
    for quantity in ("a", "N*", "loss"):
        assert 0.92 <= mean["pooled", quantity] <= 0.985
    assert mean["local", "N*"] < 0.88


@pytest.mark.slow
def test_ci95_of_a_holds_where_windows_drift():
    """Valleys seen from the left at one end of C, from the right at the other: .70 without the bias of the minima."""
    law = bench_minima.LAWS["coupled p=2"]
    ln_c, best, windows = bench_minima.grids(law)
    held = bench_minima.noisy_sweeps(law, ln_c, best, windows["drifting window"], 0.003, 40)["pooled"]
    assert len(held["a"]) == 40 and np.mean(held["a"]) >= 0.875
    assert np.median(held["half-width of a"]) < 0.015

"""Approach 2: known laws, published answers, budgets that are no budgets, intervals."""

import json
from pathlib import Path

import numpy as np
import pytest

from isoflop import laws
from isoflop.fit.isoflop import expected_bias, fit_isoflop, group_budgets, hold_bias, is_exponent
from isoflop.fit.table import read
from isoflop.options import UserError

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="../shared/reference is not here")
LAW = laws.PUBLISHED["besiroglu"]


def sweep(noise=0.003, seed=0, budgets=(1e18, 3e18, 1e19, 3e19, 1e20), sizes=7):
    n, d, c = laws.isoflop_grid(LAW, budgets, sizes, 30.0)
    return n, d, c, laws.simulate(LAW, n, d, noise, seed)


def published(name):
    return json.loads((REFERENCE / "reference_results.json").read_text())[name]["isoflop"]


# ----- budgets -----


def test_budgets_are_windows_of_compute():
    c = np.array([1e18, 1.02e18, 0.99e18, 1e19, 1e19, 1e19, 4e19])
    groups = group_budgets(c)
    assert [list(rows) for rows in groups] == [[0, 1, 2], [3, 4, 5]]


def test_budgets_met_to_within_a_step_leave_the_optima_where_they_are():
    """Few sizes, an isoFLOP curve that is no parabola, and C off by up to 0.4%, as in short runs of large models."""
    sizes, off = np.array([0.5, 0.75, 1.0, 1.4, 3.4, 7.0]), np.array([1, -0.5, -0.5, -0.5, 2, -4]) * 1e-3
    exact = np.repeat([6e10, 1.8e11, 5.4e11, 1.6e12], 6)
    drift = (6e10 / exact) ** 0.3
    n = 4e4 * (exact / 6e10) ** 0.5 * np.tile(sizes, 4)
    c = exact * (1 + np.tile(off, 4) * drift)
    few_steps = np.tile([0, 0, 0, 0, 0.25, 0.25], 4) * drift  # what too few steps cost the two largest

    def fitted(flops):
        loss = 2 + 40 / n**0.4 + 60 / (flops / (6 * n)) ** 0.4 + few_steps
        return fit_isoflop(n, flops / (6 * n), flops, loss, exact, resamples=0).budgets

    for one, other in zip(fitted(exact), fitted(c), strict=True):
        assert (one.status, other.status) == ("ok", "ok")
        assert other.n_opt == pytest.approx(one.n_opt, rel=5e-3)
        assert other.loss == pytest.approx(one.loss, rel=2e-4)


def test_budgets_without_a_minimum_are_named():
    n, d, c, loss = sweep(0.0)
    first, second = c == 1e18, c == 3e18
    optimum = LAW.optimum(1e18)[0]
    keep = ~(first & (n < optimum)) & ~(second & (n > np.sort(n[second])[2]))
    fit = fit_isoflop(n[keep], d[keep], c[keep], loss[keep], resamples=0)
    assert [v.status for v in fit.budgets] == ["edge", "edge", "ok", "ok", "ok"]
    assert fit.warnings[0].message == "left out of the power laws: 1e+18 (edge), 3e+18 (edge)"
    assert fit.budgets[0].n_opt is None and fit.budgets[2].n_opt > 0


def test_three_sizes_give_a_minimum_without_error():
    """The parabola through three sizes is exact: its minimum has no interval and is in no power law."""
    c = np.repeat([1e18, 4e18, 1.6e19], 3)
    off = np.tile(np.log([0.3, 0.8, 3.0]), 3)
    n = 1e8 * (c / 1e18) ** 0.5 * np.exp(off)
    loss = 3 - 0.1 * np.log(c / 1e18) + 0.02 * off**2
    fit = fit_isoflop(n, c / 6 / n, c, loss, resamples=100)
    assert [v.status for v in fit.budgets] == ["exact"] * 3 and not any(v.ci for v in fit.budgets)
    assert [v.n_opt for v in fit.budgets] == pytest.approx([1e8, 2e8, 4e8], rel=1e-6)
    assert fit.a is None and not fit.draws and "has no error, in 3 of them" in fit.refusals[0].message
    assert fit.exact_line["a"] == pytest.approx(0.5, abs=1e-6)
    near = fit_isoflop(n * np.exp(-0.9 * off), c / 6 / n, c, loss, resamples=0)  # sizes within a factor of 1.3
    assert {v.status for v in near.budgets} == {"too_few_sizes"} and not near.exact_line

    # beside budgets of seven sizes they are shown and change nothing
    n, d, c, loss = sweep(0.0)
    three = (c == 1e18) & np.isin(n, np.sort(n[c == 1e18])[[1, 3, 5]])
    keep = three | (c > 2e18)
    fit, without = (fit_isoflop(n[rows], d[rows], c[rows], loss[rows], resamples=0) for rows in (keep, c > 2e18))
    assert [v.status for v in fit.budgets] == ["exact", "ok", "ok", "ok", "ok"] and not fit.exact_line
    assert (fit.a, fit.ln_k_n) == (without.a, without.ln_k_n)


def test_outliers_are_named():
    n, d, c, loss = sweep(0.002, 1, sizes=9)
    at = np.flatnonzero(c == 1e19)[5]
    loss[at] *= 1.05
    fit = fit_isoflop(n, d, c, loss, resamples=0)
    (warning,) = (w for w in fit.warnings if w.code == "outliers")
    assert warning.message.endswith("size 6 of 1e+19")


def test_refusals():
    n, d, c, loss = sweep()

    def code(rows, values=loss):
        return fit_isoflop(n[rows], d[rows], c[rows], values[rows], resamples=100).refusals[0].code

    assert code(np.arange(3)) == "no_budgets"
    assert code(c == 1e18) == "one_budget"
    assert code(c <= 3e18) == "two_budgets"
    assert code(c > 0, n) == "no_interior_minimum"
    backwards = (np.log(n) - 20 + np.log(c / 1e19)) ** 2 + 3
    assert [is_exponent(a) for a in (0.5, 1e-17, 1 - 1e-16, np.nan)] == [True, False, False, False]
    assert code(c > 0, backwards) in ("runaway_exponent", "no_interior_minimum")
    with pytest.raises(UserError, match="--isoflop_method best is not known; use one of"):
        fit_isoflop(n, d, c, loss, how="best")


# ----- truth -----


@pytest.mark.parametrize("how", ["pooled", "local", "akima", "parabola"])
def test_power_laws_of_a_known_law(how):
    n, d, c, loss = sweep(0.0)
    fit = fit_isoflop(n, d, c, loss, how=how, resamples=0)
    assert abs(fit.a - LAW.exponents()[0]) < 0.003 and fit.a + fit.b == pytest.approx(1)
    n_opt, d_opt = fit.optimum(1e22)
    assert n_opt * d_opt * 6 == pytest.approx(1e22, rel=1e-6)


def test_costs_that_are_not_6nd():
    cost = laws.Cost(3.0, 0.06)
    c = np.repeat([1e18, 1e19, 1e20, 1e21], 8)
    n = LAW.optimum(c, cost)[0] * np.tile(np.geomspace(0.2, 5, 8), 4)
    d = cost.tokens(n, c)
    fit = fit_isoflop(n, d, c, LAW.loss(n, d), resamples=0)
    a, b = LAW.exponents(cost)
    assert abs(fit.a - a) < 1e-3 and abs(fit.b - b) < 1.1e-3
    for v in fit.budgets:
        assert cost.flops(v.n_opt, v.d_opt) == pytest.approx(v.flops, rel=1e-6)


def test_bias_by_construction_is_that_of_the_grid():
    c = np.repeat([1e18, 1e19, 1e20], 9)
    n = LAW.optimum(c)[0] * np.tile(np.geomspace(0.5, 40, 9), 3)  # lopsided and wide
    d = c / 6 / n
    fit = fit_isoflop(n, d, c, LAW.loss(n, d), resamples=0)
    bias = expected_bias(fit, LAW, n, d, c)
    assert bias["surface_a"] == pytest.approx(LAW.exponents()[0])
    assert bias["parabola_a"] == pytest.approx(fit.all_points["a"])
    assert abs(np.log(bias["parabola_n_ratio"])) > 0.1 > 1.5 * abs(np.log(bias["local_n_ratio"]))
    assert abs(bias["pooled_bias_a"]) < 1e-3 and abs(np.log(bias["pooled_n_ratio"])) < 0.02
    for v, row in zip(fit.budgets, bias["budgets"], strict=True):
        assert row["flops"] == v.flops and row["n_ratio"] == pytest.approx(v.n_opt / LAW.optimum(v.flops)[0])


def test_expected_bias_of_noisy_runs_is_that_of_their_own_smoothing():
    n, d, c, loss = sweep(0.004, 2, sizes=9)
    for how in ("pooled", "local"):
        fit = fit_isoflop(n, d, c, loss, how=how, resamples=0)
        bias = expected_bias(fit, LAW, n, d, c)
        assert len(bias["budgets"]) == 5 and abs(bias[f"{how}_bias_a"]) < 0.01
    assert expected_bias(fit_isoflop(n, d, c, n, resamples=0), LAW, n, d, c) is None


def test_intervals_hold_the_bias_of_the_minima():
    """Half of the draws are where they were, half are moved by minus the bias: as wide as it takes, and no wider."""
    n, d, c, loss = sweep(0.003, 5)
    cost = laws.Cost(6.0, 0.1)
    fit = fit_isoflop(n, d, c, loss, resamples=1000)
    assert hold_bias(fit, None) is fit and hold_bias(fit, {"local_bias_a": 0.1}) is fit
    wide = hold_bias(fit, {"pooled_bias_a": 0.2, "pooled_n_ratio": 1.5}, cost)
    np.testing.assert_array_equal(wide.draws["a"][::2], fit.draws["a"][::2])
    np.testing.assert_allclose(wide.draws["a"][1::2], fit.draws["a"][1::2] - 0.2)
    x = np.log(fit.budgets[-1].flops)
    drawn, was = (f.draws["ln_k_n"][1::2] + f.draws["a"][1::2] * x for f in (wide, fit))
    np.testing.assert_allclose(drawn, was - np.log(1.5))
    drawn, was = (f.draws["ln_k_d"][1::2] + f.draws["b"][1::2] * x for f in (wide, fit))
    np.testing.assert_allclose(drawn, was + 1.1 * np.log(1.5))
    low, high = np.percentile(wide.draws["a"], (2.5, 97.5))
    assert low < fit.a - 0.2 and fit.a < high < low + 0.2 + 4 * fit.draws["a"].std()
    assert (wide.a, wide.bias_held) == (fit.a, {"a": 0.2, "n_ratio": 1.5, "flops": fit.budgets[-1].flops})


def test_curvature_of_the_optima_is_tested():
    c = np.repeat(10.0 ** np.arange(17, 21.1, 0.5), 9)
    x = np.tile(np.linspace(-1.5, 1.5, 9), 9)
    noise = np.exp(0.002 * np.random.default_rng(0).standard_normal(len(c)))
    for bend in (0.0, 0.03):
        u = np.log(c / 1e19)
        best = 18 + 0.5 * u + 0.5 * bend * u**2
        loss = (3 - 0.1 * u + 0.1 * x**2) * noise
        n = np.exp(best + x)
        fit = fit_isoflop(n, c / 6 / n, c, loss, resamples=400)
        low, high = fit.curvature["ci95"]
        assert low < bend < high and fit.curvature["bends"] == (bend > 0)
        assert fit.curvature["a_high"] - fit.curvature["a_low"] == pytest.approx(bend * np.log(1e4), abs=0.06)


# ----- resamples -----


def test_intervals_hold_the_point_and_narrow_with_the_noise():
    widths = []
    for noise in (0.002, 0.008):
        fit = fit_isoflop(*sweep(noise, 3, sizes=11), resamples=400)
        low, high = np.percentile(fit.draws["a"], (2.5, 97.5))
        assert low < fit.a < high
        assert fit.draws["loss"].shape[1] == sum(v.status == "ok" for v in fit.budgets)
        for v in fit.budgets:
            assert v.ci["n_opt"][0] < v.n_opt < v.ci["n_opt"][1]
        widths.append(high - low)
    assert widths[1] > 2 * widths[0]


def test_many_runs_of_a_size_are_drawn_as_their_mean():
    n, d, c, loss = (np.tile(v, 300) for v in sweep(0.0))
    loss = loss * np.exp(0.01 * np.random.default_rng(0).standard_normal(len(loss)))
    fit = fit_isoflop(n, d, c, loss, resamples=400)
    assert 0.0005 < np.std(fit.draws["a"]) < 0.01


# ----- published answers -----


@reference
def test_cs336():
    table = read([str(REFERENCE / "cs336_isoflops_curves.json")])
    want = published("cs336_isoflops")["quadratic_all_points_in_L"]
    fit = fit_isoflop(table.n, table.d, table.c, table.loss, resamples=0)
    np.testing.assert_allclose(fit.all_points["n_opt"], [v["N_opt"] for v in want["budgets"]], rtol=1e-5)
    assert np.isclose(fit.all_points["a"], want["ok_only"]["a"], atol=1e-6)
    low = fit.lowest_runs  # what the assignment says to do
    assert round(low["a"], 4) == 0.4687
    assert np.exp(low["ln_k_n"] + low["a"] * np.log(1e24)) == pytest.approx(206e9, rel=2e-3)
    law = laws.Law(2.69, 1606.4, 3210.7, 0.34, 0.36)
    bias = expected_bias(fit, law, table.n, table.d, table.c)
    assert np.isclose(bias["parabola_bias_a"], fit.all_points["a"] - law.exponents()[0], atol=1e-7)
    assert abs(fit.a - law.exponents()[0]) <= abs(fit.all_points["a"] - law.exponents()[0])


@reference
def test_kempner():
    table = read([str(REFERENCE / "kempner_fineweb_edu.csv")], where=["is_extrapolation == 0"])
    want = published("kempner_fineweb_edu")
    fit = fit_isoflop(table.n, table.d, table.c, table.loss, resamples=0)
    quadratic = want["quadratic_all_points_in_L"]
    assert np.isclose(fit.all_points["a"], quadratic["ok_only"]["a"], atol=1e-6)
    np.testing.assert_allclose(fit.all_points["n_opt"], [v["N_opt"] for v in quadratic["budgets"]], rtol=1e-5)
    akima = fit_isoflop(table.n, table.d, table.c, table.loss, how="akima", resamples=0)
    assert np.isclose(akima.a, want["akima_loglog"]["a"], atol=1e-3)
    theirs = [v["N_opt"] for v in want["akima_loglog"]["per_budget"]]
    np.testing.assert_allclose([v.n_opt for v in akima.budgets], theirs, rtol=5e-3)

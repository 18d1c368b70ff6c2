"""Hoffmann's law fitted: known laws recovered, published answers matched, refusals, draws."""

import numpy as np
import pytest
from helpers import isoflop_runs, needs_reference, reference_results, reference_table

from isoflop import laws
from isoflop.fit import huber
from isoflop.fit.parametric import fit_parametric

LAW = laws.PUBLISHED["besiroglu"]


def huber_value(z, fitted, w=1.0, delta=1e-3):
    r = np.abs(z - fitted)
    return float((w * np.where(r <= delta, r**2 / 2, delta * (r - delta / 2))).sum())


# ----- the optimum -----


@pytest.mark.parametrize("name", ["hoffmann", "besiroglu"])
def test_known_laws_are_recovered_exactly_without_noise(name):
    n, d, _, loss = isoflop_runs(laws.PUBLISHED[name], 0.0)
    fit = fit_parametric(n, d, loss, resamples=0)
    for k, v in laws.PUBLISHED[name].params.items():
        assert np.isclose(getattr(fit.law, k), v, rtol=1e-5)


def test_not_beaten_by_scipy():
    from scipy.optimize import minimize

    n, d, _, loss = isoflop_runs(LAW, 0.005, 3)
    fit = fit_parametric(n, d, loss, resamples=0)
    x, z = np.log(np.stack([n, d])), np.log(loss)

    def objective(t):
        fitted = np.logaddexp(np.logaddexp(t[0] - t[2] * x[0], t[1] - t[3] * x[1]), t[4])
        return huber_value(z, fitted) * 1e4

    start = np.array([np.log(LAW.A), np.log(LAW.B), LAW.alpha, LAW.beta, np.log(LAW.E)])
    for factor in (1.0, 1.02):
        found = minimize(objective, start * factor, method="Nelder-Mead", options={"maxiter": 4000})
        assert fit.objective <= found.fun / 1e4 * (1 + 1e-9)


def test_a_fit_near_by_gives_the_same_optimum_from_three_starts():
    n, d, c, loss = isoflop_runs(LAW, 0.004, 5)
    low = c < 9e19
    near = fit_parametric(n, d, loss, resamples=0)
    alone = fit_parametric(n[low], d[low], loss[low], resamples=0)
    helped = fit_parametric(n[low], d[low], loss[low], resamples=0, n_grid=3, near=near)
    assert np.isclose(helped.objective, alone.objective, rtol=1e-8) and helped.starts == 9
    assert np.isclose(helped.law.alpha, alone.law.alpha, rtol=1e-4)


def test_weights_count_as_copies_of_a_run():
    n, d, _, loss = isoflop_runs(LAW, 0.004, 1)
    copies = np.where(np.arange(len(n)) % 3 == 0, 3, 1)
    weighted = fit_parametric(n, d, loss, copies.astype(float), resamples=0)
    copied = fit_parametric(*(np.repeat(v, copies) for v in (n, d, loss)), resamples=0)
    assert np.isclose(weighted.objective, copied.objective, rtol=1e-9)
    assert np.isclose(weighted.law.beta, copied.law.beta, rtol=1e-6)


# ----- refusals -----


def runs_of(what):
    """n, d of runs that lack one thing, under its code."""
    grid = np.geomspace(1e7, 1e9, 4)
    n, d = (v.ravel() for v in np.meshgrid(grid, np.geomspace(1e9, 1e11, 4)))
    return {
        "too_few_rows": (n[:5], d[:5]),
        "one_size": (np.full(12, 1e8), np.geomspace(1e9, 1e11, 12)),
        "one_token_count": (np.geomspace(1e7, 1e9, 12), np.full(12, 1e10)),
        "constant_ratio": (np.geomspace(1e7, 1e9, 12), 20 * np.geomspace(1e7, 1e9, 12)),
        "one_budget": (np.geomspace(1e7, 1e9, 12), 1e18 / np.geomspace(1e7, 1e9, 12)),
        "collinear": (np.geomspace(1e7, 1e9, 12), np.geomspace(1e7, 1e9, 12) ** 2),
        "too_few_sizes": (n[np.isin(n, grid[:2])], d[np.isin(n, grid[:2])]),
        "too_few_token_counts": (d[np.isin(n, grid[:2])], n[np.isin(n, grid[:2])]),
    }[what]


@pytest.mark.parametrize(
    "code",
    [
        "too_few_rows",
        "one_size",
        "one_token_count",
        "constant_ratio",
        "one_budget",
        "collinear",
        "too_few_sizes",
        "too_few_token_counts",
    ],
)
def test_runs_that_cannot_carry_five_parameters_are_refused(code):
    n, d = runs_of(code)
    fit = fit_parametric(n, d, LAW.loss(n, d), resamples=0)
    assert fit.law is None and fit.draws is None and [r.code for r in fit.refusals] == [code]


def test_losses_without_a_law_are_refused():
    n, d, _, _ = isoflop_runs(LAW)
    noise = 3 + np.random.default_rng(0).normal(size=len(n)) * 0.3
    fit = fit_parametric(n, d, noise, resamples=0)
    assert fit.law is None and fit.refusals


def test_where_e_runs_to_0_the_law_without_it_answers():
    law = laws.Law(0.0, 40.0, 9000.0, 0.1, 0.4)
    n, d, _, loss = isoflop_runs(law, 0.003, 4)
    fit = fit_parametric(n, d, loss, resamples=200)
    assert fit.law.E == 0 and fit.family == "hoffmann, E = 0" and "no_floor" in [w.code for w in fit.warnings]
    assert fit.ci("alpha")[0] < 0.1 < fit.ci("alpha")[1] and fit.ci("E") == (0.0, 0.0)
    assert 0 < fit.ln_loss_se(n, d) < 0.002 and fit.bootstrap["unconverged"] == 0
    low = np.arange(len(n)) < 28
    near = fit_parametric(n[low], d[low], loss[low], resamples=0, near=fit)
    alone = fit_parametric(n[low], d[low], loss[low], resamples=0)
    assert np.isclose(near.objective, alone.objective, rtol=1e-6)


@needs_reference
def test_porians_kaplan_set_has_no_floor():
    t = reference_table("more/porian_owt2_base_long_kaplan_kaplan_train.csv")
    fit = fit_parametric(t.n, t.d, t.loss, resamples=0)
    assert fit.law.E == 0 and abs(fit.law.exponents()[0] - 0.864) < 0.01  # published: .8635


# ----- draws -----


def test_every_bootstrap_resample_is_a_stationary_point():
    n, d, _, loss = isoflop_runs(LAW, 0.005)
    fit = fit_parametric(n, d, loss, resamples=500)
    assert fit.bootstrap["unconverged"] == 0 and fit.gradient < 1e-6 and len(fit.draws.E) > 480
    # the first resample again, from many starts: nothing lower
    w = huber.resample_counts(np.random.default_rng(0), len(n), 500)[0]
    x, z = np.log(np.stack([n, d])), np.log(loss)
    x = x - x.mean(1, keepdims=True)
    starts = huber.grid_starts(x, z, np.geomspace(0.1, 1, 6))
    _, best, _, _ = huber.best_of(starts, x, z, w, 1e-3, True, patience=200)
    draw = laws.Law(*(v[0] for v in fit.draws.params.values()))
    assert huber_value(z, np.log(draw.loss(n, d)), w) <= best * (1 + 1e-6)


def test_many_rows_get_sandwich_draws_as_wide_as_the_bootstrap():
    n, d, _, loss = isoflop_runs(LAW, 0.005, budgets=10.0 ** np.arange(18, 21.1, 0.5), sizes=1500)
    fit = fit_parametric(n, d, loss, resamples=2000)
    assert fit.bootstrap["kind"].startswith("sandwich")
    every = np.arange(len(n)) % 10 == 0
    fewer = fit_parametric(n[every], d[every], loss[every], resamples=400)
    assert fewer.bootstrap["kind"].startswith("case")
    ratio = np.std(fewer.draws.alpha) / np.std(fit.draws.alpha)
    assert abs(ratio / np.sqrt(10) - 1) < 0.25


# ----- published answers -----


@needs_reference
def test_chinchilla_240_rows():
    want, t = reference_results()["chinchilla_epoch"], reference_table("chinchilla_epoch.csv", drop_top_loss=5)
    fit = fit_parametric(t.n, t.d, t.loss)
    ref = want["reference_240_rows_delta_1e3"]
    assert fit.objective <= 1.01827401780e-3 * (1 + 1e-6) and fit.objective <= ref["objective_sum"] * (1 + 1e-9)
    for k, v in (("A", 477.83), ("B", 2143.4), ("E", 1.8172), ("alpha", 0.34731), ("beta", 0.36717)):
        assert np.isclose(getattr(fit.law, k), v, rtol=3e-5)
    assert fit.starts_agreeing >= 90 and fit.bootstrap["unconverged"] == 0
    for k, v in (("A", 124.5), ("B", 1293), ("E", 0.0257), ("alpha", 0.0154), ("beta", 0.0206)):
        assert abs(np.std(getattr(fit.draws, k), ddof=1) / v - 1) < 0.10, k
    for k, v in ref["N_opt"].items():
        assert np.isclose(fit.law.optimum(float(k))[0], v, rtol=1e-4)
    sharp = fit_parametric(t.n, t.d, t.loss, delta=1e-9, resamples=0)
    for k in ("A", "B", "E", "alpha", "beta"):
        assert np.isclose(getattr(sharp.law, k), want["reference_240_rows_least_absolute"][k], rtol=1e-4)


@needs_reference
def test_cs336():
    t = reference_table("cs336_isoflops_curves.json")
    fit = fit_parametric(t.n, t.d, t.loss, resamples=0)
    want = laws.Law(2.69, 1606.4, 3210.7, 0.34, 0.36)
    for k, v in want.params.items():
        assert np.isclose(getattr(fit.law, k), v, rtol=1e-4)
    assert round(fit.law.exponents()[0], 4) == 0.5143
    n, d = fit.law.optimum(1e24)
    assert np.isclose(n, 300.3e9, rtol=2e-4) and np.isclose(d, 555.0e9, rtol=2e-4)


@needs_reference
@pytest.mark.parametrize(
    ("column", "key"), [("loss", "hoffmann_log_huber_train_loss"), ("loss_c4_val", "hoffmann_log_huber_c4_val")]
)
def test_kempner(column, key):
    want = reference_results()["kempner_fineweb_edu"][key]
    t = reference_table("kempner_fineweb_edu.csv", columns={"loss": column}, where=["is_extrapolation == 0"])
    fit = fit_parametric(t.n, t.d, t.loss, resamples=0)
    assert fit.objective <= want["objective_sum"] * (1 + 1e-9)
    for k in ("A", "B", "E", "alpha", "beta"):
        assert np.isclose(getattr(fit.law, k), want[k], rtol=1e-4)

"""The surface that forecasts: laws recovered, families by evidence, priors, draws, few runs, real extrapolations."""

import numpy as np
import pytest
from helpers import isoflop_runs, needs_reference, reference_table

from isoflop import laws
from isoflop.fit import coupled
from isoflop.fit.coupled import PUBLIC, fit_coupled, forecast_weights, frontier_rise
from isoflop.fit.parametric import fit_parametric

HOFFMANN = laws.PUBLISHED["besiroglu"]
LAW = laws.Law(1.6, 40.0, 120.0, 0.25, 0.27, p=2.2)
BUDGETS = 10.0 ** np.linspace(18, 21, 7)


# ----- the optimum -----


def test_a_coupled_law_without_noise_is_recovered():
    n, d, c, loss = isoflop_runs(LAW, 0.0, budgets=BUDGETS, sizes=9)
    fit = fit_coupled(n, d, loss, c, prior=False, resamples=0)
    assert fit.family == "coupled" and fit.evidence["coupled"] == 0 and fit.evidence["hoffmann"] > 50
    for k, v in LAW.params.items():
        assert np.isclose(getattr(fit.law, k), v, rtol=1e-3), k
    assert np.abs(fit.residuals).max() < 1e-6 and fit.gradient < 1e-5
    with_prior = fit_coupled(n, d, loss, c, resamples=0)
    at = LAW.optimum(1e22)
    assert abs(np.log(with_prior.law.loss(*at) / LAW.loss(*at))) < 0.005 and not with_prior.prior_marks


def test_hoffmanns_law_is_preferred_where_it_holds():
    n, d, c, loss = isoflop_runs(HOFFMANN, 0.003, 3, budgets=BUDGETS, sizes=9)
    fit = fit_coupled(n, d, loss, c, resamples=200)
    assert fit.family == "hoffmann" and fit.law.p == 1 and fit.evidence["coupled"] > 0
    at, error = HOFFMANN.optimum(1e22), {}
    for name, law in (("classical", fit_parametric(n, d, loss, resamples=0).law), ("coupled", fit.law)):
        error[name] = abs(np.log(law.loss(*at) / HOFFMANN.loss(*at)))
    assert error["coupled"] < error["classical"] + 0.0035


def test_the_optimum_is_a_minimum_of_the_stated_objective():
    n, d, c, loss = isoflop_runs(LAW, 0.005, 1, budgets=BUDGETS, sizes=7)
    fit = fit_coupled(n, d, loss, c, family="coupled", resamples=0)
    centre = np.array([np.average(np.log(v), weights=fit.weights) for v in (n, d)])
    mean = np.array(PUBLIC.mean)
    mean[[0, 1, 4]] += np.average(np.log(loss), weights=fit.weights)

    def objective(t):
        p = np.exp(t[5])
        terms = [p * (t[k] - t[2 + k] * (np.log(v) - centre[k])) for k, v in enumerate((n, d))]
        r = np.abs(np.log(loss) - np.logaddexp(np.logaddexp(*terms) / p, t[4]))
        s = fit.sigma
        huber = np.where(r <= s, r**2 / 2, s * (r - s / 2))
        return (fit.weights * huber).sum() + s**2 / 2 * (((t - mean) / PUBLIC.sd) ** 2).sum()

    assert np.isclose(objective(fit.theta), fit.objective, rtol=1e-9)
    rng = np.random.default_rng(0)
    for scale in (1e-3, 1e-2, 0.1):
        for step in rng.standard_normal((30, 6)):
            assert objective(fit.theta + scale * step) > fit.objective


def test_units_of_n_d_and_loss_change_nothing_but_a_b_and_e():
    n, d, c, loss = isoflop_runs(LAW, 0.004, 2, budgets=BUDGETS, sizes=7)
    one = fit_coupled(n, d, loss, c, resamples=50)
    other = fit_coupled(7 * n, 0.2 * d, 1.4427 * loss, 5 * c, resamples=50)
    assert other.family == one.family
    for k in ("alpha", "beta", "p"):
        assert np.isclose(getattr(other.law, k), getattr(one.law, k), rtol=1e-5)
    assert np.isclose(other.law.E, 1.4427 * one.law.E, rtol=1e-5)
    np.testing.assert_allclose(other.draws.alpha, one.draws.alpha, rtol=1e-3)


def test_a_fit_near_by_gives_the_same_optimum():
    n, d, c, loss = isoflop_runs(LAW, 0.004, 4, budgets=BUDGETS, sizes=7)
    low = c < 5e20
    near = fit_coupled(n, d, loss, c, resamples=0)
    arrays = (n[low], d[low], loss[low], c[low])
    alone, helped = fit_coupled(*arrays, resamples=0), fit_coupled(*arrays, resamples=0, near=near)
    assert np.isclose(helped.objective, alone.objective, rtol=1e-6) and helped.starts == 2


# ----- weights -----


def test_weights_fall_with_the_rise_above_the_frontier_and_with_cheapness():
    c = np.repeat([1e18, 1e19, 1e20], 3)
    loss = np.array([3.0, 3.15, 3.3, 2.6, 2.73, 2.86, 2.3, 2.415, 2.53])
    rise = frontier_rise(c, loss)
    np.testing.assert_allclose(rise[::3], 0, atol=1e-12)
    np.testing.assert_allclose(rise[1::3], np.log(1.05), rtol=1e-9)
    weights = forecast_weights(c, loss)
    assert np.isclose(weights[6], 1) and np.isclose(weights[0], 0.1)
    assert np.isclose(weights[7], 1 / (1 + (np.log(1.05) / 0.05) ** 2))
    doubled = fit_coupled(
        c / 1e10, np.full(9, 1e10) * np.tile([1, 2, 3], 3), loss, c, np.r_[np.ones(8), 0.5], resamples=0
    )
    assert np.isclose(doubled.weights[8], 0.5 * weights[8])


def test_the_frontier_of_many_runs_is_that_of_all_of_them():
    rng = np.random.default_rng(0)
    c = np.exp(rng.uniform(40, 48, 6000))
    loss = 2 + 3e3 * c**-0.2 + rng.exponential(0.3, 6000)
    difference = np.abs(frontier_rise(c, loss) - frontier_rise(c, loss, bins=10**6))
    assert (difference > 1e-3).sum() <= 3  # the dearest end, where the hull stops falling


# ----- priors, few runs, refusals -----


def test_three_runs_are_answered_as_widely_as_the_prior_allows():
    n, d = np.array([1e7, 3e7, 1e8]), np.array([1e9, 1e9, 4e9])
    fit = fit_coupled(n, d, LAW.loss(n, d))
    assert {w.code for w in fit.warnings} >= {"few_runs", "from_prior"} and "p" in fit.prior_marks
    low, high = np.percentile(fit.draws.frontier_loss(1e22), (2.5, 97.5))
    assert low < LAW.frontier_loss(1e22) < high and high / low > 1.15
    n, d, _, loss = isoflop_runs(LAW, 0.004, budgets=BUDGETS, sizes=9)
    many = fit_coupled(n, d, loss)
    closer = np.percentile(many.draws.frontier_loss(1e22), (2.5, 97.5))
    assert closer[1] / closer[0] < 1.05 and not many.prior_marks


@pytest.mark.parametrize("what", ["one_size", "constant_ratio", "one_budget"])
def test_what_the_runs_cannot_tell_is_marked_and_without_priors_refused(what):
    x = np.geomspace(1e7, 1e9, 12)
    n, d = {"one_size": (np.full(12, 1e8), 100 * x), "constant_ratio": (x, 20 * x), "one_budget": (x, 1e18 / x)}[what]
    loss = laws.simulate(LAW, n, d, 0.003)
    fit = fit_coupled(n, d, loss)
    assert fit.law is not None and fit.prior_marks and "from_prior" in [w.code for w in fit.warnings]
    refused = fit_coupled(n, d, loss, prior=False)
    assert refused.law is None and refused.refusals[0].code == what


def test_two_runs_are_refused():
    fit = fit_coupled([1e7, 1e8], [1e9, 1e10], [3.5, 3.0])
    assert fit.law is None and fit.draws is None and fit.refusals[0].code == "too_few_rows"
    n, d, _, loss = isoflop_runs(LAW)
    few = fit_coupled(n, d, loss, prior=False, family="hoffmann")
    assert few.law is not None and few.from_prior == {} and few.prior_marks == ()


# ----- draws -----


def test_draws_come_from_both_families_in_proportion_to_their_evidence():
    n, d, c, loss = isoflop_runs(laws.Law(1.6, 40.0, 120.0, 0.25, 0.27, p=1.15), 0.004, 1, budgets=BUDGETS, sizes=5)
    fit = fit_coupled(n, d, loss, c, resamples=400)
    share = np.exp(-fit.evidence["coupled"])
    share /= share + np.exp(-fit.evidence["hoffmann"])
    assert abs((fit.draws.p != 1).mean() - share) < 0.01 and fit.bootstrap["resamples"] == 400
    low, high = fit.ci("a")
    assert low < fit.law.exponents()[0] < high
    again = fit_coupled(n, d, loss, c, resamples=400)
    np.testing.assert_allclose(again.draws.alpha, fit.draws.alpha, rtol=1e-9)  # OpenBLAS 0.3.23: but for a last bit
    assert (fit_coupled(n, d, loss, c, resamples=400, seed=1).draws.alpha != fit.draws.alpha).any()


def test_draws_are_as_wide_as_the_delta_method_says():
    n, d, c, loss = isoflop_runs(HOFFMANN, 0.004, 5, budgets=BUDGETS, sizes=9)
    fit = fit_coupled(n, d, loss, c, family="hoffmann", resamples=1000)
    at = HOFFMANN.optimum(1e21)
    ratio = np.std(np.log(fit.draws.loss(*at))) / fit.ln_loss_se(*at)
    assert 0.6 < ratio < 1.7


def test_very_many_runs_get_normal_draws():
    n, d, c, loss = isoflop_runs(LAW, 0.005, budgets=BUDGETS, sizes=1500)
    fit = fit_coupled(n, d, loss, c, resamples=300)
    assert fit.family == "coupled" and len(fit.draws.p) == 300
    low, high = fit.ci("p")
    assert 2.0 < low < high < 2.4


# ----- real extrapolations -----


@needs_reference
@pytest.mark.parametrize(
    ("file", "column", "mean", "worst"),
    [("kempner_fineweb_edu.csv", "loss", 0.02, 0.03), ("more/farseer.csv", "loss", 0.003, 0.005)],
)
def test_the_dearest_runs_are_forecast_better_than_by_hoffmanns_law(file, column, mean, worst):
    t = reference_table(file, columns={"loss": column})
    low, top = t.c < t.c.max() / 4, t.c > t.c.max() / 2
    error = {}
    for name, fit in (
        ("hoffmann", fit_parametric(t.n[low], t.d[low], t.loss[low], resamples=0)),
        ("coupled", fit_coupled(t.n[low], t.d[low], t.loss[low], t.c[low], resamples=0)),
    ):
        error[name] = np.abs(np.log(t.loss[top] / fit.law.loss(t.n[top], t.d[top])))
    assert error["coupled"].mean() < min(mean, error["hoffmann"].mean()) and error["coupled"].max() < worst


@needs_reference
def test_the_priors_are_what_public_sweeps_say():
    """PUBLIC is the spread of the sweeps at hand, to the digits that it states; see bench/bench_forecast.py."""
    wide = coupled.Prior(PUBLIC.mean, tuple(5 * v for v in PUBLIC.sd))
    found = []
    for file in ("kempner_fineweb_edu.csv", "more/marin_dclm.csv", "more/gadre_c4.csv", "more/farseer.csv"):
        t = reference_table(file)
        fit = fit_coupled(t.n, t.d, t.loss, t.c, family="coupled", prior=wide, resamples=0)
        level = np.average(np.log(t.loss), weights=fit.weights)
        found.append((fit.theta - level * np.array([1, 1, 0, 0, 1, 0]) - PUBLIC.mean) / PUBLIC.sd)
    found = np.array(found)
    assert np.abs(found).max() < 2.5 and (np.abs(found.mean(0)) < 1.0).all()


def test_one_loss_and_draws_that_run_away_are_refused():
    n = np.geomspace(1e7, 1e9, 12)
    d = np.tile([1e9, 3e9, 1e10], 4)
    assert [v.code for v in fit_coupled(n, d, np.full(12, 3.0)).refusals] == ["constant_loss"]
    rising = fit_coupled(n, d, 3.0 * np.exp(np.linspace(0, 2, 12)), resamples=300)
    assert rising.law is None and {v.code for v in rising.refusals} <= {"runaway_exponent", "not_converged"}


def test_as_many_letters_are_the_priors_as_runs_are_missing():
    law = laws.Law(1.7, 400.0, 1200.0, 0.34, 0.36)
    n, d = np.geomspace(1e7, 1e9, 5), np.array([3e9, 1e9, 2e10, 5e9, 9e10])
    marks = fit_coupled(n, d, law.loss(n, d), resamples=0).prior_marks
    assert len(marks) >= 2  # six letters and the noise from five runs
    n, d = np.tile(n, 5), np.repeat(d, 5)
    assert fit_coupled(n, d, law.loss(n, d), resamples=0).prior_marks == ()


@pytest.mark.parametrize("floor", [0.0, 1.8])
def test_a_law_without_e_is_found_where_the_runs_ask_for_it(floor):
    law = laws.Law(floor, 60.0, 110.0, 0.2, 0.2)
    n, d, c = laws.isoflop_grid(law, [1e17, 1e18, 1e19], 5)
    fit = fit_coupled(n, d, laws.simulate(law, n, d, 0.003, 1), c, resamples=100)
    assert ("hoffmann, E = 0" in fit.evidence) == (floor == 0.0)
    if floor == 0.0:
        assert fit.family == "hoffmann, E = 0" and fit.law.E == 0.0
        assert abs(np.log(fit.law.frontier_loss(1e21) / law.frontier_loss(1e21))) < 0.02

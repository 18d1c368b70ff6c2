"""fit.json as a dict, and readers that let nothing refused through."""

import copy
import json

import numpy as np
import pytest
from helpers import simulated_table

import fit
from isoflop import laws
from isoflop.fit.predict import percentiles
from isoflop.fit.result import (
    bands,
    budgets_of,
    clean,
    convention,
    law_of,
    optimum_of,
    points,
    rows_of,
    section,
    to_arrays,
    to_json,
    why_not,
    write_draws,
)

LAW = laws.PUBLISHED["besiroglu"]


@pytest.fixture(scope="module")
def analysis():
    return fit.analyse(simulated_table(LAW), fit.Options(bootstrap=200, compare=True))


@pytest.fixture(scope="module")
def result(analysis):
    return to_json(analysis)


def test_every_section_is_there_in_plain_python(result):
    sections = (
        "input forecast coupled families parametric isoflop envelope compute_law kaplan conventions backtest backtests "
        "skill"
    )
    assert list(result) == [*sections.split(), "published", "predictions", "valley", "refusals"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert list(result["published"]) == list(laws.PUBLISHED)


def test_numbers_are_those_of_the_fits(analysis, result):
    parametric, isoflop = analysis.fits.parametric, analysis.fits.isoflop
    assert result["parametric"]["alpha"] == {"point": parametric.law.alpha, "ci95": list(parametric.ci("alpha"))}
    assert result["parametric"]["ln_A"]["point"] == np.log(parametric.law.A)
    assert result["parametric"]["a"]["point"] == parametric.law.exponents()[0]
    assert result["isoflop"]["a"]["point"] == isoflop.a and result["isoflop"]["status"] == "ok"
    assert [row["n_opt"] for row in result["isoflop"]["budgets"]] == [budget.n_opt for budget in isoflop.budgets]
    assert result["compute_law"]["E"]["point"] == analysis.fits.compute_law.E
    assert "E" not in result["compute_law"]["without_E"]


def test_draws_are_those_that_the_intervals_are_made_of(analysis, result, tmp_path):
    write_draws(tmp_path / "draws.npz", analysis.fits)
    draws = np.load(tmp_path / "draws.npz")
    assert {"parametric.E", "coupled.p", "isoflop.a", "isoflop.loss", "compute_law.g", "kaplan.L_N.k"} <= set(draws)
    assert len(draws["isoflop.a"]) == 200 and percentiles(draws["isoflop.a"]) == tuple(result["isoflop"]["a"]["ci95"])
    beta = np.percentile(draws["parametric.beta"], (2.5, 97.5))
    np.testing.assert_allclose(beta, result["parametric"]["beta"]["ci95"], rtol=1e-12)


def test_refused_methods_are_listed(analysis, result):
    assert analysis.fits.refused == {"envelope"} and result["envelope"]["status"] == "refused"
    assert {"method": "envelope", "code": "no_curves"}.items() <= result["refusals"][0].items()
    assert why_not(result, "envelope") == "envelope was refused: no_curves"
    assert why_not({}, "isoflop") == "there is no isoflop fit"


def test_arrays_name_the_budget_of_each_run(analysis):
    arrays = to_arrays(analysis)
    budgets = np.array([budget.flops for budget in analysis.fits.isoflop.budgets])
    np.testing.assert_allclose(arrays["c"], budgets[arrays["budget"]], rtol=1e-6)
    assert "c_exact" not in arrays and "lr_on_edge" not in arrays


def test_bands_are_of_the_forecast_and_this_fits_own_methods(analysis, result):
    rows = bands(analysis, 5)
    assert {row["method"] for row in rows} == {"parametric", "isoflop", "forecast"} and len(rows) == 15
    last, asked = rows[-1], result["forecast"][-1]
    assert last["method"] == "forecast" and last["flops"] == pytest.approx(10 * analysis.table.c.max())
    assert last["loss"]["pi95"] == pytest.approx(asked["loss"]["pi95"])


def test_clean_leaves_no_numpy_and_no_nan():
    mixed = {1: (np.float64(2.0), np.nan), "a": np.array([[1, 2]]), "b": [np.inf, True, None, np.int64(3), "x"]}
    assert clean(mixed) == {"1": [2.0, None], "a": [[1, 2]], "b": [None, True, None, 3, "x"]}
    assert type(clean(np.int64(3))) is int


# ----- readers -----


def test_a_fit_is_read_back(result):
    law, cost = law_of(result)
    assert law.params == {name: result["parametric"][name]["point"] for name in law.params} and cost == laws.SIX_ND
    n, d = optimum_of(result, "parametric", 1e20)
    assert 6 * n * d == pytest.approx(1e20)
    n, d = optimum_of(result, "isoflop", 1e20)
    assert n == pytest.approx(LAW.optimum(1e20)[0], rel=0.1)
    assert points(result, "isoflop", ("a", "b")) == [result["isoflop"][key]["point"] for key in ("a", "b")]
    assert len(budgets_of(result)) == 7


def test_rows_come_in_the_order_of_methods_and_variants_when_asked(result):
    own = [row["method"] for row in rows_of(result, "flops")]
    assert own == ["isoflop", "isoflop", "parametric", "parametric"]
    every = [row["method"] for row in rows_of(result, "flops", True)]
    assert every[:6] == ["isoflop", "isoflop:parabola", "isoflop:lowest_runs"] * 2
    assert every[-1].startswith("published:") and len(every) == 2 * (4 + len(laws.PUBLISHED))


@pytest.mark.parametrize("method", ["parametric", "isoflop"])
def test_nothing_under_a_refused_status_is_read(result, method):
    refused = copy.deepcopy(result)
    refused[method]["status"] = "refused"
    assert section(refused, method) == {} and optimum_of(refused, method, 1e20) is None
    assert not [row for row in rows_of(refused, "flops", True) if row["method"].split(":")[0] == method]


def test_little_is_enough():
    assert law_of({}) == (None, laws.SIX_ND) and rows_of({}, "flops") == [] and budgets_of({}) == []
    assert convention({}) == "N = N"
    assert convention({"input": {"n_convention": "n_params"}}) == "N = n_params (all parameters)"

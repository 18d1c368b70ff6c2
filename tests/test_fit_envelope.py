"""The envelope of training curves: known laws, published answers, refusals."""

import json
from pathlib import Path

import numpy as np
import pytest

from isoflop import laws
from isoflop.fit.envelope import fit_envelope, lower_hull
from isoflop.fit.table import read
from isoflop.options import UserError

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="../shared/reference is not here")
LAW = laws.PUBLISHED["besiroglu"]


def simulated_curves():
    """15 sizes, 60 checkpoints each, without noise."""
    run, step = np.meshgrid(np.arange(15), np.arange(60), indexing="ij")
    n = np.geomspace(1e7, 1e9, 15)[run.ravel()]
    d = np.geomspace(2e8, 2e11, 60)[step.ravel()]
    return {"run": run.ravel(), "n": n, "d": d, "c": 6 * n * d, "loss": LAW.loss(n, d)}


@pytest.mark.parametrize("rule", ["hull", "bins"])
def test_known_law_is_recovered(rule):
    curve = simulated_curves()
    fit = fit_envelope(curve, rule, resamples=100)
    truth = LAW.exponents()[0]
    assert abs(fit.a - truth) < 0.02
    low, high = np.percentile(fit.draws["a"], (2.5, 97.5))
    assert low < truth < high
    assert fit.points["n"].min() > curve["n"].min() and fit.points["n"].max() < curve["n"].max()
    mine = next(v for v in fit.variants if v["rule"] == rule and v["ends_dropped"])
    assert mine["a"] == fit.a and mine["b"] == fit.b


def test_refusals():
    curve = simulated_curves()
    assert fit_envelope({}).refusals[0].code == "no_curves"
    few = {k: v[curve["run"] < 3] for k, v in curve.items()}
    assert fit_envelope(few).refusals[0].code == "too_few_curves"
    ends = curve | {"loss": curve["loss"] + 10 * (curve["n"] > 1.1e7)}  # the smallest model is always the best
    assert fit_envelope(ends).refusals[0].code == "no_interior_size"
    young = {k: v[curve["d"] < 3e8] for k, v in curve.items()}  # every curve ends above the next smaller one
    assert fit_envelope(young).refusals[0].code == "runaway_exponent"
    single_rows = {k: v[::60] for k, v in curve.items()}
    assert fit_envelope(single_rows).refusals[0].code == "too_few_curves"
    with pytest.raises(UserError, match="--envelope_rule best is not known; use one of hull, bins"):
        fit_envelope(curve, "best")


def test_lower_hull_falls_and_is_convex():
    x, y = np.random.default_rng(0).normal(size=(2, 300))
    at = lower_hull(x, y)
    slopes = np.diff(y[at]) / np.diff(x[at])
    assert (np.diff(x[at]) > 0).all() and (slopes < 0).all() and (np.diff(slopes) > 0).all()
    below = np.interp(x, x[at], y[at], left=-np.inf)
    assert (y >= below - 1e-12).all()


@reference
def test_gemstones_published_answers():
    want = json.loads((REFERENCE / "reference_results.json").read_text())["gemstones_hot_477"]["approach1"]
    table = read([str(REFERENCE / "gemstones_hot_477.csv")])
    fit = fit_envelope(table.curve, "hull", keep_ends=True, resamples=0)
    published = want["published_convex_hull"]
    for ours, theirs in (("a", "a"), ("b", "b"), ("ln_k_n", "ln_coef_N"), ("ln_k_d", "ln_coef_D")):
        assert np.isclose(getattr(fit, ours), published[theirs], atol=1e-6)
    bins = fit_envelope(table.curve, "bins", keep_ends=True, resamples=0)
    assert np.isclose(bins.a, want["reference_1500_bins"]["a"], atol=1e-5)
    assert np.isclose(bins.b, want["reference_1500_bins"]["b"], atol=1e-5)

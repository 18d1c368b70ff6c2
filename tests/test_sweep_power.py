"""The widths that the power analysis says are those that fits of the grid have."""

import json
import math

import helpers
import numpy as np
import pytest

from isoflop import laws
from isoflop.fit import isoflop, parametric
from isoflop.sweep import power

LAW = laws.parse_law("E=1.69,A=406.4,B=410.7,alpha=.34,beta=.28")
N, D, C = laws.isoflop_grid(LAW, (1e18, 3e18, 1e19, 3e19, 1e20))
NOISE = 0.003


def widths_of_fits(seeds) -> dict:
    """Median half-widths of the intervals of a, from sweeps drawn with other seeds."""
    widths = {"isoflop": [], "parametric": []}
    for seed in seeds:
        loss = laws.simulate(LAW, N, D, NOISE, seed)
        widths["isoflop"].append(power.half_width(isoflop.fit_isoflop(N, D, C, loss, C, seed=seed).draws["a"]))
        draws = parametric.fit_parametric(N, D, loss, seed=seed).draws
        widths["parametric"].append(power.half_width(draws.exponents()[0]))
    return {method: np.median(found) for method, found in widths.items()}


def test_the_widths_are_those_of_a_fit():
    said = power.interval_widths(N, D, C, C, LAW, NOISE, 1e21, draws=7)
    for method, width in widths_of_fits([1000]).items():
        # one sweep's interval scatters about the median one; the median of many is within 30% (next test)
        assert 0.5 < said[method]["a"] / width < 2 and said[method]["refused"] == 0
        assert said[method]["n_opt"] > 1 and said[method]["b"] > 0


@pytest.mark.slow
def test_the_widths_hold_on_fresh_draws():
    said = power.interval_widths(N, D, C, C, LAW, NOISE, 1e21)
    for method, width in widths_of_fits(range(1000, 1030)).items():
        assert abs(said[method]["a"] / width - 1) < 0.3, method


def test_a_grid_of_one_budget_has_no_interval():
    said = power.interval_widths(N[:9], D[:9], C[:9], C[:9], LAW, NOISE, 1e21, draws=3)
    assert said["isoflop"] == {"a": None, "b": None, "n_opt": None, "refused": 1.0}


def test_the_default_law_has_its_optimum_in_the_grid():
    sizes = np.geomspace(1e4, 1e6, 9)
    law = power.centred(laws.PUBLISHED["hoffmann"], np.tile(sizes, 2), np.repeat((1e12, 4e12), 9))
    assert law.optimum(2e12)[0] == pytest.approx(math.exp(np.log(sizes).mean()))
    assert law.exponents() == laws.PUBLISHED["hoffmann"].exponents()


def test_the_law_of_an_earlier_fit(tmp_path):
    assert power.own_law(tmp_path) is None
    points = {letter: {"point": value} for letter, value in LAW.params.items()}
    (tmp_path / "fit.json").write_text(json.dumps({"parametric": points}))
    assert power.own_law(tmp_path).params == LAW.params
    for wrong in ("{", "[]", '{"parametric": null}', json.dumps({"parametric": points | {"B": {"point": -1}}})):
        (tmp_path / "fit.json").write_text(wrong)
        assert power.own_law(tmp_path) is None


def test_the_text_names_law_noise_and_what_is_refused(tmp_path, monkeypatch):
    planner = helpers.sweep_planner(tmp_path)
    cells = [planner.cell((width, 1, None), 1e10) for width in (16, 24, 32)]
    monkeypatch.setattr(power, "DRAWS", 2)
    text = power.describe(cells, None, tmp_path, 0.004, (1e12,))
    assert "hoffmann with N* moved into the grid" in text and "noise 0.40%" in text
    assert "isoflop    no interval in 100% of the draws: too few budgets or sizes" in text and "at 1e12)" in text
    assert "drawn 2 times from kaplan" in power.describe(cells, "kaplan", tmp_path, 0.004, (1e12,))

"""The forecast read backwards: the compute of a size and of a loss."""

import pytest

from isoflop import laws
from isoflop.fit.forecast import Forecast, Quantity
from isoflop.fit.inverse import forecast_params, forecast_target

LAW = laws.Law(1.7, 400.0, 1500.0, 0.34, 0.36)
C_MAX = 1e20


def answer(at, ci=True):
    """Forecasts by LAW, N* known to a factor of 2 (pi95: 4), the loss to 1% (2%)."""
    rows = []
    for c in at:
        n, d = LAW.optimum(c)
        sizes = [wide(float(x), 2.0, ci) for x in (n, d, d / n)]
        rows.append(Forecast(float(c), "isoflop", wide(float(LAW.frontier_loss(c)), 1.01, ci), *sizes))
    return tuple(rows)


def wide(point, factor, ci):
    inner = (point / factor, point * factor) if ci else None
    return Quantity(point, inner, (point / factor**2, point * factor**2))


def test_the_tokens_of_a_size_are_those_at_the_compute_it_is_best_for():
    (row,), refusals = forecast_params(answer, [1e9], laws.SIX_ND, C_MAX)
    a, _ = LAW.exponents()
    d = float(LAW.tokens_for(1e9))
    assert refusals == [] and (row["params"], row["method"]) == (1e9, "forecast")
    assert row["d_opt"]["point"] == pytest.approx(d, rel=1e-3)
    assert row["flops"] == pytest.approx(6e9 * d, rel=1e-3)
    assert row["d_opt"]["ci95"] == pytest.approx((d / 2 ** (1 / a), d * 2 ** (1 / a)), rel=1e-3)
    assert row["tokens_per_param"]["pi95"] == pytest.approx((d / 4 ** (1 / a) / 1e9, d * 4 ** (1 / a) / 1e9), rel=1e-3)
    (row,), _ = forecast_params(lambda at: answer(at, False), [1e9], laws.SIX_ND, C_MAX)
    assert row["d_opt"]["ci95"] is None and row["d_opt"]["pi95"][0] < d


def test_the_compute_of_a_loss_and_an_open_end_below_the_floor():
    (row,), _ = forecast_target(answer, [2.5], C_MAX)
    assert row["flops"]["point"] == pytest.approx(float(LAW.compute_for(2.5)), rel=1e-3)
    ends = [float(LAW.compute_for(2.5 * by)) for by in (1.01, 1 / 1.01)]
    assert row["flops"]["ci95"] == pytest.approx(ends, rel=1e-3)
    n = [float(LAW.optimum(c)[0]) for c in ends]
    assert row["n_opt"]["ci95"] == pytest.approx((n[0] / 2, n[1] * 2), rel=1e-3)
    (row,), _ = forecast_target(answer, [1.72], C_MAX)  # 1.72 / 1.02 is below E
    assert row["flops"]["pi95"][1] is None and row["d_opt"]["pi95"][1] is None


def test_what_is_out_of_reach_is_refused_and_without_a_forecast_nothing_is_said():
    rows, (refusal,) = forecast_target(answer, [1.6], C_MAX)
    assert rows == [] and refusal.code == "below_floor" and "a loss of 1.6" in refusal.message
    rows, (refusal,) = forecast_params(answer, [1e30], laws.SIX_ND, C_MAX)
    assert rows == [] and refusal.code == "out_of_reach"
    for read in (forecast_target, lambda *known: forecast_params(*known[:2], laws.SIX_ND, known[2])):
        assert read(lambda at: (), [2.5], C_MAX) == ([], [])

"""Power laws of one variable: known laws recovered, refusals, draws, Kaplan's L(N)."""

import numpy as np
import pytest

from isoflop.fit.power_law import fit_kaplan, fit_power_law

C = np.geomspace(1e17, 1e21, 9)


def test_known_laws_and_their_inverse():
    law = fit_power_law(C, 1.8 + 900.0 * C**-0.16)
    assert np.isclose(law.E, 1.8) and np.isclose(law.g, 0.16) and law.r2 > 1 - 1e-9
    assert np.isclose(law.inverse(law(1e22)), 1e22) and law.inverse(1.7) == np.inf
    straight = fit_power_law(C, 900.0 * C**-0.16, offset=False)
    assert np.isclose(straight.k, 900) and np.isclose(straight.g, 0.16) and straight.E == 0


@pytest.mark.parametrize(
    ("y", "codes"),
    [
        (900.0 * C**-0.16, ("e_at_zero", "runaway_exponent")),
        (np.linspace(3, 2, 9), ("runaway_exponent", "e_at_zero")),
        (np.linspace(3, -1, 9), ("not_positive",)),
        (None, ("too_few_points",)),
    ],
)
def test_points_without_a_law_are_refused(y, codes):
    law = fit_power_law(C[:3], C[:3] ** -0.1) if y is None else fit_power_law(C, y)
    assert law.k is None and law.refusals[0].code in codes


@pytest.mark.parametrize("offset", [True, False])
def test_draws_scatter_as_their_points_do(offset):
    rng = np.random.default_rng(0)
    y = 1.8 * offset + 900.0 * C**-0.16
    drawn = y * np.exp(0.002 * rng.standard_normal((400, len(C))))
    drawn[::2, 3] = np.nan  # a point that every other draw lacks
    drawn[7, 2:] = np.nan  # and one draw with too few points
    law = fit_power_law(C, y, drawn, offset)
    assert len(law.draws["g"]) == 399 and set(law.draws) == {"E", "k", "g"}
    low, high = np.percentile(law.draws["g"], (2.5, 97.5))
    assert low < 0.16 < high and high - low < 0.05


def test_kaplan_takes_the_lowest_loss_of_each_size_while_it_falls():
    n = np.geomspace(1e6, 1e9, 7)
    best = 1.5 + 60 * n**-0.2
    best[-1] += 1.0  # a size that was trained too short
    x, loss = np.repeat(n, 3) * np.tile([1, 1.005, 1.01], 7), np.concatenate([best[:, None] + [0.5, 0.0, 0.2]])
    fits = fit_kaplan(x, loss.ravel(), resamples=100)
    assert set(fits) == {"with_E", "without_E"} and fits["with_E"].n_points == 6
    assert np.isclose(fits["with_E"].E, 1.5, rtol=0.01) and fits["without_E"].E == 0
    assert len(fits["with_E"].draws["g"]) > 50

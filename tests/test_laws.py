"""Laws: closed forms against brute force, published numbers against what their papers say of them."""

from dataclasses import replace

import numpy as np
import pytest

from isoflop import laws
from isoflop.options import UserError

COUPLED = laws.Law(1.6, 40.0, 120.0, 0.25, 0.27, p=2.2)
LAWS = [
    laws.PUBLISHED["hoffmann"],
    laws.PUBLISHED["besiroglu"],
    laws.Law(2.0, 50.0, 3000.0, 0.25, 0.45),
    COUPLED,
    laws.Law(0.0, 40.0, 900.0, 0.25, 0.41, p=0.7),
]
COSTS = [laws.SIX_ND, laws.Cost(7.0, 0.0), laws.Cost(4.0, 0.07)]


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("c", [1e17, 1e21, 1e25])
def test_closed_form_optimum_is_the_minimum(law, cost, c):
    n, d = law.optimum(c, cost)
    assert np.isclose(cost.flops(n, d), c, rtol=1e-12)
    sizes = n * np.exp(np.linspace(-3, 3, 60_001))
    losses = law.loss(sizes, cost.tokens(sizes, c))
    assert abs(np.log(sizes[losses.argmin()] / n)) < 2e-4 and law.loss(n, d) <= losses.min() * (1 + 1e-12)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("cost", COSTS)
def test_exponents_inverse_and_reverse_question(law, cost):
    a, b = law.exponents(cost)
    (n1, d1), (n2, d2) = law.optimum(1e20, cost), law.optimum(1e22, cost)
    assert np.isclose(np.log(n2 / n1), a * np.log(100)) and np.isclose(np.log(d2 / d1), b * np.log(100))
    assert np.isclose(law.tokens_for(n1, cost), d1) and np.isclose(
        law.compute_for(law.frontier_loss(1e21, cost), cost), 1e21
    )
    assert law.compute_for(law.E) == np.inf and law.compute_for(0.5 * law.E) == np.inf


def test_p_couples_the_terms_and_1_is_hoffmanns():
    plain = laws.Law(1.6, 40.0, 120.0, 0.25, 0.27)
    n, d = np.array([1e7, 1e8, 1e9]), np.array([2e9, 1e9, 1e11])
    terms = 40.0 * n**-0.25, 120.0 * d**-0.27
    np.testing.assert_allclose(COUPLED.loss(n, d), 1.6 + (terms[0] ** 2.2 + terms[1] ** 2.2) ** (1 / 2.2), rtol=1e-13)
    assert (replace(COUPLED, p=1.0).loss(n, d) == plain.loss(n, d)).all()
    nearly = replace(COUPLED, p=np.array([1.0 + 1e-12]))  # by the general formulas
    np.testing.assert_allclose(nearly.loss(n, d), plain.loss(n, d), rtol=1e-10)
    np.testing.assert_allclose(nearly.optimum(1e20), np.reshape(plain.optimum(1e20), (2, 1)), rtol=1e-9)
    np.testing.assert_allclose(replace(COUPLED, p=80.0).loss(n, d), 1.6 + np.maximum(*terms), rtol=2e-3)
    assert "p" not in plain.params and COUPLED.params["p"] == 2.2
    assert COUPLED.exponents() == plain.exponents()


@pytest.mark.parametrize("law", [*LAWS, laws.PUBLISHED["kaplan"]])
def test_tokens_to_reach_a_loss(law):
    loss = law.loss(3e8, 7e9)
    assert np.isclose(laws.tokens_to_reach(law, 3e8, loss), 7e9)
    assert laws.tokens_to_reach(law, 3e8, 0.5 * loss if law is laws.PUBLISHED["kaplan"] else law.E) == np.inf
    assert laws.tokens_to_reach(law, 3e3, 1.01 * law.loss(1e12, 1e15)) == np.inf


def test_arrays_of_draws_broadcast():
    for law in (LAWS[0], COUPLED):
        draws = law.each(lambda v: np.array([[v], [1.01 * v]]))
        n, d = draws.optimum(np.array([1e20, 1e21, 1e22]))
        assert n.shape == (2, 3) and np.allclose(n[0], law.optimum(np.array([1e20, 1e21, 1e22]))[0])
        assert draws.loss(n, d).shape == (2, 3) and draws.convention == law.convention


def test_published_numbers():
    hoffmann = laws.PUBLISHED["hoffmann_unrounded"]
    n, _ = hoffmann.optimum(5.76e23)  # Gopher's compute, Hoffmann et al. figure 4: about 40e9 parameters
    assert 38e9 < n < 42e9
    a, b = laws.PUBLISHED["besiroglu"].exponents()
    assert round(a, 3) == 0.513 and np.isclose(a + b, 1)
    kaplan = laws.PUBLISHED["kaplan"]
    assert np.isclose(kaplan.optimum(laws.PF_DAY)[0], 1.3e9)
    assert np.isclose(kaplan.loss(1e30, 1e10), (1.8e13 / 1e10) ** 0.103, rtol=1e-3)  # its L(D) limit
    assert np.isclose(kaplan.loss(1e9, 1e30), (6.4e13 / 1e9) ** 0.076, rtol=1e-3)  # its L(N) limit
    n, d = kaplan.optimum(1e22)
    assert np.isclose(kaplan.tokens_for(n), d) and np.isclose(kaplan.compute_for(kaplan.frontier_loss(1e22))[0], 1e22)
    assert all(law.source and law.convention for law in laws.PUBLISHED.values())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("chinchila", "hoffmann"),
        ("E=1,A=2,B=3,alpha=.3", "beta missing"),
        ("E=1,A=x,B=3,alpha=.3,beta=.3", "not a number"),
        ("E=1,A=-2,B=3,alpha=.3,beta=.3", "positive"),
        ("E=1,A=2,B=3,alpha=.3,beta=.3,p=0", "p must be positive"),
        ("E=1,Z=2", "'Z'"),
    ],
)
def test_bad_laws_are_named(text, says):
    with pytest.raises(UserError, match=says):
        laws.parse_law(text)


def test_parse_law():
    law = laws.parse_law("E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28")
    assert law.params == laws.PUBLISHED["hoffmann"].params and laws.parse_law("hoffmann") is laws.PUBLISHED["hoffmann"]
    assert laws.parse_law("E=1.6,A=40,B=120,alpha=.25,beta=.27,p=2.2").params == COUPLED.params
    assert laws.parse_law("E=0,A=40,B=120,alpha=.25,beta=.27").E == 0


def test_simulate_has_the_noise_asked_for_and_a_seed():
    n, d, c = laws.isoflop_grid(LAWS[0], [1e18, 1e19, 1e20], 2000, 10.0)
    assert np.allclose(6 * n * d, c) and np.isclose(n[:2000].max() / n[:2000].min(), 10)
    loss = laws.simulate(LAWS[0], n, d, 0.01, 3)
    assert np.isclose(np.log(loss / LAWS[0].loss(n, d)).std(), 0.01, rtol=0.05)
    assert (loss == laws.simulate(LAWS[0], n, d, 0.01, 3)).all() and (
        loss != laws.simulate(LAWS[0], n, d, 0.01, 4)
    ).any()
    assert (laws.simulate(LAWS[0], n, d) == LAWS[0].loss(n, d)).all()


def test_cost_of_runs():
    rng = np.random.default_rng(0)
    n, d = 10 ** rng.uniform(6, 9, 50), 10 ** rng.uniform(8, 11, 50)
    assert laws.cost_of(n, d, 6 * n * d) is laws.SIX_ND
    cost = laws.cost_of(n, d, 3.0 * n**1.05 * d)
    assert np.isclose(cost.kappa, 3.0) and np.isclose(cost.rho, 0.05)


def test_other_names_of_published_laws():
    for name, other in laws.OTHER_NAMES.items():
        assert laws.parse_law(name) == laws.parse_law(name.title()) == laws.PUBLISHED[other]

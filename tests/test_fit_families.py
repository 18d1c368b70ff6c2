"""The coupled family: exact derivatives, nested laws, centring."""

import numpy as np
import pytest

from isoflop.fit import families
from isoflop.options import UserError

RNG = np.random.default_rng(0)
N, D = np.exp(RNG.normal(17.0, 1.5, 40)), np.exp(RNG.normal(21.0, 1.5, 40))
RUNS = families.Runs(N, D, (17.0, 21.0))
THETA = np.array([[-0.4, -0.3, 0.3, 0.4, 0.3, 0.0], [-0.1, -0.6, 0.2, 0.5, 0.1, 0.8], [0.2, -0.2, 0.4, 0.3, 0.5, -0.5]])


@pytest.mark.parametrize("delta", [0.05, np.inf])
def test_gradient_and_hessian_are_exact(delta):
    z, w = RNG.normal(1.0, 0.2, 40), RNG.integers(0, 4, (3, 40)).astype(float)
    value, g, h = families.evaluate(THETA, RUNS, z, w, delta)
    assert (h == np.swapaxes(h, 1, 2)).all()
    residual = np.abs(z - families.terms(THETA, RUNS)[0])
    plain = residual**2 / 2
    if np.isfinite(delta):
        plain = np.where(residual <= delta, plain, delta * (residual - delta / 2))
    np.testing.assert_allclose(value, (w * plain).sum(1), rtol=1e-12)
    for j in range(6):
        step = 1e-6 * (np.arange(6) == j)
        up = families.evaluate(THETA + step, RUNS, z, w, delta)
        down = families.evaluate(THETA - step, RUNS, z, w, delta)
        np.testing.assert_allclose((up[0] - down[0]) / 2e-6, g[:, j], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose((up[1] - down[1]) / 2e-6, h[:, j], rtol=1e-5, atol=1e-5)


def test_the_jacobian_and_the_law_belong_together():
    for theta in THETA:
        law = families.law_of(theta[None], RUNS.mu, scalar=True)
        np.testing.assert_allclose(np.log(law.loss(N, D)), families.terms(theta[None], RUNS)[0][0], rtol=1e-10)
        j = families.jacobian(theta, RUNS)
        for k in range(6):
            step = 1e-6 * (np.arange(6) == k)
            slope = families.terms((theta + step)[None], RUNS)[0] - families.terms((theta - step)[None], RUNS)[0]
            np.testing.assert_allclose(slope[0] / 2e-6, j[:, k], atol=1e-8)


def test_terms_far_apart_do_not_overflow():
    theta = np.array([[300.0, -300.0, 0.3, 0.3, 0.0, 2.5]])
    ln_law, share, pi, _, mixing = families.terms(theta, RUNS)
    assert np.isfinite(ln_law).all() and (share == 1).all() and (pi == 1).all() and np.abs(mixing).max() < 1e-6


@pytest.mark.parametrize(
    ("options", "free", "name"),
    [
        ({}, 6, "coupled"),
        ({"name": "hoffmann"}, 5, "hoffmann"),
        ({"floor": False}, 5, "coupled, E = 0"),
        ({"name": "hoffmann", "floor": False, "equal_exponents": True}, 3, "hoffmann, E = 0, alpha = beta"),
    ],
)
def test_nested_families_fix_what_they_say(options, free, name):
    family = families.family(**options)
    assert family.free == free and family.name == name
    phi = np.linspace(0.1, 0.6, free)[None]
    theta = family.theta(phi)
    np.testing.assert_allclose(family.phi(theta), phi)
    law = families.law_of(theta, RUNS.mu, scalar=True)
    assert (law.p == 1) == (options.get("name") == "hoffmann")
    assert (law.E == 0) == (options.get("floor") is False)
    assert (law.alpha == law.beta) == options.get("equal_exponents", False)


def test_an_unknown_family_is_named():
    with pytest.raises(UserError, match="'chinchilla' is not known; known: coupled, hoffmann"):
        families.family("chinchilla")

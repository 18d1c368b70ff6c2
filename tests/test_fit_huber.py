"""The batched minimiser: exact derivatives, starts, bootstrap counts."""

import numpy as np
import pytest

from isoflop.fit import huber


@pytest.mark.parametrize(("k", "has_e"), [(2, True), (2, False), (1, True), (1, False)])
@pytest.mark.parametrize("delta", [0.05, np.inf])
def test_gradient_and_hessian_are_exact(k, has_e, delta):
    rng = np.random.default_rng(k)
    x, z = rng.normal(size=(k, 40)), rng.normal(0.9, 0.1, 40)
    w = rng.integers(0, 4, (3, 40)).astype(float)
    parts = [rng.normal(-0.5, 0.3, (3, k)), rng.uniform(0.2, 0.6, (3, k)), rng.normal(0.4, 0.1, (3, int(has_e)))]
    theta = np.concatenate(parts, 1)

    def f(t):
        return huber.evaluate(t, huber.Regressors(x), z, w, delta, has_e)

    value, g, h = f(theta)
    u = theta[:, :k, None] - theta[:, k : 2 * k, None] * x
    if has_e:
        u = np.concatenate([u, np.repeat(theta[:, -1:, None], 40, 2)], 1)
    r = np.abs(z - np.log(np.exp(u).sum(1)))
    plain = np.where(r <= delta, r**2 / 2, 0.0)
    if np.isfinite(delta):
        plain = np.where(r <= delta, r**2 / 2, delta * (r - delta / 2))
    np.testing.assert_allclose(value, (w * plain).sum(1), rtol=1e-12)
    for j in range(theta.shape[1]):
        step = np.zeros(theta.shape[1])
        step[j] = 1e-6
        up, down = f(theta + step), f(theta - step)
        np.testing.assert_allclose((up[0] - down[0]) / 2e-6, g[:, j], rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose((up[1] - down[1]) / 2e-6, h[:, j], rtol=1e-4, atol=1e-4)


def test_the_jacobian_is_that_of_the_law():
    rng = np.random.default_rng(0)
    x, theta = rng.normal(size=(2, 9)), np.array([-0.4, -0.6, 0.3, 0.5, 0.2])

    def ln_law(t):
        return np.logaddexp(np.logaddexp(t[0] - t[2] * x[0], t[1] - t[3] * x[1]), t[4])

    j = huber.jacobian(theta, x, True)
    for k in range(5):
        step = 1e-6 * (np.arange(5) == k)
        np.testing.assert_allclose((ln_law(theta + step) - ln_law(theta - step)) / 2e-6, j[:, k], atol=1e-9)


def test_starts_contain_the_law_whose_exponents_are_on_the_grid():
    x = np.stack([np.linspace(-2, 2, 12), np.tile([-1.0, 0.0, 1.5], 4)])
    truth = np.array([-0.5, -0.7, 0.3, 0.4, 0.6])
    z = np.log(np.exp(truth[0] - 0.3 * x[0]) + np.exp(truth[1] - 0.4 * x[1]) + np.exp(truth[4]))
    starts = huber.grid_starts(x, z, np.array([0.3, 0.4]))
    assert starts.shape == (4, 5)
    np.testing.assert_allclose(starts[1], truth, atol=1e-5)


def test_resamples_keep_the_number_of_rows_and_the_budget_of_time():
    counts = huber.resample_counts(np.random.default_rng(0), 30, 200)
    assert counts.shape == (200, 30) and (counts.sum(1) == 30).all() and abs(counts.mean() - 1) < 1e-12
    assert abs((counts == 0).mean() - np.exp(-1)) < 0.02
    assert huber.resample_budget(100, 4000) == 4000
    assert huber.resample_budget(10_000, 4000) == 400 and huber.resample_budget(10**7, 4000) == 400

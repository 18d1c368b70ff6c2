"""fit.py --law_of task: scores from the size of a run, in two steps."""

import numpy as np
import pytest

from isoflop.fit import task_law
from isoflop.fit.task_law import fit_task
from isoflop.options import UserError

SIZES = [(n, 20.0 * m * n) for n in (1e8, 2e8, 4e8, 8e8, 1.6e9) for m in (1, 3, 9)]


def bits(n, d):
    return 0.4 + 40.0 / n**0.25 + 60.0 / d**0.25


def sigmoid(x):
    return 0.25 + 0.72 / (1.0 + np.exp(6.0 * (x - 0.75)))


def exponential(x):
    return 1.0 - 0.75 + 3.0 * np.exp(-3.5 * x)


def runs(curve=sigmoid, noise=(0.005, 0.005), seed=0, sizes=SIZES):
    """N, D, C, task loss and score of a known law."""
    rng = np.random.default_rng(seed)
    n, d = np.array(sizes).T
    x = bits(n, d) * np.exp(noise[0] * rng.standard_normal(len(n)))
    return n, d, 6 * n * d, x, curve(x) + noise[1] * rng.standard_normal(len(n))


def quick(runs, chance=0.25, **more):
    return fit_task("quiz", *runs, chance=chance, draws=60, **more)


@pytest.mark.parametrize("form", task_law.SCORE_FORMS)
def test_jacobian_of_the_score(form):
    _, _, _, x, y = runs()
    problem, _ = task_law.score_problem(form, x, y, 0.25)
    check_jacobian(problem)


@pytest.mark.parametrize("form", task_law.LOSS_FORMS)
def test_jacobian_of_the_loss(form):
    problem, of_sizes = task_law.loss_problem(form, *runs()[:4])
    check_jacobian(problem)
    value, _ = problem.law(problem.mean[None])
    np.testing.assert_allclose(of_sizes(problem.mean[None], *runs()[:3]), value)


def check_jacobian(problem):
    theta = problem.mean + 0.1 * problem.sd
    _, jacobian = problem.law(theta[None])
    for k in range(len(theta)):
        step = np.zeros(len(theta))
        step[k] = 1e-6
        ends = [problem.law((theta + sign * step)[None])[0][0] for sign in (1, -1)]
        np.testing.assert_allclose(jacobian[0, k], (ends[0] - ends[1]) / 2e-6, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("curve, form", [(sigmoid, "sigmoid"), (exponential, "exponential")])
def test_a_known_law_is_recovered_beyond_its_runs(curve, form):
    fit = quick(runs(curve, noise=(1e-3, 1e-3)))
    assert fit.score_step.form == form and fit.loss_step.form == "ND"
    found = fit.predict(3e9, 6e11)
    assert found.loss == pytest.approx(bits(3e9, 6e11), rel=0.02)
    assert found.score == pytest.approx(curve(bits(3e9, 6e11)), abs=0.02)
    assert found.pi95[0] < curve(bits(3e9, 6e11)) < found.pi95[1] and found.ci95[0] < found.score < found.ci95[1]


def test_a_loss_that_goes_with_compute_alone_weighs_the_form_in_c():
    n, d, c, x, y = runs()
    x = 0.4 + 400.0 / c**0.13
    fit = quick((n, d, c, x, sigmoid(x)))
    assert fit.loss_step.form == "C"


def test_the_lower_half_predicts_the_upper_one():
    n, d, c, x, y = runs()
    low = c <= np.median(c)
    fit = quick((n[low], d[low], c[low], x[low], y[low]))
    inside = []
    for i in np.flatnonzero(~low):
        found = fit.predict(n[i], d[i], c[i])
        inside.append(found.pi95[0] <= y[i] <= found.pi95[1])
    assert np.mean(inside) > 0.8


def test_tasks_that_nothing_predicts_are_refused_with_the_reason():
    n, d, c, x, y = runs()
    rng = np.random.default_rng(1)
    guess = 0.25 + 0.01 * rng.standard_normal(len(n))
    assert quick((n, d, c, x, guess)).refused.startswith("at chance")
    assert "does not follow" in quick((n, d, c, x, 0.5 + 0.1 * rng.standard_normal(len(n)))).refused
    assert "5 runs" in quick([v[:5] for v in (n, d, c, x, y)]).refused
    assert "all its runs score" in quick((n, d, c, x, np.full(len(n), 0.5))).refused
    assert "one loss" in quick((n, d, c, np.full(len(n), 3.0), y)).refused


def test_scores_in_percent_are_one_line():
    n, d, c, x, y = runs()
    with pytest.raises(UserError, match="quiz goes up to .* in percent; add --percent") as error:
        quick((n, d, c, x, 100 * y))
    assert "\n" not in str(error.value)


def test_runs_without_a_score_are_left_out():
    n, d, c, x, y = runs()
    y[::5] = np.nan
    fit = quick((n, d, c, x, y))
    assert fit.runs == len(n) - 3 and not fit.refused

"""
Approach 3 of Hoffmann et al. 2022: L(N, D) = E + A/N^alpha + B/D^beta, by robust least squares in logs.

Functions on arrays that return frozen dataclasses; `fit.py` is their command line. A fit that cannot be defended comes
back with `refusals` and without numbers. Everything is vectorised over bootstrap resamples: a resample is a vector of
case weights, so 4,000 refits are a few dozen matrix products.

    >>> fit = fit_parametric(n, d, loss)
    >>> fit.law.optimum(1e21), fit.ci("alpha")
"""

from dataclasses import dataclass, field, replace

import numpy as np

from isoflop.fit.huber import (
    CACHED,
    DELTA,
    E_FLOOR,
    EXPONENT_RANGE,
    GRADIENT_TOL,
    PERCENTILES,
    RESAMPLES,
    SANDWICH_ROWS,
    Refusal,
    Regressors,
    best_of,
    descend,
    evaluate,
    grid_starts,
    jacobian,
    resample_budget,
    resample_counts,
)
from isoflop.laws import SIX_ND, Law

MAX_RELATIVE_SE = 0.5  # an exponent whose Hessian standard error exceeds this share of it is not determined
MAX_CONDITION = 1e8  # of the Jacobian with unit columns
OUTLIER_MADS = 5.0  # residuals beyond this many median absolute deviations are outliers
MANY_ROWS = 4000  # beyond it the starts are minimised on a sample of the rows
METHOD = "parametric"


# ----- approach 3: parametric -----


@dataclass(frozen=True)
class ParametricFit:
    """
    L = E + A/N**alpha + B/D**beta. `law` is None when refused; `draws` is a Law of arrays, one per resample.

    Where E runs to 0 the law nested in it answers, with E = 0 and ln E = -inf in theta, and a warning says so.
    """

    law: Law | None
    draws: Law | None = None
    family: str = "hoffmann"  # or "hoffmann, E = 0"
    objective: float | None = None
    delta: float = DELTA
    n_rows: int = 0
    starts: int = 0
    starts_agreeing: int = 0
    gradient: float | None = None  # relative, at the optimum
    condition: float | None = None  # of the Jacobian with unit columns
    sigma: float | None = None  # robust standard deviation of ln L about the law
    residuals: np.ndarray | None = None  # ln L - ln law, one per row
    theta: np.ndarray | None = None  # (ln A - alpha mu_N, ln B - beta mu_D, alpha, beta, ln E), centred at mu
    mu: np.ndarray | None = None
    covariance: np.ndarray | None = None  # of theta, from the Hessian: sigma^2 (J'J)^-1
    bootstrap: dict = field(default_factory=dict)
    refusals: tuple = ()
    warnings: tuple = ()

    def ci(self, name, cost=SIX_ND):
        """95% percentile interval of a parameter, or of a or b."""
        if self.draws is None:
            return None
        v = dict(zip("ab", self.draws.exponents(cost), strict=True)) | self.draws.params
        return tuple(float(q) for q in np.percentile(v[name], PERCENTILES))

    def ln_loss_se(self, n, d):
        """Standard error of the mean of ln law over runs (n, d), by the delta method; no bootstrap needed."""
        x = np.log(np.stack([np.atleast_1d(n), np.atleast_1d(d)])) - self.mu[:, None]
        j = jacobian(self.theta, x, True).mean(0)
        return float(np.sqrt(j @ self.covariance @ j))


def _line_of_runs(n, d):
    """None, or (code, message) when all runs lie on one line in (ln N, ln D), which five parameters cannot share."""
    x = np.stack([np.log(n), np.log(d)])
    if np.ptp(x[0]) < 0.02:
        return "one_size", "all runs have one N, so alpha and A cannot be seen; add at least two other model sizes"
    if np.ptp(x[1]) < 0.02:
        return (
            "one_token_count",
            "all runs have one D, so beta and B cannot be seen; add at least two other run lengths",
        )
    centred = x - x.mean(1, keepdims=True)
    v = np.linalg.svd(centred, full_matrices=False)[0]
    if np.ptp(v[:, 1] @ centred) > 0.1:
        return None
    slope = v[1, 0] / v[0, 0]
    if abs(slope - 1) < 0.1:
        return "constant_ratio", (
            "all runs have one D/N, so the two terms of the law cannot be told apart; vary D at fixed N by 4x or more"
        )
    if abs(slope + 1) < 0.1:
        return "one_budget", "all runs share one compute budget; add runs at two or more other budgets"
    return "collinear", "ln N and ln D lie on one line; vary D at fixed N by 4x or more"


def what_is_lacking(n, d):
    """None, or (code, message) of what these runs lack for five parameters."""
    if len(n) < 6:
        why = f"{len(n)} runs for 5 parameters; needs at least 6, and 15 or more for a useful interval"
        return "too_few_rows", why
    line = _line_of_runs(n, d)
    if line is not None:
        return line
    for values, code, what in ((n, "too_few_sizes", "sizes"), (d, "too_few_token_counts", "token counts")):
        distinct = _distinct(np.log(values))
        if distinct < 3:
            return code, f"{distinct} distinct {what}; an exponent beside a constant needs 3 or more"
    return None


def _distinct(values):
    """How many of the values, counted from the least, lie more than 0.01 above the one counted before; 3 at most."""
    values, count = np.sort(values), 0
    while len(values) and count < 3:
        values = values[values > values[0] + 0.01]
        count += 1
    return count


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # wild optima are refused, not warned about
def fit_parametric(n, d, loss, weights=None, delta=DELTA, resamples=RESAMPLES, seed=0, n_grid=10, near=None):
    """
    Fit L = E + A/N^alpha + B/D^beta to runs: approach 3 of Hoffmann et al. 2022.

    Parameters
    ----------
    n, d, loss : (R,) arrays
        Parameters, tokens, loss in nats per token.
    weights : (R,) array, optional
        Per-run weights of the objective (mean 1 keeps delta's meaning).
    delta : float
        Huber threshold on ln L; np.inf gives least squares in logs.
    resamples : int
        Bootstrap resamples; 0 for none.
    seed : int
        Of the resampling.
    n_grid : int
        Starts per exponent.
    near : ParametricFit, optional
        A fit to mostly the same runs: it and the grid's two most promising points are then the only starts.

    Returns
    -------
    ParametricFit
        With `refusals` and no law if the runs cannot carry five parameters; with E = 0 and a warning where E runs to 0.

    Notes
    -----
    Minimises the SUM over runs of Huber_delta(ln L - LSE(ln A - alpha ln N, ln B - beta ln D, ln E)), with LSE the log
    of the sum of exponentials. Starts come from variable projection over an n_grid x n_grid grid of (alpha, beta) in
    0.05..1.3; each is minimised by Newton's method with exact derivatives. The optimum is accepted by its gradient and
    by how many starts share it. Intervals: case bootstrap over runs, each resample minimised to the same gradient
    tolerance.

    References
    ----------
    Hoffmann et al. 2022, arXiv 2203.15556, section D.2; Besiroglu et al. 2024, arXiv 2404.10102 (sum, not mean).
    """
    n, d, loss = (np.asarray(v, float) for v in (n, d, loss))
    lacking = what_is_lacking(n, d)
    if lacking:
        return ParametricFit(None, n_rows=len(n), delta=delta, refusals=(Refusal(METHOD, *lacking),))
    z = np.log(loss)
    mu = np.log(np.stack([n, d])).mean(1)
    x = np.log(np.stack([n, d])) - mu[:, None]
    rng = np.random.default_rng(seed)

    answer = _optimum((n, d, loss), x, z, weights, delta, n_grid, rng, near, mu)
    if "e_at_zero" in dict(answer.undefended):
        nested = _optimum((n, d, loss), x, z, weights, delta, n_grid, rng, near, mu, has_e=False)
        if not nested.undefended:
            answer = nested
    common = {"delta": delta, "n_rows": len(n), "starts": n_grid**2}
    if answer.undefended:
        refusals = tuple(Refusal(METHOD, *why) for why in answer.undefended)
        return ParametricFit(None, refusals=refusals, **common)

    few_starts = ""
    if answer.agree < 0.2 * n_grid**2 and near is None:
        few_starts = f"only {answer.agree} of {n_grid**2} starts reach this optimum"
    warnings = _warnings(answer.law, loss, answer.se, few_starts)
    draws, bootstrap = None, {}
    if resamples:
        draws, bootstrap, more = _bootstrap(answer.theta, mu, x, z, weights, delta, resamples, rng)
        if any(m.code == "unstable_resamples" for m in more):
            return ParametricFit(None, refusals=tuple(more), **common)
        warnings += more
    fit = _result(answer, mu, common)
    return replace(fit, draws=draws, bootstrap=bootstrap, warnings=tuple(warnings))


def _result(answer, mu, common):
    """An _Optimum as a ParametricFit, without draws and warnings."""
    return ParametricFit(
        answer.law,
        family="hoffmann" if answer.law.E > 0 else "hoffmann, E = 0",
        objective=answer.objective,
        starts_agreeing=answer.agree,
        gradient=answer.gradient,
        condition=answer.condition,
        sigma=answer.sigma,
        residuals=answer.residuals,
        theta=answer.theta,
        mu=mu,
        covariance=answer.covariance,
        **common,
    )


@dataclass(frozen=True)
class _Optimum:
    """One optimum with its uncertainty, and (code, message) of every reason not to report it."""

    theta: np.ndarray
    law: Law
    objective: float
    gradient: float
    agree: int
    residuals: np.ndarray
    sigma: float
    condition: float
    covariance: np.ndarray
    se: np.ndarray
    undefended: list


def _optimum(runs, x, z, weights, delta, n_grid, rng, near, mu, has_e=True):
    """The best of all starts, with E or with E = 0. runs: (n, d, loss), of which x and z are centred logs."""
    n, d, loss = runs
    theta, objective, gradient, agree = _minimise(x, z, weights, delta, n_grid, rng, near, mu, has_e)
    law = _law_of(theta[None], mu, scalar=True)
    residuals = z - np.log(law.loss(n, d))
    sigma, condition, inverse = _uncertainty(theta, x, residuals)
    covariance = sigma**2 * inverse
    se = sigma * np.sqrt(np.maximum(np.diag(inverse), 0.0))
    undefended = _undefended(law, loss, se, condition, gradient)
    parts = (theta, law, objective, gradient, agree, residuals, sigma, condition, covariance, se, undefended)
    return _Optimum(*parts)


def _minimise(x, z, weights, delta, n_grid, rng, near, mu, has_e):
    """The optimum from all starts: theta (5,), objective, gradient, how many starts agree. Without E, ln E is -inf."""
    exponents, free = np.geomspace(0.05, 1.3, n_grid), 5 if has_e else 4
    if len(z) > MANY_ROWS:  # find the basin on a sample, then polish on all rows
        some = rng.choice(len(z), 2000, replace=False)
        starts = grid_starts(x[:, some], z[some], exponents)[:, :free]
        theta, _, _, agree = best_of(starts, x[:, some], z[some], None, delta, has_e)
        theta, objective, gradient, _ = best_of(theta[None], x, z, weights, delta, has_e)
        return _with_e(theta[None])[0], objective, gradient, agree
    starts = grid_starts(x, z, exponents)
    if near is not None and near.theta is not None:
        moved = near.theta.copy()
        moved[:2] += moved[2:4] * (near.mu - mu)  # the same law about these runs' centre
        moved[4] = max(moved[4], starts[:, 4].min())
        starts = np.vstack([starts, moved])
    how = {"patience": 200} if near is None else {"tries": 3, "patience": 25}
    theta, objective, gradient, agree = best_of(starts[:, :free], x, z, weights, delta, has_e, **how)
    return _with_e(theta[None])[0], objective, gradient, agree


def _with_e(theta):
    """(B, 4) parameters of the law without E -> (B, 5) with ln E = -inf; (B, 5) as they are."""
    if theta.shape[1] == 5:
        return theta
    return np.hstack([theta, np.full((len(theta), 1), -np.inf)])


def _free(theta):
    """How many of theta's five parameters are fitted, and whether E is one of them."""
    has_e = bool(np.isfinite(theta[4]))
    return (5 if has_e else 4), has_e


def _uncertainty(theta, x, residuals):
    """Robust sd of ln L about the law, condition of the Jacobian with unit columns, and (J'J)^-1 (infinite if none)."""
    rows, (free, has_e) = len(residuals), _free(theta)
    deviation = np.abs(residuals - np.median(residuals))
    sigma = 1.4826 * float(np.median(deviation)) * np.sqrt(rows / (rows - free))
    j = jacobian(theta[:free], x, has_e)
    unit = j / np.sqrt((j**2).sum(0))
    condition = float(np.linalg.cond(unit)) if np.isfinite(unit).all() else np.inf
    inverse = np.zeros((5, 5))  # of a fixed ln E: 0
    inverse[:free, :free] = np.linalg.inv(j.T @ j) if condition < 1e14 else np.inf
    return sigma, condition, inverse


def _law_of(theta, mu, scalar=False):
    """Centred (B, 5) parameters -> Law of arrays, or of floats."""
    with np.errstate(over="ignore"):
        a, b = np.exp(theta[:, 0] + theta[:, 2] * mu[0]), np.exp(theta[:, 1] + theta[:, 3] * mu[1])
        values = (np.exp(theta[:, 4]), a, b, theta[:, 2], theta[:, 3])
    return Law(*(float(v[0]) for v in values)) if scalar else Law(*values)


def _undefended(law, loss, se, condition, gradient):
    """List of (code, message): every reason not to report this optimum."""
    found = []
    low, high = EXPONENT_RANGE
    if not gradient <= GRADIENT_TOL:
        found.append(("not_converged", f"no start reached a stationary point (relative gradient {gradient:.1g})"))
    for name, value, column in (("alpha", law.alpha, "N"), ("beta", law.beta, "D")):
        if not low <= value <= high:
            why = f"{name} left the range {low}..{high}: the data do not bend that way; widen the range of {column}"
            found.append(("runaway_exponent", why))
    if 0 < law.E <= E_FLOOR * loss.min():
        why = "E is pinned at 0: no irreducible loss can be seen; add runs closer to it (larger N and D)"
        found.append(("e_at_zero", why))
    if not condition < MAX_CONDITION:
        why = "the Hessian is singular to working precision; vary N and D more independently"
        found.append(("ill_conditioned", why))
    elif (se[2:4] > MAX_RELATIVE_SE * np.array([law.alpha, law.beta])).any():
        why = (
            f"the Hessian leaves alpha or beta undetermined (standard error above {MAX_RELATIVE_SE:.0%} of the value); "
            "add runs, spread N and D further apart, or average seeds"
        )
        found.append(("ill_conditioned", why))
    return found


def _warnings(law, loss, se, few_starts):
    """What a reader of this fit should know, as Refusals; `few_starts` is a message or empty."""
    found = []
    if few_starts:
        found.append(Refusal(METHOD, "few_starts_agree", few_starts))
    for name, error, value in (("alpha", se[2], law.alpha), ("beta", se[3], law.beta)):
        if error > 0.25 * value:
            why = f"{name} = {value:.3g} has a standard error of {error:.2g}"
            found.append(Refusal(METHOD, "weakly_determined", why))
    if law.E == 0:
        why = "E ran to 0, so the law without it answers: no irreducible loss can be seen yet; far forecasts are low"
        found.append(Refusal(METHOD, "no_floor", why))
    elif law.E < 0.1 * loss.min():
        found.append(Refusal(METHOD, "small_E", f"E is only {law.E / loss.min():.1%} of the lowest loss"))
    return found


# ----- bootstrap -----


def _bootstrap(theta, mu, x, z, weights, delta, resamples, rng):
    """Draws of the law: Law of arrays, how they were made (dict), warnings (list of Refusal)."""
    if len(z) >= SANDWICH_ROWS:
        draws = _sandwich_draws(theta, x, z, weights, delta, resamples, rng)
        made = {"kind": "sandwich covariance, normal draws", "resamples": resamples, "unconverged": 0}
        return _law_of(draws, mu), made, []
    draws, gradients = _resampled_draws(theta, x, z, weights, delta, resample_budget(len(z), resamples), rng)
    sound = gradients <= GRADIENT_TOL
    low, high = EXPONENT_RANGE
    inside = sound & (draws[:, 2:4] > low).all(1) & (draws[:, 2:4] < high).all(1)
    made = {"kind": "case resampling over runs, percentile", "resamples": len(draws)}
    made |= {"unconverged": int((~sound).sum()), "runaway": int((sound & ~inside).sum())}
    lost, warnings = 1 - inside.mean(), []
    if lost > 0.25:
        why = f"{lost:.0%} of the resamples run away or do not converge; add runs"
        warnings.append(Refusal(METHOD, "unstable_resamples", why))
    elif lost > 0.02:
        why = f"{lost:.1%} of the resamples run away or do not converge"
        warnings.append(Refusal(METHOD, "some_resamples_lost", why))
    return _law_of(draws[inside], mu), made, warnings


def _sandwich_draws(theta, x, z, weights, delta, resamples, rng):
    """Normal draws about theta with the sandwich covariance H^-1 (sum of outer products of the scores) H^-1: (B, 5)."""
    free, has_e = _free(theta)
    one_w = None if weights is None else weights[None]
    _, _, hess = evaluate(theta[None, :free], Regressors(x), z, one_w, delta, has_e)
    terms = sum(np.exp(theta[k] - theta[2 + k] * x[k]) for k in (0, 1))
    psi = np.clip(z - np.log(np.exp(theta[4]) + terms), -delta, delta)
    if weights is not None:
        psi = psi * weights
    scores = jacobian(theta[:free], x, has_e) * psi[:, None]
    inverse = np.linalg.inv(hess[0])
    covariance = inverse @ (scores.T @ scores) @ inverse
    return _with_e(rng.multivariate_normal(theta[:free], covariance, size=resamples, method="svd"))


def _resampled_draws(theta, x, z, weights, delta, count, rng):
    """Case resamples of the runs, each minimised from theta: (count, 5), and the relative gradient of each."""
    rows, regressors, (free, has_e) = len(z), Regressors(x), _free(theta)
    j = jacobian(theta[:free], x, has_e)
    metric = 0.1 * j.T @ j
    metric = metric + 1e-9 * np.trace(metric) * np.eye(free)
    np.empty(3_900_000)  # freed at once: glibc then keeps such arrays on its heap; mapping each anew doubles the time
    chunk, counts = max(16, CACHED // rows), np.empty((count, rows))
    for i in range(0, count, chunk):
        counts[i : i + chunk] = resample_counts(rng, rows, min(chunk, count - i))
    if weights is not None:
        counts *= weights
    draws, _, gradients = descend(np.repeat(theta[None, :free], count, 0), regressors, z, counts, delta, has_e, metric)
    return _with_e(draws), gradients

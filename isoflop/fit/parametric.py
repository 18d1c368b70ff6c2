"""
Approach 3 of Hoffmann et al. 2022, L(N, D) = E + A/N^alpha + B/D^beta, and power laws of one variable.

Functions on arrays that return frozen dataclasses; `fit.py` is their command line. A fit that cannot be defended comes
back with `refusals` and without numbers. Everything is vectorised over bootstrap resamples: a resample is a vector of
case weights, so 4,000 refits are a few dozen matrix products.

    >>> fit = fit_parametric(n, d, loss)
    >>> fit.law.optimum(1e21), fit.ci("alpha")
"""

from dataclasses import dataclass, field

import numpy as np

from isoflop.fit.huber import (
    DELTA,
    E_FLOOR,
    EXPONENT_RANGE,
    GRADIENT_TOL,
    PERCENTILES,
    RESAMPLES,
    SANDWICH_ROWS,
    Refusal,
    _best,
    _descend,
    _evaluate,
    _grid_starts,
    _jacobian,
    _Rows,
    resample_budget,
    resample_counts,
)
from isoflop.laws import SIX_ND, Law

MAX_RELATIVE_SE = 0.5  # an exponent whose Hessian standard error exceeds this share of it is not determined
MAX_CONDITION = 1e8  # of the Jacobian with unit columns


OUTLIER_MADS = 5.0


# ----- approach 3: parametric -----


@dataclass(frozen=True)
class ParametricFit:
    """L = E + A/N**alpha + B/D**beta. `law` is None when refused; `draws` is a Law of arrays, one per resample."""

    law: Law | None
    draws: Law | None = None
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
        j = _jacobian(self.theta, x, True).mean(0)
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


@np.errstate(over="ignore", invalid="ignore", divide="ignore")  # wild optima are refused, not warned about
def fit_parametric(n, d, loss, weights=None, delta=DELTA, resamples=RESAMPLES, seed=0, n_grid=10, near=None):
    """
    Approach 3 of Hoffmann et al. 2022 (section D.2): minimise the SUM over runs of
    Huber_delta(ln L - LSE(ln A - alpha ln N, ln B - beta ln D, ln E)).

    Starts come from variable projection over an n_grid x n_grid grid of (alpha, beta) in 0.05..1.3; each is minimised
    by Newton's method with exact derivatives. The answer is vouched for by its gradient and by how many starts share
    it. Intervals: case bootstrap over runs, each resample minimised to the same gradient tolerance.

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
    near : ParametricFit, optional
        A fit to mostly the same runs: it and the grid's two most promising points are then the only starts.

    Returns
    -------
    ParametricFit
        With `refusals` and no law if the runs cannot carry five parameters.

    References
    ----------
    Hoffmann et al. 2022, arXiv 2203.15556; Besiroglu et al. 2024, arXiv 2404.10102 (summing, not averaging).
    """
    n, d, loss = (np.asarray(v, float) for v in (n, d, loss))
    rows, method = len(n), "parametric"
    z = np.log(loss)
    if rows < 6:
        why = f"{rows} runs for 5 parameters; needs at least 6, and 15 or more for a useful interval"
        return ParametricFit(None, n_rows=rows, delta=delta, refusals=(Refusal(method, "too_few_rows", why),))
    line = _line_of_runs(n, d)
    if line is None:
        for v, code, what in ((n, "too_few_sizes", "sizes"), (d, "too_few_token_counts", "token counts")):
            distinct = 1 + int((np.diff(np.sort(np.log(v))) > 0.01).sum())
            if distinct < 3:
                line = code, f"{distinct} distinct {what}; an exponent beside a constant needs 3 or more"
    if line:
        return ParametricFit(None, n_rows=rows, delta=delta, refusals=(Refusal(method, *line),))

    mu = np.log(np.stack([n, d])).mean(1)
    x = np.log(np.stack([n, d])) - mu[:, None]
    exponents = np.geomspace(0.05, 1.3, n_grid)
    rng = np.random.default_rng(seed)
    if rows > 4000:  # find the basin on a sample, then polish on all rows
        some = rng.choice(rows, 2000, replace=False)
        theta, _, _, agree = _best(_grid_starts(x[:, some], z[some], exponents), x[:, some], z[some], None, delta, True)
        theta, f, gn, _ = _best(theta[None], x, z, weights, delta, True)
    else:
        starts = _grid_starts(x, z, exponents)
        if near is not None and near.theta is not None:
            more = near.theta.copy()
            more[:2] += more[2:4] * (near.mu - mu)  # the same law about these runs' centre
            starts = np.vstack([starts, more])
        few = {"patience": 200} if near is None else {"tries": 3}
        theta, f, gn, agree = _best(starts, x, z, weights, delta, True, **few)

    law = _as_law(theta[None], mu, scalar=True)
    j = _jacobian(theta, x, True)
    residual = z - np.log(law.loss(n, d))
    sigma = 1.4826 * float(np.median(np.abs(residual - np.median(residual)))) * np.sqrt(rows / (rows - 5))
    with np.errstate(divide="ignore", invalid="ignore"):
        unit = j / np.sqrt((j**2).sum(0))
    condition = float(np.linalg.cond(unit)) if np.isfinite(unit).all() else np.inf
    inverse = np.linalg.inv(j.T @ j) if condition < 1e14 else np.full((5, 5), np.inf)
    se = sigma * np.sqrt(np.maximum(np.diag(inverse), 0.0))
    common = {"delta": delta, "n_rows": rows, "starts": n_grid**2, "starts_agreeing": agree, "objective": f}
    common |= {"gradient": gn, "condition": condition}
    refusals = [Refusal(method, c, m) for c, m in _undefended(law, loss, se, condition, gn, agree)]
    if refusals:
        keep = {k: common[k] for k in ("delta", "n_rows", "starts")}
        return ParametricFit(None, refusals=tuple(refusals), **keep)

    warnings = []
    if agree < 0.2 * n_grid**2 and near is None:
        warnings.append(Refusal(method, "few_starts_agree", f"only {agree} of {n_grid**2} starts reach this optimum"))
    for name, s, v in (("alpha", se[2], law.alpha), ("beta", se[3], law.beta)):
        if s > 0.25 * v:
            warnings.append(Refusal(method, "weakly_determined", f"{name} = {v:.3g} has a standard error of {s:.2g}"))
    if law.E < 0.1 * loss.min():
        warnings.append(Refusal(method, "small_E", f"E is only {law.E / loss.min():.1%} of the lowest loss"))
    draws, boot, more = None, {}, []
    if resamples:
        draws, boot, more = _bootstrap_parametric(theta, mu, x, z, weights, delta, resamples, rng, j)
    refusals = [m for m in more if m.code == "unstable_resamples"]
    if refusals:
        keep = {k: common[k] for k in ("delta", "n_rows", "starts")}
        return ParametricFit(None, refusals=tuple(refusals), **keep)
    return ParametricFit(
        law,
        draws,
        sigma=sigma,
        residuals=residual,
        theta=theta,
        mu=mu,
        covariance=sigma**2 * inverse,
        bootstrap=boot,
        warnings=tuple(warnings + more),
        **common,
    )


def _as_law(theta, mu, scalar=False):
    """Centred (B, 5) parameters -> Law of arrays, or of floats."""
    with np.errstate(over="ignore"):
        a, b = np.exp(theta[:, 0] + theta[:, 2] * mu[0]), np.exp(theta[:, 1] + theta[:, 3] * mu[1])
        values = (np.exp(theta[:, 4]), a, b, theta[:, 2], theta[:, 3])
    return Law(*(float(v[0]) for v in values)) if scalar else Law(*values)


def _undefended(law, loss, se, condition, gradient, agree):
    """(code, message) of everything that forbids signing this optimum."""
    low, high = EXPONENT_RANGE
    if not gradient <= GRADIENT_TOL:
        yield "not_converged", f"no start reached a stationary point (relative gradient {gradient:.1g})"
    for name, v in (("alpha", law.alpha), ("beta", law.beta)):
        if not low <= v <= high:
            yield (
                "runaway_exponent",
                f"{name} left the range {low}..{high}: the data do not bend that way; widen the range of "
                f"{'N' if name == 'alpha' else 'D'}",
            )
    if not law.E > E_FLOOR * loss.min():
        yield "e_at_zero", "E is pinned at 0: no irreducible loss can be seen; add runs closer to it (larger N and D)"
    if not condition < MAX_CONDITION:
        yield "ill_conditioned", "the Hessian is singular to working precision; vary N and D more independently"
    elif (se[2:4] > MAX_RELATIVE_SE * np.array([law.alpha, law.beta])).any():
        yield (
            "ill_conditioned",
            f"the Hessian leaves alpha or beta undetermined (standard error above {MAX_RELATIVE_SE:.0%} of the value); "
            "add runs, spread N and D further apart, or average seeds",
        )


def _bootstrap_parametric(theta, mu, x, z, weights, delta, resamples, rng, j):
    """Draws of the law: (Law of arrays, how they were made, warnings)."""
    rows, notes = x.shape[1], []
    metric = 0.1 * j.T @ j
    metric = metric + 1e-9 * np.trace(metric) * np.eye(5)
    if rows >= SANDWICH_ROWS:
        _, _, hess = _evaluate(theta[None], _Rows(x), z, None if weights is None else weights[None], delta, True)
        u = np.clip(
            z - np.log(np.exp(theta[4]) + sum(np.exp(theta[k] - theta[2 + k] * x[k]) for k in (0, 1))), -delta, delta
        )
        u = j * (u if weights is None else u * weights)[:, None]
        inverse = np.linalg.inv(hess[0])
        draws = rng.multivariate_normal(theta, inverse @ (u.T @ u) @ inverse, size=resamples, method="svd")
        kind = {"kind": "sandwich covariance, normal draws", "resamples": resamples, "unconverged": 0}
        return _as_law(draws, mu), kind, notes
    b = resample_budget(rows, resamples)
    draws, gradients = np.empty((b, 5)), np.empty(b)
    np.empty(3_900_000)  # freed at once: glibc then keeps such arrays on its heap; mapping each anew doubles the time
    chunk, held = max(16, 60_000 // rows), _Rows(x)
    for i in range(0, b, chunk):
        w = resample_counts(rng, rows, min(chunk, b - i))
        w = w if weights is None else w * weights
        out = _descend(np.repeat(theta[None], len(w), 0), held, z, w, delta, True, metric)
        draws[i : i + chunk], gradients[i : i + chunk] = out[0], out[2]
    sound = gradients <= GRADIENT_TOL
    low, high = EXPONENT_RANGE
    inside = sound & (draws[:, 2:4] > low).all(1) & (draws[:, 2:4] < high).all(1)
    kind = {"kind": "case resampling over runs, percentile", "resamples": b, "unconverged": int((~sound).sum())}
    kind["runaway"] = int((sound & ~inside).sum())
    lost = 1 - inside.mean()
    if lost > 0.25:
        notes.append(
            Refusal(
                "parametric", "unstable_resamples", f"{lost:.0%} of the resamples run away or do not converge; add runs"
            )
        )
    elif lost > 0.02:
        notes.append(
            Refusal("parametric", "some_resamples_lost", f"{lost:.1%} of the resamples run away or do not converge")
        )
    return _as_law(draws[inside], mu), kind, notes

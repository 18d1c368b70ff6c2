"""
The surface that forecasts: the coupled law L = E + [(A/N^alpha)^p + (B/D^beta)^p]^(1/p), weighted, with weak priors.

Hoffmann's law (p = 1) fitted to all runs alike misses on real data: runs far above their valley bend it, and the two
terms are not independent. Here a run weighs the less the further it lies above the frontier and the less it cost, p is
free, and weak priors hold what the runs do not determine. Evidence decides between p = 1 and a free p.

    >>> fit = fit_coupled(n, d, loss, c)
    >>> fit.law.frontier_loss(1e21), fit.ci("alpha"), fit.from_prior
"""

from dataclasses import dataclass, field, replace

import numpy as np

from isoflop.fit import families
from isoflop.fit.huber import (
    EXPONENT_RANGE,
    GRADIENT_TOL,
    PERCENTILES,
    SANDWICH_ROWS,
    Refusal,
    grid_starts,
    newton,
    resample_counts,
)
from isoflop.fit.parametric import what_is_lacking
from isoflop.laws import SIX_ND, Law

METHOD = "coupled"
DRAWS = 1000
DRAW_ELEMENTS = 100_000  # rows x draws that take a quarter of a second; fewer draws (never under 300) above it
TRIES = 8  # of all starts, the most promising that are minimised
PATIENCE = 40  # Newton steps of each of them; the best is then polished
RISE = 0.05  # a run this far above the frontier, in ln L, weighs half
COMPUTE_POWER = 0.5  # a run's weight grows with this power of its compute
NOISE = 0.004  # typical sd of ln L about the law: 0.001 to 0.009 on the public sets below, median 0.004
NOISE_ROWS = 6.0  # runs that NOISE counts for when a sweep's own scatter is estimated
FEW_ROWS = 20  # below it draws perturb the losses instead of resampling the runs
SAME_LOSS = 1e-9  # range of ln L below which runs have one loss
DRAW_TOL = 1e-4  # relative gradient at which a draw is done: its error is a hundredth of its spread
MAX_RUNAWAY = 0.5  # share of draws with wild exponents, above which there is no answer
# The priors exclude E = 0. Hoffmann's law without E is a family of its own where it is so many nats ahead: of 48 parts
# of 16 public sweeps one came to 5.4 (the next to 3.8); 10 to 15 runs about laws without E, noise .3%, give 14 to 36.
FLOORLESS = 10.0
PRIOR_SHARE = 0.6  # a parameter whose posterior sd is above this share of its prior's is marked as the prior's

LETTERS = ("A", "B", "alpha", "beta", "E", "p")  # what the six centred parameters determine


@dataclass(frozen=True)
class Prior:
    """
    Independent normal priors on the six centred parameters of families.py.

    Parameters
    ----------
    mean, sd : sequences of 6
        Of ln(term of N / L), ln(term of D / L), alpha, beta, ln(E / L) and ln p, the first two and E at the weighted
        centre of the runs with L their typical loss there.
    source : str
        Where they come from.
    """

    mean: tuple
    sd: tuple
    source: str = ""


# Each sweep was fitted with priors five times as wide; families of sweeps count alike. Without any one family the means
# move by less than 0.15 and the widths by less than half; bench/bench_forecast.py learns the prior again and forecasts
# every family with the prior of the others.
PUBLIC = Prior(
    (-1.38, -1.35, 0.30, 0.30, -0.55, 0.84),
    (0.48, 0.53, 0.11, 0.17, 0.23, 0.50),
    "9 families of public sweeps: Porian et al. (5, OpenWebText2), Brandfonbrener et al. (4 losses), Marin, NX-AI, "
    "Gadre et al., Farseer, Hoffmann et al. as read by Besiroglu et al., and this project's results/ (2)",
)


@dataclass(frozen=True)
class CoupledFit:
    """
    A law of N and D that forecasts, with draws. `law` is None when refused.

    Parameters
    ----------
    law : Law
        p is 1 where Hoffmann's family answers.
    draws : Law of (B,) arrays
        Posterior and bootstrap in one: of the families in proportion to their evidence.
    family : str
        Of `law`.
    evidence : dict of str to float
        Nats by which each family that was tried falls short of the best (0 for the best).
    from_prior : dict of str to float
        Posterior over prior standard deviation of each letter (in the centred parameters, of the coupled law where that
        was tried); 1: the runs say nothing.
    prior_marks : tuple of str
        Letters that mostly the prior determines: from_prior above PRIOR_SHARE.
    sigma : float
        Robust standard deviation of weighted ln L about the law, towards NOISE where runs are few.
    residuals, weights, leverage : (R,) arrays
        ln L - ln law, the weight of each run (the largest 1), and by how much its own loss moves its fitted one.
    theta, mu, covariance
        Centred parameters (see families.py), the centre (ln N, ln D), and their posterior covariance.
    """

    law: Law | None
    draws: Law | None = None
    family: str = ""
    evidence: dict = field(default_factory=dict)
    from_prior: dict = field(default_factory=dict)
    prior_marks: tuple = ()
    sigma: float | None = None
    residuals: np.ndarray | None = None
    weights: np.ndarray | None = None
    leverage: np.ndarray | None = None
    theta: np.ndarray | None = None
    mu: np.ndarray | None = None
    covariance: np.ndarray | None = None
    log_evidence: float | None = None  # of `family`, nats; see fit_coupled
    objective: float | None = None
    n_rows: int = 0
    starts: int = 0
    starts_agreeing: int = 0
    gradient: float | None = None
    bootstrap: dict = field(default_factory=dict)
    refusals: tuple = ()
    warnings: tuple = ()

    def ci(self, name, cost=SIX_ND):
        """95% percentile interval of a letter, or of a or b; None without draws."""
        if self.draws is None:
            return None
        values = dict(zip("ab", self.draws.exponents(cost), strict=True)) | self.draws.params
        if name not in values:
            return None
        return tuple(float(q) for q in np.percentile(values[name], PERCENTILES))

    def ln_loss_se(self, n, d):
        """Standard error of the mean of ln law over runs (n, d), by the delta method; no draws needed."""
        runs = families.Runs(np.atleast_1d(n), np.atleast_1d(d), self.mu)
        j = families.jacobian(self.theta, runs).mean(0)
        return float(np.sqrt(j @ self.covariance @ j))


# ----- weights -----


def frontier_rise(c, loss, bins=2000):
    """
    How far every run lies above the frontier, in ln L: the lower convex hull of (ln C, ln L) as far as it falls.

    Parameters
    ----------
    c, loss : (R,) arrays
    bins : int
        Beyond this many runs only the lowest loss of each of so many bins of ln C can be on the hull.
    """
    x, y = np.log(c), np.log(loss)
    candidates = np.lexsort((y, x))
    if len(x) > bins:
        place = np.minimum((bins * (x - x.min()) / max(np.ptp(x), 1e-9)).astype(int), bins - 1)
        by = np.lexsort((y, place))
        candidates = np.r_[by[np.r_[True, np.diff(place[by]) > 0]], np.argmin(x)]  # the hull starts at the least C
        candidates = candidates[np.argsort(x[candidates], kind="stable")]
    hull = []
    for i in candidates:
        # drop points above the line from the one before them to this one
        while len(hull) > 1:
            p, q = hull[-2], hull[-1]
            if (x[q] - x[p]) * (y[i] - y[p]) > (y[q] - y[p]) * (x[i] - x[p]):
                break
            hull.pop()
        hull.append(i)
    hull = np.array(hull)
    hull = hull[: int(np.argmin(y[hull])) + 1]
    return np.maximum(y - np.interp(x, x[hull], y[hull]), 0.0)


def forecast_weights(c, loss):
    """Weight of every run, the largest 1: (C / C_max)^COMPUTE_POWER / (1 + (rise / RISE)^2); see frontier_rise."""
    weights = (c / c.max()) ** COMPUTE_POWER / (1.0 + (frontier_rise(c, loss) / RISE) ** 2)
    return weights / weights.max()


# ----- objective -----


class _Problem:
    """Runs, weights and priors of one fit; minimises the objective of any family from any starts."""

    def __init__(self, n, d, z, weights, prior):
        self.z, self.weights = z, weights
        self.level = float(np.average(z, weights=weights))
        mu = [float(np.average(np.log(v), weights=weights)) for v in (n, d)]
        self.runs = families.Runs(n, d, mu)
        self.mean, self.sd = np.array((prior or PUBLIC).mean), np.array((prior or PUBLIC).sd)
        self.mean[[0, 1, 4]] += self.level
        self.precision = np.zeros(6)
        if prior:
            self.precision = 1.0 / self.sd**2

    def precision_of(self, family):
        """Prior precision (6,), 0 for parameters that the family fixes."""
        return np.where(np.abs(family.map).sum(1) > 0, self.precision, 0.0)

    def prior_mean(self, family):
        """With p = 1 instead of the prior's p, terms that add up to the same reducible loss at equal shares."""
        mean = self.mean.copy()
        if not family.map[5].any():
            mean[:2] -= np.log(2.0) * (1.0 - np.exp(-mean[5]))
            mean[5] = 0.0
        return mean

    def starts(self, family):
        """Free parameters to start from: the prior's mean and a grid of exponents, at p = 1 and p = 2."""
        mean = self.prior_mean(family)[None]
        x = np.stack([self.runs.x, self.runs.y])
        found = [mean]
        if len(self.z) >= 6:
            some = slice(None, None, max(1, len(self.z) // 2000))
            grid = grid_starts(x[:, some], self.z[some], np.geomspace(0.1, 0.8, 4))
            for ln_p in (0.0, np.log(2.0)):
                coupled = np.hstack([grid, np.full((len(grid), 1), ln_p)])
                coupled[:, :2] += np.log(2.0) * (1.0 - np.exp(-ln_p))
                found.append(coupled)
        return family.phi(np.vstack(found))

    def metric(self, family, theta, noise):
        """Positive definite (F, F) matrix of the objective's scale about theta."""
        j = families.jacobian(theta, self.runs) @ family.map
        found = 0.1 * (j * self.weights[:, None]).T @ j
        found += noise**2 * (family.map.T * self.precision_of(family)) @ family.map
        return found + 1e-9 * (1e-9 + np.trace(found)) * np.eye(family.free)

    def minimise(self, family, starts, noise, weights=None, z=None, mean=None, metric=None, tol=1e-7, max_iter=200):
        """
        Minimise sum w Huber(r) + noise^2/2 sum ((theta - mean) / prior sd)^2, with Huber's threshold at the noise.

        Parameters
        ----------
        starts : (B, F) array
        weights, z, mean : (B, R), (B, R), (B, 6) arrays, optional
            Of each problem, for draws; those of the fit itself otherwise.

        Returns
        -------
        theta (B, 6), objective (B,), gradient (B,) relative norm
        """
        penalty = noise**2 * self.precision_of(family)
        shared_mean = self.prior_mean(family)

        def objective(phi, which):
            theta = family.theta(phi)
            w = np.broadcast_to(self.weights, (len(phi), len(self.z))) if weights is None else weights[which]
            off = theta - (shared_mean if mean is None else mean[which])
            f, g, hess = families.evaluate(theta, self.runs, self.z if z is None else z[which], w, noise)
            f, g, hess = f + 0.5 * (off**2 @ penalty), g + off * penalty, hess + np.diag(penalty)
            return f, g @ family.map, family.map.T @ hess @ family.map

        if metric is None:
            metric = self.metric(family, family.theta(starts[:1])[0], noise)
        scale = noise * np.sqrt(len(self.z))
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # wild steps are not accepted
            phi, f, gradient = newton(starts, objective, metric, scale, max_iter, tol)
        return family.theta(phi), f, gradient


# ----- the fit -----


def fit_coupled(n, d, loss, c=None, weights=None, family="auto", prior=True, resamples=DRAWS, seed=0, near=None):
    """
    Fit the coupled law, or Hoffmann's where evidence prefers it, to forecast losses beyond the runs.

    Parameters
    ----------
    n, d, loss : (R,) arrays
        Parameters, tokens, loss in nats per token (or bits: E, A and B are in its unit).
    c : (R,) array, optional
        FLOPs of each run (default: 6 n d). Only the weights depend on it.
    weights : (R,) array, optional
        Weights of the runs on top of forecast_weights(), for instance of their standard errors.
    family : {"auto", "coupled", "hoffmann"} or families.Family
        "auto": by evidence, and draws from both in proportion to it.
    prior : bool or Prior
        True: PUBLIC. False: no priors; needs as many runs as the classical fit and is refused as that one is.
    resamples : int
        Draws; 0 for none.
    seed : int
        Of the draws.
    near : CoupledFit, optional
        A fit to mostly the same runs, as the only start beside the prior's mean: faster, for back-tests.

    Returns
    -------
    CoupledFit
        Refused (law None) for fewer than 3 runs.

    Notes
    -----
    Minimises sum_i w_i Huber_s(ln L_i - ln law_i) + s^2/2 sum_j ((theta_j - m_j) / sd_j)^2, with s the scatter of
    the runs about the law (NOISE at first, then estimated) and m, sd the priors. Draws minimise
    it with the prior's mean drawn from the prior and the runs resampled (or, below FEW_ROWS runs, their losses
    perturbed by s / sqrt(w)): exact posterior draws for a linear law with normal noise, the case bootstrap where runs
    are many. The evidence of a family is -R ln(mean |sqrt(w) r|) - F/2 ln R with F its free parameters: BIC under a
    Laplace likelihood.

    References
    ----------
    Hoffmann et al. 2022, arXiv 2203.15556 (p = 1); Kaplan et al. 2020, arXiv 2001.08361, eq. 1.5 (a relative);
    Bardsley et al. 2014, "Randomize-then-optimize" (draws).
    """
    n, d, loss = (np.asarray(v, float) for v in (n, d, loss))
    c = 6.0 * n * d if c is None else np.asarray(c, float)
    if prior is True:
        prior = PUBLIC
    tried = _families(family)
    refusal = _lacking(n, d, loss, max(v.free for v in tried), prior)
    if refusal:
        return CoupledFit(None, n_rows=len(n), refusals=(refusal,))
    row_weights = forecast_weights(c, loss)
    if weights is not None:
        row_weights = row_weights * weights / np.max(weights)
    problem = _Problem(n, d, np.log(loss), row_weights, prior)
    found, noise = _fit_families(problem, tried, near)
    if family == "auto" and prior:
        found, noise = _without_floor(problem, found, noise)
    evidence = {name: max(v.evidence for v in found.values()) - v.evidence for name, v in found.items()}
    refusals = _undefended(found[min(evidence, key=evidence.get)], prior)
    if refusals:
        return CoupledFit(None, n_rows=len(n), refusals=tuple(refusals))
    draws, made = None, {}
    if resamples:
        draws, made = _draws(problem, found, evidence, noise, resamples, np.random.default_rng(seed))
        if made["runaway"] > MAX_RUNAWAY * made["resamples"]:
            most = f"{made['runaway']} of {made['resamples']}"
            why = f"alpha or beta leaves the range {EXPONENT_RANGE[0]}..{EXPONENT_RANGE[1]} in {most} draws: add runs"
            return CoupledFit(None, n_rows=len(n), refusals=(Refusal(METHOD, "runaway_exponent", why),))
    fit = _result(problem, found, evidence, noise, prior)
    return replace(fit, draws=draws, bootstrap=made)


def _result(problem, found, evidence, noise, prior):
    """The family with the most evidence as a CoupledFit, without draws."""
    best = found[min(evidence, key=evidence.get)]
    from_prior = _from_prior(found.get("coupled", best), prior) if prior else {}
    marks = _marks(from_prior, len(problem.z))
    return CoupledFit(
        families.law_of(best.theta[None], problem.runs.mu, scalar=True),
        family=best.family.name,
        evidence=evidence,
        from_prior=from_prior,
        prior_marks=marks,
        sigma=noise,
        residuals=problem.z - families.terms(best.theta[None], problem.runs)[0][0],
        weights=problem.weights,
        leverage=best.leverage,
        theta=best.theta,
        mu=problem.runs.mu,
        covariance=best.covariance,
        log_evidence=best.evidence,
        objective=best.objective,
        n_rows=len(problem.z),
        starts=best.starts,
        starts_agreeing=best.agree,
        gradient=best.gradient,
        warnings=tuple(_warnings(len(problem.z), marks)),
    )


@dataclass(frozen=True)
class _FamilyFit:
    """One family's optimum."""

    family: families.Family
    theta: np.ndarray
    objective: float
    gradient: float
    starts: int
    agree: int
    covariance: np.ndarray  # of theta
    leverage: np.ndarray
    evidence: float


def _families(family):
    """The Families to try: of a name, or the one that is given."""
    if isinstance(family, families.Family):
        return (family,)
    if family == "auto":
        return families.family("hoffmann"), families.family("coupled")
    return (families.family(family),)


def _lacking(n, d, loss, free, prior):
    """A Refusal where the runs cannot be fitted at all, or None."""
    if len(loss) and np.ptp(np.log(loss)) < SAME_LOSS:
        return Refusal(METHOD, "constant_loss", "all runs have one loss: nothing in it depends on N or D")
    if prior:
        if len(n) >= 3:
            return None
        why = f"{len(n)} runs; even with priors a law needs 3: add runs at other sizes and lengths"
        return Refusal(METHOD, "too_few_rows", why)
    if len(n) <= free:
        why = f"{len(n)} runs for {free} parameters; needs at least {free + 1}, or the priors"
        return Refusal(METHOD, "too_few_rows", why)
    lacking = what_is_lacking(n, d)
    return Refusal(METHOD, *lacking) if lacking else None


def _fit_families(problem, tried, near):
    """Every family's optimum, by name, and the scatter of the runs about the best."""
    found = {}
    for family in tried:
        starts = problem.starts(family)
        if near is not None and near.theta is not None:
            moved = near.theta.copy()
            moved[:2] += moved[2:4] * (np.array(near.mu) - problem.runs.mu)
            starts = np.vstack([starts[:1], family.phi(moved[None])])
        found[family.name] = _optimum(problem, family, starts, NOISE)
    noise = min(_scatter(problem, v) for v in found.values())
    for name, first in found.items():
        starts = first.family.phi(first.theta[None])
        again = _optimum(problem, first.family, starts, noise)
        found[name] = replace(again, starts=first.starts, agree=first.agree)
    return found, noise


def _without_floor(problem, found, noise):
    """The families and the scatter, with Hoffmann's law without E among them where the runs ask for it."""
    best = max(found.values(), key=lambda fit: fit.evidence)
    family = families.family("hoffmann", floor=False)
    bare, own = _fit_families(problem, (family,), None)
    fit = replace(bare[family.name], evidence=bare[family.name].evidence - FLOORLESS)
    if fit.evidence <= best.evidence:
        return found, noise
    return found | {family.name: fit}, min(noise, own)


def _optimum(problem, family, starts, noise):
    """The best of the most promising starts as a _FamilyFit."""
    if len(starts) > TRIES:
        at_start = problem.minimise(family, starts, noise, max_iter=0)[1]
        starts = starts[np.argsort(at_start)[:TRIES]]
    theta, f, gradient = problem.minimise(family, starts, noise, max_iter=PATIENCE)
    best = int(np.nanargmin(f))
    if gradient[best] > 0.1 * GRADIENT_TOL:
        polished = problem.minimise(family, family.phi(theta[best : best + 1]), noise)
        theta[best], f[best], gradient[best] = polished[0][0], polished[1][0], polished[2][0]
    residual = np.sqrt(problem.weights) * (problem.z - families.terms(theta[best : best + 1], problem.runs)[0][0])
    rows = len(residual)
    evidence = -rows * np.log(max(np.abs(residual).mean(), 1e-9)) - 0.5 * family.free * np.log(rows)
    covariance, leverage = _covariance(problem, family, theta[best], noise)
    agree = int((f <= f[best] * (1 + 1e-6) + 1e-15).sum())
    numbers = (float(f[best]), float(gradient[best]), len(starts), agree, covariance, leverage, float(evidence))
    return _FamilyFit(family, theta[best], *numbers)


def _covariance(problem, family, theta, noise):
    """
    Covariance of theta (6, 6) and the leverage of every run (R,).

    It is the sandwich H^-1 (S + P) H^-1, with P the prior's precision and S the variance of the score.

    Runs have one standard deviation there, that of the runs near the frontier, and not noise / sqrt(w): weights guard
    against a wrong law, they are no statement of noise.
    """
    j = families.jacobian(theta, problem.runs) @ family.map
    w = problem.weights[:, None]
    precision = (family.map.T * problem.precision_of(family)) @ family.map
    hess = np.linalg.pinv((j * w).T @ j / noise**2 + precision, hermitian=True)
    residual = problem.z - families.terms(theta[None], problem.runs)[0][0]
    sd = max(noise, 1.2533 * float(np.average(np.abs(residual), weights=problem.weights)))
    score = (j * w**2).T @ j * sd**2 / noise**4
    leverage = problem.weights * ((j @ hess) * j).sum(1) / noise**2
    return family.map @ hess @ (score + precision) @ hess @ family.map.T, leverage


def _scatter(problem, fit):
    """Standard deviation of weighted ln L about the law from its mean absolute residual, towards NOISE."""
    residual = np.sqrt(problem.weights) * (problem.z - families.terms(fit.theta[None], problem.runs)[0][0])
    rows, spare = len(residual), max(len(residual) - fit.family.free, 1)
    own = 1.2533 * np.abs(residual).mean() * np.sqrt(rows / spare)
    return float((NOISE_ROWS * NOISE + rows * own) / (NOISE_ROWS + rows))


def _undefended(fit, prior):
    """List of Refusals: every reason not to report this optimum."""
    found = []
    if not fit.gradient <= 10 * GRADIENT_TOL:
        why = f"no start reached a stationary point (relative gradient {fit.gradient:.1g})"
        found.append(Refusal(METHOD, "not_converged", why))
    if prior:
        return found
    low, high = EXPONENT_RANGE
    for name, value in (("alpha", fit.theta[2]), ("beta", fit.theta[3])):
        if not low <= value <= high:
            why = f"{name} left the range {low}..{high}: the data do not bend that way; fit with the priors"
            found.append(Refusal(METHOD, "runaway_exponent", why))
    return found


def _from_prior(fit, prior):
    """Posterior over prior standard deviation of each free parameter, under its letter."""
    out = {}
    sd = np.sqrt(np.diag(fit.covariance))
    for k, letter in enumerate(LETTERS):
        if fit.family.map[k].any():
            out[letter] = float(min(sd[k] / prior.sd[k], 1.0))
    return out


def _marks(from_prior, rows):
    """
    The letters that mostly the prior determines.

    R runs cannot tell R letters and the noise: where there are no more, the letters that lean most on the prior are
    marked whatever their share.
    """
    surplus = max(0, len(from_prior) + 1 - rows)
    least = sorted(from_prior, key=from_prior.get, reverse=True)[:surplus]
    return tuple(k for k, share in from_prior.items() if share > PRIOR_SHARE or k in least)


def _warnings(rows, marks):
    found = []
    if rows < FEW_ROWS // 2:
        why = f"{rows} runs: intervals are as wide as the priors allow; add runs at other sizes and budgets"
        found.append(Refusal(METHOD, "few_runs", why))
    if marks:
        why = f"{', '.join(marks)} come mostly from the prior (public sweeps), not from these runs"
        found.append(Refusal(METHOD, "from_prior", why))
    return found


# ----- draws -----


def _draws(problem, found, evidence, noise, resamples, rng):
    """Law of (B,) arrays with each family in proportion to its evidence, and how it was made."""
    share = {name: np.exp(-behind) for name, behind in evidence.items()}
    total = sum(share.values())
    budget = min(resamples, max(300, DRAW_ELEMENTS // len(problem.z)))
    thetas, counts = [], {}
    for name, fit in found.items():
        count = int(round(budget * share[name] / total))
        if count:
            thetas.append(_family_draws(problem, fit, noise, count, rng))
            counts[name] = len(thetas[-1])
    theta = np.vstack(thetas)
    low, high = EXPONENT_RANGE
    sound = np.isfinite(theta).all(1) & (theta[:, 2:4] > low).all(1) & (theta[:, 2:4] < high).all(1)
    made = {"resamples": len(theta), "families": counts, "runaway": int((~sound).sum())}
    made["kind"] = "runs resampled, prior redrawn" if len(problem.z) >= FEW_ROWS else "losses and prior redrawn"
    return families.law_of(theta[sound], problem.runs.mu), made


def _family_draws(problem, fit, noise, count, rng):
    """(count, 6) draws of theta under one family."""
    family, rows = fit.family, len(problem.z)
    if rows >= SANDWICH_ROWS:
        return rng.multivariate_normal(fit.theta, fit.covariance, size=count, method="svd")
    start, mean = family.phi(fit.theta[None]), problem.prior_mean(family)
    spread = np.where(problem.precision_of(family) > 0, problem.sd, 0.0)
    metric = problem.metric(family, fit.theta, noise)
    chunk, out = max(16, 60_000 // rows), []
    for i in range(0, count, chunk):
        size = min(chunk, count - i)
        prior_mean = mean + spread * rng.standard_normal((size, 6))
        weights = np.broadcast_to(problem.weights, (size, rows))
        z = np.broadcast_to(problem.z, (size, rows))
        if rows >= FEW_ROWS:
            weights = weights * resample_counts(rng, rows, size)
        else:
            z = z + noise * rng.standard_normal((size, rows)) / np.sqrt(np.maximum(problem.weights, 1e-3))
        starts = np.repeat(start, size, 0)
        out.append(problem.minimise(family, starts, noise, weights, z, prior_mean, metric, DRAW_TOL)[0])
    return np.vstack(out)

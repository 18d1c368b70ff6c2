"""
What runs tell: draws of the law given them, as a covariance of every candidate's loss with the target.

    >>> knowledge = Knowledge(runs, candidates)
    >>> state = State(knowledge, candidates, target)
    >>> state.gains(); state.observe(3); state.variance

Used by design.py, whose docstring tells the whole.
"""

from dataclasses import dataclass

import numpy as np

from isoflop.fit import families
from isoflop.fit.coupled import NOISE, PUBLIC, RISE, fit_coupled
from isoflop.fit.forecast import HEAD_START, LOSS_RATE, SIZE_HALF, SIZE_SD, Z95
from isoflop.laws import SIX_ND, Cost
from isoflop.options import UserError

DRAWS = 200  # of the law; their covariances have a sampling error of 7%
LOSS_UNIT, SIZE_UNIT = 0.01, 0.3  # sd of ln L and of ln N* that count alike
LEVEL_SD = 0.3  # of ln L of unknown data, before any run
WAVES = 40  # random waves that carry a misfit
NEAR_SHARE, NEAR = 0.8, (0.2, 1.0)  # of a run's variance about the law what runs of like size and length share, and how
FAR_SD, FAR = 0.02, (2.5, 2.5)  # sd of ln L by which a law is off in the large; lengths, as above, in ln N and ln D
PARTS = 6  # directions kept of many target rows


@dataclass(frozen=True)
class Runs:
    """
    Runs that are known: (R,) arrays of parameters, tokens, loss in nats, and FLOPs (default 6 n d).

    For pending runs `loss` is ignored and may be NaN.
    """

    n: np.ndarray
    d: np.ndarray
    loss: np.ndarray
    c: np.ndarray | None = None

    @classmethod
    def none(cls):
        return cls(np.zeros(0), np.zeros(0), np.zeros(0))

    def __len__(self):
        return len(self.n)

    @property
    def flops(self):
        if self.c is None:
            return 6.0 * np.asarray(self.n, float) * np.asarray(self.d, float)
        return np.asarray(self.c, float)


@dataclass(frozen=True)
class Candidates:
    """
    What could be trained: (J,) arrays.

    Parameters
    ----------
    n, d : arrays
        Parameters and tokens, in the convention of the known runs.
    cost : array
        What each costs by itself, FLOPs, seconds or money: the unit of the budget.
    c : array, optional
        Training FLOPs (default: 6 n d); tells how near the target a run is, not what is paid.
    replicate : array of int, optional
        0 for the first run of its (n, d), 1 for another seed, ...
    marginal : callable, optional
        (list of indices taken so far) -> (J,) costs of each candidate after those; replaces `cost`.
    """

    n: np.ndarray
    d: np.ndarray
    cost: np.ndarray
    c: np.ndarray | None = None
    replicate: np.ndarray | None = None
    marginal: object = None

    def __len__(self):
        return len(self.n)

    @property
    def flops(self):
        return Runs(self.n, self.d, None, self.c).flops

    def cost_after(self, taken):
        """(J,) costs once the candidates `taken` are paid for."""
        if self.marginal is None:
            return np.asarray(self.cost, float)
        return np.asarray(self.marginal(list(taken)), float)


@dataclass(frozen=True)
class Target:
    """
    What is to be known: the law's optimum at `flops`, or the losses of rows (n, d).

    Parameters
    ----------
    flops : float, optional
    n, d : (T,) arrays, optional
    law_cost : Cost
        FLOPs of a run of (N, D); of `flops` alone.
    """

    flops: float | None = None
    n: np.ndarray | None = None
    d: np.ndarray | None = None
    law_cost: Cost = SIX_ND

    def __post_init__(self):
        if (self.flops is None) == (self.n is None):
            raise UserError("a target is either FLOPs or rows of N and D; give one of them")


@dataclass(frozen=True)
class Width:
    """
    What is known of a target.

    Parameters
    ----------
    sd_loss, sd_n : float
        Standard deviations of ln L and ln N* over the draws (sd_n is None for given rows).
    pi95_loss, pi95_n : float
        Half-widths of pi95 of the forecast (surface.py) in ln L and ln N*: the former, a run's noise, and the distance
        from the largest run.
    """

    sd_loss: float
    sd_n: float | None
    pi95_loss: float
    pi95_n: float | None


# ----- what is known -----


class Knowledge:
    """
    Draws of the law given runs, as deviations of ln L at any point: `field` (M, J).

    Parameters
    ----------
    runs : Runs
    near : Candidates
        Where the prior is centred while fewer than three runs are known.
    prior : Prior
    draws, seed : int
    """

    def __init__(self, runs, near, prior=PUBLIC, draws=DRAWS, seed=0):
        self.runs, self.noise, self.level_known = runs, NOISE, len(runs) >= 3
        fit = None
        if self.level_known:
            fit = fit_coupled(runs.n, runs.d, runs.loss, runs.flops, prior=prior, resamples=draws, seed=seed)
        if fit is not None and fit.law is not None and fit.draws is not None and len(fit.draws.E) > 1:
            self.law, self.draws, self.noise = fit.law, fit.draws, fit.sigma
            return
        self.level_known = False
        self.law, self.draws = _prior_draws(runs, near, prior, draws, seed)

    def field(self, n, d):
        """ln L of every draw at (J,) points: (M, J)."""
        n, d = np.asarray(n, float)[None], np.asarray(d, float)[None]
        return np.log(self.draws.each(lambda v: np.asarray(v, float)[:, None]).loss(n, d))

    def noise_variance(self, n, d, c, c_ref):
        """Variance (J,) of ln L about the law as coupled.forecast_weights() weighs runs; c_ref weighs 1."""
        if not len(n):
            return np.zeros(0)
        least = self.law.frontier_loss(c, Cost(float(np.median(c / (n * d)))))
        rise = np.maximum(np.log(self.law.loss(n, d) / least), 0.0)
        return self.noise**2 * np.sqrt(c_ref / c) * (1.0 + (rise / RISE) ** 2)

    def target_field(self, target):
        """What is to be known, in its units, of every draw (M, T), and the columns of ln L and of ln N* in it."""
        if target.flops is None:
            field = self.field(target.n, target.d)
            return field / (LOSS_UNIT * np.sqrt(field.shape[1])), list(range(field.shape[1])), []
        n = self.draws.optimum(target.flops, target.law_cost)[0]
        loss = self.draws.frontier_loss(target.flops, target.law_cost)
        columns = np.stack([np.log(loss) / LOSS_UNIT, np.log(n) / SIZE_UNIT], 1)
        return columns, [0], [1]


def _prior_draws(runs, near, prior, draws, seed):
    """(mean law, draws) of the prior, centred on the candidates by the root of their FLOPs; its level is unknown."""
    rng = np.random.default_rng(seed)
    theta = np.array(prior.mean) + np.array(prior.sd) * rng.standard_normal((draws, 6))
    theta[:, 2:4] = np.clip(theta[:, 2:4], 0.05, 1.5)
    level, spread = 1.0, LEVEL_SD
    known = np.isfinite(np.asarray(runs.loss, float))
    if known.any():
        level, spread = float(np.log(np.asarray(runs.loss)[known]).mean()), NOISE
    shift = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    mean = np.array(prior.mean) + level * shift
    theta = theta + (level + spread * rng.standard_normal((draws, 1))) * shift
    weights = np.sqrt(near.flops)
    mu = tuple(float(np.average(np.log(v), weights=weights)) for v in (near.n, near.d))
    return families.law_of(mean[None], mu, scalar=True), families.law_of(theta, mu)


class State:
    """
    Square root of the covariance of candidates and target, (M, J + T); observe() conditions on a run.

    The covariance is root' root; an observation of column v with noise r takes v v' / (v'v + r) off it. With `misfit`
    no law is believed to the end: ln L = ln law + what all runs of a region share (FAR) + what runs of like size and
    length share (NEAR) + noise, the first of them at the target, too.
    """

    def __init__(self, knowledge, candidates, target, pending, c_ref, misfit=True):
        if c_ref is None:  # nothing is known, and nothing can be paid
            c_ref = float(np.min(candidates.flops))
        self.target, self.knowledge, self.c_ref = target, knowledge, c_ref
        self.size = len(candidates)
        wanted, self.loss_columns, self.n_columns = knowledge.target_field(target)
        n, d = (np.r_[getattr(candidates, name), getattr(pending, name)].astype(float) for name in ("n", "d"))
        root = np.hstack([knowledge.field(n, d), wanted])
        root = root[np.isfinite(root).all(1)]  # of laws so odd that they overflow somewhere nothing is kept
        root -= root.mean(0)
        root /= np.sqrt(len(root) - 1)
        noise = knowledge.noise_variance(n, d, np.r_[candidates.flops, pending.flops], c_ref)
        if misfit:
            root = np.vstack([root, self._misfit(n, d, noise, len(self.n_columns))])
            noise = (1.0 - NEAR_SHARE) * noise
        self.root, self.noise = root, noise[: self.size]
        for i, variance in enumerate(noise[self.size :]):
            self._condition(self.size + i, variance)
        wanted = self.root[:, len(n) :]
        if wanted.shape[1] > PARTS:  # of many rows the directions in which they differ most
            wanted = wanted @ np.linalg.svd(wanted, full_matrices=False)[2][:PARTS].T
            self.loss_columns = list(range(PARTS))
        self.root = np.hstack([self.root[:, : self.size], wanted])

    def _misfit(self, n, d, noise, others):
        """Rows of the root for what the law misses, given the known runs; no column of ln N* (others) has any."""
        runs, target = self.knowledge.runs, self.target
        if target.flops is None:
            at = np.asarray(target.n, float), np.asarray(target.d, float)
        else:
            at = [np.array([v]) for v in self.knowledge.law.optimum(target.flops, target.law_cost)]
        unit = LOSS_UNIT * np.sqrt(len(at[0]))
        far = FAR_SD * np.hstack([waves(n, d, FAR), waves(*at, FAR) / unit])
        near = np.pad(np.sqrt(NEAR_SHARE * noise) * waves(n, d, NEAR), ((0, 0), (0, len(at[0]))))
        rows = np.pad(np.vstack([far, near]), ((0, 0), (0, others)))
        if not len(runs):
            return rows
        known = self.knowledge.noise_variance(runs.n, runs.d, runs.flops, self.c_ref)
        seen = np.vstack(
            [FAR_SD * waves(runs.n, runs.d, FAR), np.sqrt(NEAR_SHARE * known) * waves(runs.n, runs.d, NEAR)]
        )
        precision = np.eye(len(rows)) + (seen / ((1.0 - NEAR_SHARE) * known)) @ seen.T
        return np.linalg.solve(np.linalg.cholesky(precision), rows)

    def _condition(self, column, variance):
        v = self.root[:, column].copy()
        total = v @ v + variance
        self.root = self.root - np.outer(v, v @ self.root) / (total + np.sqrt(total * variance))

    def observe(self, j):
        self._condition(j, self.noise[j])

    def copy(self):
        other = object.__new__(State)
        other.__dict__.update(self.__dict__)
        return other

    @property
    def variance(self):
        """Of the target, in its units."""
        return float((self.root[:, self.size :] ** 2).sum())

    def gains(self):
        """(J,) variance of the target that each candidate would take away."""
        own, wanted = self.root[:, : self.size], self.root[:, self.size :]
        return ((wanted.T @ own) ** 2).sum(0) / ((own**2).sum(0) + self.noise)

    def sds(self):
        """Standard deviations of ln L (root mean square over rows) and ln N* (None for rows) at the target."""
        wanted = self.root[:, self.size :]
        loss = LOSS_UNIT * np.sqrt((wanted[:, self.loss_columns] ** 2).sum())
        if not self.n_columns:
            return float(loss), None
        return float(loss), float(SIZE_UNIT * np.sqrt((wanted[:, self.n_columns] ** 2).sum()))


def waves(n, d, lengths):
    """(2 WAVES, J) whose columns' products are about exp(-sum over ln n and ln d of (distance / length)^2 / 2)."""
    frequency = np.random.default_rng(0).standard_normal((2, WAVES, 1))
    phase = frequency[0] * np.log(n) / lengths[0] + frequency[1] * np.log(d) / lengths[1]
    return np.vstack([np.cos(phase), np.sin(phase)]) / np.sqrt(WAVES)


def width_of(state, target, c_max):
    """Width of a state of knowledge whose largest run is of c_max FLOPs (None: no run)."""
    sd_loss, sd_n = state.sds()
    law, noise = state.knowledge.law, state.knowledge.noise
    at = target.flops
    if at is None:
        at = float(np.exp(np.mean(np.log(6.0 * np.asarray(target.n, float) * np.asarray(target.d, float)))))
    c_max = c_max or state.c_ref or at
    cost = target.law_cost
    slope = np.log(law.frontier_loss(c_max, cost) / law.frontier_loss(1.01 * c_max, cost)) / np.log(1.01)
    distance = max(0.0, np.log(at / c_max)) + HEAD_START
    loss = float(np.sqrt((LOSS_RATE * slope * distance) ** 2 + noise**2 + (Z95 * sd_loss) ** 2))
    if sd_n is None:
        return Width(sd_loss, None, loss, None)
    return Width(sd_loss, sd_n, loss, float(SIZE_HALF * np.hypot(SIZE_SD, sd_n)))


def largest_of(*parts):
    """Largest FLOPs of Runs and arrays; None where there are no runs."""
    most = [0.0]
    for part in parts:
        values = part.flops if isinstance(part, Runs) else part
        most.append(float(np.max(np.r_[0.0, 0.0 if values is None else values])))
    return max(most) or None

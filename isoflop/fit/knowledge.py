"""
What runs tell: of the law, by draws of it (State), and of a forecast, by the error that its fit will make.

    >>> knowledge = Knowledge(runs, candidates)
    >>> error = ForecastError(knowledge, candidates, target, pending, c_ref)      # what chooses
    >>> error.gains(); error.observe(3); error.variance
    >>> width_of(State(knowledge, candidates, target, pending, c_ref), target, c_max)

Used by design.py, whose docstring tells the whole.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from isoflop.fit import families
from isoflop.fit.coupled import FLOORLESS, NOISE, PUBLIC, RISE, fit_coupled
from isoflop.fit.forecast import HEAD_START, LOSS_RATE, SIZE_HALF, SIZE_SD, Z95
from isoflop.fit.huber import EXPONENT_RANGE
from isoflop.laws import SIX_ND, Cost
from isoflop.options import UserError

DRAWS = 200  # of the law; their covariances have a sampling error of 7%
LOSS_UNIT, SIZE_UNIT = 0.01, 0.3  # sd of ln L and of ln N* that count alike
LEVEL_SD = 0.3  # of ln L of unknown data, before any run
NEAR_SHARE, NEAR = 0.4, (0.2, 1.0)  # of a run's variance about the law what runs of like size and length share, and how
SIZE_SHARE = 0.4  # of it what runs of one size share alone: no other size has any of it
SAME_SIZE = 1e-3  # difference of ln N below which two runs are of one size
FAR_SD, FAR = 0.01, (2.5, 2.5)  # sd of ln L by which a law is off in the large; lengths, as above, in ln N and ln D
LEVEL = np.array([1.0, 1.0, 0.0, 0.0, 1.0, 0.0])  # moves ln L everywhere alike
STEP = 1e-3  # of the numeric slopes, in sd of the prior
PARTS = 6  # directions kept of many target rows
BLOCK = 256  # runs taken in at once
# Nats between a law with E and one without at which runs still have to decide, FLOORLESS counted. Half of FLOORLESS: a
# law without E is then further ahead than it is on all but one of 48 parts of public sweeps.
UNDECIDED = 0.5 * FLOORLESS


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
    The law given runs: `law`, `draws` of it, and how it could move (`slopes`).

    Parameters
    ----------
    runs : Runs
    near : Candidates
        Where the prior is centred while fewer than three runs are known.
    prior : Prior
    draws, seed : int
    """

    def __init__(self, runs, near, prior=PUBLIC, draws=DRAWS, seed=0):
        self.runs, self.prior, self.noise, self.level_known = runs, prior, NOISE, len(runs) >= 3
        fit = None
        if self.level_known:
            fit = fit_coupled(runs.n, runs.d, runs.loss, runs.flops, prior=prior, resamples=draws, seed=seed)
        if fit is not None and fit.law is not None and fit.draws is not None and len(fit.draws.E) > 1:
            self.law, self.draws, self.noise, self.theta, self.mu = fit.law, fit.draws, fit.sigma, fit.theta, fit.mu
            self.evidence = fit.log_evidence
            if not _has_optimum(fit.law):  # the nearest that has one
                self.theta = np.r_[fit.theta[:2], np.clip(fit.theta[2:4], *EXPONENT_RANGE), fit.theta[4:]]
                self.law = families.law_of(self.theta[None], self.mu, scalar=True)
            return
        self.level_known = False
        self.theta, self.mu, self.draws = _prior_draws(runs, near, prior, draws, seed)
        self.law = families.law_of(self.theta[None], self.mu, scalar=True)

    @cached_property
    def rival(self):
        """
        Law of the other family, without E or with it, where runs do not decide between them; None where they do.

        None, too, where it has no optimum.
        """
        if not self.level_known:
            return None
        family, handicap = "coupled", 0.0
        if self.law.E > 0:
            family, handicap = families.family("hoffmann", floor=False), FLOORLESS
        runs = self.runs
        fit = fit_coupled(runs.n, runs.d, runs.loss, runs.flops, prior=self.prior, family=family, resamples=0)
        if fit.law is None or self.evidence - (fit.log_evidence - handicap) > UNDECIDED:
            return None
        return fit.law if _has_optimum(fit.law) else None

    def slopes(self, n, d, target):
        """
        By how much ln L at (J,) points, and what is to be known, move with the law: (P, J + T).

        A row for each of the six parameters and one for the level, each moved by its prior sd (linear about the law),
        and one for the step to the rival, where there is one.
        """
        moves = STEP * np.vstack([np.diag(self.prior.sd), LEVEL_SD * LEVEL])
        nearby = families.law_of(self.theta + np.vstack([moves, -moves]), self.mu)
        up, down = np.split(_columns(nearby, n, d, target), 2)
        rows = (up - down) / (2 * STEP)
        if self.rival is None:
            return rows
        there, here = (_columns(law.each(np.atleast_1d), n, d, target) for law in (self.rival, self.law))
        return np.vstack([rows, there - here])

    def noise_variance(self, n, d, c, c_ref):
        """Variance (J,) of ln L about the law as coupled.forecast_weights() weighs runs; c_ref weighs 1."""
        if not len(n):
            return np.zeros(0)
        least = self.law.frontier_loss(c, Cost(float(np.median(c / (n * d)))))
        rise = np.maximum(np.log(self.law.loss(n, d) / least), 0.0)
        return self.noise**2 * np.sqrt(c_ref / c) * (1.0 + (rise / RISE) ** 2)


def _has_optimum(law):
    """Whether both exponents are within EXPONENT_RANGE; one below 0 leaves no N*."""
    low, high = EXPONENT_RANGE
    return low < min(law.alpha, law.beta) and max(law.alpha, law.beta) < high


def _columns(laws, n, d, target):
    """ln L by every law of (M,) arrays at (J,) points, and what is to be known, in its units: (M, J + T)."""
    fields = [_ln_losses(laws, n, d)]
    if target.flops is None:
        fields.append(_ln_losses(laws, target.n, target.d) / (LOSS_UNIT * np.sqrt(len(target.n))))
    else:
        loss = laws.frontier_loss(target.flops, target.law_cost)
        best = laws.optimum(target.flops, target.law_cost)[0]
        fields.append(np.stack([np.log(loss) / LOSS_UNIT, np.log(best) / SIZE_UNIT], 1))
    return np.hstack(fields)


def _ln_losses(laws, n, d):
    n, d = np.asarray(n, float)[None], np.asarray(d, float)[None]
    return np.log(laws.each(lambda values: np.asarray(values, float)[:, None]).loss(n, d))


def _prior_draws(runs, near, prior, draws, seed):
    """(theta, mu, draws) of the prior, centred on the candidates by the root of their FLOPs; its level is unknown."""
    rng = np.random.default_rng(seed)
    theta = np.array(prior.mean) + np.array(prior.sd) * rng.standard_normal((draws, 6))
    theta[:, 2:4] = np.clip(theta[:, 2:4], 0.05, 1.5)
    level, spread = 1.0, LEVEL_SD
    known = np.isfinite(np.asarray(runs.loss, float))
    if known.any():
        level, spread = float(np.log(np.asarray(runs.loss)[known]).mean()), NOISE
    theta = theta + (level + spread * rng.standard_normal((draws, 1))) * LEVEL
    weights = np.sqrt(near.flops)
    mu = tuple(float(np.average(np.log(v), weights=weights)) for v in (near.n, near.d))
    return np.array(prior.mean) + level * LEVEL, mu, families.law_of(theta, mu)


class State:
    """
    What the draws of the law say of candidates and target: what the widths are made of.

    `root`, (M, J + T), is a square root of their covariance; an observation of column v with noise r takes
    v v' / (v'v + r) off it. Runs have noise that no two of them share.
    """

    def __init__(self, knowledge, candidates, target, pending, c_ref):
        self.target, self.knowledge, self.c_ref = target, knowledge, _reference(c_ref, candidates)
        self.size = len(candidates)
        n, d, c = _joined(candidates, pending)
        root = _columns(knowledge.draws, n, d, target)
        root = root[np.isfinite(root).all(1)]  # of laws so odd that they overflow somewhere nothing is kept
        self.root = (root - root.mean(0)) / np.sqrt(len(root) - 1)
        self.loss_columns, self.n_columns = _kinds(target)
        noise = knowledge.noise_variance(n, d, c, self.c_ref)
        self.noise = noise[: self.size]
        for i, variance in enumerate(noise[self.size :]):
            self._condition(self.size + i, variance)
        wanted = self.root[:, len(n) :]
        if wanted.shape[1] > PARTS:  # of many rows the directions in which they differ most
            wanted = wanted @ np.linalg.svd(wanted, full_matrices=False)[2][:PARTS].T
            self.loss_columns = list(range(PARTS))
        self.root = np.hstack([self.root[:, : self.size], wanted])

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

    def sds(self):
        """Standard deviations of ln L (root mean square over rows) and ln N* (None for rows) at the target."""
        wanted = self.root[:, self.size :]
        loss = LOSS_UNIT * np.sqrt((wanted[:, self.loss_columns] ** 2).sum())
        if not self.n_columns:
            return float(loss), None
        return float(loss), float(SIZE_UNIT * np.sqrt((wanted[:, self.n_columns] ** 2).sum()))


class ForecastError:
    """
    Variance of the error that the fit's forecast will have, summed over what is to be known: what chooses.

    No law is believed to the end. The truth is taken for ln L = ln law + what all runs of a region share (FAR; at the
    target, too) + what runs of like size and length share (NEAR) + what runs of one size share (SIZE_SHARE) + noise.
    The fit knows nothing of that: it takes every run for the law with noise of its own, under its prior. So a run is
    worth what it tells that fit, and one that it would overrate makes the forecast worse.

    The law is linear about the fit, its parameters t in sd of the prior (Knowledge.slopes). A run has slopes j, weight
    w in the fit, misfit x that goes with that of others, and noise e of variance r; the target has slopes g and misfit
    m. With A = 1 + sum w j j' and h = A^-1 g the error is h't + m - h' sum w j (x + e), so that

        variance = |h|^2 + var m - 2 h' B + h' S h,    B = sum w j cov(x, m),    S = var of sum w j (x + e)
    """

    def __init__(self, knowledge, candidates, target, pending, c_ref):
        self.size = len(candidates)
        n, d, c = _joined(candidates, pending, knowledge.runs)
        slopes = knowledge.slopes(n, d, target)
        self.noise = knowledge.noise_variance(n, d, c, _reference(c_ref, candidates))
        self.weight, self.place = 1.0 / self.noise, np.log([n, d])
        self.slopes, wanted = slopes[:, : len(n)], slopes[:, len(n) :]
        with_target, target_misfit = self._target_misfit(knowledge.law, target)
        parameters = len(slopes)
        self.precision, self.spread = np.eye(parameters), np.zeros((parameters, parameters))  # A and S
        self.carried = np.zeros((len(n), parameters))  # covariance of each point's misfit with sum w j (x + e)
        known = np.arange(self.size, len(n))
        for first in range(0, len(known), BLOCK):
            self._add(known[first : first + BLOCK])
        met = (self.weight[known] * self.slopes[:, known]) @ with_target[known]
        if wanted.shape[1] > PARTS:  # of many rows the directions in which their errors are largest
            h = np.linalg.solve(self.precision, wanted)
            errors = h.T @ h + target_misfit - h.T @ met - met.T @ h + h.T @ self.spread @ h
            parts = np.linalg.eigh(errors)[1][:, -PARTS:]
            wanted, met, with_target = wanted @ parts, met @ parts, with_target @ parts
            target_misfit = parts.T @ target_misfit @ parts
        self.wanted, self.met, self.with_target = wanted, met, with_target
        self.alone = float(np.trace(target_misfit))

    def _target_misfit(self, law, target):
        """Covariances of every point's misfit with the target's, (J, T), and of the latter, (T, T); ln N* has none."""
        if target.flops is None:
            at, others = np.log([target.n, target.d]), 0
        else:
            at, others = np.log(law.optimum(target.flops, target.law_cost))[:, None], 1
        unit = FAR_SD / (LOSS_UNIT * np.sqrt(at.shape[1]))
        points = FAR_SD * unit * _alike(self.place, at, FAR)
        return np.pad(points, ((0, 0), (0, others))), np.pad(unit**2 * _alike(at, at, FAR), (0, others))

    def _shared(self, some):
        """Covariance of every point's misfit with that of the points `some`: (J, K)."""
        here, sd = self.place[:, some], np.sqrt(self.noise)
        one_size = np.abs(self.place[0][:, None] - here[0]) < SAME_SIZE
        near = NEAR_SHARE * _alike(self.place, here, NEAR) + SIZE_SHARE * one_size
        return FAR_SD**2 * _alike(self.place, here, FAR) + np.outer(sd, sd[some]) * near

    def _add(self, some):
        """Take the points `some`, an array of indices, among the runs of the fit; met is not moved."""
        shared, pull = self._shared(some), self.weight[some] * self.slopes[:, some]
        own = shared[some] + np.diag((1.0 - NEAR_SHARE - SIZE_SHARE) * self.noise[some])
        cross = pull @ self.carried[some]
        self.precision = self.precision + pull @ self.slopes[:, some].T
        self.spread = self.spread + cross + cross.T + pull @ own @ pull.T
        self.carried = self.carried + shared @ pull.T

    def observe(self, j):
        self._add(np.array([j]))
        self.met = self.met + self.weight[j] * np.outer(self.slopes[:, j], self.with_target[j])

    def copy(self):
        other = object.__new__(ForecastError)
        other.__dict__.update(self.__dict__)
        return other

    @property
    def variance(self):
        """Of the forecast's error, in the target's units."""
        h = np.linalg.solve(self.precision, self.wanted)
        return float((h**2).sum() + self.alone - 2.0 * (h * self.met).sum() + (h * (self.spread @ h)).sum())

    def gains(self):
        """(J,) variance that each candidate would take away; below 0 where it would add to it."""
        some = slice(None, self.size)
        j, w = self.slopes[:, some], self.weight[some]
        covariance = np.linalg.inv(self.precision)
        h, own = covariance @ self.wanted, covariance @ j
        # with the candidate: h moves by -own c', and the fit takes c of the candidate's misfit and noise
        c = (w / (1.0 + w * (j * own).sum(0)) * (h.T @ j)).T  # (J, T)
        moved = h[:, None] - own[:, :, None] * c  # (P, J, T)
        after = (moved * np.tensordot(np.eye(len(h)) + self.spread, moved, 1)).sum((0, 2)) + self.alone
        after -= 2.0 * np.tensordot(self.met, moved, ((0, 1), (0, 2)))
        after += (c**2).sum(1) * (FAR_SD**2 + self.noise[some])
        after += 2.0 * (c * (np.einsum("ja,ajt->jt", self.carried[some], moved) - self.with_target[some])).sum(1)
        return self.variance - after


def _reference(c_ref, candidates):
    """FLOPs of the run that has the fit's own noise; the cheapest candidate's where nothing is known or can be paid."""
    return float(np.min(candidates.flops)) if c_ref is None else c_ref


def _joined(*parts):
    """n, d and FLOPs of Candidates and Runs, one after the other."""
    return [np.concatenate([getattr(part, name) for part in parts]).astype(float) for name in ("n", "d", "flops")]


def _kinds(target):
    """The columns of ln L and of ln N* in what is to be known."""
    if target.flops is None:
        return list(range(len(target.n))), []
    return [0], [1]


def _alike(places, others, lengths):
    """exp(-sum over ln n and ln d of (distance / length)^2 / 2) of points (2, J) and (2, K): (J, K)."""
    off = (places[:, :, None] - others[:, None]) / np.array(lengths)[:, None, None]
    return np.exp(-0.5 * (off**2).sum(0))


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

"""
Scores on a task from the size of a run, in two steps: a loss from N and D, and the score from that loss.

    >>> fit = fit_task("arc_easy", n, d, c, x, score, chance=0.25)
    >>> fit.predict(7e9, 4e12)      # Prediction: score with its 95% intervals

Step 1, the loss x (of the task, of a text, or bits per byte): E + A/N^alpha + B/D^beta, or E + K/C^gamma. Step 2, the
score: a sigmoid of x between chance and a top near 1, or Gadre et al.'s error = eps - k exp(-gamma x). The two forms of
a step weigh by how well they predict held-out runs. Priors are weak; a draw of the score is a draw of both steps.

A task whose runs are at chance, or whose score doesn't follow the loss, is refused.

References
----------
Bhagia et al. 2024, arXiv:2412.04403 (OLMo's ladder). Grattafiori et al. 2024, arXiv:2407.21783 (Llama 3).
Gadre et al. 2024, arXiv:2403.08540 (error = eps - k exp(-gamma L)).
"""

from dataclasses import dataclass, field

import numpy as np

from isoflop.fit.data_law import BASE, E_SHARE, TERM_SD, TERM_SHARE, Runs, terms
from isoflop.fit.huber import PERCENTILES
from isoflop.fit.weak_priors import LEAST_NOISE, Problem
from isoflop.options import UserError

LOSS_FORMS = ("ND", "C")
SCORE_FORMS = ("sigmoid", "exponential")
E_SD = 0.5  # of ln E about E_SHARE of the least loss: task losses have less of a floor than text has
CHANCE_SD = 0.02  # of the level that a score starts from
TOP = 0.97, 0.05  # of a sigmoid's top
MIN_RUNS = 6
PARTS = 4  # of the runs, drawn by chance, that are held out in turn
TOP_SHARE = 0.25  # of the runs: those of most compute, held out together
DRAWS = 300
TEST_DRAWS = 100
DRAW_ELEMENTS = 150_000  # runs x draws at most, though no fewer draws than TEST_DRAWS
MIX = 4.0  # a form's weight goes as its held-out error to minus this
MOST_TESTED = 50  # runs of the quarter with most compute
FOLLOWS = 0.9  # a score whose held-out error is above so much of its mean's follows nothing
LEAST_ABOVE = 0.01  # above chance, at the runs of least loss
LEAST_STRETCH = 1.0


# ----- the curves -----


def loss_problem(form, n, d, c, x):
    """(Problem of ln x over the runs, function of (theta, n, d, c) that gives ln x)."""
    z = np.log(x)
    term = (np.median(z) + np.log(TERM_SHARE), TERM_SD)
    floor = (z.min() + np.log(E_SHARE), E_SD)
    if form == "ND":
        runs = Runs(n, d, d)

        def of_nd(theta, n, d, c):
            return terms("once", theta, Runs(n, d, d, runs.mu), False)[0]

        prior = [term, term, BASE["alpha"], BASE["beta"], floor]
        return Problem(lambda theta: terms("once", theta, runs), z, *np.array(prior).T), of_nd
    centre = np.log(c).mean()

    def of_c(theta, n, d, c):
        return _compute_law(theta, np.log(c) - centre)[0]

    prior = [(term[0] + np.log(2.0), TERM_SD), (0.17, 0.1), floor]
    moves = ((1, 1.0), (2, -1.5))
    return Problem(lambda theta: _compute_law(theta, np.log(c) - centre), z, *np.array(prior).T, moves), of_c


def _compute_law(theta, ln_c):
    """ln(K/C^gamma + E) of theta (B, 3) = (ln K, gamma, ln E), and its derivatives."""
    t = theta[:, :, None]
    term, floor = np.exp(t[:, 0] - t[:, 1] * ln_c), np.exp(t[:, 2])
    law = term + floor
    return np.log(law), np.stack([term, -term * ln_c, np.broadcast_to(floor, law.shape)], 1) / law[:, None]


def score_problem(form, x, y, chance):
    """(Problem of the score over the runs, function of theta (B, P) and x, (R,) or (B, 1), that gives the score)."""
    middle, width = np.median(x), max(np.ptp(x), 1e-6)
    curve = {"sigmoid": _sigmoid, "exponential": _exponential}[form]
    above = max(y.mean() - chance, 0.02)
    if form == "sigmoid":
        prior = [(chance, CHANCE_SD), TOP, (np.log(3.0 / width), 0.7), (0.0, 1.5 * width)]
        moves = ((2, 1.0), (3, -1.0), (3, 1.0))
    else:
        prior = [(chance, CHANCE_SD), (np.log(above), 1.0), (np.log(2.0 / width), 0.7)]
        moves = ((2, 1.0), (2, -1.0))
    problem = Problem(lambda theta: curve(theta[:, :, None], x - middle), y, *np.array(prior, float).T, moves)

    def score(theta, x):
        return curve(theta[:, :, None], x - middle)[0]

    return problem, score


def _sigmoid(t, x):
    """low + (top - low) / (1 + exp(k (x - x0))) of t = (low, top, ln k, x0), and its derivatives."""
    low, top, k, x0 = t[:, 0], t[:, 1], np.exp(np.clip(t[:, 2], -20.0, 20.0)), t[:, 3]
    inside = k * (x - x0)
    share = 1.0 / (1.0 + np.exp(np.clip(inside, -500.0, 500.0)))
    slope = -(top - low) * share * (1.0 - share)
    return low + (top - low) * share, np.stack([1.0 - share, share, slope * inside, -slope * k], 1)


def _exponential(t, x):
    """1 - eps + k exp(-gamma x) of t = (1 - eps, ln k, ln gamma), and its derivatives."""
    gamma = np.exp(np.clip(t[:, 2], -20.0, 20.0))
    lift = np.exp(np.clip(t[:, 1] - gamma * x, -500.0, 50.0))
    one = np.ones_like(lift)
    return t[:, 0] + lift, np.stack([one, lift, -lift * gamma * x], 1)


# ----- the back-tests -----


def held_out(rank, seed=0):
    """{test: masks of runs held out}: a quarter by chance in turn, and the quarter of highest `rank`."""
    part = np.argsort(np.random.default_rng(seed).random(len(rank))) % PARTS
    top = np.zeros(len(rank), bool)
    top[np.argsort(rank, kind="stable")[-max(1, round(TOP_SHARE * len(rank))) :]] = True
    return {"unseen": [part == k for k in range(PARTS)], "top": [top]}


def errors_of(problem, masks, theta, noise):
    """Residuals of the runs held out by each mask, in one array; the fits start from that to all runs."""
    weights = np.array([~mask for mask in masks], float)
    thetas, _ = problem.minimise(np.repeat(theta[None], len(masks), 0), noise, weights)
    values, _ = problem.law(thetas)
    out = []
    for mask, value in zip(masks, values, strict=True):
        out.append((problem.z - value)[mask])
    return np.concatenate(out)


@dataclass
class Step:
    """
    One of the two steps: its forms, the best first, and draws of them.

    tests : of each form the mean absolute held-out errors `unseen` and `top`, `error`, their mean, and its `weight`.
    fits : form -> (function, theta, noise).
    draws : form -> (b, P), as many as its weight says.
    """

    tests: list
    fits: dict
    draws: dict
    order: np.ndarray  # of all draws, so that forms are not in turn

    @property
    def form(self):
        return self.tests[0]["form"]

    @property
    def noise(self):
        return self.fits[self.form][2]

    def at(self, *where):
        """The value at arrays `where`: the weighted mean of the forms."""
        total = 0.0
        for row in self.tests:
            function, theta, _ = self.fits[row["form"]]
            total = total + row["weight"] * function(theta[None], *where)[0]
        return total

    def sample(self, *where):
        """Values of all draws (B, R). where : arrays (R,), or (B, R) with a row for each draw."""
        out, begin = [], 0
        for form, thetas in self.draws.items():
            mine = self.order[begin : begin + len(thetas)]
            some = [value[mine] if np.ndim(value) == 2 else value for value in where]
            out.append(self.fits[form][0](thetas, *some))
            begin += len(thetas)
        values = np.empty((len(self.order), out[0].shape[1]))
        values[self.order] = np.concatenate(out)
        return values


def fit_step(problems: dict, rank, draws, rng) -> Step:
    """The step with forms (Problem, function) by name. rank : orders the runs, the highest are held out together."""
    tests, rows, fits = held_out(rank), [], {}
    for form, (problem, function) in problems.items():
        theta, noise = problem.fit()
        fits[form] = function, theta, noise
        row = {"form": form}
        for name, masks in tests.items():
            row[name] = float(np.abs(errors_of(problem, masks, theta, noise)).mean())
        rows.append(row | {"error": (row["unseen"] + row["top"]) / 2})
    rows.sort(key=lambda row: row["error"])
    weights = np.array([(rows[0]["error"] / max(row["error"], LEAST_NOISE)) ** MIX for row in rows]) + 1e-9
    sampled = {}
    for row, weight in zip(rows, weights / weights.sum(), strict=True):
        form, row["weight"] = row["form"], float(weight)
        sampled[form] = problems[form][0].draws(*fits[form][1:], int(np.ceil(weight * draws)), rng)
    total = sum(len(thetas) for thetas in sampled.values())
    return Step(rows, fits, sampled, rng.permutation(total))


# ----- one task -----


@dataclass
class Prediction:
    """A score with its intervals: of the law, and of a new run."""

    n: float
    d: float
    c: float
    loss: float
    loss_ci95: tuple
    score: float
    ci95: tuple
    pi95: tuple


@dataclass
class TaskFit:
    """One task. refused: why it can't be predicted, "" where it can."""

    task: str
    chance: float
    runs: int
    refused: str = ""
    loss_step: Step | None = None  # ln x from N, D, C
    score_step: Step | None = None  # the score from x
    of_mean: float = np.nan  # held-out error of the mean score
    chained: float = np.nan  # error of the score of the top runs, from N and D, without them
    stretch: float = LEAST_STRETCH  # by how much those errors exceed what was expected
    letters: dict = field(default_factory=dict)  # of step 2: name -> (point, ci95)
    x: np.ndarray | None = None
    y: np.ndarray | None = None

    def predict(self, n, d, c=None, seed=0) -> Prediction:
        """The score of a run of N and D (C: 6ND without)."""
        c = 6.0 * n * d if c is None else c
        at = [np.array([value], float) for value in (n, d, c)]
        rng = np.random.default_rng(seed)
        loss = np.exp(self.loss_step.at(*at))
        score = float(np.clip(self.score_step.at(loss)[0], 0.0, 1.0))
        ln_x = self.loss_step.sample(*at)[: len(self.score_step.order)]
        ln_x = np.resize(ln_x, (len(self.score_step.order), 1))
        law = self.score_step.sample(np.exp(ln_x))[:, 0]  # draw by draw
        off_x, off_y = rng.standard_normal((2, len(ln_x)))
        moved = ln_x + self.loss_step.noise * off_x[:, None]
        run = self.score_step.sample(np.exp(moved))[:, 0] + self.score_step.noise * off_y
        wide = score + self.stretch * (np.percentile(run, PERCENTILES) - score)
        return Prediction(
            float(n), float(d), float(c), float(loss[0]), tuple(np.exp(np.percentile(ln_x, PERCENTILES)).tolist()),
            score, _shares(np.percentile(law, PERCENTILES)), _shares(wide),
        )  # fmt: skip


def _shares(ends):
    """The ends of an interval, from 0 to 1."""
    return tuple(np.clip(ends, 0.0, 1.0).tolist())


def fit_task(task, n, d, c, x, y, chance=0.0, draws=DRAWS, seed=0) -> TaskFit:
    """
    Both steps of one task.

    Parameters
    ----------
    n, d, c, x, y : (R,) arrays
        Parameters, tokens, FLOPs, loss (any unit), score from 0 to 1. Runs without x or y are left out.
    chance : float
        Score of a guess.
    draws : int
        For intervals; fewer where runs are very many.

    Returns
    -------
    TaskFit
        With `refused`, and no law, where the task can't be predicted.

    Raises
    ------
    UserError
        Scores above 1.
    """
    n, d, c, x, y = (np.asarray(v, float) for v in (n, d, c, x, y))
    good = np.isfinite(x) & (x > 0) & np.isfinite(y)
    n, d, c, x, y = (v[good] for v in (n, d, c, x, y))
    if len(y) and y.max() > 1.0 + 1e-9:
        raise UserError(f"--law_of task: {task} goes up to {y.max():.4g}, so it is in percent; add --percent")
    fit = TaskFit(task, float(chance), len(y), x=x, y=y)
    fit.refused = _too_little(x, y)
    if fit.refused:
        return fit
    draws = min(draws, max(TEST_DRAWS, DRAW_ELEMENTS // len(y)))
    rng = np.random.default_rng(seed)
    fit.score_step = _score_step(x, y, chance, draws, rng)
    fit.of_mean = _error_of_mean(x, y)
    fit.refused = _not_predictable(fit)
    if fit.refused:
        return fit
    fit.loss_step = _loss_step(n, d, c, x, draws, rng)
    fit.letters = letters_of(fit.score_step, np.median(x))
    _chain_test(fit, n, d, c)
    return fit


def _loss_step(n, d, c, x, draws, rng):
    return fit_step({form: loss_problem(form, n, d, c, x) for form in LOSS_FORMS}, c, draws, rng)


def _score_step(x, y, chance, draws, rng):
    return fit_step({form: score_problem(form, x, y, chance) for form in SCORE_FORMS}, -x, draws, rng)


def letters_of(step, middle):
    """{letter: (value, ci95)} of step 2 in plain x; the interval None without draws."""
    _, theta, _ = step.fits[step.form]
    both = np.vstack([theta[None], step.draws[step.form]])
    if step.form == "sigmoid":
        values = {"low": both[:, 0], "top": both[:, 1], "k": np.exp(both[:, 2]), "x0": both[:, 3] + middle}
    else:
        gamma = np.exp(both[:, 2])
        with np.errstate(over="ignore"):
            values = {"eps": 1.0 - both[:, 0], "k": np.exp(both[:, 1] + gamma * middle), "gamma": gamma}
    out = {}
    for name, value in values.items():
        out[name] = (float(value[0]), tuple(np.percentile(value[1:], PERCENTILES).tolist()))
    return out


def _too_little(x, y):
    """Why these runs can't tell of any task, "" where they can."""
    if len(y) < MIN_RUNS:
        return f"{len(y)} runs have both a score and a loss, {MIN_RUNS} are needed"
    if np.ptp(np.log(x)) < 1e-3:
        return "all its runs have one loss"
    if np.ptp(y) == 0:
        return f"all its runs score {y[0]:.4g}"
    return ""


def _error_of_mean(x, y):
    """Mean absolute held-out error of the mean score of the other runs, over both tests."""
    out = []
    for masks in held_out(-x).values():
        off = [y[mask] - y[~mask].mean() for mask in masks]
        out.append(np.abs(np.concatenate(off)).mean())
    return float(np.mean(out))


def _not_predictable(fit):
    """Why a task with runs enough can't be predicted, "" where it can."""
    best = fit.y[np.argsort(fit.x, kind="stable")[: max(3, len(fit.y) // 4)]]
    above = best.mean() - fit.chance
    if above < max(LEAST_ABOVE, 2.0 * fit.score_step.noise / np.sqrt(len(best))):
        return f"at chance: its runs of least loss score {best.mean():.3f}, and a guess {fit.chance:.3f}"
    error = fit.score_step.tests[0]["error"]
    if error > FOLLOWS * fit.of_mean:
        return f"the score does not follow the loss: {error:.3f} off held-out runs, their mean {fit.of_mean:.3f}"
    return ""


def _chain_test(fit, n, d, c):
    """The error of the runs of most compute, from N and D by both steps without them, and how it widens intervals."""
    (top,) = held_out(c)["top"]
    rest, rng = ~top, np.random.default_rng(0)
    without = TaskFit(fit.task, fit.chance, int(rest.sum()))
    without.loss_step = _loss_step(n[rest], d[rest], c[rest], fit.x[rest], TEST_DRAWS, rng)
    without.score_step = _score_step(fit.x[rest], fit.y[rest], fit.chance, TEST_DRAWS, rng)
    off, expected = [], []
    tested = np.flatnonzero(top)
    for i in tested[:: -(-len(tested) // MOST_TESTED)]:
        found = without.predict(n[i], d[i], c[i])
        off.append(fit.y[i] - found.score)
        expected.append((found.pi95[1] - found.pi95[0]) / 3.92)
    off, expected = np.array(off), np.maximum(expected, 1e-4)
    fit.chained = float(np.abs(off).mean())
    fit.stretch = max(LEAST_STRETCH, float(np.sqrt(np.mean((off / expected) ** 2))))

"""
Laws of repeated data, L(N, D, U): N parameters trained on D tokens of which U are different.

    >>> fit = fit_data_law(n, d, u, loss)
    >>> fit.form, fit.letters, fit.ci("R_D"), fit.loss(1e9, 4e10, 1e10)

Six forms are fitted and one is chosen by back-test, on runs, texts and epochs beyond those that the fit has seen. Each
is Hoffmann's law E + A/N^alpha + B/D^beta where D = U:

    once            the same for any U
    exponent        B / (D^beta U^gamma)
    floor           + K / U^gamma
    effective       D' = U + U R_D (1 - exp(-(D/U - 1) / R_D)) in place of D
    effective_both  and N' = V + V R_N (1 - exp(-(N/V - 1) / R_N)), V the best size for U, in place of N
    excess          + K N^kappa / U^gamma (ln D/U)^3: what over-fitting adds; the loss can rise with D

(exponent and floor keep their term of U = D there.) The third power was chosen on the public runs below.

References
----------
Muennighoff et al. 2023, arXiv 2305.16264, eq. 5 and 6 (effective tokens and sizes; R_D = 15.4, R_N = 5.3).
"""

from dataclasses import dataclass, field

import numpy as np

from isoflop.display import count
from isoflop.fit.huber import PERCENTILES
from isoflop.fit.weak_priors import Problem
from isoflop.options import UserError

FORMS = {  # letters beyond c_N, c_D, alpha, beta, ln_E: prior mean and standard deviation
    "once": {},
    "exponent": {"gamma": (0.0, 0.2)},
    "floor": {"ln_K": (-3.0, 2.0), "gamma": (0.3, 0.3)},
    "effective": {"ln_R_D": (np.log(15.4), 1.0)},
    "effective_both": {"ln_R_D": (np.log(15.4), 1.0), "ln_R_N": (np.log(5.3), 1.0)},
    "excess": {"ln_K": (-7.0, 3.0), "kappa": (1.0, 0.5), "gamma": (1.0, 0.5)},
}
POWER = 3  # of ln D/U in the excess
BASE = {"alpha": (0.35, 0.15), "beta": (0.35, 0.15)}  # weak priors, as wide as public sweeps differ
E_SHARE, E_SD = 0.6, 0.3  # E as a share of the lowest loss
TERM_SHARE, TERM_SD = 0.2, 1.5  # A/N^alpha and B/D^beta at the centre as a share of the median loss
MIN_RUNS = 8
MIN_REPEATED = 3
DRAWS = 300
DRAW_ELEMENTS = 150_000  # runs x draws at most, though no fewer draws than 100
MOST_FOLDS = 6  # groups of U that are held out in turn
PARTS = 4  # of the runs, drawn by chance, that are held out in turn
LATE = 0.75  # quantile of the repeated runs' epochs beyond which they are held out
ONCE = 1.001  # epochs up to which a run has seen its data once
SAME_U = 0.01  # ln U within which two texts are one


class Runs:
    """ln N, ln D, ln U about their centre `mu` (3,), and ln ln D/U (minus infinity at one epoch)."""

    def __init__(self, n, d, u, mu=None):
        n, d, u = np.broadcast_arrays(*(np.asarray(v, float) for v in (n, d, u)))
        logs = np.stack([np.log(n), np.log(d), np.log(np.minimum(u, d))])
        self.mu = logs.mean(1) if mu is None else mu
        self.x, self.y, self.u = logs - self.mu[:, None]
        repeats = logs[1] - logs[2]
        with np.errstate(divide="ignore"):
            self.lnln = np.log(np.where(repeats > np.log(ONCE), repeats, 0.0))
        self.more = np.expm1(repeats)  # D/U - 1

    def __len__(self):
        return len(self.x)


def _saturated(more, ln_r):
    """ln(1 + R (1 - exp(-more / R))), and its derivatives in ln R and in ln(1 + more)."""
    r = np.exp(ln_r)
    q = np.exp(-more / r)
    whole = 1.0 + r * -np.expm1(-more / r)
    return np.log(whole), (r * -np.expm1(-more / r) - more * q) / whole, (1.0 + more) * q / whole


def terms(form, theta, runs, derivatives=True):
    """
    ln L of every run under parameters theta (B, P), and its Jacobian (None without derivatives).

    Returns
    -------
    ln_law : (B, R)
    jacobian : (B, P, R)
    """
    t = theta[:, :, None]
    alpha, beta, ln_e = t[:, 2], t[:, 3], t[:, 4]
    x, y, extra = runs.x, runs.y, None
    inner = []  # (index, derivative of x', of y')
    if form.startswith("effective"):
        lift, by_r, _ = _saturated(runs.more, t[:, 5])
        y = runs.u + runs.mu[2] - runs.mu[1] + lift
        inner.append((5, 0.0, by_r))
    if form == "effective_both":
        x, moved = _useful_size(t, runs)
        inner += [(k, value, 0.0) for k, value in moved]
    term_n, term_d = np.exp(t[:, 0] - alpha * x), t[:, 1] - beta * y
    if form == "exponent":
        term_d = term_d - t[:, 5] * runs.u
    term_d = np.exp(term_d)
    law = np.exp(ln_e) + term_n + term_d
    if form == "floor":
        extra = np.exp(t[:, 5] - t[:, 6] * runs.u)
    elif form == "excess":
        extra = np.exp(t[:, 5] + t[:, 6] * runs.x - t[:, 7] * runs.u + POWER * runs.lnln)
    if extra is not None:
        law = law + extra
    if not derivatives:
        return np.log(law), None
    j = np.zeros((*theta.shape, len(runs)))
    j[:, 0], j[:, 1], j[:, 2], j[:, 3] = term_n, term_d, -term_n * x, -term_d * y
    j[:, 4] = np.exp(ln_e)
    for k, by_x, by_y in inner:
        j[:, k] += -term_n * alpha * by_x - term_d * beta * by_y
    if form == "exponent":
        j[:, 5] = -term_d * runs.u
    elif form == "floor":
        j[:, 5], j[:, 6] = extra, -extra * runs.u
    elif form == "excess":
        j[:, 5], j[:, 6], j[:, 7] = extra, extra * runs.x, -extra * runs.u
    return np.log(law), j / law[:, None]


def _useful_size(t, runs):
    """Centred ln N' (B, R), and [(index of theta, its derivative)]; V solves alpha A/V^alpha = beta B/U^beta."""
    alpha, beta, mu = np.maximum(t[:, 2], 1e-3), np.maximum(t[:, 3], 1e-3), runs.mu
    ln_u = runs.u + mu[2]
    ratio = t[:, 0] + alpha * mu[0] + np.log(alpha) - t[:, 1] - beta * mu[1] - np.log(beta) + beta * ln_u
    best, ln_n = ratio / alpha, runs.x + mu[0]
    above = ln_n > best
    more = np.expm1(np.clip(ln_n - best, 0.0, 200.0))
    lift, by_r, by_n = _saturated(more, t[:, 6])
    x = np.where(above, best + lift, ln_n) - mu[0]
    by_best = np.where(above, 1.0 - by_n, 0.0)
    moved = [
        (0, by_best / alpha),
        (1, -by_best / alpha),
        (2, by_best * (mu[0] + 1.0 / alpha - best) / alpha),
        (3, by_best * (ln_u - mu[1] - 1.0 / beta) / alpha),
        (6, np.where(above, by_r, 0.0)),
    ]
    return x, moved


# ----- the fit -----


@dataclass(frozen=True)
class DataLaw:
    """
    A fitted form with draws.

    Parameters
    ----------
    form : str
        Of FORMS.
    theta, mu : (P,), (3,) arrays
        Centred parameters and the centre (ln N, ln D, ln U).
    draws : (B, P) array
    sigma : float
        Robust standard deviation of ln L about the law.
    backtests : list of dict
        Of each form, see backtest(); empty where the form was given.
    """

    form: str
    theta: np.ndarray
    mu: np.ndarray
    draws: np.ndarray
    sigma: float
    n_rows: int
    r2: float
    backtests: list = field(default_factory=list)

    @property
    def letters(self):
        """{letter: value} of the law in plain N, D and U."""
        return {name: float(value[0]) for name, value in letters_of(self.form, self.theta[None], self.mu).items()}

    def ci(self, letter):
        """95% interval of a letter; None without draws."""
        if not len(self.draws):
            return None
        values = letters_of(self.form, self.draws, self.mu)[letter]
        return tuple(float(end) for end in np.percentile(values, PERCENTILES))

    def loss(self, n, d, u):
        """Loss of n parameters on d tokens of which u are different; arrays broadcast."""
        return self.losses(self.theta[None], n, d, u)[0]

    def new_tokens(self, n, d, u):
        """Worth of d tokens of which u are different, in tokens that are all new: floats."""
        new = np.geomspace(0.01 * min(u, d), d, 2001)
        return float(np.interp(-self.loss(n, d, u), -self.loss(n, new, new), new))

    def losses(self, theta, n, d, u):
        """Losses under every row of theta (B, P): (B, ...) of the shape of n, d and u together."""
        n, d, u = np.broadcast_arrays(*(np.asarray(v, float) for v in (n, d, u)))
        runs = Runs(n.ravel(), d.ravel(), u.ravel(), self.mu)
        return np.exp(terms(self.form, theta, runs, False)[0]).reshape(len(theta), *n.shape)


def from_letters(form, letters):
    """The DataLaw of {letter: value} in plain N, D and U, without draws."""
    base = [np.log(letters["A"]), np.log(letters["B"]), letters["alpha"], letters["beta"], np.log(letters["E"])]
    for name in FORMS[form]:
        value = letters[name.removeprefix("ln_")]
        base.append(np.log(value) if name.startswith("ln_") else value)
    return DataLaw(form, np.array(base, float), np.zeros(3), np.zeros((0, len(base))), 0.0, 0, 0.0)


def letters_of(form, theta, mu):
    """{letter: (B,)} of the law in plain N, D and U: E, A, B, alpha, beta and those of the form."""
    out = {"E": np.exp(theta[:, 4]), "alpha": theta[:, 2], "beta": theta[:, 3]}
    ln_b = theta[:, 1] + theta[:, 3] * mu[1]
    values = dict(zip(FORMS[form], theta[:, 5:].T, strict=True))
    if form == "exponent":
        ln_b = ln_b + values["gamma"] * mu[2]
    with np.errstate(over="ignore"):
        out |= {"A": np.exp(theta[:, 0] + theta[:, 2] * mu[0]), "B": np.exp(ln_b)}
        for name, value in values.items():
            if name == "ln_K":
                value = value + values["gamma"] * mu[2] - values.get("kappa", 0.0) * mu[0]
            out[name.removeprefix("ln_")] = np.exp(value) if name.startswith("ln_") else value
    return {name: out[name] for name in ("E", "A", "alpha", "B", "beta", *sorted(set(out) - set("EAB")))}


def fit_data_law(n, d, u, loss, form="auto", resamples=DRAWS, seed=0):
    """
    Fit L(N, D, U).

    Parameters
    ----------
    n, d, u, loss : (R,) arrays
        Parameters, tokens, how many of them are different (u >= d: seen once), loss.
    form : str
        Of FORMS, or "auto": the one of the least back-test error.
    resamples : int
        Draws for intervals; fewer where runs are very many.
    seed : int
        Of the draws.

    Returns
    -------
    DataLaw

    Raises
    ------
    UserError
        Too few runs, none that repeats its data, or one U.

    Notes
    -----
    Minimises sum Huber_s(ln L - ln law) + s^2/2 sum ((theta - m) / sd)^2 with s the scatter of the runs about the law,
    estimated twice, and weak priors m, sd (FORMS, BASE). Draws do the same with the priors' means drawn anew and the
    runs resampled, or below FEW_ROWS runs their losses perturbed by s.
    """
    n, d, u, loss = (np.asarray(v, float) for v in (n, d, u, loss))
    u = np.minimum(u, d)
    _refuse(d, u, loss)
    runs, z = Runs(n, d, u), np.log(loss)
    tests = []
    if form == "auto":
        tests = backtest(runs, z)
        form = min(tests, key=lambda row: row["error"])["form"]
    problem = _problem(form, runs, z)
    theta, noise = problem.fit()
    draws = np.zeros((0, len(theta)))
    if resamples:
        most = min(resamples, max(100, DRAW_ELEMENTS // len(z)))
        draws = problem.draws(theta, noise, most, np.random.default_rng(seed))
    fitted = np.exp(terms(form, theta[None], runs)[0][0])
    r2 = 1.0 - float(((loss - fitted) ** 2).sum() / ((loss - loss.mean()) ** 2).sum())
    return DataLaw(form, theta, runs.mu, draws, noise, len(z), r2, tests)


def _refuse(d, u, loss):
    """Raise UserError where the runs can't tell what repetition costs."""
    repeated = d > ONCE * u
    if len(d) < MIN_RUNS:
        raise UserError(f"{len(d)} runs; a law of N, D and U needs {MIN_RUNS} or more: add runs")
    if repeated.sum() < MIN_REPEATED:
        raise UserError(
            f"{repeated.sum()} of {len(d)} runs repeat their data (more tokens than unique tokens); "
            f"{MIN_REPEATED} or more are needed: add runs of 2, 4 and 16 epochs, or fit without --law_of"
        )
    if len(np.unique(same_texts(u))) < 2:
        raise UserError(
            f"all {len(d)} runs have one number of unique tokens, {count(u[0])}: nothing tells what more text is "
            "worth; add runs on half of the text, or of less than an epoch"
        )
    if np.ptp(np.log(loss)) < 1e-6:
        raise UserError("all runs have one loss: nothing in it depends on N, D or U; check the loss column")


def same_texts(u):
    """A number of its text for every run: values of U within SAME_U are one text."""
    order = np.argsort(u, kind="stable")
    group = np.zeros(len(u), int)
    group[order] = np.r_[0, np.cumsum(np.diff(np.log(u[order])) > SAME_U)]
    return group


def _problem(form, runs, z):
    """The fit of one form to the runs."""
    extra = list(FORMS[form].values())
    if form == "excess":  # K about what it is at the centre: a tenth of the loss at ln D/U = 3
        extra[0] = (np.median(z) + np.log(0.03) - POWER * np.log(3.0), extra[0][1])
    elif form == "floor":
        extra[0] = (np.median(z) + np.log(0.1), extra[0][1])
    term = (np.median(z) + np.log(TERM_SHARE), TERM_SD)
    prior = [term, term, BASE["alpha"], BASE["beta"], (z.min() + np.log(E_SHARE), E_SD), *extra]
    return Problem(lambda theta: terms(form, theta, runs), z, *np.array(prior, float).T)


# ----- the choice of a form -----


def folds(runs):
    """{test: list of masks of the runs held out}: a quarter in turn, texts in turn, the runs of most epochs."""
    repeated = runs.more > ONCE - 1.0
    text = same_texts(np.exp(runs.u))
    names = np.unique(text[repeated])
    parts = [part for part in np.array_split(names, min(MOST_FOLDS, len(names))) if len(part)]
    unseen = [np.isin(text, part) for part in parts]
    late = repeated & (runs.more > np.quantile(runs.more[repeated], LATE))
    fourth = np.argsort(np.random.default_rng(0).random(len(runs))) % PARTS
    tests = {"unseen_runs": [fourth == k for k in range(PARTS)], "unseen_u": unseen, "more_epochs": [late]}
    least = 0.25 * len(runs)  # a fit to fewer runs says nothing of the form
    for name, masks in tests.items():
        tests[name] = [mask for mask in masks if mask.any() and (~mask).sum() >= least]
    return tests


def backtest(runs, z, forms=tuple(FORMS)):
    """
    Every form against runs that it was not fitted to.

    Returns
    -------
    list of dict
        form, free, the tests' mean absolute errors of ln L (unseen_runs, unseen_u, more_epochs; None where the runs
        give no such test), inside (that of the fit to all runs), and error, the tests' mean, by which a form is chosen.
    """
    out, tests = [], folds(runs)
    for form in forms:
        problem = _problem(form, runs, z)
        whole = problem.fit()[0]
        row = {"form": form, "free": len(problem.mean)}
        for name, masks in tests.items():
            row[name] = _held_out(problem, masks, whole)
        known = [row[name] for name in tests if row[name] is not None]
        inside = float(np.abs(problem.residuals(whole)).mean())
        row |= {"inside": inside, "error": float(np.mean(known)) if known else inside}
        out.append(row)
    return out


def _held_out(problem, masks, whole):
    """Mean absolute error of ln L over the runs held out by each mask; None without masks."""
    off = []
    for mask in masks:
        theta = problem.fit((~mask).astype(float), np.vstack([whole, problem.starts()[:1]]))[0]
        off.append(np.abs(problem.residuals(theta))[mask])
    return float(np.concatenate(off).mean()) if off else None

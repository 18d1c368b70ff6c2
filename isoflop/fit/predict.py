"""
Predictions with two intervals, one from the data and one from history.

`ci95` says where the law lies if it holds. `pi95` says where a new run would land: run-to-run noise, the spread between
methods, and how wrong the law has been when it was extrapolated come on top, growing with the distance in ln C.

A fitted method answers through a predictor (predictors.py). The functions predict_*() ask every predictor and return
rows, dicts as they stand in fit.json.
"""

import functools
from dataclasses import dataclass

import numpy as np

from isoflop.fit.huber import Refusal
from isoflop.laws import SIX_ND

# How far a law is off as it is extrapolated. On the public sets that we have (Hoffmann's points as read by Besiroglu,
# Kempner's two losses, Gemstones' curves; every fit on the lower budgets against every higher one, 178 forecasts) the
# error of ln L grows in proportion to the distance in ln C, at a root mean square of 0.3%, 0.8% and 0.6% per e-fold of
# compute; 0.6% is their pooled value. The rate of any two sets covers the third (tests/test_fit_predict.py, slow).
# One's own back-tests then move the rate; the prior is worth PRIOR_DF of them.
RATE_LOSS = 0.006  # sd of the error of ln L per e-fold of C
RATE_N = 0.10  # sd of the error of ln N_opt per e-fold: 0.11 to 0.16 on Hoffmann's points, 0.04 to 0.06 on Kempner's
PRIOR_DF = 4.0
HEAD_START = 0.5  # distance counts from half an e-fold inside the largest C: fits are already off at their edge
# 97.5% quantiles of Student's t by degrees of freedom; between two of them the smaller number of degrees holds.
STUDENT_T = {
    4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228, 12: 2.179, 15: 2.131, 20: 2.086, 30: 2.042,
}  # fmt: skip
LEVELS = (2.5, 97.5)
MISS = 3.0  # half-widths of a budget's ci95 beyond which a parametric fit is said to miss it
DEFAULT_SIGMA = 0.005  # sd of ln L of one run, where no parametric fit measures it
DEFAULT_SIGMA_N = 0.1  # sd of a budget's ln N_opt, where no bootstrap measures it
LOWEST_FLOPS, HIGHEST_FLOPS = 1.0, 1e45  # compute outside of them is no answer to a target loss


def percentiles(draws, q=LEVELS):
    """Percentiles of a (B,) array as floats, None at an infinite end, or None without draws."""
    if draws is None or len(draws) < 20:
        return None
    ends = [float(end) for end in np.percentile(draws, q, method="inverted_cdf")]
    return tuple(end if np.isfinite(end) else None for end in ends)


# ----- how wrong to expect to be -----


@dataclass(frozen=True)
class Skill:
    """What a prediction interval needs: noise, the rates at which errors grow, and from where."""

    sigma: float  # sd of ln L of one run about the law
    sigma_n: float  # sd of one budget's measured ln N_opt
    rate: float  # sd of the error of ln L per e-fold of C
    rate_n: float  # of ln N_opt
    t: float  # 97.5% quantile of Student's t
    n_tests: int
    c_max: float  # largest C in the data
    n_range: tuple = (0.0, np.inf)
    d_range: tuple = (0.0, np.inf)

    def distance(self, c):
        """ln C beyond the data, HEAD_START included."""
        return np.maximum(0.0, np.log(c) - np.log(self.c_max) + HEAD_START)

    def half_loss(self, se, c, spread=0.0):
        """Half-width of pi95 in ln L."""
        return self.t * np.sqrt(se**2 + self.sigma**2 + spread**2 + (self.rate * self.distance(c)) ** 2)

    def half_n(self, se, c, spread=0.0):
        """Half-width of pi95 in ln N_opt."""
        return self.t * np.sqrt(se**2 + self.sigma_n**2 + spread**2 + (self.rate_n * self.distance(c)) ** 2)

    def reach(self, n, d, c):
        """The compute that is as far beyond the data as a run of n, d and c is in that one of them that is farthest."""
        beyond = (c / self.c_max, n / self.n_range[1], d / self.d_range[1], self.n_range[0] / n, self.d_range[0] / d)
        return self.c_max * max(beyond)


def _rate(prior, errors, noise, distance):
    """
    Rate at which errors grow: prior (PRIOR_DF degrees of freedom) pooled with back-tests. Returns rate, df.

    Square of the rate = sum(error^2 - noise^2) / sum(distance^2): long distances count most, so that noise over a
    short one is not taken for a fault of the law. Back-tests share most of their runs: each counts half.
    """
    own, weight = 0.0, 0.5 * len(errors)
    if errors:
        excess = float(np.sum(np.square(errors)) - np.sum(np.square(noise)))
        own = max(0.0, excess) / float(np.sum(np.square(distance)))
    df = PRIOR_DF + weight
    return float(np.sqrt((PRIOR_DF * prior**2 + weight * own) / df)), df


def skill_of(backtests, parametric, isoflop, table):
    """
    The Skill of a fit: noise, and extrapolation error from its back-tests with RATE_LOSS and RATE_N as the prior.

    What statistics explain (se_ln; for N_opt, sigma_n of both the measured and the predicted optimum) is taken off the
    square of an error before the rest is put down to the law.

    Parameters
    ----------
    backtests : list of dict
        Rows of backtest().
    parametric : ParametricFit
        Its scatter of ln L is the noise of a run, 0.5% where it is refused.
    isoflop : IsoflopFit
        The widths of its optima, or their scatter about the line if that is larger, are the noise of an optimum.
    table : Table
    """
    sigma = DEFAULT_SIGMA if parametric.sigma is None else parametric.sigma
    widths = []
    for budget in isoflop.budgets:
        if budget.status == "ok" and budget.ci:
            low, high = budget.ci["n_opt"]
            widths.append(np.log(high / low) / 3.92)
    sigma_n = float(np.median(widths)) if widths else DEFAULT_SIGMA_N
    sigma_n = max(sigma_n, isoflop.scatter or 0.0)

    errors, noise, distance = [], [], []
    for row in backtests:
        if row["error_ln"] is not None and row["method"] != "envelope":
            errors.append(row["error_ln"])
            noise.append(sigma if row["se_ln"] is None else row["se_ln"])
            distance.append(max(row["log_distance"], 0.0) + HEAD_START)
    rate, df = _rate(RATE_LOSS, errors, noise, distance)
    misses, distance = [], []
    for row in backtests:
        if row["n_opt_actual"] and row["n_opt"]:
            misses.append(float(np.log(row["n_opt_actual"] / row["n_opt"])))
            distance.append(max(row["log_distance"], 0.0) + HEAD_START)
    rate_n, _ = _rate(RATE_N, misses, [1.414 * sigma_n] * len(misses), distance)
    t = STUDENT_T[max(k for k in STUDENT_T if k <= df)]
    n_range = (float(table.n.min()), float(table.n.max()))
    d_range = (float(table.d.min()), float(table.d.max()))
    return Skill(sigma, sigma_n, rate, rate_n, t, len(errors), float(table.c.max()), n_range, d_range)


# ----- predictions -----


def _ours(predictors):
    """The predictors of this fit's own methods: no variants (isoflop:parabola), no published laws."""
    return [p for p in predictors if ":" not in p.name]


def _quantity(point, draws, half=None):
    """{point, ci95, pi95}; pi95 never narrower than ci95."""
    point = float(point)
    out = {"point": point, "ci95": percentiles(draws), "pi95": None}
    if half is not None and out["ci95"] is not None:
        low, high = point * np.exp(-half), point * np.exp(half)
        ci_low, ci_high = out["ci95"]
        out["pi95"] = (min(low, ci_low), max(high, ci_high or high))
    return out


def _sd_ln(draws):
    """Standard deviation of ln draws from the middle 68%, which a few runaway resamples cannot spoil."""
    if draws is None:
        return 0.0
    low, high = np.percentile(np.log(draws), (15.87, 84.13))
    return float(0.5 * (high - low))


def _column(draws):
    """The draws (B,) at the first of the points that (B, points) were asked for."""
    return None if draws is None else np.asarray(draws)[:, 0]


def _spread(values):
    """Between-method standard deviation of ln values (0 for one method)."""
    logs = [np.log(float(value)) for value in values if np.isfinite(value)]
    return float(np.std(logs, ddof=1)) if len(logs) > 1 else 0.0


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # an open end of an interval is None, not a warning
def predict(predictors, budgets=(), sizes=(), targets=(), runs=None, skill=None, cost=SIX_ND, variants=()):
    """
    Answers to every question.

    Parameters
    ----------
    predictors : list of predictors
    budgets, sizes, targets : lists of float
        FLOPs, parameters and losses to predict at.
    runs : Table, optional
        Runs whose loss to predict.
    skill : Skill, optional
        Without it there is no pi95.
    cost : Cost
        What a run of N and D costs.
    variants : list of predictors
        Asked for the optimum at the budgets only.

    Returns
    -------
    {flops, params, target_loss, runs: rows}, and Refusals of targets below a method's floor
    """
    target_rows, refusals = predict_target(predictors, targets, skill)
    rows = {
        "flops": predict_flops([*predictors, *variants], budgets, skill),
        "params": predict_params(predictors, sizes, skill, cost),
        "target_loss": target_rows,
        "runs": [],
    }
    if runs is not None:
        rows["runs"] = predict_runs(predictors, runs, skill, cost)
    return rows, refusals


def predict_flops(predictors, budgets, skill):
    """Rows of predictions.flops: n_opt, d_opt, tokens_per_param and loss at each budget, by each method."""
    rows = []
    for c in budgets:
        spread_n = spread_loss = 0.0
        if skill is not None:
            spread_n = _spread([p.optimum(c)[0] for p in _ours(predictors)])
            spread_loss = _spread([p.least_loss(c) for p in _ours(predictors) if p.has_least_loss])
        for p in predictors:
            row = {"flops": float(c), "method": p.name, **_optimum_at(p, float(c), skill, spread_n), "loss": None}
            if p.has_least_loss:
                row["loss"] = _least_loss_at(p, float(c), skill, spread_loss)
            row["log_distance"] = None if skill is None else float(np.log(c / skill.c_max))
            rows.append(row)
    return rows


def _optimum_at(predictor, c, skill, spread):
    """n_opt, d_opt and tokens_per_param of one method at compute c."""
    n, d = predictor.optimum(c)
    n, d = float(n), float(d)
    drawn_n = drawn_d = ratio = half = twice = None
    drawn = predictor.optimum(np.array([c]), draws=True)
    if drawn is not None:
        drawn_n, drawn_d = _column(drawn[0]), _column(drawn[1])
        ratio = drawn_d / drawn_n
        if skill is not None:
            half = skill.half_n(_sd_ln(drawn_n), c, spread)
            twice = 2 * half
    return {
        "n_opt": _quantity(n, drawn_n, half),
        "d_opt": _quantity(d, drawn_d, half),
        "tokens_per_param": _quantity(d / n, ratio, twice),
    }


def _least_loss_at(predictor, c, skill, spread):
    """The least loss of one method at compute c."""
    drawn, half = _column(predictor.least_loss(np.array([c]), draws=True)), None
    if drawn is not None and skill is not None:
        half = skill.half_loss(_sd_ln(drawn), c, spread)
    return _quantity(predictor.least_loss(c), drawn, half)


def predict_params(predictors, sizes, skill, cost):
    """Rows of predictions.params: the tokens for which a model of n parameters is compute-optimal."""
    rows = []
    for n in map(float, sizes):
        spread = 0.0
        if skill is not None:
            spread = _spread([p.tokens_for(n) for p in _ours(predictors)])
        for p in predictors:
            d, drawn = float(p.tokens_for(n)), _column(p.tokens_for(np.array([n]), draws=True))
            c = float(cost.flops(n, d))
            ratio = half = None
            if drawn is not None:
                ratio = drawn / n
            if drawn is not None and skill is not None:
                # an error e of ln N_opt(C) moves the C at which n is best by e / a, and D with it
                a = np.log(p.optimum(c * 1.01)[0] / p.optimum(c)[0]) / np.log(1.01)
                half = float(skill.half_n(_sd_ln(drawn) * a, c, spread * a) / a)
            row = {"params": n, "method": p.name, "flops": c, "d_opt": _quantity(d, drawn, half)}
            row["tokens_per_param"] = _quantity(d / n, ratio, half)
            rows.append(row)
    return rows


def _crossing(c, curve, level):
    """The first C at which a curve over C comes down to `level`, interpolated in ln C; None where it never does."""
    at = np.flatnonzero(curve <= level)
    if not len(at):
        return None
    i = max(int(at[0]), 1)
    share = (curve[i - 1] - level) / (curve[i - 1] - curve[i]) if curve[i - 1] > level else 0.0
    return float(np.exp(np.log(c[i - 1]) + share * np.log(c[i] / c[i - 1])))


def predict_target(predictors, targets, skill):
    """Rows of predictions.target_loss (compute, n_opt and d_opt for a loss), and Refusals below a method's floor."""
    rows, refusals = [], []
    for target in map(float, targets):
        for p in predictors:
            if not p.has_least_loss:
                continue
            c = float(np.ravel(p.compute_for(target))[0])
            if LOWEST_FLOPS < c < HIGHEST_FLOPS:
                rows.append({"target_loss": target, "method": p.name, **_compute_for(p, target, c, skill)})
                continue
            why = f"{p.name} never reaches a loss of {target:g}, or not below {HIGHEST_FLOPS:g} FLOPs"
            refusals.append(Refusal(f"{p.name}.target_loss", "below_floor", why))
    return rows, refusals


def _compute_for(predictor, target, c, skill):
    """flops, n_opt and d_opt of one method for a target loss, which it reaches at compute c."""
    draws = _column(predictor.compute_for(np.array([target]), draws=True))
    n, d = predictor.optimum(c)
    if draws is None or skill is None:
        return {"flops": _quantity(c, None), "n_opt": _quantity(n, None), "d_opt": _quantity(d, None)}
    # pi95 of C: where the ends of the loss's pi95, as functions of C, come down to the target
    grid = np.exp(np.linspace(np.log(c) - 20, np.log(c) + 30, 2001))
    se = _sd_ln(_column(predictor.least_loss(np.array([c]), draws=True)))
    level, half = np.log(predictor.least_loss(grid)), skill.half_loss(se, grid)
    ends = [_crossing(grid, level + sign * half, np.log(target)) for sign in (-1, 1)]
    ci = percentiles(draws)
    out = {"flops": {"point": c, "ci95": ci, "pi95": ends}}

    # N* and D*: every draw at its own compute; where the draws of optimum and loss are not the same resamples, at ci's
    aligned = predictor.optimum(np.array([c]), draws=True)[0].shape[0] == len(draws)
    each = predictor.optimum(draws[:, None], draws=True) if aligned else None
    wide = float(skill.half_n(0.0, c))
    for i, (key, point) in enumerate((("n_opt", n), ("d_opt", d))):
        at = [None if end is None else float(predictor.optimum(end)[i]) for end in (*ci, *ends)]
        low, high = at[2:]
        if low is not None:
            low *= np.exp(-wide)
        if high is not None:
            high *= np.exp(wide)
        ci_of_key = percentiles(_column(each[i])) if aligned else at[:2]
        out[key] = {"point": float(point), "ci95": ci_of_key, "pi95": [low, high]}
    return out


def equivalent_compute(loss_at, n, d, measured, cost):
    """C at which loss_at(N, D) expects the measured loss, at this run's D/N, over the run's C; None out of reach."""
    scales = np.exp(np.linspace(-3.0, 3.0, 1201))  # of N and of D
    expected = np.asarray(loss_at(n * scales, d * scales))
    if measured > expected[0]:
        return None
    return _crossing(cost.flops(n * scales, d * scales) / cost.flops(n, d), expected, measured)


def run_row(run_id, n, d, method, loss, measured, equivalent):
    """A row of predictions.runs. loss : {point, ci95, pi95}. measured : the run's loss, nan where it is not known.

    equivalent : measured loss -> equivalent_compute() of this run.
    """
    actual = float(measured) if np.isfinite(measured) else None
    row = {"run_id": str(run_id), "n": n, "d": d, "method": method, "loss": loss, "actual": actual}
    if actual is not None:
        row |= {"error_nats": actual - loss["point"], "equivalent_compute": equivalent(actual)}
        for key in ("ci95", "pi95"):
            ends = loss[key]
            row[f"in_{key}"] = None if ends is None else bool(ends[0] <= actual <= ends[1])
    return row


def predict_runs(predictors, table, skill, cost):
    """Rows of predictions.runs: the loss of given (N, D), with the actual loss and whether each interval held it."""
    rows = []
    for i in range(len(table.n)):
        n, d = float(table.n[i]), float(table.d[i])
        for p in predictors:
            if not p.has_loss:
                continue
            drawn, half = _column(p.loss_at(np.array([n]), np.array([d]), draws=True)), None
            if drawn is not None and skill is not None:
                half = skill.half_loss(_sd_ln(drawn), skill.reach(n, d, float(cost.flops(n, d))))
            loss = _quantity(p.loss_at(n, d), drawn, half)
            equivalent = functools.partial(equivalent_compute, p.loss_at, n, d, cost=cost)
            rows.append(run_row(table.run_id[i], n, d, p.name, loss, table.loss[i], equivalent))
    return rows


# ----- what a parametric fit says of the optimum -----


def flatness(law, budgets, cost, sigma):
    """
    How flat the loss is about the optimum of each budget.

    Returns
    -------
    list of dict: n_low and n_high, the range of N within one noise standard deviation (or 0.1%) of the least loss, and
    the loss paid, in nats, for a model 2x or 4x too small or too large.
    """
    rows = []
    steps = np.linspace(-8, 8, 4001)
    for c in budgets:
        n, d = law.optimum(c, cost)
        best = float(law.loss(n, d))
        sizes = n * np.exp(steps)
        excess = law.loss(sizes, cost.tokens(sizes, c)) - best
        tolerance = best * max(sigma, 0.001)
        within = sizes[excess <= tolerance]
        row = {"flops": float(c), "n_opt": float(n), "tolerance_nats": tolerance}
        row |= {"n_low": float(within[0]), "n_high": float(within[-1])}
        for factor in (2, 4):
            smaller, larger = n * (1 / factor), n * factor
            row[f"cost_{factor}x"] = {
                "smaller": float(law.loss(smaller, cost.tokens(smaller, c)) - best),
                "larger": float(law.loss(larger, cost.tokens(larger, c)) - best),
            }
        rows.append(row)
    return rows


def missed_budget(law, budgets):
    """
    How far a law lies from the least measured loss of the largest budget, as a sentence, or "" where it fits.

    A parametric fit that misses the largest budget misses by more at the next one, and its own ci95, which takes the
    law as true, can't show it. Misses count from MISS half-widths of that budget's ci95 and from half a percent on.
    """
    known = [budget for budget in budgets if budget.status == "ok" and "loss" in budget.ci]
    if not known:
        return ""
    last = max(known, key=lambda budget: budget.flops)
    miss = float(law.loss(last.n_opt, last.d_opt)) / last.loss - 1
    half = (last.ci["loss"][1] - last.ci["loss"][0]) / 2 / last.loss
    if abs(miss) < max(MISS * half, 0.005):
        return ""
    side = "above" if miss > 0 else "below"
    return (
        f"the fit lies {abs(miss):.1%} {side} the least measured loss of the largest budget ({last.flops:.3g} FLOPs), "
        f"{abs(miss) / half:.1f} times its 95% half-width: it will miss the next one by more; "
        "use the isoFLOP prediction"
    )

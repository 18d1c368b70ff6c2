"""
How well a law predicts: back-tests, and predictions with two intervals, one from the data and one from history.

`ci95` says where the law lies if it holds. `pi95` says where a new run would land: run-to-run noise, the spread between
methods, and how wrong the law has been when it was extrapolated come on top, growing with the distance in ln C.
"""

from dataclasses import dataclass

import numpy as np

from isoflop.laws import Law

# How far a law is off as it is extrapolated. On the public sets that we have (Hoffmann's points as read by Besiroglu,
# Kempner's two losses, Gemstones' curves; every fit on the lower budgets against every higher one, 178 forecasts) the
# error of ln L grows in proportion to the distance in ln C, at a root mean square of 0.3%, 0.8% and 0.6% per e-fold of
# compute; 0.6% is their pooled value. The rate of any two sets covers the third (tests/test_fit.py, slow). One's own
# back-tests then move the rate; the prior is worth PRIOR_DF of them.
RATE_LOSS = 0.006  # sd of the error of ln L per e-fold of C
RATE_N = 0.10  # sd of the error of ln N_opt per e-fold: 0.11 to 0.16 on Hoffmann's points, 0.04 to 0.06 on Kempner's
PRIOR_DF = 4.0
HEAD_START = 0.5  # distance counts from half an e-fold inside the largest C: fits are already off at their edge
T975 = {
    4: 2.776,
    5: 2.571,
    6: 2.447,
    7: 2.365,
    8: 2.306,
    9: 2.262,
    10: 2.228,
    12: 2.179,
    15: 2.131,
    20: 2.086,
    30: 2.042,
}
LEVELS = (2.5, 97.5)
MISS = 3.0  # half-widths of a valley's ci95 beyond which a surface is said to miss it


def percentiles(draws, q=LEVELS):
    """Percentiles of a (B,) array as floats, None at an infinite end, or None without draws."""
    if draws is None or len(draws) < 20:
        return None
    out = np.percentile(draws, q, method="inverted_cdf")
    return tuple(float(v) if np.isfinite(v) else None for v in out)


# ----- one face for every method -----


@dataclass(frozen=True)
class Predictor:
    """
    A fitted method as numbers and draws.

    Each function takes x and a flag `draws`, and returns arrays for the point fit or for all resamples
    (leading axis B). None where the method has no such answer.
    """

    name: str
    optimum: object = None  # c -> (n, d)
    frontier: object = None  # c -> least loss
    loss_at: object = None  # n, d -> loss
    compute_for: object = None  # loss -> c
    tokens_for: object = None  # n -> d


def parametric_predictor(fit, cost):
    if fit.law is None:
        return None
    draws = fit.draws and Law(*(np.asarray(v)[:, None] for v in fit.draws.params.values()))

    def of(name, with_cost=True):
        def f(*x, draws=False):
            law = all_draws if draws else fit.law
            return None if law is None else getattr(law, name)(*x, *([cost] if with_cost else []))

        return f

    all_draws = draws
    names = ("optimum", "frontier_loss", "compute_for", "tokens_for")
    opt, frontier, compute, tokens = (of(k) for k in names)
    return Predictor("parametric", opt, frontier, of("loss", False), compute, tokens)


def line_predictor(name, fit, power):
    """IsoflopFit or EnvelopeFit with its compute law (None where that is refused)."""
    if fit.a is None:
        return None
    point = {k: np.array([getattr(fit, k)]) for k in ("a", "ln_k_n", "b", "ln_k_d")}
    drawn = {k: fit.draws[k][:, None] for k in point} if fit.draws else None

    def optimum(c, draws=False):
        v = drawn if draws else point
        if v is None:
            return None
        x = np.log(np.atleast_1d(c))
        out = np.exp(v["ln_k_n"] + v["a"] * x), np.exp(v["ln_k_d"] + v["b"] * x)
        return out if draws else tuple(o.reshape(np.shape(c)) for o in out)

    def tokens_for(n, draws=False):
        v = drawn if draws else point
        if v is None:
            return None
        x = (np.log(np.atleast_1d(n)) - v["ln_k_n"]) / v["a"]
        out = np.exp(v["ln_k_d"] + v["b"] * x)
        return out if draws else out.reshape(np.shape(n))

    if power is None or power.g is None:
        return Predictor(name, optimum, None, None, None, tokens_for)

    def of(f):
        def g(x, draws=False):
            if not draws:
                return f(power.E, power.k, power.g, x)
            return f(*(power.draws[k][:, None] for k in "Ekg"), x) if power.draws else None

        return g

    def inverse(e, k, g, y):
        gap = np.asarray(y, float) - e
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return np.where(gap > 0, (k / np.where(gap > 0, gap, 1.0)) ** (1 / g), np.inf)

    frontier = of(lambda e, k, g, c: e + k * np.asarray(c, float) ** -g)
    return Predictor(name, optimum, frontier, None, of(inverse), tokens_for)


def published_predictor(name, law):
    def of(f):
        return lambda *x, draws=False: None if draws else f(*x)

    return Predictor(
        name, of(law.optimum), of(law.frontier_loss), of(law.loss), of(law.compute_for), of(law.tokens_for)
    )


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
    c_max: float
    n_range: tuple = (0.0, np.inf)
    d_range: tuple = (0.0, np.inf)

    def distance(self, c):
        return np.maximum(0.0, np.log(c) - np.log(self.c_max) + HEAD_START)

    def half_loss(self, se, c, spread=0.0):
        """Half-width of pi95 in ln L."""
        return self.t * np.sqrt(se**2 + self.sigma**2 + spread**2 + (self.rate * self.distance(c)) ** 2)

    def half_n(self, se, c, spread=0.0):
        """Half-width of pi95 in ln N_opt."""
        return self.t * np.sqrt(se**2 + self.sigma_n**2 + spread**2 + (self.rate_n * self.distance(c)) ** 2)


def _rate(prior, errors, noise, distance):
    """
    Rate at which errors grow: prior (PRIOR_DF degrees of freedom) pooled with back-tests. Returns rate, df.

    Square of the rate = sum(error^2 - noise^2) / sum(distance^2): long distances count most, so that noise over a
    short one is not taken for a fault of the law. Back-tests share most of their runs: each counts half.
    """
    m, total = 0.5 * len(errors), float(np.sum(np.square(distance)))
    own = max(0.0, float(np.sum(np.square(errors)) - np.sum(np.square(noise)))) / total if m else 0.0
    return float(np.sqrt((PRIOR_DF * prior**2 + m * own) / (PRIOR_DF + m))), PRIOR_DF + m


def skill(rows, sigma, sigma_n, table):
    """
    Noise and extrapolation error from back-tests `rows`, with RATE_LOSS and RATE_N as the prior.

    What statistics explain (se_ln; for N_opt, sigma_n of both the measured and the predicted optimum) is taken off the
    square of an error before the rest is put down to the law.
    """

    def far(r):
        return max(r["log_distance"], 0.0) + HEAD_START

    loss = [r for r in rows if r["error_ln"] is not None and r["method"] != "envelope"]
    noise = [sigma if r["se_ln"] is None else r["se_ln"] for r in loss]
    rate, df = _rate(RATE_LOSS, [r["error_ln"] for r in loss], noise, [far(r) for r in loss])
    size = [r for r in rows if r["n_opt_actual"] and r["n_opt"]]
    miss = [float(np.log(r["n_opt_actual"] / r["n_opt"])) for r in size]
    rate_n, _ = _rate(RATE_N, miss, [1.414 * sigma_n] * len(miss), [far(r) for r in size])
    t = T975[max(k for k in T975 if k <= df)]
    ends = [(float(v.min()), float(v.max())) for v in (table.n, table.d)]
    return Skill(sigma, sigma_n, rate, rate_n, t, len(loss), float(table.c.max()), *ends)


# ----- predictions -----


def _quantity(point, draws, half=None):
    """{point, ci95, pi95}; pi95 never narrower than ci95."""
    point = float(point)
    out = {"point": point, "ci95": percentiles(draws), "pi95": None}
    if half is not None and out["ci95"] is not None:
        low, high = point * np.exp(-half), point * np.exp(half)
        out["pi95"] = (min(low, out["ci95"][0]), max(high, out["ci95"][1] or high))
    return out


def _sd_ln(draws):
    """Standard deviation of ln draws from the middle 68%, which a few runaway resamples cannot spoil."""
    if draws is None:
        return 0.0
    low, high = np.percentile(np.log(draws), (15.87, 84.13))
    return float(0.5 * (high - low))


def _column(draws, i=0):
    return None if draws is None else np.asarray(draws)[:, i]


def _spread(values):
    """Between-method standard deviation of ln values (0 for one method)."""
    values = [np.log(float(v)) for v in values if v is not None and np.isfinite(v)]
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def predict_flops(faces, budgets, skill):
    """Rows of predictions.flops: n_opt, d_opt, tokens_per_param and loss at each budget, by each method."""
    out = []
    for c in budgets:
        x, ours = np.array([float(c)]), [f for f in faces if skill and ":" not in f.name]
        spread_n = _spread([f.optimum(c)[0] for f in ours])
        spread_l = _spread([f.frontier(c) for f in ours if f.frontier])
        for f in faces:
            n, d = (float(v) for v in f.optimum(float(c)))
            drawn = f.optimum(x, draws=True)
            dn, dd = (None, None) if drawn is None else (_column(v) for v in drawn)
            half = None if dn is None or skill is None else skill.half_n(_sd_ln(dn), c, spread_n)
            ratio = None if dn is None else dd / dn
            row = {
                "flops": float(c),
                "method": f.name,
                "n_opt": _quantity(n, dn, half),
                "d_opt": _quantity(d, dd, half),
            }
            row["tokens_per_param"] = _quantity(d / n, ratio, half and 2 * half)
            row["loss"] = None
            if f.frontier:
                dl = _column(f.frontier(x, draws=True)) if dn is not None else None
                half = None if dl is None or skill is None else skill.half_loss(_sd_ln(dl), c, spread_l)
                row["loss"] = _quantity(f.frontier(float(c)), dl, half)
            row["log_distance"] = float(np.log(c / skill.c_max)) if skill else None
            out.append(row)
    return out


def predict_params(faces, sizes, skill, cost):
    """Rows of predictions.params: the tokens for which a model of n parameters is compute-optimal."""
    out = []
    for n in sizes:
        x = np.array([float(n)])
        spread = _spread([f.tokens_for(float(n)) for f in faces if ":" not in f.name]) if skill else 0
        for f in faces:
            d, draws = float(f.tokens_for(float(n))), f.tokens_for(x, draws=True)
            draws = _column(draws)
            c = float(cost.flops(n, d))
            half = None
            if draws is not None and skill:
                # an error e of ln N_opt(C) moves the C at which n is best by e / a, and D with it
                a = np.log(f.optimum(c * 1.01)[0] / f.optimum(c)[0]) / np.log(1.01)
                half = float(skill.half_n(_sd_ln(draws) * a, c, spread * a) / a)
            row = {"params": float(n), "method": f.name, "flops": c, "d_opt": _quantity(d, draws, half)}
            row["tokens_per_param"] = _quantity(d / n, None if draws is None else draws / n, half)
            out.append(row)
    return out


def _crossing(c, curve, level):
    """The first C at which a curve over C comes down to `level`, interpolated in ln C; None where it never does."""
    at = np.flatnonzero(curve <= level)
    if not len(at):
        return None
    i = max(int(at[0]), 1)
    share = (curve[i - 1] - level) / (curve[i - 1] - curve[i]) if curve[i - 1] > level else 0.0
    return float(np.exp(np.log(c[i - 1]) + share * np.log(c[i] / c[i - 1])))


def predict_target(faces, targets, skill):
    """Rows of predictions.target_loss: compute, n_opt, d_opt for a loss; and refusals below a method's floor."""
    out, refused = [], []
    for target in targets:
        for f in (f for f in faces if f.compute_for):
            c = float(np.ravel(f.compute_for(float(target)))[0])
            if not np.isfinite(c) or not 1.0 < c < 1e45:
                why = f"the loss {target:g} is at or below the floor that {f.name} sees, or absurdly far"
                refused.append((f"{f.name}.target_loss", "below_floor", why))
                continue
            draws = f.compute_for(np.array([float(target)]), draws=True)
            n, d = (float(v) for v in f.optimum(c))
            row = {"target_loss": float(target), "method": f.name}
            if draws is None or skill is None:
                row |= {k: _quantity(v, None) for k, v in (("flops", c), ("n_opt", n), ("d_opt", d))}
                out.append(row)
                continue
            draws = np.asarray(draws)[:, 0]
            grid = np.exp(np.linspace(np.log(c) - 20, np.log(c) + 30, 2001))
            se = _sd_ln(_column(f.frontier(np.array([c]), draws=True)))
            level, half = np.log(f.frontier(grid)), skill.half_loss(se, grid)
            ends = [_crossing(grid, level + sign * half, np.log(target)) for sign in (-1, 1)]
            ci = percentiles(draws)
            row["flops"] = {"point": c, "ci95": ci, "pi95": ends}
            aligned = f.optimum(np.array([c]), draws=True)[0].shape[0] == len(draws)
            each = f.optimum(draws[:, None], draws=True) if aligned else None  # every draw at its own compute
            for k, point, i in (("n_opt", n, 0), ("d_opt", d, 1)):
                at = [None if e is None else float(f.optimum(e)[i]) for e in (*ci, *ends)]
                wide = float(skill.half_n(0.0, c))
                pi = [at[2] and at[2] * np.exp(-wide), at[3] and at[3] * np.exp(wide)]
                row[k] = {"point": point, "ci95": percentiles(_column(each[i])) if aligned else at[:2], "pi95": pi}
            out.append(row)
    return out, refused


def predict_runs(faces, table, skill, cost):
    """Rows of predictions.runs: the loss of given (N, D), with the actual loss and whether each interval held it."""
    out = []
    for i in range(len(table.n)):
        n, d = float(table.n[i]), float(table.d[i])
        for f in (f for f in faces if f.loss_at):
            drawn = f.loss_at(np.array([n]), np.array([d]), draws=True)
            drawn = _column(drawn)
            half = None
            if drawn is not None and skill:
                c = float(cost.flops(n, d))
                beyond = [c / skill.c_max, n / skill.n_range[1], d / skill.d_range[1]]
                beyond += [skill.n_range[0] / n, skill.d_range[0] / d]
                half = skill.half_loss(_sd_ln(drawn), skill.c_max * max(beyond))
            loss = _quantity(f.loss_at(n, d), drawn, half)
            actual = float(table.loss[i]) if np.isfinite(table.loss[i]) else None
            row = {"run_id": str(table.run_id[i]), "n": n, "d": d, "method": f.name, "loss": loss, "actual": actual}
            if actual is not None:
                row["error_nats"] = actual - loss["point"]
                for k in ("ci95", "pi95"):
                    row[f"in_{k}"] = None if loss[k] is None else bool(loss[k][0] <= actual <= loss[k][1])
            out.append(row)
    return out


def valley(law, budgets, cost, sigma):
    """
    How flat the optimum is: the range of N within one noise standard deviation (or 0.1%) of the least loss, and the
    loss paid for a model 2x or 4x too small or too large, in nats.
    """
    out = []
    t = np.linspace(-8, 8, 4001)
    for c in budgets:
        n, d = law.optimum(c, cost)
        best = float(law.loss(n, d))
        sizes = n * np.exp(t)
        cost_of_size = law.loss(sizes, cost.tokens(sizes, c)) - best
        tol = best * max(sigma, 0.001)
        ok = np.flatnonzero(cost_of_size <= tol)
        row = {"flops": float(c), "n_opt": float(n), "tolerance_nats": tol}
        row |= {"n_low": float(sizes[ok[0]]), "n_high": float(sizes[ok[-1]])}
        for k in (2, 4):
            pay = [float(law.loss(n * f, cost.tokens(n * f, c)) - best) for f in (1 / k, k)]
            row[f"cost_{k}x"] = {"smaller": pay[0], "larger": pay[1]}
        out.append(row)
    return out


def off_the_valley(law, budgets):
    """
    How far the surface lies from the lowest measured loss of the largest budget, as a sentence, or "" where it fits.

    A surface that misses the last valley misses by more at the next budget, and its own ci95, which takes the law as
    true, can't show it. Misses count from MISS half-widths of that valley's ci95 and from half a percent on.
    """
    known = [v for v in budgets if v.status == "ok" and "loss" in v.ci]
    if not known:
        return ""
    v = max(known, key=lambda v: v.flops)
    miss = float(law.loss(v.n_opt, v.d_opt)) / v.loss - 1
    half = (v.ci["loss"][1] - v.ci["loss"][0]) / 2 / v.loss
    if abs(miss) < max(MISS * half, 0.005):
        return ""
    side = "above" if miss > 0 else "below"
    return (
        f"the surface lies {abs(miss):.1%} {side} the measured valley of the largest budget ({v.flops:.3g} FLOPs), "
        f"{abs(miss) / half:.1f} times its 95% half-width: it will miss the next one by more; go by the isoFLOP lines"
    )

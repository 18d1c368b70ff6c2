"""
What a fit found: the dataclass Analysis, fit.json as a dict (to_json), the runs for pictures (to_arrays), and readers.

    analysis = fit.analyse(table, options)
    result = to_json(analysis)
    law, cost = law_of(result)

The readers take what fit.json holds, fresh or loaded from a file; nothing refused passes through them.
"""

from dataclasses import asdict, dataclass

import numpy as np

from isoflop.files import atomic
from isoflop.fit.compare import FamilyEvidence
from isoflop.fit.coupled import CoupledFit
from isoflop.fit.envelope import EnvelopeFit
from isoflop.fit.forecast import Forecast
from isoflop.fit.huber import Refusal
from isoflop.fit.isoflop import IsoflopFit
from isoflop.fit.ladder import returns
from isoflop.fit.outliers import Outliers
from isoflop.fit.parametric import ParametricFit
from isoflop.fit.power_law import PowerLaw
from isoflop.fit.predict import Skill, percentiles, predict_flops
from isoflop.fit.predictors import LawPredictor, LinePredictor
from isoflop.fit.surface import forecast
from isoflop.fit.table import Table
from isoflop.fit.valleys import against_surface
from isoflop.laws import PUBLISHED, Cost, Law

METHODS = {"isoflop": "isoFLOP", "parametric": "parametric", "envelope": "envelope"}  # in the order they are shown
CONVENTIONS = {
    "n_params": "all parameters",
    "n_params_non_embedding": "no embeddings",
    "n_params_matmul": "LM head counted, embeddings not",
}


@dataclass(frozen=True)
class Fits:
    """Every method's fit to one table of runs."""

    cost: Cost
    parametric: ParametricFit  # Hoffmann's law, classical: no weights, no priors
    coupled: CoupledFit  # the law that forecasts
    families: tuple[FamilyEvidence, ...]  # coupled's and others, the best first
    outliers: Outliers  # of the parametric fit
    missed_budget: str  # how the parametric fit misses the largest budget, "" where it does not
    isoflop: IsoflopFit
    expected_bias: dict | None  # of the isoFLOP fit, from isoflop.expected_bias()
    envelope: EnvelopeFit
    least_losses_of: str  # isoflop | envelope | runs (of a ladder): what the compute law is fitted to
    compute_law: PowerLaw  # L = E + k C^-g
    compute_law_without_e: PowerLaw  # L = k C^-g
    kaplan_n: dict[str, PowerLaw]  # L(N), with_E and without_E
    kaplan_d: dict[str, PowerLaw]  # L(D)

    @property
    def refused(self) -> set[str]:
        """The methods that have no answer."""
        answers = {"parametric": self.parametric.law, "isoflop": self.isoflop.a, "envelope": self.envelope.a}
        return {method for method, answer in answers.items() if answer is None}

    @property
    def refusals(self) -> list[Refusal]:
        fits = [self.parametric, self.isoflop, self.envelope, self.compute_law, self.compute_law_without_e]
        fits += [*self.kaplan_n.values(), *self.kaplan_d.values()]
        return [refusal for fit in fits for refusal in fit.refusals]


@dataclass(frozen=True)
class Analysis:
    """The fits, how well they predicted what is known, and their predictions; rows are dicts as in fit.json."""

    table: Table
    fits: Fits
    conventions: list[dict]  # rows of conventions()
    backtests: list[dict]  # rows of backtest()
    forecast_tests: list[dict]  # rows of backtest.multi_step(): the forecast's and the law's, budgets ahead
    skill: Skill
    predictors: list[LawPredictor | LinePredictor]
    budgets: tuple[float, ...]  # FLOPs that were predicted
    forecast: tuple[Forecast, ...]  # of each budget, the one answer
    predictions: dict[str, list[dict]]  # flops, params, target_loss, runs -> rows
    flatness: list[dict]  # rows of flatness()
    compared: bool  # the published laws are among the predictors
    target_loss: tuple[float, ...]  # losses that were asked for
    refusals: tuple[Refusal, ...]


# ----- Analysis -> fit.json -----


def to_json(analysis: Analysis) -> dict:
    """fit.json: plain Python only, without NaN and infinities."""
    fits = analysis.fits
    result = {"input": _input_section(analysis.table, fits)}
    result["forecast"] = [asdict(row) for row in analysis.forecast]
    result["coupled"] = _coupled_section(fits)
    result["families"] = [_family_row(row) for row in fits.families]
    result["parametric"] = _parametric_section(fits)
    result["isoflop"] = _isoflop_section(fits)
    result["envelope"] = _envelope_section(fits.envelope)
    result["compute_law"] = {"frontier": fits.least_losses_of, **_power_section(fits.compute_law)}
    result["compute_law"]["without_E"] = _power_section(fits.compute_law_without_e, ("k", "g"))
    along = fits.compute_law if fits.compute_law.k is not None else fits.compute_law_without_e
    if fits.least_losses_of == "runs" and along.k is not None:
        c, loss = analysis.table.c, analysis.table.loss
        result["compute_law"]["returns"] = returns(along, c.max(), loss.min(), analysis.target_loss)
    result["kaplan"] = {"L_N": _kaplan_section(fits.kaplan_n), "L_D": _kaplan_section(fits.kaplan_d)}
    result["conventions"] = analysis.conventions
    result["backtest"] = analysis.backtests
    result["backtests"] = analysis.forecast_tests
    names = ("sigma", "sigma_n", "rate", "rate_n", "t", "n_tests", "c_max")
    result["skill"] = {name: getattr(analysis.skill, name) for name in names}
    if analysis.compared:
        result["published"] = _published_section()
    result["predictions"] = analysis.predictions
    result["valley"] = analysis.flatness
    result["refusals"] = _refusals(analysis.refusals)
    return clean(result)


def law_to_json(name, law, predictions, refusals) -> dict:
    """The same of a law that was given instead of runs."""
    result = {"law": {"name": name, "source": law.source, "convention": law.convention}}
    result["predictions"] = predictions
    result["refusals"] = _refusals(refusals)
    return clean(result)


def clean(value):
    """Plain Python all the way down; NaN and infinities become None."""
    if isinstance(value, dict):
        return {str(key): clean(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(one) for one in value]
    if isinstance(value, np.ndarray):
        return clean(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, float) and not np.isfinite(value):
        return None
    return value


def _warnings(items):
    return [{"code": one.code, "message": one.message} for one in items]


def _refusals(items):
    return [{"method": one.method, "code": one.code, "message": one.message} for one in items]


def _status(refused, warned):
    if refused:
        return "refused"
    return "warned" if warned else "ok"


def _input_section(table, fits):
    named = []
    for run in fits.outliers.runs:
        i = run.index
        row = {"run_id": str(table.run_id[i]), "row": int(table.row[i]), "n": table.n[i], "d": table.d[i]}
        row |= {"loss": table.loss[i], "residual": run.residual, "mads": run.mads, "top_loss": run.top_loss}
        named.append(row)
    return {**table.info, "cost": {"kappa": fits.cost.kappa, "rho": fits.cost.rho}, "outliers": named}


def _parametric_section(fits):
    fit, cost, warnings = fits.parametric, fits.cost, list(fits.parametric.warnings)
    if fits.missed_budget:
        warnings.append(Refusal("parametric", "misses_the_valley", fits.missed_budget))
    out = {"status": _status(fit.law is None, warnings), "huber_delta": fit.delta, "n_rows": fit.n_rows}
    out["warnings"] = _warnings(warnings)
    if fit.law is None:
        return out
    a, b = fit.law.exponents(cost)
    for name, value in {**fit.law.params, "a": a, "b": b}.items():
        out[name] = {"point": value, "ci95": fit.ci(name, cost)}
    for name in ("A", "B"):
        interval = fit.ci(name)
        if interval is not None:
            interval = tuple(np.log(interval))
        out[f"ln_{name}"] = {"point": np.log(fit.law.params[name]), "ci95": interval}
    if fit.draws is not None:
        out["se"] = {name: float(np.std(values, ddof=1)) for name, values in fit.draws.params.items()}
    for name in ("objective", "starts", "starts_agreeing", "gradient", "condition", "bootstrap"):
        out[name] = getattr(fit, name)
    out["sigma_ln_loss"] = fit.sigma
    for name, (left_out, refit) in fits.outliers.refits.items():
        out[name] = {"left_out": left_out, **refit.law.params, "objective": refit.objective}
    return out


def _coupled_section(fits):
    fit = fits.coupled
    out = {"status": _status(fit.law is None, fit.warnings), "n_rows": fit.n_rows, "warnings": _warnings(fit.warnings)}
    if fit.law is None:
        return out
    a, b = fit.law.exponents(fits.cost)
    for name, value in {**fit.law.params, "a": a, "b": b}.items():
        out[name] = {"point": value, "ci95": fit.ci(name, fits.cost)}
        if name in fit.prior_marks:
            out[name]["prior"] = True  # determined by the prior more than by these runs
    out |= {"family": fit.family, "evidence": fit.evidence, "from_prior": fit.from_prior}
    for name in ("objective", "starts", "starts_agreeing", "gradient", "bootstrap"):
        out[name] = getattr(fit, name)
    return out | {"sigma_ln_loss": fit.sigma}


def _family_row(row):
    out = {"family": row.family, "free": row.free, "behind": row.behind, "leave_one_out_ln": row.leave_one_out}
    return out | {"backtest_rms_ln": row.backtest, "n_backtests": row.n_backtests, **row.law.params}


def _lines(fit):
    """The power laws of N* and D* with their intervals."""
    names = ("a", "b", "ln_k_n", "ln_k_d")
    return {name: {"point": getattr(fit, name), "ci95": percentiles(fit.draws.get(name))} for name in names}


def _isoflop_section(fits):
    fit = fits.isoflop
    out = {"status": _status(fit.a is None, fit.warnings or fit.refusals), "budgets": []}
    for budget, held in zip(fit.budgets, against_surface(fit.budgets, fits.coupled, fits.cost), strict=True):
        row = {"flops": budget.flops, "n_runs": budget.n_runs, "n_opt": budget.n_opt, "d_opt": budget.d_opt}
        row |= {"loss": budget.loss, "status": budget.status, "method": budget.method, "ci95": dict(budget.ci)}
        out["budgets"].append(row | {"over_surface": held})
    if fit.a is not None:
        out |= _lines(fit)
        out |= {"scatter_ln_n": fit.scatter, "all_points_parabola": fit.all_points}
        out |= {"expected_bias": fits.expected_bias, "lowest_runs": fit.lowest_runs}
        out |= {"bias_held": fit.bias_held or None, "curvature_ln_n": fit.curvature or None}
    if fit.exact_line:
        out["exact_line"] = fit.exact_line  # without an interval, also where the power laws are refused
    out["warnings"] = _warnings(fit.warnings)
    return out


def _envelope_section(fit):
    out = {"status": _status(fit.a is None, False), "rule": fit.rule, "ends_dropped": fit.ends_dropped}
    if fit.a is not None:
        out |= _lines(fit)
        out |= {"variants": fit.variants, "points": fit.points}
    return out


def _power_section(fit, names=("E", "k", "g")):
    if fit.k is None:
        return {"status": "refused"}
    out = {"status": "ok"}
    for name in names:
        out[name] = {"point": getattr(fit, name), "ci95": percentiles(fit.draws.get(name))}
    return {**out, "r2": fit.r2, "n_points": fit.n_points}


def _kaplan_section(forms):
    return {"with_E": _power_section(forms["with_E"]), "without_E": _power_section(forms["without_E"], ("k", "g"))}


def _published_section():
    out = {}
    for name, law in PUBLISHED.items():
        a, b = law.exponents()
        out[name] = {"source": law.source, "convention": law.convention, "a": a, "b": b}
    return out


# ----- Analysis -> arrays for the page and the pictures -----


def to_arrays(analysis: Analysis) -> dict:
    """The runs: run_id, n, d, c, loss, budget (index into isoflop's budgets, -1 for none), curve; isoFLOP curves."""
    table = analysis.table
    member = np.full(len(table.n), -1)
    for i, budget in enumerate(analysis.fits.isoflop.budgets):
        member[budget.rows] = i
    arrays = {"run_id": table.run_id, "n": table.n, "d": table.d, "c": table.c, "loss": table.loss}
    arrays |= {"budget": member, "curve": table.curve, "valleys": analysis.fits.isoflop.smooth_curves()}
    if table.c_exact is not None:
        arrays["c_exact"] = table.c_exact
    if table.lr_on_edge is not None:
        arrays["lr_on_edge"] = table.lr_on_edge == 1
    return arrays


def bands(analysis: Analysis, points: int = 40) -> list[dict]:
    """The forecast and this fit's own methods along C, from the smallest run to the farthest prediction."""
    fits, c = analysis.fits, analysis.table.c
    grid = np.geomspace(c.min(), max(*analysis.budgets, 10 * c.max()), points)
    ours = [predictor for predictor in analysis.predictors if predictor.name in METHODS]
    rows = predict_flops(ours, grid, analysis.skill)
    best, _ = forecast(fits.isoflop, fits.coupled, grid, fits.cost, analysis.skill.c_max)
    rows += [{**asdict(row), "method": "forecast"} for row in best]
    return clean(rows)


def write_draws(path, fits: Fits):
    """Every fit's resamples as .npz, the first axis over draws: coupled.alpha, isoflop.a, compute_law.g, ..."""
    found = {}
    for name in ("parametric", "coupled"):
        law = getattr(fits, name).draws
        if law is not None:
            found[name] = law.params
    others = {"isoflop": fits.isoflop, "envelope": fits.envelope, "compute_law": fits.compute_law}
    others |= {"kaplan.L_N": fits.kaplan_n["with_E"], "kaplan.L_D": fits.kaplan_d["with_E"]}
    for name, fit in others.items():
        found[name] = fit.draws or {}
    arrays = {}
    for name, drawn in found.items():
        for key, values in drawn.items():
            arrays[f"{name}.{key}"] = np.asarray(values)
    with atomic(path, "wb") as f:
        np.savez_compressed(f, **arrays)


# ----- readers of fit.json -----


def point(quantity):
    """The value of {point, ci95}, or of a plain number."""
    return quantity.get("point") if isinstance(quantity, dict) else quantity


def section(result, name):
    """A method's section, empty where it was refused or never ran."""
    found = result.get(name) or {}
    return {} if found.get("status") == "refused" else found


def points(result, name, keys):
    """The point values of keys in a section, or None where one is missing."""
    values = [point(section(result, name).get(key)) for key in keys]
    return None if None in values else values


def law_of(result):
    """The parametric law (None if refused) and the cost of runs."""
    cost = Cost(**(result.get("input", {}).get("cost") or {}))
    values = points(result, "parametric", ("E", "A", "B", "alpha", "beta"))
    return None if values is None else Law(*values), cost


def answering_law(result):
    """The law of N and D that answers and its name: the coupled one, else the parametric fit; (None, "") of neither."""
    values = points(result, "coupled", ("E", "A", "B", "alpha", "beta"))
    if values is not None:
        p = points(result, "coupled", ("p",))
        return (Law(*values), "weighted Hoffmann's law") if p is None else (Law(*values, p=p[0]), "coupled law")
    law, _ = law_of(result)
    return law, ("" if law is None else "parametric fit")


def optimum_of(result, method, c):
    """(N*, D*) of a method at compute c, or None."""
    if method == "parametric":
        law, cost = law_of(result)
        return None if law is None else law.optimum(c, cost)
    values = points(result, method, ("a", "ln_k_n", "b", "ln_k_d"))
    if values is None:
        return None
    a, ln_k_n, b, ln_k_d = values
    return np.exp(ln_k_n + a * np.log(c)), np.exp(ln_k_d + b * np.log(c))


def budgets_of(result, with_optimum=False):
    """The isoFLOP budgets, all or those that have an optimum."""
    every = (result.get("isoflop") or {}).get("budgets") or []
    return [budget for budget in every if budget["n_opt"] is not None or not with_optimum]


def rows_of(result, question, every=False):
    """Rows of predictions by methods not refused; every=True adds variants (isoflop:parabola) and published laws."""
    order, found = list(METHODS), []
    for row in (result.get("predictions") or {}).get(question) or []:
        family = row["method"].split(":")[0]
        if family == "forecast":
            shown, rank = True, -1
        elif family in METHODS:
            shown = bool(section(result, family)) and (every or row["method"] in METHODS)
            rank = order.index(family)
        else:
            shown, rank = every, len(order)
        if shown:
            found.append((rank, row))
    return [row for _, row in sorted(found, key=lambda pair: pair[0])]


def convention(result):
    """How N is counted: "N = n_params (all parameters)"."""
    name = result.get("input", {}).get("n_convention") or "N"
    return f"N = {name} ({CONVENTIONS[name]})" if name in CONVENTIONS else f"N = {name}"


def why_not(result, method):
    """The reason that a method has no answer; the refusals have it at length."""
    for refusal in result.get("refusals") or []:
        if refusal["method"] == method:
            return f"{method} was refused: {refusal['code']}"
    return f"there is no {method} fit"

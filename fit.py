"""
Scaling laws from anyone's CSV of training runs, with intervals, back-tests and refusals.

    python fit.py sweep_results/runs.csv
    python fit.py runs.csv --predict_flops 1e20 1e21 --predict_params 1e9 --target_loss 2.5 --compare
    python fit.py --law hoffmann --predict_flops 5.76e23
    python fit.py --simulate E=1.69,A=406.4,B=410.7,alpha=0.34,beta=0.28 --noise 0.005 --budgets 1e18 3e18 1e19 3e19
    python fit.py --selftest

Needs a loss and two of N (parameters), D (tokens) and C (FLOPs); see runs.py. Writes fit.json, prediction.md and
pictures to --out_dir. From Python: `run(paths, out_dir)`, or the estimators `fit_parametric`, `fit_isoflop`,
`fit_envelope` and `fit_power_law` on arrays.
"""

import argparse
import json
import os
import sys
import tempfile
import types
from dataclasses import dataclass, field, fields  # noqa: E402

import numpy as np  # noqa: E402

from isoflop import laws
from isoflop.fit import backtest, predict, report
from isoflop.fit import table as runs_io
from isoflop.fit.envelope import fit_envelope
from isoflop.fit.huber import DELTA, RESAMPLES
from isoflop.fit.isoflop import BUDGET_TOL, fit_isoflop, parabola_bias
from isoflop.fit.parametric import OUTLIER_MADS, fit_parametric
from isoflop.fit.power_law import fit_kaplan, fit_power_law
from isoflop.fit.predict import percentiles
from isoflop.laws import cost_of


def opt(default, help, **kw):
    """A dataclass field that is also a flag: its default and help are written here and nowhere else."""
    return field(default=default, metadata={"help": help, **kw})


def whole(text):
    """An integer that may be written 5e3."""
    value = float(text)
    if value != int(value):
        raise ValueError(text)
    return int(value)


@dataclass(frozen=True)
class Options:
    """What can be asked of a fit; one flag per field."""

    n_col: str | None = opt(None, "column with N (default: by the usual names, n_params_matmul first)")
    d_col: str | None = opt(None, "column with D")
    c_col: str | None = opt(None, "column with C")
    loss_col: str | None = opt(None, "column with the loss, nats per token")
    loss_se_col: str | None = opt(None, "column with a standard error of the loss; weights the parametric fit")
    where: tuple = opt((), "keep rows where 'column op value' holds (repeatable)", action="append", metavar="EXPR")
    exclude_flops_above: float | None = opt(None, "leave out runs that cost more FLOPs than this", type=float)
    drop_top_loss: int = opt(0, "leave out this many runs with the highest loss", type=whole, metavar="K")
    huber_delta: float = opt(DELTA, "Huber threshold on ln L in the parametric fit", type=float)
    bootstrap: int = opt(RESAMPLES, "resamples for the intervals; 0 for none", type=whole)
    seed: int = opt(0, "seed of the resampling", type=whole)
    budget_tol: float = opt(BUDGET_TOL, "runs within this ratio of one C share a budget", type=float)
    isoflop_method: str = opt("local", "how a budget's minimum is found", choices=("local", "akima", "parabola"))
    envelope_rule: str = opt("hull", "which points of the training curves are their envelope", choices=("hull", "bins"))
    envelope_keep_ends: bool = opt(False, "keep envelope points of the smallest and largest model", action="store_true")
    predict_flops: tuple = opt(
        (), "predict N*, D* and loss at these budgets (default: the largest and 10x it)", nargs="+"
    )
    predict_params: tuple = opt((), "tokens for which models of these sizes are compute-optimal", nargs="+")
    target_loss: tuple = opt((), "compute, N* and D* for these losses", nargs="+")
    predict_runs: str | None = opt(None, "file of (N, D) rows whose loss to predict", metavar="FILE")
    compare: bool = opt(False, "put the published laws beside ours", action="store_true")

    def check(self):
        """ValueError naming the first flag whose value makes no sense."""
        for name, low, high in (("huber_delta", 0, np.inf), ("budget_tol", 0, 1), ("exclude_flops_above", 0, np.inf)):
            v = getattr(self, name)
            if v is not None and not low < v <= high:
                raise ValueError(f"--{name} {v:g}: must be above {low}{f' and at most {high}' if high < 9 else ''}")
        for name in ("bootstrap", "drop_top_loss", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"--{name} {getattr(self, name)}: must not be negative")
        if 0 < self.bootstrap < 100:
            raise ValueError(f"--bootstrap {self.bootstrap}: an interval needs 100 resamples or more; 0 for none")
        for name in ("predict_flops", "predict_params", "target_loss"):
            for v in getattr(self, name):
                if not 0 < v < 1e60:
                    raise ValueError(f"--{name} {v:g}: must be a positive, finite number")


# ----- the fits, as fit.json's sections -----


def notes(items):
    return [{"code": w.code, "message": w.message} for w in items]


def parametric_section(fit, cost):
    """ParametricFit -> the `parametric` section."""
    out = {"status": "refused" if fit.law is None else "warned" if fit.warnings else "ok"}
    out |= {"huber_delta": fit.delta, "n_rows": fit.n_rows, "warnings": notes(fit.warnings)}
    if fit.law is not None:
        points = {**fit.law.params, **dict(zip("ab", fit.law.exponents(cost), strict=True))}
        out |= {k: {"point": v, "ci95": fit.ci(k, cost)} for k, v in points.items()}
        for k in "AB":
            interval = fit.ci(k)
            out[f"ln_{k}"] = {"point": np.log(points[k]), "ci95": interval and tuple(np.log(interval))}
        if fit.draws is not None:
            out["se"] = {k: float(np.std(v, ddof=1)) for k, v in fit.draws.params.items()}
        names = ("objective", "starts", "starts_agreeing", "gradient", "condition", "bootstrap")
        out |= {k: getattr(fit, k) for k in names} | {"sigma_ln_loss": fit.sigma}
    return out


def outliers(table, fit, refit):
    """
    Runs more than OUTLIER_MADS median absolute deviations (and 0.01%) off the law, and the law without them.

    Where the k highest losses are all outliers, the law without just these is shown too: a high-loss corner is the
    usual culprit, and --drop_top_loss k is the remedy that others can repeat.
    """
    r = np.abs(fit.residuals - np.median(fit.residuals))
    mads = r / max(np.median(r), 1e-300)
    bad = (mads > OUTLIER_MADS) & (r > 1e-4)
    rank = np.argsort(-table.loss, kind="stable")
    corner = int(np.argmin(bad[rank])) if bad.any() else 0
    top = set(rank[:corner].tolist())
    named = [
        {"run_id": str(table.run_id[i]), "row": int(table.row[i]), "n": table.n[i], "d": table.d[i]}
        | {"loss": table.loss[i], "residual": fit.residuals[i], "mads": mads[i], "top_loss": i in top}
        for i in np.flatnonzero(bad)[np.argsort(-mads[bad])][:100]
    ]
    without = {}
    for name, gone in (("without_outliers", bad), ("without_top_loss", np.isin(np.arange(len(bad)), rank[:corner]))):
        if gone.any() and (name == "without_outliers" or gone.sum() != bad.sum()):
            other = refit(~gone)
            if other.law is not None:
                without[name] = {"left_out": int(gone.sum()), **other.law.params, "objective": other.objective}
    return named, without


def isoflop_section(fit, bias):
    """IsoflopFit -> the `isoflop` section."""
    out = {"status": "refused" if fit.a is None else "warned" if fit.warnings or fit.refusals else "ok"}
    out["budgets"] = [
        {"flops": v.flops, "n_runs": v.n_runs, "n_opt": v.n_opt, "d_opt": v.d_opt, "loss": v.loss, "status": v.status}
        | {"method": v.method, "ci95": dict(v.ci)}
        for v in fit.budgets
    ]
    if fit.a is not None:
        out |= {
            k: {"point": getattr(fit, k), "ci95": percentiles(fit.draws.get(k))} for k in ("a", "b", "ln_k_n", "ln_k_d")
        }
        out |= {"scatter_ln_n": fit.scatter, "all_points_parabola": fit.all_points, "expected_bias": bias}
        out["lowest_runs"] = fit.lowest_runs
    return out | {"warnings": notes(fit.warnings)}


def envelope_section(fit):
    """EnvelopeFit -> the `envelope` section."""
    out = {"status": "refused" if fit.a is None else "ok", "rule": fit.rule, "ends_dropped": fit.ends_dropped}
    if fit.a is not None:
        out |= {
            k: {"point": getattr(fit, k), "ci95": percentiles(fit.draws.get(k))} for k in ("a", "b", "ln_k_n", "ln_k_d")
        }
        out |= {"variants": fit.variants, "points": fit.points}
    return out


def power_section(fit, with_e=True):
    """PowerLaw -> {E, k, g, r2, n_points} or the refusal."""
    if fit.k is None:
        return {"status": "refused"}
    out = {
        k: {"point": getattr(fit, k), "ci95": percentiles(fit.draws.get(k))}
        for k in ("E", "k", "g")
        if with_e or k != "E"
    }
    return {"status": "ok", **out, "r2": fit.r2, "n_points": fit.n_points}


def kaplan_section(table, o, refusals):
    """L(N) and L(D) in Kaplan et al.'s form, with and without E."""
    out = {}
    for name, x in (("L_N", table.n), ("L_D", table.d)):
        fits = fit_kaplan(x, table.loss, o.bootstrap, o.seed, f"kaplan.{name}")
        refusals += [r for fit in fits.values() for r in fit.refusals]
        out[name] = {form: power_section(fit, form == "with_E") for form, fit in fits.items()}
    return out


# ----- one fit from files to fit.json -----


def run(paths, out_dir=None, plots=False, **options):
    """
    Fit everything to the runs in `paths` and write fit.json (and, through report.py, prediction.md and pictures).

    Parameters
    ----------
    paths : list of str
        CSV, JSON or JSON-lines files.
    out_dir : str, optional
        Where to write; default fit/ beside the first file.
    plots : bool
        Also draw the pictures.
    **options
        Fields of Options.

    Returns
    -------
    dict
        What fit.json holds.

    Raises
    ------
    ValueError
        User mistakes, in one line that names the way out.
    """
    o = Options(**options)
    o.check()
    paths = [os.fspath(p) for p in ([paths] if isinstance(paths, (str, os.PathLike)) else paths)]
    if not paths:
        raise ValueError("no file given; name a CSV of runs, or use --law, --simulate or --selftest")
    columns = {"n": o.n_col, "d": o.d_col, "c": o.c_col, "loss": o.loss_col, "loss_se": o.loss_se_col}
    table = runs_io.read(paths, columns, o.where, o.exclude_flops_above, o.drop_top_loss)
    result, arrays = analyse(table, o, plots)
    arrays["scores"] = runs_io.scores(paths) if plots else {}
    write(result, arrays, out_dir or os.path.join(os.path.dirname(os.path.abspath(paths[0])), "fit"), plots)
    return result


def analyse(table, o, plots=False):
    """Table of runs and Options -> (what fit.json holds, arrays that pictures need)."""
    n, d, c, loss = table.n, table.d, table.c, table.loss
    cost = cost_of(n, d, c)
    weights = None
    if o.loss_se_col and table.loss_se is not None:
        se = table.loss_se / loss
        weights = np.clip(np.nanmedian(se) / np.where(se > 0, se, np.nan), 0.1, 10)
        weights = np.where(np.isfinite(weights), weights, 1.0)
        weights /= weights.mean()

    def refit(keep):
        w = weights if weights is None else weights[keep]
        return fit_parametric(n[keep], d[keep], loss[keep], w, o.huber_delta, 0, near=p)

    p = fit_parametric(n, d, loss, weights, o.huber_delta, o.bootstrap, o.seed)
    asked = table.budget if table.budget is not None and (table.budget > 0).all() else None
    i = fit_isoflop(n, d, c, loss, asked, o.budget_tol, o.isoflop_method, o.bootstrap, o.seed)
    e = fit_envelope(table.curve, o.envelope_rule, o.envelope_keep_ends, min(o.bootstrap, 1000), o.seed)
    refusals = [*p.refusals, *i.refusals, *e.refusals]
    result = {"input": {**table.info, "cost": {"kappa": cost.kappa, "rho": cost.rho}, "outliers": []}}
    result["parametric"] = parametric_section(p, cost)
    if p.law is not None:
        result["input"]["outliers"], without = outliers(table, p, refit)
        result["parametric"] |= without
        if missed := predict.off_the_valley(p.law, i.budgets):
            result["parametric"]["warnings"].append({"code": "misses_the_valley", "message": missed})
            result["parametric"]["status"] = "warned"
    bias = parabola_bias(i, p.law, n, d, c, cost) if p.law and i.a is not None else None
    result |= {"isoflop": isoflop_section(i, bias), "envelope": envelope_section(e)}

    ok = [v for v in i.budgets if v.status == "ok"]
    if len(ok) >= 3 or e.a is None:
        source, at, low, draws = "isoflop", [v.flops for v in ok], [v.loss for v in ok], i.draws.get("loss")
    else:
        source, at, low, draws = "envelope", e.points["flops"], e.points["loss"], None
    power, straight = (
        fit_power_law(at, low, draws, offset, f"compute_law.{offset and 'E' or 'no_E'}") for offset in (1, 0)
    )
    refusals += [*power.refusals, *straight.refusals]
    result["compute_law"] = {"frontier": source, **power_section(power), "without_E": power_section(straight, False)}
    result["kaplan"] = kaplan_section(table, o, refusals)
    result["conventions"] = backtest.conventions(table, o.budget_tol, o.huber_delta, o.isoflop_method)

    tests = backtest.backtest(table, o.budget_tol, o.huber_delta, o.isoflop_method, p)
    refused = {m for m, fitted in (("parametric", p.law), ("isoflop", i.a), ("envelope", e.a)) if fitted is None}
    tests = [r for r in tests if r["method"] not in refused]
    result["backtest"] = tests
    faces = [predict.parametric_predictor(p, cost)]
    faces += [predict.line_predictor("isoflop", i, power if source == "isoflop" else None)]
    faces += [predict.line_predictor("envelope", e, power if source == "envelope" else None)]
    faces = [f for f in faces if f]
    sigma = p.sigma if p.sigma is not None else 0.005
    widths = [np.log(v.ci["n_opt"][1] / v.ci["n_opt"][0]) / 3.92 for v in ok if v.ci]
    measured = max(float(np.median(widths)) if widths else 0.1, i.scatter or 0.0)
    skill = predict.skill(tests, sigma, measured, table)
    result["skill"] = {k: getattr(skill, k) for k in ("sigma", "sigma_n", "rate", "rate_n", "t", "n_tests", "c_max")}
    if o.compare:
        faces += [predict.published_predictor(f"published:{k}", v) for k, v in laws.PUBLISHED.items()]
        result["published"] = published_section()
    budgets = o.predict_flops or (skill.c_max, 10 * skill.c_max)
    beside = {"parabola": i.all_points, "lowest_runs": i.lowest_runs} if i.a is not None else {}
    beside = [(f"isoflop:{k}", types.SimpleNamespace(**v, draws={})) for k, v in beside.items() if v]
    beside = [predict.line_predictor(k, v, None) for k, v in beside]
    result["predictions"] = predictions(o, faces, budgets, skill, cost, refusals, beside)
    known = sorted({v.flops for v in ok} | set(budgets))
    result["valley"] = predict.valley(p.law, known, cost, sigma) if p.law else []
    result["refusals"] = [{"method": r.method, "code": r.code, "message": r.message} for r in refusals]
    member = np.full(len(n), -1)
    for k, v in enumerate(i.budgets):
        member[v.rows] = k
    arrays = {"run_id": table.run_id, "n": n, "d": d, "c": c, "loss": loss, "budget": member, "curve": table.curve}
    if table.c_exact is not None:
        arrays["c_exact"] = table.c_exact
    if table.lr_on_edge is not None:
        arrays["lr_on_edge"] = table.lr_on_edge == 1
    if plots:
        grid = np.geomspace(c.min(), max(*budgets, 10 * c.max()), 40)
        arrays["bands"] = clean(predict.predict_flops([f for f in faces if ":" not in f.name], grid, skill))
    return clean(result), arrays


@np.errstate(over="ignore", divide="ignore", invalid="ignore")  # an open end of an interval is null, not a warning
def predictions(o, faces, budgets, skill, cost, refusals, beside=()):
    """The `predictions` section; targets below a method's floor go to refusals."""
    out = {"flops": predict.predict_flops([*faces, *beside], budgets, skill)}
    out["params"] = predict.predict_params(faces, o.predict_params, skill, cost)
    out["target_loss"], refused = predict.predict_target(faces, o.target_loss, skill)
    refusals += [types.SimpleNamespace(method=m, code=k, message=w) for m, k, w in refused]
    out["runs"] = []
    if o.predict_runs:
        columns = {"n": o.n_col, "d": o.d_col, "c": o.c_col, "loss": o.loss_col}
        target = runs_io.read([o.predict_runs], columns, need_loss=False)
        out["runs"] = predict.predict_runs(faces, target, skill, cost)
    return out


def published_section():
    return {
        k: {"source": v.source, "convention": v.convention} | dict(zip("ab", v.exponents(), strict=True))
        for k, v in laws.PUBLISHED.items()
    }


def clean(v):
    """Plain Python all the way down; NaN and infinities become null."""
    if isinstance(v, dict):
        return {str(k): clean(x) for k, x in v.items()}
    if isinstance(v, (list, tuple)):
        return [clean(x) for x in v]
    if isinstance(v, np.ndarray):
        return clean(v.tolist())
    if isinstance(v, np.generic):
        v = v.item()
    return None if isinstance(v, float) and not np.isfinite(v) else v


def write(result, arrays, out_dir, plots):
    """fit.json, atomically (a reader sees the old file or the new one), then what report.py makes of it."""
    try:
        os.makedirs(out_dir, exist_ok=True)
        handle, tmp = tempfile.mkstemp(dir=out_dir, prefix=".fit.json")
    except OSError as e:
        raise ValueError(f"--out_dir {out_dir}: cannot write there ({e.strerror})") from None
    with os.fdopen(handle, "w") as f:
        json.dump(result, f, indent=1, allow_nan=False)
    os.chmod(tmp, 0o644)
    os.replace(tmp, os.path.join(out_dir, "fit.json"))
    report.write(result, arrays, out_dir, plots)


# ----- laws without runs, and runs from laws -----


def from_law(name, o):
    """Predictions of one published or given law, with no CSV."""
    law = laws.parse_law(name)
    faces = [predict.published_predictor(f"published:{name}", law)]
    if not (o.predict_flops or o.predict_params or o.target_loss or o.predict_runs):
        raise ValueError(
            "--law needs something to predict: --predict_flops, --predict_params, --target_loss or --predict_runs"
        )
    refusals = []
    result = {"law": {"name": name, "source": law.source, "convention": law.convention}}
    result["predictions"] = predictions(o, faces, o.predict_flops, None, laws.SIX_ND, refusals)
    result["refusals"] = [{"method": r.method, "code": r.code, "message": r.message} for r in refusals]
    return clean(result)


def simulated(law, budgets, n_sizes, span, noise, seed):
    """A Table of runs drawn from a law on an isoFLOP grid about its own optima."""
    n, d, c = laws.isoflop_grid(law, budgets, n_sizes, span)
    loss = laws.simulate(law, n, d, noise, seed)
    run_id = np.array([f"sim-{k:04d}" for k in range(len(n))], object)
    info = {"files": ["simulated"], "rows_read": len(n), "rows_used": len(n), "dropped": [], "dropped_counts": {}}
    info |= {"columns": {}, "n_convention": "simulated N", "notes": []}
    order = np.lexsort((n, c))
    return runs_io.Table(run_id, n[order], d[order], c[order], loss[order], np.arange(1, len(n) + 1), info=info)


def selftest(out=print):
    """Known laws, with and without noise: truth, estimate, verdict. True when all is well."""
    fine = True
    out(f"{'law':<20} {'noise':>6} {'quantity':<12} {'truth':>11} {'estimate':>11} {'95% interval':>25}  verdict")
    cases = [(k, noise) for k in ("hoffmann", "besiroglu") for noise in (0.0, 0.003, 0.01)]
    for seed, (name, noise) in enumerate(cases):
        law = laws.PUBLISHED[name]
        table = simulated(law, 10.0 ** np.arange(17, 21.5, 0.5), 9, 30.0, noise, seed)
        result, _ = analyse(table, Options(bootstrap=1000, predict_flops=(1e22,)))
        p, i = result["parametric"], result["isoflop"]
        far = {r["method"]: r for r in result["predictions"]["flops"] if ":" not in r["method"]}
        a, (n, d) = law.exponents()[0], law.optimum(1e22)
        rows = (
            [(k, getattr(law, k), p.get(k)) for k in ("E", "A", "B", "alpha", "beta")]
            if p["status"] != "refused"
            else []
        )
        rows += [("a isoflop", a, i.get("a"))]
        rows += [
            (f"{k} {m[:5]}", v, far[m][q])
            for m in far
            for k, v, q in (("N(1e22)", n, "n_opt"), ("D(1e22)", d, "d_opt"))
        ]
        for label, truth, q in rows:
            low, high = q["ci95"]
            # one 95% interval in twenty misses: only a miss by half its width again is a fault; the local parabola
            # has a small bias by construction, the parametric fit has none
            slack = 0.5 * (high - low) + (1e-6 if "iso" not in label else 0.03) * abs(truth)
            good = low - slack <= truth <= high + slack
            fine &= good
            held = low <= truth <= high or abs(q["point"] / truth - 1) < 1e-6
            verdict = "ok" if held else "near" if good else "WRONG"
            interval = f"[{low:.4g}, {high:.4g}]"
            out(f"{name:<20} {noise:>6g} {label:<12} {truth:>11.5g} {q['point']:>11.5g} {interval:>25}  {verdict}")
    out("all recovered" if fine else "SOMETHING IS WRONG")
    return fine


# ----- the terminal -----


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"fit.py: error: {message}\n")


def parse(argv):
    parser = Parser(
        prog="fit.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("paths", nargs="*", metavar="runs.csv", help="CSV, JSON or JSON-lines files of runs")
    parser.add_argument("--out_dir", help="where to write (default: fit/ beside the first file)")
    parser.add_argument("--no_plots", action="store_true", help="no pictures")
    for f in fields(Options):
        kw = dict(f.metadata)
        if "nargs" in kw:
            kw |= {"type": float, "metavar": "X"}
        default = [] if kw.get("action") == "append" else f.default
        parser.add_argument("--" + f.name, default=default, **kw)
    parser.add_argument("--law", help="predict from a published law, or E=..,A=..,B=..,alpha=..,beta=.., with no CSV")
    parser.add_argument("--simulate", metavar="LAW", help="draw runs from a law on a grid and fit them")
    parser.add_argument("--noise", type=float, default=0.005, help="sd of ln L of simulated runs")
    parser.add_argument("--budgets", type=float, nargs="+", metavar="C", help="FLOP budgets of the simulated grid")
    parser.add_argument("--sizes", type=whole, default=9, help="model sizes per simulated budget")
    parser.add_argument("--span", type=float, default=16.0, help="largest over smallest simulated size")
    parser.add_argument("--selftest", action="store_true", help="recover known laws from simulated runs")
    return parser.parse_args(argv)


def main(argv=None):
    args = parse(argv)
    options = {f.name: getattr(args, f.name) for f in fields(Options)}
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    try:
        if args.selftest:
            return 0 if selftest() else 1
        if args.law:
            Options(**options).check()
            print(report.summary(from_law(args.law, Options(**options))))
            return 0
        if args.simulate:
            o = Options(**options)
            o.check()
            law = laws.parse_law(args.simulate)
            grid = args.budgets and min(args.budgets) > 0 and args.sizes > 0 and args.span > 1 and 0 <= args.noise < 1
            if not grid:
                raise ValueError(
                    "--simulate needs --budgets above 0, --sizes from 1, --span above 1 and --noise in 0..1"
                )
            table = simulated(law, args.budgets, args.sizes, args.span, args.noise, o.seed)
            result, arrays = analyse(table, o, bool(args.out_dir) and not args.no_plots)
            print(f"truth       E {law.E:.4g}  alpha {law.alpha:.4g}  beta {law.beta:.4g}  a {law.exponents()[0]:.4g}")
            if args.out_dir:
                write(result, arrays, args.out_dir, not args.no_plots)
        else:
            result = run(args.paths, args.out_dir, not args.no_plots, **options)
    except ValueError as e:
        print(f"fit.py: error: {e}", file=sys.stderr)
        return 2
    print(report.summary(result))
    return 2 if all(result[k]["status"] == "refused" for k in ("parametric", "isoflop", "envelope")) else 0


if __name__ == "__main__":  # before numpy: thousands of small matrix products are slower on several threads
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # `fit.py ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)

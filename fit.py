"""Scaling laws from anyone's CSV of training runs, with intervals and back-tests.

    python fit.py sweep_results/runs.csv
    python fit.py runs.csv --predict_flops 1e20 1e21 --target_loss 2.5 --compare
    python fit.py --law hoffmann --predict_flops 5.76e23

A file needs a loss and two of N (parameters), D (tokens) and C (FLOPs). A law
that the runs don't determine is refused, with what would help.
fit.json, prediction.md, its table (.csv, .tex) and pictures go to --out_dir. From Python:
run(paths, out_dir), or the functions of isoflop.fit on arrays.
"""

import isoflop.installed  # noqa: F401 isort: skip
# ruff: noqa: E402

import os
import sys
from dataclasses import dataclass, fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path

if __name__ == "__main__":  # before numpy: thousands of small matrix products are slower on several threads
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from isoflop import laws
from isoflop.cli import Parser, UserError, check, option, run_main
from isoflop.files import writable_folder, write_json, write_text
from isoflop.fit import drawing, other_laws, report, series, suggest
from isoflop.fit.backtest import backtest, conventions, forecast_tests, splits_of
from isoflop.fit.compare import compare_families
from isoflop.fit.coupled import DRAWS, fit_coupled
from isoflop.fit.envelope import fit_envelope
from isoflop.fit.huber import DELTA, RESAMPLES
from isoflop.fit.inverse import put_before
from isoflop.fit.isoflop import BUDGET_TOL, expected_bias, fit_isoflop, hold_bias
from isoflop.fit.logs import scores
from isoflop.fit.outliers import find_outliers, loss_weights
from isoflop.fit.parametric import fit_parametric
from isoflop.fit.power_law import fit_kaplan, fit_power_law
from isoflop.fit.predict import flatness, missed_budget, predict, skill_of
from isoflop.fit.predictors import LawPredictor, isoflop_variants, line_predictor, parametric_predictor
from isoflop.fit.result import METHODS, Analysis, Fits, bands, clean, law_to_json, to_arrays, to_json, write_draws
from isoflop.fit.rows import SAME_ND
from isoflop.fit.surface import forecast, forecast_runs
from isoflop.fit.table import Table, read
from isoflop.fit.units import NATS, far_targets

MIN_RESAMPLES = 100  # the ends of a 95% interval of fewer are noise
ENVELOPE_RESAMPLES = 1000  # at most
MOST_COUPLED = 5_000  # rows that the coupled law is fitted to
COMPARED = 10, 1_000  # rows that families of laws are compared on, at least and at most
COMPARED_HELD = (4, 1)  # budgets held out in the back-tests of each
LINES = ("constant_ratio", "collinear", "one_size", "one_token_count")  # refusals of runs on one line in ln N and ln D
MOST = 1e60  # largest number that can be asked for


@dataclass(frozen=True)
class Options:
    """What to fit, how, and what to predict. Fields with flag=False serve those who repeat a paper, from Python."""

    n_col: str | None = option(None, "column with N; usual names are found without", group="columns", metavar="NAME")
    d_col: str | None = option(None, "column with D", metavar="NAME")
    c_col: str | None = option(None, "column with C", metavar="NAME")
    loss_col: str | None = option(None, "column with the loss, nats per token", metavar="NAME")
    loss_se_col: str | None = option(None, "its standard error: weights the parametric fit", metavar="NAME")
    lr_col: str | None = option(None, "--law_of hparams: column with the peak rate", metavar="NAME")
    batch_col: str | None = option(None, "--law_of hparams: column with tokens per step", metavar="NAME")
    task_cols: tuple[str, ...] = option((), "--law_of task: columns with scores (default: score_*)", metavar="NAME")
    task_loss_cols: tuple[str, ...] = option((), "their losses, one each or for all (default: loss)", metavar="NAME")
    chance: tuple[float, ...] = option((), "scores of a guess, one each or for all (default: by name)", min=0, below=1)
    percent: bool = option(False, "these scores are percents")
    units: tuple[str, ...] = option((), "as n=M d=B c=PF-days loss=perplexity", metavar="UNIT")
    run_cols: tuple[str, ...] = option((), "columns that together name a run", metavar="NAME")

    where: tuple[str, ...] = option(
        (), "keep rows where 'column op value' (repeatable)", group="selection", repeat=True, metavar="EXPR"
    )
    status: tuple[str, ...] = option((), "keep runs of these statuses, too; any: all", metavar="WORD")
    same_nd: str = option("auto", "what to take of rows with one N and D", choices=SAME_ND)
    rows_are_runs: bool = option(False, "every row is a run of its own, no checkpoint")
    by: str | None = option(None, "a law for each value of this column (or file)", metavar="NAME")
    base: str | None = option(None, "value of --by that others are compared with", metavar="TEXT")
    exclude_flops_above: float | None = option(None, "leave out runs of more FLOPs", above=0, below=MOST)
    drop_top_loss: int = option(0, "leave out the N runs of highest loss", min=0, max=10**9)

    law_of: str = option("loss", "the law to fit", choices=other_laws.NAMES, group="fit")
    bootstrap: int = option(RESAMPLES, "resamples for intervals, 0: none", min=0, max=100_000)
    seed: int = option(0, "seed of the resamples", min=0, max=2**62)
    budget_tol: float = option(BUDGET_TOL, "relative spread of C within a budget", above=0, max=1)
    isoflop_method: str = option("pooled", "how fit_isoflop finds a minimum", flag=False,
                                 choices=("pooled", "local", "akima", "parabola"))  # fmt: skip
    law_family: str = option("auto", "of the coupled law", choices=("auto", "coupled", "hoffmann"))
    prior: bool = option(True, "weak priors from public sweeps in the coupled law")
    envelope_rule: str = option("hull", "how fit_envelope picks points", flag=False, choices=("hull", "bins"))
    envelope_keep_ends: bool = option(False, "keep points of the smallest and largest model", flag=False)
    huber_delta: float = option(DELTA, "Huber threshold on ln L in the parametric fit", flag=False, above=0, max=1e6)

    predict_flops: tuple[float, ...] = option(
        (), "optimum at these C (default: largest, 10x it)", group="predictions", above=0, below=MOST
    )
    unique_tokens: tuple[float, ...] = option(
        (), "best N and epochs for so much text (--law_of data)", above=0, max=1e18
    )
    predict_params: tuple[float, ...] = option((), "D for which these N are the best size", above=0, below=MOST)
    target_loss: tuple[float, ...] = option((), "C, N* and D* for these losses", above=0, max=1000)
    predict_runs: str | None = option(None, "file of (N, D) rows whose loss to predict", metavar="FILE")
    compare: bool = option(False, "show the published laws beside the fit")

    suggest: int | None = option(None, "propose so many runs to do next", group="next runs", min=1, max=1000)
    target_flops: float | None = option(None, "whose optimum they are to tell", above=0, below=MOST, metavar="C")
    target_runs: str | None = option(None, "or: file of (N, D) rows whose losses", metavar="FILE")
    pool: str | None = option(None, "file of rows to choose from (default: any N, D)", metavar="FILE")
    spend: float | None = option(None, "FLOPs for them (default: as much as the runs)", above=0, below=MOST)

    out_dir: str | None = option(None, "where to write (default: fit/ beside the CSV)", group="output", metavar="DIR")
    plots: bool = option(True, "draw the pictures")
    format: str = option("png", "of the pictures", choices=report.FORMATS)
    draws: bool = option(False, "write the resamples of every fit to draws.npz")

    def __post_init__(self):
        more = []
        if 0 < self.bootstrap < MIN_RESAMPLES:
            more.append(f"--bootstrap {self.bootstrap} must be 0, or {MIN_RESAMPLES} or more for an interval")
        if self.draws and self.bootstrap == 0:
            more.append("--draws writes resamples, and --bootstrap 0 makes none; leave one of them out")
        if self.base is not None and self.by is None:
            more.append(f"--base {self.base} is a value of the column that --by names; give --by, too")
        more += suggest_mistakes(self)
        more += other_laws.mistakes(self, {f.name: f.default for f in fields(self)})
        check(self, more)


def suggest_mistakes(options) -> list[str]:
    """What is wrong with the flags of --suggest."""
    asked = {name: getattr(options, name) for name in ("target_flops", "target_runs", "pool", "spend")}
    given = [f"--{name} {value}" for name, value in asked.items() if value is not None]
    if options.suggest is None:
        target = "" if options.target_flops or options.target_runs else " --target_flops 1e21"
        return [f"{given[0]} is for --suggest; add --suggest 8{target}"] if given else []
    if options.by is not None:
        return [f"--suggest proposes runs for one law and --by {options.by} makes several; keep one series by --where"]
    if options.target_flops is None and options.target_runs is None:
        return [f"--suggest {options.suggest} needs a target; add --target_flops 1e21, or --target_runs FILE"]
    if options.target_flops is not None and options.target_runs is not None:
        return [f"--target_flops {options.target_flops:g} and --target_runs are two targets; leave one of them out"]
    return []


# ----- from files to fit.json -----


def run(paths, out_dir=None, beside=False, **options) -> dict:
    """
    Fit everything to the runs in `paths`; write fit.json, prediction.md, predictions.csv and .tex, and the pictures.

    Parameters
    ----------
    paths : path, or list of paths
        Tables of runs: CSV, JSON, JSON lines, Markdown, .xlsx, .parquet, .gz.
    out_dir : path, optional
        Where to write; default fit/ beside the first file.
    beside : bool
        Draw the pictures in a process of their own, started before the fit.
    **options
        Fields of Options.

    Returns
    -------
    dict
        What fit.json holds.

    Raises
    ------
    UserError
        Mistakes in files or options, in one line that names the way out; before anything is written.
    """
    options = Options(out_dir=out_dir, **options)
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    paths = [os.fspath(path) for path in paths]
    if not paths:
        for name in ("units", "run_cols", "status"):
            swallowed = getattr(options, name)[-1:]
            if swallowed and os.path.exists(swallowed[0]):
                raise UserError(f"--{name} took {swallowed[0]} as its last value; name the file before the flags")
        raise UserError("no file given; name a CSV of runs, or give --law and something to predict")
    if options.suggest is not None and suggest.is_empty(paths):
        return first_round(paths, options)
    if options.law_of != "loss":
        return fit_other_law(paths, options)
    table = read_runs(paths, options)
    if options.compare and table.info["loss_unit"] != NATS:
        text = f"published laws are in {NATS}, these runs in {table.info['loss_unit']}: only N* and D* can be compared"
        table.info["warnings"].append({"code": "loss_unit", "message": text})
    far = far_targets(options.predict_flops, table.c.max(), "--predict_flops")
    if far:
        table.info["warnings"].append({"code": "units", "message": far})
    targets = read_rows(options.predict_runs, options)
    check_plots(options)
    suggestions, parts = propose(table, options), {}
    if options.by is not None:
        parts = series.split(table, options.by)
        base = series.choose_base(list(parts), options.base, options.by)
    folder = folder_of(options, paths)
    with drawing.Beside(beside and options.plots) as pictures:
        if parts:
            return fit_series(parts, base, paths, folder, options, targets, pictures.draw)
        return fit_table(table, paths, folder, options, targets, pictures.draw, suggestions)[1]


def fit_other_law(paths, options: Options) -> dict:
    """Fit the law of --law_of; write fit.json, its page and picture, by default into a folder of its own."""
    law = other_laws.OTHER_LAWS[options.law_of]
    reading = law.reading(options) if callable(law.reading) else law.reading
    table = read_runs(paths, options, **reading)
    targets = read_rows(options.predict_runs, options)
    check_plots(options)
    answer = law.fit(table, options, targets)
    folder = folder_of(options, paths, options.law_of)
    return other_laws.write(options.law_of, table.info, answer, folder, options.plots, options.format)


def read_runs(paths, options: Options, **more) -> Table:
    """The table of runs; `more` goes before what options say of reading it."""
    columns = {**columns_of(options), "loss_se": options.loss_se_col}
    columns |= {"lr": options.lr_col, "batch_tokens": options.batch_col}
    reading = {
        "units": options.units, "status": options.status, "run_cols": options.run_cols, "by": options.by,
        "rows_are_runs": options.rows_are_runs, "same_nd": options.same_nd, **more,
    }  # fmt: skip
    return read(paths, columns, options.where, options.exclude_flops_above, options.drop_top_loss, **reading)


def check_plots(options: Options):
    """Where matplotlib is missing, say so before the fit and not after."""
    if options.plots and find_spec("matplotlib") is None:
        raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")


def fit_table(
    table: Table, paths, folder: Path, options: Options, targets: Table | None, draw, suggestions: dict | None = None
) -> tuple[Analysis, dict]:
    """Fit a table of runs, write everything to a folder, pictures by draw(): (the analysis, what fit.json holds)."""
    analysis = analyse(table, options, targets)
    result, arrays = to_json(analysis), to_arrays(analysis)
    if suggestions is not None:
        result["suggestions"] = clean(suggestions)
        suggest.write_csv(folder / "suggested.csv", suggestions)
    if options.plots:
        arrays["bands"] = bands(analysis)
        arrays["scores"] = scores(paths)
    write_json(folder / "fit.json", result, indent=1, allow_nan=False)
    if options.draws:
        write_draws(folder / "draws.npz", analysis.fits)
    report.write(result, arrays, folder, options.plots, options.format, draw)
    return analysis, result


def fit_series(parts: dict[str, Table], base: str, paths, folder: Path, options: Options, targets, draw) -> dict:
    """A fit for each series, in a folder of its own; series.json, series.md and their picture compare them."""
    names, found = series.folders(parts), []
    for label, part in parts.items():
        analysis, _ = fit_table(part, paths, writable_folder(folder / names[label]), options, targets, draw)
        found.append(series.Series(label, part.c, part.loss, analysis.fits.coupled, analysis.fits.cost, names[label]))
    at = options.predict_flops or series.common_budgets(found)
    differences = series.compare(found, base, at, options.seed)
    result = series.to_json(found, options.by, base, differences, part.info["loss_unit"])
    series.write(result, found, folder, options.plots, options.format)
    return result


def propose(table: Table | None, options: Options) -> dict | None:
    """The suggestions of --suggest; None without it."""
    if options.suggest is None:
        return None
    target_runs, pool = (read_rows(path, options) for path in (options.target_runs, options.pool))
    return suggest.suggest(table, options.suggest, options.target_flops, target_runs, pool, options.spend)


def first_round(paths, options: Options) -> dict:
    """Runs to do first, from a table that has none; fit.json, suggested.csv and prediction.md hold nothing else."""
    suggestions = propose(None, options)
    folder = folder_of(options, paths)
    result = {"suggestions": clean(suggestions)}
    write_json(folder / "fit.json", result, indent=1, allow_nan=False)
    suggest.write_csv(folder / "suggested.csv", suggestions)
    write_text(folder / "prediction.md", "# Runs to do first\n\n" + "\n".join(suggest.page(result)) + "\n")
    return result


def folder_of(options: Options, paths, *below: str) -> Path:
    """Where to write, made; --out_dir DIR/fit.json is DIR. Default: fit/ beside the first file, and `below` it."""
    if options.out_dir is None:
        return writable_folder(Path(paths[0]).resolve().parent.joinpath("fit", *below))
    asked = Path(options.out_dir)
    if asked.name == "fit.json" and not asked.is_dir():
        asked = asked.parent
    return writable_folder(asked)


def columns_of(options: Options) -> dict:
    """The columns named by --n_col, --d_col, --c_col and --loss_col; None where none is."""
    return {"n": options.n_col, "d": options.d_col, "c": options.c_col, "loss": options.loss_col}


def read_rows(path: str | None, options: Options) -> Table | None:
    """Rows of N and D whose loss may be missing; None without a file."""
    if path is None:
        return None
    return read([path], columns_of(options), need_loss=False, units=options.units)


def analyse(table: Table, options: Options, targets: Table | None = None) -> Analysis:
    """
    All methods on a table of runs: fits, back-tests and predictions. A method that is refused has no numbers and says
    why in the result's refusals.

    Parameters
    ----------
    table : Table
        The runs.
    targets : Table, optional
        Runs whose loss to predict.
    """
    fits = fit_methods(table, options)
    settings = (options.budget_tol, options.huber_delta, options.isoflop_method)
    # a method that is refused has no back-test: nothing of it is shown
    splits = splits_of(table, options.budget_tol, options.isoflop_method)
    tests = backtest(table, *settings, fits.parametric, splits)
    tests = [row for row in tests if row["method"] not in fits.refused]
    steps = forecast_tests(splits)
    for family in fits.families:
        if family.family == fits.coupled.family:
            steps += family.tests
    skill = skill_of(tests, fits.parametric, fits.isoflop, table)

    least_loss = {fits.least_losses_of: fits.compute_law}  # L(C) is fitted to one method's minima: it alone has a loss
    predictors = [
        parametric_predictor(fits.parametric, fits.cost),
        line_predictor("isoflop", fits.isoflop, least_loss.get("isoflop")),
        line_predictor("envelope", fits.envelope, least_loss.get("envelope")),
    ]
    predictors = [predictor for predictor in predictors if predictor is not None]
    if options.compare:
        predictors += [LawPredictor(f"published:{name}", law) for name, law in laws.PUBLISHED.items()]
    budgets = options.predict_flops or (skill.c_max, 10 * skill.c_max)
    questions = (budgets, options.predict_params, options.target_loss, targets)
    variants = isoflop_variants(fits.isoflop)
    predictions, below_floor = predict(predictors, *questions, skill, fits.cost, variants)
    ours = (fits.isoflop, fits.coupled)
    best, unanswered = forecast(*ours, budgets, fits.cost, skill.c_max)
    out_of_reach = put_before(predictions, ours, options.predict_params, options.target_loss, fits.cost, skill.c_max)
    if targets is not None:
        single = forecast_runs(*ours, targets, fits.cost, skill.c_max)
        predictions["runs"] = single + predictions["runs"]
    flat = []
    if fits.parametric.law is not None:
        known = {budget.flops for budget in fits.isoflop.budgets if budget.status == "ok"}
        flat = flatness(fits.parametric.law, sorted(known | set(budgets)), fits.cost, skill.sigma)
    return Analysis(
        table=table,
        fits=fits,
        conventions=conventions(table, *settings),
        backtests=tests,
        forecast_tests=steps,
        skill=skill,
        predictors=predictors,
        budgets=budgets,
        forecast=best,
        predictions=predictions,
        flatness=flat,
        compared=options.compare,
        target_loss=tuple(options.target_loss),
        refusals=(*fits.refusals, *below_floor, *unanswered, *out_of_reach),
    )


def fit_methods(table: Table, options: Options) -> Fits:
    """The three methods of Hoffmann et al. 2022, and power laws of one variable."""
    n, d, c, loss = table.n, table.d, table.c, table.loss
    cost = laws.cost_of(n, d, c)
    resamples, seed = options.bootstrap, options.seed
    weights = loss_weights(table) if options.loss_se_col else None
    parametric = fit_parametric(n, d, loss, weights, options.huber_delta, resamples, seed)
    some = slice(None, None, -(-len(n) // MOST_COUPLED))  # of very many rows, every so many
    coupled = fit_coupled(
        n[some], d[some], loss[some], c[some], weights if weights is None else weights[some],
        options.law_family, options.prior, min(resamples, DRAWS), seed,
    )  # fmt: skip
    requested = None  # FLOPs by which runs are grouped into budgets; those spent, where they are not all known
    if table.budget is not None and (table.budget > 0).all():
        requested = table.budget
    isoflop = fit_isoflop(n, d, c, loss, requested, options.budget_tol, options.isoflop_method, resamples, seed)
    if coupled.law is not None:
        isoflop = hold_bias(isoflop, expected_bias(isoflop, coupled.law, n, d, c, cost, ()), cost)
    fewer = min(resamples, ENVELOPE_RESAMPLES)
    envelope = fit_envelope(table.curve, options.envelope_rule, options.envelope_keep_ends, fewer, seed)

    missed, bias = "", None
    if parametric.law is not None:
        missed = missed_budget(parametric.law, isoflop.budgets)
        if isoflop.a is not None:
            bias = expected_bias(isoflop, parametric.law, n, d, c, cost)
    method, compute_law, compute_law_without_e = fit_compute_law(isoflop, envelope)
    on_line = [refusal for refusal in parametric.refusals if refusal.code in LINES]
    if on_line and compute_law.k is None and compute_law_without_e.k is None:
        lowest = fit_kaplan(c, loss, resamples, seed, "compute_law")  # of a ladder every run is the best of its C
        method, compute_law, compute_law_without_e = "runs", lowest["with_E"], lowest["without_E"]
    return Fits(
        cost=cost,
        parametric=parametric,
        coupled=coupled,
        families=compare(table, coupled, options),
        outliers=find_outliers(table, parametric, weights),
        missed_budget=missed,
        isoflop=isoflop,
        expected_bias=bias,
        envelope=envelope,
        least_losses_of=method,
        compute_law=compute_law,
        compute_law_without_e=compute_law_without_e,
        kaplan_n=fit_kaplan(n, loss, resamples, seed, "kaplan.L_N"),
        kaplan_d=fit_kaplan(d, loss, resamples, seed, "kaplan.L_D"),
    )


def compare(table, coupled, options):
    """The family of laws that answers, its rival, and its own nested cases (E = 0, alpha = beta), by evidence."""
    least, most = COMPARED
    if coupled.law is None or len(table.n) < least:
        return ()
    some = slice(None, None, -(-len(table.n) // most))
    form = coupled.family.split(",")[0]
    names = ("coupled", "hoffmann", f"{form}, E = 0", f"{form}, alpha = beta")
    runs = (table.n[some], table.d[some], table.loss[some], table.c[some])
    known = None
    if options.loss_se_col is None and len(table.n) <= most and coupled.family == form:
        known = coupled
    return compare_families(*runs, options.prior, names, names[:2], COMPARED_HELD, known)


def fit_compute_law(isoflop, envelope):
    """Power laws of the least loss against C: (method that the losses are of, the fit with E, the fit without)."""
    ok = [budget for budget in isoflop.budgets if budget.status == "ok"]
    if len(ok) >= 3 or envelope.a is None:
        method, draws = "isoflop", isoflop.draws.get("loss")
        at, least = [budget.flops for budget in ok], [budget.loss for budget in ok]
    else:
        method, draws = "envelope", None
        at, least = envelope.points["flops"], envelope.points["loss"]
    with_e = fit_power_law(at, least, draws, True, "compute_law.E")
    without_e = fit_power_law(at, least, draws, False, "compute_law.no_E")
    return method, with_e, without_e


def from_law(name: str, options: Options) -> dict:
    """Predictions of a published law, or of one given as E=..,A=..,B=..,alpha=..,beta=.., without any run."""
    name = laws.published_name(name)
    law = laws.parse_law(name)
    targets = read_rows(options.predict_runs, options)
    if not (options.predict_flops or options.predict_params or options.target_loss or targets):
        raise UserError("--law needs --predict_flops, --predict_params, --target_loss or --predict_runs")
    predictors = [LawPredictor(f"published:{name}", law)]
    predictions, refusals = predict(
        predictors, options.predict_flops, options.predict_params, options.target_loss, targets
    )
    return law_to_json(name, law, predictions, refusals)


# ----- command line -----


def make_parser() -> Parser:
    parser = Parser("fit.py", __doc__, Options, usage="[runs.csv ...] [flags]")
    parser.add_argument("paths", nargs="*", metavar="runs.csv", help="tables of runs: CSV, JSON, Markdown, .xlsx, .gz")
    parser.flag("law", "str | None", None, "published law to predict from, without a CSV", group="predictions")
    return parser


def fit_and_print(parser, args, beside=False):
    options = parser.read(Options, args)
    if args.law is not None:
        if args.paths:
            raise UserError(f"--law predicts without runs; leave out {args.paths[0]}, or --law for --compare")
        print(report.summary(from_law(args.law, options)))
        return
    result = run(args.paths, beside=beside, **vars(options))
    if options.law_of != "loss":
        print("\n".join(result[options.law_of]["answer"]))
        return
    if "forecast" not in result and options.by is None:  # no runs yet
        print(report.suggestions(result))
        return
    if options.by is not None:
        print(series.summary(result))
        return
    print(report.summary(result))
    if not result["forecast"] and all(result[method]["status"] == "refused" for method in METHODS):
        raise UserError("all three methods were refused; the lines above say why and what helps")


def main(argv=None, beside=False):
    return run_main(make_parser(), partial(fit_and_print, beside=beside), argv, "files that were written are whole")


if __name__ == "__main__":
    sys.exit(main(beside=True))

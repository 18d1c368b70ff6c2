"""
fit.py --law_of task: the columns of scores, the page and the picture of task_law.py.

    >>> section, text, draw = answer(table, options, targets=None)
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoflop.display import estimate, fixed, markdown_table, percent, sig, text_table
from isoflop.files import read_csv
from isoflop.fit.axes import COLOURS, figure, legend
from isoflop.fit.columns import shown
from isoflop.fit.names import column, key_of
from isoflop.fit.task_law import DRAWS, TaskFit, fit_task
from isoflop.options import UserError

# Chance of a guess by a word in a benchmark's name: one over its number of choices.
CHANCE = {
    "hellaswag": 0.25, "arc_easy": 0.25, "arc_challenge": 0.25, "mmlu": 0.25, "openbook": 0.25, "piqa": 0.5,
    "boolq": 0.5, "winogrande": 0.5, "winograd": 0.5, "wsc": 0.5, "copa": 0.5, "csqa": 0.2, "commonsense_qa": 0.2,
    "socialiqa": 1 / 3, "social_iqa": 1 / 3, "siqa": 1 / 3, "lambada": 0.0, "triviaqa": 0.0, "jeopardy": 0.0,
    "squad": 0.0, "coqa": 0.0, "gsm8k": 0.0, "core": 0.0, "gauntlet": 0.0,
}  # fmt: skip
MORE = 10.0  # times the compute of the largest run: the prediction where no rows are given
MOST_PANELS = 9
MOST_NAMED = 3
MOST_SHOWN = 3  # predictions in the terminal's table
WIDTH = 100  # columns of the terminal


@dataclass(frozen=True)
class Columns:
    """Which columns have the scores and the losses of tasks."""

    scores: tuple[str, ...]
    losses: tuple[str | None, ...]  # of each task; None: the loss of the runs


def reading(options) -> dict:
    """What table.read() is to keep: the numbers of the columns of scores and of losses."""

    def wanted(header, loss):
        columns = find(options, header, loss)
        return tuple(dict.fromkeys(name for name in (*columns.scores, *columns.losses) if name is not None))

    return {"same_nd": "all", "numbers": wanted}


def find(options, header, loss) -> Columns:
    """The columns of scores and of losses; UserError where there are none such. loss : the runs' own column."""
    scores = [one(header, name, "task_cols") for name in options.task_cols]
    if not scores:
        scores = [name for name in header if name.startswith("score_") and not name.endswith("_se")]
    if not scores:
        raise UserError(
            "--law_of task: no column of scores (score_TASK, as eval.py --sweep writes to runs_scores.csv); name them "
            f"with --task_cols; there are {shown(header)}"
        )
    losses = []
    for name in options.task_loss_cols:
        losses.append(None if name == loss else one(header, name, "task_loss_cols"))
    losses = paired(losses or [None], scores, "task_loss_cols")
    return Columns(tuple(scores), tuple(losses))


def one(header, name, flag) -> str:
    i = column(header, name)
    if i is None:
        raise UserError(f"--{flag} {name}: no such column; there are {shown(header)}")
    return header[i]


def paired(values, scores, flag):
    """One value for each task, from one for all or one each."""
    if len(values) == 1:
        return list(values) * len(scores)
    if len(values) != len(scores):
        raise UserError(f"--{flag} has {len(values)} values for {len(scores)} tasks; give one for all, or one each")
    return list(values)


def answer(table, options, targets=None):
    """
    What fit.json holds of the tasks, their page, and a function that draws their picture.

    Raises
    ------
    UserError
        No column of scores, scores in percent, or no task that can be predicted.
    """
    loss = table.info["columns"]["loss"]
    columns = find(options, list(table.settings), loss)
    chances = chances_of(columns.scores, options, table.info["files"])
    fits = []
    for score, name, (chance, _) in zip(columns.scores, columns.losses, chances, strict=True):
        x = table.loss if name is None else table.settings[name]
        y = scores_of(table, score, options.percent)
        runs = (table.n, table.d, table.c, x, y)
        fits.append(fit_task(title(score), *runs, chance, min(options.bootstrap, DRAWS) or DRAWS, options.seed))
    good = [fit for fit in fits if not fit.refused]
    if not good:
        named = [f"{fit.task}: {fit.refused}" for fit in fits[:MOST_NAMED]]
        more = f"; and {len(fits) - MOST_NAMED} more" if len(fits) > MOST_NAMED else ""
        raise UserError(
            f"--law_of task: none of {len(fits)} tasks can be predicted ({'; '.join(named)}{more}); score larger runs, "
            "or name other columns with --task_cols"
        )
    rows = asked(table, targets)
    section = {"tasks": [], "n_convention": table.info["n_convention"]}
    for fit, score, name, (chance, source) in zip(fits, columns.scores, columns.losses, chances, strict=True):
        about = {"task": fit.task, "column": score, "loss_column": name or loss, "chance": chance}
        section["tasks"].append(about | {"chance_from": source} | to_json(fit, rows))
    section["answer"] = lines(section)

    def draw():
        return draw_tasks(good, section, loss)

    return section, page(section), draw


def title(score) -> str:
    return score.removeprefix("score_").removeprefix("acc_")


def is_error(score) -> bool:
    return key_of(score).split("_")[0] in ("err", "error")


def scores_of(table, score, in_percent):
    """A column's scores as shares of 1, errors as 1 minus them; UserError where they are no such shares."""
    y = np.where(np.isfinite(table.settings[score]), table.settings[score], np.nan)
    if in_percent:
        y = y / 100.0
    most = np.nanmax(y, initial=0.0)
    if most > 1.0 + 1e-9 and not in_percent:
        raise UserError(f"--law_of task: {score} goes up to {most:.4g}, so it is in percent; add --percent")
    if most > 1.0 + 1e-9:
        raise UserError(f"--law_of task: {score} goes up to {100 * most:.4g}, above 100%; leave it out of --task_cols")
    return 1.0 - y if is_error(score) else y


def chances_of(scores, options, files) -> list[tuple[float, str]]:
    """(chance, where it is from) of each column of scores."""
    if options.chance:
        return [(value, "--chance") for value in paired(options.chance, scores, "chance")]
    beside = {}
    for file in files:
        beside |= read_chances(Path(file).parent / "scores.csv")
    out = []
    for score in scores:
        words = [word for word in CHANCE if word in key_of(score)]
        if title(score) in beside:
            out.append((beside[title(score)], "scores.csv"))
        elif words:
            out.append((CHANCE[max(words, key=len)], "its name"))
        else:
            out.append((0.0, "unknown: 0; --chance says otherwise"))
    return out


def read_chances(path: Path) -> dict[str, float]:
    """{task: chance} of eval.py --sweep's scores.csv; {} without that file."""
    try:
        rows = [(row.get("task"), row.get("chance")) for row in read_csv(path)[1]]
    except (OSError, UserError):
        return {}
    out = {}
    for task, chance in rows:
        try:
            out[task] = float(chance)
        except (TypeError, ValueError):
            continue
    return out


def asked(table, targets) -> list[tuple[float, float, float]]:
    """(N, D, C) of the predictions: the targets', or of a run of MORE times the largest one's compute, D/N as there."""
    if targets is not None:
        return list(zip(targets.n.tolist(), targets.d.tolist(), targets.c.tolist(), strict=True))
    i = int(np.argmax(table.c))
    root = MORE**0.5
    return [(table.n[i] * root, table.d[i] * root, table.c[i] * MORE)]


# ----- words and numbers -----


def to_json(fit: TaskFit, rows) -> dict:
    """fit.json's entry of one task."""
    out = {"runs": fit.runs, "refused": fit.refused}
    if fit.refused:
        return out
    letters = {name: {"point": value, "ci95": ends} for name, (value, ends) in fit.letters.items()}
    return out | {
        "best_score": float(fit.y[np.argmin(fit.x)]),
        "loss_forms": fit.loss_step.tests,
        "score_forms": fit.score_step.tests,
        "letters": letters,
        "noise": {"ln_loss": fit.loss_step.noise, "score": fit.score_step.noise},
        "held_out_of_mean": fit.of_mean,
        "held_out_chained": fit.chained,
        "stretch": fit.stretch,
        "predictions": [vars(fit.predict(*row)) for row in rows],
    }


def share(x) -> str:
    return fixed(x, 3)


def lines(section) -> list[str]:
    """The answer for the terminal: a table of the tasks that can be predicted, and a line for each that can't."""
    good = [row for row in section["tasks"] if not row["refused"]]
    first = good[0]["predictions"][:MOST_SHOWN]
    head = ["task", "best run", "held out", *(f"N {sig(p['n'], 3)} D {sig(p['d'], 3)}" for p in first)]
    rows = []
    for row in good:
        shown_here = [estimate(p["score"], p["pi95"], share) for p in row["predictions"][:MOST_SHOWN]]
        rows.append([row["task"], share(row["best_score"]), share(row["held_out_chained"]), *shown_here])
    out = [
        "scores, in brackets the interval of a new run; held out: error at the quarter of most compute, from N and D",
        *text_table(head, rows, width=WIDTH).splitlines(),
    ]
    for row in section["tasks"]:
        if row["refused"]:
            out.append(f"refused: {row['task']}: {row['refused']}")
    return out


def page(section) -> str:
    """task.md."""
    good = [row for row in section["tasks"] if not row["refused"]]
    steps, predicted, letters = [], [], []
    for row in good:
        for name, forms, unit in (("loss", row["loss_forms"], 100.0), ("score", row["score_forms"], 1.0)):
            for form in forms:
                errors = [sig(unit * form[key], 3) for key in ("unseen", "top")]
                steps.append([row["task"], name, form["form"], percent(form["weight"], 0), *errors])
        for p in row["predictions"]:
            size = [sig(p["n"]), sig(p["d"]), sig(p["c"])]
            ends = [estimate(p["loss"], p["loss_ci95"]), estimate(p["score"], p["ci95"], share)]
            predicted.append([row["task"], *size, *ends, "{} to {}".format(*map(share, p["pi95"]))])
        text = "; ".join(f"{name} {estimate(v['point'], v['ci95'])}" for name, v in row["letters"].items())
        letters.append([row["task"], row["score_forms"][0]["form"], text])
    chances = [[row["task"], row["column"], row["loss_column"], row["runs"], sig(row["chance"], 3), row["chance_from"],
                row["refused"] or "predicted"] for row in section["tasks"]]  # fmt: skip
    return "\n\n".join([
        "# Scores on tasks",
        "\n".join(["```", *section["answer"], "```"]),
        f"N as in column {section['n_convention']}. First the loss from N and D (ND) or C, then the score from it: "
        "sigmoid low + (top - low)/(1 + exp(k (x - x0))), exponential 1 - eps + k exp(-gamma x). Points are means of "
        "the forms by their weights; ci95 takes them as true, pi95 is for a new run.",
        "## Predictions",
        markdown_table(["task", "N", "D", "C", "loss, ci95", "score, ci95", "pi95"], predicted, align="l"),
        "## Tasks",
        markdown_table(["task", "scores", "losses", "runs", "chance", "from", "answer"], chances, align="l"),
        "## Forms, and what back-tests say of them",
        "Mean absolute errors, of the loss in percent: of runs held out by chance, and of the quarter of the runs with "
        "most compute (loss) or least loss (score).",
        markdown_table(["task", "step", "form", "weight", "unseen", "top"], steps, align="lllr"),
        "## The score's letters",
        markdown_table(["task", "form", "letters, ci95"], letters, align="l"),
    ]) + "\n"  # fmt: skip


# ----- the picture -----


def draw_tasks(fits, section, loss):
    """Score against loss of each task with the curve's 95% band, and the predictions with pi95; better to the right."""
    some = fits[:MOST_PANELS]
    columns = min(3, len(some))
    rows = -(-len(some) // columns)
    fig, axes = figure(5.0 * columns + 0.6, 4.2 * rows + 1.0, rows, columns, squeeze=False)
    entries = {row["task"]: row for row in section["tasks"]}
    for i, ax in enumerate(axes.flat):
        if i >= len(some):
            ax.set_visible(False)
            continue
        fit, row = some[i], entries[some[i].task]
        ahead = [p["loss"] for p in row["predictions"]]
        x = np.linspace(min(fit.x.min(), *ahead), fit.x.max(), 100)
        low, high = np.percentile(fit.score_step.sample(x), (2.5, 97.5), axis=0)
        ax.fill_between(x, low, high, color=COLOURS["parametric"], alpha=0.2, lw=0)
        ax.plot(x, fit.score_step.at(x), color=COLOURS["parametric"], lw=2, label="Score from the loss, ci95")
        ax.scatter(fit.x, fit.y, s=40, color=COLOURS["isoflop"], edgecolors="black", lw=0.5, zorder=3, label="Runs")
        for k, p in enumerate(row["predictions"]):
            bars = np.abs(np.array(p["pi95"])[:, None] - p["score"])
            style = {"fmt": "*", "ms": 15, "color": COLOURS["forecast"], "mec": "black", "capsize": 4, "zorder": 4}
            ax.errorbar([p["loss"]], [p["score"]], bars, label=None if k else "Predictions, pi95", **style)
        ax.axhline(fit.chance, color="0.4", lw=1, ls=":", label="Chance")
        top = max(fit.y.max(), *(p["pi95"][1] for p in row["predictions"]))
        ax.set_ylim(min(fit.y.min(), fit.chance) - 0.03, min(top, 1.0) + 0.03)
        ax.invert_xaxis()
        ax.set(xlabel=row["loss_column"], ylabel="Score", title=fit.task)
    legend(fig, axes[0][0], columns=4)
    return fig

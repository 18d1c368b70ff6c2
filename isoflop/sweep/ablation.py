"""The ablation: the same small grid with one mistake at a time, and how far each moves the exponent a.

    python sweep.py --ablation porian --data_dir data/gut1024 --other_vocab data/gut512 --flop_budgets 1e11 3e11 1e12
    python -m isoflop.sweep.ablation sweep_results   # the table and the picture again, from the folder's ablation.csv

The mistakes are those between Kaplan et al. 2020 (a = 0.73) and Hoffmann et al. 2022 (a = 0.5), as Porian et al. 2024
(arXiv:2406.19146) took them apart: the head left out of N, a warm-up and a batch made for the largest run, rates that
don't follow the size, a decay that ends after the run does. cells() plans them, report() compares them.
"""

import csv
import dataclasses
import functools
import math
import sys
from pathlib import Path

import numpy as np

from isoflop import display
from isoflop.cli import Parser, UserError, run_main
from isoflop.files import atomic, read_csv, write_text
from isoflop.fit import axes
from isoflop.fit.isoflop import fit_isoflop

COLUMNS = (
    "variant run_id seed n d c flop_budget loss bits_per_byte n_embd n_layer vocab_size steps tokens_per_step lr "
    "warmup_steps schedule_steps commit"
).split()  # of ablation.csv; n and c as the variant counts them, loss in nats per token
NAMES = ("ablation.csv", "study.csv")  # the second is what older versions wrote
MIN_DRAWS = 20  # resamples with an exponent, below which there is no interval
SEED_DRAWS = 400  # of by_seed()
HEADER = (
    "variant", "a [95%]", "a minus the first row's [95%]", "N* at the largest budget", "D*/N*", "loss there ({unit})",
    "inner minima",
)  # fmt: skip


VARIANTS = {  # name: title in tables and pictures, what all runs of it have in common
    "base": ("as it should be", "each run by its own rule"),
    "no_head": ("head not counted", "C = 6 N D with N without the head, as Kaplan counted"),
    "one_rate": ("one learning rate", "that of the middle size and budget, for all"),
    "long_warmup": ("one warm-up", "as many tokens as the middle size takes at the largest budget, for all"),
    "one_batch": ("one batch", "the middle size's at the largest budget, for all; rates as in the first row"),
    "long_schedule": ("one decay", "made for the largest budget's run of each size; the others stop within it"),
    "other_vocab": ("other vocabulary", "the same text in other tokens"),
    "all": ("all five at once", "head, rate, warm-up, batch and decay"),
}
ALL = ("no_head", "one_rate", "long_warmup", "one_batch", "long_schedule")  # other variants make one mistake each


# ----- which cells (for sweep.py) -----


def stages(sc, planner, other):
    """One list of cells per variant, as grid.stages() yields them. `other` plans with the other vocabulary, or None."""
    for name in VARIANTS:
        if name != "other_vocab" or other:
            yield list({cell.run_id: cell for cell in cells(name, sc, planner, other).values()}.values())


def cells(name: str, sc, planner, other=None) -> dict[tuple, object]:
    """{(size, budget, seed): Cell} of a variant: the cells that grid.Planner makes with other flags.

    Every budget has the same sizes, --n_embds or else --sizes of the ladder about the geometric mean of the budgets.
    UserError where the middle size has no plan.
    """
    mistakes = ALL if name == "all" else (name,)
    maker = other if name == "other_vocab" else planner
    budgets = sorted(set(sc.flop_budgets))
    sizes = sorted(sc.shapes(planner), key=planner.n)
    middle, top = sizes[len(sizes) // 2], budgets[-1]
    mean = planner.cell(middle, math.exp(sum(map(math.log, budgets)) / len(budgets))).plan
    largest = planner.cell(middle, top).plan
    if mean is None or largest is None:
        raise UserError(f"--ablation: {planner.cell(middle, top).refused or 'the middle size has no plan'}")
    out = {}
    for seed in sc.seeds or [None]:
        for size in sizes:
            for budget in budgets:
                flops = budget
                if "no_head" in mistakes:  # what is trained costs the head's FLOPs, too
                    flops *= planner.n(size) / (planner.n(size) - planner.head(size))
                cell = maker.cell(size, flops, seed)
                plan, flags = cell.plan, {}
                if plan is None:
                    out[size, budget, seed] = cell
                    continue
                rate = mean.lr if "one_rate" in mistakes else plan.lr
                if "one_batch" in mistakes:
                    flags = {"batch_size": None, "total_batch_size": largest.tokens_per_step, "lr": rate}
                    plan = maker.cell(size, flops, seed, flags).plan or plan
                elif "one_rate" in mistakes:
                    flags["lr"] = rate
                if "long_warmup" in mistakes:
                    steps = round(largest.warmup_steps * largest.tokens_per_step / plan.tokens_per_step)
                    flags |= {"warmup_frac": None, "warmup_steps": max(1, min(plan.steps, steps))}
                if "long_schedule" in mistakes:
                    flags["schedule_steps"] = max(plan.steps, round(plan.steps * top / budget))
                out[size, budget, seed] = maker.cell(size, flops, seed, flags)
    return out


def collect(sc, planner, other, rows: list[dict]) -> list[dict]:
    """The rows of ablation.csv: every variant's cells that have a result. A run that variants share is in each."""
    done = {row["run_id"]: row for row in rows if row["status"] == "ok"}
    out = []
    for name in VARIANTS:
        if name == "other_vocab" and not other:
            continue
        for (_, budget, _), cell in cells(name, sc, planner, other).items():
            if cell.run_id not in done:
                continue
            run = done[cell.run_id]
            n = int(run["n_params_matmul"])
            if name in ("no_head", "all"):
                n = int(run["n_params_non_embedding"])
            row = {column: run.get(column) for column in COLUMNS}
            row |= {"variant": name, "n": n, "d": run["tokens"], "c": 6 * n * int(run["tokens"])}
            out.append(row | {"flop_budget": budget, "loss": run["val_loss"]})
    return out


# ----- the comparison -----


def loss_column(rows: list[dict]) -> str:
    """bits_per_byte where every row has it, else loss."""
    return "bits_per_byte" if all(row["bits_per_byte"] for row in rows) else "loss"


def fits(rows: list[dict], resamples: int = 1000) -> dict:
    """{variant: IsoflopFit} of ablation.csv's rows, of loss_column().

    Where every cell has several seeds, the draws are those of by_seed(), else resampled runs of each variant by itself.
    """
    out, column, noise = {}, loss_column(rows), by_seed(rows, SEED_DRAWS)
    for i, (name, mine) in enumerate(by_variant(rows).items()):
        n, d, c, loss, budget = (
            np.array([float(row[k]) for row in mine]) for k in ("n", "d", "c", column, "flop_budget")
        )
        # "local", as the published table was made (LOG.md, 2026-11-24)
        fit = fit_isoflop(n, d, c, loss, budget, how="local", resamples=0 if noise else resamples, seed=i)
        if noise:
            draws = []
            for error in noise[name]:
                drawn = fit_isoflop(n, d, c, loss * np.exp(error), budget, how="local", resamples=0, others=False)
                draws.append(math.nan if drawn.a is None else drawn.a)
            fit = dataclasses.replace(fit, draws={"a": np.array(draws)})
        out[name] = fit
    return out


def by_variant(rows: list[dict]) -> dict[str, list[dict]]:
    """Rows of each variant that has some, in the order of VARIANTS."""
    kept = {name: [row for row in rows if row["variant"] == name] for name in VARIANTS}
    return {name: mine for name, mine in kept.items() if mine}


def by_seed(rows: list[dict], draws: int) -> dict[str, np.ndarray] | None:
    """What further seeds would do to ln loss: {variant: (draws, R)}, one error for all seeds of a cell.

    The errors are the means of as many deviations as a cell has seeds. They are deviations of runs from the mean of
    their cell, pooled over cells, times sqrt(k / (k - 1)) for what the mean takes up. One draw takes those of one run
    for all variants at once: runs of one seed share initial weights and the order of the text, so that variants err
    together. None where a cell has one seed, or variants differ in their sizes, budgets or seeds.
    """
    column, kept = loss_column(rows), by_variant(rows)
    off, shape = {}, None  # shape: (cells, seeds), which all variants must have alike
    for name, mine in kept.items():
        cells = {}
        for row in mine:
            cells.setdefault(place_of(row), {})[row["seed"]] = math.log(float(row[column]))
        seeds = sorted(next(iter(cells.values())))
        if len(seeds) < 2 or any(sorted(cell) != seeds for cell in cells.values()):
            return None
        if shape not in (None, (sorted(cells), seeds)):
            return None
        shape = sorted(cells), seeds
        table = np.array([[cells[place][seed] for seed in seeds] for place in shape[0]])
        off[name] = ((table - table.mean(1, keepdims=True)) * math.sqrt(len(seeds) / (len(seeds) - 1))).ravel()
    places, seeds = shape
    picked = np.random.default_rng(0).integers(len(places) * len(seeds), size=(draws, len(places), len(seeds)))
    out = {}
    for name, mine in kept.items():
        out[name] = off[name][picked].mean(2)[:, [places.index(place_of(row)) for row in mine]]
    return out


def place_of(row: dict) -> tuple:
    """What the seeds of a cell have in common."""
    return row["n_embd"], row["n_layer"], float(row["flop_budget"])


def interval(draws) -> tuple[float, float] | None:
    """The middle 95% of draws, those without an exponent (nan) left out; None of fewer than MIN_DRAWS."""
    if draws is None:
        return None
    draws = draws[np.isfinite(draws)]
    if len(draws) < MIN_DRAWS:
        return None
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(low), float(high)


def compare(found: dict) -> list[dict]:
    """One row per variant: a with its interval, its difference from base's, N* and the loss at the largest budget.

    The interval of a difference is that of paired draws by_seed(). Where runs are resampled it takes the two grids'
    resamples as independent; they share seeds and text, so that it is rather too wide.
    """
    out, base = [], found.get("base")
    for name, fit in found.items():
        inner = sum(budget.status == "ok" for budget in fit.budgets)
        row = {"variant": name, "a": fit.a, "inner": f"{inner} of {len(fit.budgets)}"}
        row["why"] = "; ".join(refusal.message for refusal in fit.refusals if refusal.method == "isoflop")
        row |= {"a_ci": interval(fit.draws.get("a")), "shift": None, "shift_ci": None}
        if name != "base" and base and None not in (fit.a, base.a):
            row["shift"] = fit.a - base.a
            mine, theirs = fit.draws.get("a"), base.draws.get("a")
            if mine is not None and theirs is not None:
                both = min(len(mine), len(theirs))
                row["shift_ci"] = interval(mine[:both] - theirs[:both])
        row |= dict.fromkeys(("n_opt", "d_opt", "loss"))
        if fit.budgets:
            last = fit.budgets[-1]
            row |= {"n_opt": last.n_opt, "d_opt": last.d_opt, "loss": last.loss}
        out.append(row)
    return out


def markdown(table: list[dict], unit: str, covers: str) -> str:
    """The comparison as a table of Markdown, and a line on each variant. covers : what the intervals hold."""
    form = functools.partial(display.fixed, digits=3)
    lines, notes = [], []
    for row in table:
        title, what = VARIANTS[row["variant"]]
        n, ratio = row["n_opt"], None
        if n:
            ratio = row["d_opt"] / n
        lines.append([
            title, display.estimate(row["a"], row["a_ci"], form), display.estimate(row["shift"], row["shift_ci"], form),
            display.si(n, zeros=True), display.sig(ratio, 3), form(row["loss"]), row["inner"],
        ])  # fmt: skip
        refused = f" (refused: {row['why']})" if row["why"] else ""
        notes.append(f"- {title}: {what}{refused}")
    what = "N with the head but in the rows that leave it out"
    notes.append(f"- N* ~ C^a by isoFLOP; {what}; the interval of a {covers}")
    header = [title.format(unit=unit) for title in HEADER]
    return "\n".join([display.markdown_table(header, lines), "", *notes]) + "\n"


def draw(found: dict, table: list[dict], path: Path, covers: str):
    """Left: N* against C for each variant. Right: its exponent, and the published ones."""
    import matplotlib

    with matplotlib.rc_context(axes.RC):
        import matplotlib.pyplot as plt

        fig, (left, right) = axes.figure(13, 6.2, 1, 2, width_ratios=(1.25, 1))
        colours = dict(zip(VARIANTS, plt.get_cmap("tab10").colors, strict=False)) | {"base": "black"}
        draw_optima(left, found, colours)
        draw_exponents(right, table, colours, covers)
        with atomic(path, "wb") as f:
            fig.savefig(f, format="png")
        plt.close(fig)


def draw_optima(ax, found: dict, colours: dict):
    """N* of each variant's budgets with an inner minimum, and the power law through them."""
    all_n, all_c = [], []
    for name, fit in found.items():
        inner = [budget for budget in fit.budgets if budget.status == "ok"]
        c, n = np.array([budget.flops for budget in inner]), np.array([budget.n_opt for budget in inner])
        ax.plot(c, n, "o", ms=6, color=colours[name], lw=0, label=VARIANTS[name][0])
        if fit.a is not None:
            ax.plot(c, fit.optimum(c)[0], color=colours[name], lw=3 if name == "base" else 1.6)
        all_n += list(n)
        all_c += list(c)
    if not all_n:
        raise axes.Skip("no variant has a budget with an inner minimum")
    axes.log_axis(ax.xaxis, axes.flops_tick, *axes.span(all_c))
    axes.log_axis(ax.yaxis, axes.size_tick, *axes.span(all_n))
    ax.set(xlabel=axes.C_AXIS, ylabel="N*", title="N*, head counted except where it says not")
    ax.legend(fontsize=11)


def draw_exponents(ax, table: list[dict], colours: dict, covers: str):
    """a of each variant with its interval, the first at the top, beside the published values."""
    shown = [row for row in reversed(table) if row["a"] is not None]
    for y, row in enumerate(shown):
        ax.plot(row["a"], y, "o", color=colours[row["variant"]], ms=8)
        if row["a_ci"]:
            ax.plot(row["a_ci"], [y, y], color=colours[row["variant"]], lw=2)
    for value, text in ((0.5, "Hoffmann .50"), (0.73, "Kaplan .73")):
        ax.axvline(value, color="0.6", lw=1, ls="--")
        ax.text(value, len(shown) - 0.4, text, ha="center", fontsize=11, color="0.35")
    ax.set_yticks(range(len(shown)), [VARIANTS[row["variant"]][0] for row in shown])
    ax.set(ylim=(-0.6, len(shown)), xlabel=f"a in N* ~ C^a, 95% {covers}", title="the exponent")


# ----- files -----


def report(folder: str | Path, rows: list[dict]) -> str:
    """Write ablation.csv, ablation.md and ablation.png in `folder`; returns the table."""
    path = Path(folder) / NAMES[0]
    with atomic(path) as f:
        out = csv.DictWriter(f, COLUMNS, lineterminator="\n")
        out.writeheader()
        out.writerows(rows)
    return show(path, rows)


def show(path: Path, rows: list[dict]) -> str:
    """Write the table and the picture beside the CSV `path`; returns the table."""
    found = fits(rows)
    table = compare(found)
    unit = {"bits_per_byte": "bits/byte", "loss": "nats/token"}[loss_column(rows)]
    covers, short = "resamples runs", "by resampling runs"
    if by_seed(rows, draws=1):
        covers, short = "covers the spread of seeds", "over seeds"
    text = markdown(table, unit, covers)
    try:
        draw(found, table, path.with_suffix(".png"), short)
    except axes.Skip as why:
        text += f"\nno picture: {why}\n"
    write_text(path.with_suffix(".md"), text)
    return text


def read(folder: str | Path) -> tuple[Path, list[dict]]:
    """The CSV of an ablation in a folder, and its rows; UserError for a file that is none, or a value that is wrong."""
    found = [Path(folder) / name for name in NAMES if (Path(folder) / name).is_file()]
    if not found:
        raise UserError(f"{folder} has no {NAMES[0]}; name the out_dir of python sweep.py --ablation porian")
    path = found[0]
    rows = read_csv(path)[1]
    if not rows or set(COLUMNS) - set(rows[0]):
        raise UserError(f"{path} does not have the columns of an ablation: {', '.join(COLUMNS[:8])}, ..")
    for i, row in enumerate(rows, 2):
        if row["variant"] not in VARIANTS:
            raise UserError(f"{path}, line {i}: variant {row['variant']!r} must be one of {', '.join(VARIANTS)}")
        for column in ("n", "d", "c", "flop_budget", loss_column(rows)):
            try:
                good = 0 < float(row[column]) < math.inf
            except (TypeError, ValueError):
                good = False
            if not good:
                raise UserError(f"{path}, line {i}: {column} {row[column]!r} must be a positive number")
    return path, rows


def run(parser, args):
    path, rows = read(args.folder)
    print(show(path, rows), end="")


def main(argv=None):
    parser = Parser("python -m isoflop.sweep.ablation", __doc__, usage="FOLDER")
    parser.add_argument("folder", help=f"out_dir of a sweep with --ablation, or any folder with its {NAMES[0]}")
    return run_main(parser, run, argv)


if __name__ == "__main__":
    sys.exit(main())

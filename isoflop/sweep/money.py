"""What money buys in sweep.py --design adaptive: expected widths of the forecast, before the sweep and after it.

    python sweep.py --design adaptive --target_flops 1.5e14 --dry_run   # a table, and OUT_DIR/design.png

Each spend is rehearsed a few times: the sweep's own choices, a few rounds of them, with losses drawn from laws that are
believed now (draws of the fit to the runs so far or, before any, the mean of the public prior) and fitted again. The
width of a law that is not yet known can't be had from its prior alone: what is learnt moves it.
"""

import math
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np

from isoflop import display
from isoflop.files import atomic
from isoflop.fit import axes
from isoflop.fit.design import FIRST_RUNS, choose, expected_grid_widths
from isoflop.fit.knowledge import Candidates, Knowledge, Runs, Target, Width, largest_of
from isoflop.laws import simulate
from isoflop.sweep.adaptive import FIRST_ROUND, Design, counted, runs_of, widths_text
from isoflop.sweep.candidates import SPAN, Menu, rounded_up
from isoflop.sweep.results import resume_command

SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the target's own FLOPs
REHEARSED_ROUNDS = 3  # into which the runs of a plan are split
REHEARSALS = 3  # of each spend, with other noise
MORE = 0.5  # of what was spent: the money of the proposed next round


def widths_of_money(design: Design, results) -> list[dict]:
    """
    One dict a spend: share, flops, runs and width (adaptive), grid_runs and grid (an isoFLOP grid for the same).

    The typed --total_flops is among the spends; of runs that are known already the widths are after `flops` more.
    """
    sc, known = design.sc, runs_of(results.rows)
    target = Target(sc.target_flops)
    spends = [share * sc.target_flops for share in SHARES]
    if sc.total_flops:
        spends = sorted({*spends, sc.total_flops})
    most = sc.max_cell_share * spends[-1]
    pool = design.pool(most, sc.max_cell_share * spends[0] / SPAN)
    menu = Menu(pool, design.kept(results), results.rows, design)
    candidates = menu.candidates(results, "FLOPs")
    belief = Knowledge(known, candidates, draws=REHEARSALS)
    found = []
    for spend in spends:
        tries = [rehearse(design, menu, candidates, known, belief, spend, seed) for seed in range(REHEARSALS)]
        found.append((round(np.mean([runs for runs, _ in tries])), mean_width([width for _, width in tries])))
    grids = expected_grid_widths(belief.law, target, spends, noise=belief.noise)
    rows = []
    for flops, (runs, width), (grid_runs, grid) in zip(spends, found, grids, strict=True):
        row = {"share": flops / sc.target_flops, "flops": flops, "runs": runs, "width": width}
        rows.append(row | {"grid_runs": grid_runs, "grid": grid})
    return rows


def rehearse(
    design: Design, menu: Menu, candidates: Candidates, known: Runs, belief: Knowledge, spend: float, seed: int
):
    """(number of runs, Width) after `spend` FLOPs more, with losses drawn from the belief's law and noise."""
    sc, taken, left, runs, planned = design.sc, [], spend, known, 0
    target, law = Target(sc.target_flops), belief.law
    if belief.level_known:
        law = belief.draws.each(lambda values: values[seed % len(values)])
    payable = candidates.flops[candidates.flops <= sc.max_cell_share * spend]
    c_ref = largest_of(known, payable)

    def costs(more):
        cost = np.array(menu.costs([*taken, *more]))
        cost[[*taken, *more]] = np.inf
        return cost

    while True:
        count = FIRST_ROUND if len(runs) < FIRST_RUNS else max(design.at_once, -(-planned // REHEARSED_ROUNDS))
        share = min(1.0, sc.max_cell_share * spend / max(left, 1e-9))
        choice = choose(runs, replace(candidates, marginal=costs), target, count, left, max_share=share)
        planned = len(choice.plan)
        if not choice.decisions:
            return len(taken), choice.before
        for decision in choice.decisions:
            n, d, c = np.array([decision.n]), np.array([decision.d]), candidates.flops[[decision.index]]
            noise = belief.noise
            if belief.level_known:  # that of the fit is its dearest run's
                noise = np.sqrt(belief.noise_variance(n, d, c, c_ref))
            new = (n, d, simulate(law, n, d, noise, 1000 * seed + len(taken)), c)
            columns = zip((runs.n, runs.d, runs.loss, runs.flops), new, strict=True)
            runs = Runs(*[np.append(column, value) for column, value in columns])
            taken.append(decision.index)
            left -= decision.cost


def mean_width(widths: list[Width]) -> Width:
    """Geometric means of widths."""
    means = [float(np.exp(np.mean(np.log(column)))) for column in zip(*map(astuple, widths), strict=True)]
    return Width(*means)


def table(rows: list[dict], target: float, known: int) -> str:
    """The rows of widths_of_money() as text."""
    basis = f"planned from {known} runs" if known else "planned from public sweeps, before any run"
    lines = [f"what money buys: pi95 of the best run's loss and of N* at {display.flops(target)}, {basis}"]
    spend = "FLOPs more" if known else "FLOPs"
    head = [spend, "of the target", "runs", "loss", "its law's part", "N*", "isoFLOP grid: loss", "N*"]
    body = []
    for row in rows:
        width, grid = row["width"], row["grid"]
        cells = [display.flops(row["flops"], 3), display.percent(row["share"], 3 if row["share"] < 0.01 else 0)]
        cells += [str(row["runs"]), share_text(width.pi95_loss), share_text(1.96 * width.sd_loss)]
        cells += [factor_text(width.pi95_n), share_text(grid.pi95_loss), factor_text(grid.pi95_n)]
        body.append(cells)
    lines.append(display.text_table(head, body, align="r"))
    return "\n".join(lines)


def share_text(half: float) -> str:
    return f"+-{display.percent(half, 1)}"


def factor_text(half: float | None) -> str:
    return "" if half is None else f"x{math.exp(min(half, 99.0)):.2f}"


def draw(rows: list[dict], target: float, path: Path):
    """Spend against width, adaptive and isoFLOP grid, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(axes.RC):
        fig, panels = axes.figure(11.5, 5.0, 1, 2)
        spends = np.array([row["flops"] for row in rows])
        for ax, key, title in zip(panels, ("pi95_loss", "pi95_n"), ("Loss", "N*"), strict=True):
            for name, label, style in (("width", "adaptive", "o-"), ("grid", "isoFLOP grid", "s--")):
                halves = np.array([getattr(row[name], key) for row in rows])
                colour = axes.COLOURS["forecast"] if name == "width" else axes.COLOURS["isoflop"]
                shown = 100 * halves if key == "pi95_loss" else np.exp(np.minimum(halves, 20.0))
                ax.plot(spends, shown, style, color=colour, label=label)
            axes.log_axis(ax.xaxis, axes.flops_tick, *axes.span(spends))
            ax.set_xlabel("FLOPs spent")
            ax.set_title(f"{title} at {display.flops(target)} FLOPs")
        panels[0].set_ylabel("pi95, half-width in % of the loss")
        panels[1].set_ylabel("pi95, factor up or down")
        panels[0].set_ylim(bottom=0)
        panels[1].set_ylim(bottom=1)
        panels[0].legend()
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path, "wb") as f:
            fig.savefig(f, format="png", dpi=axes.DPI)
        matplotlib.pyplot.close(fig)


def describe(design: Design, results) -> str:
    """The table of a dry run, with its picture in OUT_DIR/design.png."""
    rows, target = widths_of_money(design, results), design.sc.target_flops
    path = Path(results.folder) / "design.png"
    draw(rows, target, path)
    return f"{table(rows, target, len(runs_of(results.rows)))}\n{path} shows it"


def next_text(design: Design, results) -> str:
    """The next round for MORE times what was spent: its price and what it will narrow; "" where none tells more."""
    spent = sum(float(row["flops_spent"]) for row in results.all_rows())
    if not spent or design.unit == "hours":
        return ""
    total = rounded_up((1 + MORE) * spent)
    more = float(total) - spent
    cells, one = replace(design).next_round(results, more)
    if not cells:
        return ""
    now, then, plan = one["width_before"], one["width_after"], one["width_planned"]
    cost = sum(run["cost"] for run in one["runs"])
    command = resume_command(without=("total_flops", "collect"), more=["--total_flops", total])
    return (
        f"next: {command}\n"
        f"  its first round, {counted(len(cells), 'run')} for {cost:.3g} FLOPs: pi95 of the loss at "
        f"{display.flops(design.sc.target_flops)} from {widths_text(now)} to {widths_text(then)}; "
        f"after {counted(one['planned'], 'run')} for all its {more:.3g} FLOPs {widths_text(plan)}"
    )

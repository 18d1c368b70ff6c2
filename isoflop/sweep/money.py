"""What money buys in sweep.py --design adaptive: expected widths of the forecast, before the sweep and after it.

    python sweep.py --design adaptive --target_flops 1.5e14 --dry_run   # a table, and OUT_DIR/design.png

Each spend is rehearsed with several laws that are believed now: draws of the fit to the runs so far or, before any, of
the public prior. A rehearsal makes the sweep's own choices in a few rounds, with noisy losses of its law, and fits it
again. A law that is not yet known has no single width, so the promise is a range over laws, and its median.
"""

import math
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from isoflop import display
from isoflop.files import atomic
from isoflop.fit import axes
from isoflop.fit.design import FIRST_RUNS, choose, expected_grid_widths
from isoflop.fit.knowledge import Candidates, Knowledge, Runs, State, Target, Width, largest_of, width_of
from isoflop.laws import simulate
from isoflop.sweep.adaptive import FIRST_ROUND, Design, counted, runs_of, widths_text
from isoflop.sweep.candidates import Menu, rounded_up
from isoflop.sweep.results import resume_command

SHARES = (0.01, 0.03, 0.1, 0.3, 1.0)  # of the target's own FLOPs
REHEARSED_ROUNDS = 2  # after the first, into which the runs of a plan are split
REHEARSALS = 8  # of each spend, with other laws and noise; the range of so many holds 7 of 9 like laws on average
FALL = 30.0  # of FLOPs, over which laws differ in how far the loss falls
CHOOSING_DRAWS = 20  # of the law while runs are chosen, which does not need them
MORE = 0.5  # of what was spent: the money of the proposed next round


def widths_of_money(design: Design, results) -> list[dict]:
    """
    One dict a spend: share, flops, runs, width, least and most (adaptive), grid_runs and grid (an isoFLOP grid's).

    `width` and `grid` are medians over the laws that are rehearsed, `least` and `most` the ends of their range. What is
    left of the typed --total_flops is among the spends, those that pay no run are not. Where runs are known, the widths
    are after `flops` more.
    """
    sc = design.sc
    spends = {share * sc.target_flops for share in SHARES}
    if sc.total_flops and design.money(results)[1] > 0:
        spends.add(design.money(results)[1])
    with tqdm(total=len(spends) * REHEARSALS, desc="rehearsals", leave=False, disable=None) as bar:
        rows = [width_of_money(design, results, spend, bar.update) for spend in sorted(spends)]
    return [row for row in rows if row]


def width_of_money(design: Design, results, spend: float, done=lambda: None) -> dict:
    """The dict of one spend, {} where it pays no run; done() is called after each rehearsal."""
    sc, known, target = design.sc, runs_of(results.rows), Target(design.sc.target_flops)
    dearest = sc.max_cell_share * (spend + spent_by(results))
    menu = Menu(design.pool(dearest), design.kept(results), results.rows, design)
    if not menu.cells:
        return {}
    candidates = menu.candidates(results, "FLOPs")
    belief = Knowledge(known, candidates)
    counts, widths, grids = [], [], []
    for seed, law in enumerate(laws_of(belief)):
        count, width = rehearse(menu, candidates, known, belief, law, spend, dearest, seed)
        ((grid_runs, grid),) = expected_grid_widths(law, target, [spend], noise=belief.noise)
        counts.append(count)
        widths.append(width)
        grids.append(grid)
        done()
    least, width, most = spread_of(widths)
    row = {"share": spend / sc.target_flops, "flops": spend, "runs": round(np.mean(counts)), "width": width}
    return row | {"least": least, "most": most, "grid_runs": grid_runs, "grid": spread_of(grids)[1]}


def spent_by(results) -> float:
    return sum(float(row["flops_spent"]) for row in results.all_rows())


def laws_of(belief: Knowledge) -> list:
    """
    REHEARSALS of the draws of the law that stand for all: from equal parts of them, by how far the loss falls.

    That fall, of the frontier over a factor FALL of FLOPs from the centre of the runs, goes with the widths of loss and
    N*. Before any run the same draws stand for all at every spend.
    """
    draws, centre = belief.draws, 6.0 * np.exp(np.sum(belief.mu))
    fall = np.log(draws.frontier_loss(centre) / draws.frontier_loss(FALL * centre))
    middles = (np.arange(REHEARSALS) + 0.5) / REHEARSALS * len(fall)
    which = np.argsort(fall, kind="stable")[middles.astype(int)]
    return [draws.each(lambda values, i=i: values[i]) for i in which]


def rehearse(
    menu: Menu, candidates: Candidates, known: Runs, belief: Knowledge, law, spend: float, dearest: float, seed: int
):
    """(number of runs, Width) after `spend` FLOPs more, with losses drawn from `law` and the belief's noise."""
    design, taken, left, runs, rounds = menu.design, [], spend, known, REHEARSED_ROUNDS
    target = Target(design.sc.target_flops)

    def costs(more):
        cost = np.array(menu.costs([*taken, *more]))
        cost[[*taken, *more]] = np.inf
        return cost

    while rounds:
        share, count = min(1.0, dearest / max(left, 1e-9)), FIRST_ROUND
        these = replace(candidates, marginal=costs)
        plan = choose(runs, these, target, 1, left, max_share=share, draws=CHOOSING_DRAWS).plan
        if len(runs) >= FIRST_RUNS:
            count = max(design.at_once, math.ceil(len(plan) / rounds))
            rounds -= 1
        if not plan:
            break
        for i in plan[:count]:
            n, d, c = candidates.n[[i]], candidates.d[[i]], candidates.flops[[i]]
            new = (n, d, simulate(law, n, d, belief.noise, 1000 * seed + len(taken)), c)
            columns = zip((runs.n, runs.d, runs.loss, runs.flops), new, strict=True)
            runs = Runs(*[np.append(column, value) for column, value in columns])
            left -= costs([])[i]
            taken.append(i)
    state = State(Knowledge(runs, candidates), candidates, target, Runs.none(), largest_of(runs, candidates.flops))
    return len(taken), width_of(state, target, largest_of(runs))


def spread_of(widths: list[Width]) -> list[Width]:
    """The least, the median and the largest of widths, each number by itself."""
    return [Width(*row) for row in np.percentile([astuple(width) for width in widths], [0, 50, 100], axis=0)]


def table(rows: list[dict], target: float, known: int) -> str:
    """The rows of widths_of_money() as text."""
    basis = f"planned from {known} runs" if known else "planned from public sweeps, before any run"
    lines = [f"what money buys: pi95 of the best run's loss and of N* at {display.flops(target)}, {basis}"]
    believed = "that the runs so far allow" if known else "like those of public sweeps"
    lines.append(f"(in brackets the range of {REHEARSALS} rehearsals, each with a law {believed})")
    spend = "FLOPs more" if known else "FLOPs"
    head = [spend, "of the target", "runs", "loss", "its law's part", "N*", "isoFLOP grid: loss", "N*"]
    body = []
    for row in rows:
        width, grid, least, most = (row[key] for key in ("width", "grid", "least", "most"))
        cells = [display.flops(row["flops"], 3), display.percent(row["share"], 3 if row["share"] < 0.01 else 0)]
        cells += [str(row["runs"]), share_text(width.pi95_loss, least.pi95_loss, most.pi95_loss)]
        cells += [share_text(1.96 * width.sd_loss), factor_text(width.pi95_n, least.pi95_n, most.pi95_n)]
        cells += [share_text(grid.pi95_loss), factor_text(grid.pi95_n)]
        body.append(cells)
    lines.append(display.text_table(head, body, align="r"))
    return "\n".join(lines)


def share_text(half: float, least: float | None = None, most: float | None = None) -> str:
    text = f"+-{display.percent(half, 1)}"
    return text if least is None else f"{text} ({100 * least:.1f} to {100 * most:.1f})"


def factor_text(half: float, least: float | None = None, most: float | None = None) -> str:
    middle, low, high = (math.exp(min(value or 0.0, 99.0)) for value in (half, least, most))
    return f"x{middle:.2f}" if least is None else f"x{middle:.2f} ({low:.2f} to {high:.3g})"


def in_percent(halves):
    return 100 * np.array(halves)


def as_factor(halves):
    return np.exp(np.minimum(halves, 20.0))


def draw(rows: list[dict], target: float, path: Path):
    """Spend against width, adaptive and isoFLOP grid, as a picture."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context(axes.RC):
        fig, panels = axes.figure(11.5, 5.0, 1, 2)
        spends = np.array([row["flops"] for row in rows])
        for ax, key, title in zip(panels, ("pi95_loss", "pi95_n"), ("Loss", "N*"), strict=True):
            in_units = in_percent if key == "pi95_loss" else as_factor
            for name, label, style in (("width", "adaptive", "o-"), ("grid", "isoFLOP grid", "s--")):
                halves = [getattr(row[name], key) for row in rows]
                colour = axes.COLOURS["forecast"] if name == "width" else axes.COLOURS["isoflop"]
                ax.plot(spends, in_units(halves), style, color=colour, label=label)
            ends = [in_units([getattr(row[end], key) for row in rows]) for end in ("least", "most")]
            ax.fill_between(spends, *ends, color=axes.COLOURS["forecast"], alpha=0.15, lw=0, label="range over laws")
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
    if not rows:
        return "no run can be made: there is nothing that money buys"
    draw(rows, target, path)
    return f"{table(rows, target, len(runs_of(results.rows)))}\n{path} shows it"


def next_text(design: Design, results) -> str:
    """The next round for MORE times what was spent: its price and what it will narrow; "" where none tells more."""
    spent = spent_by(results)
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

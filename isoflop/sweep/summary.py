"""Lines around a sweep: what is left to run, what it cost, the command for one more budget, what is missing."""

import sys
from dataclasses import replace

from isoflop import display
from isoflop.fit.forecast import MIN_OPTIMA
from isoflop.fit.minima import EXACT_SIZES, MIN_SIZES
from isoflop.sweep import grid
from isoflop.sweep.cells import Cell, Planner
from isoflop.sweep.results import ResultsFile, resume_command
from isoflop.train.plan import resolve
from isoflop.train.record import USUAL_BETA2

GRID_FLAGS = tuple(
    "flop_budgets n_embds n_layers n_heads depths sizes recentre no-recentre retry drop_bad_rows collect".split()
)
LEAST_SIZES = 3  # of a further budget: fewer have no lowest point between others


def too_few(sc, planner: Planner, results: ResultsFile) -> str:
    """A line on what this sweep, with the rows in its folder, can't be asked; "" where budgets and sizes suffice."""
    if sc.design or sc.batches:  # it chooses its own; of rates and batches other questions are asked
        return ""
    if sc.tokens_per_params:
        return ladder_note(sc.tokens_per_params)
    sizes = {}  # of each budget
    for row in results.rows:
        if row["status"] == "ok":
            sizes.setdefault(float(row["flop_budget"]), set()).add((int(row["n_embd"]), int(row["n_layer"])))
    for flops in sc.flop_budgets:
        planned = grid.ablation_sizes(sc, planner) if sc.ablation else grid.sizes_of(sc, planner, results, flops)
        for size in planned:
            if not planner.cell(size, flops).refused:
                sizes.setdefault(flops, set()).add(size[:2])
    budgets = [flops for flops, found in sizes.items() if len(found) >= MIN_SIZES]
    if len(budgets) >= MIN_OPTIMA:
        return ""
    text = (
        f"note: {len(budgets)} of {len(sizes)} budgets have {MIN_SIZES} or more sizes: below {MIN_OPTIMA} of them the "
    )
    text += "forecast leans on priors from public sweeps, and exponents have no interval"
    if any(len(found) == EXACT_SIZES for found in sizes.values()):
        text += "; the parabola through three sizes is exact, without an error"
    text += "; add "
    short = [f"{flops:g}" for flops, found in sorted(sizes.items()) if len(found) < MIN_SIZES]
    if short:
        return text + f"sizes at {', '.join(short[:4])}"
    more = [f"{max(sizes) * 3**i:.3g}" for i in range(1, MIN_OPTIMA - len(budgets) + 1)]
    return text + f"--flop_budgets {' '.join(more)}"


def ladder_note(ratios) -> str:
    """What a sweep over sizes at given D/N can be asked."""
    if len(set(ratios)) > 1:
        return ""
    return (
        f"note: every run has D = {ratios[0]:g} N: they give L(C) at that ratio, and nothing on the best N for a "
        "budget; further --tokens_per_params, or --flop_budgets, would"
    )


def what_is_left(todo: list[Cell], planned: int, seconds: list[float], count: int, price, processes: int) -> str:
    """What is still to run, for --dry_run.

    seconds : of each cell, or [] where unknown. count : workers. price : of an hour of one of a cell's `processes`.
    """
    own, real = sum(c.plan.flops for c in todo), sum(c.cost for c in todo)
    text = f"{len(todo)} of {planned} cells to run: {own:.4g} FLOPs"
    if real < own:
        text += f", {real:.4g} really spent ({own / real:.2f}x less)"
    if not seconds:
        return text
    wall = max([sum(seconds) / count, *seconds])
    text += f", about {wall / 60:.1f} minutes"
    if wall > 7200:
        text += f" ({display.seconds(wall)})"
    if count > 1:
        text += f" on {count} workers"
    if price:
        text += f", price {sum(seconds) / 3600 * price * processes:.3g}"
    return text


def totals(results: ResultsFile, is_ablation: bool) -> str:
    """How many runs there are, what they cost, and what files the fit or the ablation left."""
    rows = results.all_rows()
    own = sum(float(r["flops"] or 0) for r in rows)
    spent = sum(float(r["flops_spent"]) for r in rows)
    text = f"{results.path}: {len(results.rows)} runs, {own:.3g} FLOPs, {results.hours() * 60:.1f} minutes of runs"
    if results.cost():
        text += f", cost {results.cost():.3g}"
    if results.probe_rows:
        text += f", {len(results.probe_rows)} probes among them"
    if spent < 0.999 * own:
        text += f"; {spent:.3g} FLOPs really spent, {own / spent:.2f}x less"
    if results.cut_off():
        text += f"; runs that were cut off count {results.cut_off():.3g} FLOPs more"
    written = "fit.json, prediction.md and the pictures"
    if is_ablation:
        written = "ablation.csv, ablation.md and ablation.png"
    return f"{text}; {written} are in {results.folder}"


def next_command(sc, planner: Planner, results: ResultsFile) -> str:
    """The command for one more budget, as far above the largest as that is above the one below; "" without results.

    Empty, too, where cells are run again at a rate of their own, which is none for the next budget.
    """
    if sc.retry and "lr" in planner.flags:
        return ""
    if sc.tokens_per_params:
        return next_depth(sc)
    budgets = sorted(set(sc.flop_budgets))
    ratio = 3.0
    if len(budgets) > 1:
        ratio = budgets[-1] / budgets[-2]
    flops, count = budgets[-1] * ratio, sc.sizes
    if planner.constraints:
        flops = planner.constraints.next_budget(budgets[-1], flops)
        if flops and sc.total_flops:  # as many sizes as the money pays for
            count = min(count, int((sc.total_flops - results.spent()) / flops))
        if not flops or count < LEAST_SIZES:
            return ""
    centre = grid.best_guess(flops, results.rows)
    if not centre:
        return ""
    sizes = grid.spread_sizes(planner, centre, count)
    words = ["--flop_budgets", f"{flops:g}", "--n_embds", *(str(size.n_embd) for size in sizes)]
    words += ["--n_layers", *(str(size.n_layer) for size in sizes)]
    without = GRID_FLAGS
    if "design" in (word[2:].split("=")[0] for word in sys.argv):  # one budget more is no grid that was chosen for a
        without += ("design", "total_flops")
    return resume_command(without=without, more=words)


def next_depth(sc) -> str:
    """The command for one more depth of a ladder, as far above the last as that is above the one before."""
    depths = sorted(set(sc.depths or ()))
    if len(depths) < 2:
        return ""
    return resume_command(without=GRID_FLAGS, more=["--depths", str(2 * depths[-1] - depths[-2])])


def without_result(sc, cells: list[Cell], results: ResultsFile) -> list[tuple[Cell, str]]:
    """The cells that have no usable result, each with the status of its run, or "not run".

    A result counts whatever its learning rate or batch: --retry may have changed them. In an ablation, and with
    --batches, several runs stand at one place of the grid, so that there each run_id counts for itself.
    """
    status = {r["run_id"]: r["status"] for r in results.rows}
    places = results.places()
    missing = []
    for cell in cells:
        found = status.get(cell.run_id, "not run")
        if found != "ok" and (sc.ablation or sc.batches or cell.place not in places):
            missing.append((cell, found))
    return missing


def missing_text(missing: list[tuple[Cell, str]], planned: int, capped: str, why: dict | None = None) -> str:
    """Which of the planned cells have no result, and the command that runs just those.

    capped : the cap, or "". why : {run_id: what is known of its end}.
    """
    lines, kinds = [], {}
    for cell, status in missing:
        kinds[status] = kinds.get(status, 0) + 1
        reason = cell.refused or (why or {}).get(cell.run_id)
        lines.append(f"no result: {cell}: {status}" + (f" ({reason})" if reason else ""))
    if capped:
        lines.append(f"stopped: {capped}")
    if not missing:
        return "\n".join(lines)
    counts = ", ".join(f"{count} {status}" for status, count in kinds.items())
    text = f"{len(missing)} of {planned} cells have no result ({counts})"
    if all(cell.refused for cell, _ in missing):  # not by a service: the same flags would refuse them again
        return "\n".join([*lines, f"{text}: the lines above say what to change"])
    without, more = flags_for(missing)
    return "\n".join([*lines, f"{text}; to run just those: {resume_command(without=without, more=more)}"])


def flags_for(missing: list[tuple[Cell, str]]) -> tuple[tuple[str, ...], list[str]]:
    """(flags to leave out, words to add) of the command that runs these cells again, by what has ended them."""
    without, more = ("retry", "drop_bad_rows", "collect"), []
    if {status for _, status in missing} - {"not run"}:
        more.append("--retry")
    unstable = [cell for cell, status in missing if status in ("diverged", "blown_up")]
    if any(cell.plan.beta2 < USUAL_BETA2 for cell in unstable):  # a lower rate does not help those
        without += ("beta2",)
        more += ["--beta2", "0.95"]
        unstable = [cell for cell in unstable if cell.plan.beta2 >= USUAL_BETA2]
    if unstable:
        without += ("lr", "lr_scale", "lrs", "tune_lr")
        more += ["--lr", f"{lower_rate(unstable):.3g}"]
    rows = [cell.plan.micro_batch_size for cell, status in missing if status == "oom"]
    if rows:
        without += ("micro_batch_size",)
        more += ["--micro_batch_size", str(max(1, min(rows) // 2))]
    return without, more


def lower_rate(cells: list[Cell]) -> float:
    """A peak learning rate for cells that blew up: half the lowest that did, and no default rate of theirs is lower."""
    rates = []
    for cell in cells:
        default = resolve(cell.mc, replace(cell.tc, lr=None, lr_scale=1.0), cell.plan.world_size)
        rates.append(min(cell.plan.lr / 2, default.lr))
    return min(rates)

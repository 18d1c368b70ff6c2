"""Lines around a sweep: what is left to run, what it cost, the command for one more budget, what is missing."""

from isoflop.sweep import grid
from isoflop.sweep.cells import Cell, Planner
from isoflop.sweep.results import ResultsFile, resume_command

GRID_FLAGS = tuple(
    "flop_budgets n_embds n_layers n_heads depths sizes recentre no-recentre retry drop_bad_rows collect".split()
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
    """The command for one more budget, as far above the largest as that is above the one below; "" without results."""
    budgets = sorted(set(sc.flop_budgets))
    ratio = 3.0
    if len(budgets) > 1:
        ratio = budgets[-1] / budgets[-2]
    flops = budgets[-1] * ratio
    centre = grid.best_guess(flops, results.rows)
    if not centre:
        return ""
    sizes = grid.spread_sizes(planner, centre, sc.sizes)
    words = ["--flop_budgets", f"{flops:g}", "--n_embds", *(str(size.n_embd) for size in sizes)]
    words += ["--n_layers", *(str(size.n_layer) for size in sizes)]
    return resume_command(without=GRID_FLAGS, more=words)


def without_result(sc, cells: list[Cell], results: ResultsFile) -> list[tuple[Cell, str]]:
    """The cells that have no usable result, each with the status of its run, or "not run".

    A result counts whatever its learning rate or batch: --retry may have changed them. In an ablation several runs
    stand at one place of the grid, so that there each run_id counts for itself.
    """
    status = {r["run_id"]: r["status"] for r in results.rows}
    places = results.places()
    missing = []
    for cell in cells:
        found = status.get(cell.run_id, "not run")
        if found != "ok" and (sc.ablation or cell.place not in places):
            missing.append((cell, found))
    return missing


def missing_text(missing: list[tuple[Cell, str]], planned: int, capped: str, why: dict | None = None) -> str:
    """Which of the planned cells have no result, and the command that runs just those.

    capped : the cap, or "". why : {run_id: what is known of its end}.
    """
    lines, kinds, oom_rows, diverged_rate = [], {}, [], None
    for cell, status in missing:
        kinds[status] = kinds.get(status, 0) + 1
        reason = cell.refused or (why or {}).get(cell.run_id)
        lines.append(f"no result: {cell}: {status}" + (f" ({reason})" if reason else ""))
        if status == "oom":
            oom_rows.append(cell.plan.micro_batch_size)
        if status == "diverged" and diverged_rate is None:
            diverged_rate = cell.plan.lr
    if capped:
        lines.append(f"stopped: {capped}")
    if not missing:
        return "\n".join(lines)
    without, more = ("retry", "drop_bad_rows", "collect"), []
    if set(kinds) - {"not run"}:
        more.append("--retry")
    if diverged_rate is not None:
        without += ("lr",)
        more += ["--lr", f"{diverged_rate / 2:.3g}"]
    if oom_rows:
        more += ["--micro_batch_size", str(max(1, min(oom_rows) // 2))]
    counts = ", ".join(f"{count} {status}" for status, count in kinds.items())
    command = resume_command(without=without, more=more)
    lines.append(f"{len(missing)} of {planned} cells have no result ({counts}); to run just those: {command}")
    return "\n".join(lines)

"""Which cells a sweep has: sizes around the best guess, learning rates, trunks.

Plain arithmetic on configurations. The plan of a cell is made by the code that will run it, resolve() of train/plan.py.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from isoflop import files
from isoflop.config import ModelConfig, from_depth
from isoflop.fit.isoflop import fit_isoflop
from isoflop.flops import count_params
from isoflop.options import UserError
from isoflop.sweep.cells import SIZE_LADDER, Cell, ModelSize, Planner, default_depth
from isoflop.sweep.folder import free_name, move_aside, wrong_text

PRIOR_SLOPE = 0.5  # of ln N* over ln C before two budgets have shown another: Hoffmann et al. 2022, table 2
PRIOR_WEIGHT = 1.0  # what that prior weighs, in budgets an e-fold of C apart
TUNE_FACTORS = (0.5, 0.71, 1.0, 1.41, 2.0)  # rates that --tune_lr tries, over the rule's
MOST_WIDTH = 2**20
NEAR_BEST = 0.02  # a run whose loss is this much above the lowest weighs half in the parabola of best_rate()


# ----- sizes -----


def guess_n_opt(flops: float) -> float:
    """First guess of the best N (matmul) at a budget, to centre sizes on: D = 20 N (Hoffmann et al. 2022, table 3)."""
    return math.sqrt(flops / 120)


def default_sizes(flops: float, vocab_size: int, sizes: int) -> list[ModelSize]:
    """The `sizes` neighbours on SIZE_LADDER whose middle, in ln N, is nearest to the first guess for this budget."""
    ln_n = []
    for n_embd, n_layer in SIZE_LADDER:
        ln_n.append(math.log(count_params(ModelConfig(n_layer, n_embd, vocab_size=vocab_size))["matmul"]))
    goal = math.log(guess_n_opt(flops))
    best, start = math.inf, 0
    for first in range(max(1, len(SIZE_LADDER) - sizes + 1)):
        last = min(first + sizes, len(SIZE_LADDER)) - 1
        off = abs(ln_n[first] + ln_n[last] - 2 * goal)
        if off < best:
            best, start = off, first
    return [ModelSize(*rung) for rung in SIZE_LADDER[start : start + sizes]]


def spread_sizes(planner: Planner, centre: float, sizes: int, more: float = 0.0) -> list[ModelSize]:
    """`sizes` rungs of the planner's ladder around N = centre, two doublings either side (fewer for up to 4 sizes).

    `more` is added to either side, in ln N.
    """
    ladder = planner.ladder
    ln_n = np.log([planner.n(size) for size in ladder])
    reach = min(2.0, (sizes - 1) / 2) * math.log(2) + more
    middle = np.clip(math.log(centre), ln_n[0] + reach, max(ln_n[0] + reach, ln_n[-1] - reach))
    free = list(range(len(ladder)))
    picked = []
    for goal in np.linspace(-reach, reach, sizes) + middle:
        if free:
            distances = [abs(ln_n[i] - goal) for i in free]
            picked.append(free.pop(int(np.argmin(distances))))
    return [ladder[i] for i in sorted(picked)]


def depth_sizes(depths) -> list[ModelSize]:
    """The one-knob family: N layers, width 64 N."""
    sizes = []
    for depth in depths:
        row = from_depth(depth)
        sizes.append(ModelSize(row["n_embd"], row["n_layer"], row["n_embd"] // row["head_size"]))
    return sizes


def ablation_sizes(sc, planner: Planner) -> list[ModelSize]:
    """The sizes of --ablation, the same at every budget: they reach further the further apart the budgets are."""
    if sc.depths or sc.n_embds:
        return sizes_of(sc, planner, None, 0.0)
    low, high = math.log(min(sc.flop_budgets)), math.log(max(sc.flop_budgets))
    centre = guess_n_opt(math.exp((low + high) / 2))
    return spread_sizes(planner, centre, sc.sizes, 0.25 * (high - low))


def best_guess(flops: float, rows: list[dict]) -> float | None:
    """N* at `flops` from this sweep's own finished runs below it; None without any.

    Each budget gives one N*: the vertex of its parabola or, where the lowest run is at an end of the sizes, that run's
    N. A line through them in logs, its slope held near PRIOR_SLOPE while they are few, is read at `flops`.
    """
    rows = [r for r in rows if r["status"] == "ok" and float(r["flop_budget"]) < 0.99 * flops]
    if not rows:
        return None
    columns = []
    for name in ("n_params_matmul", "tokens", "flops", "val_loss", "flop_budget"):
        columns.append(np.array([float(r[name]) for r in rows]))
    n, _, _, loss, budget = columns
    optima = {}
    for found in fit_isoflop(*columns, resamples=0).budgets:
        at = found.rows
        if at is not None and len(at):
            lowest = float(n[at][np.argmin(loss[at])])
            optima[float(budget[at[0]])] = found.n_opt or lowest
    if not optima:
        return None
    x, y = np.log(list(optima)), np.log(list(optima.values()))
    dx, dy = x - x.mean(), y - y.mean()
    slope = (PRIOR_WEIGHT * PRIOR_SLOPE + (dx * dy).sum()) / (PRIOR_WEIGHT + (dx * dx).sum())
    return float(np.exp(y.mean() + np.clip(slope, 0.2, 0.8) * (math.log(flops) - x.mean())))


# ----- learning rates -----


def best_rate(rates, losses) -> tuple[float, bool]:
    """The rate of least loss, and whether it is the first or the last one tried.

    Within: the vertex of a parabola of the loss in ln rate, runs NEAR_BEST above the lowest weighing half, kept between
    the lowest run's neighbours.
    """
    order = np.argsort(rates)
    rates, losses = np.asarray(rates, float)[order], np.asarray(losses, float)[order]
    i = int(np.argmin(losses))
    if i in (0, len(rates) - 1):
        return float(np.exp(np.log(rates[i]))), True
    x = np.log(rates)
    weights = 1 / (1 + ((losses / losses[i] - 1) / NEAR_BEST) ** 2)
    bend, slope, _ = np.polyfit(x - x[i], losses, 2, w=np.sqrt(weights))
    at = -slope / (2 * bend) if bend > 0 else 0.0
    return float(np.exp(np.clip(x[i] + at, x[i - 1], x[i + 1]))), False


def rate_between(n: float, ends: list[tuple[float, float]]) -> float:
    """The rate at size n between two sizes whose best rates are known: [(n, rate), (n, rate)], straight in logs."""
    (n0, r0), (n1, r1) = ends
    if n0 == n1:
        return r0
    share = (math.log(n) - math.log(n0)) / (math.log(n1) - math.log(n0))
    return float(math.exp(math.log(r0) + share * (math.log(r1) - math.log(r0))))


# ----- the sizes of a budget, kept so that the same command has the same cells -----


def decided(folder: Path, drop: bool = False, save: bool = False) -> dict:
    """grid.json: what sizes were decided for each budget; {} where there is none.

    drop : leave out entries that hold no sizes; with `save` the file is kept as grid.bad.json.
    UserError, with the entry, where one is wrong.
    """
    path, problem, good = Path(folder) / "grid.json", "", {}
    try:
        kept = files.read_json(path)
        if not isinstance(kept, dict):
            problem = f"{path} is no object with the sizes of each budget"
            kept = {}
    except FileNotFoundError:
        return {}
    except UserError as error:
        kept, problem = {}, str(error)
    for key, entry in kept.items():
        mistake = mistake_in(entry)
        if mistake:
            problem = problem or f"{path}, {key!r}: {mistake}"
        else:
            good[key] = entry
    if problem and not drop:
        raise UserError(wrong_text(problem, 1, free_name(path), "sizes are decided anew"))
    if problem and save:
        move_aside(path)
        files.write_json(path, good, indent=1)
    return good


def mistake_in(entry) -> str:
    """What is wrong with an entry of grid.json, "" where nothing is."""
    if not isinstance(entry, dict) or not isinstance(entry.get("shapes"), list) or not entry["shapes"]:
        return "it has no shapes, a list of [width, depth]"
    for size in entry["shapes"]:
        good = isinstance(size, list) and len(size) == 2
        for value in size if good else ():
            good = good and type(value) is int and 0 < value <= MOST_WIDTH
        if not good:
            return f"shapes has {json.dumps(size)[:40]}, which must be [width, depth], positive whole numbers"
    return ""


def budget_key(flops: float, sizes: int, planner: Planner) -> str:
    """The key of a budget in grid.json; it differs between models and vocabularies."""
    model = {name: str(value) for name, value in sorted(planner.typed(ModelConfig).items())}
    model["preset"] = planner.flags.get("preset")
    tail = hashlib.sha256(json.dumps([model, planner.vocab_size, planner.source]).encode()).hexdigest()[:8]
    return f"{flops:g} {sizes} sizes {tail}"


def moving_sizes(sc, planner: Planner, results, flops: float, save: bool) -> list[ModelSize]:
    """Sizes around the fit of the budgets below this one, or those that were decided earlier."""
    kept, key = decided(results.folder, sc.drop_bad_rows, save), budget_key(flops, sc.sizes, planner)
    if key not in kept:
        own = best_guess(flops, results.rows)
        centre = own or guess_n_opt(flops)
        pairs = [size[:2] for size in spread_sizes(planner, centre, sc.sizes)]
        kept[key] = {"centre": round(centre), "by": "own fits" if own else "D = 20 N", "shapes": pairs}
        if save:
            files.write_json(results.folder / "grid.json", kept, indent=1)
    return [ModelSize(width, layers) for width, layers in kept[key]["shapes"]]


# ----- the cells -----


def sizes_of(sc, planner: Planner, results, flops: float, save: bool = False) -> list[ModelSize]:
    """The model sizes of one budget. save : whether sizes that follow the results are kept in grid.json."""
    if sc.depths:
        return depth_sizes(sc.depths)
    if sc.n_embds:
        depths = sc.n_layers or [default_depth(width) for width in sc.n_embds]
        if planner.constraints and not sc.n_layers:
            depths = [int(planner.constraints.nearest("n_layer", depth)) for depth in depths]
        heads = sc.n_heads or [None] * len(depths)
        return [ModelSize(*size) for size in zip(sc.n_embds, depths, heads, strict=True)]
    if sc.moves:
        return moving_sizes(sc, planner, results, flops, save)
    if planner.constraints:
        return spread_sizes(planner, guess_n_opt(flops), sc.sizes)
    return default_sizes(flops, planner.vocab_size, sc.sizes)


def rates_of(sc, planner: Planner, results, flops: float, sizes) -> tuple[list[Cell], list]:
    """(probes of a budget, [(N, best rate, on the edge?)] of its smallest and largest size as far as they have run).

    With --seeds each rate is tried with all of them, and has their mean loss: seeds move a small model's loss by more
    than rates do. A rate that failed with any seed is left out. A probe may be a run of the grid, too (the best rate
    was the first tried), so that losses are taken from all rows.
    """
    losses = {r["run_id"]: float(r["val_loss"]) for r in results.all_rows() if r["status"] == "ok"}
    ordered = sorted(sizes, key=planner.n)
    probes, ends = [], []
    for size in dict.fromkeys((ordered[0], ordered[-1])):
        base = planner.cell(size, flops)
        if base.refused:
            continue
        rates = sc.lrs or [round(base.plan.lr * factor, 6) for factor in TUNE_FACTORS]
        if planner.constraints and not sc.lrs:
            rates = planner.constraints.rates(rates)
        found = {}
        for rate in sorted(set(rates)):
            tried = []
            for seed in sc.seeds or [None]:
                tried.append(planner.cell(size, flops, seed, {"lr": rate}, probe=True, lr_from="tried"))
            probes += tried
            if all(c.run_id in losses for c in tried):
                found[rate] = float(np.mean([losses[c.run_id] for c in tried]))
        if len(found) >= 3:
            ends.append((base.plan.n_params_matmul, *best_rate(list(found), list(found.values()))))
    return probes, ends


def trunk_cells(sc, planner: Planner, sizes: dict[float, list[ModelSize]]) -> list[Cell]:
    """The cells of --reuse_trunk: for each size a trunk and its branches. sizes : of each budget."""
    budgets_of = {}
    for flops, group in sizes.items():
        for size in group:
            budgets_of.setdefault(size, []).append(flops)
    cells = []
    for seed in sc.seeds or [None]:
        for size, budgets in budgets_of.items():
            cells += planner.family(size, budgets, seed)
    return cells


def budget_cells(sc, planner: Planner, flops: float, sizes: list[ModelSize], ends: list) -> list[Cell]:
    """The cells of one budget. ends : of rates_of(), or empty where rates are not tuned."""
    cells = []
    for i, size in enumerate(sizes):
        tuned, about = {}, {}
        if ends and not planner.refuses(size):
            tuned["lr"] = rate_between(planner.n(size), [ends[0][:2], ends[-1][:2]])
            about = {"lr_from": "tuned", "lr_on_edge": int(any(on_edge for _, _, on_edge in ends))}
        seeds = sc.seeds or [None]
        if sc.seeds_on == "middle" and i != len(sizes) // 2:
            seeds = seeds[:1]
        for seed in seeds:
            cells.append(planner.cell(size, flops, seed, tuned, **about))
    return cells


def ladder_cells(sc, planner: Planner) -> list[Cell]:
    """The cells of --tokens_per_params: every size on each so many tokens per parameter, C = 6 N D; cheapest first."""
    cells = []
    for ratio in sc.tokens_per_params:
        for size in sizes_of(sc, planner, None, 0.0):
            n = 1 if planner.refuses(size) else planner.n(size)
            for seed in sc.seeds or [None]:
                cells.append(planner.cell(size, 6.0 * ratio * n * n, seed))
    return sorted(cells, key=lambda cell: cell.flop_budget)


def setting_cells(sc, planner: Planner, flops: float, sizes: list[ModelSize]) -> list[Cell]:
    """The cells of one budget of --lrs with --batches: each size (and seed) at every rate and batch.

    UserError where a batch can be had with no size.
    """
    cells = []
    for batch in sc.batches:
        with_it = []
        for size, rate, seed in itertools.product(sizes, sc.lrs, sc.seeds or [None]):
            setting = {"lr": rate, "batch_size": None, "total_batch_size": batch}
            with_it.append(planner.cell(size, flops, seed, setting, lr_from="tried"))
        if all(cell.refused for cell in with_it):
            raise UserError(f"--batches {batch} at {flops:g} FLOPs: {with_it[0].refused}")
        cells += with_it
    return cells


def stages(sc, planner: Planner, results, save: bool = True) -> Iterator[list[Cell]]:
    """Lists of cells, each planned when those before it have run (or, in a dry run, as if they never had).

    save : whether sizes that follow the results are kept in grid.json.
    """
    if sc.tokens_per_params:
        yield list({c.run_id: c for c in ladder_cells(sc, planner)}.values())
        return
    budgets = sorted(set(sc.flop_budgets))
    groups = [[flops] for flops in budgets] if sc.moves else [budgets]
    tunes = bool(sc.lrs or sc.tune_lr) and not sc.batches
    for group in groups:
        sizes = {flops: sizes_of(sc, planner, results, flops, save) for flops in group}
        if tunes:
            probes = []
            for flops in group:
                probes += rates_of(sc, planner, results, flops, sizes[flops])[0]
            yield probes
        cells = []
        if sc.reuse_trunk:
            cells = trunk_cells(sc, planner, sizes)
        elif sc.batches:
            for flops in group:
                cells += setting_cells(sc, planner, flops, sizes[flops])
        else:
            for flops in group:
                ends = []
                if tunes:
                    ends = rates_of(sc, planner, results, flops, sizes[flops])[1]
                cells += budget_cells(sc, planner, flops, sizes[flops], ends)
        yield list({c.run_id: c for c in cells}.values())

"""The runs that sweep.py --design adaptive chooses from, and what each costs beside those that are known.

Sizes are those of the planner's ladder (or the typed ones); each has a grid of token counts D, with which its FLOPs are
the target's over a power of STEP (or a service's budgets). Left out are runs of fewer than FEW_STEPS steps, of more
than MANY_EPOCHS epochs, outside MIN_RATIO to MAX_RATIO tokens per parameter, and models whose weights and moments don't
fit into memory.

Runs are separate, with batch and rate by the rules at their own D; or with --reuse_trunk those of one size share a
trunk at a constant rate. Then batch and rate are the rules' at TRUNK_RATIO tokens per parameter for all D, which bends
the loss of runs far from it, and a run costs what lies beyond the nearest checkpoint that an earlier one has left.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from isoflop import gpus
from isoflop.fit.design import FIRST_KINDS, FIRST_RUNS
from isoflop.fit.knowledge import Candidates
from isoflop.options import UserError
from isoflop.sweep import grid
from isoflop.sweep.cells import Cell, ModelSize, Planner
from isoflop.sweep.executors import expected_hours
from isoflop.train.plan import FEW_STEPS, MANY_EPOCHS

STEP = math.sqrt(2)  # of the grid of D
MIN_RATIO, MAX_RATIO = 2.0, 500.0  # tokens per parameter
SPAN = 100.0  # of the dearest run over the cheapest: cheaper ones bend a fit more than they tell
TRUNK_RATIO = 20.0  # tokens per parameter at which a trunk has its batch and rate
TRUNK_SHORTEST = 8.0  # the warm-up is that of a run so much shorter
CPU_SPEED, PEAK_SHARE = 1e9, 0.1  # FLOP/s before any run is timed: per core, and of a GPU's peak
STATE_BYTES = 16  # of a parameter: weights, gradient and two moments


@dataclass
class Pool:
    """Cells to choose from, `seeds` runs of each at most, and why others are not among them: {reason: number}."""

    cells: list[Cell]
    left_out: dict

    def sizes(self) -> int:
        return len({cell.size for cell in self.cells})

    def enough(self) -> bool:
        """Whether a first round can be made of them."""
        lengths = {round(math.log(cell.plan.tokens), 1) for cell in self.cells}
        return len(self.cells) >= FIRST_RUNS and min(self.sizes(), len(lengths)) >= FIRST_KINDS


def make_pool(sc, planner: Planner, least: float, most: float, room_gb: float | None = None) -> Pool:
    """
    The runs that cost from `least` to `most` FLOPs by themselves, and no more than the target.

    Parameters
    ----------
    sc : has target_flops, reuse_trunk, n_embds, n_layers, n_heads and depths, as SweepConfig.
    room_gb : memory of the device that one process may fill; None: unknown.
    """
    pool, known = Pool([], {}), set()
    for size in sizes_of(sc, planner):
        if planner.refuses(size):
            continue
        shared = trunk_flags(sc, planner, size, None)
        dearest = min(most, sc.target_flops)
        for flops in budgets_of(planner.n(size), sc.target_flops, least, dearest, planner.constraints):
            cell = planner.cell(size, flops, None, shared)
            reason = why_not(cell, room_gb)
            if reason:
                pool.left_out[reason] = pool.left_out.get(reason, 0) + 1
            elif cell.run_id not in known:
                pool.cells.append(cell)
                known.add(cell.run_id)
    return pool


def sizes_of(sc, planner: Planner) -> list[ModelSize]:
    if sc.n_embds or sc.depths:
        return grid.sizes_of(sc, planner, None, 0.0)
    return planner.ladder


def budgets_of(n: float, target: float, least: float, most: float, constraints=None) -> list[float]:
    """FLOPs of the token counts of one size, from low to high; the same whatever `least` and `most` are."""
    low = max(least, 6 * n * n * MIN_RATIO)
    high = min(most, 6 * n * n * MAX_RATIO) * (1 + 1e-9)
    listed = constraints.budgets(low, high) if constraints else None
    if listed is not None:
        return listed
    first = math.ceil(math.log(target / high) / math.log(STEP))
    last = math.floor(math.log(target / low) / math.log(STEP) + 1e-9)
    return [float(f"{target / STEP**k:.6g}") for k in range(last, first - 1, -1)]


def trunk_flags(sc, planner: Planner, size: ModelSize, seed: int | None) -> dict | None:
    """Fields of TrainConfig that all runs of a size share with --reuse_trunk; None without."""
    if not sc.reuse_trunk:
        return None
    flops = 6 * planner.n(size) ** 2 * TRUNK_RATIO
    middle = planner.cell(size, flops, seed)
    if middle.refused:
        return None
    return planner.shared_flags(middle, flops / TRUNK_SHORTEST)


def why_not(cell: Cell, room_gb: float | None) -> str:
    """Why a run can't be chosen, "" where it can."""
    if cell.refused:
        return cell.refused
    plan = cell.plan
    if plan.steps < FEW_STEPS:
        return f"under {FEW_STEPS} steps"
    if plan.epochs is not None and plan.epochs > MANY_EPOCHS:
        return f"over {MANY_EPOCHS} epochs of the text"
    if room_gb and STATE_BYTES * plan.n_params > 1e9 * room_gb:
        return f"over {room_gb:.0f} GB"
    return ""


# ----- what a first round needs -----


def check_first_round(sc, planner: Planner, money: float, pool: Pool, room_gb: float | None):
    """UserError, with a sum that is enough, where the money or the target is too small for what any law needs."""
    if pool.enough() and first_cost(pool.cells) <= money:
        return
    every = make_pool(sc, planner, 1.0, sc.target_flops, room_gb)
    if every.enough():
        need = max(first_cost(every.cells), largest_needed(every.cells) / sc.max_cell_share)
        flag = "--total_flops"
        raise UserError(
            f"{flag} {money:.3g} is too small for a first round, {FIRST_RUNS} runs of {FIRST_KINDS} sizes and "
            f"{FIRST_KINDS} lengths: give at least {rounded_up(need)}"
        )
    reasons = sorted(every.left_out, key=lambda reason: -every.left_out[reason])
    why = f"; left out: {', '.join(reasons[:3])}" if reasons else ""
    raise UserError(
        f"--target_flops {sc.target_flops:g} can't be bracketed: {len(every.cells)} runs of {every.sizes()} sizes can "
        f"be made below it, a first round needs {FIRST_RUNS} of {FIRST_KINDS}{why}; raise it, or give other --n_embds, "
        "a smaller --batch_size or more text"
    )


def cheapest_kinds(cells: list[Cell]) -> list[Cell]:
    """The cheapest runs that make a first round: FIRST_RUNS of them, of FIRST_KINDS sizes and lengths."""
    taken, sizes, lengths = [], set(), set()
    ordered = sorted(cells, key=lambda c: (c.plan.flops, c.run_id))
    for cell in ordered:
        length = round(math.log(cell.plan.tokens), 1)
        new_size = cell.size not in sizes and len(sizes) < FIRST_KINDS
        new_length = length not in lengths and len(lengths) < FIRST_KINDS
        missing = max(FIRST_KINDS - len(sizes), FIRST_KINDS - len(lengths))
        if new_size or new_length or len(taken) + missing < FIRST_RUNS:
            taken.append(cell)
            sizes.add(cell.size)
            lengths.add(length)
        if len(taken) >= FIRST_RUNS and min(len(sizes), len(lengths)) >= FIRST_KINDS:
            break
    return taken


def first_cost(cells: list[Cell]) -> float:
    return sum(cell.plan.flops for cell in cheapest_kinds(cells))


def largest_needed(cells: list[Cell]) -> float:
    return max(cell.plan.flops for cell in cheapest_kinds(cells))


def rounded_up(value: float) -> str:
    digit = 10.0 ** (math.floor(math.log10(value)) - 1)
    return f"{math.ceil(value / digit) * digit:.3g}"


# ----- what can be chosen now -----


def first_speed(env) -> float:
    """FLOP/s of a run before any is timed, a low guess."""
    from isoflop.device import device_name

    gpu = gpus.find(device_name(env.device)) if env.device != "cpu" else None
    return env.size * (PEAK_SHARE * gpu.peak if gpu else CPU_SPEED)


class Menu:
    """
    The cells that can be chosen now, and what each costs once others are taken.

    A cell that has run is there with the next seed, but not of a service, which has none. Where memory ran out, sizes
    as large are not.

    Parameters
    ----------
    kept : as Design.kept().
    rows : of runs.csv.
    """

    def __init__(self, pool: Pool, kept: dict, rows: list[dict], design):
        self.design, self.kept = design, kept
        self.cells, self.replicates = [], []
        have = {row["run_id"] for row in rows}
        failed = have - {row["run_id"] for row in rows if row["status"] == "ok"}
        too_large = min([float(r["n_params"] or math.inf) for r in rows if r["status"] == "oom"], default=math.inf)
        for cell in pool.cells:
            replicate = 0
            while cell.run_id in have and cell.run_id not in failed:
                replicate += 1
                cell = design._cell(cell.size, cell.flop_budget, cell.seed + 1)
            if replicate and design.sc.api:  # a service has no seeds: it would give the same loss again
                continue
            if cell.run_id not in failed and cell.plan.n_params < too_large:
                self.cells.append(cell)
                self.replicates.append(replicate)
        self.at = [branch_step(cell) if design.sc.reuse_trunk else 0 for cell in self.cells]
        self.family = {}
        for i, cell in enumerate(self.cells):
            self.family.setdefault((cell.size, cell.seed), []).append(i)

    def candidates(self, results, unit: str | None = None) -> Candidates:
        """The cells as choose() takes them. unit : of their cost, FLOPs or hours; by default the design's."""
        n, d, cost, c = [], [], [], []
        for cell in self.cells:
            n.append(cell.plan.n_params_matmul)
            d.append(cell.plan.tokens)
            cost.append(cell.cost)
            c.append(cell.plan.flops)
        n, d, cost, c = (np.array(column, float) for column in (n, d, cost, c))
        if (unit or self.design.unit) == "hours":
            self.scale = self._hours(results, cost)
        else:
            self.scale = np.ones(len(cost))
        return Candidates(n, d, cost * self.scale, c, np.array(self.replicates), self.costs)

    def _hours(self, results, cost) -> np.ndarray:
        """Hours of a FLOP of each cell."""
        hours = np.array([expected_hours(cell, results) for cell in self.cells])
        guess = cost / first_speed(self.design.planner.env) / 3600
        return np.where(hours > 0, hours, guess) / cost

    def start_of(self, i: int, taken: list[int]) -> int:
        """The latest checkpoint that cell i can start from once `taken` have run; 0 where there is none."""
        cell, at = self.cells[i], self.at[i]
        steps = [step for step in self.kept.get((cell.size, cell.seed), ()) if step <= at]
        for j in taken:
            if j != i and (self.cells[j].size, self.cells[j].seed) == (cell.size, cell.seed):
                steps.append(min(self.at[j], at))
        return max(steps, default=0) if at else 0

    def costs(self, taken: list[int]) -> np.ndarray:
        """(J,) marginal cost of every cell once `taken` have run."""
        out = []
        for i, cell in enumerate(self.cells):
            start = self.start_of(i, taken)
            out.append(cell.plan.flops * (1 - start / cell.plan.steps) if start else cell.cost)
        return np.array(out) * self.scale

    def take(self, decisions) -> list[Cell]:
        """The chosen cells with what they start from and what they leave, in the order of their choice."""
        out, taken, kept = [], [], {family: dict(steps) for family, steps in self.kept.items()}
        for decision in decisions:
            i = decision.index
            cell, family = self.cells[i], (self.cells[i].size, self.cells[i].seed)
            if self.design.sc.reuse_trunk and self.at[i]:
                start, steps = self.start_of(i, taken), kept.setdefault(family, {})
                mine = sorted({self.at[j] for j in self.family[family] if start < self.at[j] <= self.at[i]})
                keep = tuple((step, self.design._checkpoint(cell, step)) for step in mine)
                folder = self.design._checkpoint(cell, start) if start else None
                cell = replace(cell, start=folder, start_step=start, trunk=steps.get(start), keep=keep)
                steps.update(dict.fromkeys(mine, cell.run_id))
            taken.append(i)
            out.append(cell)
        return out


def branch_step(cell: Cell) -> int:
    """The last step at a constant rate, at which a run can leave its trunk; 0 where there is none."""
    at = cell.plan.steps - cell.plan.cooldown_steps
    return at if cell.plan.warmup_steps < at < cell.plan.steps else 0

"""The grid that tells most about the exponent a of N* ~ C^a for what may be spent: `sweep.py --design exponent`.

    python sweep.py --design exponent --total_flops 1e14 --seeds 0 1 2 --ablation porian --data_dir data/mine

Grids of that cost are tried on losses drawn from a law: how many budgets, how far apart, how many sizes. The one whose
fitted a is nearest to the law's, noise and the bend of the valleys both counted, is taken. --total_flops is the price
of the whole grid: other runs in --out_dir do not count, and what a kill cuts off is spent on top.
"""

import dataclasses
import itertools
import math

import numpy as np

from isoflop.fit.isoflop import fit_isoflop
from isoflop.laws import parse_law, simulate
from isoflop.options import UserError
from isoflop.sweep import ablation, grid
from isoflop.sweep.cells import Planner
from isoflop.sweep.power import centred

N_BUDGETS, RATIOS, N_SIZES = (3, 4), (8, 16, 32, 64), (5, 7, 9)  # what is tried
REACHES = (0.7, 1.4)  # of the sizes, in ln N either side of the N* of the lowest and of the highest budget
MIN_STEPS = 100  # of every run: with fewer, warm-up and decay bend the law more than what is studied
DRAWS = 60  # simulated sweeps of each grid


def chosen(sc, planner: Planner, other: Planner | None):
    """sc with the budgets and sizes of the best grid that its --total_flops buys, and a line that says so.

    The same flags choose the same grid, whatever has been run, so that the same command resumes. UserError where the
    money buys no grid.
    """
    best = None
    for shape in itertools.product(RATIOS, N_BUDGETS, N_SIZES, REACHES):
        asked = whole(sc, planner, other, *shape)
        if asked:
            error = error_of_a(asked, planner)
            if best is None or error < best[0]:
                best = error, asked
    if best is None:
        raise UserError(
            f"--total_flops {sc.total_flops:g} buys no grid whose runs all have {MIN_STEPS} steps; "
            f"{enough(sc, planner, other)}"
        )
    error, asked = best
    budgets = " ".join(f"{c:g}" for c in asked.flop_budgets)
    text = f"design: budgets {budgets}, {len(asked.n_embds)} sizes each; the a of a grid is expected within "
    text += f"{error:.3f} (root mean square over {DRAWS} draws, noise {sc.noise:.2%})"
    return dataclasses.replace(asked, total_flops=None), text  # a cap that counts other runs would cut the grid short


def enough(sc, planner: Planner, other: Planner | None) -> str:
    """The way out of a --total_flops that buys nothing: what would."""
    for doubling in range(1, 60):
        more = dataclasses.replace(sc, total_flops=float(f"{sc.total_flops * 2**doubling:.3g}"))
        if whole(more, planner, other, RATIOS[0], N_BUDGETS[0], N_SIZES[0], REACHES[0]):
            return f"{more.total_flops:g} would, for one; give that or more"
    return "leave --design out, and give --flop_budgets and --sizes"


def whole(sc, planner: Planner, other: Planner | None, *shape):
    """affordable() with every variant of an ablation; None where one of its cells can't be trained, too."""
    copies = len(sc.seeds or [None])
    if sc.ablation:
        copies *= len(ablation.VARIANTS)
    for _ in range(2):  # variants share cells, or cost more: how many copies of the first they are, a grid shows
        asked = affordable(sc, planner, copies, *shape)
        if asked is None:
            return None
        cells = all_cells(asked, planner, other)
        if any(cell.refused for cell in cells):
            return None
        cost = sum(cell.cost for cell in cells)
        copies = cost / sum(cell.cost for cell in base(asked, planner))
    return asked if cost <= sc.total_flops else None


def affordable(sc, planner: Planner, copies: float, ratio: float, n_budgets: int, n_sizes: int, reach: float):
    """sc with a grid that costs --total_flops, its `copies` included; None where a run would be too short."""
    goal = 0.98 * sc.total_flops / copies  # the rest is for whole steps
    shape = np.geomspace(1 / ratio, 1, n_budgets)
    budgets = tuple(float(f"{c:.3g}") for c in shape * goal / n_sizes / shape.sum())
    optima = [math.log(grid.guess_n_opt(c)) for c in (budgets[0], budgets[-1])]
    ladder = np.log([planner.n(size) for size in planner.ladder])
    goals = np.linspace(optima[0] - reach, optima[1] + reach, n_sizes)
    sizes = [planner.ladder[i] for i in sorted({int(np.argmin(abs(ladder - goal))) for goal in goals})]
    widths, depths = tuple(s.n_embd for s in sizes), tuple(s.n_layer for s in sizes)
    asked = dataclasses.replace(sc, design=None, flop_budgets=budgets, n_embds=widths, n_layers=depths)
    cells = base(asked, planner)
    if len(sizes) < n_sizes or any(c.refused or c.plan.steps < MIN_STEPS for c in cells):
        return None
    return asked


def base(sc, planner: Planner) -> list:
    """The cells of one seed, and of an ablation the first variant's."""
    sizes = grid.ablation_sizes(sc, planner)
    return [planner.cell(size, budget) for size, budget in itertools.product(sizes, sc.flop_budgets)]


def all_cells(sc, planner: Planner, other: Planner | None) -> list:
    """Every cell that is trained, those of one seed as often as there are seeds."""
    one, seeds = dataclasses.replace(sc, seeds=None), len(sc.seeds or [None])  # no seed changes what a cell costs
    if not sc.ablation:
        return base(one, planner) * seeds
    stages = ablation.stages(one, planner, other)
    return list({cell.run_id: cell for stage in stages for cell in stage}.values()) * seeds


def error_of_a(sc, planner: Planner) -> float:
    """Root mean square of a's error over DRAWS sweeps from a law; one without an a counts as .5."""
    cells = base(sc, planner)
    n = np.array([c.plan.n_params_matmul for c in cells], float)
    d = np.array([c.plan.tokens for c in cells], float)
    c = np.array([c.plan.flops for c in cells], float)
    budget = np.array([c.flop_budget for c in cells], float)
    law = parse_law(sc.law) if sc.law else centred(parse_law("hoffmann"), n, budget)
    how = "local" if sc.ablation else "pooled"
    noise = sc.noise / math.sqrt(len(sc.seeds or [None]))
    errors = []
    for seed in range(DRAWS):
        a = fit_isoflop(n, d, c, simulate(law, n, d, noise, seed), budget, how=how, resamples=0, others=False).a
        errors.append(0.5 if a is None else a - law.exponents()[0])
    return float(np.sqrt(np.mean(np.square(errors))))

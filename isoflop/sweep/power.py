"""Power analysis: how wide the intervals of a grid's law will be, before anything is trained.

Losses are drawn from a known law at the very N and D of the grid, several times, and fitted by fit.py's own code.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np

from isoflop import display
from isoflop.files import read_json
from isoflop.fit.isoflop import fit_isoflop
from isoflop.fit.parametric import fit_parametric
from isoflop.laws import Law, parse_law, simulate
from isoflop.sweep.cells import Cell

DRAWS, RESAMPLES = 15, 400  # simulated sweeps, and resamples of each for its intervals


def own_law(out_dir: Path) -> Law | None:
    """The parametric law that a sweep in out_dir was fitted with before; None where there is none, or it is refused."""
    try:
        fit = read_json(Path(out_dir) / "fit.json")["parametric"]
        values = [float(fit[letter]["point"]) for letter in ("E", "A", "B", "alpha", "beta")]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not all(0 < value < math.inf for value in values):
        return None
    return Law(*values, source="this out_dir's fit.json")


def centred(law: Law, n, budget) -> Law:
    """The law with A such that its N*, at the budgets' geometric mean, is the geometric mean of the sizes."""
    c = math.exp(np.log(np.unique(budget)).mean())
    ratio = math.exp(np.log(n).mean()) / float(law.optimum(c)[0])
    return dataclasses.replace(law, A=law.A * ratio ** (law.alpha + law.beta))


def half_width(draws) -> float:
    """Half the width of the 95% interval of draws."""
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(high - low) / 2


def interval_widths(n, d, c, budget, law: Law, noise: float, flops: float, draws: int = DRAWS) -> dict:
    """Widths of the 95% intervals that fitting this grid gives, when its losses come from `law` with this noise.

    Parameters
    ----------
    n, d, c, budget : (R,) arrays of the cells: parameters, tokens, FLOPs spent and requested.
    noise : standard deviation of ln L between runs of one cell.
    flops : compute at which N* is predicted.

    Returns
    -------
    dict of method -> {"a": half-width, "b": half-width, "n_opt": factor up or down, "refused": share of the draws
    without an interval}; medians over `draws` simulated sweeps, each fitted by fit_parametric and fit_isoflop. The
    first three are None where half of the draws have no interval.
    """
    n, d, c, budget = (np.asarray(column, float) for column in (n, d, c, budget))
    found = {"isoflop": [], "parametric": []}
    for seed in range(draws):
        loss = simulate(law, n, d, noise, seed)
        isoflop = fit_isoflop(n, d, c, loss, budget, resamples=RESAMPLES, seed=seed)
        if isoflop.a is not None and isoflop.draws:
            a, b = isoflop.draws["a"], isoflop.draws["b"]
            ln_n = isoflop.draws["ln_k_n"] + a * math.log(flops)
            found["isoflop"].append((half_width(a), half_width(b), math.exp(half_width(ln_n))))
        parametric = fit_parametric(n, d, loss, resamples=RESAMPLES, seed=seed)
        if parametric.law is not None and parametric.draws is not None:
            a, b = parametric.draws.exponents()
            ln_n = np.log(parametric.draws.optimum(flops)[0])
            found["parametric"].append((half_width(a), half_width(b), math.exp(half_width(ln_n))))
    out = {}
    for method, rows in found.items():
        medians = (None, None, None)
        if len(rows) > draws / 2:
            medians = np.median(rows, axis=0)
        out[method] = dict(zip(("a", "b", "n_opt"), medians, strict=True)) | {"refused": 1 - len(rows) / draws}
    return out


def describe(cells: list[Cell], law_name: str | None, out_dir: Path, noise: float, predict_flops) -> str:
    """The power analysis of a grid as lines of text.

    Parameters
    ----------
    law_name : published name, or E=..,A=..; by default the law that out_dir was fitted with before, else Hoffmann's
        with its N* moved into the grid.
    predict_flops : computes at which N* is predicted; by default ten times the largest budget.
    """
    plans = [cell.plan for cell in cells if cell.plan and not cell.probe]
    n = np.array([plan.n_params_matmul for plan in plans], float)
    d = np.array([plan.tokens for plan in plans], float)
    c = np.array([plan.flops for plan in plans], float)
    budget = np.array([cell.flop_budget for cell in cells if cell.plan and not cell.probe], float)
    law, name = own_law(out_dir), "this out_dir's own fit"
    if law_name:
        law, name = parse_law(law_name), law_name
    elif law is None:
        law, name = centred(parse_law("hoffmann"), n, budget), "hoffmann with N* moved into the grid"
    lines = [f"power analysis: 95% intervals of this grid, losses drawn {DRAWS} times from {name}, noise {noise:.2%}:"]
    for flops in predict_flops or (10 * budget.max(),):
        at = display.flops(flops)
        for method, width in interval_widths(n, d, c, budget, law, noise, flops, DRAWS).items():
            refused = display.percent(width["refused"], 0)
            if width["a"] is None:
                lines.append(f"  {method:<10} no interval in {refused} of the draws: too few budgets or sizes")
                continue
            text = f"  {method:<10} a +- {width['a']:.3f}, b +- {width['b']:.3f}, "
            text += f"N* at {at} within a factor {width['n_opt']:.2f}"
            if width["refused"]:
                text += f"; refused in {refused} of the draws"
            lines.append(text)
        lines.append(f"  ({name}: N* {display.si(law.optimum(flops)[0])} at {at})")
    return "\n".join(lines)

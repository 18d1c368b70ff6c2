"""Power analysis: how wide the intervals of a grid's law will be."""

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from isoflop.fit.figures import flops as show_flops
from isoflop.fit.figures import size as show_size
from isoflop.fit.isoflop import fit_isoflop
from isoflop.fit.parametric import fit_parametric
from isoflop.laws import Law, parse_law, simulate
from isoflop.sweep.cells import Cell

DRAWS, RESAMPLES = 15, 400  # simulated sweeps, and resamples of each, that the worth of a grid is read from


# ----- what the grid is worth -----


def own_law(out_dir: Path) -> Law | None:
    """The surface that a sweep in out_dir was fitted with before; None where there is none, or it was refused."""
    try:
        p = json.loads((Path(out_dir) / "fit.json").read_text())["parametric"]
        return Law(*(p[k]["point"] for k in ("E", "A", "B", "alpha", "beta")), source="this out_dir's fit.json")
    except (OSError, ValueError, KeyError, TypeError):
        return None


def worth(n, d, c, budget, law: Law, noise: float, flops: float, draws: int = DRAWS) -> dict:
    """Widths of the 95% intervals that fitting this grid gives, when its losses come from `law` with this noise.

    Parameters
    ----------
    n, d, c, budget : (R,) arrays of the cells: parameters, tokens, FLOPs spent and asked for.
    noise : standard deviation of ln L between runs of one cell.
    flops : compute at which N* is predicted.

    Returns
    -------
    dict of method -> {"a": half-width, "b": half-width, "n_opt": factor up or down, "refused": share of the draws
    without an interval}; medians over `draws` simulated sweeps, each fitted by fit_parametric and fit_isoflop.
    """
    n, d, c, budget = (np.asarray(v, float) for v in (n, d, c, budget))
    found = {"isoflop": [], "parametric": []}
    for seed in range(draws):
        loss = simulate(law, n, d, noise, seed)
        i = fit_isoflop(n, d, c, loss, budget, resamples=RESAMPLES, seed=seed)
        if i.a is not None and i.draws:
            ln_n = i.draws["ln_k_n"] + i.draws["a"] * math.log(flops)
            found["isoflop"].append((*(half(i.draws[k]) for k in "ab"), math.exp(half(ln_n))))
        p = fit_parametric(n, d, loss, resamples=RESAMPLES, seed=seed)
        if p.law is not None and p.draws is not None:
            a, b = p.draws.exponents()
            found["parametric"].append((half(a), half(b), math.exp(half(np.log(p.draws.optimum(flops)[0])))))
    out = {}
    for method, rows in found.items():
        mid = np.median(rows, axis=0) if len(rows) > draws / 2 else (None,) * 3
        out[method] = dict(zip(("a", "b", "n_opt"), mid, strict=True)) | {"refused": 1 - len(rows) / draws}
    return out


def moved(law: Law, n, budget) -> Law:
    """The law with A such that its N*, at the budgets' geometric mean, is the geometric mean of the sizes there."""
    c = math.exp(np.log(np.unique(budget)).mean())
    ratio = math.exp(np.log(n).mean()) / float(law.optimum(c)[0])
    return dataclasses.replace(law, A=law.A * ratio ** (law.alpha + law.beta))


def half(draws) -> float:
    low, high = np.percentile(draws, (2.5, 97.5))
    return float(high - low) / 2


def worth_text(cells: list[Cell], law_name: str | None, out_dir: Path, noise: float, predict_flops) -> str:
    """The lines that --dry_run prints: what the law of this grid will be good for."""
    cells = [c for c in cells if c.plan and not c.probe]
    law, name = (parse_law(law_name), law_name) if law_name else (own_law(out_dir), "this out_dir's own fit")
    columns = zip(*((c.plan.n_params_matmul, c.plan.tokens, c.plan.flops, c.flop_budget) for c in cells), strict=True)
    columns = [np.array(v, float) for v in columns]
    if law is None:  # Hoffmann's valley, put where this grid looks for it
        law, name = moved(parse_law("hoffmann"), columns[0], columns[3]), "hoffmann with N* moved into the grid"
    lines = [f"what this grid is worth, losses drawn from {name} with a noise of {noise:.2%} ({DRAWS} draws, 95%):"]
    for flops in predict_flops or (10 * columns[3].max(),):
        result = worth(*columns, law, noise, flops)
        for method, w in result.items():
            if w["a"] is None:
                lines.append(f"  {method:<10} no interval in {w['refused']:.0%} of the draws: too few budgets or sizes")
                continue
            text = f"  {method:<10} a +- {w['a']:.3f}, b +- {w['b']:.3f}, N* at {show_flops(flops)} within a factor "
            text += f"{w['n_opt']:.2f}" + (f"; refused in {w['refused']:.0%} of the draws" if w["refused"] else "")
            lines.append(text)
        truth = law.optimum(flops)[0]
        lines.append(f"  ({name}: N* {show_size(float(truth))} at {show_flops(flops)})")
    return "\n".join(lines)

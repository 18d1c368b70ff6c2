"""Which cells a sweep has: sizes around the best guess, rates, trunks, and the plan of every cell.

Plain arithmetic on configurations. The plan of a cell is made by the code that will run it, plan.resolve().
"""

import hashlib
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from isoflop.config import ModelConfig, from_depth
from isoflop.fit.isoflop import fit_isoflop
from isoflop.flops import count_params
from isoflop.sweep.cells import SHAPES, Cell, Planner, Shape, default_depth
from isoflop.train.checkpoint import write

PRIOR_SLOPE = 0.5  # of ln N* over ln C before two budgets have shown another: Hoffmann et al. 2022, table 2
TUNE_FACTORS = (0.5, 0.71, 1.0, 1.41, 2.0)  # rates that --tune_lr tries, over the rule's
PRIOR_WEIGHT = 1.0  # what that prior weighs, in budgets an e-fold of C apart


# ----- sizes -----


def guess_n_opt(flops: float) -> float:
    """First guess of the best N (matmul) at a budget, to centre sizes on: D = 20 N (Hoffmann et al. 2022, table 3)."""
    return math.sqrt(flops / 120)


def default_shapes(flops: float, vocab_size: int, sizes: int, centre: float | None = None) -> list[tuple[int, int]]:
    """The `sizes` neighbours on the ladder of SHAPES that centre best, in ln N, on the best guess for this budget."""
    ln_n = [math.log(count_params(ModelConfig(d, w, vocab_size=vocab_size))["matmul"]) for w, d in SHAPES]
    goal = math.log(centre or guess_n_opt(flops))
    starts = range(max(1, len(SHAPES) - sizes + 1))
    start = min(starts, key=lambda i: abs(ln_n[i] + ln_n[min(i + sizes, len(SHAPES)) - 1] - 2 * goal))
    return list(SHAPES[start : start + sizes])


def spread_shapes(planner: "Planner", centre: float, sizes: int, more: float = 0.0) -> list[tuple[int, int]]:
    """`sizes` rungs of the ladder of SHAPES around N = centre, two doublings either side (fewer for up to 4 sizes).

    `more` is added to either side, in ln N.
    """
    ln_n = np.array([math.log(planner.n((*s, None))) for s in SHAPES])
    reach = min(2.0, (sizes - 1) / 2) * math.log(2) + more
    middle = np.clip(math.log(centre), ln_n[0] + reach, max(ln_n[0] + reach, ln_n[-1] - reach))
    picked = set()
    for goal in np.linspace(-reach, reach, sizes) + middle:
        free = [i for i in range(len(SHAPES)) if i not in picked]
        if free:
            picked.add(min(free, key=lambda i: abs(ln_n[i] - goal)))
    return [SHAPES[i] for i in sorted(picked)]


def best_guess(flops: float, rows: list[dict]) -> float | None:
    """N* at `flops` from this sweep's own finished runs below it; None without any.

    Each budget gives one N*: the vertex of its parabola or, where the lowest run is at an end of the sizes, that run's
    N. A line through them in logs, its slope held near PRIOR_SLOPE while they are few, is read at `flops`.
    """
    rows = [r for r in rows if r["status"] == "ok" and float(r["flop_budget"]) < 0.99 * flops]
    if not rows:
        return None
    n, d, c, loss, budget = (
        np.array([float(r[k]) for r in rows]) for k in ("n_params_matmul", "tokens", "flops", "val_loss", "flop_budget")
    )
    found = {}
    for v in fit_isoflop(n, d, c, loss, budget, resamples=0).budgets:
        at = v.rows if v.rows is not None else []
        if len(at):
            found[float(budget[at[0]])] = v.n_opt or float(n[at][np.argmin(loss[at])])
    if not found:
        return None
    x, y = np.log(list(found)), np.log(list(found.values()))
    dx, dy = x - x.mean(), y - y.mean()
    slope = (PRIOR_WEIGHT * PRIOR_SLOPE + (dx * dy).sum()) / (PRIOR_WEIGHT + (dx * dx).sum())
    return float(np.exp(y.mean() + np.clip(slope, 0.2, 0.8) * (math.log(flops) - x.mean())))


# ----- rates -----


def best_rate(rates, losses) -> tuple[float, bool]:
    """The rate of least loss, and whether it is the first or the last one tried.

    Within: the vertex of a parabola of the loss in ln rate, runs 2% above the lowest weighing half, kept between the
    lowest run's neighbours.
    """
    x, y = np.log(rates), np.asarray(losses, float)
    x, y = x[np.argsort(x)], y[np.argsort(x)]
    i = int(np.argmin(y))
    if i in (0, len(x) - 1):
        return float(np.exp(x[i])), True
    w = 1 / (1 + ((y / y[i] - 1) / 0.02) ** 2)
    bend, slope, _ = np.polyfit(x - x[i], y, 2, w=np.sqrt(w))
    at = -slope / (2 * bend) if bend > 0 else 0.0
    return float(np.exp(np.clip(x[i] + at, x[i - 1], x[i + 1]))), False


def rate_between(n: float, ends: list[tuple[float, float]]) -> float:
    """The rate at size n between two sizes whose best rates are known: [(n, rate), (n, rate)], straight in logs."""
    (n0, r0), (n1, r1) = ends
    if n0 == n1:
        return r0
    share = (math.log(n) - math.log(n0)) / (math.log(n1) - math.log(n0))
    return float(math.exp(math.log(r0) + share * (math.log(r1) - math.log(r0))))


def depth_shapes(depths) -> list[Shape]:
    """The one-knob family as shapes."""
    rows = [from_depth(d) for d in depths]
    return [(r["n_embd"], r["n_layer"], r["n_embd"] // r["head_size"]) for r in rows]


# ----- the grid that was decided for a budget, kept so that the same command runs the same cells again -----


def decided(folder: Path) -> dict:
    try:
        return json.loads((folder / "grid.json").read_text())
    except (OSError, ValueError):
        return {}


def budget_key(flops: float, sizes: int, planner: Planner) -> str:
    what = {k: str(v) for k, v in sorted(planner.of(ModelConfig).items())} | {"preset": planner.flags.get("preset")}
    tail = hashlib.sha256(json.dumps([what, planner.vocab_size, planner.source]).encode()).hexdigest()[:8]
    return f"{flops:g} {sizes} sizes {tail}"


# ----- which cells, as far as the results so far say -----


def sizes_of(sc, planner: Planner, book, flops: float) -> list[Shape]:
    """The shapes of one budget. What was decided once, on the fits of that day, is kept in json."""
    if sc.depths:
        return depth_shapes(sc.depths)
    if sc.n_embds:
        depths = sc.n_layers or [default_depth(w) for w in sc.n_embds]
        return list(zip(sc.n_embds, depths, sc.n_heads or [None] * len(depths), strict=True))
    if not sc.moves:
        return [(*s, None) for s in default_shapes(flops, planner.vocab_size, sc.sizes)]
    kept, key = decided(book.folder), budget_key(flops, sc.sizes, planner)
    if key not in kept:
        own = best_guess(flops, book.rows)
        centre = own or guess_n_opt(flops)
        kept[key] = {"centre": round(centre), "by": "own fits" if own else "D = 20 N"}
        kept[key]["shapes"] = spread_shapes(planner, centre, sc.sizes)
        if not sc.dry_run:
            write(book.folder / "grid.json", json.dumps(kept, indent=1))
    return [(w, d, None) for w, d in kept[key]["shapes"]]


def rates_of(sc, planner: Planner, book, flops: float, shapes) -> tuple[list[Cell], list]:
    """(probes of a budget, [(N, best rate, on the edge?)] of its smallest and largest size as far as they have run).

    With --seeds each rate is tried with all of them, and has their mean loss: seeds move a small model's loss by more
    than rates do. A rate that failed with any seed is left out.
    """
    probes, ends = [], []
    rows = {r["run_id"]: float(r["val_loss"]) for r in book.probe_rows if r["status"] == "ok"}
    ordered = sorted(shapes, key=planner.n)
    for shape in dict.fromkeys((ordered[0], ordered[-1])):
        base = planner.cell(shape, flops)
        if base.refused:
            continue
        factor = math.sqrt(planner.world.size) if base.tc.batch_size is not None else 1.0  # resolve() multiplies
        found = {}
        for rate in sorted(set(sc.lrs or [round(base.plan.lr / factor * f, 6) for f in TUNE_FACTORS])):
            about = {"more": {"lr": rate}, "probe": True, "lr_from": "tried"}
            tried = [planner.cell(shape, flops, seed, **about) for seed in sc.seeds or [None]]
            probes += tried
            if all(c.run_id in rows for c in tried):
                found[rate] = float(np.mean([rows[c.run_id] for c in tried]))
        if len(found) >= 3:
            ends.append((base.plan.n_params_matmul, *best_rate(list(found), list(found.values()))))
    return probes, ends


def stages(sc, planner: Planner, book) -> Iterator[list[Cell]]:
    """Lists of cells, each planned when those before it have run (or, in a dry run, as if they never had)."""
    budgets = sorted(set(sc.flop_budgets))
    for group in [[c] for c in budgets] if sc.moves else [budgets]:
        shapes = {c: sizes_of(sc, planner, book, c) for c in group}
        if sc.lrs or sc.tune_lr:
            yield [p for c in group for p in rates_of(sc, planner, book, c, shapes[c])[0]]
        cells = []
        if sc.reuse_trunk:
            at = {}
            for c in group:
                for shape in shapes[c]:
                    at.setdefault(shape, []).append(c)
            for seed in sc.seeds or [None]:
                cells += [cell for shape, cs in at.items() for cell in planner.family(shape, cs, seed)]
        else:
            for c in group:
                ends = rates_of(sc, planner, book, c, shapes[c])[1] if sc.lrs or sc.tune_lr else []
                for i, shape in enumerate(shapes[c]):
                    tuned, about = {}, {}
                    if ends and not planner.refuses(shape):
                        tuned = {"lr": rate_between(planner.n(shape), [ends[0][:2], ends[-1][:2]])}
                        about = {"lr_from": "tuned", "lr_on_edge": int(any(e[2] for e in ends))}
                    many = sc.seeds_on == "all" or i == len(shapes[c]) // 2
                    for seed in (sc.seeds or [None])[: None if many else 1]:
                        cells.append(planner.cell(shape, c, seed, tuned, **about))
        yield list({c.run_id: c for c in cells}.values())

"""submission.md: the run that a service's own losses recommend for a compute, as the form of a course asks for it.

python sweep.py --api URL --constraints docs/cs336_service.json --predict_flops 1e19
"""

import copy
import math

from isoflop import files
from isoflop.constraints import Constraints
from isoflop.display import estimate, fixed, flops, markdown_table, percent, si
from isoflop.fit.findings import forecast_source
from isoflop.options import UserError
from isoflop.sweep.cells import ModelSize, Planner

NEAR = 0.02  # sizes whose N is so near to N* are as good as it; of these the one that is built most usually
USUAL_SHAPE = 64  # width over depth
SPAN = 1.0  # of ln N, in which sizes are counted exactly


def write(planner: Planner, results, total_flops: float | None, counted: float | None = None) -> str:
    """Write submission.md for the largest compute of fit.json's forecast; returns a line that says so, or why not.

    counted : FLOPs that the service itself has counted.
    """
    fit = files.read_json(results.folder / "fit.json")
    rows = fit.get("forecast")
    if not rows:
        return "no submission.md: these runs give no forecast; prediction.md says what is missing"
    best = max(rows, key=lambda row: row["flops"])
    try:
        text = page(planner, results, fit, best, total_flops, counted)
    except UserError as error:
        return f"no submission.md: {error}"
    files.write_text(results.folder / "submission.md", text)
    return f"{results.folder / 'submission.md'}: the run to hand in for {flops(best['flops'])} FLOPs"


def page(planner: Planner, results, fit: dict, best: dict, total_flops: float | None, counted: float | None) -> str:
    """The page as Markdown. best : a row of the forecast."""
    n_opt, target = best["n_opt"]["point"], copy.copy(planner)
    names = {name: name for name in ("n_embd", "n_layer", "n_head", "batch_size", "lr")}
    if planner.constraints:
        target.constraints = planner.constraints.without("flop_budget")  # of the runs, not of the one handed in
        names |= {name: limit.name for name, limit in planner.constraints.allowed.items()}
    size = architecture(target, n_opt)
    cell = target.cell(size, best["flops"])
    if cell.refused:
        raise UserError(cell.refused)
    lr, lr_from = rate(cell, results.rows, planner.flags)
    n, convention = target.n(size), target.convention.replace("_", "-")
    rows = [
        ["model size N*", estimate(n_opt, best["n_opt"].get("pi95"), si)],
        [names["n_embd"], size.n_embd],
        [names["n_layer"], size.n_layer],
        [names["n_head"], cell.mc.n_head],
        [names["batch_size"], cell.plan.batch_size],
        [names["lr"], f"{lr:.3g}"],
        ["predicted loss", estimate(best["loss"]["point"], best["loss"].get("pi95"), fixed)],
        ["tokens D = C / 6N*", estimate(best["d_opt"]["point"], best["d_opt"].get("pi95"), si)],
    ]
    used = f"{results.spent():.4g} FLOPs"
    if total_flops:
        used = f"{results.spent():.4g} of {total_flops:.4g} FLOPs"
    if counted is not None:
        used += f"; the service itself has counted {counted:.4g}"
    off = percent(n / n_opt - 1, 1, sign=True)
    notes = [
        "In brackets: 95% intervals for a new run (`pi95`).",
        f"N counts {convention} parameters. This architecture has {si(n)}, {off} from N*{beyond(n / n_opt)}",
        f"The rate is {lr_from}.",
        f"Spent: {used}, in {len(results.rows)} runs.",
        f"From {source(fit)}; prediction.md beside this page has the laws, their tests and pictures.",
    ]
    head = f"# Submission: the best model for {flops(best['flops'])} FLOPs\n\n"
    return head + markdown_table(["", "value"], rows, align="l") + "\n\n" + "".join(f"- {note}\n" for note in notes)


def source(fit: dict) -> str:
    """Where the forecast comes from, as the end of a sentence."""
    return forecast_source(fit).removeprefix("forecast by ")


def beyond(ratio: float) -> str:
    """What to think of an architecture whose N is so many times N*."""
    if abs(math.log(ratio)) < 0.1:
        return "."
    side = "smaller" if ratio > 1 else "larger"
    return f": nothing {side} is allowed, and its loss will be above the predicted one."


def architecture(planner: Planner, n: float) -> ModelSize:
    """The allowed size whose N is nearest to n; of those within NEAR the one of the most usual width over depth."""
    limits = planner.constraints or Constraints("")
    shapes = list(limits.shapes())
    rough = {shape: abs(math.log(12 * shape[1] * shape[0] ** 2 / n)) for shape in shapes}  # N without the head
    reach, sizes = min(rough.values(), default=0) + SPAN, {}
    for shape in shapes:
        size = ModelSize(*shape)
        if rough[shape] <= reach and not planner.refuses(size):
            sizes[size] = abs(math.log(planner.n(size) / n))
    if not sizes:
        raise UserError(f"--constraints {limits.path}: no model is allowed; check d_model, num_layers and num_heads")
    most = max(NEAR, min(sizes.values()))
    near = [size for size, off in sizes.items() if off <= most]
    return min(near, key=lambda size: abs(math.log(size.n_embd / size.n_layer / USUAL_SHAPE)))


def rate(cell, rows: list[dict], flags: dict) -> tuple[float, str]:
    """(learning rate, what chose it): a typed one, the one found best at the largest budget, or the rule's."""
    if "lr" in flags:
        return cell.plan.lr, "the one of --lr"
    tuned = [row for row in rows if row["lr_from"] == "tuned" and row["status"] == "ok"]
    if tuned:
        top = max(float(row["flop_budget"]) for row in tuned)
        lowest = min((r for r in tuned if float(r["flop_budget"]) == top), key=lambda row: float(row["val_loss"]))
        return float(lowest["lr"]), f"that of the lowest loss at {top:.3g} FLOPs, where rates were tried"
    return cell.plan.lr, f"by rule ({cell.plan.hparams}), within what is allowed; none was tried (--tune_lr)"

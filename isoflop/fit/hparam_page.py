"""
fit.py --law_of hparams: the columns of rates and batches, the page and the picture of hparam_law.py.

    >>> section, text, draw = answer(table, options, targets=None)
"""

import textwrap

import numpy as np

from isoflop.display import estimate, interval, markdown_table, percent, sig
from isoflop.fit.axes import figure, legend, log_axis, size_tick, span
from isoflop.fit.hparam_law import HParamFit, PowerForm, fit_hparams
from isoflop.fit.names import SETTINGS, key_of
from isoflop.options import UserError

WIDTH = 100  # columns of the terminal
WANTED = tuple(SETTINGS)  # columns that table.read() is to keep


def answer(table, options, targets=None):
    """
    What fit.json holds of the law, its page, and a function that draws its picture.

    Parameters
    ----------
    table : Table
        Runs with settings; every run of an (N, D), not the best alone.
    options : fit.py's Options
    targets : Table, optional
        (N, D) whose best setting to give.

    Raises
    ------
    UserError
        No column of learning rates, or runs that determine no law.
    """
    if "lr" not in table.settings:
        raise UserError(
            "--law_of hparams: no column of learning rates (lr, peak_lr, learning_rate, max_lr); name it with --lr_col"
        )
    batch, unit = batch_of(table)
    good = np.isfinite(table.settings["lr"]) & (table.settings["lr"] > 0)
    if batch is not None:
        good &= np.isfinite(batch) & (batch > 0)
    if not good.any():
        raise UserError("--law_of hparams: no row has both a rate and a batch above 0; name others with --lr_col")
    if not good.all():
        table.info["notes"].append(f"{int((~good).sum()):,} runs have no rate or batch above 0: left out")
    table = table.select(good)
    if batch is not None:
        batch = batch[good]
    lr = table.settings["lr"]
    found = fit_hparams(table.n, table.d, table.c, table.loss, lr, batch, options.seed)
    section = to_json(found, table, batch, unit, targets)
    section["answer"] = lines(found, unit, section)

    def draw():
        return draw_hparams(found, unit)

    return section, page(found, section, unit), draw


def batch_of(table):
    """(batch of each run or None, its unit): tokens, where a column or the number of steps tells them."""
    columns = table.info["columns"]
    if "batch_tokens" in table.settings:
        name = columns["batch_tokens"]
        known = key_of(name) in SETTINGS["batch_tokens"].split()
        return table.settings["batch_tokens"], "tokens" if known else name
    if "steps" in table.settings:
        return table.d / table.settings["steps"], "tokens"
    if "batch" in table.settings:
        return table.settings["batch"], columns["batch"]
    return None, ""


# ----- words and numbers -----


def formula(form: PowerForm, symbol: str) -> str:
    """lr* = 1.79 N^-0.713 D^0.307."""
    terms = [f"{letter}^{sig(power, 3)}" for letter, power in form.exponents.items()]
    return f"{symbol}* = {' '.join([sig(form.k, 3), *terms])}"


def letters(form: PowerForm) -> str:
    """The intervals of a form's letters."""
    parts = [f"factor {interval(form.k_ci95, lambda x: sig(x, 3))}"]
    for letter in form.exponents:
        parts.append(f"{letter} {interval(form.ci95[letter], lambda x: sig(x, 3))}")
    return ", ".join(parts)


def _named(found):
    pairs = [("lr", found.lr)]
    if found.batch is not None:
        pairs.append(("B", found.batch))
    return pairs


def lines(found: HParamFit, unit, section) -> list[str]:
    """The answer for the terminal."""
    out = []
    for symbol, form in _named(found):
        if symbol == "B":
            unit_said = f" {unit}"
        else:
            unit_said = ""
        off = percent(np.expm1(form.held_out))
        out.append(f"{formula(form, symbol)}{unit_said}; ci95: {letters(form)}; a cell left out is missed by {off}")
    if found.batch is None:
        out.append("no batch law: no (N, D) has 3 batches; the rates are those at the runs' own batches")
    costs = ", ".join(f"{name} {percent(cost, 2)}" for name, cost in found.flat.items())
    out.append(f"what a miss costs in loss: {costs}")
    if np.isfinite(found.lr_of_batch):
        out.append(f"with another batch the best rate goes as B^{sig(found.lr_of_batch, 2)}")
    held = np.array(found.held_out)
    near = np.array([cell["nearest_over_best_run"] for cell in section["cells"] if cell["status"] == "ok"])
    out.append(
        f"at the {len(held)} (N, D), each left out, the law's setting costs {percent(np.median(held), 2)} of the loss "
        f"in the median, {percent(held.max(), 2)} at most, by the quadratics; the run nearest to it is "
        f"{percent(np.median(near), 2)} above the lowest run in the median, {percent(near.max(), 2)} at most"
    )
    for row in section["predictions"]:
        text = f"N {sig(row['n'])}, D {sig(row['d'])}: lr {sig(row['lr'], 3)}"
        if row["batch"] is not None:
            text += f", batch {sig(row['batch'], 3)} {unit}"
        out.append(text + (f" ({row['note']})" if row["note"] else ""))
    wrapped = []
    for text in out:
        wrapped += textwrap.wrap(text, WIDTH, subsequent_indent="    ")
    return wrapped


def to_json(found: HParamFit, table, batch, unit, targets) -> dict:
    """fit.json's section."""
    cells = []
    for cell in found.cells:
        row = {"n": cell.n, "d": cell.d, "flops": cell.c, "runs": cell.runs, "used": cell.used, "status": cell.status}
        row |= {"best_run_id": str(table.run_id[cell.best]), "best_run_loss": table.loss[cell.best]}
        if cell.x is not None:
            for i, name in enumerate(("lr", "batch")[: len(cell.x)]):
                row[name] = {"point": np.exp(cell.x[i]), "ci95": np.exp(cell.ci95[:, i])}
            row |= {"loss": cell.loss, "noise": cell.noise}
        cells.append(row)
    ok = found.ok
    answered = [row for row in cells if row["status"] == "ok"]
    for row, cell, cost, at in zip(answered, ok, found.held_out, found.held_out_at, strict=True):
        row["held_out_rise"] = cost
        row["nearest_over_best_run"] = nearest(cell, at, table, batch) / table.loss[cell.best] - 1
    measured = {name: [min(getattr(c, name) for c in ok), max(getattr(c, name) for c in ok)] for name in "nd"}
    return {
        "lr": vars(found.lr),
        "batch": None if found.batch is None else vars(found.batch),
        "batch_unit": unit,
        "n_convention": table.info["n_convention"],
        "measured": measured,
        "lr_forms": [vars(form) for form in found.lr_forms],
        "batch_forms": [vars(form) for form in found.batch_forms],
        "flatness": found.flat,
        "lr_of_batch": found.lr_of_batch,
        "cells": cells,
        "predictions": predict(found, measured, targets),
    }


def nearest(cell, at, table, batch) -> float:
    """The loss of a cell's run nearest to a setting in ln lr [and ln B]."""
    tried = np.log(table.settings["lr"][cell.rows])[:, None]
    if len(at) == 2:
        tried = np.concatenate([tried, np.log(batch[cell.rows])[:, None]], axis=1)
    return float(table.loss[cell.rows[np.argmin(((tried - at) ** 2).sum(1))]])


def predict(found: HParamFit, measured, targets) -> list[dict]:
    """The best setting at each row of a table of N and D, with a note where it lies outside of the cells."""
    out = []
    if targets is None:
        return out
    for n, d, c in zip(targets.n, targets.d, targets.c, strict=True):
        beyond = []
        for name, value in (("n", n), ("d", d)):
            low, high = measured[name]
            if value < low / 1.005 or value > high * 1.005:
                beyond.append(f"{name.upper()} outside {sig(low)} to {sig(high)}")
        batch = None
        if found.batch is not None:
            batch = found.batch.at(n, d, c)
        out.append({"n": n, "d": d, "lr": found.lr.at(n, d, c), "batch": batch, "note": ", ".join(beyond)})
    return out


def page(found: HParamFit, section, unit) -> str:
    """hparams.md."""
    out = ["# The best learning rate and batch", "", *[f"- {line}" for line in _joined(section["answer"])], ""]
    out += [f"N as in column {section['n_convention']}; B in {unit or 'the unit of the runs'}.", ""]
    out += [
        "## Forms",
        "",
        "Held out: rms error of ln lr* or ln B* where each (N, D) is predicted from the others.",
        "",
    ]
    rows = []
    for symbol, forms in (("lr", found.lr_forms), ("B", found.batch_forms)):
        for form in forms:
            rows.append([formula(form, symbol), letters(form), sig(form.held_out, 3)])
    out += [markdown_table(["form", "ci95", "held out"], rows, align="l"), "", "## Cells", ""]
    rows = []
    for row in section["cells"]:
        best = []
        for name in ("lr", "batch"):
            known = name in row and row["status"] == "ok"
            text = ""
            if known:
                text = estimate(row[name]["point"], row[name]["ci95"], lambda x: sig(x, 3))
            best.append(text)
        rise = row.get("held_out_rise")
        cost = "" if rise is None else percent(rise, 2)
        rows.append([sig(row["n"]), sig(row["d"]), f"{row['used']} of {row['runs']}", *best, cost, row["status"]])
    header = ["N", "D", "runs", "lr*", "B*", "cost of the law", "status"]
    out += [markdown_table(header, rows, align="l"), ""]
    out += [
        "Cost of the law: rise of the loss at the setting that the other cells predict. Runs: those near the bottom."
    ]
    return "\n".join(out) + "\n"


def _joined(wrapped):
    """Wrapped lines as whole ones."""
    out = []
    for line in wrapped:
        if line.startswith("    "):
            out[-1] += " " + line.strip()
        else:
            out.append(line)
    return out


# ----- the picture -----


def draw_hparams(found: HParamFit, unit):
    """The best rate (and batch) of each cell with ci95 against what the law says of it; a line where both are equal."""
    pairs = _named(found)
    fig, axes = figure(5.2 * len(pairs) + 0.6, 5.4, columns=len(pairs), squeeze=False)
    ok = found.ok
    n, d, c = (np.array([getattr(cell, name) for cell in ok]) for name in "ndc")
    for i, (ax, (symbol, form)) in enumerate(zip(axes[0], pairs, strict=True)):
        at = np.broadcast_to(form.at(n, d, c), n.shape)
        best = np.exp([cell.x[i] for cell in ok])
        ends = np.exp([cell.ci95[:, i] for cell in ok]).T
        sizes = np.unique(n)
        for j, size in enumerate(sizes):
            one = n == size
            bars = np.abs(ends[:, one] - best[one])
            label = f"N = {size_tick(size)}" if i == 0 and len(sizes) <= 12 else None
            colour = f"C{j % 10}"
            ax.errorbar(
                at[one], best[one], bars, fmt="o", ms=6, mec="black", mew=0.5, capsize=3, color=colour, label=label
            )
        low, high = span(at, best)
        ax.plot([low, high], [low, high], color="0.3", lw=1.5, zorder=1)
        low_y, high_y = span(ends, at)
        log_axis(ax.xaxis, lambda x: sig(x, 2) if x < 1 else size_tick(x), low, high)
        log_axis(ax.yaxis, lambda x: sig(x, 2) if x < 1 else size_tick(x), low_y, high_y)
        name = "learning rate" if symbol == "lr" else f"batch, {unit}"
        ax.set(xlabel=f"{name}: the law's", ylabel=f"{name}: best of each (N, D), ci95", title=formula(form, symbol))
    legend(fig, axes[0][0], columns=4)
    return fig

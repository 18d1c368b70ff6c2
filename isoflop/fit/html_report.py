"""
report.html: a forecast with a slider over C, pictures that name the run under the pointer, and all tables

    report.html#1e21          # opens at C = 1e21

It needs no network. Numbers are fit.json's; between the rows of its forecast the page is linear in logarithms.
"""

import html
import json
import os
import re
from pathlib import Path

import numpy as np

from isoflop.fit.axes import n_axis
from isoflop.fit.figures import MOST_RISE, measured_later, valley_curve
from isoflop.fit.findings import (
    answers,
    budget_minima,
    exponents,
    family_evidence,
    forecast_answer,
    forecast_source,
    forecast_tests_said,
    law_letters,
    one_variable_laws,
    remarks,
    run_answers,
)
from isoflop.fit.notes import notes_of
from isoflop.fit.result import budgets_of, convention

TEMPLATE = Path(__file__).with_name("report.html")
MOST_RUNS = 2_000  # points in a picture that a browser draws at once; of more, every so many
MOST_ROWS = 200  # of the table of predicted runs


def html_report(result, arrays) -> str:
    """
    The page as text.

    Parameters
    ----------
    result, arrays
        As in report.write().
    """
    info = result["input"]
    files = ", ".join(os.path.basename(path) for path in info.get("files") or [])
    source = _paragraph(f"{info['rows_used']} runs from {files}; {convention(result)}")
    parts = {
        "title": "Compute-optimal training, from these runs",
        "source": source + _paragraph(forecast_source(result)),
        "body": "\n".join(_sections(result)),
        # nothing in the data may end the element that holds it
        "data": json.dumps(_data(result, arrays), allow_nan=False).replace("<", "\\u003c"),
    }
    template = TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(title|source|body|data)\}\}", lambda match: parts[match[1]], template)


def _data(result, arrays):
    """What the pictures and the slider need."""
    n, d, c, loss = (np.asarray(arrays[key], float) for key in ("n", "d", "c", "loss"))
    member = arrays.get("budget")
    if member is None:
        member = np.full(len(n), -1)
    found = result.get("forecast") or []
    rows = {row["flops"]: row for row in arrays.get("bands") or [] if row["method"] == "forecast"}
    rows |= {row["flops"]: row for row in found}
    budgets = []
    for i, budget in enumerate(budgets_of(result)):
        kept = {key: budget[key] for key in ("flops", "n_opt", "loss")}
        mine = member == i
        curve = []
        if budget["n_opt"] is not None and mine.any():
            curve = np.transpose(valley_curve(budget, n[mine], loss[mine], arrays.get("valleys") or {})).tolist()
        budgets.append(kept | {"curve": curve})
    run_id = arrays.get("run_id")
    if run_id is None:
        run_id = np.arange(len(n))
    # runs far above the lowest of as much compute would flatten every curve
    by_c = np.argsort(c, kind="stable")
    shown = np.empty(len(c), bool)
    shown[by_c] = loss[by_c] <= (1 + MOST_RISE) * np.minimum.accumulate(loss[by_c])
    runs = []
    for i in range(0, len(n), -(-len(n) // MOST_RUNS)):
        values = {"n": n[i], "d": d[i], "c": c[i], "loss": loss[i]}
        runs.append(values | {"run_id": str(run_id[i]), "budget": int(member[i]), "shown": bool(shown[i])})
    return {
        "runs": runs,
        "later": [row | {"budget": -1} for row in measured_later(result)[:MOST_ROWS]],
        "budgets": budgets,
        "forecast": [rows[at] for at in sorted(rows)],
        "asked": sorted(row["flops"] for row in found),
        "c_max": float(c.max()),
        "loss_unit": result["input"].get("loss_unit") or "nats per token",
        "n_label": n_axis(result),
    }


# ----- tables and sentences -----


def _table(header, rows):
    if not rows:
        return ""
    lines = []
    for tag, cells in (("th", header), *(("td", row) for row in rows)):
        text = "".join(f"<{tag}>{html.escape('' if cell is None else str(cell))}</{tag}>" for cell in cells)
        lines.append(f"<tr>{text}</tr>")
    return '<div class="wide"><table>' + "".join(lines) + "</table></div>"


def _items(texts):
    if not texts:
        return ""
    return "<ul>" + "".join(f"<li>{html.escape(text)}</li>" for text in texts) + "</ul>"


def _paragraph(text):
    return f"<p>{html.escape(text[0].upper() + text[1:])}.</p>" if text else ""


def _sections(result):
    """Every section as HTML; what has no lines is left out, and what few readers open is folded."""
    warned, refused = notes_of(result)
    info = result["input"]
    left_out = [f"left out: {count} x {why}" for why, count in (info.get("dropped_counts") or {}).items()]
    family_header, family_rows, family_said = family_evidence(result)
    one_header, one_rows, one_said = one_variable_laws(result)
    run_header, run_rows = run_answers(result)
    open_parts = {
        "Forecasts asked for": _table(*forecast_answer(result)),
        "Warnings": _items([f"{method} [{code}]: {text}" for method, code, text in warned]),
        "Refused": _items([f"{method} [{code}]: {text}" for method, code, text in refused]),
        "Minimum of each budget": _table(*budget_minima(result)),
        "Predicted runs": _table(run_header, run_rows[:MOST_ROWS]),
    }
    folded = {
        "How far to trust it": _paragraph(forecast_tests_said(result))
        + _paragraph(family_said)
        + _table(family_header, family_rows),
        "Laws": _table(*law_letters(result))
        + _paragraph(one_said)
        + _table(one_header, one_rows)
        + _table(["exponents", "N* ~ C^a", "D* ~ C^b"], exponents(result))
        + _items(remarks(result)),
        "Other methods": "".join(_table(header, rows) for header, rows in answers(result)),
        "Data": _items([*(info.get("notes") or []), *left_out]),
    }
    out = [f"<h2>{title}</h2>{text}" for title, text in open_parts.items() if text]
    out += [f"<details><summary>{title}</summary>{text}</details>" for title, text in folded.items() if text]
    return out

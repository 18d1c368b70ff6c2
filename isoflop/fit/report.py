"""
A fit for people: a page to hand in (prediction.md), its pictures (drawing.py) and tables for the terminal.

    python fit.py sweep_results/runs.csv          # calls write() and summary()

Reads what fit.json holds and the runs' own arrays, nothing else. A refused quantity is never drawn or printed as a
number; a picture that cannot be drawn is left out and the page says why.
"""

import textwrap
from pathlib import Path

import numpy as np

from isoflop.display import fixed, sig, text_table
from isoflop.files import write_text
from isoflop.fit import drawing, ladder, suggest
from isoflop.fit.findings import (
    MANY,
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
    tests_of,
)
from isoflop.fit.html_report import html_report
from isoflop.fit.main_table import as_csv, as_latex
from isoflop.fit.notes import notes_of
from isoflop.fit.page import page
from isoflop.fit.result import METHODS, convention

WIDTH = 100  # columns of the terminal
DRAWN = 20_000  # runs in a picture; of more, a random part
FORMATS = ("png", "pdf", "svg")
MOST_RUNS = 40  # predicted runs in a table
PER_RUN = ("n", "d", "c", "loss", "run_id", "budget", "c_exact", "lr_on_edge")  # arrays with an entry per run


# ----- files -----


def write(result, arrays, out_dir, plots=True, format="png", draw=drawing.draw):
    """
    Write prediction.md, its main table as predictions.csv and predictions.tex, the pictures and report.html.

    Parameters
    ----------
    result : dict
        What fit.json holds.
    arrays : dict
        Arrays n, d, c, loss of the runs; where known run_id, budget (index into isoflop's budgets, -1 for none),
        c_exact (FLOPs with attention), curve (arrays run, c, loss of training curves), bands (rows as in
        predictions.flops on a grid of C).
    out_dir : str or Path
        A folder that is there.
    plots : bool
        False writes neither pictures nor report.html.
    format : str
        Of the pictures, one of FORMATS.
    draw : callable
        Draws them: drawing.draw, or draw of drawing.Beside.

    Returns
    -------
    list of Path
        Files written, each renamed into place when whole. A picture that cannot be drawn is skipped, its older copy in
        out_dir removed, and the page gives the reason.

    Raises
    ------
    OSError
        No room for the page, or for a picture; then the page is there.
    """
    out_dir = Path(out_dir)
    arrays = dict(arrays)
    for key in PER_RUN:
        if arrays.get(key) is not None:
            arrays[key] = np.asarray(arrays[key])
    drawn, missing, full, count = [], [], None, len(arrays["n"])
    if plots:
        drawn, missing, full = draw(result, _some_runs(arrays), out_dir, format)
    if count > DRAWN and drawn:
        missing.append((f"{count - DRAWN:,} of {count:,} runs", "the pictures show a random part"))
    texts = {
        "prediction.md": page(result, arrays, drawn, missing),
        "predictions.csv": as_csv(result),
        "predictions.tex": as_latex(result),
    }
    for name, text in texts.items():
        write_text(out_dir / name, text)
    names = [*drawn, *texts]
    if plots:
        names.append("report.html")
        write_text(out_dir / names[-1], html_report(result, _some_runs(arrays)))
    if full:
        raise full
    return [out_dir / name for name in names]


def _some_runs(arrays):
    """The arrays of at most DRAWN runs, a random part."""
    count = len(arrays["n"])
    if count <= DRAWN:
        return arrays
    some = np.sort(np.random.default_rng(0).choice(count, DRAWN, replace=False))
    shown = arrays | {"curve": {}}
    for key in PER_RUN:
        if arrays.get(key) is not None:
            shown[key] = arrays[key][some]
    return shown


# ----- the terminal -----


def summary(result):
    """The terminal's tables, at most WIDTH columns: the forecast first, then the runs, the laws, every other answer."""
    one_header, one_rows, one_said = one_variable_laws(result)
    family_header, family_rows, family_said = family_evidence(result)
    run_header, run_rows = run_answers(result)
    tables = [
        _columns(*forecast_answer(result)),
        forecast_source(result),
        suggestions(result),
        "\n".join(_input_lines(result)),
        _columns(*law_letters(result)),
        _columns(one_header, one_rows),
        one_said,
        *[_columns(header, rows) for header, rows in ladder.tables(result)],
        _columns(family_header, family_rows),
        family_said,
        _columns(["exponents", "N* ~ C^a", "D* ~ C^b"], exponents(result)),
        _columns(*budget_minima(result)),
        *[_columns(header, rows) for header, rows in answers(result)],
        _columns(run_header, run_rows[:MOST_RUNS]),
    ]
    if len(run_rows) > MOST_RUNS:
        tables.append(f"and {len(run_rows) - MOST_RUNS} more in fit.json")
    warned, refused = notes_of(result)
    lines = [f"warning: input [{code}] {text}" for method, code, text in warned if method == "input"]  # all hangs on it
    for table in tables:
        if table:
            lines += ["", *table.splitlines()]
    lines += ["", *remarks(result), *_tests_lines(result), *filter(None, [forecast_tests_said(result)])]
    lines += [f"warning: {method} [{code}] {text}" for method, code, text in warned if method != "input"]
    lines += [f"refused: {method} [{code}] {text}" for method, code, text in refused]
    out = []
    for line in lines:
        out += textwrap.wrap(line, WIDTH, subsequent_indent="    ") if len(line) > WIDTH else [line]
    return "\n".join(out).strip()


def suggestions(result):
    """The runs to do next, as text; "" where none were asked for."""
    header, rows, said = suggest.answer(result)
    return "\n".join([_columns(header, rows), *said]).strip()


def _columns(header, rows):
    """A table for the terminal, "" without rows."""
    return text_table(header, rows, align="l", width=WIDTH) if rows else ""


def _input_lines(result):
    """What was read, or the law that was named."""
    info, law = result.get("input"), result.get("law")
    if law:
        return [f"law {law['name']}: {law['source']}; N {law['convention']}"]
    out = [f"{info['rows_used']} runs from {info['rows_read']} rows, {convention(result)}"]
    out += [f"  {note}" for note in info.get("notes") or []]
    out += [f"  left out: {count} x {reason}" for reason, count in (info.get("dropped_counts") or {}).items()]
    outliers = info.get("outliers") or []
    for run in outliers[:MANY]:
        off = f"{run['residual']:+.2%}, {run['mads']:.1f} MAD"
        out.append(f"  outlier {run['run_id']}: loss {fixed(run['loss'])}, {off}")
    if len(outliers) > MANY:
        out.append(f"  and {len(outliers) - MANY} more outliers in fit.json")
    return out


def _tests_lines(result):
    """One sentence on the back-tests of each method."""
    tests, out = tests_of(result), []
    for method in dict.fromkeys(row["method"] for row in tests):
        name = METHODS.get(method, method)
        errors = np.array([row["error_ln"] for row in tests if row["method"] == method])
        distances = np.array([row["log_distance"] for row in tests if row["method"] == method])
        rms = sig(100 * float(np.sqrt(np.mean(np.square(errors)))), 2)
        per_doubling = sig(100 * float(np.log(2) * np.median(np.abs(errors) / distances)), 2)
        budgets = "1 budget" if len(errors) == 1 else f"{len(errors)} budgets"
        out.append(
            f"back-test, {name}: {budgets} predicted from those below, loss off by {rms}% (rms), by "
            f"{per_doubling}% per doubling of compute (median)"
        )
    return out

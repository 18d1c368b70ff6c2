"""
A fit for people: a page to hand in (prediction.md), its pictures (figures.py) and tables for the terminal.

    python fit.py sweep_results/runs.csv          # calls write() and summary()

Reads what fit.json holds and the runs' own arrays, nothing else. A refused quantity is never drawn or printed as a
number; a picture that cannot be drawn is left out and the page says why.
"""

import os
import sys
import textwrap
from pathlib import Path

import numpy as np

from isoflop.display import fixed, flops, interval, markdown_table, sig, text_table
from isoflop.files import atomic, write_text
from isoflop.fit.axes import RC, Skip
from isoflop.fit.figures import PICTURES
from isoflop.fit.findings import (
    MANY,
    answers,
    exponents,
    family_evidence,
    few,
    forecast_answer,
    forecast_source,
    notes_of,
    one_variable_laws,
    remarks,
    run_answers,
    size,
    tests_of,
)
from isoflop.fit.main_table import as_csv, as_latex
from isoflop.fit.result import METHODS, budgets_of, convention, point, points, rows_of
from isoflop.laws import PUBLISHED

LAW = ("E", "alpha", "beta", "A", "B")
PARAMETERS = ("E", "A", "B", "alpha", "beta")
WIDTH = 100  # columns of the terminal table
PAGE_WIDTH = 118
DRAWN = 20_000  # runs in a picture; of more, a random part
FORMATS = ("png", "pdf", "svg")
MANY_RUNS = {"page": 200, "terminal": 40}  # predicted runs in a table
PER_RUN = ("n", "d", "c", "loss", "run_id", "budget", "c_exact", "lr_on_edge")  # arrays with an entry per run


# ----- the page -----


def _table(header, rows):
    """A Markdown table as lines, an empty one below."""
    rows = [[str(cell).strip() for cell in row] for row in rows]
    return [markdown_table(header, rows, align="l"), ""]


def _data(result, arrays):
    info = result["input"]
    files = few([os.path.basename(path) for path in info.get("files") or []])
    out = [f"{info['rows_used']} runs from {info['rows_read']} rows of {files}; {convention(result)}."]
    spans = []
    for key, form in (("n", size), ("d", size), ("c", flops)):
        spans.append(f"{key.upper()} from {form(arrays[key].min(), 3)} to {form(arrays[key].max(), 3)}")
    out += [f"{', '.join(spans)} FLOPs.", ""]
    out += [f"- {note}" for note in info.get("notes") or []]
    for reason, count in (info.get("dropped_counts") or {}).items():
        names = [str(row["run_id"]) for row in info.get("dropped") or [] if row["reason"] == reason]
        out.append(f"- left out: {count} x {reason} ({few(names)})")
    outliers = [f"{row['run_id']} ({row['residual']:+.2%})" for row in info.get("outliers") or []]
    if outliers:
        out.append(f"- outliers, over 5 MAD off the parametric fit, kept in it: {few(outliers)}")
    return out


def _forecast(result):
    header, rows = forecast_answer(result)
    if not rows:
        return ["No forecast: the refusals below say what is missing."]
    return [*_table(header, rows), forecast_source(result) + "."]


def _answers(result):
    out = []
    for header, rows in answers(result):
        out += _table(header, rows)
    header, rows = run_answers(result)
    if rows:
        out += _table(header, rows[: MANY_RUNS["page"]])
    if not out:
        return ["No method gives an optimum from these runs; the refusals below say why."]
    return [
        *out,
        "- `ci95`: 95% interval of the value if the law holds all the way; it carries the scatter of these runs alone.",
        "- `pi95`: 95% interval for a new run, or a new measurement of the optimum; it adds run-to-run noise and the",
        "  error that laws like this one have shown when they were extrapolated as far.",
    ]


def _laws(result):
    out = []
    if points(result, "parametric", PARAMETERS) is not None:
        rows = []
        for name in PARAMETERS:
            quantity = result["parametric"][name]
            rows.append([name, sig(point(quantity)), interval(quantity.get("ci95"))])
        out += ["L(N, D) = E + A / N^alpha + B / D^beta, by the sum of Huber losses of ln L:", ""]
        out += _table(["", "estimate", "ci95"], rows)
    header, rows, said = one_variable_laws(result)
    if rows:
        out += [f"{said[0].upper()}{said[1:]}:", "", *_table(header, rows)]
    header, rows, said = family_evidence(result)
    if rows:
        out += [f"{said[0].upper()}{said[1:]}.", "", *_table(header, rows)]
    rows = exponents(result)
    if rows:
        out += ["N* grows as C^a and D* as C^b:", "", *_table(["", "a [ci95]", "b [ci95]"], rows)]
    out += [f"- {remark}" for remark in remarks(result)]
    return out or ["No law could be fitted; the refusals below say why."]


def _against_chinchilla(result):
    rows = rows_of(result, "flops")
    if not rows:
        return []
    c = max(row["flops"] for row in rows)
    ours = [row for row in rows if row["flops"] == c]
    said, held = [], []
    for row in ours:
        said.append(f"{sig(point(row['tokens_per_param']), 3)} ({METHODS[row['method']]})")
        low, high = row["tokens_per_param"].get("pi95") or (None, None)
        if low is not None and high is not None:
            held.append(low <= 20 <= high)
    published = []
    for name in ("hoffmann_unrounded", "besiroglu"):
        n, d = PUBLISHED[name].optimum(c)
        published.append(sig(float(d / n), 3))
    text = f"""Chinchilla (Hoffmann et al. 2022) had 70B parameters and 1.4T tokens, 20 tokens per parameter, at 5.76e23
        FLOPs. At {flops(c)} FLOPs these runs ask for {", ".join(said)}; the parametric fit of Hoffmann et al.
        (unrounded) gives {published[0]} there, and Besiroglu et al.'s refit of it {published[1]}."""
    if len(held) == len(ours):
        methods = "1 method" if len(ours) == 1 else f"{len(ours)} methods"
        text += f" 20 lies within pi95 of {sum(held)} of {methods}."
    text += f""" The ratio moves with the data, the tokenizer and how N is counted (here {convention(result)}; there all
        parameters, embeddings included), so compare magnitudes, not digits."""
    return textwrap.wrap(" ".join(text.split()), PAGE_WIDTH)


def _risk(result, c_max):
    rows, tests = rows_of(result, "flops"), tests_of(result)
    if not rows:
        return []
    factor, reach = max(row["flops"] for row in rows) / c_max, 1.0
    text = "Every prediction is within the compute of the data."
    if factor > 1.01:
        text = f"The farthest prediction is at {sig(factor, 3)} times the largest compute in the data."
    if tests:
        reach = float(np.exp(max(row["log_distance"] for row in tests)))
        text += _said_of_tests(tests, reach)
    else:
        text += " These runs allow no back-test, so nothing here shows how the law fares beyond them."
    if factor > max(1.01, reach):
        if tests:
            text += " No back-test reaches as far as the prediction does."
        text += """ Beyond the data the law is a belief: hyperparameters tuned at small scale, repeated data or another
            schedule move the optimum in ways that no interval from these runs can show. A few runs nearer the target
            are the remedy."""
    return textwrap.wrap(" ".join(text.split()), PAGE_WIDTH)


def _said_of_tests(tests, reach):
    off = 100 * np.abs(np.expm1([row["error_ln"] for row in tests]))
    worst, compute = tests[int(np.argmax(off))], ""
    ratio = worst.get("equivalent_compute")
    if ratio:
        compute = f", as if compute were off by a factor of {sig(max(ratio, 1 / ratio), 2)}"
    return f""" Back-tests ({len(tests)}: fit the lower budgets, predict a higher one, up to {sig(reach, 2)} times
        away) missed the loss by {sig(np.median(off), 2)}% in the median and {sig(off.max(), 2)}% at worst
        ({METHODS[worst["method"]]} at {flops(worst["flops"], 3)} FLOPs{compute})."""


def page(result, arrays, drawn=(), missing=()):
    """
    prediction.md as text: estimates and interval ends to 4 significant digits, losses to 4 decimals.

    Parameters
    ----------
    result, arrays
        As in write().
    drawn : list of str
        File names of the pictures that are there.
    missing : list of (str, str)
        Pictures that are not, with the reason.
    """
    pictures = []
    for name in drawn:
        caption = PICTURES[Path(name).stem].__doc__
        link = f"[{name}]({name})" if name.endswith(".pdf") else f"![{caption}]({name})"  # no page shows a PDF
        pictures.append(f"{link}\n\n{caption}\n")
    pictures += [f"- not drawn: {name} ({why})" for name, why in missing]
    warned, refused = notes_of(result)
    parts = {
        "Forecast": _forecast(result),
        "Every method": _answers(result),
        "Data": _data(result, arrays),
        "Laws": _laws(result),
        "Against Chinchilla's 20 tokens per parameter": _against_chinchilla(result),
        "Risk of extrapolating": _risk(result, float(arrays["c"].max())),
        "Warnings": [f"- {method} `{code}`: {text}" for method, code, text in warned],
        "Refused": [f"- {method} `{code}`: {text}" for method, code, text in refused],
        "Pictures": pictures,
    }
    body = ["# Compute-optimal training, from these runs\n"]
    for title, lines in parts.items():
        if lines:
            body.append(f"## {title}\n\n" + "\n".join(lines).strip() + "\n")
    return "\n".join(body)


def write(result, arrays, out_dir, plots=True, format="png"):
    """
    Write prediction.md, its main table as predictions.csv and predictions.tex, and the pictures.

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
        False writes no pictures.
    format : str
        Of the pictures, one of FORMATS.

    Returns
    -------
    list of Path
        Files written, each renamed into place when whole. A picture that cannot be drawn is skipped, its older copy in
        out_dir removed, and the page gives the reason.
    """
    out_dir = Path(out_dir)
    arrays = dict(arrays)
    for key in PER_RUN:
        if arrays.get(key) is not None:
            arrays[key] = np.asarray(arrays[key])
    drawn, missing, count = [], [], len(arrays["n"])
    if plots:
        drawn, missing = _draw(result, _some_runs(arrays), out_dir, format)
    if count > DRAWN and drawn:
        missing.append((f"{count - DRAWN:,} of {count:,} runs", "the pictures show a random part"))
    texts = {
        "prediction.md": page(result, arrays, drawn, missing),
        "predictions.csv": as_csv(result),
        "predictions.tex": as_latex(result),
    }
    for name, text in texts.items():
        write_text(out_dir / name, text)
    return [out_dir / name for name in (*drawn, *texts)]


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


def _draw(result, arrays, out_dir, format):
    """Draw every picture; returns the names of those drawn, and (name, reason) of those that are not."""
    import matplotlib

    matplotlib.use("Agg")
    drawn, missing = [], []
    with matplotlib.rc_context(RC):
        for stem, draw in PICTURES.items():
            name = f"{stem}.{format}"
            try:
                fig = draw(result, arrays)
                with atomic(out_dir / name, "wb") as f:
                    if format == "png":  # savefig() draws twice, and packs for twice as long
                        fig.canvas.print_png(f, pil_kwargs={"compress_level": 3})
                    else:
                        fig.savefig(f, format=format)
                drawn.append(name)
            except Skip as why:
                if str(why):  # without a reason it is no picture of this kind of runs
                    missing.append((name, str(why)))
            except Exception as error:  # a picture must never cost the fit that it shows
                missing.append((name, f"{type(error).__name__}: {error}"))
            if name not in drawn:
                (out_dir / name).unlink(missing_ok=True)
            if "matplotlib.pyplot" in sys.modules:  # not where a picture was skipped before it was drawn
                sys.modules["matplotlib.pyplot"].close("all")
    return drawn, missing


# ----- the terminal -----


def summary(result):
    """The terminal's tables, at most WIDTH columns: laws, optima, predictions, every warning and refusal by name."""
    tables = [_columns(*forecast_answer(result)), forecast_source(result)]
    tables += [
        _law_table(result, "coupled", (*LAW, "p")),
        _law_table(result, "parametric", LAW),
        _columns(["exponents", "N* ~ C^a", "D* ~ C^b"], exponents(result)),
    ]
    header, rows, said = one_variable_laws(result)
    tables += [_columns(header, rows), said, _columns(*family_evidence(result)[:2]), family_evidence(result)[2]]
    tables.append(_budgets_table(result))
    tables += [_columns(header, rows) for header, rows in answers(result)]
    header, rows = run_answers(result)
    tables.append(_columns(header, rows[: MANY_RUNS["terminal"]]))
    if len(rows) > MANY_RUNS["terminal"]:
        tables.append(f"and {len(rows) - MANY_RUNS['terminal']} more in fit.json")
    lines = _input_lines(result)
    for table in tables:
        if table:
            lines += ["", *table.splitlines()]
    lines += ["", *remarks(result), *_tests_lines(result)]
    for word, notes in zip(("warning", "refused"), notes_of(result), strict=True):
        lines += [f"{word}: {method} [{code}] {text}" for method, code, text in notes]
    out = []
    for line in lines:
        out += textwrap.wrap(line, WIDTH, subsequent_indent="    ") if len(line) > WIDTH else [line]
    return "\n".join(out).strip()


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


def _law_table(result, method, names):
    """A law's letters and their intervals; "prior" below those that the runs do not determine."""
    values = points(result, method, names)
    if values is None:
        return ""
    found = result[method]
    rows = [["  estimate", *map(sig, values)], ["  ci95", *(interval(found[name].get("ci95")) for name in names)]]
    if any(found[name].get("prior") for name in names):
        rows.append(["  from", *(("", "prior")[bool(found[name].get("prior"))] for name in names)])
    return _columns([method, *names], rows)


def _budgets_table(result):
    rows = []
    for budget in budgets_of(result):
        n, d = budget["n_opt"], budget["d_opt"]
        row = [flops(budget["flops"], 3), budget["n_runs"]]
        if n is None:
            row += ["-", "-", "-", "-", f"left out: {budget['status']}"]
        else:
            row += [size(n), size(d), sig(d / n, 3), fixed(budget["loss"]), ""]
        rows.append(row)
    return _columns(["budget", "runs", "N*", "D*", "D/N", "loss", ""], rows)


def _tests_lines(result):
    """One sentence on the back-tests of each method."""
    tests, out = tests_of(result), []
    for method in dict.fromkeys(row["method"] for row in tests):
        errors = np.array([row["error_ln"] for row in tests if row["method"] == method])
        distances = np.array([row["log_distance"] for row in tests if row["method"] == method])
        rms = sig(100 * float(np.sqrt(np.mean(np.square(errors)))), 2)
        per_doubling = sig(100 * float(np.log(2) * np.median(np.abs(errors) / distances)), 2)
        budgets = "1 budget" if len(errors) == 1 else f"{len(errors)} budgets"
        out.append(
            f"back-test, {METHODS[method]}: {budgets} predicted from those below, loss off by {rms}% (rms), by "
            f"{per_doubling}% per doubling of compute (median)"
        )
    return out

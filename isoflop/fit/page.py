"""
prediction.md, a page to hand in: the forecast first, then how far to trust it, and what it is made of.

    >>> print(page(result, arrays, drawn=["isoflop.png"]))     # what fit.json holds, and the runs' own arrays
"""

import os
import textwrap
from pathlib import Path

import numpy as np

from isoflop.display import estimate, fixed, flops, markdown_table, sig
from isoflop.fit import ladder, suggest
from isoflop.fit.figures import PICTURES
from isoflop.fit.findings import (
    answers,
    budget_minima,
    exponents,
    family_evidence,
    few,
    forecast_answer,
    forecast_marks,
    forecast_source,
    forecast_tests_said,
    forecasts_asked,
    law_letters,
    one_variable_laws,
    remarks,
    run_answers,
    size,
    tests_of,
)
from isoflop.fit.notes import notes_of
from isoflop.fit.result import METHODS, convention, point, rows_of
from isoflop.laws import PUBLISHED

WIDTH = 100  # columns of the text; tables may be wider
LEAD = (("n_opt", size), ("d_opt", size), ("loss", fixed))
MOST_RUNS = 200  # predicted runs in a table
METHODS_EXPLAINED = {
    "isoflop": "the lowest point of a curve through the runs of each budget, and power laws of C through these points; "
    "all sizes: by parabolas through all runs instead; lowest runs: by the lowest run of each budget",
    "parametric": "Hoffmann's law L = E + A/N^alpha + B/D^beta, fitted to all runs alike by Huber losses of ln L",
    "envelope": "the lowest points that the training curves reach at each C, and power laws through them",
}


# ----- parts of pages -----


def _text(words):
    """A paragraph as lines."""
    return textwrap.wrap(" ".join(words.split()), WIDTH, break_long_words=False, break_on_hyphens=False)


def _item(words):
    """An item of a list as lines."""
    return textwrap.wrap(
        f"- {' '.join(words.split())}", WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _items(texts):
    return [line for words in texts for line in _item(words)]


def _table(header, rows):
    """A Markdown table as lines, an empty one below; nothing without rows."""
    if not rows:
        return []
    rows = [[str(cell).strip() for cell in row] for row in rows]
    return [markdown_table(header, rows, align="l"), ""]


def _sentence(words):
    return f"{words[0].upper()}{words[1:]}."


# ----- the forecast -----


def _forecast(result, arrays):
    header, rows = forecast_answer(result)
    if not rows:
        return ["No forecast: the refusals below say what is missing."]
    best = max(result["forecast"], key=lambda row: row["flops"])
    n, d, loss = (estimate(best[key]["point"], best[key]["pi95"], form) for key, form in LEAD)
    ratio = sig(best["tokens_per_param"]["point"], 3)
    lead = f"""With {flops(best["flops"])} FLOPs, {_reach(best["flops"], arrays)}, the best model has {n} parameters,
        sees {d} training tokens, {ratio} per parameter, and reaches a loss of {loss}
        {result["input"].get("loss_unit") or "nats per token"}. In brackets: 95% intervals for a new run."""
    terms = [
        f"""C: training FLOPs. N: parameters, column {convention(result).removeprefix("N = ")}. D: training tokens.
        N* and D*: those of least loss for C; D/N: tokens per parameter.""",
        """`ci95`: 95% interval of the value if the law holds all the way; it carries the scatter of these runs
        alone.""",
        """`pi95`: 95% interval for a new run, or a new measurement of the optimum; it adds run-to-run noise and the
        error that laws like this one have shown when they were extrapolated as far.""",
        _sentence(forecast_source(result)),
    ]
    asked = [line for said in forecasts_asked(result) for line in [*_text(said), ""]]
    return [*_text(lead), "", *asked, *_table(header, rows), *_items(terms)]


def _reach(c, arrays):
    """How far c lies from the runs, in words."""
    factor = c / float(arrays["c"].max())
    if factor > 1.01:
        return f"{sig(factor, 3)} times the largest run here"
    return "the compute of the largest run here" if factor > 0.99 else "within the compute of these runs"


# ----- how far to trust it -----


def _trust(result, c_max):
    rows = result.get("forecast") or rows_of(result, "flops")
    tests = tests_of(result)
    out = []
    if rows:
        reached = [row["flops"] for row in rows]
        for question in ("params", "target_loss"):  # the compute that these come to
            reached += [point(row["flops"]) for row in rows_of(result, question) if row["method"] == "forecast"]
        out += [*_risk(max(reached), tests, c_max, forecast_marks(result)), ""]
    stepped = forecast_tests_said(result)
    if stepped:
        out += [*_text(_sentence(stepped)), ""]
    header, table, said = family_evidence(result)
    if table:
        out += _text(_sentence(said)) if said else []
        out += ["", *_table(header, table)]
        out += _text(
            """Behind, in nats: ln of how much likelier these runs are under the best family, less a penalty for each
            free parameter (BIC); 3 and more is clear."""
        )
    warned, _ = notes_of(result)
    if warned:
        out += ["", *_items(f"warning, {method} `{code}`: {text}" for method, code, text in warned)]
    return out


def _risk(farthest, tests, c_max, marks):
    factor, reach = farthest / c_max, 1.0
    text = "Every prediction is within the compute of the data."
    if factor > 1.01:
        text = f"The farthest prediction is at {sig(factor, 3)} times the largest compute in the data."
    if tests:
        reach = float(np.exp(max(row["log_distance"] for row in tests)))
        text += _said_of_tests(tests, reach)
    else:
        text += " These runs allow no back-test of the forecast, so nothing here shows how it fares beyond them."
    if marks:
        text += f""" Of the law's letters {", ".join(marks)} are mostly what public sweeps say (the prior), not these
            runs: the intervals are as wide as those sweeps differ, and one of another kind of data may lie outside."""
    if factor > max(1.01, reach):
        if tests:
            text += " No back-test reaches as far as the prediction does."
        text += """ Beyond the data the law is a belief: hyperparameters tuned at small scale, repeated data or another
            schedule move the optimum in ways that no interval from these runs can show. A few runs nearer the target
            are the remedy."""
    return _text(text)


def _said_of_tests(tests, reach):
    off = 100 * np.abs(np.expm1([row["error_ln"] for row in tests]))
    worst, compute = tests[int(np.argmax(off))], ""
    ratio = worst.get("equivalent_compute")
    if ratio:
        compute = f", as if compute were off by a factor of {sig(max(ratio, 1 / ratio), 2)}"
    name = METHODS.get(worst["method"], worst["method"])
    return f""" Back-tests ({len(tests)}: fit the lower budgets, predict a higher one, up to {sig(reach, 2)} times
        away) missed the loss by {sig(np.median(off), 2)}% in the median and {sig(off.max(), 2)}% at worst
        ({name} at {flops(worst["flops"], 3)} FLOPs{compute})."""


# ----- the methods and their laws -----


def _answers(result):
    out = []
    for header, rows in answers(result):
        out += _table(header, rows)
    header, rows = run_answers(result)
    out += _table(header, rows[:MOST_RUNS])
    if not out:
        return ["No other method gives an optimum from these runs; the refusals below say why."]
    shown = []
    for method, words in METHODS_EXPLAINED.items():
        if any(row["method"].split(":")[0] == method for row in rows_of(result, "flops")):
            shown.append(f"{METHODS[method]}: {words}.")
    return [*out, *_items(shown)]


def _laws(result):
    out = []
    header, rows = law_letters(result)
    if rows:
        out += _text("L = E + [(A/N^alpha)^p + (B/D^beta)^p]^(1/p); Hoffmann's law, the parametric fit, is p = 1:")
        out += ["", *_table(header, rows)]
    header, rows, said = one_variable_laws(result)
    if rows:
        out += [*_text(_sentence(said)), "", *_table(header, rows)]
    for header, rows in ladder.tables(result):
        out += _table(header, rows)
    header, rows = budget_minima(result)
    if rows:
        out += ["The minimum of the isoFLOP curve of each budget:", "", *_table(header, rows)]
    rows = exponents(result)
    if rows:
        out += ["N* grows as C^a and D* as C^b:", "", *_table(["", "a [ci95]", "b [ci95]"], rows)]
    out += _items(remarks(result))
    return out or ["No law could be fitted; the refusals below say why."]


def _against_chinchilla(result):
    best = [{**row, "method": "forecast"} for row in result.get("forecast") or []]
    rows = [*best, *rows_of(result, "flops")]
    if not rows:
        return []
    c = max(row["flops"] for row in rows)
    said, held, count = [], 0, 0
    for row in rows:
        if row["flops"] != c:
            continue
        said.append(f"{sig(point(row['tokens_per_param']), 3)} ({METHODS.get(row['method'], row['method'])})")
        low, high = row["tokens_per_param"].get("pi95") or (None, None)
        if low is not None and high is not None:
            held, count = held + (low <= 20 <= high), count + 1
    published = []
    for name in ("hoffmann_unrounded", "besiroglu"):
        n, d = PUBLISHED[name].optimum(c)
        published.append(sig(float(d / n), 3))
    text = f"""Chinchilla (Hoffmann et al. 2022) had 70B parameters and 1.4T tokens, 20 tokens per parameter, at 5.76e23
        FLOPs. At {flops(c)} FLOPs these runs ask for {", ".join(said)}; the parametric fit of Hoffmann et al.
        (unrounded) gives {published[0]} there, and Besiroglu et al.'s refit of it {published[1]}."""
    for row in rows_of(result, "params"):
        if row["method"] == "forecast":
            ratio = estimate(row["tokens_per_param"]["point"], row["tokens_per_param"]["pi95"], sig)
            text += f" For a model of {size(row['params'])} parameters the forecast is {ratio} tokens per parameter."
    if count == len(said) == 1:
        text += f" 20 lies {'within' if held else 'outside'} the pi95 of the first."
    elif count == len(said):
        text += f" 20 lies within {held} of these {count} pi95."
    text += """ The ratio moves with the data, the tokenizer and how N is counted (there all parameters, embeddings
        included), so compare magnitudes, not digits."""
    return _text(text)


# ----- the data -----


def _data(result, arrays):
    info = result["input"]
    files = few([os.path.basename(path) for path in info.get("files") or []])
    spans = []
    for key, form in (("n", size), ("d", size), ("c", flops)):
        spans.append(f"{key.upper()} from {form(arrays[key].min(), 3)} to {form(arrays[key].max(), 3)}")
    out = _text(f"{info['rows_used']} runs from {info['rows_read']} rows of {files}; {', '.join(spans)} FLOPs.")
    listed = list(info.get("notes") or [])
    for reason, count in (info.get("dropped_counts") or {}).items():
        names = [str(row["run_id"]) for row in info.get("dropped") or [] if row["reason"] == reason]
        listed.append(f"left out: {count} x {reason} ({few(names)})")
    outliers = [f"{row['run_id']} ({row['residual']:+.2%})" for row in info.get("outliers") or []]
    if outliers:
        listed.append(f"outliers, over 5 MAD off the parametric fit, kept in it: {few(outliers)}")
    return [*out, "", *_items(listed)]


def _pictures(drawn, missing):
    out = []
    for name in drawn:
        caption = PICTURES[Path(name).stem].__doc__
        if name.endswith(".pdf"):  # no page shows a PDF
            out += [*_text(f"[{name}]({name}): {caption}"), ""]
        else:
            out += [f"![{Path(name).stem}]({name})", "", *_text(caption), ""]
    return out + _items(f"not drawn: {name} ({why})" for name, why in missing)


def page(result, arrays, drawn=(), missing=()):
    """
    prediction.md as text: estimates and interval ends to 4 significant digits, losses to 4 decimals.

    Parameters
    ----------
    result, arrays
        As in report.write().
    drawn : list of str
        File names of the pictures that are there.
    missing : list of (str, str)
        Pictures that are not, with the reason.
    """
    _, refused = notes_of(result)
    parts = {
        "Forecast": _forecast(result, arrays),
        "Runs to do next": suggest.page(result),
        "How far to trust it": _trust(result, float(arrays["c"].max())),
        "Other methods": _answers(result),
        "Laws": _laws(result),
        "Against Chinchilla's 20 tokens per parameter": _against_chinchilla(result),
        "Data": _data(result, arrays),
        "Refused": _items(f"{method} `{code}`: {text}" for method, code, text in refused),
        "Pictures": _pictures(drawn, missing),
    }
    body = ["# Compute-optimal training, from these runs\n"]
    for title, lines in parts.items():
        if lines:
            body.append(f"## {title}\n\n" + "\n".join(lines).strip() + "\n")
    return "\n".join(body)

"""
The main table of a fit for other programs and for papers: the forecast and every method at each compute asked.

    >>> print(as_csv(result), as_latex(result))     # of what fit.json holds
"""

import csv
import io

from isoflop.display import fixed, flops, interval, sig
from isoflop.fit.findings import NAMES, size
from isoflop.fit.result import rows_of

QUANTITIES = {  # key in fit.json -> head in LaTeX, number as text
    "loss": ("Loss", fixed),
    "n_opt": ("$N^*$", size),
    "d_opt": ("$D^*$", size),
    "tokens_per_param": ("$D^*/N^*$", sig),
}
ENDS = ("ci95", "pi95")


def _predictions(result):
    """(method, row) by rising compute, the forecast before the methods."""
    found = []
    for row in result.get("forecast") or []:
        found.append((row["flops"], "forecast", row))
    for row in rows_of(result, "flops", True):
        found.append((row["flops"], row["method"], row))
    found.sort(key=lambda one: one[0])  # stable: at one compute the forecast stays first
    return [(method, row) for _, method, row in found]


def as_csv(result):
    """One line per compute and method; a quantity's value, then both ends of ci95 and of pi95, empty where unknown."""
    header = ["flops", "method"]
    for key in QUANTITIES:
        header.append(key)
        for which in ENDS:
            header += [f"{key}_{which}_low", f"{key}_{which}_high"]
    text = io.StringIO()
    out = csv.writer(text, lineterminator="\n")
    out.writerow(header)
    for method, row in _predictions(result):
        cells = [row["flops"], method]
        for key in QUANTITIES:
            quantity = row.get(key) or {}
            cells.append(quantity.get("point"))
            for which in ENDS:
                cells += quantity.get(which) or (None, None)
        out.writerow(cells)
    return text.getvalue()


def as_latex(result):
    """The same as a LaTeX tabular that needs no package: values to 4 digits, each with its pi95 below it."""
    heads = " & ".join(head for head, _ in QUANTITIES.values())
    lines = [
        "% predictions of isoflop's fit.py: values, and below them 95% intervals for a new run (pi95)",
        r"\begin{tabular}{ll" + "r" * len(QUANTITIES) + "}",
        r"\hline",
        rf"$C$ (FLOPs) & Method & {heads} \\",
    ]
    last = None
    for method, row in _predictions(result):
        if row["flops"] != last:
            lines.append(r"\hline")
        compute = "" if row["flops"] == last else _power(row["flops"])
        last = row["flops"]
        values, ends = [], []
        for key, (_, form) in QUANTITIES.items():
            quantity = row.get(key) or {}
            values.append(form(quantity.get("point")) if quantity else "--")
            ends.append(interval(quantity.get("pi95"), form).replace("...", r"\dots"))
        name = NAMES.get(method, method).replace("_", r"\_")
        lines.append(rf"{compute} & {name} & {' & '.join(values)} \\")
        if any(ends):
            small = " & ".join(rf"{{\small {end}}}" if end else "" for end in ends)
            lines.append(rf" & & {small} \\")
    return "\n".join([*lines, r"\hline", r"\end{tabular}", ""])


def _power(x):
    """A compute in LaTeX's mathematics: $1.5\\times10^{14}$."""
    mantissa, exponent = flops(x).split("e")
    if mantissa == "1":
        return f"$10^{{{exponent}}}$"
    return rf"${mantissa}\times10^{{{exponent}}}$"

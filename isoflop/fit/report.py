"""
A fit for people: a page to hand in (prediction.md), its pictures (figures.py) and a table for the terminal.

    python fit.py sweep_results/runs.csv          # calls write() and summary()

Reads what fit.json holds and the runs' own arrays, nothing else. A refused quantity is never drawn or printed as a
number; a picture that cannot be drawn is left out and the page says why.
"""

import os
import sys
import textwrap
from pathlib import Path

import numpy as np

from isoflop.fit.figures import (
    METHODS,
    PICTURES,
    RC,
    Skip,
    budgets_of,
    convention,
    flops,
    point,
    points,
    rows_of,
    section,
    sig,
    size,
)
from isoflop.laws import PUBLISHED

NAMES = METHODS | {"isoflop:parabola": "isoFLOP, all sizes", "isoflop:lowest_runs": "isoFLOP, lowest runs"}
WIDTH = 100  # columns of the terminal table
DRAWN = 20_000  # runs in a picture; of more, a random part
MANY = 12  # names in a list before "and .. more"

# ----- numbers as text: points to 4 significant digits, losses to 4 decimals -----


def nats(v):
    return "-" if v is None or not np.isfinite(v) else f"{v:.4f}"


QUANTITIES = {
    "flops": ("C", flops),
    "n_opt": ("N*", size),
    "d_opt": ("D*", size),
    "tokens_per_param": ("D/N", sig),
    "loss": ("loss", nats),
}


def interval(ends, form=sig):
    """[low, high], an unbounded end as an ellipsis; empty without an interval."""
    ends = ends or (None, None)
    return "" if ends[0] is ends[1] is None else f"[{', '.join('...' if v is None else form(v) for v in ends)}]"


def cell(q, form=sig):
    """{point, ci95} as '0.5143 [0.4802, 0.5551]'."""
    return "-" if point(q) is None else f"{form(point(q))} {interval(q.get('ci95'), form)}".rstrip()


# ----- what page and terminal share -----


def answers(result):
    """Tables of the predictions, one per question: (title, header, rows), ci95 and pi95 in rows of their own."""
    questions = {"flops": ("flops", "C = {} FLOPs", flops), "params": ("params", "N = {}", size)}
    for name, (key, title, form) in (questions | {"target_loss": ("target_loss", "loss = {}", sig)}).items():
        every = rows_of(result, name, True)
        for at in dict.fromkeys(r[key] for r in every):
            mine = [r for r in every if r[key] == at]
            keys = [k for k in QUANTITIES if any(isinstance(r.get(k), dict) for r in mine)]
            rows = []
            for r in mine:
                cells = [(r.get(k), QUANTITIES[k][1]) for k in keys]
                rows.append([NAMES.get(r["method"], r["method"]), *(f(point(q)) for q, f in cells)])
                for which in ("ci95", "pi95"):
                    ends = [interval(q.get(which), f) if q else "" for q, f in cells]
                    rows += [[f"  {which}", *ends]] if any(ends) else []
            yield title.format(form(at)), [QUANTITIES[k][0] for k in keys], rows


def run_answers(result):
    """(header, rows) of the predicted losses of given runs."""
    rows = []
    for r in rows_of(result, "runs", True):
        ends = [interval(r["loss"].get(k), nats) for k in ("ci95", "pi95")]
        hit = "" if r.get("in_pi95") is None else "inside" if r["in_pi95"] else "outside"
        name, loss = NAMES.get(r["method"], r["method"]), nats(point(r["loss"]))
        rows.append([str(r["run_id"])[:20], name, loss, *ends, nats(r["actual"]), hit])
    return ["run", "method", "loss", "ci95", "pi95", "actual", "pi95 held"], rows


def exponents(result):
    """Rows (method, a, b), each method's simpler variants and the envelope's other rules below it."""
    rows = []
    for m in METHODS:
        s = section(result, m)
        if point(s.get("a")) is not None:
            rows.append([METHODS[m], cell(s["a"]), cell(s.get("b"))])
            others = {"parabola through all sizes": s.get("all_points_parabola") or {}}
            others["lowest runs"] = s.get("lowest_runs") or {}
            for v in s.get("variants") or ():
                if (v["rule"], v["ends_dropped"]) != (s["rule"], s["ends_dropped"]):
                    others[f"{v['rule']}, {'without' if v['ends_dropped'] else 'with'} end sizes"] = v
            rows += [[f"  {k}", sig(v["a"]), sig(v["b"])] for k, v in others.items() if v.get("a") is not None]
    return rows


def remarks(result):
    """Sentences on the fits that tables do not hold."""
    p, out = section(result, "parametric"), []
    if p.get("objective") is not None:
        out.append(f"objective {p['objective']:.11e}, {p['starts_agreeing']} of {p['starts']} starts agree on it")
    if p.get("sigma_ln_loss"):
        out.append(f"runs scatter about the surface by {sig(100 * p['sigma_ln_loss'], 2)}% of the loss (robust)")
    for key, what in (("without_outliers", "outliers"), ("without_top_loss", "highest losses, all of them outliers")):
        if v := p.get(key):
            moved = ", ".join(f"{k} {sig(point(p[k]))} -> {sig(v[k])}" for k in ("E", "alpha", "beta"))
            out.append(f"refitted without the {what} ({v['left_out']}): {moved}")
    bias = section(result, "isoflop").get("expected_bias") or {}
    if bias.get("parabola_bias_a") is not None:
        local = f"local fit {bias['local_bias_a']:+.4f}, " if bias.get("local_bias_a") is not None else ""
        text = f"{local}parabola through all sizes {bias['parabola_bias_a']:+.4f}"
        out.append(f"error of a on this grid without any noise, if the surface is exact: {text}")
    if fit := points(result, "compute_law", ("E", "k", "g")):
        source, r2 = (result["compute_law"].get(k) for k in ("frontier", "r2"))
        r2 = f", R2 = {r2:.5f}" if r2 is not None else ""
        out.append(
            f"frontier ({METHODS.get(source, source)}): L(C) = {sig(fit[0])} + {sig(fit[1])} C^-{sig(fit[2])}{r2}"
        )
    if p and result.get("valley"):
        r = max(result["valley"], key=lambda v: v["flops"])
        text = f"flat valley at C = {flops(r['flops'])}: N from {size(r['n_low'])} to {size(r['n_high'])} is within "
        pay = " or ".join(nats(max(r[f"cost_{k}x"].values())) for k in (2, 4))
        out.append(f"{text}{nats(r['tolerance_nats'])} nats of the best; being 2x or 4x off costs up to {pay}")
    ranked = [v for v in result.get("conventions") or [] if v.get("backtest_rms_ln") is not None]
    if ranked:
        text = ", ".join(f"{v['n']} {sig(100 * v['backtest_rms_ln'], 2)}%" for v in ranked)
        out.append(f"back-test error of the loss by which N is counted: {text}")
    return out


def notes_of(result):
    """Warnings and refusals as two lists of (method, code, message)."""
    warned = [(k, w["code"], w["message"]) for k in METHODS for w in (result.get(k) or {}).get("warnings") or []]
    return warned, [(r["method"], r["code"], r["message"]) for r in result.get("refusals") or []]


def tests_of(result):
    return [r for r in result.get("backtest") or [] if r["error_ln"] is not None and section(result, r["method"])]


# ----- the page -----


def _table(header, rows):
    rows = [header, ["---"] * len(header), *rows]
    return ["| " + " | ".join(str(v).strip().replace("|", "/") for v in row) + " |" for row in rows] + [""]


def _few(names, most=MANY):
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _data(result, arrays):
    info, spans = result["input"], []
    for k, form in (("n", size), ("d", size), ("c", flops)):
        spans.append(f"{k.upper()} from {form(arrays[k].min(), 3)} to {form(arrays[k].max(), 3)}")
    files = _few([os.path.basename(f) for f in info.get("files") or []])
    out = [f"{info['rows_used']} runs from {info['rows_read']} rows of {files}; {convention(result)}."]
    out += [f"{', '.join(spans)} FLOPs.", "", *(f"- {note}" for note in info.get("notes") or [])]
    for reason, count in (info.get("dropped_counts") or {}).items():
        ids = [str(r["run_id"]) for r in info.get("dropped") or [] if r["reason"] == reason]
        out.append(f"- left out: {count} x {reason} ({_few(ids)})")
    far = [f"{v['run_id']} ({v['residual']:+.2%})" for v in info.get("outliers") or []]
    return out + [f"- outliers, over 5 MAD off the surface, kept in the fit: {_few(far)}"] * bool(far)


def _answers(result):
    out = [line for title, header, rows in answers(result) for line in _table([title, *header], rows)]
    header, rows = run_answers(result)
    out += _table(header, rows[:200]) if rows else []
    if not out:
        return ["No method gives an optimum from these runs; the refusals below say why."]
    return [
        *out,
        "- `ci95`: 95% interval of the value if the law holds all the way; it carries the scatter of these runs alone.",
        "- `pi95`: 95% interval for a new run, or a new measurement of the optimum; it adds run-to-run noise and the",
        "  error that laws like this one have shown when they were extrapolated as far.",
    ]


def _laws(result):
    out, p, names = [], section(result, "parametric"), ("E", "A", "B", "alpha", "beta")
    if points(result, "parametric", names):
        rows = [[k, sig(point(p[k])), interval(p[k].get("ci95"))] for k in names]
        out = ["L(N, D) = E + A / N^alpha + B / D^beta, by the sum of Huber losses of ln L:", ""]
        out += _table(["", "estimate", "ci95"], rows)
    if rows := exponents(result):
        out += ["N* grows as C^a and D* as C^b:", "", *_table(["", "a [ci95]", "b [ci95]"], rows)]
    return out + [f"- {v}" for v in remarks(result)] or ["No law could be fitted; the refusals below say why."]


def _against_chinchilla(result):
    rows = rows_of(result, "flops")
    c = max((r["flops"] for r in rows), default=None)
    ours = [r for r in rows if r["flops"] == c]
    if not ours:
        return []
    said = ", ".join(f"{sig(point(r['tokens_per_param']), 3)} ({METHODS[r['method']]})" for r in ours)
    there = [PUBLISHED[k].optimum(c) for k in ("hoffmann_unrounded", "besiroglu")]
    old, new = (sig(float(d / n), 3) for n, d in there)
    held = [r["tokens_per_param"].get("pi95") or (None, None) for r in ours]
    count = sum(v[0] <= 20 <= v[1] for v in held if None not in v)
    text = f"""Chinchilla (Hoffmann et al. 2022) had 70B parameters and 1.4T tokens, 20 tokens per parameter, at 5.76e23
        FLOPs. At {flops(c)} FLOPs these runs ask for {said}; the surface of Hoffmann et al. (unrounded) gives
        {old} there, and Besiroglu et al.'s refit of it {new}."""
    if all(None not in v for v in held):
        text += f" 20 lies within pi95 of {count} of {len(ours)} method{'s' * (len(ours) > 1)}."
    text += f""" The ratio moves with the data, the tokenizer and how N is counted (here {convention(result)}; there all
        parameters, embeddings included), so compare magnitudes, not digits."""
    return textwrap.wrap(" ".join(text.split()), 118)


def _risk(result, c_max):
    rows, tests, reach = rows_of(result, "flops"), tests_of(result), 1.0
    if not rows:
        return []
    factor = max(r["flops"] for r in rows) / c_max
    text = "Every prediction is within the compute of the data."
    if factor > 1.01:
        text = f"The farthest prediction is at {sig(factor, 3)} times the largest compute in the data."
    if tests:
        off = 100 * np.abs(np.expm1([r["error_ln"] for r in tests]))
        worst, reach = tests[int(np.argmax(off))], float(np.exp(max(r["log_distance"] for r in tests)))
        ratio = worst.get("equivalent_compute")
        compute = f", as if compute were off by a factor of {sig(max(ratio, 1 / ratio), 2)}" if ratio else ""
        text += f""" Back-tests ({len(tests)}: fit the lower budgets, predict a higher one, up to {sig(reach, 2)} times
            away) missed the loss by {sig(np.median(off), 2)}% in the median and {sig(off.max(), 2)}% at worst
            ({METHODS[worst["method"]]} at {flops(worst["flops"], 3)} FLOPs{compute})."""
    else:
        text += " These runs allow no back-test, so nothing here shows how the law fares beyond them."
    if factor > max(1.01, reach):
        text += " No back-test reaches as far as the prediction does." if tests else ""
        text += """ Beyond the data the law is a belief: hyperparameters tuned at small scale, repeated data or another
            schedule move the optimum in ways that no interval from these runs can show. A few runs nearer the target
            are the remedy."""
    return textwrap.wrap(" ".join(text.split()), 118)


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
    warned, refused = ([f"- {m} `{code}`: {text}" for m, code, text in notes] for notes in notes_of(result))
    pictures = [f"![{PICTURES[name].__doc__}]({name})\n\n{PICTURES[name].__doc__}\n" for name in drawn]
    parts = {
        "Predictions": _answers(result),
        "Data": _data(result, arrays),
        "Laws": _laws(result),
        "Against Chinchilla's 20 tokens per parameter": _against_chinchilla(result),
        "Risk of extrapolating": _risk(result, float(arrays["c"].max())),
        "Warnings": warned,
        "Refused": refused,
        "Pictures": pictures + [f"- not drawn: {name} ({why})" for name, why in missing],
    }
    body = [f"## {title}\n\n" + "\n".join(lines).strip() + "\n" for title, lines in parts.items() if lines]
    return "\n".join(["# Compute-optimal training, from these runs\n", *body])


def write(result, arrays, out_dir, plots=True):
    """
    Write prediction.md and the pictures.

    Parameters
    ----------
    result : dict
        What fit.json holds.
    arrays : dict
        Arrays n, d, c, loss of the runs; where known run_id, budget (index into isoflop's budgets, -1 for none),
        c_exact (FLOPs with attention), curve (arrays run, c, loss of training curves), bands (rows as in
        predictions.flops on a grid of C).
    out_dir : str or Path
    plots : bool
        False writes the page only.

    Returns
    -------
    list of Path
        Files written, each renamed into place when whole. A picture that cannot be drawn is skipped, its older copy in
        out_dir removed, and the page gives the reason.
    """
    out_dir, drawn, missing = Path(out_dir), [], []
    out_dir.mkdir(parents=True, exist_ok=True)
    per_run = [
        k for k in ("n", "d", "c", "loss", "run_id", "budget", "c_exact", "lr_on_edge") if arrays.get(k) is not None
    ]
    arrays = arrays | {k: np.asarray(arrays[k]) for k in per_run}
    shown, count = arrays, len(arrays["n"])
    if count > DRAWN:
        some = np.sort(np.random.default_rng(0).choice(count, DRAWN, replace=False))
        shown = arrays | {k: arrays[k][some] for k in per_run} | {"curve": {}}
    if plots:
        import matplotlib

        matplotlib.use("Agg")
        with matplotlib.rc_context(RC):
            for name, draw in PICTURES.items():
                try:
                    _replace(out_dir / name, lambda tmp, draw=draw: draw(result, shown).savefig(tmp, format="png"))
                    drawn.append(name)
                except Exception as e:  # a picture must never cost the fit that it shows
                    if not isinstance(e, Skip) or str(e):  # a picture that nobody asked for goes without a word
                        missing.append((name, str(e) if isinstance(e, Skip) else f"{type(e).__name__}: {e}"))
                    (out_dir / name).unlink(missing_ok=True)
                if "matplotlib.pyplot" in sys.modules:  # not where a picture was skipped before it was drawn
                    sys.modules["matplotlib.pyplot"].close("all")
    if count > DRAWN and drawn:
        missing.append((f"{count - DRAWN:,} of {count:,} runs", "the pictures show a random part"))
    text = page(result, arrays, drawn, missing)
    _replace(out_dir / "prediction.md", lambda tmp: tmp.write_text(text, encoding="utf-8"))
    return [out_dir / name for name in (*drawn, "prediction.md")]


def _replace(path, save):
    """A reader sees the old file or the whole new one."""
    tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save(tmp)
        os.replace(tmp, path)
    finally:
        tmp.unlink(missing_ok=True)


# ----- the terminal -----


def _aligned(rows):
    width = [max(len(str(r[i])) for r in rows) for i in range(len(rows[0]))]
    return ["  ".join(str(v).ljust(w) for v, w in zip(r, width, strict=True)).rstrip() for r in rows] + [""]


def summary(result):
    """The terminal's table, at most WIDTH columns: laws, optima, predictions, every warning and refusal by name."""
    info, out = result.get("input"), []
    if info:
        out += [f"{info['rows_used']} runs from {info['rows_read']} rows, {convention(result)}"]
        out += [f"  {text}" for text in info.get("notes") or []]
        out += [f"  left out: {count} x {reason}" for reason, count in (info.get("dropped_counts") or {}).items()]
        far = info.get("outliers") or []
        for v in far[:MANY]:
            out.append(f"  outlier {v['run_id']}: loss {nats(v['loss'])}, {v['residual']:+.2%}, {v['mads']:.1f} MAD")
        out += [f"  and {len(far) - MANY} more outliers in fit.json"] * (len(far) > MANY) + [""]
    elif law := result.get("law"):
        out += [f"law {law['name']}: {law['source']}; N {law['convention']}", ""]
    names = ("E", "alpha", "beta", "A", "B")
    if values := points(result, "parametric", names):
        held = [interval(result["parametric"][k].get("ci95")) for k in names]
        out += _aligned([["surface", *names], ["  estimate", *map(sig, values)], ["  ci95", *held]])
    if rows := exponents(result):
        out += _aligned([["exponents", "N* ~ C^a", "D* ~ C^b"], *rows])
    if budgets_of(result):
        rows = [["budget", "runs", "N*", "D*", "D/N", "loss", ""]]
        for v in budgets_of(result):
            n, d = v["n_opt"], v["d_opt"]
            rows.append([flops(v["flops"], 3), v["n_runs"], *"----", f"left out: {v['status']}"])
            if n is not None:
                rows[-1][2:] = [size(n), size(d), sig(d / n, 3), nats(v["loss"]), ""]
        out += _aligned(rows)
    for title, header, rows in answers(result):
        out += _aligned([[title, *header], *rows])
    header, rows = run_answers(result)
    if rows:
        out += _aligned([header, *rows[:40]])
        out += [f"and {len(rows) - 40} more in fit.json", ""] * (len(rows) > 40)
    out += remarks(result)
    for m in dict.fromkeys(r["method"] for r in tests_of(result)):
        off = [r["error_ln"] for r in tests_of(result) if r["method"] == m]
        rms = sig(100 * float(np.sqrt(np.mean(np.square(off)))), 2)
        far = [abs(r["error_ln"]) / r["log_distance"] for r in tests_of(result) if r["method"] == m]
        each = sig(100 * float(np.log(2) * np.median(far)), 2)
        out.append(
            f"back-test, {METHODS[m]}: {len(off)} budgets predicted from those below, loss off by {rms}% (rms), by "
            f"{each}% per doubling of compute (median)"
        )
    for word, notes in zip(("warning", "refused"), notes_of(result), strict=True):
        out += [f"{word}: {m} [{code}] {text}" for m, code, text in notes]
    lines = [textwrap.wrap(v, WIDTH, subsequent_indent="    ") if len(v) > WIDTH else [v] for v in out]
    return "\n".join(line for part in lines for line in part).strip()

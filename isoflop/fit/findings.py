"""
What a fit found, as rows of tables and sentences, for the page and for the terminal (report.py).

A refused quantity is in none of them. Estimates and ends of intervals have 4 significant digits, losses 4 decimals.
"""

import math
import statistics

from isoflop.display import estimate, fixed, flops, interval, si, sig
from isoflop.fit.result import METHODS, budgets_of, point, points, rows_of, section
from isoflop.laws import Cost, Law

NAMES = METHODS | {"isoflop:parabola": "isoFLOP, all sizes", "isoflop:lowest_runs": "isoFLOP, lowest runs"}
MANY = 12  # names in a list before "and .. more"
EXACT = "exact, no error"  # of what a parabola through three sizes gives: nothing is left to tell its error by


def size(x, digits: int = 4) -> str:
    """Parameters or tokens as an estimate, with the zeros that say how exact it is: 12.50M."""
    return si(x, digits, zeros=True)


QUANTITIES = {
    "flops": ("C", flops),
    "n_opt": ("N*", size),
    "d_opt": ("D*", size),
    "tokens_per_param": ("D/N", sig),
    "loss": ("loss", fixed),
}
ISOFLOP_FITS = {"pooled": "pooled curves", "local": "local parabola", "parabola": "parabola through all sizes"}
FORECAST = (("loss", fixed), ("n_opt", size), ("d_opt", size), ("tokens_per_param", sig))
LETTERS = ("E", "A", "B", "alpha", "beta", "p")
QUESTIONS = {  # of predictions -> key of what was asked, title of its table, number as text
    "flops": ("flops", "C = {} FLOPs", flops),
    "params": ("params", "N = {}", size),
    "target_loss": ("target_loss", "loss = {}", sig),
}


def forecast_answer(result):
    """(header, rows) of the forecast: one line per compute, pi95 below it, or no rows where nothing can be said."""
    rows = []
    for row in result.get("forecast") or []:
        rows.append([flops(row["flops"]), *(form(row[key]["point"]) for key, form in FORECAST)])
        for which in ("ci95", "pi95"):
            ends = [interval(row[key][which], form) for key, form in FORECAST]
            if any(ends):
                rows.append([f"  {which}", *ends])
    return ["forecast at C", "loss", "N*", "D*", "D/N"], rows


def forecast_source(result):
    """Where the forecast comes from, as a sentence."""
    rows = result.get("forecast") or []
    if not rows:
        return ""
    if rows[0]["method"] == "isoflop":
        return "forecast by the line through the isoFLOP minima; single runs by the coupled law, moved to agree with it"
    family = result["coupled"]["family"]
    text = f"forecast by the {family} law with weak priors from public sweeps: fewer than 3 isoFLOP minima"
    if any(budget["status"] == "exact" for budget in budgets_of(result)):
        text += " that have an error"
    marked = forecast_marks(result)
    if marked:
        verb = "comes" if len(marked) == 1 else "come"
        text += f"; {', '.join(marked)} {verb} mostly from the prior"
    return text


def forecast_marks(result):
    """The letters of the law that forecasts which come mostly from the prior; none where isoFLOP minima forecast."""
    if any(row["method"] == "isoflop" for row in result.get("forecast") or []):
        return []
    return [name for name in LETTERS if ((result.get("coupled") or {}).get(name) or {}).get("prior")]


def forecasts_asked(result):
    """Sentences: the forecast's tokens for the sizes of --predict_params, its compute for each --target_loss."""
    said = []
    for row in rows_of(result, "params"):
        if row["method"] == "forecast":
            d, ratio = (_estimate(row[key], form) for key, form in (("d_opt", size), ("tokens_per_param", sig)))
            text = f"A model of {size(row['params'])} parameters is the best for its compute with {d} training tokens, "
            said.append(f"{text}{ratio} per parameter, at {flops(row['flops'])} FLOPs.")
    for row in rows_of(result, "target_loss"):
        if row["method"] == "forecast":
            c, n, d = (_estimate(row[key], form) for key, form in (("flops", flops), ("n_opt", size), ("d_opt", size)))
            text = f"A loss of {sig(row['target_loss'])} takes {c} FLOPs, with {n} parameters and {d} training tokens."
            said.append(text)
    return said


def _estimate(quantity, form):
    """A value with its pi95, or its ci95 where that is all."""
    return estimate(quantity["point"], quantity["pi95"] or quantity["ci95"], form)


def budget_minima(result):
    """(header, rows): the minimum of each budget, or why it has none."""
    rows = []
    for budget in budgets_of(result):
        n, d = budget["n_opt"], budget["d_opt"]
        row = [flops(budget["flops"], 3), budget["n_runs"]]
        if n is None:
            row += ["-", "-", "-", "-", f"left out: {budget['status']}"]
        else:
            ends = interval((budget.get("ci95") or {}).get("n_opt"), size) or "no interval"
            if budget["status"] == "exact":
                ends = EXACT
            row += [size(n), size(d), sig(d / n, 3), fixed(budget["loss"]), ends]
        rows.append(row)
    return ["budget", "runs", "N*", "D*", "D/N", "loss", "ci95 of N*"], rows


def law_letters(result):
    """(header, rows): the letters of the coupled law and of the parametric fit with ci95, side by side."""
    laws = {"coupled": "coupled law", "parametric": "parametric fit"}
    laws = {method: name for method, name in laws.items() if point(section(result, method).get("E")) is not None}
    header, rows = [""], []
    for name in laws.values():
        header += [name, "ci95"]
    for letter in LETTERS:
        row = [letter]
        for method in laws:
            quantity = section(result, method).get(letter)
            if quantity is None:  # p of the parametric fit
                row += ["1", ""]
            else:
                ends = interval(quantity.get("ci95"))
                row += [sig(point(quantity)), f"{ends} prior" if quantity.get("prior") else ends]
        rows.append(row)
    return header, rows if laws else []


def family_evidence(result):
    """(header, rows): the families of laws that were tried, the best first; and a sentence on them. Empty without."""
    rows = result.get("families") or []
    if len(rows) < 2 or in_common(result):  # on one line N and D can't be told apart: no family can be wrong
        return [], [], ""
    cost = Cost(**(result.get("input", {}).get("cost") or {}))
    c = max(row["flops"] for row in result["forecast"]) if result.get("forecast") else 10 * result["skill"]["c_max"]
    header = ["family of laws", "behind, nats", "back-tests off by", f"loss at {flops(c)}"]
    table, answering = [], result["coupled"]["family"]
    for row in rows:
        letters = {name: row[name] for name in LETTERS if name in row}
        least = float(Law(**letters).frontier_loss(c, cost))
        name = row["family"]
        if name == answering:
            name += " (answers)"
        off = "-"
        if row["backtest_rms_ln"] is not None:
            off = f"{sig(100 * row['backtest_rms_ln'], 2)}%"
        table.append([name, fixed(row["behind"], 1), off, fixed(least)])
    return header, table, _said_of_families(rows, answering)


# What came of it where a nested law that led by 3 nats and missed its back-tests no more answered: bench_forecast.py.
NESTED_SHOWN = {
    "E = 0": "the mean error at 10 times the compute rises from 1.8% to 2.8% where it does",
    "alpha = beta": "one of 13 gains and one loses where it does",
}


def _said_of_families(rows, answering):
    """Which family answers, by how much its rival falls short, and what a nested family that leads is worth."""
    by_name = {row["family"]: row for row in rows}
    rival = "hoffmann" if answering == "coupled" else "coupled"
    if answering not in by_name or rival not in by_name:
        return ""
    ours, theirs = by_name[answering], by_name[rival]
    gap = theirs["behind"] - ours["behind"]
    text = f"the {answering} law answers: {rival} is {abs(gap):.1f} nats of evidence "
    text += "behind" if gap >= 0 else "ahead"
    if ours["backtest_rms_ln"] is not None and theirs["backtest_rms_ln"] is not None:
        tests = "1 back-test"
        if ours["n_backtests"] > 1:
            tests = f"{ours['n_backtests']} back-tests, up to 4 budgets ahead,"
        off = [f"{sig(100 * row['backtest_rms_ln'], 2)}% with {row['family']}" for row in (ours, theirs)]
        text += f"; {tests} missed the loss by {off[0]}, {off[1]} (rms)"
    first = rows[0]
    case = first["family"].partition(", ")[2]
    if first["family"] != answering and case in NESTED_SHOWN:
        text += f"; {first['family']} leads by {ours['behind'] - first['behind']:.1f} nats and does not answer: "
        text += f"on public sweeps {NESTED_SHOWN[case]}"
    return text


ALONG = {  # refusal of the parametric fit -> what the runs have in common
    "constant_ratio": "one D/N",
    "collinear": "one line in ln N and ln D",
    "one_size": "one N",
    "one_token_count": "one D",
}


def one_variable_laws(result):
    """(header, rows) and a sentence where all runs lie on one line: L(N), L(D) and L(C) along it. Else empty."""
    common = in_common(result)
    if not common:
        return [], [], ""
    found = {"N": result["kaplan"]["L_N"], "D": result["kaplan"]["L_D"]}
    compute = result["compute_law"]
    found["C"] = {"with_E": compute, "without_E": compute["without_E"]}
    rows = []
    for letter, forms in found.items():
        fit = forms["with_E"] if forms["with_E"]["status"] == "ok" else forms["without_E"]
        if fit["status"] == "ok":
            quantities = [fit.get(key) or {"point": 0.0} for key in ("E", "k", "g")]
            values = [estimate(quantity["point"], quantity.get("ci95")) for quantity in quantities]
            rows.append([f"L({letter})", *values, f"{fit['r2']:.5f}"])
    if not rows:
        return [], [], ""
    text = f"all runs have {common}: L(x) = E + k x^-g holds along it, and says nothing of the best N and D"
    return ["", "E", "k", "g", "R2"], rows, text


def in_common(result):
    """What all runs have in common that keeps N and D from being told apart, "" where nothing does."""
    for refusal in result.get("refusals") or []:
        if refusal["method"] == "parametric" and refusal["code"] in ALONG:
            return ALONG[refusal["code"]]
    return ""


def answers(result):
    """Tables of the predictions, one per question: (header, rows), ci95 and pi95 in rows of their own."""
    tables = []
    for question, (key, title, form) in QUESTIONS.items():
        every = rows_of(result, question, True)
        for asked in dict.fromkeys(row[key] for row in every):
            mine = [row for row in every if row[key] == asked]
            tables.append(_answer(title.format(form(asked)), mine))
    return tables


def _answer(title, predictions):
    """One table: a row for each method and each of its intervals, a column for each quantity."""
    keys = []
    for key in QUANTITIES:
        if any(isinstance(row.get(key), dict) for row in predictions):
            keys.append(key)
    rows = []
    for prediction in predictions:
        name = NAMES.get(prediction["method"], prediction["method"])
        rows.append([name, *(QUANTITIES[key][1](point(prediction.get(key))) for key in keys)])
        for which in ("ci95", "pi95"):
            ends = []
            for key in keys:
                quantity = prediction.get(key) or {}
                ends.append(interval(quantity.get(which), QUANTITIES[key][1]))
            if any(ends):
                rows.append([f"  {which}", *ends])
    return [title, *(QUANTITIES[key][0] for key in keys)], rows


def run_answers(result):
    """(header, rows) of the predicted losses of given runs; "of C" is the equivalent compute."""
    held = {None: "", True: "yes", False: "no"}
    rows = []
    for row in rows_of(result, "runs", True):
        name, loss = NAMES.get(row["method"], row["method"]), row["loss"]
        ends = [interval(loss.get(which), fixed) for which in ("ci95", "pi95")]
        error = of_c = ""
        if row["actual"] is not None:
            error = f"{row['error_nats'] / point(loss):+.2%}"
            if row["equivalent_compute"] is not None:
                of_c = f"{row['equivalent_compute']:.2f}"
        measured = [fixed(row["actual"]), error, of_c, held[row.get("in_pi95")]]
        rows.append([str(row["run_id"])[:20], name, fixed(point(loss)), *ends, *measured])
    return ["run", "method", "loss", "ci95", "pi95", "actual", "error", "of C", "in pi95"], rows


def exponents(result):
    """Rows (method, a, b), each method's simpler variants and the envelope's other rules below it."""
    rows, of_three = [], (result.get("isoflop") or {}).get("exact_line")
    for method, name in METHODS.items():
        found = section(result, method)
        if method == "isoflop" and of_three:
            rows.append([f"{name}, of three sizes: {EXACT}", sig(of_three["a"]), sig(of_three["b"])])
        if point(found.get("a")) is None:
            continue
        rows.append([name])
        for exponent in (found["a"], found.get("b")):
            rows[-1].append(estimate(point(exponent), exponent.get("ci95")))
        others = {
            "parabola through all sizes": found.get("all_points_parabola") or {},
            "lowest runs": found.get("lowest_runs") or {},
        }
        for variant in found.get("variants") or ():
            if (variant["rule"], variant["ends_dropped"]) != (found["rule"], found["ends_dropped"]):
                ends = "without" if variant["ends_dropped"] else "with"
                others[f"{variant['rule']}, {ends} end sizes"] = variant
        for label, line in others.items():
            if line.get("a") is not None:
                rows.append([f"  {label}", sig(line["a"]), sig(line["b"])])
    return rows


def remarks(result):
    """Sentences on the fits that tables do not hold."""
    said = [*_remarks_on_parametric(result), *_remarks_on_power_laws(result), *_remarks_on_valleys(result)]
    said += _remarks_on_flatness(result)
    ranked = []
    for row in result.get("conventions") or []:
        if row.get("backtest_rms_ln") is not None:
            ranked.append(f"{row['n']} {sig(100 * row['backtest_rms_ln'], 2)}%")
    if ranked:
        said.append(f"back-test error of the loss by which N is counted: {', '.join(ranked)}")
    return said


def _remarks_on_parametric(result):
    fit, said = section(result, "parametric"), []
    if fit.get("objective") is not None:
        agree = f"{fit['starts_agreeing']} of {fit['starts']} starts agree on it"
        said.append(f"objective {fit['objective']:.11e}, {agree}")
    if fit.get("sigma_ln_loss"):
        said.append(
            f"runs scatter about the parametric fit by {sig(100 * fit['sigma_ln_loss'], 2)}% of the loss (robust)"
        )
    for key, what in (("without_outliers", "outliers"), ("without_top_loss", "highest losses, all of them outliers")):
        if fit.get(key):
            moved = ", ".join(f"{k} {sig(point(fit[k]))} -> {sig(fit[key][k])}" for k in ("E", "alpha", "beta"))
            said.append(f"refitted without the {what} ({fit[key]['left_out']}): {moved}")
    return said


def _remarks_on_power_laws(result):
    said = []
    bias = section(result, "isoflop").get("expected_bias") or {}
    errors = []
    for method, name in ISOFLOP_FITS.items():
        if bias.get(f"{method}_bias_a") is not None:
            errors.append(f"{name}: a {bias[f'{method}_bias_a']:+.4f}, N* x {sig(bias[f'{method}_n_ratio'], 3)}")
    if errors:
        said.append(f"bias of the isoFLOP fit on this grid, if the parametric fit were exact: {'; '.join(errors)}")
    held = section(result, "isoflop").get("bias_held")
    if held:
        family = (result.get("coupled") or {}).get("family", "forecasting")
        off = f"a {held['a']:+.4f}, N* x {sig(held['n_ratio'], 3)} at {flops(held['flops'])}"
        said.append(f"ci95 of the isoFLOP fit's a, b, N* and D* holds the bias that it has by the {family} law: {off}")
    law = points(result, "compute_law", ("E", "k", "g"))
    if law is not None and not in_common(result):
        e, k, g = law
        source, r2 = result["compute_law"].get("frontier"), result["compute_law"].get("r2")
        text = f"least loss ({METHODS.get(source, source)}): L(C) = {sig(e)} + {sig(k)} C^-{sig(g)}"
        if r2 is not None:
            text += f", R2 = {r2:.5f}"
        said.append(text)
    return said


def _remarks_on_valleys(result):
    """Which minima the forecasting law misses; whether ln N* bends over ln C."""
    fit, said = section(result, "isoflop"), []
    held = [(row["flops"], row["over_surface"]) for row in fit.get("budgets") or [] if row.get("over_surface")]
    tested = [(c, row) for c, row in held if row["n_differs"] is not None]
    family = (result.get("coupled") or {}).get("family", "forecasting")
    misses = []
    for c, row in tested:
        off = []
        if row["n_differs"]:
            off.append(f"N* x {sig(row['n_ratio'], 3)}")
        if row["loss_differs"]:
            off.append(f"loss {100 * (row['loss_ratio'] - 1):+.2g}%")
        if off:
            misses.append(f"{flops(c)} ({', '.join(off)})")
    if misses:
        many = f"{len(misses)} of {len(tested)} budgets' minima differ from the {family} law's"
        said.append(f"{many} by more than the 95% error of both: {few(misses)}")
    elif tested:
        said.append(f"all {len(tested)} budgets' minima agree with the {family} law's")
    bend = fit.get("curvature_ln_n")
    if bend:
        word = "bends" if bend["bends"] else "does not measurably bend"
        said.append(
            f"ln N* {word} over ln C: second derivative {estimate(bend['point'], bend['ci95'])}, "
            f"its slope a from {sig(bend['a_low'], 3)} to {sig(bend['a_high'], 3)}"
        )
    return said


def _remarks_on_flatness(result):
    if not section(result, "parametric") or not result.get("valley"):
        return []
    last = max(result["valley"], key=lambda row: row["flops"])
    unit = ((result.get("input") or {}).get("loss_unit") or "nats").split()[0]
    twice, four_times = (max(last[f"cost_{factor}x"].values()) for factor in (2, 4))
    return [
        f"flat optimum at C = {flops(last['flops'])}: N from {size(last['n_low'])} to {size(last['n_high'])} is within "
        f"{fixed(last['tolerance_nats'])} {unit} of the best; being 2x or 4x off costs up to {fixed(twice)} or "
        f"{fixed(four_times)}"
    ]


def tests_of(result):
    """Back-tests of the loss, of methods not refused."""
    tests = []
    for row in result.get("backtest") or []:
        answered = row["method"] == "forecast" or section(result, row["method"])
        if row["error_ln"] is not None and answered:
            tests.append(row)
    return tests


def forecast_tests_said(result):
    """A sentence on the forecast's multi-step back-tests; "" without any."""
    tests = [row for row in result.get("backtests") or [] if row["method"] == "forecast"]
    if not tests:
        return ""
    off = [100 * abs(math.expm1(row["error_ln"])) for row in tests]
    held = sum(row["pi95"][0] <= row["measured"] <= row["pi95"][1] for row in tests)
    farthest = sig(max(row["flops"] / row["flops_fitted"] for row in tests), 2)
    text = f"back-tests of the forecast, 1 to 4 budgets ahead, up to {farthest} times the compute fitted: "
    text += f"loss off by {sig(statistics.median(off), 2)}% in the median and {sig(max(off), 2)}% at worst, "
    return text + f"{held} of {len(tests)} inside pi95"


def few(names, most=MANY):
    text = ", ".join(names[:most])
    if len(names) > most:
        text += f" and {len(names) - most} more"
    return text

"""
The pictures of a fit, at paper quality: isoFLOP curves, optima, loss and compute; those of diagnostics.py; all of them.

    python fit.py sweep_results/runs.csv          # report.write() draws every picture in PICTURES

Each draw_*() takes what fit.json holds and the runs' own arrays (result.to_arrays), and returns a figure or raises Skip
with the reason. Their docstrings are the captions on the page.
"""

import numpy as np

from isoflop.display import sig
from isoflop.fit.axes import (
    C_AXIS,
    COLOURS,
    DIAMOND,
    OPEN,
    STAR,
    Skip,
    colour_bar,
    colour_of,
    figure,
    flops_tick,
    legend,
    log_axis,
    loss_axis,
    n_axis,
    power_term,
    shades,
    size_tick,
    span,
)
from isoflop.fit.diagnostics import draw_backtest, draw_ratio, draw_residuals, draw_scores, draw_surface
from isoflop.fit.minima import EXACT_SIZES, LOCAL_RISE
from isoflop.fit.result import (
    METHODS,
    answering_law,
    budgets_of,
    law_of,
    optimum_of,
    points,
    rows_of,
    section,
    why_not,
)
from isoflop.laws import PUBLISHED

SHOWN_LAWS = {  # name -> label and dashes
    "hoffmann_unrounded": ("Hoffmann 2022", (0, (1, 1.2))),
    "besiroglu": ("Besiroglu 2024", (0, (5, 2))),
    "kaplan": ("Kaplan 2020", (0, (5, 1.5, 1, 1.5))),
}
MANY = 12  # budgets beyond which a colour bar is easier to read than a legend
NEAR = 4.0  # factor of N* or D* within which a published law is drawn
FORECAST_TEXT = "#8F6200"  # the forecast's orange, dark enough to read
MOST_CURVES = 200  # training curves in one picture
RING = {"s": 26, "facecolors": "none", "edgecolors": COLOURS["envelope"], "zorder": 4, "label": "envelope"}
ON_EDGE = {"marker": "x", "s": 60, "color": "0.2", "lw": 1.3, "zorder": 4, "label": "best rate tried was first or last"}
LATER = {"marker": "X", "s": 110, "color": "#CC79A7", "edgecolors": "black", "linewidths": 0.9, "zorder": 7}
MEASURED = {"fmt": "o", "ms": 7, "mec": "black", "mew": 0.7, "capsize": 3, "zorder": 4, "label": "optimum of a budget"}
LINES = {"isoflop": "-", "parametric": "--", "envelope": "-."}
# entries of legends
MOST_RISE = 0.15  # of a run's loss above the lowest of its budget, as far as isoflop.png shows
SMOOTH_RISE = 0.1  # of the smooth curve above its minimum, as far as it is drawn: it is fitted near the bottom
PREDICTED = (
    "forecast, with pi95",
    {"marker": "D", "ms": 7, "color": COLOURS["forecast"], "mec": "black", "ls": "-", "lw": 3},
)
OPTIMUM = "optimum, with ci95 of N*", {"marker": "*", "ms": 15, "mfc": "0.6", "mec": "black"}
OF_THREE = "of three sizes: exact, no error", {"marker": "*", "ms": 15, "mfc": "white", "mec": "black"}
LEFT_OUT = "lowest run, but no inner minimum: left out", {"marker": "o", "ms": 9, "mfc": "white", "mec": "0.45"}
SMOOTH = "smooth curve", {"ls": "-", "color": "0.3", "lw": 2.2}
BY_LAW = {"ls": "--", "color": "0.3"}  # of the law that answers


# ----- parts of pictures -----


def _groups(result, arrays):
    """(budget, its rows) of the budgets that have sizes enough for a curve; of all budgets where none has."""
    groups, small = [], []
    if arrays.get("budget") is not None:
        for i, budget in enumerate(budgets_of(result)):
            rows = np.flatnonzero(arrays["budget"] == i)
            if len(rows):
                (small if budget["status"] == "too_few_sizes" else groups).append((budget, rows))
    return groups or small


def _band(ax, arrays, method, key, which="ci95", alpha=0.12):
    """An interval of a method along C."""
    edges = []
    for row in arrays.get("bands") or []:
        if row["method"] == method and row[key] and row[key][which] and None not in row[key][which]:
            edges.append((row["flops"], *row[key][which]))
    at, low, high = np.reshape(edges, (-1, 3)).T
    ax.fill_between(at, low, high, color=COLOURS[method], alpha=alpha, lw=0)


def _draw_forecast(ax, arrays, key):
    """The forecast along C with its pi95; returns its rows."""
    rows = [row for row in arrays.get("bands") or [] if row["method"] == "forecast"]
    if rows:
        _band(ax, arrays, "forecast", key, "pi95", 0.28)
        y = [row[key]["point"] for row in rows]
        ax.plot([row["flops"] for row in rows], y, color=COLOURS["forecast"], lw=3, zorder=3.5)
    return rows


def _diamond(ax, row, key, x):
    """A prediction at x with its pi95; returns the values that the axis must show."""
    ends = [end for end in row[key].get("pi95") or () if end is not None]
    ax.plot([x] * len(ends), ends, color=COLOURS[row["method"]], lw=1.6, zorder=4)
    ax.scatter(x, row[key]["point"], color=COLOURS[row["method"]], **DIAMOND)
    return [row[key]["point"], *ends]


# ----- isoFLOP curves -----


def draw_isoflop(result, arrays):
    """Loss against N at every budget, with the optima; dashed, the law that answers."""
    n, loss, groups = arrays["n"], arrays["loss"], _groups(result, arrays)
    if not groups and result.get("isoflop") and arrays.get("budget") is not None:
        return _draw_loose_runs(result, arrays)
    if not groups:
        raise Skip(why_not(result, "isoflop"))
    _, cost = law_of(result)
    law, name = answering_law(result)
    fig, ax = figure()
    handles = []
    for (budget, rows), shade in zip(groups, shades(len(groups)), strict=True):
        above = {"zorder": 6 if budget["status"] == "exact" else 3}  # the star there is open, and hides no run
        handles.append(ax.scatter(n[rows], loss[rows], s=30, color=shade, lw=0, **above))
        if law is not None:
            x = _between(np.log(n[rows]))
            ax.plot(x, law.loss(x, cost.tokens(x, budget["flops"])), "--", color=shade, lw=1)
        if budget["n_opt"] is not None:
            curve = valley_curve(budget, n[rows], loss[rows], arrays.get("valleys") or {})
            _draw_valley(ax, budget, curve, shade)
        elif budget["status"] != "too_few_sizes":
            if len(np.unique(n[rows])) == EXACT_SIZES:
                ax.plot(*_through_three(n[rows], loss[rows]), color=shade, lw=1.2, zorder=3)
            lowest = rows[loss[rows].argmin()]
            ax.scatter(n[lowest], loss[lowest], s=90, **OPEN)

    shown = np.concatenate([rows for _, rows in groups])
    if arrays.get("lr_on_edge") is not None:
        edge = shown[arrays["lr_on_edge"][shown]]
        if len(edge):
            ax.scatter(n[edge], loss[edge], **ON_EDGE)
    # one bad set of runs must not flatten every other curve: runs far above their own lowest are cut off
    top = max(min(loss[rows].max(), (1 + MOST_RISE) * loss[rows].min()) for _, rows in groups)
    pad = 0.06 * (top - loss[shown].min())
    ax.set_ylim(loss[shown].min() - pad, top + pad)
    log_axis(ax.xaxis, size_tick, *span(n[shown], pad=1.3))
    ax.set(xlabel=n_axis(result), ylabel=loss_axis(result), title="IsoFLOP curves")
    budgets = [budget["flops"] for budget, _ in groups]
    if len(groups) <= MANY:
        style = {"title_fontsize": 12, "loc": "outside right upper", "handletextpad": 0.1}
        fig.legend(handles, [flops_tick(c) for c in budgets], title=C_AXIS, **style).set_gid("right")
    else:
        colour_bar(fig, ax, budgets, C_AXIS, flops_tick)
    entries = _isoflop_entries(groups, name)
    long = LEFT_OUT in entries or OF_THREE in entries
    legend(fig, ax, entries, columns=2 if long else 3)
    return fig


def _draw_loose_runs(result, arrays):
    """Loss against N of runs that share no budget, by compute."""
    n, loss, c = arrays["n"], arrays["loss"], arrays["c"]
    fig, ax = figure()
    ax.scatter(n, loss, c=colour_bar(fig, ax, c, C_AXIS, flops_tick)(c), s=30, lw=0)
    log_axis(ax.xaxis, size_tick, *span(n, pad=1.3))
    ax.set(xlabel=n_axis(result), ylabel=loss_axis(result), title="Runs, of which no three share a budget")
    return fig


def _between(x):
    """200 sizes from a little below to a little above those whose logarithms are x."""
    return np.exp(np.linspace(x.min() - 0.15, x.max() + 0.15, 200))


def _through_three(n, loss):
    """The parabola in ln N through the runs of three sizes, between the smallest and the largest."""
    x = np.log(n)
    grid = np.linspace(x.min(), x.max(), 200)
    return np.exp(grid), np.polyval(np.polyfit(x - x.mean(), loss, 2), grid - x.mean())


def valley_curve(budget, n, loss, valleys):
    """
    The isoFLOP curve of a budget near its optimum: the smooth one of arrays["valleys"]; without one a parabola through
    the optimum with the curvature of the runs about it, or through all three runs.
    """
    x, grid, at, least = np.log(n), np.log(_between(np.log(n))), np.log(budget["n_opt"]), budget["loss"]
    inside = (grid > x.min()) & (grid < x.max())
    if budget["status"] == "ok" and budget["flops"] in valleys:
        sizes, smooth = valleys[budget["flops"]]
        bottom = np.argmin(np.abs(sizes - budget["n_opt"]))
        high = np.flatnonzero(smooth > (1 + SMOOTH_RISE) * least)
        near = slice(high[high < bottom].max(initial=-1) + 1, high[high > bottom].min(initial=len(sizes)))
        return sizes[near], smooth[near]
    if budget["status"] == "exact":
        return _through_three(n, loss)
    # runs whose loss is LOCAL_RISE above the optimum weigh half, as in the fit
    weights = 1 / (1 + ((loss / least - 1) / LOCAL_RISE) ** 2)
    curvature = np.sum(weights * (x - at) ** 2 * (loss - least)) / np.sum(weights * (x - at) ** 4)
    rise = max(curvature, 0.0) * (grid - at) ** 2
    near = (rise < LOCAL_RISE * least) & inside
    return np.exp(grid[near]), least + rise[near]


def _draw_valley(ax, budget, curve, shade):
    """The curve of a budget and its optimum, open and thin where three sizes leave no room for an error."""
    exact, least = budget["status"] == "exact", budget["loss"]
    ax.plot(*curve, color=shade, lw=1.2 if exact else 2.2, zorder=3)
    ends = (budget.get("ci95") or {}).get("n_opt")
    if ends:
        ax.plot(ends, [least, least], color="black", lw=1.2, marker="|", ms=9, mew=1.2, zorder=4)
    looks = {"color": [shade]}
    if exact:
        looks = {"facecolors": "white", "edgecolors": [shade], "linewidths": 1.5}
    ax.scatter(budget["n_opt"], least, **(STAR | looks))


def _isoflop_entries(groups, name):
    entries, found = [], {budget["status"] for budget, _ in groups}
    if "ok" in found:
        entries += [SMOOTH, OPTIMUM]
    if "exact" in found:
        entries.append(OF_THREE)
    if found - {"ok", "exact", "too_few_sizes"}:
        entries.append(LEFT_OUT)
    if name:
        entries.append((name, BY_LAW))
    return entries


# ----- optima against compute -----


def draw_optimum(result, arrays):
    """Compute-optimal parameters and tokens against compute; bands: pi95 of the forecast, ci95 of the methods."""
    methods = [method for method in METHODS if optimum_of(result, method, 1e20) is not None]
    if not methods and not budgets_of(result, True):
        raise Skip("; ".join(why_not(result, method) for method in METHODS))
    rows = [row for row in rows_of(result, "flops") if row["method"] in methods]
    left_out = [group for group in _groups(result, arrays) if group[0]["n_opt"] is None]
    envelope = section(result, "envelope").get("points") or {"flops": []}
    start, last = float(min([*arrays["c"], *envelope["flops"]])), float(arrays["c"].max())
    end = max([last, *(row["flops"] for row in rows), *(row["flops"] for row in result.get("forecast") or [])])
    beyond = end > 1.05 * last
    limits = start / 1.6, end * 1.6 * (end / start) ** 0.04
    grid = np.geomspace(*limits, 200)
    published = _published(grid, [optimum_of(result, method, grid) for method in methods])

    fig, axes = figure(8.0, 9.2, 2, sharex=True)
    for ax, key in zip(axes, ("n_opt", "d_opt"), strict=True):
        best = _draw_forecast(ax, arrays, key)
        values = [row[key]["pi95"] for row in best if row[key]["pi95"]]
        values += _draw_methods(ax, result, arrays, methods, key, grid)
        values += _draw_measured(ax, result, arrays, left_out, envelope, key)
        for row in result.get("forecast") or []:
            if row["flops"] > last or len(budgets_of(result, True)) < 2:  # below, the optima are drawn
                values.append(_diamond(ax, {**row, "method": "forecast"}, key, row["flops"]))
        for (label, dashes), lines in published:
            y = lines[key]
            ax.plot(grid, y, color="0.4", ls=dashes, lw=1.3, label=label, zorder=1)
            values.append(y)
        low, high = span(*values)
        log_axis(ax.yaxis, size_tick, low / (high / low) ** 0.09, high * (high / low) ** 0.03)
        if beyond:
            ax.axvspan(last * 1.03, limits[1], color="0.5", alpha=0.09, lw=0)
    axes[0].set_ylabel(n_axis(result, "Parameters N*"))
    axes[1].set_ylabel("Training tokens D*")
    if beyond:
        place = {"transform": axes[0].transAxes, "ha": "right", "color": "0.35"}
        axes[0].text(0.98, 0.03, "beyond the data", **place, **_halo())
    best = [*(result.get("forecast") or []), *best]
    _write_ratios(axes[1], best, _ratio_places(start, last, end, limits))
    log_axis(axes[1].xaxis, flops_tick, *limits)
    axes[1].set_xlabel(C_AXIS)
    axes[0].set_title("Compute-optimal size and data")
    entries = []
    if result.get("forecast"):
        entries.append(PREDICTED)
    if left_out:
        entries.append(LEFT_OUT)
    legend(fig, axes[0], entries)
    return fig


def _draw_methods(ax, result, arrays, methods, key, grid):
    """The line and the band of each method; returns the values that the axis must show."""
    values = []
    for method in methods:
        n, d = optimum_of(result, method, grid)
        y = n if key == "n_opt" else d
        ax.plot(grid, y, LINES[method], color=COLOURS[method], lw=1.2, label=f"{METHODS[method]} fit", zorder=3.7)
        _band(ax, arrays, method, key)
        values.append(y)
    return values


def _published(grid, ours):
    """((label, dashes), {"n_opt": line, "d_opt": line}) of the published laws that stay near one of `ours`."""
    found = []
    for name, style in SHOWN_LAWS.items():
        n, d = PUBLISHED[name].optimum(grid)
        for our_n, our_d in ours:
            if max(np.abs(np.log(n / our_n)).max(), np.abs(np.log(d / our_d)).max()) < np.log(NEAR):
                found.append((style, {"n_opt": n, "d_opt": d}))
                break
    return found


def _draw_measured(ax, result, arrays, left_out, envelope, key):
    """Optima of budgets, lowest runs of those left out, points of the envelope; returns the values to be shown."""
    inside, run_key, values = budgets_of(result, True), {"n_opt": "n", "d_opt": "d"}[key], []
    of_three = [budget for budget in inside if budget["status"] == "exact"]
    inside = [budget for budget in inside if budget["status"] != "exact"]
    if inside:
        x, y = [budget["flops"] for budget in inside], [budget[key] for budget in inside]
        bars = []
        for budget in inside:
            low, high = (budget.get("ci95") or {}).get(key) or (budget[key], budget[key])
            bars.append((max(budget[key] - low, 0), max(high - budget[key], 0)))
        ax.errorbar(x, y, np.transpose(bars), color=COLOURS["isoflop"], ls="none", **MEASURED)
        values.append(y)
    if of_three:
        x, y = [budget["flops"] for budget in of_three], [budget[key] for budget in of_three]
        ax.scatter(x, y, s=26, facecolors="white", edgecolors=COLOURS["isoflop"], zorder=7, label=OF_THREE[0])
        values.append(y)
    for budget, rows in left_out:
        lowest = rows[arrays["loss"][rows].argmin()]
        ax.scatter(budget["flops"], arrays[run_key][lowest], s=50, **OPEN)
        values.append(arrays[run_key][lowest])
    if envelope["flops"]:
        ax.scatter(envelope["flops"], envelope[run_key], **RING)
        values.append(envelope[run_key])
    return values


def _halo():
    """Style of text over lines."""
    import matplotlib.patheffects as pe

    return {"path_effects": [pe.withStroke(linewidth=3, foreground="white")], "fontsize": 12, "zorder": 7}


def _ratio_places(start, last, end, limits):
    """(compute, alignment) of the labels D/N: at the first and last run, and at the farthest prediction."""
    places = []
    if np.log(last / start) < 0.15 * np.log(limits[1] / limits[0]):  # two labels would overlap
        places.append((last, "left"))
    else:
        places += [(start, "left"), (last, "center")]
    if end > 1.05 * last:
        places.append((end, "right"))
    return places


def _write_ratios(ax, best, places):
    """D/N of the forecast at its rows nearest to some C, below pi95 there."""
    if not best:
        return
    ln_c = np.log([row["flops"] for row in best])
    for c, align in places:
        row = best[int(np.abs(ln_c - np.log(c)).argmin())]
        place = {"xytext": (14 if align == "right" else 0, -8), "textcoords": "offset points", "ha": align, "va": "top"}
        text = f"D/N = {sig(row['tokens_per_param']['point'], 3)}"
        below = min(row["d_opt"]["point"], *(row["d_opt"]["pi95"] or ()))
        ax.annotate(text, (row["flops"], below), color=FORECAST_TEXT, **place, **_halo())


# ----- loss against compute -----


def draw_loss(result, arrays):
    """Loss against compute: all runs or their training curves, and the least loss."""
    c, n, loss, curve = arrays["c"], arrays["n"], arrays["loss"], arrays.get("curve") or {}
    rows = result.get("forecast") or []
    fig, ax = figure()
    shade = colour_bar(fig, ax, n, n_axis(result), size_tick)
    which = np.unique(curve.get("run", ()))
    for run in which[:: 1 + len(which) // MOST_CURVES]:
        at = curve["run"] == run
        ax.plot(curve["c"][at], curve["loss"][at], color=shade(n[run]), lw=1, alpha=0.75, zorder=2)
    ax.scatter(c, loss, c=shade(n), s=26, alpha=0.6, lw=0, zorder=2, label="runs")
    for status, label, face in (("ok", "optimum of a budget", COLOURS["isoflop"]), ("exact", OF_THREE[0], "white")):
        inside = [budget for budget in budgets_of(result, True) if budget["status"] == status]
        if inside:
            x, y = [budget["flops"] for budget in inside], [budget["loss"] for budget in inside]
            ax.scatter(x, y, facecolors=face, label=label, **STAR)
    envelope = section(result, "envelope").get("points")
    if envelope:
        ax.scatter(envelope["flops"], envelope["loss"], **RING)

    start, end = min([*c, *curve.get("c", ())]), max([*c, *(row["flops"] for row in rows)])
    _draw_forecast(ax, arrays, "loss")
    lowest = [loss.min(), *_draw_least_loss(ax, result, np.geomspace(start, end * 1.3, 300))]
    beyond = [row for row in rows if row["flops"] > c.max()]
    for row in beyond:
        lowest += _diamond(ax, {**row, "method": "forecast"}, "loss", row["flops"])
    later = measured_later(result)
    later_c, later_loss = [row["c"] for row in later], [row["loss"] for row in later]
    if later_c:
        ax.scatter(later_c, later_loss, label="measured later (--predict_runs)", **LATER)
    top = np.quantile(curve["loss"], 0.97) if curve else loss.max()
    log_axis(ax.yaxis, lambda value: f"{value:.3g}", min([*lowest, *later_loss]) * 0.98, top * 1.02)
    log_axis(ax.xaxis, flops_tick, start / 1.4, max([end, *later_c]) * 1.6)
    ax.set(xlabel=C_AXIS, ylabel=loss_axis(result), title="Loss and compute")
    entries = [PREDICTED] if beyond else []
    legend(fig, ax, entries)
    return fig


def _draw_least_loss(ax, result, grid):
    """The least loss along C by the compute law and by the law that answers; returns their last values."""
    ends = []
    fit = points(result, "compute_law", ("E", "k", "g"))
    if fit is not None:
        e, k, g = fit
        y = e + k * grid**-g
        text = f"L = {sig(e)} + {power_term(k, 'C', g)}"
        ax.plot(grid, y, color="black", lw=0.8, zorder=3.7, label=text)
        ends.append(y[-1])
    _, cost = law_of(result)
    law, name = answering_law(result)
    if law is not None:
        y = law.frontier_loss(grid, cost)
        style = {"color": COLOURS[colour_of(name)], "lw": 0.8, "zorder": 3.7}
        ax.plot(grid, y, "--", label=f"least loss of the {name}", **style)
        ends.append(y[-1])
    return ends


def measured_later(result):
    """Runs of --predict_runs with a loss, each once: run_id, n, d, c, loss, and predicted, pi95 of the first method."""
    _, cost = law_of(result)
    found = {}
    for row in rows_of(result, "runs", True):
        if row["actual"] is not None:
            run = {"run_id": row["run_id"], "n": row["n"], "d": row["d"], "loss": row["actual"]}
            said = {"predicted": row["loss"]["point"], "pi95": row["loss"].get("pi95")}
            found.setdefault(row["run_id"], run | {"c": float(cost.flops(row["n"], row["d"]))} | said)
    return list(found.values())


PICTURES = {
    "isoflop": draw_isoflop,
    "optimum": draw_optimum,
    "loss_compute": draw_loss,
    "surface": draw_surface,
    "residuals": draw_residuals,
    "backtest": draw_backtest,
    "flops_ratio": draw_ratio,
    "scores": draw_scores,
}

"""
The pictures of a fit, at paper quality: isoFLOP curves, optima, loss and compute, surface, residuals, FLOPs over 6ND.

    python fit.py sweep_results/runs.csv          # report.write() draws every picture in PICTURES

Each draw_*() takes what fit.json holds and the runs' own arrays, and returns a figure or raises Skip with the reason.
The readers of a result come first, since report.py shares them; nothing refused passes through them.
"""

import math
import re
from dataclasses import replace

import numpy as np

from isoflop.config import ModelConfig
from isoflop.flops import count_params, flops_per_token_exact
from isoflop.laws import PUBLISHED, Cost, Law

DPI = 150
METHODS = {"isoflop": "isoFLOP", "parametric": "parametric", "envelope": "envelope"}  # in the order they are shown
COLOURS = {"isoflop": "#0072B2", "parametric": "#D55E00", "envelope": "#009E73"}  # Okabe and Ito's, safe for all eyes
SHOWN_LAWS = {"hoffmann_unrounded": "Hoffmann 2022", "besiroglu": "Besiroglu 2024", "kaplan": "Kaplan 2020"}
CONVENTIONS = {"n_params": "all parameters", "n_params_non_embedding": "no embeddings"}
CONVENTIONS |= {"n_params_matmul": "LM head counted, look-ups not"}
TASKS = 8  # benchmarks in one picture
MANY = 12  # budgets beyond which a colour bar is easier to read than a legend


class Skip(Exception):
    """A picture that these runs or this fit cannot give; the message says why."""


# ----- numbers as text -----


def sig(v, digits=4):
    """v to so many significant digits, without an exponent where it can be read without: 477.8, 0.3473, 1.2e-5."""
    if v is None or not np.isfinite(v):
        return "-"
    if v != 0 and not 1e-4 <= abs(v) < 1e6:
        return flops(v, digits)
    text = f"{v:#.{digits}g}"
    return f"{v:.0f}" if "e" in text else text.rstrip(".")


def size(v, digits=4):
    """A count of parameters or tokens: 300.3B, 12.50M, 8200."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if v is not None and max(scale, 1e4) <= v < 1e15:
            return sig(v / scale, digits) + letter
    return sig(v, digits)


def flops(v, digits=4):
    """A compute: 1e24, 5.76e23."""
    if v is None or not np.isfinite(v):
        return "-"
    mantissa, exponent = f"{v:.{digits - 1}e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


# ----- what a result holds -----


def point(q):
    return q.get("point") if isinstance(q, dict) else q


def section(result, name):
    """A method's section, empty where it was refused or never ran."""
    s = result.get(name) or {}
    return {} if s.get("status") == "refused" else s


def points(result, name, keys):
    """The point values of keys in a section, or None where one is missing."""
    values = [point(section(result, name).get(k)) for k in keys]
    return None if None in values else values


def law_of(result):
    """The parametric law (None if refused) and the cost of runs."""
    values = points(result, "parametric", ("E", "A", "B", "alpha", "beta"))
    return values and Law(*values), Cost(**(result.get("input", {}).get("cost") or {}))


def optimum_of(result, method, c):
    """(N*, D*) of a method at compute c, or None."""
    if method == "parametric":
        law, cost = law_of(result)
        return law and law.optimum(c, cost)
    v = points(result, method, ("a", "ln_k_n", "b", "ln_k_d"))
    return v and (np.exp(v[1] + v[0] * np.log(c)), np.exp(v[3] + v[2] * np.log(c)))


def budgets_of(result, with_optimum=False):
    """The isoFLOP budgets, all or those that have an optimum."""
    every = (result.get("isoflop") or {}).get("budgets") or []
    return [v for v in every if v["n_opt"] is not None or not with_optimum]


def rows_of(result, question, every=False):
    """Rows of predictions by methods not refused; every=True adds variants (isoflop:parabola) and published laws."""
    order, out = {m: i for i, m in enumerate(METHODS)}, []
    for r in (result.get("predictions") or {}).get(question) or []:
        family = r["method"].split(":")[0]
        if (every or r["method"] in METHODS) and (family not in METHODS or section(result, family)):
            out.append((order.get(family, len(order)), r))
    return [r for _, r in sorted(out, key=lambda v: v[0])]


def convention(result):
    name = result.get("input", {}).get("n_convention") or "N"
    return f"N = {name}" + (f" ({CONVENTIONS[name]})" if name in CONVENTIONS else "")


def why_not(result, method):
    """The reason that a method has no answer."""
    for r in result.get("refusals") or []:
        if r["method"] == method:
            return f"{method} was refused [{r['code']}]: {r['message']}"
    return f"there is no {method} fit"


# ----- axes -----

RC = {"font.size": 13, "axes.titlesize": 14, "axes.labelsize": 14, "legend.fontsize": 12, "legend.frameon": False}
RC |= {"xtick.labelsize": 12, "ytick.labelsize": 12, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True}
RC |= {"axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "figure.dpi": DPI}
STAR = {"marker": "*", "s": 240, "edgecolors": "black", "linewidths": 0.9, "zorder": 5}
OPEN = {"facecolors": "white", "edgecolors": "0.45", "linewidths": 1.2, "zorder": 4}
RING = {"s": 26, "facecolors": "none", "edgecolors": COLOURS["envelope"], "zorder": 4, "label": "envelope"}
ON_EDGE = {"marker": "x", "s": 60, "color": "0.2", "lw": 1.3, "zorder": 4, "label": "best rate tried was first or last"}
DIAMOND = {"marker": "D", "s": 55, "edgecolors": "black", "zorder": 6}
LATER = {"marker": "X", "s": 110, "color": "#CC79A7", "edgecolors": "black", "linewidths": 0.9, "zorder": 7}
PREDICTED = "prediction, 95% interval of a new run", {"marker": "D", "ms": 7, "mfc": "0.7", "mec": "black"}
OPTIMUM = "optimum, from the nearest runs", {"marker": "*", "ms": 15, "mfc": "0.6", "mec": "black"}
LEFT_OUT = "lowest run, but no inner minimum: left out", {"marker": "o", "ms": 9, "mfc": "white", "mec": "0.45"}
SURFACE = "fitted surface", {"ls": "--", "color": "0.3"}
N_AXIS, C_AXIS, LOSS_AXIS = "N (parameters)", "C (FLOPs)", "loss (nats per token)"


def _figure(width=8.6, height=6.4, rows=1, cols=1, **kw):
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(rows, cols, figsize=(width, height), layout="constrained", **kw)
    fig.get_layout_engine().set(w_pad=0.08, h_pad=0.08)
    return fig, axes


def _log_axis(axis, form, low, high):
    """Log scale with 3 to 7 labelled ticks on round numbers, whatever the range."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    getattr(axis.axes, f"set_{axis.axis_name}lim")(low, high)
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    tries = [np.outer(decades, steps).ravel() for steps in ((1.0,), (1.0, 3.0), (1.0, 2.0, 5.0))]
    for ticks in (*tries, MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)):
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) >= 3:
            break
    axis.set_major_locator(FixedLocator(ticks[:: -(-len(ticks) // 7)] if len(ticks) else ticks))
    axis.set_major_formatter(FuncFormatter(lambda v, _: form(v)))
    axis.set_minor_formatter(NullFormatter())


def _size_tick(v):
    text = size(v)
    return re.sub(r"\.?0+(?=\D?$)", "", text) if "." in text else text


def _tex(v, digits=3):
    """1.57 x 10^4 for labels."""
    mantissa, exponent = flops(v, digits).split("e")
    return (f"{mantissa}\\!\\times\\!" if mantissa != "1" else "") + f"10^{{{exponent}}}"


def _flops_tick(v):
    return f"${_tex(v)}$"


def _number(v):
    return sig(v) if 0.01 < v < 1e6 else _tex(v)


def _span(*arrays, pad=1.25):
    values = np.concatenate([np.ravel(np.asarray(a, float)) for a in arrays])
    return values.min() / pad, values.max() * pad


def _shades(count=256):
    """Viridis without its yellow end and darker towards it, so that the last shade still reads on white."""
    import matplotlib

    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.86, count))
    shades[:, :3] *= np.linspace(1.0, 0.72, count)[:, None]
    return shades


def _colour_bar(fig, ax, values, label, form):
    """A colour bar of log values; returns the function from values to colours."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm

    low, high = min(values), max(values)
    both = ScalarMappable(LogNorm(low, max(high, 1.01 * low)), ListedColormap(_shades()))
    _log_axis(fig.colorbar(both, ax=ax, label=label, pad=0.02).ax.yaxis, form, *both.get_clim())
    return lambda v: both.to_rgba(np.asarray(v))


def _band(ax, arrays, method, key):
    """ci95 of a method along C."""
    rows = [r for r in arrays.get("bands") or [] if r["method"] == method and r[key] and r[key]["ci95"]]
    held = [(r["flops"], *r[key]["ci95"]) for r in rows if None not in r[key]["ci95"]]
    ax.fill_between(*np.reshape(held, (-1, 3)).T, color=COLOURS[method], alpha=0.16, lw=0)


def _diamond(ax, r, key, x):
    """A prediction at x with its pi95; returns the values that the axis must show."""
    ends = [v for v in r[key].get("pi95") or () if v is not None]
    ax.plot([x] * len(ends), ends, color=COLOURS[r["method"]], lw=1.6, zorder=4)
    ax.scatter(x, r[key]["point"], color=COLOURS[r["method"]], **DIAMOND)
    return [r[key]["point"], *ends]


def _legend(fig, ax, more=(), ncol=2):
    """Everything labelled in ax, and (label, style of a line) more, below the figure."""
    from matplotlib.lines import Line2D

    handles = [h for h, label in zip(*ax.get_legend_handles_labels(), strict=True) if label]
    handles += [Line2D([], [], **({"ls": "none"} | style), label=label) for label, style in more]
    if handles:
        fig.legend(handles=handles, loc="outside lower center", ncol=ncol, columnspacing=1.2)


# ----- the pictures; their docstrings are the page's captions -----


def _groups(result, arrays):
    """(budget, its rows) of the budgets that have sizes enough to show."""
    every = [] if arrays.get("budget") is None else enumerate(budgets_of(result))
    rows = [(v, np.flatnonzero(arrays["budget"] == i)) for i, v in every if v["status"] != "too_few_sizes"]
    return [(v, at) for v, at in rows if len(at)]


def draw_isoflop(result, arrays):
    """Loss against N at every budget, with the optima."""
    n, loss, groups = arrays["n"], arrays["loss"], _groups(result, arrays)
    if not groups:
        raise Skip(why_not(result, "isoflop"))
    law, cost = law_of(result)
    fig, ax = _figure()
    handles = []
    for (v, rows), shade in zip(groups, _shades(len(groups)), strict=True):
        x, y = np.log(n[rows]), loss[rows]
        handles.append(ax.scatter(n[rows], y, s=30, color=shade, lw=0, zorder=3))
        if v["n_opt"] is None:
            ax.scatter(n[rows][y.argmin()], y.min(), s=90, **OPEN)
            continue
        grid, at, least = np.linspace(x.min() - 0.15, x.max() + 0.15, 200), np.log(v["n_opt"]), v["loss"]
        # the valley's curvature about the optimum that fit reports, runs 5% above it weighing half, as in the fit
        w = 1 / (1 + ((y / least - 1) / 0.05) ** 2)
        bend = max(np.sum(w * (x - at) ** 2 * (y - least)) / np.sum(w * (x - at) ** 4), 0.0)
        near = (bend * (grid - at) ** 2 < 0.05 * least) & (grid > x.min()) & (grid < x.max())
        ax.plot(np.exp(grid[near]), least + bend * (grid[near] - at) ** 2, color=shade, lw=2.2, zorder=3)
        ax.scatter(v["n_opt"], least, color=[shade], **STAR)
        if law is not None:
            x = np.exp(grid)
            ax.plot(x, law.loss(x, cost.tokens(x, v["flops"])), "--", color=shade, lw=1)
    used = np.concatenate([rows for _, rows in groups])
    edge = used[arrays["lr_on_edge"][used]] if arrays.get("lr_on_edge") is not None else used[:0]
    if len(edge):
        ax.scatter(n[edge], loss[edge], **ON_EDGE)
    pad = 0.06 * np.ptp(loss[used])
    ax.set_ylim(loss[used].min() - pad, loss[used].max() + pad)
    _log_axis(ax.xaxis, _size_tick, *_span(n[used], pad=1.3))
    ax.set(xlabel=N_AXIS, ylabel=LOSS_AXIS, title=f"IsoFLOP curves\n{convention(result)}")
    budgets = [v["flops"] for v, _ in groups]
    if len(groups) <= MANY:
        style = {"title_fontsize": 12, "loc": "outside right upper", "handletextpad": 0.1}
        fig.legend(handles, [_flops_tick(v) for v in budgets], title=C_AXIS, **style)
    else:
        _colour_bar(fig, ax, budgets, C_AXIS, _flops_tick)
    ok, left = (any((v["n_opt"] is None) == flag for v, _ in groups) for flag in (False, True))
    _legend(fig, ax, [OPTIMUM] * ok + [LEFT_OUT] * left + [SURFACE] * (ok and law is not None))
    return fig


def draw_optimum(result, arrays):
    """Compute-optimal parameters and tokens against compute; bands are 95% bootstrap intervals, given the law."""
    c, left = arrays["c"], [(v, at) for v, at in _groups(result, arrays) if v["n_opt"] is None]
    methods = [m for m in METHODS if optimum_of(result, m, 1e20) is not None]
    inside, rows = budgets_of(result, True), [r for r in rows_of(result, "flops") if r["method"] in methods]
    if not methods and not inside:
        raise Skip("; ".join(why_not(result, m) for m in METHODS))
    dots = section(result, "envelope").get("points") or {"flops": []}
    start, last = float(min([*c, *dots["flops"]])), float(c.max())
    end = max([last, *(r["flops"] for r in rows)])
    beyond = end > 1.05 * last
    limits = start / 1.6, end * 1.6 * (end / start) ** 0.04
    grid = np.geomspace(*limits, 200)
    fig, axes = _figure(8.0, 9.2, 2, sharex=True)
    mine = [[], []]  # what the axes must show, N above and D below
    for i, (ax, k) in enumerate(zip(axes, ("n_opt", "d_opt"), strict=True)):
        for m in methods:
            y, style = optimum_of(result, m, grid)[i], {"isoflop": "-", "parametric": "--", "envelope": "-."}[m]
            ax.plot(grid, y, style, color=COLOURS[m], lw=2, label=f"{METHODS[m]} fit", zorder=3)
            _band(ax, arrays, m, k)
            mine[i].append(y)
        for v in inside:
            ends = (v.get("ci95") or {}).get(k) or (v[k], v[k])
            bars = [[max(v[k] - ends[0], 0)], [max(ends[1] - v[k], 0)]]
            style = {"ms": 7, "color": COLOURS["isoflop"], "mec": "black", "mew": 0.7, "capsize": 3, "zorder": 4}
            ax.errorbar(v["flops"], v[k], bars, fmt="o", label="optimum of a budget" * (v is inside[0]), **style)
            mine[i].append([v[k]])
        for v, at in left:
            best = arrays["nd"[i]][at[arrays["loss"][at].argmin()]]
            ax.scatter(v["flops"], best, s=50, **OPEN)
            mine[i].append([best])
        if dots["flops"]:
            ax.scatter(dots["flops"], dots["nd"[i]], **RING)
            mine[i].append(dots["nd"[i]])
        for r in rows:
            if r["flops"] > last or len(inside) < 2:  # below, the optima are drawn
                aside = 0.012 * (methods.index(r["method"]) - 0.5 * (len(methods) - 1))
                mine[i].append(_diamond(ax, r, k, r["flops"] * (end / start) ** aside))
        low, high = _span(*mine[i])
        _log_axis(ax.yaxis, _size_tick, low / (high / low) ** 0.09, high * (high / low) ** 0.03)
        ax.set_ylabel(("N* (parameters)", "D* (tokens)")[i])
        if beyond:
            ax.axvspan(last * 1.03, limits[1], color="0.5", alpha=0.09, lw=0)
    for (name, text), dash in zip(SHOWN_LAWS.items(), ((0, (1, 1.2)), (0, (5, 2)), (0, (5, 1.5, 1, 1.5))), strict=True):
        lines = PUBLISHED[name].optimum(grid)
        if max(np.mean((y > _span(*v)[0]) & (y < _span(*v)[1])) for y, v in zip(lines, mine, strict=True)) > 0.15:
            for ax, y in zip(axes, lines, strict=True):
                ax.plot(grid, y, color="0.4", ls=dash, lw=1.3, label=text, zorder=1)
    import matplotlib.patheffects as pe

    halo = {"path_effects": [pe.withStroke(linewidth=3, foreground="white")], "fontsize": 12, "zorder": 7}
    if beyond:
        axes[0].text(0.98, 0.03, "beyond the data", transform=axes[0].transAxes, ha="right", color="0.35", **halo)
    near = bool(np.log(last / start) < 0.15 * np.log(limits[1] / limits[0]))  # two labels would overlap
    places = [(start, "left")] * (not near) + [(last, "left" if near else "center")]
    for x, ha in places + [(end, "right")] * beyond if methods else ():
        n, d = optimum_of(result, methods[0], x)
        low = [v for r in rows if r["flops"] == x for v in r["d_opt"].get("pi95") or () if v is not None]
        text, style = f"D/N = {sig(float(d / n), 3)}", {"textcoords": "offset points", "ha": ha, "va": "top"}
        style |= {"xytext": (14 if ha == "right" else 0, -4 if low else -16), "color": COLOURS[methods[0]]}
        axes[1].annotate(text, (x, min([d, *low])), **style, **halo)
    _log_axis(axes[1].xaxis, _flops_tick, *limits)
    axes[1].set_xlabel(C_AXIS)
    axes[0].set_title(f"Compute-optimal size and data\n{convention(result)}")
    _legend(fig, axes[0], [PREDICTED] * bool(rows) + [LEFT_OUT] * bool(left))
    return fig


def draw_loss(result, arrays):
    """Loss against compute: all runs or their training curves, and the frontier."""
    c, n, loss, curve = arrays["c"], arrays["n"], arrays["loss"], arrays.get("curve") or {}
    law, cost = law_of(result)
    rows = [r for r in rows_of(result, "flops") if point(r.get("loss")) is not None]
    fig, ax = _figure()
    shade = _colour_bar(fig, ax, n, N_AXIS, _size_tick)
    which = np.unique(curve.get("run", ()))
    for r in which[:: 1 + len(which) // 200]:
        at = curve["run"] == r
        ax.plot(curve["c"][at], curve["loss"][at], color=shade(n[r]), lw=1, alpha=0.75, zorder=2)
    ax.scatter(c, loss, c=shade(n), s=26, alpha=0.6, lw=0, zorder=2, label="runs")
    if ok := budgets_of(result, True):
        x, y = ([v[k] for v in ok] for k in ("flops", "loss"))
        ax.scatter(x, y, color=COLOURS["isoflop"], label="optimum of a budget", **STAR)
    if dots := section(result, "envelope").get("points"):
        ax.scatter(dots["flops"], dots["loss"], **RING)
    low, end = min([*c, *curve.get("c", ())]), max([*c, *(r["flops"] for r in rows)])
    grid, bottom = np.geomspace(low, end * 1.3, 300), [loss.min()]
    if fit := points(result, "compute_law", ("E", "k", "g")):
        y, text = fit[0] + fit[1] * grid ** -fit[2], f"$L = {sig(fit[0])} + {_number(fit[1])}\\,C^{{-{sig(fit[2])}}}$"
        ax.plot(grid, y, color="black", lw=1.8, zorder=3, label=text)
        bottom.append(y[-1])
    if law is not None:
        y = law.frontier_loss(grid, cost)
        ax.plot(grid, y, "--", color=COLOURS["parametric"], lw=2, zorder=3, label="frontier of the fitted surface")
        bottom.append(y[-1])
    for m in METHODS:
        _band(ax, arrays, m, "loss")
    rows = [r for r in rows if r["flops"] > c.max()]
    for r in rows:
        bottom += _diamond(ax, r, "loss", r["flops"])
    later = {r["run_id"]: r for r in rows_of(result, "runs", True) if r["actual"] is not None}.values()
    x, y = [float(cost.flops(r["n"], r["d"])) for r in later], [r["actual"] for r in later]
    ax.scatter(x, y, label="measured later (--predict_runs)" if x else None, **LATER)
    bottom, end = [*bottom, *y], max([end, *x])
    top = np.quantile(curve["loss"], 0.97) if curve else loss.max()
    _log_axis(ax.yaxis, lambda v: f"{v:.3g}", min(bottom) * 0.98, top * 1.02)
    _log_axis(ax.xaxis, _flops_tick, low / 1.4, end * 1.6)
    ax.set(xlabel=C_AXIS, ylabel=LOSS_AXIS, title=f"Loss and compute\n{convention(result)}")
    _legend(fig, ax, [PREDICTED] * bool(rows))
    return fig


def draw_surface(result, arrays):
    """The fitted surface, the runs and the efficient frontier."""
    law, cost = law_of(result)
    if law is None:
        raise Skip(why_not(result, "parametric"))
    n, d, c = (arrays[k] for k in "ndc")
    far = [r for r in rows_of(result, "flops") if r["method"] == "parametric" and c.max() < r["flops"] <= 100 * c.max()]
    ends = [[r[k]["point"] for r in far] for k in ("n_opt", "d_opt")]
    xl, yl = _span(n, ends[0], pad=1.5), _span(d, ends[1], pad=1.5)
    x, y = np.meshgrid(np.geomspace(*xl, 160), np.geomspace(*yl, 160))
    z = law.loss(x, y)
    levels = law.E + np.geomspace((z - law.E).min(), (z - law.E).max(), 15)  # even in ln(L - E), so evenly spaced
    fig, ax = _figure(8.6, 6.8)
    bar = fig.colorbar(ax.contourf(x, y, z, levels, cmap="viridis_r", alpha=0.75), ax=ax, pad=0.02, ticks=levels[::2])
    bar.set_label(LOSS_AXIS)
    bar.ax.set_yticklabels([f"{v:.2f}" for v in levels[::2]])
    ax.contour(x, y, z, levels[2:-1:2], colors="white", linewidths=0.8)
    ax.scatter(n, d, s=26, color="black", edgecolors="white", linewidths=0.6, zorder=3, label="runs")
    line = law.optimum(np.geomspace(c.min() / 1e3, c.max() * 1e6, 300), cost)
    ax.plot(*line, color=COLOURS["parametric"], lw=3, zorder=4, label="efficient frontier")
    if ok := budgets_of(result, True):
        ax.scatter([v["n_opt"] for v in ok], [v["d_opt"] for v in ok], color="white", label="isoFLOP optima", **STAR)
    if far:
        ax.scatter(*ends, color=COLOURS["parametric"], label="prediction", **DIAMOND)
    _log_axis(ax.xaxis, _size_tick, *xl)
    _log_axis(ax.yaxis, _size_tick, *yl)
    terms = (f"{_number(k)}\\,{x}^{{-{sig(g)}}}" for k, x, g in ((law.A, "N", law.alpha), (law.B, "D", law.beta)))
    text = f"$L = {sig(law.E)} + {' + '.join(terms)}$"
    ax.set(xlabel=N_AXIS, ylabel="D (tokens)", title=f"Fitted surface, {convention(result)}\n{text}")
    _legend(fig, ax, ncol=4)
    return fig


def draw_residuals(result, arrays):
    """What the surface leaves unexplained."""
    law, _ = law_of(result)
    if law is None:
        raise Skip(why_not(result, "parametric"))
    n, d, c, loss = (arrays[k] for k in ("n", "d", "c", "loss"))
    fitted = law.loss(n, d)
    r = 100 * np.log(loss / fitted)
    ids = np.array([str(i) for i in arrays.get("run_id", range(len(r)))])
    far = np.isin(ids, [v["run_id"] for v in result["input"].get("outliers") or []])
    fig, axes = _figure(8.6, 7.6, 2, 2, sharey=True)
    shade = _colour_bar(fig, axes, c, C_AXIS, _flops_tick)
    for ax, x, name in zip(axes.flat, (n, d, fitted), (N_AXIS, "D (tokens)", "predicted loss"), strict=False):
        ax.scatter(x, r, s=22, color=shade(c), alpha=0.8, lw=0)
        ax.scatter(x[far], r[far], s=80, facecolors="none", edgecolors=COLOURS["parametric"], linewidths=1.5)
        if x is not fitted:
            _log_axis(ax.xaxis, _size_tick, *_span(x))
        ax.set_xlabel(name)
    named = []  # heights taken, so that names of neighbours do not overlap
    for i in np.flatnonzero(far)[np.argsort(-np.abs(r[far]))][:6]:
        if abs(r[i]) > 0.15 * np.ptp(r) and all(abs(r[i] - v) > 0.055 * np.ptp(r) for v in named):
            right = fitted[i] > 0.5 * (fitted.min() + fitted.max())
            style = {"ha": "right" if right else "left", "va": "center", "fontsize": 11, "textcoords": "offset points"}
            axes[1, 0].annotate(ids[i], (fitted[i], r[i]), (-8 if right else 8, 0), **style)
            named.append(r[i])
    axes[1, 1].hist(r, bins=min(40, max(8, len(r) // 6)), orientation="horizontal", color="0.55")
    axes[1, 1].set_xlabel("runs")
    for ax in axes.flat:
        ax.axhline(0, color="black", lw=1)
    for ax in axes[:, 0]:
        ax.set_ylabel("residual of ln L (%)")
    sd, count = 1.4826 * np.median(np.abs(r - np.median(r))), int(far.sum())
    text = f"robust sd {sig(sd, 2)}%, {count} outlier{'s' * (count != 1)} (over 5 MAD)"
    fig.suptitle(f"Residuals of the surface, {convention(result)}\n{text}", fontsize=14)
    return fig


def draw_ratio(result, arrays):
    """Training FLOPs over 6ND, by model size."""
    n, c, six, exact = arrays["n"], arrays["c"], 6.0 * arrays["n"] * arrays["d"], arrays.get("c_exact")
    off = bool(np.any(np.abs(c / six - 1) >= 0.01))  # then the picture is of the FLOPs that the fit itself uses
    ratio, what = (c / six, "FLOPs") if off or exact is None else (exact / six, "FLOPs with attention")
    if not np.any(np.abs(ratio - 1) >= 0.01):
        raise Skip("every run's FLOPs are 6ND")
    fig, ax = _figure(8.0, 6.0)
    shade = _colour_bar(fig, ax, c, C_AXIS, _flops_tick)(c) if off else "0.5"  # with attention, budgets would coincide
    ax.scatter(n, ratio, s=40, c=shade, edgecolors="black", linewidths=0.4, zorder=3, label="runs")
    ax.axhline(1, color="black", lw=1.2, label="6ND")
    if off:
        _, cost = law_of(result)
        x = np.geomspace(n.min(), n.max(), 50)
        text = f"$C = {sig(cost.kappa, 3)}\\,N^{{{sig(1 + cost.rho, 4)}}}D$, used for the optima"
        ax.plot(x, cost.kappa * x**cost.rho / 6, "--", color=COLOURS["parametric"], lw=2, label=text)
    _log_axis(ax.xaxis, _size_tick, *_span(n))
    ax.set(xlabel=N_AXIS, ylabel=f"{what} / 6ND", title=f"{what} over 6ND\n{convention(result)}")
    _legend(fig, ax, ncol=3)
    return fig


def draw_scores(result, arrays):
    """Scores of benchmarks against loss and against compute, with standard errors, a colour for each task."""
    found = arrays.get("scores") or {}
    tasks = sorted(found, key=lambda task: task not in ("core", "gauntlet"))[:TASKS]
    if not tasks:
        raise Skip  # no columns score_TASK, which eval.py --sweep makes
    import matplotlib

    fig, axes = _figure(8.6, 11.0, 2, 1)
    colours = matplotlib.colormaps["tab10"](np.arange(len(tasks)))
    for task, colour, marker in zip(tasks, colours, "osD^vP*X", strict=False):
        held = [i for i, run in enumerate(arrays["run_id"]) if str(run) in found[task]]
        score, se = np.reshape([found[task][str(arrays["run_id"][i])] for i in held], (-1, 2)).T
        for ax, x in zip(axes, (arrays["loss"], arrays["c"]), strict=True):
            look = {"color": colour, "ms": 6, "lw": 1, "alpha": 0.8, "label": task if ax is axes[0] else None}
            ax.errorbar(x[held], score, np.nan_to_num(se), fmt=marker, **look)
    _log_axis(axes[1].xaxis, _flops_tick, *_span(arrays["c"]))
    axes[0].invert_xaxis()  # better is to the right in both
    axes[0].set(xlabel=LOSS_AXIS, ylabel="score")
    axes[1].set(xlabel=C_AXIS, ylabel="score")
    left_out = f" ({len(tasks)} of {len(found)} tasks)" if len(found) > len(tasks) else ""
    fig.suptitle(f"Scores, loss and compute{left_out}", fontsize=14)
    _legend(fig, axes[0], ncol=3)
    return fig


PICTURES = {"isoflop.png": draw_isoflop, "optimum.png": draw_optimum, "loss_compute.png": draw_loss}
PICTURES |= {"surface.png": draw_surface, "residuals.png": draw_residuals, "flops_ratio.png": draw_ratio}
PICTURES |= {"scores.png": draw_scores}


def plot_flops(cfg: ModelConfig, path: str):
    """Exact FLOPs over 6ND, under each convention of N, as depth, width and context of cfg vary one at a time."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    def at_width(heads):
        kv = math.gcd(heads, cfg.n_kv_head)
        n_ffn = round(cfg.n_ffn / cfg.n_embd * heads * cfg.head_size)
        return replace(cfg, n_embd=heads * cfg.head_size, n_head=heads, n_kv_head=kv, n_ffn=n_ffn)

    def around(middle, least, most):
        """Powers of two, and middle itself."""
        return sorted({middle, *(2**i for i in range(20) if least <= 2**i <= most)})

    panels = {
        "layers": [(n, replace(cfg, n_layer=n)) for n in around(cfg.n_layer, 1, 128)],
        "width": [(h * cfg.head_size, at_width(h)) for h in around(cfg.n_head, 1, 2**14 // cfg.head_size)],
        "context length in tokens": [(T, replace(cfg, block_size=T)) for T in around(cfg.block_size, 64, 2**17)],
    }
    here = dict(zip(panels, (cfg.n_layer, cfg.n_embd, cfg.block_size), strict=True))
    names = {
        "matmul": "N = weights that multiply, with the head",
        "total": "N = all weights",
        "non_embedding": "N = without embeddings and head",
    }
    with plt.rc_context({"font.size": 13}):  # read on a phone, too
        fig, axes = plt.subplots(3, 1, figsize=(7, 12.5), layout="constrained")
        for ax, (label, models) in zip(axes, panels.items(), strict=True):
            ax.axhspan(0.95, 1.05, color="0.88", label="within 5%")
            for (name, text), style in zip(names.items(), ("-", "--", ":"), strict=True):
                ratios = [flops_per_token_exact(m) / (6 * count_params(m)[name]) for _, m in models]
                ax.plot([x for x, _ in models], ratios, style, lw=2.5, marker="o", ms=4, label=text)
            ax.axvline(here[label], color="0.5", lw=1)
            ax.set(xscale="log", yscale="log", xlabel=label, ylabel="exact / 6ND")
            ax.xaxis.set_major_locator(matplotlib.ticker.LogLocator(2))
            ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}" if x < 1024 else f"{x / 1024:g}k")
            ax.yaxis.set_major_locator(matplotlib.ticker.LogLocator(10, (1, 1.5, 2, 3, 5, 7)))
            ax.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
            ax.minorticks_off()
            ax.grid(alpha=0.3)
        axes[0].legend(fontsize=12)
        axes[0].set_title(
            f"Exact FLOPs over 6ND around {cfg.n_layer} layers x {cfg.n_embd},\n"
            f"context {cfg.block_size:,}, vocabulary {cfg.vocab_size:,} (grey lines)"
        )
        fig.savefig(path, dpi=110)
        plt.close(fig)

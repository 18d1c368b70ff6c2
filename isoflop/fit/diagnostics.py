"""
Pictures that show how far to trust the law that answers: its contours and residuals, FLOPs over 6ND, benchmark scores.

Each draw_*() is as in figures.py.
"""

import numpy as np

from isoflop.display import sig
from isoflop.fit.axes import (
    C_AXIS,
    COLOURS,
    D_AXIS,
    DIAMOND,
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
    size_tick,
    span,
    superscript,
)
from isoflop.fit.findings import in_common, tests_of
from isoflop.fit.outliers import SMALLEST
from isoflop.fit.parametric import OUTLIER_MADS
from isoflop.fit.result import METHODS, answering_law, budgets_of, law_of, why_not

TASKS = 8  # benchmarks in one picture
TESTED = {"forecast": "forecast", **METHODS}
MARKERS = {"forecast": "D", "coupled": "v", "isoflop": "o", "parametric": "s", "envelope": "^"}


# ----- the law that answers -----


def _answering(result):
    """The law that answers and its name, where the runs tell N and D apart."""
    law, name = answering_law(result)
    if law is None:
        raise Skip(why_not(result, "parametric"))
    common = in_common(result)
    if common:
        raise Skip(f"all runs have {common}: off it the law is the prior's alone")
    return law, name


def draw_surface(result, arrays):
    """The law that answers as contours, the runs and the efficient frontier."""
    _, cost = law_of(result)
    law, name = _answering(result)
    n, d, c = arrays["n"], arrays["d"], arrays["c"]
    far = []
    for row in result.get("forecast") or []:
        if c.max() < row["flops"] <= 100 * c.max():
            far.append(row)
    far_n, far_d = [row["n_opt"]["point"] for row in far], [row["d_opt"]["point"] for row in far]
    n_limits, d_limits = span(n, far_n, pad=1.5), span(d, far_d, pad=1.5)
    x, y = np.meshgrid(np.geomspace(*n_limits, 160), np.geomspace(*d_limits, 160))
    z = law.loss(x, y)
    levels = law.E + np.geomspace((z - law.E).min(), (z - law.E).max(), 15)  # even in ln(L - E), so evenly spaced

    fig, ax = figure(8.6, 6.8)
    filled = ax.contourf(x, y, z, levels, cmap="viridis_r", alpha=0.75)
    bar = fig.colorbar(filled, ax=ax, pad=0.02, ticks=levels[::2])
    bar.set_label(loss_axis(result))
    bar.ax.set_yticklabels([f"{level:.2f}" for level in levels[::2]])
    ax.contour(x, y, z, levels[2:-1:2], colors="white", linewidths=0.8)
    ax.scatter(n, d, s=26, color="black", edgecolors="white", linewidths=0.6, zorder=3, label="runs")
    best_n, best_d = law.optimum(np.geomspace(c.min() / 1e3, c.max() * 1e6, 300), cost)
    ax.plot(best_n, best_d, color=COLOURS[colour_of(name)], lw=3, zorder=4, label="efficient frontier")
    inside = budgets_of(result, True)
    if inside:
        optima = [budget["n_opt"] for budget in inside], [budget["d_opt"] for budget in inside]
        ax.scatter(*optima, color="white", label="isoFLOP optima", **STAR)
    if far:
        ax.scatter(far_n, far_d, color=COLOURS["forecast"], label="forecast", **DIAMOND)
    log_axis(ax.xaxis, size_tick, *n_limits)
    log_axis(ax.yaxis, size_tick, *d_limits)
    ax.set(xlabel=n_axis(result), ylabel=D_AXIS, title=f"{name[0].upper()}{name[1:]}\n{_formula(law)}")
    legend(fig, ax, columns=4)
    return fig


def _formula(law):
    """L = E + the terms of a law, with their power where they are coupled."""
    terms = power_term(law.A, "N", law.alpha), power_term(law.B, "D", law.beta)
    if law.p == 1:
        return f"L = {sig(law.E)} + {terms[0]} + {terms[1]}"
    return f"L = {sig(law.E)} + [({terms[0]})ᵖ + ({terms[1]})ᵖ]¹ᐟᵖ, p = {sig(law.p, 3)}"


def draw_residuals(result, arrays):
    """What the law that answers leaves unexplained."""
    law, name = _answering(result)
    n, d, c, loss = arrays["n"], arrays["d"], arrays["c"], arrays["loss"]
    fitted = law.loss(n, d)
    residual = 100 * np.log(loss / fitted)
    off = np.abs(residual - np.median(residual))
    mad = float(np.median(off))
    far = (off > OUTLIER_MADS * mad) & (off > 100 * SMALLEST)

    fig, axes = figure(8.6, 7.6, 2, 2, sharey=True)
    shade = colour_bar(fig, axes, c, C_AXIS, flops_tick)
    panels = (
        (axes[0, 0], n, n_axis(result)),
        (axes[0, 1], d, D_AXIS),
        (axes[1, 0], fitted, loss_axis(result, "Fitted loss")),
    )
    for ax, x, label in panels:
        ax.scatter(x, residual, s=22, color=shade(c), alpha=0.8, lw=0)
        ring = {"facecolors": "none", "edgecolors": COLOURS[colour_of(name)], "linewidths": 1.5}
        ax.scatter(x[far], residual[far], s=80, **ring)
        if x is not fitted:
            log_axis(ax.xaxis, size_tick, *span(x))
        ax.set_xlabel(label)
    bins = min(40, max(8, len(n) // 6))
    axes[1, 1].hist(residual, bins, histtype="stepfilled", orientation="horizontal", color="0.55")
    axes[1, 1].set_xlabel("Runs")
    for ax in axes.flat:
        ax.axhline(0, color="black", lw=1)
    for ax in axes[:, 0]:
        ax.set_ylabel("Residual of ln L, %")
    outliers = "1 run" if far.sum() == 1 else f"{far.sum()} runs"
    title = f"Residuals of the {name}: robust sd {sig(1.4826 * mad, 2)}%, {outliers} over {OUTLIER_MADS:g} MAD off"
    fig.suptitle(title, fontsize=14)
    return fig


# ----- back-tests -----


def draw_backtest(result, arrays):
    """Back-tests of larger budgets: forecast and law up to 4 budgets ahead (open: out of pi95), other methods one."""
    tests = _shown_tests(result)
    if not tests:
        raise Skip("these runs allow no back-test: it takes four budgets")
    fig, (left, right) = figure(10.6, 5.6, 1, 2)
    ends = span([row["predicted"] for row in tests], [row["measured"] for row in tests], pad=1.02)
    left.plot(ends, ends, color="black", lw=1, zorder=2)
    right.axhline(0, color="black", lw=1, zorder=2)
    names = {**TESTED, "coupled": answering_law(result)[1]}
    for method in dict.fromkeys(row["method"] for row in tests):
        mine = [row for row in tests if row["method"] == method]
        style = {"s": 46, "marker": MARKERS[method], "lw": 1.2, "alpha": 0.85, "zorder": 3}
        style |= {"edgecolors": COLOURS[method], "label": f"{names[method]} ({len(mine)})"}
        fills = [COLOURS[method] if _holds(row) else "white" for row in mine]
        left.scatter([row["measured"] for row in mine], [row["predicted"] for row in mine], c=fills, **style)
        distance = [row["flops"] / row["flops_fitted"] for row in mine]
        right.scatter(distance, [-100 * row["error_ln"] for row in mine], c=fills, **style)
    log_axis(left.xaxis, "{:.3g}".format, *ends)
    log_axis(left.yaxis, "{:.3g}".format, *ends)
    log_axis(right.xaxis, "{:.3g}x".format, *span([row["flops"] / row["flops_fitted"] for row in tests]))
    left.set(xlabel=loss_axis(result, "Measured loss"), ylabel=loss_axis(result, "Predicted loss"))
    right.set(xlabel="Compute over the largest fitted", ylabel="Predicted above measured, %")
    left.set_title("Back-tests: predicted from the budgets below")
    legend(fig, left, columns=3)
    return fig


def _shown_tests(result):
    """Rows of multi-step back-tests, and one-step ones of the methods that have no others, with the same keys."""
    rows = list(result.get("backtests") or [])
    for row in tests_of(result):
        if row["method"] != "isoflop" or not rows or rows[0]["method"] != "forecast":  # that line is the forecast's
            rows.append({**row, "measured": row["actual"], "pi95": None})
    return rows


def _holds(row):
    """Whether what was measured lies inside pi95, as far as there is one."""
    return not row["pi95"] or row["pi95"][0] <= row["measured"] <= row["pi95"][1]


# ----- FLOPs, and benchmark scores -----


def draw_ratio(result, arrays):
    """Training FLOPs over 6ND, by model size and, of budgets, by budget: each run, and the mean of a budget."""
    n, c, six_nd = arrays["n"], arrays["c"], 6.0 * arrays["n"] * arrays["d"]
    ratio, what = c / six_nd, "FLOPs"
    not_six_nd = bool(np.any(np.abs(ratio - 1) >= 0.01))  # then the picture is of the FLOPs that the fit itself uses
    if not not_six_nd and arrays.get("c_exact") is not None:
        ratio, what = arrays["c_exact"] / six_nd, "FLOPs with attention"
    if not np.any(np.abs(ratio - 1) >= 0.01):
        raise Skip("every run's FLOPs are 6ND")
    of_budget = _by_budget(arrays)
    if of_budget:
        fig, (ax, by_budget) = figure(12.0, 6.0, 1, 2, sharey=True)
        _draw_ratio_by_budget(by_budget, arrays["c"], ratio, of_budget)
    else:
        fig, ax = figure(8.0, 6.0)
    colours = "0.5"  # with attention, budgets would coincide
    if not_six_nd:
        colours = colour_bar(fig, ax, c, C_AXIS, flops_tick)(c)
    ax.scatter(n, ratio, s=40, c=colours, edgecolors="black", linewidths=0.4, zorder=3, label="runs")
    ax.axhline(1, color="black", lw=1.2, label="6ND")
    if not_six_nd:
        _, cost = law_of(result)
        x = np.geomspace(n.min(), n.max(), 50)
        text = f"C = {sig(cost.kappa, 3)} N{superscript(sig(1 + cost.rho, 4))} D, used for the optima"
        ax.plot(x, cost.kappa * x**cost.rho / 6, "--", color=COLOURS["parametric"], lw=2, label=text)
    log_axis(ax.xaxis, size_tick, *span(n))
    ax.set(xlabel=n_axis(result), ylabel=f"{what} / 6ND", title=f"{what} over 6ND")
    legend(fig, ax, columns=3)
    return fig


def _by_budget(arrays):
    """Rows of each budget, of 2 or more; [] without."""
    index = arrays.get("budget")
    if index is None:
        return []
    groups = [np.flatnonzero(index == i) for i in np.unique(index[index >= 0])]
    return groups if len(groups) > 1 else []


def _draw_ratio_by_budget(ax, c, ratio, groups):
    """Every run at its budget, and the mean of each with its value."""
    at = np.array([np.exp(np.log(c[rows]).mean()) for rows in groups])
    mean = np.array([np.nanmean(ratio[rows]) for rows in groups])
    rows = np.concatenate(groups)
    ax.scatter(np.repeat(at, [len(group) for group in groups]), ratio[rows], s=18, c="0.6", lw=0, zorder=2)
    ax.plot(at, mean, "o-", color=COLOURS["isoflop"], ms=9, lw=1.5, zorder=3)
    for x, y in zip(at, mean, strict=True):
        box = {"fc": "white", "ec": "none", "pad": 1.0, "alpha": 0.75}
        ax.annotate(f"{y:.3f}", (x, y), (0, 9), textcoords="offset points", ha="center", fontsize=12, bbox=box)
    ax.axhline(1, color="black", lw=1.2)
    log_axis(ax.xaxis, flops_tick, *span(at, pad=1.6))
    ax.set(xlabel=C_AXIS, title="Mean of each budget")


def draw_scores(result, arrays):
    """Scores of benchmarks against loss and against compute, with standard errors, a colour for each task."""
    found = arrays.get("scores") or {}
    tasks = sorted(found, key=lambda task: task not in ("core", "gauntlet"))[:TASKS]
    if not tasks:
        raise Skip  # no columns score_TASK, which eval.py --sweep makes
    import matplotlib

    fig, axes = figure(8.6, 11.0, 2, 1)
    colours = matplotlib.colormaps["tab10"](np.arange(len(tasks)))
    names = [str(name) for name in arrays["run_id"]]
    for task, colour, marker in zip(tasks, colours, "osD^vP*X", strict=False):
        scored = [i for i, name in enumerate(names) if name in found[task]]
        score, se = np.reshape([found[task][names[i]] for i in scored], (-1, 2)).T
        style = {"fmt": marker, "color": colour, "ms": 6, "lw": 1, "alpha": 0.8}
        axes[0].errorbar(arrays["loss"][scored], score, np.nan_to_num(se), label=task, **style)
        axes[1].errorbar(arrays["c"][scored], score, np.nan_to_num(se), **style)
    log_axis(axes[1].xaxis, flops_tick, *span(arrays["c"]))
    axes[0].invert_xaxis()  # better is to the right in both
    axes[0].set(xlabel=loss_axis(result), ylabel="Score")
    axes[1].set(xlabel=C_AXIS, ylabel="Score")
    title = "Scores, loss and compute"
    if len(found) > len(tasks):
        title += f" ({len(tasks)} of {len(found)} tasks)"
    fig.suptitle(title, fontsize=14)
    legend(fig, axes[0], columns=3)
    return fig

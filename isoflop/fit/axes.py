"""
The look of the pictures: sizes and colours, log axes with round ticks, colour bars, legends below.

    with matplotlib.rc_context(RC):
        fig, ax = figure()
        ax.scatter(n, d)
        log_axis(ax.xaxis, size_tick, *span(n))
        legend(fig, ax)
"""

import numpy as np

from isoflop.display import flops, si, sig
from isoflop.fit import margins

DPI = 150
COLOURS = {
    "isoflop": "#0072B2",
    "parametric": "#D55E00",
    "envelope": "#009E73",
    "forecast": "#E69F00",
    "coupled": "#CC79A7",
}  # Okabe and Ito's, safe for all eyes
RC = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.labelsize": 14,
    "legend.fontsize": 12,
    "legend.frameon": False,
    "xtick.labelsize": 12,
    "ytick.labelsize": 12,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlelocation": "left",
    "axes.titley": 1.0,  # without one, matplotlib looks for it, which takes as long as a picture's layout
    "figure.dpi": DPI,
    "pdf.fonttype": 42,  # TrueType, as journals ask for
}
C_AXIS, D_AXIS = "Compute C, FLOPs", "Training tokens D"
COUNTED = {
    "n_params": "embeddings counted",
    "n_params_non_embedding": "embeddings not counted",
    "n_params_matmul": "LM head counted",
}
STAR = {"marker": "*", "s": 240, "edgecolors": "black", "linewidths": 0.9, "zorder": 5}
OPEN = {"facecolors": "white", "edgecolors": "0.45", "linewidths": 1.2, "zorder": 4}
DIAMOND = {"marker": "D", "s": 55, "edgecolors": "black", "zorder": 6}
MOST_TICKS = 7
SUPERSCRIPT = str.maketrans("-.0123456789", "⁻·⁰¹²³⁴⁵⁶⁷⁸⁹")
MOST_MINOR_DECADES = 12  # of more, minor ticks are a grey bar


class Skip(Exception):
    """A picture that these runs or this fit cannot give; the message says why."""


def figure(width=8.6, height=6.4, rows=1, columns=1, **more):
    """plt.subplots() of this size in inches, laid out without overlaps."""
    import matplotlib.pyplot as plt

    return plt.subplots(rows, columns, figsize=(width, height), layout=margins.engine(), **more)


def colour_of(law):
    """The key in COLOURS of result.answering_law()'s name."""
    return "parametric" if law == "parametric fit" else "coupled"


def n_axis(result, name="Parameters N"):
    """Label of an axis of N, with how it is counted where that is known."""
    counted = COUNTED.get(result.get("input", {}).get("n_convention"))
    return f"{name}, {counted}" if counted else name


def loss_axis(result, name="Loss"):
    """Label of an axis of losses, with their unit."""
    return f"{name}, {result.get('input', {}).get('loss_unit') or 'nats per token'}"


def log_axis(axis, form, low, high):
    """Log scale with 3 to 7 labelled ticks on round numbers, whatever the range; form is a function value -> label."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    getattr(axis.axes, f"set_{axis.axis_name}lim")(low, high)
    decades = 10.0 ** np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    tries = [np.outer(decades, steps).ravel() for steps in ([1.0], [1.0, 3.0], [1.0, 2.0, 5.0])]
    tries.append(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
    for ticks in tries:
        ticks = ticks[(ticks >= low) & (ticks <= high)]
        if len(ticks) >= 3:
            break
    every = max(1, -(-len(ticks) // MOST_TICKS))
    axis.set_major_locator(FixedLocator(ticks[::every]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: form(value)))
    axis.set_minor_locator(NullLocator())
    _minor_ticks(axis, decades, low, high)


def _minor_ticks(axis, decades, low, high):
    """Ticks at 2 to 9 times each power of ten, as one artist: one for each tick takes as long as all other drawing."""
    from matplotlib.markers import TICKDOWN, TICKLEFT, TICKRIGHT

    if len(decades) > MOST_MINOR_DECADES:
        return
    ticks = np.outer(decades, np.arange(2.0, 10.0)).ravel()
    ticks = ticks[(ticks > low) & (ticks < high)]
    ax, at = axis.axes, np.zeros(len(ticks))
    style = {"ls": "none", "color": "black", "ms": 2.5, "mew": 0.6, "clip_on": False, "in_layout": False}
    style |= {"scalex": False, "scaley": False}
    if axis.axis_name == "x":
        ax.plot(ticks, at, marker=TICKDOWN, transform=ax.get_xaxis_transform(), **style)
    elif axis.get_ticks_position() == "right":
        ax.plot(at + 1, ticks, marker=TICKRIGHT, transform=ax.get_yaxis_transform(), **style)
    else:
        ax.plot(at, ticks, marker=TICKLEFT, transform=ax.get_yaxis_transform(), **style)


def size_tick(value):
    return si(value)


def flops_tick(value):
    """1.57×10²⁰, in plain letters: matplotlib's mathematics take a tenth of all drawing."""
    mantissa, exponent = flops(value, 3).split("e")
    factor = "" if mantissa == "1" else f"{mantissa}×"
    return f"{factor}10{superscript(exponent)}"


def superscript(text):
    """Digits, minus and decimal point as letters that stand high."""
    return text.translate(SUPERSCRIPT)


def power_term(coefficient, letter, exponent):
    """A term of a law: 1977 C⁻⁰·¹⁷."""
    factor = sig(coefficient) if 0.01 < coefficient < 1e6 else flops_tick(coefficient)
    return f"{factor} {letter}{superscript('-' + sig(exponent))}"


def span(*arrays, pad=1.25):
    """(least, largest) of all values, a factor `pad` wider on both sides."""
    values = np.concatenate([np.ravel(np.asarray(array, float)) for array in arrays])
    return values.min() / pad, values.max() * pad


def shades(count=256):
    """Viridis without its yellow end and darker towards it, so that the last shade still reads on white."""
    import matplotlib

    colours = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.86, count))
    colours[:, :3] *= np.linspace(1.0, 0.72, count)[:, None]
    return colours


def colour_bar(fig, ax, values, label, form):
    """A colour bar of log values; returns the function from values to colours."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import ListedColormap, LogNorm

    low, high = min(values), max(values)
    mappable = ScalarMappable(LogNorm(low, max(high, 1.01 * low)), ListedColormap(shades()))
    bar = fig.colorbar(mappable, ax=ax, label=label, pad=0.02)
    log_axis(bar.ax.yaxis, form, *mappable.get_clim())
    return lambda some: mappable.to_rgba(np.asarray(some))


def legend(fig, ax, more=(), columns=2):
    """Everything labelled in ax, and (label, style of a line) more, below the figure."""
    from matplotlib.lines import Line2D

    handles = [handle for handle, label in zip(*ax.get_legend_handles_labels(), strict=True) if label]
    for label, style in more:
        handles.append(Line2D([], [], **({"ls": "none"} | style), label=label))
    if handles:
        fig.legend(handles=handles, loc="outside lower center", ncol=columns, columnspacing=1.2)

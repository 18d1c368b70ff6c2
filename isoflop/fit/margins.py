"""
The layout of the pictures: margins from the labels that are there, in one pass.

matplotlib's own measures every tick's label twice, which takes as long as all drawing.

    >>> fig, ax = plt.subplots(layout=engine())
"""

# inches; text is 12 to 14 points
PAD, TICK, CHARACTER, LINE = 0.1, 0.08, 0.105, 0.24
BAR, BAR_GAP = 0.2, 0.18
LAST_TICK = 0.2  # by which the label of a last tick may reach past its axis


def engine():
    """A matplotlib layout engine that calls place() before a picture is drawn."""
    from matplotlib.layout_engine import LayoutEngine

    class Margins(LayoutEngine):
        _adjust_compatible, _colorbar_gridspec = True, False

        def execute(self, fig):
            place(fig)

    return Margins()


def place(fig):
    """Places axes and colour bars inside titles, labels and figure legends; those with the gid "right" stand there."""
    width, height = fig.get_size_inches()
    bars = [ax for ax in fig.axes if ax.get_label() == "<colorbar>"]
    axes = [ax for ax in fig.axes if ax not in bars]
    grid = axes[0].get_gridspec()
    below, beside = _legends(fig)
    # margins
    left = PAD + max(_left(ax) for ax in axes if ax.get_subplotspec().is_first_col())
    bottom = PAD + below + max(_below(ax) for ax in axes if ax.get_subplotspec().is_last_row())
    top = PAD + max(_above(ax) for ax in axes if ax.get_subplotspec().is_first_row())
    if fig.get_suptitle():
        top += 1.3 * LINE
    right = PAD + beside + (_of_bar(bars[0]) if bars else LAST_TICK)
    # gaps between axes
    inner = [_left(ax) for ax in axes if not ax.get_subplotspec().is_first_col()]
    across = PAD + LAST_TICK / 2 + max(inner, default=0.0)
    inner = [_below(ax) for ax in axes if not ax.get_subplotspec().is_last_row()]
    inner = max(inner, default=0.0) + max(_above(ax) for ax in axes)
    down = 1.5 * PAD + inner
    fig.subplots_adjust(
        left / width,
        bottom / height,
        1 - right / width,
        1 - top / height,
        _share(across, width - left - right, grid.ncols),
        _share(down, height - bottom - top, grid.nrows),
    )
    for bar in bars:
        bar.set_box_aspect(None)
        x = width - right + BAR_GAP
        bar.set_position((x / width, bottom / height, BAR / width, 1 - (bottom + top) / height))


def _share(gap, whole, count):
    """A gap as subplots_adjust() wants it: over the size of each of so many axes."""
    return gap * count / (whole - gap * (count - 1))


def _legends(fig):
    """Heights of the legends below and widths of those beside the axes."""
    below = beside = 0.0
    for legend in fig.legends:
        box = legend.get_window_extent()
        if legend.get_gid() == "right":
            beside = max(beside, box.width / fig.dpi)
        else:
            below = max(below, box.height / fig.dpi)
    return below, beside


def _longest(axis):
    """The most characters of any tick's label."""
    low, high = sorted(axis.get_view_interval())
    ticks = [tick for tick in axis.get_majorticklocs() if low <= tick <= high]
    return max(map(len, axis.get_major_formatter().format_ticks(ticks)), default=0)


def _left(ax):
    size = TICK
    if ax.yaxis.get_tick_params().get("labelleft", True):
        size += CHARACTER * _longest(ax.yaxis)
    return size + (1.2 * LINE if ax.get_ylabel() else 0.0)


def _below(ax):
    size = TICK
    if ax.xaxis.get_tick_params().get("labelbottom", True):
        size += LINE
    return size + (LINE if ax.get_xlabel() else 0.0)


def _above(ax):
    title = ax.get_title("left")
    return LINE * (1 + title.count("\n")) if title else 0.0


def _of_bar(bar):
    """Width of a colour bar with its labels, and of the gap before it."""
    return BAR_GAP + BAR + TICK + CHARACTER * _longest(bar.yaxis) + 1.2 * LINE

"""The layout of the pictures: nothing overlaps, and the look of every picture is inside its edges."""

import matplotlib.pyplot
import numpy as np
import pytest

from isoflop.fit.axes import RC, colour_bar, figure, flops_tick, legend, log_axis, size_tick

matplotlib.use("Agg")


def draw(rows, columns, bar, **more):
    """A picture with all labels that the pictures have: figure, its axes and those of the bar."""
    fig, axes = figure(8.6, 7.6, rows, columns, **more)
    axes = np.atleast_1d(axes).ravel()
    for ax in axes:
        ax.plot([1e7, 1e11], [1e19, 1e23], label="runs")
        log_axis(ax.xaxis, size_tick, 9e6, 1.2e11)
        log_axis(ax.yaxis, flops_tick, 1e18, 1.5e23)
        ax.set(xlabel="Parameters N", ylabel="Compute C, FLOPs", title="Two\nlines")
    if bar:
        colour_bar(fig, axes, [1e18, 1e22], "Compute C, FLOPs", flops_tick)
        fig.suptitle("All of them", fontsize=14)
    legend(fig, axes[0], [("forecast", {"marker": "D"})])
    fig.canvas.draw()
    return fig


@pytest.mark.parametrize(
    "rows, columns, bar", [(1, 1, False), (1, 1, True), (1, 2, False), (2, 1, False), (2, 2, True)]
)
def test_labels_are_inside_the_picture_and_apart(rows, columns, bar):
    with matplotlib.rc_context(RC):
        fig = draw(rows, columns, bar)
        width, height = fig.canvas.get_width_height()
        boxes = [ax.get_tightbbox() for ax in fig.axes] + [fig.legends[0].get_window_extent()]
        if fig.get_suptitle():
            boxes.append(fig._suptitle.get_window_extent())
        for i, box in enumerate(boxes):
            assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
            for other in boxes[:i]:
                across = min(box.x1, other.x1) - max(box.x0, other.x0)
                down = min(box.y1, other.y1) - max(box.y0, other.y0)
                assert across <= 1 or down <= 1, (i, box, other)
        sizes = [ax.get_window_extent().width for ax in fig.axes[: rows * columns]]
        assert min(sizes) > 0.25 * width
    matplotlib.pyplot.close("all")


def test_shared_axes_stand_closer():
    with matplotlib.rc_context(RC):
        gaps = []
        for shared in (False, True):
            axes = draw(1, 2, False, sharey=shared).axes
            gaps.append(axes[1].get_window_extent().x0 - axes[0].get_window_extent().x1)
    matplotlib.pyplot.close("all")
    assert gaps[1] < gaps[0]

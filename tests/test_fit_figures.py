"""Pictures: what is drawn of budgets, FLOPs, scores and learning rates, and axes with round ticks."""

import matplotlib.pyplot
import numpy as np
import pytest
from helpers import simulated_table

import fit
from isoflop import laws
from isoflop.display import sig
from isoflop.fit import findings
from isoflop.fit.axes import (
    COLOURS,
    MOST_TICKS,
    Skip,
    figure,
    flops_tick,
    log_axis,
    loss_axis,
    n_axis,
    power_term,
    size_tick,
    span,
)
from isoflop.fit.diagnostics import _formula
from isoflop.fit.figures import (
    OF_THREE,
    ON_EDGE,
    PICTURES,
    _published,
    draw_backtest,
    draw_isoflop,
    draw_loss,
    draw_optimum,
    draw_ratio,
    draw_residuals,
    draw_surface,
)
from isoflop.fit.result import answering_law, bands, to_arrays, to_json

matplotlib.use("Agg")
LAW = laws.Law(1.7, 400.0, 1500.0, 0.34, 0.36)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    matplotlib.pyplot.close("all")


@pytest.fixture(scope="module")
def good():
    analysis = fit.analyse(simulated_table(LAW), fit.Options(bootstrap=200, predict_flops=(1e21,)))
    return to_json(analysis), to_arrays(analysis) | {"bands": bands(analysis)}


def labels(ax):
    return [label for label in ax.get_legend_handles_labels()[1] if label]


def test_optima_lie_on_the_curves(good):
    ax = draw_isoflop(*good).axes[0]
    stars = [tuple(part.get_offsets()[0]) for part in ax.collections if len(part.get_offsets()) == 1]
    assert stars == [(budget["n_opt"], budget["loss"]) for budget in good[0]["isoflop"]["budgets"]]
    assert ax.get_title().startswith("IsoFLOP curves") and ax.get_xscale() == "log"
    for budget in good[0]["isoflop"]["budgets"]:  # the curve that the minimum is of, as far as runs near it reach
        n, loss = good[1]["valleys"][budget["flops"]]
        drawn = [line for line in ax.lines if line.get_lw() == 2.2 and line.get_xdata()[0] in n]
        x, y = drawn[0].get_data()
        assert len(drawn) == 1 and x[np.argmin(y)] == pytest.approx(budget["n_opt"], rel=0.1)
        assert y.min() == pytest.approx(budget["loss"], rel=1e-3) and y.max() <= 1.1 * budget["loss"]
        assert set(y) <= set(loss)


def test_edge_budgets_have_an_open_circle():
    table = simulated_table(LAW, noise=0.0)
    keep = (table.c > 2e17) | (table.n > LAW.optimum(1e17)[0] * 0.9)
    analysis = fit.analyse(table.select(keep), fit.Options(bootstrap=0))
    result, arrays = to_json(analysis), to_arrays(analysis)
    budget = result["isoflop"]["budgets"][0]
    assert budget["status"] == "edge"
    first = np.flatnonzero(arrays["budget"] == 0)
    lowest = first[arrays["loss"][first].argmin()]
    for draw, y in ((draw_isoflop, arrays["loss"][lowest]), (draw_optimum, arrays["n"][lowest])):
        ax = draw(result, arrays).axes[0]
        x = arrays["n"][lowest] if draw is draw_isoflop else budget["flops"]
        assert (x, y) in [tuple(part.get_offsets()[0]) for part in ax.collections if len(part.get_offsets())]


def test_three_sizes_have_open_stars_and_fewer_their_runs():
    for sizes, count, title in ((3, 3, "IsoFLOP curves"), (2, 0, "Runs, of which no three share a budget")):
        analysis = fit.analyse(simulated_table(LAW, (1e18, 1e19, 1e20), sizes, 6.0), fit.Options(bootstrap=0))
        result, arrays = to_json(analysis), to_arrays(analysis)
        ax = draw_isoflop(result, arrays).axes[0]
        stars = [part for part in ax.collections if len(part.get_offsets()) == 1]
        assert len(stars) == count and ax.get_title() == title
        assert all((part.get_facecolors() == 1).all() for part in stars)
        assert sum(len(part.get_offsets()) for part in ax.collections) == 3 * sizes + count
        if stars:
            assert OF_THREE[0] in labels(draw_optimum(result, arrays).axes[0])
            assert findings.exponents(result)[0][0] == "isoFLOP, of three sizes: exact, no error"


def test_a_best_learning_rate_on_the_edge_is_marked(good):
    result, arrays = good
    edge = np.zeros(len(arrays["n"]), bool)
    edge[:9] = True
    crosses = []
    for marks in (edge, ~edge & edge):
        ax = draw_isoflop(result, arrays | {"lr_on_edge": marks}).axes[0]
        crosses.append([len(part.get_offsets()) for part in ax.collections if part.get_label() == ON_EDGE["label"]])
    assert crosses == [[9], []]


def test_predictions_lie_beyond_the_data(good):
    result, arrays = good
    for draw in (draw_optimum, draw_loss):
        ax = draw(result, arrays).axes[0]
        assert ax.get_xlim()[1] > 1e21
    assert "Besiroglu 2024" in labels(draw_optimum(result, arrays).axes[0])
    _, name = answering_law(result)
    assert f"least loss of the {name}" in labels(draw_loss(result, arrays).axes[0])


def without_the_coupled_law(result):
    return result | {"coupled": {"status": "refused"}}


def test_pictures_show_the_law_that_answers(good):
    result, arrays = good
    names = []
    for shown in (result, without_the_coupled_law(result)):
        law, name = answering_law(shown)
        names.append(name)
        budget = shown["isoflop"]["budgets"][0]
        fig = draw_isoflop(shown, arrays)
        dashed = [line for line in fig.axes[0].lines if line.get_linestyle() == "--"]
        n, loss = dashed[0].get_data()
        np.testing.assert_allclose(loss, law.loss(n, budget["flops"] / (6 * n)))
        assert len(dashed) == len(shown["isoflop"]["budgets"])
        assert name in [text.get_text() for text in fig.legends[-1].get_texts()]
        fig = draw_residuals(shown, arrays)
        drawn = fig.axes[0].collections[0].get_offsets()[:, 1]
        np.testing.assert_allclose(drawn, 100 * np.log(arrays["loss"] / law.loss(arrays["n"], arrays["d"])), atol=1e-9)
        assert f"of the {name}" in fig.get_suptitle()
        assert draw_surface(shown, arrays).axes[0].get_title().lower().startswith(name.lower())
    assert names[1] == "parametric fit" and names[0] in ("coupled law", "weighted Hoffmann's law")


def test_a_ladder_has_no_surface(good):
    result, arrays = good
    ladder = result | {"refusals": [{"method": "parametric", "code": "constant_ratio", "message": "one D/N"}]}
    for draw in (draw_surface, draw_residuals):
        with pytest.raises(Skip, match="all runs have one D/N"):
            draw(ladder, arrays)


def test_the_formula_of_a_coupled_law_has_its_power():
    plain, coupled = laws.Law(1.7, 400.0, 1500.0, 0.34, 0.36), laws.Law(1.7, 400.0, 1500.0, 0.34, 0.36, p=2.5)
    assert "p =" not in _formula(plain) and _formula(coupled).endswith("p = 2.50")


def test_the_forecast_has_a_line_and_a_band_and_labels_its_own_ratios(good):
    result, arrays = good
    for draw, key in ((draw_optimum, "n_opt"), (draw_loss, "loss")):
        ax = draw(result, arrays).axes[0]
        lines = [line for line in ax.lines if line.get_color() == COLOURS["forecast"] and len(line.get_xdata()) > 2]
        wanted = [row[key]["point"] for row in arrays["bands"] if row["method"] == "forecast"]
        np.testing.assert_allclose(lines[0].get_ydata(), wanted)
    texts = [text.get_text() for text in draw_optimum(result, arrays).axes[1].texts]
    assert f"D/N = {sig(result['forecast'][0]['tokens_per_param']['point'], 3)}" in texts


def test_published_laws_far_from_these_runs_are_left_out():
    c = np.geomspace(1e18, 1e21, 5)
    found = []
    for factor in (1.0, 10.0):
        n, d = laws.PUBLISHED["kaplan"].optimum(c)
        found.append([label for (label, _), _ in _published(c, [(n * factor, d * factor)])])
    assert "Kaplan 2020" in found[0] and found[1] == []


def test_stars_carry_the_interval_of_their_size(good):
    ax = draw_isoflop(*good).axes[0]
    bars = [tuple(line.get_xdata()) for line in ax.lines if line.get_marker() == "|"]
    assert bars == [tuple(budget["ci95"]["n_opt"]) for budget in good[0]["isoflop"]["budgets"]]


def test_axes_say_how_n_is_counted_and_the_unit_of_the_loss(good):
    named = {"input": {"n_convention": "n_params_matmul", "loss_unit": "bits per byte"}}
    assert n_axis(named) == "Parameters N, LM head counted" and n_axis({}) == "Parameters N"
    assert loss_axis(named) == "Loss, bits per byte"
    ax = draw_loss(*good).axes[0]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("Compute C, FLOPs", "Loss, nats per token")


def test_back_tests_are_drawn_as_predicted_against_measured(good):
    result, arrays = good
    one_step = [row | {"measured": row["actual"]} for row in findings.tests_of(result) if row["method"] == "parametric"]
    tests = result["backtests"] + one_step
    assert {row["method"] for row in tests} == {"forecast", "coupled", "parametric"}
    left, right = draw_backtest(result, arrays).axes
    drawn = np.concatenate([part.get_offsets() for part in left.collections])
    wanted = [(row["measured"], row["predicted"]) for row in tests]
    assert len(tests) > 2 and sorted(map(tuple, drawn)) == sorted(wanted)
    off = np.concatenate([part.get_offsets() for part in right.collections])[:, 1]
    np.testing.assert_allclose(sorted(off), sorted(-100 * row["error_ln"] for row in tests))
    missed = [{**row, "pi95": (1.0, 1.1)} for row in result["backtests"] if row["method"] == "forecast"]
    faces = draw_backtest(result | {"backtests": missed}, arrays).axes[0].collections[0].get_facecolors()
    np.testing.assert_allclose(faces[:, :3], 1.0)  # open: out of pi95
    shown = draw_backtest(result | {"backtests": []}, arrays).axes[0].collections
    assert len(shown) == 2  # without them, each method's own


def test_flops_with_attention_have_a_picture(good):
    result, arrays = good
    share = 40 / np.sqrt(arrays["n"])
    share[0] = np.nan  # a row without the column
    ax = draw_ratio(result, arrays | {"c_exact": arrays["c"] * (1 + share)}).axes[0]
    assert ax.get_title().startswith("FLOPs with attention over 6ND")
    shown = np.ma.filled(ax.collections[0].get_offsets(), np.nan)
    np.testing.assert_allclose(shown[1:], np.column_stack([arrays["n"], 1 + share])[1:], rtol=1e-12)
    mean = draw_ratio(result, arrays | {"c_exact": arrays["c"] * (1 + share)}).axes[1].lines[0].get_ydata()
    first = 1 + share[arrays["budget"] == 0]  # the mean of a budget leaves the row without the column out
    assert len(mean) == 7 and mean[0] == pytest.approx(np.nanmean(first))
    both = arrays | {"c": arrays["c"] * 1.2, "c_exact": arrays["c"] * 1.5}  # what the fit uses is what is drawn
    assert "attention" not in draw_ratio(result, both).axes[0].get_title()


@pytest.mark.parametrize("factor", [None, 1.0, np.nan])
def test_flops_of_6nd_have_none(good, factor):
    result, arrays = good
    exact = None if factor is None else arrays["c"] * factor
    with pytest.raises(Skip, match="6ND"):
        draw_ratio(result, arrays | {"c_exact": exact})


def test_scores_are_drawn_against_loss_and_compute(good):
    result, arrays = good
    scores = {f"task{i}": {str(name): (0.5, np.nan) for name in arrays["run_id"][i:]} for i in range(9)}
    fig = PICTURES["scores"](result, arrays | {"scores": scores})
    assert fig.get_suptitle() == "Scores, loss and compute (8 of 9 tasks)" and len(fig.axes) == 2
    assert [len(part.lines[0].get_xdata()) for part in fig.axes[1].containers][:2] == [49, 48]
    with pytest.raises(Skip, match="^$"):
        PICTURES["scores"](result, arrays)


def test_pictures_that_cannot_be_drawn_say_why(good):
    nothing = {"refusals": [{"method": "parametric", "code": "too_few_rows", "message": "3 runs"}]}
    for name in ("isoflop", "optimum", "surface", "residuals", "backtest"):
        with pytest.raises(Skip, match="there is no isoflop fit|too_few_rows|takes four budgets"):
            PICTURES[name](nothing, good[1])


def test_every_picture_has_a_caption():
    assert len(PICTURES) == 8 and all(draw.__doc__.endswith(".") for draw in PICTURES.values())


# ----- axes -----


@pytest.mark.parametrize("low, high", [(7e3, 3.4e5), (4e7, 1.2e11), (7.4e7, 1.4e8), (2.2, 3.4), (9.9e10, 1.01e11)])
def test_log_axes_have_three_to_seven_round_ticks(low, high):
    _, ax = figure()
    log_axis(ax.xaxis, size_tick, low, high)
    ticks = [tick for tick in ax.get_xticks() if low <= tick <= high]
    assert 3 <= len(ticks) <= MOST_TICKS
    assert len({size_tick(tick) for tick in ticks}) == len(ticks)


def test_spans_take_in_all_values():
    assert span([1.0, 8.0], [], 16.0, pad=2) == (0.5, 32.0)


def test_minor_ticks_stand_at_whole_multiples_and_leave_the_limits():
    _, ax = figure()
    log_axis(ax.xaxis, size_tick, 3e6, 4e7)
    ticks = ax.lines[-1].get_xdata() / 1e6
    np.testing.assert_allclose(ticks, [4, 5, 6, 7, 8, 9, 20, 30])
    assert ax.get_xlim() == (3e6, 4e7) and ax.get_ylim() == (0.0, 1.0) and len(ax.xaxis.get_minor_ticks()) == 0


def test_numbers_of_a_formula_stand_in_plain_letters():
    assert flops_tick(1.574e20) == "1.57×10²⁰" and flops_tick(1e-3) == "10⁻³"
    assert power_term(1977.2, "C", 0.17021) == "1977 C⁻⁰·¹⁷⁰²" and power_term(2.5e9, "N", 1.0) == "2.5×10⁹ N⁻¹·⁰⁰⁰"

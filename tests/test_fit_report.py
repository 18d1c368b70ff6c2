"""The page, the files and the terminal's tables: what a reader gets from fit.json and the runs."""

import copy
import re
import struct

import numpy as np
import pytest
from helpers import simulated_table

import fit
from isoflop import display, laws
from isoflop.fit import axes, drawing, report
from isoflop.fit.findings import (
    answers,
    exponents,
    family_evidence,
    few,
    forecast_tests_said,
    law_letters,
    one_variable_laws,
    size,
)
from isoflop.fit.result import bands, to_arrays, to_json

LAW = laws.Law(1.7, 400.0, 1500.0, 0.34, 0.36)
TEXTS = ["prediction.md", "predictions.csv", "predictions.tex", "report.html"]
OPTIONS = {"bootstrap": 200, "predict_flops": (1e21, 1e22)}


def found(table, **options):
    """Result and arrays of a table of runs."""
    analysis = fit.analyse(table, fit.Options(**options))
    return to_json(analysis), to_arrays(analysis) | {"bands": bands(analysis)}


@pytest.fixture(scope="module")
def good():
    """A sound sweep with 0.3% noise: every method but the envelope answers."""
    return found(simulated_table(LAW), **OPTIONS)


@pytest.fixture(scope="module")
def drawn(good, tmp_path_factory):
    out = tmp_path_factory.mktemp("good")
    return out, report.write(*good, out)


@pytest.fixture(scope="module")
def refused():
    """One D/N everywhere: no method may answer."""
    table = simulated_table(LAW, (1e18,), 8, 10.0, 0.0)
    table.n = np.geomspace(1e6, 1e8, 8)
    table.d, table.c = 20 * table.n, 120 * table.n**2
    table.loss = LAW.loss(table.n, table.d)
    return found(table, **OPTIONS)


def png_size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def spurious(text):
    return re.findall(r"(?i)\bnan\b|\binf\b|None|\bnull\b|\{|\}", text)


# ----- files -----


def test_pictures_are_whole_and_large_enough(drawn):
    out, written = drawn
    pictures = ["isoflop.png", "optimum.png", "loss_compute.png", "surface.png", "residuals.png", "backtest.png"]
    assert [path.name for path in written] == [*pictures, *TEXTS]
    for name in pictures:
        width, height = png_size(out / name)
        assert width >= 8 * axes.DPI and height >= 5 * axes.DPI
        assert (out / name).stat().st_size > 20_000
    assert not [path for path in out.iterdir() if path.name.startswith(".")], "temporary files left"


def test_refused_methods_leave_no_number_and_no_picture(refused, tmp_path):
    (tmp_path / "surface.png").write_text("an older fit's picture")
    result, arrays = refused
    assert {result[key]["status"] for key in ("parametric", "isoflop", "envelope")} == {"refused"}
    assert {path.name for path in report.write(result, arrays, tmp_path)} == {
        "loss_compute.png",
        "isoflop.png",  # the runs alone
        *TEXTS,
    }
    assert not (tmp_path / "surface.png").exists()
    text = (tmp_path / "prediction.md").read_text()
    for words in (text, report.summary(result)):
        assert not spurious(words)
        assert "constant_ratio" in words and "no_budgets" in words
        assert "come mostly from the prior" in words
    assert "No other method gives an optimum" in text


@pytest.mark.parametrize("form, magic", [("pdf", b"%PDF-"), ("svg", b"<?xml")])
def test_pictures_in_another_format(good, tmp_path, form, magic, monkeypatch):
    monkeypatch.setattr(drawing, "PICTURES", {"optimum": drawing.PICTURES["optimum"]})
    report.write(*good, tmp_path, format=form)
    assert (tmp_path / f"optimum.{form}").read_bytes()[:5] == magic
    assert f"](optimum.{form})" in (tmp_path / "prediction.md").read_text()


def test_a_failing_picture_does_not_cost_the_page(good, tmp_path, monkeypatch):
    def broken(result, arrays):
        """A picture."""
        raise RuntimeError("no fonts today")

    monkeypatch.setattr(drawing, "PICTURES", {"isoflop": broken})
    assert [path.name for path in report.write(*good, tmp_path)] == TEXTS
    assert "RuntimeError: no fonts today" in (tmp_path / "prediction.md").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(TEXTS)


def test_a_random_part_of_many_runs_keeps_its_own_numbers(good, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "DRAWN", 30)
    seen = {}

    def picture(result, arrays):
        """A picture."""
        seen.update(arrays)
        raise axes.Skip("enough")

    monkeypatch.setattr(drawing, "PICTURES", {"isoflop": picture})
    result, arrays = good
    report.write(result, arrays | {"c_exact": (arrays["c"] * 1.1).tolist()}, tmp_path)
    assert len(seen["n"]) == 30 and seen["curve"] == {}
    np.testing.assert_allclose(seen["c_exact"], 1.1 * seen["c"])


def test_little_is_enough(good, tmp_path):
    """Only the four arrays, no predictions, no back-test: fewer pictures and no crash."""
    result = {key: good[0][key] for key in ("input", "parametric", "isoflop")}
    arrays = {key: good[1][key].tolist() for key in ("n", "d", "c", "loss")}
    names = {path.name for path in report.write(result, arrays, tmp_path)}
    assert names == {"optimum.png", "surface.png", "residuals.png", "loss_compute.png", *TEXTS}
    assert not spurious((tmp_path / "prediction.md").read_text() + report.summary(result))


# ----- the page -----


def test_page_has_the_numbers_of_the_result(good, drawn):
    text, result = (drawn[0] / "prediction.md").read_text(), good[0]
    assert not spurious(text)
    for row in result["predictions"]["flops"]:
        assert f"C = {display.flops(row['flops'])} FLOPs" in text
        for key, form in (("n_opt", size), ("d_opt", size), ("loss", display.fixed)):
            if row[key]:  # the variants beside isoFLOP predict no loss
                assert form(row[key]["point"]) in text
                for which in ("ci95", "pi95"):
                    assert display.interval(row[key].get(which), form) in text
    for key in ("E", "A", "B", "alpha", "beta", "a", "b"):
        assert f"{result['parametric'][key]['point']:.4g}" in text
    for name in ("isoflop.png", "optimum.png", "surface.png"):
        assert f"]({name})" in text
    assert "flops_ratio.png (every run's FLOPs are 6ND)" in text and "scores.png" not in text
    assert "no_curves" in text and "Chinchilla" in text and "Back-tests" in text


def test_the_page_opens_with_one_answer_and_is_no_wider_than_a_screen(good):
    result, arrays = good
    text = report.page(result, arrays, missing=[("isoflop.png", "a reason of many words " * 9)])
    best = result["forecast"][-1]
    start = " ".join(text.split("|")[0].split())
    n, loss = best["n_opt"], best["loss"]
    assert "With 1e22 FLOPs, 100 times the largest run here, the best model has" in start
    assert f"has {display.estimate(n['point'], n['pi95'], size)} parameters" in start
    assert f"a loss of {display.estimate(loss['point'], loss['pi95'], display.fixed)} nats per token." in start
    wide = [line for line in text.splitlines() if len(line) > 100 and not line.startswith("|")]
    assert wide == [] and text.count("| budget | runs |") == 1
    titles = re.findall(r"(?m)^## (.*)$", text)
    assert titles[:3] == ["Forecast", "How far to trust it", "Other methods"] and len(set(titles)) == len(titles)


def test_both_laws_stand_side_by_side_and_what_the_prior_says_is_marked(good, refused):
    header, rows = law_letters(good[0])
    assert header == ["", "coupled law", "ci95", "parametric fit", "ci95"]
    assert rows[0][1::2] == [display.sig(good[0][name]["E"]["point"]) for name in ("coupled", "parametric")]
    assert rows[-1][0] == "p" and rows[-1][3] == "1"
    header, rows = law_letters(refused[0])
    assert header == ["", "coupled law", "ci95"]
    coupled = refused[0]["coupled"]
    marked = [row[0] for row in rows if row[2].endswith(" prior")]
    assert marked and marked == [name for name in "E A B alpha beta p".split() if coupled.get(name, {}).get("prior")]


def test_warnings_on_the_input_are_shown(good):
    result = copy.deepcopy(good[0])
    result["input"]["warnings"] = [{"code": "units", "message": "D is 3 tokens in the median"}]
    assert "warning: input [units] D is 3 tokens" in report.summary(result)
    assert "- warning, input `units`: D is 3 tokens" in report.page(result, good[1])


def test_extrapolation_is_called_a_belief_beyond_the_back_tests(good):
    result, arrays = good
    text = " ".join(report.page(result, arrays).split())
    assert "The farthest prediction is at 100 times the largest compute in the data." in text
    assert "No back-test reaches as far as the prediction does." in text
    untested = " ".join(report.page(result | {"backtest": []}, arrays).split())
    assert "These runs allow no back-test of the forecast" in untested


def test_a_ladder_at_one_ratio_has_laws_of_one_variable():
    """With alpha = beta the laws along the ladder are exact: E, and g halved in C, as C grows as N^2."""
    law = laws.Law(1.7, 400.0, 1500.0, 0.34, 0.34)
    table = simulated_table(law, (1e18,), 8, 10.0, 0.0)
    table.n = np.geomspace(1e6, 1e9, 8)
    table.d, table.c = 20 * table.n, 120 * table.n**2
    table.loss = law.loss(table.n, table.d)
    result, arrays = found(table, **OPTIONS)
    header, rows, said = one_variable_laws(result)
    assert [row[0] for row in rows] == ["L(N)", "L(D)", "L(C)"] and "one D/N" in said
    assert [row[1].split()[0] for row in rows] == ["1.700"] * 3
    assert [row[3].split()[0] for row in rows] == ["0.3400", "0.3400", "0.1700"]
    assert result["compute_law"]["frontier"] == "runs"
    for text in (report.page(result, arrays), report.summary(result)):
        assert "ll runs have one D/N" in text and "0.1700" in text and "No law could be fitted" not in text
    assert one_variable_laws(result | {"refusals": []}) == ([], [], "")


def test_families_of_laws_are_ranked_in_a_table(good):
    result = good[0]
    header, rows, said = family_evidence(result)
    assert [row[0].removesuffix(" (answers)") for row in rows] == [row["family"] for row in result["families"]]
    assert rows[0][1] == "0.0" and len(rows) == 4 and header[-1] == "loss at 1e22"
    answering = result["coupled"]["family"]
    assert [row[0] for row in rows].count(f"{answering} (answers)") == 1 and said.startswith(f"the {answering} law")
    ours = next(row for row in result["families"] if row["family"] == answering)
    assert f"{display.sig(100 * ours['backtest_rms_ln'], 2)}% with {answering}" in said
    other = copy.deepcopy(result)
    other["coupled"]["family"] = "coupled" if answering == "hoffmann" else "hoffmann"
    assert "ahead" in family_evidence(other)[2]
    for text in (report.page(*good), report.summary(result)):
        assert said[4:30] in " ".join(text.split())
    first = {**ours, "family": f"{answering}, E = 0", "behind": -4.2}
    assert f"{answering}, E = 0 leads by " in family_evidence(result | {"families": [first, *result["families"]]})[2]


def test_the_forecast_s_own_back_tests_are_said(good):
    result = good[0]
    tests = [row for row in result["backtests"] if row["method"] == "forecast"]
    held = sum(row["pi95"][0] <= row["measured"] <= row["pi95"][1] for row in tests)
    assert len(tests) == 10
    for text in (report.page(*good), report.summary(result)):
        assert f"{held} of 10 inside pi95" in " ".join(text.split())
    assert forecast_tests_said(result | {"backtests": []}) == ""


# ----- the terminal -----


def test_summary_fits_the_terminal(good):
    text, result = report.summary(good[0]), good[0]
    doublings = []
    for row in result["backtest"]:
        if row["method"] == "parametric":
            doublings.append(abs(row["error_ln"]) / np.log2(row["flops"] / row["flops_fitted"]))
    each = display.sig(100 * np.median(doublings), 2)
    assert f"by {each}% per doubling of compute (median)" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= report.WIDTH and not spurious(text)
    assert text.startswith("forecast at C")
    row = result["predictions"]["flops"][0]
    assert size(row["n_opt"]["point"]) in text and display.interval(row["d_opt"]["pi95"], size) in text
    assert "parametric" in text and "isoFLOP" in text and "no_curves" in text


@pytest.mark.parametrize("method", ["parametric", "isoflop"])
def test_numbers_under_a_refused_status_are_not_shown(good, method):
    result = copy.deepcopy(good[0])
    result[method]["status"] = "refused"
    hidden = [row for row in result["predictions"]["flops"] if row["method"].split(":")[0] == method]
    for text in (report.page(result, good[1]), report.summary(result)):
        for row in hidden:
            assert size(row["n_opt"]["point"]) not in text


def test_budgets_left_out_are_named():
    table = simulated_table(LAW, noise=0.0)
    keep = (table.c > 2e17) | (table.n > LAW.optimum(1e17)[0] * 1.2)
    result, _ = found(table.select(keep), **OPTIONS)
    first = result["isoflop"]["budgets"][0]
    assert first["n_opt"] is None and f"left out: {first['status']}" in report.summary(result)


def test_every_question_is_answered(tmp_path):
    asked = {"predict_params": (1e9,), "target_loss": (2.6,), "compare": True}
    options = fit.Options(bootstrap=200, **asked)
    targets = simulated_table(LAW, (1.2e20,), 1)
    analysis = fit.analyse(simulated_table(LAW), options, targets)
    result = to_json(analysis)
    text = report.summary(result)
    assert "N = 1.000B" in text and "loss = 2.600" in text and "in pi95" in text and "published:kaplan" in text
    assert max(map(len, text.splitlines())) <= report.WIDTH and not spurious(text)
    assert not spurious(report.page(result, to_arrays(analysis)))


def test_a_law_without_runs_has_a_summary():
    text = report.summary(fit.from_law("besiroglu", fit.Options(predict_flops=(5.76e23,), target_loss=(2.0,))))
    assert text.startswith("law besiroglu: Besiroglu et al. 2024")
    assert "published:besiroglu" in text and "C = 5.76e23 FLOPs" in text and not spurious(text)


# ----- findings -----


def test_sizes_keep_the_zeros_that_say_how_exact_they_are():
    values = (300.3e9, 12.5e6, 8200, 1.4e12, 99999, None)
    assert [size(value) for value in values] == ["300.3B", "12.50M", "8.200k", "1.400T", "100.0k", "-"]


def test_answers_have_a_column_for_each_quantity_and_a_row_for_each_interval(good):
    tables = answers(good[0])
    assert [header[0] for header, _ in tables] == ["C = 1e21 FLOPs", "C = 1e22 FLOPs"]
    header, rows = tables[0]
    assert header[1:] == ["N*", "D*", "D/N", "loss"]
    labels = [row[0] for row in rows]
    methods = ["isoFLOP", "  ci95", "  pi95", "isoFLOP, all sizes", "isoFLOP, lowest runs", "parametric"]
    assert labels == [*methods, "  ci95", "  pi95"]
    assert rows[3][-1] == "-"


def test_exponents_have_their_variants_below(good):
    rows = exponents(good[0])
    assert [row[0] for row in rows] == ["isoFLOP", "  parabola through all sizes", "  lowest runs", "parametric"]
    assert rows[0][1] == display.estimate(good[0]["isoflop"]["a"]["point"], good[0]["isoflop"]["a"]["ci95"])


def test_long_lists_are_cut():
    assert few(["a", "b"]) == "a, b" and few(list("abcde"), 3) == "a, b, c and 2 more"

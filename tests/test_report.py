"""report.py and figures.py: what a reader gets from fit.json and the runs: pictures, page, terminal's table."""

import copy
import re
import struct

import numpy as np
import pytest

import fit
from isoflop import laws
from isoflop.fit import figures, report
from isoflop.fit import figures as figures_

LAW = laws.Law(1.7, 400.0, 1500.0, 0.34, 0.36)
OPTIONS = dict(bootstrap=200, predict_flops=(1e21, 1e22))


@pytest.fixture(scope="module")
def good():
    """Result and arrays of a sound sweep with 0.3% noise: every method but the envelope answers."""
    table = fit.simulated(LAW, 10.0 ** np.arange(17, 20.1, 0.5), 7, 20.0, 0.003, 1)
    return fit.analyse(table, fit.Options(**OPTIONS), plots=True)


@pytest.fixture(scope="module")
def drawn(good, tmp_path_factory):
    out = tmp_path_factory.mktemp("good")
    return out, report.write(*good, out)


@pytest.fixture(scope="module")
def refused():
    """One D/N everywhere: no method may answer."""
    n = np.geomspace(1e6, 1e8, 8)
    table = fit.simulated(LAW, [1e18], 8, 10.0, 0.0, 0)
    table.n, table.d, table.c = n, 20 * n, 120 * n**2
    table.loss = LAW.loss(table.n, table.d)
    return fit.analyse(table, fit.Options(**OPTIONS), plots=True)


def png_size(path):
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", head[16:24])


def spurious(text):
    return re.findall(r"(?i)\bnan\b|\binf\b|None|\bnull\b|\{|\}", text)


def test_pictures_are_whole_and_large_enough(drawn):
    out, written = drawn
    names = {p.name for p in written}
    assert names == {
        "isoflop.png",
        "optimum.png",
        "loss_compute.png",
        "surface.png",
        "residuals.png",
        "prediction.md",
    }
    for path in written:
        if path.suffix == ".png":
            width, height = png_size(path)
            assert width >= 8 * figures.DPI and height >= 6 * figures.DPI
            assert path.stat().st_size > 20_000
    assert not [p for p in out.iterdir() if p.name.startswith(".")], "temporary files left"


def test_page_has_the_numbers_of_the_result(good, drawn):
    text = (drawn[0] / "prediction.md").read_text()
    result = good[0]
    assert not spurious(text)
    for row in result["predictions"]["flops"]:
        assert f"C = {figures_.flops(row['flops'])} FLOPs" in text
        for key, form in (("n_opt", figures_.size), ("d_opt", figures_.size), ("loss", report.nats)):
            if row[key]:  # the variants beside isoFLOP predict no loss
                assert form(row[key]["point"]) in text
                for which in ("ci95", "pi95"):
                    assert report.interval(row[key].get(which), form) in text
    for key in ("E", "A", "B", "alpha", "beta", "a", "b"):
        assert f"{result['parametric'][key]['point']:.4g}" in text
    for name in ("isoflop.png", "optimum.png", "surface.png"):
        assert f"]({name})" in text
    assert "flops_ratio.png (every run's FLOPs are 6ND)" in text
    assert "no_curves" in text and "Chinchilla" in text and "Back-tests" in text


def test_summary_fits_the_terminal(good):
    text = report.summary(good[0])
    tests = [r for r in good[0]["backtest"] if r["method"] == "parametric"]
    doublings = [np.log2(r["flops"] / r["flops_fitted"]) for r in tests]
    each = np.median([abs(r["error_ln"]) / d for r, d in zip(tests, doublings, strict=True)])
    assert f"by {figures_.sig(100 * each, 2)}% per doubling of compute (median)" in " ".join(text.split())
    assert max(map(len, text.splitlines())) <= report.WIDTH
    assert not spurious(text)
    row = good[0]["predictions"]["flops"][0]
    assert figures_.size(row["n_opt"]["point"]) in text and report.interval(row["d_opt"]["pi95"], figures_.size) in text
    for method in ("parametric", "isoFLOP"):
        assert method in text
    assert "no_curves" in text


def test_refused_methods_leave_no_number_and_no_picture(refused, tmp_path):
    (tmp_path / "surface.png").write_text("an older fit's picture")
    result, arrays = refused
    assert {result[k]["status"] for k in ("parametric", "isoflop", "envelope")} == {"refused"}
    names = {p.name for p in report.write(result, arrays, tmp_path)}
    assert names == {"loss_compute.png", "prediction.md"}
    assert not (tmp_path / "surface.png").exists()
    text = (tmp_path / "prediction.md").read_text()
    for words in (text, report.summary(result)):
        assert not spurious(words)
        assert "constant_ratio" in words and "no_budgets" in words
        assert "D/N |" not in words and "alpha" not in words.replace("alpha and", "")
    assert "No method gives an optimum" in text


@pytest.mark.parametrize("method", ["parametric", "isoflop"])
def test_numbers_under_a_refused_status_are_not_shown(good, method, tmp_path):
    result = copy.deepcopy(good[0])
    result[method]["status"] = "refused"
    report.write(result, good[1], tmp_path, plots=False)
    rows = [r for r in result["predictions"]["flops"] if r["method"].split(":")[0] == method]
    for text in ((tmp_path / "prediction.md").read_text(), report.summary(result)):
        for row in rows:
            assert figures_.size(row["n_opt"]["point"]) not in text
    assert (figures.law_of(result)[0] is None) == (method == "parametric")


def test_edge_budgets_are_named_and_drawn_apart(tmp_path):
    table = fit.simulated(LAW, 10.0 ** np.arange(17, 20.1, 0.5), 7, 20.0, 0.0, 0)
    low = table.c < 2e17
    keep = ~low | (table.n > LAW.optimum(1e17)[0] * 1.2)
    result, arrays = fit.analyse(table.select(keep), fit.Options(**OPTIONS), plots=True)
    assert result["isoflop"]["budgets"][0]["n_opt"] is None
    assert tmp_path / "isoflop.png" in report.write(result, arrays, tmp_path)
    assert f"left out: {result['isoflop']['budgets'][0]['status']}" in report.summary(result)


def test_little_is_enough(good, tmp_path):
    """Only the four arrays, no predictions, no back-test: fewer pictures and no crash."""
    result = {k: good[0][k] for k in ("input", "parametric", "isoflop")}
    arrays = {k: good[1][k].tolist() for k in ("n", "d", "c", "loss")}
    names = {p.name for p in report.write(result, arrays, tmp_path)}
    assert {"optimum.png", "surface.png", "loss_compute.png", "prediction.md"} <= names
    assert not spurious((tmp_path / "prediction.md").read_text() + report.summary(result))


def test_training_curves_and_flops_beyond_6nd(tmp_path):
    rows = ["run_id,params,tokens,flops,loss"]
    for k, n in enumerate(np.geomspace(1e6, 1e8, 6)):
        for d in np.geomspace(1e8, 1e10, 12):
            rows.append(f"r{k},{n:.0f},{d:.0f},{6 * n * d * (1 + 1e3 / n**0.5):.6g},{LAW.loss(n, d):.6f}")
    (tmp_path / "runs.csv").write_text("\n".join(rows))
    result = fit.run([tmp_path / "runs.csv"], plots=True, bootstrap=100)
    assert result["envelope"]["status"] == "ok"
    assert {"loss_compute.png", "optimum.png", "flops_ratio.png"} <= {p.name for p in (tmp_path / "fit").iterdir()}
    assert "envelope" in (tmp_path / "fit" / "prediction.md").read_text()


def test_flops_with_attention_have_a_picture(good, monkeypatch, tmp_path):
    result, arrays = good
    share = 40 / np.sqrt(arrays["n"])
    share[0] = np.nan  # a row without the column
    ax = figures.draw_ratio(result, arrays | {"c_exact": arrays["c"] * (1 + share)}).axes[0]
    assert ax.get_title().startswith("FLOPs with attention over 6ND")
    shown = np.ma.filled(ax.collections[0].get_offsets(), np.nan)
    np.testing.assert_allclose(shown[1:], np.column_stack([arrays["n"], 1 + share])[1:], rtol=1e-12)
    for same in (arrays, arrays | {"c_exact": arrays["c"]}, arrays | {"c_exact": np.full(len(share), np.nan)}):
        with pytest.raises(figures.Skip, match="6ND"):
            figures.draw_ratio(result, same)
    both = arrays | {"c": arrays["c"] * 1.2, "c_exact": arrays["c"] * 1.5}  # what the fit uses is what is drawn
    assert "attention" not in figures.draw_ratio(result, both).axes[0].get_title()
    # a random part of many runs keeps its own FLOPs
    monkeypatch.setattr(report, "DRAWN", 30)
    out = report.write(result, arrays | {"c_exact": (arrays["c"] * 1.1).tolist()}, tmp_path)
    assert tmp_path / "flops_ratio.png" in out


def test_a_failing_picture_does_not_cost_the_page(good, tmp_path, monkeypatch):
    def broken(result, arrays):
        """A picture."""
        raise RuntimeError("no fonts today")

    monkeypatch.setattr(report, "PICTURES", {"isoflop.png": broken})
    assert [p.name for p in report.write(*good, tmp_path)] == ["prediction.md"]
    assert "RuntimeError: no fonts today" in (tmp_path / "prediction.md").read_text()


def test_every_question_is_answered_in_the_table(tmp_path):
    table = fit.simulated(LAW, 10.0 ** np.arange(17, 20.1, 0.5), 7, 20.0, 0.003, 1)
    (tmp_path / "next.csv").write_text("run_id,N,D,loss\nnext,1e9,2e10,2.6\n")
    o = fit.Options(
        bootstrap=200, predict_params=(1e9,), target_loss=(2.6,), predict_runs=str(tmp_path / "next.csv"), compare=True
    )
    result, arrays = fit.analyse(table, o)
    text = report.summary(result)
    assert "N = 1.000B" in text and "loss = 2.600" in text and "pi95 held" in text and "published:kaplan" in text
    assert max(map(len, text.splitlines())) <= report.WIDTH and not spurious(text)
    assert not spurious(report.page(result, arrays))


def test_a_law_without_runs_has_a_summary():
    result = fit.from_law("besiroglu", fit.Options(predict_flops=(5.76e23,), target_loss=(2.0,)))
    text = report.summary(result)
    assert "published:besiroglu" in text and "C = 5.76e23 FLOPs" in text and not spurious(text)


@pytest.mark.parametrize(
    "value, text",
    [(300.3e9, "300.3B"), (12.5e6, "12.50M"), (8200, "8200"), (1.4e12, "1.400T"), (99999, "100.0k"), (None, "-")],
)
def test_sizes(value, text):
    assert figures_.size(value) == text


@pytest.mark.parametrize(
    "value, text", [(477.83, "477.8"), (0.34731, "0.3473"), (2143.4, "2143"), (1.2e-5, "1.2e-5"), (12846.3, "12846")]
)
def test_significant_digits(value, text):
    assert figures_.sig(value) == text


def test_computes():
    assert [figures_.flops(v) for v in (1e24, 5.76e23, 1.276e21)] == ["1e24", "5.76e23", "1.276e21"]


@pytest.mark.parametrize("low, high", [(7e3, 3.4e5), (4e7, 1.2e11), (7.4e7, 1.4e8), (2.2, 3.4), (9.9e10, 1.01e11)])
def test_log_axes_have_three_to_seven_round_ticks(low, high):
    import matplotlib

    matplotlib.use("Agg")
    fig, ax = figures._figure()
    figures._log_axis(ax.xaxis, figures._size_tick, low, high)
    ticks = [t for t in ax.get_xticks() if low <= t <= high]
    assert 3 <= len(ticks) <= 7
    labels = [figures._size_tick(t) for t in ticks]
    assert len(set(labels)) == len(labels)
    matplotlib.pyplot.close(fig)

"""report.html: its numbers are fit.json's, it needs no network; Chromium, where there is one, shows and moves them."""

import json
import re
import shutil
import subprocess

import pytest
from helpers import isoflop_runs, write_runs

import fit
from isoflop.display import fixed, si
from isoflop.laws import PUBLISHED

ASKED = ("1e21", "1e22")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A fit of a known law whose run names try to end the page's script."""
    out = tmp_path_factory.mktemp("report")
    n, d, c, loss = isoflop_runs(PUBLISHED["besiroglu"], 0.002, budgets=(1e19, 3e19, 1e20, 3e20))
    names = [f"</script><b>{i}" for i in range(len(n))]
    write_runs(out / "runs.csv", {"run_id": names, "n": n, "d": d, "loss": loss})
    later = {"run_id": ["</script>later", "planned"], "n": [1e9, 2e9], "d": [1.7e11, 1e11], "loss": [2.3, ""]}
    write_runs(out / "later.csv", later)
    flags = [
        "--predict_flops",
        *ASKED,
        "--predict_runs",
        str(out / "later.csv"),
        "--out_dir",
        str(out),
        "--bootstrap",
        "100",
    ]
    assert fit.main([str(out / "runs.csv"), *flags]) == 0
    return out


def data_of(page):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page, re.S)[1])


def test_numbers_are_those_of_fit_json(folder):
    page, result = (folder / "report.html").read_text(), json.loads((folder / "fit.json").read_text())
    data = data_of(page)
    rows = {row["flops"]: row for row in data["forecast"]}
    for row in result["forecast"]:
        for key in ("loss", "n_opt", "d_opt", "tokens_per_param"):
            assert rows[row["flops"]][key] == row[key]
    assert [budget["n_opt"] for budget in data["budgets"]] == [row["n_opt"] for row in result["isoflop"]["budgets"]]
    assert len(data["runs"]) == result["input"]["rows_used"]
    first = result["predictions"]["runs"][0]
    (later,) = data["later"]
    assert later["run_id"] == first["run_id"] == "</script>later" and later["loss"] == 2.3
    assert (later["predicted"], later["pi95"]) == (first["loss"]["point"], first["loss"]["pi95"])
    for refusal in result["refusals"]:
        assert refusal["code"] in page


def test_page_stands_alone_and_data_stay_data(folder):
    page = (folder / "report.html").read_text()
    assert page.count("<script") == 2 and "<b>0" not in page  # a run's name is text
    assert not re.search(r"(src|href)\s*=|@import|url\((?!#)|fetch\(", page.replace("url(#${clip})", ""))
    assert len(page) < 1_500_000


def test_without_plots_there_is_no_page(folder, tmp_path):
    assert fit.main([str(folder / "runs.csv"), "--out_dir", str(tmp_path), "--no-plots", "--bootstrap", "0"]) == 0
    assert not (tmp_path / "report.html").exists()


def browsed(path, tmp_path):
    """The page's DOM after its scripts have run; nothing may be said on the console."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here: apt install chromium")
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}", "--enable-logging=stderr"]
    flags += ["--virtual-time-budget=3000", "--dump-dom"]
    done = subprocess.run([browser, *flags, path], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    return done.stdout


def shown(dom, key):
    return re.search(rf'data-key="{key}"><span>.*?</span><b>(.*?)</b>', dom, re.S)[1]


@pytest.mark.slow
def test_chromium_shows_the_forecast_and_the_slider_moves_it(folder, tmp_path):
    result = json.loads((folder / "fit.json").read_text())
    for asked, row in zip(ASKED, result["forecast"], strict=True):
        dom = browsed(f"file://{folder / 'report.html'}#{asked}", tmp_path)
        assert shown(dom, "loss") == fixed(row["loss"]["point"])
        assert shown(dom, "n_opt") == si(row["n_opt"]["point"], zeros=True)
        assert shown(dom, "d_opt") == si(row["d_opt"]["point"], zeros=True)
        assert "<circle" in dom and dom.count('class="later"') == 2  # one cross in each picture
    move = """<script>const slider = document.getElementById("compute"); slider.value = 0;
        slider.dispatchEvent(new Event("input"));</script></body>"""
    moved = folder / "moved.html"
    moved.write_text((folder / "report.html").read_text().replace("</body>", move))
    dom = browsed(f"file://{moved}#{ASKED[0]}", tmp_path)
    first = data_of(dom)["forecast"][0]
    assert shown(dom, "loss") == fixed(first["loss"]["point"])
    assert shown(dom, "loss") != fixed(result["forecast"][0]["loss"]["point"])

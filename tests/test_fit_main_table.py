"""The main table as CSV and as LaTeX."""

import csv
import io
import re

import pytest
from helpers import simulated_table

import fit
from isoflop import laws
from isoflop.fit.main_table import as_csv, as_latex
from isoflop.fit.result import to_json


@pytest.fixture(scope="module")
def result():
    table = simulated_table(laws.Law(1.7, 400.0, 1500.0, 0.34, 0.36))
    return to_json(fit.analyse(table, fit.Options(bootstrap=100, predict_flops=(1e21, 1.5e22), compare=True)))


def test_csv_holds_every_number_to_the_last_digit(result):
    rows = list(csv.DictReader(io.StringIO(as_csv(result))))
    assert [row["method"] for row in rows[:2]] == ["forecast", "isoflop"]
    assert float(rows[0]["flops"]) == 1e21 and rows[-1]["method"].startswith("published:")
    first = result["forecast"][0]
    for key in ("loss", "n_opt", "d_opt", "tokens_per_param"):
        assert float(rows[0][key]) == first[key]["point"]
        for which in ("ci95", "pi95"):
            assert [float(rows[0][f"{key}_{which}_{end}"]) for end in ("low", "high")] == list(first[key][which])
    parabola = next(row for row in rows if row["method"] == "isoflop:parabola")
    assert parabola["loss"] == "" and float(parabola["n_opt"]) > 0


def test_latex_is_one_tabular_of_whole_rows(result):
    lines = as_latex(result).splitlines()
    columns = re.search(r"\\begin\{tabular\}\{([lr]+)\}", lines[1])[1]
    body = [line for line in lines if line.endswith(r"\\")]
    assert len(columns) == 6 and {line.count("&") for line in body} == {5}
    assert lines[0].startswith("%") and lines[-1] == r"\end{tabular}" and r"$1.5\times10^{22}$" in "".join(body)
    for line in body:
        assert not re.search(r"(?<!\\)[_#%]", re.sub(r"\$.*?\$", "", line)), line
        assert line.count("{") == line.count("}") and "None" not in line
    forecast = result["forecast"][0]["loss"]
    assert f"{forecast['point']:.4f}" in body[1] and f"[{forecast['pi95'][0]:.4f}, " in body[2]


def test_nothing_predicted_is_an_empty_table():
    assert as_csv({}).count("\n") == 1
    assert r"\begin{tabular}" in as_latex({}) and as_latex({}).count("&") == 5

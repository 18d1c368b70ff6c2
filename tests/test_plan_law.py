"""isoflop/plan/law.py: laws by name, by constants, from a fit.json; where they end; what no file may hold."""

import csv
import json
import math

import pytest

import fit
from isoflop import laws
from isoflop.options import UserError
from isoflop.plan.law import load_law

TRUTH = laws.Law(2.0, 400.0, 1200.0, 0.35, 0.37)


@pytest.fixture(scope="module")
def fit_json(tmp_path_factory):
    """fit.json of fit.py, of runs drawn from TRUTH."""
    folder = tmp_path_factory.mktemp("fit")
    n, d, c = laws.isoflop_grid(TRUTH, [1e18, 3e18, 1e19, 3e19])
    with open(folder / "runs.csv", "w") as f:
        rows = csv.writer(f)
        rows.writerow(["n_params_matmul", "tokens", "flops", "loss"])
        rows.writerows(zip(n, d, c, laws.simulate(TRUTH, n, d, 0.001), strict=True))
    fit.main([str(folder / "runs.csv"), "--out_dir", str(folder / "fit"), "--bootstrap", "0", "--no_plots"])
    return folder / "fit" / "fit.json"


def test_names_constants_and_laws():
    hoffmann = load_law("hoffmann")
    assert hoffmann.count == "total" and hoffmann.law is laws.PUBLISHED["hoffmann"]
    assert load_law("kaplan").count == "non_embedding"
    assert load_law("E=2,A=400,B=1200,alpha=.35,beta=.37").law.params == TRUTH.params
    fitted = laws.Law(*TRUTH.params.values(), convention="n_params_matmul", source="mine")
    assert (load_law(fitted).name, load_law(fitted).count) == ("mine", "matmul")
    assert load_law(hoffmann) is hoffmann


def test_a_fit_of_ones_own(fit_json):
    law = load_law(str(fit_json))
    assert (law.name, law.count) == ("fit/fit.json", "matmul")
    assert float(law.law.loss(1e9, 2e10)) == pytest.approx(float(TRUTH.loss(1e9, 2e10)), rel=0.005)
    assert law.outside(C=3e21) == ["fit/fit.json: C = 3e21 is 100x above its largest run (3e19)"]
    assert law.outside(N=1e9, D=1e9, C=1e19) == []


def test_outside_says_by_how_much():
    hoffmann = load_law("hoffmann")
    assert hoffmann.outside(N=1e9, D=15e12) == ["hoffmann: D = 1.5e13 is 30x above its largest run (5e11)"]
    assert hoffmann.outside(N=7e6) == ["hoffmann: N = 7e6 is 10x below its smallest run (7e7)"]
    assert hoffmann.outside(N=70e6, D=500e9, C=1.0) == []


def test_a_loss_above_that_of_a_uniform_guess_is_none():
    law = laws.PUBLISHED["hoffmann"]
    loss, warnings = load_law("hoffmann").loss(3e4, 3e5, 512)
    assert loss is None and "does not reach N = 3e4, D = 3e5" in warnings[0] and "ln V = 6.24" in warnings[0]
    assert float(law.loss(3e4, 3e5)) > math.log(512)
    assert load_law("hoffmann").loss(1e9, 2e10, 50257) == (float(law.loss(1e9, 2e10)), [])


@pytest.mark.parametrize(
    "text, words",
    [
        ("chinchila", "'chinchila' is not known; known: hoffmann"),
        ("none.json", "--law none.json can't be read"),
        ("E=nan,A=1,B=1,alpha=1,beta=1", "E must be positive and finite"),
        ("E=1,A=1,B=1,alpha=1e300,beta=1", "alpha = 1e+300 must be between 0.001 and 10"),
        ("E=1,A=1e300,B=1,alpha=1,beta=1", "A = 1e+300 must be between"),
    ],
)
def test_unusable_laws_are_refused(text, words):
    with pytest.raises(UserError if "between" in words or "read" in words else ValueError) as refused:
        load_law(text)
    assert words in str(refused.value) and "\n" not in str(refused.value)


def edits():
    """(what, change to the parsed fit.json): each makes a file that is no fit."""
    for key in ("input", "parametric"):
        for value in (None, 3, "x", [], True):
            yield f"{key} = {value!r}", {key: value}
    for key in ("E", "alpha"):
        for value in (None, 3, [], {}, {"point": None}, {"point": "2"}, {"point": True}, {"point": math.nan},
                      {"point": math.inf}, {"point": -1}, {"point": 10**400}):  # fmt: skip
            yield f"{key} = {str(value)[:30]}", {"parametric": {key: value}}
    for value in (3, [3], [None], [{"flops": None}], [{"flops": math.nan}], [{"flops": -1}], [{"flops": 10**400}], {}):
        if value != {}:
            yield f"budgets = {str(value)[:30]}", {"isoflop": {"budgets": value}}
    yield "n_convention = null", {"input": {"n_convention": None}}


@pytest.mark.parametrize("change", [pytest.param(change, id=what) for what, change in edits()])
def test_an_edited_fit_json_is_refused_in_a_line(fit_json, tmp_path, change):
    content = json.loads(fit_json.read_text())
    for key, value in change.items():
        content[key] = content[key] | value if isinstance(value, dict) else value
    (tmp_path / "fit.json").write_text(json.dumps(content))
    with pytest.raises(UserError) as refused:
        load_law(str(tmp_path / "fit.json"))
    message = str(refused.value)
    assert "--law" in message and "fit.json" in message and "\n" not in message and len(message) < 400


@pytest.mark.parametrize("text", ["", "null", "3", "[]", '"x"', "{}", "[" * 100_000, "1" * 5000, "\xff"])
def test_what_is_no_fit_json_is_refused_in_a_line(tmp_path, text):
    (tmp_path / "fit.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as refused:
        load_law(str(tmp_path / "fit.json"))
    assert "fit.json" in str(refused.value) and "\n" not in str(refused.value)


def test_a_refused_parametric_fit_says_why(fit_json, tmp_path):
    content = json.loads(fit_json.read_text())
    content["parametric"] = {"status": "refused", "message": "two sizes are too few"}
    (tmp_path / "fit.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="holds no parametric fit .two sizes are too few.; fit.py says"):
        load_law(str(tmp_path / "fit.json"))

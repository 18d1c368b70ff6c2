"""fit.py --suggest: what is proposed can be paid, is named as in the pool, and narrows the forecast."""

import csv
import json

import numpy as np
import pytest

import fit
from isoflop import laws
from isoflop.fit import suggest
from isoflop.options import UserError

LAW = laws.PUBLISHED["besiroglu"]
QUICK = {"bootstrap": 0, "plots": False}


def write(path, n, d, loss=None):
    """A table of runs, of runs to come without `loss`."""
    with open(path, "w", newline="") as f:
        writer = csv.writer(f)
        writer.writerow(["run_id", "params", "tokens", *(["loss"] if loss is not None else [])])
        for i in range(len(n)):
            writer.writerow([f"{path.stem}{i}", n[i], d[i], *([loss[i]] if loss is not None else [])])
    return path


@pytest.fixture
def runs(tmp_path):
    """A grid of 3 budgets of 5 sizes, up to 1e18 FLOPs."""
    n, d, _ = laws.isoflop_grid(LAW, [1e17, 3e17, 1e18], 5)
    return write(tmp_path / "runs.csv", n, d, laws.simulate(LAW, n, d, 0.002, 0))


@pytest.fixture
def pool(tmp_path):
    n, d, _ = laws.isoflop_grid(LAW, [3e18, 1e19, 3e19], 5)
    return write(tmp_path / "pool.csv", n, d)


def test_proposes_runs_that_can_be_paid(runs, tmp_path):
    result = fit.run(runs, suggest=4, target_flops=1e21, spend=1e19, **QUICK)
    found = json.loads((tmp_path / "fit/fit.json").read_text())["suggestions"]
    assert found == result["suggestions"]
    assert 1 <= len(found["rows"]) <= 4
    assert found["cost"] == pytest.approx(sum(row["flops"] for row in found["rows"])) and found["cost"] <= 1e19
    assert found["after"]["pi95_loss"] < found["before"]["pi95_loss"]
    assert [row["pi95_loss"] for row in found["rows"]][-1] == found["after"]["pi95_loss"]
    with open(tmp_path / "fit/suggested.csv") as f:
        rows = list(csv.DictReader(f))
    assert [float(row["flops"]) for row in rows] == [row["flops"] for row in found["rows"]]
    assert "## Runs to do next" in (tmp_path / "fit/prediction.md").read_text()


def test_same_runs_same_proposal(runs):
    """To nine digits: with OpenBLAS 0.3.23 (numpy 1.26) a last bit moves now and then."""
    found = [fit.run(runs, suggest=3, target_flops=1e21, **QUICK)["suggestions"] for _ in range(2)]
    first, second = (json.loads(json.dumps(each), parse_float=lambda text: f"{float(text):.9g}") for each in found)
    assert first == second and len(first["rows"]) == 3


@pytest.mark.parametrize("file_type", ["csv", "json"])
def test_an_empty_table_gives_a_first_round(tmp_path, file_type):
    path = tmp_path / f"runs.{file_type}"
    path.write_text("run_id,params,tokens,loss\n" if file_type == "csv" else "[]")
    if file_type == "json":
        with pytest.raises(UserError):
            fit.run(path, suggest=8, target_flops=1e21, **QUICK)
        return
    found = fit.run(path, suggest=8, target_flops=1e21, spend=1e19, **QUICK)["suggestions"]
    assert 5 <= len(found["rows"]) <= 8 and found["cost"] <= 1e19
    assert len({row["params"] for row in found["rows"]}) >= 3
    assert len({row["tokens"] for row in found["rows"]}) >= 3
    assert (tmp_path / "fit/suggested.csv").exists()
    assert "# Runs to do first" in (tmp_path / "fit/prediction.md").read_text()


def test_a_pool_names_its_rows_and_known_ones_are_out(runs, pool):
    found = fit.run(runs, suggest=3, target_flops=1e21, pool=str(pool), spend=6e19, **QUICK)["suggestions"]
    assert found["rows"] and all(row["run_id"].startswith("pool") for row in found["rows"])
    assert len({row["run_id"] for row in found["rows"]}) == len(found["rows"])
    with pytest.raises(UserError, match="every row is a known run"):
        fit.run(runs, suggest=3, target_flops=1e21, pool=str(runs), **QUICK)


def test_rows_as_target(runs, pool):
    found = fit.run(runs, suggest=2, target_runs=str(pool), spend=1e19, **QUICK)["suggestions"]
    assert found["target"] == {"runs": 15} and found["rows"][0]["pi95_n_opt"] is None


def test_the_terminal_shows_the_table(runs, capsys):
    assert fit.main([str(runs), "--suggest", "2", "--target_flops", "1e21", "--bootstrap", "0", "--no-plots"]) == 0
    said = capsys.readouterr().out
    assert "run next" in said and "for the optimum at 1e+21 FLOPs" in said.replace("1e21", "1e+21")


@pytest.mark.parametrize(
    "options, what",
    [
        ({"suggest": 8}, "--suggest 8 needs a target; add --target_flops"),
        ({"suggest": 8, "target_flops": 1e21, "target_runs": "x.csv"}, "two targets; leave one of them out"),
        ({"target_flops": 1e21}, r"--target_flops 1e\+21 is for --suggest; add --suggest 8"),
        ({"pool": "x.csv"}, "--pool x.csv is for --suggest"),
        ({"suggest": 8, "target_flops": 1e21, "by": "optimizer"}, "--by optimizer makes several"),
    ],
)
def test_refuses_flags(runs, options, what):
    with pytest.raises(UserError, match=what):
        fit.run(runs, **options, **QUICK)
    assert not (runs.parent / "fit").exists()


def test_refuses_what_nothing_can_be_had_for(runs, pool):
    with pytest.raises(UserError, match="raise --spend") as error:
        fit.run(runs, suggest=2, target_flops=1e21, spend=1e10, pool=str(pool), **QUICK)
    assert "the cheapest costs 3e+18" in str(error.value)
    assert not (runs.parent / "fit").exists()


def test_candidates_keep_to_sane_lengths():
    candidates, labels = suggest._ladder(suggest.Runs.none(), [], laws.SIX_ND, 1e20)
    ratio = candidates.d / candidates.n
    assert len(labels) == len(candidates) > 50
    assert ratio.min() >= 1 and ratio.max() <= 2000
    assert candidates.cost.max() <= 1.05 * suggest.MAX_SHARE * 1e20
    assert np.all(candidates.replicate == 0)

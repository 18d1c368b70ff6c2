"""isoflop/fit/ladder.py: what more compute buys and what a loss costs, by exact laws."""

import numpy as np
import pytest
from helpers import write_runs

import fit
from isoflop.fit import ladder, report
from isoflop.fit.power_law import PowerLaw

OPTIONS = {"plots": False, "bootstrap": 200}


def ladder_file(tmp_path, e, k, g):
    """Seven sizes at D = 10 N, losses exactly E + k C^-g."""
    n = np.geomspace(77e6, 522e6, 7)
    return write_runs(tmp_path / "runs.csv", {"N": n, "D": 10 * n, "val_bpb": e + k * (60 * n**2) ** -g})


def test_a_ladder_s_tables(tmp_path):
    """L = 0.485 + 73.12 C^-0.122: 0.80 needs 2.46e19 and 0.75 1.02e20 FLOPs; a tenth of the excess 1.6e8 times."""
    path = ladder_file(tmp_path, 0.485, 73.12, 0.122)
    result = fit.run(path, tmp_path / "fit", target_loss=(0.8, 0.75, 0.4), **OPTIONS)
    found = result["compute_law"]["returns"]
    assert [row["excess"]["point"] for row in found["compute"]] == pytest.approx([2**-0.122, 10**-0.122], rel=1e-4)
    assert [row["compute"]["point"] for row in found["excess"]] == pytest.approx([293.2, 1.574e8], rel=1e-3)
    needed = [row["flops"]["point"] for row in found["targets"]]
    assert needed[:2] == pytest.approx([2.461e19, 1.015e20], rel=1e-3) and needed[2] is None, "0.4 is below E"
    assert found["targets"][0]["times"] == pytest.approx(needed[0] / (60 * 522e6**2))
    for text in (report.summary(result), (tmp_path / "fit" / "prediction.md").read_text()):
        for words in ("293", "1.57e8", "2.46e19", "not reached: at or below E"):
            assert words in text


def test_without_targets_they_are_shares_of_the_excess_and_without_a_floor_of_the_loss(tmp_path):
    result = fit.run(ladder_file(tmp_path, 0.0, 73.12, 0.1), tmp_path / "fit", **OPTIONS)
    found = result["compute_law"]["returns"]["targets"]
    lowest = 73.12 * (60 * 522e6**2) ** -0.1
    assert [row["loss"] for row in found] == pytest.approx([share * lowest for share in ladder.SHARES], rel=5e-3)
    assert [row["flops"]["point"] for row in found] == pytest.approx(
        [(73.12 / row["loss"]) ** 10 for row in found], rel=1e-3
    )


def test_intervals_are_those_of_the_draws():
    g = np.linspace(0.1, 0.2, 101)
    law = PowerLaw(0.0, 10.0, 0.15, 1.0, 7, {"E": np.zeros(101), "k": np.full(101, 10.0), "g": g})
    low, high = ladder.returns(law, 1e12, 1.0)["excess"][0]["compute"]["ci95"]
    assert 2 ** (1 / 0.2) < low < 2 ** (1 / 0.15) < high < 2 ** (1 / 0.1)
    wide = PowerLaw(1.0, 10.0, 0.15, 1.0, 7, {"E": np.linspace(0.5, 1.5, 101), "k": np.full(101, 10.0), "g": g})
    assert ladder.returns(wide, 1e12, 2.0, (1.2,))["targets"][0]["flops"]["ci95"][1] is None, (
        "some draws never reach it"
    )


def test_what_is_no_ladder_has_no_tables():
    assert ladder.tables({"compute_law": {"frontier": "isoflop"}}) == [] and ladder.tables({}) == []

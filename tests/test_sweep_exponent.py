"""--design exponent: the grid for a that the money buys, the same again, and refusals."""

import shlex
import sys
from dataclasses import replace

import numpy as np
import pytest
from helpers import quick_fits, run_sweep

from isoflop.data import reader
from isoflop.distributed import DistributedEnv
from isoflop.options import UserError
from isoflop.sweep import exponent
from isoflop.sweep.cells import Planner
from isoflop.sweep.config import SweepConfig

ASKED = SweepConfig(design="exponent", total_flops=4e12, seeds=(0, 1, 2))
ABLATION = replace(ASKED, ablation="porian", total_flops=3e13)


@pytest.fixture
def planner(toy_data, tmp_path, monkeypatch):
    monkeypatch.setattr(exponent, "N_BUDGETS", (3,))
    monkeypatch.setattr(exponent, "N_SIZES", (5,))
    monkeypatch.setattr(exponent, "RATIOS", (8, 16))
    monkeypatch.setattr(exponent, "DRAWS", 10)
    flags = {"block_size": 32, "val_tokens": 1024, "device": "cpu", "data_dir": toy_data, "batch_size": 4}
    return Planner(str(tmp_path), flags, reader.open_data(toy_data), DistributedEnv())


@pytest.mark.parametrize("sc", [ABLATION, ASKED], ids=["ablation", "grid"])
def test_the_grid_costs_what_may_be_spent_and_its_runs_are_long_enough(planner, sc, monkeypatch):
    monkeypatch.setattr(exponent, "RATIOS", (8,))
    asked, text = exponent.chosen(sc, planner, None)
    cells = exponent.all_cells(asked, planner, None)
    assert 0.85 * sc.total_flops < sum(cell.cost for cell in cells) <= sc.total_flops
    assert min(cell.plan.steps for cell in exponent.base(asked, planner)) >= exponent.MIN_STEPS
    assert not any(cell.refused for cell in cells)
    assert asked.design is None and asked.seeds == sc.seeds and len(asked.flop_budgets) == 3
    assert asked.total_flops is None, "a cap on the whole folder would stop the grid where other runs are in it"
    assert exponent.chosen(sc, planner, None) == (asked, text)


def test_it_is_the_best_of_those_tried(planner):
    asked, _ = exponent.chosen(replace(ASKED, noise=0.02), planner, None)
    errors = []
    for ratio in exponent.RATIOS:
        for reach in exponent.REACHES:
            other = exponent.whole(replace(ASKED, noise=0.02), planner, None, ratio, 3, 5, reach)
            if other:
                errors.append(exponent.error_of_a(other, planner))
    assert len(errors) > 1 and exponent.error_of_a(asked, planner) == min(errors)


def test_more_noise_is_more_error_and_seeds_less(planner):
    asked, _ = exponent.chosen(ASKED, planner, None)
    few, many, noisy = (
        exponent.error_of_a(replace(asked, **more), planner)
        for more in ({"seeds": (0,), "noise": 0.02}, {"seeds": tuple(range(16)), "noise": 0.02}, {"noise": 0.08})
    )
    assert many < few and many < noisy and np.isfinite(noisy)


def test_the_sum_that_is_named_buys_a_grid(planner):
    with pytest.raises(UserError, match="buys no grid whose runs all have 100 steps; .* would, for one") as refusal:
        exponent.chosen(replace(ASKED, total_flops=1e6), planner, None)
    enough = float(str(refusal.value).split(" would,")[0].split()[-1])
    assert exponent.chosen(replace(ASKED, total_flops=enough), planner, None)


def test_the_next_command_runs_in_a_folder_with_other_runs(planner, tmp_path, monkeypatch, capsys):
    quick_fits(monkeypatch)
    out = ["--simulate", "hoffmann", "--out_dir", tmp_path / "out"]
    assert run_sweep(*out, "--flop_budgets", 1e18, 3e18) == 0  # more than the grid for a may cost
    flags = [str(flag) for flag in [*out, "--design", "exponent", "--total_flops", 1e18]]
    monkeypatch.setattr(sys, "argv", ["sweep.py", *flags])
    capsys.readouterr()
    assert run_sweep(*flags) == 0
    (command,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("next: ")]
    assert "--design" not in command and "--total_flops" not in command
    assert run_sweep(*shlex.split(command.partition("sweep.py")[2])) == 0


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "--design exponent needs what may be spent: --total_flops 1e14"),
        (["--total_flops", 1e3], "--total_flops 1000 buys no grid whose runs all have 100 steps"),
        (["--total_flops", 1e12, "--n_embds", 16, 32], "--design exponent and --n_embds exclude each other"),
        (["--total_flops", 1e12, "--flop_budgets", 1e9], "--flop_budgets is for a grid, and --design exponent chooses"),
        (["--total_flops", 1e12, "--target_flops", 1e14], "--target_flops is for --design adaptive"),
    ],
)
def test_mistakes_are_one_line(toy_data, tmp_path, capsys, flags, words):
    out = tmp_path / "out"
    assert run_sweep("--design", "exponent", *flags, "--data_dir", toy_data, "--device", "cpu", "--out_dir", out) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1
    assert not out.exists()

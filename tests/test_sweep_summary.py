"""Lines around a sweep: what it can't be asked, the command that runs what is missing."""

import shlex
import sys

import pytest
from helpers import SMALL_SIZES, row_of_ones, rows_of, run_script, sweep_planner

import sweep
from isoflop.sweep import folder, results, summary
from isoflop.sweep.cells import ModelSize


def cell_of(folder, lr=None, **flags):
    more = {"lr": lr} if lr else None
    return sweep_planner(folder, {"block_size": 32} | flags).cell(ModelSize(16, 1), 1e9, more=more)


@pytest.mark.parametrize("status", ["diverged", "blown_up"])
def test_cells_that_blew_up_are_run_again_at_a_lower_rate(tmp_path, monkeypatch, status):
    """Half the lowest rate that blew up, or the cell's default rate if that is lower; other flags of rates go."""
    typed = "sweep.py --flop_budgets 1e9 --lrs 0.3 0.5 0.7 --tune_lr --lr_scale 2 --retry --out_dir out"
    monkeypatch.setattr(sys, "argv", typed.split())
    default = cell_of(tmp_path).plan.lr
    for rate, proposed in ((None, default / 2), (50.0, default), (default / 4, default / 8)):
        cells = [(cell_of(tmp_path, rate), status), (cell_of(tmp_path, 60.0), status)]
        command = summary.missing_text(cells, 4, "").splitlines()[-1].split("just those: ")[1]
        words = shlex.split(command)
        expected = f"sweep.py --flop_budgets 1e9 --out_dir out --retry --lr {proposed:.3g}"
        assert words[1:] == expected.split()


def test_a_low_beta2_and_a_lack_of_memory_have_their_own_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", "sweep.py --beta2 0.1 --lr 0.1 --micro_batch_size 64".split())
    cell = cell_of(tmp_path, beta2=0.1)
    assert summary.flags_for([(cell, "blown_up")])[1] == ["--retry", "--beta2", "0.95"]
    text = summary.missing_text([(cell, "blown_up")], 1, "")
    assert text.endswith("sweep.py --lr 0.1 --micro_batch_size 64 --retry --beta2 0.95")
    rows = cell.plan.micro_batch_size
    assert summary.flags_for([(cell, "oom")])[1] == ["--retry", "--micro_batch_size", str(max(1, rows // 2))]
    assert summary.flags_for([(cell, "not run")])[1] == []


@pytest.mark.slow
def test_the_proposed_command_gives_every_cell_a_result(toy_data, tmp_path):
    """Followed as printed, until nothing is missing: at --lr 50 every cell blows up."""
    flags = ["--flop_budgets", "2e8", *SMALL_SIZES, "--data_dir", toy_data, "--out_dir", tmp_path / "out"]
    done = run_script("sweep.py", *flags, "--parallel", "ddp", "--lr", 50)
    assert done.returncode == 1 and "4 of 4 cells have no result" in done.stdout, done.stderr
    for _ in range(3):
        words = shlex.split(done.stdout.splitlines()[-1].split("to run just those: ")[1])
        assert words[1] == "sweep.py" and words[-3:-1] == ["--retry", "--lr"]
        done = run_script(*words[1:])
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout
    assert "next:" not in done.stdout, "its rate is not the next budget's"
    assert {r["n_embd"] for r in rows_of(tmp_path / "out") if r["status"] == "ok"} == {"8", "12", "16", "24"}


# ----- what a sweep can't be asked -----


def test_too_few_budgets_or_sizes_are_one_line_before_anything_trains(tmp_path):
    planner, found = sweep_planner(tmp_path), results.ResultsFile(tmp_path)

    def note(*budgets, **flags):
        return summary.too_few(sweep.SweepConfig(flop_budgets=budgets, **flags), planner, found)

    assert note(1e9, 3e9, 9e9) == ""
    one = note(1e9)
    assert one.startswith("note: 1 of 1 budgets have 4 or more sizes: below 3 of them the forecast leans on priors")
    assert one.endswith("add --flop_budgets 3e+09 9e+09") and "\n" not in one
    assert note(1e9, 3e9).endswith("add --flop_budgets 9e+09") and "exact" not in one
    three = note(1e9, 3e9, 9e9, sizes=3)
    assert "three sizes is exact, without an error" in three and three.endswith("add sizes at 1e+09, 3e+09, 9e+09")
    for budget in (3e9, 9e9):  # what is in the folder counts
        for width in (8, 12, 16, 24):
            row = row_of_ones(f"{budget:g} {width}", n_embd=width, flop_budget=budget)
            folder.append_row(tmp_path / "runs.csv", row)
    found = results.ResultsFile(tmp_path)
    assert note(1e9) == ""


def test_a_ladder_says_what_it_can_t_tell_and_goes_one_depth_on(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", "sweep.py --depths 4 2 3 --tokens_per_params 10 --out_dir out".split())
    one = sweep.SweepConfig(depths=(4, 2, 3), tokens_per_params=(10.0,))
    assert "every run has D = 10 N" in summary.too_few(one, None, None)
    assert summary.too_few(sweep.SweepConfig(depths=(2, 3), tokens_per_params=(10, 20)), None, None) == ""
    command = summary.next_command(one, sweep_planner(tmp_path), None)
    assert shlex.split(command)[1:] == "sweep.py --tokens_per_params 10 --out_dir out --depths 5".split()

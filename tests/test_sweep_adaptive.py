"""sweep.py --design adaptive: rounds, money, state on the disk, trunks, refusals, what a kill leaves behind."""

import contextlib
import dataclasses
import io
import json
import math
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, losses_of, quick_fits, rows_of, run_python, run_script, run_sweep, sweep_planner

import sweep
from isoflop.data import reader
from isoflop.distributed import DistributedEnv
from isoflop.fit import design as choice_of_runs
from isoflop.fit.knowledge import Candidates, Knowledge, Runs
from isoflop.options import UserError
from isoflop.sweep import adaptive, candidates, money
from isoflop.sweep.cells import ModelSize, Planner
from isoflop.sweep.results import ResultsFile
from train import train

LAW = "E=1.7,A=60,B=400,alpha=.3,beta=.32"
SIMULATED = ["--design", "adaptive", "--simulate", LAW, "--noise", 0.003, "--vocab_size", 512, "--block_size", 128]
SMALL = [*SIMULATED, "--target_flops", 1e14, "--total_flops", 1e13, "--workers", 2]
TRAINED = (
    "--design adaptive --target_flops 2e10 --total_flops 6e9 --block_size 32 --total_batch_size 128 --val_tokens 1024"
)
TRAINED = [*TRAINED.split(), "--device", "cpu", "--dtype", "float32"]


@pytest.fixture(autouse=True, scope="module")
def fast():
    with pytest.MonkeyPatch.context() as patch:
        quick_fits(patch)
        patch.setattr(choice_of_runs, "DRAWS", 30)
        patch.setattr(choice_of_runs, "MOST_PLANNED", 4)
        patch.setattr(choice_of_runs, "LEAST_GAIN", 0.02)
        yield


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """(folder, what was printed) of a whole simulated sweep."""
    folder, out = tmp_path_factory.mktemp("adaptive") / "out", io.StringIO()
    with contextlib.redirect_stdout(out):
        assert run_sweep(*SMALL, "--out_dir", folder) == 0
    return folder, out.getvalue()


def rounds_of(folder) -> list[dict]:
    return [json.loads(line) for line in (Path(folder) / "design.jsonl").read_text().splitlines()]


def chosen_in(folder) -> list[str]:
    return [run["run_id"] for one in rounds_of(folder) for run in one["runs"]]


def design_of(tmp_path, flags=None, **more):
    """(Design, ResultsFile) of an empty folder."""
    sc = sweep.SweepConfig(
        design="adaptive", target_flops=1e14, total_flops=1e13, simulate=LAW, out_dir=str(tmp_path), **more
    )
    planner = sweep_planner(tmp_path, {"block_size": 128} | (flags or {}))
    return adaptive.Design(sc, planner, say=lambda text: None), ResultsFile(tmp_path)


# ----- rounds -----


def test_runs_are_chosen_in_rounds_until_the_money_is_spent(swept):
    folder, out = swept
    rows, rounds = rows_of(folder), rounds_of(folder)
    assert [r["run_id"] for r in rows] == chosen_in(folder)
    spent = sum(float(r["flops_spent"]) for r in rows)
    assert 0.9e13 < spent <= 1e13
    assert [one["known"] for one in rounds] == [sum(len(o["runs"]) for o in rounds[:i]) for i in range(len(rounds))]
    assert {len(one["runs"]) for one in rounds[1:]} <= {1, 2}, "a run for each of two workers"
    assert rounds[-1]["width_before"]["pi95_loss"] < 0.25 * rounds[0]["width_before"]["pi95_loss"]
    assert "no candidate can be paid" in out or "no further run" in out
    for r in rows:
        assert int(r["steps"]) >= 100 and float(r["flops"]) <= 0.4e13 * 1.01
        assert candidates.MIN_RATIO * 0.9 < float(r["tokens_per_param"]) < candidates.MAX_RATIO * 1.1
    first = rows[: len(rounds[0]["runs"])]
    assert len({r["n_embd"] + r["n_layer"] for r in first}) >= 3 and len({r["tokens"] for r in first}) >= 3


def test_the_forecast_is_made_at_the_target(swept):
    folder, _ = swept
    fit = json.loads((folder / "fit.json").read_text())
    (row,) = fit["forecast"]
    assert row["flops"] == 1e14
    low, high = row["loss"]["pi95"]
    assert low < sweep.Simulation(LAW, 0).law.frontier_loss(1e14) < high


def test_the_same_command_again_runs_nothing_and_chooses_nothing(swept, capsys):
    folder, _ = swept
    before = [(folder / name).read_bytes() for name in ("runs.csv", "design.jsonl")]
    assert run_sweep(*SMALL, "--out_dir", folder) == 0
    assert [(folder / name).read_bytes() for name in ("runs.csv", "design.jsonl")] == before
    assert "[1/" not in capsys.readouterr().out


def test_a_narrow_forecast_ends_it(tmp_path, capsys):
    assert run_sweep(*SMALL, "--until_width", 0.2, "--out_dir", tmp_path) == 0
    rounds = rounds_of(tmp_path)
    assert all(one["known"] < 5 or one["width_before"]["pi95_loss"] > 0.2 for one in rounds)
    assert "within --until_width 0.2" in capsys.readouterr().out
    assert sum(float(r["flops_spent"]) for r in rows_of(tmp_path)) < 0.9e13


def test_runs_known_in_another_order_give_the_same_choice(swept):
    folder, _ = swept
    rows = rows_of(folder)
    shuffled = random.Random(0).sample(rows, len(rows))
    for one, other in zip(
        dataclasses.astuple(adaptive.runs_of(rows)), dataclasses.astuple(adaptive.runs_of(shuffled)), strict=True
    ):
        assert np.array_equal(one, other)


@pytest.mark.slow
def test_rows_of_a_grid_in_the_folder_are_known(tmp_path):
    grid = ["--simulate", LAW, "--noise", 0.003, "--vocab_size", 512, "--block_size", 128, "--sizes", 3]
    assert run_sweep(*grid, "--flop_budgets", 3e11, 1e12, "--out_dir", tmp_path) == 0
    assert run_sweep(*SMALL, "--until_width", 0.3, "--out_dir", tmp_path) == 0
    if (tmp_path / "design.jsonl").exists():
        assert rounds_of(tmp_path)[0]["known"] == 6
    assert len(rows_of(tmp_path)) < 6 + 12


# ----- failures -----


def test_a_run_that_fails_is_replaced(tmp_path, monkeypatch, capsys):
    draw, failed = sweep.Simulation.__call__, []

    def one_fails(self, planner, cell):
        if len(failed) < 2 and cell.plan.n_params_matmul > 3e4:
            failed.append(cell.run_id)
            return planner.record(cell, "diverged", flops=0)
        return draw(self, planner, cell)

    monkeypatch.setattr(sweep.Simulation, "__call__", one_fails)
    assert run_sweep(*SMALL, "--until_width", 0.15, "--out_dir", tmp_path) == 0
    chosen = chosen_in(tmp_path)
    assert len(failed) == 2 and [chosen.count(run_id) for run_id in failed] == [1, 1]
    assert len([r for r in rows_of(tmp_path) if r["status"] == "ok"]) >= 5
    assert "2 chosen runs have no result; others were chosen in their place" in capsys.readouterr().out


def test_runs_that_all_fail_end_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        sweep.Simulation, "__call__", lambda self, planner, cell: planner.record(cell, "diverged", flops=0)
    )
    assert run_sweep(*SMALL, "--out_dir", tmp_path) == 1
    assert "the last 4 runs that were chosen have failed (diverged)" in capsys.readouterr().out
    assert len(rows_of(tmp_path)) < 3 * adaptive.FIRST_ROUND


def test_where_memory_ran_out_larger_sizes_are_no_candidates(tmp_path):
    design, results = design_of(tmp_path)
    cells = design.pool(4e12).cells
    largest = max(cells, key=lambda c: c.plan.n_params)
    oom = {"run_id": largest.run_id, "status": "oom", "n_params": str(largest.plan.n_params)}
    menu = candidates.Menu(design.pool(4e12), {}, [oom], design)
    assert max(c.plan.n_params for c in menu.cells) < largest.plan.n_params


# ----- candidates -----


def test_candidates_have_steps_epochs_and_a_place_on_one_grid(toy_data, tmp_path):
    flags = {"block_size": 32, "batch_size": 4, "val_tokens": 1024, "data_dir": toy_data}
    planner = Planner(str(tmp_path), flags, reader.open_data(toy_data), DistributedEnv())
    sc = sweep.SweepConfig(design="adaptive", target_flops=2e10, total_flops=6e9)
    pool = candidates.make_pool(sc, planner, 1.0, 1e10)
    assert pool.enough() and {"over 4 epochs of the text", "under 100 steps"} <= set(pool.left_out)
    for cell in pool.cells:
        assert cell.plan.steps >= 100 and cell.plan.epochs <= 4 and cell.flop_budget <= 1e10
        steps = np.log(2e10 / cell.flop_budget) / np.log(candidates.STEP)
        assert abs(steps - round(steps)) < 1e-3
    fewer = candidates.make_pool(sc, planner, 1.0, 1e9)
    assert {c.run_id for c in fewer.cells} < {c.run_id for c in pool.cells}, "more money only adds runs"
    assert candidates.make_pool(sc, planner, 1.0, 1e10, room_gb=1e-4).sizes() < pool.sizes()


def test_a_run_that_is_known_can_be_repeated_with_another_seed(swept, tmp_path):
    folder, _ = swept
    design, results = design_of(tmp_path)
    pool = design.pool(4e12)
    row = {"run_id": pool.cells[0].run_id, "status": "ok", "n_params": "1"}
    menu = candidates.Menu(pool, {}, [row], design)
    assert menu.replicates[0] == 1 and menu.cells[0].seed == 1 and sum(menu.replicates) == 1
    assert menu.cells[0].plan == pool.cells[0].plan


# ----- trunks -----


def test_marginal_costs_of_trunks(tmp_path):
    """A shorter run of a size that has run costs its cooldown, a longer one what lies beyond the checkpoint."""
    design, results = design_of(tmp_path, {"schedule": "wsd"}, reuse_trunk=True)
    menu = candidates.Menu(design.pool(4e12), {}, [], design)
    table = menu.candidates(results)
    size = menu.cells[len(menu.cells) // 2].size
    family = [i for i, cell in enumerate(menu.cells) if cell.size == size]
    assert len(family) >= 4
    short, middle, long = family[0], family[1], family[-1]
    alone, after = table.cost_after([]), table.cost_after([middle])
    plans = [cell.plan for cell in menu.cells]
    assert alone[short] == plans[short].flops
    share = plans[short].cooldown_steps / plans[short].steps
    assert after[short] == pytest.approx(share * alone[short])
    beyond = plans[long].steps - (plans[middle].steps - plans[middle].cooldown_steps)
    assert after[long] == pytest.approx(beyond / plans[long].steps * alone[long])
    others = [i for i in range(len(plans)) if i not in family]
    assert np.array_equal(after[others], alone[others])
    assert len({(plans[i].lr, plans[i].tokens_per_step, plans[i].warmup_steps) for i in family}) == 1


@pytest.mark.slow
def test_a_sweep_on_trunks_pays_marginal_costs(tmp_path):
    flags = [*SMALL, "--schedule", "wsd", "--reuse_trunk", "--out_dir", tmp_path]
    assert run_sweep(*flags) == 0
    rows = rows_of(tmp_path)
    own, spent = (sum(float(r[k]) for r in rows) for k in ("flops", "flops_spent"))
    assert spent <= 1e13 and own > 1.1 * spent
    by_id = {run["run_id"]: run for one in rounds_of(tmp_path) for run in one["runs"]}
    started = [run for run in by_id.values() if run["start_step"]]
    assert started
    for run in started:
        assert run["start_step"] in by_id[run["trunk"]]["keep"]


@pytest.mark.slow
def test_trained_branches_and_extensions_are_the_runs_alone(toy_data, tmp_path):
    flags = [*TRAINED, "--data_dir", toy_data, "--schedule", "wsd", "--reuse_trunk", "--out_dir", tmp_path / "out"]
    assert run_sweep(*flags) == 0
    rows = {r["run_id"]: r for r in rows_of(tmp_path / "out")}
    started = [r for r in rows.values() if r["trunk"]]
    assert started
    recorded = {run["run_id"]: run for one in rounds_of(tmp_path / "out") for run in one["runs"]}
    shorter = [r for r in started if int(r["steps"]) < int(rows[r["trunk"]]["steps"])]
    longer = [r for r in started if int(r["steps"]) > int(rows[r["trunk"]]["steps"])]
    for r in shorter[:2] + longer[:2]:
        given = {"block_size": 32, "total_batch_size": 128, "val_tokens": 1024, "data_dir": toy_data, "schedule": "wsd"}
        given |= {"device": "cpu", "dtype": "float32"}
        planner = Planner(str(tmp_path), given, reader.open_data(toy_data), DistributedEnv())
        sc = sweep.SweepConfig(design="adaptive", target_flops=2e10, total_flops=6e9, reuse_trunk=True)
        run = recorded[r["run_id"]]
        size = ModelSize(run["n_embd"], run["n_layer"])
        cell = adaptive.Design(sc, planner)._cell(size, run["flop_budget"], run["seed"])
        alone = train(cell.mc, dataclasses.replace(cell.tc, out_dir=str(tmp_path / "alone" / cell.run_id)), quiet=True)
        assert alone.run_id == r["run_id"] and str(alone.val_loss) == r["val_loss"]
        assert float(r["flops_spent"]) < alone.flops


# ----- the state on the disk -----


def test_a_line_that_a_kill_cut_short_is_chosen_again(swept, tmp_path):
    folder = tmp_path / "out"
    shutil.copytree(swept[0], folder)
    whole = (folder / "design.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    last = {run["run_id"] for run in json.loads(lines[-1])["runs"]}
    rows = (folder / "runs.csv").read_text().splitlines(keepends=True)
    (folder / "runs.csv").write_text("".join(line for line in rows if line.split(",")[0] not in last))
    (folder / "design.jsonl").write_bytes(b"".join(lines[:-1]) + lines[-1][:100])
    assert run_sweep(*SMALL, "--out_dir", folder) == 0
    assert (folder / "design.jsonl").read_bytes() == whole and losses_of(folder) == losses_of(swept[0])


@pytest.mark.parametrize("line", ['{"runs": []}', '{"runs": [{"run_id": "a"}]}', "17", "not json", '{"runs": 3}'])
def test_a_wrong_line_is_refused_by_number(tmp_path, line):
    (tmp_path / "design.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match="design.jsonl, line 1: .*--drop_bad_rows"):
        adaptive.read_rounds(tmp_path)


def test_budgets_of_any_size_are_read(tmp_path):
    run = {"run_id": "a", "n_embd": 8, "n_layer": 1, "seed": 0, "start_step": 0, "keep": [], "flop_budget": 1.1e25}
    (tmp_path / "design.jsonl").write_text(json.dumps({"runs": [run]}) + "\n")
    assert adaptive.read_rounds(tmp_path) == [{"runs": [run]}]


@pytest.mark.slow
def test_choices_from_a_wrong_line_on_are_made_again(swept, tmp_path, capsys):
    folder = tmp_path / "out"
    shutil.copytree(swept[0], folder)
    whole = (folder / "design.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (folder / "design.jsonl").write_bytes(b"".join([lines[0], b"17\n", *lines[1:]]))
    assert run_sweep(*SMALL, "--out_dir", folder) == 2
    assert "design.jsonl, line 2" in capsys.readouterr().err
    assert run_sweep(*SMALL, "--drop_bad_rows", "--out_dir", folder) == 0
    assert (folder / "design.bad.jsonl").exists() and rounds_of(folder)[0] == json.loads(lines[0])


def test_other_flags_are_refused_on_a_folder_with_choices(swept, capsys):
    before = (swept[0] / "design.jsonl").read_bytes()
    assert run_sweep(*SMALL, "--lr_scale", 0.5, "--out_dir", swept[0]) == 2
    assert "was chosen with other flags" in capsys.readouterr().err
    assert (swept[0] / "design.jsonl").read_bytes() == before


# ----- what money buys -----


@pytest.mark.slow
def test_a_dry_run_tells_what_money_buys(tmp_path, capsys):
    flags = [*SIMULATED, "--target_flops", 1e14, "--out_dir", tmp_path / "out", "--dry_run"]
    assert run_sweep(*flags) == 0
    out = capsys.readouterr().out
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["design.png"]
    lines = out[out.index("what money buys") :].splitlines()[3:-1]
    assert [line.split()[1] for line in lines] == ["1%", "3%", "10%", "30%", "100%"]
    losses = [float(re.findall(r"\+-([0-9.]+)%", line)[0]) for line in lines]
    grids = [float(re.findall(r"\+-([0-9.]+)%", line)[2]) for line in lines]
    assert losses == sorted(losses, reverse=True) and grids == sorted(grids, reverse=True)
    assert losses[-1] < 0.6 * losses[0]
    for line in lines:
        ranges = re.findall(r"(?:\+-|x)([0-9.]+)%? \(([0-9.]+) to ([0-9.]+)\)", line)
        assert len(ranges) == 2, "of the loss and of N*"
        for middle, least, most in ranges:
            assert float(least) <= float(middle) <= float(most) and float(most) > 1.2 * float(least)


def test_rehearsed_laws_stand_for_all_draws():
    """One of each eighth of the draws, by the fall of the loss; not the same law eight times."""
    belief = Knowledge(Runs.none(), Candidates(np.array([1e8, 1e9]), np.array([1e9, 1e10]), np.ones(2)))
    falls = []
    for law in money.laws_of(belief):
        c = 6 * math.exp(sum(belief.mu))
        falls.append(math.log(law.frontier_loss(c) / law.frontier_loss(money.FALL * c)))
    assert len(falls) == money.REHEARSALS and falls == sorted(falls) and falls[-1] > 2 * falls[0]


@pytest.mark.slow
def test_after_a_sweep_the_next_round_is_proposed_with_its_price(swept, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "out"
    shutil.copytree(swept[0], folder)
    monkeypatch.setattr(sys, "argv", ["sweep.py", *map(str, SMALL), "--out_dir", str(folder)])
    assert run_sweep(*SMALL, "--out_dir", folder) == 0
    out = capsys.readouterr().out
    command = next(line for line in out.splitlines() if line.startswith("next: "))
    price = re.search(r"its first round, (\d+) runs? for ([0-9.e+]+) FLOPs", out)
    words = shlex.split(command.removeprefix("next: "))
    before = len(rounds_of(folder))
    assert run_sweep(*words[words.index("sweep.py") + 1 :]) == 0
    new = rounds_of(folder)[before]
    assert len(new["runs"]) == int(price[1])
    assert sum(run["cost"] for run in new["runs"]) == pytest.approx(float(price[2]), rel=0.01)


# ----- refusals -----


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--design", "adaptive", "--total_flops", 1e13], "needs --target_flops"),
        (["--design", "adaptive", "--target_flops", 1e14], "--total_flops 3e13, or --max_hours 2"),
        (["--target_flops", 1e14], "--target_flops is for --design adaptive"),
        (["--until_width", 0.01], "--until_width is for --design adaptive"),
        ([*SMALL, "--lrs", 1e-3, 2e-3, 3e-3], "--design and --lrs exclude each other"),
        ([*SMALL, "--tune_lr"], "--design and --tune_lr exclude each other"),
        ([*SMALL, "--seeds", 0, 1], "--design adaptive and --seeds exclude each other"),
        ([*SMALL, "--retry"], "--design adaptive and --retry exclude each other"),
        ([*SMALL, "--recentre"], "--design and --recentre exclude each other"),
        ([*SMALL, "--flop_budgets", 1e12], "--flop_budgets is for a grid"),
        ([*SMALL, "--sizes", 9], "--sizes is for a grid"),
        ([*SIMULATED, "--target_flops", 1e14, "--max_hours", 1], "--max_hours says nothing of losses"),
        ([*SMALL, "--reuse_trunk"], "--reuse_trunk needs --schedule wsd"),
        (["--design", "grid"], "must be one of adaptive"),
    ],
)
def test_what_cannot_be_is_refused_by_name(flags, words, tmp_path, capsys):
    assert run_sweep(*flags, "--out_dir", tmp_path / "out") == 2
    err = capsys.readouterr().err
    assert words in err and "Traceback" not in err
    assert not (tmp_path / "out").exists()


def test_too_little_money_or_target_is_refused_with_what_is_enough(tmp_path, capsys):
    flags = [*SIMULATED, "--out_dir", tmp_path / "out"]
    assert run_sweep(*flags, "--target_flops", 1e14, "--total_flops", 1e9) == 2
    err = capsys.readouterr().err
    need = re.search(r"give at least ([0-9.e+]+)", err)[1]
    assert not (tmp_path / "out").exists()
    assert run_sweep(*flags, "--target_flops", 1e14, "--total_flops", need) == 0
    shutil.rmtree(tmp_path / "out")
    assert run_sweep(*flags, "--target_flops", 1e8, "--total_flops", 1e13) == 2
    err = capsys.readouterr().err
    assert "--target_flops 1e+08 can't be bracketed" in err and "raise it" in err
    assert not (tmp_path / "out").exists()


def test_typed_sizes_are_the_candidates(tmp_path):
    flags = [*SMALL, "--n_embds", 16, 32, 48, 64, "--until_width", 0.2, "--out_dir", tmp_path]
    assert run_sweep(*flags) == 0
    assert {r["n_embd"] for r in rows_of(tmp_path)} <= {"16", "32", "48", "64"}
    assert run_sweep(*SMALL, "--n_embds", 16, 32, "--out_dir", tmp_path / "b") == 2


# ----- kills, workers, torchrun -----

KILLED = """
import os, signal, sys
import sweep
from isoflop import files
append = files.append_line
left = int(sys.argv[1])
def counted(path, text):
    global left
    left -= 1
    if left < 0:
        with open(path, "a") as f:  # cut short
            f.write(text[: len(text) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    append(path, text)
files.append_line = counted
sys.exit(sweep.main(sys.argv[2:]))
"""


@pytest.mark.slow
def test_ten_kills_of_a_simulated_sweep(tmp_path):
    """kill -9 in the middle of ten random writes, then once to the end: choices and rows of the undisturbed sweep."""
    rng, folder = random.Random(17), tmp_path / "out"
    flags, whole = [*SMALL, "--out_dir", folder], tmp_path / "whole"
    done = run_script("sweep.py", *SMALL, "--out_dir", whole)
    assert done.returncode == 0, done.stderr
    progress = []
    for _ in range(10):
        done = run_python(KILLED, rng.randrange(5), *flags, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
        progress.append(len(rows_of(folder)) if (folder / "runs.csv").exists() else 0)
    assert 0 < progress[-1] and progress == sorted(progress)
    done = run_script("sweep.py", *flags)
    assert done.returncode == 0, done.stderr
    assert (folder / "design.jsonl").read_bytes() == (whole / "design.jsonl").read_bytes()
    assert losses_of(folder) == losses_of(whole)


@pytest.mark.slow
def test_kills_of_a_trained_sweep_on_two_workers(toy_data, tmp_path):
    flags = [*TRAINED, "--data_dir", toy_data, "--workers", 2, "--until_width", 0.25, "--out_dir"]
    whole = run_script("sweep.py", *flags, tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    rng, folder = random.Random(3), tmp_path / "out"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, ROOT / "sweep.py", *map(str, flags), folder]
    for kills in range(4):
        process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        before = (folder / "begun.jsonl").stat().st_size if kills else 0
        until = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < until:
            if (folder / "begun.jsonl").exists() and (folder / "begun.jsonl").stat().st_size > before:
                break
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 1.0))
        process.kill()
        process.wait()
    done = run_script("sweep.py", *flags, folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "design.jsonl").read_bytes() == (tmp_path / "whole" / "design.jsonl").read_bytes()
    assert losses_of(folder) == losses_of(tmp_path / "whole")


@pytest.mark.slow
def test_under_torchrun_two_ranks_share_a_round(toy_data, tmp_path, script):
    flags = [*TRAINED, "--data_dir", toy_data, "--until_width", 0.25, "--out_dir"]
    agent = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--rdzv_backend=c10d"]
    agent += ["--rdzv_endpoint=localhost:0", "sweep.py"]
    done = script(*agent, *flags, tmp_path / "cells", "--parallel", "cells", timeout=400)
    assert done.returncode == 0, done.stderr
    assert script("sweep.py", *flags, tmp_path / "two", "--workers", 2, timeout=400).returncode == 0
    assert rounds_of(tmp_path / "cells") == rounds_of(tmp_path / "two")
    assert losses_of(tmp_path / "cells") == losses_of(tmp_path / "two")
    done = script(*agent, *flags, tmp_path / "ddp", timeout=400)
    assert done.returncode == 0, done.stderr
    assert {r["world_size"] for r in rows_of(tmp_path / "ddp")} == {"2"}
    assert {len(one["runs"]) for one in rounds_of(tmp_path / "ddp")[1:]} <= {1}

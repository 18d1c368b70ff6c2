"""Lines of train.py for a job array: they make the very cells of the sweep, and nothing else gets on stdout."""

import json
import shlex
import subprocess

import pytest
from helpers import losses_of, quick_fits, rows_of, run_script, run_sweep, sweep_planner

import train
from isoflop.cli import Parser
from isoflop.config import ModelConfig
from isoflop.sweep import jobs
from isoflop.sweep.cells import ModelSize
from isoflop.train.plan import RunConfig, TrainConfig, resolve
from isoflop.train.record import run_id

SIZES = "--n_embds 8 16 --n_layers 1 1 --block_size 32 --val_tokens 1024 --device cpu".split()


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    quick_fits(monkeypatch)


def printed(capsys, *flags) -> tuple[list[list[str]], str]:
    """(the printed lines as words, what stderr says) of sweep.py --print_commands."""
    capsys.readouterr()
    assert run_sweep(*flags, "--print_commands") == 0
    out, err = capsys.readouterr()
    return [shlex.split(text) for text in out.splitlines()], err


def flags_of(words: list[str]) -> list[str]:
    return words[words.index("train.py") + 1 :]


def folder_of(words: list[str]) -> str:
    return words[words.index("--out_dir") + 1]


FLAGS = {
    "plain": {},
    "a rate of many digits": {"lr": 0.1 + 0.2, "weight_decay": 1 / 3},
    "gpt2": {"preset": "gpt2", "block_size": 64, "optimizer": "muon", "schedule": "wsd", "cooldown": "1-sqrt"},
    "llama": {"preset": "llama3", "block_size": 64, "n_ffn": 40, "total_batch_size": 1024, "shard": True},
    "a folder with a space": {"data_dir": "my data/it's", "seed": 2**62, "norm_gain": True, "dtype": "bfloat16"},
}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("flags", FLAGS.values(), ids=FLAGS)
def test_a_line_makes_the_cell_s_own_configuration(tmp_path, flags, processes):
    planner = sweep_planner(tmp_path, flags)
    planner.env = type(planner.env)(size=processes, device="cpu")
    for more in ({}, {"lr": 0.0123456789}):
        cell = planner.cell(ModelSize(128, 2), 1e12, more=more)
        assert not cell.refused
        words = shlex.split(jobs.line(cell, planner))
        parser = Parser("train.py", "", RunConfig, ModelConfig, TrainConfig)
        args = parser.parse_args(flags_of(words))
        mc = parser.read(ModelConfig, args, vocab_size=512)
        tc = parser.read(TrainConfig, args)
        assert mc == cell.mc
        for name in ("flop_budget", "lr", "weight_decay", "seed", "optimizer", "cooldown", "total_batch_size", "shard"):
            assert getattr(tc, name) == getattr(cell.tc, name)
        plan = resolve(mc, tc, processes)
        assert plan == cell.plan
        assert run_id(mc, tc, plan, tc.dtype, planner.tokens) == cell.run_id
        assert tc.out_dir == cell.tc.out_dir and tc.resume == "auto"
        assert ("--nproc_per_node=2" in words) == (processes == 2)


def test_relative_folders_are_named_from_the_checkout(tmp_path, monkeypatch):
    assert jobs.from_checkout("out/x") == "out/x"
    monkeypatch.chdir(tmp_path)
    assert jobs.from_checkout("out/x") == str(tmp_path / "out" / "x")


def test_lines_alone_are_on_stdout_and_nothing_is_written(toy_data, tmp_path, capsys):
    flags = ["--flop_budgets", "1e8", "2e8", *SIZES, "--data_dir", toy_data, "--out_dir", tmp_path / "out"]
    lines, err = printed(capsys, *flags)
    assert len(lines) == 4 and all(words[:2] == ["env", "OMP_NUM_THREADS=1"] for words in lines)
    assert "4 cells to run" in err and "compute in" in err
    assert not (tmp_path / "out").exists()
    lines, err = printed(capsys, *flags, "--total_flops", 2.5e8)
    assert len(lines) == 2 and "--total_flops 2.5e+08" in err


def test_lines_and_collect_make_the_sweep_s_own_rows(toy_data, tmp_path, capsys):
    flags = ["--flop_budgets", "1e8", *SIZES, "--data_dir", toy_data, "--dtype", "float32", "--out_dir"]
    assert run_sweep(*flags, tmp_path / "own") == 0
    lines, _ = printed(capsys, *flags, tmp_path / "jobs")
    for words in lines:
        assert train.main(flags_of(words)) == 0
    lines, err = printed(capsys, *flags, tmp_path / "jobs")
    assert not lines and "2 cells have run and have no row yet" in err
    for _ in range(2):
        assert run_sweep(*flags, tmp_path / "jobs", "--collect", tmp_path / "jobs" / "cells") == 0
        assert losses_of(tmp_path / "jobs") == losses_of(tmp_path / "own")
    assert printed(capsys, *flags, tmp_path / "jobs")[0] == []


@pytest.mark.slow
def test_of_a_search_for_rates_the_runs_come_first(toy_data, tmp_path, capsys):
    flags = ["--flop_budgets", "5e7", *SIZES, "--data_dir", toy_data, "--lrs", 0.02, 0.03, 0.04, "--out_dir"]
    assert run_sweep(*flags, tmp_path / "own") == 0
    counts = []
    for _ in range(2):
        lines, err = printed(capsys, *flags, tmp_path / "jobs")
        counts.append(len(lines))
        assert ("later cells depend on their losses" in err) == (len(counts) == 1)
        for words in lines:
            assert train.main(flags_of(words)) == 0
        assert run_sweep(*flags, tmp_path / "jobs", "--collect", tmp_path / "jobs") == int(len(counts) == 1)
    assert counts[0] == 6
    assert losses_of(tmp_path / "jobs") == losses_of(tmp_path / "own")
    assert {r["run_id"] for r in rows_of(tmp_path / "jobs", "probes.csv")} == {
        r["run_id"] for r in rows_of(tmp_path / "own", "probes.csv")
    }


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_a_line_in_a_shell_has_the_sweep_s_loss_to_the_bit(toy_data, tmp_path, processes, capsys):
    flags = ["--flop_budgets", "2e8", "--n_embds", "8", "16", "--block_size", "32", "--val_tokens", "1024"]
    flags += ["--device", "cpu", "--data_dir", toy_data, "--out_dir"]
    torchrun = "-m torch.distributed.run --nproc_per_node=2 --standalone".split() if processes == 2 else []
    done = run_script(*torchrun, "sweep.py", *flags, tmp_path / "own")
    assert done.returncode == 0, done.stderr
    more = ["--nproc_per_node", 2] if processes == 2 else []
    assert run_sweep(*flags, tmp_path / "jobs", *more, "--print_commands") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for text in lines:
        ran = subprocess.run(["bash", "-c", text], cwd=jobs.ROOT, capture_output=True, text=True, timeout=120)
        assert ran.returncode == 0, ran.stderr
    assert run_sweep(*flags, tmp_path / "jobs", *more, "--collect", tmp_path / "jobs") == 0
    assert losses_of(tmp_path / "jobs") == losses_of(tmp_path / "own")
    assert {r["world_size"] for r in rows_of(tmp_path / "jobs")} == {str(processes)}


MISTAKES = {
    "--nproc_per_node 2 is for": ["--nproc_per_node", 2],
    "--no-wait is for --slurm": ["--no-wait"],
    "--print_commands and --simulate exclude": ["--print_commands", "--simulate", "hoffmann"],
    "--print_commands and --slurm exclude": ["--print_commands", "--slurm", ""],
    "--slurm and --reuse_trunk exclude": ["--slurm", "", "--reuse_trunk"],
}


@pytest.mark.parametrize("said", MISTAKES)
def test_mistakes_are_one_line(toy_data, tmp_path, capsys, said):
    flags = MISTAKES[said]
    assert run_sweep("--data_dir", toy_data, "--out_dir", tmp_path / "out", *flags) == 2
    err = capsys.readouterr().err
    assert err.count("error:") == 1 and err.count("\n") == 1
    for word in said.replace(" exclude", "").split(" and "):
        assert word in err
    assert not (tmp_path / "out").exists()


def test_a_value_of_slurm_may_begin_with_a_dash():
    assert jobs.joined(["--a", "1", "--slurm", "--time=1", "--b"], "slurm") == ["--a", "1", "--slurm=--time=1", "--b"]
    assert jobs.joined(["--slurm"], "slurm") == ["--slurm"]


@pytest.mark.slow
def test_of_a_design_the_round_is_printed_and_collected(toy_data, tmp_path, capsys):
    flags = ["--design", "adaptive", "--target_flops", 4e10, "--total_flops", 1e10, "--workers", 2, *SIZES[6:]]
    flags += ["--dtype", "float32", "--data_dir", toy_data, "--out_dir", tmp_path / "out"]
    lines, err = printed(capsys, *flags)
    assert lines and "later cells depend on their losses" in err and not (tmp_path / "out").exists()
    for words in lines:
        assert train.main(flags_of(words)) == 0
    assert run_sweep(*flags, "--collect", tmp_path / "out" / "cells") in (0, 1)
    first = json.loads((tmp_path / "out" / "design.jsonl").read_text().splitlines()[0])
    ids = {folder_of(words).rpartition("/")[2] for words in lines}
    assert {run["run_id"] for run in first["runs"]} == ids == set(losses_of(tmp_path / "out"))

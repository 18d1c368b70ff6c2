"""Estimates come from short runs of the sweep's own; the table marks what is wrong with a cell."""

import multiprocessing
import os
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import helpers
import pytest
import torch

from isoflop.config import ModelConfig
from isoflop.flops import count_params
from isoflop.options import UserError
from isoflop.sweep import dry_run

TEXT = SimpleNamespace(val=range(100_001))
SHAPES = ((16, 1), (32, 1), (64, 2), (128, 3))


def cells_of(folder, shapes=SHAPES, budgets=(1e10, 1e12), **flags):
    planner = helpers.sweep_planner(folder, flags)
    return [planner.cell((*shape, None), budget) for shape in shapes for budget in budgets]


def step_seconds(n: int, batch_size: int) -> float:
    return 1e-3 + batch_size * 1e-8 * n


class FakeRuns:
    """Runs whose steps take step_seconds() and whose evaluation takes a microsecond a token."""

    def __init__(self, status="ok"):
        self.status, self.asked = status, []

    def __call__(self, cell):
        tc = cell.tc
        self.asked.append(tc)
        assert Path(tc.out_dir).is_dir()
        tokens = tc.batch_size * cell.mc.block_size
        n = count_params(cell.mc)["matmul"]
        return {"record": {
            "status": self.status, "tokens_per_step": tokens, "val_tokens": tc.val_tokens, "peak_mem_gb": n / 1e6,
            "tokens_per_s": tokens / step_seconds(n, tc.batch_size), "eval_s": 1e-6 * tc.val_tokens,
        }}  # fmt: skip


def test_estimates_are_those_of_the_runs_that_were_timed(tmp_path):
    cells, runs = cells_of(tmp_path), FakeRuns()
    for cell, found in zip(cells, dry_run.estimates(cells, runs, "cpu", TEXT), strict=True):
        plan = cell.plan
        step_s = step_seconds(plan.n_params_matmul, plan.batch_size)
        assert found.train_s == pytest.approx(plan.steps * step_s, rel=1e-6)
        assert found.eval_s == pytest.approx(1e-6 * (100_000 // cell.mc.block_size * cell.mc.block_size))
        assert found.memory_gb == pytest.approx(plan.n_params_matmul / 1e6)
        assert found.seconds == found.train_s + found.eval_s + found.other_s
    assert len({tc.out_dir for tc in runs.asked}) == 1 and not Path(runs.asked[0].out_dir).exists()
    for tc in runs.asked:
        assert dry_run.MIN_STEPS <= tc.max_iters <= dry_run.MAX_STEPS and tc.flop_budget is None and not tc.ckpt_every
    assert {tc.batch_size for tc in runs.asked} == {cell.plan.batch_size for cell in cells}


def test_of_a_large_batch_a_part_is_timed(tmp_path, monkeypatch):
    """The step is read from it in proportion; memory, which it doesn't show, is not claimed."""
    cells, runs = cells_of(tmp_path, budgets=(1e12,)), FakeRuns()
    assert dry_run.timed_in_part(cells, "cpu") == ""
    large = cells[-1]
    monkeypatch.setattr(dry_run, "CPU_FLOPS", 2.5 * large.mc.block_size * large.plan.flops_per_token_exact)
    found = dry_run.estimates(cells, runs, "cpu", TEXT)
    assert runs.asked[-1].batch_size == 2 < large.plan.batch_size and runs.asked[-1].micro_batch_size == 2
    step_s = step_seconds(large.plan.n_params_matmul, 2) * large.plan.batch_size / 2
    assert found[-1].train_s == pytest.approx(large.plan.steps * step_s) and found[-1].memory_gb is None
    in_part = [c for c in cells if dry_run.timed_rows(c, "cpu") < c.plan.batch_size]
    assert large in in_part
    assert dry_run.timed_in_part(cells, "cpu").startswith(f"time of {len(in_part)} of {len(cells)} cells")


def test_sizes_between_the_measured_ones_are_read_in_logs(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "MEASURED_SIZES", 2)
    cells, runs = cells_of(tmp_path, ((32, 1), (48, 1), (64, 1)), (1e11,)), FakeRuns()
    found = dry_run.estimates(cells, runs, "cpu", TEXT)
    middle = cells[1].plan
    assert found[1].train_s == pytest.approx(
        middle.steps * step_seconds(middle.n_params_matmul, middle.batch_size), rel=0.1
    )
    assert len({tc.batch_size for tc in runs.asked}) == 2


def test_a_size_that_does_not_fit_is_named(tmp_path):
    with pytest.raises(UserError, match="16 wide, 1 deep, seed 0 ends with oom; add --micro_batch_size"):
        dry_run.estimates(cells_of(tmp_path), FakeRuns("oom"), "cpu", TEXT)


def test_an_interrupted_run_ends_the_dry_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        dry_run.estimates(cells_of(tmp_path), lambda cell: {"status": "interrupted", "error": ""}, "cpu", TEXT)


def test_times_from_a_share_of_the_peak(tmp_path, monkeypatch):
    cells = cells_of(tmp_path)
    with pytest.raises(UserError, match="--mfu 0.4 needs the peak of this device"):
        dry_run.estimates(cells, None, "cpu", TEXT, mfu=0.4)
    monkeypatch.setattr(dry_run.devices, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    for cell, found in zip(cells, dry_run.estimates(cells, None, "cuda", TEXT, mfu=0.4, processes=2), strict=True):
        assert found.train_s == pytest.approx(cell.plan.flops_exact / (2 * 0.4 * 989e12)) and found.memory_gb is None


def test_others_train_meanwhile_and_are_gone_afterwards(tmp_path):
    cell, threads = cells_of(tmp_path)[0], torch.get_num_threads()
    before = os.sched_getaffinity(0)
    core = min(before)
    with dry_run.company(cell, helpers.run_for_ever, "cpu", [core, core]):
        assert os.sched_getaffinity(0) == {core} and torch.get_num_threads() == 1
        (other,) = multiprocessing.active_children()
    assert not other.is_alive()
    assert os.sched_getaffinity(0) == before and torch.get_num_threads() == threads


def test_a_real_run_is_timed(toy_data, tmp_path):
    import train
    from isoflop.data import reader

    tokens = reader.open_data(toy_data)
    planner = helpers.sweep_planner(tmp_path, {"data_dir": toy_data, "block_size": 32}, tokens.meta["vocab_size"])
    cell = planner.cell((8, 1, None), 1e8)

    def ask(cell):
        return {"record": asdict(train.train(cell.mc, cell.tc, quiet=True))}

    (found,) = dry_run.estimates([cell], ask, "cpu", tokens)
    assert min(found.train_s, found.eval_s, found.memory_gb) > 0
    assert not list(tmp_path.iterdir())


# ----- the table -----


def test_the_table_marks_what_is_wrong(tmp_path):
    planner = helpers.sweep_planner(tmp_path)
    cells = [planner.cell(shape, 1e10) for shape in ((32, 1, None), (512, 8, None), (33, 1, 2), (16, 1, None))]
    costs = [dry_run.Estimate(90.0, 5.0, 1.0, 3.0), dry_run.Estimate(7200.0, 5.0, 1.0, 30.0), None, None]
    lines = dry_run.table(cells, {cells[3].run_id}, costs, price=2.0, room_gb=24, full=True).splitlines()
    assert lines[0].split()[:3] == ["budget", "width", "depth"] and lines[0].split()[-2:] == ["cost", "run_id"]
    assert "1.6 min" in lines[1] and "3.00 GB" in lines[1] and lines[1].endswith(cells[0].run_id)
    assert "2.0 h" in lines[2] and lines[2].endswith("!1 !2")
    assert lines[3].split() == ["1e10", "33", "1", "refused", "!3"]
    assert "done" in lines[4]
    assert lines[5].startswith("!1 under 100 steps: a larger budget") and lines[6].startswith("!2 over 24 GB")
    assert lines[7].startswith("!3 refused: --n_embd 33")
    short = dry_run.table(cells, set()).splitlines()[0]
    assert "memory" not in short and "N total" not in short and "time" not in short


def test_a_branch_has_a_star(tmp_path):
    planner = helpers.sweep_planner(tmp_path, {"schedule": "wsd"})
    text = dry_run.table(planner.family((32, 1, None), [1e11, 3e11]), set())
    assert text.count("*") == 2 and "branches off" in text.splitlines()[-1]


def test_memory_is_shared_between_workers():
    assert dry_run.memory_gb("cpu", 4) == pytest.approx(dry_run.memory_gb("cpu") / 4)


def test_the_head_s_share(tmp_path):
    (cell,) = cells_of(tmp_path, ((32, 1),), (1e11,))
    head = 512 * 32 / count_params(ModelConfig(n_layer=1, n_embd=32, vocab_size=512))["matmul"]
    assert f"{head:.0%}" in dry_run.table([cell], set())

"""Cells: sizes and depths, the rates that a sweep sets, trunks and branches."""

import pytest
from helpers import sweep_planner

from isoflop.data import reader
from isoflop.distributed import DistributedEnv
from isoflop.sweep import cells
from isoflop.sweep.cells import ModelSize, Planner, stand_in

SIZE = ModelSize(16, 1)


def test_widths_alone_take_the_ladder_s_depths():
    assert [cells.default_depth(w) for w in (8, 32, 64, 96, 100, 768, 4000)] == [1, 1, 2, 3, 3, 12, 36]


def test_a_size_that_can_t_be_built_is_refused_and_others_are_not(tmp_path):
    planner = sweep_planner(tmp_path)
    assert planner.refuses(ModelSize(9, 1)) and not planner.refuses(SIZE)
    cell = planner.cell(ModelSize(9, 1), 1e9)
    assert "--n_embd 9 is not divisible" in cell.refused and cell.plan is None and cell.cost == 0
    assert cell.run_id.startswith("refused-") and cell.run_id != planner.cell(ModelSize(9, 1), 2e9).run_id


@pytest.mark.parametrize("processes", [1, 4])
@pytest.mark.parametrize("flags", [{}, {"batch_size": 4}, {"total_batch_size": 4096}, {"lr_scale": 0.5}])
def test_a_rate_that_the_sweep_sets_is_the_peak_rate(tmp_path, flags, processes):
    planner = Planner(str(tmp_path), flags, stand_in(512, "trained"), DistributedEnv(size=processes))
    cell = planner.cell(SIZE, 1e10, more={"lr": 0.01})
    assert cell.plan.lr == 0.01
    if "batch_size" in flags:
        assert cell.plan.batch_size == 4 and cell.plan.tokens_per_step == 4 * 128 * processes


def test_a_typed_batch_and_the_same_total_are_one_run(tmp_path):
    ids = set()
    for flags in ({"batch_size": 4}, {"total_batch_size": 4 * 128}):
        planner = Planner(str(tmp_path), flags, stand_in(512, "trained"), DistributedEnv())
        ids.add(planner.cell(SIZE, 1e10, more={"lr": 0.01}).run_id)
        ids.add(planner.cell(SIZE, 1e10, more={"lr": 0.01}, probe=True).run_id)
    assert len(ids) == 1


# ----- trunk and branches -----


def test_a_family_shares_its_first_steps(tmp_path):
    planner = sweep_planner(tmp_path, {"schedule": "wsd"})
    *branches, trunk = planner.family(SIZE, [4e9, 1e9, 2e9])
    assert [c.flop_budget for c in (*branches, trunk)] == [1e9, 2e9, 4e9] and trunk.start is None
    for branch in branches:
        at = branch.plan.steps - branch.plan.cooldown_steps
        assert (branch.trunk, branch.start_step) == (trunk.run_id, at) and (at, branch.start) in trunk.keep
        assert branch.cost == pytest.approx(branch.plan.flops * branch.plan.cooldown_steps / branch.plan.steps)
        for name in ("lr", "tokens_per_step", "warmup_steps", "weight_decay", "beta2"):
            assert getattr(branch.plan, name) == getattr(trunk.plan, name)


def test_a_run_too_short_for_a_cooldown_is_trained_alone(toy_data, tmp_path):
    given = {"block_size": 32, "data_dir": toy_data, "device": "cpu", "schedule": "wsd", "batch_size": 8}
    planner = Planner(tmp_path, given, reader.open_data(toy_data), DistributedEnv())
    short, middle, trunk = planner.family(SIZE, [2e7, 2e8, 4e8])
    assert short.plan.cooldown_steps == 0 and short.start is None and short.trunk is None
    at = middle.plan.steps - middle.plan.cooldown_steps
    assert middle.trunk == trunk.run_id and middle.start_step == at and trunk.keep == ((at, middle.start),)

"""isoflop/sweep/submission.py: the architecture nearest to N*, the rate and where it comes from."""

import math
from types import SimpleNamespace

import pytest
from conftest import ROOT

from isoflop.constraints import read_constraints
from isoflop.distributed import DistributedEnv
from isoflop.options import UserError
from isoflop.sweep import dry_run, submission
from isoflop.sweep.cells import ModelSize, Planner, stand_in


@pytest.fixture
def planner(tmp_path):
    made = Planner(tmp_path, {}, stand_in(512, "api x"), DistributedEnv(), "api x")
    made.constraints = read_constraints(str(ROOT / "docs" / "cs336_service.json"))
    return made


@pytest.mark.parametrize("n", [1e6, 5e6, 3e7, 1.2e8, 2.9e8])
def test_the_architecture_is_near_and_allowed(planner, n):
    size = submission.architecture(planner, n)
    assert abs(math.log(planner.n(size) / n)) < 0.15 and not planner.constraints.mistake("n_layer", size.n_layer)
    assert 16 <= size.n_embd / size.n_layer <= 128 and size.n_embd % size.n_head == 0


def test_beyond_the_range_it_is_the_largest_and_said_so(planner):
    size = submission.architecture(planner, 3e9)
    assert size == ModelSize(1024, 24, 16) and "nothing larger is allowed" in submission.beyond(planner.n(size) / 3e9)
    assert "nothing smaller" in submission.beyond(planner.n(submission.architecture(planner, 1e4)) / 1e4)
    assert submission.beyond(1.02) == "."


def test_a_cell_is_planned_at_the_service_s_n_and_d(planner):
    cell = planner.cell(ModelSize(256, 4), 1e16)
    assert not cell.refused and cell.plan.n_params_matmul == 12 * 4 * 256**2 and cell.flop_budget == 1e16
    assert cell.plan.tokens == pytest.approx(1e16 / 6 / cell.plan.n_params_matmul)
    assert cell.plan.steps * cell.plan.tokens_per_step == pytest.approx(cell.plan.tokens, rel=1e-3)
    row = dry_run.row_of(cell, set(), None, None)
    assert row["N (service)"] == "3,145,728" and "head" not in row and cell.cost == 1e16


def test_no_model_is_one_line(planner):
    planner.flags["n_kv_head"] = 17
    with pytest.raises(UserError, match="no model is allowed; check d_model"):
        submission.architecture(planner, 1e7)


def test_where_the_rate_comes_from():
    cell = SimpleNamespace(plan=SimpleNamespace(lr=5e-4, hparams="default"))
    rows = []
    for budget, loss, lr in ((1e15, 3.0, 1e-4), (3e15, 2.9, 2e-4), (3e15, 2.8, 3e-4)):
        row = {"flop_budget": str(budget), "val_loss": str(loss), "lr": str(lr), "lr_from": "tuned", "status": "ok"}
        rows.append(row)
    assert submission.rate(cell, rows, {}) == (3e-4, "that of the lowest loss at 3e+15 FLOPs, where rates were tried")
    assert submission.rate(cell, rows, {"lr": 5e-4}) == (5e-4, "the one of --lr")
    assert submission.rate(cell, [], {})[0] == 5e-4 and "by rule (default)" in submission.rate(cell, [], {})[1]

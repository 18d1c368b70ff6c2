"""isoflop/train/evals.py: losses and scores between the steps, which leave training as it is."""

import json

import pytest
import torch
from helpers import SMALL_MODEL, same_weights, small_run

from isoflop.config import ModelConfig
from isoflop.eval import while_training
from isoflop.options import UserError
from isoflop.train import tracking
from isoflop.train.plan import TrainConfig
from train import Interrupted, train

MC = ModelConfig(**SMALL_MODEL)


class StubHarness:
    """The harness, as far as it is needed: it draws random numbers, and fails when it is told to."""

    fails_at = None
    asked = 0

    def __init__(self, names, shots, limit, batch_size):
        self.names, self.limit = names, limit

    def run(self, found, device, dtype, names):
        StubHarness.asked += 1
        if StubHarness.asked == StubHarness.fails_at:
            raise RuntimeError("the hub is gone")
        score = torch.rand(1).item() + sum(p.abs().sum().item() for p in found.model.parameters()) / 1e6
        return [{"entry": name, "task": name, "metric": "acc", "score": score, "stderr": 0.1} for name in names]


@pytest.fixture
def stub(monkeypatch):
    while_training.harness_of.cache_clear()
    monkeypatch.setattr(while_training, "Harness", StubHarness)
    monkeypatch.setattr(StubHarness, "asked", 0)
    yield StubHarness
    while_training.harness_of.cache_clear()


def evals_of(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "evals.jsonl").read_text().splitlines()]


def test_losses_and_scores_between_the_steps_leave_training_as_it_is(toy_data, tmp_path, stub, monkeypatch):
    sent = []
    monkeypatch.setattr(tracking.Tracker, "log", lambda self, values, step: sent.append((step, values)))
    plain = train(MC, small_run(toy_data, tmp_path / "plain"), quiet=True)
    flags = {"eval_every": 6, "tasks": "a, b", "tasks_every": 10, "tasks_limit": 5}
    record = train(MC, small_run(toy_data, tmp_path / "run", **flags), quiet=True)
    assert (record.run_id, record.val_loss) == (plain.run_id, plain.val_loss)
    same_weights(tmp_path / "plain", tmp_path / "run")
    assert not (tmp_path / "plain" / "evals.jsonl").exists()
    rows = evals_of(tmp_path / "run")
    losses = {row["step"]: row["val_loss"] for row in rows if "val_loss" in row}
    assert list(losses) == [6, 12, 18] and losses[6] > losses[18] > record.val_loss
    scored = [(row["step"], row["task"], row["limit"]) for row in rows if "task" in row]
    assert scored == [(10, "a", "5"), (10, "b", "5"), (20, "a", "5"), (20, "b", "5")], "and once at the end"
    assert rows[0]["tokens"] == 6 * 4 * 32 and rows[0]["flops"] == rows[0]["tokens"] * 6 * record.n_params_matmul
    assert (6, {"val_loss", "val_loss_se", "bits_per_byte"}) in [(step, set(values)) for step, values in sent]
    assert (20, {"score_a", "score_b"}) in [(step, set(values)) for step, values in sent]


def test_a_resumed_run_has_each_loss_once(toy_data, tmp_path):
    steps = iter(range(1, 100))
    with pytest.raises(Interrupted):
        train(MC, small_run(toy_data, tmp_path, eval_every=5), quiet=True, stop=lambda: next(steps) == 12)
    train(MC, small_run(toy_data, tmp_path, eval_every=5, resume="auto"), quiet=True)
    assert [row["step"] for row in evals_of(tmp_path)] == [5, 10, 15]


def test_a_benchmark_that_fails_costs_a_warning(toy_data, tmp_path, stub, monkeypatch, capsys):
    monkeypatch.setattr(stub, "fails_at", 1)
    record = train(MC, small_run(toy_data, tmp_path, tasks="a", tasks_every=10))
    assert record.status == "ok" and [row["step"] for row in evals_of(tmp_path)] == [20]
    assert "warning: --tasks at step 10 not scored (RuntimeError: the hub is gone)" in capsys.readouterr().out


def test_what_can_t_be_scored_is_refused_before_anything_is_written(toy_data, tmp_path, monkeypatch, stub):
    def missing(*_):
        raise UserError("--tasks needs lm_eval: pip install 'lm-eval[hf]'")

    monkeypatch.setattr(while_training, "Harness", missing)
    with pytest.raises(UserError, match="pip install"):
        train(MC, small_run(toy_data, tmp_path / "run", tasks="a"), quiet=True)
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="--tasks_every 5 needs the benchmarks: add --tasks"):
        TrainConfig(max_iters=1, tasks_every=5)

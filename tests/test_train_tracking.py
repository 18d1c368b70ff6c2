"""Trackers: tensorboard and mlflow for real where they are installed, wandb by a stand-in; and their failures."""

import math
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from helpers import SMALL_FLAGS, curve_of, record_of

import train as train_module
from isoflop.train import tracking


def run(toy_data, folder, tracker):
    flags = [*SMALL_FLAGS, *"--max_iters 20 --batch_size 4 --log_every 5".split()]
    assert train_module.main([*flags, "--data_dir", toy_data, "--out_dir", str(folder), "--tracker", tracker]) == 0
    return curve_of(folder)


def test_tensorboard(toy_data, tmp_path):
    pytest.importorskip("tensorboard", reason="pip install -e '.[tensorboard]'")
    losses = run(toy_data, tmp_path, "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = events.Scalars("loss")
    assert [p.step for p in points] == [5, 10, 15, 20]
    assert [p.value for p in points] == pytest.approx(losses)
    assert {"loss", "lr", "tokens", "tokens_per_s"} <= set(events.Tags()["scalars"])


def test_wandb(toy_data, tmp_path, monkeypatch):
    """What wandb is told, by a module in its place: real runs were made offline by hand."""
    calls = []
    run_ = SimpleNamespace(
        log=lambda values, step: calls.append((step, values)), finish=lambda: calls.append("finished")
    )
    wandb = ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None)
    wandb.init = lambda **settings: calls.append(settings) or run_
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    losses = run(toy_data, tmp_path, "wandb")
    begun, *points, last = calls
    assert begun["id"] == begun["name"] == record_of(tmp_path)["run_id"] and begun["resume"] == "allow"
    assert begun["project"] == "isoflop" and begun["dir"] == tmp_path
    assert begun["config"]["n_embd"] == 16 and begun["config"]["steps"] == 20
    assert [step for step, _ in points] == [5, 10, 15, 20] and last == "finished"
    assert [values["loss"] for _, values in points] == losses
    assert all({"lr", "tokens", "tokens_per_s"} <= values.keys() for _, values in points)


def test_mlflow_in_a_local_store(toy_data, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install -e '.[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    mlflow.set_tracking_uri(None)
    losses = run(toy_data, tmp_path / "run", "mlflow")
    (found,) = mlflow.search_runs(experiment_names=["isoflop"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "loss")
    assert [m.value for m in sorted(history, key=lambda m: m.step)] == pytest.approx(losses)
    assert found.data.params["n_embd"] == "16"


def test_a_missing_tracker_is_one_line(toy_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        run(toy_data, tmp_path / "run", "wandb")
    assert end.value.code == 2 and not (tmp_path / "run").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert "--tracker wandb is not installed" in line and "pip install -e '.[wandb]'" in line


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    said, sent = [], []

    def broken(out_dir, run_id, settings):
        def send(values, step):
            sent.append(step)
            raise ConnectionError("gone")

        return send, lambda: None

    monkeypatch.setattr(tracking, "_wandb", broken)
    monkeypatch.setattr(tracking, "check_tracker", lambda kind: None)
    with tracking.tracker("wandb", tmp_path, "id", {}, said.append) as log:
        log({"loss": 1.0}, 1)
        log({"loss": math.e}, 2)
    assert sent == [1] and len(said) == 1 and "the run continues" in said[0]

"""Trackers, for real where they are installed: what they hold after a run and a sweep; and their failures."""

import math
import os
import struct
import subprocess
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
from helpers import SMALL_FLAGS, curve_of, record_of

import sweep as sweep_module
import train as train_module
from isoflop.options import UserError
from isoflop.train import tracking


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch):
    """None of the services' variables is set, and no tracker of an earlier test has failed."""
    monkeypatch.setattr(tracking, "NOT_STARTED", set())
    for name in list(os.environ):
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)


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
    record = record_of(tmp_path)
    for name in ("val_loss", "bits_per_byte"):
        (point,) = events.Scalars(name)
        assert point.step == 20 and point.value == pytest.approx(record[name])
    (whole,) = events.Tensors("record/text_summary")
    assert f"val_loss: {record['val_loss']}" in whole.tensor_proto.string_val[0].decode()


def records_of(path):
    """The records of a .wandb file: blocks of 32 KiB that hold pieces of (crc, length, kind, bytes)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, record = path.read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:  # no room for a head
            at += left
            continue
        length, kind = struct.unpack_from("<HB", data, at + 4)
        record += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or its last piece
            yield Record.FromString(record)
            record = b""


@pytest.mark.slow
def test_wandb_offline_holds_a_sweep(toy_data, tmp_path, script):
    """Each run by its run_id, in one group: curve, val_loss, bits_per_byte and the whole record."""
    pytest.importorskip("wandb", reason="pip install -e '.[wandb]'")
    grid = "--flop_budgets 1e7 --n_embds 16 32 --block_size 32 --val_tokens 2048 --allow_few_steps --device cpu".split()
    variables = {"WANDB_MODE": "offline", "WANDB_PROJECT": "mine"}
    more = ["--data_dir", toy_data, "--out_dir", tmp_path / "grid", "--tracker", "wandb"]
    done = script("sweep.py", *grid, *more, **variables)
    assert done.returncode == 0, done.stderr
    folders = sorted((tmp_path / "grid" / "cells").iterdir())
    assert len(folders) == 2
    for folder in folders:
        record, held = record_of(folder), {}
        (path,) = folder.glob("wandb/offline-run-*/*.wandb")
        for entry in records_of(path):
            kind = entry.WhichOneof("record_type")
            if kind == "run":
                assert (entry.run.run_id, entry.run.display_name) == (record["run_id"],) * 2
                assert (entry.run.project, entry.run.run_group) == ("mine", "grid")
            if kind == "summary":
                held |= {item.key or ".".join(item.nested_key): item.value_json for item in entry.summary.update}
        assert float(held["val_loss"]) == record["val_loss"]
        assert float(held["bits_per_byte"]) == record["bits_per_byte"]
        known = {name for name, value in record.items() if value is not None}
        assert known <= held.keys()


def test_wandb_is_told(toy_data, tmp_path, monkeypatch):
    """A run of its own, by a module in wandb's place."""
    calls, summary = [], {}
    run_ = SimpleNamespace(
        log=lambda values, step: calls.append((step, values)),
        finish=lambda: calls.append("finished"),
        summary=summary,
    )
    wandb = ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None)
    wandb.init = lambda **settings: calls.append(settings) or run_
    wandb.Settings = dict
    wandb.setup = lambda: SimpleNamespace(settings=SimpleNamespace(mode="offline"))
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    losses, record = run(toy_data, tmp_path, "wandb"), record_of(tmp_path)
    begun, *points, result, last = calls
    assert begun["id"] == begun["name"] == record["run_id"] and begun["resume"] == "allow"
    assert begun["project"] == "isoflop" and begun["group"] is None and begun["dir"] == tmp_path
    assert begun["config"]["n_embd"] == 16 and begun["config"]["steps"] == 20
    assert [step for step, _ in points] == [5, 10, 15, 20] and last == "finished"
    assert [values["loss"] for _, values in points] == losses
    assert all({"lr", "tokens", "tokens_per_s"} <= values.keys() for _, values in points)
    assert result[0] == 20 and result[1]["val_loss"] == record["val_loss"]
    assert summary == {name: value for name, value in record.items() if value is not None}


def test_mlflow_in_a_local_store(toy_data, tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install -e '.[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    mlflow.set_tracking_uri(None)
    folder = tmp_path / "grid" / "cells" / "one"
    losses, record = run(toy_data, folder, "mlflow"), record_of(folder)
    (found,) = mlflow.search_runs(experiment_names=["mine"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(found.info.run_id, "loss")
    assert [m.value for m in sorted(history, key=lambda m: m.step)] == pytest.approx(losses)
    assert found.data.params["n_embd"] == "16" and found.data.tags["sweep"] == "grid"
    assert found.info.run_name == record["run_id"] and found.info.status == "FINISHED"
    assert found.data.metrics["val_loss"] == record["val_loss"] and found.data.tags["status"] == "ok"
    known = {name for name, value in record.items() if value is not None}
    assert known <= found.data.metrics.keys() | found.data.tags.keys()


def test_a_refused_store_of_mlflow_is_one_line(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow", reason="pip install -e '.[mlflow]'")
    for uri in ("bogus://x", "http://127.0.0.1:1", f"sqlite:///{tmp_path}/none/m.db"):
        mlflow.set_tracking_uri(uri)
        with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI=sqlite:///mlflow.db"):
            tracking.check_tracker("mlflow")


def test_a_missing_tracker_is_one_line(toy_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as end:
        run(toy_data, tmp_path / "run", "wandb")
    assert end.value.code == 2 and not (tmp_path / "run").exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert "--tracker wandb is not installed" in line and "pip install -e '.[wandb]'" in line


@pytest.mark.slow
def test_wandb_without_network_is_one_line(tmp_path, monkeypatch):
    """The way out that it names works."""
    pytest.importorskip("wandb", reason="pip install -e '.[wandb]'")
    code = "from isoflop.train.tracking import check_tracker; check_tracker('wandb')"
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    last = ended.stderr.splitlines()[-1]
    assert "can't reach http://127.0.0.1:1" in last and "set WANDB_MODE=offline" in last
    monkeypatch.setenv("WANDB_MODE", "offline")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_sweep_says_once_that_a_tracker_cannot_start(toy_data, tmp_path, monkeypatch, capsys):
    """Before its first cell; and a cell whose tracker fails all the same is trained."""

    def refuse(kind):
        raise UserError(f"--tracker {kind} has no login")

    def fail(out_dir, run_id, settings):
        started.append(run_id)
        raise ConnectionError("gone")

    started, grid = [], "--flop_budgets 1e7 --n_embds 16 32 --block_size 32 --allow_few_steps --device cpu".split()
    flags = [*grid, "--data_dir", toy_data, "--out_dir", str(tmp_path / "grid"), "--tracker", "wandb"]
    monkeypatch.setattr(sweep_module, "check_tracker", refuse)
    with pytest.raises(SystemExit) as end:
        sweep_module.main(flags)
    assert end.value.code == 2 and not (tmp_path / "grid" / "runs.csv").exists()
    assert "has no login" in capsys.readouterr().err
    monkeypatch.setattr(sweep_module, "check_tracker", lambda kind: None)
    monkeypatch.setitem(tracking.SERVICES, "wandb", fail)
    assert sweep_module.main(flags) == 0
    assert len(started) == 1 and capsys.readouterr().out.count("could not start (gone)") == 1
    assert len(list((tmp_path / "grid" / "cells").glob("*/run.json"))) == 2


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path, monkeypatch):
    said, sent = [], []

    class Broken:
        def __init__(self, out_dir, run_id, settings):
            pass

        def send(self, values, step):
            sent.append(step)
            raise ConnectionError("gone")

        def close(self):
            sent.append("closed")

    monkeypatch.setitem(tracking.SERVICES, "wandb", Broken)
    with tracking.Tracker("wandb", tmp_path, "id", {}, said.append) as track:
        track.log({"loss": 1.0}, 1)
        track.log({"loss": math.e}, 2)
    assert sent == [1, "closed"] and len(said) == 1 and "the run continues" in said[0]

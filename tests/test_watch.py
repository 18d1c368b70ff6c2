"""Trackers, each for real and offline where its package is installed; and what is said where it is not."""

import json
import math
import struct

import pytest

import train as train_module
from isoflop.train import tracking as watch

FLAGS = ["--n_layer", "1", "--n_embd", "16", "--block_size", "32", "--device", "cpu", "--val_tokens", "2048",
         "--max_iters", "20", "--batch_size", "4", "--log_every", "5"]  # fmt: skip


def run(toy_data, folder, tracker):
    flags = [*FLAGS, "--data_dir", toy_data, "--out_dir", str(folder), "--tracker", tracker]
    assert train_module.main(flags) == 0
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


def test_tensorboard(toy_data, tmp_path):
    pytest.importorskip("tensorboard", reason="pip install -e '.[tensorboard]'")
    losses = run(toy_data, tmp_path, "tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    points = events.Scalars("loss")
    assert [p.step for p in points] == [5, 10, 15, 20]
    assert [p.value for p in points] == pytest.approx(losses)
    assert {"loss", "lr", "tokens", "tokens_per_s"} <= set(events.Tags()["scalars"])


def leveldb_records(raw: bytes, block=2**15):
    """The records of a .wandb file: LevelDB's log format, whose header takes 7 bytes of the first block."""
    at, whole = 7, b""
    while at < len(raw):
        left = block - at % block
        if left < 7:
            at += left
            continue
        length, kind = struct.unpack_from("<HB", raw, at + 4)  # after the checksum; kind: 1 whole, 2 first, 3, 4 last
        whole += raw[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def test_wandb_offline(toy_data, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="pip install -e '.[wandb]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    losses = run(toy_data, tmp_path, "wandb")
    (log,) = (tmp_path / "wandb").glob("offline-run-*/run-*.wandb")
    from wandb.proto import wandb_internal_pb2

    history = []
    for raw in leveldb_records(log.read_bytes()):
        record = wandb_internal_pb2.Record()
        record.ParseFromString(raw)
        if record.WhichOneof("record_type") == "history":
            items = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
            history.append(items["loss"])
    assert history == pytest.approx(losses), wandb.__version__


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
    monkeypatch.setattr(watch.importlib.util, "find_spec", lambda name: None)
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

    monkeypatch.setattr(watch, "_wandb", broken)
    monkeypatch.setattr(watch, "check_tracker", lambda kind: None)
    with watch.tracker("wandb", tmp_path, "id", {}, said.append) as log:
        log({"loss": 1.0}, 1)
        log({"loss": math.e}, 2)
    assert sent == [1] and len(said) == 1 and "the run continues" in said[0]

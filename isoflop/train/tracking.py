"""Where the curve and the record of a run are shown: tensorboard, wandb or mlflow, and loss.png.

The services' own variables are honoured: WANDB_MODE, WANDB_PROJECT, WANDB_RUN_GROUP, MLFLOW_TRACKING_URI,
MLFLOW_EXPERIMENT_NAME and whatever else they read. Without them the project, or experiment, is called isoflop. A run's
name is its run_id; runs of a sweep share a group (wandb), or the tag sweep (mlflow), and lie in one folder
(tensorboard --logdir SWEEP/cells).
"""

import contextlib
import importlib.util
import math
import os
import re
import time
from pathlib import Path

from isoflop.files import atomic, parse_json, regular
from isoflop.options import UserError, explain

PROJECT = "isoflop"
FINISH_S = 120  # wandb may take so long to upload the rest of a run; what is left waits on disk for `wandb sync`
CONNECT_S = 10  # a service that has not answered by then is taken as unreachable
RESULTS = ("train_loss", "val_loss", "val_loss_se", "bits_per_byte", "mfu")  # of a record, drawn beside the curve
NOT_STARTED: set[str] = set()  # trackers that failed in this process: a sweep's next cell does not wait for them again
TO_A_FILE = "set MLFLOW_TRACKING_URI=sqlite:///mlflow.db to keep the runs in a file here"
OFFLINE = "set WANDB_MODE=offline to keep the runs on disk for `wandb sync`"


class Tracker:
    """The tracker of a run; kind None: nothing is sent anywhere. A tracker that fails costs one warning, not the run.

    Parameters
    ----------
    kind : tensorboard, wandb, mlflow or None.
    settings : what the run was asked to do, shown beside its curve.
    say : prints a line.
    """

    def __init__(self, kind: str | None, out_dir: Path, run_id: str, settings: dict, say=print):
        self.kind, self.say, self.service = kind, say, None
        if kind and kind not in NOT_STARTED:
            NOT_STARTED.add(kind)
            self._attempt(lambda: self._start(out_dir, run_id, settings), "could not start")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.service:
            self._attempt(self.service.close, "could not be closed")

    def log(self, values: dict, step: int):
        """Send numbers of a step; None among them is left out."""
        if self.service:
            known = {name: value for name, value in values.items() if value is not None}
            self._attempt(lambda: self.service.send(known, step), "failed")

    def finish(self, record: dict):
        """Send the result: RESULTS as points at the last step, and the whole record."""
        self.log({name: record[name] for name in RESULTS}, record["steps"])
        if self.service:
            known = {name: value for name, value in record.items() if value is not None}
            self._attempt(lambda: self.service.finish(known), "failed")

    def _start(self, out_dir, run_id, settings):
        self.service = SERVICES[self.kind](out_dir, run_id, settings)
        NOT_STARTED.discard(self.kind)

    def _attempt(self, action, what: str):
        try:
            action()
        except Exception as error:  # of any kind: a chart is not worth a run
            with contextlib.suppress(Exception):
                if self.service:
                    self.service.close()
            self.service = None
            self.say(f"warning: --tracker {self.kind} {what} ({first_line(error)}); the run continues without it")


def first_line(error: Exception) -> str:
    """The first sentence of a service's error, of at most 200 characters."""
    lines = str(explain(error)).strip().splitlines() or [type(error).__name__]
    return re.split(r"\.(?: [A-Z]|$)", lines[0])[0][:200]


def sweep_of(out_dir: Path) -> str | None:
    """The name of the sweep that a run is a cell of, by its folder SWEEP/cells/RUN_ID; None for a run of its own."""
    folder = Path(out_dir).absolute().parent
    return folder.parent.name if folder.name == "cells" else None


# ----- can it start? -----


def check_tracker(kind: str | None):
    """UserError, with a way out, where a tracker can't start: no package, no login, no connection, a refused store."""
    if kind is None:
        return
    if importlib.util.find_spec(kind) is None:
        raise UserError(f"--tracker {kind} is not installed; pip install -e '.[{kind}]' adds it")
    check = {"tensorboard": _check_tensorboard, "wandb": _check_wandb, "mlflow": _check_mlflow}[kind]
    try:
        check()
    except UserError:
        raise
    except Exception as error:  # of any kind: packages that don't fit each other, a service that says no
        raise UserError(
            f"--tracker {kind} can't start: {first_line(error)}; leave it out to train without it"
        ) from None


def _check_tensorboard():
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401


def _check_wandb():
    import wandb

    settings = wandb.setup().settings
    if settings.mode not in ("online", "shared"):
        return
    problem = _unreachable(settings.base_url)
    if problem:
        raise UserError(f"--tracker wandb can't reach {settings.base_url} ({problem}); {OFFLINE}")
    if not wandb.login(prompt=False):
        raise UserError(f"--tracker wandb has no login; run `wandb login`, or {OFFLINE}")


def _check_mlflow():
    import mlflow

    uri = mlflow.get_tracking_uri()
    if uri.startswith(("http://", "https://")):
        problem = _unreachable(uri)  # mlflow itself would try again for minutes
        if problem:
            raise UserError(f"--tracker mlflow can't reach {uri} ({problem}); {TO_A_FILE}")
    file = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not os.access(file.parent, os.W_OK):  # it would try again here, too
        raise UserError(f"--tracker mlflow can't write {file}; {TO_A_FILE}")
    try:
        _set_experiment(mlflow)
    except Exception as error:
        way_out = TO_A_FILE
        if "xperiment" in str(error):  # a deleted one, or an id that is not there
            way_out = "name another with MLFLOW_EXPERIMENT_NAME, without MLFLOW_EXPERIMENT_ID"
        raise UserError(f"--tracker mlflow can't use {uri} ({first_line(error)}); {way_out}") from None


def _unreachable(url: str) -> str:
    """Why nothing answers at a URL; empty where something does, whatever it says. Proxies are used as set."""
    import requests  # wandb and mlflow need it

    try:
        requests.head(url, timeout=CONNECT_S)
    except requests.RequestException as error:
        return type(error).__name__
    return ""


# ----- the services: send(values, step), finish(record), close() -----


class TensorBoard:
    def __init__(self, out_dir, run_id, settings):
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(out_dir / "tensorboard")
        self._table("settings", settings)

    def _table(self, name, values):
        self.writer.add_text(name, "\n".join(f"    {key}: {value}" for key, value in values.items()))

    def send(self, values, step):
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def finish(self, record):
        self._table("record", record)

    def close(self):
        self.writer.close()


class Wandb:
    def __init__(self, out_dir, run_id, settings):
        import wandb

        sweep, own = sweep_of(out_dir), {}
        if "WANDB_FINISH_TIMEOUT" not in os.environ:
            own["finish_timeout"] = FINISH_S
        if sweep and "WANDB_SILENT" not in os.environ:
            own["silent"] = True  # 35 lines a cell
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            group=os.environ.get("WANDB_RUN_GROUP") or sweep,
            id=run_id,
            name=run_id,
            resume="allow",
            dir=out_dir,
            config=settings,
            settings=wandb.Settings(**own),
        )

    def send(self, values, step):
        self.run.log(values, step=step)

    def finish(self, record):
        self.run.summary.update(record)

    def close(self):
        self.run.finish()


class MLflow:
    """By run id: mlflow's own current run would outlast a cell that failed."""

    def __init__(self, out_dir, run_id, settings):
        import mlflow

        self.client, self.status = mlflow.MlflowClient(), "KILLED"
        experiment = _set_experiment(mlflow).experiment_id
        found = self.client.search_runs([experiment], f"tags.`mlflow.runName` = '{run_id}'", max_results=1)
        if found:  # a resumed run
            self.id = found[0].info.run_id
            self.client.update_run(self.id, status="RUNNING")
            return
        tags, sweep = {}, sweep_of(out_dir)
        if sweep:
            tags["sweep"] = sweep
        self.id = self.client.create_run(experiment, run_name=run_id, tags=tags).info.run_id
        params = [mlflow.entities.Param(name, str(value)) for name, value in settings.items()]
        self.client.log_batch(self.id, params=params)

    def send(self, values, step):
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self.client.log_batch(
            self.id, metrics=[Metric(name, float(value), now, step) for name, value in values.items()]
        )

    def finish(self, record):
        """Numbers of a record become metrics, the rest tags."""
        from mlflow.entities import RunTag

        numbers, tags = {}, []
        for name, value in record.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                numbers[name] = value
            else:
                tags.append(RunTag(name, str(value)))
        self.send(numbers, record["steps"])
        self.client.log_batch(self.id, tags=tags)
        self.status = "FINISHED" if record["status"] == "ok" else "FAILED"

    def close(self):
        self.client.set_terminated(self.id, self.status)


def _set_experiment(mlflow):
    """Choose, or make, the experiment that MLFLOW_EXPERIMENT_ID or MLFLOW_EXPERIMENT_NAME names, or PROJECT."""
    number = os.environ.get("MLFLOW_EXPERIMENT_ID")
    if number:
        return mlflow.set_experiment(experiment_id=number)
    return mlflow.set_experiment(os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT)


SERVICES = {"tensorboard": TensorBoard, "wandb": Wandb, "mlflow": MLflow}


# ----- the picture -----


def draw_curve(folder: Path, record):
    """loss.png in a run's folder: the loss against tokens, with the validation loss at the end."""
    curve = [parse_json(line) for line in regular(folder / "log.jsonl").read_text().splitlines()]
    if len(curve) < 2:
        return
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, ax = plt.subplots(figsize=(6, 4), dpi=120)
    ax.plot([row["tokens"] for row in curve], [row["loss"] for row in curve], marker=".", label="training")
    if record.val_loss is not None:
        ax.plot(curve[-1]["tokens"], record.val_loss, "D", color="black", label=f"validation, {record.val_loss:.4f}")
    between = []
    if (folder / "evals.jsonl").is_file():
        between = [parse_json(line) for line in regular(folder / "evals.jsonl").read_text().splitlines()]
    between = [row for row in between if row.get("val_loss") is not None]
    if between:
        ax.plot([row["tokens"] for row in between], [row["val_loss"] for row in between], "d", color="black", ms=4)
    ax.set(xlabel="tokens", ylabel="loss (nats per token)")
    ax.set_title(f"{record.n_embd} wide, {record.n_layer} deep, N {record.n_params_matmul:,} (head counted)", size=10)
    ax.grid(alpha=0.3)
    ax.legend()
    fig.tight_layout()
    with atomic(folder / "loss.png", "wb") as f:
        fig.savefig(f, format="png")
    plt.close(fig)

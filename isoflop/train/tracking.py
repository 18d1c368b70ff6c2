"""Where the curve of a run is shown: tensorboard, wandb or mlflow, and loss.png."""

import contextlib
import importlib.util
from pathlib import Path

from isoflop.files import atomic, parse_json, regular
from isoflop.options import UserError


@contextlib.contextmanager
def tracker(kind: str | None, out_dir: Path, run_id: str, settings: dict, say=print):
    """A function log(values: dict[str, float], step: int) that sends to tensorboard, wandb, mlflow, or nowhere.

    The services' own variables (WANDB_MODE=offline, MLFLOW_TRACKING_URI) say where to; a resumed run continues its own
    chart. A tracker that fails later costs one warning, not the run. `say` prints a line.
    """
    if kind is None:
        yield lambda values, step: None
        return
    check_tracker(kind)
    start = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}[kind]
    send, close = start(out_dir, run_id, settings)
    failed = False

    def log(values, step):
        nonlocal failed
        if failed:
            return
        try:
            send({k: v for k, v in values.items() if v is not None}, step)
        except Exception as error:  # of any kind: a chart is not worth a run
            failed = True
            say(f"warning: --tracker {kind} failed ({error}); the run continues without it")

    try:
        yield log
    finally:
        try:
            close()
        except Exception as error:
            say(f"warning: --tracker {kind} could not be closed ({error})")


def check_tracker(kind: str):
    """UserError with the command that installs a tracker whose package is missing."""
    if importlib.util.find_spec(kind) is None:
        raise UserError(f"--tracker {kind} is not installed; pip install -e '.[{kind}]' adds it")


# Each service: (send(values, step), close()).


def _tensorboard(out_dir, run_id, settings):
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(out_dir / "tensorboard")
    writer.add_text("settings", "\n".join(f"    {k}: {v}" for k, v in settings.items()))

    def send(values, step):
        for name, value in values.items():
            writer.add_scalar(name, value, step)

    return send, writer.close


def _wandb(out_dir, run_id, settings):
    import wandb

    run = wandb.init(project="isoflop", id=run_id, name=run_id, resume="allow", dir=out_dir, config=settings)
    return lambda values, step: run.log(values, step=step), run.finish


def _mlflow(out_dir, run_id, settings):
    import mlflow

    mlflow.set_experiment("isoflop")
    found = mlflow.search_runs(filter_string=f"tags.`mlflow.runName` = '{run_id}'", output_format="list")
    if found:  # a resumed run
        mlflow.start_run(run_id=found[0].info.run_id)
    else:
        mlflow.start_run(run_name=run_id)
        mlflow.log_params(settings)
    return lambda values, step: mlflow.log_metrics(values, step=step), mlflow.end_run


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
    ax.set(xlabel="tokens", ylabel="loss (nats per token)")
    ax.set_title(f"{record.n_embd} wide, {record.n_layer} deep, N {record.n_params_matmul:,} (head counted)", size=10)
    ax.grid(alpha=0.3)
    ax.legend()
    fig.tight_layout()
    with atomic(folder / "loss.png", "wb") as f:
        fig.savefig(f, format="png")
    plt.close(fig)

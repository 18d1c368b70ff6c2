"""What a run shows of itself: its speed, a tracker's charts, a sample of its text, the picture of its curve."""

import contextlib
import importlib.util
import json
import time
from pathlib import Path

TRACKERS = ("tensorboard", "wandb", "mlflow")


class Timer:
    """Seconds and tokens of training alone: neither the first steps, which may compile, nor checkpoints and samples."""

    def __init__(self, step: int, tokens_per_step: int, tokens: int = 0, seconds: float = 0.0):
        self.tokens_per_step, self.tokens, self.seconds = tokens_per_step, tokens, seconds
        self.on, self.step, self.since = False, step, time.perf_counter()

    def tick(self, step: int) -> float:
        """Milliseconds a step since the last call, `step` steps being done. The caller has waited for the device."""
        now = time.perf_counter()
        steps, lap, self.step, self.since = step - self.step, now - self.since, step, now
        if self.on:
            self.tokens, self.seconds = self.tokens + steps * self.tokens_per_step, self.seconds + lap
        return 1e3 * lap / max(1, steps)

    @contextlib.contextmanager
    def paused(self, step: int):
        """Leave out what happens inside."""
        self.tick(step)
        yield
        self.since = time.perf_counter()

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


@contextlib.contextmanager
def tracker(kind: str | None, out_dir: Path, run_id: str, settings: dict, say=print):
    """A function log(values: dict[str, float], step: int) that sends to tensorboard, wandb, mlflow, or nowhere.

    The services' own variables (WANDB_MODE=offline, MLFLOW_TRACKING_URI) say where to; a resumed run goes on in its
    own chart. A tracker that fails later is said once, and the run goes on without it.
    """
    if kind is None:
        yield lambda values, step: None
        return
    check_tracker(kind)
    send, close = {"tensorboard": _tensorboard, "wandb": _wandb, "mlflow": _mlflow}[kind](out_dir, run_id, settings)
    broken = []

    def log(values, step):
        if not broken:
            try:
                send({k: v for k, v in values.items() if v is not None}, step)
            except Exception as error:  # whatever it is, it is not the run's
                broken.append(error)
                say(f"warning: --tracker {kind} failed ({error}); the run goes on without it")

    try:
        yield log
    finally:
        try:
            close()
        except Exception as error:
            say(f"warning: --tracker {kind} could not be closed ({error})")


def check_tracker(kind: str):
    """ValueError with the command that installs a tracker that is not there."""
    if importlib.util.find_spec(kind) is None:
        raise ValueError(f"--tracker {kind} is not installed; pip install -e '.[{kind}]' adds it")


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
    there = mlflow.search_runs(filter_string=f"tags.`mlflow.runName` = '{run_id}'", output_format="list")
    known = {"run_id": there[0].info.run_id} if there else {"run_name": run_id}
    mlflow.start_run(**known)
    if not there:
        mlflow.log_params(settings)
    return lambda values, step: mlflow.log_metrics(values, step=step), mlflow.end_run


def draw_curve(folder: Path, record):
    """loss.png in a run's folder: the loss against tokens, with the validation loss at the end."""
    curve = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
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
    fig.savefig(folder / "loss.png")
    plt.close(fig)

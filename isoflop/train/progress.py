"""How far a run is: Progress, with the loss curve, and the Timer of its speed."""

import contextlib
import sys
import time
from collections import deque
from dataclasses import asdict, dataclass
from datetime import datetime, timezone

import torch
from tqdm import tqdm

UNTIMED = 4  # first steps that are left out of the speed: they fill caches, or compile


class Timer:
    """Seconds and tokens of training alone: without the first steps, which may compile, checkpoints and samples.

    Parameters
    ----------
    step : steps done before, in the run that is resumed.
    untimed : first steps to leave out.
    tokens, seconds : what the resumed run had timed.

    The caller has waited for the device whenever it calls a method: a GPU's steps are only queued when step() returns.
    """

    def __init__(self, step: int, untimed: int, tokens_per_step: int, tokens: int = 0, seconds: float = 0.0):
        self.tokens_per_step, self.tokens, self.seconds = tokens_per_step, tokens, seconds
        self.timed_from = step + untimed  # steps up to this one are left out
        self.untimed, self.untimed_s = 0, 0.0  # steps left out, and their seconds
        self.step, self.since, self.ms = step, time.perf_counter(), 0.0

    def start(self):
        """The first step begins now."""
        self.since = time.perf_counter()

    def tick(self, step: int) -> float:
        """Milliseconds per step since the last call at another step, `step` steps being done."""
        now = time.perf_counter()
        steps, seconds = step - self.step, now - self.since
        if steps:
            self.ms = 1e3 * seconds / steps
        if step <= self.timed_from:
            self.untimed, self.untimed_s = self.untimed + steps, self.untimed_s + seconds
        else:
            self.tokens, self.seconds = self.tokens + steps * self.tokens_per_step, self.seconds + seconds
        self.step, self.since = step, now
        return self.ms

    @contextlib.contextmanager
    def paused(self, step: int):
        """Leave out what happens inside."""
        self.tick(step)
        yield
        self.since = time.perf_counter()

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    @property
    def startup_excess_s(self) -> float:
        """Seconds that the untimed steps took beyond the speed of the others; 0 where no others were timed."""
        if not self.seconds:
            return 0.0
        return max(0.0, self.untimed_s - self.untimed * self.tokens_per_step / self.tokens_per_s)


@dataclass
class Progress:
    """How far a run is; with model and optimizer this is what a checkpoint holds."""

    step: int  # optimizer steps done
    losses: deque  # of the last steps, tensors on the device: reading one waits for it
    curve: list[dict]  # one row per logged step
    timer: Timer
    evals: list[dict]  # rows of evals.jsonl
    started: str  # date and time
    clock: float  # seconds of time.perf_counter() when the run began
    loop_start: float | None = None  # and when its first step did
    status: str = "ok"
    problem: str = ""  # the error behind any other status

    @classmethod
    def begin(cls, run, clock: float) -> "Progress":
        """At the start, or where the restored checkpoint was saved; clock: time.perf_counter() when train() began."""
        losses = deque(maxlen=max(run.log_every, run.tail))
        curve, evals, timed = [], [], ()
        if run.restored:
            evals = run.restored.state.get("evals", [])
            curve, timed = run.restored.state["curve"], run.restored.state["timed"]
            losses.extend(torch.tensor(run.restored.state["losses"], device=run.env.device))
        untimed = min(UNTIMED, (run.plan.steps - run.first_step) // 2)
        timer = Timer(run.first_step, untimed, run.plan.tokens_per_step, *timed)
        started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        return cls(run.first_step, losses, curve, timer, evals, started, clock)

    def log(self, run, lr: float, track):
        """The mean loss since the last logged step, over all processes: into the curve, to the tracker, and printed."""
        plan, timer, done = run.plan, self.timer, self.step
        logged = self.curve[-1]["step"] if self.curve else 0
        recent = torch.stack(list(self.losses)[logged - done :]).mean().item()  # waits for the device
        loss = run.env.sum(recent)[0] / run.env.size
        ms, tokens = timer.tick(done), done * plan.tokens_per_step
        seconds = time.perf_counter() - self.loop_start
        self.curve.append(
            {
                "run_id": run.run_id,
                "step": done,
                "tokens": tokens,
                "n_params_matmul": plan.n_params_matmul,
                "flops": tokens * plan.flops_per_token,
                "loss": loss,
                "lr": lr,
                "s": seconds,
            }
        )
        track({"loss": loss, "lr": lr, "tokens": tokens, "tokens_per_s": timer.tokens_per_s}, done)
        eta = (plan.steps - done) * seconds / (done - run.first_step)
        run.say(
            f"step {done:05d}/{plan.steps:05d} | loss {loss:.4f} | lr {lr:.2e} | {ms:.1f} ms | "
            f"{timer.tokens_per_s:,.0f} tok/s | eta {eta / 60:.1f}m"
        )

    def state(self, run) -> dict:
        """What a checkpoint holds beside model and optimizer; every rank must call it."""
        losses = torch.stack(list(self.losses)).tolist()
        return {
            "run_id": run.run_id,
            "step": self.step,
            "trajectory": run.trajectory,
            "plan": asdict(run.plan),
            "losses": [total / run.env.size for total in run.env.sum(*losses)],
            "curve": self.curve,
            "evals": self.evals,
            "timed": [self.timer.tokens, self.timer.seconds],
        }


def progress_bar(run):
    """tqdm's, on a terminal and on rank 0 alone."""
    hidden = run.env.rank != 0 or not sys.stderr.isatty()
    return tqdm(total=run.plan.steps, initial=run.first_step, unit="step", desc=run.run_id, leave=False, disable=hidden)

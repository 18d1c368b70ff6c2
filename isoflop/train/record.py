"""RunRecord, the CSV row of a run, and run_id(), the hash of everything that decides its result."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from isoflop import gpus
from isoflop.config import ModelConfig
from isoflop.train.plan import FEW_STEPS, RunPlan, TrainConfig

if TYPE_CHECKING:
    from isoflop.data.reader import TokenData

USUAL_BETA2 = 0.9  # no rule has less
TRAIN_VERSION = 2  # part of every run_id: raise it when a change of the code changes the losses


@dataclass(frozen=True)
class RunRecord:
    """The result of a run, as one CSV row. Losses are in nats per token; N is given in three conventions."""

    run_id: str
    status: str  # ok | diverged | blown_up | oom | peer_lost
    started: str
    seed: int
    commit: str
    torch_version: str
    device: str
    world_size: int
    dtype: str
    data: str  # folder name and corpus hash
    pack: str
    n_layer: int
    n_head: int
    n_embd: int
    block_size: int
    vocab_size: int
    n_params: int
    n_params_non_embedding: int
    n_params_matmul: int
    flop_budget: float
    flops: int
    flops_exact: int
    flops_exact_over_6nd: float
    tokens: int
    tokens_per_param: float
    epochs: float
    steps: int
    tokens_per_step: int
    batch_size: int
    hparams: str
    optimizer: str
    lr: float
    schedule: str
    schedule_steps: int | None  # length of the schedule where it is longer than the run
    warmup_steps: int
    cooldown_steps: int
    final_lr_frac: float
    weight_decay: float
    beta2: float
    grad_clip: float
    z_loss: float
    ema: float  # decay of the mean of the weights that was evaluated and saved; 0: the last weights were
    train_loss: float | None  # mean over the last tenth of the steps that ran
    val_loss: float | None
    val_loss_se: float | None
    bits_per_byte: float | None
    val_tokens: int
    train_s: float  # the loop alone, its first UNTIMED steps counted at the speed of the rest: they may compile
    eval_s: float
    startup_s: float
    compile_s: float  # with --compile, what the first steps took longer than later ones
    tokens_per_s: float
    mfu: float | None
    peak_mem_gb: float
    dtype_from: str = ""  # what chose dtype: flag | probe | device | folder; records of before don't say

    def summary(self) -> str:
        """The result in one line."""
        if self.status == "diverged":
            return f"{self.run_id} | diverged after {self.steps:,} steps; lower --lr ({self.lr:.3g} was used)"
        if self.status == "blown_up":
            return f"{self.run_id} | blown_up: {self._blown_up()}"
        if self.status != "ok":
            return f"{self.run_id} | {self.status} after {self.steps:,} steps"
        parts = [self.run_id, f"val loss {self.val_loss:.4f} +- {self.val_loss_se:.4f} nats/token"]
        if self.bits_per_byte:
            parts.append(f"{self.bits_per_byte:.4f} bits/byte")
        speed = f"{self.tokens_per_s:,.0f} tok/s"
        if self.mfu:
            speed += f", mfu {self.mfu:.1%}"
        parts.append(f"{self.tokens:,} tokens in {self.train_s:.1f} s ({speed})")
        return " | ".join(parts)

    def _blown_up(self) -> str:
        """What is wrong with the loss (failures.blown_up), and ways out."""
        uniform = math.log(self.vocab_size)
        if self.val_loss > uniform:
            text = f"val loss {self.val_loss:.5g} is above the {uniform:.5g} of a uniform guess"
        else:
            text = f"the train loss rose for good, to {self.train_loss:.5g}"
        if self.beta2 < USUAL_BETA2:  # a hundredth of the rate does not help there
            text += f"; raise --beta2 ({self.beta2:g} was used)"
        else:
            text += f"; lower --lr ({self.lr:.3g} was used)"
        if self.steps < FEW_STEPS:
            text += f", or train for more steps ({self.steps} were done)"
        return text


def make_record(run, progress, train_loss: float | None, val: dict, eval_s: float, peak_mem_gb: float) -> RunRecord:
    """The record of a run; one that failed is charged with the steps that it ran.

    run, progress : train.Setup and progress.Progress. val : what validation.evaluate() returned, or None for each key.
    """
    import torch

    mc, tc, plan, tokens, timer = run.mc, run.tc, run.plan, run.tokens, progress.timer
    D = progress.step * plan.tokens_per_step
    tokens_per_s = round(timer.tokens_per_s, 1)
    epoch_tokens = run.loader.n_windows * mc.block_size if tc.pack == "bos" else len(tokens.train) - 1
    loop_start = progress.loop_start or time.perf_counter()
    gpu = gpus.find(run.device_name)  # None for an unknown one: no MFU then, rather than a guess
    mfu = None
    if gpu:
        mfu = round(plan.flops_per_token_exact * tokens_per_s / run.env.size / gpu.peak, 4)
    requested = {**asdict(tc), **asdict(mc), **asdict(plan)}
    values = {f.name: requested[f.name] for f in fields(RunRecord) if f.name in requested}
    values |= val | {
        "run_id": run.run_id,
        "status": progress.status,
        "started": progress.started,
        "commit": commit(),
        "torch_version": torch.__version__,
        "device": run.device_name,
        "world_size": run.env.size,
        "dtype": run.dtype,
        "dtype_from": run.dtype_from,
        "data": f"{Path(tc.data_dir).name}@{tokens.meta['corpus_sha256'][:8]}",
        "steps": progress.step,
        "tokens": D,
        "flops": plan.flops_per_token * D,
        "flops_exact": plan.flops_per_token_exact * D,
        "flops_exact_over_6nd": round(plan.flops_per_token_exact / plan.flops_per_token, 6),
        "tokens_per_param": D / plan.n_params_matmul,
        "epochs": D / epoch_tokens,
        "train_loss": train_loss if train_loss is not None and math.isfinite(train_loss) else None,
        "val_tokens": run.val_rows * mc.block_size,
        "train_s": D / tokens_per_s if tokens_per_s else round(timer.seconds, 3),
        "eval_s": round(eval_s, 3),
        "startup_s": round(loop_start - progress.clock, 3),
        "compile_s": round(timer.startup_excess_s, 3) if run.compile else 0.0,
        "tokens_per_s": tokens_per_s,
        "peak_mem_gb": peak_mem_gb,
        "mfu": mfu,
    }
    return RunRecord(**values)


def run_id(mc: ModelConfig, tc: TrainConfig, plan: RunPlan, dtype: str, tokens: TokenData) -> str:
    """A hash, 12 hexadecimal digits, of what changes the result.

    Paths, print intervals and the number of processes that share a batch are not in it.
    """
    what = trajectory(mc, tc, plan, dtype, tokens) | plan.identity() | {"val_tokens": tc.val_tokens}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def trajectory(mc: ModelConfig, tc: TrainConfig, plan: RunPlan, dtype: str, tokens: TokenData) -> dict:
    """What decides the weights after each step, but for the learning rates.

    A run resumes from a checkpoint whose trajectory is equal. The keys are part of run_ids and checkpoints: another
    name would be another run.
    """
    rates = "steps lr schedule schedule_steps warmup_steps cooldown_steps cooldown final_lr_frac".split()
    decides = {
        "recipe": TRAIN_VERSION,
        "model": mc.identity(),
        "data": [tokens.meta["corpus_sha256"], tokens.meta["tokenizer_sha256"]],
        "dtype": dtype,
        "grad_clip": tc.grad_clip,
        "seed": tc.seed,
    }
    if tc.pack != "windows":  # it was added later, see RunPlan.identity()
        decides["pack"] = tc.pack
    return decides | {k: v for k, v in plan.identity().items() if k not in rates}


def commit() -> str:
    """The checkout's commit, with + where files differ from it; empty outside git."""
    root = Path(__file__).resolve().parents[2]  # of the checkout, above isoflop/train/
    if not (root / "train.py").exists():  # an installed package: a commit found there would be of something else
        return ""
    git = ["git", "-C", str(root)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    mark = "+" if changes.stdout.strip() else ""
    return head.stdout.strip() + mark

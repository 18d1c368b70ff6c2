"""RunRecord, the CSV row of a run, and run_id, the hash of what decides its result."""

import hashlib
import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from isoflop.config import ModelConfig
from isoflop.data import reader
from isoflop.train.plan import RunPlan, TrainConfig

RECIPE = 2  # part of every run_id: raise it when a change of the code changes the losses


@dataclass(frozen=True)
class RunRecord:
    """What happened, as one CSV row. Losses are nats per token; N conventions stand side by side."""

    run_id: str
    status: str  # ok | diverged | oom | peer_lost
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
    schedule_steps: int | None  # what the schedule was made for, where the run ended before it
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
    compile_s: float  # with --compile, what the first steps took beyond what such steps take
    tokens_per_s: float
    mfu: float | None
    peak_mem_gb: float

    def summary(self) -> str:
        if self.status != "ok":
            way_out = f"; lower --lr ({self.lr:.3g} was used)" if self.status == "diverged" else ""
            return f"{self.run_id} | {self.status} after {self.steps:,} steps{way_out}"
        return (
            f"{self.run_id} | val loss {self.val_loss:.4f} +- {self.val_loss_se:.4f} nats/token | "
            + (f"{self.bits_per_byte:.4f} bits/byte | " if self.bits_per_byte else "")
            + f"{self.tokens:,} tokens in {self.train_s:.1f} s "
            f"({self.tokens_per_s:,.0f} tok/s" + (f", mfu {self.mfu:.1%})" if self.mfu else ")")
        )


def run_id(mc: ModelConfig, tc: TrainConfig, plan: RunPlan, dtype: str, tokens: reader.TokenData) -> str:
    """A hash of what changes the result: not of paths, print intervals, or how a global batch is shared out."""
    what = trajectory(mc, tc, plan, dtype, tokens) | plan.identity() | {"val_tokens": tc.val_tokens}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:12]


def trajectory(mc: ModelConfig, tc: TrainConfig, plan: RunPlan, dtype: str, tokens: reader.TokenData) -> dict:
    """What decides the weights after each step, but for the learning rates: a checkpoint fits where this is equal."""
    rates = "steps lr schedule schedule_steps warmup_steps cooldown_steps cooldown final_lr_frac".split()
    return {
        "recipe": RECIPE,
        "model": mc.identity(),
        "data": [tokens.meta["corpus_sha256"], tokens.meta["tokenizer_sha256"]],
        "dtype": dtype,
        "grad_clip": tc.grad_clip,
        "seed": tc.seed,
        **({"pack": tc.pack} if tc.pack != "windows" else {}),
        **{k: v for k, v in plan.identity().items() if k not in rates},
    }


def commit() -> str:
    """The checkout's commit, with + where files differ from it; empty outside git."""
    root = Path(__file__).resolve().parents[2]
    try:
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True)
        return head.stdout.strip() + ("+" if dirty.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return ""

"""One training run before it is one: what was asked, what will happen, and both as flags.

resolve() is plain arithmetic on two configurations: budget -> steps, batch, learning rate, tokens. train.py runs the
very RunPlan that plan.py shows, and sweep.py --dry_run lists it for every cell: a plan and a run can't disagree.
"""

import math
from dataclasses import dataclass, fields

from isoflop.config import ModelConfig, opt
from isoflop.flops import count_params, flops_per_token, flops_per_token_exact
from isoflop.optim import hparams as rules

FEW_STEPS = 100  # a plan with fewer draws a warning: warm-up and decay then decide the loss
MANY_EPOCHS = 4  # up to here repeated text is worth about as much as new (Muennighoff et al. 2023, arXiv:2305.16264)


@dataclass(frozen=True)
class TrainConfig:
    """What was asked for. Exactly one of flop_budget, max_iters and tokens_per_param says when the run ends."""

    flop_budget: float | None = opt(None, "stop when 6 N D reaches this many FLOPs")
    max_iters: int | None = opt(None, "stop after this many optimizer steps")
    tokens_per_param: float | None = opt(None, "stop after this many tokens per matmul parameter (D/N)")
    data_dir: str = opt("data/fineweb_gpt2", "token folder made by data.py")
    pack: str = opt(
        "windows",
        "rows of a batch: windows, each once an epoch; random: windows anywhere; bos: each begins with a document",
        choices=("windows", "random", "bos"),
    )
    out_dir: str | None = opt(None, "where the record, the curve and the weights go (default: out/RUN_ID)")
    overwrite: bool = opt(False, "replace another run's record in --out_dir")
    hparams: str = opt(
        "default", "rule for rate, batch, decay, beta2 and warm-up (rules.py)", choices=tuple(rules.RULES)
    )
    batch_size: int | None = opt(None, "sequences per process and step (default: --hparams)")
    total_batch_size: int | None = opt(None, "tokens per step over all processes; 1 or 8 then train the same model")
    micro_batch_size: int | None = opt(None, "sequences per forward pass; a larger batch is accumulated")
    optimizer: str = opt("adamw", "muon: for the hidden matrices, AdamW for the rest", choices=("adamw", "muon"))
    muon_adjust: str = opt(
        "match_rms_adamw",
        "Muon's rate by shape: as large a step as AdamW's, or (original) one of unit spectral norm, for --lr like 0.02",
        choices=("match_rms_adamw", "original"),
    )
    lr: float | None = opt(None, "peak learning rate of the matrices (default: --hparams)")
    lr_scale: float = opt(1.0, "multiply the rule's rate by this: what --tune_lr found at two sizes, for all of them")
    schedule: str = opt("cosine", "learning rate after warm-up", choices=("cosine", "linear", "wsd", "constant"))
    schedule_steps: int | None = opt(None, "make the schedule for so many steps, and end before it does")
    warmup_frac: float | None = opt(None, "share of the steps spent warming up (default: --hparams)")
    warmup_steps: int | None = opt(None, "steps spent warming up, instead of --warmup_frac")
    cooldown: str = opt("linear", "shape of wsd's end", choices=("linear", "1-sqrt"))
    cooldown_frac: float = opt(0.2, "share of the steps spent cooling down (wsd)")
    final_lr_frac: float = opt(0.1, "last learning rate over the peak")
    weight_decay: float | None = opt(None, "decoupled decay of the matrices (default: --hparams)")
    beta2: float | None = opt(None, "AdamW's second-moment decay (default: --hparams)")
    grad_clip: float = opt(1.0, "largest gradient norm")
    z_loss: float = opt(0.0, "weight of the squared log of the softmax's denominator, added to the loss")
    ema: float = opt(0.0, "decay of a running mean of the weights, which is then what is evaluated and saved; 0: off")
    zero1: bool = opt(False, "share the optimizer's state out over the processes (ZeRO-1)")
    seed: int = opt(0, "seed of the initial weights and of the order of the data")
    val_tokens: int = opt(2**17, "length of the fixed validation range, in tokens")
    dtype: str = opt("auto", "compute type; weights stay float32", choices=("auto", "float32", "bfloat16"))
    device: str = opt("auto", "device to run on", choices=("auto", "cpu", "cuda", "mps"))
    compile: bool = opt(False, "torch.compile the model")
    log_every: int | None = opt(None, "steps between logged lines (default: twenty lines a run)")
    sample_every: int | None = opt(None, "steps between samples of text, printed")
    tracker: str | None = opt(None, "send the curve there too", choices=("tensorboard", "wandb", "mlflow"))
    ckpt_every: int | None = opt(None, "steps between checkpoints in OUT_DIR/checkpoints; the last two stay")
    resume: str | None = opt(
        None, "go on from this checkpoint; alone, from the newest of --out_dir, or from the start if it has none",
        const="auto",
    )  # fmt: skip

    def __post_init__(self):
        problems = []
        if sum(x is not None for x in (self.flop_budget, self.max_iters, self.tokens_per_param)) != 1:
            problems.append("give exactly one of --flop_budget, --max_iters, --tokens_per_param, as --flop_budget 1e12")
        if self.batch_size is not None and self.total_batch_size is not None:
            problems.append("--batch_size (per process) and --total_batch_size (over all) exclude each other")
        if self.warmup_steps is not None and self.warmup_frac is not None:
            problems.append("--warmup_steps and --warmup_frac exclude each other")
        if self.lr is not None and self.lr_scale != 1.0:
            problems.append("--lr and --lr_scale exclude each other: the second multiplies a rule's rate")
        for f in fields(self):
            value = getattr(self, f.name)
            if value is None or isinstance(value, bool):
                continue
            if isinstance(value, str):
                if f.metadata.get("choices") and value not in f.metadata["choices"]:
                    problems.append(f"--{f.name} {value} must be one of {', '.join(f.metadata['choices'])}")
            elif f.name in ("warmup_frac", "cooldown_frac", "final_lr_frac", "beta2", "ema"):
                if not 0 <= value < 1:
                    problems.append(f"--{f.name} {value} must be at least 0 and below 1")
            elif f.name in ("weight_decay", "seed", "warmup_steps", "z_loss"):
                if not 0 <= value < 2**63:
                    problems.append(f"--{f.name} {value} must be at least 0 and below 2^63")
            elif not 0 < value < math.inf:
                problems.append(f"--{f.name} {value} must be a positive finite number")
        if problems:
            raise ValueError("; ".join(problems))


@dataclass(frozen=True)
class RunPlan:
    """What will happen, in whole steps."""

    n_params: int
    n_params_non_embedding: int
    n_params_matmul: int  # N
    flops_per_token: int
    flops_per_token_exact: int
    flop_budget: float  # asked; where steps or tokens were asked for, what they come to
    flops: int  # 6 N D
    flops_exact: int  # with attention
    steps: int
    tokens: int  # D
    tokens_per_step: int
    batch_size: int  # sequences per process and step
    micro_batch_size: int
    tokens_per_param: float
    epochs: float | None  # None where the size of the data is not known
    hparams: str
    optimizer: str
    muon_adjust: str
    lr: float
    schedule: str
    warmup_steps: int
    cooldown_steps: int
    cooldown: str
    final_lr_frac: float
    weight_decay: float
    beta2: float
    z_loss: float
    ema: float
    schedule_steps: int | None = None  # what the schedule is made for, where that is not `steps`
    outside: tuple[str, ...] = ()  # where the run leaves the range that its rule was measured on

    def identity(self) -> dict:
        """What of the plan changes the result, for a run_id. Options that came later enter it only where they are used.

        Not the rule's name: two rules that say the same make the same run.
        """
        always = (
            "steps tokens_per_step lr schedule warmup_steps cooldown_steps final_lr_frac weight_decay beta2".split()
        )
        unused = {
            "optimizer": "adamw",
            "muon_adjust": "match_rms_adamw",
            "cooldown": "linear",
            "z_loss": 0.0,
            "ema": 0.0,
            "schedule_steps": None,
        }
        used = {k: getattr(self, k) for k, value in unused.items() if getattr(self, k) != value}
        return {k: getattr(self, k) for k in always} | used

    def warnings(self) -> list[str]:
        out = [f"--hparams {self.hparams}: {line}" for line in self.outside]
        if self.steps < FEW_STEPS:
            out.append(
                f"{self.steps} steps: under {FEW_STEPS} the warm-up and the batch decide the loss more than the model "
                "does; lower --batch_size (or --total_batch_size, or --block_size) or raise the budget"
            )
        if self.epochs is not None and self.epochs > 1:
            out.append(
                f"{self.epochs:.2f} epochs: the training text repeats from step {int(self.steps / self.epochs) + 1:,} "
                f"on, and past {MANY_EPOCHS} epochs hardly counts as data; prepare more with data.py"
            )
        return out

    def describe(self) -> str:
        epochs = "epochs unknown" if self.epochs is None else f"{self.epochs:.2f} epochs"
        lines = [
            f"parameters  {self.n_params:,} total | {self.n_params_matmul:,} matmul (N) | "
            f"{self.n_params_non_embedding:,} non-embedding",
            f"tokens      {self.tokens:,} (D) | D/N {self.tokens_per_param:.1f} | {epochs}",
            f"steps       {self.steps:,} x {self.tokens_per_step:,} tokens | peak lr {self.lr:.3g} | {self.schedule}, "
            f"warm-up {self.warmup_steps}",
            f"optimizer   {self.optimizer} | weight decay {self.weight_decay:.3g} | beta2 {self.beta2:g} | "
            f"hparams {self.hparams}",
            f"FLOPs       {self.flops:.4g} = 6ND, {self.flops / self.flop_budget - 1:+.2%} off what was asked | "
            f"with attention {self.flops_exact / self.flops:.3f} x 6ND",
        ]
        return "\n".join(lines + [f"warning: {w}" for w in self.warnings()])


def resolve(mc: ModelConfig, tc: TrainConfig, world_size: int = 1, train_tokens: int | None = None) -> RunPlan:
    """Budget -> steps, batch, learning rate, tokens. Arithmetic only.

    Parameters
    ----------
    mc, tc : the model, and what was asked of the run.
    world_size : processes that share a step. --batch_size is per process, so the batch grows with it and the learning
        rate by its square root (Malladi et al. 2022, arXiv:2205.10287); --total_batch_size takes both effects away.
    train_tokens : tokens of the training split, for the number of epochs; None leaves that open.

    Raises
    ------
    ValueError : the flag, its value and the way out.
    """
    counts, per_token, T = count_params(mc), flops_per_token(mc), mc.block_size
    target = None  # D as asked, before it is rounded to whole steps
    if tc.flop_budget is not None:
        target = tc.flop_budget / per_token
    elif tc.tokens_per_param is not None:
        target = tc.tokens_per_param * counts["matmul"]

    if tc.total_batch_size is not None:
        if tc.total_batch_size % (T * world_size):
            near = max(1, round(tc.total_batch_size / (T * world_size))) * T * world_size
            raise ValueError(
                f"--total_batch_size {tc.total_batch_size} is not a multiple of --block_size {T} x {world_size} "
                f"processes; try {near}"
            )
        batch_size = tc.total_batch_size // (T * world_size)
    elif tc.batch_size is not None:
        batch_size = tc.batch_size
    else:
        asked = target or rules.tokens_for_steps(tc.hparams, mc, tc.max_iters)
        sharers = 1 if tc.hparams == "default" else world_size  # default's batch is per process, as --batch_size is
        batch_size = max(1, round(rules.hparams(tc.hparams, mc, asked).tokens_per_step / (T * sharers)))
    tokens_per_step = batch_size * T * world_size

    if train_tokens is not None and tokens_per_step > train_tokens - 1:
        raise ValueError(
            f"--batch_size {batch_size} x --block_size {T} x {world_size} processes takes {tokens_per_step:,} tokens a "
            f"step, more than the {train_tokens:,} of the training text; lower it, or prepare more text with data.py"
        )
    steps = tc.max_iters or round(target / tokens_per_step)
    if steps < 1:
        flag = "flop_budget" if tc.flop_budget else "tokens_per_param"
        raise ValueError(
            f"--{flag} {getattr(tc, flag):g} buys {target:,.0f} tokens, less than half a step of {tokens_per_step:,}; "
            "raise it, or lower --batch_size or --block_size"
        )
    tokens = steps * tokens_per_step
    rule = rules.hparams(tc.hparams, mc, tokens, tokens_per_step)
    if tc.lr is None:
        lr = rule.lr * tc.lr_scale
    else:
        lr = tc.lr * (math.sqrt(world_size) if tc.total_batch_size is None else 1.0)
    typed_all = tc.lr is not None and (tc.batch_size or tc.total_batch_size) is not None
    warmup_frac = rule.warmup_frac if tc.warmup_frac is None else tc.warmup_frac
    if tc.warmup_steps is not None and tc.warmup_steps > steps:
        raise ValueError(f"--warmup_steps {tc.warmup_steps} are more than the run's {steps}; lower them")
    if tc.schedule_steps is not None and tc.schedule_steps < steps:
        raise ValueError(f"--schedule_steps {tc.schedule_steps} are fewer than the run's {steps}; raise them")
    return RunPlan(
        n_params=counts["total"],
        n_params_non_embedding=counts["non_embedding"],
        n_params_matmul=counts["matmul"],
        flops_per_token=per_token,
        flops_per_token_exact=flops_per_token_exact(mc),
        flop_budget=tc.flop_budget or float(per_token * (target or tokens)),
        flops=per_token * tokens,
        flops_exact=flops_per_token_exact(mc) * tokens,
        steps=steps,
        tokens=tokens,
        tokens_per_step=tokens_per_step,
        batch_size=batch_size,
        micro_batch_size=min(batch_size, tc.micro_batch_size or batch_size),
        tokens_per_param=tokens / counts["matmul"],
        epochs=None if train_tokens is None else tokens / (train_tokens - 1),
        hparams=tc.hparams,
        optimizer=tc.optimizer,
        muon_adjust=tc.muon_adjust if tc.optimizer == "muon" else "match_rms_adamw",
        lr=lr,
        schedule=tc.schedule,
        warmup_steps=round(steps * warmup_frac) if tc.warmup_steps is None else tc.warmup_steps,
        cooldown_steps=round((tc.schedule_steps or steps) * tc.cooldown_frac) if tc.schedule == "wsd" else 0,
        schedule_steps=tc.schedule_steps if tc.schedule_steps != steps else None,
        cooldown=tc.cooldown if tc.schedule == "wsd" else "linear",
        final_lr_frac=tc.final_lr_frac,
        weight_decay=rule.weight_decay if tc.weight_decay is None else tc.weight_decay,
        beta2=rule.beta2 if tc.beta2 is None else tc.beta2,
        z_loss=tc.z_loss,
        ema=tc.ema,
        outside=() if typed_all else tuple(rule.outside),
    )

"""TrainConfig (requested) and RunPlan (derived from it): plain arithmetic, no torch.

resolve() turns a budget into steps, batch, learning rate and tokens. train.py runs the very RunPlan that plan.py shows
and sweep.py --dry_run lists, so that a plan and a run can't disagree.
"""

import math
from dataclasses import dataclass

from isoflop.config import ModelConfig
from isoflop.flops import count_params, flops_per_token, flops_per_token_exact
from isoflop.optim import hparams as rules
from isoflop.options import UserError, check, option

FEW_STEPS = 100  # a plan with fewer draws a warning: warm-up and decay then decide the loss
MANY_EPOCHS = 4  # up to here repeated text is worth about as much as new (Muennighoff et al. 2023, arXiv:2305.16264)


@dataclass(frozen=True)
class TrainConfig:
    """The run that is requested. Exactly one of flop_budget, max_iters and tokens_per_param says when it ends."""

    flop_budget: float | None = option(None, "stop when 6 N D reaches this many FLOPs", group="run", above=0)
    max_iters: int | None = option(None, "stop after this many optimizer steps", above=0)
    tokens_per_param: float | None = option(None, "stop at this many tokens per matmul parameter", above=0)
    out_dir: str | None = option(None, "record, curve and weights (default: out/RUN_ID)")
    overwrite: bool = option(False, "replace another run's record in --out_dir")
    seed: int = option(0, "of the initial weights and the data order", min=0, below=2**63)
    device: str = option("auto", "device to run on", choices=("auto", "cpu", "cuda", "mps"))
    dtype: str = option("auto", "compute type; weights stay float32", choices=("auto", "float32", "bfloat16"))
    compile: bool = option(False, "torch.compile the model")

    data_dir: str = option("data/fineweb_gpt2", "token folder made by data.py", group="data")
    pack: str = option(
        "windows",
        "rows: windows, each once an epoch; random windows; bos: begin with a document",
        choices=("windows", "random", "bos"),
    )
    val_tokens: int = option(2**17, "length of the fixed validation range", above=0)

    hparams: str = option(
        "default", "rule for rate, batch, decay and warm-up", choices=tuple(rules.RULES), group="optimizer"
    )
    batch_size: int | None = option(None, "sequences per process and step", above=0)
    total_batch_size: int | None = option(None, "tokens per step over all processes", above=0)
    micro_batch_size: int | None = option(None, "sequences per forward pass; accumulates the rest", above=0)
    optimizer: str = option("adamw", "adamw, or muon for the hidden matrices", choices=("adamw", "muon"))
    muon_adjust: str = option("match_rms_adamw", "scale of Muon's steps", choices=("match_rms_adamw", "original"))
    lr: float | None = option(None, "peak rate of the matrices (default: --hparams)", above=0)
    lr_scale: float = option(1.0, "factor on the rate of --hparams", above=0)
    schedule: str = option("cosine", "rate after warm-up", choices=("cosine", "linear", "wsd", "constant"))
    schedule_steps: int | None = option(None, "length of the schedule, if longer than the run", above=0)
    warmup_frac: float | None = option(None, "share of steps of warm-up (default: --hparams)", min=0, below=1)
    warmup_steps: int | None = option(None, "steps of warm-up, instead of --warmup_frac", min=0, below=2**63)
    cooldown: str = option("linear", "shape of wsd's end", choices=("linear", "1-sqrt"))
    cooldown_frac: float = option(0.2, "share of steps of wsd's cooldown", min=0, below=1)
    final_lr_frac: float = option(0.1, "last rate over the peak", min=0, below=1)
    weight_decay: float | None = option(None, "decoupled, of matrices (default: --hparams)", min=0, below=2**63)
    beta2: float | None = option(None, "AdamW's second-moment decay (default: --hparams)", min=0, below=1)
    grad_clip: float = option(1.0, "largest gradient norm", above=0)
    z_loss: float = option(0.0, "weight of log(Z)^2 in the loss", min=0, below=2**63)
    ema: float = option(0.0, "decay of a mean of the weights to evaluate; 0: off", min=0, below=1)
    zero1: bool = option(False, "shard the optimizer's state over processes (ZeRO-1)")

    ckpt_every: int | None = option(None, "steps between checkpoints; the last two stay", group="checkpoint", above=0)
    resume: str | None = option(None, "resume from this checkpoint, or the newest of --out_dir", const="auto")

    log_every: int | None = option(None, "steps between log lines (default: 20 lines)", group="logging", above=0)
    sample_every: int | None = option(None, "steps between printed samples of text", above=0)
    tracker: str | None = option(None, "send the curve there too", choices=("tensorboard", "wandb", "mlflow"))

    @classmethod
    def from_flags(cls, args, **given):
        """The configuration of typed flags; --depth brings its own rule for the rates."""
        if getattr(args, "depth", None) is not None:
            given = {"hparams": "depth"} | given
        return cls(**given)

    def __post_init__(self):
        more = []
        if sum(x is not None for x in (self.flop_budget, self.max_iters, self.tokens_per_param)) != 1:
            more.append("give exactly one of --flop_budget, --max_iters, --tokens_per_param, as --flop_budget 1e12")
        if self.batch_size is not None and self.total_batch_size is not None:
            more.append("--batch_size (per process) and --total_batch_size (over all) exclude each other")
        if self.warmup_steps is not None and self.warmup_frac is not None:
            more.append("--warmup_steps and --warmup_frac exclude each other")
        if self.lr is not None and self.lr_scale != 1.0:
            more.append("--lr and --lr_scale exclude each other: the second multiplies a rule's rate")
        check(self, more)


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
    world_size: int = 1  # processes that share a step
    lr_one_process: float | None = None  # with --batch_size on several processes: lr before their number raised it

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
        if self.lr_one_process not in (None, self.lr):
            lines.append(
                f"note: --batch_size is per process: on {self.world_size} processes the peak lr goes from "
                f"{self.lr_one_process:.3g} to {self.lr:.3g}, by the square root; --total_batch_size keeps it"
            )
        return "\n".join(lines + [f"warning: {w}" for w in self.warnings()])


def resolve(mc: ModelConfig, tc: TrainConfig, world_size: int = 1, train_tokens: int | None = None) -> RunPlan:
    """Budget -> steps, batch, learning rate, tokens. Arithmetic only.

    Parameters
    ----------
    mc, tc : the model, and what was asked of the run.
    world_size : processes that share a step. The rule's batch and --total_batch_size are those of all processes: any
        number of them trains the same model, up to the rounding to whole sequences per process. --batch_size is per
        process: the batch grows with their number, and the learning rate by its square root, a typed --lr too
        (Malladi et al. 2022, arXiv:2205.10287).
    train_tokens : tokens of the training split, for the number of epochs; None leaves that open.

    Raises
    ------
    ValueError : the flag, its value and the way out.
    """
    counts, per_token, T = count_params(mc), flops_per_token(mc), mc.block_size
    target = None  # D as asked, before it is rounded to whole steps
    few_sequences = False  # whether the rule's batch has less than one sequence for each process
    if tc.flop_budget is not None:
        target = tc.flop_budget / per_token
    elif tc.tokens_per_param is not None:
        target = tc.tokens_per_param * counts["matmul"]

    if tc.total_batch_size is not None:
        if tc.total_batch_size % (T * world_size):
            near = max(1, round(tc.total_batch_size / (T * world_size))) * T * world_size
            raise UserError(
                f"--total_batch_size {tc.total_batch_size} is not a multiple of --block_size {T} x {world_size} "
                f"processes; try {near}"
            )
        batch_size = tc.total_batch_size // (T * world_size)
    elif tc.batch_size is not None:
        batch_size = tc.batch_size
    else:
        requested = target or rules.tokens_for_steps(tc.hparams, mc, tc.max_iters)
        rule_sequences = rules.hparams(tc.hparams, mc, requested).tokens_per_step / T  # of all processes
        batch_size = max(1, round(rule_sequences / world_size))
        few_sequences = world_size > 1 and rule_sequences < world_size / 2
    tokens_per_step = batch_size * T * world_size

    if train_tokens is not None and tokens_per_step > train_tokens - 1:
        raise UserError(
            f"--batch_size {batch_size} x --block_size {T} x {world_size} processes takes {tokens_per_step:,} tokens a "
            f"step, more than the {train_tokens:,} of the training text; lower it, or prepare more text with data.py"
        )
    steps = tc.max_iters or round(target / tokens_per_step)
    if steps < 1:
        flag = "flop_budget" if tc.flop_budget else "tokens_per_param"
        raise UserError(
            f"--{flag} {getattr(tc, flag):g} buys {target:,.0f} tokens, less than half a step of {tokens_per_step:,}; "
            "raise it, or lower --batch_size or --block_size"
        )
    tokens = steps * tokens_per_step
    rule = rules.hparams(tc.hparams, mc, tokens, tokens_per_step)
    lr = rule.lr * tc.lr_scale if tc.lr is None else tc.lr
    lr_one_process = None
    if tc.batch_size is not None and world_size > 1:  # the batch has grown with the processes
        if tc.lr is None:
            lr_one_process = rules.hparams(tc.hparams, mc, tokens, batch_size * T).lr * tc.lr_scale
        else:
            lr_one_process, lr = lr, lr * math.sqrt(world_size)
    typed_all = tc.lr is not None and (tc.batch_size or tc.total_batch_size) is not None
    outside = [] if typed_all else list(rule.outside)
    if few_sequences:
        outside.append(f"its batch has {rule_sequences:.1f} sequences, here each of {world_size} processes has one")
    warmup_frac = rule.warmup_frac if tc.warmup_frac is None else tc.warmup_frac
    if tc.warmup_steps is not None and tc.warmup_steps > steps:
        raise UserError(f"--warmup_steps {tc.warmup_steps} are more than the run's {steps}; lower them")
    if tc.schedule_steps is not None and tc.schedule_steps < steps:
        raise UserError(f"--schedule_steps {tc.schedule_steps} are fewer than the run's {steps}; raise them")
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
        world_size=world_size,
        lr_one_process=lr_one_process,
        outside=tuple(outside),
    )

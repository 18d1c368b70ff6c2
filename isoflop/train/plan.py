"""TrainConfig (requested) and RunPlan (derived from it): plain arithmetic, no torch.

resolve() turns a budget into steps, batch, learning rate and tokens. train.py runs the RunPlan that plan.py prints and
sweep.py --dry_run lists, so that a plan and a run can't disagree.
"""

import dataclasses
import math
from dataclasses import dataclass

from isoflop.config import ModelConfig
from isoflop.flops import count_params, flops_per_token, flops_per_token_exact
from isoflop.optim import hparams
from isoflop.options import UserError, check, option

MOST_STEPS = 10**9
MOST_RATE = 1e12  # of a rate, weight or norm: within a few steps every loss is nan
FEW_STEPS = 100  # a plan with fewer draws a warning: warm-up and decay then decide the loss
MANY_EPOCHS = 4  # up to here repeated text is worth about as much as new (Muennighoff et al. 2023, arXiv:2305.16264)


@dataclass(frozen=True)
class RunConfig:
    """The first group of flags: when a run ends, where it writes, what it runs on. See TrainConfig."""

    flop_budget: float | None = option(None, "stop at this many training FLOPs, 6 N D", group="run", above=0, max=1e29)
    max_iters: int | None = option(None, "stop after this many optimizer steps", min=1, max=MOST_STEPS)
    tokens_per_param: float | None = option(None, "stop at this many tokens per parameter, D / N", above=0, max=1e12)
    out_dir: str | None = option(None, "record, curve, weights (default: out/RUN_ID)", metavar="PATH")
    overwrite: bool = option(False, "run again, replace a record in --out_dir")
    seed: int = option(0, "seed of initial weights and data order", min=0, below=2**63)
    device: str = option("auto", "auto, cpu, cuda or mps", choices=("auto", "cpu", "cuda", "mps"))
    dtype: str = option("auto", "auto, float32 or bfloat16", choices=("auto", "float32", "bfloat16"))
    compile: bool | None = option(None, "torch.compile the model (default: CUDA, long runs)")
    compile_mode: str = option("default", "reduce-overhead: CUDA graphs", choices=("default", "reduce-overhead"))


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """The run that is requested: what train.py's flags say, but for the model.

    Exactly one of flop_budget, max_iters and tokens_per_param is given. UserError, naming every flag that is wrong.
    """

    data_dir: str = option("data/fineweb_gpt2", "folder that data.py made", group="data", metavar="PATH")
    pack: str = option("windows", "rows: windows, random or bos", choices=("windows", "random", "bos"))
    val_tokens: int = option(2**17, "tokens in the validation loss", min=1, max=2**40)

    hparams: str = option(
        "default", f"rule for rate and batch, {', '.join(hparams.RULES)}, or a fit.json of --law_of hparams",
        group="optimizer", metavar="RULE",
    )  # fmt: skip
    batch_size: int | None = option(None, "sequences per process and step (default: by rule)", min=1, max=2**30)
    total_batch_size: int | None = option(None, "tokens per step over all processes", min=1, max=2**40)
    micro_batch_size: int | None = option(None, "sequences per forward pass, if fewer than a step's", min=1, max=2**30)
    optimizer: str = option("adamw", "adamw or muon", choices=("adamw", "muon"))
    muon_adjust: str = option("match_rms_adamw", "scale of Muon's update", choices=("match_rms_adamw", "original"))
    lr: float | None = option(None, "peak learning rate (default: by --hparams)", above=0, max=MOST_RATE)
    lr_scale: float = option(1.0, "factor on the learning rate of --hparams", above=0, max=MOST_RATE)
    schedule: str = option("cosine", "cosine, linear, wsd or constant", choices=("cosine", "linear", "wsd", "constant"))
    schedule_steps: int | None = option(None, "length of the schedule, if the run ends in it", min=1, max=MOST_STEPS)
    warmup_frac: float | None = option(None, "warm-up, share of steps (default: by --hparams)", min=0, below=1)
    warmup_steps: int | None = option(None, "warm-up in steps", min=0, max=MOST_STEPS)
    cooldown: str = option("linear", "shape of wsd's end: linear, 1-sqrt", choices=("linear", "1-sqrt"))
    cooldown_frac: float = option(0.2, "cooldown of wsd, share of steps", min=0, below=1)
    final_lr_frac: float = option(0.1, "final learning rate over the peak", min=0, below=1)
    weight_decay: float | None = option(None, "decay of the matrices (default: by --hparams)", min=0, max=MOST_RATE)
    beta2: float | None = option(None, "AdamW's beta2 (default: by --hparams)", min=0, below=1)
    grad_clip: float = option(1.0, "clip the gradient's norm to this", above=0, max=MOST_RATE)
    z_loss: float = option(0.0, "weight of log(Z)^2 in the loss", min=0, max=MOST_RATE)
    ema: float = option(0.0, "decay of a mean of the weights; 0: off", min=0, below=1)
    shard: bool = option(False, "shard weights, gradients and moments (FSDP2)", aliases=("zero1",))

    ckpt_every: int | None = option(
        None, "steps between checkpoints; the last two are kept", group="checkpoint", min=1, max=MOST_STEPS
    )
    resume: str | None = option(None, "resume from PATH, or the newest in --out_dir", const="auto", metavar="PATH")

    log_every: int | None = option(
        None, "steps between log lines (default: 20 lines)", group="logging", min=1, max=MOST_STEPS
    )
    eval_every: int | None = option(None, "steps between validation losses", min=1, max=MOST_STEPS)
    tasks: str | None = option(None, "score benchmarks at the end, as in eval.py")
    tasks_every: int | None = option(None, "and every so many steps", min=1, max=MOST_STEPS)
    tasks_limit: float | None = option(None, "examples of each task; below 1: a share", above=0, max=1e9)
    sample_every: int | None = option(None, "steps between printed samples of text", min=1, max=MOST_STEPS)
    tracker: str | None = option(
        None, "log to tensorboard, wandb or mlflow, too", choices=("tensorboard", "wandb", "mlflow")
    )

    @classmethod
    def from_flags(cls, args, **given):
        """The configuration of typed flags; --depth has its own default of --hparams."""
        if getattr(args, "depth", None) is not None:
            given = {"hparams": "depth"} | given
        return cls(**given)

    def __post_init__(self):
        more = []
        ends = (self.flop_budget, self.max_iters, self.tokens_per_param)
        if sum(x is not None for x in ends) != 1:
            more.append("give exactly one of --flop_budget, --max_iters, --tokens_per_param, as --flop_budget 1e12")
        if self.batch_size is not None and self.total_batch_size is not None:
            more.append(
                "--batch_size (per process) and --total_batch_size (over all) exclude each other: leave one out"
            )
        if self.warmup_steps is not None and self.warmup_frac is not None:
            more.append("--warmup_steps and --warmup_frac exclude each other: leave one out")
        for name in ("tasks_every", "tasks_limit"):
            if getattr(self, name) is not None and not self.tasks:
                more.append(f"--{name} {getattr(self, name):g} needs the benchmarks: add --tasks hellaswag,piqa")
        if self.lr is not None and self.lr_scale != 1.0:
            more.append("--lr and --lr_scale exclude each other: --lr_scale multiplies the learning rate of --hparams")
        if self.hparams not in hparams.RULES:
            try:
                hparams.by_runs(str(self.hparams))
            except UserError as error:
                more.append(str(error))
        check(self, more)


@dataclass(frozen=True)
class RunPlan:
    """What a run will do, in whole steps. D: training tokens, N: matmul parameters (flops.count_params)."""

    n_params: int
    n_params_non_embedding: int
    n_params_matmul: int  # N
    flops_per_token: int
    flops_per_token_exact: int
    flop_budget: float  # requested; 6 N D where steps or tokens per parameter were
    flops: int  # 6 N D
    flops_exact: int  # with attention
    steps: int
    tokens: int  # D
    tokens_per_step: int
    batch_size: int  # sequences per process and step
    micro_batch_size: int
    tokens_per_param: float
    epochs: float | None  # None where the size of the data is unknown
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
    schedule_steps: int | None = None  # length of the schedule where it is longer than the run
    outside: tuple[str, ...] = ()  # where the run is outside the range that its rule was measured on
    world_size: int = 1  # processes that share a step
    more_steps: str = ""  # with fewer than FEW_STEPS: the flags that give as many
    lr_one_process: float | None = None  # with --batch_size on several processes: lr before their number raised it

    def identity(self) -> dict:
        """The part of a run_id that stands for the plan: what of it changes the result.

        Options that were added later are in it only where they are used, so that older run_ids stay. The rule's name is
        not in it: two rules with the same values make the same run.
        """
        always = "steps tokens_per_step lr schedule warmup_steps cooldown_steps final_lr_frac weight_decay beta2"
        unused = {
            "optimizer": "adamw",
            "muon_adjust": "match_rms_adamw",
            "cooldown": "linear",
            "z_loss": 0.0,
            "ema": 0.0,
            "schedule_steps": None,
        }
        used = {k: getattr(self, k) for k, default in unused.items() if getattr(self, k) != default}
        return {k: getattr(self, k) for k in always.split()} | used

    def smaller_batch(self) -> int:
        """Sequences per process and step with which the budget has FEW_STEPS steps; 0 where it never has."""
        tokens = self.flop_budget / self.flops_per_token
        return int(tokens // (FEW_STEPS * self.tokens_per_step // self.batch_size))

    def warnings(self) -> list[str]:
        """What will spoil the result, one line each."""
        out = [f"--hparams {self.hparams}: {line}" for line in self.outside]
        if self.steps < FEW_STEPS:
            out.append(
                f"{self.steps} steps: under {FEW_STEPS} the warm-up and the batch decide the loss more than the model "
                f"does; for {FEW_STEPS} or more: {self.more_steps}"
            )
        if self.epochs is not None and self.epochs > 1:
            out.append(
                f"{self.epochs:.2f} epochs: the training text repeats from step {int(self.steps / self.epochs) + 1:,} "
                f"on, and past {MANY_EPOCHS} epochs hardly counts as data; prepare more with data.py"
            )
        return out

    def describe(self) -> str:
        """The plan as lines of text, with its warnings."""
        epochs = "epochs unknown" if self.epochs is None else f"{self.epochs:.2f} epochs"
        lines = [
            f"parameters  {self.n_params:,} total | {self.n_params_matmul:,} matmul (N) | "
            f"{self.n_params_non_embedding:,} non-embedding",
            f"tokens      {self.tokens:,} (D) | D/N {self.tokens_per_param:.1f} | {epochs}",
            f"steps       {self.steps:,} x {self.tokens_per_step:,} tokens | peak lr {self.lr:.3g} | {self.schedule}, "
            f"warm-up {self.warmup_steps}",
            f"optimizer   {self.optimizer} | weight decay {self.weight_decay:.3g} | beta2 {self.beta2:g} | "
            f"hparams {self.hparams}",
            f"FLOPs       {self.flops:.4g} = 6ND, {self.flops / self.flop_budget - 1:+.2%} off the budget | "
            f"with attention {self.flops_exact / self.flops:.3f} x 6ND",
        ]
        if self.lr_one_process not in (None, self.lr):
            lines.append(
                f"note: --batch_size is per process: on {self.world_size} processes the peak lr goes from "
                f"{self.lr_one_process:.3g} to {self.lr:.3g}, by the square root; --total_batch_size keeps it"
            )
        return "\n".join(lines + [f"warning: {w}" for w in self.warnings()])


COPIED = ("hparams", "optimizer", "schedule", "final_lr_frac", "z_loss", "ema")  # a plan has these as requested


def resolve(mc: ModelConfig, tc: TrainConfig, world_size: int = 1, train_tokens: int | None = None) -> RunPlan:
    """Budget -> steps, batch, learning rate, tokens. Arithmetic only.

    Parameters
    ----------
    world_size : processes that share a step. The rule's batch and --total_batch_size are those of all processes: any
        number of them trains the same model, up to the rounding to whole sequences per process. --batch_size is per
        process: the batch grows with their number, and the learning rate by its square root, a typed --lr too
        (Malladi et al. 2022, arXiv:2205.10287).
    train_tokens : tokens of the training split, for the number of epochs; None: unknown.

    Raises
    ------
    UserError : the flag, its value and the way out.
    """
    counts, per_token = count_params(mc), flops_per_token(mc)
    target = _target_tokens(tc, counts["matmul"], per_token)
    batch_size, outside = _batch_size(mc, tc, world_size, target)
    tokens_per_step = batch_size * mc.block_size * world_size
    steps = _steps(mc, tc, target, batch_size, tokens_per_step, train_tokens)
    tokens = steps * tokens_per_step
    rule = hparams.hparams(tc.hparams, mc, tokens, tokens_per_step)
    if tc.lr is None or (tc.batch_size or tc.total_batch_size) is None:  # the rule decides something that counts
        outside = [*rule.outside, *outside]
    if tc.lr is None and rule.cut:
        outside.append(rule.cut)
    lr, lr_one_process = _learning_rate(mc, tc, world_size, tokens, rule.lr, batch_size)
    warmup_frac = rule.warmup_frac if tc.warmup_frac is None else tc.warmup_frac
    plan = RunPlan(
        **{name: getattr(tc, name) for name in COPIED},
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
        muon_adjust=tc.muon_adjust if tc.optimizer == "muon" else "match_rms_adamw",
        lr=lr,
        warmup_steps=round(steps * warmup_frac) if tc.warmup_steps is None else tc.warmup_steps,
        cooldown_steps=round((tc.schedule_steps or steps) * tc.cooldown_frac) if tc.schedule == "wsd" else 0,
        cooldown=tc.cooldown if tc.schedule == "wsd" else "linear",
        weight_decay=rule.weight_decay if tc.weight_decay is None else tc.weight_decay,
        beta2=rule.beta2 if tc.beta2 is None else tc.beta2,
        schedule_steps=tc.schedule_steps if tc.schedule_steps != steps else None,
        outside=tuple(outside),
        world_size=world_size,
        lr_one_process=lr_one_process,
    )
    if steps < FEW_STEPS:
        plan = dataclasses.replace(plan, more_steps=_more_steps(tc, plan))
    return plan


# ----- the parts of resolve() -----


def _target_tokens(tc: TrainConfig, n_params: int, per_token: int) -> float | None:
    """D as requested, before it is rounded to whole steps; None where the steps are requested."""
    if tc.flop_budget is not None:
        return tc.flop_budget / per_token
    if tc.tokens_per_param is not None:
        return tc.tokens_per_param * n_params
    return None


def _batch_size(mc: ModelConfig, tc: TrainConfig, world_size: int, target: float | None) -> tuple[int, list[str]]:
    """(sequences per process and step, lines for RunPlan.outside)."""
    T = mc.block_size
    if tc.batch_size is not None:
        return tc.batch_size, []
    if tc.total_batch_size is not None:
        smallest = T * world_size  # one sequence per process
        if tc.total_batch_size % smallest:
            near = max(1, round(tc.total_batch_size / smallest)) * smallest
            raise UserError(
                f"--total_batch_size {tc.total_batch_size} is not a multiple of --block_size {T} x {world_size} "
                f"processes; try {near}"
            )
        return tc.total_batch_size // smallest, []
    tokens = target or hparams.tokens_for_steps(tc.hparams, mc, tc.max_iters)
    sequences = hparams.hparams(tc.hparams, mc, tokens).tokens_per_step / T  # over all processes
    per_process = round(sequences / world_size)
    if per_process == 0 and world_size > 1:
        return 1, [f"its batch has {sequences:.1f} sequences, here each of {world_size} processes has one"]
    return max(1, per_process), []


class TooShort(UserError):
    """A run of less than half a step.

    flag, value : what asks for it; tokens : how many it buys; step : tokens of a step; smaller : flags of the step.
    """

    def __init__(self, flag: str, value: float, tokens: float, step: int, smaller: str):
        self.tokens, self.step, self.smaller = tokens, step, smaller
        super().__init__(
            f"--{flag} {value:g} buys {tokens:,.0f} tokens, less than half a step of {step:,}; raise it (one step: "
            f"{_rounded_up(value * step / tokens)}), or lower {smaller}"
        )

    def of_tokens(self) -> "TooShort":
        """The same where --tokens asks for it."""
        return TooShort("tokens", self.tokens, self.tokens, self.step, self.smaller)


def _smaller(tc: TrainConfig, batch_size: int) -> str:
    """The flags that make a step smaller."""
    if batch_size == 1:
        return "--block_size"
    return "--total_batch_size or --block_size" if tc.total_batch_size else "--batch_size or --block_size"


def _steps(
    mc: ModelConfig, tc: TrainConfig, target: float | None, batch_size: int, tokens_per_step: int, train_tokens
) -> int:
    """Whole steps of the run; UserError where there is less than half a step, or where flags in steps don't fit."""
    if train_tokens is not None and tokens_per_step > train_tokens - 1:
        processes = tokens_per_step // (batch_size * mc.block_size)
        smaller = _smaller(tc, batch_size)
        raise UserError(
            f"--batch_size {batch_size} x --block_size {mc.block_size} x {processes} processes takes "
            f"{tokens_per_step:,} tokens a step, more than the {train_tokens:,} of the training text; lower {smaller}, "
            "or prepare more text with data.py"
        )
    steps = tc.max_iters or round(target / tokens_per_step)
    if steps < 1:
        flag = "flop_budget" if tc.flop_budget else "tokens_per_param"
        raise TooShort(flag, getattr(tc, flag), target, tokens_per_step, _smaller(tc, batch_size))
    if tc.warmup_steps is not None and tc.warmup_steps > steps:
        raise UserError(f"--warmup_steps {tc.warmup_steps} are more than the run's {steps}; lower them")
    if tc.schedule_steps is not None and tc.schedule_steps < steps:
        raise UserError(f"--schedule_steps {tc.schedule_steps} are fewer than the run's {steps}; raise them")
    return steps


def _more_steps(tc: TrainConfig, plan: RunPlan) -> str:
    """Flags that give the run FEW_STEPS steps: a smaller batch where one does, else one sequence and a longer run."""
    if tc.max_iters is not None:
        return f"--max_iters {FEW_STEPS}"
    row = plan.tokens_per_step // plan.batch_size  # tokens of one sequence per process
    batch = plan.smaller_batch()
    name, unit = ("batch_size", 1) if tc.total_batch_size is None else ("total_batch_size", row)
    if batch:
        return f"--{name} {batch * unit}"
    flag = "flop_budget" if tc.flop_budget else "tokens_per_param"
    per_token = getattr(tc, flag) / (plan.flop_budget / plan.flops_per_token)
    longer = f"--{flag} {_rounded_up(FEW_STEPS * row * per_token)}"
    if getattr(tc, name) == unit:
        return longer
    return f"--{name} {unit} {longer}"


def _rounded_up(value: float) -> str:
    """A value as a flag, to three digits, and not below it."""
    digit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return f"{math.ceil(value / digit) * digit:.3g}"


def _learning_rate(mc, tc, world_size: int, tokens: int, rule_lr: float, batch_size: int) -> tuple[float, float | None]:
    """(peak rate, RunPlan.lr_one_process). With --batch_size the batch has grown with the processes."""
    grown = tc.batch_size is not None and world_size > 1
    if tc.lr is None:
        if not grown:
            return rule_lr * tc.lr_scale, None
        one_process = hparams.hparams(tc.hparams, mc, tokens, batch_size * mc.block_size)
        return rule_lr * tc.lr_scale, one_process.lr * tc.lr_scale
    if not grown:
        return tc.lr, None
    return tc.lr * math.sqrt(world_size), tc.lr

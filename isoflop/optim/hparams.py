"""Learning rates, batch sizes, schedules: pure rules by name, each with its source. Plain arithmetic, no torch.

plan.resolve() asks hparams() once the size of the run is known and writes what it said into the plan and the CSV row,
so that every number a run used can be read off its record; flags that were typed win over any rule.

One unit for all rates: the AdamW step of a hidden matrix, which moves each weight by about the rate. Published rules
have one rate for all tensors, and that is what they mean with --init normal. With --init scaled theirs is the rate of
the matrices and the head, and the embedding keeps its own, constant over widths (optim.param_groups). Muon's update is
scaled to the size of AdamW's (optim.Muon), so that the same rules serve both.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from isoflop.config import ModelConfig
from isoflop.flops import count_params, param_table
from isoflop.optim import fitted
from isoflop.options import UserError

# Peak learning rate of the hidden matrices at width LR_WIDTH and at the batch of batch_rule(). Found by a scan on the
# stdlib corpus; LOG.md has the table. Adam's step is as large as the rate whatever the gradient, so a matrix of fan-in
# n moves its outputs by rate x n: matrices and head go down with the width, the embedding's rows do not
# (Yang et al. 2022, arXiv:2203.03466, table 3).
LR = 4.5e-2
LR_WIDTH = 32
EMBEDDING_LR_MULT = 8.0

# The same for --init normal, one rate for all tensors: our scans at widths 32, 64 and 128 have their best near 5e-3,
# 2.6e-3 and 1.4e-3, with a cliff above (LOG.md); 3/4 is the power that goes on from there to GPT-3 small's 6e-4 at 768.
NORMAL_LR = 2.6e-3
NORMAL_LR_WIDTH = 64

# The largest rate that a rule may give: so many times `default`'s own at that width, before the batch's root. In our
# scan losses are a little worse at 4 times and break at 8 to 16 (LOG.md has the table). Published rules may also give
# the largest best rate of the runs behind any of them: 2^-7, of Step Law's 2.1e8 parameters at 1e11 tokens (its
# data/dense_lr_bs_loss.csv).
MOST_LR_FACTOR = 4.0
MOST_PUBLISHED_LR = 2**-7

WARMUP_FRAC = 0.05
MOST_WARMUP = 0.2  # published warm-ups count steps of long runs: no rule spends more of a short one than this


def batch_rule(tokens: float) -> float:
    """Tokens per optimizer step for a run of `tokens` tokens: 0.58 D^0.571.

    Li et al. 2025, "Predictable Scale: Part I" (Step Law), arXiv:2503.04715; D of 4e9 to 1e11 in the runs they have
    released. It is used here far below that range because it does there what a small run needs: a few hundred steps,
    neither a dozen (the batch, not the law, would decide the loss) nor thousands.
    """
    return 0.58 * tokens**0.571


def width_lr(cfg: ModelConfig) -> float:
    """Peak learning rate of the hidden matrices at the batch of batch_rule(): LR x LR_WIDTH / n_embd."""
    if cfg.init == "normal":
        return NORMAL_LR * (NORMAL_LR_WIDTH / cfg.n_embd) ** 0.75
    return LR * (LR_WIDTH / cfg.n_embd)


# ----- rules by name -----


@dataclass(frozen=True)
class HParams:
    """What a rule says for one run."""

    lr: float  # peak rate, in the unit of this file's head
    tokens_per_step: float  # before it is rounded to whole sequences
    weight_decay: float
    beta2: float
    warmup_frac: float  # share of the steps
    source: str
    measured: str  # the runs behind the rule
    outside: list[str]  # one line for each quantity that lies outside them
    cut: str = ""  # where the rate was above most_lr(): a line that says so


@dataclass(frozen=True)
class Rule:
    """A named rule: values(cfg, D, B or None) -> the first five fields of HParams, in their order."""

    values: Callable
    source: str
    measured: str
    within: dict[str, tuple[float, float]]  # the range of what was measured, by name in measures()


def measures(cfg: ModelConfig, tokens: float) -> dict[str, float]:
    """The quantities that rules are functions of, under each one's own convention."""
    counts = count_params(cfg)
    return {
        "width": cfg.n_embd,
        "layers": cfg.n_layer,
        "N": counts["matmul"],  # the head counted
        "non-embedding N": counts["non_embedding"],
        "total N": counts["total"],
        "D": tokens,
        "D/N": tokens / counts["matmul"],
        "C = M D": deepseek_flops_per_token(cfg) * tokens,
    }


def hparams(name: str, cfg: ModelConfig, tokens: float, tokens_per_step: float | None = None) -> HParams:
    """What rule `name` says for a run of `tokens` tokens.

    Parameters
    ----------
    cfg : the model. Each rule takes N in its own convention from it; `Rule.source` says which.
    name : of RULES, or the path of a fit.json with a law of one's own runs.
    tokens_per_step : the batch where it is already decided: rates that depend on the batch then follow it.

    Raises
    ------
    UserError : an unknown name, with the known ones, or a file without such a law.
    """
    outside = []
    if name in RULES:
        rule = RULES[name]
    else:
        rule, law = by_runs(name)
        outside += [law.guessed] if law.guessed else []
    if name == "mup" and cfg.init != "scaled":
        outside.append(f"--init {cfg.init}: measured with --init scaled alone")
    for what, value in measures(cfg, tokens).items():
        low, high = rule.within.get(what, (0, math.inf))
        if far := how_far(value, low, high):
            span = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
            outside.append(f"{what} {value:.3g} is {far} what it was measured on, {span}")
    lr, *others = rule.values(cfg, tokens, tokens_per_step)
    most, cut = most_lr(name, cfg), ""
    if lr > most:
        cut = f"its rate {lr:.3g} is cut to {most:.3g}, the most that a rule may give at width {cfg.n_embd}; --lr may"
        lr = most
    return HParams(lr, *others, rule.source, rule.measured, outside, cut)


def by_runs(path: str) -> tuple[Rule, fitted.FittedLaw]:
    """The rule in a fit.json of fit.py --law_of hparams, and the law that it is made of; UserError without one."""
    if not path.endswith(".json"):
        raise UserError(
            f"--hparams {path} is unknown; known: {', '.join(RULES)}, or the fit.json of fit.py --law_of hparams"
        )
    law = fitted.read(path)

    def values(cfg, tokens, batch):
        lr, batch = law.best(count_params(cfg)[law.count], tokens, batch, batch_rule(tokens))
        return lr, batch, 0.1, 0.95, WARMUP_FRAC

    return Rule(values, law.source, law.measured, {law.measure: law.sizes, "D": law.tokens}), law


def most_lr(name: str, cfg: ModelConfig) -> float:
    """The largest peak rate that rule `name` may give; see MOST_LR_FACTOR."""
    most = MOST_LR_FACTOR * width_lr(cfg)
    if name in ("default", "mup"):
        return most
    if name not in RULES:
        return max(most, fitted.read(name).most_lr)
    return max(most, MOST_PUBLISHED_LR)


def how_far(value: float, low: float, high: float) -> str:
    """How far `value` lies outside of low to high, in words: "3% above", "4.2 times below", and "" inside.

    Half a percent beyond a bound is inside: bounds are figures of two or three digits, and whole steps move D.
    """
    if 0.995 * low <= value <= 1.005 * high:
        return ""
    side, bound = ("above", high) if value > high else ("below", low)
    times = max(value / bound, bound / value)
    return f"{times:.3g} times {side}" if times >= 2 else f"{abs(value / bound - 1):.0%} {side}"


def tokens_for_steps(name: str, cfg: ModelConfig, steps: int) -> float:
    """D where the number of steps is given: solves D = steps x B(D) for the rule's batch B.

    By iteration: every batch here is a constant or a power of D below one, so each round shrinks the error.
    """
    tokens = 1e6
    for _ in range(100):
        tokens = steps * hparams(name, cfg, tokens).tokens_per_step
    return tokens


def warmup(steps: float, tokens: float, tokens_per_step: float) -> float:
    """A warm-up of so many steps as a share of the run, at most MOST_WARMUP."""
    return min(MOST_WARMUP, steps * tokens_per_step / tokens)


def default(cfg, tokens, batch):
    batch = batch or batch_rule(tokens)
    lr = width_lr(cfg) * math.sqrt(batch / batch_rule(tokens))
    return lr, batch, 0.1, 0.95, WARMUP_FRAC


def mup(cfg, tokens, batch):
    """default's rate without the batch's root, and decay x width / 256, so that rate x decay is the same at all widths.

    CompleteP at alpha = 1 asks the same of the rate at any depth, but also 1/L on each branch, which model.py has not.
    """
    return LR * LR_WIDTH / cfg.n_embd, batch or batch_rule(tokens), 0.1 * cfg.n_embd / 256, 0.95, WARMUP_FRAC


def fixed(cfg, tokens, batch):
    batch = batch or 64 * 256
    return 1e-3, batch, 0.1, 0.99, warmup(100, tokens, batch)


def sqrt_batch(cfg, tokens, batch):
    batch = batch or batch_rule(tokens)
    return 6e-4 * math.sqrt(batch / 2**19), batch, 0.1, 0.95, WARMUP_FRAC


# nanochat's reference run: depth 12, width 768, its vocabulary of 32768, 12 tokens per matmul parameter, 2^19 a step.
# Muon's rate there, .02, is that of a unit spectral norm; / (0.2 sqrt(width)) puts it into this file's unit
# (Liu et al. 2025, arXiv:2502.16982, section 2.2), where it falls by sqrt(768 / width) as its other rates do.
# They round B to a power of two. The second moment's .95 is not theirs: nanochat has .96 for the head, .995 for the
# embedding and .9 within its variant of Muon, and here one number serves all of AdamW.
NANOCHAT_BATCH = 2**19
NANOCHAT_TOKENS = 12 * (12 * 12 * 768**2 + 32768 * 768)


def nanochat(cfg, tokens, batch):
    """The decay keeps its number. nanochat's is masked where signs differ and ends at zero, and its rate is 5.5 of ours
    at the reference: what its decay takes off a weight over a run is of the size of ours."""
    batch = batch or NANOCHAT_BATCH * (tokens / NANOCHAT_TOKENS) ** 0.383
    root = math.sqrt(batch / NANOCHAT_BATCH)
    decay = 0.28 * root * NANOCHAT_TOKENS / tokens
    return 0.02 / (0.2 * math.sqrt(cfg.n_embd)) * root, batch, decay, 0.95, warmup(40, tokens, batch)


def depth(cfg, tokens, batch):
    lr, batch, _, beta2, frac = nanochat(cfg, tokens, batch)
    return lr, batch, 0.2 * (12 / cfg.n_layer) ** 2, beta2, frac


def steplaw(cfg, tokens, batch):
    batch = batch or batch_rule(tokens)
    lr = 1.79 * count_params(cfg)["non_embedding"] ** -0.713 * tokens**0.307
    return lr, batch, 0.1, 0.95, warmup(2000, tokens, batch)


def deepseek_flops_per_token(cfg: ModelConfig) -> float:
    """M: non-embedding FLOPs per token with attention and without the head; 72 L C^2 + 12 L C T for a plain block."""
    table = param_table(cfg)
    return 6 * (table["attention"] + table["mlp"]) + 12 * cfg.n_layer * cfg.n_embd * cfg.block_size


def deepseek_rates(compute: float) -> tuple[float, float]:
    """(rate, tokens per step) at C = M D FLOPs."""
    return 0.3118 * compute**-0.1250, 0.2920 * compute**0.3271


def deepseek(cfg, tokens, batch):
    lr, rule = deepseek_rates(deepseek_flops_per_token(cfg) * tokens)
    batch = batch or rule
    return lr, batch, 0.1, 0.95, warmup(2000, tokens, batch)


def porian(cfg, tokens, batch):
    N = count_params(cfg)["matmul"]
    batch = batch or 160 * 2048 * (N / 108e6) ** (2 / 3)
    beta2 = 0.95 if batch >= 2**19 else 0.99
    return 0.0047 * (N / 108e6) ** (-1 / 3), batch, 0.1, beta2, warmup(N / batch, tokens, batch)


RULES = {
    "default": Rule(
        default,
        "rate 1.44 / width (muP: Yang et al. 2022, arXiv:2203.03466, table 3; the constant is ours, LOG.md) x "
        "sqrt(B / rule), or with --init normal 2.6e-3 (64 / width)^0.75 x the root; B = 0.58 D^0.571 (Step Law)",
        "our scans, widths 16 to 256 of one to four layers, 5e10 to 4e12 FLOPs",
        {"width": (16, 256), "N": (7.8e3, 3.3e6)},
    ),
    "mup": Rule(
        mup,
        "rate 1.44 / width, decay 0.1 x width / 256 (Yang et al. 2022, arXiv:2203.03466, table 3; Dey et al. 2025, "
        "CompleteP, arXiv:2505.01618, table 1, its part on width); B = 0.58 D^0.571",
        "our scans, widths 16 to 256, for the rate; the decay was not scanned",
        {"width": (16, 256)},
    ),
    "fixed": Rule(
        fixed,
        "nanoGPT's config/train_shakespeare_char.py: 1e-3, 64 x 256 tokens, beta2 .99, 100 steps of warm-up, decay .1 "
        "by default of its train.py",
        "one model: width 384, 6 layers, 5000 steps",
        {"width": (384, 384), "layers": (6, 6)},
    ),
    "sqrt_batch": Rule(
        sqrt_batch,
        "6e-4 x sqrt(B / 2^19): GPT-3 small's rate and its batch of half a million tokens (Brown et al. 2020, arXiv:"
        "2005.14165, table 2.1), the root by Malladi et al. 2022, arXiv:2205.10287; B = 0.58 D^0.571 (Step Law)",
        "one model: GPT-3 small, 125M",
        {"width": (768, 768), "layers": (12, 12)},
    ),
    "nanochat": Rule(
        nanochat,
        "nanochat, scripts/base_train.py at 92d63d4: B = 2^19 (D / D_12)^0.383 (Bergsma et al. 2025, arXiv:"
        "2505.13738), rates by sqrt(B), decay 0.28 sqrt(B / 2^19) D_12 / D (Wang and Aitchison 2024, arXiv:"
        "2405.13698), D_12 = 1.32e9; 40 steps of warm-up; beta2 .95 is ours",
        "its models of 12 to 26 layers (runs/miniseries.sh) at 8 to 12 tokens per parameter, N with the head "
        "(dev/LEADERBOARD.md); tuned at 12 layers",
        {"layers": (12, 26), "N": (1.1e8, 9.2e8), "D/N": (8, 12)},
    ),
    "depth": Rule(
        depth,
        "decay 0.2 (12 / layers)^2 (nanochat, dev/LOG.md, 2026-01-10); rates by 1 / sqrt(width) and sqrt(B), "
        "B = 2^19 (D / D_12)^0.383 and the rest as in nanochat at 92d63d4",
        "its models of 8 to 20 layers, 64 wide for each, for the decay",
        {"layers": (8, 20), "width": (512, 1280)},
    ),
    "steplaw": Rule(
        steplaw,
        "Step Law: rate 1.79 N^-0.713 D^0.307, B = 0.58 D^0.571 (Li et al. 2025, arXiv:2503.04715), N without "
        "embedding and head; 2000 steps of warm-up",
        "its released dense runs (data/dense_lr_bs_loss.csv of step-law/steplaw): N of 2.1e8 to 1.1e9, D of 4e9 to "
        "1e11, final rate 1e-5",
        {"non-embedding N": (2.1e8, 1.1e9), "D": (4e9, 1e11)},
    ),
    "deepseek": Rule(
        deepseek,
        "rate 0.3118 C^-0.1250, B = 0.2920 C^0.3271 tokens (Bi et al. 2024, arXiv:2401.02954, equation 1), C = M D, "
        "M their non-embedding FLOPs per token with attention (equation 2); 2000 steps of warm-up",
        "C of 1e17 to 2e19, checked at 1e20; used by its 7B and 67B",
        {"C = M D": (1e17, 1e20)},
    ),
    "porian": Rule(
        porian,
        "rate 0.0047 (N / 108e6)^(-1/3), B = 160 x 2048 (N / 108e6)^(2/3) tokens (Porian et al. 2024, arXiv:"
        "2406.19146, in the figures of OLMo's scripts/ladder.py), N with the head; beta2 .95 from 2^19 tokens a step, "
        "else .99, decay .1, warm-up over N tokens (OLMo-core, wsds_chinchilla_run_configurator.py, which then halves "
        "the rate)",
        "fitted on N of 2.5e7 to 1.1e8 (their analysis.py) at 20 tokens per parameter (their data.py)",
        {"N": (2.5e7, 1.1e8), "D/N": (20, 20)},
    ),
}  # fmt: skip

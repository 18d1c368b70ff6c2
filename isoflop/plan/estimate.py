"""What a run or a question comes to: verdicts, predicted losses, closed forms of the laws. Numpy, no torch."""

import math
from dataclasses import dataclass

import numpy as np

from isoflop import laws
from isoflop.config import ModelConfig
from isoflop.display import sig
from isoflop.flops import count_params, flops_per_token, flops_per_token_exact, param_table
from isoflop.optim import hparams
from isoflop.options import UserError
from isoflop.plan.law import RangedLaw, count_of, load_law
from isoflop.plan.machine import Bill, Machine
from isoflop.plan.memory import Memory

CHINCHILLA = 20.0  # tokens per parameter: Hoffmann et al. 2022, approaches 1 and 2, with N total
DEFAULT_VOCAB = 50257  # GPT-2's, for the ln V that no predicted loss may exceed, where no vocabulary is given

SIZES = "n_layer n_embd n_head n_kv_head head_size n_ffn block_size vocab_size activation position norm tied".split()
RUN = "tokens steps tokens_per_step batch_size tokens_per_param".split()

# ----- one run -----


@dataclass(frozen=True)
class Verdict:
    """N parameters on D tokens against D = 20 N, with the steps still to go where a step's tokens are known."""

    n: float
    tokens: float
    tokens_wanted: float
    ratio: float  # D / N
    share: float  # tokens / tokens_wanted
    status: str
    shortfall: float  # tokens
    iterations_wanted: int | None = None
    iterations_needed: int | None = None


@dataclass(frozen=True)
class RunEstimate:
    """Everything that is known of a run before it starts; plan.py --json prints these fields."""

    name: str
    shape: dict  # SIZES of the model
    parameters: dict[str, int]  # by component, and N in each convention
    per_layer: dict[str, int]
    flops: dict[str, float]
    run: dict[str, float]  # RUN of the plan
    chinchilla: Verdict
    loss: dict[str, dict]  # law -> loss (None where the law does not reach), n, convention
    memory: Memory
    time: Bill
    repeated: dict | None
    warnings: list[str]


def verdict(n: float, tokens: float, tokens_per_step: float | None = None) -> Verdict:
    """Are `tokens` tokens enough for n parameters (total)?"""
    wanted = CHINCHILLA * n
    share, shortfall = tokens / wanted, max(0.0, wanted - tokens)
    if share <= 1 / 3:
        status = "heavily under-trained"
    elif share <= 0.9:
        status = "under-trained"
    elif share <= 1.1:
        status = "compute-optimal"
    else:
        status = "over-trained"
    steps = (None, None)
    if tokens_per_step:
        steps = math.ceil(wanted / tokens_per_step), math.ceil(shortfall / tokens_per_step)
    return Verdict(n, tokens, wanted, tokens / n, share, status, shortfall, *steps)


def estimate_run(
    name: str, cfg: ModelConfig, plan, micro_batch_size: int, ranged_laws: list[RangedLaw], machine: Machine,
    unique: float | None = None, data_law=None, **settings,
) -> RunEstimate:  # fmt: skip
    """All estimates of one run.

    Parameters
    ----------
    plan : the RunPlan of train.plan.resolve().
    unique : different tokens among plan.tokens; None where nothing repeats.
    data_law : (DataLaw, how its N is counted) of fit.data_report.load(); None for Muennighoff et al.'s.
    settings : dtype, path and the further arguments of estimate_memory().
    """
    counts, table = count_params(cfg), param_table(cfg)
    tokens, worth, repetition = plan.tokens, plan.tokens, None
    if unique:
        n = counts["total"] if data_law is None else counts[count_of(data_law[1])]
        repetition = repeated(tokens, unique, n, cfg.vocab_size, data_law)
        worth = repetition["effective_tokens"]
    losses, warnings = predict(ranged_laws, counts, counts["total"], worth, cfg.vocab_size)
    rate_notes = []
    if plan.lr_one_process not in (None, plan.lr):
        rate_notes.append(
            f"--batch_size is per process: on {plan.world_size} the peak lr goes from {plan.lr_one_process:.3g} to "
            f"{plan.lr:.3g}, by the square root; --total_batch_size keeps it"
        )
    return RunEstimate(
        name=name,
        shape={key: getattr(cfg, key) for key in SIZES},
        parameters=table | counts,
        per_layer={key: table[key] // cfg.n_layer for key in ("attention", "mlp")},
        flops={
            "per_token_6n": flops_per_token(cfg),
            "per_token_exact": flops_per_token_exact(cfg),
            "exact_over_6n": flops_per_token_exact(cfg) / flops_per_token(cfg),
            "run_6nd": plan.flops,
            "run_exact": plan.flops_exact,
        },
        run={key: getattr(plan, key) for key in RUN},
        chinchilla=verdict(counts["total"], tokens, plan.tokens_per_step),
        loss=losses,
        memory=machine.memory_of(cfg, micro_batch_size, **settings),
        time=machine.bill(cfg, tokens),
        repeated=repetition,
        warnings=[*plan.warnings(), *rate_notes, *warnings],
    )


def predict(ranged_laws, counts: dict, n: float, tokens: float, vocab_size: int) -> tuple[dict, list[str]]:
    """({law: {loss, n, convention}}, warnings) of a size and its tokens.

    counts : N by convention, of count_params(); n stands for those that it lacks.
    """
    losses, warnings = {}, []
    for ranged in ranged_laws:
        size = counts.get(ranged.count, n)
        loss, unreached = ranged.loss(size, tokens, vocab_size)
        losses[ranged.name] = {"loss": loss, "n": size, "convention": ranged.count}
        warnings += ranged.outside(N=size, D=tokens, C=6 * size * tokens) + unreached
    return losses, warnings


def rule_table(cfg: ModelConfig, tokens: float, tokens_per_step: float | None, used: str = "default"):
    """{name: what it says} of every rule for this run, and of the one in use; train.py --hparams has the same."""
    table = {}
    for name in dict.fromkeys((*hparams.RULES, used)):
        rule = hparams.hparams(name, cfg, tokens, tokens_per_step)
        own_batch = hparams.hparams(name, cfg, tokens).tokens_per_step
        table[name] = {"lr": rule.lr, "batch_of_the_rule": own_batch}
        for key in ("weight_decay", "beta2", "warmup_frac", "source", "measured", "outside"):
            table[name][key] = getattr(rule, key)
    return table


# ----- questions without an architecture -----


@dataclass(frozen=True)
class BestSize:
    """The best N and D for a compute, by a law."""

    flops: float
    n: float  # in the convention that the law counts
    tokens: float
    ratio: float  # tokens / n
    loss: float | None  # nats per token; None where the law does not reach
    warnings: list[str]


def best_size(flops: float, law="hoffmann", vocab_size: int = DEFAULT_VOCAB) -> BestSize:
    """The parameters and tokens of least loss that C = 6ND FLOPs buy (Hoffmann et al. 2022, eq. 4).

    Parameters
    ----------
    flops : C of the whole run.
    law : what load_law() takes: a published name, constants, the path of a fit.json, or the law of a fit.
    vocab_size : a predicted loss above its logarithm is no prediction, and comes back as None.

    Raises
    ------
    UserError : a law that can't be read, or a compute that is no positive finite number.

    Examples
    --------
    >>> best = best_size(5.76e23, "hoffmann")  # Chinchilla's budget
    >>> f"{best.n:.3g} parameters on {best.tokens:.3g} tokens"
    '3.22e+10 parameters on 2.98e+12 tokens'
    """
    if not 0 < flops < math.inf:
        raise UserError(f"--flop_budget {flops:g} must be a positive finite number")
    ranged = load_law(law)
    n, tokens = (float(x) for x in ranged.law.optimum(flops))
    loss, unreached = ranged.loss(n, tokens, vocab_size)
    return BestSize(flops, n, tokens, tokens / n, loss, ranged.outside(N=n, D=tokens, C=flops) + unreached)


def tokens_for_size(ranged_laws, n: float, machine: Machine, vocab_size: int) -> dict:
    """How many tokens for n parameters: the D at whose compute n is the best size, by each law and two rules."""
    rows = [("20 N", CHINCHILLA * n, None), ("Hoffmann table A3", float(laws.chinchilla_tokens(n)), None)]
    for ranged in ranged_laws:
        rows.append((ranged.name, float(ranged.law.tokens_for(n)), ranged))
    answers, warnings = {}, []
    for name, tokens, ranged in rows:
        if math.isnan(tokens):
            low, high = laws.CHINCHILLA_TABLE[0][0], laws.CHINCHILLA_TABLE[-1][0]
            warnings.append(f"{name} ends at {low:.3g} and {high:.3g} parameters")
            continue
        flops, loss, seconds = 6 * n * tokens, None, None
        if ranged is not None:
            loss, unreached = ranged.loss(n, tokens, vocab_size)
            warnings += ranged.outside(N=n, D=tokens, C=flops) + unreached
        if machine.speed:
            seconds = flops / machine.speed.flops_per_s
        answers[name] = {"tokens": tokens, "ratio": tokens / n, "flops": flops, "loss": loss, "seconds": seconds}
    return {"n": n, "answers": answers, "warnings": warnings}


def repeated(tokens: float, unique: float, n: float | None, vocab_size: int, data_law=None) -> dict:
    """What `tokens` tokens of which `unique` are different are worth; with n parameters also the loss.

    By Muennighoff et al. 2023, arXiv:2305.16264, or by data_law (see estimate_run), which needs n. A loss above ln V is
    None.
    """
    unique = min(unique, tokens)
    if data_law is not None:
        return repeated_by(data_law[0], tokens, unique, n, vocab_size)
    out = {
        "tokens": tokens,
        "unique_tokens": unique,
        "epochs": tokens / unique,
        "effective_tokens": float(laws.effective_tokens(tokens, unique)),
        "most": unique * (1 + laws.R_D),
    }
    if n:
        losses = laws.repeated_loss(n, tokens, unique), laws.PUBLISHED["muennighoff"].loss(n, tokens)
        for key, loss in zip(("loss", "loss_if_all_new"), losses, strict=True):
            out[key] = float(loss) if loss <= math.log(vocab_size) else None
    return out


def repeated_by(law, tokens: float, unique: float, n: float | None, vocab_size: int) -> dict:
    """repeated() by a DataLaw."""
    if n is None:
        raise UserError(
            "--data_law needs a size: by a fitted law a repeated token's worth may depend on N; add --n_params"
        )
    worth = [law.new_tokens(n, epochs * unique, unique) for epochs in np.geomspace(1.0, 1000.0, 100)]
    out = {
        "tokens": tokens,
        "unique_tokens": unique,
        "epochs": tokens / unique,
        "effective_tokens": law.new_tokens(n, tokens, unique),
        "most": max(worth),
        "law": law.form,
    }
    for key, different in (("loss", unique), ("loss_if_all_new", tokens)):
        loss = float(law.loss(n, tokens, different))
        out[key] = loss if loss <= math.log(vocab_size) else None
    return out


def compute_for_loss(ranged_laws, loss: float, machine: Machine, vocab_size: int) -> dict:
    """The least compute that reaches `loss`, with its N and D, by each law."""
    if loss > math.log(vocab_size):
        raise UserError(
            f"--target_loss {loss:g} is above ln V = {math.log(vocab_size):.2f}, the loss of a uniform guess among "
            f"{vocab_size:,} tokens; give a smaller loss, or --vocab_size"
        )
    answers, warnings = {}, []
    for ranged in ranged_laws:
        flops = float(ranged.law.compute_for(loss).reshape(-1)[0])
        reached = math.isfinite(flops) and math.isclose(float(ranged.law.frontier_loss(flops)), loss, rel_tol=1e-3)
        if not reached:
            floor = getattr(ranged.law, "E", 0.0)
            warnings.append(f"{ranged.name}: no model reaches {loss:g}; its floor is E = {sig(floor)} nats a token")
            continue
        best = best_size(flops, ranged, vocab_size)
        seconds = flops / machine.speed.flops_per_s if machine.speed else None
        answers[ranged.name] = {
            "flops": flops, "n": best.n, "tokens": best.tokens, "ratio": best.ratio, "seconds": seconds
        }  # fmt: skip
        warnings += best.warnings
    if not answers:
        raise UserError(f"--target_loss {loss:g}: {'; '.join(warnings)}; raise it")
    return {"loss": loss, "answers": answers, "warnings": warnings}


def with_inference(ranged_laws, losses: dict, inference: float) -> dict:
    """The least training plus inference compute for a loss, beside the training optimum (Sardana et al. 2023).

    losses : per law's name, the loss to reach; laws without one are left out.
    """
    answers, warnings = {}, []
    for ranged in ranged_laws:
        loss = losses.get(ranged.name)
        if loss is None:
            continue
        n_trained, tokens_trained, _ = laws.lifetime_optimum(ranged.law, loss, 0.0)
        n, tokens, flops = laws.lifetime_optimum(ranged.law, loss, inference)
        flops_trained = n_trained * (6 * tokens_trained + 2 * inference)
        answers[ranged.name] = {
            "loss": loss, "n_training_only": n_trained, "tokens_training_only": tokens_trained,
            "flops_training_only": flops_trained, "n": n, "tokens": tokens, "ratio": tokens / n, "flops": flops,
            "saved": 1 - flops / flops_trained, "training_flops": 6 * n * tokens,
        }  # fmt: skip
        warnings += ranged.outside(N=n, D=tokens)
    if not answers:
        raise UserError("--inference_tokens needs a loss to reach: --target_loss, --n_params or --flop_budget, "
                        "where a law reaches; --law names another")  # fmt: skip
    return {"inference_tokens": inference, "answers": answers, "warnings": warnings}

"""What should I train? Verdicts, predicted losses, and the search over real architectures. Numpy, no torch.

Every answer is a plain dict of numbers, which plan.py prints as text, Markdown or JSON. A law counts parameters in the
convention that it was fitted with, and is told where it leaves the range of its runs, and by how much.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path

from isoflop import laws
from isoflop.config import ModelConfig
from isoflop.flops import count_params, flops_per_token, flops_per_token_exact, param_table
from isoflop.gpus import named
from isoflop.optim import hparams
from isoflop.plan.memory import memory as memory_of

# ----- laws, and where they end -----


@dataclass(frozen=True)
class Chosen:
    """A law as it was asked for: `count` is its key in count_params(), `ranges` what its runs covered."""

    name: str
    law: object
    count: str
    ranges: dict

    def n(self, counts: dict) -> int:
        return counts[self.count]

    def outside(self, **point) -> list[str]:
        """One line for each of N, D, C that lies beyond the runs, with the factor."""
        out = []
        for what, value in point.items():
            low, high = self.ranges.get(what, (None, None))
            for bound, factor, word in ((low, low and low / value, "below"), (high, high and value / high, "above")):
                if bound and factor > 1.005:
                    edge = "smallest" if word == "below" else "largest"
                    out.append(
                        f"{self.name}: {what} = {value:.4g} is {factor:.3g}x {word} its {edge} run ({bound:.3g})"
                    )
        return out


def choose(text: str) -> Chosen:
    """The law of a published name, of 'E=..,A=..', or of a fit.json of fit.py; ValueError says what is wrong."""
    if not text.endswith(".json"):
        law = laws.parse_law(text)
        count = "non_embedding" if law.convention == "non-embedding" else "total"
        return Chosen(text, law, count, laws.RANGES.get(text, {}))
    try:
        with open(text) as f:
            fit = json.load(f)
        surface, source = fit["parametric"], fit["input"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"--law {text} is no fit.json of fit.py ({error})") from None
    if "E" not in surface:
        reason = surface.get("message") or surface.get("reason") or surface.get("status", "none")
        raise ValueError(f"--law {text} holds no surface ({reason}); fit.py says what the runs lack")
    law = laws.Law(
        *(surface[k]["point"] for k in ("E", "A", "B", "alpha", "beta")), source.get("n_convention", ""), text
    )
    convention = str(source.get("n_convention", ""))
    count = next((k for k in ("matmul", "non_embedding") if k in convention), "total")
    return Chosen("/".join(Path(text).parts[-2:]), law, count, _fitted_range(fit))


def _fitted_range(fit: dict) -> dict:
    """N, D and C that the runs of a fit covered: stated, or what its isoFLOP budgets tell."""
    stated = fit["input"].get("range")
    if stated:
        return {k.upper(): tuple(v) for k, v in stated.items()}
    budgets = [b["flops"] for b in (fit.get("isoflop") or {}).get("budgets") or []]
    return {"C": (min(budgets), max(budgets))} if budgets else {}


# ----- one configuration -----

CHINCHILLA = 20.0  # tokens per parameter: Hoffmann et al. 2022, approaches 1 and 2, with N total


def verdict(n: float, d: float, ratio: float = CHINCHILLA, tokens_per_step: float | None = None) -> dict:
    """Is n parameters on d tokens enough? Against d = ratio x n, with the steps still to go."""
    want = ratio * n
    share = d / want
    status = next(
        word
        for most, word in (
            (1 / 3, "heavily under-trained"),
            (0.9, "under-trained"),
            (1.1, "compute-optimal"),
            (math.inf, "over-trained"),
        )
        if share <= most
    )
    out = {"n": n, "tokens": d, "tokens_wanted": want, "ratio": d / n, "share": share, "status": status}
    out["shortfall"] = max(0.0, want - d)
    if tokens_per_step:
        out["iterations_wanted"] = math.ceil(want / tokens_per_step)
        out["iterations_needed"] = math.ceil(out["shortfall"] / tokens_per_step)
    return out


ASSUMED_MFU = 0.40  # of a well-tuned run on one node; said beside every time that rests on it


@dataclass(frozen=True)
class Speed:
    """FLOP/s of the whole machine that exact FLOPs are divided by, and where the figure comes from."""

    flops_per_s: float
    how: str

    def seconds(self, cfg: ModelConfig, tokens: float) -> float:
        return flops_per_token_exact(cfg) * tokens / self.flops_per_s


@dataclass(frozen=True)
class Machine:
    """What it is to be trained on; every field may be unknown."""

    gpu: str | None = None
    n_gpus: int = 1
    speed: Speed | None = None
    price_per_hour: float | None = None  # of one device
    price_source: str = ""
    memory: float | None = None  # bytes of one device

    def holds(self, cfg: ModelConfig, rows: int, **kind) -> dict:
        """costs.memory() of one device, and whether that fits it."""
        out = memory_of(cfg, rows, n_gpus=self.n_gpus, **kind)
        if self.memory is not None:
            out["fits"] = out["peak"] <= self.memory
            out["fits_zero1"] = self.n_gpus > 1 and out["peak_zero1"] <= self.memory
        return out

    def bill(self, cfg: ModelConfig, tokens: float) -> dict:
        """Seconds and dollars, None where the speed or the price is not known."""
        seconds = self.speed.seconds(cfg, tokens) if self.speed else None
        money = None
        if seconds is not None and self.price_per_hour is not None:
            money = dollars(seconds, self.n_gpus, self.price_per_hour)
        return {"seconds": seconds, "dollars": money, "gpu_hours": seconds and seconds * self.n_gpus / 3600}


def fit_on(cfg: ModelConfig, rows: int, machine: Machine, zero1=False, **kind) -> tuple[int, bool]:
    """(sequences of a forward pass, whether it takes ZeRO-1): `rows` or the largest power of two that the device holds.

    ZeRO-1 where it is asked for, or where without it not even one sequence fits; one sequence where none does.
    """
    sizes = [rows] + [2**k for k in range((rows - 1).bit_length() - 1, -1, -1)]
    if machine.memory is None:
        return rows, zero1
    for key in (["peak"] if not zero1 else []) + (["peak_zero1"] if zero1 or machine.n_gpus > 1 else []):
        for micro in sizes:
            if memory_of(cfg, micro, n_gpus=machine.n_gpus, **kind)[key] <= machine.memory:
                return micro, key == "peak_zero1"
    return 1, zero1


def describe(name, cfg: ModelConfig, plan, micro: int, chosen, machine: Machine, unique=None, **kind) -> dict:
    """Everything that can be said about one run before it is one, as plain numbers.

    Parameters
    ----------
    plan : the RunPlan of plan.resolve().
    micro : sequences per forward pass.
    chosen : laws to predict the loss by.
    unique : different tokens among plan.tokens; None where nothing repeats.
    kind : dtype, path and the rest of costs.memory()'s arguments.
    """
    counts, table = count_params(cfg), param_table(cfg)
    D = plan.tokens
    out = {
        "name": name,
        "shape": {k: getattr(cfg, k) for k in SHAPE},
        "parameters": table | counts,
        "per_layer": {k: table[k] // cfg.n_layer for k in ("attention", "mlp")},
        "flops": {
            "per_token_6n": flops_per_token(cfg),
            "per_token_exact": flops_per_token_exact(cfg),
            "exact_over_6n": flops_per_token_exact(cfg) / flops_per_token(cfg),
            "run_6nd": plan.flops,
            "run_exact": plan.flops_exact,
        },
        "run": {k: getattr(plan, k) for k in ("tokens", "steps", "tokens_per_step", "batch_size", "tokens_per_param")},
        "chinchilla": verdict(counts["total"], D, tokens_per_step=plan.tokens_per_step),
        "loss": {},
        "memory": machine.holds(cfg, micro, **kind)
        | {"micro_batch_size": micro, "dtype": kind["dtype"], "path": kind["path"]},
        "time": machine.bill(cfg, D),
        "warnings": list(plan.warnings()),
    }
    worth = float(laws.effective_tokens(D, unique)) if unique else D
    if unique:
        out["repeated"] = repeated(D, unique, counts["total"])
    for c in chosen:
        n = c.n(counts)
        out["loss"][c.name] = {"loss": float(c.law.loss(n, worth)), "n": n, "convention": c.count}
        out["warnings"] += c.outside(N=n, D=D, C=plan.flops)
    return out


SHAPE = "n_layer n_embd n_head n_kv_head head_size n_ffn block_size vocab_size activation position norm tied".split()


def rule_table(cfg: ModelConfig, tokens: float, tokens_per_step: float | None) -> dict:
    """What every named rule says for this run; train.py --hparams NAME uses the same functions."""
    out = {}
    for name in hparams.RULES:
        h = hparams.hparams(name, cfg, tokens, tokens_per_step)
        own = hparams.hparams(name, cfg, tokens)
        out[name] = {
            "lr": h.lr, "batch_of_the_rule": own.tokens_per_step, "weight_decay": h.weight_decay, "beta2": h.beta2,
            "warmup_frac": h.warmup_frac, "source": h.source, "measured": h.measured, "outside": h.outside,
        }  # fmt: skip
    return out


# ----- questions without an architecture -----


def best_size(chosen, n: float, machine: Machine) -> dict:
    """How many tokens for n parameters: the D at whose compute n is the best size."""
    rows = [("20 N", CHINCHILLA * n, [])]
    rows.append(("Hoffmann table A3", float(laws.chinchilla_tokens(n)), []))
    rows += [(c.name, float(c.law.tokens_for(n)), c) for c in chosen]
    out = {"n": n, "answers": {}, "warnings": []}
    for name, d, c in rows:
        if math.isnan(d):
            low, high = laws.CHINCHILLA_TABLE[0][0], laws.CHINCHILLA_TABLE[-1][0]
            out["warnings"].append(f"{name} ends at {low:.3g} and {high:.3g} parameters")
            continue
        row = {"tokens": d, "ratio": d / n, "flops": 6 * n * d, "loss": float(c.law.loss(n, d)) if c else None}
        row["seconds"] = 6 * n * d / machine.speed.flops_per_s if machine.speed else None
        out["answers"][name] = row
        if c:
            out["warnings"] += c.outside(N=n, D=d, C=6 * n * d)
    return out


def repeated(tokens: float, unique: float, n: float | None = None) -> dict:
    """What `tokens` tokens of which `unique` are different are worth; with n parameters also the loss."""
    unique = min(unique, tokens)
    out = {"tokens": tokens, "unique_tokens": unique, "epochs": tokens / unique}
    out |= {"effective_tokens": float(laws.effective_tokens(tokens, unique)), "most": unique * (1 + laws.R_D)}
    if n:
        out["loss"] = float(laws.repeated_loss(n, tokens, unique))
        out["loss_if_all_new"] = float(laws.PUBLISHED["muennighoff"].loss(n, tokens))
    return out


def for_loss(chosen, loss: float, machine: Machine) -> dict:
    """How much compute reaches `loss` at best: C, N and D on each law's own frontier."""
    out = {"loss": loss, "answers": {}, "warnings": []}
    for c in chosen:
        flops = float(c.law.compute_for(loss).reshape(-1)[0]) if hasattr(c.law, "compute_for") else math.inf
        if not math.isfinite(flops):
            out["warnings"].append(f"{c.name}: no model reaches {loss:g}; its floor is E = {c.law.E:.4g} nats a token")
            continue
        n, d = (float(x) for x in c.law.optimum(flops))
        seconds = flops / machine.speed.flops_per_s if machine.speed else None
        out["answers"][c.name] = {"flops": flops, "n": n, "tokens": d, "ratio": d / n, "seconds": seconds}
        out["warnings"] += c.outside(N=n, D=d, C=flops)
    if not out["answers"]:
        raise ValueError(f"--target_loss {loss:g}: " + "; ".join(out["warnings"]))
    return out


def over_lifetime(chosen, loss: dict, inference: float) -> dict:
    """Over-training on purpose: the least training plus inference compute for a loss, beside the training optimum.

    loss : per law's name, the loss to reach.
    """
    out = {"inference_tokens": inference, "answers": {}, "warnings": []}
    for c in chosen:
        target = loss[c.name]
        n0, d0, _ = laws.lifetime_optimum(c.law, target, 0.0)
        n, d, total = laws.lifetime_optimum(c.law, target, inference)
        plain = n0 * (6 * d0 + 2 * inference)
        out["answers"][c.name] = {
            "loss": target, "n_training_only": n0, "tokens_training_only": d0, "flops_training_only": plain,
            "n": n, "tokens": d, "ratio": d / n, "flops": total, "saved": 1 - total / plain,
            "training_flops": 6 * n * d,
        }  # fmt: skip
        out["warnings"] += c.outside(N=n, D=d)
    return out


# ----- time and money -----


def speed(gpu: str | None, n_gpus: int, mfu: float | None, peak_flops: float | None, measured: str | None):
    """The Speed that the flags describe, or None where none of them does.

    measured : run.json or runs.csv of finished runs, on as many devices as they ran on: exact FLOPs over seconds.
    """
    if measured:
        return read_speed(Path(measured), n_gpus)
    if gpu is None and peak_flops is None:
        return None
    peak = peak_flops or named(gpu).peak
    if mfu is not None and not 0 < mfu <= 1:
        raise ValueError(f"--mfu {mfu:g} must be above 0 and at most 1, as 0.4")
    share = mfu or ASSUMED_MFU
    how = f"{share:.1%} of {n_gpus} x {peak / 1e12:,.1f} TFLOP/s" + (
        "" if mfu else ", an assumed MFU (--mfu, --measured)"
    )
    return Speed(n_gpus * peak * share, how)


def read_speed(path: Path, n_gpus: int) -> Speed:
    """Exact FLOP/s per device of the largest finished run in run.json or runs.csv, times n_gpus."""
    try:
        text = path.read_text()
        if path.suffix == ".csv":
            import csv

            rows = list(csv.DictReader(text.splitlines()))
        else:
            rows = [json.loads(text)]
        rows = [r for r in rows if r.get("status", "ok") == "ok"]
        best = max(rows, key=lambda r: float(r["n_params_matmul"]))
        rate = float(best["flops_exact"]) / float(best["train_s"]) / int(best["world_size"])
    except (OSError, ValueError, KeyError, ZeroDivisionError) as error:
        raise ValueError(
            f"--measured {path} holds no finished run with flops_exact, train_s and world_size ({error}); "
            "give the run.json or runs.csv that train.py or sweep.py wrote"
        ) from None
    return Speed(rate * n_gpus, f"{rate:.3g} FLOP/s a device, measured on {best['device']} (run {best['run_id']})")


def dollars(seconds: float, n_gpus: int, price_per_hour: float) -> float:
    """price_per_hour is one device's."""
    return seconds / 3600 * n_gpus * price_per_hour

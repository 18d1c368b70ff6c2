"""What should I train, and what will it cost? Answered in a second, without building a tensor.

    python plan.py --preset llama3 --n_layer 18 --n_embd 2048 --tokens 13.1e9 --gpu a6000 --n_gpus 2
    python plan.py --config 'name=A preset=gpt2-xl' --config 'name=B depth=20' --tokens 13.1e9
    python plan.py --flop_budget 1.36e21 --law hoffmann --family llama3 --block_size 2048
    python plan.py --gpu a6000 --n_gpus 2 --days 7
    python plan.py --n_params 1e9 --tokens 13e9
    python plan.py --target_loss 2.5 --inference_tokens 1e12
    python plan.py --tokens 10e9 --unique_tokens 5e9

An architecture (--preset, --depth, --n_layer, --n_embd, --config) and one of --tokens, --flop_budget,
--tokens_per_param, --max_iters make the plan of that run; several --config stand side by side. --flop_budget or --days
without an architecture search for one instead, over the sizes of --family: other fields of the model then hold for all
candidates, --tokens_per_param is the ratio of the second table, and FLOPs count attention unless --no-exact is given.
--n_params asks how many tokens a size wants, --target_loss how much compute a loss takes, --tokens with
--unique_tokens what repeated text is worth; --inference_tokens can be added to any of them.
"""

import argparse
import contextlib
import json
import math
import os
import shlex
import sys
from dataclasses import asdict, dataclass, fields

from isoflop import gpus, laws
from isoflop.cli import Parser
from isoflop.config import ModelConfig
from isoflop.flops import count_params
from isoflop.optim import hparams
from isoflop.options import integer, option
from isoflop.plan import estimate, search, tables
from isoflop.train.plan import TrainConfig, resolve

# ----- what can be asked -----

LAWS = ("besiroglu", "hoffmann")


@dataclass(frozen=True)
class Ask:
    """What plan.py can be asked beyond the plan of one run."""

    tokens: float | None = option(None, "training tokens (D), another way to say when the run ends")
    config: tuple[str, ...] = option(
        (),
        "a configuration, 'name=A preset=llama3 n_layer=18 tied=true tokens=1e9', or a JSON file of them; repeatable",
    )
    n_params: float | None = option(None, "a size without an architecture: how many tokens? With --tokens: the verdict")
    target_loss: float | None = option(None, "least compute that reaches this loss, in nats a token")
    unique_tokens: float | None = option(None, "different tokens among --tokens: what repeated data is worth")
    inference_tokens: float | None = option(None, "tokens of the model's life: least training plus inference compute")
    law: tuple[str, ...] | None = option(
        None, f"fit.json, E=..,A=.., or {', '.join(laws.PUBLISHED)}; the first ranks (default: {' '.join(LAWS)})"
    )
    family: str = option("default", "preset whose sizes --flop_budget searches")
    exact: bool = option(True, "searched FLOPs count attention; --no-exact: 6ND")
    top: int = option(6, "rows of the search's leaderboards")
    gpu: str | None = option(None, f"device: {', '.join(gpus.GPUS)}")
    n_gpus: int | None = option(None, "devices, one process each (--world_size means the same)")
    mfu: float | None = option(
        None, "share of the peak that is reached, in exact FLOPs (default: 0.4, said to be assumed)"
    )
    peak_flops: float | None = option(None, "peak FLOP/s of one device that --gpu does not know")
    measured: str | None = option(None, "run.json or runs.csv whose speed is taken instead of --mfu")
    days: float | None = option(None, "time there is: the FLOPs that --gpu does in it are searched")
    price_per_hour: float | None = option(None, "dollars an hour for one device (default: costs.GPUS has one)")
    rules: bool = option(False, "print the source and the range of every rule of --hparams")

    def __post_init__(self):
        problems = []
        for f in fields(self):
            value = getattr(self, f.name)
            if isinstance(value, (int, float)) and not isinstance(value, bool) and not 0 < value < math.inf:
                problems.append(f"--{f.name} {value:g} must be a positive finite number")
        if self.days and not (self.gpu or self.peak_flops or self.measured):
            problems.append("--days needs a speed: --gpu, --peak_flops or --measured")
        if problems:
            raise ValueError("; ".join(problems))


def read_configs(entries) -> list[tuple[str, argparse.Namespace]]:
    """(name, flags) of each --config: 'key=value ...', or a JSON file with a list, or a dict by name, of such dicts.

    A configuration may have its own tokens.
    """
    parser, out = Parser("plan.py --config", "", ModelConfig), []
    parser.add_argument("--vocab_size", type=integer, default=argparse.SUPPRESS)
    parser.add_argument("--tokens", type=float, default=argparse.SUPPRESS)
    for entry in entries:
        if entry.endswith(".json"):
            try:
                with open(entry) as f:
                    found = json.load(f)
            except (OSError, ValueError) as error:
                raise ValueError(f"--config {entry} can't be read ({error})") from None
            if isinstance(found, dict) and all(isinstance(v, dict) for v in found.values()):
                found = [{"name": k, **v} for k, v in found.items()]
        else:
            pairs = [word.partition("=") for word in shlex.split(entry)]
            wrong = next((key for key, sign, _ in pairs if not sign), None)
            if wrong is not None:
                raise ValueError(f"--config: {wrong!r} is not key=value, as n_layer=18; a file's name ends in .json")
            found = [{key: value for key, _, value in pairs}]
        if not isinstance(found, list) or not all(isinstance(settings, dict) for settings in found):
            raise ValueError(f'--config {entry} must hold a list, or a dict by name, of objects like {{"n_layer": 18}}')
        for settings in found:
            name = str(settings.pop("name", None) or settings.get("preset") or f"config {len(out) + 1}")
            words = []
            for key, value in settings.items():
                truth = {"true": True, "false": False}.get(str(value).lower())
                words += [f"--{key}", str(value)] if truth is None else [f"--{key}" if truth else f"--no-{key}"]
            out.append((name, parser.parse_args(words)))
    return out


def build(parser, args, more=None) -> ModelConfig:
    """The model of the typed flags, those of one --config on top; a width that heads do not divide names near ones."""
    both = argparse.Namespace(**{**vars(args), **(vars(more) if more else {})})
    if more and more.preset is None and more.depth is None:
        both.preset, both.depth = args.preset, args.depth
    try:
        return parser.read(ModelConfig, both)
    except ValueError as error:
        width, heads = getattr(both, "n_embd", None), getattr(both, "n_head", None)
        if width and heads and width % heads:
            near = sorted((h for h in range(1, width + 1) if width % (2 * h) == 0), key=lambda h: abs(h - heads))[:2]
            raise ValueError(f"{error}; or --n_head {' or '.join(map(str, sorted(near)))}") from None
        raise


def make_parser() -> Parser:
    parser = Parser("plan.py", __doc__, ModelConfig, TrainConfig, Ask, skip=("config",))
    about = next(f.metadata["help"] for f in fields(Ask) if f.name == "config")
    parser.add_argument("--config", action="append", metavar="TEXT", default=argparse.SUPPRESS, help=about)
    parser.add_argument("--vocab_size", type=integer, metavar="N", default=argparse.SUPPRESS, help="tokens it knows")
    parser.add_argument("--world_size", dest="n_gpus", type=integer, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    parser.add_argument("--markdown", action="store_true", help="tables in Markdown")
    parser.add_argument("--json", action="store_true", help="every integer, for programs")
    return parser


def main(argv=None):
    parser = make_parser()
    args = parser.parse_args(argv)
    try:
        answer, sections = advise_on(parser, args, parser.read(Ask, args))
    except ValueError as error:
        parser.fail(error)
    show = tables.markdown if args.markdown else tables.text
    out = json.dumps(answer, indent=1, default=asdict) if args.json else show(sections)
    with contextlib.suppress(BrokenPipeError):  # the reader, head perhaps, has seen enough
        print(out, flush=True)
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


# ----- the answers -----


def advise_on(parser, args, ask: Ask) -> tuple[dict, list[dict]]:
    """The answer to what was typed, as numbers and as sections of tables."""
    chosen = [estimate.choose(text) for text in ask.law or LAWS]
    n_gpus = ask.n_gpus or 1
    gpu = gpus.named(ask.gpu) if ask.gpu else None
    machine = estimate.Machine(
        gpu=ask.gpu,
        n_gpus=n_gpus,
        speed=estimate.speed(ask.gpu, n_gpus, ask.mfu, ask.peak_flops, ask.measured),
        price_per_hour=ask.price_per_hour or (gpu and gpu.price),
        price_source="--price_per_hour" if ask.price_per_hour else gpu.price_source if gpu else "",
        memory=gpu and gpu.memory,
    )
    kind = {"dtype": "float32" if getattr(args, "dtype", "auto") == "float32" else "bfloat16"}
    kind["path"] = "cuda" if ask.gpu or ask.peak_flops or getattr(args, "device", "auto") == "cuda" else "cpu"
    typed = vars(args)
    architecture = ask.config or any(typed.get(k) for k in ("preset", "depth", "n_layer", "n_embd"))
    question = ask.n_params or ask.target_loss or (ask.unique_tokens and ask.tokens)
    if not architecture and (typed.get("flop_budget") or ask.days) and not question:
        return _search(parser, args, ask, chosen, machine, kind)
    if not architecture and question:
        return _without_architecture(ask, chosen, machine)
    return _runs(parser, args, ask, chosen, machine, kind)


def _runs(parser, args, ask, chosen, machine, kind):
    """Plans of one or several configurations; for one also the rules and the commands."""
    ends = [k for k in ("flop_budget", "max_iters", "tokens_per_param") if hasattr(args, k)]
    answers, plans = [], []
    for name, more in read_configs(ask.config) or [(None, None)]:
        tokens = getattr(more, "tokens", ask.tokens)
        if (tokens is not None) + len(ends) != 1:
            raise ValueError(
                "say when the run ends by exactly one of --tokens, --flop_budget, --tokens_per_param, --max_iters; "
                "without an architecture ask --flop_budget, --days, --n_params, --target_loss, or --tokens with "
                "--unique_tokens"
            )
        mc = build(parser, args, more)
        end = {"tokens_per_param": tokens / count_params(mc)["matmul"]} if tokens else {}
        tc = parser.read(TrainConfig, args, **end)
        plan = resolve(mc, tc, machine.n_gpus, train_tokens=ask.unique_tokens and int(ask.unique_tokens) + 1)
        held = {**kind, "optimizer": tc.optimizer, "ema": bool(tc.ema), "val_tokens": tc.val_tokens}
        micro, zero1 = estimate.fit_on(mc, plan.batch_size, machine, tc.zero1, **held)
        micro = tc.micro_batch_size or micro
        name = name or args.preset or (args.depth and f"depth {args.depth}") or "this model"
        more_flags = passed_on(args, plan) + ["--zero1"] * (zero1 and not tc.zero1)
        plans.append((mc, plan, micro, getattr(more, "preset", None) or args.preset, more_flags))
        answers.append(estimate.describe(name, mc, plan, micro, chosen, machine, unique=ask.unique_tokens, **held))
    answer, sections = {"configurations": answers}, tables.of_runs(answers, machine)
    other = list(
        dict.fromkeys(w for a in answers for w in a["warnings"] if not w.startswith(tuple(c.name for c in chosen)))
    )
    if ask.inference_tokens:
        losses = {k: row["loss"] for k, row in answers[0]["loss"].items()}
        answer["lifetime"] = estimate.over_lifetime(chosen, losses, ask.inference_tokens)
        sections.append(tables.of_lifetime(answer["lifetime"]))
    if len(plans) == 1:
        mc, plan, *_ = plans[0]
        answer["rules"] = estimate.rule_table(mc, plan.tokens, plan.tokens_per_step)
        sections.append(tables.of_rules(answer["rules"], plan.hparams, ask.rules))
    ruled = [w for w in other if w.startswith("--hparams")]  # for one configuration the rules' table has them
    other = [w for w in other if w not in ruled]
    if len(plans) > 1 and ruled:
        other.append("the rule's rate and batch are outside what it was measured on; alone, each says where")
    for a in answers:
        if a["memory"].get("fits") is False and not a["memory"]["fits_zero1"]:
            other.append(f"{a['name']}: not even one sequence at a time fits the device's {machine.memory / 1e9:g} GB")
    if other:
        sections.append({"title": "Mind", "notes": other})
    answer["commands"], folder = [], getattr(args, "data_dir", None)
    for a, (mc, plan, micro, preset, more_flags) in zip(answers, plans, strict=True):
        depth = args.depth if len(plans) == 1 else None
        command = search.commands(mc, plan, micro, machine.n_gpus, preset, depth, more_flags, folder, ask.unique_tokens)
        answer["commands"].append(command)
        sections.append(tables.of_commands(command, a["name"] if len(plans) > 1 else None))
    return answer, sections


def passed_on(args, plan) -> list[str]:
    """The typed flags of the training run that --max_iters and --total_batch_size do not replace, as words."""
    said = "flop_budget max_iters tokens_per_param data_dir batch_size total_batch_size micro_batch_size".split()
    out = []
    for f in fields(TrainConfig):
        if hasattr(args, f.name) and f.name not in said:
            value = plan.lr if f.name == "lr" else getattr(args, f.name)
            flag = f"--{f.name}" if value is not False else f"--no-{f.name}"
            out += [flag] if isinstance(value, bool) else [flag, f"{value:.12g}" if f.name == "lr" else str(value)]
    return out


def _search(parser, args, ask, chosen, machine, kind):
    """The best architectures for a budget, and the command that trains the first."""
    flops, exact = getattr(args, "flop_budget", None), ask.exact
    if ask.days:
        if flops is not None:
            raise ValueError("--days and --flop_budget both say how much compute there is; leave one out")
        flops, exact = ask.days * 86400 * machine.speed.flops_per_s, True
    names = {f.name for f in fields(ModelConfig)}
    given = {k: v for k, v in vars(args).items() if k in names}
    ratio = getattr(args, "tokens_per_param", estimate.CHINCHILLA)
    a = search.search(flops, chosen[0], ask.family, given, ratio, exact, ask.top)
    a["memory_of"] = f"one sequence per forward pass, {kind['path']}, {kind['dtype']}, without ZeRO-1"
    for r in a["best"] + a["constrained"]:
        r["memory"] = machine.holds(r["cfg"], 1, **kind)
        r["time"] = machine.bill(r["cfg"], r["tokens"])
    sections = tables.of_search(a, machine)
    if ask.inference_tokens:
        best = {c.name: float(c.law.frontier_loss(flops)) for c in chosen}
        a["lifetime"] = estimate.over_lifetime(chosen, best, ask.inference_tokens)
        sections.append(tables.of_lifetime(a["lifetime"]))
    mc = a["best"][0]["cfg"]
    tokens, step = a["best"][0]["tokens"], mc.block_size * machine.n_gpus
    rule = hparams.hparams(getattr(args, "hparams", "default"), mc, tokens).tokens_per_step
    batch = getattr(args, "total_batch_size", None) or max(1, round(rule / step)) * step
    tc = TrainConfig(
        max_iters=max(1, round(tokens / batch)), total_batch_size=batch, hparams=getattr(args, "hparams", "default")
    )
    plan = resolve(mc, tc, machine.n_gpus)
    micro, zero1 = estimate.fit_on(mc, plan.batch_size, machine, getattr(args, "zero1", False), **kind)
    preset, folder = None if ask.family == "default" else ask.family, getattr(args, "data_dir", None)
    more = passed_on(args, plan) + ["--zero1"] * (zero1 and not hasattr(args, "zero1"))
    a["commands"] = [search.commands(mc, plan, micro, machine.n_gpus, preset, None, more, folder)]
    return a, [*sections, tables.of_commands(a["commands"][0], "the first row")]


def _without_architecture(ask, chosen, machine):
    """--n_params, --target_loss, --tokens with --unique_tokens: closed forms of the laws."""
    answer, sections, losses = {}, [], {}
    if ask.n_params:
        answer["tokens_for"] = estimate.best_size(chosen, ask.n_params, machine)
        sections.append(tables.of_best_size(answer["tokens_for"]))
        losses = {c.name: float(c.law.loss(ask.n_params, c.law.tokens_for(ask.n_params))) for c in chosen}
        if ask.tokens:
            losses = {c.name: float(c.law.loss(ask.n_params, ask.tokens)) for c in chosen}
            answer["chinchilla"] = estimate.verdict(ask.n_params, ask.tokens)
            sections.insert(0, tables.of_verdict(answer["chinchilla"], losses))
    if ask.unique_tokens and ask.tokens:
        answer["repeated"] = estimate.repeated(ask.tokens, ask.unique_tokens, ask.n_params)
        sections.append(tables.of_repeated(answer["repeated"]))
    if ask.target_loss:
        answer["for_loss"] = estimate.for_loss(chosen, ask.target_loss, machine)
        sections.append(tables.of_loss(answer["for_loss"]))
        reached = answer["for_loss"]["answers"]
        chosen = [c for c in chosen if c.name in reached]
        losses = dict.fromkeys(reached, ask.target_loss)
    if ask.inference_tokens:
        if not losses:
            raise ValueError("--inference_tokens needs a loss to reach: --target_loss, --n_params or --flop_budget")
        answer["lifetime"] = estimate.over_lifetime(chosen, losses, ask.inference_tokens)
        sections.append(tables.of_lifetime(answer["lifetime"]))
    return answer, sections


if __name__ == "__main__":
    sys.exit(main())

"""What should I train, and what will it cost? Answered in a second, without torch.

    python plan.py --preset gpt2 --tokens 13.1e9 --gpu a6000 --n_gpus 2
    python plan.py --config 'preset=gpt2-xl' --config 'depth=20' --tokens 13.1e9
    python plan.py --flop_budget 1.36e21 --law hoffmann --family llama3
    python plan.py --gpu a6000 --n_gpus 2 --days 7
    python plan.py --n_params 1e9 --tokens 13e9
    python plan.py --target_loss 2.5 --inference_tokens 1e12
    python plan.py --tokens 10e9 --unique_tokens 5e9

An architecture (--preset, --depth, --n_layer, --n_embd, --config) and one of
--tokens, --flop_budget, --tokens_per_param, --max_iters: the plan of that run;
several --config stand side by side. --flop_budget or --days alone: a search for
an architecture over the sizes of --family; flags of the model then hold for all
candidates, --tokens_per_param is the ratio of the second table. --n_params: how
many tokens a size wants. --target_loss: how much compute a loss takes. --tokens
with --unique_tokens: what repeated text is worth. --inference_tokens can be
added to any of them. Flags of train.py go into the command that is printed
last.
"""

import isoflop.installed  # noqa: F401 isort: skip
import argparse
import json
import sys
from dataclasses import asdict, dataclass, fields

from isoflop.cli import Parser, UserError, run_main
from isoflop.config import ModelConfig
from isoflop.constraints import read_constraints
from isoflop.fit import data_report
from isoflop.flops import count_params
from isoflop.plan import commands, estimate, search, tables
from isoflop.plan.config import ConfigEntry, PlanConfig, read_configs, read_model, with_entry
from isoflop.plan.law import RangedLaw, load_law
from isoflop.plan.machine import Machine, make_machine
from isoflop.train.plan import RunPlan, TooShort, TrainConfig, resolve

ENDS = ("flop_budget", "max_iters", "tokens_per_param")  # with --tokens, what says when a run ends
NOT_PLANNED = (  # of TrainConfig
    "overwrite", "resume", "ckpt_every", "log_every", "sample_every", "tracker", "eval_every", "tasks", "tasks_every",
    "tasks_limit",
)  # fmt: skip


@dataclass(frozen=True)
class Basis:
    """What every answer rests on."""

    laws: list[RangedLaw]
    machine: Machine
    memory: dict  # dtype and path of estimate_memory()
    data_law: tuple | None = None  # of --data_law


def make_parser() -> Parser:
    return Parser("plan.py", __doc__, PlanConfig, ModelConfig, TrainConfig, skip=NOT_PLANNED)


def run(parser, args) -> int:
    config = parser.read(PlanConfig, args)
    numbers, sections = answer(parser, args, config)
    if config.json:
        print(json.dumps(numbers, indent=1, default=asdict, allow_nan=False))
    elif config.markdown:
        print(tables.markdown(sections))
    else:
        print(tables.text(sections))
    return 0


def answer(parser, args, config: PlanConfig) -> tuple[dict, list[tables.Section]]:
    """The answer to the typed flags, as numbers and as tables."""
    machine = make_machine(
        config.gpu, config.n_gpus, config.mfu, config.peak_flops, config.measured, config.price_per_hour
    )
    on_gpu = config.gpu or config.peak_flops or getattr(args, "device", "auto") == "cuda"
    memory = {"dtype": "bfloat16", "path": "cuda" if on_gpu else "cpu"}
    if getattr(args, "dtype", "auto") == "float32":
        memory["dtype"] = "float32"
    data_law = data_report.load(config.data_law) if config.data_law else None
    basis = Basis([load_law(text) for text in config.law], machine, memory, data_law)
    architecture = config.config or any(getattr(args, name, None) for name in ("preset", "depth", "n_layer", "n_embd"))
    closed_form = config.n_params or config.target_loss or (config.unique_tokens and config.tokens)
    if architecture or not (closed_form or config.flop_budget or config.days):
        return plan_runs(parser, args, config, basis)
    if closed_form:
        return closed_forms(config, basis)
    return search_budget(parser, args, config, basis)


# ----- runs of given architectures -----


@dataclass(frozen=True)
class Planned:
    """A run, how much of it one forward pass takes, and the commands that make its data and train it."""

    plan: RunPlan
    micro_batch_size: int
    memory: dict  # arguments of estimate_memory()
    commands: commands.Commands


def plan_run(parser, args, cfg: ModelConfig, end: dict, basis: Basis, unique=None) -> Planned:
    """The run of a model under the typed flags; `end` is the field of TrainConfig that no flag was typed for."""
    tc, machine = parser.read(TrainConfig, args, **end), basis.machine
    train_tokens = int(unique) + 1 if unique else None
    plan = resolve(cfg, tc, machine.n_gpus, train_tokens=train_tokens)
    memory = {**basis.memory, "optimizer": tc.optimizer, "ema": bool(tc.ema), "val_tokens": tc.val_tokens}
    micro_batch_size, shard = machine.find_micro_batch(cfg, plan.batch_size, tc.shard, **memory)
    micro_batch_size = tc.micro_batch_size or micro_batch_size
    more, data_dir = commands.train_flags(args, shard), getattr(args, "data_dir", None)
    lines = commands.make_commands(
        cfg, plan, micro_batch_size, machine.n_gpus, args.preset, args.depth, more, data_dir, unique
    )
    return Planned(plan, micro_batch_size, memory, lines)


def plan_runs(parser, args, config: PlanConfig, basis: Basis):
    """Plans of one or several configurations; for one also the rules of the optimizer."""
    estimates, command_lines, heads = [], [], []
    for entry in read_configs(config.config):
        typed = with_entry(args, entry)
        cfg, tokens, unique = read_model(parser, typed, heads), getattr(typed, "tokens", None), config.unique_tokens
        ends = [name for name in ENDS if hasattr(args, name)]
        if (tokens is not None) + len(ends) != 1:
            raise UserError(
                "say when the run ends by exactly one of --tokens, --flop_budget, --tokens_per_param, --max_iters; "
                "without an architecture ask --flop_budget, --days, --n_params, --target_loss, or --tokens with "
                "--unique_tokens"
            )
        end = {"tokens_per_param": tokens / count_params(cfg)["matmul"]} if tokens else {}
        try:
            planned = plan_run(parser, typed, cfg, end, basis, unique)
        except TooShort as error:
            raise (error.of_tokens() if tokens else error) from None
        name = getattr(typed, "name", None) or typed.preset
        name = name or (f"depth {typed.depth}" if typed.depth else "this model")
        run = estimate.estimate_run(
            name,
            cfg,
            planned.plan,
            planned.micro_batch_size,
            basis.laws,
            basis.machine.stated(cfg, **parser.read(ConfigEntry, entry).speed()),
            unique,
            basis.data_law,
            **planned.memory,
        )
        estimates.append(run)
        command_lines.append(planned.commands)

    numbers = {"configurations": estimates, "commands": command_lines}
    sections = tables.of_runs(estimates, basis.machine)
    if config.inference_tokens:
        losses = {law: row["loss"] for law, row in estimates[0].loss.items()}
        numbers["lifetime"] = estimate.with_inference(basis.laws, losses, config.inference_tokens)
        sections.append(tables.of_inference(numbers["lifetime"]))
    if len(estimates) == 1:
        numbers["rules"] = estimate.rule_table(
            cfg, planned.plan.tokens, planned.plan.tokens_per_step, planned.plan.hparams
        )
        sections.append(tables.of_rules(numbers["rules"], planned.plan.hparams, config.rules))
    notes = [*heads, *notes_of(estimates, basis)]
    if notes:
        sections.append(tables.Section("Mind", notes=notes))
    for run, lines in zip(estimates, command_lines, strict=True):
        sections.append(tables.of_commands(lines, run.name if len(estimates) > 1 else "it"))
    return numbers, sections


def notes_of(estimates, basis: Basis) -> list[str]:
    """Warnings of runs that no table shows."""
    warnings = []
    for run in estimates:
        warnings += run.warnings
    shown = ("--hparams", *(ranged.name for ranged in basis.laws))
    notes = [warning for warning in dict.fromkeys(warnings) if not warning.startswith(shown)]
    outside_rule = any(warning.startswith("--hparams") for warning in warnings)
    if outside_rule and len(estimates) > 1:  # for one configuration the rules' table has them
        notes.append("the rule's rate and batch are outside what it was measured on; alone, each says where")
    for run in estimates:
        if run.memory.fits is False and not run.memory.fits_shard:
            memory = basis.machine.memory / 1e9
            notes.append(f"{run.name}: not even one sequence at a time fits the device's {memory:g} GB")
    return notes


# ----- a budget without an architecture -----


def search_budget(parser, args, config: PlanConfig, basis: Basis):
    """The best architectures for a budget, and the command that trains the first."""
    flops, exact, machine = config.flop_budget, config.exact, basis.machine
    if config.days:
        flops, exact = config.days * 86400 * machine.speed.flops_per_s, True
    names = {f.name for f in fields(ModelConfig)}
    given = {name: value for name, value in vars(args).items() if name in names}
    ratio = config.tokens_per_param or estimate.CHINCHILLA
    limits = read_constraints(config.constraints) if config.constraints else None
    found = search.search_architectures(
        flops, basis.laws[0], config.family, given, ratio, exact, config.top, machine, limits, **basis.memory
    )
    numbers, sections = asdict(found), tables.of_search(found, machine)
    first = found.best[0]
    if config.inference_tokens:
        losses = {}
        for ranged in basis.laws:
            losses[ranged.name] = estimate.best_size(flops, ranged, first.cfg.vocab_size).loss
        numbers["lifetime"] = estimate.with_inference(basis.laws, losses, config.inference_tokens)
        sections.append(tables.of_inference(numbers["lifetime"]))
    typed = {name: value for name, value in vars(args).items() if name not in ENDS}
    typed["preset"] = None if config.family == "default" else config.family
    end = {"tokens_per_param": first.tokens / count_params(first.cfg)["matmul"]}
    if limits:
        tc = parser.read(TrainConfig, argparse.Namespace(**typed), **end)
        _, plan = limits.hold(tc, lambda changed: resolve(first.cfg, changed))
        numbers["query"] = limits.query(first.cfg, plan.batch_size, plan.lr, flops)
        return numbers, [*sections, tables.of_query(numbers["query"])]
    lines = plan_run(parser, argparse.Namespace(**typed), first.cfg, end, basis).commands
    numbers["commands"] = [lines]
    return numbers, [*sections, tables.of_commands(lines, "the first row")]


# ----- questions without an architecture -----


def closed_forms(config: PlanConfig, basis: Basis):
    """--n_params, --target_loss, --tokens with --unique_tokens: closed forms of the laws."""
    numbers, sections, losses = {}, [], {}
    vocab_size, tokens = config.vocab_size or estimate.DEFAULT_VOCAB, config.tokens
    if config.n_params and config.flop_budget:
        tokens = config.flop_budget / (6 * config.n_params)
    if config.n_params:
        numbers["tokens_for"] = estimate.tokens_for_size(basis.laws, config.n_params, basis.machine, vocab_size)
        sections.append(tables.of_tokens_for_size(numbers["tokens_for"]))
        losses = {ranged.name: numbers["tokens_for"]["answers"][ranged.name]["loss"] for ranged in basis.laws}
    if config.n_params and tokens:
        numbers["chinchilla"] = estimate.verdict(config.n_params, tokens)
        predictions, warnings = estimate.predict(basis.laws, {}, config.n_params, tokens, vocab_size)
        losses = {law: row["loss"] for law, row in predictions.items()}
        sections.insert(0, tables.of_verdicts([""], [numbers["chinchilla"]]))
        sections.insert(1, tables.of_losses([""], [predictions], warnings))
    if config.unique_tokens and tokens:
        numbers["repeated"] = estimate.repeated(
            tokens, config.unique_tokens, config.n_params, vocab_size, basis.data_law
        )
        sections.append(tables.of_repeated([""], [numbers["repeated"]]))
    if config.target_loss:
        numbers["for_loss"] = estimate.compute_for_loss(basis.laws, config.target_loss, basis.machine, vocab_size)
        sections.append(tables.of_compute_for_loss(numbers["for_loss"]))
        losses = dict.fromkeys(numbers["for_loss"]["answers"], config.target_loss)
    if config.inference_tokens:
        numbers["lifetime"] = estimate.with_inference(basis.laws, losses, config.inference_tokens)
        sections.append(tables.of_inference(numbers["lifetime"]))
    return numbers, sections


def main(argv=None) -> int:
    return run_main(make_parser(), run, argv)


if __name__ == "__main__":
    sys.exit(main())

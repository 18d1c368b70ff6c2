"""Train an isoFLOP grid into one CSV, fit it, draw it.

    python sweep.py     # data/fineweb_gpt2 if it is there, else embedded text
    python sweep.py --data_dir data/mine --flop_budgets 1e13 3e13 1e14 --dry_run
    python sweep.py --flop_budgets 1e13 3e13 --n_embds 48 64 96 --n_layers 1 2 2
    python sweep.py --simulate hoffmann --flop_budgets 1e18 3e18   # no training
    python sweep.py --design adaptive --target_flops 1.5e14 --total_flops 3e13
    torchrun --nproc_per_node=4 sweep.py --parallel cells   # four cells at once
    torchrun --nproc_per_node=4 sweep.py     # each cell on all four, in turn

A cell is one run of the grid: a model size at a budget. Each finished run is a
row of OUT_DIR/runs.csv. To resume a killed sweep, give the same command again:
no run is done twice. Flags of train.py (model, run, data, optimizer, ...) are
passed on to every cell. isoflop/sweep/grid.py says which cells there are.
"""

import isoflop.installed  # noqa: F401 isort: skip
import contextlib
import csv
import dataclasses
import gc
import os
import shutil
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

import torch
from tqdm import tqdm

import data
import fit
from isoflop.cli import Parser, run_main
from isoflop.config import ModelConfig
from isoflop.data import config, reader
from isoflop.device import pick_device
from isoflop.distributed import DistributedEnv, launch, stop_signals
from isoflop.files import folder_lock
from isoflop.fit import report
from isoflop.options import UserError, check, option
from isoflop.sweep import (
    ablation,
    adaptive,
    api,
    collect,
    dry_run,
    executors,
    folder,
    grid,
    jobs,
    money,
    power,
    slurm,
    summary,
    workers,
)
from isoflop.sweep.cells import SIZE_LADDER, Cell, ModelSize, Planner, stand_in
from isoflop.sweep.results import ResultsFile, resume_command, seed_noise, write_with_noise
from isoflop.sweep.simulate import Simulation
from isoflop.train.failures import status_of
from isoflop.train.plan import TrainConfig
from isoflop.train.record import RunRecord
from isoflop.train.tracking import check_tracker
from train import Interrupted, train

DEFAULT_BUDGETS = (5e10, 1.5e11, 4.5e11)
# flags of train.py that are not flags here: the grid sets them
SWEPT = {"n_embd", "n_layer", "n_head", "flop_budget", "max_iters", "tokens_per_param", "overwrite"}
PARALLEL = {"cells": "cells", "ddp": "ddp", "runs": "cells", "data": "ddp"}  # the last two: names in an older version
EXCLUSIVE = (  # pairs of flags that can't be given together
    ("depths", "n_embds"), ("lrs", "tune_lr"), ("simulate", "api"), ("reuse_trunk", "recentre"),
    ("reuse_trunk", "lrs"), ("reuse_trunk", "tune_lr"), ("api", "seeds"), ("api", "reuse_trunk"),
    ("ablation", "recentre"), ("ablation", "lrs"), ("ablation", "tune_lr"), ("ablation", "reuse_trunk"),
    ("print_commands", "reuse_trunk"), ("slurm", "reuse_trunk"), ("slurm", "parallel"),
    ("print_commands", "collect"), ("print_commands", "slurm"), ("collect", "slurm"),
    *((way, asked) for way in ("print_commands", "collect", "slurm") for asked in ("simulate", "api")),
    ("ablation", "simulate"), ("ablation", "api"), ("ablation", "retry"), ("ablation", "law"),
    ("design", "ablation"), ("design", "lrs"), ("design", "tune_lr"), ("design", "recentre"), ("design", "seeds"),
    ("design", "retry"),
)  # fmt: skip


@dataclass(frozen=True)
class SweepConfig:
    """The grid, its limits, and where its results go."""

    flop_budgets: tuple[float, ...] = option(
        DEFAULT_BUDGETS, "budgets, C = 6ND (default: 5e10 1.5e11 4.5e11)", group="grid", above=0, max=1e40
    )
    n_embds: tuple[int, ...] | None = option(None, "widths (default: --sizes around a guess)", min=1, max=2**20)
    n_layers: tuple[int, ...] | None = option(None, "depths, paired (default: by width)", min=1, max=2**12)
    n_heads: tuple[int, ...] | None = option(None, "heads, paired (default: as in train.py)", min=1, max=2**12)
    depths: tuple[int, ...] | None = option(None, "instead of --n_embds: N layers, width 64 N each", min=1, max=2**10)
    sizes: int = option(7, "sizes per budget, if none are given", min=1, max=len(SIZE_LADDER))
    recentre: bool | None = option(None, "centre sizes on the fit of lower budgets")
    ablation: str | None = option(
        None, "repeat the grid, once per common mistake", choices=("porian",), aliases=("study",)
    )
    other_vocab: str | None = option(None, "--ablation: folder of the text in other tokens")

    design: str | None = option(
        None, "adaptive: choose runs for the forecast at a target", choices=("adaptive",), group="runs that are chosen"
    )
    target_flops: float | None = option(None, "--design: compute to forecast at", above=0, max=1e40)
    until_width: float | None = option(None, "--design: stop at this pi95 of ln loss, as 0.02", above=0, max=10)
    max_cell_share: float = option(0.4, "--design: largest share of the money for a run", above=0, max=1)

    seeds: tuple[int, ...] | None = option(
        None, "seeds of each cell; their spread weighs the fit", group="seeds and learning rates", min=0, below=2**63
    )
    seeds_on: str = option("all", "which sizes get all seeds", choices=("all", "middle"))
    lrs: tuple[float, ...] | None = option(None, "try these rates at the end sizes of a budget", above=0, max=1e6)
    tune_lr: bool = option(False, "like --lrs, at 0.5x to 2x the default rate")

    total_flops: float | None = option(
        None, "cap on all FLOPs ever spent in --out_dir", group="limits", above=0, max=1e40
    )
    max_hours: float | None = option(None, "cap on all hours of its runs", above=0, max=1e9)

    parallel: str | None = option(
        None, "cells: a cell per process; ddp: each cell on all", group="execution", metavar="NAME"
    )  # no choices: PARALLEL has old names, too
    workers: int | None = option(None, "processes of cells (default: one per core or GPU)", min=1, max=2**12)
    reuse_trunk: bool = option(False, "--schedule wsd: budgets of one size share a trunk")
    allow_few_steps: bool = option(False, "train cells of under 10 steps, too")
    retry: bool = option(False, "run only cells that have no result, by these flags")
    drop_bad_rows: bool = option(False, "move damaged rows of OUT_DIR to *.bad.*, and go on")

    print_commands: bool = option(False, "print a line of train.py per missing cell; stop", group="clusters")
    collect: tuple[str, ...] | None = option(
        None, "take the run.json files below DIR into runs.csv; stop", metavar="DIR"
    )
    slurm: str | None = option(None, "run cells as a job array, with these options of sbatch", metavar="OPTIONS")
    wait: bool = option(True, "--slurm: wait for the array, and collect (--no-wait: stop)")
    nproc_per_node: int | None = option(None, "processes of each such job, by torchrun", min=2, max=2**10)

    simulate: str | None = option(
        None, "law to draw from: a name, or E=1.7,A=..,B=..,..", group="losses without training"
    )
    noise: float = option(0.005, "sd of ln L in --simulate and --dry_run", min=0, below=1)
    api: str | None = option(None, "address of a training service to ask")
    api_key_file: str | None = option(None, "file of its key (default: $ISOFLOP_API_KEY)")
    vocab_size: int | None = option(None, "vocabulary without --data_dir (default: 512)", min=1, max=2**24)

    out_dir: str = option("sweep_results", "CSV, fit, figures, cells", group="output")
    predict_flops: tuple[float, ...] | None = option(
        None, "predict N* here (default: 10x the largest)", above=0, max=1e40
    )
    dry_run: bool = option(False, "print cells, cost and expected intervals; stop")
    mfu: float | None = option(None, "--dry_run: time from this share of peak FLOP/s", above=0, max=1)
    law: str | None = option(None, "--dry_run: law to try the grid with")
    price_per_hour: float | None = option(None, "--dry_run: price of a process (GPU or core)", above=0, max=1e6)

    def __post_init__(self):
        problems = []
        for name in ("n_layers", "n_heads"):
            given, widths = getattr(self, name), self.n_embds
            if given and not widths:
                problems.append(f"--{name} is paired with --n_embds: give both")
            elif given and len(given) != len(widths):
                problems.append(f"--{name} has {len(given)} values and --n_embds {len(widths)}: give one each")
        if self.lrs and len(set(self.lrs)) < 3:
            problems.append(f"--lrs has {len(set(self.lrs))} rates; a parabola needs 3 (one rate for all is --lr)")
        for one, other in EXCLUSIVE:
            if getattr(self, one) not in (None, False, ()) and getattr(self, other) not in (None, False, ()):
                problems.append(f"--{one} and --{other} exclude each other: leave one out")
        problems += self._design_problems()
        if self.other_vocab and not self.ablation:
            problems.append("--other_vocab is for --ablation porian: leave it out")
        if not self.wait and self.slurm is None:
            problems.append("--no-wait is for --slurm: leave it out")
        if self.nproc_per_node and not (self.print_commands or self.collect or self.slurm is not None):
            problems.append(
                f"--nproc_per_node {self.nproc_per_node} is for --print_commands, --collect and --slurm; for a sweep "
                "here start torchrun --nproc_per_node=K sweep.py"
            )
        if self.parallel is not None and self.parallel not in PARALLEL:
            problems.append(f"--parallel {self.parallel} must be one of cells, ddp")
        check(self, problems)
        object.__setattr__(self, "parallel", PARALLEL.get(self.parallel))

    def _design_problems(self) -> list[str]:
        """What is wrong with the flags of --design."""
        if not self.design:
            given = [name for name in ("target_flops", "until_width") if getattr(self, name)]
            return [f"--{name} is for --design adaptive: add that, or leave it out" for name in given]
        problems = []
        if not self.target_flops:
            problems.append("--design adaptive needs --target_flops, the compute to forecast at, as 1e21")
        if not (self.total_flops or self.max_hours or self.dry_run):
            problems.append("--design adaptive needs what may be spent: --total_flops 3e13, or --max_hours 2")
        if self.max_hours and not self.total_flops and (self.simulate or self.api):
            problems.append("--max_hours says nothing of losses that are not trained here: give --total_flops")
        for name, default in (("flop_budgets", DEFAULT_BUDGETS), ("sizes", 7)):
            if getattr(self, name) != default:
                problems.append(f"--{name} is for a grid, and --design adaptive chooses: leave one out")
        return problems

    def shapes(self, planner: Planner) -> list[ModelSize]:
        """The sizes of --ablation."""
        return grid.ablation_sizes(self, planner)

    @property
    def moves(self) -> bool:
        """Whether the sizes of a budget wait for the fit of those below it."""
        if self.n_embds or self.depths or self.reuse_trunk or self.ablation:
            return False
        return self.flop_budgets != DEFAULT_BUDGETS if self.recentre is None else self.recentre


# ----- one cell -----


def run_cell(mc: ModelConfig, tc: TrainConfig, start, keep, env: DistributedEnv, stop=lambda: False) -> dict:
    """Train one cell; every rank calls it. Resumes where stop() has ended an earlier attempt.

    Parameters
    ----------
    start : checkpoint of the trunk to begin from, or None.
    keep : (step, folder) of each checkpoint to leave for branches.

    Returns
    -------
    {"record": the fields of its RunRecord}, or {"status": ..., "error": ...} where there is no record.

    Raises
    ------
    OSError : a full disk, a lost process: it concerns all cells.
    """
    answer = attempt(mc, tc, start, keep, env, stop)
    gc.collect()  # before the next cell
    if env.device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()  # or the ninth compiled model would run uncompiled
    return answer


def attempt(mc: ModelConfig, tc: TrainConfig, start, keep, env: DistributedEnv, stop) -> dict:
    checkpoints = Path(tc.out_dir) / "checkpoints"
    more = {"keep": {int(step): Path(folder) for step, folder in keep}}
    if checkpoints.is_dir():
        tc = dataclasses.replace(tc, resume="auto")
    elif start and Path(start).is_dir():
        more["start"] = start
    try:
        record = train(mc, tc, env, quiet=True, stop=stop, **more)
    except Interrupted as end:
        return {"status": "interrupted", "error": str(end), "saved": bool(end.saved)}
    except ValueError as error:
        return {"status": "refused", "error": str(error)}
    except RuntimeError as error:
        if status_of(error) == "peer_lost":
            raise OSError(executors.PEER_LOST) from None
        if env.size > 1:  # the others wait in a collective: only ending all of them is safe
            raise
        traceback.print_exc()
        return {"status": "failed", "error": " ".join(str(error).split())[:200]}
    if record.status == "peer_lost":
        raise OSError(executors.PEER_LOST)
    if not tc.ckpt_every and env.rank == 0:
        shutil.rmtree(checkpoints, ignore_errors=True)
    return {"record": asdict(record)}


# ----- the sweep -----


@dataclass
class Job:
    """A sweep under way, on rank 0."""

    sc: SweepConfig
    env: DistributedEnv
    stop: Callable[[], bool]
    planner: Planner
    other: Planner | None = None  # the planner of --other_vocab's text
    asked: Simulation | api.Service | None = None  # what is asked for losses; None: runs are trained
    cells: dict[str, Cell] = field(default_factory=dict)  # every cell planned so far, by run_id
    design: adaptive.Design | None = None  # what chooses the cells of --design adaptive
    known: int = 0  # runs to do in the stages planned so far
    ended: int = 0  # of them, those that have ended
    why: dict[str, str] = field(default_factory=dict)  # run_id -> why it has no record

    def stages(self, results: ResultsFile, save: bool = True):
        """Lists of cells, each planned when those before it have run; UserError where no cell of a list can be run."""
        if self.design:
            stages = self.design.stages(results, save)
        elif self.sc.ablation:
            stages = ablation.stages(self.sc, self.planner, self.other)
        else:
            stages = grid.stages(self.sc, self.planner, results, save)
        for cells in stages:
            if cells and all(c.refused for c in cells):
                others = f" (and {len(cells) - 1} more cells)" if len(cells) > 1 else ""
                raise UserError(f"{cells[0]}: {cells[0].refused}{others}")
            self.cells |= {c.run_id: c for c in cells if not c.probe}
            yield cells

    @property
    def limits(self) -> SweepConfig:
        """The caps that hold for the next cell; the design keeps to --total_flops itself."""
        return dataclasses.replace(self.sc, total_flops=None, dry_run=True) if self.design else self.sc

    @property
    def texts(self) -> list:
        """The token data of this sweep: one, and with --other_vocab another."""
        planners = [self.planner] if self.other is None else [self.planner, self.other]
        return [planner.tokens for planner in planners]

    def ask(self, cell: Cell) -> dict:
        """Run one cell in this process, or ask for its loss; the dict of run_cell()."""
        if self.asked is None:
            return run_cell(cell.mc, cell.tc, cell.start, cell.keep, self.env, self.stop)
        try:
            return {"record": self.asked(self.planner, cell)}
        except api.Refused as error:
            return {"status": "refused", "error": str(error)}


def default_text(out_dir: str) -> str:
    """The data folder of a sweep without --data_dir: train.py's default where it is there, else the embedded text.

    A sweep that has begun keeps its own: the first row of its runs.csv names it.
    """
    default = TrainConfig.data_dir
    begun = ""
    with contextlib.suppress(OSError, UserError, StopIteration):
        with open(Path(out_dir, "runs.csv"), encoding="utf-8-sig", newline="") as f:
            begun = (next(csv.DictReader(f)).get("data") or "").partition("@")[0]
    if Path(default).is_dir() and begun in ("", Path(default).name):
        return default
    return str(data.prepare(config.DataConfig(source="stdlib")))


def set_up(sc: SweepConfig, flags: dict, env: DistributedEnv, stop) -> Job:
    """The planner, and where losses come from. Makes the embedded text where no other is named."""
    asked = None
    if sc.simulate:
        asked = Simulation(sc.simulate, sc.noise)
    elif sc.api:
        asked = api.Service(sc.api, sc.api_key_file)
    source = asked.source if asked else "trained"
    if asked is None and "data_dir" not in flags:
        flags = {**flags, "data_dir": default_text(sc.out_dir)}
    if "data_dir" in flags:
        tokens = reader.open_data(flags["data_dir"])
    else:
        tokens = stand_in(sc.vocab_size or 512, source)
    if sc.api and (sc.vocab_size or "data_dir" in flags):
        asked.vocab_size = tokens.meta["vocab_size"]
    if sc.nproc_per_node:
        env = dataclasses.replace(env, size=sc.nproc_per_node)
    planner, other = Planner(sc.out_dir, flags, tokens, env, source), None
    if sc.other_vocab:
        other_flags = {**flags, "data_dir": sc.other_vocab}
        other = Planner(sc.out_dir, other_flags, reader.open_data(sc.other_vocab), env, source)
    if asked is None:
        known = folder.compute_type_of(sc.out_dir) or slurm.compute_type_of(sc.out_dir)
        for each in filter(None, (planner, other)):
            each.keep_type(known)
            each.few_steps = sc.allow_few_steps
    job = Job(sc, env, stop, planner, other, asked)
    if sc.design:
        at_once, room_gb = sc.workers or 1, None
        if asked is None:
            at_once = max(1, workers.count([], sc, env, trained=True))
            room_gb = dry_run.memory_gb(env.device, at_once)
        job.design = adaptive.Design(sc, planner, at_once, room_gb, env.print0)
    return job


def sweep(job: Job, here: executors.InGroup) -> int:
    """Run what is missing of the grid, then fit it. Returns how many cells have no usable result.

    here : executor of this process group; where cells run side by side, workers take its place.
    """
    sc, env = job.sc, job.env
    if sc.reuse_trunk and job.planner.flags.get("schedule") != "wsd":
        raise UserError("--reuse_trunk needs --schedule wsd: a cosine has no stretch that budgets can share")
    untouched = ResultsFile.open(sc.out_dir, job.planner.source, job.texts, repair=False, drop=sc.drop_bad_rows)
    next(job.stages(untouched, save=False), None)  # what can't be run is refused before anything is written
    job.cells.clear()
    if job.asked is None:
        check_tracker(job.planner.flags.get("tracker"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder_lock(sc.out_dir, "sweep"))
        results = ResultsFile.open(sc.out_dir, job.planner.source, job.texts, drop=sc.drop_bad_rows)
        if sc.api and job.asked.flops_used() is not None:
            env.print0(f"the service has counted {job.asked.used:.4g} FLOPs")
            results.elsewhere = max(0.0, job.asked.used - results.spent())
        gc.freeze()  # what the imports made is not looked through after every cell
        quiet = not sys.stderr.isatty()
        bar = stack.enter_context(tqdm(total=0, unit="FLOP", unit_scale=True, desc="sweep", disable=quiet))
        note = summary.too_few(sc, job.planner, results)
        if note:
            env.print0(note)
        executor, capped = here, ""
        for cells in job.stages(results):
            env.print0(dry_run.table(cells, results.done()))

            # what is missing, and who runs it
            todo = results.missing(cells, job.planner, sc.retry)
            count = workers.count(todo, sc, env, trained=job.asked is None)
            if sc.slurm is not None and executor is here:
                executor = slurm.Array(job.planner, sc.slurm, sc.workers, sc.wait)
            elif count and executor is here:
                executor = workers.Pool(env.device, count)
                stack.callback(executor.close)
            queue = executors.Queue(executor.in_order(todo, job.limits), results, job.limits, job.stop)
            job.known += len(todo)
            bar.total = bar.n + sum(c.cost for c in todo)

            # run it, a row each
            for cell, answer in executor.run(queue):
                queue.ended(cell)
                settle(job, cell, answer, results)
                bar.update(cell.cost)

            # stop, or the next stage
            if todo and not sc.wait:
                env.print0("--no-wait: --collect, or this command again, takes what has ended")
                return 0
            if job.stop() or queue.interrupted:
                raise KeyboardInterrupt
            capped = queue.capped
            if capped:
                break
            if not sc.design:  # whose later rounds branch off them
                results.clear_trunks(cells)
        here.close()  # the other ranks need not wait for the fit
        return finish(job, results, capped)


def settle(job: Job, cell: Cell, answer: dict, results: ResultsFile):
    """Write the row of a cell that ended, and print a line."""
    job.ended += 1
    head = f"[{job.ended}/{job.known}] {cell.flop_budget:.3g} FLOPs, N {cell.plan.n_params_matmul:,} | "
    if cell.probe:
        head += f"lr {cell.plan.lr:.3g} | "
    record = answer.get("record")
    status = (record or answer)["status"]
    if status in ("interrupted", "died"):  # no row, so that the next sweep runs it
        if answer.get("saved"):
            results.withdraw(cell)
        job.env.print0(f"{head}{cell.run_id} | {answer['error']}; the cell is left for the next sweep")
        return
    if record is None:
        record = job.planner.record(cell, status, steps=0, tokens=0, flops=0, flops_exact=0)
        text = f"{cell.run_id} | {status}: {answer['error']}"
    elif job.asked is None:
        text = RunRecord(**record).summary()
    else:
        loss = f"loss {record['val_loss']:.4f}" if record["val_loss"] else "no loss"
        if status != "ok":
            loss = f"{status}: {loss}"
        text = f"{cell.run_id} | {loss}"
    results.add(cell, record, job.planner.source)
    job.env.print0(head + text)


def finish(job: Job, results: ResultsFile, capped: str) -> int:
    """Fit everything the CSV holds, print the table, the next command and what is missing; how many cells that is."""
    sc, out = job.sc, str(results.folder)
    try:
        if sc.ablation:
            rows = ablation.collect(sc, job.planner, job.other, results.rows)
            print(ablation.report(out, rows))
        else:
            print(fit_text(sc, results))
    except ValueError as error:
        print(f"no fit: {error}")
    print(summary.totals(results, bool(sc.ablation)))
    if job.design:
        print(money.next_text(job.design, results))
    elif not sc.ablation:
        command = summary.next_command(sc, job.planner, results)
        if command:
            print(f"next: {command}")
    missing = summary.without_result(sc, list(job.cells.values()), results)
    if job.design:
        return job.design.finish(missing, capped)
    if missing or capped:
        print(summary.missing_text(missing, len(job.cells), capped, job.why))
    return len(missing) or int(bool(capped))


def fit_text(sc: SweepConfig, results: ResultsFile) -> str:
    """fit.py's table of everything in the CSV, its losses weighed by the noise between seeds where that is known."""
    path, options = results.path, {}
    at = sc.predict_flops or (sc.target_flops and (sc.target_flops,))
    if at:
        options["predict_flops"] = tuple(at)
    noise = seed_noise(results.rows)
    if noise:
        path = write_with_noise(results, noise)
        options["loss_se_col"] = "seed_noise"
        spread, freedom = noise["all"]
        print(f"noise floor: seeds move a loss by {spread:.2%} ({freedom} degrees of freedom)")
    return report.summary(fit.run([str(path)], out_dir=str(results.folder), plots=True, **options))


# ----- dry run -----


def show_dry_run(job: Job, here: executors.InGroup):
    """Print the cells, what they cost, and how wide the intervals of their law will be. Nothing is written."""
    sc, env = job.sc, job.env
    results = ResultsFile.open(sc.out_dir, job.planner.source, job.texts, repair=False, drop=sc.drop_bad_rows)
    stages = list(job.stages(results, save=False))
    cells = [c for stage in stages for c in stage]
    good, done = [c for c in cells if not c.refused], results.done()
    todo = [c for c in good if c.run_id not in done]
    note = summary.too_few(sc, job.planner, results)
    if note:
        env.print0(note)
    costs, room, count = {}, None, max(1, workers.count(todo, sc, env, trained=job.asked is None))
    if job.asked is None:
        beside = contextlib.nullcontext()
        if count > 1 and env.device == "cpu" and not sc.mfu:
            middle = sorted(good, key=lambda c: c.cost)[len(good) // 2]
            beside = dry_run.company(middle, run_cell, env.device, workers.cores()[:count])
        with beside:
            found = dry_run.estimates(good, here.one, env.device, job.planner.tokens, sc.mfu, env.size)
        costs = dict(zip(good, found, strict=True))
        room = dry_run.memory_gb(env.device, count)
    listed = [costs.get(c) for c in cells] if costs else None
    env.print0(dry_run.table(cells, done, listed, sc.price_per_hour, room, full=True))
    seconds = [costs[c].seconds for c in todo if c in costs]
    env.print0(summary.what_is_left(todo, len(cells), seconds, count, sc.price_per_hour, env.size))
    if sc.moves and not grid.decided(results.folder, sc.drop_bad_rows):
        env.print0("sizes of later budgets will move with the fit of the earlier ones (--no-recentre: they stay)")
    if sc.total_flops and results.spent() + sum(c.cost for c in todo) > sc.total_flops:
        env.print0(f"--total_flops {sc.total_flops:g} will stop it: {results.spent():.4g} are spent already")
    if job.design:
        env.print0(money.describe(job.design, results))
        return
    if sc.ablation:  # one variant is one grid
        good = [c for c in stages[0] if not c.refused]
    env.print0(power.describe(good, sc.law or sc.simulate, results.folder, sc.noise, sc.predict_flops))


# ----- command line -----


def read_flags(parser: Parser, args) -> tuple[SweepConfig, dict]:
    """The sweep's own flags, and those of every cell."""
    sc = parser.read(SweepConfig, args)
    own = {f.name for f in fields(SweepConfig)}
    flags = {name: value for name, value in vars(args).items() if name not in own}
    if flags.pop("depth", None) is not None:
        raise UserError("--depth is one size; a sweep takes several: --depths 4 6 8 10")
    if sc.seeds and "seed" in flags:
        raise UserError("--seed and --seeds exclude each other: leave one out")
    return sc, flags


def run(parser: Parser, args) -> int:
    """Every process of torchrun calls it. Rank 0 plans, prints and writes; the others train what it hands out."""
    sc, flags = read_flags(parser, args)
    rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if ranks > 1 and (sc.print_commands or sc.collect or sc.slurm is not None):
        raise UserError("--print_commands, --collect and --slurm take one process: leave torchrun out")
    parent = os.getppid()
    with stop_signals() as signalled:

        def stop() -> bool:
            return signalled() or (ranks > 1 and os.getppid() != parent)  # the second: torchrun was killed

        if ranks > 1 and (sc.parallel == "cells" or sc.simulate or sc.api):  # no process group
            env = DistributedEnv(device=pick_device(flags.get("device", "auto")))
            if rank == 0:
                return lead(sc, flags, env, stop)
            if not (sc.dry_run or sc.simulate or sc.api):
                workers.watch(workers.Pool(env.device), stop)
            return 0
        with launch(flags.get("device", "auto")) as env:
            if env.rank == 0:
                return lead(sc, flags, env, stop)
            executors.InGroup(env, lambda c: run_cell(c.mc, c.tc, c.start, c.keep, env, stop)).follow()
            return 0


def lead(sc: SweepConfig, flags: dict, env: DistributedEnv, stop) -> int:
    """Rank 0's part."""
    here = executors.InGroup(env, None)
    if sc.slurm is not None and not sc.dry_run:
        slurm.check_options(sc.slurm, env.device, flags)
    with contextlib.closing(here), contextlib.ExitStack() as stack:
        out = sys.stdout
        if sc.print_commands:  # remarks must not get into a file of commands
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        job = set_up(sc, flags, env, stop)
        here.ask = job.ask
        if sc.dry_run:
            show_dry_run(job, here)
            return 0
        if sc.print_commands:
            results = ResultsFile.open(sc.out_dir, job.planner.source, job.texts, repair=False, drop=sc.drop_bad_rows)
            jobs.print_commands(job, results, out)
            return 0
        if sc.collect:
            return int(collect.collect(job, settle, finish) > 0)
        return int(sweep(job, here) > 0)


def main(argv=None):
    if sys.argv[1:2] == ["--worker"]:  # started by workers.start_worker()
        return workers.work(run_cell, *sys.argv[2:])
    argv = jobs.joined(sys.argv[1:] if argv is None else argv, "slurm")
    parser = Parser("sweep.py", __doc__, SweepConfig, ModelConfig, TrainConfig, skip=SWEPT)
    interrupted = f"finished cells are kept, the same command resumes: {resume_command()}"
    return run_main(parser, run, argv, interrupted)


if __name__ == "__main__":
    sys.exit(main())

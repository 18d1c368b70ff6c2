"""Train an isoFLOP grid into one CSV, fit it, draw it.

    python sweep.py     # data/fineweb_gpt2 if it is there, else embedded text
    python sweep.py --data_dir data/mine --flop_budgets 1e13 3e13 1e14 --dry_run
    python sweep.py --flop_budgets 1e13 3e13 --n_embds 48 64 96 --n_layers 1 2 2
    python sweep.py --depths 2 3 4 6 8 --tokens_per_params 10      # a ladder: L(C)
    python sweep.py --simulate hoffmann --flop_budgets 1e18 3e18   # no training
    python sweep.py --design adaptive --target_flops 1.5e14 --total_flops 3e13
    python sweep.py --n_embds 16 32 --lrs .02 .04 .08 --batches 512 1024 2048
    torchrun --nproc_per_node=4 sweep.py --parallel cells   # four cells at once
    torchrun --nproc_per_node=4 sweep.py     # each cell on all four, in turn

A cell is one run of the grid: a model size at a budget. Each finished run is a
row of OUT_DIR/runs.csv. To resume a killed sweep, give the same command again:
no run is done twice. Flags of train.py (model, run, data, optimizer, ...) are
passed on to every cell. isoflop/sweep/grid.py says which cells there are.
"""

import isoflop.installed  # noqa: F401 isort: skip
import contextlib
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
from isoflop.distributed import DistributedEnv, launch, leave, stop_signals
from isoflop.eval import scores
from isoflop.files import Unwritable, folder_lock, read_csv
from isoflop.fit import report
from isoflop.options import UserError
from isoflop.sweep import (
    ablation,
    adaptive,
    api,
    collect,
    dry_run,
    executors,
    exponent,
    folder,
    grid,
    jobs,
    money,
    power,
    service,
    slurm,
    submission,
    summary,
    workers,
)
from isoflop.sweep.cells import Cell, Planner, stand_in
from isoflop.sweep.config import SWEPT, SweepConfig
from isoflop.sweep.results import ResultsFile, resume_command, seed_noise, write_with_noise
from isoflop.sweep.simulate import Simulation
from isoflop.train import checkpoint
from isoflop.train.failures import status_of
from isoflop.train.plan import TrainConfig
from isoflop.train.record import RunRecord
from isoflop.train.tracking import check_tracker
from train import Interrupted, train

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
    env.on_rank0(lambda: checkpoint.remove_damaged(checkpoints))
    if checkpoint.all_in(checkpoints):
        tc = dataclasses.replace(tc, resume="auto")
    elif start and checkpoint.is_whole(start):
        more["start"] = start
    try:
        record = train(mc, tc, env, quiet=True, stop=stop, **more)
    except Interrupted as end:
        return {"status": "interrupted", "error": str(end), "saved": bool(end.saved)}
    except Unwritable as error:
        raise OSError(str(error)) from None
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
    with contextlib.suppress(OSError, UserError, IndexError):
        begun = read_csv(Path(out_dir, "runs.csv"))[1][0].get("data", "").partition("@")[0]
    if Path(default).is_dir() and begun in ("", Path(default).name):
        return default
    return str(data.prepare(config.DataConfig(source="stdlib")))


def set_up(sc: SweepConfig, flags: dict, env: DistributedEnv, stop) -> Job:
    """The planner, and where losses come from. Makes the embedded text where no other is named."""
    asked = None
    sc, flags, constraints = service.under_constraints(sc, flags)
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
    planner.constraints = constraints
    if sc.other_vocab:
        other_flags = {**flags, "data_dir": sc.other_vocab}
        other = Planner(sc.out_dir, other_flags, reader.open_data(sc.other_vocab), env, source)
    if asked is None:
        known = folder.compute_type_of(sc.out_dir) or slurm.compute_type_of(sc.out_dir)
        for each in filter(None, (planner, other)):
            each.keep_type(known)
            each.few_steps = sc.allow_few_steps
    if sc.design == "exponent":
        sc, text = exponent.chosen(sc, planner, other)
        env.print0(text)
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
        if job.planner.flags.get("tasks"):
            from isoflop.eval import while_training

            while_training.harness_of(job.planner.flags["tasks"], job.planner.flags.get("tasks_limit"))
    with contextlib.ExitStack() as stack:
        stack.enter_context(folder_lock(sc.out_dir, "sweep"))
        results = ResultsFile.open(sc.out_dir, job.planner.source, job.texts, drop=sc.drop_bad_rows)
        results.price_per_hour = sc.price_per_hour
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
                if executor is not here and not queue.left():  # a worker is done, and its core has time for this
                    with contextlib.suppress(ImportError):
                        import matplotlib.pyplot  # noqa: F401

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
    if cell.lr_from == "tried":
        head += f"lr {cell.plan.lr:.3g} | "
    if job.sc.batches:
        head += f"batch {cell.plan.tokens_per_step:,} | "
    record = answer.get("record")
    status = (record or answer)["status"]
    refused_here = status == "refused" and job.asked is None  # of a cell that could be planned: by data that are gone
    if status in ("interrupted", "died") or refused_here:  # no row, so that the next sweep runs it
        if answer.get("saved") or refused_here:
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
            print(fit_text(sc, results, N_COLUMNS.get(job.planner.convention)))
            if sc.api or sc.constraints:
                used = job.asked.used if sc.api else None
                print(submission.write(job.planner, results, sc.total_flops, used))
    except ValueError as error:
        print(f"no fit: {error}")
    print(summary.totals(results, bool(sc.ablation)))
    if scores.gather(results.folder, results.rows):
        print(f"{scores.join(results.folder)}: the runs with their scores as columns, for fit.py")
    if job.design:
        print(money.next_text(job.design, results))
    elif not (sc.ablation or sc.batches):
        command = summary.next_command(sc, job.planner, results)
        if command:
            print(f"next: {command}")
    missing = summary.without_result(sc, list(job.cells.values()), results)
    if job.design:
        return job.design.finish(missing, capped)
    if missing or capped:
        print(summary.missing_text(missing, len(job.cells), capped, job.why))
    return len(missing) or int(bool(capped))


N_COLUMNS = {"non_embedding": "n_params_non_embedding", "total": "n_params"}  # of a service, by how it counts


def fit_text(sc: SweepConfig, results: ResultsFile, n_col: str | None = None) -> str:
    """fit.py's table of everything in the CSV, its losses weighed by the noise between seeds where that is known.

    With --batches the runs tell of rates and batches: their law.
    """
    path, options = results.path, {}
    if sc.batches:
        folder = results.folder / "fit" / "hparams"
        return "\n".join(fit.run([str(path)], out_dir=str(folder), law_of="hparams")["hparams"]["answer"])
    at = sc.predict_flops or (sc.target_flops and (sc.target_flops,))
    if at:
        options["predict_flops"] = tuple(at)
    if n_col:
        options["n_col"] = n_col
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
    in_part = dry_run.timed_in_part(good, env.device) if costs and not sc.mfu else ""
    if in_part:
        env.print0(in_part)
    seconds = [costs[c].seconds for c in todo if c in costs]
    env.print0(summary.what_is_left(todo, len(cells), seconds, count, sc.price_per_hour, env.size))
    if sc.moves and not grid.decided(results.folder, sc.drop_bad_rows):
        env.print0("sizes of later budgets will move with the fit of the earlier ones (--no-recentre: they stay)")
    if sc.total_flops and results.spent() + sum(c.cost for c in todo) > sc.total_flops:
        env.print0(f"--total_flops {sc.total_flops:g} will stop it: {results.spent():.4g} are spent already")
    if job.design:
        env.print0(money.describe(job.design, results))
        return
    if sc.tokens_per_params:
        return
    if sc.batches:  # no isoFLOP grid: its law is that of rates and batches
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
    heeded = stop_signals()
    if sc.dry_run:  # which has nothing to save: a signal, or a closed pipe, ends it
        heeded = contextlib.nullcontext(lambda: False)
    with heeded as signalled:

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
        if sc.check:
            print(service.check(job.asked, job.sc.total_flops))
            return 0
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
    leave(main())

"""Train an isoFLOP grid into one CSV, fit it, draw it. A killed sweep goes on where it stopped: run it again.

    python sweep.py                                                   # embedded text, 3 budgets x 7 sizes, on a CPU
    python sweep.py --flop_budgets 1e14 3e14 1e15 --n_embds 64 96 128 --n_layers 2 3 4 --data_dir data/fineweb_gpt2
    python sweep.py --simulate hoffmann --flop_budgets 1e18 3e18 1e19 3e19       # no training: losses from a law
    torchrun --nproc_per_node=4 sweep.py --flop_budgets 1e14 3e14 1e15           # every cell on all four, in turn
    torchrun --nproc_per_node=4 sweep.py --parallel runs --flop_budgets 1e14 3e14 1e15           # four cells at once

One row per finished run in OUT_DIR/runs.csv; a run whose id is there is not run again. Any flag of train.py is passed
on to every cell. grid.py says which cells there are, preview.py what they cost and what their law is worth.
"""

import contextlib
import dataclasses
import gc
import math
import os
import shutil
import sys
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from tqdm import tqdm

import data
import fit
from isoflop.cli import Parser
from isoflop.config import ModelConfig
from isoflop.data import config, reader
from isoflop.device import pick_device
from isoflop.distributed import World, launch, stop_signals
from isoflop.fit import report
from isoflop.options import option
from isoflop.sweep import ablation, grid, power, results, workers
from isoflop.sweep import api as api_
from isoflop.sweep import dry_run as dry_run_
from isoflop.sweep.cells import Cell, Planner, Shape, stand_in
from isoflop.sweep.grid import guess_n_opt
from isoflop.sweep.results import Book, locked
from isoflop.sweep.simulate import Simulation
from isoflop.train.plan import TrainConfig
from isoflop.train.record import RunRecord

DEFAULT_BUDGETS = (5e10, 1.5e11, 4.5e11)
SWEPT = {"n_embd", "n_layer", "n_head", "flop_budget", "max_iters", "tokens_per_param", "overwrite"}
SLOW_WIDTH = 48  # a FLOP of a model so wide takes twice the time of a wide one's, by the default grid on a CPU
SMALL_FLOPS = 1e11  # below it a CPU is done before its workers would have started


@dataclass(frozen=True)
class SweepConfig:
    """The grid, its limits, and where its results go."""

    flop_budgets: tuple[float, ...] = option(DEFAULT_BUDGETS, "budgets, each C = 6ND")
    n_embds: tuple[int, ...] | None = option(
        None, "widths, paired with --n_layers (default: --sizes of them around a guess of N*)"
    )
    n_layers: tuple[int, ...] | None = option(
        None, "depths, paired with --n_embds (default: as deep as the default sizes of that width)"
    )
    n_heads: tuple[int, ...] | None = option(None, "heads, paired with --n_embds (default: as in train.py)")
    depths: tuple[int, ...] | None = option(None, "sizes of the one-knob family instead: N layers, width 64 N")
    sizes: int = option(7, "sizes per budget, where none are given")
    recentre: bool | None = option(
        None, "centre each budget's sizes on the fit of those below (default: where --flop_budgets is given alone)"
    )
    seeds: tuple[int, ...] | None = option(None, "seeds to run each cell with; their spread weighs the fit")
    seeds_on: str = option("all", "cells that get more than the first seed", choices=("all", "middle"))
    lrs: tuple[float, ...] | None = option(None, "peak rates to try at the smallest and largest size of each budget")
    tune_lr: bool = option(False, "the same with half to twice the rule's rate; sizes between get a rate between")
    reuse_trunk: bool = option(False, "with --schedule wsd: budgets of one size branch off its largest budget's run")
    total_flops: float | None = option(None, "stop before all FLOPs ever spent in --out_dir exceed this")
    max_hours: float | None = option(None, "the same for hours, summed over runs")
    parallel: str | None = option(
        None, "runs: a cell per process; data: each cell on all (default: data under torchrun, runs on several cores)",
        choices=("runs", "data"),
    )  # fmt: skip
    workers: int | None = option(None, "processes of --parallel runs without torchrun (default: one per core, or GPU)")
    study: str | None = option(
        None, "the grid once more for each of a list of common mistakes, and what it does to a (study.py)",
        choices=("porian",),
    )  # fmt: skip
    other_vocab: str | None = option(None, "token folder of the same text in another vocabulary, for --study")
    simulate: str | None = option(None, "draw losses from a law instead: a name, or E=..,A=..,B=..,alpha=..,beta=..")
    noise: float = option(0.005, "standard deviation of ln L from run to run, of --simulate and --dry_run")
    api: str | None = option(None, "ask a training service at this address instead")
    api_key_file: str | None = option(None, "file with its key (default: ISOFLOP_API_KEY in the environment)")
    vocab_size: int = option(512, "vocabulary of --simulate and --api where --data_dir is not given")
    predict_flops: tuple[float, ...] | None = option(None, "predict N* at these budgets (default: 10x the largest)")
    out_dir: str = option("sweep_results", "runs.csv, the fit and its pictures, and a folder per cell")
    dry_run: bool = option(False, "print the cells, their cost and what their law would be worth, and stop")
    mfu: float | None = option(None, "--dry_run: time from this share of peak, not measured")
    law: str | None = option(None, "law that --dry_run tries the grid with (default: this out_dir's own, or hoffmann)")
    price_per_hour: float | None = option(None, "price of an hour of one process (a GPU, or a core), for --dry_run")
    retry: bool = option(False, "run just the cells that have no result, with the flags as they now are")

    def __post_init__(self):
        problems = []
        for name in ("flop_budgets", "lrs", "predict_flops", "total_flops", "max_hours", "price_per_hour", "mfu"):
            values = getattr(self, name)
            for v in values if isinstance(values, tuple) else () if values is None else (values,):
                if not 0 < v < math.inf:
                    problems.append(f"--{name} {v:g} must be a positive finite number")
        for name in ("n_layers", "n_heads"):
            given, widths = getattr(self, name), self.n_embds
            if given and not widths:
                problems.append(f"--{name} is paired with --n_embds: give both")
            elif given and len(given) != len(widths):
                problems.append(
                    f"--{name} has {len(given)} values and --n_embds {len(widths)}: they are paired, one each"
                )
        for name in ("sizes", "workers", "vocab_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                problems.append(f"--{name} {getattr(self, name)} must be at least 1")
        if not 0 <= self.noise < 1:
            problems.append(f"--noise {self.noise:g} must be at least 0 and below 1")
        if self.lrs and len(set(self.lrs)) < 3:
            problems.append(f"--lrs has {len(set(self.lrs))} rates; a parabola needs 3 (one rate for all is --lr)")
        for one, other in (
            ("depths", "n_embds"), ("lrs", "tune_lr"), ("simulate", "api"), ("reuse_trunk", "recentre"),
            ("reuse_trunk", "lrs"), ("reuse_trunk", "tune_lr"), ("api", "seeds"), ("api", "reuse_trunk"),
            *(("study", x) for x in ("recentre", "lrs", "tune_lr", "reuse_trunk", "simulate", "api", "retry", "law")),
        ):  # fmt: skip
            if getattr(self, one) and getattr(self, other):
                problems.append(f"--{one} and --{other} exclude each other: leave one out")
        if self.other_vocab and not self.study:
            problems.append("--other_vocab is for --study porian: leave it out")
        if problems:
            raise ValueError("; ".join(problems))

    def shapes(self, planner: Planner) -> list[Shape]:
        """The sizes of --study, the same at every budget."""
        if self.depths:
            return grid.depth_shapes(self.depths)
        if self.n_embds:
            return grid.sizes_of(self, planner, None, 0.0)
        ends = [math.log(f(self.flop_budgets)) for f in (min, max)]
        centre = guess_n_opt(math.exp(sum(ends) / 2))
        return [(*s, None) for s in grid.spread_shapes(planner, centre, self.sizes, 0.25 * (ends[1] - ends[0]))]

    @property
    def moves(self) -> bool:
        """Whether the sizes of a budget wait for the fit of those below it."""
        alone = not (self.n_embds or self.depths or self.reuse_trunk or self.study)
        return alone and (self.flop_budgets != DEFAULT_BUDGETS if self.recentre is None else self.recentre)


# ----- the sweep -----


class Sweep:
    """A sweep under way: its plan, its book, and who computes its losses."""

    def __init__(self, sc: SweepConfig, flags: dict, world: World, stop):
        self.sc, self.world, self.stop, self.trained = sc, world, stop, not (sc.simulate or sc.api)
        self.asked = None
        if not self.trained:
            self.asked = Simulation(sc.simulate, sc.noise) if sc.simulate else None
            self.asked = self.asked or api_.Service(sc.api, sc.api_key_file)
        source = self.asked.source if self.asked else "trained"
        if self.trained and "data_dir" not in flags:  # the main job: the embedded text, made where it is missing
            made = data.prepare(config.DataConfig(source="stdlib")) if world.rank == 0 else None
            flags = {**flags, "data_dir": str(workers.agree(world, made))}
        tokens = reader.open_data(flags["data_dir"]) if "data_dir" in flags else stand_in(sc.vocab_size, source)
        self.planner, self.other = Planner(sc.out_dir, flags, tokens, world, source), None
        if sc.other_vocab:
            theirs = reader.open_data(sc.other_vocab)
            self.other = Planner(sc.out_dir, {**flags, "data_dir": sc.other_vocab}, theirs, world, source)
        self.cells: dict[str, Cell] = {}  # every cell planned so far
        self.count = self.known = 0
        self.stopped = ""

    def open(self, mend: bool = True) -> Book:
        book = Book(self.sc.out_dir, mend)
        other = {r["source"] for r in book.all_rows()} - {self.planner.source}
        if other:
            raise ValueError(
                f"--out_dir {self.sc.out_dir} holds rows of another kind ({sorted(other)[0]}) than this sweep's "
                f"({self.planner.source}); name another --out_dir"
            )
        return book

    def stages(self, book: Book | None, dry_run: bool = False):
        """Lists of cells, each planned when those before it have run."""
        if self.sc.study:
            return ablation.stages(self.sc, self.planner, self.other)
        return grid.stages(dataclasses.replace(self.sc, dry_run=True) if dry_run else self.sc, self.planner, book)

    def plan(self, cells: list[Cell]):
        """Take note of cells; ValueError where none of them can be run."""
        if cells and all(c.refused for c in cells):
            raise ValueError(" | ".join(dict.fromkeys(f"{c}: {c.refused}" for c in cells)))
        self.cells |= {c.run_id: c for c in cells if not c.probe}

    def todo(self, cells: list[Cell], book: Book) -> list[Cell]:
        done = book.done()
        if self.sc.retry:
            fine = results.places(book)
            return [c for c in cells if c.place not in fine and not c.refused]
        return [c for c in cells if c.run_id not in done and not c.refused]

    def dry_run(self):
        book, world, sc = self.open(mend=False), self.world, self.sc
        stages = list(self.stages(book))
        cells = [c for stage in stages for c in stage]
        self.plan(cells)
        done, good = book.done(), [c for c in cells if not c.refused]
        costs, room, procs = None, None, 1
        if self.trained:
            procs = self.processes(good, book)
            tokens, alone = self.planner.tokens, procs == 1 or world.device != "cpu" or sc.mfu
            middle = sorted(good, key=lambda c: c.cost)[len(good) // 2]
            with (
                contextlib.nullcontext()
                if alone
                else dry_run_.company(middle, workers.attempt, world.device, workers.cores()[:procs])
            ):
                found = dry_run_.estimates(good, self.ask, world.device, tokens, sc.mfu, world.size)
            costs = dict(zip(good, found, strict=True))
            costs = [costs.get(c) for c in cells]
            room = dry_run_.memory_gb(world.device, procs)
        world.print0(dry_run_.table(cells, done, costs, sc.price_per_hour, room, full=True))
        left = [(c, e) for c, e in zip(cells, costs or [None] * len(cells), strict=True)
                if c.run_id not in done and not c.refused]  # fmt: skip
        own, real = sum(c.plan.flops for c, _ in left), sum(c.cost for c, _ in left)
        line = f"{len(left)} of {len(cells)} cells to run: {own:.4g} FLOPs"
        line += f", {real:.4g} really spent ({own / real:.2f}x less)" if real < own else ""
        if costs:
            seconds = sum(e.seconds for _, e in left)
            wall = max([seconds / procs, *(e.seconds for _, e in left)])
            line += f", about {wall / 60:.1f} minutes" + (f" on {procs} workers" if procs > 1 else "")
            if sc.price_per_hour:
                line += f", price {seconds / 3600 * sc.price_per_hour * world.size:.3g}"
        world.print0(line)
        if sc.moves and not grid.decided(book.folder):
            world.print0("sizes of later budgets will move with the fit of the earlier ones (--no-recentre: they stay)")
        if sc.total_flops and book.spent() + real > sc.total_flops:
            world.print0(f"--total_flops {sc.total_flops:g} will stop it: {book.spent():.4g} are spent already")
        if world.rank == 0:
            name = sc.law or sc.simulate
            good = [c for c in stages[0] if not c.refused] if sc.study else good  # one variant is one grid
            world.print0(power.worth_text(good, name, book.folder, sc.noise, sc.predict_flops))

    def processes(self, cells: list[Cell], book: Book) -> int:
        """How many cells will run at once."""
        if not self.trained or self.sc.parallel == "data" or self.world.size > 1:
            return 1
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            return int(os.environ["WORLD_SIZE"]) if self.sc.parallel == "runs" else 1
        todo = self.todo(cells, book)
        own = torch.cuda.device_count() if self.world.device == "cuda" else len(workers.cores())
        if self.sc.parallel is None:
            big = sum(c.cost for c in todo) >= SMALL_FLOPS or self.sc.moves or self.sc.workers
            if self.world.device != "cpu" or not big:
                return 1
        return max(1, min(self.sc.workers or own, max(1, len(todo)) if not self.sc.moves else 10**6))

    def run(self) -> int:
        """Run what is missing of the grid, then fit. Returns how many cells have no usable result."""
        world, sc = self.world, self.sc
        first = world.rank == 0
        with contextlib.ExitStack() as stack:
            if first:
                self.check()
                stack.enter_context(locked(Path(sc.out_dir)))
            book = self.open() if first else None
            if first and sc.api and self.asked.flops_used() is not None:
                world.print0(f"the service has counted {self.asked.used:.4g} FLOPs")
                book.elsewhere = max(0.0, self.asked.used - book.spent())
            gc.freeze()  # what the imports made is not looked through after every cell
            steps = self.stages(book) if first else None
            pool = None
            quiet_bar = not first or not sys.stderr.isatty()
            bar = stack.enter_context(tqdm(total=0, unit="FLOP", unit_scale=True, desc="sweep", disable=quiet_bar))
            while True:
                cells = workers.agree(world, next(steps, None) if first else None)
                if cells is None or workers.agree(world, self.stopped):
                    break
                queue = None
                if first:
                    self.plan(cells)
                    world.print0(dry_run_.table(cells, book.done()))
                    for c in cells:
                        if c.refused and c.run_id not in book.done():
                            book.add(c, self.planner.record(c, "refused"), self.planner.source)
                    todo = self.todo(cells, book)
                    if self.trained and not sc.retry:
                        todo = [c for c in todo if not book.recover(c, self.planner.source)]
                    procs = self.processes(todo, book)
                    ranked = int(os.environ.get("WORLD_SIZE", 1)) > world.size  # the other ranks wait for a pool
                    if self.trained and (procs > 1 or (sc.parallel == "runs" and todo) or ranked):
                        if not sc.total_flops and not sc.max_hours:
                            todo.sort(key=lambda c: -c.cost * (1 + SLOW_WIDTH / c.mc.n_embd))
                        if pool is None:
                            pool = workers.Pool(world.device, procs)
                            stack.callback(pool.over)
                    else:
                        todo.sort(key=lambda c: bool(c.start))  # trunks before branches
                    self.known += len(todo)
                    bar.total = bar.n + sum(c.cost for c in todo)
                    queue = workers.Queue(todo, book, sc, self.stop)
                for cell, answer in pool.run(queue) if pool else workers.in_turn(queue, world, self.ask):
                    if first:
                        self.settle(cell, answer, book, queue)
                        bar.update(cell.cost)
                if workers.agree(world, self.stop()):
                    raise KeyboardInterrupt
                if first:
                    self.stopped = queue.stopped
                    self.clear_trunks(cells, book)
            if first:
                return self.finish(book)
        return 0

    def check(self):
        """ValueError for what can't work, before anything is written."""
        if self.sc.reuse_trunk and self.planner.flags.get("schedule") != "wsd":
            raise ValueError("--reuse_trunk needs --schedule wsd: a cosine has no stretch that budgets can share")
        book = self.open(mend=False)
        self.plan(next(self.stages(book, dry_run=True)))

    def ask(self, cell: Cell) -> dict:
        """The result of one cell, here and now."""
        if self.trained:
            answer = workers.attempt(cell.mc, cell.tc, cell.start, cell.keep, self.world, self.stop)
            workers.free(self.world)
            return answer
        try:
            return {"record": self.asked(self.planner, cell)}
        except api_.Refused as error:
            return {"status": "refused", "error": str(error)}

    def settle(self, cell: Cell, answer: dict, book: Book, queue: workers.Queue):
        """Write the row of a cell that ended, and say so."""
        queue.running.discard(cell.run_id)
        self.count += 1
        head = f"[{self.count}/{self.known}] {cell.flop_budget:.3g} FLOPs, N {cell.plan.n_params_matmul:,} | "
        if cell.probe:
            head += f"lr {cell.plan.lr:.3g} | "
        if answer.get("status") == "interrupted" and answer["saved"]:
            book.withdraw(cell)
        if answer.get("status") in ("interrupted", "died"):  # no row, so that the next sweep runs it
            self.world.print0(head + f"{cell.run_id} | {answer['error']}; the cell is left for the next sweep")
            return
        record = answer.get("record")
        if not record:
            record = self.planner.record(cell, answer["status"], steps=0, tokens=0, flops=0, flops_exact=0)
        book.add(cell, record, self.planner.source)
        if "record" not in answer:
            said = f"{cell.run_id} | {answer['status']}: {answer['error']}"
        elif self.trained:
            said = RunRecord(**record).summary()
        else:
            said = (
                f"{cell.run_id} | loss {record['val_loss']:.4f}" if record["val_loss"] else f"{cell.run_id} | no loss"
            )
        self.world.print0(head + said)

    def clear_trunks(self, cells: list[Cell], book: Book):
        """Remove the checkpoints that all their branches have used."""
        done = book.done()
        for trunk in (c for c in cells if c.keep):
            if all(c.run_id in done for c in cells if c.trunk == trunk.run_id):
                shutil.rmtree(book.folder / "trunks" / trunk.run_id, ignore_errors=True)
        with contextlib.suppress(OSError):
            (book.folder / "trunks").rmdir()  # where it is empty

    # ----- the end -----

    def finish(self, book: Book) -> int:
        """Fit everything the CSV holds, print the table, suggest what is next, name what is missing."""
        out, sc = str(book.folder), self.sc
        path, options = book.path, {"predict_flops": tuple(sc.predict_flops)} if sc.predict_flops else {}
        noise = {} if sc.study else results.seed_noise(book.rows)  # a study's rows differ by more than seeds
        if noise:
            path = results.with_noise(book, noise)
            options["loss_se_col"] = "seed_noise"
            print(f"noise floor: seeds move a loss by {noise['all'][0]:.2%} ({noise['all'][1]} degrees of freedom)")
        try:
            if sc.study:
                print(ablation.report(out, ablation.collect(sc, self.planner, self.other, book.rows)))
            else:
                print(report.summary(fit.run([str(path)], out_dir=out, plots=True, **options)))
        except ValueError as error:
            print(f"no fit: {error}")
        rows = book.all_rows()
        own, spent = (sum(float(r[k] or 0) for r in rows) for k in ("flops", "flops_spent"))
        line = f"{book.path}: {len(book.rows)} runs, {own:.3g} FLOPs, {book.hours() * 60:.1f} minutes of runs"
        if book.probe_rows:
            line += f", {len(book.probe_rows)} probes among them"
        if spent < 0.999 * own:
            line += f"; {spent:.3g} FLOPs really spent, {own / spent:.2f}x less"
        if sum(map(sum, book.lost.values())):
            line += f"; runs that were cut off count {sum(map(sum, book.lost.values())):.3g} FLOPs more"
        left = "ablation.csv, ablation.md and ablation.png" if sc.study else "fit.json, prediction.md and the pictures"
        print(f"{line}; {left} are in {out}")
        if not sc.study and (suggestion := self.next_budget(book)):
            print(f"next: {suggestion}")
        return self.missing(book)

    def next_budget(self, book: Book) -> str:
        """The command for one more budget, as far above the largest as that is above the one below."""
        budgets = sorted(set(self.sc.flop_budgets))
        flops = budgets[-1] * (budgets[-1] / budgets[-2] if len(budgets) > 1 else 3)
        centre = grid.best_guess(flops, book.rows)
        if not centre:
            return ""
        shapes = grid.spread_shapes(self.planner, centre, self.sc.sizes)
        gone = ("flop_budgets", "n_embds", "n_layers", "n_heads", "depths", "sizes", "recentre", "no-recentre", "retry")
        words = ["--flop_budgets", f"{flops:g}"]
        for name, at in (("n_embds", 0), ("n_layers", 1)):
            words += [f"--{name}", *(str(s[at]) for s in shapes)]
        return results.command(without=gone, more=words)

    def missing(self, book: Book) -> int:
        """Say which cells have no result and what runs just those; returns how many."""
        fine, rows = results.places(book), {r["run_id"]: r for r in book.rows}
        if self.sc.study:  # several runs stand at one place of the grid
            fine = {r["run_id"] for r in book.rows if r["status"] == "ok"}
        bad = [c for c in self.cells.values() if (c.run_id if self.sc.study else c.place) not in fine]
        if not bad and not self.stopped:
            return 0
        kinds = [rows[c.run_id]["status"] if c.run_id in rows else "not run" for c in bad]
        for c, kind in zip(bad, kinds, strict=True):
            print(f"no result: {c}: {kind}" + (f" ({c.refused})" if c.refused else ""))
        more = ["--retry"] if set(kinds) - {"not run"} else []
        first = next((c for c, kind in zip(bad, kinds, strict=True) if kind == "diverged"), None)
        if first:
            more += ["--lr", f"{first.plan.lr / 2:.3g}"]
        small = [c.plan.micro_batch_size for c, kind in zip(bad, kinds, strict=True) if kind == "oom"]
        if small:
            more += ["--micro_batch_size", str(max(1, min(small) // 2))]
        said = ", ".join(f"{kinds.count(k)} {k}" for k in dict.fromkeys(kinds))
        if self.stopped:
            print(f"stopped: {self.stopped}")
        if bad:
            print(f"{len(bad)} of {len(self.cells)} cells have no result ({said}); to run just those: "
                  f"{results.command(without=('retry', 'lr')[: 2 if first else 1], more=more)}")  # fmt: skip
        return max(1, len(bad))


# ----- command line -----


def main(argv=None):
    if sys.argv[1:2] == ["--worker"]:  # how workers.start_worker() starts one
        return workers.work(*sys.argv[2:])
    parser = Parser("sweep.py", __doc__, SweepConfig, ModelConfig, TrainConfig, skip=SWEPT)
    args = parser.parse_args(argv)
    torchrun = int(os.environ.get("WORLD_SIZE", 1)) > 1
    missing = 0
    try:
        sc = parser.read(SweepConfig, args)
        flags = {k: v for k, v in vars(args).items() if k not in {f.name for f in fields(SweepConfig)}}
        if flags.pop("depth", None) is not None:
            raise ValueError("--depth is one size; a sweep takes several: --depths 4 6 8 10")
        if sc.seeds and "seed" in flags:
            raise ValueError("--seed and --seeds exclude each other: leave one out")
        with stop_signals() as stop:
            if torchrun and (sc.parallel == "runs" or sc.simulate or sc.api):
                device = pick_device(flags.get("device", "auto"))
                if os.environ["RANK"] == "0":
                    missing = go(sc, flags, World(device=device), stop)
                elif not (sc.dry_run or sc.simulate or sc.api):
                    workers.attend(workers.Pool(device), stop)
            else:
                with launch(flags.get("device", "auto")) as world:
                    missing = go(sc, flags, world, stop)
    except BrokenPipeError:  # sweep.py --dry_run | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError) as error:
        parser.fail(error)
    except KeyboardInterrupt:
        again = results.command()
        parser.exit(130, f"sweep.py: interrupted; finished cells are kept, the same command goes on: {again}\n")
    return 1 if missing else 0


def go(sc: SweepConfig, flags: dict, world: World, stop) -> int:
    this = Sweep(sc, flags, world, stop)
    if sc.dry_run:
        this.dry_run()
        return 0
    return this.run()


if __name__ == "__main__":
    sys.exit(main())

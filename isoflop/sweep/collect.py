"""Taking the records of finished runs, from any folder, into a sweep's runs.csv: each run_id once.

    sweep.py --collect DIR ...

What is below the folders and is not taken is listed: failed, cut, garbled, edited, or of no cell of this grid.
"""

import os
import shlex
from dataclasses import asdict, dataclass, field
from pathlib import Path

from isoflop.files import folder_lock
from isoflop.options import UserError
from isoflop.sweep import slurm
from isoflop.sweep.cells import Cell
from isoflop.sweep.jobs import read_record
from isoflop.sweep.results import UNFINISHED, ResultsFile
from isoflop.train.record import RunRecord

PLANNED = "n_embd n_layer block_size vocab_size seed n_params_matmul tokens_per_step lr".split()  # as in the plan


def collect(job, settle, finish) -> int:
    """Take the run.json files below --collect's folders into the CSV, and fit it. Returns how many cells lack one.

    job : sweep.Job. settle, finish : of sweep.py, which write a row, and fit.
    """
    sc, planner = job.sc, job.planner
    found = find(sc.collect)
    if planner.compute.source in ("probe", "device"):  # a guess of this machine's: the runs know
        types = {record.dtype for pairs in found.records.values() for _, record in pairs}
        for each in filter(None, (planner, job.other)):
            each.keep_type(max(types) if len(types) == 1 else None)
    check_some_fit(
        job, found, ResultsFile.open(sc.out_dir, planner.source, job.texts, repair=False, drop=sc.drop_bad_rows)
    )
    with folder_lock(sc.out_dir, "sweep"):
        results = ResultsFile.open(sc.out_dir, planner.source, job.texts, drop=sc.drop_bad_rows)
        results.price_per_hour = sc.price_per_hour
        todo = []
        before = len(results.all_rows())
        for cells in job.stages(results):
            new = take(cells, found, results)
            job.known += len(new)
            for cell, record in new:
                settle(job, cell, {"record": record}, results)
            missing = results.missing(cells, planner, sc.retry)
            todo += missing
            if missing and not sc.ablation:
                break
        for text in found.left_out + of_another_grid(found):
            print(f"left out: {text}")
        print(f"collected {len(results.all_rows()) - before} runs")
        job.why = slurm.reasons(todo, found.folders, results.folder)
        probes = [c for c in todo if c.probe]
        for cell in probes:
            print(f"no result: {cell}, lr {cell.plan.lr:.3g} ({job.why[cell.run_id]})")
        if probes:
            print(f"{len(probes)} runs that look for a learning rate have no result; --print_commands prints them")
        return finish(job, results, "") or len(todo)


# ----- its parts -----


@dataclass
class Found:
    """What find() has found below some folders."""

    records: dict[str, list[tuple[Path, RunRecord]]] = field(default_factory=dict)  # by run_id
    folders: dict[str, Path] = field(default_factory=dict)  # by name: those that may be of a run
    left_out: list[str] = field(default_factory=list)  # a line each: path and reason


def find(roots) -> Found:
    """The run.json files below folders; UserError where a folder is not there, or none has any."""
    found, seen = Found(), set()
    for root in roots:
        if not Path(root).is_dir():
            raise UserError(f"--collect {root}: no such folder; name one with run.json files somewhere below it")
    for root in roots:
        for place, folders, names in os.walk(root):
            folders.sort()
            folder = Path(place)
            if folder.resolve() in seen:
                continue
            seen.add(folder.resolve())
            found.folders.setdefault(folder.resolve().name, folder)
            if "run.json" not in names:
                continue
            record = read_record(folder / "run.json")
            if isinstance(record, RunRecord):
                found.records.setdefault(record.run_id, []).append((folder / "run.json", record))
            else:
                found.left_out.append(f"{folder / 'run.json'}: {record}")
    if not found.records and not found.left_out:
        raise UserError(
            f"--collect {shlex.join(map(str, roots))}: no run.json below; name a folder that train.py's --out_dir is in"
        )
    return found


def take(cells: list[Cell], found: Found, results: ResultsFile) -> list[tuple[Cell, dict]]:
    """(cell, record) of each cell of a stage whose record was found and that lacks a row, or a good one.

    What was found of these cells is removed from `found`; a record that is not taken is noted in found.left_out.
    """
    new = []
    for cell in cells:
        rows = [r for r in results.all_rows() if r["run_id"] == cell.run_id]
        chosen = None
        candidates = found.records.pop(cell.run_id, [])
        for path, record in sorted(candidates, key=lambda pair: pair[1].status != "ok"):
            reason = unusable(cell, record, rows, chosen)
            if reason:
                found.left_out.append(f"{path}: {reason}")
            elif chosen is None and not is_known(record, rows):
                chosen = record
        if chosen:
            new.append((cell, asdict(chosen) | {"flop_budget": cell.flop_budget}))
    return new


def is_known(record: RunRecord, rows: list[dict]) -> bool:
    """Whether a run has its row: a failure is known by any row, a result by a good one."""
    return any(record.status != "ok" or r["status"] == "ok" for r in rows)


def unusable(cell: Cell, record: RunRecord, rows: list[dict], chosen: RunRecord | None) -> str:
    """Why the record of a cell's run_id can't be its row, or ""."""
    if record.status in UNFINISHED:
        return f"{record.run_id} was cut after {record.steps} steps ({record.status})"
    planned = {**asdict(cell.tc), **asdict(cell.mc), **asdict(cell.plan)}
    names = [*PLANNED, "steps"] if record.status == "ok" else PLANNED
    for name in names:
        if getattr(record, name) != planned[name]:
            return f"{name} is {getattr(record, name)}, of {record.run_id} it would be {planned[name]}: it was edited"
    losses = {float(r["val_loss"]) for r in rows if r["status"] == "ok"}
    if chosen is not None and chosen.status == "ok":
        losses.add(chosen.val_loss)
    if record.status == "ok" and losses - {record.val_loss}:
        return f"val_loss {record.val_loss} of {record.run_id}, which has {min(losses)} from another folder"
    return ""


def check_some_fit(job, found: Found, results: ResultsFile):
    """UserError where no record is of a cell that is planned by now."""
    known = set()
    for cells in job.stages(results, save=False):
        known |= {c.run_id for c in cells}
        if results.to_run(cells) and not job.sc.ablation:
            break
    if known & set(found.records):
        return
    lines = found.left_out + of_another_grid(found)
    more = f" (and {len(lines) - 1} more like it)" if len(lines) > 1 else ""
    raise UserError(
        f"--collect {shlex.join(map(str, job.sc.collect))}: no record of this sweep's cells; {lines[0]}{more}; give "
        "the flags that the sweep was given"
    )


def of_another_grid(found: Found) -> list[str]:
    """A line for each record that no cell has taken."""
    lines = []
    for pairs in found.records.values():
        for path, r in pairs:
            lines.append(
                f"{path}: {r.run_id} is no cell of this grid ({r.flop_budget:.3g} FLOPs, {r.n_embd} wide, {r.n_layer} "
                f"deep, seed {r.seed}, {r.dtype}, {r.data})"
            )
    return lines

"""The results of a sweep on the disk: what was run and what it cost, through kills and full disks.

    python -c "from isoflop.sweep.results import ResultsFile; print(ResultsFile('sweep_results', repair=False).spent())"

runs.csv has a row per finished cell, probes.csv (same columns) one per run that only looked for a learning rate,
begun.jsonl a line per run that was started. One process writes them; rows are never rewritten.
"""

import contextlib
import csv
import json
import math
import shlex
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from isoflop import files
from isoflop.distributed import launch_command
from isoflop.options import UserError
from isoflop.sweep.cells import Cell
from isoflop.sweep.folder import (
    HEADER,
    append_row,
    as_text,
    free_name,
    move_aside,
    read_begun,
    read_record,
    read_rows,
    wrong_text,
)

UNFINISHED = {"peer_lost", "interrupted"}  # statuses of runs that their machine ended: no results, they run again
FEW_SEEDS = 4  # with fewer degrees of freedom a budget is given the noise of all budgets


# ----- all of a folder -----


def wall_s(row: dict) -> float:
    """Seconds of a run, start-up and evaluation included; of a branch without what its trunk had done."""
    spent, flops = float(row["flops_spent"]), float(row["flops"] or 0)
    share = spent / flops if row["trunk"] and flops else 1.0
    return float(row["train_s"] or 0) * share + float(row["eval_s"] or 0) + float(row["startup_s"] or 0)


class ResultsFile:
    """What was run in the out_dir of a sweep.

    Every cell is noted before it starts: one that never ended counts in full. That makes --total_flops a hard cap: how
    far a killed run came is not known, so it can't be counted as less.
    """

    def __init__(self, out_dir: str | Path, repair: bool = True, drop: bool = False):
        self.folder = Path(out_dir)
        self.path = self.folder / "runs.csv"
        self.probes_path = self.folder / "probes.csv"
        self.begun_path = self.folder / "begun.jsonl"
        self.rows = read_rows(self.path, repair, drop)
        self.probe_rows = read_rows(self.probes_path, repair, drop)
        self.price_per_hour: float | None = None  # of a process, for the column cost
        self.elsewhere = 0.0  # FLOPs that a service has counted and that left nothing here
        # run_id -> FLOPs of each attempt that has left no row
        self.lost: dict[str, list[float]] = read_begun(self.begun_path, repair, drop)
        self._subtract_rows()
        self._check_records(repair, drop)

    @classmethod
    def open(
        cls, out_dir: str | Path, source: str, texts: list, repair: bool = True, drop: bool = False
    ) -> "ResultsFile":
        """The results of a sweep; UserError where the rows in out_dir are of another source of losses or another text.

        texts : token data of this sweep, each with `meta` as in TokenData; losses on two texts have no law in common.
        repair : False to leave damaged files as they are.
        drop : leave out what is wrong in them; with `repair` it is moved to a file NAME.bad.SUFFIX.
        """
        results = cls(out_dir, repair, drop)
        others = {r["source"] for r in results.all_rows()} - {source}
        if others:
            raise UserError(
                f"--out_dir {out_dir} holds rows of another kind ({min(others)}) than this sweep's ({source}); name "
                "another --out_dir"
            )
        known = {(str(t.meta["vocab_size"]), t.meta["corpus_sha256"][:8]) for t in texts}
        for row in results.all_rows():
            name, _, corpus = row["data"].rpartition("@")  # empty where no text was read
            same = [size for size, text in known if size == row["vocab_size"] and corpus in ("", text)]
            if row["vocab_size"] and not same:
                raise UserError(
                    f"--out_dir {out_dir} holds runs on another text ({name or source}, {row['vocab_size']} tokens): "
                    "their losses have no law in common; name another --out_dir"
                )
        return results

    def _subtract_rows(self):
        """Runs that have left a row are not lost."""
        for row in self.probe_rows:
            self._ended(row["run_id"])
        for row in self.rows:
            if not self._is_probe_s(row):
                self._ended(row["run_id"])

    def _check_records(self, repair: bool, drop: bool):
        """UserError where the record of a run that has no row is wrong; recover() takes its row from it."""
        done = self.done()
        for path in sorted(self.folder.glob("cells/*/run.json")):
            if path.parent.name in done:
                continue
            try:
                read_record(path)
            except UserError as error:
                if not drop:
                    raise UserError(wrong_text(str(error), 1, free_name(path), "its run is done again")) from None
                if repair:
                    move_aside(path)

    def _is_probe_s(self, row: dict) -> bool:
        """Whether a row of runs.csv is of a run that a probe has trained and is charged with."""
        return float(row["flops_spent"]) == 0 and row["run_id"] in {r["run_id"] for r in self.probe_rows}

    def _ended(self, run_id: str):
        if self.lost.get(run_id):
            self.lost[run_id].pop()

    # ----- what there is -----

    def all_rows(self) -> list[dict]:
        return self.rows + self.probe_rows

    def done(self) -> set[str]:
        """run_ids that need not run again: in either file, with a result or a failure of their own."""
        return {row["run_id"] for row in self.all_rows() if row["status"] not in UNFINISHED}

    def places(self) -> set[tuple]:
        """The places of the grid that have a usable result, as Cell.place has them."""
        found = set()
        for r in self.rows:
            if r["status"] == "ok":
                found.add((int(r["n_embd"]), int(r["n_layer"]), float(r["flop_budget"]), int(r["seed"])))
        return found

    def spent(self) -> float:
        """FLOPs of everything ever run here, probes and cut-off runs included."""
        rows = sum(float(r["flops_spent"]) for r in self.all_rows())
        return rows + self.cut_off() + self.elsewhere

    def cut_off(self) -> float:
        """FLOPs of runs that never ended, each counted in full."""
        return sum(map(sum, self.lost.values()))

    def hours(self) -> float:
        """Hours of all runs, start-up and evaluation included; two that ran side by side count twice."""
        return sum(wall_s(r) for r in self.probe_rows + [r for r in self.rows if not self._is_probe_s(r)]) / 3600

    def cost(self) -> float:
        """The price of all runs, by the column that --price_per_hour fills."""
        return sum(float(r["cost"] or 0) for r in self.all_rows())

    # ----- what is added -----

    def begin(self, cell: Cell):
        """Note that a cell is started."""
        files.append_line(self.begun_path, json.dumps({"run_id": cell.run_id, "flops": cell.cost}))
        self.lost.setdefault(cell.run_id, []).append(cell.cost)

    def withdraw(self, cell: Cell):
        """Take a begun cell back: its checkpoint is kept, and it will count when it is resumed."""
        files.append_line(self.begun_path, json.dumps({"run_id": cell.run_id, "flops": -cell.cost}))
        self._ended(cell.run_id)

    def add(self, cell: Cell, record: dict, source: str):
        """Append the row of a cell that ended, one way or another."""
        steps = record["steps"] or 0
        computed = 1.0
        if cell.start and steps:
            computed = 1 - cell.start_step / steps
        if cell.dtype_from:  # the run itself was handed a type
            record = record | {"dtype_from": cell.dtype_from}
        self._append(cell, record, source, round((record["flops"] or 0) * computed))
        self._ended(cell.run_id)

    def _append(self, cell: Cell, record: dict, source: str, flops_spent: int):
        row = record | {"source": source, "lr_from": cell.lr_from, "lr_on_edge": cell.lr_on_edge}
        row |= {"trunk": cell.trunk, "flops_spent": flops_spent, "cost": None}
        if self.price_per_hour and row["train_s"]:
            of_a_probe = not cell.probe and not flops_spent  # which has its cost
            hours = 0.0 if of_a_probe else wall_s(row) / 3600
            row["cost"] = round(self.price_per_hour * float(row["world_size"] or 1) * hours, 6)
        path, rows = self.path, self.rows
        if cell.probe:
            path, rows = self.probes_path, self.probe_rows
        append_row(path, row)
        rows.append(as_text(row))

    def recover(self, cell: Cell, source: str) -> bool:
        """Take the row of a run that finished, and was killed before its row was written, from its run.json."""
        try:
            record = read_record(Path(cell.tc.out_dir) / "run.json")
        except files.ABSENT:
            return False
        if record.run_id != cell.run_id or record.status in UNFINISHED:
            return False
        self.add(cell, asdict(record), source)
        return True

    def adopt(self, cell: Cell, source: str):
        """Where a probe was the very run of a cell, give the cell its row: the probe's, for which nothing is spent.

        The best rate of a budget can be the first or last tried; its cell then has the run_id of that probe.
        """
        if cell.probe or cell.run_id in {r["run_id"] for r in self.rows if r["status"] not in UNFINISHED}:
            return
        for row in self.probe_rows:
            if row["run_id"] == cell.run_id and row["status"] not in UNFINISHED:
                self._append(cell, row, source, 0)
                return

    def missing(self, cells: list[Cell], planner, retry: bool = False) -> list[Cell]:
        """The cells that are still to run. Rows that need no run are added first: of cells that are refused, that a
        probe has run, or whose row a kill has cost.

        retry : run what has no usable result, whatever has run in its place of the grid.
        """
        done, places = self.done(), self.places()
        for cell in cells:
            self.adopt(cell, planner.source)
            if cell.refused and cell.run_id not in done and cell.place not in places:
                self.add(cell, planner.record(cell, "refused"), planner.source)
        todo = self.to_run(cells, retry)
        if planner.source == "trained" and not retry:
            todo = [c for c in todo if not self.recover(c, planner.source)]
        return todo

    def to_run(self, cells: list[Cell], retry: bool = False) -> list[Cell]:
        """The cells without a row, or with `retry` without a result, but for those that can't be run."""
        planned = [c for c in cells if not c.refused]
        if retry:
            fine, places = {r["run_id"] for r in self.all_rows() if r["status"] == "ok"}, self.places()
            return [c for c in planned if c.run_id not in fine and (c.probe or c.place not in places)]
        done = self.done()
        return [c for c in planned if c.run_id not in done]

    def clear_trunks(self, cells: list[Cell]):
        """Remove the checkpoints of trunks whose branches have all run."""
        done, trunks = self.done(), self.folder / "trunks"
        for trunk in cells:
            branches = [c for c in cells if c.trunk == trunk.run_id]
            if trunk.keep and all(c.run_id in done for c in branches):
                shutil.rmtree(trunks / trunk.run_id, ignore_errors=True)
        with contextlib.suppress(OSError):  # not there, or not empty
            trunks.rmdir()


def seed_noise(rows: list[dict]) -> dict:
    """Noise of ln L between seeds: {"all": (sd, degrees of freedom), budget: (sd, df)}; {} where none."""
    losses = {}
    for r in rows:
        if r["status"] == "ok":
            cell = tuple(r[k] for k in ("n_embd", "n_layer", "flop_budget", "lr", "tokens_per_step"))
            losses.setdefault(cell, []).append(math.log(float(r["val_loss"])))
    pools = {}
    for cell, values in losses.items():
        for pool in ("all", float(cell[2])):
            square, df = pools.get(pool, (0.0, 0))
            pools[pool] = (square + float(np.var(values)) * len(values), df + len(values) - 1)
    return {pool: (math.sqrt(square / df), df) for pool, (square, df) in pools.items() if df}


def write_with_noise(results: ResultsFile, noise: dict) -> Path:
    """seeds.csv: the rows of runs.csv with the noise of their budget, in nats, as one more column for fit.py."""
    path = results.folder / "seeds.csv"
    with files.atomic(path) as f:
        out = csv.DictWriter(f, [*HEADER, "seed_noise"])
        out.writeheader()
        for r in results.rows:
            sd, df = noise.get(float(r["flop_budget"]), noise["all"])
            if df < FEW_SEEDS:
                sd = noise["all"][0]
            noise_nats = sd * float(r["val_loss"]) if r["val_loss"] else ""
            out.writerow(r | {"seed_noise": noise_nats})
    return path


def resume_command(without: tuple[str, ...] = (), more: list[str] | tuple[str, ...] = ()) -> str:
    """This very command line, as a person would type it again: less the flags `without`, and with `more` at its end."""
    words, keep = [], True
    for word in sys.argv[1:]:
        if word.startswith("--"):
            keep = word[2:].split("=")[0] not in without
        if keep:
            words.append(word)
    return shlex.join([*launch_command(), Path(sys.argv[0]).name, *words, *more])

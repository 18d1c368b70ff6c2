"""The CSV of a sweep and the lock on its folder: what was run and what it cost, through kills and full disks.

    python -c "import ledger; print(ledger.Book('sweep_results', mend=False).spent())"

runs.csv has a row per finished cell, probes.csv (same columns) one per run that only looked for a learning rate. One
process writes them; rows are never rewritten.
"""

import contextlib
import csv
import fcntl
import io
import json
import math
import os
import shlex
import socket
import sys
import time
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np

from isoflop.distributed import launcher
from isoflop.sweep.cells import Cell
from isoflop.train.record import RunRecord

# A record's columns, then those that only a sweep knows.
#   source       trained, or what a loss was drawn from or asked of: never mix them in one fit
#   lr_from      rule, given, or tuned (--tune_lr, --lrs)
#   lr_on_edge   whether the best rate tried at this budget was the smallest or the largest one
#   trunk        run_id of the run that this one branched off
#   flops_spent  what was computed for this row: less than `flops`, the run's own 6ND, by what its trunk had done
EXTRA = ("source", "lr_from", "lr_on_edge", "trunk", "flops_spent")
HEADER = [f.name for f in fields(RunRecord)] + list(EXTRA)


# ----- the folder's lock -----


@contextlib.contextmanager
def locked(out_dir: Path):
    """Hold out_dir for this process: an operating-system lock, which dies with it. The file says who holds it."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        handle = open(out_dir / ".lock", "a+")
    except OSError as error:
        raise ValueError(f"--out_dir {out_dir} can't be written ({error.strerror}); name another folder") from None
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            handle.seek(0)
            who = handle.read().strip() or "unknown process"
            raise ValueError(
                f"--out_dir {out_dir} is in use by another sweep ({who}); wait for it, or name another"
            ) from None
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only its note is missing
            handle.truncate(0)
            handle.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n")
            handle.flush()
        yield


# ----- the CSV -----


def read_rows(path: Path, mend: bool = True) -> list[dict]:
    """The rows of a CSV of ours. A damaged last row (a kill, a full disk) is moved aside; its run is done again."""
    if not path.exists() or not path.stat().st_size:
        return []
    raw = path.read_bytes()
    whole = raw[: raw.rfind(b"\n") + 1]
    ours = ",".join(HEADER).encode() + b"\n"
    if not raw.startswith(ours) and not ours.startswith(raw):  # the second: our own header, cut short
        odd = sorted(set(raw.decode(errors="replace").split("\n")[0].strip().split(",")) ^ set(HEADER))
        raise ValueError(
            f"{path} has another header (differs in {', '.join(odd[:6]) or 'the order of its columns'}); it is left "
            "as it is: name another --out_dir, or move it away"
        )
    rows = list(csv.reader(io.StringIO(whole.decode(errors="replace"), newline="")))
    bad = [i for i, row in enumerate(rows) if i and not _sound(row)]
    if bad and bad[0] < len(rows) - 1:
        raise ValueError(f"{path}: line {bad[0] + 1} is damaged; delete that line, and its run is done again")
    if bad:
        whole = whole[: whole[:-1].rfind(b"\n") + 1]
        rows = rows[:-1]
    if raw != whole and mend:
        with open(path.with_suffix(".torn"), "ab") as f:
            f.write(raw[len(whole) :] + b"\n")
        os.truncate(path, len(whole))
    return [dict(zip(HEADER, row, strict=True)) for row in rows[1:]]


def _sound(row: list[str]) -> bool:
    """Whether a row has every column, and numbers where spending is counted."""
    if len(row) != len(HEADER):
        return False
    try:
        cells = dict(zip(HEADER, row, strict=True))
        return bool(cells["run_id"] and cells["status"] and float(cells["flops_spent"]) >= 0)
    except ValueError:
        return False


def append_row(path: Path, row: dict):
    """One row in one write, on the disk before this returns."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if not path.exists() or not path.stat().st_size:
        writer.writerow(HEADER)
    writer.writerow("" if row.get(name) is None else row[name] for name in HEADER)
    append(path, text.getvalue())


def append(path: Path, text: str):
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        if os.write(fd, text.encode()) < len(text.encode()):
            raise OSError(f"{path}: the disk is full; make room and run the same command again, no run is lost")
        os.fsync(fd)
    finally:
        os.close(fd)


class Book:
    """What was run in an out_dir. Every cell is noted before it starts: one that never ended counts in full.

    That makes --total_flops a hard cap: how far a killed run came is not known, so it can't be counted as less.
    """

    def __init__(self, out_dir: str | Path, mend: bool = True):
        self.folder = Path(out_dir)
        self.path, self.probes, self.begun = (self.folder / n for n in ("runs.csv", "probes.csv", "begun.jsonl"))
        self.rows, self.probe_rows = read_rows(self.path, mend), read_rows(self.probes, mend)
        self.elsewhere = 0.0  # FLOPs that a service has counted and that left nothing here
        self.lost: dict[str, list[float]] = {}  # run_id -> FLOPs of each attempt that has left no row
        if self.begun.exists():
            for line in self.begun.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    note = json.loads(line)
                    if note["flops"] < 0:
                        self._ended(note["run_id"])
                    else:
                        self.lost.setdefault(note["run_id"], []).append(float(note["flops"]))
        for row in self.all_rows():
            self._ended(row["run_id"])

    def _ended(self, run_id: str):
        if self.lost.get(run_id):
            self.lost[run_id].pop()

    def all_rows(self) -> list[dict]:
        return self.rows + self.probe_rows

    def done(self) -> set[str]:
        return {row["run_id"] for row in self.all_rows()}

    def spent(self) -> float:
        """FLOPs of everything ever run here, probes and cut-off runs included."""
        return (
            sum(float(r["flops_spent"]) for r in self.all_rows()) + sum(map(sum, self.lost.values())) + self.elsewhere
        )

    def hours(self) -> float:
        """Hours of all runs, start-up and evaluation included; two that ran side by side count twice."""
        seconds = 0.0
        for r in self.all_rows():
            share = float(r["flops_spent"]) / float(r["flops"]) if r["trunk"] and float(r["flops"] or 0) else 1.0
            seconds += float(r["train_s"] or 0) * share + float(r["eval_s"] or 0) + float(r["startup_s"] or 0)
        return seconds / 3600

    def begin(self, cell: Cell):
        append(self.begun, json.dumps({"run_id": cell.run_id, "flops": cell.cost}) + "\n")
        self.lost.setdefault(cell.run_id, []).append(cell.cost)

    def withdraw(self, cell: Cell):
        """Take a begun cell back: its checkpoint is kept, and it will count when it goes on."""
        append(self.begun, json.dumps({"run_id": cell.run_id, "flops": -cell.cost}) + "\n")
        self._ended(cell.run_id)

    def add(self, cell: Cell, record: dict, source: str) -> dict:
        """Append the row of a cell that ended, one way or another."""
        ran = record["steps"] or 0
        began = cell.start_step if cell.start and ran else 0
        row = record | {
            "source": source, "lr_from": cell.lr_from, "lr_on_edge": cell.lr_on_edge, "trunk": cell.trunk,
            "flops_spent": round((record["flops"] or 0) * (1 - began / ran if ran else 1)),
        }  # fmt: skip
        append_row(self.probes if cell.probe else self.path, row)
        row = {name: "" if row.get(name) is None else str(row[name]) for name in HEADER}
        (self.probe_rows if cell.probe else self.rows).append(row)
        self._ended(cell.run_id)
        return row

    def recover(self, cell: Cell, source: str) -> bool:
        """Take the row of a run that finished, and was killed before its row was written, from its run.json."""
        try:
            record = RunRecord(**json.loads((Path(cell.tc.out_dir) / "run.json").read_text()))
        except (OSError, ValueError, TypeError, AttributeError):
            return False
        if record.run_id != cell.run_id or record.status == "interrupted":
            return False
        self.add(cell, asdict(record), source)
        return True


def places(book: Book) -> set[tuple]:
    """Where in the grid there is a result, whatever its rate or batch."""
    return {
        (int(r["n_embd"]), int(r["n_layer"]), float(r["flop_budget"]), int(r["seed"]))
        for r in book.rows
        if r["status"] == "ok"
    }


def seed_noise(rows: list[dict]) -> dict:
    """Noise of ln L between seeds: {"all": (sd, degrees of freedom), budget: (sd, df)}; {} where none."""
    cells, pools = {}, {}
    for r in rows:
        if r["status"] == "ok":
            key = tuple(r[k] for k in ("n_embd", "n_layer", "flop_budget", "lr", "tokens_per_step"))
            cells.setdefault(key, []).append(math.log(float(r["val_loss"])))
    for key, losses in cells.items():
        for pool in ("all", float(key[2])):
            square, df = pools.get(pool, (0.0, 0))
            pools[pool] = (square + float(np.var(losses)) * len(losses), df + len(losses) - 1)
    return {k: (math.sqrt(s / df), df) for k, (s, df) in pools.items() if df} if pools.get("all", (0, 0))[1] else {}


def with_noise(book: Book, noise: dict) -> Path:
    """seeds.csv: the rows of runs.csv with the noise of their budget, in nats, as one more column for fit.py."""
    path, few = book.folder / "seeds.csv", 4  # with fewer degrees of freedom a budget is given all budgets' noise
    part = path.with_suffix(".part")
    with open(part, "w", newline="") as f:
        out = csv.DictWriter(f, [*HEADER, "seed_noise"])
        out.writeheader()
        for r in book.rows:
            sd, df = noise.get(float(r["flop_budget"]), noise["all"])
            sd = sd if df >= few else noise["all"][0]
            out.writerow(r | {"seed_noise": sd * float(r["val_loss"]) if r["val_loss"] else ""})
    os.replace(part, path)
    return path


def command(without: tuple[str, ...] = (), more: list[str] | tuple[str, ...] = ()) -> str:
    """This very command line, as a person would type it again: less the flags `without`, and with `more` at its end."""
    words, keep = [], True
    for word in sys.argv[1:]:
        if word.startswith("--"):
            keep = word[2:].split("=")[0] not in without
        if keep:
            words.append(word)
    return shlex.join([*launcher(), Path(sys.argv[0]).name, *words, *more])

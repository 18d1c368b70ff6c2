"""Cells as a job array of Slurm: sbatch queues a stage's cells, squeue says how far it is, run.json what came of it.

    sweep.py --slurm "--gpus-per-task=1 --time=1:00:00"

Array is an executor as those of executors.py. Slurm decides what runs when and where. OUT_DIR/slurm has the lines of
each array, the output of its tasks (ARRAY_TASK.log), and submitted.jsonl, a line per array: its number, compute type
and the run_ids of its tasks.
"""

import contextlib
import json
import re
import shlex
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from isoflop import files
from isoflop.options import UserError
from isoflop.sweep.cells import Cell, Planner
from isoflop.sweep.executors import Queue
from isoflop.sweep.jobs import ROOT, line, read_record
from isoflop.sweep.results import UNFINISHED
from isoflop.train.record import RunRecord

SCRIPT = ROOT / "docs" / "slurm_array.sh"
OURS = re.compile(r"(--array|--chdir|--output|--wrap|--wait|--parsable|--test-only|-a|-D|-o|-W)(=.*)?$")
NO_CLUSTER = re.compile("configuration source|fetch config|[Uu]nable to contact|[Cc]onnection refused")
ENDED = set("BOOT_FAIL CANCELLED COMPLETED DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED REVOKED TIMEOUT".split())
MOST_TASKS = 1000  # of an array, where the cluster does not say (MaxArraySize)
POLL_S = (1.0, 15.0)  # how often squeue is asked: at first, and in the long run
CANCELLED = re.compile(r"\*\*\* (?:JOB|STEP) \S+ ON \S+ CANCELLED AT \S+( DUE TO [A-Z ]+)? \*\*\*")


def call(*words) -> subprocess.CompletedProcess:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, errors="replace")


def check_options(text: str, device: str, flags: dict):
    """UserError where --slurm can't work: no Slurm here, options that sbatch refuses or that this module sets.

    device : of this machine. flags : the typed flags of train.py.
    """
    try:
        options = shlex.split(text)
    except ValueError as error:
        raise UserError(f"--slurm {text}: {error}; quote the options of sbatch once, as --slurm '--time=60'") from None
    for word in options:
        if OURS.match(word):
            raise UserError(f"--slurm {word}: the sweep sets it; leave it out (--workers N caps the jobs at one time)")
    if not (shutil.which("sbatch") and shutil.which("squeue")):
        raise UserError("--slurm needs sbatch and squeue on the PATH; where there is no Slurm, use --print_commands")
    unknown = device == "cpu" and flags.get("device", "auto") == "auto" and flags.get("dtype", "auto") == "auto"
    if unknown and re.search("gpu|gres", text):
        raise UserError(
            f"--slurm {text} asks for GPUs, and there is none here that tells the compute type: give --dtype bfloat16 "
            "(or float32, as on old GPUs)"
        )
    tried = call("sbatch", "--test-only", "--array=1", *options, SCRIPT)
    if tried.returncode:
        said = complaint(tried)
        way_out = "correct the options, `sbatch --help` lists them"
        if NO_CLUSTER.search(said):
            way_out = "sbatch reaches no cluster from here; start it where it does, or use --print_commands"
        raise UserError(f"--slurm {text}: {said}; {way_out}")


def complaint(done: subprocess.CompletedProcess) -> str:
    """What a command of Slurm's has to say against what was asked, on one line."""
    lines = [text for text in done.stderr.splitlines() if text.strip() and "Try " not in text]
    return " ".join(" ".join(lines).split()) or f"status {done.returncode}"


# ----- the executor -----


class Array:
    """Runs the cells of a stage as an array.

    Parameters
    ----------
    planner : makes the lines; planner.env.size processes share a cell.
    options : of sbatch, as one text.
    at_once : how many jobs may run at one time, or None.
    wait : False to submit, and no more.
    """

    def __init__(self, planner: Planner, options: str, at_once: int | None = None, wait: bool = True):
        self.planner = planner
        self.options = shlex.split(options)
        self.at_once = at_once
        self.wait = wait
        self.folder = (planner.out_dir / "slurm").absolute()
        self.said = ""

    def in_order(self, cells: list[Cell], limits) -> list[Cell]:
        """The cells as they are to start: the longest first, but under a cap."""
        if limits.total_flops or limits.max_hours:
            return cells
        return sorted(cells, key=lambda c: -c.cost)

    def run(self, queue: Queue) -> Iterator[tuple[Cell, dict]]:
        """Submit the cells, but for those that are in Slurm's queue; then yield (cell, answer) as they end."""
        tasks = self._under_way(queue.todo)
        for cell in queue.todo:
            if cell.run_id in tasks:
                queue.results.withdraw(cell)  # take() notes it once more
        taken = []
        while (cell := queue.take()) is not None:
            taken.append(cell)
        old = [c for c in taken if c.run_id in tasks]
        if old:
            self.planner.env.print0(f"{len(old)} cells are in Slurm's queue already: {self._arrays(tasks)}")
        new = [c for c in taken if c.run_id not in tasks]
        while new:
            most = most_tasks()
            some, new = new[:most], new[most:]
            try:
                tasks |= self._submit(some)
            except OSError:
                for cell in some + new:
                    queue.results.withdraw(cell)
                raise
        if self.wait:
            yield from self._follow(queue, taken, tasks)

    def _submit(self, cells: list[Cell]) -> dict[str, str]:
        """{run_id: ARRAY_TASK} of a new array of these cells; OSError where sbatch refuses it."""
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"jobs_{time.time_ns()}.txt"
        files.write_text(path, "".join(line(c, self.planner) + "\n" for c in cells))
        array = f"--array=1-{len(cells)}"
        if self.at_once:
            array += f"%{self.at_once}"
        where = [f"--chdir={ROOT}", f"--output={self.folder}/%A_%a.log"]
        done = call("sbatch", "--parsable", *self.options, array, *where, SCRIPT, path)
        if done.returncode:
            raise OSError(f"sbatch: {complaint(done)}; correct the options of --slurm, and give the command again")
        number = done.stdout.strip().split(";")[0]
        note = {"array": number, "dtype": self.planner.compute.name, "run_ids": [c.run_id for c in cells]}
        files.append_line(self.folder / "submitted.jsonl", json.dumps(note))
        self.planner.env.print0(f"array {number}: {len(cells)} jobs, submitted as: {shlex.join(done.args)}")
        return {c.run_id: f"{number}_{i}" for i, c in enumerate(cells, 1)}

    def _under_way(self, cells: list[Cell]) -> dict[str, str]:
        """{run_id: ARRAY_TASK} of the cells that were submitted earlier and are still in Slurm's queue."""
        tasks = submitted(self.folder.parent)
        wanted = {c.run_id: tasks[c.run_id] for c in cells if c.run_id in tasks}
        states = states_of(wanted.values())
        return {run_id: task for run_id, task in wanted.items() if states.get(task, "CANCELLED") not in ENDED}

    def _arrays(self, tasks: dict[str, str]) -> str:
        return ", ".join(sorted({f"array {task.split('_')[0]}" for task in tasks.values()}))

    def _follow(self, queue: Queue, cells: list[Cell], tasks: dict[str, str]) -> Iterator[tuple[Cell, dict]]:
        """Yield (cell, answer) as the tasks end; all of them fail where not one has left a record."""
        started = {r["run_id"]: r["started"] for r in queue.results.all_rows()}
        running = {c.run_id: c for c in cells}
        ended, records, begun = set(), 0, time.monotonic()
        while running:
            # ask Slurm; one that does not answer is asked again
            states = None
            try:
                states = states_of(tasks[run_id] for run_id in running)
                self._progress(states, len(cells) - len(running), len(cells), tasks)
            except OSError as error:
                self._say(f"{error}; asking again")

            # collect what has ended; without a record it is looked at twice: files of other machines come late
            for run_id, cell in list(running.items()):
                gone = states is not None and states.get(tasks[run_id], "gone") in ENDED | {"gone"}
                record = finished_record(cell, started.get(run_id))
                if record:
                    records += 1
                    del running[run_id]
                    yield cell, {"record": asdict(record)}
                elif gone and run_id in ended:
                    del running[run_id]
                    yield cell, self._without_record(cell, tasks[run_id], states.get(tasks[run_id], ""))
                elif gone:
                    ended.add(run_id)

            # wait
            until = time.monotonic() + min(POLL_S[1], POLL_S[0] + (time.monotonic() - begun) / 20)
            while running and time.monotonic() < until:
                if queue.stop():
                    where = self._arrays({run_id: tasks[run_id] for run_id in running})
                    self.planner.env.print0(f"{where} goes on; `scancel` ends it, the same command waits for it again")
                    return
                time.sleep(0.2)
        if cells and not records:
            raise OSError(f"none of the {len(cells)} jobs has left a record; what they said is in {self.folder}")

    def _progress(self, states: dict[str, str], ended: int, planned: int, tasks: dict[str, str]):
        counts = {}
        for task in tasks.values():
            state = states.get(task, "")
            if state and state not in ENDED:
                counts[state.lower()] = counts.get(state.lower(), 0) + 1
        text = ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))
        if text:
            self._say(f"{self._arrays(tasks)}: {text}, {ended} of {planned} collected")

    def _say(self, text: str):
        """Print a line, unless it was the last one that was printed."""
        if text != self.said:
            self.said = text
            self.planner.env.print0(text)

    def _without_record(self, cell: Cell, task: str, state: str) -> dict:
        """The answer to a cell whose job has ended without one; it has no row, and runs again with the next sweep."""
        words = [f"job {task}", state.lower()]
        folder = Path(cell.tc.out_dir)
        kept = any(folder.glob("checkpoints/step_*"))
        reason = last_words(self.folder / f"{task}.log")
        if kept:
            reason = why_missing(cell, {})
        text = " ".join(word for word in words if word)
        if reason:
            text += f": {reason}"
        return {"status": "interrupted", "error": text, "saved": kept or not folder.is_dir()}


def finished_record(cell: Cell, started: str | None) -> RunRecord | None:
    """The record of a cell that has ended; None without one, or where it is that of its row, started then."""
    record = read_record(Path(cell.tc.out_dir) / "run.json")
    if not isinstance(record, RunRecord) or record.run_id != cell.run_id or record.status in UNFINISHED:
        return None
    return None if record.started == started else record


def most_tasks() -> int:
    """How many tasks an array may have on this cluster."""
    found = re.search(r"MaxArraySize\s*=\s*(\d+)", call("scontrol", "show", "config").stdout)
    return max(1, int(found[1]) - 1) if found else MOST_TASKS


# ----- what was submitted -----


def states_of(tasks) -> dict[str, str]:
    """{ARRAY_TASK: state} of the arrays of these tasks; what Slurm has forgotten is not in it.

    OSError where Slurm does not answer.
    """
    states = {}
    for number in sorted({task.split("_")[0] for task in tasks}):
        done = call("squeue", "-h", "-r", "-t", "all", "-j", number, "-o", "%F_%K %T")
        if done.returncode and "Invalid job id" not in done.stderr:
            raise OSError(f"squeue: {complaint(done)}")
        states |= dict(text.split(" ", 1) for text in done.stdout.splitlines() if " " in text)
    return states


def notes(out_dir: Path) -> list[dict]:
    """The lines of submitted.jsonl; one that a kill cut short is left out: its cells are submitted again."""
    path, found = Path(out_dir) / "slurm" / "submitted.jsonl", []
    if not path.exists():
        return found
    kinds = {"array": str, "dtype": str, "run_ids": list}
    for text in files.regular(path).read_text(errors="replace").splitlines():
        with contextlib.suppress(ValueError):
            note = files.parse_json(text)
            files.check_fields(note, kinds, "it", needed=kinds)
            found.append(note)
    return found


def submitted(out_dir: Path) -> dict[str, str]:
    """{run_id: ARRAY_TASK} of everything that was ever submitted from a sweep's folder, the last time it was."""
    tasks = {}
    for note in notes(out_dir):
        for i, run_id in enumerate(note["run_ids"], 1):
            tasks[str(run_id)] = f"{note['array']}_{i}"
    return tasks


def compute_type_of(out_dir: Path) -> str | None:
    """The compute type of the last array that was submitted from a sweep's folder; None before the first."""
    types = [note["dtype"] for note in notes(out_dir) if note["dtype"] in ("float32", "bfloat16")]
    return types[-1] if types else None


def last_words(path: Path) -> str:
    """Why a job ended, by its output: who cancelled it, or else its last line; "" without any."""
    try:
        lines = [text.strip() for text in path.read_text(errors="replace").splitlines() if text.strip()]
    except OSError:
        return ""
    for text in reversed(lines[-6:]):
        found = CANCELLED.search(text)
        if found:
            return f"cancelled{(found[1] or '').lower()}"
    return lines[-1][-200:] if lines else ""


def why_missing(cell: Cell, folders: dict[str, Path]) -> str:
    """What the folder of a run without a record says of it; "" where there is none.

    folders : by name, as collect.find() has them.
    """
    folder = folders.get(cell.run_id, Path(cell.tc.out_dir))
    if not folder.is_dir():
        return ""
    steps = sorted(path.name for path in folder.glob("checkpoints/step_*"))
    if steps:
        return f"cut, with a checkpoint after step {int(steps[-1].removeprefix('step_'))}: the same line resumes"
    return "begun, and ended without a record"


def reasons(cells: list[Cell], folders: dict[str, Path], out_dir: Path) -> dict[str, str]:
    """{run_id: what is known of a cell that has no record}: by its job's state and output, and by its folder."""
    tasks = submitted(out_dir)
    tasks = {c.run_id: tasks[c.run_id] for c in cells if c.run_id in tasks}
    states, found = {}, {}
    if tasks and shutil.which("squeue"):
        with contextlib.suppress(OSError):
            states = states_of(tasks.values())
    for cell in cells:
        task, texts = tasks.get(cell.run_id), [cell.run_id]
        if task:
            texts.append(f"job {task} {states.get(task, '').lower()}".strip())
            texts.append(last_words(Path(out_dir) / "slurm" / f"{task}.log"))
        texts.append(why_missing(cell, folders))
        if not any(texts[1:]):
            texts.append("never started, or failed at once: see its job's output")
        found[cell.run_id] = ", ".join(text for text in texts if text)
    return found

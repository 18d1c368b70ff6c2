"""A sweep's cells as jobs of their own: a line of train.py each, and the record that it leaves.

    sweep.py --print_commands > jobs.txt

A line has the cell's whole configuration and its compute type, so that it has the cell's run_id on any machine.
"""

import os
import shlex
import shutil
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from isoflop.config import ModelConfig
from isoflop.options import explain, options_of
from isoflop.sweep import folder
from isoflop.sweep.cells import Cell, Planner
from isoflop.sweep.executors import over_cap
from isoflop.sweep.results import UNFINISHED, ResultsFile
from isoflop.train.plan import TrainConfig
from isoflop.train.record import RunRecord

ROOT = Path(__file__).resolve().parents[2]  # of the checkout, where the lines are to be run
OWN = {"device", "dtype", "out_dir", "overwrite", "resume"}  # flags of train.py that a line sets by itself
STATUSES = {"ok", "diverged", "blown_up", "oom", *UNFINISHED}


# ----- a line for a cell -----


def line(cell: Cell, planner: Planner) -> str:
    """The command that trains a cell, for a shell in the checkout; planner.env.size processes share it.

    --resume makes it fit for a job that is requeued: a finished run is not trained again.
    """
    words = launcher(planner.env.size)
    if planner.env.device == "cpu":  # as on a sweep's workers; with more threads the last digits differ
        words = ["env", f"OMP_NUM_THREADS={os.environ.get('OMP_NUM_THREADS', '1')}", *words]
    words += ["train.py", *model_flags(cell.mc), *train_flags(cell.tc)]
    if cell.tc.device != "auto":
        words += ["--device", cell.tc.device]
    words += ["--dtype", cell.tc.dtype, "--out_dir", from_checkout(cell.tc.out_dir), "--resume"]
    return shlex.join(words)


def launcher(processes: int) -> list[str]:
    """python or torchrun, by path where another python than this one is first on the PATH."""
    same = shutil.which("python") == sys.executable
    python = "python" if same else sys.executable
    if processes == 1:
        return [python]
    torchrun = ["torchrun"] if same else [python, "-m", "torch.distributed.run"]
    return [*torchrun, "--standalone", f"--nproc_per_node={processes}"]


def from_checkout(path: str) -> str:
    """A path as a shell in the checkout finds it."""
    return str(path) if Path.cwd() == ROOT else os.path.abspath(path)


def model_flags(mc: ModelConfig) -> list[str]:
    """The flags of train.py that make a model, but for the vocabulary, which comes from the data."""
    implied = {"head_size": mc.head_size, "n_kv_head": mc.n_head, "n_ffn": replace(mc, n_ffn=None).n_ffn}
    words = []
    for f in options_of(ModelConfig):
        value = getattr(mc, f.name)
        sizes = f.name in ("n_layer", "n_embd", "n_head")
        if f.metadata["flag"] and (sizes or value != implied.get(f.name, f.default)):
            words += flag(f.name, value)
    return words


def train_flags(tc: TrainConfig) -> list[str]:
    """The flags of train.py that make a TrainConfig, but for those that a line sets by itself."""
    words = []
    for f in options_of(TrainConfig):
        value = getattr(tc, f.name)
        if f.name == "data_dir":
            value = from_checkout(value)
        if f.name not in OWN and (value != f.default or f.name == "data_dir"):
            words += flag(f.name, value)
    return words


def flag(name: str, value) -> list[str]:
    """A flag as words; floats to the bit."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    text = str(value)
    if isinstance(value, float) and float(f"{value:g}") == value:
        text = f"{value:g}"
    return [f"--{name}", text]


def joined(words: list[str], name: str) -> list[str]:
    """The words of a command line with `--name VALUE` as `--name=VALUE`: this value may begin with a dash."""
    out = []
    for word in words:
        if out and out[-1] == f"--{name}":
            out[-1] += f"={word}"
        else:
            out.append(word)
    return out


# ----- which cells -----


@dataclass
class Runnable:
    """What can run now."""

    cells: list[Cell] = field(default_factory=list)  # the longest first, or in the grid's order under a cap
    refused: list[Cell] = field(default_factory=list)
    uncollected: int = 0  # cells that have run in --out_dir, and have no row yet
    later: bool = False  # whether there are more cells, which depend on the losses of these
    capped: str = ""


def runnable(job, results: ResultsFile) -> Runnable:
    """The cells that have no row, up to the first stage that later ones depend on. Writes nothing.

    job : sweep.Job. results : opened without repair; what can run counts in it as begun.
    """
    found, sc = Runnable(), job.sc
    stages = job.stages(results, save=False)
    todo = {}
    for cells in stages:
        found.refused += [c for c in cells if c.refused]
        missing = results.to_run(cells, sc.retry)
        todo |= {c.run_id: c for c in missing}
        if missing and not sc.ablation:  # whose variants do not depend on each other
            found.later = bool(sc.design) or next(stages, None) is not None
            break
    for cell in todo.values():
        record = read_record(Path(cell.tc.out_dir) / "run.json")
        if isinstance(record, RunRecord) and record.run_id == cell.run_id and not sc.retry:
            found.uncollected += record.status not in UNFINISHED
            if record.status not in UNFINISHED:
                continue
        found.capped = over_cap(cell, results, job.limits, len(found.cells))
        if found.capped:
            break
        found.cells.append(cell)
        results.lost.setdefault(cell.run_id, []).append(cell.cost)
    if not (sc.total_flops or sc.max_hours):
        found.cells.sort(key=lambda c: -c.cost)
    return found


def print_commands(job, results: ResultsFile, out):
    """Write a line per cell that can run now to `out`; remarks go to stdout, which is not `out`."""
    found, planner = runnable(job, results), job.planner
    for cell in found.cells:
        print(line(cell, planner), file=out)
    for cell in found.refused:
        print(f"no line: {cell}: {cell.refused}")
    if found.uncollected:
        print(f"{found.uncollected} cells have run and have no row yet: --collect {results.folder} takes them")
    if found.capped:
        print(f"no more lines: {found.capped}")
    print(f"{len(found.cells)} cells to run, {sum(c.cost for c in found.cells):.4g} FLOPs")
    if found.later:
        print("these can run now; later cells depend on their losses: --collect them, then print again")
    if found.cells and planner.compute.source in ("probe", "device"):
        print(f"they compute in {planner.compute.name}, which suits this machine; for others give --dtype")


# ----- the record that a job leaves -----


def read_record(path: Path) -> RunRecord | str:
    """A run.json of any folder, or what is wrong with it."""
    try:
        record = folder.read_record(path, named=False)
    except (OSError, ValueError) as error:
        return explain(error).removeprefix(f"{path} ").removeprefix(f"{path}: ")
    if record.status not in STATUSES:
        return f"status {record.status[:40]!r} must be one of {', '.join(sorted(STATUSES))}"
    losses = (record.val_loss, record.val_loss_se, record.train_loss)
    if record.status in ("ok", "blown_up") and not all(isinstance(x, (int, float)) for x in losses):
        return f"status {record.status!r}, and a loss is missing"
    return record

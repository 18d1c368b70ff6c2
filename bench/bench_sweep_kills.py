"""Kill sweeps under torchrun over and over, resume them by the same command, compare with sweeps nobody disturbed.

    python bench/bench_sweep_kills.py                                  # 20 kills of each of the 6 kinds, every sweep
    python bench/bench_sweep_kills.py --kills 2 --parallel ddp --victims rank1 agent --sweeps lrs

A kind is a victim (a rank, torchrun itself: the agent) under --parallel ddp or cells, in two processes; the sweeps take
turns. A kill is SIGKILL at a random moment of one of the next cells; with --signal TERM the victim is told to stop
instead, as Slurm does. After every fifth kill the sweep is run to its end, and must have the undisturbed one's rows.
At the end stands a table by kind and by sweep; exit status 1 where a sweep did not end, or has other rows.
"""

import contextlib
import csv
import itertools
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data
from isoflop.cli import Parser, run_main
from isoflop.data.config import DataConfig
from isoflop.display import text_table
from isoflop.options import check, option

ROOT = Path(__file__).resolve().parent.parent
TINY = "--block_size 32 --val_tokens 1024 --device cpu"
SIZES = f"--n_embds 8 16 --n_layers 1 1 {TINY}"
FEW = f"{TINY} --dtype float32 --lr_scale 0.2 --allow_few_steps"
SWEEPS = {  # of 11 to 15 cells; the compute type that "lrs" is left to choose must be the same after each kill
    "tune_lr": f"--flop_budgets 1e8 2e8 --n_embds 8 --n_layers 1 --tune_lr {FEW}",
    "lrs": f"--flop_budgets 1e8 2e8 {SIZES} --lrs 0.005 0.01 0.02",
    "trunks": f"--flop_budgets 1e8 2e8 4e8 8e8 --n_embds 8 12 16 --n_layers 1 1 1 --schedule wsd --reuse_trunk {FEW}",
    "moving": f"--flop_budgets 1e8 2e8 4e8 --sizes 4 {FEW}",
    "adaptive": f"--design adaptive --target_flops 5e9 --total_flops 2e10 {FEW}",
}
KILLS_PER_SWEEP = 5  # in one folder, before it is run to its end
CELLS, SECONDS = 2, 0.5  # a kill is in one of the next so many cells, within so many seconds of its begin
ORPHAN_S = 60.0  # what is left of a killed sweep must have ended by then
CALLS = 2  # of the command until a sweep has run to its end: a machine may fail one that nobody disturbed
LOG_LINES = 60  # of a call that failed, shown, after what says why a process was aborted
REASON = re.compile(r"terminate called|what\(\)|Fatal Python error|^  File |free\(\)|malloc|corrupt|Assertion|peer")
ABORTED = re.compile(r"exitcode\s*: -6 ")
FATAL = re.compile(r"Fatal Python error: (?!Aborted)")  # that one is the handler's word for SIGABRT, which is counted
END_S = 900.0  # a sweep that has not ended by then hangs


@dataclass(frozen=True)
class Config:
    kills: int = option(20, "kills of each kind", group="kills", min=1, max=1000)
    parallel: tuple[str, ...] = option(("ddp", "cells"), "modes", choices=("ddp", "cells"))
    victims: tuple[str, ...] = option(("rank0", "rank1", "agent"), "who", choices=("rank0", "rank1", "agent"))
    sweeps: tuple[str, ...] = option(tuple(SWEEPS), "sweeps that take turns", choices=tuple(SWEEPS))
    signal: str = option("KILL", "signal to send", choices=("KILL", "TERM", "HUP"))
    at_once: int = option(2, "sweeps at once", min=1, max=64)
    data_dir: str | None = option(None, "token folder (default: the embedded text)")
    seed: int = option(0, "of the moments", min=0, max=2**31)

    def __post_init__(self):
        check(self)


@dataclass
class Turn:
    """A sweep that is killed a few times, then run to its end."""

    parallel: str
    victim: str
    sweep: str
    asked: int  # kills
    number: int  # of the turn within its kind
    kills: int = 0
    failed: int = 0  # calls that nobody disturbed
    aborted: int = 0  # of them, those in which a rank ended by SIGABRT, which no exception of Python's does
    ended: bool = False
    equal: bool = False
    note: str = ""

    @property
    def kind(self) -> str:
        return f"{self.parallel} {self.victim}"


# ----- one sweep -----


def command(name: str, parallel: str, data_dir: str, folder: Path) -> list[str]:
    torchrun = "-m torch.distributed.run --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=localhost:0".split()
    flags = [*SWEEPS[name].split(), "--parallel", parallel, "--data_dir", data_dir, "--out_dir", str(folder)]
    return [sys.executable, *torchrun, "sweep.py", *flags]


def start(words: list[str], folder: Path) -> subprocess.Popen:
    # workers inherit it; the handler shows where a process was that its libraries aborted
    env = {**os.environ, "OMP_NUM_THREADS": "1", "KILLS_FOLDER": str(folder), "PYTHONFAULTHANDLER": "1"}
    with open(folder.with_suffix(".log"), "ab") as out:
        return subprocess.Popen(words, cwd=ROOT, env=env, stdout=out, stderr=out, start_new_session=True)


def result(folder: Path) -> dict:
    """{run_id: what must be equal}; ValueError where a run has two rows."""
    with open(folder / "runs.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    found = {r["run_id"]: (r["status"], r["val_loss"], r["train_loss"], r["tokens"], r["lr"]) for r in rows}
    if len(found) != len(rows):
        raise ValueError(f"{folder}: a run has two rows")
    return found


def run_to_end(words: list[str], folder: Path) -> tuple[dict, int, int]:
    """Its rows, calls of the command that failed, those aborted; ValueError where it hangs, or CALLS of them fail."""
    path, aborted = folder.with_suffix(".log"), 0
    for failed in range(CALLS):
        before = path.stat().st_size if path.exists() else 0
        process = start(words, folder)
        try:
            status = process.wait(END_S)
        except subprocess.TimeoutExpired:
            end_all(folder)
            process.wait()
            raise ValueError(f"killed after {END_S:g} s: {path}") from None
        if status == 0:
            return result(folder), failed, aborted
        log = path.read_bytes()[before:].decode(errors="replace")
        aborted += bool(ABORTED.search(log))
        lines = log.splitlines()
        reasons = [line for line in lines[:-LOG_LINES] if REASON.search(line)][-LOG_LINES:]
        shown = "\n".join([*reasons, *lines[-LOG_LINES:]])
        print(f"exit status {status}; the end of {path}:\n{shown}", flush=True)
    raise ValueError(f"exit status {status} of {CALLS} calls; see the log above")


# ----- one kill -----


def processes_of(folder: Path) -> dict[int, str]:
    """{process id: agent, rank0, rank1 or worker} of the sweep in a folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            ours = str(folder).encode() in words
            if not ours and b"--worker" not in words:
                continue
            variables = (path / "environ").read_bytes().split(b"\0")
            if ours and b"torch.distributed.run" in words:
                found[int(path.name)] = "agent"
            elif ours:
                rank = [v[5:].decode() for v in variables if v.startswith(b"RANK=")]
                found[int(path.name)] = f"rank{rank[0]}"
            elif f"KILLS_FOLDER={folder}".encode() in variables:
                found[int(path.name)] = "worker"
    return found


def end_all(folder: Path):
    for pid in processes_of(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def cells_begun(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return len((folder / "begun.jsonl").read_text().splitlines())
    return 0


def kill_once(words, folder: Path, victim: str, number: int, rng) -> bool:
    """Start the sweep and kill its victim while a cell runs; False where the sweep had ended before.

    ValueError where the rest of it does not end.
    """
    until_begun, moment = cells_begun(folder) + rng.randint(1, CELLS), rng.uniform(0, SECONDS)
    agent, until = start(words, folder), time.monotonic() + END_S
    while agent.poll() is None and cells_begun(folder) < until_begun:
        if time.monotonic() > until:
            end_all(folder)
        time.sleep(0.02)
    time.sleep(moment)
    pids = [pid for pid, name in processes_of(folder).items() if name == victim]
    if agent.poll() is not None or not pids:
        agent.wait()
        return False
    os.kill(pids[0], number)
    agent.wait()
    until = time.monotonic() + ORPHAN_S
    while left := processes_of(folder):
        if time.monotonic() > until:
            end_all(folder)
            names = ", ".join(sorted(left.values()))
            raise ValueError(f"{names} outlived the {victim} by {ORPHAN_S:g} s: {folder.with_suffix('.log')}")
        time.sleep(0.1)
    return True


# ----- all of them -----


def turns_of(config: Config) -> list[Turn]:
    """What is to be done: each kind's kills, shared out over the sweeps."""
    turns = []
    for kind, (parallel, victim) in enumerate(itertools.product(config.parallel, config.victims)):
        for number, first in enumerate(range(0, config.kills, KILLS_PER_SWEEP)):
            name = config.sweeps[(kind + number) % len(config.sweeps)]  # kinds begin with different ones
            turns.append(Turn(parallel, victim, name, min(KILLS_PER_SWEEP, config.kills - first), number))
    return turns


def take_turn(turn: Turn, config: Config, data_dir: str, whole: dict, folder: Path) -> Turn:
    """Kill a sweep turn.asked times, run it to its end and compare. One that ended too early is begun anew."""
    rng = random.Random(f"{config.seed} {turn.parallel} {turn.victim} {turn.number}")
    number = signal.Signals[f"SIG{config.signal}"]
    begun, try_ = time.monotonic(), 0
    try:
        while turn.kills < turn.asked:
            try_ += 1
            out = folder / f"{turn.parallel}_{turn.victim}_{turn.number}_{try_}"
            words = command(turn.sweep, turn.parallel, data_dir, out)
            while turn.kills < turn.asked and kill_once(words, out, turn.victim, number, rng):
                turn.kills += 1
            rows, turn.failed, turn.aborted = run_to_end(words, out)
            turn.ended, turn.equal = True, rows == whole[turn.sweep, turn.parallel]
            if not turn.equal:
                raise ValueError(f"other rows than the undisturbed sweep's; see {out}")
            if FATAL.search(out.with_suffix(".log").read_text(errors="replace")):
                turn.note = f"a fatal error of Python; see {out.with_suffix('.log')}"
            shutil.rmtree(out)
    except ValueError as error:
        turn.note = str(error)
    outcome = turn.note or "rows equal"
    print(
        f"{turn.kind:<12} {turn.sweep:<8} SIG{config.signal}: {turn.kills} kills in {time.monotonic() - begun:.0f} s, "
        f"{outcome}",
        flush=True,
    )
    return turn


def counts(turns: list[Turn]) -> list[int]:
    """Kills, sweeps, those that ended, those with equal rows, undisturbed calls that failed, and that aborted."""
    names = ("kills", "ended", "equal", "failed", "aborted")
    kills, *others = (sum(getattr(turn, name) for turn in turns) for name in names)
    return [kills, len(turns), *others]


def table(turns: list[Turn]) -> str:
    """counts() by kind and by sweep."""
    rows = []
    for name in ("kind", "sweep"):
        for value in dict.fromkeys(getattr(turn, name) for turn in turns):
            same = [turn for turn in turns if getattr(turn, name) == value]
            rows.append([value, *counts(same)])
    rows.append(["all", *counts(turns)])
    return text_table(["kind, or sweep", "kills", "sweeps", "ended", "rows equal", "failed calls", "aborted"], rows)


def run(parser: Parser, args) -> int:
    config, begun = parser.read(Config, args), time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="kills_"))
    data_dir = config.data_dir or data.prepare(DataConfig(source="stdlib", out_dir=str(folder / "tokens")))
    data_dir, turns = str(Path(data_dir).resolve()), turns_of(config)

    def undisturbed(pair) -> dict:
        out = folder / f"whole_{pair[0]}_{pair[1]}"
        return run_to_end(command(*pair, data_dir, out), out)[0]

    with ThreadPoolExecutor(config.at_once) as pool:
        pairs = list(dict.fromkeys((turn.sweep, turn.parallel) for turn in turns))
        whole = dict(zip(pairs, pool.map(undisturbed, pairs), strict=True))
        shown = ", ".join(f"{name} {parallel} {len(rows)}" for (name, parallel), rows in whole.items())
        print(f"undisturbed, rows: {shown}; {time.monotonic() - begun:.0f} s", flush=True)
        turns = list(pool.map(lambda turn: take_turn(turn, config, data_dir, whole, folder), turns))
    print(table(turns))
    print(f"{time.monotonic() - begun:.0f} s, {config.at_once} sweeps at once, SIG{config.signal}")
    if any(turn.note for turn in turns):
        return 1
    shutil.rmtree(folder)
    return 0


def main(argv=None) -> int:
    return run_main(Parser("bench_sweep_kills.py", __doc__, Config), run, argv, "what has run is printed above")


if __name__ == "__main__":
    sys.exit(main())

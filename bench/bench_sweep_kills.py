"""Kill sweeps under torchrun over and over, resume them by the same command, compare with sweeps nobody disturbed.

    python bench/bench_sweep_kills.py                                       # 20 kills of each kind, an hour or two
    python bench/bench_sweep_kills.py --kills 2 --parallel ddp --victims rank1 agent --sweeps lrs

A kind is a victim (a rank, torchrun itself: the agent) under --parallel ddp or cells, in two processes; the sweeps take
turns. A kill is SIGKILL at a random moment after a cell has begun; with --signal TERM the victim is told to stop
instead, as Slurm does. After every fourth kill the sweep is run to its end and must have the undisturbed one's rows.
"""

import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import data
from isoflop.cli import Parser, run_main
from isoflop.data.config import DataConfig
from isoflop.options import check, option

ROOT = Path(__file__).resolve().parent.parent
SIZES = "--n_embds 8 16 --n_layers 1 1 --block_size 32 --val_tokens 1024 --device cpu"
SWEEPS = {
    "tune_lr": f"--flop_budgets 1e8 2e8 {SIZES} --lr_scale 0.2 --tune_lr",
    "lrs": f"--flop_budgets 1e8 2e8 {SIZES} --lrs 0.005 0.01 0.02",
    "trunks": f"--flop_budgets 2e8 4e8 8e8 {SIZES} --lr_scale 0.2 --schedule wsd --reuse_trunk",
    "moving": "--flop_budgets 1e8 2e8 --sizes 4 --block_size 32 --val_tokens 1024 --device cpu --lr_scale 0.2"
    " --allow_few_steps",
}
KILLS_PER_SWEEP = 4  # in one folder, before it is run to its end
DELAY_S = 2.0  # longest time from the begin of a cell to the kill
ORPHAN_S = 60.0  # what is left of a killed sweep must have ended by then


@dataclass(frozen=True)
class Config:
    kills: int = option(20, "kills of each kind", group="kills", min=1, max=1000)
    parallel: tuple[str, ...] = option(("ddp", "cells"), "modes", choices=("ddp", "cells"))
    victims: tuple[str, ...] = option(("rank0", "rank1", "agent"), "who", choices=("rank0", "rank1", "agent"))
    sweeps: tuple[str, ...] = option(tuple(SWEEPS), "sweeps that take turns", choices=tuple(SWEEPS))
    signal: str = option("KILL", "signal to send", choices=("KILL", "TERM", "HUP"))
    data_dir: str | None = option(None, "token folder (default: the embedded text)")
    seed: int = option(0, "of the moments", min=0, max=2**31)

    def __post_init__(self):
        check(self)


# ----- one sweep -----


def command(name: str, parallel: str, data_dir: str, folder: Path) -> list[str]:
    torchrun = "-m torch.distributed.run --nproc_per_node=2 --rdzv_backend=c10d --rdzv_endpoint=localhost:0".split()
    flags = [*SWEEPS[name].split(), "--parallel", parallel, "--data_dir", data_dir, "--out_dir", str(folder)]
    return [sys.executable, *torchrun, "sweep.py", *flags]


def start(words: list[str], log: Path) -> subprocess.Popen:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with open(log, "ab") as out:
        return subprocess.Popen(words, cwd=ROOT, env=env, stdout=out, stderr=out, start_new_session=True)


def result(folder: Path) -> dict:
    """{run_id: what must be equal}; ValueError where a run has two rows."""
    with open(folder / "runs.csv", newline="") as f:
        rows = list(csv.DictReader(f))
    found = {r["run_id"]: (r["status"], r["val_loss"], r["train_loss"], r["tokens"], r["lr"]) for r in rows}
    if len(found) != len(rows):
        raise ValueError(f"{folder}: a run has two rows")
    return found


def run_to_end(words: list[str], folder: Path, log: Path) -> dict:
    status = start(words, log).wait()
    if status:
        raise ValueError(f"exit status {status} of an undisturbed sweep; {log} has its output")
    return result(folder)


# ----- one kill -----


def processes_of(folder: Path) -> dict[int, str]:
    """{process id: agent, rank0, rank1 or worker} of the sweep in a folder."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (path / "cmdline").read_bytes().split(b"\0")
            variables = (path / "environ").read_bytes().split(b"\0")
            ours = str(folder).encode() in words
            if ours and b"torch.distributed.run" in words:
                found[int(path.name)] = "agent"
            elif ours:
                rank = [v[5:].decode() for v in variables if v.startswith(b"RANK=")]
                found[int(path.name)] = f"rank{rank[0]}"
            elif b"--worker" in words and f"KILLS_FOLDER={folder}".encode() in variables:
                found[int(path.name)] = "worker"
    return found


def cells_begun(folder: Path) -> int:
    with contextlib.suppress(OSError):
        return len((folder / "begun.jsonl").read_text().splitlines())
    return 0


def kill_once(words, folder: Path, log: Path, victim: str, number: int, rng) -> bool:
    """Start the sweep and kill its victim while a cell runs; False where the sweep had ended before."""
    before = cells_begun(folder)
    os.environ["KILLS_FOLDER"] = str(folder)  # workers inherit it
    agent = start(words, log)
    while agent.poll() is None and cells_begun(folder) == before:
        time.sleep(0.02)
    time.sleep(rng.uniform(0, DELAY_S))
    pids = [pid for pid, name in processes_of(folder).items() if name == victim]
    if agent.poll() is not None or not pids:
        agent.wait()
        return False
    os.kill(pids[0], number)
    agent.wait()
    until = time.monotonic() + ORPHAN_S
    while left := processes_of(folder):
        if time.monotonic() > until:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise ValueError(f"{sorted(left.values())} outlived the {victim} by {ORPHAN_S:g} s; {log}")
        time.sleep(0.1)
    return True


# ----- all of them -----


def kill_kind(config: Config, parallel: str, victim: str, data_dir: str, whole: dict, folder: Path) -> dict:
    """The kills of one kind, counted; ValueError where rows differ."""
    rng = random.Random(f"{config.seed} {parallel} {victim}")
    number = signal.Signals[f"SIG{config.signal}"]
    counts, turn = {"kills": 0, "ended before": 0, "resumed": 0, "fatal errors": 0}, 0
    while counts["kills"] < config.kills:
        name = config.sweeps[turn % len(config.sweeps)]
        out, log = folder / f"{parallel}_{victim}_{turn}", folder / f"{parallel}_{victim}_{turn}.log"
        words = command(name, parallel, data_dir, out)
        in_this = 0
        while in_this < KILLS_PER_SWEEP and counts["kills"] < config.kills:
            if not kill_once(words, out, log, victim, number, rng):
                counts["ended before"] += 1
                break
            in_this += 1
            counts["kills"] += 1
        if run_to_end(words, out, log) != whole[name, parallel]:
            raise ValueError(f"{out}: other rows than the undisturbed sweep's after {in_this} kills of {victim}")
        counts["resumed"] += 1
        text = log.read_text(errors="replace")
        counts["fatal errors"] += text.count("Fatal Python error")  # torchrun's own tracebacks are none of ours
        shutil.rmtree(out)
        turn += 1
    return counts


def run(parser: Parser, args) -> int:
    config = parser.read(Config, args)
    folder = Path(tempfile.mkdtemp(prefix="kills_"))
    data_dir = config.data_dir or str(data.prepare(DataConfig(source="stdlib", out_dir=str(folder / "tokens"))))
    whole, failures = {}, 0
    for name in config.sweeps:
        for parallel in config.parallel:
            out = folder / f"whole_{name}_{parallel}"
            words = command(name, parallel, str(Path(data_dir).resolve()), out)
            whole[name, parallel] = run_to_end(words, out, folder / "whole.log")
    for parallel in config.parallel:
        for victim in config.victims:
            begun = time.monotonic()
            try:
                text = str(kill_kind(config, parallel, victim, str(Path(data_dir).resolve()), whole, folder))
            except ValueError as error:
                text, failures = f"FAILED: {error}", failures + 1
            print(f"{parallel:<6} {victim:<6} SIG{config.signal}: {text}, {time.monotonic() - begun:.0f} s", flush=True)
    if not failures:
        shutil.rmtree(folder)
    return failures


def main(argv=None) -> int:
    return run_main(Parser("bench_sweep_kills.py", __doc__, Config), run, argv, "what has run is printed above")


if __name__ == "__main__":
    sys.exit(main())

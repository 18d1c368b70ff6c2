"""Cells side by side: whole runs on workers of one process each, instead of all processes sharing one small model.

Started by sweep.py --parallel runs, alone or under torchrun. The process that plans (rank 0) hands out cells through a
TCPStore; every process starts one worker of its own and watches it:

    rank 0   Pool.run():     for each ticket that a worker has taken, put a cell under it; collect what comes back
    rank r   attend():       watch the worker, until rank 0 says that all is over
    worker   work():         take a ticket, wait for its cell, train it on one device, put the record back

A worker that dies leaves its cell unfinished, and the others go on: torchrun would end all ranks with the first that
dies, which is why ranks train nothing themselves. Workers end with the process that started them.
"""

import dataclasses
import gc
import json
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from isoflop.config import ModelConfig
from isoflop.device import keep_memory
from isoflop.distributed import World, stop_signals
from isoflop.sweep.cells import Cell
from isoflop.train.plan import TrainConfig
from train import Interrupted, train

ROOT = Path(__file__).resolve().parents[2]
POLL_S = 0.02  # how often rank 0 looks for finished cells
ALIVE_S = 2.0  # how often a process says that it still watches its worker
SILENT_S = 120.0  # a process that has said nothing for so long is taken for dead, with its worker
NAMELESS_S = 10.0  # a ticket whose taker has not said its name for so long is given up
GRACE_S = 20.0  # that runs in hand have to leave a checkpoint when the sweep is told to stop
NEVER, PATIENCE = timedelta(days=30), timedelta(minutes=30)  # for a cell; for the store to come up


# ----- handing out cells -----


class Queue:
    """The cells of a stage that are still to run, in order, and the caps. Whatever take() gives is noted as begun."""

    def __init__(self, cells: list[Cell], book, sc, stop=lambda: False):
        self.todo, self.book, self.sc, self.stopped, self.stop = list(cells), book, sc, "", stop
        self.running: set[str] = set()

    def left(self) -> bool:
        return bool(self.todo) and not self.stopped and not self.stop()

    def take(self) -> Cell | None:
        waiting = {c.run_id for c in self.todo} | self.running
        cell = next((c for c in self.todo if c.trunk not in waiting), None)
        if cell is None or not self.left():
            return None
        self.stopped = over_cap(cell, self.book, self.sc, len(self.running))
        if self.stopped:
            return None
        self.todo.remove(cell)
        self.running.add(cell.run_id)
        self.book.begin(cell)
        return cell


def over_cap(cell: Cell, book, sc, running: int) -> str:
    """Why this cell may not start: the cap that it would break. Everything that has begun counts as if it had ended."""
    spent = book.spent()
    if sc.total_flops and spent + cell.cost > sc.total_flops * (1 + 1e-9):
        return (f"--total_flops {sc.total_flops:g}: {spent:.4g} FLOPs are spent or begun in {book.folder}, and {cell} "
                f"costs {cell.cost:.4g} more; raise it and run the same command")  # fmt: skip
    if sc.max_hours:
        timed = [r for r in book.all_rows() if float(r["flops_spent"]) and float(r["train_s"] or 0)]
        at, more = math.log(cell.plan.n_params_matmul), 0.0
        if timed:
            near = min(timed, key=lambda r: abs(math.log(float(r["n_params_matmul"])) - at))
            took = sum(float(near[k] or 0) for k in ("train_s", "eval_s", "startup_s"))
            more = took / float(near["flops_spent"]) * cell.cost / 3600 * (1 + running)
        if book.hours() + more > sc.max_hours:
            return (f"--max_hours {sc.max_hours:g}: runs in {book.folder} took {book.hours():.3g} hours, and {cell} "
                    f"needs about {more:.2g} more; raise it and run the same command")  # fmt: skip
    return ""


def in_turn(queue: Queue, world: World, ask) -> Iterator[tuple[Cell, dict]]:
    """Run a queue's cells here, one after another; all ranks of a process group take part in each."""
    while True:
        cell = agree(world, queue.take() if world.rank == 0 else None)
        if cell is None:
            return
        yield cell, ask(cell)


def agree(world: World, value):
    """Rank 0's value, on every rank: ranks that decide for themselves what is left to do would deadlock."""
    if world.size == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, device=torch.device(world.device))
    return box[0]


def free(world: World):
    """Give a cell's memory back before the next; without the reset the ninth compiled model would run uncompiled."""
    gc.collect()
    if world.device.startswith("cuda"):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


# ----- one cell -----


def attempt(mc: ModelConfig, tc: TrainConfig, start, keep, world: World, stop=lambda: False) -> dict:
    """{"record": ...} of a run, or {"status", "error"} of one that has none; OSError goes up: it concerns all cells.

    A run that stop() ended has left a checkpoint, which the next attempt at the same cell goes on from.
    """
    held = Path(tc.out_dir) / "checkpoints"
    more = {"keep": {int(step): Path(folder) for step, folder in keep}}
    if held.is_dir():
        tc = dataclasses.replace(tc, resume="auto")
    elif start and Path(start).is_dir():
        more["start"] = start
    try:
        record = train(mc, tc, world, quiet=True, stop=stop, **more)
    except Interrupted as end:
        return {"status": "interrupted", "error": str(end), "saved": bool(end.saved)}
    except ValueError as error:
        return {"status": "refused", "error": str(error)}
    except RuntimeError as error:
        if world.size > 1:  # the others wait in a collective: only ending all of them is safe
            raise
        traceback.print_exc()
        return {"status": "failed", "error": " ".join(str(error).split())[:200]}
    if record.status == "peer_lost":
        raise OSError("another process of this sweep is gone; the same command goes on")
    if not tc.ckpt_every and world.rank == 0:
        shutil.rmtree(held, ignore_errors=True)
    return {"record": asdict(record)}


def pack(cell: Cell) -> str:
    """What a worker needs of a cell, as JSON."""
    return json.dumps({"mc": asdict(cell.mc), "tc": asdict(cell.tc), "start": cell.start, "keep": cell.keep})


def unpack(text: str) -> tuple:
    job = json.loads(text)
    return ModelConfig(**job["mc"]), TrainConfig(**job["tc"]), job["start"], job["keep"]


# ----- the worker's side -----


def connect(address: str) -> dist.Store:
    host, port, prefix = address.split(",")
    store = dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=PATIENCE)
    return dist.PrefixStore(prefix, store)


def work(address: str, name: str, device: str, core: str):
    """A worker's life. It ends with its parent, when it is told to, or with an error that nobody here can mend."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if core and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})
    if device == "cpu":
        keep_memory()
    elif device.startswith("cuda"):
        torch.cuda.set_device(device)
    store, world = connect(address), World(device=device)
    gc.freeze()
    with stop_signals() as stop:
        serve(store, name, world, stop)


def serve(store: dist.Store, name: str, world: World, stop):
    """Take tickets and train what comes under them, until there is no more or stop() says so."""
    while True:
        ticket = store.add("taken", 1)
        store.set(f"who/{ticket}", name)
        store.wait([f"cell/{ticket}"], NEVER)
        text = store.get(f"cell/{ticket}").decode()
        if text == "over":
            return
        if text == "skip":
            continue
        try:
            answer = attempt(*unpack(text), world, stop)
        except OSError as error:  # a full disk, a folder that can't be written: the whole sweep must hear of it
            answer = {"fatal": str(error)}
        store.set(f"done/{ticket}", json.dumps(answer))
        if answer.get("status") == "interrupted":
            return
        free(world)


def _end_with_parent():
    """Its end of this pipe closes when the parent is gone, however it went."""
    sys.stdin.buffer.read()
    os._exit(3)


# ----- watching a worker -----


def cores() -> list[int]:
    """One logical CPU of each core that this process may use, a container's quota counted."""
    try:
        allowed = sorted(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return list(range(os.cpu_count() or 1))
    first = {}
    for cpu in allowed:
        try:
            siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list").read_text().strip()
        except OSError:
            siblings = str(cpu)
        first.setdefault(siblings, cpu)
    found = list(first.values())
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        found = found[: max(1, int(quota) // int(period))]
    except (OSError, ValueError):  # "max", or no such file
        pass
    return found


def start_worker(address: str, name: str, device: str, core: int | None, threads: int | None) -> subprocess.Popen:
    """A worker. Its stdin is a pipe that nobody writes to: it closes when this process ends."""
    env = os.environ | ({"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} if threads else {})
    args = [address, name, device, "" if core is None else str(core)]
    return subprocess.Popen(
        [sys.executable, str(ROOT / "sweep.py"), "--worker", *args],
        env=env,
        stdin=subprocess.PIPE,
        start_new_session=True,
    )


def place(device: str, local: int, of: int) -> tuple[str, int | None, int | None]:
    """(device, core, threads) of the local-th of `of` workers of this machine; None leaves it to the system.

    Workers may share a GPU. On a CPU they share out the cores: a worker with one core keeps to it.
    """
    if device.startswith("cuda"):
        return f"cuda:{local % torch.cuda.device_count()}", None, None
    here = cores()
    threads = max(1, len(here) // of) if device == "cpu" else None
    return device, here[local] if threads == 1 and of <= len(here) else None, threads


def attend(pool: "Pool", stopped):
    """Watch this rank's worker for rank 0, until all is over. Never fails: torchrun would end every rank with it."""
    told, name, worker = False, str(pool.rank), pool.local[0]
    while not pool.store.check(["over"]) and not stopped():
        if worker.poll() is not None and not told:
            pool.store.set(f"dead/{name}", str(worker.returncode))
            told = True
        pool.store.set(f"alive/{name}", str(time.time()))
        time.sleep(ALIVE_S / 4)
    stop(pool.local, GRACE_S if stopped() else 0.0)


def stop(workers: list[subprocess.Popen], gently_s: float = 0.0):
    """End workers: at once, or after up to gently_s seconds in which the runs in hand may leave a checkpoint."""
    if gently_s:
        for worker in workers:
            worker.terminate()
        until = time.monotonic() + gently_s
        while time.monotonic() < until and any(w.poll() is None for w in workers):
            time.sleep(POLL_S)
    for worker in workers:
        worker.stdin.close()
    for worker in workers:
        try:
            worker.wait(2)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


# ----- the side that plans -----


class Pool:
    """Workers, here or under every rank of torchrun, and the store that they take cells from."""

    def __init__(self, device: str, workers: int | None = None):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.device, self.local = device, []
        if self.size > 1:
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            hosted = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"  # by torchrun itself
            mine = self.rank == 0 and not hosted
            count, here = 1, (int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
        else:
            host, port, mine = "127.0.0.1", 0, True
            count = workers or (torch.cuda.device_count() if device == "cuda" else len(cores()))
            here = (0, count)
        store = dist.TCPStore(host, port, is_master=mine, wait_for_workers=False, timeout=PATIENCE)
        prefix = f"isoflop{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        self.store = dist.PrefixStore(prefix, store)
        address = f"{host},{store.port},{prefix}"
        for i in range(count):
            name = f"{self.rank}" if self.size > 1 else f"{i}"
            self.local.append(start_worker(address, name, *place(device, here[0] + i, here[1])))
        self.names = {str(i) for i in range(self.size if self.size > 1 else count)}
        self.dead: dict[str, str] = {}
        self.nameless: dict[int, float] = {}  # tickets taken by nobody knows whom yet, and since when
        self.served = 0  # tickets that a cell was put under
        self.seen: dict[str, tuple[str, float]] = {}  # last sign of life of another rank: what it said, when read

    def _bury(self):
        """Note which workers have died since the last look."""
        if self.size == 1:
            for i, worker in enumerate(self.local):
                if worker.poll() is not None:
                    self.dead.setdefault(str(i), str(worker.returncode))
            return
        if self.local[0].poll() is not None:
            self.dead.setdefault("0", str(self.local[0].returncode))
        now = time.monotonic()
        for name in self.names - set(self.dead) - {"0"}:
            if self.store.check([f"dead/{name}"]):
                self.dead[name] = self.store.get(f"dead/{name}").decode()
            elif self.store.check([f"alive/{name}"]):
                said = self.store.get(f"alive/{name}").decode()
                if self.seen.get(name, ("",))[0] != said:
                    self.seen[name] = (said, now)
                elif now - self.seen[name][1] > SILENT_S:
                    self.dead[name] = "silent"

    def run(self, queue: Queue) -> Iterator[tuple[Cell, dict]]:
        """Yield (cell, what attempt() returned) as cells end; a cell whose worker died has the status "died"."""
        running: dict[int, tuple[Cell, str]] = {}
        halted = False
        while running or queue.left():
            if queue.stop() and not halted:
                halted = True
                for ticket in range(self.served + 1, self.store.add("taken", 0) + 1):
                    self.store.set(f"cell/{ticket}", "over")  # who waits for a cell need not wait for the runs in hand
                stop(self.local, GRACE_S)
            self._bury()
            for ticket, (cell, name) in list(running.items()):
                if self.store.check([f"done/{ticket}"]):
                    answer = json.loads(self.store.get(f"done/{ticket}"))
                    if "fatal" in answer:
                        raise OSError(answer["fatal"])
                elif halted or name in self.dead:
                    answer = {"status": "died", "error": f"worker {name} ended with status {self.dead.get(name)}"}
                else:
                    continue
                del running[ticket]
                yield cell, answer
            if not running and not self.names - set(self.dead) and not halted:
                raise OSError("every worker has died; finished cells are kept, the same command goes on")
            while self.store.add("taken", 0) > self.served and self._serve(queue, self.served + 1, running):
                self.served += 1
            time.sleep(POLL_S)

    def _serve(self, queue: Queue, ticket: int, running: dict) -> bool:
        """Put a cell under a ticket; False while its taker is not known, or there is no cell to give."""
        if not self.store.check([f"who/{ticket}"]):
            since = self.nameless.setdefault(ticket, time.monotonic())
            if time.monotonic() - since < NAMELESS_S:
                return False
            self.store.set(f"cell/{ticket}", "skip")  # its taker died before it said who it is
            return True
        name = self.store.get(f"who/{ticket}").decode()
        if name in self.dead:
            return True
        cell = queue.take()
        if cell is None:
            return False
        self.store.set(f"cell/{ticket}", pack(cell))
        running[ticket] = (cell, name)
        return True

    def over(self):
        """Send every worker home."""
        self.store.set("over", "1")
        stop(self.local)
        if self.size > 1:
            time.sleep(2 * ALIVE_S / 4 + 0.2)  # the store may live in this process: others must read "over" first

"""Cells side by side: whole runs on workers of one process each, instead of all processes sharing one small model.

Started by sweep.py --parallel cells, alone or under torchrun. The process that plans (rank 0) hands out cells through a
TCPStore; every process starts one worker of its own and watches it:

    rank 0   Pool.run()     put a cell under each ticket that a worker has taken; collect the answers
    rank r   watch()        watch the worker, until rank 0 says that all is over
    worker   work()         take a ticket, wait for its cell, run it on one device, put the answer back

Keys of the store: taken (a counter), who/TICKET, cell/TICKET, done/TICKET, alive/NAME, dead/NAME, halt, over.

A worker that dies leaves its cell unfinished, and the others carry on: torchrun would end all ranks with the first that
dies, which is why ranks train nothing themselves. Workers end with the process that started them.
"""

import gc
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from isoflop.config import ModelConfig
from isoflop.device import keep_memory
from isoflop.distributed import DistributedEnv, stop_signals
from isoflop.sweep.cells import Cell
from isoflop.sweep.executors import Queue
from isoflop.train.plan import TrainConfig

SCRIPT = Path(__file__).resolve().parents[2] / "sweep.py"  # started with --worker, it calls work()
SLOW_WIDTH = 48  # a FLOP of a model so wide takes twice the time of a wide one's, by the default grid on a CPU
SMALL_FLOPS = 1e11  # of all cells: below it a CPU is done before its workers would have started
POLL_S = 0.02  # how often rank 0 looks for finished cells
ALIVE_S = 0.5  # how often a rank says that it still watches its worker
SILENT_S = 120.0  # a rank that has said nothing for so long is taken for dead, with its worker
NAMELESS_S = 10.0  # a ticket whose taker has not said its name for so long is given up
GRACE_S = 20.0  # that running cells have to leave a checkpoint when the sweep is told to stop
END_S = 2.0  # that a worker has to end once its pipe is closed
FOR_A_CELL, FOR_THE_STORE = timedelta(days=30), timedelta(minutes=30)  # time-outs


# ----- the worker's side -----


def pack(cell: Cell) -> str:
    """What a worker needs of a cell, as JSON."""
    return json.dumps({"mc": asdict(cell.mc), "tc": asdict(cell.tc), "start": cell.start, "keep": cell.keep})


def unpack(text: str) -> tuple:
    """(model, training, checkpoint to start from, checkpoints to leave), as run_cell() takes them."""
    job = json.loads(text)
    return ModelConfig(**job["mc"]), TrainConfig(**job["tc"]), job["start"], job["keep"]


def work(run_cell, address: str, name: str, device: str, core: str):
    """A worker's life. It ends with its parent, or when it is told to.

    run_cell : function(mc, tc, start, keep, env, stop) -> answer.
    address : HOST,PORT,PREFIX of the store.
    core : the logical CPU to keep to, or "".
    """
    threading.Thread(target=end_with_parent, daemon=True).start()
    if core and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(core)})
    if device == "cpu":
        keep_memory()
    elif device.startswith("cuda"):
        torch.cuda.set_device(device)
    host, port, prefix = address.split(",")
    gc.freeze()
    try:
        store = dist.TCPStore(host, int(port), is_master=False, wait_for_workers=False, timeout=FOR_THE_STORE)
        with stop_signals() as stop:
            serve(dist.PrefixStore(prefix, store), name, run_cell, DistributedEnv(device=device), stop)
    except dist.DistError:  # the store is gone, and with it the sweep
        return 3
    return 0


def serve(store: dist.Store, name: str, run_cell, env: DistributedEnv, stop):
    """Take tickets and run the cells under them, until there are no more or stop() says so."""
    while True:
        # wait for a cell
        ticket = store.add("taken", 1)
        store.set(f"who/{ticket}", name)
        store.wait([f"cell/{ticket}"], FOR_A_CELL)
        text = store.get(f"cell/{ticket}").decode()
        if text == "over":
            return
        if text == "skip":
            continue

        # run it
        try:
            answer = run_cell(*unpack(text), env, stop)
        except OSError as error:  # a full disk, a folder that can't be written: it concerns all cells
            answer = {"fatal": str(error)}
        store.set(f"done/{ticket}", json.dumps(answer))
        if answer.get("status") == "interrupted":
            return


def end_with_parent():
    """End this process when its parent is gone, however it went: then the other end of stdin is closed."""
    while os.read(0, 1024):  # not sys.stdin: Python can't end while a thread holds its lock
        pass
    os._exit(3)


# ----- starting and ending workers -----


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


def count(todo: list[Cell], sc, env: DistributedEnv, trained: bool) -> int:
    """How many workers are to share the cells; 0 where this process group runs them in turn.

    sc : has parallel, workers, moves and design, as SweepConfig. trained : whether losses are trained here.
    """
    ranks = int(os.environ.get("WORLD_SIZE", 1))
    if not trained or sc.parallel == "ddp" or env.size > 1:
        return 0
    if ranks > 1:  # torchrun with --parallel cells: one worker a rank
        return ranks
    more_come = sc.moves or sc.design  # later stages bring more cells
    if not todo and not more_come:
        return 0
    most = sc.workers or (torch.cuda.device_count() if env.device == "cuda" else len(cores()))
    if not more_come:
        most = min(most, len(todo))
    if sc.parallel is None:
        large = sum(c.cost for c in todo) >= SMALL_FLOPS or more_come or sc.workers
        if env.device != "cpu" or not large or most == 1:
            return 0
    return most


def placement(device: str, local: int, of: int) -> tuple[str, int | None, int | None]:
    """(device, core, threads) of the local-th of `of` workers of this machine; None leaves it to the system.

    Workers may share a GPU. On a CPU they share out the cores: a worker with one core keeps to it.
    """
    if device.startswith("cuda"):
        return f"cuda:{local % torch.cuda.device_count()}", None, None
    if device != "cpu":
        return device, None, None
    here = cores()
    threads = max(1, len(here) // of)
    core = here[local] if threads == 1 and of <= len(here) else None
    return device, core, threads


def start_worker(address: str, name: str, device: str, core: int | None, threads: int | None) -> subprocess.Popen:
    """A worker. Its stdin is a pipe that nobody writes to: it closes when this process ends."""
    env = dict(os.environ)
    if threads:
        env |= {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    args = [address, name, device, "" if core is None else str(core)]
    command = [sys.executable, str(SCRIPT), "--worker", *args]
    return subprocess.Popen(command, env=env, stdin=subprocess.PIPE, start_new_session=True)


def end_workers(workers: list[subprocess.Popen], gently_s: float = 0.0):
    """End workers: at once, or after up to gently_s seconds in which running cells may leave a checkpoint."""
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
            worker.wait(END_S)
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def watch(pool: "Pool", stop):
    """Watch this rank's worker for rank 0, until all is over. Never fails: torchrun would end every rank with it."""
    worker, told, gently_s = pool.local[0], False, 0.0
    try:
        while not pool.store.check(["over"]):
            if stop() or pool.store.check(["halt"]):
                gently_s = GRACE_S
                break
            if worker.poll() is not None and not told:
                pool.store.set(f"dead/{pool.rank}", str(worker.returncode))
                told = True
            pool.store.set(f"alive/{pool.rank}", str(time.time()))
            time.sleep(ALIVE_S)
    except dist.DistError:  # the store is gone, and with it the sweep
        pass
    end_workers(pool.local, gently_s)


# ----- the side that plans -----


class Pool:
    """An executor: workers, here or under every rank of torchrun, and the store that they take cells from.

    Parameters
    ----------
    device : of the workers, cuda for all GPUs of this machine.
    workers : how many without torchrun; under it each rank has one.
    """

    def __init__(self, device: str, workers: int = 1):
        self.rank, self.size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        self.dead: dict[str, str] = {}  # name -> exit status
        self.nameless: dict[int, float] = {}  # ticket -> since when it is not known who took it
        self.served = 0  # tickets that a cell was put under
        self.seen: dict[str, tuple[str, float]] = {}  # last sign of life of another rank: text, when read
        if self.size > 1:
            names = [str(self.rank)]
            first, here = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            self.names = {str(rank) for rank in range(self.size)}
        else:
            names = [str(i) for i in range(workers)]
            first, here = 0, workers
            self.names = set(names)
        address = self._open_store()
        self.local = []
        for i, name in enumerate(names):
            self.local.append(start_worker(address, name, *placement(device, first + i, here)))

    def _open_store(self) -> str:
        """Make or join the store; its address for workers."""
        host, port, mine = "127.0.0.1", 0, True
        if self.size > 1:
            host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            hosted_by_torchrun = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
            mine = self.rank == 0 and not hosted_by_torchrun
        try:
            store = dist.TCPStore(host, port, is_master=mine, wait_for_workers=False, timeout=FOR_THE_STORE)
        except dist.DistError as error:  # too many open files, no loopback
            reason = " ".join(str(error).split())[:100]
            raise OSError(f"no store for workers on {host} ({reason}); --parallel ddp does without one") from None
        prefix = f"isoflop{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
        self.store = dist.PrefixStore(prefix, store)
        return f"{host},{store.port},{prefix}"

    def in_order(self, cells: list[Cell], limits) -> list[Cell]:
        """The cells as they are to start: the longest first, so that all workers end at about the same time."""
        if limits.total_flops or limits.max_hours:  # as many as fit under the cap
            return cells
        return sorted(cells, key=lambda c: -c.cost * (1 + SLOW_WIDTH / c.mc.n_embd))

    def run(self, queue: Queue) -> Iterator[tuple[Cell, dict]]:
        """Yield (cell, answer) as cells end; a cell whose worker died has the status "died"."""
        try:
            yield from self._run(queue)
        except dist.DistError as error:
            reason = " ".join(str(error).split())[:100]
            raise OSError(f"torchrun is gone ({reason}); finished cells are kept, the same command resumes") from None

    def _run(self, queue: Queue) -> Iterator[tuple[Cell, dict]]:
        running: dict[int, tuple[Cell, str]] = {}
        deadline = None  # for running cells, once the sweep is told to stop
        while running or queue.left():
            # a signal: let running cells leave a checkpoint
            if queue.stop() and deadline is None:
                deadline = time.monotonic() + GRACE_S
                self._halt()

            # collect the cells that ended
            self._note_deaths()
            late = deadline is not None and time.monotonic() > deadline
            for ticket, (cell, name) in list(running.items()):
                answer = self._answer(ticket, name, late)
                if answer is not None:
                    del running[ticket]
                    yield cell, answer
            if not running and not self.names - set(self.dead) and deadline is None:
                raise OSError("every worker has died; finished cells are kept, the same command resumes")

            # hand out more
            while self.store.add("taken", 0) > self.served and self._serve(queue, self.served + 1, running):
                self.served += 1
            time.sleep(POLL_S)

    def _halt(self):
        """Tell every worker to stop: who waits for a cell at once, who runs one with a checkpoint."""
        for ticket in range(self.served + 1, self.store.add("taken", 0) + 1):
            self.store.set(f"cell/{ticket}", "over")
        self.store.set("halt", "1")
        for worker in self.local:
            worker.terminate()

    def _note_deaths(self):
        """Note which workers have died since the last look."""
        others = set()
        if self.size > 1:
            others = self.names - {"0"}
        for name, worker in zip(sorted(self.names - others, key=int), self.local, strict=True):
            if worker.poll() is not None:
                self.dead.setdefault(name, str(worker.returncode))
        now = time.monotonic()
        for name in others - set(self.dead):
            if self.store.check([f"dead/{name}"]):
                self.dead[name] = self.store.get(f"dead/{name}").decode()
            elif self.store.check([f"alive/{name}"]):
                said = self.store.get(f"alive/{name}").decode()
                if self.seen.get(name, ("",))[0] != said:
                    self.seen[name] = (said, now)
                elif now - self.seen[name][1] > SILENT_S:
                    self.dead[name] = "silent"

    def _answer(self, ticket: int, name: str, late: bool) -> dict | None:
        """The answer to a running cell; None while there is none."""
        if self.store.check([f"done/{ticket}"]):
            answer = json.loads(self.store.get(f"done/{ticket}"))
            if "fatal" in answer:
                raise OSError(answer["fatal"])
            return answer
        if late or name in self.dead:
            return {"status": "died", "error": f"worker {name} ended with status {self.dead.get(name)}"}
        return None

    def _serve(self, queue: Queue, ticket: int, running: dict) -> bool:
        """Put a cell under a ticket; False while its taker is not known, or there is no cell to give."""
        if not self.store.check([f"who/{ticket}"]):
            since = self.nameless.setdefault(ticket, time.monotonic())
            if time.monotonic() - since < NAMELESS_S:
                return False
            self.store.set(f"cell/{ticket}", "skip")  # its taker died before it gave its name
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

    def close(self):
        """Send every worker home."""
        try:
            self.store.set("over", "1")
        except dist.DistError:  # the store is gone; ranks that watch a worker see it, too
            pass
        end_workers(self.local)
        if self.size > 1:
            time.sleep(2 * ALIVE_S + 0.2)  # the store may live in this process: others must read "over" first

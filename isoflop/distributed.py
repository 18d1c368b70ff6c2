"""The processes of a run: who they are, what device each has, what they tell each other, how they end.

torchrun is the engine; this reads the variables that it sets. Alone, a process is a world of one and nothing is sent.
"""

import contextlib
import os
import signal
import sys
from dataclasses import dataclass

import torch
import torch.distributed as dist
from tqdm import tqdm

from isoflop.device import keep_memory, pick_device


@dataclass(frozen=True)
class World:
    """This process among all: rank 0 prints and writes."""

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    def print0(self, *args):
        if self.rank == 0:
            tqdm.write(" ".join(str(a) for a in args), file=sys.stdout)
            sys.stdout.flush()

    def sum(self, *values: float) -> list[float]:
        """Sum of each value over all ranks, in float64."""
        if self.size == 1:
            return list(values)
        # MPS has no float64, but it has no process group either
        t = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(t)
        return t.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is up on any rank; over the CPU's process group, so that no GPU is waited for."""
        if self.size == 1:
            return flag
        t = torch.tensor(int(flag))
        dist.all_reduce(t, dist.ReduceOp.MAX)
        return bool(t)

    def barrier(self):
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def launch(device: str = "auto"):
    """The World of this process: reads torchrun's variables, joins the process group, leaves it. Alone, a no-op."""
    device = pick_device(device)
    if device == "cpu":
        keep_memory()
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield World(device=device)
        return
    if device == "cuda":
        local_rank = int(os.environ["LOCAL_RANK"])
        if local_rank >= torch.cuda.device_count():
            raise ValueError(f"--nproc_per_node: more processes than this node's {torch.cuda.device_count()} GPUs")
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(device)
    elif device == "mps":
        device = "cpu"  # there is no process group over Apple GPUs
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def launcher() -> list[str]:
    """The words before the script's name that started this process; HOST:PORT stands for an address to fill in."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["python"]
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    several = [f"--nnodes={nodes}", "--rdzv_backend=c10d", "--rdzv_endpoint=HOST:PORT"] if nodes != "1" else []
    return ["torchrun", *several, f"--nproc_per_node={os.environ.get('LOCAL_WORLD_SIZE', '1')}"]


def failure(error: BaseException) -> str | None:
    """The status of a run that this error ended, or None if it is an error of ours."""
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text:
        return "oom"
    if isinstance(error, dist.DistError) or "gloo" in text or "Connection" in text:
        return "peer_lost"
    return None


@contextlib.contextmanager
def stop_signals():
    """A function that says whether SIGINT or SIGTERM has come. The second one ends the process at once."""
    came = []

    def note(number, frame):
        came.append(number)
        for s in before:
            signal.signal(s, before[s])

    before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(came)
    finally:
        for s in before:
            signal.signal(s, before[s])

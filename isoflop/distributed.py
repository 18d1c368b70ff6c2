"""The processes of a run: which one this is, what device it has, sums over all of them, launch and signals.

torchrun starts them, and launch() reads the variables that it sets. A process alone is rank 0 of 1 and sends nothing.
"""

import contextlib
import functools
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist
from tqdm import tqdm

from isoflop.device import keep_memory, pick_device
from isoflop.options import UserError


@functools.cache
def _warn_once(text: str):
    print(text, file=sys.stderr)


def _print_to_stderr():
    """Let stdout, which is closed, be stderr, or /dev/null where that is closed, too (`2>&1 | head`)."""
    try:
        print("standard output is closed", file=sys.stderr, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())


@dataclass(frozen=True)
class DistributedEnv:
    """This process among all of a run. Rank 0 prints and writes files."""

    rank: int = 0
    size: int = 1  # number of processes, torch's world size
    device: str = "cpu"  # this process's own, as torch names it: cpu, mps, cuda, cuda:3

    def print0(self, *args):
        """Print on rank 0, above a progress bar where there is one.

        A full disk under a redirected stdout does not end the run, whose record may go to another disk. A reader that
        is gone (`| head`) is a terminal that is closed: the run is saved, as at SIGHUP.
        """
        if self.rank != 0:
            return
        try:
            tqdm.write(" ".join(str(a) for a in args), file=sys.stdout)
            sys.stdout.flush()
        except BrokenPipeError:
            if not hasattr(signal, "SIGHUP") or signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
                raise  # nobody would save
            _print_to_stderr()
            signal.raise_signal(signal.SIGHUP)
        except OSError as error:
            _warn_once(f"warning: standard output: {error.strerror}; the run continues without it")

    def sum(self, *values: float) -> list[float]:
        """Sum of each value over all ranks, in float64. Every rank must call it."""
        if self.size == 1:
            return list(values)
        # MPS has no float64, but it has no process group either
        t = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(t)
        return t.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is true on any rank; over the CPU's process group, so that no GPU is waited for."""
        if self.size == 1:
            return flag
        t = torch.tensor(int(flag))
        dist.all_reduce(t, dist.ReduceOp.MAX)
        return bool(t)

    def on_rank0(self, function: Callable):
        """Call function() on rank 0; where it raises ValueError or OSError there, all raise, so that none waits."""
        problem = None
        if self.rank == 0:
            try:
                function()
            except (ValueError, OSError) as error:
                problem = error
        if self.any(problem is not None):
            raise problem or UserError("rank 0 says why")

    def barrier(self):
        """Wait until every rank is here."""
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def launch(device: str = "auto") -> Iterator[DistributedEnv]:
    """The distributed environment of this process; joins torchrun's process group and leaves it. Alone, a no-op.

    UserError where the device is not there, or where a node has more processes than GPUs.
    """
    device = pick_device(device)
    if device == "cpu":
        keep_memory()
    size = int(os.environ.get("WORLD_SIZE", 1))
    if size == 1:
        yield DistributedEnv(device=device)
        return
    if device == "cuda":
        local_rank = int(os.environ["LOCAL_RANK"])
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"--nproc_per_node {os.environ.get('LOCAL_WORLD_SIZE', size)} is more than this node's "
                f"{torch.cuda.device_count()} GPUs; lower it"
            )
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(device)
    elif device == "mps":
        device = "cpu"  # there is no process group over Apple GPUs
    # gloo beside nccl: flags of the CPU (any) are sent without waiting for the GPU's queue
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo")
    try:
        yield DistributedEnv(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def leave(status: int):
    """End this process with an exit status.

    Under torchrun ranks other than 0, which have nothing left to write, end without the interpreter's clean-up: in it a
    rank aborted now and then, and the job with it ("terminate called without an active exception", torch 2.13).
    """
    if int(os.environ.get("RANK", 0)) > 0:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def launch_command() -> list[str]:
    """The command that started this process, up to the script's name, for resume messages.

    HOST:PORT stands for an address to fill in.
    """
    if int(os.environ.get("WORLD_SIZE", 1)) == 1 and "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["python"]
    words = ["torchrun"]
    nodes = os.environ.get("GROUP_WORLD_SIZE", "1")
    if nodes != "1":
        words += [f"--nnodes={nodes}", "--rdzv_backend=c10d", "--rdzv_endpoint=HOST:PORT"]
    return [*words, f"--nproc_per_node={os.environ.get('LOCAL_WORLD_SIZE', '1')}"]


def resume_command(argv: list[str]) -> str:
    """The command line that resumes an interrupted train.py with the flags argv."""
    words = [word for word in argv if not word.startswith("--resume=")]
    if "--resume" in words:
        first = words.index("--resume")
        last = first + 1
        if last < len(words) and not words[last].startswith("--"):
            last += 1  # its checkpoint
        del words[first:last]
    return shlex.join([*launch_command(), "train.py", *words, "--resume"])


@contextlib.contextmanager
def stop_signals() -> Iterator[Callable[[], bool]]:
    """A function that says whether SIGINT, SIGTERM or SIGHUP was received. The second one ends the process at once.

    SIGHUP, of a terminal that is closed, stays ignored where it was: under nohup the process is to live on.
    """
    received = []

    def note(number, frame):
        received.append(number)
        restore()

    def restore():
        for s in before:
            signal.signal(s, before[s])

    heeded = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        heeded.append(signal.SIGHUP)
    before = {s: signal.signal(s, note) for s in heeded}
    try:
        yield lambda: bool(received)
    finally:
        restore()

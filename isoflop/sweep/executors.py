"""Running the cells of a stage: the queue that they wait in, the caps, and the executor of one process group.

An executor has run(queue), which yields (cell, answer) as cells end, in_order(cells, limits) and close(). InGroup
trains, draws or asks for one cell after another, all processes of a group together; workers.Pool trains several at
once, a process each.

An answer is {"record": dict} of a run that ended, or {"status", "error"} of one without a record.
"""

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist

from isoflop.distributed import DistributedEnv
from isoflop.sweep.cells import Cell
from isoflop.train.failures import status_of

PEER_LOST = "another process of this sweep is gone; finished cells are kept, the same command resumes it"


class Queue:
    """The cells of a stage that are still to run, in order, and the caps. What take() gives is noted as begun.

    Parameters
    ----------
    cells : a cell waits for its trunk, where that is in the queue.
    results : the ResultsFile.
    limits : has total_flops and max_hours.
    stop : says whether a signal has come.
    """

    def __init__(self, cells: list[Cell], results, limits, stop=lambda: False):
        self.todo = list(cells)
        self.results = results
        self.limits = limits
        self.stop = stop
        self.running: set[str] = set()
        self.capped = ""  # which cap was reached
        self.interrupted = False  # a run was ended by a signal

    def left(self) -> bool:
        """Whether there is more to start."""
        return bool(self.todo) and not self.capped and not self.interrupted and not self.stop()

    def take(self) -> Cell | None:
        """The next cell that can start now; None where there is none."""
        if not self.left():
            return None
        waiting = {c.run_id for c in self.todo} | self.running
        ready = [c for c in self.todo if c.trunk not in waiting]
        if not ready:
            return None
        cell = ready[0]
        self.capped = over_cap(cell, self.results, self.limits, len(self.running))
        if self.capped:
            return None
        self.todo.remove(cell)
        self.running.add(cell.run_id)
        self.results.begin(cell)
        return cell

    def ended(self, cell: Cell):
        self.running.discard(cell.run_id)


def over_cap(cell: Cell, results, limits, running: int) -> str:
    """Why this cell may not start: the cap that it would break. Everything that has begun counts as if it had ended."""
    spent = results.spent()
    if limits.total_flops and spent + cell.cost > limits.total_flops * (1 + 1e-9):
        return (
            f"--total_flops {limits.total_flops:g}: {spent:.4g} FLOPs are spent or begun in {results.folder}, and "
            f"{cell} costs {cell.cost:.4g} more; raise it and run the same command"
        )
    if limits.max_hours:
        more = expected_hours(cell, results) * (1 + running)
        if results.hours() + more > limits.max_hours:
            return (
                f"--max_hours {limits.max_hours:g}: runs in {results.folder} took {results.hours():.3g} hours, and "
                f"{cell} needs about {more:.2g} more; raise it and run the same command"
            )
    return ""


def expected_hours(cell: Cell, results) -> float:
    """Hours that a cell will take, at the FLOP/s of the run so far whose size is nearest; 0 before any has run."""
    timed = [r for r in results.all_rows() if float(r["flops_spent"]) and float(r["train_s"] or 0)]
    if not timed:
        return 0.0
    ln_n = math.log(cell.plan.n_params_matmul)
    near = min(timed, key=lambda r: abs(math.log(float(r["n_params_matmul"])) - ln_n))
    seconds = sum(float(near[name] or 0) for name in ("train_s", "eval_s", "startup_s"))
    return seconds / float(near["flops_spent"]) * cell.cost / 3600


# ----- all processes of a group on one cell -----


class InGroup:
    """Runs cells here, one after another. All ranks of a process group take part in each: rank 0 with run(), the
    others with follow().

    ask : function(cell) -> answer.
    """

    def __init__(self, env: DistributedEnv, ask):
        self.env = env
        self.ask = ask
        self.closed = False

    def in_order(self, cells: list[Cell], limits) -> list[Cell]:
        """The cells as they are to start: trunks before branches."""
        return sorted(cells, key=lambda c: bool(c.start))

    def one(self, cell: Cell) -> dict:
        """The answer to one cell."""
        try:
            broadcast(self.env, cell)
            return self.ask(cell)
        except BaseException:
            self.closed = True  # the others may wait in a step of this cell: only ending all of them is safe
            raise

    def run(self, queue: Queue) -> Iterator[tuple[Cell, dict]]:
        """Yield (cell, answer) as cells end."""
        while (cell := queue.take()) is not None:
            answer = self.one(cell)
            if answer.get("status") == "interrupted":
                queue.interrupted = True  # by a signal that perhaps another rank alone has had
            yield cell, answer

    def follow(self):
        """Take part in the cells that rank 0 runs, until it closes."""
        while (cell := broadcast(self.env, None)) is not None:
            self.ask(cell)

    def close(self):
        """Send the other ranks home."""
        if not self.closed:
            self.closed = True
            broadcast(self.env, None)


def broadcast(env: DistributedEnv, value):
    """Rank 0's value, on every rank: ranks that decide for themselves what is left to do would deadlock."""
    if env.size == 1:
        return value
    box = [value]
    try:
        dist.broadcast_object_list(box, src=0, device=torch.device(env.device))
    except RuntimeError as error:
        if status_of(error) == "peer_lost":
            raise OSError(PEER_LOST) from None
        raise
    return box[0]

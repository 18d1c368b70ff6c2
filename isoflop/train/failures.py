"""What a run does when memory is short or another process is gone: a status for its record, and advice."""

import contextlib
import gc

import torch
import torch.distributed as dist

from isoflop.options import explain


def status_of(error: BaseException) -> str | None:
    """The status of a run that this error ended, "oom" or "peer_lost"; None for any other error."""
    text = str(error)
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in text:
        return "oom"
    if isinstance(error, dist.DistError) or "gloo" in text or "Connection" in text:
        return "peer_lost"
    return None


@contextlib.contextmanager
def note_failure(progress):
    """Turn a lack of memory and the loss of another rank into a status; any other error is raised."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        status = status_of(error)
        if status is None:
            raise
        progress.status, progress.problem = status, explain(error).splitlines()[0]


def find_micro_batch(attempt, rows: int, device: str) -> str:
    """Advice on a lack of memory: the largest half, quarter, ... of the rows for which attempt(rows) goes through."""
    while rows := rows // 2:
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        try:
            attempt(rows)
        except (RuntimeError, MemoryError) as error:
            if status_of(error) != "oom":
                raise
            continue
        return f"{rows} sequences at a time fit: add --micro_batch_size {rows}, which leaves the batch as it is"
    return "not even one sequence at a time fits: lower --block_size or the model"

"""What can go wrong with a run, as a status of its record: no memory, a lost process, a loss that is no result."""

import contextlib
import gc

import torch
import torch.distributed as dist

from isoflop.laws import highest_loss
from isoflop.options import explain

RISE = 0.5  # nats per token: a train loss that ends this much above its lowest tenth has blown up
SPARE = 8  # one row in so many: a run holds somewhat more than a trial, the next batches for one
TENTH_TOKENS = 2**12  # tokens that a tenth of a run must have, or the noise of its mean is as large as RISE


def blown_up(val_loss: float, curve: list[dict], plan, vocab_size: int) -> bool:
    """Whether a finite loss is no result of training: status "blown_up", which fits leave out.

    Either the validation loss is above laws.highest_loss(), about that of a uniform guess over the vocabulary; or the
    train loss rose for good: its mean over the last tenth of the steps is more than RISE above that of its lowest tenth
    since the end of the warm-up. The second is asked only of runs whose tenths have TENTH_TOKENS tokens.

    curve : rows of log.jsonl. plan : RunPlan.
    """
    if val_loss > highest_loss(vocab_size):
        return True
    if plan.tokens < 10 * TENTH_TOKENS:
        return False
    sums, counts, before = [0.0] * 10, [0] * 10, 0
    for row in curve:
        tenth, count = (row["step"] - 1) * 10 // plan.steps, row["step"] - before
        if before >= plan.warmup_steps or tenth == 9:
            sums[tenth] += row["loss"] * count  # a row has the mean loss since the row before
            counts[tenth] += count
        before = row["step"]
    means = [total / count for total, count in zip(sums, counts, strict=True) if count]
    return means[-1] > min(means) + RISE


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
    """Advice on a lack of memory: the largest half, quarter, ... of the rows for which attempt() takes some more."""
    while rows := rows // 2:
        gc.collect()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()
        try:
            attempt(rows + rows // SPARE)
        except (RuntimeError, MemoryError) as error:
            if status_of(error) != "oom":
                raise
            continue
        return f"{rows} sequences at a time fit: add --micro_batch_size {rows}, which leaves the batch as it is"
    return "not even one sequence at a time fits: lower --block_size or the model"

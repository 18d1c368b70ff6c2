"""What a sweep will cost, before it runs: its table of cells, and the times and memory of sweep.py --dry_run.

They are measured by short runs of the sweep's own run_cell(), handed in, or time follows from --mfu.
"""

import contextlib
import dataclasses
import math
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from isoflop import device as devices
from isoflop import display, gpus
from isoflop.data.reader import TokenData
from isoflop.distributed import DistributedEnv
from isoflop.flops import count_params
from isoflop.options import UserError
from isoflop.sweep.cells import Cell
from isoflop.train.plan import FEW_STEPS, MANY_EPOCHS
from isoflop.train.validation import validation_rows

MEASURED_SIZES = 8  # at most so many sizes are timed, the smallest and the largest among them
TRIAL_S = 0.4  # seconds of steps that a timed batch gets
MIN_STEPS, MAX_STEPS = 4, 200  # bounds of those steps
CPU_FLOPS, GPU_FLOPS = 2e11, 5e14  # of a timed step, at most: a second or so; a larger batch is timed in part
EVAL_TOKENS = 2**13  # validation tokens of a trial: one of evaluate()'s chunks
ENDLESS_STEPS = 10**6  # of a run that others are timed beside; it is killed long before
COLUMNS = (
    "budget", "width", "depth", "N (matmul)", "N (service)", "N total", "N non-emb", "D", "D/N", "tok/step", "steps",
    "epochs", "6ND", "exact/6ND", "head", "lr", "seed", "time", "memory", "cost", "run_id", "",
)  # fmt: skip
ONLY_FULL = ("N total", "N non-emb", "lr", "seed", "memory")


@dataclass(frozen=True)
class Estimate:
    """Cost of one cell in seconds and GB; memory_gb is None where it was not measured at the cell's own batch."""

    train_s: float
    eval_s: float
    other_s: float  # start-up, compilation, writing the weights
    memory_gb: float | None

    @property
    def seconds(self) -> float:
        return self.train_s + self.eval_s + self.other_s


# ----- one short run -----


def trial(cell: Cell, steps: int, folder: str, rows: int) -> Cell:
    """The cell as a run of so many steps of `rows` sequences in `folder`: one log line, no checkpoints."""
    eval_tokens = EVAL_TOKENS
    if rows < cell.plan.batch_size:  # as much work as a step, for a pass forward costs a third
        eval_tokens = min(EVAL_TOKENS, 3 * rows * cell.mc.block_size)
    config = dataclasses.replace(
        cell.tc, flop_budget=None, max_iters=steps, out_dir=folder, overwrite=True, resume=None,
        batch_size=rows, total_batch_size=None, micro_batch_size=min(cell.plan.micro_batch_size, rows),
        lr=1e-6, lr_scale=1.0, schedule_steps=None, warmup_steps=None,
        val_tokens=min(cell.tc.val_tokens, max(eval_tokens, 2 * cell.mc.block_size)),
        log_every=steps, ckpt_every=None, sample_every=None, tracker=None,
    )  # fmt: skip
    return dataclasses.replace(cell, tc=config, start=None, keep=())


def most_flops(device: str) -> float:
    return CPU_FLOPS if device == "cpu" else GPU_FLOPS


def timed_rows(cell: Cell, device: str) -> int:
    """How many sequences of the cell's batch a timed step has."""
    row = cell.mc.block_size * cell.plan.flops_per_token_exact
    return max(1, min(cell.plan.batch_size, int(most_flops(device) / row)))


def timed_in_part(cells: list[Cell], device: str) -> str:
    """A line that says which cells were timed at a part of their batch; "" where none was."""
    large = [c for c in cells if timed_rows(c, device) < c.plan.batch_size]
    if not large:
        return ""
    return (
        f"time of {len(large)} of {len(cells)} cells: from a part of the batch, for a step is over "
        f"{most_flops(device):g} FLOPs; their memory: python plan.py"
    )


def measure(cell: Cell, ask, folder: str, rows: int) -> tuple[float, float, float, float]:
    """(seconds of a step, of evaluating a token, of the rest of a run, peak GB) of one size and `rows` of its batch.

    From a run of MIN_STEPS steps or, where those are fast, from another one with as many as fit into TRIAL_S.
    """
    steps = MIN_STEPS
    while True:
        start = time.perf_counter()
        answer = ask(trial(cell, steps, folder, rows))
        wall_s = time.perf_counter() - start
        record = answer.get("record") or answer
        if record["status"] == "interrupted":
            raise KeyboardInterrupt
        if record["status"] not in ("ok", "diverged"):
            half = max(1, min(cell.plan.micro_batch_size, rows) // 2)
            raise UserError(
                f"--dry_run: {cell} ends with {record['status']}; add --micro_batch_size {half}, leave the largest "
                "sizes out, or estimate with --mfu"
            )
        step_s = record["tokens_per_step"] / record["tokens_per_s"]
        wanted = min(int(TRIAL_S / step_s), MAX_STEPS)
        if steps > MIN_STEPS or wanted <= steps:
            break
        steps = wanted
    other_s = max(0.0, wall_s - steps * step_s - record["eval_s"])
    return step_s, record["eval_s"] / record["val_tokens"], other_s, record["peak_mem_gb"]


# ----- other processes that train meanwhile -----


def train_beside(cell: Cell, run_cell, device: str, core: int, ready):
    """Train a cell on one core until this process is killed; `ready` is set after the first step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    tqdm.set_lock(threading.RLock())  # a progress bar's own lock would be reported as leaked after the kill
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    devices.keep_memory()

    def stop() -> bool:
        ready.set()
        if not multiprocessing.parent_process().is_alive():
            os._exit(1)
        return False

    run_cell(cell.mc, cell.tc, None, (), DistributedEnv(device=device), stop)


@contextlib.contextmanager
def company(cell: Cell, run_cell, device: str, cores: list[int]):
    """This process on the first core alone, and one that trains `cell` on each of the others.

    Workers share caches, memory and the clock, and are slower together than alone. run_cell : function of a module,
    (mc, tc, start, keep, world, stop) -> answer.
    """
    spawn = multiprocessing.get_context("spawn")
    affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    threads = torch.get_num_threads()
    others = []
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="isoflop_", ignore_cleanup_errors=True))
        try:
            for core in cores[1:]:
                ready = spawn.Event()
                beside = trial(cell, ENDLESS_STEPS, f"{folder}/{core}", timed_rows(cell, device))
                args = (beside, run_cell, device, core, ready)
                others.append(spawn.Process(target=train_beside, args=args, daemon=True))
                others[-1].start()
                ready.wait(60)
            if affinity:
                os.sched_setaffinity(0, {cores[0]})
            torch.set_num_threads(1)
            yield
        finally:
            torch.set_num_threads(threads)
            if affinity:
                os.sched_setaffinity(0, affinity)
            for other in others:
                other.kill()
                other.join()


# ----- all cells -----


def estimates(
    cells: list[Cell], ask, device: str, tokens: TokenData, mfu: float | None = None, processes: int = 1
) -> list[Estimate]:
    """One Estimate per cell: measured at up to MEASURED_SIZES sizes and read between them in logs, or from mfu.

    Parameters
    ----------
    ask : function(cell) -> {"record": dict} of a run that all processes of a cell take part in, or {"status": ..}.
    mfu : share of the device's peak, in place of measured times; UserError where the peak is unknown.
    processes : that share a cell.
    """
    if mfu is not None:
        return from_mfu(cells, device, mfu, processes)
    with tempfile.TemporaryDirectory(prefix="isoflop_", ignore_cleanup_errors=True) as folder:
        measured = measure_sizes(cells, ask, device, folder)
    x, fixed, row, eval_s, other_s, memory = np.array(measured).T
    out = []
    for c in cells:
        at = math.log(c.plan.n_params_matmul)
        step_s = np.interp(at, x, fixed) + c.plan.batch_size * np.exp(np.interp(at, x, np.log(row)))
        val_tokens = validation_rows(tokens, c.mc.block_size, c.tc.val_tokens) * c.mc.block_size
        peak = float(np.interp(at, x, memory))
        out.append(
            Estimate(
                train_s=float((c.plan.steps - c.start_step) * step_s),
                eval_s=float(val_tokens * np.exp(np.interp(at, x, np.log(eval_s)))),
                other_s=float(np.interp(at, x, other_s)),
                memory_gb=None if math.isnan(peak) else peak,
            )
        )
    return out


def measure_sizes(cells: list[Cell], ask, device: str, folder: str) -> list[tuple]:
    """Per measured size (ln N, seconds of a step, of each row in it, of evaluating a token, of the rest, GB).

    A size is measured at its smallest and its largest batch, for a step costs fixed + row x batch. Memory on a CPU is
    the process's peak, so sizes are measured from small to large; NaN where no whole batch was timed.
    """
    by_size = {}
    for c in sorted(cells, key=lambda c: (c.plan.n_params_matmul, c.plan.batch_size)):
        by_size.setdefault(c.plan.n_params_matmul, []).append(c)
    sizes = list(by_size)
    picked = sorted({round(i) for i in np.linspace(0, len(sizes) - 1, MEASURED_SIZES)})
    out = []
    for n in [sizes[i] for i in picked]:
        few, many = by_size[n][0], by_size[n][-1]
        low, high = timed_rows(few, device), timed_rows(many, device)
        step_s, *rest = measure(few, ask, folder, low)
        fixed, row = 0.0, step_s / low
        if high > low:
            long_s, *rest = measure(many, ask, folder, high)
            row = (long_s - step_s) / (high - low)
            row = max(row, 0.25 * long_s / high)  # a few noisy steps must not make rows free
            fixed = max(0.0, long_s - row * high)
        if many.plan.micro_batch_size > high:
            rest[-1] = math.nan
        out.append((math.log(n), fixed, row, *rest))
    return out


def from_mfu(cells: list[Cell], device: str, mfu: float, processes: int) -> list[Estimate]:
    """Estimates from a share of the device's peak."""
    gpu = gpus.find(devices.device_name(device))
    if gpu is None:
        raise UserError(f"--mfu {mfu:g} needs the peak of this device, which is unknown; leave it out")
    flops_per_s = mfu * gpu.peak * processes
    out = []
    for c in cells:
        forward = c.tc.val_tokens * c.plan.flops_per_token_exact / 3
        out.append(Estimate(c.plan.flops_exact / flops_per_s, forward / flops_per_s, 0.0, None))
    return out


def memory_gb(device: str, workers: int = 1) -> float:
    """Memory that one worker may fill, in GB: the GPU's, or a share of this machine's (or container's)."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_properties(device).total_memory / 1e9
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        total = min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no limit, or no Linux
        pass
    return total / 1e9 / workers


# ----- the table -----


def marks(cell: Cell, estimate: Estimate | None, room_gb: float | None) -> list[str]:
    """What is wrong with a cell, and the flag that fixes it."""
    if cell.refused:
        return [f"refused: {cell.refused}"]
    p, out = cell.plan, []
    if p.steps < FEW_STEPS:
        batch = p.smaller_batch()
        ways_out = f"--batch_size {batch}, or a larger budget" if batch else "a larger budget"
        out.append(f"under {FEW_STEPS} steps: {ways_out}")
    if p.epochs is not None and p.epochs > MANY_EPOCHS:
        out.append(f"over {MANY_EPOCHS} epochs: --data_dir with {p.epochs / MANY_EPOCHS:.1f} times the text")
    if estimate and room_gb and estimate.memory_gb and estimate.memory_gb > room_gb:
        rows = max(1, int(p.micro_batch_size * room_gb / estimate.memory_gb / 2))
        out.append(f"over {room_gb:.0f} GB: --micro_batch_size {rows}, or fewer --workers")
    return out


def row_of(cell: Cell, done: set[str], estimate: Estimate | None, price: float | None) -> dict:
    """Every column of a cell, by its title; what is not known is left out."""
    row = {"budget": display.flops(cell.flop_budget, 3), "width": cell.size.n_embd, "depth": cell.size.n_layer}
    if cell.refused:
        return row | {"run_id": "refused"}
    p = cell.plan
    ours = p.n_params_matmul == count_params(cell.mc)["matmul"]  # else a service's, which counts its own way
    row["N (matmul)" if ours else "N (service)"] = display.count(p.n_params_matmul)
    row |= {"N total": display.count(p.n_params), "N non-emb": display.count(p.n_params_non_embedding)}
    row |= {"D": display.count(p.tokens), "D/N": display.fixed(p.tokens_per_param, 1)}
    row |= {"tok/step": display.count(p.tokens_per_step), "steps": display.count(p.steps)}
    row |= {"epochs": display.fixed(p.epochs, 2), "6ND": display.flops(p.flops, 3)}
    if ours:
        row["exact/6ND"] = display.fixed(p.flops_exact / p.flops, 3)
        row["head"] = display.percent(cell.mc.vocab_size * cell.mc.n_embd / p.n_params_matmul, 0)
    row |= {"lr": display.sig(p.lr, 3), "seed": cell.seed, "run_id": cell.run_id + "*" * bool(cell.start)}
    if estimate:
        row["time"] = display.seconds(estimate.seconds)
        if estimate.memory_gb:
            row["memory"] = f"{estimate.memory_gb:.2f} GB"
        if price:
            row["cost"] = display.sig(estimate.seconds / 3600 * price, 3)
    if cell.run_id in done:
        row["time"] = "done"
    return row


def table(cells: list[Cell], done: set[str], costs: list | None = None, price=None, room_gb=None, full=False) -> str:
    """The cells as text: what each is and (in `full`) every N, the rate, memory and cost; marks are explained below.

    Parameters
    ----------
    done : run_ids that have a row already.
    costs : an Estimate or None per cell.
    price : of an hour of one process.
    room_gb : memory that one process may fill.
    """
    rows, notes = [], {}
    for cell, estimate in zip(cells, costs or [None] * len(cells), strict=True):
        row = row_of(cell, done, estimate, price)
        found = [f"!{notes.setdefault(text, len(notes) + 1)}" for text in marks(cell, estimate, room_gb)]
        rows.append(row | {"": " ".join(found)})
    names = [name for name in COLUMNS if any(name in row for row in rows) and (full or name not in ONLY_FULL)]
    lines = [display.text_table(names, [[row.get(name, "") for name in names] for row in rows], align="r", gap=1)]
    lines += [f"!{number} {text}" for text, number in notes.items()]
    if any(cell.start for cell in cells):
        lines.append("* branches off the largest budget's run of its size: its time is that of its own steps")
    return "\n".join(lines)

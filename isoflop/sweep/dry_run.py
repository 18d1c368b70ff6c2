"""What a sweep will cost and what its law will be worth, before it runs: the tables of sweep.py --dry_run.

Times and memory are measured over a few steps of real sizes on this device, or follow from a stated MFU. The worth is
measured too: runs are drawn from a law at the very N and D of the grid, and fitted by fit.py's own code.
"""

import contextlib
import math
import multiprocessing
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from isoflop import device as devices
from isoflop import gpus
from isoflop.data.loader import Loader
from isoflop.data.reader import TokenData
from isoflop.optim.build import build
from isoflop.sweep.cells import Cell
from isoflop.train.plan import FEW_STEPS, MANY_EPOCHS
from model import GPT
from train import backward

MEASURED_SHAPES = 8  # at most so many sizes are timed, the smallest and the largest among them
TRIAL_S = 0.4  # seconds of steps that a timed size gets, three steps at least


STARTUP_S = 0.05  # of a cell: model, optimizer, files; seen on a CPU for models of 1e4 to 1e6 weights


@dataclass(frozen=True)
class Estimate:
    """Of one cell."""

    train_s: float
    eval_s: float
    memory_gb: float | None

    @property
    def seconds(self) -> float:
        return self.train_s + self.eval_s + STARTUP_S


# ----- time and memory -----


def train_for_ever(cell: Cell, device: str, tokens: TokenData, core: int | None, ready):
    """Steps of one cell until the process is ended: the company that a worker has."""
    if core is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    model = GPT(cell.mc).to(device)
    dtype = devices.compute_dtype(cell.tc.dtype, device)
    optimizer = build(model, cell.plan, cell.tc.grad_clip, dtype, device)
    loader, rows = Loader(tokens.train, cell.mc.block_size, cell.tc.seed), cell.plan.micro_batch_size
    batch = [torch.from_numpy(a).to(device) for a in loader.batch(0, rows)]
    while True:
        backward(model, *batch, rows, devices.autocast(dtype, device), optimizer)
        optimizer.step(cell.plan.lr)
        ready.set()


@contextlib.contextmanager
def company(cell: Cell, device: str, tokens: TokenData, cores: list[int]):
    """A process on each core but the first that trains meanwhile, and this one on the first: workers share caches,
    memory and the clock, and are slower together than alone."""
    spawn = multiprocessing.get_context("spawn")
    own = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    threads, others = torch.get_num_threads(), []
    try:
        for core in cores[1:]:
            ready = spawn.Event()
            other = spawn.Process(target=train_for_ever, args=(cell, device, tokens, core, ready), daemon=True)
            other.start()
            others.append(other)
            ready.wait(60)
        if own:
            os.sched_setaffinity(0, {cores[0]})
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(threads)
        if own:
            os.sched_setaffinity(0, own)
        for other in others:
            other.kill()
            other.join()


def measure(cell: Cell, device: str, tokens: TokenData) -> tuple[float, float, float]:
    """(seconds of a step, seconds of evaluating a token, peak memory in GB) of one cell, on its own text."""
    tc, plan, dtype = cell.tc, cell.plan, devices.compute_dtype(cell.tc.dtype, device)
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
    torch.set_float32_matmul_precision("high")
    model = GPT(cell.mc).to(device)
    optimizer = build(model, plan, tc.grad_clip, dtype, device)
    autocast = devices.autocast(dtype, device)
    rows = min(plan.batch_size, plan.micro_batch_size)
    T, V = cell.mc.block_size, cell.mc.vocab_size
    loader, losses = Loader(tokens.train, T, tc.seed), deque(maxlen=10)
    times, started = [], time.perf_counter()
    while len(times) < 5 or (time.perf_counter() - started < TRIAL_S and len(times) < 200):
        start = time.perf_counter()
        batch = ((torch.from_numpy(a) % V).to(device) for a in loader.batch(len(times) * rows, rows))
        loss = backward(model, *batch, rows, autocast, optimizer, plan.z_loss)
        losses.append(loss)
        middle = time.perf_counter()
        optimizer.step(plan.lr)
        loss.item()
        times.append((middle - start) * plan.batch_size / rows + time.perf_counter() - middle)
    optimizer.finish()
    chunk = torch.randint(V, (max(1, min(2**13, 2**26 // V) // T), T), device=device)
    took = []
    with torch.no_grad(), autocast:
        for _ in range(3):
            start = time.perf_counter()
            model(chunk, chunk, reduction="none")[1].cpu()
            took.append(time.perf_counter() - start)
    return float(np.median(times[2:])), min(took) / chunk.numel(), devices.peak_memory_gb(device)


def estimates(
    cells: list[Cell], device: str, tokens: TokenData, mfu: float | None = None, processes: int = 1
) -> list[Estimate]:
    """One Estimate per cell: measured at up to MEASURED_SHAPES sizes and read between them in logs, or from --mfu.

    A size is measured at its smallest and its largest batch, for a step costs a + b x rows. Memory on a CPU is the
    process's peak, so sizes are measured from small to large.
    """
    if mfu is not None:
        gpu = gpus.find(devices.device_name(device))
        if gpu is None:
            raise ValueError(f"--mfu {mfu:g} says nothing here: the peak of this device is not known; leave it out")
        val = [c.tc.val_tokens * c.plan.flops_per_token_exact / 3 for c in cells]
        rate = mfu * gpu.peak * processes
        return [Estimate(c.plan.flops_exact / rate, v / rate, None) for c, v in zip(cells, val, strict=True)]
    by_n = {}
    for c in sorted(cells, key=lambda c: (c.plan.n_params_matmul, c.plan.tokens_per_step)):
        by_n.setdefault(c.plan.n_params_matmul, []).append(c)
    sizes = list(by_n)
    picked = sorted({sizes[round(i)] for i in np.linspace(0, len(sizes) - 1, MEASURED_SHAPES)})
    seen = []
    for n in picked:
        few, many = by_n[n][0], by_n[n][-1]
        step_s, eval_s, memory = measure(few, device, tokens)
        fixed, row = 0.0, step_s / few.plan.batch_size
        if many.plan.batch_size > few.plan.batch_size:
            long_s, eval_s, memory = measure(many, device, tokens)
            row = (long_s - step_s) / (many.plan.batch_size - few.plan.batch_size)
            row = max(row, 0.25 * long_s / many.plan.batch_size)  # a few noisy steps must not make rows free
            fixed = max(0.0, long_s - row * many.plan.batch_size)
        seen.append((math.log(n), fixed, row, eval_s, memory))
    x, fixed, row, evaluate, memory = map(np.array, zip(*seen, strict=True))
    out = []
    for c in cells:
        at = math.log(c.plan.n_params_matmul)
        steps = (c.plan.steps - c.start_step) / processes
        step_s = np.interp(at, x, fixed) + c.plan.batch_size * np.exp(np.interp(at, x, np.log(row)))
        val = min(c.tc.val_tokens, 2**40) / processes
        out.append(Estimate(
            steps * float(step_s),
            val * float(np.exp(np.interp(at, x, np.log(evaluate)))),
            float(np.interp(at, x, memory)),
        ))  # fmt: skip
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
    """What is wrong with a cell, and the flag that mends it."""
    if cell.refused:
        return [f"refused: {cell.refused}"]
    p, out = cell.plan, []
    if p.steps < FEW_STEPS:
        batch = max(1, p.batch_size * p.steps // FEW_STEPS)
        out.append(f"under {FEW_STEPS} steps: --batch_size {batch}, or a larger budget")
    if p.epochs is not None and p.epochs > MANY_EPOCHS:
        out.append(f"over {MANY_EPOCHS} epochs: --data_dir with {p.epochs / MANY_EPOCHS:.1f} times the text")
    if estimate and room_gb and estimate.memory_gb and estimate.memory_gb > room_gb:
        rows = max(1, int(p.micro_batch_size * room_gb / estimate.memory_gb / 2))
        out.append(f"over {room_gb:.0f} GB: --micro_batch_size {rows}, or fewer --workers")
    return out


def table(cells: list[Cell], done: set[str], costs: list | None = None, price=None, room_gb=None, full=False) -> str:
    """The cells as text: what each is and (in `full`) every N, the rate, memory and cost; marks are explained below."""
    rows, noted = [], {}
    for i, c in enumerate(cells):
        e = costs[i] if costs else None
        found = "".join(f" !{noted.setdefault(t, len(noted) + 1)}" for t in marks(c, e, room_gb))
        row = {"budget": f"{c.flop_budget:.2g}", "width": c.shape[0], "depth": c.shape[1]}
        if p := c.plan:
            row["N (matmul)"] = f"{p.n_params_matmul:,}"
            if full:
                row |= {"N total": f"{p.n_params:,}", "N non-emb": f"{p.n_params_non_embedding:,}"}
            row |= {"D": f"{p.tokens:,}", "D/N": f"{p.tokens_per_param:.1f}", "tok/step": f"{p.tokens_per_step:,}"}
            row |= {"steps": f"{p.steps:,}", "epochs": "?" if p.epochs is None else f"{p.epochs:.2f}"}
            row |= {"6ND": f"{p.flops:.3g}", "exact/6ND": f"{p.flops_exact / p.flops:.3f}"}
            row["head"] = f"{c.mc.vocab_size * c.mc.n_embd / p.n_params_matmul:.0%}"
            if full:
                row |= {"lr": f"{p.lr:.3g}", "seed": c.seed}
            row["time"] = "done" if c.run_id in done else f"{e.seconds:.1f} s" if e else ""
            if full:
                row["memory"] = f"{e.memory_gb:.2f} GB" if e and e.memory_gb else ""
            if price:
                row["cost"] = f"{e.seconds / 3600 * price:.3g}" if e else ""
        row["run_id"] = "refused" if c.refused else c.run_id + ("*" if c.start else "")
        rows.append((row, found))
    names = list(dict.fromkeys(k for row, _ in rows for k in row if k != "run_id")) + ["run_id"]
    wide = {k: max(len(k), *(len(str(row.get(k, ""))) for row, _ in rows)) for k in names}
    lines = [" ".join(k.rjust(wide[k]) for k in names)]
    lines += [" ".join(str(row.get(k, "")).rjust(wide[k]) for k in names) + found for row, found in rows]
    lines += [f"!{number} {text}" for text, number in noted.items()]
    if any(c.start for c in cells):
        lines.append("* branches off the largest budget's run of its size: its time is that of its own steps")
    return "\n".join(lines)

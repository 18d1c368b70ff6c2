"""plan.py's memory and time against real training runs on this machine.

    python bench/bench_memory.py                 # five configurations, float32 and bfloat16, about two minutes

Memory: the most that torch's CPU allocator held at once during train.train() (model, optimizer, steps, evaluation),
from its own record of every allocation, against estimate_memory(). Time: a run's loop seconds against what the speed of
an earlier, shorter run of the same model says.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

import data
import train
from isoflop import device, flops
from isoflop.config import ModelConfig
from isoflop.data import config, reader
from isoflop.plan.machine import make_machine
from isoflop.plan.memory import estimate_memory
from isoflop.train.plan import TrainConfig
from isoflop.train.record import RunRecord

CONFIGURATIONS = (  # model, sequences a step, vocabulary
    (ModelConfig(1, 32), 12, 512),
    (ModelConfig(2, 64), 16, 4096),
    (ModelConfig(4, 128, block_size=256), 8, 512),
    (ModelConfig(6, 256, block_size=256), 4, 4096),
    (ModelConfig(8, 384, block_size=512), 2, 512),
)


def allocated_peak(work) -> int:
    """Most bytes that torch's CPU allocator held at once while work() ran, above what it held before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        work()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


def run(mc, folder, out, **given) -> RunRecord:
    tc = TrainConfig(data_dir=folder, out_dir=str(out), overwrite=True, device="cpu", **given)
    return train.train(mc, tc, quiet=True)


def measure(mc, rows, folder, dtype, out, steps=3, val_tokens=2**14) -> tuple[int, float]:
    """(measured, predicted) peak in bytes of a run of a few steps on the tokens in `folder`."""
    given = dict(batch_size=rows, max_iters=steps, dtype=dtype, val_tokens=val_tokens)
    measured = allocated_peak(lambda: run(mc, folder, out, **given))
    tokens = reader.open_data(folder)
    mc = dataclasses.replace(mc, vocab_size=tokens.meta["vocab_size"])
    val_tokens = min(val_tokens, len(tokens.val) - 1)
    return measured, estimate_memory(mc, rows, dtype, "cpu", val_tokens=val_tokens).peak


def label(mc, rows, vocab_size) -> str:
    return f"{mc.n_layer} x {mc.n_embd}, {mc.block_size}, {vocab_size}, {rows}"


def memory_table(folders, out):
    print("\nlayers x width, context, vocabulary, batch  type      measured     plan.py  ratio")
    for mc, rows, vocab_size in CONFIGURATIONS:
        for dtype in ("float32", "bfloat16"):
            real, planned = measure(mc, rows, folders[vocab_size], dtype, out)
            sizes = f"{real / 1e6:>8.2f} MB {planned / 1e6:>8.2f} MB"
            print(f"{label(mc, rows, vocab_size):<43} {dtype:<8} {sizes}  {planned / real:.3f}", flush=True)


def time_table(folders, out):
    device.keep_memory()  # as train.py does
    print("\nlayers x width, context, vocabulary, batch  FLOP/s    seconds  plan.py  ratio")
    for mc, rows, vocab_size in CONFIGURATIONS:
        folder, given = folders[vocab_size], dict(batch_size=rows, val_tokens=2**12)
        steps = max(12, int(1e11 / (flops.flops_per_token_exact(mc) * rows * mc.block_size)))
        run(mc, folder, out, max_iters=6, **given)  # warms caches and the allocator up
        run(mc, folder, out, max_iters=steps, **given)
        machine = make_machine(measured=out / "run.json")
        longer = run(mc, folder, out, max_iters=3 * steps, **given)
        planned = machine.bill(dataclasses.replace(mc, vocab_size=vocab_size), longer.tokens).seconds
        print(
            f"{label(mc, rows, vocab_size):<43} {machine.speed.flops_per_s:.2e} {longer.train_s:>8.2f} "
            f"{planned:>8.2f}  {planned / longer.train_s:.3f}"
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("memory", "time"), help="one of the two tables")
    only = parser.parse_args().only
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        folders = {}
        for vocab_size in sorted({row[2] for row in CONFIGURATIONS}):
            wanted = config.DataConfig(
                source="stdlib", tokenizer=f"bpe:{vocab_size}", out_dir=os.path.join(folder, str(vocab_size))
            )
            folders[vocab_size] = str(data.prepare(wanted, quiet=True))
        if only != "time":
            memory_table(folders, Path(folder) / "out")
        if only != "memory":
            time_table(folders, Path(folder) / "out")


if __name__ == "__main__":
    main()

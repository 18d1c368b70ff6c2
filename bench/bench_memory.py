"""plan.py's memory and time against real training runs on this machine.

    python bench/bench_memory.py                 # five configurations, float32 and bfloat16, about two minutes

Memory: the most that torch's CPU allocator held at once during train.train() (model, optimizer, steps, evaluation),
from its own record of every allocation, against costs.memory(). Time: a run's loop seconds against what the speed of an
earlier, shorter run of the same model says.
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
from isoflop.plan import estimate, memory
from isoflop.train import record as record_
from isoflop.train.plan import TrainConfig

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


def run(mc, folder, out, **given) -> record_.RunRecord:
    tc = TrainConfig(data_dir=folder, out_dir=str(out), overwrite=True, device="cpu", **given)
    return train.train(mc, tc, quiet=True)


def measure(mc, rows, folder, dtype, out, steps=3, val_tokens=2**14) -> tuple[int, float]:
    """(measured, predicted) peak in bytes of a run of a few steps on the tokens in `folder`."""
    given = dict(batch_size=rows, max_iters=steps, dtype=dtype, val_tokens=val_tokens)
    measured = allocated_peak(lambda: run(mc, folder, out, **given))
    tokens = reader.open_data(folder)
    mc = dataclasses.replace(mc, vocab_size=tokens.meta["vocab_size"])
    val_tokens = min(val_tokens, len(tokens.val) - 1)
    return measured, memory.memory(mc, rows, dtype, "cpu", val_tokens=val_tokens)["peak"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("memory", "time"), help="one of the two tables")
    asked = parser.parse_args()
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        token_folders = {}
        for V in sorted({v for *_, v in CONFIGURATIONS}):
            wanted = config.DataConfig(source="stdlib", tokenizer=f"bpe:{V}", out_dir=os.path.join(folder, str(V)))
            token_folders[V] = str(data.prepare(wanted, quiet=True))
        if asked.only != "time":
            print("\nlayers x width, context, vocabulary, batch  type      measured     plan.py  ratio")
        for mc, rows, V in CONFIGURATIONS if asked.only != "time" else ():
            for dtype in ("float32", "bfloat16"):
                real, said = measure(mc, rows, token_folders[V], dtype, Path(folder) / "out")
                name = f"{mc.n_layer} x {mc.n_embd}, {mc.block_size}, {V}, {rows}"
                print(
                    f"{name:<43} {dtype:<8} {real / 1e6:>8.2f} MB {said / 1e6:>8.2f} MB  {said / real:.3f}", flush=True
                )
        if asked.only == "memory":
            return
        device.keep_memory()  # as train.py's launch() does
        print("\nlayers x width, context, vocabulary, batch  FLOP/s    seconds  plan.py  ratio")
        for mc, rows, V in CONFIGURATIONS:
            steps = max(12, int(1e11 / (flops.flops_per_token_exact(mc) * rows * mc.block_size)))
            out, given = Path(folder) / "out", dict(batch_size=rows, val_tokens=2**12)
            run(mc, token_folders[V], out, max_iters=6, **given)  # warms caches and the allocator up
            run(mc, token_folders[V], out, max_iters=steps, **given)
            speed = estimate.read_speed(out / "run.json", 1)
            longer = run(mc, token_folders[V], out, max_iters=3 * steps, **given)
            mc = dataclasses.replace(mc, vocab_size=V)
            said = speed.seconds(mc, longer.tokens)
            name = f"{mc.n_layer} x {mc.n_embd}, {mc.block_size}, {V}, {rows}"
            print(
                f"{name:<43} {speed.flops_per_s:.2e} {longer.train_s:>8.2f} {said:>8.2f}  {said / longer.train_s:.3f}"
            )


if __name__ == "__main__":
    main()

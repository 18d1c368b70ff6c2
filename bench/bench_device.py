"""What this machine does: its product peak, then tokens/s, share of that peak and memory of models, lever by lever.

    python bench/bench_device.py                         # this machine's own list, under two minutes on two cores
    python bench/bench_device.py --models gpt2:16 gpt2-medium:8 256x6:8 --rounds 5
    python bench/bench_device.py --levers all            # the kernels, too, each left out alone and all of them
    python bench/bench_device.py --processes 2           # replicas and --shard beside one process

A model is a preset or WIDTHxLAYERS, then its sequences a step. The cases of a model take turns, each built anew every
round; a cell is the median of the rounds, "least" and "most" their spread. Data are random ids. docs/gpu.md explains
the columns. Nothing else should run: on a busy machine only ratios within one table mean something, if those.
"""

import argparse
import contextlib
import csv
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from bench_memory import allocated_peak
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

import model as model_module
import train
from isoflop import device as devices
from isoflop import gpus
from isoflop.config import PRESETS, configure
from isoflop.display import gb, percent, si, text_table
from isoflop.distributed import launch
from isoflop.kernels import attention, cross_entropy, elementwise
from isoflop.optim.torch_optim import TorchOptimizer
from isoflop.train import compiled
from isoflop.train.plan import TrainConfig
from isoflop.train.validation import evaluate, validation_rows

MODELS = {"cpu": ["32x1:8", "128x4:8", "256x6:8"], "cuda": ["nanogpt:16", "gpt2-medium:8", "256x6:64"]}
WARM = 3  # steps of a case before its clock starts
PARTS = 5  # steps whose parts are timed one by one
VAL_TOKENS = 2**14


@dataclass
class Case:
    """A model with one lever, and what its rounds gave."""

    label: str
    mc: object
    rows: int  # sequences a step and process
    lever: str
    dtype: str
    patches: list = field(default_factory=list)  # context managers' makers, held while it is built and run
    flags: dict = field(default_factory=dict)  # TrainConfig's
    found: list[dict] = field(default_factory=list)


# ----- the machine -----


def product_peaks(device: str, size: int, turns: int = 12) -> dict[str, float]:
    """FLOP/s of square products, by type: the best of turns that alternate. float32 may use TF32, as train.py does."""
    torch.set_float32_matmul_precision("high")
    best = {}
    operands = {}
    for name in ("float32", "bfloat16"):
        operands[name] = torch.randn(2, size, size, device=device).to(getattr(torch, name))
    for turn in range(turns):
        for name, (a, b) in operands.items():
            wait(device)
            start = time.perf_counter()
            torch.mm(a, b)
            wait(device)
            if turn > 1:
                best[name] = max(best.get(name, 0.0), 2 * size**3 / (time.perf_counter() - start))
    return best


def wait(device: str):
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


# ----- the cases -----


def parse_model(text: str, args):
    """(label, ModelConfig, sequences) of "gpt2:16" or "256x6:8"; a mistake ends the program."""
    name, _, rows = text.partition(":")
    try:
        if name in PRESETS:
            mc = configure(name)
        else:
            width, layers = (int(part) for part in name.split("x"))
            mc = configure(n_embd=width, n_layer=layers, block_size=args.block_size, vocab_size=args.vocab_size)
        return name, mc, int(rows or 8)
    except ValueError as error:
        sys.exit(f"--models {text}: {error}; as gpt2:16 (preset:sequences) or 256x6:8 (WIDTHxLAYERS:sequences)")


def plain(*modules) -> list:
    """Makers of patches that leave out the fused kernels of these modules."""
    makers = [lambda m=m: mock.patch.object(m, "fused", lambda x: False) for m in modules]
    if cross_entropy in modules:
        makers.remove(makers[modules.index(cross_entropy)])
        makers.append(lambda: mock.patch.object(model_module, "head_loss", cross_entropy.plain_head_loss))
    return makers


def torch_optimizer():
    """A patch: torch.optim.AdamW in place of the one over flat buffers."""

    def make(model, plan, grad_clip, *rest):
        return TorchOptimizer(model, plan.weight_decay, plan.beta2, grad_clip)

    return mock.patch.object(train, "build", make)


def levers(device: str, dtype: str, rows: int, wanted: str, processes: int) -> list[tuple]:
    """(name, patches, flags) of the cases of one model in one type; the first is what the others are compared with."""
    if processes > 1:
        return [("replicas", [], {}), ("--shard", [], {"shard": True})]
    out = [("as it is", [], {})]
    if rows > 1:
        out.append(("2 micro-batches", [], {"micro_batch_size": -(-rows // 2)}))
    if device == "cuda":
        for name in ("FLASH_ATTENTION", "CUDNN_ATTENTION", "EFFICIENT_ATTENTION", "MATH"):
            backend = getattr(SDPBackend, name)
            if dtype == "bfloat16" or name in ("EFFICIENT_ATTENTION", "MATH"):
                out.append((f"attention {name.split('_')[0].lower()}", [lambda b=backend: sdpa_kernel(b)], {}))
        out.append(("--compile, reduce-overhead", [], {"compile": True, "compile_mode": "reduce-overhead"}))
    else:
        out.append(("modules", plain(model_module), {}))
        out.append(("torch's attention", plain(attention, model_module), {}))
    if device == "cuda" or wanted in ("all", "compile"):
        out.append(("--compile", [], {"compile": True}))
    if wanted == "all" and device != "cuda":
        out.append(("plain head and loss", plain(cross_entropy, model_module), {}))
        out.append(("plain norm and activation", plain(elementwise, model_module), {}))
        if dtype == "float32":
            out.append(("torch.optim.AdamW", [torch_optimizer], {}))
        out.append(("all kernels plain", plain(attention, cross_entropy, elementwise, model_module), {}))
        out.append(
            ("all plain, --compile", plain(attention, cross_entropy, elementwise, model_module), {"compile": True})
        )
    elif wanted == "all":
        out.append(("plain head and loss", plain(cross_entropy), {}))
    return out


def cases_of(args, device: str) -> list[list[Case]]:
    """The cases, a list a model."""
    types = args.types or (["bfloat16", "float32"] if device == "cpu" or args.levers == "all" else ["bfloat16"])
    out = []
    for text in args.models or MODELS.get(device, MODELS["cpu"]):
        label, mc, rows = parse_model(text, args)
        group = []
        for dtype in types:
            for name, patches, flags in levers(device, dtype, rows, args.levers, args.size):
                flags = {"compile": False} | flags
                if flags["compile"] and compiled.problem(device):
                    continue
                group.append(Case(label, mc, rows, name, dtype, patches, flags))
        out.append(group)
    return out


# ----- one measurement -----


def measure(case: Case, env, folder: str, seconds: float, first: bool) -> dict:
    """Build the case, warm it up, time whole steps, then their parts and validation; with `first` its memory."""
    tc = TrainConfig(
        data_dir=folder, out_dir=f"{folder}/out", max_iters=10**6, batch_size=case.rows, dtype=case.dtype,
        lr=1e-4, device="auto" if env.device != "cpu" else "cpu", val_tokens=VAL_TOKENS, **case.flags,
    )  # fmt: skip
    run = train.set_up(case.mc, tc, env, quiet=True)
    with contextlib.ExitStack() as held:
        for make in case.patches:
            held.enter_context(make())
        if first and env.device == "cpu":
            case.memory = allocated_peak(lambda: Steps(run).many(2))
        elif first and env.device.startswith("cuda"):
            torch.cuda.reset_peak_memory_stats()
        steps = held.enter_context(contextlib.closing(Steps(run)))
        steps.many(WARM)
        count = max(2, int(seconds / (steps.many(2) / 2)))
        taken = steps.many(count) / count
        if first and env.device.startswith("cuda"):
            case.memory = torch.cuda.max_memory_allocated()
        out = {"tok_s": run.plan.tokens_per_step / taken, "loss": steps.loss.item()} | steps.parts()
        steps.optimizer.finish()
        start = time.perf_counter()
        rows = validation_rows(run.tokens, case.mc.block_size, VAL_TOKENS)
        evaluate(steps.model, run.tokens, None, rows, env, run.autocast)
        out["val_tok_s"] = rows * case.mc.block_size / (time.perf_counter() - start)
    torch._dynamo.reset()
    return out


class Steps:
    """A run's model, optimizer and batches, stepped by hand as train.train_steps() does."""

    def __init__(self, run):
        self.run = run
        self.model = train.build_model(run)
        self.optimizer = train.build_optimizer(run, self.model)
        self.forward = train.wrapped(run, self.model)
        self.batches = train.Batches(run.loader, 0, run.plan.batch_size, run.plan.batch_size, 10**6, run.env.device)

    def close(self):
        self.batches.close()

    def backward(self, batch):
        run = self.run
        self.loss = train.backward(self.forward, *batch, run.plan.micro_batch_size, run.autocast, self.optimizer)

    def many(self, count: int) -> float:
        """Seconds of so many steps."""
        wait(self.run.env.device)
        start = time.perf_counter()
        for _ in range(count):
            self.backward(next(self.batches))
            self.optimizer.step(1e-4)
        wait(self.run.env.device)
        return time.perf_counter() - start

    def parts(self) -> dict:
        """Median milliseconds of waiting for a batch, forward and backward, and the optimizer, each waited for."""
        taken = {"data_ms": [], "passes_ms": [], "optimizer_ms": []}
        for _ in range(PARTS):
            start = time.perf_counter()
            batch = next(self.batches)
            at = [start, time.perf_counter()]
            for work in (lambda b=batch: self.backward(b), lambda: self.optimizer.step(1e-4)):
                work()
                wait(self.run.env.device)
                at.append(time.perf_counter())
            for values, begun, ended in zip(taken.values(), at, at[1:], strict=False):
                values.append(1e3 * (ended - begun))
        return {name: statistics.median(values) for name, values in taken.items()}


# ----- the table -----


def row_of(case: Case, peaks: dict, env, base: dict) -> dict:
    """The CSV's row of a case; base: tokens/s of what it is compared with, by (model, type)."""
    from isoflop.flops import flops_per_token_exact

    rates = [found["tok_s"] for found in case.found]
    rate = statistics.median(rates)
    exact = flops_per_token_exact(case.mc) * rate / env.size
    gpu = gpus.find(devices.device_name(env.device))
    row = {
        "model": case.label, "sequences": case.rows, "context": case.mc.block_size, "processes": env.size,
        "dtype": case.dtype, "lever": case.lever, "tokens_per_s": rate, "least": min(rates), "most": max(rates),
        "over_base": rate / base.setdefault((case.label, case.dtype), rate), "flops_per_s": exact,
        "of_product_peak": exact / peaks[case.dtype], "mfu": exact / gpu.peak if gpu else None,
        "peak_mem": getattr(case, "memory", None),
    }  # fmt: skip
    for name in ("data_ms", "passes_ms", "optimizer_ms", "val_tok_s"):
        row[name] = statistics.median(found[name] for found in case.found)
    return row


def table(rows: list[dict]) -> str:
    header = ["model", "procs", "type", "lever", "tok/s", "spread", "x", "FLOP/s", "of peak", "MFU", "memory"]
    header += ["data", "passes", "optimizer ms", "val tok/s"]
    lines = []
    for r in rows:
        spread = f"{r['least'] / r['tokens_per_s'] - 1:+.0%} {r['most'] / r['tokens_per_s'] - 1:+.0%}"
        line = [f"{r['model']}:{r['sequences']}", r["processes"], r["dtype"], r["lever"], si(r["tokens_per_s"]), spread]
        line += [f"{r['over_base']:.2f}", f"{r['flops_per_s']:.3g}", percent(r["of_product_peak"]), percent(r["mfu"])]
        line += [gb(r["peak_mem"]), *(f"{r[name]:.2f}" for name in ("data_ms", "passes_ms", "optimizer_ms"))]
        lines.append([*line, si(r["val_tok_s"])])
    return text_table(header, lines, align="lrllr")


def draw(rows: list[dict], path: Path):
    """Share of the product peak, a bar a row."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [f"{r['model']}:{r['sequences']} x{r['processes']} {r['dtype']}, {r['lever']}" for r in rows]
    types = sorted({r["dtype"] for r in rows})
    figure, axes = plt.subplots(figsize=(8, 1 + 0.25 * len(rows)), layout="constrained")
    colours = [f"C{types.index(r['dtype'])}" for r in rows]
    axes.barh(names, [100 * r["of_product_peak"] for r in rows], color=colours)
    axes.invert_yaxis()
    axes.set_xlabel("model FLOP/s, % of the product peak of the same type")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def random_data(folder: Path, vocab_size: int) -> str:
    """A data folder of random ids, as nanoGPT's."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for split, count in (("train", 2_000_000), ("val", 2 * VAL_TOKENS)):
        rng.integers(0, vocab_size, count, dtype=np.uint16).tofile(folder / f"{split}.bin")
    (folder / "meta.json").write_text(f'{{"vocab_size": {vocab_size}, "dtype": "uint16"}}')
    return str(folder)


def run_cases(args, env, peaks: dict, folder: Path) -> list[dict]:
    groups = cases_of(args, env.device.split(":")[0])
    total = args.rounds * sum(len(group) for group in groups)
    rows, base = [], {}
    with tqdm(total=total, unit="case", disable=env.rank != 0 or not sys.stderr.isatty()) as bar:
        for group in groups:
            tokens = random_data(folder / f"{group[0].mc.vocab_size}.{env.rank}", group[0].mc.vocab_size)
            for turn in range(args.rounds):
                for case in group:
                    bar.set_postfix_str(f"{case.label} {case.dtype} {case.lever}")
                    case.found.append(measure(case, env, tokens, args.seconds, first=turn == 0))
                    bar.update()
            rows += [row_of(case, peaks, env, base) for case in group]
    return rows


def in_processes(args, count: int, csv_path: Path) -> list[dict]:
    """The same script under torchrun; its rows."""
    words = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={count}", __file__, *sys.argv[1:]]
    environment = {"OMP_NUM_THREADS": "1"} | os.environ
    done = subprocess.run([*words, "--rows", str(csv_path)], env=environment)
    if done.returncode:
        print(f"{count} processes failed (exit {done.returncode}); their rows are missing")
        return []
    with open(csv_path, newline="") as f:
        rows = list(csv.DictReader(f))
    for row in rows:
        for name, value in row.items():
            if name in ("sequences", "context", "processes"):
                row[name] = int(value)
            elif name not in ("model", "dtype", "lever"):
                row[name] = float(value) if value else None
    return rows


def write_csv(rows: list[dict], path: Path):
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", metavar="MODEL:SEQUENCES", help="default: by device")
    parser.add_argument("--types", nargs="+", choices=("float32", "bfloat16"), help="default: both on a CPU, else bf16")
    parser.add_argument("--levers", default="some", choices=("some", "compile", "all"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.7, help="of steps timed in each round of a case")
    parser.add_argument("--block_size", type=int, default=256, help="context of WIDTHxLAYERS")
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--processes", type=int, default=max(1, torch.cuda.device_count()))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda", "mps"))
    parser.add_argument("--out_dir", default="out/bench_device")
    parser.add_argument("--rows", help=argparse.SUPPRESS)  # where torchrun's processes leave their rows
    args = parser.parse_args()
    args.size = int(os.environ.get("WORLD_SIZE", 1))
    out = Path(args.out_dir)
    with launch(args.device) as env, tempfile.TemporaryDirectory() as folder:
        kind = env.device.split(":")[0]
        peaks = product_peaks(env.device, 1024 if kind == "cpu" else 8192)
        rows = run_cases(args, env, peaks, Path(folder))
        if args.rows:
            if env.rank == 0:
                write_csv(rows, Path(args.rows))
            return
        if args.processes > 1:
            rows += in_processes(args, args.processes, Path(folder) / "rows.csv")
    out.mkdir(parents=True, exist_ok=True)
    write_csv(rows, out / "device.csv")
    draw(rows, out / "device.png")
    threads, load = torch.get_num_threads(), os.getloadavg()[0]
    print(f"{devices.device_name(kind)}, torch {torch.__version__}, {threads} threads, load {load:.1f}")
    shown = ", ".join(f"{name} {peak / 1e12:.3g} TFLOP/s" for name, peak in peaks.items())
    print(f"product peak: {shown}\n\n{table(rows)}\n\n{out}/device.csv, {out}/device.png")


if __name__ == "__main__":
    main()

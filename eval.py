"""Loss on a text and scores on benchmarks, of one model or of all of a sweep.

    python eval.py --ckpt out/RUN_ID --data_dir data/stdlib_bpe512
    python eval.py --ckpt out/RUN_ID --tasks hellaswag,piqa,arc_easy --limit 200
    python eval.py --ckpt out/RUN_ID --tasks core  # a bundle; also gauntlet
    python eval.py --ckpt out/RUN_ID --tasks my_task.yaml  # a task of yours
    python eval.py --sweep sweep_results --tasks core

Benchmarks are those of EleutherAI's lm-evaluation-harness (pip install
lm-eval[hf]), on the model as export.py writes it. Scores are printed, and
appended to eval.jsonl beside the weights. A sweep's go to scores.csv, keyed by
run_id; its runs.csv is never touched, and runs_scores.csv is a copy of it with
the scores as columns, for fit.py.
"""

import isoflop.installed  # noqa: F401 isort: skip
import contextlib
import json
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from isoflop.cli import Parser, UserError, check, option, run_main
from isoflop.data import reader
from isoflop.data.tokenizer import load_tokenizer
from isoflop.device import autocast
from isoflop.display import count, fixed, text_table
from isoflop.distributed import DistributedEnv
from isoflop.eval import scores
from isoflop.eval.lm_harness import Harness
from isoflop.files import append_line, parse_json, regular, writable_folder
from isoflop.hf import tokenizer as hf_tokenizer
from isoflop.hf.config import architecture
from isoflop.train import run_dir
from isoflop.train.validation import evaluate, validation_rows
from model import load_model

TEXT = "data:"  # the entry that stands for --data_dir among those of --tasks


@dataclass(frozen=True)
class EvalConfig:
    """What is scored, and how."""

    ckpt: str | None = option(None, "folder of a run or checkpoint of train.py", group="model")
    sweep: str | None = option(None, "folder of a sweep: all its finished runs")
    tokenizer_dir: str | None = option(None, "its tokenizer (default: the copy in --ckpt)")
    device: str = option("auto", "device to run on", choices=("auto", "cpu", "cuda", "mps"))
    dtype: str = option("auto", "compute type", choices=("auto", "float32", "bfloat16"))

    data_dir: str | None = option(None, "token folder: loss, bits per byte", group="text")
    val_tokens: int = option(2**17, "length of the validation range", min=1, max=2**40)

    tasks: str | None = option(None, "names, .yaml files, core, gauntlet; commas", group="benchmarks")
    limit: float | None = option(None, "examples of each task; below 1: a share", above=0, max=1e9)
    num_fewshot: int | None = option(None, "examples in the prompt (default: the task's)", min=0, max=1000)
    batch_size: int = option(8, "sequences at a time", min=1, max=2**16)

    out: str | None = option(None, "append here (default: eval.jsonl in --ckpt)", group="output")

    def __post_init__(self):
        more = []
        if (self.ckpt is None) == (self.sweep is None):
            more.append("give one of --ckpt DIR (a model) and --sweep DIR (all models of a sweep)")
        if not self.task_names() and self.data_dir is None:
            more.append("nothing to score: give --tasks, --data_dir, or both")
        if self.limit is not None and self.limit > 1 and self.limit % 1:
            more.append(f"--limit {self.limit:g} must be a whole number of examples, or a share between 0 and 1")
        if self.out is not None and self.sweep is not None:
            more.append("--out goes with --ckpt; a sweep's scores go to scores.csv in its folder")
        check(self, more)

    def task_names(self) -> list[str]:
        """The entries of --tasks, each once."""
        names = [name.strip() for name in (self.tasks or "").split(",")]
        return list(dict.fromkeys(name for name in names if name))

    def entries(self) -> dict[str, dict]:
        """Each thing to score, an entry of --tasks or TEXT, and what identifies it in scores.csv: asked, limit."""
        shots = "" if self.num_fewshot is None else f" {self.num_fewshot}-shot"
        limit = "" if self.limit is None else f"{self.limit:g}"
        found = {name: {"asked": name + shots, "limit": limit} for name in self.task_names()}
        if self.data_dir is not None:
            found[TEXT] = {"asked": f"data:{Path(self.data_dir).resolve().name}", "limit": str(self.val_tokens)}
        return found


# ----- loss on a text -----


def text_loss(found: run_dir.TrainedModel, config: EvalConfig) -> list[dict]:
    """Loss per token and bits per byte of a model on a data folder's validation text.

    Where the folder's tokens are not the model's, its text is decoded and encoded in the model's tokens: losses per
    token of different tokenizers can't be compared, bits per byte can.
    """
    model, tokens, note = found.model, reader.open_data(config.data_dir), ""
    byte_lengths = reader.token_bytes(config.data_dir)
    data_tokenizer, vocab_size = Path(config.data_dir) / "tokenizer.json", tokens.meta["vocab_size"]
    if found.tokenizer_dir is not None and data_tokenizer.is_file():
        specs = [hf_tokenizer.read_spec(path) for path in (data_tokenizer, found.tokenizer_dir / "tokenizer.json")]
        if not hf_tokenizer.same(*specs):
            ids = reencode(tokens, load_tokenizer(config.data_dir), found.tokenizer(), config.val_tokens)
            tokens, byte_lengths = SimpleNamespace(val=ids), reader.token_bytes(found.tokenizer_dir)
            note = ", in the model's tokens"
    elif vocab_size > model.config.vocab_size:
        way_out = "unknown tokenizer: pass --tokenizer_dir, the data folder that the model was trained on"
        if not data_tokenizer.is_file():
            way_out = "without a tokenizer.json its text is unknown: prepare the text with data.py and name that folder"
        sizes = f"{config.data_dir} has {vocab_size:,} tokens, the model {model.config.vocab_size:,}"
        raise UserError(f"{sizes}; {way_out}")
    rows = validation_rows(tokens, model.config.block_size, config.val_tokens)
    device, dtype = run_dir.place(config.device, config.dtype)
    if byte_lengths is not None:
        byte_lengths = torch.from_numpy(byte_lengths).long()
    model = model.to(device).eval()
    result = evaluate(model, tokens, byte_lengths, rows, DistributedEnv(device=device), autocast(dtype, device))

    where = f"@{Path(config.data_dir).resolve().name}"
    common = {"chance": None, "centred": None, "shots": None, "n": rows * model.config.block_size}
    loss = {"task": f"val_loss{where}", "metric": f"nats/token{note}", "score": result["val_loss"]}
    found_scores = [{**loss, "stderr": result["val_loss_se"], **common}]
    if result["bits_per_byte"] is not None:
        bits = {"task": f"bits_per_byte{where}", "metric": "bits/byte", "score": result["bits_per_byte"]}
        found_scores.append({**bits, "stderr": None, **common})
    return found_scores


def reencode(tokens: reader.TokenData, source, target, count: int) -> np.ndarray:
    """The first `count` tokens of a validation split, of tokenizer `source`, as tokens of `target`."""
    ids, end = np.asarray(tokens.val[:count]), tokens.meta["eot_token"]
    out = []
    for document in np.split(ids, np.flatnonzero(ids == end) + 1):
        text = source.decode([i for i in document.tolist() if i != end])
        out += target.encode_ordinary(text)
        if len(document) and document[-1] == end:
            out.append(target.eot_token)
    return np.array(out, dtype=np.int64)


# ----- one model -----


def make_harness(found: run_dir.TrainedModel, config: EvalConfig) -> Harness | None:
    """The benchmarks, where any are requested, once the model is known to fit them."""
    if not config.task_names():
        return None
    architecture(found.model.config)
    found.tokenizer()
    return Harness(config.task_names(), config.num_fewshot, config.limit, config.batch_size)


def score(found: run_dir.TrainedModel, config: EvalConfig, harness: Harness | None, wanted: list[str]) -> list[dict]:
    """Scores of one model for the wanted of config.entries()."""
    rows, names = [], [name for name in wanted if name != TEXT]
    if TEXT in wanted:
        rows += [{"entry": TEXT, **row} for row in text_loss(found, config)]
    if names:
        found.model.cpu()
        rows += harness.run(found, *run_dir.place(config.device, config.dtype), names)
    entries = config.entries()
    return [entries[row.pop("entry")] | row for row in rows]


def table(rows: list[dict]) -> str:
    """Scores with their standard errors."""
    lines = []
    for row in rows:
        numbers = [fixed(row[key]) for key in ("score", "stderr", "chance", "centred")]
        lines.append([row["task"], row["metric"], *numbers, count(row.get("shots")), count(row.get("n"))])
    return text_table(["task", "metric", "score", "+-", "chance", "centred", "shots", "n"], lines, "llr")


def print_left_out(harness: Harness | None):
    for label, reason in (harness.left_out if harness else {}).items():
        print(f"left out: {label} ({reason})")


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def check_out(path: Path):
    """UserError where the scores can't be added to a file: it is none of scores, and would be spoilt."""
    if not path.exists():
        return
    with open(regular(path), "rb") as f:
        first = f.readline(2**24)
    known = not first
    with contextlib.suppress(ValueError, TypeError):
        known = known or "results" in parse_json(first.decode("utf-8-sig"))
    if not known:
        raise UserError(f"--out {path} holds something else than scores; name another file")


def evaluate_model(config: EvalConfig) -> int:
    found = run_dir.load(config.ckpt, load_model, config.tokenizer_dir)
    path = Path(config.out) if config.out else found.folder / "eval.jsonl"
    writable_folder(path.parent, "--out")
    check_out(path)
    harness = make_harness(found, config)
    rows = score(found, config, harness, list(config.entries()))
    result = {"when": now(), "ckpt": str(config.ckpt), "run_id": found.record.get("run_id"), "results": rows}
    if harness:
        result |= {"lm_eval": harness.version, "left_out": harness.left_out}
    problem = None
    try:
        append_line(path, json.dumps(result))  # before they are printed: stdout may be closed, or full
    except OSError as error:
        problem = UserError(f"{path} can't be written ({error.strerror}); name another with --out")
    print(table(rows))
    print_left_out(harness)
    if problem:
        raise problem
    print(path)
    return 0


# ----- a sweep -----


def evaluate_sweep(config: EvalConfig) -> int:
    """Score every finished run of a sweep that has no score yet; returns 1 where some could not be scored."""
    folder, harness, failed = Path(config.sweep), None, 0
    runs = scores.read_runs(folder)
    writable_folder(folder, "--sweep")
    todo = scores.missing(folder, runs, config.entries())
    for i, (run_id, wanted) in enumerate(todo.items()):
        label = f"[{i + 1}/{len(todo)}] {run_id}"
        try:
            found = run_dir.load(folder / "cells" / run_id, load_model, config.tokenizer_dir)
            harness = harness or make_harness(found, config)
            rows = score(found, config, harness, wanted)
        except ValueError as error:
            if i == 0:
                raise  # it is likely to be so with all
            failed += 1
            print(f"{label} not scored: {error}")
            continue
        scores.append(folder, [{"run_id": run_id, "when": now(), **row} for row in rows])
        print(f"{label} {rows[-1]['task']} {rows[-1]['score']:.4f}", flush=True)
    print_left_out(harness)
    joined = scores.join(folder)
    print(f"{folder / 'scores.csv'}: {len(todo) - failed} of {len(runs)} runs scored now; {joined} has them as columns")
    return 1 if failed else 0


# ----- command line -----


def run(parser, args) -> int:
    config = parser.read(EvalConfig, args)
    return evaluate_model(config) if config.sweep is None else evaluate_sweep(config)


def main(argv=None) -> int:
    return run_main(Parser("eval.py", __doc__, EvalConfig), run, argv, "what was scored is kept")


if __name__ == "__main__":
    sys.exit(main())

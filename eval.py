"""What a trained model is worth: loss on a text, scores on benchmarks, for one model or for all of a sweep.

    python eval.py --ckpt out/RUN_ID --data_dir data/stdlib_bpe512                 # validation loss, bits per byte
    python eval.py --ckpt out/RUN_ID --tasks hellaswag,piqa,arc_easy --limit 200
    python eval.py --ckpt out/RUN_ID --tasks core                                  # or gauntlet; tasks.py lists them
    python eval.py --ckpt out/RUN_ID --tasks my_task.yaml                          # a local task, offline
    python eval.py --sweep sweep_results --tasks core

Benchmarks are EleutherAI's lm-evaluation-harness (pip install lm-eval[hf]) on the model as export.py writes it. Scores
are printed, and appended to eval.jsonl beside the weights. A sweep's go to scores.csv, keyed by run_id; its runs.csv is
never touched, and runs_scores.csv is a copy of it with the scores as columns, for fit.py.
"""

import csv
import json
import re
import sys
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from isoflop.cli import Parser
from isoflop.data import reader
from isoflop.data.tokenizer import load_tokenizer
from isoflop.device import autocast
from isoflop.distributed import World
from isoflop.eval.lm_harness import Harness
from isoflop.eval.scores import append, join, read_scores
from isoflop.hf import tokenizer as hf_tokenizer
from isoflop.hf import weights
from isoflop.options import option
from isoflop.train import run_dir
from isoflop.train.validation import evaluate, validation_rows


@dataclass(frozen=True)
class EvalConfig:
    """What is scored, and how."""

    ckpt: str | None = option(None, "folder that train.py left, or one of its checkpoints")
    sweep: str | None = option(None, "folder of a sweep: score the models of all its finished runs")
    tasks: str | None = option(None, "benchmarks, with commas: harness names, .yaml files, core, gauntlet")
    data_dir: str | None = option(None, "data folder: loss and bits per byte on its validation text")
    tokenizer_dir: str | None = option(None, "data folder whose tokenizer the model has (default: the copy beside it)")
    limit: float | None = option(None, "examples of each task; below 1: that share of them")
    num_fewshot: int | None = option(None, "examples in the prompt (default: the task's, or the bundle's)")
    val_tokens: int = option(2**17, "length of the validation range, in tokens")
    batch_size: int = option(8, "sequences at a time, of the benchmarks")
    out: str | None = option(None, "file to append the results to, as a line of JSON (default: eval.jsonl in --ckpt)")
    device: str = option("auto", "device to run on", choices=("auto", "cpu", "cuda", "mps"))
    dtype: str = option("auto", "compute type; auto: float32 on a CPU", choices=("auto", "float32", "bfloat16"))

    def __post_init__(self):
        problems = []
        if (self.ckpt is None) == (self.sweep is None):
            problems.append("give one of --ckpt DIR (a model) and --sweep DIR (all models of a sweep)")
        if self.tasks is None and self.data_dir is None:
            problems.append("nothing to score: give --tasks, --data_dir, or both")
        if self.limit is not None and not (0 < self.limit < 1 or self.limit >= 1 and self.limit % 1 == 0):
            problems.append(f"--limit {self.limit:g} must be a whole number of examples, or a share between 0 and 1")
        for name in ("val_tokens", "batch_size"):
            if getattr(self, name) < 1:
                problems.append(f"--{name} {getattr(self, name)} must be at least 1")
        if self.num_fewshot is not None and self.num_fewshot < 0:
            problems.append(f"--num_fewshot {self.num_fewshot} must be at least 0")
        if self.out is not None and self.sweep is not None:
            problems.append("--out goes with --ckpt; a sweep's scores go to scores.csv in its folder")
        if problems:
            raise ValueError("; ".join(problems))

    def asked(self) -> list[str]:
        """The entries of --tasks, each once."""
        names = [name.strip() for name in (self.tasks or "").split(",")]
        return list(dict.fromkeys(name for name in names if name))

    def keys(self) -> dict[str, tuple[str, str]]:
        """What scores.csv calls each thing that was asked for: entry of --tasks, or data: -> (asked, limit)."""
        shots = "" if self.num_fewshot is None else f" {self.num_fewshot}-shot"
        limit = "" if self.limit is None else f"{self.limit:g}"
        found = {name: (name + shots, limit) for name in self.asked()}
        if self.data_dir is not None:
            found["data:"] = (f"data:{Path(self.data_dir).resolve().name}", str(self.val_tokens))
        return found


def text_loss(found: run_dir.Trained, ec: EvalConfig) -> list[dict]:
    """Loss per token and bits per byte of a model on a data folder's validation text.

    Where the folder's tokens are not the model's, its text is decoded and put into the model's tokens: losses per token
    of different tokenizers can't be compared, bits per byte can.
    """
    model, tokens = found.model, reader.open_data(ec.data_dir)
    theirs, ours = Path(ec.data_dir) / "tokenizer.json", found.tokens
    spelled, note = reader.token_bytes(ec.data_dir), ""
    if ours is not None and theirs.is_file():
        if not hf_tokenizer.same(hf_tokenizer.read_spec(theirs), hf_tokenizer.read_spec(ours / "tokenizer.json")):
            tokens = SimpleNamespace(val=retold(tokens, load_tokenizer(ec.data_dir), found.tokenizer(), ec))
            spelled, note = reader.token_bytes(ours), ", in the model's tokens"
    elif tokens.meta["vocab_size"] > model.config.vocab_size:
        raise ValueError(
            f"{ec.data_dir} has {tokens.meta['vocab_size']:,} tokens, the model {model.config.vocab_size:,}; "
            "nobody has said which tokenizer the model has; name its data folder with --tokenizer_dir"
        )
    rows = validation_rows(tokens, model.config.block_size, ec.val_tokens)
    device, dtype = run_dir.place(ec.device, ec.dtype)
    world, lengths = World(device=device), None if spelled is None else torch.from_numpy(spelled).long()
    out = evaluate(model.to(device).eval(), tokens, lengths, rows, world, autocast(dtype, device))
    where = f"@{Path(ec.data_dir).resolve().name}"
    common = {"chance": None, "centred": None, "shots": None, "n": rows * model.config.block_size}
    found_ = [{"task": f"val_loss{where}", "metric": f"nats/token{note}", "score": out["val_loss"],
               "stderr": out["val_loss_se"], **common}]  # fmt: skip
    if out["bits_per_byte"] is not None:
        found_ += [{"task": f"bits_per_byte{where}", "metric": "bits/byte", "score": out["bits_per_byte"],
                    "stderr": None, **common}]  # fmt: skip
    return found_


def retold(tokens: reader.TokenData, theirs, ours, ec: EvalConfig) -> np.ndarray:
    """The first val_tokens tokens of a validation text, as the model's own tokens."""
    ids, end = np.asarray(tokens.val[: ec.val_tokens]), tokens.meta["eot_token"]
    out = []
    for doc in np.split(ids, np.flatnonzero(ids == end) + 1):
        if len(doc):
            out += ours.encode_ordinary(theirs.decode([i for i in doc.tolist() if i != end]))
            out += [ours.eot_token] if doc[-1] == end else []
    return np.array(out, dtype=np.int64)


# ----- one model -----


def evaluate_all(found: run_dir.Trained, ec: EvalConfig, harness: Harness | None, wanted: list[str]) -> list[dict]:
    """The wanted of ec.keys(), of one model."""
    rows = [{"entry": "data:", **row} for row in text_loss(found, ec)] if "data:" in wanted else []
    names = [name for name in wanted if name != "data:"]
    if names:
        found.model.cpu()
        rows += harness.run(found, *run_dir.place(ec.device, ec.dtype), names)
    keys = ec.keys()
    return [dict(zip(("asked", "limit"), keys[row.pop("entry")], strict=True)) | row for row in rows]


def table(rows: list[dict]) -> str:
    """Scores with their standard errors, aligned."""
    header = ("task", "metric", "score", "+-", "chance", "centred", "shots", "n")
    cells = [header]
    for row in rows:
        numbers = [row["score"], row["stderr"], row["chance"], row["centred"]]
        cells.append((row["task"], row["metric"], *("-" if v is None else f"{v:.4f}" for v in numbers),
                      *("-" if row.get(k) is None else f"{row[k]:,}" for k in ("shots", "n"))))  # fmt: skip
    widths = [max(len(line[i]) for line in cells) for i in range(len(header))]
    return "\n".join("  ".join(c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in
                      enumerate(zip(line, widths, strict=True))).rstrip() for line in cells)  # fmt: skip


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def one(ec: EvalConfig) -> int:
    found = run_dir.load(ec.ckpt, ec.tokenizer_dir)
    harness = ready(found, ec)
    rows = evaluate_all(found, ec, harness, list(ec.keys()))
    result = {"when": now(), "ckpt": str(ec.ckpt), "run_id": found.record.get("run_id"), "results": rows}
    result |= {"lm_eval": harness.version, "left_out": harness.left_out} if harness else {}
    print(table(rows))
    for label, reason in (harness.left_out if harness else {}).items():
        print(f"left out: {label} ({reason})")
    path = Path(ec.out) if ec.out else found.folder / "eval.jsonl"
    try:
        with open(path, "a", encoding="utf-8") as f:
            f.write(json.dumps(result) + "\n")
    except OSError as error:
        raise ValueError(f"{path} can't be written ({error.strerror}); name another with --out") from None
    print(path)
    return 0


def ready(found: run_dir.Trained, ec: EvalConfig) -> Harness | None:
    """The harness where it is needed, once the model is known to fit it."""
    if not ec.asked():
        return None
    weights.architecture(found.model.config)
    found.tokenizer()
    return Harness(ec.asked(), ec.num_fewshot, ec.limit, ec.batch_size)


# ----- a sweep -----


def sweep(ec: EvalConfig) -> int:
    """Score every finished run of a sweep that has no score yet; returns how many could not be scored."""
    folder = Path(ec.sweep)
    try:
        with open(folder / "runs.csv", encoding="utf-8", newline="") as f:
            runs = list(csv.DictReader(f))
    except OSError as error:
        raise ValueError(f"--sweep {folder}: no runs.csv ({error.strerror}); sweep.py makes one") from None
    if not runs or "run_id" not in runs[0]:
        raise ValueError(f"--sweep {folder}: runs.csv holds no runs")
    whole = [r["run_id"] for r in runs if r.get("status") == "ok" and re.fullmatch(r"[0-9a-f]{12}", r["run_id"])]
    scores, harness, failed, keys = folder / "scores.csv", None, 0, ec.keys()
    held = {(row["run_id"], row["asked"], row["limit"]) for row in read_scores(scores)}
    todo = {r: [name for name, key in keys.items() if (r, *key) not in held] for r in whole}
    todo = {r: names for r, names in todo.items() if names}
    for i, (run_id, names) in enumerate(todo.items()):
        try:
            found = run_dir.load(folder / "cells" / run_id, ec.tokenizer_dir)
            harness = harness or ready(found, ec)
            rows = evaluate_all(found, ec, harness, names)
        except ValueError as error:
            if i == 0:
                raise  # whatever it is, it is likely to be so with all
            failed += 1
            print(f"[{i + 1}/{len(todo)}] {run_id} not scored: {error}")
            continue
        append(scores, [{"run_id": run_id, "when": now(), **row} for row in rows])
        last = rows[-1]
        print(f"[{i + 1}/{len(todo)}] {run_id} {last['task']} {last['score']:.4f}", flush=True)
    for label, reason in (harness.left_out if harness else {}).items():
        print(f"left out: {label} ({reason})")
    print(f"{scores}: {len(todo) - failed} of {len(runs)} runs scored now; {join(folder)} has the scores as columns")
    return failed


# ----- command line -----


def main(argv=None):
    parser = Parser("eval.py", __doc__, EvalConfig)
    args = parser.parse_args(argv)
    try:
        ec = parser.read(EvalConfig, args)
        return 1 if (one if ec.sweep is None else sweep)(ec) else 0
    except (ValueError, OSError) as error:
        parser.fail(error)
    except KeyboardInterrupt:
        parser.exit(130, "eval.py: interrupted; what was scored is kept\n")


if __name__ == "__main__":
    sys.exit(main())

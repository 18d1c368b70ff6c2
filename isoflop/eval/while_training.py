"""Benchmarks of a model that is being trained: train.py --tasks, --tasks_every. See isoflop/train/evals.py."""

import functools
from pathlib import Path

import torch

from isoflop.eval.lm_harness import Harness
from isoflop.hf.config import architecture
from isoflop.options import UserError
from isoflop.train.run_dir import TrainedModel, place

BATCH_SIZE = 8  # sequences at a time, as eval.py's default


@functools.cache  # a sweep's cells share it
def harness_of(tasks: str, limit: float | None) -> Harness:
    """The benchmarks of --tasks, loaded; UserError where one can't be had."""
    names = dict.fromkeys(name.strip() for name in tasks.split(",") if name.strip())
    return Harness(list(names), None, limit, BATCH_SIZE)


def check(run):
    """UserError where the model can't be scored: benchmarks, its architecture or its tokenizer are missing."""
    architecture(run.mc)
    _found(run, None)
    harness_of(run.tc.tasks, run.tc.tasks_limit)


def score(run, model) -> list[dict]:
    """Scores of a run's model as it is: rows of evals.jsonl, with `asked` and `limit` as eval.py --sweep has them.

    The random state of training is left alone; lm-eval sets seeds of its own.
    """
    harness = harness_of(run.tc.tasks, run.tc.tasks_limit)
    limit = "" if run.tc.tasks_limit is None else f"{run.tc.tasks_limit:g}"
    rows = []
    with torch.random.fork_rng():
        copy = type(model)(model.config)  # in full precision, on the CPU
        copy.load_state_dict(model.state_dict())
        for row in harness.run(_found(run, copy), *place(run.env.device, "auto"), harness.names):
            rows.append({"asked": row.pop("entry"), "limit": limit, **row})
    return rows


def _found(run, model) -> TrainedModel:
    """The model with the tokenizer of its data; UserError where that is unknown."""
    folder = Path(run.tokens.folder)
    if not (folder / "tokenizer.json").is_file():
        raise UserError(f"--tasks needs the tokenizer of {folder}, which has no tokenizer.json; make it with data.py")
    return TrainedModel(run.out_dir, model, folder, {})

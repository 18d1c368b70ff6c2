"""Validation losses and benchmark scores while a run trains: --eval_every, --tasks, --tasks_every.

Each is a line of OUT_DIR/evals.jsonl (run_id, step, tokens, flops; then val_loss, val_loss_se and bits_per_byte, or
task, metric, score and stderr), a point in the tracker, and printed. Training is the same to the bit with them or
without, and its seconds leave them out. They are of the weights of that step; at the end, where benchmarks are scored
once more, of those that are saved (with --ema their mean). Rank 0 scores benchmarks; the other processes wait.
"""

import json
import math
from pathlib import Path

from isoflop.files import write_text
from isoflop.train.validation import evaluate


def due(tc, step: int, steps: int) -> bool:
    """Whether something is evaluated after this step; after the last one the run's end does it."""
    return step < steps and (_every(tc.eval_every, step) or _every(tc.tasks_every, step))


def _every(interval: int | None, step: int) -> bool:
    return bool(interval) and step % interval == 0


def during(run, progress, model, track, score):
    """What is due after this step; every rank calls it.

    run, progress : train.Setup and progress.Progress. track : Tracker.log. score : as in at_end().
    """
    if _every(run.tc.eval_every, progress.step):
        found = evaluate(model, run.tokens, run.token_bytes, run.val_rows, run.env, run.autocast)
        if math.isfinite(found["val_loss"]):  # else the next log line ends the run
            note(run, progress, track, found)
            bits = "" if found["bits_per_byte"] is None else f" | {found['bits_per_byte']:.4f} bits/byte"
            run.say(f"eval | step {progress.step:05d} | val loss {found['val_loss']:.4f}{bits}")
    if _every(run.tc.tasks_every, progress.step):
        at_end(run, progress, model, track, score)


def at_end(run, progress, model, track, score):
    """Score the benchmarks; one that fails costs a warning, not the run.

    score : function(run, model) -> rows with task, metric, score and stderr, and with what was asked (eval.py's keys).
    """
    if not run.tc.tasks:
        return
    model = run.whole(model)  # of a sharded one on rank 0 alone
    training = model is not None and model.training

    def on_rank0():
        try:
            rows = score(run, model)
        except Exception as error:  # of lm-eval, of a task, of the network: a score is not worth a run
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            run.env.print0(f"warning: --tasks at step {progress.step} not scored ({reason}); the run continues")
            return
        for row in rows:
            note(run, progress, None, row)
            run.say(f"eval | step {progress.step:05d} | {row['task']} {row['score']:.4f} ({row['metric']})")
        track({f"score_{row['task']}": row["score"] for row in rows}, progress.step)

    run.env.on_rank0(on_rank0)
    if model is not None:
        model.train(training)


def note(run, progress, track, values: dict):
    """Keep a line of evals.jsonl, and send it."""
    tokens = progress.step * run.plan.tokens_per_step
    at = {"run_id": run.run_id, "step": progress.step, "tokens": tokens, "flops": tokens * run.plan.flops_per_token}
    progress.evals.append(at | values)
    if track:
        track(values, progress.step)


def write(out_dir: Path, rows: list[dict]):
    """evals.jsonl of a run; without rows that of a former one goes."""
    path = out_dir / "evals.jsonl"
    if rows:
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.unlink(missing_ok=True)

"""Checkpoints that a run can resume from, and the files of a finished run.

A checkpoint is a folder step_NNNNNNNN in a run's out_dir/checkpoints:

    model.safetensors, config.json      the float32 weights, as model.load_model() reads them
    optimizer-00000.safetensors         flat moments (before --shard: rank R's part of them, with its first index)
    shard-RRRRR-model-*.safetensors     with --shard, in place of both: rank R - 1's part of weights and moments
    rng-RRRRR.safetensors               states of rank R's random generators
    state.json                          step, plan, curve so far, and the SHA-256 of every other file

It is written under another name, flushed, and renamed last: a kill leaves the one before. Nothing is ever unpickled.
The functions that save and load a model are handed in: `save_model` is model.save_model.
"""

import contextlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from isoflop.distributed import DistributedEnv
from isoflop.files import ABSENT, fsync, read_json, sha256, write_json, write_text
from isoflop.optim.schedule import lr_at
from isoflop.options import UserError
from isoflop.tensors import is_sharded, read_parts, write_parts, write_tensors
from isoflop.train.plan import RunPlan
from isoflop.train.record import RunRecord

FORMAT = "isoflop checkpoint 1"
WEIGHTS = "model.safetensors"
DTYPES = ("float32", "bfloat16")
KEPT = 2  # checkpoints of a run that stay: the last good one, and the one before it


# ----- reading -----


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: every file was there and had its hash when find() returned it."""

    folder: Path
    state: dict  # state.json

    @property
    def step(self) -> int:
        return self.state["step"]

    def flat(self, name: str, first: int, last: int) -> torch.Tensor:
        """Elements first .. last - 1 of the optimizer's flat buffer `name`, assembled from the shares of all ranks."""
        out, filled = torch.empty(last - first), 0
        for path in sorted(self.folder.glob("optimizer-*.safetensors")):
            with safe_open(path, "pt") as f:
                share = f.get_slice(name)
                start = int(f.get_tensor("first"))
                a, b = max(first, start), min(last, start + share.get_shape()[0])
                if a < b:
                    out[a - first : b - first] = share[a - start : b - start]
                    filled += b - a
        assert filled == last - first, f"{self.folder} holds {filled} of {last - first} elements of {name}"
        return out

    def restore(self, optimizer):
        """Give an optimizer the state, by whichever kind of optimizer it was saved; every rank must call it."""
        if is_sharded(self.folder):
            read_parts(self.folder, optimizer.named(), alone=not optimizer.sharded)
            optimizer.set_count(self.step)
        else:
            optimizer.load(self.step, self.flat)

    def restore_random(self, rank: int, device: str):
        """Set this rank's random generators, where the run was saved by as many ranks.

        With another number of ranks they stay: no model here has dropout, so that nothing is drawn from them.
        """
        path = self.folder / f"rng-{rank:05d}.safetensors"
        if path.exists():
            states = load_file(path)
            torch.set_rng_state(states["cpu"])
            if "cuda" in states and device.startswith("cuda"):
                torch.cuda.set_rng_state(states["cuda"])


def find(out_dir: Path, requested: str) -> Checkpoint | None:
    """The checkpoint to resume from: the folder `requested`, or for "auto" the newest of out_dir, None if it has none.

    UserError for a damaged one; it names the one before.
    """
    if requested != "auto":
        folder = Path(requested)
        if not folder.is_dir():
            raise UserError(f"--resume {requested}: no such checkpoint; a plain --resume takes the newest of --out_dir")
    else:
        found = all_in(out_dir / "checkpoints")
        if not found:
            return None
        folder = found[-1]
    try:
        return load(folder)
    except ValueError as reason:
        older = [p for p in all_in(folder.parent) if p.name < folder.name]
        way_out = f"resume from the one before, --resume {older[-1]}" if older else "start without --resume"
        raise UserError(f"{folder} is damaged ({reason}); {way_out}") from None


def load(folder: Path) -> Checkpoint:
    """A whole checkpoint; ValueError says what is damaged, OSError why it can't be read."""
    try:
        return Checkpoint(folder, check_files(folder))
    except KeyError as error:
        raise ValueError(f"no {error}") from None
    except (*ABSENT, TypeError) as error:
        raise ValueError(str(error)) from None


def remove_damaged(folder: Path):
    """Remove the damaged checkpoints of a folder, so that its run resumes from a whole one or begins anew."""
    for one in all_in(folder):
        try:
            load(one)
        except ValueError as reason:
            print(f"{one} is damaged ({reason}): removed", flush=True)
            shutil.rmtree(one)


def is_whole(folder) -> bool:
    """Whether a folder is a checkpoint without damage."""
    try:
        load(Path(folder))
    except ValueError:
        return False
    return True


def all_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if re.fullmatch(r"step_\d{8}", p.name))


def check_files(folder: Path) -> dict:
    """state.json, once every file that it names has its hash; ValueError names the file that has not."""
    state = read_json(folder / "state.json")
    if state["format"] != FORMAT:
        raise ValueError(f"format {state['format']} instead of {FORMAT}")
    for name, expected in state["files"].items():
        if Path(name).name != name or sha256(folder / name) != expected:
            raise ValueError(f"{name} is not the file that was written")
    return state


def check_resumable(checkpoint: Checkpoint, trajectory: dict, plan: RunPlan):
    """UserError where the run that saved the checkpoint had other weights at its step than this run would have.

    Compares record.trajectory(), and the learning rate of every step so far.
    """
    folder, saved = checkpoint.folder, checkpoint.state["trajectory"]
    for key in trajectory | saved:
        if json.dumps(trajectory.get(key)) == json.dumps(saved.get(key)):
            continue
        if trajectory["tokens_per_step"] != saved["tokens_per_step"]:
            raise UserError(
                f"{folder} had {saved['tokens_per_step']:,} tokens per step, this run has "
                f"{trajectory['tokens_per_step']:,}; give --total_batch_size {saved['tokens_per_step']}"
            )
        raise UserError(
            f"{folder} is of a run with another {key} ({saved.get(key)}, not {trajectory.get(key)}); "
            "give the flags of that run, or start without --resume"
        )
    saved_plan = RunPlan(**checkpoint.state["plan"])
    for step in range(checkpoint.step):
        before, now = lr_at(step, saved_plan), lr_at(step, plan)
        if before != now:
            raise UserError(
                f"{folder} is of a run with another learning rate: at step {step + 1} {before:.4g}, here {now:.4g}; "
                "give the flags of that run, its budget too"
            )
    if checkpoint.step >= plan.steps:
        raise UserError(
            f"{folder} is after step {checkpoint.step}, this run ends with step {plan.steps}; name an earlier one"
        )


# ----- writing -----


def save_checkpoint(folder: Path, model, optimizer, state: dict, env: DistributedEnv, save_model) -> str | None:
    """Write a checkpoint; every rank calls it. Returns None, or why it could not be written (then nothing is left).

    Parameters
    ----------
    optimizer : of optim.build; a sharded one saves the weights, too.
    state : step, plan and what else train() needs; goes into state.json.
    """
    part = folder.with_name(f".{folder.name}.part")
    if env.rank == 0:
        shutil.rmtree(part, ignore_errors=True)
    env.barrier()
    # Every rank writes its part, then all learn whether one failed: a rank that raised would leave the others waiting.
    problem = _write_part(part, model, optimizer, env, save_model)
    failed = env.sum(float(problem is not None))[0]
    if env.rank == 0:
        if not failed:
            problem = _publish(part, folder, state)
        if failed or problem:
            shutil.rmtree(part, ignore_errors=True)
    failed = env.sum(float(problem is not None))[0]
    return (problem or "another rank could not write its part") if failed else None


def _write_part(part: Path, model, optimizer, env: DistributedEnv, save_model) -> str | None:
    """What this rank has to save, into the unfinished folder. Returns why it could not be written, or None."""
    generators = {"cpu": torch.get_rng_state()}
    if env.device.startswith("cuda"):
        generators["cuda"] = torch.cuda.get_rng_state()
    problem = None
    try:
        part.mkdir(parents=True, exist_ok=True)
        write_tensors(part / f"rng-{env.rank:05d}.safetensors", generators)
        if env.rank == 0 and optimizer.sharded:
            write_json(part / "config.json", asdict(model.config))
        elif env.rank == 0:
            write_tensors(part / "optimizer-00000.safetensors", optimizer.flat())
            optimizer.show_master()
            save_model(model, part)
    except OSError as error:
        problem = error.strerror
    if not optimizer.sharded:
        optimizer.show_weights()
        return problem
    try:
        write_parts(part, optimizer.named())  # together: a rank that has failed comes along
    except OSError as error:
        problem = error.strerror
    return problem


def _publish(part: Path, folder: Path, state: dict) -> str | None:
    """Flush the unfinished folder and give it its name. Returns why that failed, or None."""
    try:
        files = {p.name: sha256(p) for p in sorted(part.iterdir())}
        write_json(part / "state.json", {"format": FORMAT, **state, "files": files}, indent=None)
        for path in (*part.iterdir(), part):
            fsync(path)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(part, folder)
        fsync(folder.parent)
    except OSError as error:
        return error.strerror
    return None


def remove_old(folder: Path, kept: int = KEPT):
    """Remove all checkpoints of a folder but the newest."""
    for old in all_in(folder)[:-kept]:
        shutil.rmtree(old, ignore_errors=True)


# ----- a run's own folder -----


def finished(out_dir: Path) -> dict | None:
    """The record in a folder, or None; UserError where its run.json has been edited into something else."""
    path = out_dir / "run.json"
    try:
        record = read_json(path)
        record["run_id"]
        return record
    except ABSENT:
        return None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is damaged; --overwrite runs the run again") from None


def finished_run(out_dir: Path, run_id: str) -> RunRecord | None:
    """The record in a folder, where it is of the run `run_id`, which ended ok and left its weights; else None.

    UserError as from finished().
    """
    found = finished(out_dir)
    if found is None or found["run_id"] != run_id or found.get("status") != "ok":
        return None
    if not (out_dir / WEIGHTS).exists():
        return None
    try:
        record = RunRecord(**found)
        record.summary()
    except (TypeError, ValueError):
        raise UserError(f"{out_dir / 'run.json'} is damaged; --overwrite runs the run again") from None
    return record


def dtype_of(out_dir: str, resume: str) -> str | None:
    """The compute type of the run in out_dir: finished, or a checkpoint that --resume takes; None where unknown.

    Both may be empty. A run that was timed as faster in one type keeps it when it is called again.
    """
    folders = [Path(resume)] if resume and resume != "auto" else []
    if out_dir:
        record = finished(Path(out_dir)) or {}
        if record.get("dtype") in DTYPES:
            return record["dtype"]
        folders += all_in(Path(out_dir) / "checkpoints")[-1:]
    for folder in folders:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            dtype = read_json(folder / "state.json")["trajectory"]["dtype"]
            if dtype in DTYPES:
                return dtype
    return None


def check_cell(out_dir: Path, run_id: str):
    """UserError where out_dir is SWEEP/cells/ID of another run: the data have changed since the sweep was planned."""
    planned = out_dir.absolute()
    if planned.parent.name == "cells" and re.fullmatch(r"[0-9a-f]{12}", planned.name) and planned.name != run_id:
        raise UserError(
            f"{out_dir} is of run {planned.name}, and this would be {run_id}: its data have changed since it was "
            "planned, or it was given other flags; give the sweep's command again"
        )


def check_no_other_run(out_dir: Path, run_id: str):
    """UserError where a folder holds another run's record."""
    found = finished(out_dir)
    if found and found["run_id"] != run_id:
        raise UserError(
            f"--out_dir {out_dir} holds another run ({found['run_id']}); name another folder or add --overwrite"
        )


def save_record(out_dir: Path, record, curve: list[dict]):
    """The record and the curve of a run that has ended. Weights of a former run go first: they are not this record's.

    OSError, with the path, where there is no room for them.
    """
    (out_dir / WEIGHTS).unlink(missing_ok=True)
    write_json(out_dir / "run.json", asdict(record))
    write_text(out_dir / "log.jsonl", "".join(json.dumps(row) + "\n" for row in curve))


def save_weights(out_dir: Path, model, save_model) -> str | None:
    """Configuration and weights, the last that is written of a run: with them it is finished, see finished_run().

    A full disk costs the weights before it costs the record: that is small, and is what the run was for. Returns why
    they could not be written, or None.
    """
    try:
        save_model(model, out_dir)
    except OSError as error:
        return f"{out_dir / WEIGHTS} could not be written ({error.strerror}); make room and run the same command again"
    return None

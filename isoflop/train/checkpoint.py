"""What a run leaves on the disk: its record, its weights, and checkpoints that it can go on from.

A checkpoint is a folder step_NNNNNNNN of a run's out_dir/checkpoints:

    model.safetensors, config.json      the float32 weights; load_model() reads them
    optimizer-RRRRR.safetensors         flat moments; of all ranks, or rank R's share, with the first index of its share
    rng-RRRRR.safetensors               states of rank R's random generators
    state.json                          step, plan, curve so far, and the SHA-256 of every other file

It is written under another name, flushed, and renamed last: a kill leaves the one before. Nothing is ever unpickled.
"""

import hashlib
import json
import os
import re
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from model import GPT, load_model, save_model

FORMAT = "isoflop checkpoint 1"
KEPT = 2  # checkpoints of a run that stay: the last good one, and the one before it


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: every file was there and had its hash when find() returned it."""

    folder: Path
    state: dict  # state.json

    @property
    def step(self) -> int:
        return self.state["step"]

    def model(self) -> GPT:
        return load_model(self.folder)

    def flat(self, name: str, first: int, last: int) -> torch.Tensor:
        """Elements first .. last - 1 of a flat buffer of the optimizer, put together from the shares of its ranks."""
        out, filled = torch.empty(last - first), 0
        for path in sorted(self.folder.glob("optimizer-*.safetensors")):
            with safe_open(path, "pt") as f:
                share = f.get_slice(name)
                at = int(f.get_tensor("first"))
                a, b = max(first, at), min(last, at + share.get_shape()[0])
                if a < b:
                    out[a - first : b - first] = share[a - at : b - at]
                    filled += b - a
        assert filled == last - first, f"{self.folder} holds {filled} of {last - first} elements of {name}"
        return out

    def random(self, rank: int, device: str):
        """Set the random generators of this rank, where it was saved by as many; a model without dropout uses none."""
        path = self.folder / f"rng-{rank:05d}.safetensors"
        if path.exists():
            states = load_file(path)
            torch.set_rng_state(states["cpu"])
            if "cuda" in states and device.startswith("cuda"):
                torch.cuda.set_rng_state(states["cuda"])


def find(out_dir: Path, asked: str) -> Checkpoint | None:
    """The checkpoint to go on from: `asked` is its folder, or "auto" for the newest of out_dir, None if it has none.

    ValueError for a damaged one; it names the one before.
    """
    if asked != "auto":
        folder = Path(asked)
        if not folder.is_dir():
            raise ValueError(f"--resume {asked}: no such checkpoint; a plain --resume takes the newest of --out_dir")
    else:
        there = all_in(out_dir / "checkpoints")
        if not there:
            return None
        folder = there[-1]
    try:
        return Checkpoint(folder, check(folder))
    except (OSError, KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        others = [p for p in all_in(folder.parent) if p != folder and p.name < folder.name]
        way_out = f"go on from the one before with --resume {others[-1]}" if others else "start without --resume"
        raise ValueError(f"{folder} is damaged ({reason}); {way_out}") from None


def all_in(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(p for p in folder.iterdir() if re.fullmatch(r"step_\d{8}", p.name))


def check(folder: Path) -> dict:
    """state.json, once every file that it names has its hash; ValueError says what does not fit."""
    state = json.loads((folder / "state.json").read_text())
    if state["format"] != FORMAT:
        raise ValueError(f"format {state['format']} instead of {FORMAT}")
    for name, expected in state["files"].items():
        if Path(name).name != name or digest(folder / name) != expected:
            raise ValueError(f"{name} is not the file that was written")
    return state


def digest(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(f)


def _digest(f) -> str:  # Python 3.10 has no file_digest
    sha = hashlib.sha256()
    while piece := f.read(2**20):
        sha.update(piece)
    return sha.hexdigest()


def save_checkpoint(folder: Path, model, optimizer, state: dict, world) -> str | None:
    """Write a checkpoint; every rank calls it. Returns None, or why it could not be written (then nothing is left).

    Parameters
    ----------
    optimizer : its shares() is None on a rank that has nothing to save, else a dict of 1-D tensors with `first`, the
        index in the whole buffer of their first element; show_master() lets the model's parameters be float32.
    state : step, plan and what else train() needs; goes into state.json.
    """
    part, problem = folder.with_name(f".{folder.name}.part"), None
    if world.rank == 0:
        shutil.rmtree(part, ignore_errors=True)
    world.barrier()
    optimizer.show_master()
    try:
        part.mkdir(parents=True, exist_ok=True)
        shares = optimizer.shares()
        if shares is not None:
            save_file(shares, part / f"optimizer-{world.rank:05d}.safetensors")
        generators = {"cpu": torch.get_rng_state()}
        if world.device.startswith("cuda"):
            generators["cuda"] = torch.cuda.get_rng_state()
        save_file(generators, part / f"rng-{world.rank:05d}.safetensors")
        if world.rank == 0:
            save_model(model, part)
    except (OSError, SafetensorError) as error:
        problem = str(error)
    optimizer.show_weights()
    failed = world.sum(float(problem is not None))[0]
    if world.rank == 0:
        if not failed:
            try:
                files = {p.name: digest(p) for p in sorted(part.iterdir())}
                write(part / "state.json", json.dumps({"format": FORMAT, **state, "files": files}))
                for path in (*part.iterdir(), part):
                    sync(path)
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(part, folder)
                sync(folder.parent)
            except OSError as error:
                problem, failed = str(error), 1
        if failed:
            shutil.rmtree(part, ignore_errors=True)
    failed = world.sum(float(failed))[0]
    return (problem or "another rank could not write its share") if failed else None


def thin(folder: Path, kept: int = KEPT):
    """Remove all checkpoints of a folder but the newest."""
    for old in all_in(folder)[:-kept]:
        shutil.rmtree(old, ignore_errors=True)


# ----- a run's own folder -----


def claim(out_dir: Path, id_: str, overwrite: bool):
    """Make sure, before anything is computed, that the record can be written and buries no other run's."""
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        probe = out_dir / ".probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"--out_dir {out_dir} can't be written ({error.strerror}); name another folder") from None
    held = finished(out_dir)
    if held and held["run_id"] != id_ and not overwrite:
        raise ValueError(
            f"--out_dir {out_dir} holds another run ({held['run_id']}); name another folder or add --overwrite"
        )


def finished(out_dir: Path) -> dict | None:
    """The record that a folder holds, or None."""
    try:
        record = json.loads((out_dir / "run.json").read_text())
        record["run_id"]
        return record
    except (OSError, ValueError, KeyError, TypeError):
        return None


def save_run(out_dir: Path, model, record, curve: list[dict]) -> str | None:
    """Weights and configuration, curve, and the record last. Returns what could not be written, or None.

    A full disk costs the weights before it costs the record: that is small, and is what the run was for.
    """
    problem = None
    try:
        if model is not None:
            save_model(model, out_dir)
    except (OSError, SafetensorError) as error:
        problem = f"the weights could not be written ({error})"
        for part in out_dir.glob("*.part"):
            part.unlink()
    write(out_dir / "log.jsonl", "".join(json.dumps(row) + "\n" for row in curve))
    write(out_dir / "run.json", json.dumps(asdict(record), indent=2))
    return problem


def write(path: Path, text: str):
    """Write under another name, flush to the disk, rename: a reader sees the old file or the new one, never half."""
    part = path.with_name(path.name + ".part")
    with open(part, "w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, path)


def sync(path: Path):
    """Wait until a file or folder is on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

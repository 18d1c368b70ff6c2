"""The folder of a trained model: weights, tokenizer, record. For sample.py, eval.py and export.py.

It is one that train.py leaves (out/RUN_ID, a sweep's cells/RUN_ID), a checkpoint in it, or one that
`export.py --from_hf` made. Weights are safetensors, everything else is JSON; nothing is unpickled.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from isoflop.data import tokenizer
from isoflop.device import compute_type, pick_device
from isoflop.files import atomic, read_json
from isoflop.options import UserError


@dataclass(frozen=True)
class TrainedModel:
    """What load() found."""

    folder: Path
    model: Any  # model.GPT, on the CPU, float32
    tokenizer_dir: Path | None  # the folder whose tokenizer.json the model was trained with; None: unknown
    record: dict  # run.json; empty where there is none

    def tokenizer(self):
        """Its tokenizer; UserError where none is known, or where it has ids beyond the model's vocabulary."""
        if self.tokenizer_dir is None:
            data = self.record.get("data")
            source = f" ({data.split('@')[0]})" if isinstance(data, str) else ""
            raise UserError(
                f"{self.folder} has no tokenizer.json: name the data folder that it was trained on{source} with "
                "--tokenizer_dir"
            )
        path, vocab_size = self.tokenizer_dir / "tokenizer.json", self.model.config.vocab_size
        try:
            found = tokenizer.load_tokenizer(self.tokenizer_dir)
        except ValueError:
            raise
        except Exception as error:  # of tiktoken or tokenizers, over a file that is no tokenizer
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise UserError(f"{path} is not a tokenizer ({reason}); name another folder with --tokenizer_dir") from None
        if found.eot_token is None:
            fits = found.n_vocab <= vocab_size
        else:
            fits = 0 <= found.eot_token < found.n_vocab <= vocab_size
        if not fits:
            raise UserError(
                f"{path} has {found.n_vocab:,} ids, {self.folder} was trained with {vocab_size:,}: it is of another "
                "model; name the right data folder with --tokenizer_dir"
            )
        return found


def load(folder, load_model: Callable, tokenizer_dir=None) -> TrainedModel:
    """The model of a folder with its tokenizer and record.

    Parameters
    ----------
    load_model : model.load_model.
    tokenizer_dir : a folder whose tokenizer.json is the model's, in place of the copy beside the weights. A
        checkpoint's copy is that of its run, two folders up.

    Raises
    ------
    UserError : what is missing or unusable.
    """
    folder = Path(folder)
    if folder.is_file():
        raise UserError(f"--ckpt {folder} is a file; {of_a_file(folder)}")
    if not folder.is_dir():
        raise UserError(f"--ckpt {folder}: no such folder; train.py writes to out/RUN_ID")
    if not (folder / "config.json").exists() and (folder / "cells").is_dir():
        raise UserError(f"--ckpt {folder} is a sweep: name one of its runs, {folder}/cells/RUN_ID")
    run_folder, parents = folder, folder.absolute().parents
    if parents[0].name == "checkpoints" and not (folder / "run.json").exists():
        run_folder = parents[1]
    candidates = [folder, run_folder]
    if tokenizer_dir is not None:
        candidates = [Path(tokenizer_dir)]
        if not tokenizer.has_tokenizer(candidates[0]):
            raise UserError(f"--tokenizer_dir {tokenizer_dir} has no tokenizer.json; name a folder that data.py made")
    with_tokenizer = next((path for path in candidates if tokenizer.has_tokenizer(path)), None)
    record = None
    with contextlib.suppress(OSError, ValueError):  # the record only adds to messages and model cards
        record = read_json(run_folder / "run.json")
    if not isinstance(record, dict):
        record = {}
    return TrainedModel(folder, load_model(folder), with_tokenizer, record)


def of_a_file(path: Path) -> str:
    """What to give in place of a file that was named."""
    if path.name in ("model.safetensors", "config.json", "run.json"):
        return f"name the folder that it is in: --ckpt {path.parent}"
    if path.suffix in (".pt", ".pth", ".bin", ".ckpt"):
        return (
            "pickled weights are not read: name a folder that train.py wrote, or bring a Hugging Face folder of the "
            "model with `python export.py --from_hf FOLDER --out OUT` and give --ckpt OUT"
        )
    return "name the folder that train.py wrote, as out/RUN_ID"


def keep_tokenizer(data_dir, out_dir, name: str | None = None):
    """Copy a data folder's tokenizer.json beside the weights, where it has one: the data may be gone one day.

    Token files made elsewhere have none; where they are in GPT-2's tokens (name), its tokenizer is written, and for
    nanoGPT's characters the table of meta.pkl. A copy that fails costs the run nothing: sample.py then needs
    --tokenizer_dir. That of a former run in out_dir goes in any case.
    """
    source, out_dir = Path(data_dir) / "tokenizer.json", Path(out_dir)
    with contextlib.suppress(OSError, ValueError):
        (out_dir / "tokenizer.json").unlink(missing_ok=True)
        if source.is_file():
            with atomic(out_dir / "tokenizer.json", "wb") as f:
                f.write(source.read_bytes())
        elif name == "characters":
            tokenizer.write_tokenizer(out_dir, tokenizer.read_tokenizer(data_dir))
        elif name == "gpt2":
            tokenizer.write_tokenizer(out_dir, tokenizer.make_tokenizer("gpt2", ()))


def place(device: str, dtype: str) -> tuple[str, str]:
    """The device and compute type of --device and --dtype; auto is float32 on a CPU, for the same result on any."""
    device = pick_device(device)
    if dtype == "auto" and device == "cpu":
        return device, "float32"
    return device, compute_type(dtype, device).name

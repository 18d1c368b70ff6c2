"""A trained model and what goes with it: weights, tokenizer, record. For sample.py, eval.py and export.py.

The folder is one that train.py leaves (out/RUN_ID, a sweep's cells/RUN_ID), a checkpoint in it, or one that
`export.py --from_hf` made. Weights are safetensors, everything else is JSON; nothing is unpickled.
"""

import contextlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from isoflop.data import tokenizer
from isoflop.data.tokenizer import load_tokenizer
from isoflop.device import compute_dtype, pick_device
from model import GPT, load_model

JSON_BYTES = 2**28  # the largest tokenizer.json there is has some 40 MB


@dataclass(frozen=True)
class Trained:
    """What load() found."""

    folder: Path
    model: GPT  # on the CPU, float32
    tokens: Path | None  # the folder whose tokenizer.json the model was trained with
    record: dict  # run.json; empty where there is none

    def tokenizer(self):
        """Its tokenizer; ValueError where none is known, or where it has ids beyond the model's vocabulary."""
        if self.tokens is None:
            source = f" ({self.record['data'].split('@')[0]})" if isinstance(self.record.get("data"), str) else ""
            raise ValueError(
                f"{self.folder} holds no tokenizer.json: name the data folder that it was trained on{source} with "
                "--data_dir"
            )
        path = self.tokens / "tokenizer.json"
        try:
            found = load_tokenizer(self.tokens)
        except ValueError:
            raise
        except Exception as error:  # tiktoken's and tokenizers' own, over a file that is not what it says
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            raise ValueError(f"{path} is not a tokenizer ({reason})") from None
        rows = self.model.config.vocab_size
        if not 0 <= found.eot_token < found.n_vocab <= rows:
            raise ValueError(
                f"{path} has {found.n_vocab:,} ids, {self.folder} was trained with {rows:,}: it is of another; "
                "name the right data folder with --data_dir"
            )
        return found


def load(folder: str | Path, data_dir: str | Path | None = None) -> Trained:
    """The model of a folder, and its tokenizer: of data_dir if given, else the copy beside the weights.

    A checkpoint's tokenizer is that of its run, two folders up. ValueError names what is missing or unusable.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"--ckpt {folder}: no such folder; train.py leaves one in out/RUN_ID")
    if not (folder / "config.json").exists() and (folder / "cells").is_dir():
        raise ValueError(f"--ckpt {folder} is a sweep: name one of its cells, {folder}/cells/RUN_ID")
    above = folder.absolute().parents
    run = above[1] if above[0].name == "checkpoints" and not (folder / "run.json").exists() else folder
    if data_dir is not None and not (Path(data_dir) / "tokenizer.json").is_file():
        raise ValueError(f"--data_dir {data_dir} holds no tokenizer.json; it is a folder that data.py makes")
    found = [Path(data_dir)] if data_dir is not None else [folder, run]
    tokens = next((f for f in found if (f / "tokenizer.json").is_file()), None)
    try:
        record = read_json(run / "run.json")
    except (OSError, ValueError):
        record = {}
    return Trained(folder, load_model(folder), tokens, record if isinstance(record, dict) else {})


def keep_tokenizer(data_dir: str | Path, out_dir: str | Path, name: str | None = None):
    """Copy a data folder's tokenizer.json beside the weights, where it has one: the text may be gone one day.

    Other people's bins have none; where they are in GPT-2's tokens (name), its tokenizer is written. A copy that fails
    costs the run nothing: sample.py then asks for --data_dir.
    """
    source, out_dir = Path(data_dir) / "tokenizer.json", Path(out_dir)
    with contextlib.suppress(OSError, ValueError):
        if source.is_file():
            shutil.copyfile(source, out_dir / "tokenizer.json.part")
            os.replace(out_dir / "tokenizer.json.part", out_dir / "tokenizer.json")
        elif name == "gpt2":
            tokenizer.write_tokenizer(out_dir, tokenizer.make_tokenizer("gpt2", ()))


def place(device: str, dtype: str) -> tuple[str, str]:
    """The device and compute type of --device and --dtype; auto is float32 on a CPU, where it gives the same always."""
    device = pick_device(device)
    return device, "float32" if dtype == "auto" and device == "cpu" else compute_dtype(dtype, device)


def read_json(path: Path, most: int = JSON_BYTES):
    """What a JSON file says; OSError or ValueError, in one line, where it can't be had."""
    size = path.stat().st_size
    if not path.is_file() or size > most:
        raise ValueError(f"{path} has {size:,} bytes: no JSON of ours is larger than {most:,}")
    try:
        return json.loads(path.read_text("utf-8"))
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error})") from None

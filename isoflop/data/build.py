"""Text to token folders: resume, workers under torchrun, train and validation splits."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from isoflop.data import writer
from isoflop.data.check import sampling_error
from isoflop.data.config import (
    LIMITS,
    DataConfig,
    command,
    settings,
)
from isoflop.data.documents import Stream
from isoflop.data.errors import DataError
from isoflop.data.reader import (
    FORMAT,
    SPLITS,
    VERSION,
    foreign_files,
    open_data,
    open_own,
)
from isoflop.data.sources import Source
from isoflop.data.tokenizer import encode, load_tokenizer, lossless, make_tokenizer, write_tokenizer

FILES = {"train.bin", "val.bin", "tokenizer.json", "meta.json", "documents.bin", "state.json", "lengths.png"}


def find_state(cfg: DataConfig, out: Path, new: Path, about: dict) -> dict | None:
    """The state of an interrupted preparation that can be gone on from, or that of the folder to append to."""
    try:
        state = json.loads((new / "state.json").read_text())
        if can_go_on(state, cfg, about):
            if (new / "meta.json").exists():  # all but the renames was done
                meta = json.loads((new / "meta.json").read_text())
                return state | {"meta": meta} if meta["settings"] == about["settings"] else None
            return state
    except (OSError, ValueError, KeyError, TypeError):
        pass
    if not cfg.append:
        return None
    if not out.exists():
        raise DataError(f"--append: there is no {out}; leave it out to make that folder")
    try:
        state = json.loads((out / "state.json").read_text())
    except (OSError, ValueError):
        raise DataError(f"--append: {out} has no state.json to go on from; add --overwrite to make it anew") from None
    if state["ended"]:
        raise DataError(f"--append: {out} holds all that its source has; choose another source and --out_dir")
    if state["fingerprints"] != about["fingerprints"]:
        raise DataError(f"--append: the files behind {out} have changed since; add --overwrite to make it anew")
    if not can_go_on(state, cfg, about):
        raise DataError(f"--append: {out} holds more than is asked for; add --overwrite to make a smaller one")
    shutil.rmtree(new, ignore_errors=True)
    writer.links(out, new, state)
    return state


def can_go_on(state: dict, cfg: DataConfig, about: dict) -> bool:
    """Whether a state belongs to the same stream of documents and has not passed the limits asked for."""
    unlimited = lambda s: {k: v for k, v in s.items() if k not in LIMITS}  # noqa: E731
    tokens = sum(counts["tokens"] for counts in state["counts"].values())
    return (
        state["state"] == writer.STATE
        and unlimited(state["settings"]) == unlimited(about["settings"])
        and state["fingerprints"] == about["fingerprints"]
        and (cfg.num_docs is None or state["keys"] <= cfg.num_docs)
        and (cfg.num_tokens is None or tokens < cfg.num_tokens or state["settings"] == about["settings"])
    )


def make(cfg, sources: list[Source], new: Path, state: dict | None, about: dict, quiet: bool, vocabulary: Path | None):
    """Tokenize what is still to be tokenized into the stage's files; meta.json's contents."""
    position, keys = None, None
    if state is not None:
        position = state["position"]
        keys = np.fromfile(new / "documents.bin", "<u8", position["kept"] if position else 0)
    stream = Stream(sources, cfg.val_fraction, cfg.num_docs, position, keys)
    with contextlib.closing(iter(stream)) as items:
        head, texts = deque(), ()
        if not (new / "tokenizer.json").exists():
            if cfg.tokenizer.startswith("bpe") and vocabulary is None:
                texts = train_sample(cfg, head, items)
            if vocabulary is None:
                write_tokenizer(new, make_tokenizer(cfg.tokenizer, texts))
            else:
                shutil.copyfile(vocabulary, new / "tokenizer.json")
        tokenizer = load_tokenizer(new)
        meta = {
            "format": FORMAT,
            "version": VERSION,
            "tokenizer": tokenizer.name if cfg.tokenizer.endswith(".json") else cfg.tokenizer,
            "tokenizer_sha256": hashlib.sha256((new / "tokenizer.json").read_bytes()).hexdigest(),
            "vocab_size": tokenizer.n_vocab,
            "eot_token": tokenizer.eot_token,
            "dtype": "uint16" if tokenizer.n_vocab <= 2**16 else "uint32",
        }
        splits = writer.Splits(new, meta, cfg.shard_tokens, about, len(sources))
        if state is not None:
            splits.restore(state)
        write_documents(cfg, stream, splits, tokenizer, drain(head, items), quiet)
    for split in SPLITS:
        if splits.counts[split]["documents"] == 0:
            found = f"no {split} document among {splits.keys}"
            raise DataError(f"{found}: more text is needed, or another --val_fraction than {cfg.val_fraction}")
    meta |= splits.finish()
    if len(sources) > 1:
        whole = sum(counts["bytes"] for counts in splits.by_source)
        meta["sources"] = [
            {"source": s.name, "weight": s.weight} | counts | {"share": counts["bytes"] / whole}
            for s, counts in zip(sources, splits.by_source, strict=True)
        ]
    if not lossless(tokenizer):
        meta["lossless"] = False
    return meta | {
        "validation": sampling_error(open_own(new, meta)),
        "settings": settings(cfg),
        "command": command(cfg),
        "python": sys.version.split()[0],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def train_sample(cfg: DataConfig, head: deque, items: Iterator) -> Iterator[str]:
    """The train documents among the first --bpe_sample bytes of text; all that was read to get there is put in `head`.

    Train documents only: a merge learnt from validation text would flatter its bits per byte.
    """
    size = 0
    while size < cfg.bpe_sample and (item := next(items, None)) is not None:
        head.append(item)
        size += len(getattr(item, "raw", b""))
    return (item.text for item in head if item.text is not None and item.split == "train")


def drain(head: deque, items: Iterator) -> Iterator:
    while head:
        yield head.popleft()  # not kept: it may be 64 MiB of text
    yield from items


def write_documents(cfg: DataConfig, stream: Stream, splits: writer.Splits, tokenizer, items, quiet: bool) -> None:
    """Encode and write, with a bar that knows tokens per second, bytes, and where the end is known the time left."""
    from tqdm import tqdm

    off = quiet or not sys.stderr.isatty()
    started, begun, shown, n_bytes = time.perf_counter(), splits.tokens, 0.0, 0
    if cfg.num_tokens and splits.tokens >= cfg.num_tokens:
        return
    layout = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
    with tqdm(total=1.0, bar_format=layout, leave=False, disable=off) as bar:
        with contextlib.closing(encode(tokenizer, items, splits.meta["dtype"])) as encoded:
            for item, ids in encoded:
                if ids is None:
                    splits.mark(item)
                elif splits.add(item, ids) and cfg.num_tokens and splits.tokens >= cfg.num_tokens:
                    break
                if off or time.perf_counter() < shown + 0.5:
                    continue
                shown, n_bytes = time.perf_counter(), sum(c["bytes"] for c in splits.counts.values())
                parts = [splits.tokens / cfg.num_tokens if cfg.num_tokens else 0, stream.share or 0]
                parts.append(splits.keys / cfg.num_docs if cfg.num_docs else 0)
                bar.n = min(1.0, max(parts))
                speed = (splits.tokens - begun) / (shown - started)
                text = f"{speed / 1e6:.2f}M tokens/s, {splits.tokens / 1e6:,.1f}M tokens, {n_bytes / 1e6:,.0f} MB"
                bar.set_postfix_str(text)


def already_there(cfg: DataConfig, out: Path) -> bool:
    """Whether `out` is whole and has cfg's settings; DataError where it may not be replaced."""
    ours = lambda name: name in FILES or name.endswith(".bin") and name.startswith(SPLITS)  # noqa: E731
    others = [name for name in sorted(os.listdir(out)) if not ours(name)] if out.is_dir() else [out.name]
    if others:
        raise DataError(f"--out_dir {out} is not a data folder (it holds {others[0]}); choose another")
    if foreign_files(out) is not None:
        raise DataError(f"--out_dir {out} holds token files that were not made by data.py; choose another")
    if cfg.overwrite or not os.listdir(out):
        return False
    old, new = open_data(out).meta["settings"], settings(cfg)
    differ = [k for k in new | old if old.get(k) != new.get(k)]
    changed = ", ".join(f"{k} {old.get(k)} instead of {new.get(k)}" for k in differ)
    if set(differ) <= set(LIMITS) and differ and cfg.append:
        return False
    if changed:
        more = "--append to go on from there, or " if set(differ) <= set(LIMITS) else ""
        raise DataError(
            f"{out} was made with {changed}: add {more}--overwrite to replace it, or choose another --out_dir"
        )
    return True

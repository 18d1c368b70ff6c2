"""One data folder from its sources: resume or start, tokenize, write."""

import contextlib
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
from isoflop.data.config import LIMITS, DataConfig, command, settings
from isoflop.data.documents import DocumentStream
from isoflop.data.reader import FORMAT, SPLITS, VERSION, foreign_files, open_data, open_own
from isoflop.data.sources import Source
from isoflop.data.tokenizer import Tokenizer, encode, load_tokenizer, lossless, make_tokenizer, write_tokenizer
from isoflop.files import ABSENT, read_json, sha256
from isoflop.options import UserError, explain

FILES = {"train.bin", "val.bin", "tokenizer.json", "meta.json", "documents.bin", "state.json", "lengths.png"}


# ----- what is there already -----


def is_prepared(cfg: DataConfig, out: Path) -> bool:
    """Whether `out` is complete and has cfg's settings; UserError where it may not be replaced."""
    if not out.exists():
        return False
    names = sorted(os.listdir(out)) if out.is_dir() else [out.name]
    for name in names:
        if name not in FILES and not (name.endswith(".bin") and name.startswith(SPLITS)):
            raise UserError(f"--out_dir {out} is not a data folder (it holds {name}); choose another")
    if foreign_files(out) is not None:
        raise UserError(f"--out_dir {out} holds token files that were not made by data.py; choose another")
    if cfg.overwrite or not names:
        return False
    old, new = open_data(out).meta["settings"], settings(cfg)
    differ = [name for name in new | old if old.get(name) != new.get(name)]
    if not differ:
        return True
    only_limits = set(differ) <= set(LIMITS)
    if only_limits and cfg.append:
        return False
    changed = ", ".join(f"{name} {old.get(name)} instead of {new.get(name)}" for name in differ)
    ways_out = "--overwrite to replace it, or choose another --out_dir"
    if only_limits:
        ways_out = f"--append to add to it, or {ways_out}"
    raise UserError(f"{out} was made with {changed}: add {ways_out}")


def find_state(cfg: DataConfig, out: Path, new: Path, identity: dict) -> dict | None:
    """The state to resume from, None to start from the beginning; UserError where --append can't be done.

    Of an interrupted preparation, with its meta.json if only the renames are missing; or with --append that of the
    folder to add to, which is then staged in `new`.
    """
    # An interrupted preparation.
    try:
        state = read_json(new / "state.json")
        if is_resumable(state, cfg, identity):
            if not (new / "meta.json").exists():
                return state
            meta = read_json(new / "meta.json")
            if meta["settings"] == identity["settings"]:
                return state | {"meta": meta}
            return None
    except (*ABSENT, ValueError, KeyError, TypeError):
        pass
    if not cfg.append:
        return None

    # A folder to add to.
    if not out.exists():
        raise UserError(f"--append: there is no {out}; leave it out to make that folder")
    try:
        state = read_json(out / "state.json")
    except (*ABSENT, ValueError):
        raise UserError(f"--append: {out} has no state.json to resume from; use --overwrite to make it anew") from None
    if state["ended"]:
        raise UserError(f"--append: {out} holds all that its source has; choose another source and --out_dir")
    if state["fingerprints"] != identity["fingerprints"]:
        raise UserError(f"--append: the files behind {out} have changed since; use --overwrite to make it anew")
    if not is_resumable(state, cfg, identity):
        raise UserError(f"--append: {out} holds more than requested; use --overwrite to make a smaller one")
    shutil.rmtree(new, ignore_errors=True)
    writer.stage_append(out, new, state)
    return state


def is_resumable(state: dict, cfg: DataConfig, identity: dict) -> bool:
    """Whether a state belongs to the same stream of documents and is within the limits requested."""
    if state["state"] != writer.STATE_VERSION or state["fingerprints"] != identity["fingerprints"]:
        return False
    old, new = state["settings"], identity["settings"]
    if without_limits(old) != without_limits(new):
        return False
    if cfg.num_docs is not None and state["keys"] > cfg.num_docs:
        return False
    tokens = sum(counts["tokens"] for counts in state["counts"].values())
    return cfg.num_tokens is None or tokens < cfg.num_tokens or old == new


def without_limits(settings: dict) -> dict:
    return {name: value for name, value in settings.items() if name not in LIMITS}


# ----- making the files -----


def restore(splits: writer.SplitWriter, state: dict, new: Path):
    """Truncate the files to a state; UserError where they don't hold it: then staging() removes them."""
    try:
        splits.restore(state)
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        (new / "state.json").unlink()
        raise UserError(
            f"{new.parent} can't be resumed from ({explain(error)}): it is removed, and the same command begins anew"
        ) from None


def make_files(
    cfg: DataConfig,
    sources: list[Source],
    new: Path,
    state: dict | None,
    identity: dict,
    quiet: bool = False,
    vocabulary: Path | None = None,
) -> dict:
    """Write the files of the staging folder, resuming from `state`; returns the contents of meta.json."""
    position, keys = None, None
    if state is not None:
        position = state["position"]
        keys = np.fromfile(new / "documents.bin", "<u8", position["kept"] if position else 0)
    stream = DocumentStream(sources, cfg.val_fraction, cfg.num_docs, position, keys, cfg.strict)
    with contextlib.closing(iter(stream)) as items:
        # Make the tokenizer.
        sample = deque()
        if not (new / "tokenizer.json").exists():
            if vocabulary is None:
                sample = save_tokenizer(cfg, items, new, stream)
            else:
                shutil.copyfile(vocabulary, new / "tokenizer.json")
        tokenizer = load_tokenizer(new)

        # Encode and write the documents.
        meta = header_entries(cfg, tokenizer, new / "tokenizer.json")
        splits = writer.SplitWriter(new, meta, cfg.shard_tokens, identity, len(sources))
        if state is not None:
            restore(splits, state, new)
        write_documents(cfg, stream, splits, tokenizer, drain(sample, items), quiet)

    # Count and check.
    for split in SPLITS:
        if splits.counts[split]["documents"] == 0:
            raise UserError(no_documents(split, splits.keys, stream, cfg.val_fraction))
    meta |= splits.finish()
    if len(sources) > 1:
        whole = sum(counts["bytes"] for counts in splits.by_source)
        meta["sources"] = []
        for source, counts in zip(sources, splits.by_source, strict=True):
            share = {"share": counts["bytes"] / whole}
            meta["sources"].append({"source": source.name, "weight": source.weight} | counts | share)
    if not lossless(tokenizer):
        meta["lossless"] = False
    notes = [note for source in sources for note in source.notes()]
    if notes:
        meta["notes"] = notes
    if stream.first and not quiet:
        print(stream.what_was_dropped())
    return meta | {
        "validation": sampling_error(open_own(new, meta)),
        "settings": settings(cfg),
        "command": command(cfg),
        "python": sys.version.split()[0],
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def no_documents(split: str, kept: int, stream: DocumentStream, val_fraction: float) -> str:
    """Why a split has no document, and a way out."""
    dropped = stream.what_was_dropped()
    if kept == 0 and dropped:
        return f"no document is left: {dropped}"
    found = f"no {split} document among {kept}"
    if dropped:
        found += f" ({dropped})"
    return f"{found}: more text is needed, or another --val_fraction than {val_fraction}"


def header_entries(cfg: DataConfig, tokenizer: Tokenizer, path: Path) -> dict:
    """The entries of meta.json that the token files repeat in their headers."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "tokenizer": tokenizer.name if cfg.tokenizer.endswith(".json") else cfg.tokenizer,
        "tokenizer_sha256": sha256(path),
        "vocab_size": tokenizer.n_vocab,
        "eot_token": tokenizer.eot_token,
        "dtype": "uint16" if tokenizer.n_vocab <= 2**16 else "uint32",
    }


def save_tokenizer(
    cfg: DataConfig, items: Iterator, folder: Path, stream: DocumentStream, name: str = "tokenizer.json"
) -> deque:
    """Write a tokenizer.json; returns the items of the stream that were read for it and are still to be written.

    bpe:V is trained on the train documents among the first --bpe_sample bytes of text: a merge learnt from validation
    text would flatter its bits per byte.
    """
    sample, texts, size = deque(), [], 0
    if cfg.tokenizer.startswith("bpe"):
        for item in items:
            sample.append(item)
            if item.text is not None:
                size += len(item.raw)
                if item.split == "train":
                    texts.append(item.text)
            if size >= cfg.bpe_sample:
                break
    if stream.kept == 0 and stream.dropped:
        raise UserError(f"no document is left: {stream.what_was_dropped()}")
    try:
        spec = make_tokenizer(cfg.tokenizer, texts)
    except UserError as e:
        # Too little text may be too little of it that could be read.
        if not stream.dropped:
            raise
        raise UserError(f"{e}; {stream.what_was_dropped()}") from None
    write_tokenizer(folder, spec, name)
    return sample


def drain(sample: deque, items: Iterator) -> Iterator:
    """The items of the sample, each released once it is handed on: they may hold 64 MiB of text; then the others."""
    while sample:
        yield sample.popleft()
    yield from items


def write_documents(
    cfg: DataConfig, stream: DocumentStream, splits: writer.SplitWriter, tokenizer: Tokenizer, items, quiet: bool
) -> None:
    """Encode and write, with a bar that shows tokens per second, bytes, and where the end is known the time left."""
    from tqdm import tqdm

    if cfg.num_tokens and splits.tokens >= cfg.num_tokens:
        return
    off = quiet or not sys.stderr.isatty()
    started, shown, tokens_before = time.perf_counter(), 0.0, splits.tokens
    layout = "{percentage:3.0f}%|{bar}| {elapsed}<{remaining} {postfix}"
    with (
        tqdm(total=1.0, bar_format=layout, leave=False, disable=off) as bar,
        contextlib.closing(encode(tokenizer, items, splits.meta["dtype"])) as encoded,
    ):
        for item, ids in encoded:
            # Write.
            if ids is None:
                splits.resume_point(item)
            elif splits.add(item, ids) and cfg.num_tokens and splits.tokens >= cfg.num_tokens:
                break

            # Show the progress, twice a second.
            now = time.perf_counter()
            if off or now < shown + 0.5:
                continue
            shown = now
            progress = stream.progress or 0
            if cfg.num_tokens:
                progress = max(progress, splits.tokens / cfg.num_tokens)
            if cfg.num_docs:
                progress = max(progress, splits.keys / cfg.num_docs)
            bar.n = min(1.0, progress)
            speed = (splits.tokens - tokens_before) / (now - started)
            n_bytes = sum(counts["bytes"] for counts in splits.counts.values())
            bar.set_postfix_str(
                f"{speed / 1e6:.2f}M tokens/s, {splits.tokens / 1e6:,.1f}M tokens, {n_bytes / 1e6:,.0f} MB"
            )

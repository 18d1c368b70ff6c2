"""Text to tokens on disk (prepare), and tokens to batches (open_data, Loader).

    python data.py --source stdlib                          # the embedded default: no download, a few seconds
    python data.py --num_docs 2e5                           # FineWeb from the Hugging Face hub, GPT-2 tokens
    python data.py --source 'texts/*.jsonl' --tokenizer bpe:4096
    python data.py --mix fineweb-edu=0.8 python=0.2 --num_tokens 1e9 --out_dir data/mixed
    python data.py --info data/stdlib_bpe512                # and --verify

A data folder holds train.bin and val.bin, or shards (a 256-byte header, then uint16 or uint32 tokens), tokenizer.json
(enough to decode with no download), documents.bin and state.json (to check it, and to add more), and meta.json (counts,
hashes, and the command that makes the folder again). Every document is followed by one end-of-text token. The work is
done in a hidden folder that is renamed when whole; after a kill the same command goes on (shards.py). Documents come
from sources.py through stream.py and become tokens in tokenizer.py; recipe.py has the flags, bins.py reads, loader.py
makes batches. None of them imports torch.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections import deque
from dataclasses import fields, replace
from pathlib import Path

from isoflop.data import writer
from isoflop.data.build import already_there, find_state, make, train_sample
from isoflop.data.check import VAL_TOKENS, check, describe, sampling_error
from isoflop.data.config import (
    LIMITS,
    STDLIB_TOKENIZER,
    DataConfig,
    command,
    integer,
    mixture,
    open_sources,
    resolve,
    settings,
)
from isoflop.data.documents import Stream
from isoflop.data.errors import DataError
from isoflop.data.loader import Loader
from isoflop.data.reader import (
    SPLITS,
    TokenData,
    open_data,
    open_own,
    token_bytes,
)
from isoflop.data.tokenizer import load_tokenizer, make_tokenizer, write_tokenizer

__all__ = ["DataConfig", "DataError", "Loader", "STDLIB_TOKENIZER", "TokenData"]  # what other scripts use
__all__ += ["load_tokenizer", "main", "open_data", "parse", "prepare", "token_bytes"]

GRACE_S = 15.0  # within which all workers have started, and removed what an earlier attempt left


# ----- making a folder ----------------------------------------------------------------------------------------------


def prepare(cfg: DataConfig, quiet: bool = False, worker: tuple[int, int] = (0, 1), vocabulary: Path | None = None):
    """Make the data folder that cfg describes, unless it is there, and return its path.

    After a kill, a failure of the hub or a full disk the next call goes on where the last one could put its work on the
    disk; the folder is the same in the end. worker (r, n) takes its n-th of the sources; vocabulary names a
    tokenizer.json to use instead of making one. Raises DataError (a ValueError) or OSError with one line; then nothing
    is left that open_data would accept.
    """
    cfg = resolve(cfg)
    out, say = Path(cfg.out_dir).resolve(), (lambda line: None) if quiet else print
    sources = open_sources(cfg, worker)
    about = {"settings": settings(cfg), "fingerprints": [source.fingerprint for source in sources]}
    with writer.stage(out) as stage:
        if out.exists() and already_there(cfg, out):
            shutil.rmtree(stage / "new", ignore_errors=True)  # left by a killed run with other settings
            say(f"{out} is already prepared")
            return Path(cfg.out_dir)
        started, new = time.perf_counter(), stage / "new"
        state = find_state(cfg, out, new, about)
        if state is None:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
        elif not quiet:
            print(f"going on from {sum(c['tokens'] for c in state['counts'].values()):,} tokens made before")
        if state is None or "meta" not in state:
            meta = make(cfg, sources, new, state, about, quiet, vocabulary)
            writer.write_json(new / "meta.json", meta)
        writer.take_place(stage, out)
    report(out, time.perf_counter() - started, say)
    return Path(cfg.out_dir)


def prepare_together(cfg: DataConfig, rank: int, size: int) -> None:
    """One of `size` processes: each prepares its part of the sources as a folder of its own, the first one joins them.

    A limit is shared out evenly. bpe:V is trained by the first worker, on its own part. Duplicates are dropped within
    each part, and only counted between parts; equal texts fall on the same side of the split all the same.
    """
    cfg, started = resolve(cfg), time.perf_counter()
    out = Path(cfg.out_dir).resolve()
    if out.exists() and already_there(replace(cfg, append=False), out):
        return print(f"{out} is already prepared") if rank == 0 else None
    if cfg.append or "-" in (source for source, _ in mixture(cfg)):
        raise DataError("--append and standard input take one process: start data.py by itself")
    which = hashlib.sha256(json.dumps(settings(cfg)).encode()).hexdigest()[:8]  # a killed run's are used if they fit
    parts = [out.with_name(f".{out.name}.{which}.part-{r}-of-{size}") for r in range(size)]
    vocabulary = parts[0].with_suffix(".json") if cfg.tokenizer.startswith("bpe") else None
    limits = {k: None if getattr(cfg, k) is None else -(-getattr(cfg, k) // size) for k in LIMITS}
    mine = replace(cfg, out_dir=str(parts[rank]), overwrite=False, **limits)
    failed = [part.with_name(part.name + ".failed") for part in parts]
    failed[rank].unlink(missing_ok=True)
    try:
        if vocabulary and rank == 0 and not vocabulary.exists():
            stream = Stream(open_sources(mine, (rank, size)), cfg.val_fraction, mine.num_docs)
            texts = train_sample(cfg, deque(), iter(stream))
            write_tokenizer(out.parent, make_tokenizer(cfg.tokenizer, texts), vocabulary.name)
        while vocabulary and not vocabulary.exists():
            wait_for(failed[:1], size, started)
        prepare(mine, quiet=True, worker=(rank, size), vocabulary=vocabulary)
    except BaseException:
        failed[rank].touch()  # or the others would wait for this one for ever
        raise
    if rank:
        return
    while not all((part / "meta.json").exists() for part in parts):
        wait_for(failed, size, started)
    with writer.stage(out) as stage:
        shutil.rmtree(stage / "new", ignore_errors=True)
        meta = writer.join(parts, stage / "new") | {"settings": settings(cfg), "command": command(cfg)}
        meta["validation"] = sampling_error(open_own(stage / "new", meta))
        writer.write_json(stage / "new" / "meta.json", meta)
        writer.take_place(stage, out)
    for part in parts:
        shutil.rmtree(part)
    if vocabulary:
        vocabulary.unlink()
    report(out, time.perf_counter() - started, print)


def wait_for(failed: list[Path], size: int, started: float) -> None:
    """A moment, or DataError where another worker has left word that it failed, and did not start again since."""
    for rank, mark in enumerate(failed):
        if time.perf_counter() - started > GRACE_S and mark.exists():
            raise DataError(f"worker {rank} of {size} has failed; what the others made is kept for the next attempt")
    time.sleep(0.2)


def report(out: Path, seconds: float, say) -> None:
    meta = open_data(out).meta
    dropped = ", ".join(f"{n:,} {why}" for why, n in meta["dropped"].items())
    say(f"{out}: {meta['tokenizer']}, made in {seconds:.1f} s; dropped: {dropped}")
    for split in SPLITS:
        n = meta[split]
        files = f", {len(n['shards'])} files" if "shards" in n else ""
        counts = f"{split:>6} {n['tokens']:>14,} tokens in {n['documents']:>9,} documents"
        say(f"{counts}, {n['bytes_per_token']:.3f} bytes per token{files}")
    if meta.get("duplicates_between_workers"):
        say(f"  {meta['duplicates_between_workers']:,} documents came to two workers and are there twice")
    for part in meta.get("sources", ()):
        say(f"  {part['share']:6.1%} of the bytes, {part['tokens']:,} tokens from {part['source']}")
    v = meta["validation"]
    error = "unknown" if v["se"] is None else f"{v['se']:.4f}"
    say(f"  validation range: {v['tokens']:,} tokens; standard error {error} nats per token, by a unigram model")
    if v["tokens"] < VAL_TOKENS:
        say(f"  that is shorter than the {VAL_TOKENS:,} tokens that train.py evaluates on: raise --val_fraction")
    if not meta.get("lossless", True):
        say("  this tokenizer does not give every text back as it was; bits per byte count the bytes it spells")


# ----- command line -------------------------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message: str):  # argparse would print the usage too, and exit
        raise DataError(message)


def parse(argv: list[str] | None = None) -> DataConfig:
    return read_args(argv)[0]


def read_args(argv: list[str] | None) -> tuple[DataConfig, argparse.Namespace]:
    first, _, _ = __doc__.partition("\n\nA data folder")
    parser = Parser(
        "data.py", description=first, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    for f in fields(DataConfig):
        kind, default = f.metadata["type"], "" if f.default is None else f" [{f.default}]"
        if kind is bool:
            parser.add_argument(f"--{f.name}", action="store_true", help=f.metadata["help"])
        else:
            many = {"nargs": "+"} if f.name in ("source", "mix") else {}  # also a glob that the shell has expanded
            kind = integer if kind is int else kind
            parser.add_argument(f"--{f.name}", type=kind, default=f.default, help=f.metadata["help"] + default, **many)
    parser.add_argument(
        "--info", metavar="DIR", help="describe a data folder, with a picture of its documents' lengths"
    )
    parser.add_argument("--planned_tokens", type=integer, help="with --info: the epochs that this many tokens take")
    parser.add_argument("--verify", metavar="DIR", help="check every byte of a data folder")
    args = parser.parse_args(argv)
    given = {f.name: getattr(args, f.name) for f in fields(DataConfig)}
    if isinstance(given["source"], list):
        given["source"] = given["source"][0] if len(given["source"]) == 1 else tuple(given["source"])
    given["mix"] = None if given["mix"] is None else tuple(given["mix"])
    return DataConfig(**given), args


def workers() -> tuple[int, int]:
    """(rank, number) of this process among those that torchrun or srun has started."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def main(argv: list[str] | None = None) -> int:
    cfg = None
    try:
        cfg, args = read_args(argv)
        rank, size = workers()
        if args.info or args.verify:
            for folder, act in ((args.info, describe), (args.verify, check)):
                if folder and rank == 0:
                    act(open_data(folder), args.planned_tokens) if act is describe else act(open_data(folder))
        elif size > 1:
            prepare_together(cfg, rank, size)
        else:
            prepare(cfg)
    except KeyboardInterrupt:
        print(f"data.py: interrupted; {what_is_left(cfg)}", file=sys.stderr)
        return 130
    except (ValueError, OSError, ImportError, RuntimeError) as e:
        left = "" if what_is_left(cfg).startswith("nothing") else f"; {what_is_left(cfg)}"
        print("data.py: error:", " ".join(str(e).split()) + left, file=sys.stderr)
        return 2
    return 0


def what_is_left(cfg: DataConfig | None) -> str:
    """What an end in the middle has left on the disk, in words."""
    with contextlib.suppress(Exception):
        stage = writer.stage_of(Path(resolve(cfg).out_dir).resolve())
        if (stage / "new" / "state.json").exists():
            return f"what was made so far is kept in {stage}, and the same command goes on from there"
    return "nothing was written"


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # past Python's shutdown, which aborts while a thread left behind in pyarrow still reads the hub

"""Text to tokens on disk, as a data folder that train.py and sweep.py read.

    python data.py --source stdlib                     # no download needed
    python data.py --num_docs 2e5                      # FineWeb, GPT-2 tokens
    python data.py --source 'texts/*.jsonl' --tokenizer bpe:4096
    python data.py --mix fineweb-edu=0.8 python=0.2 --num_tokens 1e9 --out_dir d
    python data.py --info data/stdlib_bpe512           # and --verify

sources     fineweb, fineweb-edu, hub:NAME[:CONFIG[:SPLIT[:COLUMN]]]; txt,
            jsonl, json (also .gz, .zst) and parquet files, globs, folders;
            stdlib; python, with installed packages; - (stdin, a line each)
tokenizers  gpt2 and tiktoken's others, byte, bpe:V (trained on the text), or a
            Hugging Face tokenizer.json

After a kill the same command resumes. data/README.md describes the files.
"""

import isoflop.installed  # noqa: F401 isort: skip
import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

from isoflop.cli import Parser, UserError, explain, run_main
from isoflop.data import writer
from isoflop.data.build import find_state, is_prepared, make_files, save_tokenizer
from isoflop.data.check import check, describe, sampling_error, summary
from isoflop.data.config import LIMITS, DataConfig, command, mixture, open_sources, resolve, settings
from isoflop.data.documents import DocumentStream
from isoflop.data.reader import open_data, open_own
from isoflop.files import write_json

GRACE_S = 15.0  # within which all workers have started, and removed the failure marks of an earlier attempt


# ----- making a folder -----


def prepare(
    cfg: DataConfig, quiet: bool = False, worker: tuple[int, int] = (0, 1), vocabulary: Path | None = None
) -> Path:
    """Make the data folder that cfg describes, unless it is there, and return its path.

    After a kill, a failure of the hub or a full disk the next call resumes from the last state on the disk; the folder
    has the same bytes in the end. Raises UserError or OSError with one line; then open_data accepts nothing new.

    Parameters
    ----------
    worker : (r, n) to take only the r-th of n shares of the sources.
    vocabulary : a tokenizer.json to use instead of making one.
    """
    cfg = resolve(cfg)
    out = Path(cfg.out_dir).resolve()
    sources = open_sources(cfg, worker)
    identity = {"settings": settings(cfg), "fingerprints": [source.fingerprint for source in sources]}
    with writer.staging(out) as stage:
        new = stage / "new"
        if is_prepared(cfg, out):
            shutil.rmtree(new, ignore_errors=True)  # left by a killed run with other settings
            if not quiet:
                print(f"{out} is already prepared")
            return Path(cfg.out_dir)
        started = time.perf_counter()
        state = find_state(cfg, out, new, identity)
        if state is None:
            shutil.rmtree(new, ignore_errors=True)
            new.mkdir()
        elif not quiet:
            print(f"resuming after {sum(counts['tokens'] for counts in state['counts'].values()):,} tokens")
        if state is None or "meta" not in state:
            meta = make_files(cfg, sources, new, state, identity, quiet, vocabulary)
            write_json(new / "meta.json", meta, indent=1)
        writer.publish(stage, out)
    if not quiet:
        report(out, started)
    return Path(cfg.out_dir)


def prepare_together(cfg: DataConfig, rank: int, size: int) -> None:
    """One of `size` processes: each prepares its share of the sources as a folder of its own, the first joins them.

    A limit is shared out evenly. bpe:V is trained by the first worker, on its own share. Duplicates are dropped within
    each share, and only counted between them; equal texts are in the same split all the same.
    """
    cfg, started = resolve(cfg), time.perf_counter()
    out = Path(cfg.out_dir).resolve()
    if cfg.append or "-" in [source for source, _ in mixture(cfg)]:
        raise UserError("--append and --source - take one process: start data.py without torchrun or srun")
    if is_prepared(cfg, out):
        if rank == 0:
            print(f"{out} is already prepared")
        return

    # Each worker has a folder whose name says what is in it, so that the next attempt can use what a killed one left.
    name = hashlib.sha256(json.dumps(settings(cfg)).encode()).hexdigest()[:8]
    parts = [out.with_name(f".{out.name}.{name}.part-{r}-of-{size}") for r in range(size)]
    failed = [part.with_name(part.name + ".failed") for part in parts]
    failed[rank].unlink(missing_ok=True)
    limits = {}
    for limit in LIMITS:
        total = getattr(cfg, limit)
        limits[limit] = None if total is None else -(-total // size)
    own = replace(cfg, out_dir=str(parts[rank]), overwrite=False, **limits)
    try:
        # The first worker trains the tokenizer, the others wait for it.
        vocabulary = None
        if cfg.tokenizer.startswith("bpe"):
            vocabulary = parts[0].with_suffix(".json")
            if rank == 0 and not vocabulary.exists():
                stream = DocumentStream(open_sources(own, (rank, size)), cfg.val_fraction, own.num_docs)
                save_tokenizer(cfg, iter(stream), out.parent, stream, vocabulary.name)
            while not vocabulary.exists():
                wait_for(failed[:1], size, started)
        prepare(own, quiet=True, worker=(rank, size), vocabulary=vocabulary)
    except BaseException:
        failed[rank].touch()  # or the others would wait for this one for ever
        raise
    if rank:
        return

    # The first worker joins the folders.
    while not all((part / "meta.json").exists() for part in parts):
        wait_for(failed, size, started)
    with writer.staging(out) as stage:
        new = stage / "new"
        shutil.rmtree(new, ignore_errors=True)
        meta = writer.join_workers(parts, new) | {"settings": settings(cfg), "command": command(cfg)}
        meta["validation"] = sampling_error(open_own(new, meta))
        write_json(new / "meta.json", meta, indent=1)
        writer.publish(stage, out)
    for part in parts:
        shutil.rmtree(part)
    if vocabulary:
        vocabulary.unlink()
    report(out, started)


def wait_for(failed: list[Path], size: int, started: float) -> None:
    """A moment; UserError where another worker has left its failure mark, and has not started again since."""
    for rank, mark in enumerate(failed):
        if time.perf_counter() - started > GRACE_S and mark.exists():
            raise UserError(f"worker {rank} of {size} failed; what the others made is kept for the next attempt")
    time.sleep(0.2)


def report(out: Path, started: float) -> None:
    """Print what was made."""
    opened = open_data(out)
    print(f"{out}: {opened.meta['tokenizer']}, made in {time.perf_counter() - started:.1f} s")
    print(summary(opened, opened.meta["validation"]))


# ----- command line -----


def make_parser() -> Parser:
    parser = Parser("data.py", __doc__, DataConfig)
    parser.flag("info", str, None, "describe a data folder, draw document lengths", group="inspect", metavar="DIR")
    text = "with --info: how many epochs this many make"
    parser.flag("planned_tokens", int, None, text, group="inspect", min=1, max=10**18)
    parser.flag("verify", str, None, "check every byte of a data folder", group="inspect", metavar="DIR")
    return parser


def parse(argv: list[str] | None = None) -> DataConfig:
    """The configuration that a command line makes."""
    parser = make_parser()
    return parser.read(DataConfig, parser.parse_args(argv))


def workers() -> tuple[int, int]:
    """(rank, number) of this process among those that torchrun or srun has started."""
    for rank, size in (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")):
        if rank in os.environ and size in os.environ:
            return int(os.environ[rank]), int(os.environ[size])
    return 0, 1


def run(parser: Parser, args) -> int:
    cfg = parser.read(DataConfig, args)
    rank, size = workers()
    try:
        if args.verify and rank == 0:
            check(open_data(args.verify))
        if args.info and rank == 0:
            describe(open_data(args.info), args.planned_tokens)
        if args.info or args.verify:
            return 0
        if size > 1:
            prepare_together(cfg, rank, size)
        else:
            prepare(cfg)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ImportError, RuntimeError) as error:  # of tiktoken, datasets and pyarrow, too
        message = " ".join(explain(error).split())
        left = kept(cfg)
        if left:
            message += f"; {left}"
        if rank:  # run_main lets rank 0 speak alone, but each worker may fail for a reason of its own
            print(f"data.py: error: {message}", file=sys.stderr)
            return 2
        raise UserError(message) from error
    return 0


def kept(cfg: DataConfig) -> str:
    """Where an interrupted preparation has left its state; empty if there is none."""
    with contextlib.suppress(Exception):
        stage = writer.staging_folder(Path(resolve(cfg).out_dir).resolve())
        if (stage / "new" / "state.json").exists():
            return f"the work so far is kept in {stage}, and the same command resumes it"
    return ""


def main(argv: list[str] | None = None) -> int:
    return run_main(make_parser(), run, argv, lambda: kept(parse(argv)) or "nothing was written")


if __name__ == "__main__":
    try:
        status = main()
    except SystemExit as stop:
        status = stop.code
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # past Python's shutdown, which aborts while a thread left behind in pyarrow still reads the hub

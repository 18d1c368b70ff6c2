"""Where rows of text are read: files, standard input, this Python's own sources, or the Hugging Face hub.

A source yields chunks (rows, state, progress): rows are (text, split), where split is None if a hash of the text is to
decide, and text None or a Dropped (formats.py) if it can't be read; `state` is the position of the source behind them,
in a form that JSON can hold and from which `open` resumes; `progress` is the share of the source read so far, 0 to 1,
or None. documents.py makes documents of the rows. datasets and pyarrow are imported only where they are used.
"""

import copy
import glob
import hashlib
import os
import sys
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from isoflop.data.downloads import OFFLINE, probe
from isoflop.data.formats import (
    KINDS,
    LOOSE_KINDS,
    READERS,
    Dropped,
    Reading,
    decode,
    kind,
    marker_notes,
    pick,
    text_of,
)
from isoflop.options import UserError

WAY_OUT = f"to work offline: {OFFLINE}"
Row = tuple[str | Dropped | None, str | None]  # text, split
Chunk = tuple[list[Row], object, float | None]
SPLIT_BYTES = 8192  # a single .txt file without end markers is split into documents of about this size
CHUNK_DOCS, CHUNK_BYTES = 128, 2**22  # rows of a chunk, whichever limit is reached first
STDLIB_LEFT_OUT = frozenset(
    "test tests idle_test idlelib lib2to3 turtledemo ensurepip encodings site-packages dist-packages".split()
)


@dataclass(frozen=True)
class Source:
    name: str
    open: Callable[[object], Iterator[Chunk]]  # takes the state to resume from, None for the beginning
    fingerprint: str = ""  # changes when the files behind it do
    weight: float = 1.0
    timeout: float | None = None  # seconds without a chunk after which it is given up
    notes: Callable[[], list[str]] = list  # what there is to say of it when it is read


def chunked(rows: Iterable[tuple], begin: int) -> Iterator[tuple[list[tuple], int]]:
    """(rows in a list, number of rows read) for each chunk; the rows start behind row `begin`."""
    rows = iter(rows)
    while True:
        chunk, size = [], 0
        for row in rows:
            chunk.append(row)
            if isinstance(row[0], str):
                size += len(row[0])
            if len(chunk) >= CHUNK_DOCS or size >= CHUNK_BYTES:
                break
        if not chunk:
            return
        begin += len(chunk)
        yield chunk, begin


def own_rows(chunk: list, end: int, worker: tuple[int, int]) -> list:
    """Every n-th row of the rows up to number `end`, for worker (r, n)."""
    rank, size = worker
    begin = end - len(chunk)
    return [row for i, row in enumerate(chunk, begin) if i % size == rank]


# ----- files -----


def python_files(root: Path, left_out: frozenset[str]) -> list[tuple[str, Path]]:
    """(relative path, path) of the Python files below a folder, sorted."""
    found = []
    for folder, dirs, files in os.walk(root):
        dirs[:] = [d for d in dirs if d not in left_out and not d.startswith("config-")]
        for name in files:
            if name.endswith(".py") and not name.startswith("_sysconfigdata"):
                path = Path(folder, name)
                found.append((path.relative_to(root).as_posix(), path))
    return sorted(found)


def stdlib_files() -> list[tuple[str, Path]]:
    """The Python files of this interpreter's standard library.

    Left out: tests, tools with data of their own, tables (encodings), and the files that record how this very
    interpreter was built, so that two machines with one Python version get one corpus.
    """
    return python_files(Path(sysconfig.get_path("stdlib")), STDLIB_LEFT_OUT)


def stdlib_rows(val_fraction: float) -> Iterator[Row]:
    """A document per file; validation is the first files, by the hash of the path, that hold val_fraction of the bytes.

    By bytes, and without files larger than a quarter of that, because a few are huge: pydoc_data/topics.py (0.75 MB)
    is larger than the whole validation set should be.
    """
    files = stdlib_files()
    sizes = {name: path.stat().st_size for name, path in files}
    wanted = val_fraction * sum(sizes.values())
    held, val = 0, set()
    for name in sorted(sizes, key=lambda name: hashlib.sha256(name.encode()).digest()):
        if held < wanted and sizes[name] <= wanted / 4:
            held += sizes[name]
            val.add(name)
    for name, path in files:
        yield decode(path.read_bytes()), "val" if name in val else "train"


def installed_files() -> list[Path]:
    """The standard library's files and those of the packages installed beside it, without their tests."""
    found = [path for _, path in stdlib_files()]
    for root in dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib"))):
        found += [path for _, path in python_files(Path(root), STDLIB_LEFT_OUT)]
    return found


def file_rows(paths: list[Path]) -> Iterator[Row]:
    """A document per file."""
    for path in paths:
        yield decode(path.read_bytes()), None


def stdin_rows() -> Iterator[Row]:
    """A document a line, without its line end; to resume, the same lines have to be piped in again."""
    for line in sys.stdin.buffer:
        yield decode(line.rstrip(b"\r\n")), None


def paths_source(name: str, files: list[Path], rows: Callable[[], Iterator[Row]], worker=(0, 1), **more) -> Source:
    """A source whose state is the number of rows read; rows() begins with the first, files are its fingerprint."""

    def open_(state):
        begin = state or 0
        for chunk, end in chunked(islice(rows(), begin, None), begin):
            yield own_rows(chunk, end, worker), end, None

    return Source(name, open_, fingerprint(files), **more)


def fingerprint(files: Iterable[str | Path]) -> str:
    """A hash of the files' paths, sizes and times."""
    found = []
    for path in files:
        stat = os.stat(path)
        found.append((str(path), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr(found).encode()).hexdigest()


def source_files(source: str | tuple[str, ...]) -> list[str]:
    """Files behind --source: paths, globs and folders, sorted; UserError if there are none, or of other kinds."""
    kinds = ", ".join(KINDS)
    patterns = (source,) if isinstance(source, str) else source
    found = set()
    for pattern in patterns:
        if os.path.isdir(pattern):
            found_there = [p for p in Path(pattern).rglob("*") if kind(p)]
            # A .json beside texts is a description as a rule.
            texts = [p for p in found_there if kind(p) not in LOOSE_KINDS]
            hits = [str(p) for p in texts or found_there]
        elif os.path.exists(pattern):
            hits = [pattern]
        else:
            hits = glob.glob(pattern, recursive=True)
        if not hits:
            raise UserError(
                f"--source {pattern}: no such {kinds} file; it must be fineweb, fineweb-edu, stdlib, python, hub:NAME, "
                "- (standard input), or a file, glob or folder of such files (all but .parquet also as .gz and .zst)"
            )
        found.update(hits)
    for path in sorted(found):
        if not kind(path) or not os.path.isfile(path):
            raise UserError(f"--source: {path} is not a {kinds} file")
        if path.endswith(".zst"):
            import zstandard  # noqa: F401  missing packages are named before any work
    return sorted(found)


def files_source(source: str | tuple[str, ...], reading: Reading, worker: tuple[int, int] = (0, 1), **more) -> Source:
    """Files of the KINDS; the state is [file, rows read in it].

    Worker r of n takes every n-th file, or every n-th row where there are fewer files than workers.
    """
    files = source_files(source)
    name = source if isinstance(source, str) else " ".join(source)
    # A single text is split up, or it could not be divided into train and validation.
    if len(files) == 1:
        reading = replace(reading, split_bytes=SPLIT_BYTES)
    rank, size = worker
    if len(files) >= size:
        files, worker = files[rank::size], (0, 1)
    lengths = [os.path.getsize(path) for path in files]
    whole = max(1, sum(lengths))

    def open_(state):
        first, begin = state or (0, 0)
        for number in range(first, len(files)):
            path = files[number]
            before = sum(lengths[:number])
            texts = READERS[kind(path)](path, reading, begin)  # (text, progress in this file)
            for chunk, end in chunked(texts, begin):
                rows = [(text, None) for text, _ in chunk]
                progress = (before + chunk[-1][1] * lengths[number]) / whole
                yield own_rows(rows, end, worker), [number, end], progress
            begin = 0

    def notes():
        return marker_notes(files, reading)

    return Source(name, open_, fingerprint(files), notes=notes, **more)


# ----- the hub -----


def hub_source(dataset: str, config: str | None, split: str, column: str, timeout: float, worker=(0, 1), **more):
    """A dataset streamed from the hub, at the revision found first; the state is `datasets`' own, and that revision.

    Worker r of n takes its share of the dataset's files, or every n-th row where they don't divide evenly.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")

    def open_(state):
        try:
            revision, stream = open_stream(state)
            for table in stream.iter(batch_size=CHUNK_DOCS):
                pick(dict.fromkeys(table.column_names), column, dataset)
                rows = [(text_of(value, dataset), None) for value in table[column].to_pylist()]
                position = copy.deepcopy(stream.state_dict())  # datasets changes its own as it reads on
                yield rows, {"revision": revision, "stream": position}, None
        except UserError:
            raise
        except Exception as e:  # whatever datasets, huggingface_hub, httpx or pyarrow raise
            raise UserError(f"{dataset} from {endpoint} failed ({type(e).__name__}: {str(e)[:300]}); {WAY_OUT}") from e

    def open_stream(state):
        """(revision, the dataset as a stream behind `state`)."""
        offline = os.environ.get("HF_HUB_OFFLINE", "0") != "0"  # then load_dataset reads its cache, or says why not
        if not offline:
            probe(endpoint)
        import datasets  # seconds to import, hence after the probe
        import huggingface_hub
        from datasets.distributed import split_dataset_by_node

        # By default `datasets` sleeps 20 x 5 s between attempts, and reports each; --hub_timeout bounds them all.
        datasets.config.STREAMING_READ_MAX_RETRIES = datasets.config.STREAMING_OPEN_MAX_RETRIES = 3
        datasets.config.STREAMING_READ_RETRY_INTERVAL = datasets.config.STREAMING_OPEN_RETRY_INTERVAL = 2
        datasets.disable_progress_bars()
        datasets.utils.logging.set_verbosity_error()
        huggingface_hub.utils.logging.set_verbosity_error()

        revision = state["revision"] if state else None
        if revision is None and not offline:
            revision = huggingface_hub.HfApi(endpoint).dataset_info(dataset).sha
        stream = datasets.load_dataset(dataset, name=config, split=split, revision=revision, streaming=True)
        if worker[1] > 1:
            stream = split_dataset_by_node(stream, *worker)
        stream = stream.with_format("arrow")  # another object, whose state is the one that advances
        if state:
            stream.load_state_dict(state["stream"])
        return revision, stream

    return Source(f"hub:{dataset}:{config or ''}:{split}", open_, "", timeout=timeout, **more)

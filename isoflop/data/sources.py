"""Where rows of text come from: files, standard input, this Python's own sources, or the Hugging Face hub.

A source yields chunks (rows, state, share): rows are (text, split), where split is None if a hash of the text is to
decide, and text None if it can't be read; `state` is where the source stands after them, in a form that JSON can hold
and from which `open` goes on; `share` says how much of the source that is, from 0 to 1, or None. stream.py makes
documents of the rows. This script imports datasets and pyarrow only where they are used.
"""

from __future__ import annotations

import contextlib
import copy
import glob
import gzip
import hashlib
import io
import json
import os
import sys
import sysconfig
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from isoflop.data.downloads import OFFLINE, probe
from isoflop.data.errors import DataError

WAY_OUT = f"to work offline: {OFFLINE}"
Row = tuple[str | None, str | None]  # text, split
Chunk = tuple[list[Row], object, float | None]
PIECE_BYTES = 8192  # a single .txt file is cut into documents of about this size
CHUNK_DOCS, CHUNK_BYTES = 128, 2**22  # rows that a source hands over at a time, whichever comes first
STDLIB_LEFT_OUT = frozenset(
    "test tests idle_test idlelib lib2to3 turtledemo ensurepip encodings site-packages dist-packages".split()
)


@dataclass(frozen=True)
class Source:
    name: str
    open: Callable[[object], Iterator[Chunk]]  # of the state to go on from, None for the beginning
    fingerprint: str = ""  # changes when the files behind it do
    weight: float = 1.0
    timeout: float | None = None  # seconds without a chunk after which it is given up


def chunked(rows: Iterable[Row], begin: int, share: Callable[[], float | None] = lambda: None) -> Iterator[Chunk]:
    """Rows in chunks, with the number of rows read, counted from `begin`, as the state."""
    rows = iter(rows)
    while True:
        chunk, size = [], 0
        for row in rows:
            chunk.append(row)
            size += len(row[0]) if isinstance(row[0], str) else 0
            if len(chunk) >= CHUNK_DOCS or size >= CHUNK_BYTES:
                break
        if not chunk:
            return
        begin += len(chunk)
        yield chunk, begin, share()


# ----- files --------------------------------------------------------------------------------------------------------


def python_files(root: Path, left_out: frozenset[str]) -> list[tuple[str, Path]]:
    """(relative path, path) of the Python files below a folder, sorted."""
    found = []
    for folder, dirs, files in os.walk(root):
        dirs[:] = [d for d in dirs if d not in left_out and not d.startswith("config-")]
        paths = [Path(folder, f) for f in files if f.endswith(".py") and not f.startswith("_sysconfigdata")]
        found += [(p.relative_to(root).as_posix(), p) for p in paths]
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
    roots = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    found = [path for _, path in stdlib_files()]
    return found + [path for root in roots for _, path in python_files(Path(root), STDLIB_LEFT_OUT)]


def paths_source(name: str, files: list[Path], rows: Callable[[int], Iterator[Row]], worker=(0, 1), **more) -> Source:
    """A source whose state is the number of rows read: rows(n) begins after n of them."""
    rank, size = worker

    def open_(state):
        begin = state or 0
        for chunk, at, share in chunked(rows(begin), begin):
            yield [row for i, row in enumerate(chunk, at - len(chunk)) if i % size == rank], at, share

    return Source(name, open_, fingerprint(files), **more)


def fingerprint(files: Iterable[str | Path]) -> str:
    stats = [(str(path), os.stat(path)) for path in files]
    return hashlib.sha256(repr([(p, s.st_size, s.st_mtime_ns) for p, s in stats]).encode()).hexdigest()


def source_files(source: str | tuple[str, ...]) -> list[str]:
    """Files behind --source: paths, globs and folders, sorted; DataError if there are none, or of other kinds."""
    found, kinds = set(), ", ".join(READERS)
    for pattern in (source,) if isinstance(source, str) else source:
        hits = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        if os.path.isdir(pattern):
            hits = [str(p) for p in Path(pattern).rglob("*") if kind(p)]
        if not hits:
            raise DataError(
                f"--source {pattern}: neither fineweb, fineweb-edu, stdlib, python, hub:NAME, - (standard input), nor "
                f"a file, glob or folder of {kinds} files (.jsonl and .txt also as .gz and .zst)"
            )
        found.update(hits)
    wrong = sorted(path for path in found if not kind(path) or not os.path.isfile(path))
    if wrong:
        raise DataError(f"--source: {wrong[0]} is not a {kinds} file")
    for path in found:
        if path.endswith(".zst"):
            zstandard(path)
    return sorted(found)


def kind(path: str | Path) -> str | None:
    """.txt, .jsonl or .parquet, by the name, which may end in .gz or .zst where the file is compressed."""
    suffixes = Path(path).suffixes
    packed = suffixes[-1:] in ([".gz"], [".zst"])
    found = suffixes[-2:-1] if packed else suffixes[-1:]
    return found[0] if found and found[0] in READERS and not (packed and found[0] == ".parquet") else None


def files_source(source: str | tuple[str, ...], column: str, worker: tuple[int, int] = (0, 1), **more) -> Source:
    """txt, jsonl and parquet files; the state is [file, rows read in it].

    Worker r of n takes every n-th file, or every n-th row where there are fewer files than workers.
    """
    files, (rank, size) = source_files(source), worker
    piece_bytes = PIECE_BYTES if len(files) == 1 else sys.maxsize  # one text alone is cut up, or nothing could be split
    if len(files) >= size:
        files, rank, size = files[rank::size], 0, 1
    lengths = [os.path.getsize(path) for path in files]
    whole = max(1, sum(lengths))

    def open_(state):
        first, begin = state or (0, 0)
        for number in range(first, len(files)):
            path, part = files[number], 0.0

            def rows(path=path, begin=begin):
                nonlocal part
                for text, part in READERS[kind(path)](path, column, begin, piece_bytes):  # noqa: B007
                    yield text, None

            for chunk, at, _ in chunked(rows(), begin):
                mine = [row for i, row in enumerate(chunk, at - len(chunk)) if i % size == rank]
                yield mine, [number, at], (sum(lengths[:number]) + part * lengths[number]) / whole
            begin = 0

    return Source(source if isinstance(source, str) else " ".join(source), open_, fingerprint(files), **more)


@contextlib.contextmanager
def binary(path: str) -> Iterator[tuple[io.BufferedIOBase, Callable[[], float]]]:
    """The bytes of a file, uncompressed, and a function that says how much is read; DataError where it is torn."""
    size = max(1, os.path.getsize(path))
    errors: tuple = (EOFError, gzip.BadGzipFile, zlib.error)
    with open(path, "rb") as f:
        unpacked = f
        if path.endswith(".gz"):
            unpacked = gzip.GzipFile(fileobj=f)
        elif path.endswith(".zst"):
            errors += (zstandard(path).ZstdError,)
            unpacked = io.BufferedReader(Zst(f, zstandard(path)), 2**17)
        try:
            yield unpacked, lambda: f.tell() / size
        except errors as e:
            raise DataError(f"{path} can't be uncompressed ({e}); is it cut short?") from None


class Zst(io.RawIOBase):
    """A zstd file of any number of frames; EOFError where the last is cut short (zstandard's reader just ends)."""

    def __init__(self, file, module):
        self.file, self.module, self.frame, self.rest, self.out = file, module, None, b"", b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self.out:
            raw = self.rest or self.file.read(2**17)
            if not raw:
                if self.frame is not None:
                    raise EOFError("its last frame does not end")
                return 0
            self.frame = self.frame or self.module.ZstdDecompressor().decompressobj()
            self.out, self.rest = self.frame.decompress(raw), b""
            if self.frame.eof:
                self.rest, self.frame = self.frame.unused_data, None
        n = min(len(buffer), len(self.out))
        buffer[:n], self.out = self.out[:n], self.out[n:]
        return n


def zstandard(path: str):
    try:
        import zstandard
    except ImportError:
        raise DataError(f"{path} needs the zstandard package: pip install zstandard") from None
    return zstandard


def read_txt(path: str, column: str, skip: int, piece_bytes: int) -> Iterator[tuple[str | None, float]]:
    """The file's text, cut at line ends into pieces of piece_bytes or a line more."""
    lines, size = [], 0
    with binary(path) as (f, part):
        for line in f:
            lines.append(line)
            size += len(line)
            if size >= piece_bytes:
                if skip > 0:
                    skip -= 1
                else:
                    yield decode(b"".join(lines)), part()
                lines, size = [], 0
    if lines and skip <= 0:
        yield decode(b"".join(lines)), 1.0


def read_jsonl(path: str, column: str, skip: int, piece_bytes: int) -> Iterator[tuple[str | None, float]]:
    with binary(path) as (f, part):
        number = 0
        for number, line in enumerate(f, 1):
            if not line.strip():
                continue
            if skip > 0:
                skip -= 1
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as e:
                raise DataError(f"{path}, line {number}: not JSON ({e})") from None
            yield pick(row, column, f"{path}, line {number}"), part()


def read_parquet(path: str, column: str, skip: int, piece_bytes: int) -> Iterator[tuple[str | None, float]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as f:
            pick(dict.fromkeys(f.schema_arrow.names), column, path)
            groups, done, total = list(range(f.num_row_groups)), 0, max(1, f.metadata.num_rows)
            while groups and done + f.metadata.row_group(groups[0]).num_rows <= skip:
                done += f.metadata.row_group(groups.pop(0)).num_rows
            for group in groups:  # one at a time: the whole list would be kept in memory as it is read
                for batch in f.iter_batches(CHUNK_DOCS, [group], [column]):
                    for text in batch.column(0).to_pylist()[max(0, skip - done) :]:
                        yield text, done / total
                    done += len(batch)
    except (pyarrow.ArrowException, OSError) as e:
        raise DataError(f"{path}: {e}") from None


READERS = {".txt": read_txt, ".jsonl": read_jsonl, ".parquet": read_parquet}


def stdin_rows(skip: int) -> Iterator[Row]:
    """A document a line, without its line end; after an interruption the same lines have to come again."""
    for number, line in enumerate(sys.stdin.buffer):
        if number >= skip:
            yield decode(line.rstrip(b"\r\n")), None


def pick(row: dict, column: str, where: str):
    if not isinstance(row, dict) or column not in row:
        known = ", ".join(map(str, row)) if isinstance(row, dict) else ""
        raise DataError(f"{where}: no --text_column {column!r} among its columns ({known})")
    return row[column]


def decode(raw: bytes) -> str | None:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return None


# ----- the hub ------------------------------------------------------------------------------------------------------


def hub_source(dataset: str, config: str | None, split: str, column: str, timeout: float, worker=(0, 1), **more):
    """A dataset streamed from the hub, at the revision found first; the state is `datasets`' own, and that revision.

    Worker r of n takes its share of the dataset's files, or every n-th row where they don't divide evenly.
    """
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")

    def open_(state):
        try:
            offline = (
                os.environ.get("HF_HUB_OFFLINE", "0") != "0"
            )  # then load_dataset looks into its cache, or says why not
            if not offline:
                probe(endpoint)
            import datasets  # seconds to import, hence after the probe
            import huggingface_hub
            from datasets.distributed import split_dataset_by_node

            # By default `datasets` sleeps 20 x 5 s between attempts, and tells of each; --hub_timeout bounds them all.
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
            for table in stream.iter(batch_size=CHUNK_DOCS):
                pick(dict.fromkeys(table.column_names), column, dataset)
                rows = [(text, None) for text in table[column].to_pylist()]
                state = copy.deepcopy(stream.state_dict())  # datasets changes its own as it reads on
                yield rows, {"revision": revision, "stream": state}, None
        except DataError:
            raise
        except Exception as e:  # whatever datasets, huggingface_hub, httpx or pyarrow raise
            raise DataError(f"{dataset} from {endpoint} failed ({type(e).__name__}: {str(e)[:300]}); {WAY_OUT}") from e

    return Source(f"hub:{dataset}:{config or ''}:{split}", open_, "", timeout=timeout, **more)

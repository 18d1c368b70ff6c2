"""Rows of several sources as one stream of documents, with points from which it can be resumed.

A DocumentStream takes rows from its sources (sources.py) in the order that their weights ask for, drops the empty, the
unreadable and the duplicate, splits up very long ones, and assigns each to train or validation.
"""

import contextlib
import hashlib
import queue
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from isoflop.data.downloads import in_background
from isoflop.data.formats import Dropped
from isoflop.data.sources import WAY_OUT, Row, Source
from isoflop.data.tokenizer import MAX_CHARS
from isoflop.options import UserError

RESUME_BYTES = 2**26  # kept text between two points from which an interrupted preparation can be resumed
RECENT = 2**18  # hashes of documents kept in a Python set before they are sorted into an array


@dataclass
class Document:
    split: str
    text: str
    raw: bytes  # its utf-8 bytes
    source: int  # index of its source in the stream
    key: int | None  # hash of the whole text; None for all but the first part of a long one
    dropped: dict[str, int]  # rows dropped since the document before


@dataclass
class ResumePoint:
    """Between two documents: a DocumentStream that is given `position` continues here. It has no text."""

    position: dict
    dropped: dict[str, int] = field(default_factory=dict)
    text: None = None


class HashSet:
    """A set of 64-bit hashes: 8 bytes for each in a sorted array, and a Python set for the newest."""

    def __init__(self, keys: np.ndarray | None = None):
        self.sorted = np.empty(0, np.uint64) if keys is None else np.sort(keys)
        self.recent: set[int] = set()

    def add(self, key: int) -> bool:
        """Add a key; whether it was new."""
        if key in self.recent:
            return False
        at = np.searchsorted(self.sorted, np.uint64(key))
        if at < len(self.sorted) and self.sorted[at] == key:
            return False
        self.recent.add(key)
        if len(self.recent) >= max(RECENT, len(self.sorted) // 8):
            recent = np.fromiter(self.recent, np.uint64, len(self.recent))
            self.sorted = np.sort(np.concatenate([self.sorted, recent]))
            self.recent = set()
        return True


class SourceReader:
    """The rows of a source one by one, and the position in it.

    A position is {state, skip, bytes}: the source's state in front of a chunk, the rows of that chunk already read, and
    the bytes of text kept from this source so far.
    """

    def __init__(self, source: Source, position: dict | None):
        position = position or {"state": None, "skip": 0, "bytes": 0}
        self.source, self.state, self.bytes = source, position["state"], position["bytes"]
        self.rows, self.at = [], 0  # the current chunk, and the number of its rows that were read
        self.next_state, self.progress = self.state, None
        self.chunks = in_background(lambda: source.open(self.state), source.timeout)
        for _ in range(position["skip"]):
            self.row()

    def row(self) -> Row | None:
        """The next row, None at the end."""
        while self.at == len(self.rows):
            try:
                chunk = next(self.chunks, None)
            except queue.Empty:
                name, timeout = self.source.name, self.source.timeout
                raise UserError(f"{name} failed (no document for {timeout:g} s); {WAY_OUT}") from None
            if chunk is None:
                return None
            self.state, self.at = self.next_state, 0
            self.rows, self.next_state, self.progress = chunk
        self.at += 1
        return self.rows[self.at - 1]

    def position(self) -> dict:
        """The position behind the last row read."""
        if self.at == len(self.rows):
            return {"state": self.next_state, "skip": 0, "bytes": self.bytes}
        return {"state": self.state, "skip": self.at, "bytes": self.bytes}


class DocumentStream:
    """The documents to keep, up to `limit`, with a ResumePoint after every RESUME_BYTES of their text and at the end.

    Equal documents have equal hashes, and only the first is kept: no text is in both splits. A document longer than
    MAX_CHARS becomes several, all in its split. Memory is 8 bytes per document and a few chunks of text.

    Parameters
    ----------
    position : of a ResumePoint, to resume there; `keys` are then the hashes of the documents kept until then.
    strict : stop at a row that is no text, with a UserError, instead of dropping and counting it.
    """

    def __init__(self, sources: list[Source], val_fraction: float, limit: int | None,
                 position: dict | None = None, keys: np.ndarray | None = None, strict: bool = False):  # fmt: skip
        position = position or {"places": [None] * len(sources), "kept": 0}
        self.sources, self.val_fraction, self.limit = sources, val_fraction, limit
        self.positions, self.kept, self.seen = position["places"], position["kept"], HashSet(keys)
        self.progress = None  # of the source read last
        self.strict, self.rows = strict, 0  # rows read by this process
        self.dropped = Counter()  # of these, by reason
        self.first: dict[str, str] = {}  # reason -> where the first row dropped for it is

    def __iter__(self) -> Iterator[Document | ResumePoint]:
        readers = []
        for source, position in zip(self.sources, self.positions, strict=True):
            readers.append(SourceReader(source, position))
        with contextlib.ExitStack() as stack:
            for reader in readers:
                stack.callback(reader.chunks.close)
            yield from self.documents(readers)

    def documents(self, readers: list[SourceReader]) -> Iterator[Document | ResumePoint]:
        unfinished = list(range(len(readers)))  # indices of the sources that have rows left
        dropped = Counter()  # since the last document
        size = 0  # bytes kept since the last resume point
        while unfinished and (self.limit is None or self.kept < self.limit):
            # Read from the source that is furthest behind its share of the bytes.
            i = min(unfinished, key=lambda i: readers[i].bytes / self.sources[i].weight)
            row = readers[i].row()
            if row is None:
                unfinished.remove(i)
                continue
            self.rows += 1

            # Drop what is not text, blank, or known.
            text, split = row
            if not isinstance(text, str):
                dropped[self.not_text(text)] += 1
                continue
            text, raw = clean(text)
            key = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
            if not text or text.isspace():
                self.dropped["empty"] += 1
                dropped["empty"] += 1
                continue
            if not self.seen.add(key):
                self.dropped["duplicate"] += 1
                dropped["duplicate"] += 1
                continue

            # Keep the rest, in the split that the source or else the hash says.
            self.kept += 1
            readers[i].bytes += len(raw)
            size += len(raw)
            self.progress = readers[i].progress
            if split is None:
                split = "val" if key < self.val_fraction * 2**64 else "train"
            for part in split_long(text):
                yield Document(split, part, part.encode(), i, key, dict(dropped))
                key, dropped = None, Counter()
            if size >= RESUME_BYTES:
                yield ResumePoint(self.position(readers))
                size = 0
        yield ResumePoint(self.position(readers) | {"end": not unfinished}, dict(dropped))

    def not_text(self, text: Dropped | None) -> str:
        """Count a row that is no text; the reason, under which meta.json counts it."""
        reason, where = "not_text", ""
        if text is not None:
            reason, where = text.reason, text.where
        if self.strict:
            raise UserError(f"{where or 'a row'}: {reason}; without --strict such rows are dropped and counted")
        self.dropped[reason] += 1
        self.first.setdefault(reason, where)
        return reason

    def what_was_dropped(self) -> str:
        """Of the rows that this process read, in words: "30 of 120 rows were dropped: 30 null"; empty for none."""
        if not self.dropped:
            return ""
        reasons = [f"{n:,} {named(reason)}" for reason, n in self.dropped.most_common(5)]
        first = next((where for where in self.first.values() if where), "")
        text = f"{self.dropped.total():,} of {self.rows:,} rows were dropped: {', '.join(reasons)}"
        return f"{text} (first: {first})" if first else text

    def position(self, readers: list[SourceReader]) -> dict:
        return {"places": [reader.position() for reader in readers], "kept": self.kept}


def named(reason: str) -> str:
    """A reason of meta.json for people."""
    return {"not_text": "not utf-8"}.get(reason, reason)


def clean(text: str) -> tuple[str, bytes]:
    """The text and its utf-8 bytes; lone surrogates, possible in JSON, are joined to pairs or replaced."""
    try:
        return text, text.encode("utf-8")
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text, text.encode("utf-8")


def split_long(text: str) -> Iterator[str]:
    """A text in parts of at most MAX_CHARS, cut after a line where one ends in the last half, else after a word."""
    start = 0
    while start < len(text):
        end = start + MAX_CHARS
        if end < len(text):
            for mark in "\n ":
                cut = text.rfind(mark, start + MAX_CHARS // 2, end) + 1
                if cut:
                    end = cut
                    break
        yield text[start:end]
        start = end

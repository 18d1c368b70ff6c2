"""Rows of several sources as one stream of documents that knows where it stands, and can go on from there.

A Stream takes rows from its sources (sources.py) in the order that their weights ask for, drops what is empty,
unreadable or a duplicate, cuts up what is very long, and puts the rest on one side of the split.
"""

from __future__ import annotations

import contextlib
import hashlib
import queue
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from isoflop.data.downloads import in_background
from isoflop.data.errors import MAX_CHARS, DataError
from isoflop.data.sources import WAY_OUT, Row, Source

MARK_BYTES = 2**26  # kept text between two places from which an interrupted preparation can go on
RECENT = 2**18  # hashes of documents kept in a Python set before they are sorted into an array


@dataclass
class Document:
    split: str
    text: str
    raw: bytes  # its utf-8 bytes
    source: int  # which of the stream's sources
    key: int | None  # hash of the whole text; None for all but the first piece of a long one
    dropped: dict[str, int]  # rows lost since the document before


@dataclass
class Mark:
    """Between two documents: `position` says where a Stream goes on from here. A mark has no text."""

    position: dict
    dropped: dict[str, int] = field(default_factory=dict)
    text: None = None


class Seen:
    """A set of 64-bit hashes that takes 8 bytes for each, and a Python set for the newest ones."""

    def __init__(self, keys: np.ndarray | None = None):
        self.sorted = np.sort(keys) if keys is not None else np.empty(0, np.uint64)
        self.recent: set[int] = set()

    def add(self, key: int) -> bool:
        """Whether the key is new; it is not afterwards."""
        if key in self.recent:
            return False
        at = np.searchsorted(self.sorted, np.uint64(key)) if len(self.sorted) else 0
        if at < len(self.sorted) and self.sorted[at] == key:
            return False
        self.recent.add(key)
        if len(self.recent) >= max(RECENT, len(self.sorted) // 8):
            recent = np.fromiter(self.recent, np.uint64, len(self.recent))
            self.sorted, self.recent = np.sort(np.concatenate([self.sorted, recent])), set()
        return True


class Cursor:
    """A source being read, and the place in it."""

    def __init__(self, source: Source, place: dict | None):
        place = place or {"state": None, "skip": 0, "bytes": 0}
        self.source, self.state, self.bytes = source, place["state"], place["bytes"]
        self.rows, self.at, self.next_state, self.share = [], 0, self.state, None
        self.chunks = in_background(lambda: source.open(self.state), source.timeout)
        for _ in range(place["skip"]):
            self.row()

    def row(self) -> Row | None:
        """The next row, None at the end; before it, `place` stands in front of it, after it behind."""
        while self.at == len(self.rows):
            try:
                chunk = next(self.chunks, None)
            except queue.Empty:
                name, patience = self.source.name, self.source.timeout
                raise DataError(f"{name} failed (no document for {patience:g} s); {WAY_OUT}") from None
            if chunk is None:
                return None
            self.state, self.at = self.next_state, 0
            self.rows, self.next_state, self.share = chunk
        self.at += 1
        return self.rows[self.at - 1]

    def place(self) -> dict:
        if self.at == len(self.rows):
            return {"state": self.next_state, "skip": 0, "bytes": self.bytes}
        return {"state": self.state, "skip": self.at, "bytes": self.bytes}


class Stream:
    """The documents to keep, up to `limit`, with a Mark after every MARK_BYTES of their text, and one at the end.

    Equal documents have equal hashes, and only the first is kept: no text lies on both sides of the split. A document
    longer than MAX_CHARS comes in pieces, all on its side. Memory is 8 bytes per document and a few chunks of text.

    Parameters
    ----------
    position : from a Mark, to go on from there; `keys` are then the hashes of the documents kept until then.
    """

    def __init__(self, sources: list[Source], val_fraction: float, limit: int | None,
                 position: dict | None = None, keys: np.ndarray | None = None):  # fmt: skip
        position = position or {"places": [None] * len(sources), "kept": 0}
        self.sources, self.val_fraction, self.limit = sources, val_fraction, limit
        self.places, self.kept, self.seen = position["places"], position["kept"], Seen(keys)
        self.share = None

    def __iter__(self) -> Iterator[Document | Mark]:
        cursors = [Cursor(s, place) for s, place in zip(self.sources, self.places, strict=True)]
        with contextlib.ExitStack() as stack:
            for cursor in cursors:
                stack.callback(cursor.chunks.close)
            yield from self.documents(cursors)

    def documents(self, cursors: list[Cursor]) -> Iterator[Document | Mark]:
        alive, dropped, since = list(range(len(cursors))), {}, 0
        while alive and (self.limit is None or self.kept < self.limit):
            # The one that is furthest behind its share of the bytes.
            i = min(alive, key=lambda i: cursors[i].bytes / self.sources[i].weight) if len(alive) > 1 else alive[0]
            row = cursors[i].row()
            if row is None:
                alive.remove(i)
                continue
            text, split = row
            if not isinstance(text, str):
                dropped["not_text"] = dropped.get("not_text", 0) + 1
                continue
            text, raw = clean(text)
            key = int.from_bytes(hashlib.blake2b(raw, digest_size=8).digest(), "little")
            blank = not text or text.isspace()
            if blank or not self.seen.add(key):
                why = "empty" if blank else "duplicate"
                dropped[why] = dropped.get(why, 0) + 1
                continue
            self.kept += 1
            cursors[i].bytes += len(raw)
            since += len(raw)
            self.share = cursors[i].share
            split = split or ("val" if key < self.val_fraction * 2**64 else "train")
            for piece in [text] if len(text) <= MAX_CHARS else pieces(text):
                yield Document(split, piece, raw if piece is text else piece.encode(), i, key, dropped)
                key, dropped = None, {}
            if since >= MARK_BYTES:
                yield Mark(self.position(cursors))
                since = 0
        yield Mark(self.position(cursors) | {"end": not alive}, dropped)

    def position(self, cursors: list[Cursor]) -> dict:
        return {"places": [cursor.place() for cursor in cursors], "kept": self.kept}


def clean(text: str) -> tuple[str, bytes]:
    """The text and its utf-8 bytes; lone surrogates, possible in JSON, are joined to pairs or replaced."""
    try:
        return text, text.encode("utf-8")
    except UnicodeEncodeError:
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return text, text.encode("utf-8")


def pieces(text: str) -> Iterator[str]:
    """A long text in pieces of at most MAX_CHARS, cut after a line where there is one in the last half, else a word."""
    start = 0
    while start < len(text):
        end = start + MAX_CHARS
        if end < len(text):
            cuts = (text.rfind(mark, start + MAX_CHARS // 2, end) + 1 for mark in "\n ")
            end = next((cut for cut in cuts if cut), end)
        yield text[start:end]
        start = end

"""A data folder while it is made: token files that grow, and places from which a killed preparation goes on.

The work happens in a stage, a hidden folder beside the one to be made, that is renamed when all is whole. At each Mark
of the stream (stream.py) what was written is put on the disk, then stage/state.json, by a rename. A later process cuts
the files back to what state.json says and goes on from there, so that it ends with the bytes of an undisturbed run. The
state stays in the finished folder: more tokens are appended in the same way, in a stage of links to the shards.

    new/train_000000.bin ...   tokens behind a 256-byte header each, closed after the document that fills the shard
    new/documents.bin          a 64-bit hash per document kept, in order: what tells duplicates, and what --verify needs
    new/tokenizer.json, new/state.json, and in the end new/meta.json
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from isoflop.data.documents import Document, Mark
from isoflop.data.errors import DataError
from isoflop.data.reader import HEADER_BYTES, SPLITS, header, shards

STATE = 1  # raise it when an older state.json must not be gone on from
WRITE_BYTES = 2**20


class Splits:
    """The token files of both splits, the documents' hashes, and the counts that go with them."""

    def __init__(self, folder: Path, meta: dict, shard_tokens: int, about: dict, n_sources: int):
        """about: what state.json is to say beside the state (settings, fingerprints of the sources)."""
        self.folder, self.meta, self.shard_tokens, self.about = folder, meta, shard_tokens, about
        self.done: dict[str, list[dict]] = {split: [] for split in SPLITS}  # whole shards: {file, tokens, sha256}
        self.open: dict[str, Shard] = {}
        counts = {"tokens": 0, "documents": 0, "bytes": 0}
        self.counts = {split: dict(counts) for split in SPLITS}
        self.by_source = [dict(counts) for _ in range(n_sources)]
        self.dropped = {"duplicate": 0, "empty": 0, "not_text": 0}
        self.segments: list[str] = []  # sha256 of the text between two marks
        self.corpus, self.keys, self.since, self.again = hashlib.sha256(), 0, 0, 0
        self.position: dict | None = None  # of the last mark
        self.ended, self.trailing = False, {}  # whether the sources are used up, and what was dropped at their end
        self.documents = open(folder / "documents.bin", "ab")

    @property
    def tokens(self) -> int:
        return sum(counts["tokens"] for counts in self.counts.values())

    def add(self, doc: Document, ids: np.ndarray) -> bool:
        """Write a document, unless it is there from before `restore`: then its text is only hashed again (False)."""
        self.corpus.update(f"{doc.split} {len(doc.raw)}\n".encode() + doc.raw)
        self.since += 1
        if self.again:
            self.again -= 1
            return False
        shard = self.open.get(doc.split)
        if shard is None:
            name = f"{doc.split}_{len(self.done[doc.split]):06d}.bin"
            shard = self.open[doc.split] = Shard(self.folder / name, header(self.meta, doc.split))
        shard.add(ids)
        for counts in (self.counts[doc.split], self.by_source[doc.source]):
            counts["tokens"] += len(ids)
            counts["documents"] += 1
            counts["bytes"] += len(doc.raw)
        if doc.key is not None:
            self.documents.write(doc.key.to_bytes(8, "little"))
            self.keys += 1
        for why, n in doc.dropped.items():
            self.dropped[why] += n
        if shard.tokens >= self.shard_tokens:
            self.done[doc.split].append(self.open.pop(doc.split).close())
        return True

    def mark(self, mark: Mark) -> None:
        """Put all that was written on the disk, then the state from which to go on behind it."""
        if "end" in mark.position:
            self.ended, self.trailing = mark.position["end"], mark.dropped
            return
        self.segments.append(self.corpus.hexdigest())
        self.corpus, self.since, self.position = hashlib.sha256(), 0, mark.position
        self.save()

    def save(self) -> None:
        for shard in self.open.values():
            shard.flush()
        self.documents.flush()
        os.fsync(self.documents.fileno())
        write_json(self.folder / "state.json", self.state())

    def state(self) -> dict:
        return self.about | {
            "state": STATE,
            "ended": self.ended,
            "position": self.position,
            "since": self.since,  # documents written since the position
            "done": self.done,
            "open": {split: {"file": shard.path.name, "tokens": shard.tokens} for split, shard in self.open.items()},
            "counts": self.counts,
            "by_source": self.by_source,
            "dropped": self.dropped,
            "segments": self.segments,
            "keys": self.keys,
        }

    def restore(self, state: dict) -> None:
        """Cut the files back to a state; ValueError, OSError, KeyError or TypeError where they don't hold it."""
        self.done, self.counts, self.by_source = state["done"], state["counts"], state["by_source"]
        self.dropped, self.segments, self.position = state["dropped"], state["segments"], state["position"]
        self.keys, self.again = state["keys"], state["since"]
        self.documents.close()
        cut(self.folder / "documents.bin", 8 * self.keys)
        self.documents = open(self.folder / "documents.bin", "ab")
        for split, shard in state["open"].items():
            self.open[split] = Shard(self.folder / shard["file"], header(self.meta, split), shard["tokens"],
                                     np.dtype(self.meta["dtype"]))  # fmt: skip
        whole = {shard["file"] for shards in self.done.values() for shard in shards}
        whole |= {shard.path.name for shard in self.open.values()}
        for path in self.folder.glob("*_*.bin"):
            if path.name not in whole:
                path.unlink()

    def finish(self) -> dict:
        """Close the files; the counts and hashes for meta.json."""
        self.save()
        self.documents.close()
        found = {}
        for split in SPLITS:
            shards = self.done[split] + ([self.open[split].close()] if split in self.open else [])
            counts = self.counts[split]
            counts |= {"bytes_per_token": counts["bytes"] / max(1, counts["tokens"])}
            if len(shards) == 1:  # a folder of one shard has plain names
                os.replace(self.folder / shards[0]["file"], self.folder / f"{split}.bin")
                found[split] = counts | {"sha256": shards[0]["sha256"]}
            else:
                found[split] = counts | {"shards": shards}
        dropped = {why: n + self.trailing.get(why, 0) for why, n in self.dropped.items()}
        return found | {"corpus_sha256": self.corpus_sha256(), "dropped": dropped}

    def corpus_sha256(self) -> str:
        """Of all text; where there were marks, of the hashes of the parts between them."""
        last = self.corpus.hexdigest()
        return hashlib.sha256("".join([*self.segments, last]).encode()).hexdigest() if self.segments else last


class Shard:
    """One token file as it grows; memory does not grow with it."""

    def __init__(self, path: Path, head: bytes, tokens: int = 0, dtype: np.dtype | None = None):
        self.path, self.tokens, self.sha256 = path, tokens, hashlib.sha256()
        if tokens:
            cut(path, HEADER_BYTES + tokens * dtype.itemsize)
            with open(path, "rb") as f:
                if f.read(HEADER_BYTES) != head:
                    raise ValueError(f"{path.name} has another header")
                self.sha256.update(head)
                while raw := f.read(WRITE_BYTES):
                    self.sha256.update(raw)
        self.file = open(path, "ab" if tokens else "wb", WRITE_BYTES)
        if not tokens:
            self.write(head)

    def write(self, raw) -> None:
        self.file.write(raw)
        self.sha256.update(raw)

    def add(self, ids: np.ndarray) -> None:
        self.write(ids.data)
        self.tokens += len(ids)

    def flush(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def close(self) -> dict:
        self.flush()
        self.file.close()
        return {"file": self.path.name, "tokens": self.tokens, "sha256": self.sha256.hexdigest()}


def cut(path: Path, size: int) -> None:
    """Shorten a file to what it had; ValueError where it is shorter."""
    if path.stat().st_size < size:
        raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes instead of {size:,}")
    os.truncate(path, size)


def write_json(path: Path, value) -> None:
    """Under another name, on the disk, renamed: a reader sees the old file or the new one."""
    part = path.with_name(path.name + ".part")
    with open(part, "w") as f:
        f.write(json.dumps(value, indent=1) + "\n")
        f.flush()
        os.fsync(f.fileno())
    os.replace(part, path)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk, so that a power cut can't leave a whole name with half its bytes."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# ----- the stage ----------------------------------------------------------------------------------------------------


def stage_of(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


@contextlib.contextmanager
def stage(out: Path) -> Iterator[Path]:
    """The hidden folder in which `out` is made, ours alone until the end of the block; DataError where it is another's.

    Where the block fails it is removed, unless it has a state to go on from; so is what a kill has left, later.
    """
    path = stage_of(out)
    path.mkdir(parents=True, exist_ok=True)
    lock = open(path / "lock", "w")
    try:
        try:
            import fcntl  # not on Windows: there two processes must not make one folder

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # let go of by the system when the process ends, however
        except ImportError:
            pass
        except BlockingIOError:
            raise DataError(f"--out_dir {out}: another process is making it; wait for it, or choose another") from None
        put_back(path, out)
        try:
            yield path
        finally:
            put_back(path, out)
            if not (path / "new" / "state.json").exists():
                shutil.rmtree(path, ignore_errors=True)
    finally:
        lock.close()


def put_back(path: Path, out: Path) -> None:
    """An old folder whose place is still empty, because of a kill between two renames, goes back to it."""
    if (path / "old").exists():
        if out.exists():
            shutil.rmtree(path / "old")
        else:
            os.rename(path / "old", out)


def take_place(path: Path, out: Path) -> None:
    """The new folder takes the place of `out`; the old one is set aside between two renames and deleted last."""
    new, old = path / "new", path / "old"
    for file in (*new.iterdir(), new):
        sync(file)
    if out.exists():  # `prepare` has made sure that this is a data folder to replace, or empty
        os.rename(out, old)
    os.rename(new, out)
    sync(out.parent)


def links(out: Path, new: Path, state: dict) -> None:
    """`new` as if it had just made what `out` holds: whole shards are linked, files that will grow are copied."""
    names = {f"{split}.bin": f"{split}_000000.bin" for split in SPLITS}
    whole = {shard["file"] for shards in state["done"].values() for shard in shards}
    new.mkdir()
    for path in out.iterdir():
        if path.name in ("meta.json", "state.json", "lengths.png"):
            continue
        name = names.get(path.name, path.name)
        try:
            if name not in whole:
                raise OSError("it will grow")
            os.link(path, new / name)
        except OSError:
            shutil.copyfile(path, new / name)
    write_json(new / "state.json", state)


# ----- several workers ----------------------------------------------------------------------------------------------


def join(parts: list[Path], new: Path) -> dict:
    """Link the files of the workers' folders into one; the counts and hashes for its meta.json."""
    new.mkdir()
    metas = [json.loads((part / "meta.json").read_text()) for part in parts]
    meta = {k: v for k, v in metas[0].items() if k not in ("sources", "validation")}
    if len({m["tokenizer_sha256"] for m in metas}) > 1:
        raise DataError(
            f"{parts[0].parent}: the workers' tokenizers differ; remove {parts[0]} and the like, start again"
        )
    for split in SPLITS:
        found = []
        for rank, (part, m) in enumerate(zip(parts, metas, strict=True)):
            for i, shard in enumerate(shards(m, split)):
                name = f"{split}_{rank:03d}_{i:06d}.bin"
                os.link(part / shard["file"], new / name)
                found.append(shard | {"file": name})
        counts = {k: sum(m[split][k] for m in metas) for k in ("tokens", "documents", "bytes")}
        meta[split] = counts | {"bytes_per_token": counts["bytes"] / counts["tokens"], "shards": found}
    keys = np.concatenate([np.fromfile(part / "documents.bin", "<u8") for part in parts])
    keys.tofile(new / "documents.bin")
    shutil.copyfile(parts[0] / "tokenizer.json", new / "tokenizer.json")
    meta["dropped"] = {why: sum(m["dropped"][why] for m in metas) for why in meta["dropped"]}
    meta["duplicates_between_workers"] = len(keys) - len(np.unique(keys))
    meta["corpus_sha256"] = hashlib.sha256("".join(m["corpus_sha256"] for m in metas).encode()).hexdigest()
    return meta

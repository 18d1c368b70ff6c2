"""A data folder while it is made: token files that grow, and states from which a killed preparation is resumed.

The work happens in a hidden staging folder beside the folder to be made, which is renamed when all is complete. At each
ResumePoint of the stream (documents.py) all written bytes are put on the disk, then stage/new/state.json. A later
process truncates the files to what state.json says and continues there, so that it ends with the bytes of an
undisturbed run. The state stays in the finished folder: more tokens are appended in the same way, in a staging folder
of links to the shards.

    new/train_000000.bin ...   tokens behind a 256-byte header each, closed after the document that fills the shard
    new/documents.bin          a 64-bit hash per document kept, in order: to find duplicates, and for --verify
    new/tokenizer.json, new/state.json, and in the end new/meta.json
"""

import contextlib
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from isoflop.data.documents import Document, ResumePoint
from isoflop.data.reader import HEADER_BYTES, SPLITS, header, shards
from isoflop.files import atomic, folder_lock, fsync, naming, read_json, write_json
from isoflop.options import UserError

STATE_VERSION = 1  # raise it when an older state.json must not be resumed from
WRITE_BYTES = 2**20


class SplitWriter:
    """The token files of both splits, the documents' hashes, and the counts that go with them.

    Parameters
    ----------
    meta : the entries of meta.json that the files' headers repeat.
    identity : {settings, fingerprints of the sources}, kept in state.json beside the state.
    """

    def __init__(self, folder: Path, meta: dict, shard_tokens: int, identity: dict, n_sources: int):
        self.folder, self.meta, self.shard_tokens, self.identity = folder, meta, shard_tokens, identity
        self.done: dict[str, list[dict]] = {split: [] for split in SPLITS}  # complete shards: {file, tokens, sha256}
        self.open: dict[str, Shard] = {}
        counts = {"tokens": 0, "documents": 0, "bytes": 0}
        self.counts = {split: dict(counts) for split in SPLITS}
        self.by_source = [dict(counts) for _ in range(n_sources)]
        self.dropped = {"duplicate": 0, "empty": 0, "not_text": 0}
        self.position: dict | None = None  # of the last resume point
        self.segments: list[str] = []  # sha256 of the text between two resume points
        self.corpus = hashlib.sha256()  # of the text since the last one
        self.since = 0  # documents since the last one
        self.written = 0  # documents that the stream repeats after a restore: written already
        self.keys = 0  # hashes in documents.bin
        self.ended = False  # whether the sources are used up
        self.dropped_at_end = {}
        self.documents = open(folder / "documents.bin", "ab")

    @property
    def tokens(self) -> int:
        return sum(counts["tokens"] for counts in self.counts.values())

    def add(self, doc: Document, ids: np.ndarray) -> bool:
        """Write a document; False where it was written before the restore and only its text is hashed again."""
        self.corpus.update(f"{doc.split} {len(doc.raw)}\n".encode() + doc.raw)
        self.since += 1
        if self.written:
            self.written -= 1
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
            with naming(self.documents.name):
                self.documents.write(doc.key.to_bytes(8, "little"))
            self.keys += 1
        for reason, n in doc.dropped.items():
            self.dropped[reason] = self.dropped.get(reason, 0) + n
        if shard.tokens >= self.shard_tokens:
            self.done[doc.split].append(self.open.pop(doc.split).close())
        return True

    def resume_point(self, point: ResumePoint) -> None:
        """Put all that was written on the disk, then the state behind it."""
        if "end" in point.position:
            self.ended, self.dropped_at_end = point.position["end"], point.dropped
            return
        self.segments.append(self.corpus.hexdigest())
        self.corpus, self.since, self.position = hashlib.sha256(), 0, point.position
        self.save()

    def save(self) -> None:
        for shard in self.open.values():
            shard.flush()
        with naming(self.documents.name):
            self.documents.flush()
            os.fsync(self.documents.fileno())
        write_json(self.folder / "state.json", self.state(), indent=1)

    def state(self) -> dict:
        return self.identity | {
            "state": STATE_VERSION,
            "ended": self.ended,
            "position": self.position,
            "since": self.since,
            "done": self.done,
            "open": {split: {"file": shard.path.name, "tokens": shard.tokens} for split, shard in self.open.items()},
            "counts": self.counts,
            "by_source": self.by_source,
            "dropped": self.dropped,
            "segments": self.segments,
            "keys": self.keys,
        }

    def restore(self, state: dict) -> None:
        """Truncate the files to a state; ValueError, OSError, KeyError or TypeError where they don't hold it."""
        self.done, self.counts, self.by_source = state["done"], state["counts"], state["by_source"]
        self.dropped, self.segments, self.position = state["dropped"], state["segments"], state["position"]
        self.keys, self.written = state["keys"], state["since"]
        for split in SPLITS:  # ended in finish(): the plain name is the last that a shard gets
            if (self.folder / f"{split}.bin").exists():
                os.replace(self.folder / f"{split}.bin", self.folder / f"{split}_000000.bin")
        self.documents.close()
        truncate(self.folder / "documents.bin", 8 * self.keys)
        self.documents = open(self.folder / "documents.bin", "ab")
        dtype = np.dtype(self.meta["dtype"])
        for split, shard in state["open"].items():
            path = self.folder / shard["file"]
            self.open[split] = Shard(path, header(self.meta, split), shard["tokens"], dtype)

        # Remove shards begun behind the state, and what a kill left of a JSON file.
        kept = {shard.path.name for shard in self.open.values()}
        for split in SPLITS:
            kept |= {shard["file"] for shard in self.done[split]}
        for path in (*self.folder.glob("*_*.bin"), *self.folder.glob(".*.part")):
            if path.name not in kept:
                path.unlink()

    def finish(self) -> dict:
        """Close the files; the counts and hashes for meta.json."""
        self.save()
        self.documents.close()
        found = {}
        for split in SPLITS:
            files = list(self.done[split])
            if split in self.open:
                files.append(self.open[split].close())
            counts = self.counts[split]
            counts |= {"bytes_per_token": counts["bytes"] / max(1, counts["tokens"])}
            if len(files) == 1:  # a folder of one shard has plain names
                os.replace(self.folder / files[0]["file"], self.folder / f"{split}.bin")
                found[split] = counts | {"sha256": files[0]["sha256"]}
            else:
                found[split] = counts | {"shards": files}
        dropped = dict(Counter(self.dropped_at_end) + Counter(self.dropped))
        dropped = {"duplicate": 0, "empty": 0, "not_text": 0} | dropped
        return found | {"corpus_sha256": self.corpus_sha256(), "dropped": dropped}

    def corpus_sha256(self) -> str:
        """Of all text; where there were resume points, of the hashes of the segments between them."""
        last = self.corpus.hexdigest()
        if not self.segments:
            return last
        return hashlib.sha256("".join([*self.segments, last]).encode()).hexdigest()


class Shard:
    """One token file as it grows; memory does not grow with it."""

    def __init__(self, path: Path, head: bytes, tokens: int = 0, dtype: np.dtype | None = None):
        """tokens : those that the file holds already, as dtype; what is behind them is cut off."""
        self.path, self.tokens, self.sha256 = path, tokens, hashlib.sha256()
        if tokens == 0:
            self.file = open(path, "wb", WRITE_BYTES)
            self.write(head)
            return
        truncate(path, HEADER_BYTES + tokens * dtype.itemsize)
        with open(path, "rb") as f:
            if f.read(HEADER_BYTES) != head:
                raise ValueError(f"{path.name} has another header")
            self.sha256.update(head)
            while raw := f.read(WRITE_BYTES):
                self.sha256.update(raw)
        self.file = open(path, "ab", WRITE_BYTES)

    def write(self, raw) -> None:
        with naming(self.path):
            self.file.write(raw)
        self.sha256.update(raw)

    def add(self, ids: np.ndarray) -> None:
        self.write(ids.data)
        self.tokens += len(ids)

    def flush(self) -> None:
        with naming(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())

    def close(self) -> dict:
        self.flush()
        self.file.close()
        return {"file": self.path.name, "tokens": self.tokens, "sha256": self.sha256.hexdigest()}


def truncate(path: Path, size: int) -> None:
    """Shorten a file to an earlier size; ValueError where it is shorter than that."""
    if path.stat().st_size < size:
        raise ValueError(f"{path.name} has {path.stat().st_size:,} bytes instead of {size:,}")
    os.truncate(path, size)


# ----- the staging folder -----


def staging_folder(out: Path) -> Path:
    return out.with_name(f".{out.name}.partial")


@contextlib.contextmanager
def staging(out: Path) -> Iterator[Path]:
    """The hidden folder in which `out` is made, locked until the end of the block.

    Where the block fails the folder is removed, unless it has a state to resume from. UserError where another process
    makes the same folder.
    """
    stage = staging_folder(out)
    with folder_lock(stage, "data.py", shown=out, name="lock"):
        restore_old(stage, out)
        try:
            yield stage
        finally:
            restore_old(stage, out)
            if not (stage / "new" / "state.json").exists():
                shutil.rmtree(stage, ignore_errors=True)


def restore_old(stage: Path, out: Path) -> None:
    """Put the old folder back where a kill between the two renames of `publish` left its place empty."""
    old = stage / "old"
    if old.exists():
        if out.exists():
            shutil.rmtree(old)
        else:
            os.rename(old, out)


def publish(stage: Path, out: Path) -> None:
    """The new folder takes the place of `out`; the old one is set aside between two renames and deleted last."""
    new = stage / "new"
    for path in (*new.iterdir(), new):
        fsync(path)
    if out.exists():  # `prepare` has made sure that this is a data folder to replace, or empty
        os.rename(out, stage / "old")
    os.rename(new, out)
    fsync(out.parent)


def stage_append(out: Path, new: Path, state: dict) -> None:
    """Make `new` as if it had just written `out`: complete shards are linked, files that will grow are copied."""
    names = {f"{split}.bin": f"{split}_000000.bin" for split in SPLITS}
    complete = set()
    for split in SPLITS:
        complete |= {shard["file"] for shard in state["done"][split]}
    new.mkdir()
    for path in out.iterdir():
        if path.name in ("meta.json", "state.json", "lengths.png"):
            continue
        target = new / names.get(path.name, path.name)
        linked = False
        if target.name in complete:
            with contextlib.suppress(OSError):  # a file system without links
                os.link(path, target)
                linked = True
        if not linked:
            shutil.copyfile(path, target)
    write_json(new / "state.json", state, indent=1)


# ----- several workers -----


def join_workers(parts: list[Path], new: Path) -> dict:
    """Link the files of the workers' folders into one; the counts and hashes for its meta.json."""
    new.mkdir()
    metas = [read_json(part / "meta.json") for part in parts]
    if len({m["tokenizer_sha256"] for m in metas}) > 1:
        raise UserError(f"{parts[0].parent}: the workers' tokenizers differ; remove {parts[0]} and the like, try again")
    meta = {k: v for k, v in metas[0].items() if k not in ("sources", "validation")}

    # Token files, with the worker's number in their names.
    for split in SPLITS:
        files = []
        for rank, (part, worker_meta) in enumerate(zip(parts, metas, strict=True)):
            for i, shard in enumerate(shards(worker_meta, split)):
                name = f"{split}_{rank:03d}_{i:06d}.bin"
                os.link(part / shard["file"], new / name)
                files.append(shard | {"file": name})
        counts = {}
        for unit in ("tokens", "documents", "bytes"):
            counts[unit] = sum(m[split][unit] for m in metas)
        meta[split] = counts | {"bytes_per_token": counts["bytes"] / counts["tokens"], "shards": files}

    # The rest.
    keys = np.concatenate([np.fromfile(part / "documents.bin", "<u8") for part in parts])
    with atomic(new / "documents.bin", "wb") as f:
        f.write(keys.data)
    shutil.copyfile(parts[0] / "tokenizer.json", new / "tokenizer.json")
    dropped = dict.fromkeys(meta["dropped"], 0)
    for worker_meta in metas:
        for reason, n in worker_meta["dropped"].items():
            dropped[reason] = dropped.get(reason, 0) + n
    meta["dropped"] = dropped
    notes = list(dict.fromkeys(note for m in metas for note in m.get("notes", [])))
    if notes:
        meta["notes"] = notes
    meta["duplicates_between_workers"] = len(keys) - len(np.unique(keys))
    meta["corpus_sha256"] = hashlib.sha256("".join(m["corpus_sha256"] for m in metas).encode()).hexdigest()
    return meta

"""What a data folder holds (python data.py --info DIR) and whether it is what it was (--verify DIR)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from isoflop.data.errors import MAX_CHARS, DataError
from isoflop.data.loader import documents
from isoflop.data.reader import SPLITS, TokenData, shards
from isoflop.data.tokenizer import load_tokenizer

VAL_TOKENS = 2**17  # the range that train.py evaluates on, by default
WINDOW = 256  # tokens; neighbours in a text are alike, so the spread is taken between stretches of it
COUNTED = 2**24  # train tokens that the unigram model is made of
SHOWN = 300  # characters of the first document
BLOCK = 2**20


# ----- how well the validation range samples the text ---------------------------------------------------------------


def sampling_error(opened: TokenData) -> dict:
    """{tokens, loss, se}: a unigram model's mean loss in nats over the validation range, and its standard error.

    The model is the train split's token frequencies, each counted once more than seen. The error is the spread between
    windows over the root of their number: how much the loss would differ on other text of the same kind. That of a
    trained model, val_loss_se, is of this size, and shrinks likewise with the length of the range.
    """
    counts = np.ones(opened.meta["vocab_size"])
    for i in range(0, min(COUNTED, len(opened.train)), BLOCK):
        counts += np.bincount(opened.train[i : i + BLOCK], minlength=len(counts))
    surprise = math.log(counts.sum()) - np.log(counts)
    val = np.asarray(opened.val[:VAL_TOKENS])
    window = min(WINDOW, len(val))
    n = len(val) // window
    means = surprise[val[: n * window]].reshape(n, window).mean(axis=1)
    se = float(means.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    return {"tokens": len(val), "loss": float(means.mean()), "se": se}


# ----- --info -------------------------------------------------------------------------------------------------------


def describe(opened: TokenData, planned: int | None = None) -> None:
    """Print what a folder holds, and draw its documents' lengths as lengths.png in it."""
    meta, folder = opened.meta, opened.folder
    print(f"{folder.resolve()}: {meta['tokenizer']}, {meta['vocab_size']:,} tokens known, {meta['dtype']}")
    for split in SPLITS:
        n, tokens = meta[split], getattr(opened, split)
        line = f"{split:>6} {len(tokens):>14,} tokens"
        if "documents" in n:
            line += f" in {n['documents']:>9,} documents, {n['bytes']:,} bytes, {n['bytes_per_token']:.3f} per token"
        files = n.get("shards") or n.get("files") or [f"{split}.bin"]
        print(line + (f", {len(files)} files" if len(files) > 1 else ""))
    for part in meta.get("sources", ()):
        print(f"  {part['share']:6.1%} of the bytes, {part['tokens']:,} tokens from {part['source']}")
    if "dropped" in meta:
        print("dropped: " + ", ".join(f"{n:,} {why}" for why, n in meta["dropped"].items()))
    v = sampling_error(opened)
    error = "unknown" if v["se"] is None else f"{v['se']:.4f}"
    print(f"validation range: {v['tokens']:,} tokens; a unigram model's loss {v['loss']:.3f} +- {error} nats per token")
    if planned:
        print(f"{planned:,} planned tokens are {planned / (len(opened.train) - 1):.2f} epochs of the train split")
    if "command" in meta:
        print(f"made by: {meta['command']}")
    if meta["eot_token"] is None:
        return
    try:
        _, lengths = documents(opened.train, meta["eot_token"])
    except DataError:
        return print("documents: no end-of-text tokens found where they should be")
    lengths = lengths - 1
    marks = np.percentile(lengths, [0, 10, 50, 90, 100]).astype(int)
    print("tokens per document: least {:,}, 10% {:,}, median {:,}, 90% {:,}, most {:,}".format(*marks))
    print(draw(lengths, folder))
    try:
        tokenizer = load_tokenizer(folder)
    except DataError:
        return
    text = tokenizer.decode(np.asarray(opened.train[: min(int(lengths[0]), SHOWN)]).tolist())
    print("first document:\n" + "\n".join("  | " + line for line in text[:SHOWN].splitlines()))


def draw(lengths: np.ndarray, folder: Path) -> str:
    """Histogram of the documents' lengths as lengths.png; what was done, in words."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    edges = np.unique(np.geomspace(1, max(2, lengths.max() + 1), 60).astype(int))
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.hist(np.maximum(lengths, 1), bins=edges, color="tab:blue")
    axes.set(xscale="log", xlabel="tokens per document", ylabel="documents", title=f"{len(lengths):,} train documents")
    axes.axvline(np.median(lengths), color="black", linewidth=1, label=f"median {int(np.median(lengths)):,}")
    axes.legend(frameon=False)
    path = folder / "lengths.png"
    try:
        figure.savefig(path, dpi=120)
        return f"histogram: {path}"
    except OSError as e:
        return f"histogram: not drawn, {path} can't be written ({e.strerror})"
    finally:
        pyplot.close(figure)


# ----- --verify -----------------------------------------------------------------------------------------------------


def check(opened: TokenData) -> None:
    """Compare a folder with its meta.json, byte for byte; DataError at the first thing that is not as it was.

    Each file's checksum; every id within the vocabulary; as many documents and bytes as were counted; and, where
    documents.bin is, each document decoded from the bins has the hash of a text that was read, and each hash is met
    once: so nothing was lost on the way, and train and validation share no text.
    """
    meta, folder = opened.meta, opened.folder
    if meta["format"] == "foreign":
        print(f"{folder}: its files are whole and every id looked at is below {meta['vocab_size']:,}; there is no more")
        return print("to compare them with, because they were not made by data.py")
    for split in SPLITS:
        for shard in shards(meta, split):
            if file_sha256(folder / shard["file"]) != shard["sha256"]:
                raise DataError(f"{folder / shard['file']} is not as it was made: its sha256 differs from meta.json's")
    tokenizer, known = load_tokenizer(folder), None
    if (folder / "documents.bin").exists() and meta.get("lossless", True):
        known = set(np.fromfile(folder / "documents.bin", "<u8").tolist())
    for split in SPLITS:
        n_docs = n_bytes = 0
        part = b""  # pieces of a long document, until they are whole
        for raw in decoded(getattr(opened, split), tokenizer):
            n_docs, n_bytes, part = n_docs + 1, n_bytes + len(raw), part + raw
            key = int.from_bytes(hashlib.blake2b(part, digest_size=8).digest(), "little")
            if known is None or key in known:
                known and known.discard(key)
                part = b""
            elif len(part) < MAX_CHARS // 2:
                raise DataError(f"{folder}: document {n_docs:,} of {split} decodes to a text that was not read")
        counted = meta[split]["documents"], meta[split]["bytes"]
        if part or (known is not None and (n_docs, n_bytes) != counted) or n_docs != counted[0]:
            raise DataError(f"{folder}: {split} decodes to {n_docs:,} documents of {n_bytes:,} bytes, not {counted}")
    if known:
        raise DataError(f"{folder}: {len(known):,} documents of those that were read are in neither split")
    what = "checksums and counts agree"
    if known is not None:
        what += "; every document decodes to the text that was read; train and validation share none"
    print(f"{folder}: {what}")


def decoded(tokens, tokenizer) -> Iterator[bytes]:
    """The bytes of each document of a split; DataError for an id outside of the vocabulary."""
    rest = np.empty(0, np.int64)
    for i in range(0, len(tokens), BLOCK):
        block = np.concatenate([rest, np.asarray(tokens[i : i + BLOCK]).astype(np.int64)])
        if block.max() >= tokenizer.n_vocab:
            raise DataError(f"id {block.max():,} is outside of the vocabulary of {tokenizer.n_vocab:,}")
        start = 0
        for end in np.flatnonzero(block == tokenizer.eot_token):
            yield tokenizer.decode_bytes(block[start:end].tolist())
            start = end + 1
        rest = block[start:]
    if len(rest):
        raise DataError("the last document has no end-of-text token")


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while raw := f.read(2**20):
            digest.update(raw)
    return digest.hexdigest()

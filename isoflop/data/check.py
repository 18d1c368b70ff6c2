"""What a data folder holds (python data.py --info DIR), and whether it is undamaged (--verify DIR)."""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from isoflop.data.loader import documents
from isoflop.data.reader import SPLITS, TokenData, shards
from isoflop.data.tokenizer import MAX_CHARS, Tokenizer, load_tokenizer
from isoflop.files import atomic, sha256
from isoflop.options import UserError

VAL_TOKENS = 2**17  # the range that train.py evaluates on, by default
WINDOW = 256  # tokens; neighbours in a text are alike, so the spread is taken between stretches of it
COUNTED = 2**24  # train tokens that the unigram model is made of
SHOWN = 300  # characters of the first document
BLOCK = 2**20  # tokens read at a time


# ----- the size of the validation range -----


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


# ----- --info -----


def summary(opened: TokenData, validation: dict) -> str:
    """The counts of a folder, a line each; validation : sampling_error(opened)."""
    meta, lines = opened.meta, []
    for split in SPLITS:
        n = meta[split]
        line = f"{split:>6} {n['tokens']:>14,} tokens"
        if "documents" in n:
            line += f" in {n['documents']:>9,} documents, {n['bytes']:,} bytes, {n['bytes_per_token']:.3f} per token"
        files = n.get("shards") or n.get("files") or [split]
        if len(files) > 1:
            line += f", {len(files)} files"
        lines.append(line)
    for part in meta.get("sources", ()):
        lines.append(f"  {part['share']:6.1%} of the bytes, {part['tokens']:,} tokens from {part['source']}")
    if "dropped" in meta:
        lines.append("dropped: " + ", ".join(f"{n:,} {reason}" for reason, n in meta["dropped"].items()))
    lines += map(str, meta.get("notes", []))
    if meta.get("duplicates_between_workers"):
        lines.append(f"{meta['duplicates_between_workers']:,} documents are there twice, from two workers")
    tokens, loss, se = validation["tokens"], validation["loss"], validation["se"]
    error = "unknown" if se is None else f"{se:.4f}"
    lines.append(f"validation range: {tokens:,} tokens; a unigram model's loss {loss:.3f} +- {error} nats per token")
    if tokens < VAL_TOKENS and "documents" in meta["val"]:
        lines.append(f"train.py evaluates on {VAL_TOKENS:,} tokens by default: raise --val_fraction for so many")
    if not meta.get("lossless", True):
        lines.append("this tokenizer does not reproduce every text; bits per byte count the bytes that it spells")
    return "\n".join(lines)


def describe(opened: TokenData, planned_tokens: int | None = None) -> None:
    """Print what a folder holds, and draw its documents' lengths as lengths.png in it."""
    meta, folder = opened.meta, opened.folder
    print(f"{folder.resolve()}: {meta['tokenizer']}, vocabulary of {meta['vocab_size']:,}, {meta['dtype']}")
    print(summary(opened, sampling_error(opened)))
    if planned_tokens:
        epochs = planned_tokens / (len(opened.train) - 1)
        print(f"{planned_tokens:,} planned tokens are {epochs:.2f} epochs of the train split")
    if "command" in meta:
        print(f"made by: {meta['command']}")
    if meta["eot_token"] is None:
        return
    try:
        _, lengths = documents(opened.train, meta["eot_token"])
    except UserError:
        print("documents: unknown, no end-of-text tokens where they should be")
        return
    lengths = lengths - 1  # without the end-of-text token
    marks = np.percentile(lengths, [0, 10, 50, 90, 100]).astype(int)
    print("tokens per document: least {:,}, 10% {:,}, median {:,}, 90% {:,}, most {:,}".format(*marks))
    print(draw_lengths(lengths, folder))
    try:
        tokenizer = load_tokenizer(folder)
    except UserError:
        return
    text = tokenizer.decode(np.asarray(opened.train[: min(int(lengths[0]), SHOWN)]).tolist())
    print("first document:")
    for line in text[:SHOWN].splitlines():
        print(f"  | {line}")


def draw_lengths(lengths: np.ndarray, folder: Path) -> str:
    """Histogram of the documents' lengths in tokens as lengths.png; a line that says where it is, or why not."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    edges = np.unique(np.geomspace(1, max(2, lengths.max() + 1), 60).astype(int))
    median = int(np.median(lengths))
    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.hist(np.maximum(lengths, 1), bins=edges, color="tab:blue")
    axes.set(xscale="log", xlabel="tokens per document", ylabel="documents", title=f"{len(lengths):,} train documents")
    axes.axvline(median, color="black", linewidth=1, label=f"median {median:,}")
    axes.legend(frameon=False)
    path = folder / "lengths.png"
    try:
        with atomic(path, "wb") as f:
            figure.savefig(f, dpi=120, format="png")
        return f"histogram: {path}"
    except OSError as e:
        return f"histogram: not drawn, {path} can't be written ({e.strerror})"
    finally:
        pyplot.close(figure)


# ----- --verify -----


def check(opened: TokenData) -> None:
    """Compare a folder with its meta.json, byte for byte, and print the outcome; UserError at the first difference.

    Each file's checksum; every id within the vocabulary; as many documents and bytes as were counted; and, where
    documents.bin is, each document decoded from the tokens has the hash of a text that was read, and each hash occurs
    as often as then: so nothing was lost on the way, and train and validation share no text.
    """
    meta, folder = opened.meta, opened.folder
    if meta["format"] == "foreign":
        print(
            f"{folder}: its files are not cut short and every id read is below {meta['vocab_size']:,}; there are no "
            "checksums, because they were not made by data.py"
        )
        return
    for split in SPLITS:
        for shard in shards(meta, split):
            path = folder / shard["file"]
            if sha256(path) != shard["sha256"]:
                raise UserError(f"{path} has changed: its sha256 differs from meta.json's")
    tokenizer = load_tokenizer(folder)
    for name, value in {"vocab_size": tokenizer.n_vocab, "eot_token": tokenizer.eot_token}.items():
        if meta[name] != value:
            raise UserError(f"{folder}: {name} is {meta[name]:,} in meta.json, and {value:,} in tokenizer.json")
    hashes = None  # of the texts that were read -> how many documents with this hash are still to be found
    if (folder / "documents.bin").exists() and meta.get("lossless", True):
        hashes = Counter(np.fromfile(folder / "documents.bin", "<u8").tolist())
    for split in SPLITS:
        check_documents(opened, split, tokenizer, hashes)
    result = "checksums and counts agree"
    if hashes is not None:
        if hashes.total():
            raise UserError(f"{folder}: {hashes.total():,} documents of those that were read are in neither split")
        result += "; every document decodes to the text that was read; train and validation share none"
    print(f"{folder}: {result}")


def check_documents(opened: TokenData, split: str, tokenizer: Tokenizer, hashes: Counter | None) -> None:
    """Decode a split and compare its documents with the counts and the hashes, from which they are subtracted."""
    folder, counted = opened.folder, opened.meta[split]
    n_docs = n_bytes = 0
    begun = b""  # the parts of a long document read so far
    for raw in decoded(getattr(opened, split), tokenizer):
        n_docs += 1
        n_bytes += len(raw)
        if hashes is None:
            continue
        begun += raw
        key = int.from_bytes(hashlib.blake2b(begun, digest_size=8).digest(), "little")
        if hashes[key] > 0:
            hashes[key] -= 1
            begun = b""
        elif len(begun) < MAX_CHARS // 2:
            raise UserError(f"{folder}: document {n_docs:,} of {split} decodes to a text that was not read")
    same = n_docs == counted["documents"] and not begun
    if hashes is not None:
        same = same and n_bytes == counted["bytes"]
    if not same:
        raise UserError(
            f"{folder}: {split} decodes to {n_docs:,} documents of {n_bytes:,} bytes, not {counted['documents']:,} of "
            f"{counted['bytes']:,}"
        )


def decoded(tokens, tokenizer: Tokenizer) -> Iterator[bytes]:
    """The bytes of each document of a split; UserError for an id outside of the vocabulary."""
    rest = np.empty(0, np.int64)  # the beginning of a document that the next block continues
    for i in range(0, len(tokens), BLOCK):
        block = np.concatenate([rest, np.asarray(tokens[i : i + BLOCK]).astype(np.int64)])
        if block.max() >= tokenizer.n_vocab:
            raise UserError(f"id {block.max():,} is outside of the vocabulary of {tokenizer.n_vocab:,}")
        start = 0
        for end in np.flatnonzero(block == tokenizer.eot_token):
            yield tokenizer.decode_bytes(block[start:end].tolist())
            start = end + 1
        rest = block[start:]
    if len(rest):
        raise UserError("the last document has no end-of-text token")

"""Token files on disk, read as they are: this project's data folders, nanoGPT's, llm.c's and modded-nanogpt's.

    data/stdlib_bpe512         made by data.py: train.bin and val.bin, or shards, 256 bytes of JSON before the tokens
    nanoGPT/data/openwebtext   train.bin and val.bin: uint16 and nothing else; meta.json or meta.pkl, else GPT-2's ids
    fineweb10B                 *_train_*.bin and *_val_*.bin as llm.c's scripts write them: 256 int32, then the tokens

Tokens are never copied as a whole. A pickle is not loaded, only read for the numbers it spells out.
"""

import functools
import hashlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isoflop.data import tokenizer
from isoflop.data.characters import read_pickle
from isoflop.data.downloads import gpt2_tokens
from isoflop.files import ABSENT, check_fields, read_json, regular, sha256
from isoflop.options import UserError

FORMAT, VERSION, HEADER_BYTES = "isoflop-tokens", 1, 256
SPLITS = ("train", "val")
GPT2_VOCAB, GPT2_EOT = 50257, 50256
# llm.c's dev/data scripts: (magic, version) -> type, from a header of 256 int32 whose third is the token count
LLMC = {(20240520, 1): "uint16", (20240801, 7): "uint32"}
LLMC_BYTES = 1024
WHOLE_BYTES = 2**30  # up to here a foreign split is read whole for its hash and its largest id, beyond it by samples
SAMPLES, SAMPLE_BYTES = 1024, 2**16
CHECKED = 64  # stretches of our own files that are looked at when they are opened; data.py --verify reads all


class Tokens:
    """The tokens of several files as one read-only sequence: len, slices and arrays of indices, as of a 1-D array."""

    def __init__(self, parts: list[np.ndarray]):
        self.parts, self.dtype = parts, parts[0].dtype
        self.ends = np.cumsum([len(part) for part in parts])
        self.nbytes = int(self.ends[-1]) * self.dtype.itemsize

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index):
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                return self._slice(start, stop)
            index = np.arange(start, stop, step)
        flat = np.asarray(index)
        flat = np.where(flat < 0, flat + len(self), flat)
        if flat.size and not 0 <= flat.min() <= flat.max() < len(self):
            raise IndexError(f"index outside of {len(self):,} tokens")
        out = np.empty(flat.shape, self.dtype)
        owner = np.searchsorted(self.ends, flat, side="right")
        for i in np.unique(owner):
            mine = owner == i
            begin = self.ends[i] - len(self.parts[i])
            out[mine] = self.parts[i][flat[mine] - begin]
        return out if out.ndim else out[()]

    def _slice(self, start: int, stop: int) -> np.ndarray:
        found, begin = [], 0
        for part in self.parts:
            inside = part[max(0, start - begin) : max(0, stop - begin)]
            if len(inside):
                found.append(inside)
            begin += len(part)
        if len(found) == 1:
            return found[0]  # a view, no copy
        return np.concatenate([np.empty(0, self.dtype), *found])

    def __array__(self, dtype=None, copy=None):
        whole = self[0 : len(self)]
        return whole if dtype is None else whole.astype(dtype)


@dataclass(frozen=True)
class TokenData:
    folder: Path
    meta: dict  # meta.json; for foreign files what is known of them, under the same names
    train: np.ndarray | Tokens  # read-only memory map of token ids; ours: each document followed by meta["eot_token"]
    val: np.ndarray | Tokens


def as_sequence(parts: list[np.ndarray]) -> np.ndarray | Tokens:
    return parts[0] if len(parts) == 1 else Tokens(parts)


# ----- our own -----


def header(meta: dict, split: str) -> bytes:
    """The HEADER_BYTES in front of the tokens: readable with `head -c 256`, and equal for equal meta.json entries."""
    names = ("format", "version", "dtype", "vocab_size", "tokenizer", "tokenizer_sha256")
    text = json.dumps({name: meta[name] for name in names} | {"split": split})
    assert len(text) < HEADER_BYTES, text
    return text.ljust(HEADER_BYTES - 1).encode() + b"\n"


def shards(meta: dict, split: str) -> list[dict]:
    """The files of a split in their order: {file, tokens, sha256}."""
    counts = meta[split]
    return counts.get("shards") or [{"file": f"{split}.bin", "tokens": counts["tokens"], "sha256": counts["sha256"]}]


def open_own(folder: Path, meta: dict | None = None) -> TokenData:
    """A folder that data.py has made; OSError, ValueError, KeyError or TypeError where it is not complete."""
    if meta is None:
        meta = read_json(folder / "meta.json")
    check_meta(meta)
    if (meta["format"], meta["version"]) != (FORMAT, VERSION):
        raise ValueError(f"format {meta['format']} {meta['version']} instead of {FORMAT} {VERSION}")
    if sha256(folder / "tokenizer.json") != meta["tokenizer_sha256"]:
        raise ValueError("tokenizer.json is another one")
    dtype = np.dtype(meta["dtype"])
    splits = {}
    for split in SPLITS:
        parts = []
        for shard in shards(meta, split):
            path, tokens = folder / shard["file"], shard["tokens"]
            with open(regular(path), "rb") as f:
                if f.read(HEADER_BYTES) != header(meta, split):
                    raise ValueError(f"{path.name} is foreign: its header does not match meta.json")
            size, expected = path.stat().st_size, HEADER_BYTES + tokens * dtype.itemsize
            if size != expected:
                raise ValueError(f"{path.name} has {size:,} bytes instead of {expected:,}")
            parts.append(np.memmap(path, dtype=dtype, mode="r", offset=HEADER_BYTES, shape=(tokens,)))
        splits[split] = as_sequence(parts)
        check_ids(splits[split], meta["vocab_size"], split)
    return TokenData(folder, meta, **splits)


def check_meta(meta):
    """ValueError where meta.json holds something of the wrong type, or an end-of-text token beyond its vocabulary."""
    number = (int, float)
    words = dict.fromkeys(("format", "tokenizer", "tokenizer_sha256", "dtype", "command"), str)
    kinds = {"vocab_size": int, "eot_token": int, "sources": list, "notes": list, "dropped": dict, "lossless": bool}
    check_fields(meta, {**words, **kinds, "duplicates_between_workers": int}, "meta.json")
    counts = {"tokens": int, "documents": int, "bytes": int, "bytes_per_token": number, "shards": list}
    for split in SPLITS:
        needed = ("tokens", "documents", "bytes", "bytes_per_token")
        check_fields(meta[split], counts, f"{split} of meta.json", needed)
        for shard in meta[split].get("shards", ()):
            check_fields(shard, {"file": str, "tokens": int, "sha256": str}, f"a shard of {split} in meta.json")
    for source in meta.get("sources", ()):
        check_fields(source, {"share": number, "tokens": int}, "a source of meta.json", ("share", "tokens"))
    dropped = meta.get("dropped", {})
    check_fields(dropped, dict.fromkeys(dropped, int), "dropped in meta.json")
    if meta["dtype"] not in ("uint16", "uint32"):
        raise ValueError(f"dtype {meta['dtype']:.40} in meta.json")
    if meta["eot_token"] >= meta["vocab_size"]:
        raise ValueError(f"eot_token {meta['eot_token']:,} of {meta['vocab_size']:,} ids in meta.json")


def check_ids(tokens, vocab_size: int, split: str):
    """ValueError where one of CHECKED stretches of a split holds an id outside of the vocabulary."""
    length = SAMPLE_BYTES // tokens.dtype.itemsize
    for start in np.unique(np.linspace(0, max(0, len(tokens) - length), CHECKED).astype(int)):
        largest = tokens[start : start + length].max()
        if largest >= vocab_size:
            raise ValueError(f"{split} holds id {largest:,}, outside of the vocabulary of {vocab_size:,}")


# ----- other people's -----


def foreign_files(folder: Path) -> dict[str, list[Path]] | None:
    """The files of each split, where the folder holds token files that data.py has not made; otherwise None."""
    try:
        ours = "format" in read_json(folder / "meta.json")
    except FileNotFoundError:
        ours = False
    except (OSError, ValueError, TypeError):
        return None
    if ours:
        return None
    begin = f'{{"format": "{FORMAT}'.encode()  # of our own files
    found = {}
    for split in SPLITS:
        plain = folder / f"{split}.bin"
        found[split] = [plain] if plain.exists() else sorted(folder.glob(f"*{split}*.bin"))
        for path in found[split]:
            with open(regular(path), "rb") as f:
                if f.read(len(begin)) == begin:
                    return None
    return found if found["train"] else None


def open_foreign(folder: Path, files: dict[str, list[Path]]) -> TokenData:
    """Token files without our header, with the vocabulary of meta.json, meta.pkl or GPT-2; UserError with a way out.

    meta["corpus_sha256"] is a hash of the ids, and meta["tokenizer_sha256"] of what is known of the tokenizer: they
    tell runs on different tokens apart, not more.
    """
    if not files["val"]:
        raise UserError(
            f"{folder} has {files['train'][0].name} but no val.bin or *val*.bin: name the validation file so"
        )
    info = read_info(folder)

    # Map the files, and read them for a hash and the largest id.
    splits, corpus, largest = {}, hashlib.sha256(), -1
    for split in SPLITS:
        parts = [map_foreign(path, info.get("dtype")) for path in files[split]]
        if len({part.dtype for part in parts}) > 1:
            raise UserError(f"{folder}: its {split} files hold numbers of different sizes; keep one kind per folder")
        for path, part in zip(files[split], parts, strict=True):
            stat = path.stat()
            digest, top = survey(str(path.resolve()), stat.st_size, stat.st_mtime_ns, part.offset, part.dtype.str)
            corpus.update(f"{split} {len(part)} {digest}\n".encode())
            largest = max(largest, top)
        splits[split] = as_sequence(parts)

    # Identify the tokenizer as far as possible.
    vocab = foreign_vocab(folder, info.get("vocab_size"), largest, 8 * splits["train"].dtype.itemsize)
    characters = info.get("itos")
    name = "unknown"
    if vocab == GPT2_VOCAB:
        name = "gpt2"
    elif characters:
        name = "characters"
    identity = json.dumps([name, vocab, characters])
    meta = {
        "format": "foreign",
        "tokenizer": name,
        "tokenizer_sha256": hashlib.sha256(identity.encode()).hexdigest(),
        "vocab_size": vocab,
        "eot_token": GPT2_EOT if name == "gpt2" else None,
        "dtype": str(splits["train"].dtype),
        "corpus_sha256": corpus.hexdigest(),
        "itos": characters,
    }
    for split in SPLITS:
        meta[split] = {"tokens": len(splits[split]), "files": [path.name for path in files[split]]}
    return TokenData(folder, meta, **splits)


def foreign_vocab(folder: Path, vocab: int | None, largest: int, bits: int) -> int:
    """The vocabulary of foreign files, GPT-2's unless given; UserError where the ids do not fit it.

    largest : largest id in the files; bits : of a token in the files.
    """
    if vocab is None:
        if largest >= GPT2_VOCAB:
            raise UserError(
                f"{folder} holds token id {largest:,}, beyond GPT-2's {GPT2_VOCAB:,}: say how many ids there are in a "
                f'file {folder / "meta.json"}, as {{"vocab_size": {largest + 1}}}'
            )
        return GPT2_VOCAB
    if not isinstance(vocab, int) or vocab < 1:
        raise UserError(f"{folder}: vocab_size {vocab!r} in its meta.json must be a whole number above 0")
    if vocab > 2**bits:
        raise UserError(f"{folder}: vocab_size {vocab:,} does not fit its uint{bits} tokens; fix dtype in meta.json")
    if largest >= vocab:
        raise UserError(f"{folder} holds token id {largest:,}, beyond the vocab_size {vocab:,} of its meta.json")
    return vocab


def read_info(folder: Path) -> dict:
    """vocab_size, dtype and itos (the characters, by id), as far as meta.json or meta.pkl hold them."""
    try:
        saved = read_json(folder / "meta.json")
    except FileNotFoundError:
        saved = {}
    if not isinstance(saved, dict):
        raise UserError(f'{folder / "meta.json"} must be an object, such as {{"vocab_size": N}}')
    if saved.get("dtype", "uint16") not in ("uint16", "uint32"):
        raise UserError(f"{folder}: dtype {saved['dtype']!r} in its meta.json must be uint16 or uint32")
    info = {name: saved[name] for name in ("vocab_size", "dtype") if name in saved}
    pickled = folder / "meta.pkl"
    if pickled.exists():
        found = read_pickle(pickled)
        if "vocab_size" not in info and "vocab_size" not in found:
            raise UserError(f'{pickled} names no vocab_size: put {{"vocab_size": N}} in {folder / "meta.json"}')
        if info.get("vocab_size", found.get("vocab_size")) == found.get("vocab_size"):
            info = found | info
    return info


def map_foreign(path: Path, dtype: str | None) -> np.ndarray:
    """The tokens of one file, with or without llm.c's header."""
    size = path.stat().st_size
    head = np.fromfile(path, dtype="<i4", count=LLMC_BYTES // 4)
    known = None
    if len(head) == LLMC_BYTES // 4:
        known = LLMC.get((int(head[0]), int(head[1])))
        if known is None and head[0] and not head[3:].any():
            versions = " and ".join(f"{magic} version {version}" for magic, version in LLMC)
            raise UserError(
                f"{path} begins with a header of magic {head[0]} and version {head[1]}; known are {versions}"
            )
    if known is None:  # tokens and nothing else
        dtype = dtype or "uint16"
        if size == 0 or size % np.dtype(dtype).itemsize:
            raise UserError(f"{path} has {size:,} bytes: not a whole number of {dtype}; cut short?")
        return np.memmap(path, dtype=dtype, mode="r")
    count = int(head[2])
    expected = LLMC_BYTES + count * np.dtype(known).itemsize
    if size != expected or count < 1:
        raise UserError(f"{path} has {size:,} bytes where its header's {count:,} tokens take {expected:,}: cut short?")
    return np.memmap(path, dtype=known, mode="r", offset=LLMC_BYTES, shape=(count,))


@functools.lru_cache(256)
def survey(path: str, size: int, mtime_ns: int, offset: int, dtype: str) -> tuple[str, int]:
    """(sha256 of the tokens, largest id); of SAMPLES stretches of a file longer than WHOLE_BYTES.

    size and mtime_ns only tell the cache when the file has changed.
    """
    tokens = np.memmap(path, dtype=dtype, mode="r", offset=offset)
    if size > WHOLE_BYTES:
        length = SAMPLE_BYTES // tokens.itemsize
        starts = np.linspace(0, len(tokens) - length, SAMPLES).astype(int)
    else:
        length = WHOLE_BYTES // 64 // tokens.itemsize
        starts = range(0, len(tokens), length)
    digest, largest = hashlib.sha256(), -1
    for start in starts:
        block = np.array(tokens[start : start + length])
        digest.update(block.tobytes())
        largest = max(largest, int(block.max()))
    return digest.hexdigest(), largest


# ----- bytes per token -----


def token_bytes(folder: str | Path) -> np.ndarray | None:
    """(vocab_size,) int64: utf-8 bytes that each token spells, special tokens 0; None where the tokenizer is unknown.

    For bits per byte: the loss of tokens that spell something, over the bytes that they spell.
    """
    folder = Path(folder)
    files = foreign_files(folder)
    if files is None:
        return tokenizer.token_bytes(folder)
    meta = open_foreign(folder, files).meta
    if meta["tokenizer"] == "characters":
        return np.array([len(c.encode()) for c in meta["itos"]])
    if meta["tokenizer"] != "gpt2":
        return None
    try:
        return np.array([len(token) for token in gpt2_tokens()] + [0])
    except UserError:
        return None


# ----- any folder -----


def open_data(folder: str | Path) -> TokenData:
    """Map a data folder of any kind known here; UserError with the way out if it is missing or not complete."""
    folder = Path(folder)
    if not folder.is_dir():
        there = neighbours(folder)
        named = f"name one that exists ({there or 'for training, with --data_dir'})"
        raise UserError(
            f"no data folder {folder}: {named}, or make one: "
            "`python data.py` makes data/fineweb_gpt2, `python data.py --source stdlib` makes data/stdlib_bpe512 "
            "with no download"
        )
    files = foreign_files(folder)
    if files is not None:
        return open_foreign(folder, files)
    try:
        return open_own(folder)
    except (*ABSENT, ValueError, KeyError, TypeError) as e:
        problem = f"no {e}" if isinstance(e, KeyError) else str(e)
        raise UserError(
            f"{folder} is not a complete data folder ({problem}); make it again with `{remake_command(folder)}`"
        ) from None


def neighbours(folder: Path) -> str:
    """The data folders beside one that is not there, as "--data_dir data/a, data/b"; empty where there are none."""
    found = []
    if folder.parent.is_dir():
        for path in sorted(folder.parent.iterdir()):
            if path.is_dir() and not path.name.startswith(".") and any(path.glob("*train*.bin")):
                found.append(str(path))
    more = f" and {len(found) - 5} more" if len(found) > 5 else ""
    return f"--data_dir {', '.join(found[:5])}{more}" if found else ""


def remake_command(folder: Path) -> str:
    """The command that makes a damaged data folder again, from its meta.json if that can be read."""
    words = ["python", "data.py", "--source", "..."]
    try:
        words = shlex.split(read_json(folder / "meta.json")["command"])
        at = words.index("--out_dir")
        del words[at : at + 2]  # the folder may have been moved
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return f"{shlex.join(words)} --out_dir {shlex.quote(str(folder))} --overwrite"

"""Tokenizers: tiktoken's, one trained here (bpe:V), plain bytes, or any tokenizer.json; and documents into tokens.

    make_tokenizer("gpt2" | "cl100k_base" | ... | "bpe:4096" | "byte" | "path/tokenizer.json")   the spec to save
    load_tokenizer(folder)                                                                     the Tokenizer saved there

A data folder's tokenizer.json holds all that is needed to encode and decode with no download. Ours is a list of byte
strings, in which the id is the place; a Hugging Face tokenizer is kept as it came. This script imports none of ours,
and tiktoken, regex and tokenizers only where they are used; sources.py takes DataError and the guarded downloads.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from isoflop.data.bpe import PATTERN, train_bpe
from isoflop.data.downloads import gpt2_tokens, tiktoken_encoding
from isoflop.data.errors import EOT, MAX_CHARS, DataError
from isoflop.data.hf_tokenizer import hf_module, hf_spec, hf_spelling

GROUP_DOCS, GROUP_BYTES = 64, 2**18  # documents that a thread encodes at a time, whichever comes first


TIKTOKEN = ("gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base", "o200k_harmony")


# ----- the spec of a tokenizer --------------------------------------------------------------------------------------


def check_name(name: str) -> None:
    """DataError unless make_tokenizer knows what to do with it."""
    kind, _, size = name.partition(":")
    if name in TIKTOKEN or name == "byte" or kind == "bpe" and size.isdigit() and 257 < int(size) <= 2**20:
        return
    if name.endswith(".json"):
        if not os.path.isfile(name):
            raise DataError(f"--tokenizer {name}: no such file; it names the tokenizer.json of a Hugging Face model")
        hf_module(name)
        return
    known = ", ".join(TIKTOKEN)
    raise DataError(
        f"--tokenizer {name}: it is one of {known}, byte, bpe:V with V above 257, such as bpe:512, or the path of a "
        f"tokenizer.json"
    )


def make_tokenizer(name: str, train_texts: Iterable[str]) -> dict:
    """What a data folder's tokenizer.json is to hold; only bpe:V reads train_texts.

    {name, pattern, tokens} for byte strings in the order of their ids, with n_vocab, eot and null for ids that spell
    nothing only where the end-of-text token is not simply the next id; {name, hf, eot, n_vocab} for a tokenizer.json.
    """
    if name.endswith(".json"):
        return hf_spec(name)
    if name in TIKTOKEN and name != "gpt2":
        return tiktoken_spec(name)
    if name == "gpt2":
        tokens = gpt2_tokens()
    else:
        tokens = train_bpe(train_texts, 256 if name == "byte" else int(name.removeprefix("bpe:")) - 1)
    return {"name": name, "pattern": PATTERN, "tokens": tokens}


def tiktoken_spec(name: str) -> dict:
    """Another of tiktoken's encodings, with its own numbers, so that tokens made elsewhere mean the same."""
    encoding = tiktoken_encoding(name)
    tokens = [None] * encoding.n_vocab
    for token, i in encoding._mergeable_ranks.items():
        tokens[i] = token
    eot = encoding._special_tokens[EOT]
    return {"name": name, "pattern": encoding._pat_str, "tokens": tokens, "eot": eot, "n_vocab": encoding.n_vocab}


def write_tokenizer(folder: Path, spec: dict, name: str = "tokenizer.json") -> str:
    """Write the file from which `load_tokenizer` reads, under another name first; its sha256."""
    if "tokens" in spec:
        tokens = [None if token is None else base64.b64encode(token).decode() for token in spec["tokens"]]
        spec = spec | {"tokens": tokens}
    raw = json.dumps(spec).encode()
    (folder / f"{name}.part").write_bytes(raw)
    os.replace(folder / f"{name}.part", folder / name)
    return hashlib.sha256(raw).hexdigest()


def read_tokenizer(folder: str | Path) -> dict:
    try:
        spec = json.loads(Path(folder, "tokenizer.json").read_text())
        if "hf" in spec:
            return spec
        tokens = [None if token is None else base64.b64decode(token) for token in spec["tokens"]]
        return {"eot": len(tokens), "n_vocab": len(tokens) + 1} | spec | {"tokens": tokens}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise DataError(f"{folder}: its tokenizer.json can't be read ({e})") from None


# ----- one interface ------------------------------------------------------------------------------------------------


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a data folder."""
    spec = read_tokenizer(folder)
    return HFTokenizer(spec) if "hf" in spec else Tokenizer(spec)


def token_bytes(folder: str | Path) -> np.ndarray:
    """(vocab_size,) int64: utf-8 bytes that each token spells, special ones 0. For bits per byte: sum over targets."""
    spec = read_tokenizer(folder)
    spelled = hf_spelling(spec) if "hf" in spec else spec["tokens"]
    lengths = np.zeros(spec["n_vocab"], dtype=np.int64)
    lengths[: len(spelled)] = [len(token or b"") for token in spelled]
    return lengths


class Tokenizer:
    """Text to ids and back. name, n_vocab, eot_token (which ends a document, and is never made of text)."""

    def __init__(self, spec: dict):
        import tiktoken

        self.name, self.n_vocab, self.eot_token = spec["name"], spec["n_vocab"], spec["eot"]
        self.spelled = spec["tokens"]
        ranks = {token: i for i, token in enumerate(self.spelled) if token is not None}
        self.encoding = tiktoken.Encoding(
            spec["name"], pat_str=spec["pattern"], mergeable_ranks=ranks, special_tokens={EOT: self.eot_token}
        )

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text, which must not be longer than MAX_CHARS; other threads go on meanwhile."""
        if hasattr(self.encoding, "encode_to_numpy"):  # from tiktoken 0.9 on; no list of Python numbers in between
            return [self.encoding.encode_to_numpy(text, disallowed_special=()) for text in texts]
        return [np.array(self.encoding.encode_ordinary(text), dtype=np.uint32) for text in texts]

    def encode_ordinary(self, text: str) -> list[int]:
        """Token ids of a text of any length; what looks like a special token in it is text."""
        pieces = [text[i : i + MAX_CHARS] for i in range(0, len(text), MAX_CHARS)]
        return [i for ids in self.encode(pieces) for i in ids.tolist()]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return b"".join([self.decode_single_token_bytes(i) for i in ids])

    def decode(self, ids: Iterable[int]) -> str:
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def decode_single_token_bytes(self, i: int) -> bytes:
        if i == self.eot_token:
            return EOT.encode()
        return (self.spelled[i] if i < len(self.spelled) else None) or b""


class HFTokenizer(Tokenizer):
    """A tokenizer.json of Hugging Face's tokenizers, without the special tokens it would add around a text."""

    def __init__(self, spec: dict):
        self.name, self.n_vocab, self.eot_token = spec["name"], spec["n_vocab"], spec["eot"]
        self.hf = hf_module(spec["name"]).Tokenizer.from_str(json.dumps(spec["hf"]))
        self.hf.no_truncation()
        self.hf.no_padding()
        self.hf.encode_special_tokens = True  # a special token's name in a text is text
        self.spelled = hf_spelling(spec)
        self.blank_first = False
        self.blank_first = self.decode_bytes(self.encode(["a"])[0].tolist()) == b" a"  # as LLaMA's first ones do

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        encoded = self.hf.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(e.ids, dtype=np.uint32) for e in encoded]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        raw = super().decode_bytes(ids)
        return raw[1:] if self.blank_first and raw.startswith(b" ") else raw


def lossless(tokenizer: Tokenizer) -> bool:
    """Whether it gives back odd texts as they were; some tokenizer.json normalize, or lack characters."""
    odd = [
        "a  b\r\n\tc ",
        " x",
        "caf\u00e9 e\u0301 \ufb01 \uff21",
        "\u65e5\U0001f469\u200d\U0001f467\x00\x01 \u2028",
        "A <s> b",
    ]
    return all(tokenizer.decode(tokenizer.encode([text])[0].tolist()) == text for text in odd)


# ----- documents into tokens ----------------------------------------------------------------------------------------


def encode(tokenizer: Tokenizer, items: Iterable, dtype: str, threads: int | None = None) -> Iterator[tuple]:
    """(item, ids) for each item in order: ids end with end-of-text; None for an item with no `.text`.

    Threads encode ahead, a few groups of documents at most, while the caller writes and another thread reads: tiktoken
    and tokenizers let go of Python's lock as they work.
    """
    threads = threads or cores()

    def work(group):
        texts = [item.text for item in group if item.text is not None]
        end, out = np.array([tokenizer.eot_token], dtype), iter(tokenizer.encode(texts))
        return [(item, None if item.text is None else np.concatenate([next(out), end], dtype=dtype, casting="unsafe"))
                for item in group]  # fmt: skip

    with ThreadPoolExecutor(threads) as pool:
        ahead, group, size = deque(), [], 0
        try:
            for item in items:
                group.append(item)
                size += len(item.text or "")
                if size >= GROUP_BYTES or len(group) >= GROUP_DOCS:
                    ahead.append(pool.submit(work, group))
                    group, size = [], 0
                    if len(ahead) > 2 * threads:
                        yield from ahead.popleft().result()
            ahead.append(pool.submit(work, group))
            while ahead:
                yield from ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

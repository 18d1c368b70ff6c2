"""Tokenizers: tiktoken's, one trained here (bpe:V), plain bytes, or any tokenizer.json; and documents into tokens.

    make_tokenizer("gpt2" | "cl100k_base" | ... | "bpe:4096" | "byte" | "path/tokenizer.json")   the spec to save
    load_tokenizer(folder)                                                                     the Tokenizer saved there

A data folder's tokenizer.json holds all that is needed to encode and decode with no download. Ours is a list of byte
strings, in which the id is the place; a Hugging Face tokenizer is kept unchanged.
"""

import base64
import hashlib
import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from isoflop.data.bpe import EOT, PATTERN, train_bpe
from isoflop.data.characters import CharacterTokenizer, character_spec
from isoflop.data.downloads import gpt2_tokens, tiktoken_encoding
from isoflop.data.hf_tokenizer import hf_module, hf_spec, hf_spelling
from isoflop.files import atomic, read_json
from isoflop.options import UserError

TIKTOKEN = ("gpt2", "r50k_base", "p50k_base", "p50k_edit", "cl100k_base", "o200k_base", "o200k_harmony")
MAX_CHARS = 900_000  # the longest text that may be encoded: tiktoken panics at a run of 1,000,000 blanks
GROUP_DOCS, GROUP_BYTES = 64, 2**18  # documents that a thread encodes at a time, whichever limit is reached first


# ----- the spec of a tokenizer -----


def check_name(name: str) -> None:
    """UserError unless make_tokenizer knows the name."""
    kind, _, size = name.partition(":")
    if name in TIKTOKEN or name == "byte":
        return
    if kind == "bpe" and size.isdigit() and 257 < int(size) <= 2**20:
        return
    if name.endswith(".json"):
        if not os.path.isfile(name):
            raise UserError(f"--tokenizer {name}: no such file; it names the tokenizer.json of a Hugging Face model")
        hf_module(name)
        return
    known = ", ".join(TIKTOKEN)
    raise UserError(
        f"--tokenizer {name} must be one of {known}, byte, bpe:V with V above 257, such as bpe:512, or the path of a "
        f"tokenizer.json"
    )


def make_tokenizer(name: str, train_texts: Iterable[str]) -> dict:
    """The spec for a data folder's tokenizer.json; only bpe:V reads train_texts.

    {name, pattern, tokens} for byte strings in the order of their ids, with n_vocab, eot and null for ids that spell
    nothing only where the end-of-text token is not simply the next id; {name, hf, eot, n_vocab} for a tokenizer.json.
    """
    if name.endswith(".json"):
        return hf_spec(name)
    if name == "gpt2":
        tokens = gpt2_tokens()
    elif name in TIKTOKEN:
        return tiktoken_spec(name)
    elif name == "byte":
        tokens = train_bpe(train_texts, 256)
    else:
        tokens = train_bpe(train_texts, int(name.removeprefix("bpe:")) - 1)
    return {"name": name, "pattern": PATTERN, "tokens": tokens}


def tiktoken_spec(name: str) -> dict:
    """Another of tiktoken's encodings, with its own ids, so that tokens made elsewhere mean the same."""
    try:
        encoding = tiktoken_encoding(name)
    except ConnectionError as error:
        raise UserError(
            f"--tokenizer {name} is unavailable ({error!s:.200}); fetch it with tiktoken where there is a network and "
            f"set TIKTOKEN_CACHE_DIR, or use --tokenizer bpe:4096"
        ) from None
    tokens = [None] * encoding.n_vocab
    for token, i in encoding._mergeable_ranks.items():
        tokens[i] = token
    eot = encoding._special_tokens[EOT]
    return {"name": name, "pattern": encoding._pat_str, "tokens": tokens, "eot": eot, "n_vocab": encoding.n_vocab}


def write_tokenizer(folder: Path, spec: dict, name: str = "tokenizer.json") -> str:
    """Write the file that `load_tokenizer` reads; its sha256."""
    if "tokens" in spec:
        tokens = [None if token is None else base64.b64encode(token).decode() for token in spec["tokens"]]
        spec = spec | {"tokens": tokens}
    raw = json.dumps(spec).encode()
    with atomic(folder / name, "wb") as f:
        f.write(raw)
    return hashlib.sha256(raw).hexdigest()


def read_tokenizer(folder: str | Path) -> dict:
    """The spec saved in a data folder, with its tokens as bytes; UserError where it can't be read.

    Of nanoGPT's folders of characters the spec that their meta.pkl makes.
    """
    if not has_tokenizer(folder, "tokenizer.json") and has_tokenizer(folder, "meta.pkl"):
        return character_spec(folder)
    try:
        spec = read_json(Path(folder, "tokenizer.json"))
        if "hf" in spec:
            return spec
        if "characters" in spec:
            if not all(isinstance(c, str) and len(c) == 1 for c in spec["characters"]):
                raise ValueError("characters must be a list of single characters")
            return spec
        tokens = [None if token is None else base64.b64decode(token) for token in spec["tokens"]]
        return {"eot": len(tokens), "n_vocab": len(tokens) + 1} | spec | {"tokens": tokens}
    except (OSError, ValueError, KeyError, TypeError) as e:
        raise UserError(f"{folder}: its tokenizer.json can't be read ({e})") from None


def has_tokenizer(folder: str | Path, *names: str) -> bool:
    """Whether a folder has what a tokenizer is made of: its tokenizer.json, or nanoGPT's meta.pkl."""
    return any(Path(folder, name).is_file() for name in names or ("tokenizer.json", "meta.pkl"))


# ----- one interface -----


class Tokenizer:
    """Text to ids and back: name, n_vocab, and eot_token, which ends a document and never encodes text."""

    def __init__(self, spec: dict):
        import tiktoken

        self.name, self.n_vocab, self.eot_token = spec["name"], spec["n_vocab"], spec["eot"]
        self.spelled = spec["tokens"]
        ranks = {token: i for i, token in enumerate(self.spelled) if token is not None}
        self.encoding = tiktoken.Encoding(
            spec["name"], pat_str=spec["pattern"], mergeable_ranks=ranks, special_tokens={EOT: self.eot_token}
        )

    @property
    def start_token(self) -> int:
        """After which a text begins."""
        return self.eot_token

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Token ids of each text of at most MAX_CHARS; other Python threads run meanwhile."""
        if hasattr(self.encoding, "encode_to_numpy"):  # from tiktoken 0.9 on; no list of Python numbers in between
            return [self.encoding.encode_to_numpy(text, disallowed_special=()) for text in texts]
        return [np.array(self.encoding.encode_ordinary(text), dtype=np.uint32) for text in texts]

    def encode_ordinary(self, text: str) -> list[int]:
        """Token ids of a text of any length; the name of a special token in it is text."""
        found = []
        for start in range(0, len(text), MAX_CHARS):
            found += self.encode([text[start : start + MAX_CHARS]])[0].tolist()
        return found

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
        return raw.removeprefix(b" ") if self.blank_first else raw


def load_tokenizer(folder: str | Path) -> Tokenizer:
    """The tokenizer of a data folder."""
    spec = read_tokenizer(folder)
    if "characters" in spec:
        return CharacterTokenizer(spec)
    return HFTokenizer(spec) if "hf" in spec else Tokenizer(spec)


def token_bytes(folder: str | Path) -> np.ndarray:
    """(vocab_size,) int64: utf-8 bytes that each token spells, special ones 0. For bits per byte: sum over targets."""
    spec = read_tokenizer(folder)
    if "characters" in spec:
        return np.array([len(character.encode()) for character in spec["characters"]])
    spelled = hf_spelling(spec) if "hf" in spec else spec["tokens"]
    lengths = np.zeros(spec["n_vocab"], dtype=np.int64)
    lengths[: len(spelled)] = [len(token or b"") for token in spelled]
    return lengths


def lossless(tokenizer: Tokenizer) -> bool:
    """Whether it decodes unusual texts to what was encoded; some tokenizer.json normalize, or lack characters."""
    unusual = [
        "a  b\r\n\tc ",
        " x",
        "caf\u00e9 e\u0301 \ufb01 \uff21",
        "\u65e5\U0001f469\u200d\U0001f467\x00\x01 \u2028",
        "A <s> b",
    ]
    return all(tokenizer.decode(tokenizer.encode([text])[0].tolist()) == text for text in unusual)


# ----- documents into tokens -----


def encode(tokenizer: Tokenizer, items: Iterable, dtype: str, threads: int | None = None) -> Iterator[tuple]:
    """(item, ids) for each item in order: ids end with end-of-text; None for an item with no `.text`.

    Threads encode ahead, a few groups of documents at most, while the caller writes and another thread reads: tiktoken
    and tokenizers release Python's lock while they work.
    """
    threads = threads or cores()
    end = np.array([tokenizer.eot_token], dtype)

    def encode_group(group):
        encoded = iter(tokenizer.encode([item.text for item in group if item.text is not None]))
        pairs = []
        for item in group:
            ids = None
            if item.text is not None:
                ids = np.concatenate([next(encoded), end], dtype=dtype, casting="unsafe")
            pairs.append((item, ids))
        return pairs

    with ThreadPoolExecutor(threads) as pool:
        ahead, group, size = deque(), [], 0
        try:
            for item in items:
                group.append(item)
                size += len(item.text or "")
                if size >= GROUP_BYTES or len(group) >= GROUP_DOCS:
                    ahead.append(pool.submit(encode_group, group))
                    group, size = [], 0
                    if len(ahead) > 2 * threads:
                        yield from ahead.popleft().result()
            ahead.append(pool.submit(encode_group, group))
            while ahead:
                yield from ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""Hugging Face tokenizer.json files as tokenizers of ours."""

from __future__ import annotations

import json
from pathlib import Path

from isoflop.data.downloads import gpt2_bytes
from isoflop.data.errors import EOT, DataError

ENDS = (EOT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<|eot_id|>", "[SEP]")  # what ends a text, by use


def hf_module(name: str):
    try:
        import tokenizers
    except ImportError:
        raise DataError(f"--tokenizer {name} needs the tokenizers package: pip install tokenizers") from None
    return tokenizers


def hf_spec(path: str) -> dict:
    """A Hugging Face tokenizer.json as it is, with the token that will end documents."""
    try:
        spec = json.loads(Path(path).read_text("utf-8"))
        hf = hf_module(path).Tokenizer.from_str(json.dumps(spec))
    except DataError:
        raise
    except Exception as e:  # tokenizers raises plain Exception
        raise DataError(f"--tokenizer {path}: not a tokenizer.json that tokenizers reads ({e})") from None
    vocab = hf.get_vocab(with_added_tokens=True)
    n_vocab = max(vocab.values()) + 1
    specials = {token["content"]: token["id"] for token in spec.get("added_tokens") or [] if token.get("special")}
    eot = next((specials[text] for text in ENDS if text in specials), n_vocab)
    return {"name": Path(path).resolve().parent.name or "hf", "hf": spec, "eot": eot, "n_vocab": max(n_vocab, eot + 1)}


def hf_spelling(spec: dict) -> list[bytes | None]:
    """The bytes of each id of a tokenizer.json; None for special tokens and unused ids.

    Two ways to write bytes as characters are known: GPT-2's (ByteLevel), and SentencePiece's, where U+2581 is a blank
    and <0x0A> one byte. Other vocabularies (WordPiece) are taken as they read, less the ## of a word's inside.
    """
    model, added = spec["hf"]["model"], spec["hf"].get("added_tokens") or []
    vocab = model["vocab"]
    pairs = vocab.items() if isinstance(vocab, dict) else ((token, i) for i, (token, _) in enumerate(vocab))
    steps = json.dumps([spec["hf"].get("pre_tokenizer"), spec["hf"].get("decoder")])
    spelled: list[bytes | None] = [None] * spec["n_vocab"]
    byte_of = gpt2_bytes()
    for token, i in pairs:
        if '"ByteLevel"' in steps and all(c in byte_of for c in token):
            spelled[i] = bytes(byte_of[c] for c in token)
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            spelled[i] = bytes.fromhex(token[3:5])
        else:
            prefix = model.get("continuing_subword_prefix") or ""
            spelled[i] = token.removeprefix(prefix).replace("\u2581", " ").encode("utf-8")
    for token in added:
        spelled[token["id"]] = None if token.get("special") else token["content"].encode("utf-8")
    return spelled

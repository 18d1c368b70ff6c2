"""Hugging Face tokenizer.json files: the spec that a data folder saves, and the bytes that each id spells."""

import json
from pathlib import Path

from isoflop.data.bpe import EOT
from isoflop.data.downloads import gpt2_bytes
from isoflop.files import read_json
from isoflop.options import UserError

ENDS = (EOT, "<|end_of_text|>", "</s>", "<eos>", "<|im_end|>", "<|eot_id|>", "[SEP]")  # what ends a text, by use


def hf_module(name: str):
    """The tokenizers package; UserError where it is missing."""
    try:
        import tokenizers
    except ImportError:
        raise UserError(f"--tokenizer {name} needs the tokenizers package: pip install tokenizers") from None
    return tokenizers


def hf_spec(path: str) -> dict:
    """A Hugging Face tokenizer.json as it is, with the token that will end documents: {name, hf, eot, n_vocab}."""
    module = hf_module(path)
    try:
        spec = read_json(path)
        hf = module.Tokenizer.from_str(json.dumps(spec))
    except Exception as e:  # tokenizers raises plain Exception
        raise UserError(f"--tokenizer {path}: not a tokenizer.json that tokenizers reads ({e})") from None
    n_vocab = max(hf.get_vocab(with_added_tokens=True).values()) + 1
    specials = {token["content"]: token["id"] for token in spec.get("added_tokens") or [] if token.get("special")}
    known_ends = [specials[text] for text in ENDS if text in specials]
    eot = known_ends[0] if known_ends else n_vocab
    return {"name": Path(path).resolve().parent.name or "hf", "hf": spec, "eot": eot, "n_vocab": max(n_vocab, eot + 1)}


def hf_end(path: str) -> tuple[str, ...]:
    """The special token of a tokenizer.json that ends a document, as text: one, or none where it has none."""
    specials = [token["content"] for token in read_json(path).get("added_tokens") or [] if token.get("special")]
    return tuple(text for text in ENDS if text in specials)[:1]


def hf_spelling(spec: dict) -> list[bytes | None]:
    """The bytes of each id of a tokenizer.json; None for special tokens and unused ids.

    Two ways to write bytes as characters are known: GPT-2's (ByteLevel), and SentencePiece's, where U+2581 is a blank
    and <0x0A> one byte. Other vocabularies (WordPiece) are taken as they read, less the ## of a word's inside.
    """
    model = spec["hf"]["model"]
    vocab = model["vocab"]
    if isinstance(vocab, dict):
        pairs = list(vocab.items())
    else:  # a unigram model: [[token, score], ...]
        pairs = [(token, i) for i, (token, _) in enumerate(vocab)]
    steps = json.dumps([spec["hf"].get("pre_tokenizer"), spec["hf"].get("decoder")])
    byte_level = '"ByteLevel"' in steps
    prefix = model.get("continuing_subword_prefix") or ""
    byte_of = gpt2_bytes()

    spelled: list[bytes | None] = [None] * spec["n_vocab"]
    for token, i in pairs:
        if byte_level and all(c in byte_of for c in token):
            spelled[i] = bytes(byte_of[c] for c in token)
        elif len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            spelled[i] = bytes.fromhex(token[3:5])
        else:
            spelled[i] = token.removeprefix(prefix).replace("\u2581", " ").encode("utf-8")
    for token in spec["hf"].get("added_tokens") or []:
        spelled[token["id"]] = None if token.get("special") else token["content"].encode("utf-8")
    return spelled

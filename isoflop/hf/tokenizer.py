"""Our tokenizer.json as Hugging Face's, and theirs as ours: both list byte strings, they spell bytes as characters.

Ours (data.py) is {name, pattern, tokens}: base64 byte strings in the order of their ids, merged by tiktoken; or, where
a data folder was made with a tokenizer.json of theirs, {name, hf, eot, n_vocab}, which holds that file whole.
"""

import base64
import json
import re
from pathlib import Path

from isoflop.data.bpe import EOT, PATTERN
from isoflop.data.hf_tokenizer import ENDS
from isoflop.train import run_dir

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def characters() -> list[str]:
    """The character that stands for each byte: itself where it is printable, else the next one from chr(256) on."""
    plain = [b for b in range(256) if chr(b).isprintable() and chr(b) != " "]
    rest = {b: chr(256 + i) for i, b in enumerate(b for b in range(256) if b not in plain)}
    return [chr(b) if b in plain else rest[b] for b in range(256)]


def read_spec(path: Path) -> dict:
    """Our tokenizer.json as it stands; ValueError where it is not one."""
    spec = run_dir.read_json(path)
    if not isinstance(spec, dict) or not ({"pattern", "tokens"} <= spec.keys() or {"hf", "eot"} <= spec.keys()):
        raise ValueError(f"{path} is not a tokenizer.json of data.py's")
    return spec


def eot_of(spec: dict) -> int:
    return spec["eot"] if "eot" in spec else len(spec["tokens"])


def same(a: dict, b: dict) -> bool:
    """Whether two tokenizers give every text the same ids, whatever they are called."""
    return {k: v for k, v in a.items() if k != "name"} == {k: v for k, v in b.items() if k != "name"}


# ----- to Hugging Face ----------------------------------------------------------------------------------------------


def to_hf(spec: dict) -> dict:
    """Their tokenizer.json, which gives the ids that tiktoken gives.

    tiktoken merges any two neighbours whose bytes together are a token, the lowest id first; a merge list names pairs.
    So every pair that makes a token is listed, in the order of the ids, and a word that is a token is taken whole.
    """
    if "hf" in spec:
        return spec["hf"]
    character = characters()
    tokens = [None if t is None else base64.b64decode(t) for t in spec["tokens"]]
    ids = {token: i for i, token in enumerate(tokens) if token is not None}
    spelled = {token: "".join(character[b] for b in token) for token in ids}
    merges = [
        f"{spelled[token[:cut]]} {spelled[token[cut:]]}"
        for token in sorted(ids, key=ids.get)
        for cut in range(1, len(token))
        if token[:cut] in ids and token[cut:] in ids
    ]
    cut_words = BYTE_LEVEL | {"use_regex": True}  # GPT-2's rule is ByteLevel's own
    if spec["pattern"] != PATTERN:
        split = {"type": "Split", "pattern": {"Regex": plain(spec["pattern"])}, "behavior": "Isolated", "invert": False}
        cut_words = {"type": "Sequence", "pretokenizers": [split, BYTE_LEVEL | {"use_regex": False}]}
    end = {"id": eot_of(spec), "content": EOT, "single_word": False, "lstrip": False, "rstrip": False}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [end | {"normalized": False, "special": True}],
        "normalizer": None,
        "pre_tokenizer": cut_words,
        "post_processor": None,
        "decoder": BYTE_LEVEL | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": True,
            "vocab": {spelled[token]: i for token, i in ids.items()},
            "merges": merges,
        },
    }


def plain(pattern: str) -> str:
    """A pattern without possessive {1,3}+, which to Oniguruma, theirs, means one or more times {1,3}."""
    return re.sub(r"(\{\d+,\d*\})\+", r"\1", pattern)


def write(spec: dict, out: Path, block_size: int):
    """tokenizer.json and tokenizer_config.json, for AutoTokenizer."""
    hf = to_hf(spec)
    added = {token["id"]: token["content"] for token in hf.get("added_tokens") or []}
    end = added.get(eot_of(spec))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": block_size,
        "clean_up_tokenization_spaces": False,
        "bos_token": end,
        "eos_token": end,
        "isoflop_name": spec.get("name"),
    }
    (out / "tokenizer.json").write_text(json.dumps(hf, ensure_ascii=False), "utf-8")
    (out / "tokenizer_config.json").write_text(json.dumps(config, indent=2), "utf-8")


# ----- from Hugging Face --------------------------------------------------------------------------------------------


def from_folder(folder: Path) -> tuple[dict | None, str]:
    """Our tokenizer.json for the tokenizer of a folder of theirs, and in words what is missing, if anything."""
    whole, vocab = folder / "tokenizer.json", folder / "vocab.json"
    config = run_dir.read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").exists() else {}
    name = (config.get("isoflop_name") if isinstance(config, dict) else None) or folder.resolve().name
    if whole.exists():
        hf = run_dir.read_json(whole)
        if not isinstance(hf, dict) or not isinstance(hf.get("model"), dict):
            raise ValueError(f"{whole} is not a tokenizer.json of Hugging Face's")
    elif vocab.exists():  # GPT-2's first files; its merges are in the order of its ids
        hf = {"model": {"type": "BPE", "vocab": run_dir.read_json(vocab)}, "pre_tokenizer": BYTE_LEVEL}
    else:
        return None, "it has no tokenizer.json: name a data folder with --data_dir to sample from it"
    own = own_spec(hf, name)
    if own is not None:
        return own, ""
    specials = {token["content"]: token["id"] for token in hf.get("added_tokens") or [] if token.get("special")}
    eot = next((specials[text] for text in ENDS if text in specials), None)
    listed = hf["model"].get("vocab") or {}
    most = max(len(listed), 1 + max(specials.values(), default=-1))
    if eot is None:
        return None, "its tokenizer has no end-of-text token that is known here"
    return {"name": name, "hf": hf, "eot": eot, "n_vocab": most}, "its tokenizer needs the tokenizers package"


def own_spec(hf: dict, name: str) -> dict | None:
    """{name, pattern, tokens} for a byte-level BPE whose one special id, the last, ends a text; else None."""
    model, cut = hf["model"], hf.get("pre_tokenizer") or {}
    pattern = PATTERN if cut.get("type") == "ByteLevel" and cut.get("use_regex", True) else None
    if cut.get("type") == "Sequence" and [p.get("type") for p in cut["pretokenizers"]] == ["Split", "ByteLevel"]:
        pattern = cut["pretokenizers"][0].get("pattern", {}).get("Regex")
    vocab = model.get("vocab")
    if model.get("type", "BPE") != "BPE" or pattern is None or cut.get("add_prefix_space") or hf.get("normalizer"):
        return None
    if not isinstance(vocab, dict) or model.get("byte_fallback"):
        return None
    added = [(token["content"], token["id"]) for token in hf.get("added_tokens") or []]
    words = {word: i for word, i in vocab.items() if word != EOT}
    if any(pair != (EOT, len(words)) for pair in added) or vocab.get(EOT, len(words)) != len(words):
        return None
    byte = {c: b for b, c in enumerate(characters())}
    if sorted(words.values()) != list(range(len(words))) or not all(c in byte for word in words for c in word):
        return None
    tokens = [bytes(byte[c] for c in word) for word in sorted(words, key=words.get)]
    return {"name": name, "pattern": pattern, "tokens": [base64.b64encode(token).decode() for token in tokens]}

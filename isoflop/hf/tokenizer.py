"""Our tokenizer.json as Hugging Face's, and theirs as ours: both list byte strings, they spell bytes as characters.

Ours (data.py) is {name, pattern, tokens}: base64 byte strings in the order of their ids, merged by tiktoken; or, where
a data folder was made with a tokenizer.json of theirs, {name, hf, eot, n_vocab}, which holds that file whole.
"""

import base64
import re
from pathlib import Path

from isoflop.data.bpe import EOT, PATTERN
from isoflop.data.characters import character_spec
from isoflop.data.hf_tokenizer import ENDS
from isoflop.data.tokenizer import has_tokenizer
from isoflop.files import read_json, write_json
from isoflop.options import UserError

BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}


def characters() -> list[str]:
    """The character that stands for each byte: itself where it is printable, else the next one from chr(256) on."""
    spelled, substitutes = [], 0
    for byte in range(256):
        if chr(byte).isprintable() and chr(byte) != " ":
            spelled.append(chr(byte))
        else:
            spelled.append(chr(256 + substitutes))
            substitutes += 1
    return spelled


def read_spec(path: Path) -> dict:
    """Our tokenizer.json as it stands; UserError where it is not one."""
    if not path.exists() and has_tokenizer(path.parent, "meta.pkl"):
        return character_spec(path.parent)
    spec = read_json(path)
    kinds = ({"pattern", "tokens"}, {"hf", "eot"}, {"characters"})
    if not isinstance(spec, dict) or not any(kind <= spec.keys() for kind in kinds):
        raise UserError(f"{path} is not a tokenizer.json of data.py; name another folder with --tokenizer_dir")
    return spec


def eot_of(spec: dict) -> int | None:
    if "characters" in spec:
        return None
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
    if "characters" in spec:
        return characters_to_hf(spec["characters"])
    character = characters()
    tokens = [None if t is None else base64.b64decode(t) for t in spec["tokens"]]
    ids = {token: i for i, token in enumerate(tokens) if token is not None}
    spelled = {token: "".join(character[b] for b in token) for token in ids}
    merges = []
    for token in sorted(ids, key=ids.get):
        for cut in range(1, len(token)):
            left, right = token[:cut], token[cut:]
            if left in ids and right in ids:
                merges.append(f"{spelled[left]} {spelled[right]}")
    cut_words = BYTE_LEVEL | {"use_regex": True}  # GPT-2's rule is ByteLevel's own
    if spec["pattern"] != PATTERN:
        split = {
            "type": "Split",
            "pattern": {"Regex": without_possessive(spec["pattern"])},
            "behavior": "Isolated",
            "invert": False,
        }
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


def characters_to_hf(table: list[str]) -> dict:
    """Their tokenizer.json of a model of single characters."""
    each = {"type": "Split", "pattern": {"Regex": "[\\s\\S]"}, "behavior": "Isolated", "invert": False}
    vocab = {character: i for i, character in enumerate(table)}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": each,
        "post_processor": None,
        "decoder": {"type": "Fuse"},
        "model": {"type": "WordLevel", "vocab": vocab, "unk_token": "<unk>"},
    }


def without_possessive(pattern: str) -> str:
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
    write_json(out / "tokenizer.json", hf, indent=None, ensure_ascii=False)
    write_json(out / "tokenizer_config.json", config)


# ----- from Hugging Face --------------------------------------------------------------------------------------------


def from_folder(folder: Path) -> tuple[dict | None, str]:
    """(our tokenizer.json for the tokenizer of a folder of theirs, what is missing); None where it can't be used."""
    config, name = folder / "tokenizer_config.json", None
    if config.exists():
        settings = read_json(config)
        if isinstance(settings, dict):
            name = settings.get("isoflop_name")
    whole, vocab = folder / "tokenizer.json", folder / "vocab.json"
    if whole.exists():
        hf = read_json(whole)
        if not isinstance(hf, dict) or not isinstance(hf.get("model"), dict):
            raise UserError(f"{whole} is not a tokenizer.json of Hugging Face's")
        added = hf.get("added_tokens") or []
        if not isinstance(added, list) or not all(is_token(token) for token in added):
            raise UserError(f"{whole}: added_tokens must be a list of tokens, each with content and id")
    elif vocab.exists():  # GPT-2's first files; its merges are in the order of its ids
        hf = {"model": {"type": "BPE", "vocab": read_json(vocab)}, "pre_tokenizer": BYTE_LEVEL}
    else:
        return None, "it has no tokenizer.json: sample.py needs --tokenizer_dir"
    name = name or folder.resolve().name
    own = own_spec(hf, name)
    if own is not None:
        return own, ""
    specials = {}
    for token in hf.get("added_tokens") or []:
        if token.get("special"):
            specials[token["content"]] = token["id"]
    eot = next((specials[text] for text in ENDS if text in specials), None)
    if eot is None:
        return None, "its tokenizer has no end-of-text token that is known here"
    n_vocab = max(len(hf["model"].get("vocab") or {}), 1 + max(specials.values()))
    return {"name": name, "hf": hf, "eot": eot, "n_vocab": n_vocab}, "its tokenizer needs the tokenizers package"


def is_token(entry) -> bool:
    """Whether an entry of added_tokens has a text and an id."""
    return isinstance(entry, dict) and isinstance(entry.get("content"), str) and isinstance(entry.get("id"), int)


def own_spec(hf: dict, name: str) -> dict | None:
    """{name, pattern, tokens} for a byte-level BPE whose one special id, the last, ends a text; else None."""
    model, pattern, vocab = hf["model"], pattern_of(hf), hf["model"].get("vocab")
    if model.get("type", "BPE") != "BPE" or model.get("byte_fallback") or not isinstance(vocab, dict):
        return None
    if pattern is None or hf.get("normalizer"):
        return None
    if not all(isinstance(i, int) for i in vocab.values()):
        raise UserError("its tokenizer.json has ids that are not whole numbers")
    words = {word: i for word, i in vocab.items() if word != EOT}
    for token in hf.get("added_tokens") or []:
        if (token["content"], token["id"]) != (EOT, len(words)):
            return None
    if vocab.get(EOT, len(words)) != len(words) or sorted(words.values()) != list(range(len(words))):
        return None
    byte_of, tokens = {character: byte for byte, character in enumerate(characters())}, []
    for word in sorted(words, key=words.get):
        if not all(character in byte_of for character in word):
            return None
        tokens.append(base64.b64encode(bytes(byte_of[character] for character in word)).decode())
    return {"name": name, "pattern": pattern, "tokens": tokens}


def pattern_of(hf: dict) -> str | None:
    """The pattern by which a byte-level tokenizer cuts words; None where it is another kind."""
    cut = hf.get("pre_tokenizer") or {}
    if cut.get("add_prefix_space"):
        return None
    if cut.get("type") == "ByteLevel" and cut.get("use_regex", True):
        return PATTERN
    if cut.get("type") == "Sequence" and [part.get("type") for part in cut["pretokenizers"]] == ["Split", "ByteLevel"]:
        return cut["pretokenizers"][0].get("pattern", {}).get("Regex")
    return None

"""A model of single characters, as nanoGPT's shakespeare_char: its table in meta.pkl, and a tokenizer from that.

The table is read from the pickle's opcodes, so that nothing in the file is run. A tokenizer.json may hold it, too, as
{"name": "characters", "characters": ["\\n", " ", "a", ...]}: the place of a character is its id.
"""

import pickletools
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from isoflop.files import regular
from isoflop.options import UserError

PICKLE_BYTES = 2**26  # nanoGPT's meta.pkl has a few kB
NAME = "characters"


def read_pickle(path: Path) -> dict:
    """vocab_size and itos of nanoGPT's meta.pkl, from its opcodes: nothing in the file is run.

    In {"vocab_size": V, "itos": {0: "a", ...}} each value follows its key, with only bookkeeping in between.
    """
    found, pairs, key, number = {}, {}, None, None
    try:
        raw = regular(path, PICKLE_BYTES).read_bytes()
        for op, value, _ in pickletools.genops(raw):
            if isinstance(value, str) and "UNICODE" in op.name:
                if key == "itos" and number is not None:
                    pairs[number], number = value, None
                else:
                    key = value
            elif isinstance(value, int) and "INT" in op.name:
                number = value
                if key == "vocab_size":
                    found["vocab_size"], key = value, None
    except ValueError:
        pass  # not a pickle, or cut short: use what was found
    if pairs and sorted(pairs) == list(range(found.get("vocab_size", -1))):
        found["itos"] = [pairs[i] for i in range(len(pairs))]
    return found


def character_spec(folder: str | Path) -> dict:
    """The spec for a tokenizer.json from a folder's meta.pkl; UserError where that holds no table of characters."""
    path = Path(folder, "meta.pkl")
    found = read_pickle(path).get("itos")
    if found is None:
        raise UserError(
            f"{path} holds no table of characters (itos); write it to {path.with_name('tokenizer.json')} as "
            f'{{"name": "{NAME}", "characters": [...]}}, in the order of the ids'
        )
    return {"name": NAME, NAME: found}


class CharacterTokenizer:
    """What tokenizer.Tokenizer offers, a character a token; no id ends a document."""

    eot_token = None

    def __init__(self, spec: dict):
        self.name, self.characters = spec["name"], spec[NAME]
        self.n_vocab = len(self.characters)
        self.ids = {character: i for i, character in enumerate(self.characters)}
        self.start_token = self.ids.get("\n", 0)  # after which a text may begin

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        return [np.array(self.encode_ordinary(text), dtype=np.uint32) for text in texts]

    def encode_ordinary(self, text: str) -> list[int]:
        unknown = sorted(set(text) - self.ids.keys())
        if unknown:
            raise UserError(
                f"the character {unknown[0]!r} is none of the {self.n_vocab} that the model knows; leave it out"
            )
        return [self.ids[character] for character in text]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        return self.decode(ids).encode()

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.characters[i] for i in ids)

    def decode_single_token_bytes(self, i: int) -> bytes:
        return self.characters[i].encode() if i < self.n_vocab else b""

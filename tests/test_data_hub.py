"""FineWeb's real call, `load_dataset(..., streaming=True)` in a process of its own, against a hub on loopback."""

import io
import os
import random
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hub_stub import Hub

from isoflop.data.config import DataConfig
from isoflop.data.reader import open_data
from isoflop.data.tokenizer import load_tokenizer

ROOT = Path(__file__).parent.parent
REPO = "HuggingFaceFW/fineweb"
README = b"""---
configs:
- config_name: default
  data_files: [{split: train, path: data/*/*}]
- config_name: sample-10BT
  data_files: [{split: train, path: sample/10BT/*}]
---
A stand-in with FineWeb's configurations and columns.
"""


def make_texts(n: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    words = "the of scaling law compute optimal model loss tokens batch width depth".split()
    return [f"Page {seed}.{i}: " + " ".join(rng.choices(words, k=300)) for i in range(n)]


def parquet(texts: list[str]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    n, sink = len(texts), io.BytesIO()
    columns = {"text": texts, "id": [str(i) for i in range(n)]}
    columns |= {name: ["-"] * n for name in ("dump", "url", "date", "file_path", "language")}
    columns |= {"language_score": [0.9] * n, "token_count": [300] * n}
    pq.write_table(pa.table(columns), sink, row_group_size=200, compression="none")
    return sink.getvalue()


TEXTS = [make_texts(600, seed=1), make_texts(600, seed=2)]


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    pytest.importorskip("datasets")
    shards = {f"sample/10BT/00{i}_00000.parquet": parquet(texts) for i, texts in enumerate(TEXTS)}
    return {"README.md": README, "data/CC-MAIN/000_00000.parquet": parquet(["not this one"])} | shards


def fineweb(tmp_path: Path, url: str, *args, **env) -> tuple[subprocess.CompletedProcess, float]:
    """(what `python data.py` did, seconds), with nothing in the environment but the hub's address."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and not k.lower().endswith("_proxy")}
    clean |= {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": url} | env
    command = [sys.executable, str(ROOT / "data.py"), "--tokenizer", "byte", "--out_dir", "out", *map(str, args)]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=200)
    return done, time.perf_counter() - started


def check_refusal(done, tmp_path: Path) -> None:
    assert done.returncode == 2 and done.stdout == "", done
    assert done.stderr.startswith("data.py: error: ") and done.stderr.count("\n") == 1, done.stderr
    assert "python data.py --source stdlib" in done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != "hf"] == [], "nothing is left, whole or half"


def fails_in_mid_stream(tmp_path: Path, files: dict, mode: str, *patience) -> tuple[subprocess.CompletedProcess, float]:
    """The first file is served whole, the second is cut in the middle. Returns the seconds beyond --hub_timeout too.

    They count from the cut. A loaded machine may need more than a short --hub_timeout to get there: hence several.
    """
    for hub_timeout in patience:
        with Hub(REPO, files, mode, budget=int(1.8 * len(files["sample/10BT/000_00000.parquet"]))) as hub:
            done, _ = fineweb(tmp_path, hub.url, "--hub_timeout", hub_timeout)
            if hub.died_at is not None:
                return done, time.monotonic() - hub.died_at - hub_timeout
    raise AssertionError(hub.requests)


def is_silent(tmp_path: Path) -> tuple[subprocess.CompletedProcess, float]:
    with Hub(REPO, {}, "silent") as hub:
        return fineweb(tmp_path, hub.url)


@pytest.fixture(scope="module")
def waiting(tmp_path_factory, files):
    """The cases that mostly wait, side by side: name -> (folder, future)."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("silent", "dies")}
    with ThreadPoolExecutor(2) as pool:
        yield {
            "silent": (folders["silent"], pool.submit(is_silent, folders["silent"])),
            "dies": (folders["dies"], pool.submit(fails_in_mid_stream, folders["dies"], files, "dies", 5, 20)),
        }


def test_streams_and_decodes(waiting, tmp_path, files):
    with Hub(REPO, files) as hub:
        done, _ = fineweb(tmp_path, hub.url)
        assert done.returncode == 0 and done.stderr == "", done.stderr
        assert any("10BT/001_00000.parquet" in r for r in hub.requests) and not any(
            "CC-MAIN" in r for r in hub.requests
        )
    opened, encoding = open_data(tmp_path / "out"), load_tokenizer(tmp_path / "out")
    found = []
    for tokens in (opened.train, opened.val):
        ends = [-1, *(i for i, t in enumerate(tokens) if t == opened.meta["eot_token"])]
        found += [encoding.decode(tokens[a + 1 : b].tolist()) for a, b in zip(ends, ends[1:], strict=False)]
    assert sorted(found) == sorted(sum(TEXTS, []))
    assert opened.meta["settings"]["config"] == "sample-10BT" and opened.meta["settings"]["num_docs"] == 100_000


def test_stops_at_the_cap_and_ends_cleanly(tmp_path, files):
    with Hub(REPO, files) as hub:
        done, _ = fineweb(tmp_path, hub.url, "--num_docs", 100)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    meta = open_data(tmp_path / "out").meta
    assert meta["train"]["documents"] + meta["val"]["documents"] == 100


def test_refused(tmp_path):
    with socket.socket() as s:  # a port that is free a moment later
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    done, seconds = fineweb(tmp_path, f"http://127.0.0.1:{port}")
    check_refusal(done, tmp_path)
    assert "refused" in done.stderr and seconds < 3


def test_silent(waiting):
    folder, future = waiting["silent"]
    done, seconds = future.result()
    check_refusal(done, folder)
    assert "no answer within 4 s" in done.stderr and 4 <= seconds < 9


def test_dies_in_mid_stream(waiting):
    folder, future = waiting["dies"]
    done, late = future.result()
    check_refusal(done, folder)
    assert late < 4


@pytest.mark.slow
def test_stalls_in_mid_stream(tmp_path, files):
    done, late = fails_in_mid_stream(tmp_path, files, "stalls", 5, 20)
    check_refusal(done, tmp_path)
    assert late < 4


@pytest.mark.slow
def test_dies_with_the_default_patience(tmp_path, files):
    done, late = fails_in_mid_stream(tmp_path, files, "dies", DataConfig.hub_timeout)
    check_refusal(done, tmp_path)
    assert late < 4


def test_offline_mode(tmp_path):
    with Hub(REPO, {}) as hub:
        done, seconds = fineweb(tmp_path, hub.url, HF_HUB_OFFLINE="1")
        check_refusal(done, tmp_path)
        assert hub.requests == [] and seconds < 20


@pytest.mark.slow
@pytest.mark.parametrize("flag, value, says", [
    ("--text_column", "body", "no --text_column 'body' among its columns (text, id, dump"),
    ("--config", "sample-11BT", "sample-11BT"),
    ("--split", "dev", "dev"),
    ("--dataset", "nobody/nothing", "nobody/nothing"),
])  # fmt: skip
def test_unknown_names(tmp_path, files, flag, value, says):
    with Hub(REPO, files) as hub:
        done, _ = fineweb(tmp_path, hub.url, flag, value)
    assert done.returncode == 2 and done.stdout == "" and done.stderr.count("\n") == 1 and says in done.stderr
    assert [p.name for p in tmp_path.iterdir() if p.name != "hf"] == []

"""shards.py: kill -9 and go on, with the bytes of an undisturbed run; shards, append, and several workers."""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from hub_stub import Hub
from test_data import ODD, documents_of, write_jsonl
from test_data_hub import README, REPO, parquet

import data
from data import prepare
from isoflop.data import documents as stream
from isoflop.data.config import DataConfig
from isoflop.data.errors import DataError
from isoflop.data.loader import Loader
from isoflop.data.reader import open_data

ROOT = Path(__file__).parent.parent
CORPORA = ROOT.parent / "shared" / "corpora"
PIECE = 2**15  # bytes between two marks here, instead of 64 MiB: small text has many places to go on from
CODE = """
import os, signal, sys
from isoflop.data import documents, sources, writer
documents.MARK_BYTES, sources.CHUNK_DOCS = {piece}, 50
import data
{more}
sys.stdout.flush(), os._exit(data.main(sys.argv[1:])) if __name__ == "__main__" else None
"""
SLOWLY = """
import time
add = writer.Splits.add
def slow(self, *args):
    time.sleep(0.001)
    return add(self, *args)
writer.Splits.add = slow
"""


def texts(n: int, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = "the of scaling law compute optimal model loss tokens batch width depth don't 3.14\n".split(" ")
    return [*ODD, *(f"{seed}.{i} " + " ".join(rng.choices(words, k=rng.randint(3, 120))) for i in range(n))]


def start(*args, cwd, more: str = "", **env) -> subprocess.Popen:
    command = [sys.executable, "-c", CODE.format(piece=PIECE, more=more), *map(str, args)]
    env = os.environ | {"PYTHONPATH": str(ROOT)} | env
    return subprocess.Popen(command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def contents(folder: Path) -> dict[str, str]:
    """Checksums of all files, and meta.json without what tells when and where."""
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.glob("*.bin"))}
    found["tokenizer.json"] = hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    meta = json.loads((folder / "meta.json").read_text())
    return found | {k: v for k, v in meta.items() if k not in ("created", "command", "settings")}


@pytest.fixture
def rows(tmp_path) -> Path:
    """A folder of a parquet and a jsonl file, with duplicates and rows that are dropped."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "rows"
    folder.mkdir()
    first, second = texts(600, 1), texts(600, 2)
    pq.write_table(pa.table({"text": [*first, None, "", *first[:9]]}), folder / "a.parquet", row_group_size=130)
    write_jsonl(folder / "b.jsonl", [*second, 5, " ", *first[:7]])
    return folder


def killed(process: subprocess.Popen, after: float, stage: Path | None = None) -> bool:
    """SIGKILL after so many seconds, counted from the first state on the disk; whether it was still running."""
    while stage is not None and process.poll() is None and not (stage / "new" / "state.json").exists():
        time.sleep(0.01)
    try:
        process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
    return process.wait(60) == -signal.SIGKILL


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300"])
def test_kill_and_resume(tmp_path, rows, tokenizer):
    flags = ["--source", rows, "--tokenizer", tokenizer, "--shard_tokens", 50_000, "--bpe_sample", 40_000, "--out_dir"]
    whole = start(*flags, "whole", cwd=tmp_path)
    assert whole.wait(60) == 0, whole.stderr.read()
    rng, cut = random.Random(0), 0
    for _ in range(3):
        cut += killed(start(*flags, "d", cwd=tmp_path, more=SLOWLY), rng.uniform(0.0, 0.25), tmp_path / ".d.partial")
    last = start(*flags, "d", cwd=tmp_path)
    out, err = last.communicate(timeout=60)
    assert last.returncode == 0 and cut == 3 and "going on from" in out, (out, err)
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")
    assert len(open_data(tmp_path / "d").meta["train"]["shards"]) > 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "rows", "whole"]


def test_a_failure_behind_a_mark_keeps_what_was_made(tmp_path, rows):
    flags = ["--source", rows, "--tokenizer", "byte", "--out_dir", "d"]
    full = "def full(self, raw):\n    raise OSError(28, 'No space left on device')\n"
    full += "mark = writer.Splits.mark\ndef after(self, item):\n    mark(self, item)\n    writer.Shard.write = full\n"
    stopped = start(*flags, cwd=tmp_path, more=full + "writer.Splits.mark = after\n")
    out, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 2 and err.count("\n") == 1 and "No space left" in err, err
    assert "the same command goes on from there" in err and not (tmp_path / "d").exists()
    with pytest.raises(DataError):
        open_data(tmp_path / ".d.partial" / "new")
    again = start(*flags, cwd=tmp_path)
    assert again.wait(60) == 0 and "going on from" in again.stdout.read()
    prepare(DataConfig(source=str(rows), tokenizer="byte", out_dir=str(tmp_path / "e")), quiet=True)
    assert (tmp_path / "d" / "train.bin").read_bytes() == (tmp_path / "e" / "train.bin").read_bytes()


def test_a_changed_source_starts_anew(tmp_path, rows):
    flags = ["--source", rows, "--tokenizer", "byte", "--out_dir", "d"]
    assert killed(start(*flags, cwd=tmp_path, more=SLOWLY), 0.1, tmp_path / ".d.partial")
    write_jsonl(rows / "b.jsonl", texts(50, 3))
    again = start(*flags, cwd=tmp_path)
    assert again.wait(60) == 0 and "going on" not in again.stdout.read()
    assert set(sum(documents_of(tmp_path / "d").values(), [])) == set(texts(600, 1)) | set(texts(50, 3))


def test_two_processes_do_not_make_one_folder(tmp_path, rows):
    flags = ["--source", rows, "--tokenizer", "byte", "--out_dir", "d"]
    first = start(*flags, cwd=tmp_path, more=SLOWLY)
    while first.poll() is None and not (tmp_path / ".d.partial" / "new").exists():
        time.sleep(0.01)
    second = start(*flags, cwd=tmp_path)
    assert second.wait(60) == 2 and "another process is making it" in second.stderr.read()
    assert first.wait(60) == 0


@pytest.mark.parametrize("limit", ["num_docs", "num_tokens"])
def test_appended_is_as_made_at_once(tmp_path, rows, monkeypatch, capsys, limit):
    monkeypatch.setattr(stream, "MARK_BYTES", PIECE)
    few, many = (300, 1000) if limit == "num_docs" else (90_000, 300_000)
    same = dict(source=str(rows), tokenizer="byte", shard_tokens=50_000)
    grown = DataConfig(**same, out_dir=str(tmp_path / "grown"), **{limit: few})
    prepare(grown, quiet=True)
    more = DataConfig(**same, out_dir=str(tmp_path / "grown"), **{limit: many})
    with pytest.raises(DataError, match="add --append to go on from there"):
        prepare(more, quiet=True)
    prepare(DataConfig(**same, out_dir=grown.out_dir, append=True, **{limit: many}))
    assert "going on from" in capsys.readouterr().out
    prepare(DataConfig(**same, out_dir=str(tmp_path / "once"), **{limit: many}), quiet=True)
    assert contents(tmp_path / "grown") == contents(tmp_path / "once")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grown", "once", "rows"]


def test_append_says_why_not(tmp_path, rows):
    same = dict(source=str(rows), tokenizer="byte")
    with pytest.raises(DataError, match="--append: there is no"):
        prepare(DataConfig(**same, out_dir=str(tmp_path / "d"), append=True), quiet=True)
    prepare(DataConfig(**same, out_dir=str(tmp_path / "d"), num_docs=10**6), quiet=True)
    with pytest.raises(DataError, match="holds all that its source has"):
        prepare(DataConfig(**same, out_dir=str(tmp_path / "d"), num_docs=2 * 10**6, append=True), quiet=True)
    prepare(DataConfig(**same, out_dir=str(tmp_path / "e"), num_docs=100), quiet=True)
    with pytest.raises(DataError, match="holds more than is asked for"):
        prepare(DataConfig(**same, out_dir=str(tmp_path / "e"), num_docs=50, append=True), quiet=True)
    write_jsonl(rows / "b.jsonl", texts(50, 3))
    with pytest.raises(DataError, match="the files behind .* have changed since"):
        prepare(DataConfig(**same, out_dir=str(tmp_path / "e"), num_docs=200, append=True), quiet=True)


def test_shards_read_as_one(tmp_path, rows):
    one = prepare(DataConfig(source=str(rows), tokenizer="byte", out_dir=str(tmp_path / "one")), quiet=True)
    many = DataConfig(source=str(rows), tokenizer="byte", shard_tokens=20_000, out_dir=str(tmp_path / "many"))
    a, b = open_data(one), open_data(prepare(many, quiet=True))
    assert len(b.meta["train"]["shards"]) > 5 and a.meta["corpus_sha256"] == b.meta["corpus_sha256"]
    np.testing.assert_array_equal(np.asarray(a.train), np.asarray(b.train))
    for x, y in zip(Loader(a.train, 128).batch(5, 99), Loader(b.train, 128).batch(5, 99), strict=True):
        np.testing.assert_array_equal(x, y)
    shard = Path(b.folder, b.meta["train"]["shards"][1]["file"])
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(DataError, match="is not a whole data folder .*train_000001.bin has"):
        open_data(b.folder)


@pytest.mark.parametrize("n_files", [1, 4])
def test_workers_take_disjoint_parts(tmp_path, n_files):
    all_rows = texts(300, 4)
    (tmp_path / "rows").mkdir()
    for i in range(n_files):
        write_jsonl(tmp_path / "rows" / f"{i}.jsonl", all_rows[i::n_files])
    flags = ["--source", "rows", "--tokenizer", "bpe:300", "--out_dir", "d"]
    names = ("RANK", "WORLD_SIZE") if n_files == 1 else ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    ranks = [start(*flags, cwd=tmp_path, **dict(zip(names, (str(r), "3"), strict=True))) for r in range(3)]
    assert [p.wait(100) for p in ranks] == [0, 0, 0], [p.stderr.read() for p in ranks]
    opened = open_data(tmp_path / "d")
    assert len(opened.meta["train"]["shards"]) == 3
    assert sorted(sum(documents_of(tmp_path / "d").values(), [])) == sorted(all_rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "rows"]
    assert data.main(["--verify", str(tmp_path / "d")]) == 0


@pytest.mark.slow
def test_a_worker_that_fails_ends_the_others(tmp_path):
    (tmp_path / "rows").mkdir()
    for i in range(3):
        write_jsonl(tmp_path / "rows" / f"{i}.jsonl", texts(100, i))
    (tmp_path / "rows" / "1.jsonl").write_text('{"text": "to')
    flags = ["--source", "rows", "--tokenizer", "byte", "--out_dir", "d"]
    ranks = [start(*flags, cwd=tmp_path, more="data.GRACE_S = 4", RANK=str(r), WORLD_SIZE="3") for r in range(3)]
    assert [p.wait(60) for p in ranks] == [2, 2, 0] and not (tmp_path / "d").exists()
    errors = [p.stderr.read() for p in ranks]
    assert "worker 1 of 3 has failed" in errors[0] and "1.jsonl, line 1: not JSON" in errors[1]
    write_jsonl(tmp_path / "rows" / "1.jsonl", texts(100, 1))
    ranks = [start(*flags, cwd=tmp_path, more="data.GRACE_S = 4", RANK=str(r), WORLD_SIZE="3") for r in range(3)]
    assert [p.wait(60) for p in ranks] == [0, 0, 0], [p.stderr.read() for p in ranks]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "rows"]


# ----- a hub that is killed in front of -----------------------------------------------------------------------------


def from_hub(tmp_path: Path, url: str, *flags, more: str = "", **env) -> subprocess.Popen:
    env |= {k: "" for k in os.environ if k.lower().endswith("_proxy")}
    return start(
        "--tokenizer", "byte", *flags, cwd=tmp_path, more=more, HF_HOME=str(tmp_path / "hf"), HF_ENDPOINT=url, **env
    )


@pytest.fixture(scope="module")
def hub_files() -> dict[str, bytes]:
    return {"README.md": README, "data/CC-MAIN/000.parquet": parquet(["not this one"])} | {
        f"sample/10BT/{i:03d}.parquet": parquet(texts(500, 10 + i)) for i in range(3)
    }


@pytest.mark.slow
def test_hub_resumes_from_the_streams_state(tmp_path, hub_files):
    with Hub(REPO, hub_files) as hub:
        whole = from_hub(tmp_path, hub.url, "--out_dir", "whole")
        assert whole.wait(100) == 0, whole.stderr.read()
        assert killed(from_hub(tmp_path, hub.url, "--out_dir", "d", more=SLOWLY), 0.4, tmp_path / ".d.partial")
        hub.requests.clear()
        state = json.loads((tmp_path / ".d.partial" / "new" / "state.json").read_text())
        assert state["position"]["places"][0]["state"]["revision"]
        last = from_hub(tmp_path, hub.url, "--out_dir", "d")
        assert last.wait(100) == 0 and "going on from" in last.stdout.read(), last.stderr.read()
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_workers_share_the_hub(tmp_path, hub_files):
    """Two take whole files where they divide evenly; three files over two workers go row by row."""
    with Hub(REPO, hub_files) as hub:
        whole = from_hub(tmp_path, hub.url, "--out_dir", "whole")
        ranks = [from_hub(tmp_path, hub.url, "--out_dir", "d", RANK=str(r), WORLD_SIZE="2") for r in range(2)]
        assert [p.wait(100) for p in (whole, *ranks)] == [0, 0, 0], [p.stderr.read() for p in ranks]
    found = [sum(documents_of(tmp_path / name).values(), []) for name in ("d", "whole")]
    assert set(found[0]) == set(found[1])
    twice = open_data(tmp_path / "d").meta["duplicates_between_workers"]
    assert len(found[0]) == len(found[1]) + twice


@pytest.mark.slow
@pytest.mark.parametrize("where", ["hub", "parquet"])
def test_ten_kills_at_random_moments(tmp_path, hub_files, where):
    """At any moment from the start on, so also while the tokenizer or the first state is being written."""
    if where == "parquet" and not CORPORA.exists():
        pytest.skip("no ../shared/corpora here")
    local = ["--source", CORPORA / "gutenberg-a.parquet", "--num_docs", 4000]
    flags = [*(local if where == "parquet" else []), "--out_dir"]
    rng, cut = random.Random(1), 0
    with Hub(REPO, hub_files) as hub:
        assert from_hub(tmp_path, hub.url, *flags, "whole").wait(200) == 0
        for i in range(10):
            stage = tmp_path / ".d.partial" if i % 3 else None  # from its first state on, or from its very start
            cut += killed(from_hub(tmp_path, hub.url, *flags, "d", more=SLOWLY), rng.uniform(0.0, 0.4), stage)
        assert cut == 10, "each was still at work"
        last = from_hub(tmp_path, hub.url, *flags, "d")
        out, err = last.communicate(timeout=200)
        assert last.returncode == 0 and "going on from" in out, err
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")

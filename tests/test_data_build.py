"""isoflop/data/build.py: folders that are there already, resuming after a kill, adding to a folder."""

import errno
import hashlib
import json
import os
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    all_documents,
    data_folder,
    data_main,
    failing_drive,
    finish_data,
    kill_data,
    make_texts,
    start_data,
    write_jsonl,
)
from hub_stub import REPO, Hub, fineweb_files

from isoflop.data import bpe, build, config, documents, sources, tokenizer
from isoflop.data.reader import open_data
from isoflop.options import UserError

RESUME_BYTES = 2**15  # between two resume points here, instead of 64 MiB: small text has many
MANY_POINTS = f"documents.RESUME_BYTES, sources.CHUNK_DOCS = {RESUME_BYTES}, 50"
FULL = """
def full(self, raw):
    raise OSError(28, "No space left on device", "train.bin")
resume_point = writer.SplitWriter.resume_point
def then_full(self, point):
    resume_point(self, point)
    writer.Shard.write = full
writer.SplitWriter.resume_point = then_full
"""
SLOW = """
def slow(self, *args):
    time.sleep(0.001)
    return add(self, *args)
writer.SplitWriter.add = slow
"""


def start(*args, cwd: Path, more: str = "", **env):
    return start_data(*args, cwd=cwd, more=MANY_POINTS + more, **env)


def kill_after(n: int, *args, cwd: Path, **env) -> None:
    kill_data(n, *args, cwd=cwd, more=MANY_POINTS, **env)


def contents(folder: Path) -> dict[str, str]:
    """Checksums of all files, and meta.json without time and place."""
    found = {}
    for path in [*sorted(folder.glob("*.bin")), folder / "tokenizer.json"]:
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    meta = json.loads((folder / "meta.json").read_text())
    return found | {k: v for k, v in meta.items() if k not in ("created", "command", "settings")}


@pytest.fixture
def rows(tmp_path) -> Path:
    """A folder of a parquet and a jsonl file, with duplicates and rows that are dropped."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = tmp_path / "rows"
    folder.mkdir()
    first, second = make_texts(600, 1), make_texts(600, 2)
    pq.write_table(pa.table({"text": [*first, None, "", *first[:9]]}), folder / "a.parquet", row_group_size=130)
    write_jsonl(folder / "b.jsonl", [*second, 5, " ", *first[:7]])
    return folder


# ----- making the files -----


@pytest.mark.parametrize("limit", ["num_docs", "num_tokens"])
def test_limits(tmp_path, limit):
    meta = open_data(data_folder(tmp_path, make_texts(400), **{limit: 20_000 if limit == "num_tokens" else 50})).meta
    if limit == "num_docs":
        assert meta["train"]["documents"] + meta["val"]["documents"] == 50
    else:
        longest = max(len(text.encode()) for text in make_texts(400))
        assert 20_000 <= meta["train"]["tokens"] + meta["val"]["tokens"] <= 20_000 + longest


def test_large_vocabulary_takes_uint32(tmp_path, monkeypatch):
    big = [bytes([b]) for b in range(256)] + [b"\xff\xff" + i.to_bytes(3, "big") for i in range(70_000)]
    spec = {"name": "big", "pattern": bpe.PATTERN, "tokens": big}
    monkeypatch.setattr(build, "make_tokenizer", lambda name, train_texts: spec)
    opened = open_data(data_folder(tmp_path, make_texts()))
    assert opened.meta["dtype"] == "uint32" and opened.train.dtype == np.uint32
    assert opened.train.max() == opened.meta["eot_token"] == 70_256


def test_batching_does_not_change_the_tokens(tmp_path, monkeypatch):
    folder = data_folder(tmp_path, make_texts())
    monkeypatch.setattr(tokenizer, "GROUP_DOCS", 3), monkeypatch.setattr(sources, "CHUNK_DOCS", 7)
    again = data_folder(tmp_path, make_texts(), out_dir=str(tmp_path / "again"))
    assert (again / "train.bin").read_bytes() == (folder / "train.bin").read_bytes()


# ----- folders that are there already -----


def test_a_folder_of_other_settings_is_kept(tmp_path, capsys):
    folder = data_folder(tmp_path, make_texts())
    before = (folder / "train.bin").stat().st_mtime_ns
    same = ["--source", tmp_path / "a.jsonl", "--tokenizer", "byte", "--out_dir", folder]
    assert data_main(*same) == 0 and "already prepared" in capsys.readouterr().out
    assert data_main(*same, "--num_docs", 50) == 2
    assert "num_docs None instead of 50: add --append to add to it, or --overwrite" in capsys.readouterr().err
    assert (folder / "train.bin").stat().st_mtime_ns == before
    assert data_main(*same, "--num_docs", "5e1", "--overwrite") == 0
    assert open_data(folder).meta["settings"]["num_docs"] == 50


def test_a_folder_of_another_format_version_is_not_reused(tmp_path, capsys, monkeypatch):
    """Of another revision of sources.py or tokenizer.py, or of before there was such a number."""
    folder = data_folder(tmp_path, make_texts())
    same = ["--source", tmp_path / "a.jsonl", "--tokenizer", "byte", "--out_dir", folder]
    monkeypatch.setattr(config, "DATA_FORMAT_VERSION", 3)
    assert data_main(*same) == 2 and "rules 2 instead of 3: add --overwrite" in capsys.readouterr().err
    meta = json.loads((folder / "meta.json").read_text())
    del meta["settings"]["rules"]
    (folder / "meta.json").write_text(json.dumps(meta))
    assert open_data(folder).meta == meta, "what trained on it can still read it"
    assert data_main(*same) == 2 and "rules None instead of 3" in capsys.readouterr().err
    assert data_main(*same, "--overwrite") == 0 and data_main(*same) == 0


def test_overwrite_spares_folders_that_are_not_ours(tmp_path, capsys):
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.tex").write_text("precious")
    source = write_jsonl(tmp_path / "a.jsonl", make_texts())
    args = ["--source", source, "--tokenizer", "byte", "--out_dir", home, "--overwrite"]
    assert data_main(*args) == 2 and "thesis.tex" in capsys.readouterr().err
    assert (home / "thesis.tex").read_text() == "precious"


def test_a_foreign_folder_is_not_overwritten(tmp_path, capsys):
    for split in ("train", "val"):
        np.arange(900, dtype=np.uint16).tofile(tmp_path / f"{split}.bin")
    args = ["--source", "stdlib", "--tokenizer", "byte", "--out_dir", tmp_path]
    for more in ([], ["--overwrite"]):
        assert data_main(*args, *more) == 2 and "not made by data.py" in capsys.readouterr().err
    assert (tmp_path / "train.bin").stat().st_size == 1800


# ----- resuming -----


@pytest.mark.parametrize("tokenizer", ["byte", "bpe:300"])
def test_kill_and_resume(tmp_path, rows, tokenizer):
    flags = ["--source", rows, "--tokenizer", tokenizer, "--shard_tokens", 50_000, "--bpe_sample", 40_000, "--out_dir"]
    finish_data(start(*flags, "whole", cwd=tmp_path))
    for n in (200, 333, 171):
        kill_after(n, *flags, "d", cwd=tmp_path)
    assert "resuming after" in finish_data(start(*flags, "d", cwd=tmp_path))
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")
    assert len(open_data(tmp_path / "d").meta["train"]["shards"]) > 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "rows", "whole"]


def test_a_failure_behind_a_resume_point_keeps_the_work(tmp_path, rows):
    flags = ["--source", rows, "--tokenizer", "byte", "--out_dir"]
    stopped = start(*flags, "d", cwd=tmp_path, more=FULL)
    out, err = stopped.communicate(timeout=60)
    assert stopped.returncode == 2 and err.count("\n") == 1 and "No space left" in err, err
    assert "the same command resumes it" in err and not (tmp_path / "d").exists()
    with pytest.raises(UserError):
        open_data(tmp_path / ".d.partial" / "new")
    (tmp_path / ".d.partial" / "new" / ".state.json.1.part").write_text("left by a kill while state.json was written")
    assert "resuming after" in finish_data(start(*flags, "d", cwd=tmp_path))
    finish_data(start(*flags, "e", cwd=tmp_path))
    assert contents(tmp_path / "d") == contents(tmp_path / "e") and not list((tmp_path / "d").glob(".*"))


@pytest.mark.parametrize("fails", ["val.bin", "meta.json"])
def test_an_end_between_the_last_files_is_resumed(tmp_path, rows, monkeypatch, fails):
    """train.bin has its last name by then, while state.json still has the one before."""
    flags, replace = ["--source", rows, "--tokenizer", "byte", "--out_dir"], os.replace
    assert data_main(*flags, tmp_path / "whole") == 0

    def full(old, new):
        if Path(new).name == fails:
            raise OSError(errno.ENOSPC, "No space left on device", str(new))
        replace(old, new)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert data_main(*flags, tmp_path / "d") == 2
    assert (tmp_path / ".d.partial" / "new" / "train.bin").exists()
    assert data_main(*flags, tmp_path / "d") == 0
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")


def test_work_that_can_not_be_read_is_kept(tmp_path, rows, capsys):
    flags = ["--source", rows, "--tokenizer", "byte", "--out_dir", "d"]
    kill_after(300, *flags, cwd=tmp_path)
    flags[-1] = tmp_path / "d"
    with failing_drive("state.json"):
        assert data_main(*flags) == 2
    assert "state.json: Input/output error" in capsys.readouterr().err
    assert data_main(*flags) == 0 and "resuming after" in capsys.readouterr().out


def test_what_can_not_be_resumed_from_is_removed(tmp_path, rows, capsys):
    flags = ["--source", rows, "--tokenizer", "byte", "--out_dir", "d"]
    kill_after(300, *flags, cwd=tmp_path)
    (tmp_path / ".d.partial" / "new" / "train_000000.bin").unlink()
    flags[-1] = tmp_path / "d"
    assert data_main(*flags) == 2
    assert "it is removed, and the same command begins anew" in capsys.readouterr().err
    assert data_main(*flags) == 0 and len(all_documents(tmp_path / "d")) > 300


def test_a_changed_source_starts_anew(tmp_path, rows):
    flags = ["--source", rows, "--tokenizer", "byte", "--out_dir", "d"]
    kill_after(300, *flags, cwd=tmp_path)
    write_jsonl(rows / "b.jsonl", make_texts(50, 3))
    assert "resuming" not in finish_data(start(*flags, cwd=tmp_path))
    assert set(all_documents(tmp_path / "d")) == set(make_texts(600, 1)) | set(make_texts(50, 3))


@pytest.mark.slow
def test_kills_at_ten_random_moments(tmp_path, rows):
    """At any moment from the start on, so also while the tokenizer or the first state is being written."""
    flags = ["--source", rows, "--tokenizer", "bpe:300", "--out_dir"]
    finish_data(start(*flags, "whole", cwd=tmp_path))
    rng = random.Random(1)
    for _ in range(10):
        process = start(*flags, "d", cwd=tmp_path, more=SLOW)
        try:
            process.wait(rng.uniform(0.1, 1.5))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(60)
    finish_data(start(*flags, "d", cwd=tmp_path))
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")


# ----- adding to a folder -----


@pytest.mark.parametrize("limit, few, many", [("num_docs", 300, 1000), ("num_tokens", 90_000, 300_000)])
def test_appended_is_as_made_at_once(tmp_path, rows, monkeypatch, capsys, limit, few, many):
    monkeypatch.setattr(documents, "RESUME_BYTES", RESUME_BYTES)
    flags = ["--source", rows, "--tokenizer", "byte", "--shard_tokens", 50_000, "--out_dir"]
    grown, once = tmp_path / "grown", tmp_path / "once"
    assert data_main(*flags, grown, f"--{limit}", few) == 0
    assert data_main(*flags, grown, f"--{limit}", many) == 2 and "add --append to add to it" in capsys.readouterr().err
    assert data_main(*flags, grown, f"--{limit}", many, "--append") == 0
    assert "resuming after" in capsys.readouterr().out
    assert data_main(*flags, once, f"--{limit}", many) == 0
    assert contents(grown) == contents(once)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grown", "once", "rows"]


def test_append_says_why_not(tmp_path, rows):
    def append(name, **flags):
        data_folder(tmp_path, source=str(rows), out_dir=str(tmp_path / name), append=True, overwrite=False, **flags)

    with pytest.raises(UserError, match="--append: there is no"):
        append("d")
    data_folder(tmp_path, source=str(rows), num_docs=10**6)
    with pytest.raises(UserError, match="holds all that its source has"):
        append("d", num_docs=2 * 10**6)
    data_folder(tmp_path, source=str(rows), out_dir=str(tmp_path / "e"), num_docs=100)
    with pytest.raises(UserError, match="holds more than requested"):
        append("e", num_docs=50)
    write_jsonl(rows / "b.jsonl", make_texts(50, 3))
    with pytest.raises(UserError, match="the files behind .* have changed since"):
        append("e", num_docs=200)


# ----- the hub -----


HUB_FLAGS = ["--tokenizer", "byte", "--out_dir"]


def at_hub(tmp_path: Path, hub: Hub) -> dict[str, str]:
    """What start() needs to run in tmp_path with this hub."""
    env = {key: "" for key in os.environ if key.lower().endswith("_proxy")}
    return env | {"cwd": tmp_path, "HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url}


@pytest.fixture(scope="module")
def hub_files() -> dict[str, bytes]:
    return fineweb_files([make_texts(500, 10 + i) for i in range(3)])


@pytest.mark.slow
def test_hub_resumes_from_the_streams_state(tmp_path, hub_files):
    with Hub(REPO, hub_files) as hub:
        finish_data(start(*HUB_FLAGS, "whole", **at_hub(tmp_path, hub)))
        for n in (300, 500):
            kill_after(n, *HUB_FLAGS, "d", **at_hub(tmp_path, hub))
        state = json.loads((tmp_path / ".d.partial" / "new" / "state.json").read_text())
        assert state["position"]["places"][0]["state"]["revision"]
        assert "resuming after" in finish_data(start(*HUB_FLAGS, "d", **at_hub(tmp_path, hub)))
    assert contents(tmp_path / "d") == contents(tmp_path / "whole")


@pytest.mark.slow
def test_workers_share_the_hub(tmp_path, hub_files):
    """Two take whole files where they divide evenly; three files over two workers go row by row."""
    with Hub(REPO, hub_files) as hub:
        processes = [start(*HUB_FLAGS, "whole", **at_hub(tmp_path, hub))]
        for r in range(2):
            processes.append(start(*HUB_FLAGS, "d", **at_hub(tmp_path, hub), RANK=str(r), WORLD_SIZE="2"))
        for process in processes:
            finish_data(process)
    found = [all_documents(tmp_path / name) for name in ("d", "whole")]
    assert set(found[0]) == set(found[1])
    twice = open_data(tmp_path / "d").meta["duplicates_between_workers"]
    assert len(found[0]) == len(found[1]) + twice

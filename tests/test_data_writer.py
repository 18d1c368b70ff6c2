"""isoflop/data/writer.py: the staging folder, its lock, and its renames."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, data_folder, data_main, make_texts

import data
from isoflop.data import writer


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_during_overwrite_never_loses_both_folders(tmp_path, capsys, renames):
    """A process that dies after so many renames; the next one makes nothing, and finds the old folder or the new."""
    folder = data_folder(tmp_path, make_texts())
    old = ["--source", str(tmp_path / "a.jsonl"), "--tokenizer", "byte", "--out_dir", str(folder)]
    new = [*old, "--num_docs", "50"]
    code = f"""
import os, signal, data
made, rename = 0, os.rename
def counted(*paths):
    global made
    if made == {renames}: os.kill(os.getpid(), signal.SIGKILL)
    rename(*paths)
    made += 1
    if made == {renames} == 2: os.kill(os.getpid(), signal.SIGKILL)
os.rename = counted
data.main({[*new, "--overwrite"]!r})
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    assert folder.exists() == (renames != 1) and (tmp_path / ".d.partial").exists()
    assert data_main(*(new if renames == 2 else old)) == 0 and "already prepared" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "d"]


def test_a_failure_during_overwrite_puts_the_old_folder_back(tmp_path, monkeypatch):
    folder = data_folder(tmp_path, make_texts())
    before, rename = (folder / "train.bin").stat(), os.rename

    def fails(old, new):
        if str(new) == str(folder) and Path(old).name == "new":
            raise OSError("no such luck")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fails)
    with pytest.raises(OSError, match="no such luck"):
        data_folder(tmp_path, source=str(tmp_path / "a.jsonl"))
    assert os.path.samestat((folder / "train.bin").stat(), before)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(data, "make_files", None)  # what was made is kept, and takes its place now
    data_folder(tmp_path, source=str(tmp_path / "a.jsonl"))
    assert not os.path.samestat((folder / "train.bin").stat(), before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "d"]


def test_two_processes_do_not_make_one_folder(tmp_path, capsys):
    flags = "--source stdlib --num_docs 60 --val_fraction 0.3 --tokenizer byte --out_dir".split()
    flags.append(str(tmp_path / "d"))
    with writer.staging(tmp_path / "d"):
        assert data_main(*flags) == 2
    assert f"--out_dir {tmp_path / 'd'} is in use by another data.py" in capsys.readouterr().err
    assert data_main(*flags) == 0

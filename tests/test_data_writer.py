"""isoflop/data/writer.py: the staging folder, its lock, and its renames."""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_during_overwrite_never_loses_both_folders(small, tmp_path, capsys, renames):
    """A process that dies after so many renames; the next one makes nothing, and finds the old folder or the new."""
    old = ["--source", open_data(small).meta["settings"]["source"], "--tokenizer", "byte", "--out_dir", str(small)]
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
    assert small.exists() == (renames != 1) and len(list(tmp_path.glob(".small.partial"))) == 1
    assert data.main(new if renames == 2 else old) == 0 and "already prepared" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small", "small.jsonl"]


def test_a_failure_during_overwrite_puts_the_old_folder_back(small, tmp_path, monkeypatch):
    source, before, rename = open_data(small).meta["settings"]["source"], (small / "train.bin").stat(), os.rename

    def fails(old, new):
        if str(new) == str(small) and Path(old).name == "new":
            raise OSError("no such luck")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fails)
    again = DataConfig(source=source, tokenizer="byte", out_dir=str(small), overwrite=True)
    with pytest.raises(OSError, match="no such luck"):
        prepare(again, quiet=True)
    assert os.path.samestat((small / "train.bin").stat(), before)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(data, "make", None)  # what was made is kept, and takes its place now
    prepare(again, quiet=True)
    assert not os.path.samestat((small / "train.bin").stat(), before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small", "small.jsonl"]


def test_two_processes_do_not_make_one_folder(tmp_path, rows):
    flags = ["--source", rows, "--tokenizer", "byte", "--out_dir", "d"]
    first = start(*flags, cwd=tmp_path, more=SLOWLY)
    while first.poll() is None and not (tmp_path / ".d.partial" / "new").exists():
        time.sleep(0.01)
    second = start(*flags, cwd=tmp_path)
    assert second.wait(60) == 2 and "another process is making it" in second.stderr.read()
    assert first.wait(60) == 0

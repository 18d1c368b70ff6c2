"""Files that survive kills: whole or not at all, locks that end with their process."""

import csv
import errno
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys

import pytest

import isoflop.files
from isoflop.files import (
    append_line,
    atomic,
    folder_lock,
    fsync,
    naming,
    read_csv,
    read_json,
    sha256,
    staged,
    writable_folder,
    write_json,
    write_text,
)
from isoflop.options import UserError


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ----- writing -----


def test_text_and_json(tmp_path):
    write_text(tmp_path / "a.txt", "gr\u00fc\u00df\r\ndich")
    assert (tmp_path / "a.txt").read_bytes() == "gr\u00fc\u00df\r\ndich".encode()
    write_json(tmp_path / "a.json", {"x": [1, None]})
    assert (tmp_path / "a.json").read_text() == '{\n  "x": [\n    1,\n    null\n  ]\n}\n'
    write_json(str(tmp_path / "a.json"), [1.5], indent=None)
    assert (tmp_path / "a.json").read_text() == "[1.5]\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.json", "a.txt"]


def test_what_is_no_json_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, 1)
    for value, options in ((object(), {}), (float("nan"), {"allow_nan": False})):
        with pytest.raises((TypeError, ValueError)):
            write_json(path, value, **options)
    assert path.read_text() == "1\n" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "picture.png"
    path.write_bytes(b"old")
    with pytest.raises(error):
        with atomic(path, "wb") as f:
            f.write(b"new")
            f.flush()
            assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 2
            raise error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_rename_that_fails_leaves_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_text(tmp_path / "folder", "x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_writers_of_all_kinds(tmp_path):
    with atomic(tmp_path / "t.csv") as f:
        csv.writer(f, lineterminator="\n").writerows([["a", "b"], [1, "x\ny"]])
    assert (tmp_path / "t.csv").read_bytes() == b'a,b\n1,"x\ny"\n'
    with atomic(tmp_path / "b.bin", "wb") as f:
        with open(f.name, "wb") as other:  # a library that wants a path
            other.write(b"by path")
    assert (tmp_path / "b.bin").read_bytes() == b"by path"


def test_everything_is_synced_before_and_after_the_rename(tmp_path, monkeypatch):
    done = []
    sync, replace = os.fsync, os.replace

    def note_sync(fd):
        done.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        sync(fd)

    def note_replace(a, b):
        done.append("rename")
        replace(a, b)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "replace", note_replace)
    write_text(tmp_path / "a", "x")
    assert done == ["file", "rename", "folder"]


def test_permissions_are_the_umasks_or_those_of_the_old_file(tmp_path):
    code = "import os, sys; os.umask(0o027); from isoflop.files import write_text; write_text(sys.argv[1], 'x')"
    path = tmp_path / "a"
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert mode(path) == 0o640
    path.chmod(0o604)
    write_text(path, "y")
    assert mode(path) == 0o604 and path.read_text() == "y"


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "a.txt")
    write_text(tmp_path / "link.txt", "x")
    assert (tmp_path / "link.txt").is_symlink() and (tmp_path / "real" / "a.txt").read_text() == "x"


def test_a_kill_in_the_middle_leaves_the_old_file(tmp_path):
    path = tmp_path / "a"
    path.write_text("old")
    code = "import os, sys; from isoflop.files import atomic\n"
    code += "with atomic(sys.argv[1]) as f:\n    f.write('half'); f.flush(); os._exit(9)"
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == 9
    assert path.read_text() == "old"


# ----- appending -----


def test_lines_are_appended_each_with_its_end(tmp_path):
    path = tmp_path / "a.csv"
    append_line(path, "a,b\n1,2")
    append_line(path, "3,4\n")
    assert path.read_text() == "a,b\n1,2\n3,4\n"


def test_a_torn_last_line_does_not_spoil_the_next(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"b":')
    append_line(path, '{"c": 3}')
    assert path.read_text() == '{"a": 1}\n{"b":\n{"c": 3}\n'


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    append_line(path, "1")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, raw: write(fd, raw[:2]))
    with pytest.raises(OSError, match="No space left"):
        append_line(path, "22222")
    assert path.read_text() == "1\n"


def test_a_full_disk_leaves_no_new_file(tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    monkeypatch.setattr(os, "write", lambda fd, raw: 1)
    with pytest.raises(OSError, match=str(path)):
        append_line(path, "22222")
    assert not path.exists()


def test_a_staged_folder_has_all_its_files_or_none(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(OSError) as error, staged(out) as stage:
        write_text(stage / "a", "1")
        raise OSError(errno.ENOSPC, "full", str(stage / "b"))
    assert error.value.filename == str(out / "b") and not out.exists()

    with staged(out) as stage:
        write_text(stage / "a", "1")
        write_text(stage / "b", "2")
        assert not (out / "a").exists()
    with pytest.raises(KeyError), staged(out) as stage:
        write_text(stage / "a", "other")
        raise KeyError
    assert {path.name: path.read_text() for path in out.iterdir()} == {"a": "1", "b": "2"}


def test_errors_of_the_system_name_the_file(tmp_path):
    with pytest.raises(OSError) as error, naming("a.bin"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert error.value.filename == "a.bin" and error.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left on device: 'a.bin'"), naming("a.bin"):
        raise RuntimeError("I/O error: No space left on device (os error 28)")  # as safetensors
    with pytest.raises(OSError) as error, naming("a.bin"):
        open(tmp_path / "absent")
    assert error.value.filename == str(tmp_path / "absent"), "another file's error keeps its name"
    with pytest.raises(RuntimeError, match="else"), naming("a.bin"):
        raise RuntimeError("something else")


def test_fsync_reports_what_matters(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("x")
    fsync(tmp_path / "a")
    fsync(tmp_path)

    def refuse(fd):
        raise OSError(isoflop.files.errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", refuse)
    fsync(tmp_path)  # a file system that can't
    with pytest.raises(OSError):
        fsync(tmp_path / "a")


# ----- reading -----


@pytest.mark.parametrize("size", [0, 5, 2**20, 2**20 + 1])
def test_sha256(tmp_path, size):
    raw = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    (tmp_path / "a").write_bytes(raw)
    assert sha256(tmp_path / "a") == hashlib.sha256(raw).hexdigest()


def test_json_is_read(tmp_path):
    (tmp_path / "a.json").write_text('{"x": 1}')
    (tmp_path / "bom.json").write_bytes(b'\xef\xbb\xbf{"x": 1}')
    assert read_json(tmp_path / "bom.json") == {"x": 1}
    (tmp_path / "utf16.json").write_text('{"x": 1}', "utf-16")
    with pytest.raises(UserError, match="utf16.json is not JSON .*save it as UTF-8"):
        read_json(tmp_path / "utf16.json")
    assert read_json(tmp_path / "a.json") == read_json(str(tmp_path / "a.json"), 8) == {"x": 1}


@pytest.mark.parametrize(
    "raw, says",
    [(b"{oops", "is not JSON"), (b"", "is not JSON"), (b"\xff\xfe", "is not JSON"), (b"[" * 100_000, "is not JSON"),
     (json.dumps("x" * 200_000).encode(), "has 200,002 bytes, more than the 150,000")],
)  # fmt: skip
def test_what_is_no_json_is_said_in_a_line(tmp_path, raw, says):
    (tmp_path / "a.json").write_bytes(raw)
    with pytest.raises(UserError) as error:
        read_json(tmp_path / "a.json", 150_000)
    assert says in str(error.value) and "\n" not in str(error.value) and str(tmp_path / "a.json") in str(error.value)


@pytest.mark.parametrize("separator", ",;\t")
def test_csv_is_read_as_spreadsheets_and_kills_leave_it(tmp_path, separator):
    path, text = tmp_path / "a.csv", 'a,b\r\n1,"x\ny"\r\n\x002,\r\n3'
    path.write_bytes(b"\xef\xbb\xbf" + text.replace(",", separator).encode())
    rows = [{"a": "1", "b": "x\ny"}, {"a": "\ufffd2", "b": ""}, {"a": "3", "b": ""}]
    assert read_csv(path) == (["a", "b"], rows)
    path.write_text("")
    assert read_csv(path) == ([], [])


@pytest.mark.parametrize(
    "raw, says",
    [(b"a,b\n1,2\n1,2,3\n", "a.csv, line 3: it has more cells than the header"), (b"a\n\xe9\n", "is not UTF-8 text"),
     (b"a\n1\n" + b"x" * 200_000, "a.csv, line 3: field larger than field limit")],
)  # fmt: skip
def test_a_damaged_csv_is_named_in_a_line(tmp_path, raw, says):
    (tmp_path / "a.csv").write_bytes(raw)
    with pytest.raises(UserError, match=says):
        read_csv(tmp_path / "a.csv")


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none.json")
    with pytest.raises(UserError, match="is not a file"):
        read_json(tmp_path)


# ----- folders -----


@pytest.mark.parametrize("number, says", [(errno.ENOLCK, "can't be locked"), (errno.ENOSYS, "on a disk without locks")])
def test_a_disk_without_locks_is_said(tmp_path, monkeypatch, capsys, number, says):
    """A lock service that is down is refused; a file system that has none is a warning: there is no other way there."""

    def no_lock(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", no_lock)
    said = ""
    try:
        with folder_lock(tmp_path, "sweep"):
            pass
    except UserError as error:
        said = str(error)
    assert says in (said or capsys.readouterr().err)
    assert bool(said) == (number == errno.ENOLCK)


def test_a_writable_folder_is_made_and_left_empty(tmp_path):
    assert writable_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^--out .*file.x can't be written \(Not a directory\); name another folder$"):
        writable_folder(tmp_path / "file" / "x", "--out")


def test_a_folder_is_held_by_one(tmp_path):
    folder = tmp_path / "new"
    with folder_lock(folder, "sweep"):
        with pytest.raises(UserError) as error:
            with folder_lock(folder, "sweep"):
                raise AssertionError("both hold it")
        said = str(error.value)
        assert said.startswith(f"--out_dir {folder} is in use by another sweep (process {os.getpid()} on ")
        assert " since 20" in said and said.endswith("); wait for it, or name another")
        with folder_lock(tmp_path / "other", "sweep"):
            pass
    with folder_lock(folder, "sweep"):
        pass


def test_a_lock_of_a_file_that_its_holder_has_removed_is_taken_anew(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    folder, taken, flock = tmp_path / "stage", [], fcntl.flock

    def slow(handle, how):
        if not taken:  # the holder ends, and removes the folder, between open() and flock()
            shutil.rmtree(folder)
        taken.append(flock(handle, how))

    monkeypatch.setattr(fcntl, "flock", slow)
    with folder_lock(folder, "data.py"):
        assert len(taken) == 2 and "process" in (folder / ".lock").read_text()
        with pytest.raises(UserError, match="in use"), folder_lock(folder, "data.py"):
            pass


def test_messages_of_a_lock_name_what_the_user_knows(tmp_path):
    with folder_lock(tmp_path, "data.py", "--out", shown="data/x", name="lock"):
        assert (tmp_path / "lock").exists()
        with pytest.raises(UserError, match="^--out data/x is in use by another data.py"):
            with folder_lock(tmp_path, "data.py", "--out", shown="data/x", name="lock"):
                pass
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="can't be written"):
        with folder_lock(tmp_path / "file", "sweep"):
            pass
    with pytest.raises(UserError, match=rf"^--out_dir x can't be written \(Not a directory in {tmp_path}/file\); name"):
        with folder_lock(tmp_path / "file" / "y", "data.py", shown="x"):
            pass


def test_a_lock_ends_with_its_process(tmp_path):
    code = "import sys, time; from isoflop.files import folder_lock\n"
    code += "with folder_lock(sys.argv[1], 'sweep'):\n    print('held', flush=True); time.sleep(600)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"process {process.pid} on"):
            with folder_lock(tmp_path, "sweep"):
                pass
    finally:
        process.kill()
        process.communicate()
    with folder_lock(tmp_path, "sweep"):
        pass

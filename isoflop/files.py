"""Files that survive a kill and a power cut: written under another name, on the disk, then renamed; and folder locks.

    write_json(folder / "run.json", record)
    with atomic(folder / "figure.png", "wb") as f:
        figure.savefig(f, format="png")
    append_line(folder / "runs.csv", "a row")
    with folder_lock("sweep_results", "sweep"):
        ...

A reader sees the old file or the whole new one. Nothing here knows what the files mean.
"""

import contextlib
import csv
import errno
import hashlib
import io
import itertools
import json
import os
import re
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from isoflop.options import FULL, WAYS_OUT, UserError

MOST_JSON_BYTES = 2**28  # the largest tokenizer.json there is has some 40 MB
MOST_DEPTH, MOST_DIGITS = 64, 300  # of a JSON file; more digits than that are no float
# What says that a file is not there, or is none. Any other error says nothing about it: a file that may not be read, or
# on a drive that fails, is neither missing nor damaged, and nothing is made anew in its place.
ABSENT = (FileNotFoundError, NotADirectoryError, IsADirectoryError)
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems say that have no locks, as Lustre without -o flock
NO_SYNC = (errno.EINVAL, errno.ENOTSUP)  # what file systems say that can't sync a folder
RUST_ERRNO = re.compile(r"\(os error (\d+)\)")  # how safetensors gives the system's number of an error


# ----- writing -----


@contextlib.contextmanager
def naming(path, instead_of=None) -> Iterator[None]:
    """Let the system's errors within the block that name no file name `path`; and for a file `instead_of`, or in it."""
    try:
        yield
    except OSError as error:
        named = error.filename2 or error.filename  # of two, as in a copy, the one that is written
        hidden = named is not None and instead_of is not None and str(named).startswith(str(instead_of))
        if error.errno is None or (named is not None and not hidden):
            raise
        if hidden:
            path = str(named).replace(str(instead_of), str(path), 1)
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from None
    except Exception as error:
        number = RUST_ERRNO.search(str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None


@contextlib.contextmanager
def atomic(path, mode: str = "w") -> Iterator:
    """A file to write to, "w" (UTF-8, line ends as written) or "wb", that takes path's place when the block is left.

    It is written beside path under a hidden name, f.name, which serves writers that want a path. Where the block fails
    that file is removed and path stays as it was. A file that was there passes on its permissions; a symbolic link
    stays, and points to the new file. An error of the system names path.
    """
    shown, path = path, Path(os.path.realpath(path))
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with naming(shown, part):
            with open(part, mode, **text) as f:
                yield f
                f.flush()
                os.fsync(f.fileno())
            if path.exists():
                part.chmod(path.stat().st_mode & 0o7777)
            os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            part.unlink()
        raise
    fsync(path.parent)


def write_text(path, text: str):
    """Write a text file, all of it or nothing."""
    with atomic(path) as f:
        f.write(text)


def write_json(path, value, indent: int | None = 2, **options):
    """Write a JSON file, all of it or nothing; options are json.dumps's, as allow_nan=False."""
    write_text(path, json.dumps(value, indent=indent, **options) + "\n")


@contextlib.contextmanager
def staged(folder) -> Iterator[Path]:
    """A hidden folder within `folder`, which is made: its files move up when the block is left, in order of writing.

    Where the block fails nothing of it is left, and `folder` is as it was: absent, or with its older files.
    """
    folder = Path(folder)
    made, stage = not folder.exists(), folder / f".{os.getpid()}.part"
    try:
        with naming(folder, stage):
            stage.mkdir(parents=True)
            yield stage
            for path in sorted(stage.iterdir(), key=lambda path: path.stat().st_mtime_ns):
                os.replace(path, folder / path.name)
            fsync(folder)
    except BaseException:
        if made:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def append_line(path, text: str):
    """Append a line, or several, in one write; they are on the disk when this returns, all of them or none.

    A last line that a kill cut short gets its line end first, so that it does not spoil the new one.
    """
    new = not os.path.lexists(path)
    with naming(path):
        fd = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o666)
        try:
            size = os.fstat(fd).st_size
            torn = size > 0 and os.pread(fd, 1, size - 1) != b"\n"
            raw = ("\n" * torn + text.removesuffix("\n") + "\n").encode()
            try:
                if os.write(fd, raw) < len(raw):
                    raise OSError(errno.ENOSPC, "")  # naming() has the words
                os.fsync(fd)
            except OSError:
                os.ftruncate(fd, size)
                if new:
                    os.unlink(path)
                raise
        finally:
            os.close(fd)
        if size == 0:
            fsync(Path(path).parent)


def fsync(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(fd)
    except OSError as error:
        if not os.path.isdir(path) or error.errno not in NO_SYNC:
            raise
    finally:
        os.close(fd)


# ----- reading -----


def regular(path, most_bytes: int | None = None) -> Path:
    """path, where it is a file of at most most_bytes. Ask before open(), which waits for ever on a named pipe.

    OSError where there is none; UserError for a folder, a pipe, a device, and a larger file.
    """
    path = Path(path)
    size = path.stat().st_size
    if not path.is_file():
        raise UserError(f"{path} is not a file; name a regular file")
    if most_bytes is not None and size > most_bytes:
        raise UserError(f"{path} has {size:,} bytes, more than the {most_bytes:,} that such a file may have")
    return path


def sha256(path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(regular(path), "rb") as f:
        while piece := f.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def parse_json(text: str):
    """What a JSON text holds; ValueError where it is no JSON, is nested too deep, or has an integer of 301 digits."""
    try:
        value = json.loads(text, parse_int=_parse_int)
    except RecursionError:
        raise ValueError(f"nested deeper than {MOST_DEPTH} levels") from None
    level, depth = [value], 0
    while level:
        inside = [one.values() if isinstance(one, dict) else one for one in level if isinstance(one, (dict, list))]
        level, depth = list(itertools.chain(*inside)), depth + 1
        if depth > MOST_DEPTH:
            raise ValueError(f"nested deeper than {MOST_DEPTH} levels")
    return value


def _parse_int(digits: str) -> int:
    if len(digits) > MOST_DIGITS:
        raise ValueError(f"an integer of {len(digits):,} digits")
    return int(digits)


def read_json(path, most_bytes: int = MOST_JSON_BYTES):
    """What a JSON file holds; OSError where it can't be read, UserError where it is no JSON or larger than most_bytes.

    Both fit on a line.
    """
    try:
        return parse_json(regular(path, most_bytes).read_text("utf-8-sig"))
    except UserError:
        raise
    except UnicodeDecodeError:
        raise UserError(f"{path} is not JSON (no UTF-8 text); save it as UTF-8") from None
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not JSON ({reason})") from None


def read_csv(path) -> tuple[list[str], list[dict]]:
    """(header, rows) of a CSV file; a row is {column: text}, "" where it is short. OSError where it can't be read.

    It may come from a spreadsheet: a byte-order mark, semicolons or tabs. A NUL is read as U+FFFD, which is no number.
    UserError for what is no text, or a row with more cells than the header.
    """
    try:
        text = regular(path).read_text("utf-8-sig").replace("\0", "\ufffd")  # Python 3.10's csv reads no NUL
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; save it as UTF-8") from None
    separator = max(",;\t", key=text.partition("\n")[0].count)
    reader, rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=separator, restval=""), []
    try:
        for row in reader:
            rows.append(row)
            if any(row.pop(None, ())):
                raise csv.Error("it has more cells than the header")
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.reader.line_num}: {error}; correct the line, or remove it") from None
    return list(reader.fieldnames or ()), rows


def check_fields(found, kinds: dict, where: str, needed=()):
    """ValueError unless found, of a JSON file, is an object whose fields have these types, as far as they are there.

    Numbers must be from 0 to 2^63, and are no booleans. kinds : {name: type or types}; needed : names not to miss.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{where} is not an object")
    for name, kind in kinds.items():
        if name not in found:
            if name in needed:
                raise ValueError(f"{where} has no {name}")
            continue
        value = found[name]
        wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
        if wrong or (isinstance(value, (int, float)) and not 0 <= value < 2**63):
            raise ValueError(f"{where}: {name} is {json.dumps(value)[:40]}")


# ----- folders -----


class Unwritable(UserError):
    """A folder can't be written: that concerns every run which is to go there."""

    def __init__(self, flag: str, folder, error: OSError, where: str = ""):
        way_out = WAYS_OUT[error.errno] if error.errno in FULL else "name another folder"
        super().__init__(f"{flag} {folder} can't be written ({error.strerror}{where}); {way_out}")


def writable_folder(folder, flag: str = "--out_dir") -> Path:
    """Make sure that a folder is there and can be written to, before anything is computed; Unwritable if not."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".probe.{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise Unwritable(flag, folder, error) from None
    return folder


def _is_there(handle, path: Path) -> bool:
    """Whether an open file is the one at path."""
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def folder_lock(folder, what: str, flag: str = "--out_dir", shown=None, name: str = ".lock") -> Iterator[None]:
    """Hold a folder for this process, as the one `what` ("sweep") that uses it; UserError where another does.

    An operating-system lock: it ends with the process, however that ends. The file `name` in the folder stays, and
    says who held it last. shown : the folder to name in messages, if another.
    """
    folder = Path(folder)
    shown = shown or folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / name, "a+")
    except OSError as error:
        where = f" in {folder.parent}" if shown != folder else ""  # made beside `shown`, which may be writable itself
        raise Unwritable(flag, shown, error, where) from None
    with handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:  # Windows: there two processes must not use one folder
            pass
        except BlockingIOError:
            handle.seek(0)
            who = handle.read().strip() or "unknown process"
            raise UserError(
                f"{flag} {shown} is in use by another {what} ({who}); wait for it, or name another"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise UserError(
                    f"{flag} {shown} can't be locked ({error.strerror}); name one on another disk"
                ) from None
            text = f"warning: {shown} is on a disk without locks: make sure that no other {what} uses it"
            print(text, file=sys.stderr)
        if not _is_there(handle, folder / name):  # a former holder has removed the folder: that lock is of no file
            with folder_lock(folder, what, flag, shown, name):
                yield
            return
        with contextlib.suppress(OSError):  # a full disk: the lock holds, only its note is missing
            handle.truncate(0)
            note = f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n"
            os.write(handle.fileno(), note.encode())  # unbuffered: close() would try again, and fail
        yield

"""The files in a sweep's folder, runs.csv, probes.csv, begun.jsonl and run.json: read, checked, appended to.

    python -c "from isoflop.sweep.folder import read_rows; print(read_rows('sweep_results/runs.csv', repair=False))"

We write commas and LF. A person may have saved a CSV from a spreadsheet: with a byte-order mark, CRLF, quotes, the
columns in another order, semicolons or tabs, decimal commas. It is read, and appended to, in the form that it has.
What is wrong is refused by name, or with --drop_bad_rows moved to a file NAME.bad.SUFFIX.
"""

import csv
import io
import itertools
import json
import math
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path

from isoflop import files
from isoflop.laws import highest_loss
from isoflop.options import UserError
from isoflop.train.record import RunRecord

# A record's columns, then those that only a sweep knows.
#   source       trained, or what a loss was drawn from or asked of: never mix them in one fit
#   lr_from      rule, given, or tuned (--tune_lr, --lrs)
#   lr_on_edge   whether the best rate tried at this budget was the smallest or the largest one
#   trunk        run_id of the run that this one branched off
#   cost         price of its wall time (results.wall_s) on all its processes, by --price_per_hour; empty without
#   flops_spent  what was computed for this row: less than `flops`, the run's own 6ND, by what its trunk had done, and
#                nothing where the run is a probe's, whose row has its cost
EXTRA = {"source": "str", "lr_from": "str", "lr_on_edge": "int | None", "trunk": "str | None", "flops_spent": "int"}
EXTRA |= {"cost": "float | None"}
KINDS = {f.name: str(f.type) for f in fields(RunRecord)} | EXTRA
HEADER = list(KINDS)
LATER = {"dtype_from", "cost"}  # columns that files of before don't have

STATUSES = ("ok", "diverged", "blown_up", "oom", "peer_lost", "interrupted", "refused", "failed")  # refused: no run
ALWAYS = {"run_id", "status", "source", "n_layer", "n_embd", "flop_budget", "seed", "flops_spent"}  # in every row
IN_RESULTS = {"n_params_matmul", "flops", "tokens", "lr", "val_loss"}  # in every row with status ok
POSITIVE = {
    "n_layer",
    "n_head",
    "n_embd",
    "block_size",
    "vocab_size",
    "n_params",
    "n_params_matmul",
    "flop_budget",
    "lr",
}
POSITIVE_IN_RESULTS = {"flops", "tokens", "steps", "tokens_per_step", "batch_size", "val_loss", "tokens_per_param"}
LOSSES = {"train_loss", "val_loss", "val_loss_se", "bits_per_byte"}  # a run that failed may have any
RUN_ID = re.compile(r"[0-9a-f]{12}")


# ----- how a file is written -----


@dataclass(frozen=True)
class Form:
    """How a CSV file is written; decimal_comma only beside semicolons."""

    columns: tuple[str, ...] = tuple(HEADER)
    separator: str = ","
    line_end: str = "\n"
    decimal_comma: bool = False

    def cells(self, line: bytes) -> list[str]:
        """The cells of one line; what a spreadsheet leaves empty to the right of the last column is cut off."""
        text = line.decode("utf-8", errors="replace").rstrip("\r\n")
        try:
            cells = next(csv.reader([text], delimiter=self.separator), [])
        except csv.Error:  # Python 3.10 reads no NUL: such a line is one damaged cell, not a blank one
            return [text]
        while len(cells) > len(self.columns) and not cells[-1].strip():
            cells.pop()
        return [cell.strip() for cell in cells]

    def line(self, row: dict) -> str:
        """A row as a line of the file, without its line end."""
        cells = []
        for name in self.columns:
            text = row[name]
            if self.decimal_comma and KINDS[name].startswith("float"):
                text = text.replace(".", ",")
            cells.append(text)
        text = io.StringIO()
        csv.writer(text, delimiter=self.separator, lineterminator=self.line_end).writerow(cells)
        return text.getvalue()


def find_form(path: Path, raw: bytes) -> Form:
    """The form of a file; UserError where its columns are not ours. Our own header, cut short, passes."""
    ours = ",".join(HEADER).encode() + b"\n"
    if raw.startswith(ours) or ours.startswith(raw):
        return Form()
    header, *lines = raw.split(b"\n")
    line_end = "\r\n" if header.endswith(b"\r") else "\n"
    header = header.removeprefix(b"\xef\xbb\xbf")
    for separator in ",;\t":
        names = Form((), separator, line_end).cells(header)
        if sorted({*names, *LATER}) == sorted(HEADER) and len(set(names)) == len(names):
            form = Form(tuple(names), separator, line_end)
            return Form(tuple(names), separator, line_end, separator == ";" and has_decimal_comma(form, lines))
    first_line = raw.decode(errors="replace").split("\n")[0].strip()
    odd = sorted((set(first_line.split(",")) ^ set(HEADER)) - LATER)
    difference = ", ".join(odd[:6]) or "columns that are there twice"
    raise UserError(
        f"{path} has another header (differs in {difference:.200}); it is left as it is: name another --out_dir, or "
        "move it away"
    )


def has_decimal_comma(form: Form, lines: list[bytes]) -> bool:
    """Whether any number of a file with semicolons has a comma."""
    numbers = [i for i, name in enumerate(form.columns) if "str" not in KINDS[name]]
    for line in lines:
        cells = form.cells(line)
        if any("," in cells[i] for i in numbers if i < len(cells)):
            return True
    return False


# ----- rows -----


def read_rows(path: Path, repair: bool = True, drop: bool = False) -> list[dict]:
    """The rows of a CSV of ours, {column: text}, numbers as Python writes them. A damaged last row (a kill, a full
    disk) is moved aside; its run is done again.

    Parameters
    ----------
    repair : False to leave the file as it is.
    drop : leave out rows with a cell that is wrong; with `repair` they are moved to NAME.bad.csv.

    Raises
    ------
    UserError : other columns; without `drop`, a cell that is wrong: its line, column and value.
    """
    if not path.exists() or (path.is_file() and not path.stat().st_size):
        return []
    raw = files.regular(path).read_bytes()
    form = find_form(path, raw)
    whole = raw[: raw.rfind(b"\n") + 1]
    header, *lines = [line + b"\n" for line in whole.split(b"\n")[:-1]] or [b""]
    while lines and not any(form.cells(lines[-1])):  # blank
        lines.pop()
    if lines and len(form.cells(lines[-1])) != len(form.columns):
        whole = header + b"".join(lines[:-1])
        lines.pop()
    elif raw.endswith(b"\n"):
        whole = raw
    if raw != whole and repair:
        cut_torn(path, raw, len(whole))

    good, rows, bad, problem = [], [], [], ""
    for number, line in enumerate(lines, 2):
        cells = form.cells(line)
        if not any(cells):
            continue
        try:
            rows.append(checked_row(cells, form))
            good.append(line)
        except ValueError as error:
            problem = problem or f"{path}, line {number}: {error}"
            bad.append(line)
    if bad and not drop:
        raise UserError(wrong_text(problem, len(bad), path.with_suffix(".bad.csv"), "its run is done again"))
    if bad and repair:
        set_aside(path, header, good, bad)
    return rows


def compute_type_of(out_dir: Path) -> str | None:
    """The compute type of the last run in runs.csv or probes.csv; None where there is none."""
    for name in ("runs.csv", "probes.csv"):
        for row in reversed(read_rows(Path(out_dir) / name, repair=False, drop=True)):
            if row["dtype"] in ("float32", "bfloat16"):
                return row["dtype"]
    return None


def wrong_text(problem: str, count: int, kept: Path, then: str) -> str:
    """The message on `count` wrong lines, of which `problem` names the first."""
    more = ""
    if count > 1:
        more = f" (and {count - 1} more lines are wrong)"
    return f"{problem}{more}; correct it, or add --drop_bad_rows: it is kept in {kept.name}, and {then}"


def cut_torn(path: Path, raw: bytes, size: int):
    """Move what a kill has left behind the first `size` bytes of a file to NAME.torn."""
    with open(path.with_suffix(".torn"), "ab") as f:
        f.write(raw[size:] + b"\n")
    os.truncate(path, size)


def set_aside(path: Path, header: bytes, good: list[bytes], bad: list[bytes]):
    """Move the bad lines of a file to NAME.bad.SUFFIX; what is kept there already stays."""
    kept = path.with_suffix(f".bad{path.suffix}")
    before = header
    if kept.exists():
        before = files.regular(kept).read_bytes()
    with files.atomic(kept, "wb") as f:
        f.write(before + b"".join(bad))
    with files.atomic(path, "wb") as f:
        f.write(header + b"".join(good))
    print(f"{path}: {len(bad)} damaged lines moved to {kept.name}")


def append_row(path: Path, row: dict):
    """One row in one write, on the disk before this returns, in the form of the file; a new one gets our header."""
    text = ""
    if not path.exists() or not path.stat().st_size:
        form = Form()
        text = ",".join(HEADER) + "\n"
    else:
        form = find_form(path, files.regular(path).read_bytes())
    files.append_line(path, text + form.line(as_text(row)))


def as_text(row: dict) -> dict:
    """A row as the CSV gives it back: every column, as text, what is unknown as ""."""
    out = {}
    for name in HEADER:
        value = row.get(name)
        out[name] = "" if value is None else str(value)
    return out


# ----- begun.jsonl, run.json -----


def read_begun(path: Path, repair: bool, drop: bool) -> dict[str, list[float]]:
    """begun.jsonl: {run_id: FLOPs of each attempt}, without those that were taken back. As read_rows() for the rest."""
    if not path.exists():
        return {}
    raw = files.regular(path).read_bytes()
    lines = [line + b"\n" for line in raw.split(b"\n")]
    begun, good, bad, problem = {}, [], [], ""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            note_begun(line, begun)
            good.append(line)
        except ValueError as error:
            if number == len(lines):  # cut short by a kill, before its run was started
                if repair:
                    cut_torn(path, raw, len(raw) - len(line) + 1)
                continue
            problem = problem or f"{path}, line {number}: {error}"
            bad.append(line)
    if bad and not drop:
        then = "its FLOPs no longer count as spent"
        raise UserError(wrong_text(problem, len(bad), path.with_suffix(".bad.jsonl"), then))
    if bad and repair:
        set_aside(path, b"", good, bad)
    return begun


def note_begun(line: bytes, begun: dict[str, list[float]]):
    """Add a line of begun.jsonl; ValueError where it is wrong. Negative FLOPs take an attempt back."""
    try:
        note = files.parse_json(line.decode("utf-8-sig"))
    except ValueError:
        raise ValueError(f"{line.strip()[:40].decode(errors='replace')!r} is not JSON") from None
    run_id, flops = None, None
    if isinstance(note, dict):
        run_id, flops = note.get("run_id"), note.get("flops")
    if not isinstance(run_id, str):
        raise ValueError(f"run_id {json.dumps(run_id)[:40]} must be text")
    attempts = begun.setdefault(run_id, [])
    if isinstance(flops, bool) or not isinstance(flops, (int, float)) or not 0 < abs(flops) < math.inf:
        raise ValueError(f"flops {json.dumps(flops)[:40]} must be a positive number")
    if flops > 0:
        attempts.append(float(flops))
    elif -flops in attempts:
        attempts.remove(-flops)
    else:
        raise ValueError(f"flops {flops:g} must be a positive number, or take back an attempt in a line above")


def read_record(path: Path, named: bool = True) -> RunRecord:
    """The record in run.json; OSError where there is none, UserError, with field and value, where one is wrong.

    named : whether the folder must have the run_id as its name.
    """
    found = files.read_json(path)
    names = [f.name for f in fields(RunRecord)]
    odd = sorted((set(names) ^ set(found)) - LATER) if isinstance(found, dict) else names
    if odd:
        raise UserError(f"{path} is no record of a run (differs in {', '.join(odd[:6])})")
    texts = {}
    for name in names:
        value = found.get(name)
        if isinstance(value, bool) or (isinstance(value, str) and not KINDS[name].startswith("str")):
            raise UserError(f"{path}: {name} {json.dumps(value)[:40]} must be a number")
        texts[name] = "" if value is None else str(value)
    try:
        status = checked(texts)["status"]
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None
    if named and found["run_id"] != path.parent.name:
        raise UserError(f"{path}: run_id {found['run_id'][:40]!r} must be {path.parent.name}")
    return RunRecord(**found | {"status": status})


def move_aside(path: Path):
    """Rename a damaged file to its free_name()."""
    kept = free_name(path)
    path.rename(kept)
    print(f"{path} is damaged: moved to {kept.name}")


def free_name(path: Path) -> Path:
    """NAME.bad.SUFFIX beside a file, or NAME.bad2.SUFFIX and so on where that is taken."""
    for i in itertools.count(1):
        kept = path.with_suffix(f".bad{i if i > 1 else ''}{path.suffix}")
        if not kept.exists():
            return kept


# ----- cells -----


def checked_row(cells: list[str], form: Form) -> dict:
    """{column: text} of the cells of a line; ValueError, with column and value, where one is wrong."""
    if len(cells) != len(form.columns):
        raise ValueError(f"it has {len(cells)} cells, not {len(form.columns)}")
    found = dict(zip(form.columns, cells, strict=True))
    return checked({name: found.get(name, "") for name in HEADER}, form.decimal_comma)


def checked(found: dict, decimal_comma: bool = False) -> dict:
    """The same columns, {name: text}, each number as Python writes it; ValueError where one is wrong.

    A measured loss above highest_loss() has the status blown_up, whatever the file says.
    """
    status = found["status"].lower()
    if status not in STATUSES:
        raise ValueError(f"status {found['status'][:40]!r} must be one of {', '.join(STATUSES)}")
    is_result = status == "ok"
    is_trained = found.get("source", "trained") == "trained"
    out = {}
    for name, text in found.items():
        kind = KINDS[name]
        needed = name in ALWAYS or (is_result and name in IN_RESULTS)
        if is_result and is_trained and "None" not in kind and kind != "str":
            needed = True
        try:
            if kind.startswith("str"):
                out[name] = checked_text(name, text, needed)
            elif not text and not needed:
                out[name] = ""
            elif name in LOSSES and not is_result:
                out[name] = text
            else:
                above_0 = name in POSITIVE or (is_result and name in POSITIVE_IN_RESULTS)
                out[name] = str(checked_number(text, kind, above_0, decimal_comma))
        except ValueError as error:
            raise ValueError(f"{name} {text[:40]!r} must be {error}") from None
    if is_result and is_trained and out.get("vocab_size"):  # of an older version
        if float(out["val_loss"]) > highest_loss(int(out["vocab_size"])):
            status = "blown_up"
    return out | {"status": status}


def checked_text(name: str, text: str, needed: bool) -> str:
    """A cell of text; ValueError says what it must be. A spreadsheet takes some run_ids for numbers."""
    if needed and not text:
        raise ValueError("given")
    if name in ("run_id", "trunk") and text and not RUN_ID.fullmatch(text):
        try:
            float(text.replace(",", "."))
        except ValueError:
            return text
        raise ValueError("12 hexadecimal digits (a spreadsheet took it for a number)")
    return text


def checked_number(text: str, kind: str, above_0: bool, decimal_comma: bool) -> int | float:
    """The number in a cell; ValueError says what it must be. "5e10" and "900.0" are whole numbers, too."""
    whole = kind.startswith("int")
    must_be = "whole number" if whole else "number"
    must_be = f"a positive {must_be}" if above_0 else f"a {must_be}, at least 0"
    if decimal_comma:
        must_be += ", with a decimal comma as elsewhere in this file"
    if whole and text.isdecimal():
        value = int(text)
    else:
        try:
            value = float(text.replace(",", ".") if decimal_comma else text)
        except ValueError:
            value = math.nan
        if decimal_comma and "." in text:  # of thousands, perhaps
            value = math.nan
    wrong = not 0 <= value < math.inf or (above_0 and value == 0)
    if wrong or (whole and value != int(value)):
        raise ValueError(must_be)
    return int(value) if whole else value

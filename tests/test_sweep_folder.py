"""The files of a sweep's folder under people's hands: spreadsheets, garbled cells, torn rows."""

import csv
import io
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import SMALL_SIZES, finished_sweep, losses_of, quick_fits, row_of_ones, rows_of, run_sweep

import sweep
from isoflop.fit import table
from isoflop.options import UserError
from isoflop.sweep import folder


@pytest.fixture(scope="module")
def whole(toy_data, tmp_path_factory):
    """(folder, flags) of a finished sweep that has every file: 6 probes, 2 cells, sizes that moved."""
    out = tmp_path_factory.mktemp("hands") / "out"
    flags = ["--flop_budgets", "1e8", "--sizes", "2", "--lrs", "0.03", "0.05", "0.07", *SMALL_SIZES[10:]]
    flags += ["--data_dir", toy_data, "--parallel", "ddp", "--out_dir"]
    finished_sweep(out, flags)
    assert len(rows_of(out)) == 2 and len(rows_of(out, "probes.csv")) == 6
    return out, flags


@pytest.fixture
def mine(whole, tmp_path, monkeypatch):
    """(a copy of that folder, flags that sweep in it)."""
    quick_fits(monkeypatch)
    shutil.copytree(whole[0], tmp_path / "out")
    return tmp_path / "out", [*whole[1], tmp_path / "out"]


def no_training(*_, **__):
    raise AssertionError("something was trained")


# ----- saved by a spreadsheet -----


def save_as(path: Path, separator=",", quoting=csv.QUOTE_MINIMAL, decimal_comma=False, bom=True):
    """Save a CSV as a spreadsheet does: CRLF, the columns in another order, an empty line at its end."""
    rows = list(csv.reader(io.StringIO(path.read_text())))
    numbers = [i for i, name in enumerate(rows[0]) if folder.KINDS[name].startswith("float")]
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, quoting=quoting)
    for row in rows:
        for i in numbers if decimal_comma else ():
            row[i] = row[i].replace(".", ",")
        writer.writerow([*reversed(row), ""])
    writer.writerow([""] * (len(rows[0]) + 1))
    path.write_bytes((b"\xef\xbb\xbf" if bom else b"") + text.getvalue().encode())


FORMS = {
    "byte-order mark, CRLF, other order": {},
    "quotes": {"quoting": csv.QUOTE_ALL, "bom": False},
    "semicolons": {"separator": ";"},
    "semicolons, decimal commas": {"separator": ";", "decimal_comma": True},
    "tabs": {"separator": "\t"},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_csv_saved_by_a_spreadsheet_is_read_and_appended_to(mine, whole, monkeypatch, form):
    """A lost row comes back from its record, in the form of the file; nothing is trained; fit.py reads the same."""
    out, flags = mine
    lines = (out / "runs.csv").read_text().splitlines(keepends=True)
    (out / "runs.csv").write_text("".join(lines[:2]))
    for name in ("runs.csv", "probes.csv"):
        save_as(out / name, **form)
    before = (out / "runs.csv").read_bytes()
    monkeypatch.setattr(sweep, "train", no_training)
    assert run_sweep(*flags) == 0
    after = (out / "runs.csv").read_bytes()
    assert after.startswith(before) and after.count(b"\r\n") == before.count(b"\r\n") + 1
    for name in ("runs.csv", "probes.csv"):
        mine_read, theirs_read = folder.read_rows(out / name), folder.read_rows(whole[0] / name)
        assert theirs_read == rows_of(whole[0], name)
        for row in mine_read + theirs_read:
            row.pop("dtype_from")  # the recovered row has it from its folder
        assert mine_read == theirs_read
    ours, theirs = table.read([str(out / "runs.csv")]), table.read([str(whole[0] / "runs.csv")])
    for name in ("n", "d", "c", "loss"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


# ----- garbled cells -----


def edit(path: Path, column: str, value: str, line: int = 2):
    """Set one cell of a CSV."""
    rows = list(csv.reader(io.StringIO(path.read_text())))
    rows[line - 1][rows[0].index(column)] = value
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    path.write_text(text.getvalue())


def test_a_status_that_no_run_has_is_named(mine):
    edit(mine[0] / "runs.csv", "status", "fine", line=3)
    with pytest.raises(folder.UserError, match="line 3: status 'fine' must be one of ok, diverged, .*drop_bad_rows"):
        folder.read_rows(mine[0] / "runs.csv")
    for status in folder.STATUSES:
        edit(mine[0] / "runs.csv", "status", status.upper(), line=3)
        assert folder.read_rows(mine[0] / "runs.csv")[1]["status"] == status


def test_every_garbled_number_is_named(mine):
    """Each number of a measured row: empty, text, nan, inf, negative, and 0 where it must be positive."""
    row, count = folder.read_rows(mine[0] / "runs.csv")[0], 0
    assert folder.checked(row) == row
    for column, kind in folder.KINDS.items():
        if kind.startswith("str"):
            continue
        values = ["abc", "nan", "inf", "-1", "1,5", "1e999"]
        if "None" not in kind or column == "val_loss":
            values.append("")
        if column in folder.POSITIVE | folder.POSITIVE_IN_RESULTS:
            values.append("0")
        if kind.startswith("int"):
            values.append("1.5")
        for value in values:
            with pytest.raises(ValueError) as error:
                folder.checked(row | {column: value})
            assert str(error.value).startswith(f"{column} {value!r} must be a ")
            count += 1
    assert count > 300


@pytest.mark.parametrize("run_id", ["8.18541E+11", "12345678901", "8,1E+11", ""])
def test_a_run_id_that_a_spreadsheet_took_for_a_number_is_named(mine, run_id):
    path = mine[0] / "runs.csv"
    edit(path, "run_id", run_id)
    with pytest.raises(UserError, match=f"line 2: run_id '{re.escape(run_id)}' must be "):
        folder.read_rows(path)
    edit(path, "run_id", "818541000726")
    assert folder.read_rows(path)[0]["run_id"] == "818541000726"


def test_a_row_without_a_result_may_lack_numbers(tmp_path):
    path = tmp_path / "runs.csv"
    folder.append_row(path, row_of_ones("one", status="diverged", val_loss=None, val_loss_se="nan", tokens=0, steps=0))
    folder.append_row(path, row_of_ones("two", status="OK"))
    assert [r["status"] for r in folder.read_rows(path)] == ["diverged", "ok"]


def test_a_loss_above_a_uniform_guess_is_no_result_whatever_the_file_says(mine, monkeypatch, capsys):
    """Runs of an older version that had blown up and are called ok: no size, rate or fit follows them."""
    out, flags = mine
    edit(out / "runs.csv", "val_loss", "9.5")
    uniform = np.log(int(rows_of(out)[0]["vocab_size"]))
    edit(out / "probes.csv", "val_loss", str(uniform + 0.05))  # within what noise may do
    before = (out / "runs.csv").read_bytes()
    monkeypatch.setattr(sweep, "train", no_training)
    assert run_sweep(*flags) == 1
    said = capsys.readouterr().out
    assert "1 of 2 cells have no result (1 blown_up)" in said and "1 x val_loss above ln V: blown up" in said
    assert (out / "runs.csv").read_bytes() == before
    assert [r["status"] for r in folder.read_rows(out / "runs.csv")] == ["blown_up", "ok"]
    assert {r["status"] for r in folder.read_rows(out / "probes.csv")} == {"ok"}
    garble_record(out, "val_loss", 9.5)
    record = next(p for p in out.glob("cells/*/run.json") if json.loads(p.read_text())["val_loss"] == 9.5)
    assert folder.read_record(record).status == "blown_up"


def lose_row(out: Path):
    """Remove the rows of a run: its record is read again. Returns the record's path."""
    run_id = rows_of(out)[-1]["run_id"]
    for name in ("runs.csv", "probes.csv"):
        lines = (out / name).read_text().splitlines(keepends=True)
        (out / name).write_text("".join(line for line in lines if not line.startswith(run_id)))
    return out / "cells" / run_id / "run.json"


def garble_record(out: Path, name: str, value):
    path = lose_row(out)
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: value}))


def garble_begun(out: Path, text: str):
    path = out / "begun.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], text, *lines[2:]]) + "\n")


def garble_sizes(out: Path, shapes):
    path = out / "grid.json"
    kept = json.loads(path.read_text())
    (entry,) = kept.values()
    entry["shapes"] = shapes
    path.write_text(json.dumps(kept))


# edit of a folder, what the line says, the file that keeps what was wrong
EDITS = {
    "runs.csv: a loss emptied": (lambda f: edit(f / "runs.csv", "val_loss", ""), "runs.csv, line 2: val_loss ''"),
    "runs.csv: a loss of 0": (lambda f: edit(f / "runs.csv", "val_loss", "0"), "val_loss '0' must be a positive"),
    "runs.csv: a size of text": (lambda f: edit(f / "runs.csv", "n_embd", "wide", 3), "line 3: n_embd 'wide'"),
    "runs.csv: FLOPs nan": (lambda f: edit(f / "runs.csv", "flops_spent", "nan"), "flops_spent 'nan' must be a whole"),
    "probes.csv: a negative loss": (lambda f: edit(f / "probes.csv", "val_loss", "-5", 4), "line 4: val_loss '-5'"),
    "probes.csv: seconds inf": (lambda f: edit(f / "probes.csv", "train_s", "inf"), "line 2: train_s 'inf'"),
    "begun.jsonl: FLOPs of text": (
        lambda f: garble_begun(f, '{"run_id": "a", "flops": "x"}'), 'begun.jsonl, line 2: flops "x" must be',
    ),
    "begun.jsonl: FLOPs NaN": (lambda f: garble_begun(f, '{"run_id": "a", "flops": NaN}'), "line 2: flops NaN"),
    "begun.jsonl: no JSON": (lambda f: garble_begun(f, "junk"), "line 2: 'junk' is not JSON"),
    "begun.jsonl: never begun": (lambda f: garble_begun(f, '{"run_id": "a", "flops": -9}'), "line 2: flops -9"),
    "grid.json: a width of 0": (lambda f: garble_sizes(f, [[0, 1], [8, 1]]), "shapes has [0, 1]"),
    "grid.json: a list emptied": (lambda f: garble_sizes(f, []), "1e+08 2 sizes"),
    "grid.json: cut short": (lambda f: (f / "grid.json").write_text('{"1e'), "grid.json is not JSON"),
    "run.json: a loss of text": (lambda f: garble_record(f, "val_loss", "low"), 'run.json: val_loss "low" must be'),
    "run.json: steps null": (lambda f: garble_record(f, "steps", None), "run.json: steps '' must be a positive whole"),
    "run.json: another id": (lambda f: garble_record(f, "run_id", "zzz"), "run.json: run_id 'zzz' must be"),
    "run.json: empty": (lambda f: lose_row(f).write_text(""), "run.json is not JSON"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITS)
def test_a_garbled_file_is_one_line_before_anything_trains(mine, monkeypatch, capsys, name):
    out, flags = mine
    change, words = EDITS[name]
    change(out)
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"}
    with monkeypatch.context() as patch:
        patch.setattr(sweep, "train", no_training)
        for flag in ([], ["--retry"], ["--dry_run", "--mfu", "0.5"]):
            assert run_sweep(*flags, *flag) == 2
            err = capsys.readouterr().err
            assert words in err and err.count("\n") == 1 and "--drop_bad_rows" in err
    assert files == {p: p.read_bytes() for p in files}


@pytest.mark.parametrize("name", EDITS)
def test_bad_rows_are_set_aside_and_the_sweep_goes_on(mine, whole, capsys, name):
    """What was wrong is kept, the results are those of before, and the next sweep needs no flag."""
    out, flags = mine
    EDITS[name][0](out)
    file = name.split(":")[0]
    damaged = {p: p.read_bytes() for p in out.rglob(file)}
    assert run_sweep(*flags, "--drop_bad_rows") == 0
    kept = list(out.rglob(file.replace(".", ".bad.")))
    assert len(kept) == 1 and f"to {kept[0].name}" in capsys.readouterr().out
    lines = set(damaged[kept[0].with_name(file)].splitlines())
    assert set(kept[0].read_bytes().splitlines()) <= lines
    if name != "grid.json: a list emptied":  # what was lost there is decided anew
        assert losses_of(out) == losses_of(whole[0])
    assert run_sweep(*flags) == 0 and list(out.rglob("*.bad*")) == kept


def test_what_was_set_aside_stays(tmp_path):
    """A second bad row is added to the first; a second bad record gets a name of its own."""
    path = tmp_path / "runs.csv"
    for i in (1, 2):
        folder.append_row(path, row_of_ones(f"good{i}"))
        folder.append_row(path, row_of_ones(f"bad{i}", lr="x"))
        folder.append_row(path, row_of_ones(f"last{i}"))
        folder.read_rows(path, drop=True)
        record = tmp_path / "run.json"
        record.write_text(str(i))
        folder.move_aside(record)
    assert [r["run_id"] for r in folder.read_rows(path)] == ["good1", "last1", "good2", "last2"]
    assert [r["run_id"] for r in rows_of(tmp_path, "runs.bad.csv")] == ["bad1", "bad2"]
    assert (tmp_path / "run.bad.json").read_text() == "1" and (tmp_path / "run.bad2.json").read_text() == "2"


def test_a_begin_that_was_cut_short_counts_for_nothing(tmp_path):
    path = tmp_path / "begun.jsonl"
    line = '{"run_id": "a", "flops": 900}\n'
    path.write_text(line + '{"run_id": "b", "flo')
    assert folder.read_begun(path, True, False) == {"a": [900.0]}
    assert path.read_text() == line and '"b"' in (tmp_path / "begun.torn").read_text()


# ----- torn rows, other columns -----


def test_a_torn_row_is_moved_aside_and_its_run_done_again(tmp_path):
    path = tmp_path / "runs.csv"
    folder.append_row(path, row_of_ones("one"))
    folder.append_row(path, row_of_ones("two", mfu=None))
    whole = path.read_bytes()
    for cut in (1, 5, len(whole) // 4, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        found = [r["run_id"] for r in folder.read_rows(path)]
        expected = ["one"] if whole[:-cut].count(b"\n") == 2 else []
        assert found == expected
        assert path.read_bytes() == whole[: whole[:-cut].rfind(b"\n") + 1]
        assert (tmp_path / "runs.torn").exists()
        for run in ("one", "two"):
            if run not in found:
                folder.append_row(path, row_of_ones(run))
        assert [r["run_id"] for r in folder.read_rows(path)] == ["one", "two"]


def test_a_damaged_last_row_is_moved_aside_and_an_earlier_one_is_named(tmp_path):
    path = tmp_path / "runs.csv"
    for name in ("one", "two"):
        folder.append_row(path, row_of_ones(name))
    whole = path.read_bytes()
    for junk in (b"\x00\xff\x00\n", b"three,ok,1\n", whole.splitlines(keepends=True)[1].replace(b",1,", b",", 1)):
        path.write_bytes(whole + junk)
        assert [r["run_id"] for r in folder.read_rows(path)] == ["one", "two"] and path.read_bytes() == whole
        assert junk in (tmp_path / "runs.torn").read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[0] + b"junk\n" + lines[2])
    with pytest.raises(ValueError, match="line 2: it has 1 cells, not .*--drop_bad_rows"):
        folder.read_rows(path)


def test_a_file_that_may_not_be_repaired_is_left_as_it_is(tmp_path):
    path = tmp_path / "runs.csv"
    folder.append_row(path, row_of_ones("one"))
    torn = path.read_bytes() + b"two,ok"
    path.write_bytes(torn)
    assert [r["run_id"] for r in folder.read_rows(path, repair=False)] == ["one"]
    assert path.read_bytes() == torn and not path.with_name("runs.torn").exists()


def test_a_foreign_csv_is_refused_and_untouched(tmp_path):
    path = tmp_path / "runs.csv"
    for text in ("run_id,loss\na,3.0\n", "run_id,loss\na,3.0", "\x00\n", folder.HEADER[0] + ",x\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="another header.*name another --out_dir"):
            folder.read_rows(path)
        assert path.read_text() == text and not path.with_name("runs.torn").exists()


def test_a_csv_without_later_columns_is_read_and_appended_to(whole, tmp_path):
    """A file of an older version keeps its columns; the sweep's compute type is that of its rows."""
    out, path = tmp_path / "old", tmp_path / "old" / "runs.csv"
    out.mkdir()
    rows = folder.read_rows(whole[0] / "runs.csv")
    columns = [name for name in folder.HEADER if name not in folder.LATER]
    with open(path, "w", newline="") as f:
        writer = csv.DictWriter(f, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerow(rows[0] | {"dtype": "float32"})
    before = folder.read_rows(path)
    assert len(before) == 1 and before[0]["dtype_from"] == "" and before[0]["run_id"] == rows[0]["run_id"]
    folder.append_row(path, rows[1])
    lines = path.read_text().splitlines()
    assert len(lines) == 3 and {line.count(",") for line in lines} == {len(columns) - 1}
    assert folder.read_rows(path)[1] == rows[1] | dict.fromkeys(folder.LATER, "")
    assert folder.compute_type_of(out) == rows[1]["dtype"] and folder.compute_type_of(tmp_path) is None

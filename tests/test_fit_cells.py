"""Files of any origin: separators, encodings, JSON, usual column names, selections, and what is no table."""

import json

import numpy as np
import pytest
from helpers import isoflop_runs, write_runs

from isoflop import laws
from isoflop.fit.cells import chunks, find_columns, floats, open_table, parse_where
from isoflop.fit.table import read
from isoflop.options import UserError

RUNS = isoflop_runs(laws.PUBLISHED["besiroglu"], budgets=(1e18, 3e18, 1e19, 3e19))


# ----- columns -----


@pytest.mark.parametrize(
    "names",
    [
        ("n_params", "tokens", "flops", "val_loss"),
        ("params", "D", "compute_budget", "final_loss"),
        ("Model Size", "training_tokens", "Training FLOP", "loss"),
        ("N", "tokens", "C", "L"),
    ],
)
def test_usual_names_are_found(names):
    found = find_columns(list(names), {}, "runs.csv")
    assert [found[role] for role in ("n", "d", "c", "loss")] == [0, 1, 2, 3]


def test_the_first_of_several_usual_names_wins():
    header = ["n_params", "n_params_matmul", "tokens", "loss", "val_loss", "flop_budget", "other"]
    found = find_columns(header, {"d": "other"}, "runs.csv")
    assert (found["n"], found["d"], found["loss"], found["c"]) == (1, 6, 4, 5)
    assert found["=flop_budget"] == 5 and found["=n_params"] == 0 and found["=n_params_matmul"] == 1


def test_missing_columns_are_listed():
    words = "needs columns for a loss .* and two of N .*; its columns are a, b; name them with --n_col"
    with pytest.raises(UserError, match=words):
        find_columns(["a", "b"], {}, "runs.csv")
    with pytest.raises(UserError, match="--n_col width: no such column in runs.csv; it has N, D, loss"):
        find_columns(["N", "D", "loss"], {"n": "width"}, "runs.csv")
    many = [f"c{i}" for i in range(30)]
    with pytest.raises(UserError, match="c19 ...; name"):
        find_columns(many, {}, "runs.csv")
    assert "loss" not in find_columns(["N", "D"], {}, "runs.csv", need_loss=False)


# ----- text to cells -----


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_separators_line_ends_and_encodings(tmp_path, separator, line_end, encoding):
    n, d, _, loss = RUNS
    path = tmp_path / "runs.csv"
    write_runs(path, {"n_params": n, "tokens": d, "val_loss": loss}, separator, line_end)
    path.write_bytes(path.read_bytes().decode().encode(encoding))
    header, rows, comma = open_table(str(path))
    assert header == ["n_params", "tokens", "val_loss"] and comma == (separator == ";")
    np.testing.assert_allclose(floats([row[2] for row in rows]), loss)


def test_quoted_fields_decimal_commas_and_blank_lines(tmp_path):
    quoted = 'run_id,"n_params",tokens,val_loss\n"a, b","1e6",2e8,"3.5"\n\n"c ""x""",2e6,3e8,3.4\n'
    (tmp_path / "quoted.csv").write_text(quoted)
    header, rows, _ = open_table(str(tmp_path / "quoted.csv"))
    (chunk,) = chunks(rows, len(header), "quoted.csv")
    assert [row[0] for row in chunk] == ["a, b", 'c "x"']
    assert floats(["3,5", "3,4"], comma=True).tolist() == [3.5, 3.4]
    (tmp_path / "commas.csv").write_text("n_params;tokens;val_loss\n1e6;2e8;3,5\n2e6;3e8;3,4\n")
    assert sorted(read([str(tmp_path / "commas.csv")]).loss) == [3.4, 3.5]


def test_short_rows_are_filled_and_long_files_come_in_chunks(monkeypatch):
    from isoflop.fit import cells

    monkeypatch.setattr(cells, "CHUNK", 2)
    rows = [["a", "b"], ["a"], [], ["", ""], ["a", "b", "c"]]
    assert list(chunks(rows, 2, "x")) == [[["a", "b"], ["a", ""]], [["", ""], ["a", "b"]]]


def test_json_list_json_lines_and_several_files(tmp_path):
    n, _, c, loss = RUNS
    rows = [{"parameters": a, "compute_budget": b, "final_loss": v} for a, b, v in zip(n, c, loss, strict=True)]
    (tmp_path / "a.json").write_text(json.dumps(rows[:10]))
    (tmp_path / "b.jsonl").write_text("\n".join(json.dumps(row) for row in rows[10:]))
    table = read([str(tmp_path / "a.json"), str(tmp_path / "b.jsonl")])
    assert table.info["rows_used"] == len(n)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (b"\n\n", "is empty"),
        (bytes(range(256)) * 20, "binary"),
        (b"\x89PNG\r\n\x1a\n" + b"\x93\x81\x02\x07\x05" * 50, "binary"),
        (b"[1, 2, 3]", "list of objects"),
        (b"[]", "list of objects"),
        (b"{oops", "cannot be parsed"),
        (b"[" * 100_000, "cannot be parsed"),
    ],
)
def test_files_that_hold_no_table(tmp_path, content, says):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(UserError, match=says) as error:
        open_table(str(tmp_path / "x.csv"))
    assert "\n" not in str(error.value)


def test_no_file(tmp_path):
    with pytest.raises(UserError, match="is a directory; name the CSV"):
        open_table(str(tmp_path))
    with pytest.raises(UserError, match="missing.csv: No such file"):
        open_table(str(tmp_path / "missing.csv"))


def test_a_field_too_long_for_csv_is_one_line():
    def rows():
        yield ["1", "2"]
        raise __import__("csv").Error("field larger than field limit (131072)")

    with pytest.raises(UserError, match=r"x.csv: row 2 cannot be read as CSV \(field larger"):
        list(chunks(rows(), 2, "x.csv"))


# ----- selections -----


@pytest.mark.parametrize(
    ("text", "cells", "kept"),
    [
        ("kind == adamw", ["adamw", " muon", "adamw "], [True, False, True]),
        ("kind = 'adamw'", ["adamw", "muon", ""], [True, False, False]),
        ("kind != adamw", ["adamw", "muon", None], [False, True, True]),
        ("depth >= 3", ["2", "3", "x"], [False, True, False]),
        ("depth<1e3", ["999", "1000", ""], [True, False, False]),
        ("a b > -1", [0, -2, 5], [True, False, True]),
    ],
)
def test_selections(text, cells, kept):
    column, test = parse_where(text)
    assert column == text.split("=")[0].split("!")[0].split(">")[0].split("<")[0].strip()
    assert test(cells).tolist() == kept


@pytest.mark.parametrize(("text", "says"), [("val_loss", "expected 'column op value'"), ("a < b", "is not a number")])
def test_mistaken_selections(text, says):
    with pytest.raises(UserError, match=says):
        parse_where(text)

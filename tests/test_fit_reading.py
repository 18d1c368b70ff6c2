"""Files of any origin: separators, encodings, comment lines, Markdown, JSON of any shape, and what is no table."""

import gzip
import io
import json
import zipfile

import numpy as np
import pytest
from helpers import isoflop_runs, run_python, write_runs

from isoflop import laws
from isoflop.fit.reading import chunks, open_table
from isoflop.fit.table import read
from isoflop.fit.values import floats
from isoflop.options import UserError

RUNS = isoflop_runs(laws.PUBLISHED["besiroglu"], budgets=(1e18, 3e18, 1e19, 3e19))
HEADER = ["params", "tokens", "val loss"]
ROWS = [
    ["25845713", "6448522688", "3.6553"],
    ["39174775", "4254438390", "3.5847"],
    ["59377856", "2806882530", "3.5437"],
]


def table_of(tmp_path, text, name="runs.txt"):
    """(header, rows) of a text."""
    (tmp_path / name).write_text(text, encoding="utf-8")
    header, rows, _ = open_table(str(tmp_path / name))
    return header, [list(row) for row in rows]


# ----- tables that people paste -----

MARKDOWN = "| params | tokens | val loss |\n|---:|:---|---|\n" + "".join(f"| {' | '.join(row)} |\n" for row in ROWS)
PASTED = {
    "markdown": MARKDOWN,
    "markdown in an issue": f"We ran a sweep:\n\n{MARKDOWN}\nAny idea?\n",
    "markdown without outer bars": "\n".join(line.strip("| ") for line in MARKDOWN.splitlines()),
    "psql": " params | tokens | val loss\n--------+--------+---------\n" + "\n".join(" | ".join(r) for r in ROWS),
    "grid": "+---+---+---+\n" + MARKDOWN.replace("|---:|:---|---|", "+===+===+===+") + "+---+---+---+\n",
    "polars": "┌───┬───┬───┐\n" + MARKDOWN.replace("|---:|:---|---|", "╞═══╪═══╪═══╡").replace("|", "│"),
    "aligned": "  params      tokens  val loss\n" + "".join("  ".join(f"{c:>9}" for c in row) + "\n" for row in ROWS),
    "pandas": "  params  tokens  val loss\n" + "".join(f"{i}  " + "  ".join(row) + "\n" for i, row in enumerate(ROWS)),
    "tabs": "\n".join("\t".join(row) for row in [HEADER, *ROWS]),
    "sep line": "sep=;\n" + "\n".join(";".join(row) for row in [HEADER, *ROWS]),
    "comments": "# 8xA100, spring\n# tuned\n" + "\n".join(",".join(row) for row in [HEADER, *ROWS]) + "\n# end\n",
    "numpy.savetxt": "# params,tokens,val loss\n" + "\n".join(",".join(row) for row in ROWS),
    "bars": "\n".join("|".join(row) for row in [HEADER, *ROWS]),
    "LaTeX": "\n".join(" & ".join(row) + r" \\" for row in [HEADER, *ROWS]).replace(r"loss \\", r"loss \\ \hline"),
    "spaces": "\n".join(" ".join(row) for row in [["params", "tokens", "loss"], *ROWS]).replace("loss", "val_loss"),
    "title": "Runs of the spring sweep\n\n" + "\n".join(",".join(row) for row in [HEADER, *ROWS]),
}


@pytest.mark.parametrize("kind", PASTED)
def test_pasted_tables(tmp_path, kind):
    header, rows = table_of(tmp_path, PASTED[kind])
    if kind == "pandas":
        assert header.pop(0) == "index" and [row.pop(0) for row in rows] == ["0", "1", "2"]
    assert [name.replace("_", " ") for name in header] == HEADER and rows == ROWS


def test_two_header_lines_become_one(tmp_path):
    upper = "model,model,train,eval\nname,params,tokens,val_loss\nm0,25845713,6448522688,3.6\n"
    assert table_of(tmp_path, upper)[0] == ["model.name", "model.params", "train.tokens", "eval.val_loss"]
    units = "name,params,tokens,val_loss\n,(M),(B),nats\nm0,25.8,6.4,3.6\n"
    assert table_of(tmp_path, units)[0] == ["name", "params (M)", "tokens (B)", "val_loss (nats)"]
    header, rows = table_of(tmp_path, "name,note,val_loss\nm0,diverged,\nm1,ok,3.6\n")
    assert header == ["name", "note", "val_loss"] and len(rows) == 2  # a row of words is no header


# ----- JSON -----

OBJECTS = [{"n_params": int(a), "tokens": int(b), "val_loss": float(c)} for a, b, c in ROWS]
COLUMNS = {name: [row[name] for row in OBJECTS] for name in OBJECTS[0]}
JSON = {
    "records": OBJECTS,
    "columns of lists": COLUMNS,
    "pandas columns": {name: {str(i): v for i, v in enumerate(values)} for name, values in COLUMNS.items()},
    "pandas index": {f"run{i}": row for i, row in enumerate(OBJECTS)},
    "columns of named rows": {n: {f"run{i}": v for i, v in enumerate(vs)} for n, vs in COLUMNS.items()},
    "split": {"columns": list(COLUMNS), "index": [0, 1, 2], "data": [list(row.values()) for row in OBJECTS]},
    "header and rows": [list(COLUMNS), *(list(row.values()) for row in OBJECTS)],
    "wrapped": {"meta": {"date": "2026"}, "data": {"runs": OBJECTS}},
    "nested": [
        {"config": {"n_params": r["n_params"]}, "summary": {k: r[k] for k in ("tokens", "val_loss")}} for r in OBJECTS
    ],
}


@pytest.mark.parametrize("kind", JSON)
def test_json_of_any_shape(tmp_path, kind):
    (tmp_path / "runs.json").write_text(json.dumps(JSON[kind]))
    table = read([str(tmp_path / "runs.json")])
    assert sorted(table.loss) == sorted(COLUMNS["val_loss"]) and set(table.n) == set(COLUMNS["n_params"])


def test_dicts_as_python_prints_them(tmp_path):
    (tmp_path / "runs.txt").write_text(repr([{**row, "acc": float("nan")} for row in OBJECTS]))
    assert sorted(read([str(tmp_path / "runs.txt")]).loss) == sorted(COLUMNS["val_loss"])


def test_cells_that_hold_objects(tmp_path):
    lines = ["name,state,config,summary"]
    for i, row in enumerate(OBJECTS):
        summary = {"val/loss": row["val_loss"], "tokens": row["tokens"], "_runtime": float("nan")}
        cells = (f"r{i}", "finished", repr({"n_params": row["n_params"]}), repr(summary))
        lines.append(",".join(f'"{cell}"' for cell in cells))
    (tmp_path / "project.csv").write_text("\n".join(lines))
    table = read([str(tmp_path / "project.csv")])
    assert sorted(table.loss) == sorted(COLUMNS["val_loss"]) and table.info["columns"]["n"] == "config.n_params"
    assert sorted(table.run_id) == ["r0", "r1", "r2"]


def test_a_torn_line_of_json_is_named(tmp_path):
    (tmp_path / "r.jsonl").write_text('{"N": 1e6, "D": 1e8, "loss": 3}\n{"N": 1e6, "D"')
    with pytest.raises(UserError, match=r"cannot be parsed in line 2 \(.*\); mend or remove that line"):
        open_table(str(tmp_path / "r.jsonl"))


# ----- compressed, and through pandas -----


def test_compressed(tmp_path):
    text = "\n".join(",".join(row) for row in [HEADER, *ROWS]).encode()
    (tmp_path / "runs.csv.gz").write_bytes(gzip.compress(text))
    assert [list(row) for row in open_table(str(tmp_path / "runs.csv.gz"))[1]] == ROWS
    (tmp_path / "torn.csv.gz").write_bytes(gzip.compress(text)[:40])
    with pytest.raises(UserError, match="torn.csv.gz: cannot be decompressed"):
        open_table(str(tmp_path / "torn.csv.gz"))
    damaged = bytearray(gzip.compress(text))
    damaged[12] ^= 0xFF
    (tmp_path / "torn.csv.gz").write_bytes(damaged)
    with pytest.raises(UserError, match="torn.csv.gz: cannot be decompressed"):
        open_table(str(tmp_path / "torn.csv.gz"))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as f:
        f.writestr("runs.csv", text)
    (tmp_path / "runs.zip").write_bytes(packed.getvalue())
    with pytest.raises(UserError, match="zip archive of runs.csv; unzip it"):
        open_table(str(tmp_path / "runs.zip"))


def test_plain_files_need_no_pandas(tmp_path):
    path = write_runs(tmp_path / "r.csv", dict(zip(("N", "D", "loss"), (RUNS[0], RUNS[1], RUNS[3]), strict=True)))
    code = (
        "import sys\n"
        "for name in ('pandas', 'pyarrow', 'openpyxl', 'torch'): sys.modules[name] = None\n"
        "import fit\n"
        "fit.run(sys.argv[1], sys.argv[2], bootstrap=0, plots=False)\n"
    )
    run_python(code, path, tmp_path / "out")
    assert (tmp_path / "out" / "fit.json").exists()


@pytest.mark.parametrize(("suffix", "engine"), [("xlsx", "openpyxl"), ("parquet", "pyarrow")])
def test_excel_and_parquet(tmp_path, suffix, engine):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip(engine)
    frame = pandas.DataFrame(OBJECTS)
    path = tmp_path / f"runs.{suffix}"
    write = {"xlsx": frame.to_excel, "parquet": frame.to_parquet}[suffix]
    write(path, index=False)
    table = read([str(path)])
    assert sorted(table.loss) == sorted(COLUMNS["val_loss"]) and set(table.d) == set(COLUMNS["tokens"])


def test_the_sheet_that_holds_runs(tmp_path):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("openpyxl")
    path = tmp_path / "runs.xlsx"
    with pandas.ExcelWriter(path) as writer:
        pandas.DataFrame([["spring sweep", "tuned"], ["by", "us"]]).to_excel(writer, sheet_name="readme", index=False)
        pandas.DataFrame(OBJECTS).to_excel(writer, sheet_name="runs", index=False, startrow=2)
    assert sorted(read([str(path)]).loss) == sorted(COLUMNS["val_loss"])


def test_a_missing_package_is_named_with_its_command(tmp_path, monkeypatch):
    import sys

    (tmp_path / "runs.parquet").write_bytes(b"PAR1 anything")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(UserError, match="package pandas is missing; pip install pandas pyarrow, or save"):
        open_table(str(tmp_path / "runs.parquet"))


# ----- text to cells -----


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_separators_line_ends_and_encodings(tmp_path, separator, line_end, encoding):
    n, d, _, loss = RUNS
    path = tmp_path / "runs.csv"
    write_runs(path, {"n_params": n, "tokens": d, "val_loss": loss}, separator, line_end)
    path.write_bytes(path.read_bytes().decode().encode(encoding))
    header, rows, decimal = open_table(str(path))
    assert header == ["n_params", "tokens", "val_loss"] and decimal == ("," if separator == ";" else ".")
    np.testing.assert_allclose(floats([row[2] for row in rows]), loss)


def test_quoted_fields_decimal_commas_and_blank_lines(tmp_path):
    quoted = 'run_id,"n_params",tokens,val_loss\n"a, b","1e6",2e8,"3.5"\n\n"c ""x""",2e6,3e8,3.4\n'
    (tmp_path / "quoted.csv").write_text(quoted)
    header, rows, _ = open_table(str(tmp_path / "quoted.csv"))
    (chunk,) = chunks(rows, len(header), "quoted.csv")
    assert [row[0] for row in chunk] == ["a, b", 'c "x"']
    assert floats(["3,5", "3,4"], ",").tolist() == [3.5, 3.4]
    (tmp_path / "commas.csv").write_text("n_params;tokens;val_loss\n1e6;2e8;3,5\n2e6;3e8;3,4\n")
    assert sorted(read([str(tmp_path / "commas.csv")]).loss) == [3.4, 3.5]


def test_short_rows_are_filled_and_long_files_come_in_chunks(monkeypatch):
    from isoflop.fit import reading

    monkeypatch.setattr(reading, "CHUNK", 2)
    rows = [["a", "b"], ["a"], [], ["", ""], ["a", "b", "c"]]
    assert list(chunks(rows, 2, "x")) == [[["a", "b"], ["a", ""]], [["", ""], ["a", "b", "c"]]]


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
        (b"<!DOCTYPE html><table>", "is an HTML or XML page; save the table"),
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

"""Tables of the kinds that people have: what is read from each file of ../shared/cases/tables, and from our own."""

import json
import math

import numpy as np
import pytest
from helpers import ROOT

from isoflop.fit.table import read
from isoflop.options import UserError

TABLES = ROOT.parent / "shared" / "cases" / "tables"
needs_cases = pytest.mark.skipif(not TABLES.is_dir(), reason="../shared/cases is not here")
TRUTH = "truth_of_the_number_formats.csv"
# files with the runs of TRUTH -> (relative error of N, D and the loss that their digits leave, options of read())
SAME_RUNS = {
    "aligned.txt": (1e-6, {}),
    "comments.csv": (1e-6, {}),
    "german_excel.csv": (1e-6, {}),
    "github_table.md": (2e-5, {}),
    "long_by_run_name.csv": (2e-3, {}),
    "millions_and_billions.csv": (1e-4, {"units": ("n=M", "d=B")}),
    "multiindex.csv": (1e-6, {}),
    "pandas_to_json.json": (2e-6, {}),
    "paste_tab.tsv": (1e-6, {}),
    "perplexity.csv": (1e-5, {}),
    "pm.csv": (2e-5, {}),
    "pow.csv": (2e-5, {}),
    "semicolon_en.csv": (1e-6, {}),
    "sep_line.csv": (1e-6, {}),
    "sizes_with_suffix.csv": (5e-3, {}),
    "thousands_en.csv": (1e-6, {}),
    "units_in_header.csv": (1e-4, {}),
    "wandb_api_nested.json": (2e-5, {}),
    "wandb_states.csv": (1e-6, {"status": ("failed", "killed", "crashed")}),
    "wrapped.json": (2e-5, {}),
}


def case(name, **options):
    table = read([str(TABLES / name)], **options)
    return table, " | ".join(table.info["notes"]), {row["code"]: row["message"] for row in table.info["warnings"]}


@needs_cases
@pytest.mark.parametrize("name", SAME_RUNS)
def test_the_same_runs_in_every_form(name):
    tolerance, options = SAME_RUNS[name]
    table, _, warnings = case(name, **options)
    truth, _, _ = case(TRUTH)
    order, of_truth = np.lexsort((table.d, table.n)), np.lexsort((truth.d, truth.n))
    for quantity in ("n", "d", "loss"):
        found, true = getattr(table, quantity)[order], getattr(truth, quantity)[of_truth]
        np.testing.assert_allclose(found, true, rtol=tolerance, err_msg=quantity)
    assert not warnings


@needs_cases
def test_a_sweep_of_rates_and_batches():
    table, notes, _ = case("lr_batch_sweep.csv")
    assert len(table.n) == 17 and "1,911 rows share N and D and differ in lr, bs, ti: the lowest loss of each" in notes
    assert len(case("lr_batch_sweep.csv", same_nd="all")[0].n) == 1911


@needs_cases
def test_checkpoints_beside_runs():
    table, notes, _ = case("checkpoints_beside_runs.csv", same_nd="all")
    assert len(table.n) == 262 and "checkpoints, left out" in notes  # 263 final rows, two of them the same
    table, notes, _ = case("checkpoints_beside_runs.csv")
    assert len(table.n) == 83 and "differ in total_epochs, peak_lr" in notes
    by_columns = ("model", "sweep", "peak_lr", "total_steps", "total_epochs")
    table, _, _ = case("checkpoints_beside_runs.csv", run_cols=by_columns, same_nd="all")
    assert len(table.n) == 253 and len(table.curve["n"]) == 4850


@needs_cases
def test_checkpoints_of_22_runs():
    assert len(case("checkpoints_of_22_runs.jsonl")[0].n) == 22
    assert len(case("checkpoints_of_22_runs.jsonl", rows_are_runs=True)[0].n) == 770


@needs_cases
def test_millions_and_billions_are_named():
    _, _, warnings = case("millions_and_billions.csv")
    assert "N in millions and D in billions? then --units n=M d=B" in warnings["units"]


@needs_cases
def test_many_epochs():
    table, _, warnings = case("many_epochs.csv")
    assert (
        len(table.n) == 229
        and "163 of 229 runs" in warnings["epochs"]
        and "--where 'epochs <= 4'" in warnings["epochs"]
    )
    assert len(case("many_epochs.csv", where="epochs <= 4")[0].n) == 66


@needs_cases
def test_statuses_are_said_and_kept():
    table, notes, _ = case("wandb_states.csv")
    assert len(table.n) == 7 and "--status crashed failed killed" in notes


@needs_cases
def test_bits_per_character_and_its_rates():
    table, notes, _ = case("bits_per_character.jsonl")
    assert table.info["loss_unit"] == "bits per character" and len(table.n) == 10
    assert "60 rows share N and D and differ in train.lr" in notes


@needs_cases
def test_errors_behind_losses_and_compressed_files():
    table, notes, _ = case("pm.csv")
    np.testing.assert_allclose(table.loss_se, 0.003)
    assert "--loss_se_col val_loss" in notes
    assert len(case("results.csv.gz")[0].n) == 9


@needs_cases
def test_a_panel_export_and_the_second_file_that_it_asks_for(tmp_path):
    with pytest.raises(UserError, match="is a W&B panel export: .*; give a second file with columns run_name, N and D"):
        case("wandb_panel_export.csv")
    second = tmp_path / "second.csv"
    lines = ["run_name,N,D", *(f"k_is_{k},{k}e7,1e9" for k in (10, 7, 4, 2))]
    second.write_text("\n".join(lines))
    table = read([TABLES / "wandb_panel_export.csv", second])
    assert list(table.n) == [4e7, 7e7, 1e8] and list(table.run_id) == ["k_is_4", "k_is_7", "k_is_10"]
    last = (TABLES / "wandb_panel_export.csv").read_text().splitlines()[-1].replace('"', "").split(",")
    assert list(table.loss) == [float(last[i]) for i in (7, 4, 1)]
    notes = " ".join(table.info["notes"])
    assert "3 losses from wandb_panel_export.csv" in notes and "1 runs of wandb_panel_export.csv are in no row" in notes
    (left_out,) = table.info["dropped"]
    assert left_out["run_id"] == "k_is_2"


# ----- the same kinds, written here -----

N = [2.5e7, 5e7, 1e8, 4e7, 1.2e8, 4e8]
D = [8e9, 4e9, 2e9, 1.25e10, 5e9, 1.3e9]
LOSS = [3.6125, 3.5406, 3.5875, 3.3406, 3.1281, 3.2344]
SPACE, NARROW = chr(0xA0), chr(0x202F)


def lines(form, *columns):
    """A line for each run, `form` filled with its columns."""
    return "".join(form.format(*row) for row in zip(*columns, strict=True))


def grouped(values, mark, form="{:,.0f}"):
    """Numbers with `mark` between their thousands."""
    return [form.format(value).replace(",", mark) for value in values]


def millions(values, form="{:g}"):
    return [form.format(value / 1e6) for value in values]


def billions(values, form="{:g}"):
    return [form.format(value / 1e9) for value in values]


COMMA = [f"{loss:.4f}".replace(".", ",") for loss in LOSS]
PLAIN = lines("{:g},{:g},{}\n", N, D, LOSS)
HEAD = "params,tokens,val_loss\n"
OBJECTS = [{"n_params": n, "tokens": d, "val_loss": loss} for n, d, loss in zip(N, D, LOSS, strict=True)]
OWN = {  # name -> text, options of read(), what the notes and warnings must say
    "French": ("params;tokens;val_loss\n" + lines("{};{};{}\n", grouped(N, NARROW), grouped(D, NARROW), COMMA), {}, ""),
    "spaces that don't break": (
        "params\ttokens\tval_loss\n" + lines("{}\t{}\t{}\n", grouped(N, SPACE), grouped(D, SPACE), LOSS), {}, "",
    ),
    "Swiss": (HEAD + lines("{},{},{}\n", grouped(N, "'"), grouped(D, "'"), LOSS), {}, ""),
    "Python's underscores": (HEAD + lines("{},{},{}\n", grouped(N, "_"), grouped(D, "_"), LOSS), {}, ""),
    "Fortran": (HEAD + lines("{},{},{}\n", *([f"{v:E}".replace("E", "D") for v in vs] for vs in (N, D)), LOSS), {}, ""),
    "a header in words": (
        "model size (millions of params),data (billion tokens),final validation loss\n"
        + lines("{},{},{}\n", millions(N), billions(D), LOSS), {}, "times 1e+06",
    ),
    "ZFLOPs": (
        "params_millions,compute_zflops,loss\n"
        + lines("{},{:g},{}\n", millions(N), [6 * n * d / 1e21 for n, d in zip(N, D, strict=True)], LOSS), {}, "1e+21",
    ),
    "Chinese": (
        "参数量(亿),训练tokens(十亿),验证损失\n" + lines("{:g},{},{}\n", [n / 1e8 for n in N], billions(D), LOSS),
        {"columns": {"n": "参数量(亿)", "d": "训练tokens(十亿)", "loss": "验证损失"}}, "times 1e+08",
    ),
    "about": ("size,tokens,loss\n" + lines("~{}M,≈{}B,{}\n", millions(N), billions(D), LOSS), {}, ""),
    "logarithms": (
        "log10_params,ln(D),loss\n" + lines("{:.9f},{:.9f},{}\n", map(math.log10, N), map(math.log, D), LOSS),
        {}, "log10_params: log10 of N",
    ),
    "a logarithm that is told": (
        "log N,tokens,loss\n" + lines("{:.9f},{:g},{}\n", map(math.log, N), D, LOSS),
        {"columns": {"n": "log N"}, "units": ("n=ln",)}, "log N: ln of N",
    ),
    "D/N": (
        "params,tokens_per_param,val_loss\n"
        + lines("{:g},{:g},{}\n", N, [d / n for n, d in zip(N, D, strict=True)], LOSS), {}, "D from D/N",
    ),
    "steps, batch and length": (
        "params,steps,batch_size,seq_len,val_loss\n" + lines("{:g},{:g},500,1000,{}\n", N, [d / 5e5 for d in D], LOSS),
        {"columns": {"d": "steps * batch_size * seq_len"}}, "",
    ),
    "an old Mac": ((HEAD + PLAIN).replace("\n", "\r"), {}, ""),
    "psql": (" params | tokens | val_loss \n--------+--------+----------\n" + lines(" {:g} | {:g} | {} \n", N, D, LOSS)
             + "(6 rows)\n", {}, ""),
    "pandas, split": (
        json.dumps({"columns": list(OBJECTS[0]), "index": [0, 1], "data": [list(one.values()) for one in OBJECTS]}),
        {}, "",
    ),
    "pandas, by index": (json.dumps({f"run{i}": one for i, one in enumerate(OBJECTS)}), {}, ""),
    "two files in one, rows twice": (HEAD + PLAIN + HEAD + PLAIN, {}, "6 x exact duplicate"),
    "R, with row names and notes of two lines": (
        '"","params","tokens","val_loss","note"\n' + lines('"{}",{:g},{:g},{},"one\ntwo, x"\n', range(6), N, D, LOSS),
        {}, "",
    ),
    "a mean below": (HEAD + PLAIN + "1e8,1e9,diverged\nmean,,3.4\n", {}, "'mean' is no number"),
    "a history": (
        "exp,global_step,params,tokens_seen,eval/loss\n"
        + lines("{},1,{:g},{:g},9\n", "abcdef", N, [d / 2 for d in D])
        + lines("{},2,{:g},{:g},{}\n", "abcdef", N, D, LOSS),
        {}, "rows of one exp are one run",
    ),
    "two optimizers": (
        "optimizer,params,tokens,loss\n" + lines("adamw,{:g},{:g},{}\n", N, D, LOSS)
        + lines("muon,{:g},{:g},{}\n", N, D, [0.98 * v for v in LOSS]), {"where": ("optimizer == adamw",)}, "",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", OWN)
def test_own_tables_are_read_as_they_are_meant(name, tmp_path):
    text, options, says = OWN[name]
    path = tmp_path / "runs.txt"
    path.write_text(text, encoding="utf-8", newline="")
    table = read([str(path)], **options)
    order = np.argsort(table.loss)
    expected = sorted(zip(LOSS, N, D, strict=True))
    np.testing.assert_allclose(np.transpose([table.loss, table.n, table.d])[order], expected, rtol=1e-6)
    said = [*table.info["notes"], *(warning["message"] for warning in table.info["warnings"])]
    said += [f"{count} x {reason}" for reason, count in table.info["dropped_counts"].items()]
    assert says in " | ".join(said)


@pytest.mark.parametrize(
    "text, says",
    [
        ("params,steps,batch_size,seq_len,loss\n1e8,10,4,1024,3\n", '--d_col "steps * batch_size * seq_len"'),
        ("params,iters,tokens_per_step,loss\n1e8,10,4096,3\n", '--d_col "iters * tokens_per_step"'),
        ("params,1e18,3e18\n1e8,3.5,3.2\n", "columns named by numbers (1e18, 3e18, ..): write a row for each run"),
        ("log N,log D,loss\n8,9,3\n", "name them with --n_col"),
    ],
)
def test_a_table_that_lacks_columns_says_the_way_out(text, says, tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    with pytest.raises(UserError, match="needs columns") as error:
        read([str(path)])
    assert says in str(error.value)

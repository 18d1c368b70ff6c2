"""Tables of the kinds that people have: what is read from each file of ../shared/cases/tables."""

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
def test_a_panel_export_says_what_to_export():
    with pytest.raises(UserError, match="is a W&B panel export: .*; export the table of runs instead"):
        case("wandb_panel_export.csv")

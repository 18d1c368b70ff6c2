"""The results of a sweep on the disk: rows, torn rows, what was spent."""

import json
from dataclasses import fields

import pytest
from helpers import row_of_ones

from isoflop.sweep import results
from isoflop.sweep.cells import Cell, ModelSize
from isoflop.train.record import RunRecord


def planned(run_id="abc", flops=900, **about):
    plan = type("Plan", (), {"flops": flops, "steps": 10})()
    config = type("Config", (), {"out_dir": f"cells/{run_id}"})()
    return Cell(run_id, ModelSize(8, 1), 1e9, 0, tc=config, plan=plan, **about)


def record(run_id="abc", status="ok", **more):
    ones = {f.name: 1 for f in fields(RunRecord)}
    return ones | {"run_id": run_id, "status": status, "steps": 10, "flops": 900, **more}


class Trained:
    """As much of a Planner as ResultsFile.missing() needs."""

    source = "trained"


# ----- the CSV -----


def test_a_torn_row_is_moved_aside_and_its_run_done_again(tmp_path):
    path = tmp_path / "runs.csv"
    results.append_row(path, row_of_ones("one"))
    results.append_row(path, row_of_ones("two", mfu=None))
    whole = path.read_bytes()
    for cut in (1, 5, len(whole) // 4, len(whole) // 2):
        path.write_bytes(whole[:-cut])
        found = [r["run_id"] for r in results.read_rows(path)]
        expected = ["one"] if whole[:-cut].count(b"\n") == 2 else []
        assert found == expected
        assert path.read_bytes() == whole[: whole[:-cut].rfind(b"\n") + 1]
        assert (tmp_path / "runs.torn").exists()
        for run in ("one", "two"):
            if run not in found:
                results.append_row(path, row_of_ones(run))
        assert [r["run_id"] for r in results.read_rows(path)] == ["one", "two"]


def test_a_damaged_last_row_is_moved_aside_and_an_earlier_one_is_named(tmp_path):
    path = tmp_path / "runs.csv"
    for name in ("one", "two"):
        results.append_row(path, row_of_ones(name))
    whole = path.read_bytes()
    for junk in (b"\x00\xff\x00\n", b"three,ok,1\n", whole.splitlines(keepends=True)[1].replace(b",1,", b",", 1)):
        path.write_bytes(whole + junk)
        assert [r["run_id"] for r in results.read_rows(path)] == ["one", "two"] and path.read_bytes() == whole
        assert junk in (tmp_path / "runs.torn").read_bytes()
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[0] + b"junk\n" + lines[2])
    with pytest.raises(ValueError, match="line 2 is damaged; delete that line"):
        results.read_rows(path)


def test_a_file_that_may_not_be_repaired_is_left_as_it_is(tmp_path):
    path = tmp_path / "runs.csv"
    results.append_row(path, row_of_ones("one"))
    torn = path.read_bytes() + b"two,ok"
    path.write_bytes(torn)
    assert [r["run_id"] for r in results.read_rows(path, repair=False)] == ["one"]
    assert path.read_bytes() == torn and not path.with_name("runs.torn").exists()


def test_a_foreign_csv_is_refused_and_untouched(tmp_path):
    path = tmp_path / "runs.csv"
    for text in ("run_id,loss\na,3.0\n", "run_id,loss\na,3.0", "\x00\n", results.HEADER[0] + ",x\n"):
        path.write_text(text)
        with pytest.raises(ValueError, match="another header.*name another --out_dir"):
            results.read_rows(path)
        assert path.read_text() == text and not path.with_name("runs.torn").exists()


# ----- what was spent -----


def test_a_run_that_was_cut_off_counts_in_full(tmp_path):
    found = results.ResultsFile(tmp_path)
    found.begin(planned())
    found.begin(planned())
    assert results.ResultsFile(tmp_path).spent() == 1800
    found.withdraw(planned())
    assert found.spent() == results.ResultsFile(tmp_path).spent() == 900
    found.add(planned(), record(), "trained")
    assert found.spent() == results.ResultsFile(tmp_path).spent() == 900


def test_a_branch_is_charged_with_its_own_steps(tmp_path):
    found = results.ResultsFile(tmp_path)
    found.add(planned(start="step_8", start_step=8, trunk="def"), record(train_s=100, eval_s=0, startup_s=0), "trained")
    assert float(found.rows[0]["flops_spent"]) == found.spent() == 180
    assert found.hours() == pytest.approx(20 / 3600)


# ----- runs whose row is missing -----


def test_a_record_without_a_row_is_taken_once_and_only_where_it_is_this_run_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = results.ResultsFile(tmp_path)
    path = tmp_path / "cells" / "abc" / "run.json"
    path.parent.mkdir(parents=True)
    ended_by_machine = [json.dumps(record(status=status)) for status in ("interrupted", "peer_lost")]
    for text in ("", "[]", "{}", json.dumps(record("another")), *ended_by_machine):
        path.write_text(text)
        assert not found.recover(planned(), "trained") and not found.rows
    path.write_text(json.dumps(record()))
    assert found.recover(planned(), "trained") and found.done() == {"abc"}
    assert len(results.read_rows(tmp_path / "runs.csv")) == 1


def test_a_run_that_its_machine_ended_is_no_result(tmp_path):
    """Rows of peer_lost that an older version wrote: what they cost counts, and their run is done again."""
    found = results.ResultsFile(tmp_path)
    found.add(planned(), record(status="peer_lost", steps=5, flops=450), "trained")
    for again in (found, results.ResultsFile(tmp_path)):
        assert again.done() == set() and again.spent() == 450
        assert [c.run_id for c in again.missing([planned()], Trained())] == ["abc"]
    found.add(planned(), record(), "trained")
    assert results.ResultsFile(tmp_path).done() == {"abc"} and found.spent() == 1350
    assert found.places() == {(1, 1, 1.0, 1)}


# ----- a probe that is a cell's own run -----


def test_a_probe_s_run_is_the_row_of_the_cell_with_its_id(tmp_path):
    """One run, a row in each file, its cost counted once, also when it was begun twice and read again."""
    found = results.ResultsFile(tmp_path)
    probe, cell = planned(probe=True, lr_from="tried"), planned(lr_from="tuned", lr_on_edge=1)
    found.begin(probe)  # cut off
    found.begin(probe)
    found.add(probe, record(train_s=36.0, eval_s=0.0, startup_s=0.0), "trained")
    assert found.missing([cell], Trained()) == [] and found.missing([cell], Trained()) == []
    for again in (found, results.ResultsFile(tmp_path)):
        (row,), (tried,) = again.rows, again.probe_rows
        assert (row["run_id"], row["lr_from"], row["lr_on_edge"], row["status"]) == ("abc", "tuned", "1", "ok")
        assert tried["lr_from"] == "tried" and row["val_loss"] == tried["val_loss"]
        assert (float(tried["flops_spent"]), float(row["flops_spent"])) == (900, 0)
        assert again.spent() == 900 + 900 and again.cut_off() == 900 and again.hours() == pytest.approx(0.01)


def test_a_probe_that_is_a_run_of_the_grid_needs_no_second_run(tmp_path):
    found = results.ResultsFile(tmp_path)
    found.add(planned(), record(), "trained")
    assert found.missing([planned(probe=True)], Trained()) == []
    assert len(found.rows) == 1 and not found.probe_rows


def test_retry_leaves_runs_that_have_a_result(tmp_path):
    """--retry runs cells without a result: no probe again, and no cell that a probe has run."""
    found = results.ResultsFile(tmp_path)
    found.add(planned(probe=True), record(n_embd=8), "trained")
    found.add(planned("def", probe=True), record("def", status="diverged", val_loss=None), "trained")
    cells = [planned(probe=True), planned("def", probe=True)]
    assert [c.run_id for c in found.missing(cells, Trained(), retry=True)] == ["def"]
    assert found.missing([planned()], Trained(), retry=True) == [] and len(found.rows) == 1

"""The results of a sweep on the disk: what was spent, whose row is missing, probes."""

import json
from dataclasses import fields

import pytest
from helpers import failing_drive

from isoflop.sweep import results
from isoflop.sweep.cells import Cell, ModelSize
from isoflop.sweep.folder import read_rows
from isoflop.train.record import RunRecord


def planned(run_id="abc", flops=900, **about):
    plan = type("Plan", (), {"flops": flops, "steps": 10})()
    config = type("Config", (), {"out_dir": f"cells/{run_id}"})()
    return Cell(run_id, ModelSize(8, 1), 1e9, 0, tc=config, plan=plan, **about)


def record(run_id="abc", status="ok", **more):
    ones = {f.name: 1 for f in fields(RunRecord)} | {"vocab_size": 512}
    return ones | {"run_id": run_id, "status": status, "steps": 10, "flops": 900, **more}


class Trained:
    """As much of a Planner as ResultsFile.missing() needs."""

    source = "trained"


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


def test_the_cost_of_a_run_is_the_price_of_its_wall_time(tmp_path):
    found = results.ResultsFile(tmp_path)
    found.price_per_hour = 1.1
    found.add(planned("a"), record("a", train_s=3000, eval_s=500, startup_s=100, world_size=2), "trained")
    found.add(planned("b"), record("b", "refused", train_s=None), "trained")
    branch = planned("c", start="step_8", start_step=8, trunk="a")
    found.add(branch, record("c", train_s=3600, eval_s=0, startup_s=0), "trained")
    probe = planned("d", probe=True)
    found.add(probe, record("d", train_s=360, eval_s=0, startup_s=0), "trained")
    assert found.missing([planned("d")], Trained()) == []  # the same run, paid once
    for again in (found, results.ResultsFile(tmp_path)):
        costs = [row["cost"] for row in again.rows]
        assert [float(cost or -1) for cost in costs] == pytest.approx([2.2, -1, 0.22, 0.0])
        assert again.cost() == pytest.approx(2.2 + 0.22 + 0.11)
    assert results.ResultsFile(tmp_path / "without").cost() == 0


# ----- runs whose row is missing -----


def test_a_record_without_a_row_is_taken_once_and_only_where_it_is_this_run_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = results.ResultsFile(tmp_path)
    path = tmp_path / "cells" / "abc" / "run.json"
    path.parent.mkdir(parents=True)
    for status in ("interrupted", "peer_lost"):
        path.write_text(json.dumps(record(status=status)))
        assert not found.recover(planned(), "trained") and not found.rows
    path.write_text(json.dumps(record()))
    with failing_drive("run.json"), pytest.raises(OSError, match="run.json"):
        found.recover(planned(), "trained")
    assert found.recover(planned(), "trained") and found.done() == {"abc"}
    assert len(read_rows(tmp_path / "runs.csv")) == 1


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

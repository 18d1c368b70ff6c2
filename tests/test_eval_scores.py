"""isoflop/eval/scores.py: what scores.csv lacks, a torn line, a foreign file, and the columns that fit.py reads."""

import csv
import json

import pytest

from isoflop.eval import scores
from isoflop.fit import logs
from isoflop.options import UserError

RUNS = "run_id,status,flops\n" + "0" * 12 + ",ok,1e9\n" + "a" * 12 + ",ok,2e9\n" + "b" * 12 + ",diverged,3e9\n"
ENTRIES = {"piqa": {"asked": "piqa 0-shot", "limit": "10"}, "core": {"asked": "core", "limit": ""}}


def row(run_id, task="piqa", asked="piqa 0-shot", limit="10", **more):
    return {"run_id": run_id, "asked": asked, "limit": limit, "task": task, "metric": "acc", "score": 0.5,
            "stderr": None, "chance": 0.5, "when": "now", **more}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "runs.csv").write_text(RUNS)
    return tmp_path


def test_only_finished_runs_without_a_score_are_missing(folder):
    runs = scores.read_runs(folder)
    assert scores.missing(folder, runs, ENTRIES) == {"0" * 12: ["piqa", "core"], "a" * 12: ["piqa", "core"]}
    scores.append(folder, [row("0" * 12), row("0" * 12, "copa", "core", "")])
    scores.append(folder, [row("a" * 12)])
    assert scores.missing(folder, runs, ENTRIES) == {"a" * 12: ["core"]}


def test_a_torn_line_is_scored_again_and_spoils_nothing(folder):
    scores.append(folder, [row("0" * 12), row("a" * 12)])
    path = folder / "scores.csv"
    path.write_bytes(path.read_bytes()[:-15])
    assert [r["run_id"] for r in scores.read_scores(folder)] == ["0" * 12]
    scores.append(folder, [row("a" * 12)])
    assert [r["run_id"] for r in scores.read_scores(folder)] == ["0" * 12, "a" * 12]
    path.write_bytes(path.read_bytes()[:-15] + bytes(15))  # as a power cut leaves it
    assert [r["run_id"] for r in scores.read_scores(folder)] == ["0" * 12]
    scores.append(folder, [row("a" * 12)])
    assert [r["run_id"] for r in scores.read_scores(folder)] == ["0" * 12, "a" * 12]


@pytest.mark.parametrize("line", ["[]", "{", '{"task": "piqa"}'])
def test_a_run_s_damaged_evals_are_named(folder, line):
    path = folder / "cells" / ("0" * 12) / "evals.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    with pytest.raises(UserError, match="evals.jsonl is damaged .*; remove it, and score its run with eval.py --sweep"):
        scores.gather(folder, scores.read_runs(folder))


def test_scores_become_columns(folder):
    scores.append(folder, [row("0" * 12), row("0" * 12, "val_loss@text", score=3.0, stderr=0.1)])
    scores.append(folder, [row("0" * 12, score=0.75)])  # the latest counts
    with open(scores.join(folder), newline="") as f:
        rows = list(csv.DictReader(f))
    assert list(rows[0])[3:] == ["score_piqa", "score_piqa_se", "val_loss@text", "val_loss@text_se"]
    assert list(rows[0].values())[3:] == ["0.75", "", "3.0", "0.1"] and list(rows[2].values())[3:] == [""] * 4
    assert (folder / "runs.csv").read_text() == RUNS


@pytest.mark.parametrize("separator", ",;\t")
def test_a_spreadsheet_s_runs_are_read(folder, separator):
    (folder / "runs.csv").write_bytes(b"\xef\xbb\xbf" + RUNS.replace(",", separator).replace("\n", "\r\n").encode())
    runs = scores.read_runs(folder)
    assert [run["flops"] for run in runs] == ["1e9", "2e9", "3e9"]
    scores.append(folder, [row("0" * 12)])
    assert list(scores.missing(folder, runs, ENTRIES)) == ["0" * 12, "a" * 12]
    with open(scores.join(folder), newline="") as f:
        assert [r["score_piqa"] for r in csv.DictReader(f)] == ["0.5", "", ""]


def test_a_foreign_scores_file_is_left_as_it_is(folder):
    (folder / "scores.csv").write_text("mine\n1\n")
    with pytest.raises(UserError, match="another header"):
        scores.missing(folder, scores.read_runs(folder), ENTRIES)
    assert (folder / "scores.csv").read_text() == "mine\n1\n"


def test_a_folder_that_is_no_sweep_is_refused(tmp_path):
    with pytest.raises(UserError, match="no runs.csv"):
        scores.read_runs(tmp_path)
    (tmp_path / "runs.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="has no runs"):
        scores.read_runs(tmp_path)


def test_fit_reads_the_columns(folder):
    rows = [row("0" * 12), row("a" * 12, score=0.75, stderr=0.01), row("0" * 12, "core", score=0.25)]
    scores.append(folder, rows)
    found = logs.scores([str(scores.join(folder))])
    assert sorted(found) == ["core", "piqa"] and found["piqa"]["a" * 12] == pytest.approx((0.75, 0.01))
    assert found["piqa"]["0" * 12][0] == 0.5 and list(found["core"]) == ["0" * 12]
    assert logs.scores([str(folder / "runs.csv")]) == {}


def test_scores_that_cells_had_at_their_end_are_taken_once(tmp_path):
    """Those of the last step of finished runs; eval.py --sweep does not score them again."""
    runs = [
        {"run_id": f"{i:012x}", "status": status, "steps": "20", "started": "now"}
        for i, status in enumerate(("ok", "oom"))
    ]
    for run in runs:
        folder = tmp_path / "cells" / run["run_id"]
        folder.mkdir(parents=True)
        lines = [{"step": 10, "task": "a", "asked": "a", "limit": "5", "metric": "acc", "score": 0.1, "stderr": 0.01}]
        lines += [lines[0] | {"step": 20, "score": 0.3}, {"step": 20, "val_loss": 3.0}]
        (folder / "evals.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert scores.gather(tmp_path, runs) == 1 and scores.gather(tmp_path, runs) == 0
    (row,) = scores.read_scores(tmp_path)
    assert (row["run_id"], row["task"], row["score"]) == (runs[0]["run_id"], "a", "0.3")
    assert scores.missing(tmp_path, runs, {"a": {"asked": "a", "limit": "5"}}) == {}

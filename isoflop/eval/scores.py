"""The scores of a sweep: scores.csv, one row a run and score, and runs_scores.csv, runs.csv with them as columns."""

import csv
import io
import re
from pathlib import Path

from isoflop.files import ABSENT, append_line, check_fields, parse_json, read_csv, regular, write_text
from isoflop.options import UserError

COLUMNS = "run_id asked limit task metric score stderr chance centred shots n when".split()  # of scores.csv


def read_runs(folder: Path) -> list[dict]:
    """The rows of a sweep's runs.csv; UserError where there are none."""
    try:
        runs = read_csv(folder / "runs.csv")[1]
    except ABSENT as error:
        raise UserError(f"--sweep {folder}: no runs.csv ({error.strerror}); sweep.py makes one") from None
    if not runs or "run_id" not in runs[0]:
        raise UserError(f"--sweep {folder}: runs.csv has no runs; name the --out_dir of a sweep")
    return runs


def read_scores(folder: Path) -> list[dict]:
    """The whole rows of scores.csv; a last line that a kill cut short is left where it is and scored again."""
    path = folder / "scores.csv"
    if not path.exists():
        return []
    header, rows = read_csv(path)
    if header != COLUMNS:
        raise UserError(f"{path} has another header; it is left as it is: move it away")
    return [row for row in rows if row["when"]]


def missing(folder: Path, runs: list[dict], entries: dict[str, dict]) -> dict[str, list[str]]:
    """run_id -> the names of `entries` that scores.csv lacks, for finished runs that lack any."""
    held = {(row["run_id"], row["asked"], row["limit"]) for row in read_scores(folder)}
    todo = {}
    for run in runs:
        run_id = run["run_id"]
        if run.get("status") != "ok" or not re.fullmatch(r"[0-9a-f]{12}", run_id):
            continue
        wanted = [name for name, key in entries.items() if (run_id, key["asked"], key["limit"]) not in held]
        if wanted:
            todo[run_id] = wanted
    return todo


def append(folder: Path, rows: list[dict]):
    """Rows to scores.csv in one write, on the disk before this returns."""
    path, text = folder / "scores.csv", io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    if not path.exists() or path.stat().st_size == 0:
        writer.writeheader()
    writer.writerows(rows)  # None is an empty cell
    append_line(path, text.getvalue())


def gather(folder: Path, runs: list[dict]) -> int:
    """Take the scores that runs of a sweep had at their end (--tasks) into scores.csv; how many runs have new ones."""
    held = {(row["run_id"], row["asked"], row["limit"]) for row in read_scores(folder)}
    count = 0
    for run in runs:
        path, found = folder / "cells" / run["run_id"] / "evals.jsonl", []
        if run["status"] == "ok" and path.is_file():
            for row in _evals(path):
                known = (run["run_id"], row.get("asked"), row.get("limit")) in held
                if "task" in row and row["step"] == int(run["steps"]) and not known:
                    found.append(row | {"run_id": run["run_id"], "when": run["started"]})
        if found:
            append(folder, found)
            count += 1
    return count


def _evals(path: Path) -> list[dict]:
    """The lines of a run's evals.jsonl; UserError where one is wrong."""
    try:
        rows = [parse_json(line) for line in regular(path).read_text("utf-8-sig").splitlines()]
        for row in rows:
            check_fields(row, {"step": int}, "a line", needed=("step",))
    except ValueError as error:
        raise UserError(f"{path} is damaged ({error}); remove it, and score its run with eval.py --sweep") from None
    return rows


def join(folder: Path) -> Path:
    """runs_scores.csv: runs.csv and a column for each score and its standard error; made anew each time.

    They are score_TASK and score_TASK_se, and of losses on a text val_loss@TEXT and bits_per_byte@TEXT.
    """
    header, runs = read_csv(folder / "runs.csv")
    latest, columns = {}, {}
    for row in read_scores(folder):
        latest[row["run_id"], row["task"]] = row
        columns[row["task"]] = row["task"] if "@" in row["task"] else f"score_{row['task']}"
    for column in columns.values():
        header += [column, f"{column}_se"]
    text = io.StringIO()
    writer = csv.DictWriter(text, header, lineterminator="\n")
    writer.writeheader()
    for run in runs:
        for task, column in columns.items():
            row = latest.get((run["run_id"], task), {})
            run |= {column: row.get("score", ""), f"{column}_se": row.get("stderr", "")}
        writer.writerow(run)
    path = folder / "runs_scores.csv"
    write_text(path, text.getvalue())
    return path

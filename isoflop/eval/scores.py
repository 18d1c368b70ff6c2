"""scores.csv of a sweep: read, append, join with runs.csv."""

import csv
import os
from pathlib import Path

SCORES = "run_id asked limit task metric score stderr chance centred shots n when".split()  # columns of scores.csv


def read_scores(path: Path) -> list[dict]:
    """The whole rows of scores.csv; a last line that a kill cut short is left where it is and done again."""
    if not path.exists():
        return []
    with open(path, encoding="utf-8", newline="") as f:
        reader = csv.DictReader(f)
        if reader.fieldnames != SCORES:
            raise ValueError(f"{path} has another header; it is left as it is: move it away")
        return [row for row in reader if row["when"]]


def append(path: Path, rows: list[dict]):
    """Rows to scores.csv in one write, on the disk before this returns."""
    fresh = not path.exists() or not path.stat().st_size
    torn = not fresh and not path.read_bytes().endswith(b"\n")
    with open(path, "a", encoding="utf-8", newline="") as f:
        f.write("\n" * torn)
        writer = csv.DictWriter(f, SCORES, extrasaction="ignore", lineterminator="\n")
        if fresh:
            writer.writeheader()
        writer.writerows({k: "" if row.get(k) is None else row[k] for k in SCORES} for row in rows)
        f.flush()
        os.fsync(f.fileno())


def join(folder: Path) -> Path:
    """runs_scores.csv: runs.csv and a column for each score and its standard error; made anew each time.

    They are score_TASK and score_TASK_se, and of losses on a text val_loss@TEXT and bits_per_byte@TEXT.
    """
    with open(folder / "runs.csv", encoding="utf-8", newline="") as f:
        reader = csv.DictReader(f)
        header, runs = list(reader.fieldnames), list(reader)
    rows = read_scores(folder / "scores.csv")
    labels = list(dict.fromkeys(row["task"] for row in rows))
    latest = {(row["run_id"], row["task"]): row for row in rows}
    columns = {label: label if "@" in label else f"score_{label}" for label in labels}
    header += [column + end for column in columns.values() for end in ("", "_se")]
    path = folder / "runs_scores.csv"
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8", newline="") as f:
        writer = csv.DictWriter(f, header, lineterminator="\n")
        writer.writeheader()
        for run in runs:
            for label, column in columns.items():
                row = latest.get((run["run_id"], label), {})
                run |= {column: row.get("score", ""), f"{column}_se": row.get("stderr", "")}
            writer.writerow(run)
    os.replace(part, path)
    return path

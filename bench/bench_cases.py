"""Every file of ../shared/cases as its owner would give it: command, answer, right or not, as a Markdown table.

    python bench/bench_cases.py [part of a file's name ..] > table.md

Right is what the cases' README asks for: for the tables of one set of runs in many forms N* = 374M and D/N = 36 at
3e19 FLOPs, within 3%; else the number of runs and the words that must be said.
"""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import textwrap
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT.parent / "shared" / "cases"
N_OPT, RATIO, WITHIN = 374e6, 36.0, 0.03
ONE_SET = """aligned.txt comments.csv german_excel.csv github_table.md long_by_run_name.csv multiindex.csv
pandas_to_json.json paste_tab.tsv perplexity.csv pm.csv pow.csv semicolon_en.csv sep_line.csv sizes_with_suffix.csv
thousands_en.csv truth_of_the_number_formats.csv units_in_header.csv wandb_api_nested.json wrapped.json"""


@dataclass(frozen=True)
class Case:
    """A command on a file. runs : how many it must use, or None. says : words of its output. one_set : see N_OPT."""

    file: str
    flags: str = ""
    runs: int | None = None
    says: str = ""
    one_set: bool = False
    status: int = 0


TABLES = [Case(name, runs=28, one_set=True) for name in ONE_SET.split()]
TABLES += [
    Case("lr_batch_sweep.csv", runs=17, says="1,911 rows share N and D and differ in lr, bs, ti"),
    Case("lr_batch_sweep.csv", "--same_nd all", runs=1911),
    Case("checkpoints_beside_runs.csv", runs=83, says="checkpoints, left out"),
    Case("checkpoints_beside_runs.csv", "--run_cols model sweep peak_lr total_steps total_epochs --same_nd all", 253),
    Case("checkpoints_of_22_runs.jsonl", runs=22),
    Case("checkpoints_of_22_runs.jsonl", "--rows_are_runs", 770),
    Case("wandb_panel_export.csv", says="is a W&B panel export", status=2),
    Case("wandb_states.csv", runs=7, says="--status crashed failed killed"),
    Case("wandb_states.csv", "--status any", 28, one_set=True),
    Case("millions_and_billions.csv", says="--units n=M d=B"),
    Case("millions_and_billions.csv", "--units n=M d=B", 28, one_set=True),
    Case("many_epochs.csv", runs=229, says="leave these runs out with --where 'epochs <= 4'"),
    Case("many_epochs.csv", "--where 'epochs <= 4'", 66),
    Case("results.csv.gz", runs=9),
    Case("bits_per_character.jsonl", runs=10, says="losses are in bits per character"),
]
TEXTS = [
    Case("json_lines.json.gz"),
    Case("array.json"),
    Case("torn_line.jsonl", says="1 of 120 rows were dropped: 1 not JSON"),
    Case("torn_line.jsonl", "--strict", says="not JSON", status=2),
    Case("nulls.parquet", says="30 of 120 rows were dropped: 30 null"),
    Case("list_col.parquet", says="holds lists of text, no text", status=2),
    Case("chat.parquet", says="lists of {role, content}", status=2),
    Case("binary.parquet"),
    Case("input_ids.parquet", says="lists of whole numbers", status=2),
    Case("bom_crlf.jsonl"),
    Case("stories.txt", says="documents end at the 119 <|endoftext|>"),
]


def run(script: str, case: Case, words: list[str]) -> tuple[int, str]:
    """(exit status, output as one line) of a script on a case."""
    command = [sys.executable, str(ROOT / script), *words, *shlex.split(case.flags)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def error_of(text: str, case: Case) -> str:
    """What a refusal says behind the file's name, its first words."""
    return textwrap.shorten(text.split("error: ")[-1].partition(case.file)[2].lstrip(":, "), 100, placeholder=" ...")


def fitted(case: Case, folder: str) -> tuple[str, bool]:
    """(the answer in few words, whether it is right) of fit.py on a table."""
    flags = ["--no-plots", "--bootstrap", "200", "--predict_flops", "3e19", "--out_dir", folder]
    status, text = run("fit.py", case, [str(CASES / "tables" / case.file), *flags])
    right = status == case.status and case.says in text
    if status:
        return error_of(text, case), right
    runs = int(text.partition(" runs from ")[0].split()[-1])
    right = right and case.runs in (None, runs)
    answer = f"{runs} runs"
    if case.one_set:
        row = json.loads((Path(folder) / "fit.json").read_text())["forecast"][0]
        n, ratio = row["n_opt"]["point"], row["tokens_per_param"]["point"]
        right = right and abs(n / N_OPT - 1) < WITHIN and abs(ratio / RATIO - 1) < 2 * WITHIN
        answer += f", N* {n / 1e6:.0f}M, D/N {ratio:.1f}"
    return answer + (f"; {case.says}" if case.says else ""), right


def prepared(case: Case, folder: str) -> tuple[str, bool]:
    """The same of data.py on a text."""
    words = ["--source", str(CASES / "text" / case.file), "--tokenizer", "bpe:300", "--out_dir", f"{folder}/data"]
    status, text = run("data.py", case, words)
    right = status == case.status and case.says in text
    if status:
        return error_of(text, case), right
    documents = [int(part.split()[-1].replace(",", "")) for part in text.split(" documents")[:2]]
    return f"{sum(documents)} documents" + (f"; {case.says}" if case.says else ""), right


def main():
    print("| command | answer | right |\n|---|---|---|")
    wrong, count, asked = 0, 0, sys.argv[1:]
    for script, cases, answer_of in (("fit.py", TABLES, fitted), ("data.py --source", TEXTS, prepared)):
        for case in cases:
            if asked and not any(part in case.file for part in asked):
                continue
            with tempfile.TemporaryDirectory() as folder:
                answer, right = answer_of(case, folder)
            wrong, count = wrong + (not right), count + 1
            cells = f"`{script} {case.file} {case.flags}".strip() + "`", answer, "yes" if right else "**no**"
            print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |", flush=True)
    print(f"\n{wrong} of {count} wrong")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())

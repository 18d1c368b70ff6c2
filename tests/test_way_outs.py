"""Every way out that a message names works when followed.

What is provoked, proposed and followed is in ways.py; here are the files that its commands name. What a message
proposes is taken from it (the groups of a row's pattern), so that a wrong proposal fails here.
"""

import gzip
import importlib
import io
import json
import math
import os
import re
import shlex
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import ways
from helpers import ROOT, quick_fits, small_run
from ways import TABLES

from isoflop import laws
from isoflop.config import ModelConfig
from train import train

LAW = (1.69, 406.4, 0.34, 410.7, 0.28)  # Besiroglu et al. 2024, about
BUDGETS, SIZES = (1e17, 3e17, 1e18), (0.3, 0.6, 1.0, 2.0, 4.0)


# ----- the files that the commands name -----


def runs(n="n_params", d="tokens", loss="val_loss", unit=1.0, as_loss=str, more=(), budgets=BUDGETS, sizes=SIZES):
    """A table of an isoFLOP grid of LAW; `more` are (column, function of the row's number) beside."""
    lines = [",".join([n, d, loss, *(name for name, _ in more)])]
    rows = [(c, size) for c in budgets for size in sizes]
    for i, (c, size) in enumerate(rows):
        params = size * math.sqrt(c / 120)
        tokens = c / 6 / params
        value = LAW[0] + LAW[1] / params ** LAW[2] + LAW[3] / tokens ** LAW[4]
        cells = [f"{params / unit:.6g}", f"{tokens / unit:.6g}", as_loss(round(value, 5))]
        lines.append(",".join([*cells, *(str(make(i)) for _, make in more)]))
    return "\n".join(lines) + "\n"


def labels():
    """Every run of runs() by two optimizers."""
    header, *rows = runs().split()
    return "\n".join([f"{header},optimizer", *(f"{row},adamw" for row in rows), *(f"{row}1,muon" for row in rows)])


def checkpoints():
    """Runs of three rows each, that a column `tag` names."""
    lines = ["tag,step,n_params,tokens,val_loss"]
    for i, row in enumerate(runs().splitlines()[1:]):
        n, d, loss = map(float, row.split(","))
        for step in (1, 2, 3):
            lines.append(f"m{i},{100 * step},{n:.0f},{d * step / 3:.0f},{loss + 0.2 * (3 - step)}")
    return "\n".join(lines)


def panel():
    """A panel export of W&B of the runs r0, r1, .. of runs()."""
    losses = [row.split(",")[2] for row in runs().splitlines()[1:]]
    names = [f"r{i} - val_loss" for i in range(len(losses))]
    header = ["Step", *(f"{name}{end}" for name in names for end in ("", "__MIN", "__MAX"))]
    cells = ["100", *(loss for loss in losses for _ in range(3))]
    return ",".join(f'"{name}"' for name in header) + "\n" + ",".join(cells)


def without(table, column):
    """The table without one of its columns."""
    return "\n".join(",".join(cell for i, cell in enumerate(line.split(",")) if i != column) for line in table.split())


def documents(n, words=40):
    return "".join(json.dumps({"text": " ".join(f"w{(i * j) % 97}" for j in range(words))}) + "\n" for i in range(n))


def texts_seen(rows=((0.5, 1), (2, 1), (4, 1), (16, 1)), texts=(1e8, 4e8), column="unique_tokens", fill=None):
    """Runs of three sizes on texts of two lengths; rows are (epochs, factor of the unique tokens that are told)."""
    lines = [f"n_params,tokens,val_loss,{column}"]
    for n in (1e7, 3e7, 1e8):
        for unique in texts:
            for epochs, factor in rows:
                d = epochs * unique
                told = min(d, unique) * factor
                lines.append(f"{n:.0f},{d:.0f},{laws.repeated_loss(n, d, unique):.6f},{told if fill is None else fill}")
    return "\n".join(lines)


def settings_tried(sizes=(1e7, 3e7, 1e8, 3e8), rates=(-1, 0, 1), column="lr", batches=(-1, 0, 1)):
    """Runs of rates and batches about the best, 2^-3 / N^.2 and D^.5, in powers of 2."""
    lines = [f"n_params,tokens,val_loss,{column},batch_tokens,n_layer"]
    for n in sizes:
        d = 20 * n
        least = LAW[0] + LAW[1] / n ** LAW[2] + LAW[3] / d ** LAW[4]
        for x in rates:
            for y in batches:
                loss = least * (1 + 0.01 * x**2 + 0.005 * y**2)
                lines.append(f"{n:.0f},{d:.0f},{loss:.6f},{2.0**x / n**0.2:.6g},{2.0**y * d**0.5:.6g},0")
    return "\n".join(lines)


def of_loss(low, high, unit=1.0):
    """A score that rises from low to high as the losses of runs() fall."""
    losses = [float(row.split(",")[2]) for row in runs().split()[1:]]
    middle = sorted(losses)[len(losses) // 2]
    return lambda i: unit * (low + (high - low) / (1 + math.exp(8 * (losses[i] - middle))))


def as_objects(end=""):
    header, *rows = (line.split(",") for line in runs().split())
    return "\n".join(json.dumps(dict(zip(header, map(float, row), strict=True))) for row in rows) + end


def archive(names):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as f:
        for name in names:
            f.writestr(name, runs())
    return out.getvalue()


def parquet(**columns):
    import pyarrow
    import pyarrow.parquet

    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), out)
    return out.getvalue()


def bins(ids):
    """Files of nanoGPT: ids and no tokenizer."""
    return {f"{split}.bin": ids.astype(np.uint16).tobytes() for split in ("train", "val")}


def of_one(column):
    """The table of runs() with the first value of a column in all rows."""
    header, *rows = (line.split(",") for line in runs().split())
    for row in rows:
        row[column] = rows[0][column]
    return "\n".join(map(",".join, [header, *rows]))


TOKENS = [[*f"some words {i}".encode(), 256] for i in range(200)]
TINY = dict(n_layer=1, n_embd=16, block_size=32, vocab_size=257)  # the model of SMALL_FLAGS
NAMED = [("run_name", lambda i: f"r{i}")]
FILES = {
    "runs.csv": lambda: runs(more=[("run_id", lambda i: f"r{i}")]),
    "odd.csv": lambda: runs("width_n", "seen", "nll"),
    "headless.csv": lambda: runs().split("\n", 1)[1],
    "headed.csv": runs,
    "series.csv": lambda: runs(more=[("optimizer", lambda i: ("adamw", "muon")[i % 2]), ("one", lambda i: "same")]),
    "labels.csv": labels,
    "failed.csv": lambda: runs(more=[("state", lambda i: "failed")]),
    "epochs.csv": lambda: runs(more=[("epochs", lambda i: 1 + 9 * (i == 3))]),
    "millions.csv": lambda: runs("N", "D", unit=1e6),
    "errors.csv": lambda: runs(as_loss=lambda loss: f"{loss} ± .003"),
    "perplexity.csv": lambda: runs(loss="val_loss", as_loss=lambda loss: f"{math.exp(loss):.4f}"),
    "bits.csv": lambda: runs(loss="val_bpb"),
    "garbled.csv": lambda: re.sub(r",[\d.]+$", ",n/k", runs(), flags=re.M),
    "checkpoints.csv": checkpoints,
    "panel.csv": panel,
    "second.csv": lambda: without(runs(more=NAMED), 2),
    "targets.csv": lambda: "n_params,tokens\n1e8,2e9\n",
    "log.jsonl": lambda: "".join(
        json.dumps({"run_id": f"r{i}", "step": step, "tokens": 1e6 * step, "loss": 6 - step / 4}) + "\n"
        for i in range(15)
        for step in (1, 2, 3)
    ),
    "texts.jsonl": lambda: documents(200),
    "bodies.jsonl": lambda: documents(200).replace('"text"', '"body"'),
    "few.jsonl": lambda: documents(2, 3),
    "letters.jsonl": lambda: "".join(json.dumps({"text": chr(97 + i)}) + "\n" for i in range(20)),
    "pages.txt": lambda: (ROOT / "docs" / "fitting.md").read_text().replace("\n\n", "<|endoftext|>"),
    "torn.jsonl": lambda: documents(200) + '{"text": "cut\n',
    "shapes.json": lambda: json.dumps({"a": {"n_layer": 2, "n_embd": 64}}),
    "service.json": lambda: json.dumps({"batch_size": [16, 32], "params": "total"}),
    "key": lambda: "secret",
    "many.csv": lambda: runs(more=[("label", lambda i: i + 1)]),
    "numbers.json": lambda: "[1, 2]",
    "objects.json": lambda: f"[{as_objects()}]".replace("\n", ","),
    "objects.jsonl": lambda: as_objects('\n{"n_params": '),
    "page.html": lambda: "<html><table>" + "words of a page " * 400 + "</table></html>",
    "bare.zip": lambda: archive(["runs.csv"]),
    "book.xlsx": lambda: archive(["xl/workbook.xml"]),
    "empty.csv": str,
    "comments.csv": lambda: "# nothing yet\n# at all\n",
    "torn.csv.gz": lambda: gzip.compress(runs().encode())[:-20],
    "whole.csv.gz": lambda: gzip.compress(runs().encode()),
    "pivot.csv": lambda: "n_params,1e17,3e17,1e18\n1e7,3.4,3.3,3.2\n3e7,3.3,3.2,3.1\n",
    "steps.csv": lambda: runs(d="steps", more=[("batch_size", lambda i: 1), ("seq_len", lambda i: 1)]),
    "again.csv": panel,
    "one_n.csv": lambda: of_one(0),
    "one_d.csv": lambda: of_one(1),
    "one_c.csv": lambda: runs(budgets=(1e18,), sizes=np.geomspace(0.3, 4.0, 9)),
    "two.csv": lambda: "\n".join(runs().split()[:3]),
    "one_ratio.csv": lambda: (
        "n_params,tokens,val_loss\n" + "\n".join(f"{n}e6,{2 * n}e7,{4 - n / 50}" for n in range(10, 30, 2))
    ),
    "six.csv": lambda: "\n".join(runs().split()[:6]),
    "latin.csv": lambda: "run,caf\xe9\n1,2\n".encode("latin-1"),
    "tables.parquet": lambda: parquet(a=[1.0, 2.0], b=[1.0, 2.0]),
    "rates.csv": settings_tried,
    "my_rates.csv": lambda: settings_tried(column="mine"),
    "one_rate.csv": lambda: settings_tried(rates=(0,)),
    "edge.csv": lambda: settings_tried(rates=(0, 1, 2)),
    "few_rates.csv": lambda: settings_tried(sizes=(1e7, 3e7)),
    "repeats.csv": texts_seen,
    "unfilled.csv": lambda: texts_seen(fill=""),
    "few_repeats.csv": lambda: "\n".join(texts_seen().split()[:6]),
    "once.csv": lambda: texts_seen(rows=((0.2, 1), (0.5, 1), (0.8, 1))),
    "one_text.csv": lambda: texts_seen(((1, 1), (4, 1), (16, 1)), texts=(1e8,)),
    "above.csv": lambda: texts_seen(rows=((0.5, 1), (2, 1), (4, 1), (16, 1), (1, 2))),
    "scores.csv": lambda: runs(
        more=[
            ("quiz", of_loss(0.1, 0.8)),
            ("quiz2", of_loss(0.1, 0.6)),
            ("percent", of_loss(0.1, 0.8, 100)),
            ("over", of_loss(0.1, 0.8, 900)),
        ]
        + [("guess", lambda i: 0.0)]
    ),
    "small.json": lambda: json.dumps({"d_model": [256], "num_heads": [4], "num_layers": [4, 6]}),
    "cap.json": lambda: json.dumps({"total_flops": 5e18}),
    "grid.json": lambda: json.dumps({"train_flops": [1e16, 1e17]}),
    "budgets.json": lambda: json.dumps({"train_flops": [1e16, 1e17], "num_layers": [2, 3, 4], "total_flops": 2e18}),
    "bodies2.jsonl": lambda: documents(300, 41),
    "object.json": lambda: json.dumps({"a": 1, "b": 2}, indent=1),
    "array.json": lambda: json.dumps([{"text": "words " * i} for i in range(1, 300)]),
    "tokens.parquet": lambda: parquet(ids=TOKENS),
    "chats.parquet": lambda: parquet(ids=TOKENS, body=[f"document {i}" for i in range(200)]),
    "weights.pt": lambda: b"PK",
    "bins": lambda: bins(np.arange(5000)),
    "no_val": lambda: {name.replace("val", "other"): raw for name, raw in bins(np.arange(5000)).items()},
    "wide": lambda: bins(np.arange(57000, 62000)),
}

# ----- commands in this process -----


class Files:
    """The files that commands name, made when they are named."""

    def __init__(self, folder, toy, finished):
        self.folder, self.known = folder, {"tmp": folder, "toy": toy, "finished": finished}

    def steps(self, command, proposed=()):
        """The words of each step of a command; {0} is the first of what was proposed."""

        def place(match):
            if match[1].isdigit():
                return proposed[int(match[1])]
            return str(self.known.get(match[1]) or self.make(match[1]))

        while command != (command := re.sub(r"\{(\w+)\}", lambda m: ways.WORDS.get(m[1], m[0]), command)):
            pass
        return [shlex.split(re.sub(r"\{([\w.]+)\}", place, step)) for step in command.split(" && ")]

    def make(self, name):
        path = self.folder / name
        self.known[name] = path
        if name == "bare":  # a run without its tokenizer
            shutil.copytree(self.known["finished"], path, ignore=shutil.ignore_patterns("tokenizer.json"))
            return path
        if name == "kept":  # checkpoints of the run of TRAINED
            at = {step: path / f"step_{step:08}" for step in (4, 6)}
            tc = small_run(self.known["toy"], path / "run", max_iters=8, lr=0.01)
            train(ModelConfig(**TINY), tc, quiet=True, keep=at)
            return path
        found = FILES[name]()
        if isinstance(found, dict):
            path.mkdir()
            for one, raw in found.items():
                (path / one).write_bytes(raw)
        elif isinstance(found, bytes):
            path.write_bytes(found)
        else:
            path.write_text(found)
        return path


def write(path, text):
    Path(path).write_text(text)


def change(path, old, new):
    write(path, Path(path).read_text().replace(old, new))


ACTIONS = {"write": write, "change": change, "mv": os.rename, "rm": os.remove}


def call(name, steps, capsys):
    """(exit status, all that the last step said with single spaces) of a script's main(); those before must work."""
    for first, *words in steps[:-1]:
        if first in ACTIONS:
            ACTIONS[first](*words)
        else:
            status, said = call(first, [words], capsys)
            assert not status, (first, words, said)
    try:
        status = importlib.import_module(name).main(steps[-1])
    except SystemExit as end:
        status = end.code
    return status or 0, " ".join("".join(capsys.readouterr()).split())


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_ways_out(name, tmp_path, toy_data, finished_run, capsys, monkeypatch):
    monkeypatch.delenv("ISOFLOP_API_KEY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch
    quick_fits(monkeypatch)
    wrong, worked = [], set()  # what has worked, and needs nothing that is there before
    for i, (bad, says, followed) in enumerate(TABLES[name]):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "toy").symlink_to(toy_data)
        monkeypatch.chdir(folder)
        files = Files(folder, toy_data, finished_run[0])
        status, said = call(name, files.steps(bad), capsys)
        found = re.search(says, said)
        if not found:
            wrong.append(f"{name} {bad}: {status}, {said[-300:]}")
            continue
        for way in followed:
            steps = files.steps(way.replace("{same}", bad), found.groups())
            known = str(steps).replace(str(folder), "")
            if known in worked:
                continue
            status, now = call(name, steps, capsys)
            if status or re.search(says, now):
                wrong.append(f"{name} {bad} -> {way}: {status}, {now[-300:]}")
            elif name in ("fit", "plan", "sweep") and len(steps) == 1:
                worked.add(known)
    assert not wrong, "\n".join(wrong)

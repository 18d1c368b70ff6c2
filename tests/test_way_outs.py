"""Every way out that a message names works when followed.

A row is a command, what it says, and the commands that follow the advice. {0} in these is what the message itself
proposed (the groups of the pattern), so that a wrong proposal fails here. In all of them {name} is a file of FILES.
"""

import importlib
import json
import math
import re
import shlex

import numpy as np
import pytest
from helpers import ROOT, SMALL_FLAGS

LAW = (1.69, 406.4, 0.34, 410.7, 0.28)  # Besiroglu et al. 2024, about
BUDGETS, SIZES = (1e17, 3e17, 1e18), (0.3, 0.6, 1.0, 2.0, 4.0)
ARCH = "--n_layer 2 --n_embd 64"
QUICK = "--bootstrap 0 --no-plots --out_dir {tmp}/fit"
DRAWN = "--flop_budgets 1e17 2e17 --n_embds 128 256 384 --n_layers 2 3 4 --vocab_size 512 --out_dir {tmp}/drawn"
TOY = "--block_size 32 --val_tokens 2048 --device cpu --data_dir {toy}"
SHORT = f"--n_embds 64 --n_layers 1 --batch_size 4 {TOY} --out_dir {{tmp}}/few"
PRINTED = f"{SHORT} --flop_budgets 1e10 --print_commands"
SERVICE = (
    "--api http://127.0.0.1:1 --flop_budgets 1e17 2e17 --n_embds 128 256 384 --n_layers 2 3 4 --out_dir {tmp}/asked"
)


# ----- the files that the commands name -----


def runs(n="n_params", d="tokens", loss="val_loss", unit=1.0, as_loss=str, more=()):
    """A table of an isoFLOP grid of LAW; `more` are (column, function of the row's number) beside."""
    lines = [",".join([n, d, loss, *(name for name, _ in more)])]
    rows = [(c, size) for c in BUDGETS for size in SIZES]
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
}

# ----- (command, what it says, the commands that follow it) -----

FIT = [
    ("", "name a CSV of runs, or give --law and something to predict",
     [f"{{runs.csv}} {QUICK}", "--law hoffmann --predict_flops 1e20"]),
    ("{runs.csv} --bootstrap 50", r"must be (0), or (\d+) or more",
     [f"{{runs.csv}} {QUICK} --bootstrap {{0}}", f"{{runs.csv}} {QUICK} --bootstrap {{1}}"]),
    (f"{{runs.csv}} {QUICK} --draws", "leave one of them out",
     [f"{{runs.csv}} {QUICK}", "{runs.csv} --no-plots --out_dir {tmp}/fit --bootstrap 100 --draws"]),
    (f"{{series.csv}} {QUICK} --base adamw", "give --by, too", [f"{{series.csv}} {QUICK} --base adamw --by optimizer"]),
    (f"{{series.csv}} {QUICK} --by optimizer --base sgd", "no such value in optimizer; it has (adamw), (muon)",
     [f"{{series.csv}} {QUICK} --by optimizer --base {{1}}"]),
    (f"{{series.csv}} {QUICK} --by one", "every run has 'same' there; name another column or leave --by out",
     [f"{{series.csv}} {QUICK} --by optimizer", f"{{series.csv}} {QUICK}"]),
    (f"{{series.csv}} {QUICK} --by nope", "no such column in .*; it has .*, (optimizer)",
     [f"{{series.csv}} {QUICK} --by {{0}}"]),
    (f"{{labels.csv}} {QUICK}", "--by '(optimizer)' fits .*(--where '.*?') fits .*(--same_nd lowest)",
     [f"{{labels.csv}} {QUICK} --by {{0}}", f"{{labels.csv}} {QUICK} {{1}}", f"{{labels.csv}} {QUICK} {{2}}"]),
    (f"{{runs.csv}} {QUICK} --spend 1e18", "is for --suggest; add (--suggest .*)",
     [f"{{runs.csv}} {QUICK} --spend 1e18 {{0}}"]),
    (f"{{runs.csv}} {QUICK} --pool {{targets.csv}}", "is for --suggest; add (--suggest .*)",
     [f"{{runs.csv}} {QUICK} --pool {{targets.csv}} {{0}}"]),
    (f"{{runs.csv}} {QUICK} --suggest 2", "add (--target_flops .*), or --target_runs FILE",
     [f"{{runs.csv}} {QUICK} --suggest 2 {{0}}", f"{{runs.csv}} {QUICK} --suggest 2 --target_runs {{targets.csv}}"]),
    (f"{{runs.csv}} {QUICK} --suggest 2 --target_flops 1e19 --target_runs {{targets.csv}}", "leave one of them out",
     [f"{{runs.csv}} {QUICK} --suggest 2 --target_flops 1e19"]),
    (f"{{series.csv}} {QUICK} --suggest 2 --target_flops 1e19 --by optimizer", "keep one series by --where",
     [f"{{series.csv}} {QUICK} --suggest 2 --target_flops 1e19 --where 'optimizer == muon'"]),
    ("{runs.csv} --law hoffmann --predict_flops 1e20", "leave out (.*), or --law for --compare",
     ["--law hoffmann --predict_flops 1e20", f"{{runs.csv}} {QUICK} --predict_flops 1e20 --compare"]),
    ("--units n=M {millions.csv}", "name the file before the flags", [f"{{millions.csv}} {QUICK} --units n=M d=M"]),
    ("--law hoffmann", "needs (--predict_flops), (--predict_params), (--target_loss) or (--predict_runs)",
     ["--law hoffmann {0} 1e20", "--law hoffmann {1} 1e9", "--law hoffmann {2} 2.5",
      "--law hoffmann {3} {targets.csv}"]),
    ("--law nobody --predict_flops 1e20", r"known: (\w+)", ["--law {0} --predict_flops 1e20"]),
    (f"{{odd.csv}} {QUICK}", "name them with (--n_col), (--d_col), --c_col, (--loss_col)",
     [f"{{odd.csv}} {QUICK} {{0}} width_n {{1}} seen {{2}} nll"]),
    (f"{{odd.csv}} {QUICK} --n_col nope", r"--n_col nope: no such column in .*; it has (\w+), (\w+), (\w+)",
     [f"{{odd.csv}} {QUICK} --n_col {{0}} --d_col {{1}} --loss_col {{2}}"]),
    (f"{{headless.csv}} {QUICK}", "write the names of the columns above, as n_params,tokens,val_loss",
     [f"{{headed.csv}} {QUICK}"]),
    (f"{{panel.csv}} {QUICK}", "give a second file with columns run_name, N and D beside it",
     [f"{{panel.csv}} {{second.csv}} {QUICK}"]),
    (f"{{panel.csv}} {{targets.csv}} {QUICK}", "add one, called run_name", [f"{{panel.csv}} {{second.csv}} {QUICK}"]),
    (f"{{series.csv}} {QUICK} --where 'optimizer > adamw'", "only == and != compare text",
     [f"{{series.csv}} {QUICK} --where 'optimizer == adamw'", f"{{series.csv}} {QUICK} --where 'optimizer != adamw'"]),
    (f"{{runs.csv}} {QUICK} --where 'n > 1'", r"no column 'n' in .*; it has (\w+)",
     [f"{{runs.csv}} {QUICK} --where '{{0}} > 1'"]),
    (f"{{failed.csv}} {QUICK}", "are kept by (--status failed), or (--status any)",
     [f"{{failed.csv}} {QUICK} {{0}}", f"{{failed.csv}} {QUICK} {{1}}"]),
    (f"{{garbled.csv}} {QUICK}", "write it as 3.1415", [f"{{runs.csv}} {QUICK}"]),
    (f"{{epochs.csv}} {QUICK}", "leave these runs out with (--where 'epochs <= 4')", [f"{{epochs.csv}} {QUICK} {{0}}"]),
    (f"{{millions.csv}} {QUICK}", r"(--units n=M d=M)", [f"{{millions.csv}} {QUICK} {{0}}"]),
    (f"{{perplexity.csv}} {QUICK}", "if it is a perplexity, (--units loss=perplexity)",
     [f"{{perplexity.csv}} {QUICK} {{0}}"]),
    (f"{{errors.csv}} {QUICK}", "(--loss_se_col val_loss) weighs by it", [f"{{errors.csv}} {QUICK} {{0}}"]),
    (f"{{runs.csv}} {{bits.csv}} {QUICK}", "fit them apart", [f"{{bits.csv}} {QUICK}", f"{{runs.csv}} {QUICK}"]),
    (f"{{checkpoints.csv}} {QUICK}", "with (--run_cols); if not, (--rows_are_runs)",
     [f"{{checkpoints.csv}} {QUICK} {{0}} tag", f"{{checkpoints.csv}} {QUICK} {{1}}"]),
    (f"{{runs.csv}} {QUICK}", r"\[no_curves\] .*\(several rows per run_id, or log.jsonl beside the CSV\)",
     [f"{{runs.csv}} {{log.jsonl}} {QUICK}"]),
    (f"{{tmp}} {QUICK}", "is a directory; name the CSV", [f"{{runs.csv}} {QUICK}"]),
    (f"{{runs.csv}} {QUICK} --law_of hparams --target_loss 2.5", "leave one of them out",
     [f"{{runs.csv}} {QUICK} --target_loss 2.5"]),
    (f"{{runs.csv}} {QUICK} --unique_tokens 1e9", "add (--law_of data), or leave it out", [f"{{runs.csv}} {QUICK}"]),
]  # fmt: skip

PLAN = [
    (ARCH, "exactly one of (--tokens), (--flop_budget), (--tokens_per_param), (--max_iters)",
     [f"{ARCH} {{0}} 1e9", f"{ARCH} {{1}} 1e15", f"{ARCH} {{2}} 20", f"{ARCH} {{3}} 100"]),
    ("", "ask (--flop_budget), (--days), (--n_params), (--target_loss), or (--tokens) with (--unique_tokens)",
     ["{0} 1e18", "{1} 1 --gpu h100", "{2} 1e8", "{3} 3", "{4} 1e10 {5} 1e9"]),
    ("--gpu t5 --flop_budget 1e18", r"known: ([\w-]+), .*, or give (--peak_flops)",
     ["--gpu {0} --flop_budget 1e18", "--gpu t5 {1} 65e12 --flop_budget 1e18"]),
    ("--days 2 --gpu h100 --flop_budget 1e18", "leave one out", ["--days 2 --gpu h100", "--flop_budget 1e18"]),
    ("--days 2", "--gpu", ["--days 2 --gpu h100"]),
    ("--tokens 1e10 --data_law {tmp}/fit.json", "is for --unique_tokens; add it, or leave this out",
     ["--tokens 1e10 --unique_tokens 1e9"]),
    ("--target_loss 12", "give a smaller loss, or (--vocab_size)", ["--target_loss 3", "--target_loss 12 {0} 1e6"]),
    ("--inference_tokens 1e12", "without an architecture ask (--flop_budget), --days, (--n_params), (--target_loss)",
     ["--inference_tokens 1e12 {0} 1e18", "--inference_tokens 1e12 {1} 1e8", "--inference_tokens 1e12 {2} 3"]),
    ("--target_loss 0.5", "raise it", ["--target_loss 2.5"]),
    ("--flop_budget 1e18 --law nobody", r"known: (\w+)", ["--flop_budget 1e18 --law {0}"]),
    ("--flop_budget 1e18 --family nobody", r"known: \w+, ([\w-]+)", ["--flop_budget 1e18 --family {0}"]),
    ("--preset nobody --tokens 1e9", r"known: \w+, ([\w-]+)", ["--preset {0} --tokens 1e9"]),
    ("--config n_layer --tokens 1e9", r"as (n_layer=\d+)", ["--config {0} --tokens 1e9"]),
    ("--config {runs.csv} --tokens 1e9", "a file's name ends in .json", ["--config {shapes.json} --tokens 1e9"]),
    ("--n_embd 2432 --n_layer 3 --n_head 18 --tokens 1e9", r"to train it, --n_head (\d+) or (\d+)",
     ["--n_embd 2432 --n_layer 3 --n_head {0} --tokens 1e9", "--n_embd 2432 --n_layer 3 --n_head {1} --tokens 1e9"]),
    (f"{ARCH} --n_head 4 --model n_kv_head=3 --tokens 1e9", r"try one of (\d+), (\d+)",
     [f"{ARCH} --n_head 4 --model n_kv_head={{0}} --tokens 1e9",
      f"{ARCH} --n_head 4 --model n_kv_head={{1}} --tokens 1e9"]),
    (f"{ARCH} --model head_size=24 --n_head 2 --tokens 1e9", "leave one out", [f"{ARCH} --n_head 2 --tokens 1e9"]),
    (f"{ARCH} --model nope=3 --tokens 1e9", r"keys: (\w+)", [f"{ARCH} --model {{0}}=3 --tokens 1e9"]),
    (f"{ARCH} --tokens 1e9 --total_batch_size 1000", r"try (\d+)", [f"{ARCH} --tokens 1e9 --total_batch_size {{0}}"]),
    (f"{ARCH} --max_iters 100 --warmup_steps 200", "lower them", [f"{ARCH} --max_iters 100 --warmup_steps 50"]),
    (f"{ARCH} --max_iters 100 --schedule_steps 50", "raise them", [f"{ARCH} --max_iters 100 --schedule_steps 200"]),
    (f"{ARCH} --tokens 10", r"--tokens 10 buys .* raise it \(one step: ([\d.e+]+)\), or lower (--block_size)",
     [f"{ARCH} --tokens {{0}}", f"{ARCH} --tokens 10 {{1}} 8"]),
    (f"{ARCH} --tokens 200 --batch_size 64", r"raise it \(one step: ([\d.e+]+)\), or lower (--\w+) or (--\w+)",
     [f"{ARCH} --tokens {{0}} --batch_size 64", f"{ARCH} --tokens 200 {{1}} 2",
      f"{ARCH} --tokens 200 --batch_size 64 {{2}} 4"]),
    (f"{ARCH} --tokens 200 --total_batch_size 8192", r"raise it \(one step: ([\d.e+]+)\), or lower (--\w+) or",
     [f"{ARCH} --tokens {{0}} --total_batch_size 8192", f"{ARCH} --tokens 200 {{1}} 128"]),
    (f"{ARCH} --flop_budget 100", r"raise it \(one step: ([\d.e+]+)\)", [f"{ARCH} --flop_budget {{0}}"]),
    ("--flop_budget 1e12", "has nothing near that size; raise it", ["--flop_budget 1e18"]),
    ("--flop_budget 1e14", "raise it, or give the fit.json of a sweep near it", ["--flop_budget 1e18"]),
    (f"{ARCH} --tokens 1e9 --hparams nobody", r"known: (\w+)", [f"{ARCH} --tokens 1e9 --hparams {{0}}"]),
]  # fmt: skip

DATA = [
    ("--source {texts.jsonl} --tokenizer bpe:100 --out_dir {tmp}/d", "such as (bpe:512)",
     ["--source {pages.txt} --tokenizer {0} --out_dir {tmp}/d"]),
    ("--source {letters.jsonl} --tokenizer bpe:4096 --out_dir {tmp}/d --val_fraction 0.5", "or (--tokenizer byte)",
     ["--source {letters.jsonl} {0} --out_dir {tmp}/d --val_fraction 0.5"]),
    ("--source {texts.jsonl} --tokenizer bpe:4096 --out_dir {tmp}/d", r"it repeats enough for (bpe:\d+)",
     ["--source {texts.jsonl} --tokenizer {0} --out_dir {tmp}/d"]),
    ("--source {bodies.jsonl} --tokenizer byte --out_dir {tmp}/d", r"its columns \((\w+)\)",
     ["--source {bodies.jsonl} --tokenizer byte --text_column {0} --out_dir {tmp}/d"]),
    ("--source {few.jsonl} --tokenizer byte --out_dir {tmp}/d", "more text is needed, or another --val_fraction",
     ["--source {texts.jsonl} --tokenizer byte --out_dir {tmp}/d"]),
    ("--source {torn.jsonl} --strict --tokenizer byte --out_dir {tmp}/d", "without --strict such rows are dropped",
     ["--source {torn.jsonl} --tokenizer byte --out_dir {tmp}/d"]),
    ("--source {texts.jsonl} --append --tokenizer byte --out_dir {tmp}/d", "leave it out to make that folder",
     ["--source {texts.jsonl} --tokenizer byte --out_dir {tmp}/d"]),
    ("--source {texts.jsonl} --tokenizer byte --out_dir {toy}", "add --overwrite to replace it, or choose another",
     ["--source {texts.jsonl} --tokenizer byte --out_dir {tmp}/d"]),
    ("--source {texts.jsonl} --tokenizer byte --out_dir {tmp}", "choose another",
     ["--source {texts.jsonl} --tokenizer byte --out_dir {tmp}/d"]),
    ("--source {texts.jsonl} --tokenizer byte --out_dir {tmp}/d --num_doc 20", "the nearest is (--num_docs)",
     ["--source {texts.jsonl} --tokenizer byte --out_dir {tmp}/d {0} 90"]),
    ("--info {tmp}/none", r"name one that exists \((?:for training, with )?--data_dir (\S+?)[,)]", ["--info {0}"]),
]  # fmt: skip

SWEEP = [
    (f"{PRINTED} --depth 4", r"(--depths 4 6) 8 10",
     [f"--flop_budgets 1e11 {{0}} {TOY} --out_dir {{tmp}}/few --print_commands"]),
    (f"{PRINTED} --seed 1 --seeds 1 2", "leave one out", [f"{PRINTED} --seeds 1 2", f"{PRINTED} --seed 1"]),
    (f"{PRINTED} --lrs 1e-3 2e-3", r"a parabola needs (3) \(one rate for all is (--lr)\)",
     [f"{PRINTED} --lrs 1e-3 2e-3 4e-3", f"{PRINTED} {{1}} 1e-3"]),
    (f"{PRINTED} --target_flops 1e19", "is for --design adaptive: add that, or leave it out", [PRINTED]),
    (f"{PRINTED} --constraints {{service.json}}", "add --api URL, or (--simulate) LAW",
     [f"{DRAWN} --constraints {{service.json}} {{0}} hoffmann --batch_size 16"]),
    (SERVICE, "--api needs a key: (--api_key_file) FILE", [f"{SERVICE} {{0}} {{key}} --dry_run"]),
    (f"{SHORT} --flop_budgets 1e7", r"raise it \(one step: ([\d.e+]+)\), or lower (--batch_size) or (--block_size)",
     [f"{SHORT} --flop_budgets {{0}} --allow_few_steps --print_commands"]),
    (f"{SHORT} --flop_budgets 8e7", "add (--allow_few_steps) to train it all the same",
     [f"{SHORT} --flop_budgets 8e7 {{0}} --print_commands"]),
    (f"{SHORT} --flop_budgets 1e10 --nproc_per_node 2", "is for (--print_commands)",
     [f"{SHORT} --flop_budgets 1e10 --nproc_per_node 2 {{0}}"]),
    (f"{SHORT} --flop_budgets 1e10 --slurm=--array=3", "leave it out", [PRINTED]),
    (f"{SHORT} --flop_budgets 1e10 --slurm=--time=60", "needs sbatch and squeue on the PATH.* use (--print_commands)",
     [f"{SHORT} --flop_budgets 1e10 {{0}}"]),
    (f"{SHORT} --flop_budgets 1e10 --slurm=\"--time='60\"", "quote the options of sbatch once", []),
]  # fmt: skip

RUN = f"{' '.join(SMALL_FLAGS)} --max_iters 20 --batch_size 4 --dtype float32"
TRAINED = f"{RUN} --data_dir {{toy}} --out_dir {{tmp}}/run"
TRAIN = [
    (f"{RUN} --data_dir {{tmp}}/none", r"name one that exists \((--data_dir \S+?)[,)]",
     [f"{RUN} {{0}} --out_dir {{tmp}}/run"]),
    (f"{RUN} --data_dir {{toy}} --total_batch_size 1024", "leave one out", [TRAINED]),
    (f"{RUN} --data_dir {{toy}} --out_dir {{finished}}", "name another folder or add --overwrite",
     [TRAINED]),
    (f"{RUN} --data_dir {{toy}} --val_tokens 1000 --block_size 1024", "lower (--block_size)",
     [f"{TRAINED} {{0}} 32"]),
    (f"{RUN} --data_dir {{toy}} --batch_size 100000", "lower (--batch_size) or",
     [f"{TRAINED} {{0}} 4"]),
    (f"{RUN} --data_dir {{toy}} --device mps", "use (--device cpu)", [f"{TRAINED} {{0}}"]),
    (f"{TRAINED} --resume {{tmp}}/none", "a plain (--resume) takes the newest",
     [f"{TRAINED} {{0}}"]),
]  # fmt: skip
SAMPLE = [
    ("--ckpt {finished}/model.safetensors", "name the folder that it is in: (--ckpt .*)", ["{0} --max_new_tokens 3"]),
    ("--ckpt {tmp}/none", "no such folder; train.py writes to", ["--ckpt {finished} --max_new_tokens 3"]),
    ("--ckpt {finished} --tokenizer_dir {tmp}", "name a folder that data.py made",
     ["--ckpt {finished} --tokenizer_dir {toy} --max_new_tokens 3"]),
    ("--ckpt {finished} --prompts {tmp}/none", "name a text file",
     ["--ckpt {finished} --prompts {key} --max_new_tokens 3"]),
]  # fmt: skip
EXPORT = [
    ("--ckpt {finished} --out {finished}", "name another folder or add (--overwrite)",
     ["--ckpt {finished} --out {tmp}/exported", "--ckpt {finished} --out {tmp} {0}"]),
    ("--ckpt {finished}/config.json --out {tmp}/exported", "name the folder that it is in: (--ckpt .*)",
     ["{0} --out {tmp}/exported"]),
]  # fmt: skip
EVAL = [
    ("--ckpt {finished}", "give --tasks, (--data_dir), or both", ["--ckpt {finished} {0} {toy} --val_tokens 1024"]),
    ("--data_dir {toy}", "give one of (--ckpt) DIR", ["{0} {finished} --data_dir {toy} --val_tokens 1024"]),
    ("--ckpt {finished} --data_dir {bins}", "prepare the text with data.py and name that folder",
     ["--ckpt {finished} --data_dir {toy} --val_tokens 1024"]),
]  # fmt: skip
TABLES = {
    "fit": FIT, "plan": PLAN, "data": DATA, "sweep": SWEEP, "train": TRAIN, "sample": SAMPLE, "export": EXPORT,
    "eval": EVAL,
}  # fmt: skip


# ----- commands in this process -----


class Files:
    """The files that commands name, made when they are named."""

    def __init__(self, folder, toy, finished):
        self.folder, self.known = folder, {"tmp": folder, "toy": toy, "finished": finished}

    def words(self, command, proposed=()):
        """The words of a command; {0} is the first of what was proposed."""

        def place(match):
            if match[1].isdigit():
                return proposed[int(match[1])]
            return str(self.known.get(match[1]) or self.make(match[1]))

        return shlex.split(re.sub(r"\{([\w.]+)\}", place, command))

    def make(self, name):
        path = self.folder / name
        if name == "bins":  # of nanoGPT: ids and no tokenizer
            path.mkdir(exist_ok=True)
            for split in ("train", "val"):
                np.arange(5000, dtype=np.uint16).tofile(path / f"{split}.bin")
        else:
            path.write_text(FILES[name]())
        return path


def call(name, words, capsys):
    """(exit status, all that it said with single spaces) of a script's main()."""
    try:
        status = importlib.import_module(name).main(words)
    except SystemExit as end:
        status = end.code
    return status or 0, " ".join("".join(capsys.readouterr()).split())


@pytest.mark.slow
@pytest.mark.parametrize("name", TABLES)
def test_ways_out(name, tmp_path, toy_data, finished_run, capsys, monkeypatch):
    monkeypatch.delenv("ISOFLOP_API_KEY", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))  # no sbatch
    (tmp_path / "data").mkdir()
    wrong = []
    for i, (bad, says, ways) in enumerate(TABLES[name]):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "toy").symlink_to(toy_data)
        monkeypatch.chdir(folder)
        files = Files(folder, toy_data, finished_run[0])
        status, said = call(name, files.words(bad), capsys)
        found = re.search(says, said)
        if not found:
            wrong.append(f"{name} {bad}: {status}, {said[-300:]}")
            continue
        for way in ways:
            status, now = call(name, files.words(way, found.groups()), capsys)
            if status or re.search(says, now):
                wrong.append(f"{name} {bad} -> {way}: {status}, {now[-300:]}")
    assert not wrong, "\n".join(wrong)

"""eval.py: losses on a text, and a sweep's scores as columns beside its CSV."""

import csv
import json
import shutil

import numpy as np
import pytest

import data
import eval
from isoflop.data import config as config_
from isoflop.data import reader, tokenizer
from isoflop.eval import scores
from isoflop.train import run_dir
from model import load_model


@pytest.fixture
def sweep(finished_run, tmp_path):
    """A folder as sweep.py leaves it: two finished runs and one that diverged."""
    out, record = finished_run
    ids = ["0" * 12, "a" * 12, "b" * 12]
    for i in ids[:2]:
        shutil.copytree(out, tmp_path / "cells" / i)
    rows = [f"{ids[0]},ok,1000,1e9,3.5", f"{ids[1]},ok,2000,2e9,3.25", f"{ids[2]},diverged,3000,3e9,"]
    (tmp_path / "runs.csv").write_text("\n".join(["run_id,status,n_params_matmul,flops,val_loss", *rows]) + "\n")
    return tmp_path


def run(capsys, *flags):
    return eval.main([str(f) for f in flags]), capsys.readouterr().out


# ----- loss on a text -----


def test_loss_is_the_runs_own(finished_run, toy_data, capsys):
    out, record = finished_run
    status, said = run(capsys, "--ckpt", out, "--data_dir", toy_data, "--val_tokens", 2048)
    rows = json.loads((out / "eval.jsonl").read_text().splitlines()[-1])["results"]
    assert status == 0 and "val_loss@bins" in said
    assert [r["score"] for r in rows] == pytest.approx([record.val_loss, record.bits_per_byte], rel=1e-6)
    assert rows[0]["stderr"] == pytest.approx(record.val_loss_se, rel=1e-4)


def test_scores_are_kept_where_they_can_not_be_printed(finished_run, toy_data, tmp_path, monkeypatch):
    def closed(rows):
        raise BrokenPipeError

    monkeypatch.setattr(eval, "table", closed)
    monkeypatch.setattr("os.dup2", lambda *_: None)  # of run_main
    flags = ["--ckpt", finished_run[0], "--data_dir", toy_data, "--val_tokens", 512, "--out", tmp_path / "e.jsonl"]
    assert eval.main([str(flag) for flag in flags]) == 1
    assert json.loads((tmp_path / "e.jsonl").read_text())["results"]


def test_a_text_in_other_tokens_is_put_into_the_models(finished_run, toy_data, tmp_path, capsys):
    """The same documents in other tokens: in bits per byte the model is as good on them as on its own."""
    texts = tmp_path / "t.jsonl"
    own, folder = tokenizer.load_tokenizer(toy_data), reader.open_data(toy_data)
    docs = np.split(np.asarray(folder.train), np.flatnonzero(np.asarray(folder.train) == 256) + 1)[:300]
    texts.write_text("".join(json.dumps({"text": own.decode(d[:-1].tolist())}) + "\n" for d in docs if len(d) > 1))
    config = config_.DataConfig(source=str(texts), tokenizer="bpe:300", out_dir=str(tmp_path / "bpe"), val_fraction=0.5)
    other = data.prepare(config, quiet=True)
    tokens = reader.open_data(other)
    text = tokenizer.load_tokenizer(other).decode([i for i in tokens.val.tolist() if i != tokens.meta["eot_token"]])
    ec = eval.EvalConfig(ckpt=str(finished_run[0]), data_dir=str(other))
    found = run_dir.load(finished_run[0], load_model)
    ids = eval.reencode(tokens, tokenizer.load_tokenizer(other), found.tokenizer(), ec.val_tokens)
    assert bytes(i for i in ids.tolist() if i < 256).decode() == text
    assert (ids == 256).sum() == (tokens.val[:] == tokens.meta["eot_token"]).sum()
    there, here = eval.text_loss(found, ec), eval.text_loss(found, eval.EvalConfig("x", data_dir=toy_data))
    assert "in the model's tokens" in there[0]["metric"] and "in the" not in here[0]["metric"]
    assert there[1]["score"] == pytest.approx(here[1]["score"], rel=0.05)


# ----- a sweep -----


def test_a_sweeps_scores_stand_beside_its_csv(sweep, toy_data, capsys):
    before = (sweep / "runs.csv").read_bytes()
    flags = ["--sweep", sweep, "--data_dir", toy_data, "--val_tokens", 1024]
    assert run(capsys, *flags)[0] == 0
    scores_csv = (sweep / "scores.csv").read_text()
    assert (sweep / "runs.csv").read_bytes() == before and scores_csv.count("\n") == 1 + 2 * 2
    with open(sweep / "runs_scores.csv", newline="") as f:
        rows = {row["run_id"]: row for row in csv.DictReader(f)}
    assert float(rows["0" * 12]["bits_per_byte@bins"]) > 0 and rows["b" * 12]["bits_per_byte@bins"] == ""
    assert rows["a" * 12]["flops"] == "2e9" and len(rows) == 3
    assert "0 of 3 runs scored now" in run(capsys, *flags)[1]
    assert (sweep / "scores.csv").read_text() == scores_csv, "what was scored is not scored again"
    torn = scores_csv.splitlines(keepends=True)
    (sweep / "scores.csv").write_text("".join(torn[:-1]) + torn[-1][:20])
    run(capsys, *flags[:-1], 512)
    kept = (sweep / "scores.csv").read_text()
    assert kept.startswith("".join(torn[:-1])) and len(scores.read_scores(sweep)) == 3 + 4


def test_a_run_without_weights_costs_the_others_nothing(sweep, toy_data, capsys):
    (sweep / "cells" / ("a" * 12) / "model.safetensors").unlink()
    status, said = run(capsys, "--sweep", sweep, "--data_dir", toy_data, "--val_tokens", 1024)
    assert status == 1 and "aaaaaaaaaaaa not scored" in said and "1 of 3 runs scored now" in said


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "give one of --ckpt DIR"),
        (["--ckpt", "x"], "nothing to score"),
        (["--ckpt", "x", "--tasks", "a", "--limit", "1.5"], "--limit 1.5"),
        (["--ckpt", "nowhere", "--tasks", "core"], "no such folder"),
        (["--sweep", "nowhere", "--tasks", "core"], "no runs.csv"),
        (["--ckpt", "@", "--data_dir", "nowhere"], "nowhere"),
        (["--ckpt", "@", "--tasks", "core", "--num_fewshot", "-1"], "--num_fewshot -1"),
        (["--ckpt", "@", "--data_dir", "x", "--out", __file__], "holds something else than scores; name another file"),
        (["--ckpt", "@", "--data_dir", "x", "--out", "/"], "is not a file"),
    ],
)
def test_mistakes_are_one_line(flags, words, finished_run, capsys):
    with pytest.raises(SystemExit) as end:
        run(capsys, *(finished_run[0] if f == "@" else f for f in flags))
    said = capsys.readouterr().err
    assert end.value.code == 2 and words in said and said.count("\n") == 1

"""eval.py, harness.py and tasks.py: losses, benchmark scores against a hand computation, and a sweep's columns."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
import torch
from helpers import simulated_table

import data
import eval
import fit
from isoflop import laws
from isoflop.config import ModelConfig
from isoflop.data import config as config_
from isoflop.data import reader, tokenizer
from isoflop.eval import lm_harness, suites
from isoflop.eval import scores as scores_
from isoflop.fit import figures, report
from isoflop.fit import table as table_
from isoflop.train import run_dir
from isoflop.train.plan import TrainConfig
from train import train

NEEDS = "benchmarks run through lm-evaluation-harness: pip install lm-eval[hf]"
MC = ModelConfig(n_layer=1, n_embd=32, block_size=64, vocab_size=257)


@pytest.fixture(scope="module")
def model(toy_data, tmp_path_factory):
    """A folder of a short run, and its record."""
    out = tmp_path_factory.mktemp("run")
    tc = TrainConfig(max_iters=60, data_dir=toy_data, out_dir=str(out), batch_size=8, val_tokens=2048, dtype="float32")
    return out, train(MC, tc, quiet=True)


@pytest.fixture
def sweep(model, tmp_path):
    """A folder as sweep.py leaves it: two finished runs and one that diverged."""
    out, record = model
    ids = ["0" * 12, "a" * 12, "b" * 12]
    for i in ids[:2]:
        shutil.copytree(out, tmp_path / "cells" / i)
    rows = [f"{ids[0]},ok,1000,1e9,3.5", f"{ids[1]},ok,2000,2e9,3.25", f"{ids[2]},diverged,3000,3e9,"]
    (tmp_path / "runs.csv").write_text("\n".join(["run_id,status,n_params_matmul,flops,val_loss", *rows]) + "\n")
    return tmp_path


def run(capsys, *flags):
    return eval.main([str(f) for f in flags]), capsys.readouterr().out


# ----- loss on a text -----


def test_loss_is_the_runs_own(model, toy_data, capsys):
    out, record = model
    status, said = run(capsys, "--ckpt", out, "--data_dir", toy_data, "--val_tokens", 2048)
    rows = json.loads((out / "eval.jsonl").read_text().splitlines()[-1])["results"]
    assert status == 0 and "val_loss@bins" in said
    assert [r["score"] for r in rows] == pytest.approx([record.val_loss, record.bits_per_byte], rel=1e-6)
    assert rows[0]["stderr"] == pytest.approx(record.val_loss_se, rel=1e-4)


def test_a_text_in_other_tokens_is_put_into_the_models(model, toy_data, tmp_path, capsys):
    """The same documents in other tokens: in bits per byte the model is as good on them as on its own."""
    texts = tmp_path / "t.jsonl"
    own, folder = tokenizer.load_tokenizer(toy_data), reader.open_data(toy_data)
    docs = np.split(np.asarray(folder.train), np.flatnonzero(np.asarray(folder.train) == 256) + 1)[:300]
    texts.write_text("".join(json.dumps({"text": own.decode(d[:-1].tolist())}) + "\n" for d in docs if len(d) > 1))
    config = config_.DataConfig(source=str(texts), tokenizer="bpe:300", out_dir=str(tmp_path / "bpe"), val_fraction=0.5)
    other = data.prepare(config, quiet=True)
    tokens = reader.open_data(other)
    text = tokenizer.load_tokenizer(other).decode([i for i in tokens.val.tolist() if i != tokens.meta["eot_token"]])
    ec = eval.EvalConfig(ckpt=str(model[0]), data_dir=str(other))
    found = run_dir.load(model[0])
    ids = eval.retold(tokens, tokenizer.load_tokenizer(other), found.tokenizer(), ec)
    assert bytes(i for i in ids.tolist() if i < 256).decode() == text
    assert (ids == 256).sum() == (tokens.val[:] == tokens.meta["eot_token"]).sum()
    there, here = eval.text_loss(found, ec), eval.text_loss(found, eval.EvalConfig("x", data_dir=toy_data))
    assert "in the model's tokens" in there[0]["metric"] and "in the" not in here[0]["metric"]
    assert there[1]["score"] == pytest.approx(here[1]["score"], rel=0.05)


# ----- tasks -----


def test_core_and_gauntlet_are_the_published_lists():
    core, gauntlet = suites.BUNDLES["core"], suites.BUNDLES["gauntlet"]
    assert len(core) == 22 == len({t.label for t in core}) and len(gauntlet) == 33 == len({t.label for t in gauntlet})
    assert [t.label for t in core if t.name is None] == ["jeopardy"]
    assert len([t for t in gauntlet if t.name is None]) == 4
    assert {(t.shots, t.chance) for t in core if t.name == "hellaswag"} == {(0, 0.25), (10, 0.25)}


def test_the_mean_of_a_bundle_is_centred():
    """Chance everywhere is 0, perfect everywhere 1; what is missing is named; errors add up in squares."""
    for value, of in ((0.0, lambda t: t.chance), (1.0, lambda t: 1.0)):
        rows = [suites.score(t, {"x,none": 0, f"{t.metric},none": of(t), f"{t.metric}_stderr,none": 0.1})
                for t in suites.BUNDLES["core"] if t.name]  # fmt: skip
        assert all(row["centred"] == pytest.approx(value) for row in rows)
        assert suites.mean("core", rows)["score"] == pytest.approx(value)
    two = [row for row in rows if row["task"] in ("copa", "coqa")]
    mean = suites.mean("core", two)
    assert mean["stderr"] == pytest.approx(math.hypot(0.1 / 0.5, 0.1) / 2) and len(mean["missing"]) == 20
    with pytest.raises(ValueError, match="none of its tasks"):
        suites.mean("core", [])


def test_the_score_of_a_task_is_the_number_that_counts():
    result = {
        "alias": "x",
        "acc,none": 0.5,
        "acc_norm,none": 0.6,
        "acc_stderr,none": 0.1,
        "acc_norm_stderr,none": "N/A",
    }
    row = suites.score(suites.named("piqa"), result)
    assert (row["metric"], row["score"], row["stderr"], row["chance"]) == ("acc_norm", 0.6, None, 0.5)
    assert suites.score(suites.named("mine"), {"word_ppl,none": 9.0})["metric"] == "word_ppl"
    with pytest.raises(ValueError, match="gave no acc"):
        suites.score(suites.Task("a", "a", 0, None, "acc"), {"f1,none": 1.0})


def test_no_hub_is_said_and_local_files_need_none(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert "127.0.0.1" in lm_harness.offline_reason(["hellaswag"])
    (tmp_path / "local.yaml").write_text("task: a\ndataset_path: json\n")
    (tmp_path / "hub.yaml").write_text("task: a\ndataset_path: someone/data\n")
    assert lm_harness.offline_reason([str(tmp_path / "local.yaml")]) is None
    assert lm_harness.offline_reason([str(tmp_path / "hub.yaml")])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert lm_harness.offline_reason(["core"]) == "HF_HUB_OFFLINE is set"


TASK = """
task: pick
dataset_path: json
dataset_kwargs: {{data_files: {{test: {path}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{start}}}}"
doc_to_choice: "{{{{ends}}}}"
doc_to_target: "{{{{answer}}}}"
target_delimiter: ""
metric_list:
  - metric: acc
  - metric: acc_norm
"""


def local_task(folder):
    """30 questions: which of three ends goes on from a start; the right one is right by decree."""
    luck = np.random.default_rng(0)
    word = lambda n: "".join(luck.choice(list("abcdefgh. "), n))  # noqa: E731
    rows = [{"start": "x" + word(6), "ends": ["y" + word(int(n)) for n in luck.integers(1, 9, 3)],
             "answer": int(luck.integers(3))} for _ in range(30)]  # fmt: skip
    (folder / "pick.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pick.yaml").write_text(TASK.format(path=folder / "pick.jsonl"))
    return folder / "pick.yaml", rows


def by_hand(folder, rows):
    """Accuracy of the likeliest end, as it is and per byte, from our model's logits alone."""
    net, right = run_dir.load(folder).model.eval(), np.zeros((2, len(rows)))
    for i, row in enumerate(rows):
        totals = []
        for end in row["ends"]:
            ids = torch.tensor([list((row["start"] + end).encode())])
            with torch.no_grad():
                logp = net(ids)[0].log_softmax(-1)[0]
            first = len(row["start"].encode())
            totals.append(sum(logp[at - 1, ids[0, at]].item() for at in range(first, ids.size(1))))
        lengths = np.array([len(end) for end in row["ends"]])
        right[:, i] = np.argmax(totals) == row["answer"], np.argmax(totals / lengths) == row["answer"]
    return right


def test_the_harness_scores_a_local_task_as_we_do_by_hand(model, tmp_path, script):
    """Offline, in a process of its own: nothing of the hub may be needed."""
    pytest.importorskip("lm_eval", reason=NEEDS)
    pytest.importorskip("transformers", reason=NEEDS)
    task, rows = local_task(tmp_path)
    acc, acc_norm = by_hand(model[0], rows)
    done = script("eval.py", "--ckpt", model[0], "--tasks", task, "--out", tmp_path / "out.jsonl",
                  HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path), timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads((tmp_path / "out.jsonl").read_text())["results"]
    assert (row["task"], row["metric"], row["n"]) == ("pick", "acc_norm", 30)
    assert row["score"] == pytest.approx(acc_norm.mean()) and 0 < acc_norm.mean() < 1
    assert row["stderr"] == pytest.approx(acc_norm.std(ddof=1) / 30**0.5)
    assert "pick" in done.stdout and f"{acc_norm.mean():.4f}" in done.stdout
    unknown = script("eval.py", "--ckpt", model[0], "--tasks", tmp_path / "none.yaml")
    assert unknown.returncode == 2 and "no such file" in unknown.stderr.splitlines()[-1]
    assert acc.mean() != acc_norm.mean(), "the two metrics can be told apart"


def test_a_bundle_is_scored_and_its_mean_named(model, tmp_path, monkeypatch):
    """Two local tasks in one bundle, one of them with another number of examples, and one that nobody has."""
    pytest.importorskip("lm_eval", reason=NEEDS)
    pytest.importorskip("transformers", reason=NEEDS)
    task, rows = local_task(tmp_path)
    acc, acc_norm = by_hand(model[0], rows)
    bundle = (suites.Task("raw", str(task), 0, 1 / 3, "acc"), suites.Task("norm", str(task), None, 1 / 3, "acc_norm"))
    monkeypatch.setitem(suites.BUNDLES, "mine", (*bundle, suites.Task("gone", None, 0, 0.0, "acc")))
    held = lm_harness.Harness(["mine"], None, None, 4)
    for _ in range(2):  # the tasks are loaded once, for all models of a sweep
        out = held.run(run_dir.load(model[0]), "cpu", "float32", ["mine"])
        scores = {row["task"]: row["score"] for row in out}
        want = [(right.mean() - 1 / 3) / (2 / 3) for right in (acc, acc_norm)]
        assert scores == pytest.approx({"raw": acc.mean(), "norm": acc_norm.mean(), "mine": sum(want) / 2})
    assert out[-1]["missing"] == ["gone"] and out[-1]["metric"] == "mean of 2 of 3, centred"
    assert held.left_out == {"gone": "lm-eval has no such task"} and {row["entry"] for row in out} == {"mine"}


@pytest.mark.slow
def test_an_unreachable_hub_and_an_unknown_task_are_one_line(model, tmp_path, script):
    pytest.importorskip("lm_eval", reason=NEEDS)
    pytest.importorskip("transformers", reason=NEEDS)
    where = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    for flags, words in (
        (["--tasks", "arc_easy"], "the hub can't be reached (http://127.0.0.1:9"),
        (["--tasks", "arc_eazy,piqa"], "--tasks arc_eazy: lm-eval"),
    ):
        done = script("eval.py", "--ckpt", model[0], *flags, timeout=300, **where)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and words in done.stderr, done.stderr[-2000:]


# ----- a sweep -----


def test_a_sweeps_scores_stand_beside_its_csv(sweep, toy_data, capsys):
    before = (sweep / "runs.csv").read_bytes()
    flags = ["--sweep", sweep, "--data_dir", toy_data, "--val_tokens", 1024]
    assert run(capsys, *flags)[0] == 0
    scores = (sweep / "scores.csv").read_text()
    assert (sweep / "runs.csv").read_bytes() == before and scores.count("\n") == 1 + 2 * 2
    with open(sweep / "runs_scores.csv", newline="") as f:
        rows = {row["run_id"]: row for row in csv.DictReader(f)}
    assert float(rows["0" * 12]["bits_per_byte@bins"]) > 0 and rows["b" * 12]["bits_per_byte@bins"] == ""
    assert rows["a" * 12]["flops"] == "2e9" and len(rows) == 3
    assert "0 of 3 runs scored now" in run(capsys, *flags)[1]
    assert (sweep / "scores.csv").read_text() == scores, "what was scored is not scored again"
    torn = scores.splitlines(keepends=True)
    (sweep / "scores.csv").write_text("".join(torn[:-1]) + torn[-1][:20])
    run(capsys, *flags[:-1], 512)
    kept = (sweep / "scores.csv").read_text()
    assert kept.startswith("".join(torn[:-1])) and len(scores_.read_scores(sweep / "scores.csv")) == 3 + 4


def test_a_foreign_scores_file_is_left_as_it_is(sweep, toy_data, capsys):
    (sweep / "scores.csv").write_text("mine\n1\n")
    with pytest.raises(SystemExit) as end:
        run(capsys, "--sweep", sweep, "--data_dir", toy_data)
    assert end.value.code == 2 and "another header" in capsys.readouterr().err
    assert (sweep / "scores.csv").read_text() == "mine\n1\n"


def test_a_run_without_weights_costs_the_others_nothing(sweep, toy_data, capsys):
    (sweep / "cells" / ("a" * 12) / "model.safetensors").unlink()
    status, said = run(capsys, "--sweep", sweep, "--data_dir", toy_data, "--val_tokens", 1024)
    assert status == 1 and "aaaaaaaaaaaa not scored" in said and "1 of 3 runs scored now" in said


def test_fit_draws_scores(tmp_path, monkeypatch):
    """Score columns, with a gap and without errors, become a picture; a CSV that has none gets none, and no word."""
    monkeypatch.setattr(report, "PICTURES", {"scores.png": figures.PICTURES["scores.png"]})  # the others take seconds
    table = simulated_table(laws.Law(1.7, 400.0, 1500.0, 0.34, 0.36), [1e17, 1e18, 1e19], 5, 10.0)
    lines = ["run_id,n_params_matmul,tokens,flops,val_loss,score_core,score_core_se,score_piqa"]
    for i, (n, d, c, loss) in enumerate(zip(table.n, table.d, table.c, table.loss, strict=True)):
        core, piqa = f"{0.5 - loss / 10},0.01", "" if i == 3 else "0.5"
        lines.append(f"r{i},{n:.0f},{d:.0f},{c},{loss},{core},{piqa}")
    (tmp_path / "scored.csv").write_text("\n".join(lines) + "\n")
    plain = [",".join(line.split(",")[:5]) for line in lines]
    (tmp_path / "plain.csv").write_text("\n".join(plain) + "\n")
    found = table_.scores([str(tmp_path / "scored.csv")])
    assert sorted(found) == ["core", "piqa"] and len(found["core"]) == 15 and len(found["piqa"]) == 14
    assert found["core"]["r2"] == pytest.approx((0.5 - table.loss[2] / 10, 0.01)) and "r3" not in found["piqa"]
    for name, there in (("scored", True), ("plain", False)):
        fit.run([str(tmp_path / f"{name}.csv")], out_dir=str(tmp_path / name), plots=True, bootstrap=0)
        assert (tmp_path / name / "scores.png").exists() is there
        assert ("scores.png" in (tmp_path / name / "prediction.md").read_text()) is there


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
    ],
)
def test_mistakes_are_one_line(flags, words, model, capsys):
    with pytest.raises(SystemExit) as end:
        run(capsys, *(model[0] if f == "@" else f for f in flags))
    said = capsys.readouterr().err
    assert end.value.code == 2 and words in said and said.count("\n") == 1

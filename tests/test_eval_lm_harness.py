"""isoflop/eval/lm_harness.py: local tasks scored offline as by hand, bundles, and what can't be had in one line."""

import json

import numpy as np
import pytest
import torch

from isoflop.eval import lm_harness, suites
from isoflop.train import run_dir
from model import load_model

NEEDS = "benchmarks run through lm-evaluation-harness: pip install lm-eval[hf]"


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
    """30 questions: which of three ends continues a start; the right one is random."""
    luck = np.random.default_rng(0)
    word = lambda n: "".join(luck.choice(list("abcdefgh. "), n))  # noqa: E731
    rows = [{"start": "x" + word(6), "ends": ["y" + word(int(n)) for n in luck.integers(1, 9, 3)],
             "answer": int(luck.integers(3))} for _ in range(30)]  # fmt: skip
    (folder / "pick.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "pick.yaml").write_text(TASK.format(path=folder / "pick.jsonl"))
    return folder / "pick.yaml", rows


def by_hand(folder, rows):
    """Accuracy of the likeliest end, as it is and per byte, from our model's logits alone."""
    net, right = run_dir.load(folder, load_model).model.eval(), np.zeros((2, len(rows)))
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


def test_the_harness_scores_a_local_task_as_we_do_by_hand(finished_run, tmp_path, script):
    """Offline, in a process of its own: nothing of the hub may be needed."""
    pytest.importorskip("lm_eval", reason=NEEDS)
    pytest.importorskip("transformers", reason=NEEDS)
    task, rows = local_task(tmp_path)
    acc, acc_norm = by_hand(finished_run[0], rows)
    done = script("eval.py", "--ckpt", finished_run[0], "--tasks", task, "--out", tmp_path / "out.jsonl",
                  HF_ENDPOINT="http://127.0.0.1:9", HF_HOME=str(tmp_path), timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    (row,) = json.loads((tmp_path / "out.jsonl").read_text())["results"]
    assert (row["task"], row["metric"], row["n"]) == ("pick", "acc_norm", 30)
    assert row["score"] == pytest.approx(acc_norm.mean()) and 0 < acc_norm.mean() < 1
    assert row["stderr"] == pytest.approx(acc_norm.std(ddof=1) / 30**0.5)
    assert "pick" in done.stdout and f"{acc_norm.mean():.4f}" in done.stdout
    unknown = script("eval.py", "--ckpt", finished_run[0], "--tasks", tmp_path / "none.yaml")
    assert unknown.returncode == 2 and "no such file" in unknown.stderr.splitlines()[-1]
    assert acc.mean() != acc_norm.mean(), "the two metrics can be told apart"


def test_a_bundle_is_scored_and_its_mean_named(finished_run, tmp_path, monkeypatch):
    """Two local tasks in one bundle, one of them with another number of examples, and one that the harness lacks."""
    pytest.importorskip("lm_eval", reason=NEEDS)
    pytest.importorskip("transformers", reason=NEEDS)
    task, rows = local_task(tmp_path)
    acc, acc_norm = by_hand(finished_run[0], rows)
    bundle = (suites.Task("raw", str(task), 0, 1 / 3, "acc"), suites.Task("norm", str(task), None, 1 / 3, "acc_norm"))
    monkeypatch.setitem(suites.BUNDLES, "mine", (*bundle, suites.Task("gone", None, 0, 0.0, "acc")))
    held = lm_harness.Harness(["mine"], None, None, 4)
    for _ in range(2):  # the tasks are loaded once, for all models of a sweep
        out = held.run(run_dir.load(finished_run[0], load_model), "cpu", "float32", ["mine"])
        scores = {row["task"]: row["score"] for row in out}
        want = [(right.mean() - 1 / 3) / (2 / 3) for right in (acc, acc_norm)]
        assert scores == pytest.approx({"raw": acc.mean(), "norm": acc_norm.mean(), "mine": sum(want) / 2})
    assert out[-1]["missing"] == ["gone"] and out[-1]["metric"] == "mean of 2 of 3, centred"
    assert held.left_out == {"gone": "lm-eval has no such task"} and {row["entry"] for row in out} == {"mine"}


@pytest.mark.slow
def test_an_unreachable_hub_and_an_unknown_task_are_one_line(finished_run, tmp_path, script):
    pytest.importorskip("lm_eval", reason=NEEDS)
    pytest.importorskip("transformers", reason=NEEDS)
    where = {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path)}
    for flags, words in (
        (["--tasks", "arc_easy"], "the hub can't be reached (http://127.0.0.1:9"),
        (["--tasks", "arc_eazy,piqa"], "--tasks arc_eazy: lm-eval"),
    ):
        done = script("eval.py", "--ckpt", finished_run[0], *flags, timeout=300, **where)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.count("\n") == 1 and words in done.stderr, done.stderr[-2000:]

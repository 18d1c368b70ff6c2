"""fit.py --law_of task from files: columns, chance, refusals, the page."""

import json

import numpy as np
import pytest
from helpers import write_runs

import fit
from isoflop.fit import task_page

RNG = np.random.default_rng(0)
N, D = np.array([(n, 20.0 * m * n) for n in (1e8, 3e8, 9e8, 2.7e9) for m in (1, 4)]).T
LOSS = 1.8 + 400 / N**0.34 + 400 / D**0.28
SCORE = 0.25 + 0.7 / (1 + np.exp(2.0 * (LOSS - 2.6))) + 0.003 * RNG.standard_normal(len(N))
GUESS = 0.5 + 0.004 * RNG.standard_normal(len(N))


def table(folder, **scores):
    return write_runs(folder / "runs.csv", {"N": N, "D": D, "loss": LOSS} | scores)


def stopped(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        fit.main(argv)
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2 and "\n" not in said
    return said


def test_from_a_file_to_a_page_with_the_scores_of_given_sizes(tmp_path, capsys):
    path = table(tmp_path, score_arc_easy=SCORE, score_arc_easy_se=0.01 + 0 * N, score_boolq=GUESS)
    wanted = write_runs(tmp_path / "wanted.csv", {"N": [5e9], "D": [1e11]})
    assert fit.main([str(path), "--law_of", "task", "--predict_runs", str(wanted)]) == 0
    said = capsys.readouterr().out
    assert "arc_easy" in said and "refused: boolq: at chance" in said
    folder = tmp_path / "fit" / "task"
    assert {one.name for one in folder.iterdir()} == {"fit.json", "task.md", "task.png"}
    easy, boolq = json.loads((folder / "fit.json").read_text())["task"]["tasks"]
    (found,) = easy["predictions"]
    assert easy["chance"] == 0.25 and boolq["chance"] == 0.5 and boolq["refused"]
    assert found["pi95"][0] < found["score"] < found["pi95"][1] and found["n"] == 5e9
    truth = 0.25 + 0.7 / (1 + np.exp(2.0 * (1.8 + 400 / 5e9**0.34 + 400 / 1e11**0.28 - 2.6)))
    assert found["score"] == pytest.approx(truth, abs=0.03)


def test_columns_of_anyone_with_their_own_losses_errors_and_percents(tmp_path):
    path = table(tmp_path, quiz=100 * SCORE, err_quiz=100 - 100 * SCORE, bpb=0.4 * LOSS)
    flags = {"task_cols": ("quiz", "err_quiz"), "task_loss_cols": ("bpb", "loss"), "chance": (0.25,), "percent": True}
    result = fit.run(path, tmp_path / "out", law_of="task", plots=False, bootstrap=100, **flags)
    quiz, error = result["task"]["tasks"]
    assert (quiz["loss_column"], error["loss_column"], quiz["chance_from"]) == ("bpb", "loss", "--chance")
    assert quiz["best_score"] == pytest.approx(error["best_score"])
    assert quiz["predictions"][0]["score"] == pytest.approx(error["predictions"][0]["score"], abs=0.03)


def test_chance_is_read_from_the_scores_of_eval(tmp_path):
    path = table(tmp_path, score_odd=SCORE)
    (tmp_path / "scores.csv").write_text("run_id,task,chance\na,odd,0.2\nb,odd,0.2\nc,text,\n")
    options = fit.Options(law_of="task", plots=False)
    assert task_page.chances_of(["score_odd", "score_mmlu"], options, [path]) == [
        (0.2, "scores.csv"), (0.25, "its name")
    ]  # fmt: skip


@pytest.mark.parametrize(
    "scores, flags, says",
    [
        ({}, [], "no column of scores"),
        ({"score_a": 100 * SCORE}, [], "score_a goes up to"),
        ({"err_a": 100 - 100 * SCORE}, ["--task_cols", "err_a"], "err_a goes up to"),
        ({"score_a": 900 * SCORE}, ["--percent"], "score_a goes up to 629.5, above 100%"),
        ({"score_a": np.inf * N}, [], "none of 1 tasks can be predicted (a: 0 runs have both"),
        ({"score_boolq": GUESS}, [], "none of 1 tasks can be predicted (boolq: at chance"),
        ({"score_a": SCORE}, ["--task_cols", "b"], "--task_cols b: no such column"),
        ({"score_a": SCORE}, ["--chance", "0.1", "0.2"], "--chance has 2 values for 1 tasks"),
        ({"score_a": SCORE}, ["--task_loss_cols", "b"], "--task_loss_cols b: no such column"),
    ],
)
def test_tables_without_an_answer_are_one_line_and_status_2(scores, flags, says, tmp_path, capsys):
    path = table(tmp_path, **scores)
    assert says in stopped([str(path), "--law_of", "task", *flags], capsys)
    assert not (tmp_path / "fit").exists()


def test_the_way_out_of_percents_works(tmp_path):
    path = table(tmp_path, score_a=100 * SCORE)
    result = fit.run(path, tmp_path / "out", law_of="task", percent=True, plots=False, bootstrap=100)
    assert not result["task"]["tasks"][0]["refused"]

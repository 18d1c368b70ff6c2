"""isoflop/eval/suites.py: bundles as published, means of centred scores, the number that counts of a task."""

import math

import pytest

from isoflop.eval import suites


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

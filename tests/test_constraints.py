"""isoflop/constraints.py: what a file allows, and one line for a file that is none."""

import json

import pytest
from conftest import ROOT

from isoflop.config import ModelConfig
from isoflop.constraints import read_constraints
from isoflop.options import UserError

LADDER = [(32, 1), (64, 1), (64, 2), (96, 3), (1024, 16), (1152, 18)]


@pytest.fixture
def limits():
    return read_constraints(str(ROOT / "docs" / "cs336_service.json"))


@pytest.fixture
def of(tmp_path):
    """of({...}) -> its constraints, through a file."""

    def call(value):
        path = tmp_path / "c.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return read_constraints(str(path))

    return call


def test_values_are_held_to_ranges_and_choices(limits):
    assert limits.nearest("lr", 3e-3) == 1e-3 and limits.nearest("lr", 5e-4) == 5e-4
    assert limits.nearest("batch_size", 170) == 128 and limits.nearest("batch_size", 190) == 256
    assert limits.nearest("anything", 7) == 7, "what the file does not name is free"
    cfg = ModelConfig(n_layer=1, n_embd=1152, n_head=18)
    said = limits.refuses(cfg, 64, 1e-2)
    for words in (
        "d_model 1152 must be from 64 to 1024",
        "num_layers 1",
        "num_heads 18",
        "batch_size 64 must be 128 or",
    ):
        assert words in said
    assert limits.refuses(ModelConfig(n_layer=2, n_embd=64, n_head=2), 128, 1e-3) == ""
    assert "train_flops 2e+15 must be 6e+14, 1e+15, 3e+15 or 6e+15" in limits.mistake("flop_budget", 2e15)


def test_heads_divide_the_width_and_are_allowed(limits, of):
    assert limits.heads(64) == 2 and limits.heads(1024) == 16 and limits.heads(960) == 15
    assert of({"num_heads": [5]}).heads(64) is None


def test_sizes_are_the_ladder_s_as_far_as_they_go(limits, of):
    assert limits.sizes(LADDER) == [(64, 2), (96, 3), (1024, 16), (1024, 24)]
    assert of({"d_model": [100, 200]}).sizes(LADDER) == [(100, 3), (200, 3)]
    with pytest.raises(UserError, match="no width has heads that are allowed"):
        of({"d_model": [65], "num_heads": [2]}).sizes(LADDER)


def test_shapes_are_all_allowed(limits):
    shapes = list(limits.shapes())
    assert len(shapes) > 100 and (64, 2, 2) in shapes and (1024, 24, 16) in shapes
    for width, depth, heads in shapes:
        assert width % (2 * heads) == 0 and limits.refuses(ModelConfig(depth, width, heads), 128, 1e-3) == ""


def test_rates_to_try(limits):
    assert limits.rates([2e-4, 4e-4, 8e-4, 2e-3]) == [2e-4, 4e-4, 8e-4, 1e-3]
    assert limits.rates([4e-3, 5e-3, 6e-3]) == pytest.approx([1e-4, 10**-3.5, 1e-3])


def test_budgets(limits, of):
    assert limits.budgets(2e15, 3e16) == [3e15, 6e15, 1e16, 3e16]
    assert limits.next_budget(1e17, 3.3e17) == 3e17 and limits.next_budget(1e18, 3e18) is None
    picked = limits.default_budgets(2e18, 7)
    assert picked == (1e15, 3e15, 1e16, 3e16, 1e17) and 7 * sum(picked) <= 2e18
    with pytest.raises(UserError, match="--total_flops 1e.13 does not pay for 7 sizes .* 7e.13 would"):
        limits.default_budgets(1e13, 7)
    ranged = of({"train_flops": {"min": 1e12, "max": 1e15}})
    assert ranged.budgets(1, 1e20) is None and ranged.next_budget(1e14, 3e14) == 3e14
    assert ranged.next_budget(5e14, 2e15) == 1e15 and ranged.next_budget(1e15, 3e15) is None
    assert 7 * sum(ranged.default_budgets(1e15, 7)) <= 1e15


@pytest.mark.parametrize(
    "text, words",
    [
        ("[1]", "must hold an object"),
        ("{", "c.json"),
        ('{"d_modle": [64]}', "'d_modle' is unknown; the nearest is d_model"),
        ('{"zz": 1}', "'zz' is unknown; known: d_model"),
        ('{"d_model": [64, 1024.5]}', "d_model: 1024.5 must be a positive whole number"),
        ('{"d_model": []}', 'must be {"min": .., "max": ..}, or a list'),
        ('{"learning_rate": {"min": 1}}', 'must be {"min": .., "max": ..}'),
        ('{"learning_rate": {"min": 2, "max": 1}}', "min 2 is above max 1; swap them"),
        ('{"batch_size": [true]}', "true must be a positive whole number"),
        ('{"train_flops": [-1]}', "-1 must be a positive number"),
        ('{"params": "embedding"}', "must be one of non_embedding, total, matmul"),
        ('{"vocab_size": 1e30}', "must be a positive whole number"),
    ],
)
def test_a_file_that_is_none_is_one_line(of, text, words):
    with pytest.raises(UserError, match=r"^--constraints ") as caught:
        of(text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there():
    with pytest.raises(UserError, match=r"--constraints no.json can't be read \(No such file .*check the path"):
        read_constraints("no.json")

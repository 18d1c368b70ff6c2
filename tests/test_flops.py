"""Parameter and FLOP counts: against the released models and by hand. test_model.py counts the built modules."""

import pytest

from isoflop.config import PRESETS, ModelConfig, configure
from isoflop.fit.flops_figure import plot_flops
from isoflop.flops import count_params, describe, flops_per_token, flops_per_token_exact, param_table

# Parameters of the released weights: transformers' own count of gpt2 to gpt2-xl, and of the LLaMA checkpoints.
# The papers give LLaMA 6.7, 13.0, 32.5 and 65.2 billion (arXiv:2302.13971, table 2).
RELEASED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama": 6_738_415_616,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-30b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3": 8_030_261_248,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3-405b": 405_853_388_800,
}


@pytest.mark.parametrize("name", RELEASED)
def test_counts_equal_the_released_models(name):
    assert count_params(configure(name))["total"] == RELEASED[name]


def test_every_preset_is_checked():
    assert set(PRESETS) == {"default", "nanogpt", *RELEASED}
    # nanoGPT prints 123.59M for its default: without positions, with a vocabulary of 50,304
    nano = param_table(configure("nanogpt"))
    assert round((sum(nano.values()) - nano["positions"]) / 1e6, 2) == 123.59
    assert nano["biases"] == 0 and nano["norms"] == 25 * 768


def test_one_layer_of_a_llama_by_hand():
    table = param_table(configure("llama", n_layer=18, n_embd=2304, n_ffn=6144))
    assert table["mlp"] // 18 == 3 * 2304 * 6144 == 42_467_328
    assert (table["mlp"] + table["attention"]) // 18 == 42_467_328 + 4 * 2304**2 == 63_700_992


def test_shared_key_heads_and_tied_heads_in_the_counts():
    cfg = dict(n_layer=3, n_embd=128, n_head=8, vocab_size=1000)
    full, shared = ModelConfig(**cfg), ModelConfig(**cfg, n_kv_head=2)
    saved = 3 * 2 * 128 * 6 * 16  # keys and values of six heads
    assert flops_per_token(full) - flops_per_token(shared) == 6 * saved
    assert flops_per_token_exact(full) - flops_per_token_exact(shared) == 6 * saved  # no product of attention
    tied = ModelConfig(**cfg, tied=True)
    assert count_params(tied)["total"] == count_params(full)["total"] - 128_000
    assert count_params(tied)["matmul"] == count_params(full)["matmul"]


def test_describe_and_picture(tmp_path):
    cfg = configure("llama3", n_layer=2, n_embd=512)
    text = describe(cfg)
    for n in (*param_table(cfg).values(), *count_params(cfg).values(), flops_per_token_exact(cfg)):
        assert f"{n:,}" in text
    assert "the embedding's" in describe(configure("gpt2")) and "the embedding's" not in text
    plot_flops(cfg, tmp_path / "flops.png")
    assert (tmp_path / "flops.png").read_bytes()[1:4] == b"PNG"

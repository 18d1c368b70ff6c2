"""Configurations against the released models, and what configure() makes of a preset and the flags on top."""

import dataclasses
import math

import pytest

from isoflop.config import PRESETS, ModelConfig, configure
from isoflop.fit.figures import plot_flops
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


@pytest.mark.parametrize(
    "preset, given, total",
    [
        ("gpt2", dict(n_layer=18, n_embd=2432, block_size=2048, vocab_size=50304), 1.405),
        ("llama", dict(n_layer=18, n_embd=2304, n_ffn=6144), 1.294),
        ("llama3", dict(n_layer=18, n_embd=2048, n_ffn=7168, vocab_size=128000), 1.544),
        ("llama3", dict(n_layer=30, n_embd=2048, n_ffn=7168, vocab_size=128000), 2.223),
    ],
)
def test_a_preset_with_fields_on_top(preset, given, total):
    cfg = configure(preset, **given)
    assert round(count_params(cfg)["total"] / 1e9, 3) == total
    assert all(getattr(cfg, k) == v for k, v in given.items())


def test_one_layer_of_a_llama_by_hand():
    table = param_table(configure("llama", n_layer=18, n_embd=2304, n_ffn=6144))
    assert table["mlp"] // 18 == 3 * 2304 * 6144 == 42_467_328
    assert (table["mlp"] + table["attention"]) // 18 == 42_467_328 + 4 * 2304**2 == 63_700_992


def test_ratios_and_heads_of_a_preset_at_other_widths():
    small = configure("llama3", n_embd=512)
    assert (small.n_head, small.head_size, small.n_kv_head, small.n_ffn) == (4, 128, 4, 1792)
    assert configure("llama3", n_embd=1536).n_kv_head == 4  # of 12 heads; 8 does not divide them
    assert configure("llama-30b", n_embd=3328).n_ffn == 8960
    assert configure("gpt2", n_embd=100).n_head == 2
    assert configure("gpt2", n_head=6).head_size == 128
    assert configure("llama3", n_kv_head=16).n_kv_head == 16
    with pytest.raises(ValueError, match="--n_kv_head 3 does not divide --n_head 32; try one of 1, 2, 4, 8, 16, 32"):
        configure("llama3", n_kv_head=3)


def test_the_depth_family():
    for depth in (1, 4, 12, 30):
        cfg = configure(depth=depth)
        assert (cfg.n_layer, cfg.n_embd, cfg.n_head, cfg.head_size) == (depth, 64 * depth, depth, 64)
    assert configure(depth=12, n_embd=512).n_embd == 512
    gpt = configure("gpt2", depth=12)
    assert dataclasses.replace(gpt, vocab_size=50257) == configure("gpt2")


@pytest.mark.parametrize(
    "given, message",
    [
        (dict(preset="gpt5"), "--preset gpt5 is unknown; known: default, gpt2,"),
        (dict(depth=0), "--depth 0 must be a positive number"),
        (dict(n_layer=-1, rope_theta=math.inf), "--n_layer -1 must be .*; --rope_theta inf must be"),
        (dict(n_layer=2.5), "--n_layer 2.5 must be a whole number"),
        (dict(n_layer=None), "--n_layer None must be a positive number"),
        (dict(n_embd="64"), "--n_embd 64 must be a positive number"),
        (dict(tied="yes"), "--tied yes must be true or false"),
        (dict(activation="relu"), "--activation relu must be one of relu2, gelu, gelu_tanh, swiglu"),
        (dict(n_embd=96, n_head=5), "try --n_embd 90 or 100"),
        (dict(n_embd=96, n_head=3, head_size=16), "--n_head 3 x --head_size 16 is not --n_embd 96"),
        (dict(n_embd=96, head_size=36), "not divisible into heads of --head_size 36; the next smaller size is 32"),
        (dict(n_embd=45, n_head=3), "of even size"),
    ],
)
def test_mistakes_name_the_flag_and_the_way_out(given, message):
    with pytest.raises(ValueError, match=message):
        configure(**given)


def test_odd_heads_need_no_rotation():
    assert ModelConfig(n_embd=45, n_head=3, position="learned").head_size == 15


def test_identity_tells_architectures_apart_and_not_their_spelling():
    plain = ModelConfig(n_embd=128)
    assert set(plain.identity()) == {"n_layer", "n_embd", "n_head", "block_size", "vocab_size", "rope_theta"}
    assert plain.identity() == ModelConfig(n_embd=128, n_head=2, head_size=64, n_ffn=512, n_kv_head=2).identity()
    assert ModelConfig(n_embd=128, n_ffn=256).identity() == ModelConfig(n_embd=128, ffn_mult=2).identity()
    others = [
        dict(n_ffn=256), dict(n_kv_head=1), dict(activation="gelu"), dict(norm="layernorm"), dict(norm_gain=True),
        dict(norm_eps=1e-5), dict(position="learned"), dict(bias=True), dict(qk_norm=False), dict(tied=True),
        dict(logit_softcap=15.0), dict(init="normal"), dict(rope_theta=500.0), dict(n_head=4),
    ]  # fmt: skip
    ids = [str(ModelConfig(n_embd=128, **other).identity()) for other in others]
    assert len({str(plain.identity()), *ids}) == len(others) + 1


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

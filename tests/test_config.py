"""What configure() makes of a preset and the flags on top, and what it refuses."""

import dataclasses
import math

import pytest

from isoflop.config import ModelConfig, configure
from isoflop.flops import count_params


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


def test_heads_default_and_refusals():
    assert [ModelConfig(n_embd=w).n_head for w in (16, 32, 48, 64, 96, 128, 768)] == [1, 1, 1, 1, 2, 2, 12]
    with pytest.raises(ValueError, match="--n_embd 100 is not divisible by --n_head 12.*try --n_embd 96 or 120"):
        ModelConfig(n_embd=100, n_head=12)


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
        (dict(depth=0), "--depth 0 must be at least 1"),
        (dict(n_layer=-1, rope_theta=math.inf), "--n_layer -1 must be .*; --rope_theta inf must be"),
        (dict(n_layer=2.5), "--n_layer 2.5 must be a whole number"),
        (dict(n_layer=None), "--n_layer None must be at least 1 and at most 10000"),
        (dict(n_embd="64"), "--n_embd 64 must be at least 1 and at most 2\\^20"),
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

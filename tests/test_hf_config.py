"""isoflop/hf/config.py: models that no stock architecture computes, and theirs that model.py does not."""

import json

import pytest
from helpers import TOY_MODELS, trained_folder

from isoflop.config import ModelConfig
from isoflop.hf import config
from isoflop.hf.weights import write_hf
from isoflop.train import run_dir
from model import load_model


def test_what_no_stock_model_computes_is_refused(tmp_path, toy_data):
    for more, words in (
        (dict(logit_softcap=15.0), "Qwen3ForCausalLM, it differs: logits are capped"),
        (dict(activation="gelu"), "activation is gelu, not swiglu or relu2"),
        (dict(norm="layernorm"), "norm is layernorm, not rmsnorm"),
        (dict(bias=True), "LlamaForCausalLM, it differs: qk_norm is True"),
        (dict(position="learned"), "position is learned"),
    ):
        with pytest.raises(ValueError, match="no stock architecture is exact") as refused:
            config.architecture(ModelConfig(**TOY_MODELS["default"] | more, vocab_size=257))
        assert words in str(refused.value) and "\n" not in str(refused.value)


def test_scaled_rotary_positions_are_refused(tmp_path, toy_data):
    write_hf(run_dir.load(trained_folder(tmp_path / "ours", "llama3", toy_data), load_model), tmp_path / "hf")
    hf = json.loads((tmp_path / "hf" / "config.json").read_text())
    for key in ("rope_parameters", "rope_scaling"):
        with pytest.raises(ValueError, match="rotary positions are scaled .yarn."):
            config.own_config(hf | {"rope_parameters": None} | {key: {"rope_type": "yarn", "factor": 8.0}})


def test_theirs_that_differ_are_refused_by_name():
    sizes = dict(
        vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    for more, words in (
        ({"model_type": "gpt_neox"}, "'gpt_neox' is not one of .*: attention and MLP are added side by side"),
        ({"model_type": "mixtral"}, "mixture of experts"),
        ({"model_type": "t5"}, "'t5' is not one of gpt2, llama, qwen3, mistral, qwen2$"),
        ({"model_type": "mistral", "sliding_window": 32}, "sees 32 of 64 tokens"),
        ({"model_type": "qwen2", "use_sliding_window": True}, "use_sliding_window"),
    ):
        with pytest.raises(ValueError, match=words) as refused:
            config.own_config(sizes | more)
        assert "\n" not in str(refused.value)
    way_out = sizes | {"model_type": "mistral", "sliding_window": 32, "max_position_embeddings": 32}
    assert config.own_config(way_out).block_size == 32
    assert config.own_config(sizes | {"model_type": "qwen2"}).bias

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
        with pytest.raises(ValueError, match="rotary positions are scaled .llama3."):
            config.own_config(hf | {"rope_parameters": None} | {key: {"rope_type": "llama3", "factor": 8.0}})

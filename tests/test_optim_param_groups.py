"""Parameter groups: which weights decay, and whose learning rate falls with the width."""

import pytest

from isoflop.config import ModelConfig
from isoflop.optim import hparams, param_groups
from model import GPT

MC = ModelConfig(n_layer=1, n_embd=32, block_size=128, vocab_size=512)


def test_every_parameter_is_in_one_group_and_only_hidden_matrices_decay():
    groups = param_groups.param_groups(GPT(MC), 0.1)
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0, 0.0]
    assert [sum(p.numel() for p in g["params"]) for g in groups] == [12288, 16384, 16384]


def test_matrix_rate_falls_with_width_and_the_embedding_rate_does_not():
    rates = []
    for width in (32, 64, 128):
        mc = ModelConfig(1, width, vocab_size=64)
        lr = hparams.width_lr(ModelConfig(n_embd=width))
        embedding = param_groups.param_groups(GPT(mc), 0.1)[-1]["lr_mult"]
        rates.append((lr * width, lr * embedding))
    assert rates[0] == pytest.approx(rates[1])
    assert rates[0] == pytest.approx(rates[2])

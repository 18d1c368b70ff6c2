"""Validation loss, however it is shared out or cut up; bits per byte by hand; the standard error and the scatter."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from helpers import SMALL_MODEL

from isoflop.config import ModelConfig
from isoflop.data import reader
from isoflop.distributed import DistributedEnv
from isoflop.train.validation import evaluate
from model import GPT

MC = ModelConfig(**SMALL_MODEL)


def spelled(tokens):
    return torch.from_numpy(reader.token_bytes(tokens.folder)).long()


def test_validation_does_not_depend_on_how_it_is_shared(toy_data):
    tokens = reader.open_data(toy_data)
    torch.manual_seed(0)
    model = GPT(dataclasses.replace(MC, vocab_size=tokens.meta["vocab_size"]))
    torch.nn.init.normal_(model.lm_head.weight, std=0.1)
    plain = torch.autocast("cpu", enabled=False)
    whole = evaluate(model, tokens, spelled(tokens), 50, DistributedEnv(), plain)
    chunked = evaluate(model, tokens, spelled(tokens), 50, DistributedEnv(), plain, chunk_tokens=96)
    assert whole["val_loss"] == pytest.approx(chunked["val_loss"], abs=1e-6)

    class Rank(DistributedEnv):  # stands in for one of three processes: records its own sums
        def sum(self, *values):
            shares.append(values)
            return values

    shares = []
    for rank in range(3):
        evaluate(model, tokens, spelled(tokens), 50, Rank(rank, 3), plain)
    n, total, squares, text_loss, text_bytes = np.sum(shares, axis=0)
    assert n == 50
    assert total / n == pytest.approx(whole["val_loss"], abs=1e-6)
    assert text_loss / text_bytes / math.log(2) == pytest.approx(whole["bits_per_byte"], abs=1e-6)


def test_bits_per_byte_by_hand(toy_data):
    """A model that knows nothing spends ln V on every token; only tokens that spell bytes count, over their bytes."""
    tokens = reader.open_data(toy_data)
    V = tokens.meta["vocab_size"]
    model = GPT(dataclasses.replace(MC, vocab_size=V))  # its head is zero
    rows = 20
    result = evaluate(model, tokens, spelled(tokens), rows, DistributedEnv(), torch.autocast("cpu", enabled=False))
    targets = np.array(tokens.val[: rows * 32 + 1])[1:]
    lengths = reader.token_bytes(tokens.folder)[targets]
    assert (lengths == 0).any(), "the range should hold an end-of-text token"
    assert result["val_loss"] == pytest.approx(math.log(V), abs=1e-6)
    assert result["bits_per_byte"] == pytest.approx((lengths > 0).sum() * math.log2(V) / lengths.sum(), abs=1e-6)


def test_standard_error_covers_the_spread_between_ranges(toy_data):
    """The stated error is of the size of the real scatter between disjoint validation ranges."""
    tokens = reader.open_data(toy_data)
    torch.manual_seed(1)
    model = GPT(dataclasses.replace(MC, vocab_size=tokens.meta["vocab_size"]))
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)
    plain = torch.autocast("cpu", enabled=False)
    parts = []
    for i in range(0, len(tokens.val) - 641, 640):
        part = dataclasses.replace(tokens, val=tokens.val[i : i + 641])
        parts.append(evaluate(model, part, spelled(tokens), 20, DistributedEnv(), plain))
    scatter = np.std([p["val_loss"] for p in parts], ddof=1)
    assert len(parts) >= 8
    assert 0.5 < np.mean([p["val_loss_se"] for p in parts]) / scatter < 2

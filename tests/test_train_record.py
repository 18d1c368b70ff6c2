"""run_id: what changes it, pinned ids of old versions; the record's line and its commit."""

import shutil
from types import SimpleNamespace

from helpers import SMALL_MODEL, small_run

from isoflop.config import ModelConfig
from isoflop.data import reader
from isoflop.train import record
from isoflop.train.plan import TrainConfig, resolve

MC = ModelConfig(**SMALL_MODEL)


def test_run_id_follows_the_result_alone(toy_data, tmp_path):
    tokens = reader.open_data(toy_data)

    def name(mc=MC, out_dir="run", **more):
        tc = small_run(toy_data, out_dir, **more)
        return record.run_id(mc, tc, resolve(mc, tc), "float32", tokens)

    same = [name(), name(log_every=3), name(out_dir="elsewhere"), name(micro_batch_size=2),
            name(batch_size=None, total_batch_size=128, lr=resolve(MC, small_run(toy_data, tmp_path)).lr)]  # fmt: skip
    assert len(set(same)) == 1
    other = [name(seed=1), name(lr=1e-3), name(max_iters=21), name(batch_size=5), name(weight_decay=0.0),
             name(ModelConfig(n_layer=2, n_embd=16, block_size=32)), name(val_tokens=1024)]  # fmt: skip
    assert len({*same, *other}) == 1 + len(other)


def test_an_option_that_is_not_used_is_not_in_the_run_id(monkeypatch):
    """These ids are commit 7d47cba's, of TRAIN_VERSION 1, before there were rules and options."""
    monkeypatch.setattr(record, "TRAIN_VERSION", 1)
    tokens = SimpleNamespace(meta={"corpus_sha256": "c", "tokenizer_sha256": "t"})

    def name(n_layer, n_embd, **flags):
        mc, tc = ModelConfig(n_layer=n_layer, n_embd=n_embd, vocab_size=512), TrainConfig(**flags)
        return record.run_id(mc, tc, resolve(mc, tc), "bfloat16", tokens)

    typed = dict(max_iters=300, batch_size=4, lr=1e-2, weight_decay=0.0, beta2=0.99, warmup_frac=0.1)
    assert name(1, 16, flop_budget=5e10) == "6f8609517659"
    assert name(2, 48, flop_budget=1.5e11) == "123625d1d44b"
    assert name(2, 96, flop_budget=4.5e11, schedule="wsd") == "95d380f5bc46"
    assert name(1, 32, max_iters=300) == "ac6a087d0043"
    assert name(1, 32, **typed) == "f48f1146efb6"
    # by another rule or typed, what is used is what counts
    assert name(1, 32, **typed, hparams="steplaw") == name(1, 32, **typed)
    assert name(1, 32, **typed, shard=True) == name(1, 32, **typed)
    assert name(1, 32, **typed, cooldown="1-sqrt") == name(1, 32, **typed)  # cosine has no cooldown
    others = [dict(optimizer="muon"), dict(optimizer="muon", muon_adjust="original"), dict(ema=0.9), dict(z_loss=1e-4),
              dict(schedule="linear"), dict(schedule="wsd"), dict(schedule="wsd", cooldown="1-sqrt")]  # fmt: skip
    assert len({name(1, 32, **typed, **other) for other in ({}, *others)}) == 1 + len(others)


def test_summary_is_one_line():
    values = dict.fromkeys(record.RunRecord.__dataclass_fields__)
    values |= dict(run_id="abc", status="ok", val_loss=2.5, val_loss_se=0.01, tokens=5120, train_s=2.0)
    values |= dict(tokens_per_s=2560.0, steps=40, lr=0.02)
    line = "abc | val loss 2.5000 +- 0.0100 nats/token | 5,120 tokens in 2.0 s (2,560 tok/s)"
    assert record.RunRecord(**values).summary() == line
    assert "| 1.2500 bits/byte | 5,120 tokens" in record.RunRecord(**values | dict(bits_per_byte=1.25)).summary()
    assert "(2,560 tok/s, mfu 38.1%)" in record.RunRecord(**values | dict(mfu=0.381)).summary()
    diverged = record.RunRecord(**values | dict(status="diverged")).summary()
    assert diverged == "abc | diverged after 40 steps; lower --lr (0.02 was used)"
    values |= dict(status="blown_up", vocab_size=512, beta2=0.95, steps=400)
    above = record.RunRecord(**values | dict(val_loss=7.86, beta2=0.0, steps=4)).summary()
    assert above == (
        "abc | blown_up: val loss 7.86 is above the 6.2383 of a uniform guess; raise --beta2 (0 was used), "
        "or train for more steps (4 were done)"
    )
    rose = record.RunRecord(**values | dict(train_loss=4.5)).summary()
    assert rose == "abc | blown_up: the train loss rose for good, to 4.5; lower --lr (0.02 was used)"
    values |= dict(steps=40)
    assert record.RunRecord(**values | dict(status="oom")).summary() == "abc | oom after 40 steps"


def test_commit_is_the_checkout_s(tmp_path, monkeypatch):
    """Not the commit of the repository that an installed package lies in."""
    commands = []

    def git(command, **_):
        commands.append(command)
        return SimpleNamespace(stdout="" if "status" in command else "0123456789\n")

    monkeypatch.setattr(record.subprocess, "run", git)
    assert record.commit() == "0123456789"
    root = commands[0][2]
    installed = tmp_path / "isoflop" / "train" / "record.py"
    installed.parent.mkdir(parents=True)
    shutil.copy(record.__file__, installed)
    monkeypatch.setattr(record, "__file__", str(installed))
    assert record.commit() == "" and len(commands) == 2
    (tmp_path / "train.py").touch()
    assert record.commit() == "0123456789" and commands[-1][2] == str(tmp_path) != root

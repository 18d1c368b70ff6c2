"""Counts against the built module and torch's own counter; the model's invariants."""

import dataclasses
import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from isoflop.config import PRESETS, ModelConfig, configure
from isoflop.flops import count_params, flops_per_token, flops_per_token_exact, param_table
from isoflop.kernels.elementwise import norm_rotate
from model import GPT, load_model, main, save_model

TOY = dict(n_layer=2, n_embd=48, n_head=6, block_size=24, vocab_size=96)
SHAPES = [
    ModelConfig(n_layer=1, n_embd=16, block_size=32, vocab_size=512),
    ModelConfig(n_layer=3, n_embd=96, block_size=64, vocab_size=1024),
    ModelConfig(n_layer=2, n_embd=64, n_head=4, block_size=128, vocab_size=257),
    ModelConfig(n_layer=12, n_embd=768, block_size=1024, vocab_size=50257),
    *(configure(name, **TOY, n_kv_head=kv) for name in PRESETS for kv in (6, 2)),
    ModelConfig(**TOY, n_kv_head=1, norm_gain=True, bias=True, tied=True, logit_softcap=15.0, n_ffn=40),
    ModelConfig(**TOY, norm="layernorm", norm_gain=True, bias=True, activation="swiglu", position="learned"),
    ModelConfig(**TOY, norm="layernorm", bias=True, position="learned", tied=True, activation="gelu"),
]
LARGE = [configure(name) for name in ("gpt2-xl", "nanogpt", "llama-30b", "llama2-70b", "llama3-405b")]


def by_component(model):
    """The parameters that were built, sorted into param_table's rows by their names."""
    table = dict.fromkeys(("embedding", "positions", "attention", "mlp", "norms", "biases", "head"), 0)
    rows = {"wte": "embedding", "wpe": "positions", "attn": "attention", "mlp": "mlp", "lm_head": "head"}
    for name, p in model.named_parameters():  # a tied head comes once, as wte
        parts = name.split(".")
        row = "norms" if any(part.startswith("ln_") for part in parts) else rows[parts[2 if parts[0] == "h" else 0]]
        table["biases" if parts[-1] == "bias" else row] += p.numel()
    return table


@pytest.mark.parametrize("cfg", SHAPES + LARGE)
def test_counts_match_the_built_module(cfg):
    with torch.device("meta"):
        model = GPT(cfg)
    assert param_table(cfg) == by_component(model)
    counts = count_params(cfg)
    assert counts["total"] == sum(p.numel() for p in model.parameters())
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert counts["matmul"] == matrices  # a tied head multiplies as well
    assert counts["non_embedding"] == sum(p.numel() for part in (model.h, model.ln_f) for p in part.parameters())


@pytest.mark.parametrize("cfg", SHAPES + [pytest.param(cfg, marks=pytest.mark.slow) for cfg in LARGE])
def test_exact_flops_match_torch_counter(cfg):
    with torch.device("meta"):
        model = GPT(cfg)
        idx = torch.zeros(2, cfg.block_size, dtype=torch.long)
    with FlopCounterMode(display=False) as counter:
        model(idx, idx)[1].backward()
    assert counter.get_total_flops() == 2 * cfg.block_size * flops_per_token_exact(cfg)


def test_hand_worked_counts():
    # 1 layer: 12 x 32^2 = 12,288; head: 512 x 32 = 16,384
    cfg = ModelConfig(n_layer=1, n_embd=32, block_size=128, vocab_size=512)
    assert count_params(cfg) == {"total": 45056, "non_embedding": 12288, "matmul": 28672}
    assert flops_per_token(cfg) == 172032
    assert flops_per_token_exact(cfg) == 172032 + 12 * 128 * 32


def test_first_loss_is_ln_vocab_and_blocks_start_as_identity():
    torch.manual_seed(0)
    cfg = ModelConfig(n_layer=2, n_embd=32, block_size=16, vocab_size=64)
    model = GPT(cfg)
    idx = torch.randint(64, (2, 16))
    assert model(idx, idx)[1].item() == pytest.approx(math.log(64), abs=1e-6)
    x = model.wte(idx)
    assert torch.equal(model.h[0](x, (model.cos, model.sin)), x)


def trained_toy():
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=2, n_embd=32, n_head=2, block_size=16, vocab_size=64))
    with torch.no_grad():
        for p in model.parameters():
            p.normal_(std=0.2)
    return model


def test_no_position_sees_the_future():
    model = trained_toy()
    a = torch.randint(64, (1, 16))
    b = a.clone()
    b[0, 9:] = (b[0, 9:] + 1) % 64
    la, lb = model(a)[0], model(b)[0]
    assert torch.allclose(la[:, :9], lb[:, :9], atol=1e-5)
    assert not torch.allclose(la[:, 9:], lb[:, 9:], atol=1e-2)


def test_attention_depends_on_distance_only():
    """Rotary positions: scores of q at i and k at j depend on i - j."""
    model = trained_toy()
    q, k = torch.randn(16).repeat(1, 1, 16, 1), torch.randn(16).repeat(1, 1, 16, 1)
    cos, sin = model.cos, model.sin
    scores = (norm_rotate(q, cos, sin) @ norm_rotate(k, cos, sin).transpose(-1, -2))[0, 0]
    for offset in range(1, 16):
        diagonal = scores.diagonal(-offset)
        assert torch.allclose(diagonal, diagonal[0].expand_as(diagonal), atol=1e-4)


def test_per_token_loss_averages_to_the_mean_loss():
    model = trained_toy()
    idx, targets = torch.randint(64, (2, 3, 16)).unbind()
    each, mean = model(idx, targets, reduction="none")[1], model(idx, targets)[1]
    assert each.shape == (3, 16)
    assert each.mean().item() == pytest.approx(mean.item(), rel=1e-6)
    logits = model(idx)[0]
    by_hand = -logits.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    assert torch.allclose(each, by_hand, atol=1e-5)


# ----- every architecture -----

ARCHITECTURES = {
    **{name: configure(name, **TOY) for name in ("default", "gpt2", "nanogpt", "llama")},
    "llama3": configure("llama3", **TOY, n_kv_head=2),
    "capped": ModelConfig(**TOY, logit_softcap=2.0, tied=True, norm_gain=True, n_kv_head=1),
    "learned": ModelConfig(**TOY, position="learned", bias=True, activation="gelu", norm="layernorm"),
    "gated": ModelConfig(**TOY, activation="swiglu", qk_norm=False, norm_eps=1e-3),
}


def random_model(cfg, seed=0):
    """All parameters random: gains and biases too, and no product that starts at zero."""
    torch.manual_seed(seed)
    model = GPT(cfg)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.normal_(std=0.2).add_(1.0 if "ln_" in name and name.endswith("weight") else 0.0)
    return model


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_causal_and_all_its_weights_learn(name):
    model = random_model(ARCHITECTURES[name])
    a = torch.randint(96, (2, 24))
    b = a.clone()
    b[:, 9:] = (b[:, 9:] + 1) % 96
    la, lb = model(a)[0], model(b)[0]
    torch.testing.assert_close(la[:, :9], lb[:, :9], rtol=0, atol=1e-5)
    assert (la[:, 9:] - lb[:, 9:]).abs().max() > 1e-2
    targets = torch.randint(96, (2, 24))
    each, mean = model(a, targets, reduction="none")[1], model(a, targets)[1]
    by_hand = -la.log_softmax(-1).gather(-1, targets[..., None])[..., 0]
    torch.testing.assert_close(each, by_hand, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mean, by_hand.mean(), rtol=1e-5, atol=1e-5)
    mean.backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_cache_changes_no_logit(name):
    model = random_model(ARCHITECTURES[name])
    idx = torch.randint(96, (3, 24))
    with torch.no_grad():
        whole = model(idx)[0]
        cache, parts = model.new_cache(3), []
        for first, last in ((0, 7), (7, 8), (8, 13), (13, 14), (14, 24)):  # a prompt, single tokens, several
            parts.append(model(idx[:, first:last], cache=cache)[0])
            assert cache[0].length == last
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=1e-4, atol=1e-5)
    with pytest.raises(AssertionError, match="25 tokens"):
        model(idx[:, :1], cache=cache)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_initial_weights(name):
    cfg = ARCHITECTURES[name]
    torch.manual_seed(0)
    model = GPT(cfg)
    idx = torch.randint(96, (4, 24))
    first_loss = model(idx, idx.roll(1, 0))[1].item()
    if cfg.init == "scaled":
        zero = [block.attn.c_proj.weight for block in model.h] + ([] if cfg.tied else [model.lm_head.weight])
        assert all((p == 0).all() for p in zero)
        assert model.h[0].mlp.c_fc.weight.std().item() == pytest.approx(48**-0.5, rel=0.05)
        assert first_loss == pytest.approx(math.log(96), abs=1e-5 if not cfg.tied else 1.0)
    else:
        assert model.wte.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert model.h[1].mlp.c_proj.weight.std().item() == pytest.approx(0.02 / 2, rel=0.05)  # 2 n_layer = 4
        assert first_loss == pytest.approx(math.log(96), abs=0.05)
    assert all((p == 0).all() for n, p in model.named_parameters() if n.endswith("bias"))
    assert all((p == 1).all() for n, p in model.named_parameters() if "ln_" in n and n.endswith("weight"))


@pytest.mark.parametrize("name", ["gpt2", "llama3", "capped", "learned"])
def test_architectures_learn_from_their_own_start(name):
    torch.manual_seed(0)
    model = GPT(ARCHITECTURES[name])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(50):
        idx = torch.randint(96, (16, 24))
        loss = model(idx, idx * 5 % 96)[1]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.2  # from 4.56; logits capped at 2 can't go below 1.01


def test_softcap_and_z_loss_by_hand():
    capped = random_model(ARCHITECTURES["capped"])
    free = GPT(dataclasses.replace(capped.config, logit_softcap=None))
    free.load_state_dict(capped.state_dict())
    idx, targets = torch.randint(96, (2, 2, 24)).unbind()
    logits = free(idx)[0]
    assert logits.abs().max() > 4
    torch.testing.assert_close(capped(idx)[0], 2 * torch.tanh(logits / 2))
    for model in (capped, free):
        plain, punished = model(idx, targets)[1], model(idx, targets, z_loss=0.1)[1]
        squares = model(idx)[0].logsumexp(-1).square()
        torch.testing.assert_close(punished, plain + 0.1 * squares.mean())
        assert punished > plain + 0.1


def test_compiles_in_one_graph():
    model = random_model(ARCHITECTURES["llama3"])
    idx = torch.randint(96, (2, 24))
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(idx, idx)[1], model(idx, idx)[1])


# ----- against the originals -----


def random_twin(theirs):
    """All of a transformers model's parameters random: its own start has gains of one and biases of zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            p.normal_(std=0.1).add_(1.0 if p.dim() == 1 and name.endswith("weight") else 0.0)
    return theirs.eval()


@pytest.mark.parametrize("preset, activation", [("gpt2", "gelu_new"), ("nanogpt", "gelu")])
def test_gpt2_logits_equal_those_of_transformers(preset, activation):
    transformers = pytest.importorskip("transformers")
    cfg = configure(preset, **TOY)
    theirs = random_twin(
        transformers.GPT2LMHeadModel(
            transformers.GPT2Config(
                vocab_size=96, n_positions=24, n_embd=48, n_layer=2, n_head=6, activation_function=activation,
                layer_norm_epsilon=cfg.norm_eps, bos_token_id=None, eos_token_id=None,
            )
        )
    )  # fmt: skip
    state = {k.removeprefix("transformer."): v for k, v in theirs.state_dict().items()}
    if not cfg.bias:  # theirs always has them
        for name in [name for name in state if name.endswith(".bias")]:
            state.pop(name).zero_()
    matrices = ("c_attn.weight", "c_fc.weight", "c_proj.weight")  # stored as (in, out) there
    ours = GPT(cfg)
    ours.load_state_dict({k: v.t() if k.endswith(matrices) else v for k, v in state.items()})
    assert ours.wte.weight is ours.lm_head.weight
    compare_logits(ours, theirs)


@pytest.mark.parametrize("preset, kv, tied", [("llama", 6, False), ("llama3", 2, False), ("llama3", 1, True)])
def test_llama_logits_equal_those_of_transformers(preset, kv, tied):
    transformers = pytest.importorskip("transformers")
    cfg = configure(preset, **TOY, n_kv_head=kv, tied=tied)
    theirs = random_twin(
        transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=96, hidden_size=48, intermediate_size=cfg.n_ffn, num_hidden_layers=2, num_attention_heads=6,
                num_key_value_heads=kv, max_position_embeddings=24, rms_norm_eps=cfg.norm_eps,
                rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta}, tie_word_embeddings=tied,
                bos_token_id=None, eos_token_id=None, pad_token_id=None,
            )
        )
    )  # fmt: skip
    t = theirs.state_dict()
    state = {"wte.weight": t["model.embed_tokens.weight"], "ln_f.weight": t["model.norm.weight"]}
    state["lm_head.weight"] = t["lm_head.weight"]
    for i in range(2):
        at, to = f"model.layers.{i}.", f"h.{i}."
        state[to + "ln_1.weight"] = t[at + "input_layernorm.weight"]
        state[to + "ln_2.weight"] = t[at + "post_attention_layernorm.weight"]
        state[to + "attn.c_attn.weight"] = torch.cat([t[f"{at}self_attn.{x}_proj.weight"] for x in "qkv"])
        state[to + "attn.c_proj.weight"] = t[at + "self_attn.o_proj.weight"]
        state[to + "mlp.c_fc.weight"] = torch.cat([t[f"{at}mlp.{x}_proj.weight"] for x in ("gate", "up")])
        state[to + "mlp.c_proj.weight"] = t[at + "mlp.down_proj.weight"]
    ours = GPT(cfg)
    ours.load_state_dict(state)
    compare_logits(ours, theirs)


def compare_logits(ours, theirs):
    idx = torch.randint(96, (3, 24))
    with torch.no_grad():
        a, b = ours(idx)[0], theirs(idx).logits
    assert b.std() > 0.3
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


# ----- on disk, and the command line -----


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_is_saved_and_loaded(name, tmp_path):
    model = random_model(ARCHITECTURES[name])
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config
    assert (again.lm_head.weight is again.wte.weight) == model.config.tied
    idx = torch.randint(96, (1, 24))
    assert torch.equal(model(idx)[0], again(idx)[0])
    stored = (tmp_path / "model.safetensors").stat().st_size
    assert stored < 4 * count_params(model.config)["total"] + 4000  # a tied matrix once


def test_save_and_load_round_trip(tmp_path):
    model = trained_toy()
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("damage", ["missing", "cut", "config"])
def test_damaged_weights_are_refused(tmp_path, damage):
    save_model(trained_toy(), tmp_path)
    weights = tmp_path / "model.safetensors"
    if damage == "missing":
        weights.unlink()
    elif damage == "cut":
        weights.write_bytes(weights.read_bytes()[:1000])
    else:
        (tmp_path / "config.json").write_text('{"n_layer": 3, "n_embd": 32, "vocab_size": 64}')
    with pytest.raises(ValueError, match="no usable model"):
        load_model(tmp_path)


def test_command_line_prints_the_counts(capsys):
    main(["--n_embd", "32", "--n_layer", "1", "--vocab_size", "512", "--block_size", "128"])
    out = capsys.readouterr().out
    assert "28,672" in out and "172,032" in out and "221,184" in out


def test_command_line_mistakes_are_one_line(capsys, tmp_path):
    for flags, message in (
        (["--preset", "gpt9"], "--preset gpt9 is unknown; known: default, gpt2"),
        (["--plot_flops", str(tmp_path / "no" / "such.png")], "No such file"),
        (["--n_embd", "1e2", "--n_head", "3"], "try --n_embd 96 or 102"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(flags)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and message in error and error.count("\n") == 1

"""export.py: the same logits, text and weights on both sides; what is refused, in a line."""

import base64
import json
import random
import shutil

import pytest
import torch
from helpers import TOY_MODELS, toy_model
from safetensors.torch import load_file, save_file

import export
from isoflop.config import ModelConfig
from isoflop.data import tokenizer as data
from isoflop.hf import config
from isoflop.hf import tokenizer as tokens_hf
from isoflop.hf import weights as weights_
from isoflop.train import run_dir
from model import GPT, load_model, save_model

NEEDS = "exports are read back with transformers: pip install transformers tokenizers"
SHAPES = TOY_MODELS | {
    "gpt2, untied, no biases, exact gelu": TOY_MODELS["gpt2"] | dict(tied=False, bias=False, activation="gelu"),
    "gpt2, relu2, no gains": TOY_MODELS["gpt2"] | dict(activation="relu2", norm_gain=False, n_ffn=40),
    "llama, relu2, biases, tied": TOY_MODELS["llama"] | dict(activation="relu2", bias=True, tied=True),
    "llama, no gains, other angles": TOY_MODELS["llama3"] | dict(norm_gain=False, rope_theta=123.0, norm_eps=1e-4),
    "default with gains, SwiGLU, tied": TOY_MODELS["default"] | dict(norm_gain=True, activation="swiglu", tied=True),
    "default, shared key heads": TOY_MODELS["default"] | dict(n_head=4, n_kv_head=2, n_ffn=56),
}
KIND = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "default": "Qwen3ForCausalLM"}


def ours(folder, name, toy_data):
    save_model(toy_model(**SHAPES[name]), folder)
    run_dir.keep_tokenizer(toy_data, folder)
    (folder / "run.json").write_text(json.dumps({"run_id": "abc123", "val_loss": 3.25, "mfu": None}))
    return folder


def same_weights(a, b):
    a, b = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


# ----- there and back -----


@pytest.mark.parametrize("name", SHAPES)
def test_there_and_back_is_the_identity(name, tmp_path, toy_data, capsys):
    here = ours(tmp_path / "ours", name, toy_data)
    assert export.main(["--ckpt", str(here), "--out", str(tmp_path / "hf")]) == 0
    assert export.main(["--from_hf", str(tmp_path / "hf"), "--out", str(tmp_path / "back")]) == 0
    assert same_weights(here, tmp_path / "back")
    for name_ in ("config.json", "tokenizer.json"):
        assert json.loads((here / name_).read_text()) == json.loads((tmp_path / "back" / name_).read_text())
    assert run_dir.load(tmp_path / "back", load_model).record["run_id"] == "abc123"
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| val_loss | 3.25 |" in card and "mfu" not in card
    said = capsys.readouterr().out
    assert next(v for k, v in KIND.items() if name.startswith(k)) in said


@pytest.mark.parametrize("name", SHAPES)
def test_logits_and_greedy_text_equal_transformers(name, tmp_path, toy_data):
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    here, out = ours(tmp_path / "ours", name, toy_data), tmp_path / "hf"
    found = run_dir.load(here, load_model)
    weights_.write_hf(found, out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    assert type(theirs).__name__ == next(v for k, v in KIND.items() if name.startswith(k))
    idx = torch.randint(257, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = found.model.eval()(idx)[0], theirs(idx).logits
    assert a.std() > 0.1, "logits of zero would prove nothing"
    assert (a - b).abs().max() <= 1e-5 * max(1, a.abs().max())

    import model as sample

    greedy = sample.generate(found.model, idx[:1, :4], 20, temperature=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    made = theirs.generate(idx[:1, :4], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert made.tolist() == greedy.tolist()
    assert tokenizer.decode(made[0]) == found.tokenizer().decode(greedy[0].tolist())
    assert "logits equal" in export.verify(found.model, out)


@pytest.mark.parametrize("name", ["gpt2", "llama", "llama3"])
def test_their_own_models_come_here(name, tmp_path):
    """A model that transformers made and wrote, in several files, half precision: no record of ours in it."""
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=99, n_positions=32, n_embd=32, n_layer=3, n_head=2)
    else:
        config = transformers.LlamaConfig(
            vocab_size=99, max_position_embeddings=32, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=48, tie_word_embeddings=name == "llama3", rms_norm_eps=1e-5,
        )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    for w in theirs.parameters():
        w.data += 0.1 * torch.randn_like(w)
    theirs.half().save_pretrained(tmp_path / "hf", max_shard_size="30KB")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists()
    model = weights_.read_hf(tmp_path / "hf", GPT).eval()
    idx = torch.randint(99, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = model(idx)[0], theirs(idx).logits
    assert (a - b).abs().max() <= 1e-5 * max(1, a.abs().max())


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


def test_a_model_that_was_trained_on_is_no_longer_ours(tmp_path, toy_data):
    """Gains that moved are kept; a gate that moved away from up is not squared ReLU, and is refused."""
    weights_.write_hf(run_dir.load(ours(tmp_path / "ours", "default", toy_data), load_model), tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    state = load_file(path)
    state["model.norm.weight"] *= 2
    save_file(state, path)
    model = weights_.read_hf(tmp_path / "hf", GPT)
    assert model.config.norm_gain and (model.ln_f.weight == 2).all()
    state["model.layers.0.mlp.gate_proj.weight"][0, 0] += 1
    save_file(state, path)
    with pytest.raises(ValueError, match="gate_proj.weight and .*up_proj.weight differ"):
        weights_.read_hf(tmp_path / "hf", GPT)
    state["model.layers.1.self_attn.q_norm.weight"][0] = 2
    state["model.layers.0.mlp.gate_proj.weight"][0, 0] -= 1
    save_file(state, path)
    with pytest.raises(ValueError):
        weights_.read_hf(tmp_path / "hf", GPT)


# ----- refusals -----


def break_(folder, kind):
    config, weights = folder / "config.json", folder / "model.safetensors"
    hf, index = json.loads(config.read_text()), folder / "model.safetensors.index.json"
    if kind in ("only a pickle", "climbs out", "a pickle in the index", "an index of nothing"):
        shutil.move(weights, folder / "pytorch_model.bin")
    named = {"climbs out": "../ours/model.safetensors", "a pickle in the index": "pytorch_model.bin"}
    if kind in named:
        index.write_text(json.dumps({"weight_map": {"transformer.wte.weight": named[kind]}}))
    elif kind == "an index of nothing":
        index.write_text("[]")
    elif kind == "only a pickle":
        assert not weights.exists()
    elif kind == "not safetensors":
        weights.write_bytes(b"\x80\x04" + bytes(100))
    elif kind == "a missing tensor":
        state = load_file(weights)
        state.pop("transformer.h.1.mlp.c_fc.bias")
        save_file(state, weights)
    elif kind == "a foreign tensor":
        save_file(load_file(weights) | {"transformer.h.0.crossattention.q": torch.zeros(1)}, weights)
    else:
        field, value = kind.split(" = ")
        config.write_text(json.dumps(hf | {field: json.loads(value)}))


@pytest.mark.parametrize(
    "kind, words",
    [
        ("only a pickle", "a pickle, which is never opened"),
        ("climbs out", "only .safetensors files in the folder itself"),
        ("a pickle in the index", "only .safetensors files in the folder itself"),
        ("an index of nothing", "only .safetensors files"),
        ("not safetensors", ""),
        ("a missing tensor", "lack transformer.h.1.mlp.c_fc.bias"),
        ("a foreign tensor", "no place"),
        ('model_type = "mamba"', "'mamba' is not one of gpt2, llama, qwen3"),
        ('activation_function = "silu"', "silu is unknown"),
        ("scale_attn_by_inverse_layer_idx = true", "scale_attn_by_inverse_layer_idx is set"),
        ("n_layer = 1000000000", "1,000,000,000 layers, the weights have 2"),
        ("n_positions = 1000000000000", "a context of 1,000,000,000,000"),
        ("n_positions = 1000", "wpe.weight is (24, 32), not (1000, 32)"),
        ("n_head = 0", "n_head"),
        ("n_embd = 64", "c_attn.bias is (96,), not (192,)"),
        ("n_head = 5", "n_head"),
        ("vocab_size = null", ""),
        ('n_embd = "x"', ""),
    ],
)
def test_what_cannot_come_here_is_said_in_a_line(kind, words, tmp_path, toy_data, capsys):
    weights_.write_hf(run_dir.load(ours(tmp_path / "ours", "gpt2", toy_data), load_model), tmp_path / "hf")
    break_(tmp_path / "hf", kind)
    with pytest.raises(SystemExit) as end:
        export.main(["--from_hf", str(tmp_path / "hf"), "--out", str(tmp_path / "back")])
    said = capsys.readouterr().err
    assert end.value.code == 2 and words in said and said.count("\n") == 1
    assert not (tmp_path / "back").exists()


def test_scaled_rotary_positions_are_refused(tmp_path, toy_data):
    weights_.write_hf(run_dir.load(ours(tmp_path / "ours", "llama3", toy_data), load_model), tmp_path / "hf")
    hf = json.loads((tmp_path / "hf" / "config.json").read_text())
    for key in ("rope_parameters", "rope_scaling"):
        with pytest.raises(ValueError, match="rotary positions are scaled .llama3."):
            config.own_config(hf | {"rope_parameters": None} | {key: {"rope_type": "llama3", "factor": 8.0}})


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "give one of --ckpt"),
        (["--ckpt", "@"], "--out is missing"),
        (["--ckpt", "@", "--out", "@"], "exists and is not empty"),
        (["--from_hf", "gpt2-nowhere", "--out", "x"], "hf download"),
        (["--ckpt", "@", "--format", "onnx", "--out", "x"], "--format"),
    ],
)
def test_mistakes_are_one_line(flags, words, tmp_path, toy_data, capsys):
    here = ours(tmp_path / "ours", "default", toy_data)
    with pytest.raises(SystemExit) as end:
        export.main([str(here) if f == "@" else f for f in flags])
    said = capsys.readouterr().err
    assert end.value.code == 2 and words in said and said.count("\n") == 1


# ----- tokenizers -----


def own_tokenizer(folder, kind):
    """tokenizer.json of a small BPE over odd text, with GPT-2's pattern or another."""
    from isoflop.data import tokenizer

    tokens = tokenizer.make_tokenizer("bpe:400", odd_texts(2000))
    if kind == "other pattern":
        tokens["pattern"] = r"""\p{L}++|\p{N}{1,3}+|\s++|[^\s\p{L}\p{N}]++"""
    tokenizer.write_tokenizer(folder, tokens)
    return tokens


def odd_texts(count, seed=0):
    luck = random.Random(seed)
    parts = list(" \n\t\r-=aabxyz019'\u00e9\u4e2d\u2028\x85\x1c\u00a0\u0301\U0001f469\u200d")
    parts += ["'ll", "  ", "----", "self", "<|endoftext", "\n\n"]
    return ["".join(luck.choice(parts) for _ in range(luck.randint(1, 40))) for _ in range(count)]


@pytest.mark.parametrize("kind", ["GPT-2's pattern", "other pattern"])
def test_tokenizers_give_the_same_ids(kind, tmp_path):
    tokenizers = pytest.importorskip("tokenizers", reason=NEEDS)
    own_tokenizer(tmp_path, kind)
    spec = tokens_hf.read_spec(tmp_path / "tokenizer.json")
    hf, own = tokens_hf.to_hf(spec), data.load_tokenizer(tmp_path)
    theirs = tokenizers.Tokenizer.from_str(json.dumps(hf))
    back = tokens_hf.own_spec(hf, "any")
    assert tokens_hf.same(back, spec | {"pattern": tokens_hf.without_possessive(spec["pattern"])}), "and back"
    longest = 0
    for text in odd_texts(3000, seed=1):
        ids = own.encode_ordinary(text)
        assert theirs.encode(text, add_special_tokens=False).ids == list(ids), repr(text)
        assert theirs.decode(list(ids)) == text
        longest = max([longest, *(len(base64.b64decode(spec["tokens"][i])) for i in ids)])
    assert longest >= 4, "merges were used"
    assert theirs.token_to_id("<|endoftext|>") == own.eot_token


def test_a_vocabulary_of_another_kind_is_kept_whole(tmp_path):
    """SentencePiece's, as LLaMA's: our own format can't say it, so the file goes along as it is."""
    hf = {"model": {"type": "BPE", "byte_fallback": True, "vocab": {"<s>": 0, "</s>": 1, "\u2581a": 2}, "merges": []},
          "added_tokens": [{"id": 1, "content": "</s>", "special": True}], "pre_tokenizer": None}  # fmt: skip
    (tmp_path / "tokenizer.json").write_text(json.dumps(hf))
    spec, note = tokens_hf.from_folder(tmp_path)
    assert spec == {"name": tmp_path.name, "hf": hf, "eot": 1, "n_vocab": 3} and "tokenizers" in note
    assert tokens_hf.to_hf(spec) == hf


def test_gpt2s_first_files_are_enough(tmp_path):
    character = tokens_hf.characters()
    vocab = {character[b]: b for b in range(256)} | {character[97] * 2: 256, "<|endoftext|>": 257}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    spec, note = tokens_hf.from_folder(tmp_path)
    assert note == "" and [base64.b64decode(t) for t in spec["tokens"]] == [*(bytes([b]) for b in range(256)), b"aa"]
    assert tokens_hf.eot_of(spec) == 257

"""isoflop/hf/weights.py: the logits and texts of transformers, and weights that were changed since an export."""

import pytest
import torch
from helpers import EXPORTED_MODELS, exported_class, trained_folder
from safetensors.torch import load_file, save_file

import export
from isoflop.hf import weights
from isoflop.train import run_dir
from model import GPT, generate, load_model

NEEDS = "exports are read back with transformers: pip install transformers tokenizers"


@pytest.mark.parametrize("name", EXPORTED_MODELS)
def test_logits_and_greedy_text_equal_transformers(name, tmp_path, toy_data):
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    here, out = trained_folder(tmp_path / "ours", name, toy_data), tmp_path / "hf"
    found = run_dir.load(here, load_model)
    weights.write_hf(found, out)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out).eval()
    assert type(theirs).__name__ == exported_class(name)
    idx = torch.randint(257, (3, 24), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = found.model.eval()(idx)[0], theirs(idx).logits
    assert a.std() > 0.1, "logits of zero would prove nothing"
    assert (a - b).abs().max() <= 1e-5 * max(1, a.abs().max())

    greedy = generate(found.model, idx[:1, :4], 20, temperature=0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    made = theirs.generate(idx[:1, :4], max_new_tokens=20, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert made.tolist() == greedy.tolist()
    assert tokenizer.decode(made[0]) == found.tokenizer().decode(greedy[0].tolist())
    assert "logits equal" in export.verify(found.model, out)


@pytest.mark.parametrize(
    "name", ["gpt2", "llama", "llama3", "llama with attention_bias", "mistral", "qwen2", "llama 3.1"]
)
def test_their_own_models_come_here(name, tmp_path):
    """A model that transformers made and wrote, in several files, half precision: no record of ours in it."""
    transformers = pytest.importorskip("transformers", reason=NEEDS)
    torch.manual_seed(0)
    if name == "gpt2":
        config = transformers.GPT2Config(vocab_size=99, n_positions=32, n_embd=32, n_layer=3, n_head=2)
    else:
        kinds = {"mistral": transformers.MistralConfig, "qwen2": transformers.Qwen2Config}
        scaling = {
            "rope_type": "llama3", "rope_theta": 100.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        }  # fmt: skip
        more = {
            "llama 3.1": {"rope_parameters": scaling},
            "mistral": {"sliding_window": 32},
            "llama with attention_bias": {"attention_bias": True},
        }
        config = kinds.get(name, transformers.LlamaConfig)(
            vocab_size=99, max_position_embeddings=32, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=48, tie_word_embeddings=name == "llama3", rms_norm_eps=1e-5,
            **more.get(name, {}),
        )  # fmt: skip
    theirs = transformers.AutoModelForCausalLM.from_config(config).eval()
    for w in theirs.parameters():
        w.data += 0.1 * torch.randn_like(w)
    theirs.half().save_pretrained(tmp_path / "hf", max_shard_size="30KB")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "hf", dtype=torch.float32).eval()
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists()
    model = weights.read_hf(tmp_path / "hf", GPT).eval()
    idx = torch.randint(99, (2, 32), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = model(idx)[0], theirs(idx).logits
    assert (a - b).abs().max() <= 1e-5 * max(1, a.abs().max())


def test_a_model_that_was_trained_on_is_no_longer_ours(tmp_path, toy_data):
    """Gains that moved are kept; a gate that moved away from up is not squared ReLU, and is refused."""
    weights.write_hf(run_dir.load(trained_folder(tmp_path / "ours", "default", toy_data), load_model), tmp_path / "hf")
    path = tmp_path / "hf" / "model.safetensors"
    state = load_file(path)
    state["model.norm.weight"] *= 2
    save_file(state, path)
    model = weights.read_hf(tmp_path / "hf", GPT)
    assert model.config.norm_gain and (model.ln_f.weight == 2).all()
    state["model.layers.0.mlp.gate_proj.weight"][0, 0] += 1
    save_file(state, path)
    with pytest.raises(ValueError, match="gate_proj.weight and .*up_proj.weight differ"):
        weights.read_hf(tmp_path / "hf", GPT)
    state["model.layers.1.self_attn.q_norm.weight"][0] = 2
    state["model.layers.0.mlp.gate_proj.weight"][0, 0] -= 1
    save_file(state, path)
    with pytest.raises(ValueError):
        weights.read_hf(tmp_path / "hf", GPT)

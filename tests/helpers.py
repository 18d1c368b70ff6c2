"""What several test files share. One section per subject."""

# ----- plan.py -----


def plan_answer(*argv) -> dict:
    """What plan.py --json prints for these flags, parsed."""
    import contextlib
    import io
    import json

    import plan

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        assert plan.main([*map(str, argv), "--json"]) == 0
    return json.loads(out.getvalue())


FOUR_MODELS = {  # a published comparison; its GPT-2 has 18 heads of 135.1
    "GPT-2 1.36B": "preset=gpt2 n_layer=18 n_embd=2432 n_head=19 vocab_size=50304",
    "LLaMA-2 1.36B": "preset=llama2-7b n_layer=18 n_embd=2304 n_ffn=6144",
    "LLaMA-3 1.5B": "preset=llama3 n_layer=18 n_embd=2048 n_kv_head=8 n_ffn=7168 vocab_size=128000",
    "LLaMA-3 2.2B": "preset=llama3 n_layer=30 n_embd=2048 n_kv_head=8 n_ffn=7168 vocab_size=128000",
}
FOUR_CONFIGS = []
for _name, _fields in FOUR_MODELS.items():
    FOUR_CONFIGS += ["--config", f"name='{_name}' {_fields}"]
FOUR_RUNS = [*FOUR_CONFIGS, *"--block_size 2048 --tokens 13.1072e9 --total_batch_size 524288".split()]


# ----- models whose logits are not zero -----

TOY_MODELS = {
    "default": dict(n_layer=2, n_embd=32, block_size=24),
    "gpt2": dict(preset="gpt2", n_layer=2, n_embd=32, n_head=2, block_size=24),
    "llama": dict(preset="llama", n_layer=2, n_embd=32, n_head=2, block_size=24),
    "llama3": dict(preset="llama3", n_layer=2, n_embd=32, n_head=4, n_kv_head=2, block_size=24),
}


def toy_model(seed=0, **fields):
    """A model whose every weight is random: a fresh one's head is zero, and all its logits with it.

    fields : of a configuration, as in TOY_MODELS; the vocabulary is that of bytes.
    """
    import torch

    from isoflop.config import configure
    from model import GPT

    torch.manual_seed(seed)
    model = GPT(configure(**{"vocab_size": 257} | fields))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "ln_" in name:
                weight.copy_(torch.randn_like(weight) * 0.1 + (1 if name.endswith("weight") else 0))
            else:
                weight.copy_(torch.randn_like(weight) * 0.3)
    return model.eval()


EXPORTED_MODELS = TOY_MODELS | {
    "gpt2, untied, no biases, exact gelu": TOY_MODELS["gpt2"] | dict(tied=False, bias=False, activation="gelu"),
    "gpt2, relu2, no gains": TOY_MODELS["gpt2"] | dict(activation="relu2", norm_gain=False, n_ffn=40),
    "llama, relu2, biases, tied": TOY_MODELS["llama"] | dict(activation="relu2", bias=True, tied=True),
    "llama, no gains, other angles": TOY_MODELS["llama3"] | dict(norm_gain=False, rope_theta=123.0, norm_eps=1e-4),
    "default with gains, SwiGLU, tied": TOY_MODELS["default"] | dict(norm_gain=True, activation="swiglu", tied=True),
    "default, shared key heads": TOY_MODELS["default"] | dict(n_head=4, n_kv_head=2, n_ffn=56),
}


def exported_class(name: str) -> str:
    """The class of transformers that a model of EXPORTED_MODELS becomes."""
    for start, kind in {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "default": "Qwen3ForCausalLM"}.items():
        if name.startswith(start):
            return kind
    raise KeyError(name)


def trained_folder(folder, name, data_dir):
    """A folder as train.py leaves it: a model of EXPORTED_MODELS, the tokenizer of data_dir, a record."""
    import json

    from isoflop.train import run_dir
    from model import save_model

    save_model(toy_model(**EXPORTED_MODELS[name]), folder)
    run_dir.keep_tokenizer(data_dir, folder)
    (folder / "run.json").write_text(json.dumps({"run_id": "abc123", "val_loss": 3.25, "mfu": None}))
    return folder

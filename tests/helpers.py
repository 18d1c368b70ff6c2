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

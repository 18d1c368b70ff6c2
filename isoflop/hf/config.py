"""Our configurations as config.json of Hugging Face's GPT-2, LLaMA and Qwen3, and back.

A model is exported as the stock architecture that computes exactly the same. Stock models always have gains, and GPT-2
biases: where ours has none they are ones and zeros. Squared ReLU is relu(gate) * up with one matrix in both places: so
LLaMA's MLP computes it.
"""

from dataclasses import asdict, replace

from isoflop.config import ModelConfig
from isoflop.options import UserError

SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")  # rope_type llama3
RECORD = "isoflop"  # the key of an exported config.json that holds our own configuration

# ----- which stock architecture -----

GPT2_ACT = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu2": "relu2"}
GATED_ACT = {"swiglu": "silu", "relu2": "relu"}
CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}
READ = (*CLASSES, "mistral", "qwen2")  # the last two are LLaMA in other words: a window, biases of q, k and v alone
DIFFERS = {  # what keeps models that people ask for from being read
    "gpt_neox": "attention and MLP are added side by side (use_parallel_residual), rotary positions turn a "
    "part of each head (rotary_pct)",
    "gptj": "attention and MLP are added side by side and rotary positions turn a part of each head",
    "phi": "attention and MLP are added side by side and rotary positions turn a part of each head",
    "gpt_neo": "every other layer attends to a window and scores are not scaled",
    "opt": "the MLP is ReLU",
    "bloom": "positions are ALiBi",
    "mixtral": "the MLP is a mixture of experts",
    "gemma": "gains are 1 + weight, embeddings are scaled and the MLP is a gated GELU",
    "gemma2": "gains are 1 + weight, each half-block is normalized twice and layers attend to a window",
    "olmo2": "half-blocks are normalized after, not before, and queries and keys with gains",
}


def differences(cfg: ModelConfig, kind: str) -> list[str]:
    """What keeps a stock architecture from computing this model, in words; empty where it is exact."""
    if kind == "gpt2":
        wanted, activations = {"position": "learned", "norm": "layernorm", "qk_norm": False}, GPT2_ACT
    else:
        wanted, activations = {"position": "rope", "norm": "rmsnorm", "qk_norm": kind == "qwen3"}, GATED_ACT
    found = []
    for name, value in wanted.items():
        if getattr(cfg, name) != value:
            found.append(f"{name} is {getattr(cfg, name)}, not {value}")
    if cfg.activation not in activations:
        found.append(f"activation is {cfg.activation}, not {' or '.join(activations)}")
    if kind == "gpt2" and cfg.n_kv_head != cfg.n_head:
        found.append(f"key heads are shared ({cfg.n_kv_head} for {cfg.n_head})")
    if kind == "qwen3" and cfg.bias:
        found.append("the MLP has biases")
    if cfg.logit_softcap:
        found.append(f"logits are capped (logit_softcap {cfg.logit_softcap:g})")
    return found


def architecture(cfg: ModelConfig) -> str:
    """The stock architecture that computes exactly this model; UserError says what the nearest lacks."""
    of_kind = {kind: differences(cfg, kind) for kind in CLASSES}
    kind = min(of_kind, key=lambda kind: len(of_kind[kind]))
    if of_kind[kind]:
        raise UserError(
            f"no stock architecture is exact; from the nearest, {CLASSES[kind]}, it differs: {'; '.join(of_kind[kind])}"
        )
    return kind


def hf_config(cfg: ModelConfig, eot: int | None) -> dict:
    """config.json as transformers reads it, with our own under RECORD for the way back."""
    kind = architecture(cfg)
    common = {
        "architectures": [CLASSES[kind]],
        "model_type": kind,
        "vocab_size": cfg.vocab_size,
        "tie_word_embeddings": cfg.tied,
        "bos_token_id": eot,
        "eos_token_id": eot,
        "dtype": "float32",
        "torch_dtype": "float32",  # the name before transformers 5
        "use_cache": True,
        RECORD: asdict(cfg),
    }
    if kind == "gpt2":
        return common | {
            "n_layer": cfg.n_layer,
            "n_head": cfg.n_head,
            "n_embd": cfg.n_embd,
            "n_inner": cfg.n_ffn,
            "n_positions": cfg.block_size,
            "n_ctx": cfg.block_size,
            "activation_function": GPT2_ACT[cfg.activation],
            "layer_norm_epsilon": cfg.norm_eps,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
        }
    if kind == "llama":
        common["mlp_bias"] = cfg.bias
    rope = {"rope_type": "default", "rope_theta": cfg.rope_theta}
    if cfg.rope_scaling:
        rope |= {"rope_type": "llama3", **dict(zip(SCALING, cfg.rope_scaling, strict=True))}
        rope[SCALING[-1]] = int(rope[SCALING[-1]])
        common["rope_scaling"] = {name: value for name, value in rope.items() if name != "rope_theta"}
    return common | {
        "attention_bias": cfg.bias,
        "num_hidden_layers": cfg.n_layer,
        "num_attention_heads": cfg.n_head,
        "num_key_value_heads": cfg.n_kv_head,
        "head_dim": cfg.head_size,
        "hidden_size": cfg.n_embd,
        "intermediate_size": cfg.n_ffn,
        "max_position_embeddings": cfg.block_size,
        "hidden_act": GATED_ACT[cfg.activation],
        "rms_norm_eps": cfg.norm_eps,
        "rope_theta": cfg.rope_theta,
        "rope_parameters": rope,  # from transformers 5 on
        "attention_dropout": 0.0,
    }


def own_config(hf: dict) -> ModelConfig:
    """Our configuration of a config.json of one of READ.

    UserError where model.py computes nothing like it, KeyError where a field is missing.
    """
    kind = hf.get("model_type")
    if kind not in READ:
        problem = f"model_type {kind!r} is not one of {', '.join(READ)}"
        if isinstance(kind, str) and kind in DIFFERS:
            problem += f": {DIFFERS[kind]}, which model.py does not compute"
        raise UserError(problem)
    fields, problems = _gpt2_fields(hf) if kind == "gpt2" else _llama_fields(hf, kind)
    if fields["activation"] is None:
        problems.append(f"activation {hf.get('activation_function') or hf.get('hidden_act')} is unknown")
    if problems:
        raise UserError(f"model.py does not compute this {kind} model: {'; '.join(problems)}")
    return ModelConfig(vocab_size=hf["vocab_size"], norm_gain=True, init="normal", **fields)


def _gpt2_fields(hf: dict) -> tuple[dict, list[str]]:
    """Fields of ModelConfig, and what model.py does not compute."""
    problems = []
    for name in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        if hf.get(name):
            problems.append(f"{name} is set")
    if not hf.get("scale_attn_weights", True):
        problems.append("scale_attn_weights is off")
    known = {theirs: ours for ours, theirs in GPT2_ACT.items()} | {"gelu_pytorch_tanh": "gelu_tanh"}
    fields = dict(
        n_layer=hf["n_layer"], n_head=hf["n_head"], n_embd=hf["n_embd"], block_size=hf["n_positions"],
        n_ffn=hf.get("n_inner") or 4 * hf["n_embd"], norm="layernorm", norm_eps=hf.get("layer_norm_epsilon", 1e-5),
        activation=known.get(hf.get("activation_function", "gelu_new")), position="learned", bias=True,
        qk_norm=False, tied=hf.get("tie_word_embeddings", True),
    )  # fmt: skip
    return fields, problems


def _llama_fields(hf: dict, kind: str) -> tuple[dict, list[str]]:
    """Fields of ModelConfig, and what model.py does not compute."""
    problems, heads, width = [], hf["num_attention_heads"], hf["hidden_size"]
    rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    scaling = rope.get("rope_type", rope.get("type", "default"))
    scaled = None
    if scaling == "llama3":
        scaled = tuple(float(rope[name]) for name in SCALING)
    elif scaling != "default":
        problems.append(f"rotary positions are scaled ({scaling})")
    head_size = hf.get("head_dim") or width // heads
    if head_size * heads != width:
        problems.append(f"{heads} heads of {head_size} are not the width {width}")
    context, window = hf["max_position_embeddings"], hf.get("sliding_window")
    if kind == "mistral" and window and window < context:
        problems.append(
            f"attention sees {window:,} of {context:,} tokens (for texts of up to {window:,} it is exact: set "
            f"max_position_embeddings to {window} in config.json)"
        )
    if hf.get("use_sliding_window") or hf.get("pretraining_tp", 1) != 1:
        problems.append("use_sliding_window or pretraining_tp is set")
    known = {theirs: ours for ours, theirs in GATED_ACT.items()}
    fields = dict(
        n_layer=hf["num_hidden_layers"], n_head=heads, n_embd=width, block_size=context,
        n_kv_head=hf.get("num_key_value_heads") or heads, n_ffn=hf["intermediate_size"], norm="rmsnorm",
        norm_eps=hf.get("rms_norm_eps", 1e-6), activation=known.get(hf.get("hidden_act", "silu")), position="rope",
        rope_theta=rope.get("rope_theta", hf.get("rope_theta", 10000.0)), rope_scaling=scaled,
        bias=len(without_bias(hf)) < 3,
        qk_norm=kind == "qwen3", tied=hf.get("tie_word_embeddings", False),
    )  # fmt: skip
    return fields, problems


def without_bias(hf: dict) -> set[str]:
    """Which of their linear layers have no bias, q_proj for q, k and v. Ours are all or none: the rest are zeros."""
    found = {"self_attn.q_proj", "self_attn.o_proj", "mlp"}
    if hf["model_type"] in ("gpt2", "qwen2"):
        found -= {"self_attn.q_proj"}
    if hf["model_type"] == "gpt2" or hf.get("attention_bias"):
        found -= {"self_attn.q_proj", "self_attn.o_proj"}
    if hf["model_type"] == "gpt2" or hf.get("mlp_bias"):
        found -= {"mlp"}
    return found


def exported_config(cfg: ModelConfig, record, state: dict) -> tuple[ModelConfig, list[str]]:
    """(configuration, tensors to leave out) of a model that was exported from here and not changed since.

    Parameters
    ----------
    cfg : own_config() of its config.json.
    record : what config.json holds under RECORD.
    state : its weights under our names.

    Returns
    -------
    The recorded configuration, and the gains of one and biases of zero that the export had added; cfg and nothing where
    there is no record, or where the weights or config.json no longer agree with it.
    """
    try:
        old = ModelConfig(**record)
    except (TypeError, ValueError):
        return cfg, []
    alike = replace(old, norm_gain=cfg.norm_gain, bias=cfg.bias, init=cfg.init, ffn_mult=cfg.ffn_mult)
    if alike != cfg:
        return cfg, []
    added = []
    for name in state:
        if ("ln_" in name and not old.norm_gain) or (name.endswith("bias") and not old.bias):
            added.append(name)
    for name in added:
        gain = "ln_" in name and name.endswith("weight")
        if not bool((state[name] == int(gain)).all()):
            return cfg, []
    return old, added

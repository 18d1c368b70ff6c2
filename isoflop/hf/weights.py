"""Take a trained model to Hugging Face's transformers, or bring one of theirs here.

    python export.py --ckpt out/RUN_ID --out exported --verify
    python export.py --from_hf gpt2 --out out/gpt2            # a folder with config.json and safetensors
    python sample.py --ckpt out/gpt2 --prompt "The meaning of life is"

What is written loads with AutoModelForCausalLM and AutoTokenizer and no code of ours. Three stock architectures are
known, and a model that none of them computes exactly is refused:

    GPT2LMHeadModel     learned positions, LayerNorm; presets gpt2* and nanogpt
    LlamaForCausalLM    rotary positions, RMSNorm, SwiGLU; presets llama*
    Qwen3ForCausalLM    the same with normalised queries and keys: the default architecture

Stock models always have gains, and GPT-2 biases: where ours has none they are ones and zeros. Squared ReLU is
relu(gate) * up with one matrix in both places: so LLaMA's MLP computes it, and the file is that much larger.
"""

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from isoflop.config import ModelConfig
from isoflop.hf import tokenizer
from isoflop.train import run_dir
from model import GPT, MOST_POSITIONS

RECORD = "isoflop"  # the key of an exported config.json that holds our own configuration
RELATED = 1e-5  # largest difference of logits that --verify lets pass, over the largest logit or 1


# ----- which stock architecture -----

GPT2_ACT = {"gelu_tanh": "gelu_new", "gelu": "gelu", "relu2": "relu2"}
GATED_ACT = {"swiglu": "silu", "relu2": "relu"}
CLASSES = {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM", "qwen3": "Qwen3ForCausalLM"}


def differences(cfg: ModelConfig, kind: str) -> list[str]:
    """What keeps a stock architecture from computing this model, in words; empty where it is exact."""
    wanted = {"position": "learned", "norm": "layernorm", "qk_norm": False}
    if kind != "gpt2":
        wanted = {"position": "rope", "norm": "rmsnorm", "qk_norm": kind == "qwen3"}
    found = [f"{name} is {getattr(cfg, name)}, not {value}" for name, value in wanted.items()
             if getattr(cfg, name) != value]  # fmt: skip
    known = GPT2_ACT if kind == "gpt2" else GATED_ACT
    if cfg.activation not in known:
        found.append(f"activation is {cfg.activation}, not {' or '.join(known)}")
    if kind == "gpt2" and cfg.n_kv_head != cfg.n_head:
        found.append(f"key heads are shared ({cfg.n_kv_head} for {cfg.n_head})")
    if kind == "qwen3" and cfg.bias:
        found.append("the MLP has biases")
    if cfg.logit_softcap:
        found.append(f"logits are capped (logit_softcap {cfg.logit_softcap:g})")
    return found


def architecture(cfg: ModelConfig) -> str:
    """The stock architecture that computes exactly this model; ValueError says what the nearest lacks."""
    kind, found = min(((k, differences(cfg, k)) for k in CLASSES), key=lambda pair: len(pair[1]))
    if found:
        raise ValueError(f"no stock architecture is exact; from the nearest, {CLASSES[kind]}, it differs: "
                         + "; ".join(found))  # fmt: skip
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
    biases = {"attention_bias": cfg.bias} | ({"mlp_bias": cfg.bias} if kind == "llama" else {})
    return common | biases | {
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
        "rope_parameters": {"rope_type": "default", "rope_theta": cfg.rope_theta},  # from transformers 5 on
        "attention_dropout": 0.0,
    }  # fmt: skip


def own_config(hf: dict) -> ModelConfig:
    """Our configuration of a GPT-2, LLaMA or Qwen3 config.json; ValueError where model.py has nothing like it."""
    kind, problems = hf.get("model_type"), []
    if kind not in CLASSES:
        raise ValueError(f"model_type {kind!r} is not one of {', '.join(CLASSES)}")
    if kind == "gpt2":
        act = {v: k for k, v in GPT2_ACT.items()} | {"gelu_pytorch_tanh": "gelu_tanh"}
        problems += [f"{k} is set" for k in ("scale_attn_by_inverse_layer_idx", "add_cross_attention") if hf.get(k)]
        problems += [] if hf.get("scale_attn_weights", True) else ["scale_attn_weights is off"]
        fields = dict(
            n_layer=hf["n_layer"], n_head=hf["n_head"], n_embd=hf["n_embd"], block_size=hf["n_positions"],
            n_ffn=hf.get("n_inner") or 4 * hf["n_embd"], norm="layernorm", norm_eps=hf.get("layer_norm_epsilon", 1e-5),
            activation=act.get(hf.get("activation_function", "gelu_new")), position="learned", bias=True,
            qk_norm=False, tied=hf.get("tie_word_embeddings", True),
        )  # fmt: skip
    else:
        act = {v: k for k, v in GATED_ACT.items()}
        heads, width = hf["num_attention_heads"], hf["hidden_size"]
        rope = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
        if (turn := rope.get("rope_type", rope.get("type", "default"))) != "default":
            problems.append(f"rotary positions are scaled ({turn})")
        if (size := hf.get("head_dim") or width // heads) * heads != width:
            problems.append(f"{heads} heads of {size} are not the width {width}")
        if bool(hf.get("attention_bias")) != bool(hf.get("mlp_bias")):
            problems.append("only attention or only the MLP has biases")
        if hf.get("use_sliding_window") or hf.get("pretraining_tp", 1) != 1:
            problems.append("use_sliding_window or pretraining_tp is set")
        fields = dict(
            n_layer=hf["num_hidden_layers"], n_head=heads, n_embd=width, block_size=hf["max_position_embeddings"],
            n_kv_head=hf.get("num_key_value_heads") or heads, n_ffn=hf["intermediate_size"], norm="rmsnorm",
            norm_eps=hf.get("rms_norm_eps", 1e-6), activation=act.get(hf.get("hidden_act", "silu")), position="rope",
            rope_theta=rope.get("rope_theta", hf.get("rope_theta", 10000.0)), bias=bool(hf.get("attention_bias")),
            qk_norm=kind == "qwen3", tied=hf.get("tie_word_embeddings", False),
        )  # fmt: skip
    if fields["activation"] is None:
        problems.append(f"activation {hf.get('activation_function') or hf.get('hidden_act')} is unknown")
    if problems:
        raise ValueError(f"model.py does not compute this {kind} model: {'; '.join(problems)}")
    return ModelConfig(vocab_size=hf["vocab_size"], norm_gain=True, init="normal", **fields)


def recorded(cfg: ModelConfig, record, state: dict) -> ModelConfig:
    """The configuration that was exported, where the record still fits: gains are ones and biases zeros as it says.

    state loses the tensors that this configuration has not.
    """
    try:
        old = ModelConfig(**record)
    except (TypeError, ValueError):
        return cfg
    gains = [k for k in state if "ln_" in k and k.endswith("weight")]
    biases = [k for k in state if k.endswith("bias")]
    plain = [] if old.norm_gain else [k for k in state if "ln_" in k]
    plain += [] if old.bias else biases
    alike = replace(old, norm_gain=cfg.norm_gain, bias=cfg.bias, init=cfg.init, ffn_mult=cfg.ffn_mult)
    trivial = all(bool((state[k] == (1 if k in gains else 0)).all()) for k in plain)
    if alike != cfg or not trivial:
        return cfg
    for k in set(plain):
        del state[k]
    return old


# ----- weights -----


def names(cfg: ModelConfig, kind: str) -> dict[str, tuple[str, ...]]:
    """Our name of each tensor, with all gains and biases, and theirs: several where ours is theirs stacked."""
    ends = ("weight", "bias") if kind == "gpt2" else ("weight",)
    linear = ("weight", "bias") if kind == "gpt2" or cfg.bias else ("weight",)
    if kind == "gpt2":
        table = {"wte.weight": ("transformer.wte.weight",), "wpe.weight": ("transformer.wpe.weight",)}
        top, last = "transformer.h", "transformer.ln_f"
        norms = {"ln_1": "ln_1", "ln_2": "ln_2"}
        parts = {k: (k,) for k in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}
    else:
        table = {"wte.weight": ("model.embed_tokens.weight",)}
        top, last = "model.layers", "model.norm"
        norms = {"ln_1": "input_layernorm", "ln_2": "post_attention_layernorm"}
        parts = {
            "attn.c_attn": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            "attn.c_proj": ("self_attn.o_proj",),
            "mlp.c_fc": ("mlp.gate_proj", "mlp.up_proj"),
            "mlp.c_proj": ("mlp.down_proj",),
        }
    for i in range(cfg.n_layer):
        table |= {f"h.{i}.{ours}.{end}": (f"{top}.{i}.{theirs}.{end}",) for ours, theirs in norms.items()
                  for end in ends}  # fmt: skip
        table |= {f"h.{i}.{ours}.{end}": tuple(f"{top}.{i}.{part}.{end}" for part in theirs)
                  for ours, theirs in parts.items() for end in linear}  # fmt: skip
    table |= {f"ln_f.{end}": (f"{last}.{end}",) for end in ends}
    return table if cfg.tied else table | {"lm_head.weight": ("lm_head.weight",)}


def turned(kind: str, name: str) -> bool:
    """GPT-2's linear layers hold their matrices the other way round."""
    return kind == "gpt2" and name.endswith("weight") and ("attn" in name or "mlp" in name)


def rows_of(cfg: ModelConfig, name: str) -> list[int]:
    """The rows of each of their tensors in one of ours."""
    if "c_attn" in name:
        return [n * cfg.head_size for n in (cfg.n_head, cfg.n_kv_head, cfg.n_kv_head)]
    return [cfg.n_ffn, cfg.n_ffn]  # c_fc of a gated MLP: the gate above


def to_hf(cfg: ModelConfig, state: dict) -> dict:
    """Our weights under transformers' names and in its shapes, each in memory of its own."""
    kind, out = architecture(cfg), {}
    width = {"attn.c_attn.bias": (cfg.n_head + 2 * cfg.n_kv_head) * cfg.head_size, "mlp.c_fc.bias": cfg.n_ffn}
    for ours, theirs in names(cfg, kind).items():
        w = state.get(ours)
        if w is None:  # a gain or a bias that this model goes without
            size = width.get(ours.split(".", 2)[-1], cfg.n_embd)
            w = torch.ones(size) if "ln_" in ours and ours.endswith("weight") else torch.zeros(size)
        if len(theirs) == 1:
            pieces = [w.T if turned(kind, ours) else w]
        elif "c_fc" in ours and cfg.activation == "relu2":
            pieces = [w, w]
        else:
            pieces = w.split(rows_of(cfg, ours))
        out |= {name: piece.clone(memory_format=torch.contiguous_format)
                for name, piece in zip(theirs, pieces, strict=True)}  # fmt: skip
    if kind == "qwen3":
        for i in range(cfg.n_layer):
            out |= {f"model.layers.{i}.self_attn.{x}_norm.weight": torch.ones(cfg.head_size) for x in "qk"}
    return out


def own_state(cfg: ModelConfig, kind: str, held: dict) -> dict:
    """Our names and shapes for transformers' weights, which leave `held` as they are taken."""
    out = {}
    for ours, theirs in names(cfg, kind).items():
        missing = [name for name in theirs if name not in held]
        if missing:
            raise ValueError(f"the weights lack {missing[0]}")
        pieces = [held.pop(name).float() for name in theirs]
        if "c_fc" in ours and cfg.activation == "relu2" and kind != "gpt2":
            if not torch.equal(*pieces):
                raise ValueError(f"{theirs[0]} and {theirs[1]} differ: relu(gate) * up is no squared ReLU then")
            pieces = pieces[:1]
        w = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        out[ours] = (w.T if turned(kind, ours) else w).contiguous()
    if kind == "qwen3":
        for i in range(cfg.n_layer):
            for name in (f"model.layers.{i}.self_attn.{x}_norm.weight" for x in "qk"):
                if name not in held or not (held.pop(name) == 1).all():
                    raise ValueError(f"{name} is not all ones: model.py normalises queries and keys without a gain")
    if cfg.tied:
        held.pop("lm_head.weight", None)
    rest = [k for k in held if not k.endswith((".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq"))]  # buffers
    if rest:
        raise ValueError(f"the weights hold {rest[0]}, for which model.py has no place")
    return out


# ----- to Hugging Face -----


def write_hf(found: run_dir.Trained, out: Path) -> str:
    """Write the folder; returns what it is, in a line. ValueError where no stock architecture is exact."""
    model = found.model
    cfg, spec = model.config, None
    kind = architecture(cfg)
    if found.tokens is not None:
        found.tokenizer()  # fits the model
        spec = tokenizer.read_spec(found.tokens / "tokenizer.json")
    eot = None if spec is None else tokenizer.eot_of(spec)
    out.mkdir(parents=True, exist_ok=True)
    state = to_hf(cfg, model.state_dict())
    save_file(state, out / "model.safetensors", {"format": "pt"})
    generation = {"do_sample": True, "temperature": 0.8, "top_k": 50, "bos_token_id": eot, "eos_token_id": eot}
    write_json(out / "generation_config.json", generation)
    if spec is not None:
        tokenizer.write(spec, out, cfg.block_size)
    if found.record:
        write_json(out / "run.json", found.record)
    count, ours = sum(w.numel() for w in state.values()), sum(w.numel() for w in model.parameters())
    (out / "README.md").write_text(card(cfg, kind, count, ours, found), "utf-8")
    write_json(out / "config.json", hf_config(cfg, eot))  # last: where it is, the rest is whole
    note = "" if spec is not None else "; no tokenizer is known: name one with --data_dir"
    return f"{out}: {CLASSES[kind]}, {count:,} weights{'' if count == ours else f' for our {ours:,}'}{note}"


def card(cfg: ModelConfig, kind: str, count: int, ours: int, found: run_dir.Trained) -> str:
    """The model card: what it is, how to load it, and what the run recorded."""
    record = found.record
    lines = [
        f"# {record.get('run_id', found.folder.name)}",
        "",
        f"A language model of {cfg.n_layer} layers of width {cfg.n_embd}, with a context of {cfg.block_size:,} tokens "
        f"and a vocabulary of {cfg.vocab_size:,}, trained with isoflop and exported as `{CLASSES[kind]}`. It was "
        "trained to measure what a budget buys: expect text like its training text, and nothing more.",
        "",
        "```python",
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        'model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")',
        "```",
        "",
    ]
    if count != ours:
        lines += [
            f"The file holds {count:,} weights, the trained model has {ours:,}: gains of one, biases of zero, and for "
            "squared ReLU the MLP's first matrix a second time stand in for what the stock architecture always has. "
            "The logits are the same.",
            "",
        ]
    if record:
        lines += ["## The run", "", "| | |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in record.items() if value is not None]
    return "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n" + "\n".join(lines) + "\n"


def need(name: str):
    """An optional package; ValueError names what to install."""
    try:
        return __import__(name)
    except ImportError as error:
        raise ValueError(f"{error.name or name} is not installed: pip install transformers tokenizers") from None


# ----- from Hugging Face -----


def read_weights(folder: Path) -> dict:
    """All tensors of a folder's safetensors, in one file or several; anything pickled is refused."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.exists():
        files = {whole.name}
    elif index.exists():
        listed = run_dir.read_json(index)
        listed = listed.get("weight_map") if isinstance(listed, dict) else None
        files = set(listed.values()) if isinstance(listed, dict) else {None}
        if odd := [f for f in files if not isinstance(f, str) or Path(f).name != f or not f.endswith(".safetensors")]:
            raise ValueError(f"{index.name} names {odd[0]!r}: only .safetensors files in the folder itself are read")
    elif pickled := sorted(p.name for p in folder.glob("*.bin")):
        raise ValueError(
            f"it has its weights in {pickled[0]}, a pickle, which is never opened: save them as safetensors"
        )
    else:
        raise ValueError("it has no model.safetensors")
    held = {}
    for name in sorted(files):
        with safe_open(folder / name, "pt") as f:
            held |= {key: f.get_tensor(key) for key in f.keys()}
    return held


def read_hf(folder: Path) -> GPT:
    """A GPT-2, LLaMA or Qwen3 folder of Hugging Face's as our model; ValueError, in one line, where it is not one."""
    try:
        hf = run_dir.read_json(folder / "config.json")
        cfg = own_config(hf)
        if cfg.block_size > MOST_POSITIONS:
            raise ValueError(f"config.json asks for a context of {cfg.block_size:,}")
        held, prefix = read_weights(folder), "transformer." if hf["model_type"] == "gpt2" else "model."
        if not any(k.startswith(prefix) for k in held):  # GPT-2's first files, of the model without its head
            held = {k if k == "lm_head.weight" else prefix + k: w for k, w in held.items()}
        if (layers := sum(".ln_1.weight" in k or ".input_layernorm." in k for k in held)) != cfg.n_layer:
            raise ValueError(f"config.json says {cfg.n_layer:,} layers, the weights have {layers}")
        state = own_state(cfg, hf["model_type"], held)
        cfg = recorded(cfg, hf.get(RECORD), state)
        with torch.device("meta"):
            model = GPT(cfg)
        if cfg.tied:
            state["lm_head.weight"] = state["wte.weight"]
        expected = {k: tuple(w.shape) for k, w in model.state_dict().items()}
        for name in sorted(expected.keys() | state.keys()):
            shape = tuple(state[name].shape) if name in state else "missing"
            if shape != expected.get(name):
                raise ValueError(f"{name} is {shape}, not {expected.get(name)} as config.json says")
        model = GPT(cfg)
        model.load_state_dict(state)
        return model
    except KeyError as error:
        raise ValueError(f"--from_hf {folder}: config.json lacks {error}") from None
    except (OSError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError, SafetensorError) as error:
        raise ValueError(f"--from_hf {folder}: {str(error).splitlines()[0]}") from None


# ----- command line -----


def write_json(path: Path, value, indent: int | None = 2):
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(value, indent=indent), "utf-8")
    os.replace(part, path)

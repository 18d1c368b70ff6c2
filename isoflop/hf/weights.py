"""Our weights as a folder of Hugging Face's transformers, and back."""

from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from isoflop.config import ModelConfig
from isoflop.files import read_json, regular, staged, write_json, write_text
from isoflop.hf import tokenizer
from isoflop.hf.config import CLASSES, RECORD, architecture, exported_config, hf_config, own_config, without_bias
from isoflop.options import UserError
from isoflop.tensors import write_tensors
from isoflop.train.run_dir import TrainedModel

BUFFERS = (".attn.bias", ".attn.masked_bias", "rotary_emb.inv_freq")  # tensors of theirs that are no weights

# ----- names and shapes -----


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
        for ours, theirs in norms.items():
            for end in ends:
                table[f"h.{i}.{ours}.{end}"] = (f"{top}.{i}.{theirs}.{end}",)
        for ours, theirs in parts.items():
            for end in linear:
                table[f"h.{i}.{ours}.{end}"] = tuple(f"{top}.{i}.{part}.{end}" for part in theirs)
    for end in ends:
        table[f"ln_f.{end}"] = (f"{last}.{end}",)
    if not cfg.tied:
        table["lm_head.weight"] = ("lm_head.weight",)
    return table


def is_transposed(kind: str, name: str) -> bool:
    """GPT-2's linear layers hold their matrices transposed."""
    return kind == "gpt2" and name.endswith("weight") and ("attn" in name or "mlp" in name)


def rows_of(cfg: ModelConfig, name: str) -> list[int]:
    """The rows of each of their tensors in one of ours."""
    if "c_attn" in name:
        return [n * cfg.head_size for n in (cfg.n_head, cfg.n_kv_head, cfg.n_kv_head)]
    return [cfg.n_ffn, cfg.n_ffn]  # c_fc of a gated MLP: the gate above


def to_hf(cfg: ModelConfig, state: dict) -> dict:
    """Our weights under transformers' names and in its shapes, each in memory of its own."""
    kind, out = architecture(cfg), {}
    for ours, theirs in names(cfg, kind).items():
        weight = state.get(ours)
        if weight is None:
            weight = neutral(cfg, ours)
        if len(theirs) == 1:
            pieces = [weight.T if is_transposed(kind, ours) else weight]
        elif "c_fc" in ours and cfg.activation == "relu2":
            pieces = [weight, weight]
        else:
            pieces = weight.split(rows_of(cfg, ours))
        for name, piece in zip(theirs, pieces, strict=True):
            out[name] = piece.clone(memory_format=torch.contiguous_format)
    if kind == "qwen3":
        for name in qk_gains(cfg):
            out[name] = torch.ones(cfg.head_size)
    return out


def neutral(cfg: ModelConfig, name: str) -> torch.Tensor:
    """A gain of ones or a bias of zeros that this model goes without."""
    if "ln_" in name and name.endswith("weight"):
        return torch.ones(cfg.n_embd)
    size = cfg.n_embd
    if name.endswith("attn.c_attn.bias"):
        size = (cfg.n_head + 2 * cfg.n_kv_head) * cfg.head_size
    elif name.endswith("mlp.c_fc.bias"):
        size = 2 * cfg.n_ffn if cfg.activation == "swiglu" else cfg.n_ffn
    return torch.zeros(size)


def qk_gains(cfg: ModelConfig) -> list[str]:
    """Qwen3's gains of queries and keys, which model.py has not."""
    return [f"model.layers.{i}.self_attn.{x}_norm.weight" for i in range(cfg.n_layer) for x in "qk"]


def own_state(cfg: ModelConfig, kind: str, held: dict, no_bias=frozenset()) -> dict:
    """Our names and shapes for transformers' weights, which are taken out of `held`. no_bias : see without_bias()."""
    out = {}
    for ours, theirs in names(cfg, kind).items():
        if ours.endswith("bias") and any(part in theirs[0] for part in no_bias):
            out[ours] = neutral(cfg, ours)
            continue
        missing = [name for name in theirs if name not in held]
        if missing:
            raise UserError(f"the weights lack {missing[0]}")
        pieces = [held.pop(name).float() for name in theirs]
        if "c_fc" in ours and cfg.activation == "relu2" and kind != "gpt2":
            if not torch.equal(*pieces):
                raise UserError(f"{theirs[0]} and {theirs[1]} differ: relu(gate) * up is no squared ReLU then")
            pieces = pieces[:1]
        weight = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if is_transposed(kind, ours):
            weight = weight.T
        out[ours] = weight.contiguous()
    if kind == "qwen3":
        for name in qk_gains(cfg):
            if name not in held or not (held.pop(name) == 1).all():
                raise UserError(f"{name} is not all ones: model.py normalizes queries and keys without a gain")
    if cfg.tied:
        held.pop("lm_head.weight", None)
    rest = [name for name in held if not name.endswith(BUFFERS)]
    if rest:
        raise UserError(f"the weights hold {rest[0]}, for which model.py has no place")
    return out


# ----- to Hugging Face -----


def write_hf(found: TrainedModel, out: Path) -> str:
    """Write the folder; returns what it is, in a line. UserError, before anything is written, if no architecture fits.

    All files are written, or none; config.json comes last: a folder that has it is complete.
    """
    cfg, spec, eot = found.model.config, None, None
    kind = architecture(cfg)
    if found.tokenizer_dir is not None:
        found.tokenizer()  # checks that it fits the model
        spec = tokenizer.read_spec(found.tokenizer_dir / "tokenizer.json")
        eot = tokenizer.eot_of(spec)
    state = to_hf(cfg, found.model.state_dict())
    n_exported = sum(weight.numel() for weight in state.values())
    n_trained = sum(weight.numel() for weight in found.model.parameters())
    generation = {"do_sample": True, "temperature": 0.8, "top_k": 50, "bos_token_id": eot, "eos_token_id": eot}
    with staged(out) as folder:
        write_tensors(folder / "model.safetensors", state, {"format": "pt"})
        write_json(folder / "generation_config.json", generation)
        if spec is not None:
            tokenizer.write(spec, folder, cfg.block_size)
        if found.record:
            write_json(folder / "run.json", found.record)
        write_text(folder / "README.md", model_card(cfg, kind, n_exported, n_trained, found))
        write_json(folder / "config.json", hf_config(cfg, eot))
    line = f"{out}: {CLASSES[kind]}, {n_exported:,} weights"
    if n_exported != n_trained:
        line += f" for our {n_trained:,}"
    if spec is None:
        line += "; unknown tokenizer: name one with --tokenizer_dir"
    return line


def model_card(cfg: ModelConfig, kind: str, n_exported: int, n_trained: int, found: TrainedModel) -> str:
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
    if n_exported != n_trained:
        lines += [
            f"The file holds {n_exported:,} weights, the trained model has {n_trained:,}: gains of one, biases of zero "
            "and for squared ReLU the MLP's first matrix a second time stand in for what the stock architecture always "
            "has. The logits are the same.",
            "",
        ]
    if record:
        lines += ["## The run", "", "| | |", "|---|---|"]
        lines += [f"| {key} | {value} |" for key, value in record.items() if value is not None]
    return "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n\n" + "\n".join(lines) + "\n"


# ----- from Hugging Face -----


def weight_files(folder: Path) -> set[str]:
    """Names of a folder's safetensors files; UserError where its weights are a pickle, or lie elsewhere."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        return {"model.safetensors"}
    if not index.exists():
        pickled = sorted(path.name for path in folder.glob("*.bin"))
        if pickled:
            raise UserError(f"its {pickled[0]} is a pickle, which is never opened: save it as safetensors")
        raise UserError("it has no model.safetensors")
    listed = read_json(index)
    weight_map = listed.get("weight_map") if isinstance(listed, dict) else None
    names = weight_map.values() if isinstance(weight_map, dict) else [None]
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            raise UserError(f"{index.name} names {name!r}: only .safetensors files in the folder itself are read")
    return set(names)


def read_hf(folder: Path, build: Callable):
    """A folder of Hugging Face's, of one of config.READ, as our model.

    Parameters
    ----------
    build : model.GPT.

    Raises
    ------
    UserError : in one line, what is missing, does not fit or is not computed by model.py.
    """
    try:
        return _read_hf(folder, build)
    except KeyError as error:
        raise UserError(f"--from_hf {folder}: config.json lacks {error}") from None
    except (OSError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError, SafetensorError) as error:
        raise UserError(f"--from_hf {folder}: {str(error).splitlines()[0]}") from None


def _read_hf(folder: Path, build: Callable):
    hf = read_json(folder / "config.json")
    if not isinstance(hf, dict):
        raise UserError("config.json is not an object")
    cfg = own_config(hf)
    held = {}
    for name in sorted(weight_files(folder)):
        with safe_open(regular(folder / name), "pt") as f:
            for key in f.keys():
                held[key] = f.get_tensor(key)
    prefix = "transformer." if hf["model_type"] == "gpt2" else "model."
    if not any(name.startswith(prefix) for name in held):  # GPT-2's first files, of the model without its head
        held = {name if name == "lm_head.weight" else prefix + name: weight for name, weight in held.items()}
    layers = sum(".ln_1.weight" in name or ".input_layernorm." in name for name in held)
    if layers != cfg.n_layer:
        raise UserError(f"config.json says {cfg.n_layer:,} layers, the weights have {layers}")
    state = own_state(cfg, hf["model_type"], held, without_bias(hf))
    cfg, added = exported_config(cfg, hf.get(RECORD), state)
    for name in added:
        del state[name]
    if cfg.tied:
        state["lm_head.weight"] = state["wte.weight"]
    with torch.device("meta"):
        expected = {name: tuple(weight.shape) for name, weight in build(cfg).state_dict().items()}
    for name in sorted(expected.keys() | state.keys()):
        shape = tuple(state[name].shape) if name in state else "missing"
        if shape != expected.get(name):
            raise UserError(f"{name} is {shape}, not {expected.get(name)} as config.json says")
    model = build(cfg)
    model.load_state_dict(state)
    return model

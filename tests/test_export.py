"""export.py: there and back again, and what can't come here, said in a line."""

import json
import shutil

import pytest
import torch
from helpers import EXPORTED_MODELS, exported_class, trained_folder
from safetensors.torch import load_file, save_file

import export
from isoflop.hf import weights
from isoflop.train import run_dir
from model import load_model


def same_weights(a, b):
    a, b = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("name", EXPORTED_MODELS)
def test_there_and_back_is_the_identity(name, tmp_path, toy_data, capsys):
    here = trained_folder(tmp_path / "ours", name, toy_data)
    assert export.main(["--ckpt", str(here), "--out", str(tmp_path / "hf")]) == 0
    assert export.main(["--from_hf", str(tmp_path / "hf"), "--out", str(tmp_path / "back")]) == 0
    assert same_weights(here, tmp_path / "back")
    for name_ in ("config.json", "tokenizer.json"):
        assert json.loads((here / name_).read_text()) == json.loads((tmp_path / "back" / name_).read_text())
    assert run_dir.load(tmp_path / "back", load_model).record["run_id"] == "abc123"
    card = (tmp_path / "hf" / "README.md").read_text()
    assert "| val_loss | 3.25 |" in card and "mfu" not in card
    said = capsys.readouterr().out
    assert exported_class(name) in said


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
        ("n_layer = 1000000000", "--n_layer 1000000000 must be at least 1 and at most 10000"),
        ("n_positions = 1000000000000", "--block_size 1000000000000 must be at least 1"),
        ("n_positions = 1000", "wpe.weight is (24, 32), not (1000, 32)"),
        ("n_head = 0", "n_head"),
        ("n_embd = 64", "c_attn.bias is (96,), not (192,)"),
        ("n_head = 5", "n_head"),
        ("vocab_size = null", ""),
        ('n_embd = "x"', ""),
    ],
)
def test_what_cannot_come_here_is_said_in_a_line(kind, words, tmp_path, toy_data, capsys):
    weights.write_hf(run_dir.load(trained_folder(tmp_path / "ours", "gpt2", toy_data), load_model), tmp_path / "hf")
    break_(tmp_path / "hf", kind)
    with pytest.raises(SystemExit) as end:
        export.main(["--from_hf", str(tmp_path / "hf"), "--out", str(tmp_path / "back")])
    said = capsys.readouterr().err
    assert end.value.code == 2 and words in said and said.count("\n") == 1
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize(
    "flags, words",
    [
        ([], "give one of --ckpt"),
        (["--ckpt", "@"], "--out is missing"),
        (["--ckpt", "@", "--out", "@"], "exists and is not empty"),
        (["--from_hf", "gpt2-nowhere", "--out", "x"], "hf download"),
        (["--ckpt", "@", "--tokenizer_dir", "nowhere", "--out", "x"], "--tokenizer_dir nowhere has no tokenizer.json"),
    ],
)
def test_mistakes_are_one_line(flags, words, tmp_path, toy_data, capsys):
    here = trained_folder(tmp_path / "ours", "default", toy_data)
    with pytest.raises(SystemExit) as end:
        export.main([str(here) if f == "@" else f for f in flags])
    said = capsys.readouterr().err
    assert end.value.code == 2 and words in said and said.count("\n") == 1

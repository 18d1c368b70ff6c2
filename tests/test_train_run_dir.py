"""isoflop/train/run_dir.py: what a folder must hold, and that a hostile one is refused."""

import json
import pickle
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from isoflop.config import configure
from isoflop.train import run_dir
from model import GPT, load_model, save_model

CFG = configure(n_layer=2, n_embd=16, block_size=16, vocab_size=257)


@pytest.fixture
def folder(tmp_path, toy_data):
    save_model(GPT(CFG), tmp_path / "m")
    run_dir.keep_tokenizer(toy_data, tmp_path / "m")
    return tmp_path / "m"


def test_a_run_keeps_its_tokenizer_and_a_checkpoint_finds_it(toy_data, tmp_path):
    from isoflop.train.plan import TrainConfig
    from train import train

    tc = TrainConfig(max_iters=4, data_dir=toy_data, out_dir=str(tmp_path), batch_size=2, val_tokens=256, ckpt_every=2)
    record = train(CFG, tc, quiet=True)
    found = run_dir.load(tmp_path, load_model)
    assert found.record["run_id"] == record.run_id and found.tokenizer_dir == tmp_path
    assert found.tokenizer().decode(found.tokenizer().encode_ordinary("a é")) == "a é"
    inner = run_dir.load(tmp_path / "checkpoints" / "step_00000002", load_model)
    assert inner.tokenizer_dir.samefile(tmp_path) and inner.record == found.record
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="--tokenizer_dir"):
        run_dir.load(tmp_path, load_model).tokenizer()
    assert run_dir.load(tmp_path, load_model, toy_data).tokenizer().n_vocab == 257


def test_bins_in_gpt2s_tokens_leave_gpt2s_tokenizer(tmp_path, monkeypatch):
    """nanoGPT's bins have no tokenizer.json; without the vocabulary the run has none."""
    from isoflop.data import tokenizer
    from isoflop.options import UserError

    monkeypatch.setattr(tokenizer, "gpt2_tokens", lambda: [bytes([b]) for b in range(256)])
    run_dir.keep_tokenizer(tmp_path / "bins", tmp_path, "gpt2")
    assert tokenizer.load_tokenizer(tmp_path).encode_ordinary("ab") == [97, 98]
    (tmp_path / "tokenizer.json").unlink()
    run_dir.keep_tokenizer(tmp_path / "bins", tmp_path, "unknown")

    def refuse():
        raise UserError("no network")

    monkeypatch.setattr(tokenizer, "gpt2_tokens", refuse)
    run_dir.keep_tokenizer(tmp_path / "bins", tmp_path, "gpt2")
    assert list(tmp_path.iterdir()) == []


def test_a_larger_tokenizer_is_another_models(tmp_path, toy_data):
    save_model(GPT(configure(n_layer=1, n_embd=16, vocab_size=100)), tmp_path)
    with pytest.raises(ValueError, match="257 ids.*100"):
        run_dir.load(tmp_path, load_model, toy_data).tokenizer()


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def rewrite(folder, **changes):
    """config.json with other values."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def reshape(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def hostile(folder, kind, mark):
    weights, config = folder / "model.safetensors", folder / "config.json"
    if kind == "pickle":
        weights.write_bytes(pickle.dumps(Bomb(mark)))
    elif kind == "torch zip":
        torch.save({"wte.weight": Bomb(mark)}, weights)
    elif kind == "huge header":
        weights.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    elif kind == "header beyond the file":
        head = json.dumps({"wte.weight": {"dtype": "F32", "shape": [257, 16], "data_offsets": [0, 16448]}}).encode()
        weights.write_bytes(struct.pack("<Q", len(head)) + head)
    elif kind == "offsets outside":
        head = json.dumps({"wte.weight": {"dtype": "F32", "shape": [4], "data_offsets": [-16, 0]}}).encode()
        weights.write_bytes(struct.pack("<Q", len(head)) + head + bytes(16))
    elif kind == "empty":
        weights.write_bytes(b"")
    elif kind == "wrong shape":
        reshape(folder, lambda s: s.update({"h.1.attn.c_proj.weight": torch.zeros(16, 17)}))
    elif kind == "wrong type":
        reshape(folder, lambda s: s.update({"h.1.attn.c_proj.weight": torch.zeros(16, 16, dtype=torch.int64)}))
    elif kind == "missing":
        reshape(folder, lambda s: s.pop("h.0.mlp.c_fc.weight"))
    elif kind == "foreign":
        reshape(folder, lambda s: s.update({"../../evil": torch.zeros(1)}))
    elif kind == "billions of layers":
        rewrite(folder, n_layer=10**9)
    elif kind == "endless context":
        rewrite(folder, block_size=10**12)
    elif kind == "enormous width":
        rewrite(folder, n_embd=2**40, n_head=2**34, head_size=None, n_kv_head=None, n_ffn=None)
    elif kind == "not a number":
        rewrite(folder, n_embd="16; rm")
    elif kind == "unknown field":
        rewrite(folder, __class__="os.system")
    elif kind == "a list":
        config.write_text("[1, 2]")
    elif kind == "deep":
        config.write_text("[" * 60000 + "]" * 60000)
    elif kind == "large":
        config.write_text(" " * 2**20 + "{}")
    elif kind == "a folder":
        config.unlink()
        config.mkdir()


KINDS = [
    "pickle", "torch zip", "huge header", "header beyond the file", "offsets outside", "empty", "wrong shape",
    "wrong type", "missing", "foreign", "billions of layers", "endless context", "enormous width", "not a number",
    "unknown field", "a list", "deep", "large", "a folder",
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_hostile_folder_is_refused_in_a_line(folder, tmp_path, kind):
    mark = tmp_path / "unpickled"
    hostile(folder, kind, mark)
    with pytest.raises(ValueError, match="holds no usable model") as refused:
        run_dir.load(folder, load_model)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    assert not mark.exists()


def test_the_shape_that_is_wrong_is_named(folder):
    hostile(folder, "wrong shape", None)
    with pytest.raises(ValueError, match=r"h\.1\.attn\.c_proj\.weight is F32 \(16, 17\), not \(16, 16\)"):
        run_dir.load(folder, load_model)


@pytest.mark.parametrize("text", ["[" * 60000, "\xff", "{}", '{"tokens": ["!"], "pattern": 3, "name": 1}'])
def test_a_hostile_tokenizer_is_refused(folder, text):
    (folder / "tokenizer.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError) as refused:
        run_dir.load(folder, load_model).tokenizer()
    assert "\n" not in str(refused.value)

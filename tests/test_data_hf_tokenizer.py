"""isoflop/data/hf_tokenizer.py: any tokenizer.json."""

import json
from pathlib import Path

import pytest
from helpers import data_folder, data_main, documents_of, make_texts, write_jsonl

from isoflop.data.reader import SPLITS, open_data, token_bytes
from isoflop.data.tokenizer import load_tokenizer


def trained(kind: str, folder: Path) -> Path:
    """A tokenizer.json as Hugging Face's library writes it, of GPT-2's kind, of LLaMA's, or one that normalizes."""
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
    from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

    hf = tokenizers.Tokenizer(models.BPE(byte_fallback=kind == "llama", unk_token="<unk>" if kind == "llama" else None))
    specials = ["<unk>", "<s>", "</s>"] if kind == "llama" else ["<|begin|>", "<|end_of_text|>"]
    if kind == "llama":
        hf.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
        alphabet, specials = [], specials + [f"<0x{b:02X}>" for b in range(256)]
    else:
        hf.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        hf.decoder, alphabet = decoders.ByteLevel(), pre_tokenizers.ByteLevel.alphabet()
        hf.normalizer = normalizers.NFKC() if kind == "lossy" else None
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    hf.train_from_iterator([*make_texts(300), *(["\u2581the law of scaling"] if kind == "llama" else [])], trainer)
    spec = json.loads(hf.to_str())
    if kind == "llama":  # bytes are ordinary tokens in LLaMA's file, special ones only <unk>, <s> and </s>
        spec["added_tokens"] = spec["added_tokens"][:3]
        kept = [t for t in spec["model"]["vocab"] if len(t) > 1 or t.isascii() or t == "\u2581"]
        spec["model"]["vocab"] = {token: i for i, token in enumerate(kept)}
        spec["model"]["merges"] = [m for m in spec["model"]["merges"] if {*m, "".join(m)} <= set(kept)]
    (folder / kind).mkdir()
    (folder / kind / "tokenizer.json").write_text(json.dumps(spec))
    return folder / kind / "tokenizer.json"


@pytest.mark.parametrize("kind", ["bytelevel", "llama"])
def test_a_tokenizer_json(tmp_path, kind):
    path = trained(kind, tmp_path)
    rows = [*make_texts(200), "</s> is text, <s> too, and <|end_of_text|>", " blank first", "  two"]
    folder = data_folder(tmp_path, rows, tokenizer=str(path))
    opened, lengths, found = open_data(folder), token_bytes(folder), documents_of(folder)
    assert sorted(sum(found.values(), [])) == sorted(rows) and "lossless" not in opened.meta
    assert opened.meta["tokenizer"] == kind and opened.meta["eot_token"] == (2 if kind == "llama" else 1)
    for split in SPLITS:  # LLaMA's kind spells one blank in front of each document that is not in the text
        blanks = len(found[split]) if kind == "llama" else 0
        assert lengths[getattr(opened, split)].sum() == opened.meta[split]["bytes"] + blanks
    assert data_main("--verify", folder) == 0
    path.unlink()
    assert load_tokenizer(folder).decode(load_tokenizer(folder).encode_ordinary("still here")) == "still here"


def test_a_tokenizer_that_loses_text_is_named(tmp_path, capsys):
    path = trained("lossy", tmp_path)
    source = write_jsonl(tmp_path / "a.jsonl", make_texts(200))
    assert data_main("--source", source, "--tokenizer", path, "--out_dir", tmp_path / "d") == 0
    assert "does not reproduce every text" in capsys.readouterr().out
    assert open_data(tmp_path / "d").meta["lossless"] is False


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "None"}}'])
def test_a_json_that_is_no_tokenizer(tmp_path, content, capsys):
    pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
    (tmp_path / "t.json").write_text(content)
    assert data_main("--source", "stdlib", "--tokenizer", tmp_path / "t.json", "--out_dir", tmp_path / "d") == 2
    err = capsys.readouterr().err
    assert "t.json: not a tokenizer.json" in err and err.count("\n") == 1 and not (tmp_path / "d").exists()

"""isoflop/data/characters.py: models of single characters from nanoGPT's meta.pkl, from the bins to a sample."""

import json
import pickle

import numpy as np
import pytest

import export
import sample
import train
from isoflop.data import tokenizer
from isoflop.data.characters import character_spec
from isoflop.hf import tokenizer as hf_tokenizer
from isoflop.options import UserError

TEXT = "a naïve 日本 text\n" * 400
CHARACTERS = sorted(set(TEXT))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run on nanoGPT's bins, in a folder beside them."""
    folder = tmp_path_factory.mktemp("characters")
    bins = folder / "bins"
    bins.mkdir()
    ids = np.array([CHARACTERS.index(c) for c in TEXT], dtype=np.uint16)
    ids.tofile(bins / "train.bin"), ids[:2000].tofile(bins / "val.bin")
    stoi = {c: i for i, c in enumerate(CHARACTERS)}
    whole = {"vocab_size": len(CHARACTERS), "itos": dict(enumerate(CHARACTERS)), "stoi": stoi}
    (bins / "meta.pkl").write_bytes(pickle.dumps(whole))
    flags = "--n_layer 1 --n_embd 16 --block_size 32 --max_iters 2 --batch_size 2 --sample_every 1"
    assert train.main([*flags.split(), "--data_dir", str(bins), "--out_dir", str(folder / "run")]) == 0
    return folder


@pytest.mark.slow
def test_a_run_on_characters_is_sampled_and_exported(run, capsys):
    out = str(run / "run")
    assert sample.main(["--ckpt", out, "--prompt", "a na", "--max_new_tokens", "5"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("a na") and set(said) <= set(CHARACTERS)
    assert sample.main(["--ckpt", out, "--max_new_tokens", "5"]) == 0  # an empty prompt
    with pytest.raises(SystemExit):
        sample.main(["--ckpt", out, "--prompt", "aQ"])
    assert "the character 'Q' is none of the 11 that the model knows" in capsys.readouterr().err
    assert export.main(["--ckpt", out, "--out", str(run / "hf")]) == 0
    hf = pytest.importorskip("tokenizers").Tokenizer.from_file(str(run / "hf/tokenizer.json"))
    ids = hf.encode(TEXT[:40]).ids
    assert ids == tokenizer.load_tokenizer(out).encode_ordinary(TEXT[:40]) and hf.decode(ids) == TEXT[:40]


@pytest.mark.parametrize("flag", ["--data_dir", "--tokenizer_dir"])
def test_the_way_out_of_a_run_without_its_table_works(run, capsys, flag, tmp_path):
    """A run of before, which has no tokenizer.json: the message names a flag, and the flag works."""
    old = tmp_path / "old"
    old.mkdir()
    for name in ("config.json", "model.safetensors", "run.json"):
        (old / name).write_bytes((run / "run" / name).read_bytes())
    with pytest.raises(SystemExit):
        sample.main(["--ckpt", str(old), "--prompt", "a"])
    assert "with --tokenizer_dir" in capsys.readouterr().err
    assert sample.main(["--ckpt", str(old), "--prompt", "a", "--max_new_tokens", "2", flag, str(run / "bins")]) == 0
    assert export.main(["--ckpt", str(old), "--out", str(tmp_path / "hf"), flag, str(run / "bins")]) == 0
    assert "unknown tokenizer" not in capsys.readouterr().out and (tmp_path / "hf/tokenizer.json").exists()


def test_a_table_of_another_kind_is_asked_for_as_json(tmp_path):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 3, "words": ["a"]}))
    with pytest.raises(UserError, match=r"holds no table of characters \(itos\); write it to .*tokenizer.json as"):
        tokenizer.load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"name": "characters", "characters": ["a", "\n", "ï"]}))
    found = tokenizer.load_tokenizer(tmp_path)
    assert found.encode_ordinary("ïa\n") == [2, 0, 1] and found.start_token == 1 and found.decode([2, 0]) == "ïa"
    assert tokenizer.token_bytes(tmp_path).tolist() == [1, 1, 2]
    (tmp_path / "tokenizer.json").write_text(json.dumps({"name": "characters", "characters": ["ab"]}))
    with pytest.raises(UserError, match="characters must be a list of single characters"):
        tokenizer.load_tokenizer(tmp_path)


def test_a_pickle_runs_no_code(tmp_path):
    class Trap:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",)

    whole = {"trap": Trap(), "vocab_size": 2, "itos": {0: "a", 1: "b"}}
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(whole))
    assert character_spec(tmp_path)["characters"] == ["a", "b"] and not (tmp_path / "sprung").exists()
    assert hf_tokenizer.read_spec(tmp_path / "tokenizer.json")["characters"] == ["a", "b"]


@pytest.mark.parametrize("name", ["ckpt.pt", "model.safetensors", "notes.txt"])
def test_a_file_in_place_of_a_folder(run, capsys, name, tmp_path):
    (tmp_path / name).touch()
    path = run / "run" / name if name == "model.safetensors" else tmp_path / name
    for main, more in ((sample.main, []), (export.main, ["--out", str(tmp_path / "o")])):
        with pytest.raises(SystemExit):
            main(["--ckpt", str(path), *more])
        error = capsys.readouterr().err
        assert f"--ckpt {path} is a file" in error and "no such folder" not in error
    if name == "model.safetensors":
        assert sample.main(["--ckpt", error.split("--ckpt ")[-1].strip(), "--max_new_tokens", "1"]) == 0

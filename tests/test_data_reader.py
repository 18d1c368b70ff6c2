"""isoflop/data/reader.py: our folders, those of other programs, and shards read as one sequence."""

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from helpers import data_folder, data_main, failing_drive, make_texts

from isoflop.data import reader
from isoflop.data.loader import Loader
from isoflop.data.reader import open_data, token_bytes
from isoflop.options import UserError

# ----- our own -----


def test_missing_folder_names_the_command(tmp_path):
    with pytest.raises(UserError, match="nowhere: .*`python data.py` makes.*--source stdlib` makes data/stdlib_bpe512"):
        open_data(tmp_path / "nowhere")


HARM = "cut, longer, other split, other tokenizer, version, garbage, gone, meta, no meta, no count, list".split(", ")


@pytest.mark.parametrize("harm", HARM)
def test_damaged_folder_is_refused_with_the_command_that_makes_it_again(tmp_path, harm):
    small = data_folder(tmp_path, make_texts())
    raw, meta = (small / "train.bin").read_bytes(), json.loads((small / "meta.json").read_text())
    if harm in ("cut", "longer"):
        (small / "train.bin").write_bytes(raw[:-2] if harm == "cut" else raw + b"\0\0")
    elif harm == "other split":
        (small / "train.bin").write_bytes((small / "val.bin").read_bytes())
    elif harm == "other tokenizer":
        (small / "tokenizer.json").write_text((small / "tokenizer.json").read_text().replace("AA==", "AQ=="))
    elif harm == "version":
        (small / "meta.json").write_text(json.dumps(meta | {"version": 99}))
    elif harm == "garbage":
        (small / "train.bin").write_bytes(os.urandom(len(raw)))
    elif harm == "gone":
        (small / "val.bin").unlink()
    elif harm == "meta":
        (small / "meta.json").write_text(json.dumps(meta)[:100])
    elif harm == "no meta":
        (small / "meta.json").unlink()
    elif harm == "no count":
        del meta["train"]["tokens"]
        (small / "meta.json").write_text(json.dumps(meta))
    elif harm == "list":
        (small / "meta.json").write_text("[]")
    with pytest.raises(UserError, match="not a complete data folder") as refused:
        open_data(small)
    message = str(refused.value)
    assert message.count("\n") == 0 and f"--out_dir {small} --overwrite" in message
    if "meta" not in harm and harm != "list":
        command = message.split("`")[1].split()
        assert data_main(*command[2:]) == 0  # what the message says works
        assert open_data(small).train[:].tobytes() == raw[reader.HEADER_BYTES :]


def test_a_folder_that_can_not_be_read_is_not_to_be_made_again(tmp_path, capsys):
    small = data_folder(tmp_path, make_texts())
    for name in ("meta.json", "tokenizer.json"):
        with failing_drive(name):
            assert data_main("--info", small) == 2
        err = capsys.readouterr().err
        assert f"{small}/{name}: Input/output error; the disk" in err and "overwrite" not in err


def test_shards_read_as_one(tmp_path):
    a = open_data(data_folder(tmp_path, make_texts(600)))
    b = open_data(data_folder(tmp_path, make_texts(600), shard_tokens=20_000, out_dir=str(tmp_path / "many")))
    assert len(b.meta["train"]["shards"]) > 5 and a.meta["corpus_sha256"] == b.meta["corpus_sha256"]
    np.testing.assert_array_equal(np.asarray(a.train), np.asarray(b.train))
    for x, y in zip(Loader(a.train, 128).batch(5, 99), Loader(b.train, 128).batch(5, 99), strict=True):
        np.testing.assert_array_equal(x, y)
    shard = Path(b.folder, b.meta["train"]["shards"][1]["file"])
    shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(UserError, match="is not a complete data folder .*train_000001.bin has"):
        open_data(b.folder)


# ----- other people's -----


def nanogpt(folder: Path, top: int = 4096, n: int = 5000, **meta) -> Path:
    """What nanoGPT's prepare.py leaves; no meta.json unless something is to be in it."""
    rng = np.random.default_rng(0)
    for split, count in (("train", n), ("val", n // 5)):
        rng.integers(0, top, count, dtype=np.uint16).tofile(folder / f"{split}.bin")
    if meta:
        (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def headered(path: Path, tokens: np.ndarray, magic: int = 20240520, version: int = 1) -> None:
    head = np.zeros(256, dtype="<i4")
    head[:3] = magic, version, len(tokens)
    path.write_bytes(head.tobytes() + tokens.tobytes())


def test_nanogpt_with_meta_json(tmp_path):
    opened = open_data(nanogpt(tmp_path, vocab_size=4096, dtype="uint16"))
    assert opened.meta["vocab_size"] == 4096 and token_bytes(tmp_path) is None
    np.testing.assert_array_equal(opened.train, np.fromfile(tmp_path / "train.bin", np.uint16))
    assert isinstance(opened.train, np.memmap) and not opened.train.flags.writeable


def test_nanogpt_without_meta_is_gpt2(tmp_path):
    meta = open_data(nanogpt(tmp_path, 50257)).meta
    assert (meta["vocab_size"], meta["eot_token"], meta["tokenizer"]) == (50257, 50256, "gpt2")
    lengths = token_bytes(tmp_path)
    if lengths is not None:  # GPT-2's vocabulary is at hand
        assert lengths.shape == (50257,) and lengths[50256] == 0 and lengths[:256].tolist() == [1] * 256


def test_characters_from_meta_pkl_which_is_not_loaded(tmp_path):
    text = "a naïve 日本 text\n" * 400
    chars = sorted(set(text))
    stoi = {c: i for i, c in enumerate(chars)}
    ids = np.array([stoi[c] for c in text], dtype=np.uint16)
    ids.tofile(tmp_path / "train.bin"), ids[:500].tofile(tmp_path / "val.bin")

    class Trap:
        def __reduce__(self):
            return exec, (f"open({str(tmp_path / 'sprung')!r}, 'w')",)

    whole = {"vocab_size": len(chars), "itos": dict(enumerate(chars)), "stoi": stoi, "trap": Trap()}
    for protocol in range(6):
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps(whole, protocol))
        opened = open_data(tmp_path)
        assert opened.meta["vocab_size"] == len(chars) and not (tmp_path / "sprung").exists()
        assert token_bytes(tmp_path)[opened.train].sum() == len(text.encode())


def test_a_pickle_that_says_nothing(tmp_path):
    nanogpt(tmp_path)
    for raw in (b"", b"not a pickle", pickle.dumps({"a": 1}), pickle.dumps({"vocab_size": 4096})[:-9]):
        (tmp_path / "meta.pkl").write_bytes(raw)
        with pytest.raises(UserError, match="names no vocab_size: put .* in .*meta.json"):
            open_data(tmp_path)


@pytest.mark.parametrize("magic, version, dtype", [(20240520, 1, np.uint16), (20240801, 7, np.uint32)])
def test_headered_shards_are_one_sequence(tmp_path, magic, version, dtype):
    tokens = np.random.default_rng(0).integers(0, 50257, 3000).astype(dtype)
    for i, part in enumerate(np.split(tokens, [700, 1900])):
        headered(tmp_path / f"fineweb_train_{i:06d}.bin", part, magic, version)
    headered(tmp_path / "fineweb_val_000000.bin", tokens[:300], magic, version)
    opened = open_data(tmp_path)
    assert len(opened.train) == 3000 and opened.train.nbytes == tokens.nbytes and opened.meta["vocab_size"] == 50257
    np.testing.assert_array_equal(np.asarray(opened.train), tokens)
    for cut in (slice(0, 10), slice(690, 1910), slice(650, 710), slice(-5, None), slice(5, 5), slice(None, None, 7)):
        np.testing.assert_array_equal(opened.train[cut], tokens[cut])
    at = np.arange(4)[:, None] * 699 + np.arange(17)
    np.testing.assert_array_equal(opened.train[at], tokens[at])
    assert opened.train[-1] == tokens[-1] and opened.train[1900] == tokens[1900]
    with pytest.raises(IndexError):
        opened.train[np.array([3000])]
    for first in (0, 100):
        for a, b in zip(Loader(opened.train, 64).batch(first, 9), Loader(tokens, 64).batch(first, 9), strict=True):
            np.testing.assert_array_equal(a, b)


def test_identity_follows_the_tokens(tmp_path):
    one = open_data(nanogpt(tmp_path, vocab_size=4096)).meta
    again = open_data(tmp_path).meta
    (tmp_path / "meta.json").write_text(json.dumps({"vocab_size": 5000}))
    wider = open_data(tmp_path).meta
    raw = bytearray((tmp_path / "val.bin").read_bytes())
    raw[0] ^= 1
    (tmp_path / "val.bin").write_bytes(raw)
    other = open_data(tmp_path).meta
    assert one == again and one["corpus_sha256"] == wider["corpus_sha256"] != other["corpus_sha256"]
    assert one["tokenizer_sha256"] != wider["tokenizer_sha256"]


def test_long_files_are_sampled(tmp_path, monkeypatch):
    nanogpt(tmp_path, n=100_000)
    path, size = str(tmp_path / "train.bin"), 200_000
    whole = reader.survey(path, size, 1, 0, "uint16")
    monkeypatch.setattr(reader, "WHOLE_BYTES", 1000), monkeypatch.setattr(reader, "SAMPLE_BYTES", 64)
    assert reader.survey(path, size, 2, 0, "uint16")[0] != whole[0]


WRONG = {
    "beyond gpt-2": ("holds token id 60,000, beyond GPT-2's 50,257", "meta.json"),
    "beyond meta": ("holds token id 60,000", "vocab_size 100 "),
    "too wide": ("vocab_size 100,000 does not fit its uint16", "meta.json"),
    "odd": ("not a whole number of uint16", "cut short"),
    "empty": ("has 0 bytes", "cut short"),
    "no val": ("no val.bin", "*val*.bin"),
    "cut header file": ("has 2,022 bytes where its header's 500 tokens take 2,024", "cut short"),
    "wrong magic": ("magic 20240521 and version 1", "20240520 version 1"),
    "dtype": ("dtype 'float16'", "uint16 or uint32"),
    "vocab": ("vocab_size 'many'", "whole number"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_mistakes_in_foreign_folders(tmp_path, capsys, wrong):
    nanogpt(tmp_path, 100)
    tokens = np.fromfile(tmp_path / "train.bin", np.uint16)
    meta = {"beyond meta": {"vocab_size": 100}, "too wide": {"vocab_size": 100_000}, "dtype": {"dtype": "float16"},
            "vocab": {"vocab_size": "many"}}.get(wrong)  # fmt: skip
    if meta:
        (tmp_path / "meta.json").write_text(json.dumps(meta))
    if wrong in ("beyond gpt-2", "beyond meta"):
        tokens[-1] = 60_000
        tokens.tofile(tmp_path / "train.bin")
    elif wrong in ("odd", "empty"):
        (tmp_path / "train.bin").write_bytes(b"\1\0\2"[: 3 * (wrong == "odd")])
    elif wrong == "no val":
        (tmp_path / "val.bin").unlink()
    elif wrong == "cut header file":
        headered(tmp_path / "train.bin", tokens[:500])
        (tmp_path / "train.bin").write_bytes((tmp_path / "train.bin").read_bytes()[:-2])
    elif wrong == "wrong magic":
        headered(tmp_path / "train.bin", tokens, 20240521)
    with pytest.raises(UserError) as refused:
        open_data(tmp_path)
    message = str(refused.value)
    assert all(part in message for part in WRONG[wrong]) and "\n" not in message and str(tmp_path) in message


@pytest.mark.slow
def test_trains(tmp_path, script):
    nanogpt(tmp_path, 300, n=60_000, vocab_size=300, dtype="uint16")
    flags = "--n_embd 32 --n_layer 1 --block_size 32 --max_iters 3 --val_tokens 640 --json --out_dir".split()
    done = script("train.py", "--data_dir", tmp_path, *flags, tmp_path / "run")
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout.splitlines()[-1])
    assert record["bits_per_byte"] is None and record["vocab_size"] == 300 and 5 < record["val_loss"] < 7


def test_a_folder_that_is_not_there_names_those_that_are(tmp_path):
    with pytest.raises(UserError, match=r"name one that exists \(for training, with --data_dir\)"):
        open_data(tmp_path / "a")
    (tmp_path / "empty").mkdir(), (tmp_path / "b").mkdir()
    nanogpt(tmp_path / "b")
    with pytest.raises(UserError, match=r"name one that exists \(--data_dir \S+/b\), or make one") as refused:
        open_data(tmp_path / "a")
    open_data(str(refused.value).split("--data_dir ")[1].split(")")[0])

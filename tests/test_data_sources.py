"""isoflop/data/sources.py: every kind of source (with the hub: test_data_hub.py)."""

import gzip
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, all_documents, data_folder, data_main, documents_of, make_texts, write_jsonl

from data import DataConfig, prepare
from isoflop.data import sources
from isoflop.data.reader import open_data
from isoflop.options import UserError


def test_sources_agree(tmp_path, monkeypatch):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.chdir(tmp_path)
    rows = make_texts(100)
    Path("p").mkdir(), Path("t").mkdir()
    write_jsonl(Path("rows.jsonl"), rows, "content")
    pq.write_table(pa.table({"content": rows, "id": range(len(rows))}), "p/rows.parquet")
    for i, row in enumerate(rows):
        Path(f"t/{i:03d}.txt").write_bytes(row.encode())
    made = {}
    for source in ("rows.jsonl", "p", "p/*.parquet", "t", "t/*.txt", tuple(f"t/{i:03d}.txt" for i in range(len(rows)))):
        same = {"tokenizer": "byte", "text_column": "content", "overwrite": True, "split_at_markers": False}
        folder = prepare(DataConfig(source=source, **same), quiet=True)
        made[source] = (str(folder), (folder / "train.bin").read_bytes() + (folder / "val.bin").read_bytes())
    assert len({raw for _, raw in made.values()}) == 1
    assert [name for name, _ in made.values()] == [f"data/{s}_byte" for s in ("rows", "p", "p", "t", "t", "t")]


def test_a_single_text_is_cut_at_line_ends(tmp_path):
    text = "".join(f"line {i} of a long text\n" for i in range(20000)) + "no line end"
    (tmp_path / "input.txt").write_text(text)
    found = documents_of(data_folder(tmp_path, source=str(tmp_path / "input.txt")))
    assert found["val"] and all(p in text for split in found.values() for p in split)
    assert sum(len(p) for split in found.values() for p in split) == len(text)


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("kind", [".jsonl", ".txt"])
def test_compressed_files(tmp_path, suffix, kind):
    rows = make_texts(100)
    plain = write_jsonl(tmp_path / "a.jsonl", rows) if kind == ".jsonl" else tmp_path / "a.txt"
    if kind == ".txt":
        plain.write_text("".join(f"line {i} of a text\n" for i in range(3000)))
    raw, packed = Path(plain).read_bytes(), tmp_path / f"a{kind}{suffix}"
    if suffix == ".gz":
        packed.write_bytes(gzip.compress(raw[:1000]) + gzip.compress(raw[1000:]))  # two members, as pigz and cat make
    else:
        zstandard = pytest.importorskip("zstandard")
        packed.write_bytes(zstandard.compress(raw[:1000]) + zstandard.compress(raw[1000:]))
    expected = documents_of(data_folder(tmp_path, source=str(plain), val_fraction=0.5))
    assert documents_of(data_folder(tmp_path, source=str(packed), val_fraction=0.5)) == expected
    assert len(all_documents(tmp_path / "d")) > 5
    packed.write_bytes(packed.read_bytes()[:-50])
    with pytest.raises(UserError, match=f"a{kind}{suffix} can't be uncompressed .*cut short"):
        data_folder(tmp_path, source=str(packed), out_dir=str(tmp_path / "e"))
    assert not (tmp_path / "e").exists() and not list(tmp_path.glob(".e*"))


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "zstandard", None), monkeypatch.setitem(sys.modules, "tokenizers", None)
    (tmp_path / "a.jsonl.zst").write_bytes(b""), (tmp_path / "tokenizer.json").write_text("{}")
    assert data_main("--source", tmp_path / "a.jsonl.zst", "--out_dir", tmp_path / "d") == 2
    assert "the package zstandard is missing; install it: pip install zstandard" in capsys.readouterr().err
    with pytest.raises(UserError, match="needs the tokenizers package: pip install tokenizers"):
        data_folder(tmp_path, source="stdlib", tokenizer=str(tmp_path / "tokenizer.json"))


def test_standard_input(tmp_path):
    lines = [text for text in make_texts(200) if not set(text) & set("\n\r")]
    command = [sys.executable, str(ROOT / "data.py"), "--source", "-", "--tokenizer", "byte", "--out_dir", "d"]
    command += ["--val_fraction", "0.4"]
    raw = b"\r\n".join(line.encode() for line in lines) + b"\n\xff\xfe\n"
    done = subprocess.run(command, cwd=tmp_path, input=raw, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert sorted(all_documents(tmp_path / "d")) == sorted(lines)
    assert open_data(tmp_path / "d").meta["dropped"] == {"duplicate": 0, "empty": 0, "not_text": 1}


@pytest.mark.slow
def test_installed_packages_are_a_source(tmp_path):
    names = [str(path) for path in sources.installed_files()]
    assert len(names) > len(sources.stdlib_files()) and any("numpy" in name for name in names)
    assert not any("/tests/" in name for name in names)
    folder = data_folder(tmp_path, source="python", num_docs=300)
    assert len(all_documents(folder)) == 300 and open_data(folder).meta["settings"]["source"] == "python"

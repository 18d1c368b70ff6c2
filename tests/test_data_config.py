"""isoflop/data/config.py: mixtures, and names on the hub."""

import pytest
from helpers import ROOT, all_documents, data_folder, data_main, documents_of, make_texts, write_jsonl

import data
from isoflop.data import config, reader
from isoflop.data.reader import open_data


def test_mixture_keeps_its_shares(tmp_path):
    one = write_jsonl(tmp_path / "one.jsonl", [f"one {text}" for text in make_texts(2000, 1)])
    two = write_jsonl(tmp_path / "two.jsonl", [f"two {text}" for text in make_texts(2000, 2)])
    folder = data_folder(tmp_path, mix=(f"{one}=3", f"{two}=1"), num_tokens=200_000)
    meta = open_data(folder).meta
    assert [part["source"] for part in meta["sources"]] == [one, two]
    assert meta["sources"][0]["share"] == pytest.approx(0.75, abs=0.03)
    assert sum(part["tokens"] for part in meta["sources"]) == sum(meta[split]["tokens"] for split in reader.SPLITS)
    starts = [text.split(" ")[0] for text in documents_of(folder)["train"]]
    assert starts[:40].count("two") > 4, "the sources alternate rather than follow each other"
    again = data_folder(tmp_path, mix=(f"{one}=3", f"{two}=1"), num_tokens=200_000, out_dir=str(tmp_path / "e"))
    assert (again / "train.bin").read_bytes() == (folder / "train.bin").read_bytes()


def test_a_duplicate_in_another_source_is_dropped(tmp_path):
    one, two = (write_jsonl(tmp_path / f"{i}.jsonl", make_texts(100)) for i in range(2))
    folder = data_folder(tmp_path, mix=(f"{one}=1", f"{two}=1"))
    assert sorted(all_documents(folder)) == sorted(make_texts(100))
    assert open_data(folder).meta["dropped"]["duplicate"] == len(make_texts(100))


@pytest.mark.parametrize("mix", ["stdlib", "stdlib=", "=1", "stdlib=0", "stdlib=-1", "stdlib=nan", "stdlib=inf"])
def test_mixture_mistakes(tmp_path, mix, capsys):
    assert data_main("--mix", mix, "--out_dir", tmp_path / "d") == 2
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
    files = [*ROOT.glob("*.py"), *ROOT.glob("isoflop/**/*.py")]
    assert len(files) > 50 and "trust_remote_code" not in "".join(path.read_text() for path in files)

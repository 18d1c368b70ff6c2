"""isoflop/data/check.py: --info and --verify."""

import hashlib
import json

import numpy as np
import pytest
from helpers import data_folder, data_main, make_texts

from isoflop.data.reader import open_data


def test_info(tmp_path, capsys):
    folder = data_folder(tmp_path, make_texts(400))
    assert data_main("--info", folder, "--planned_tokens", "1e6") == 0
    out, meta = capsys.readouterr().out, open_data(folder).meta
    assert f"{meta['train']['tokens']:,} tokens in" in out and "first document:" in out and "validation range" in out
    assert f"{1e6 / (meta['train']['tokens'] - 1):.2f} epochs" in out
    assert (folder / "lengths.png").read_bytes().startswith(b"\x89PNG")
    data_folder(tmp_path, source=str(tmp_path / "a.jsonl"), overwrite=False)  # lengths.png is no foreign file


def test_info_of_foreign_bins(tmp_path, capsys):
    for split in ("train", "val"):
        np.random.default_rng(0).integers(0, 50257, 9000, dtype=np.uint16).tofile(tmp_path / f"{split}.bin")
    assert data_main("--info", tmp_path) == 0 and "9,000 tokens" in capsys.readouterr().out
    assert data_main("--verify", tmp_path) == 0 and "were not made by data.py" in capsys.readouterr().out


@pytest.mark.parametrize("harm", ["token", "documents", "swapped"])
def test_verify_finds_damage(tmp_path, capsys, harm):
    folder = data_folder(tmp_path, make_texts(200))
    assert data_main("--verify", folder) == 0
    path = folder / ("documents.bin" if harm == "documents" else "train.bin")
    raw = bytearray(path.read_bytes())
    raw[400] ^= 1
    path.write_bytes(raw)
    if harm == "swapped":  # someone who also fixes the checksum
        meta = json.loads((folder / "meta.json").read_text())
        meta["train"]["sha256"] = hashlib.sha256(raw).hexdigest()
        (folder / "meta.json").write_text(json.dumps(meta))
    capsys.readouterr()
    assert data_main("--verify", folder) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and ("sha256 differs" if harm == "token" else "was not read") in err, err


def test_the_sampling_error_is_that_of_a_mean(tmp_path):
    """Against validation ranges drawn from the same kind of text: it says how far their losses lie apart."""
    rng, losses, errors = np.random.default_rng(0), [], []
    words = np.array(["law", "loss", "token", "compute", "of", "the", "a", "gradient"])
    for _ in range(12):
        rows = [" ".join(rng.choice(words, 40, p=rng.dirichlet(np.ones(8)))) for _ in range(400)]
        found = open_data(data_folder(tmp_path, rows, val_fraction=0.5)).meta["validation"]
        losses.append(found["loss"]), errors.append(found["se"])
    assert 0.5 < np.std(losses, ddof=1) / np.mean(errors) < 2.0

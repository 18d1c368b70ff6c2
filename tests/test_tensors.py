"""Weights on disk in one file and in parts."""

import pytest
import torch

from isoflop.tensors import is_sharded, read_parts, write_parts


def test_parts_come_back_and_what_is_not_there_is_said(tmp_path):
    tensors = {"m.a": torch.randn(5, 3), "v.b": torch.arange(4.0)}
    assert not is_sharded(tmp_path)
    write_parts(tmp_path, tensors)
    assert is_sharded(tmp_path)
    read = {"v.b": torch.zeros(4), "m.a": torch.zeros(5, 3)}
    read_parts(tmp_path, read)
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    for wrong in ({"m.c": torch.zeros(2)}, {"m.a": torch.zeros(3, 3)}):
        with pytest.raises(ValueError, match="m.[ac]"):
            read_parts(tmp_path, wrong)


def test_a_disk_that_takes_no_parts_is_an_os_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        write_parts(tmp_path / "file" / "x", {"a": torch.zeros(2)})

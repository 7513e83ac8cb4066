"""Files of tensors against the safetensors library, whole and in pieces."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from training.errors import RunInvalid
from training.models.inputs import normal_rows
from training.tensors import Pieces, read_rows, read_tensors, write_tensors

TENSORS = {
    "step": torch.tensor(3.0),
    "codes": torch.arange(7, dtype=torch.int32),
    "flags": torch.tensor([True, False, True]),
    "state": torch.arange(5, dtype=torch.uint8),
    "wide": torch.arange(12, dtype=torch.float64).view(3, 4).T,  # not contiguous
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "none": torch.empty(0, 4),
    "long": torch.tensor([[1 << 40]]),
}


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)


def test_the_library_reads_what_is_written_and_so_do_we(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, {"progress": "{}"})
    same(load_file(path), TENSORS)
    found, metadata = read_tensors(path)
    same(found, TENSORS)
    assert metadata == {"progress": "{}"}


def test_a_tensor_in_pieces_is_written_as_the_whole_one_and_read_by_rows(tmp_path):
    table = torch.randn(10, 3)
    pieces = Pieces((10, 3), table.dtype, lambda: iter([table[:4], table[4:4], table[4:]]))
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS | {"table": pieces}, {})
    same(read_tensors(path)[0], TENSORS | {"table": table})
    found, _ = read_rows(path, lambda name: slice(3, 7) if name == "table" else None)
    same(found, TENSORS | {"table": table[3:7]})


def test_a_writer_that_fails_leaves_the_file_that_was_there(tmp_path):
    path = tmp_path / "file.safetensors"
    write_tensors(path, TENSORS, {})

    def lost():
        yield torch.zeros(1, 3)
        raise ConnectionError("rank 1 is gone")

    with pytest.raises(ConnectionError):
        write_tensors(path, {"table": Pieces((2, 3), torch.float32, lost)}, {})
    same(read_tensors(path)[0], TENSORS)
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("read", [read_tensors, lambda path: read_rows(path, lambda name: None)])
def test_a_cut_or_missing_file_is_named(tmp_path, read):
    path = tmp_path / "file.safetensors"
    with pytest.raises(RunInvalid, match="file.safetensors"):
        read(path)
    write_tensors(path, TENSORS, {})
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(RunInvalid, match=r"file.safetensors: got .*want a whole safetensors file"):
        read(path)


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 15, 16, 17, 65_535, 65_536, 65_537, 65_551, 65_552, 131_073]), st.integers(1, 17), st.data())
def test_own_rows_are_those_of_the_whole_table_drawn_at_once(rows, size, data):
    first = data.draw(st.integers(0, rows))
    own = slice(first, data.draw(st.integers(first, rows)))
    torch.manual_seed(1)
    whole, after = torch.randn(rows, size), torch.randn(3)
    torch.manual_seed(1)
    assert torch.equal(normal_rows(rows, size, lambda count: own), whole[own])
    assert torch.equal(torch.randn(3), after)

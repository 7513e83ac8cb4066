"""The item table of a bundle: ids are found, and every way it can be wrong is refused by name."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle.errors import (
    FileDigest,
    FileMissing,
    GoldenInvalid,
    ItemFileInvalid,
    ItemIdInvalid,
    ItemIndexInvalid,
    ManifestInvalid,
)
from bundle.files import sha256_of
from bundle.items_index import build_index, find_rows, words_needed, words_of
from bundle.items_write import GrowingArray
from bundle.manifest import FileEntry, write_manifest
from bundle.read import read_bundle

texts = st.text(min_size=1, max_size=20).filter(lambda text: "\0" not in text)


def table_of(ids):
    words, _ = words_of(ids, words_needed(ids))
    words = np.ascontiguousarray(words)
    return build_index(words), words


@given(st.lists(st.one_of(texts, st.integers().map(str)), unique=True, min_size=1, max_size=60), st.lists(texts))
@settings(max_examples=80, deadline=None)
def test_every_id_is_found_at_its_row_and_no_other_is(hash_loops, ids, others):
    index, words = table_of(ids)
    for loops in (hash_loops, None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("bundle.loops.compiled", loops)
            assert find_rows(index, words, ids).tolist() == list(range(len(ids)))
            expected = [ids.index(other) if other in ids else -1 for other in others]
            assert find_rows(index, words, others).tolist() == expected
            padded = [text + "\0" for text in ids] + [text + "x" * 2000 for text in ids]
            assert (find_rows(index, words, [*padded, "", "\ud800"]) == -1).all()


@pytest.mark.parametrize(
    ("slots", "words", "rows"), [(3, 1, 1), (0, 1, 1), (1, 1, 1), (4, 0, 1), (4, 129, 1), (4, 1, 2)]
)
def test_the_compiled_look_up_refuses_an_index_that_cannot_be(hash_loops, slots, words, rows):
    index, ids = np.full(slots, -1, dtype=np.int32), np.zeros((1, words), dtype=np.uint64)
    with pytest.raises(ValueError, match="expected a power of two"):
        hash_loops.find_rows(index, ids, ["a"], np.zeros(rows, dtype=np.int32))


def test_the_compiled_look_up_ends_in_a_full_index_and_never_leaves_the_table(hash_loops):
    found, words = np.zeros(2, dtype=np.int32), np.arange(1, 3, dtype=np.uint64)[:, None]
    hash_loops.find_rows(np.array([0, 1, 0, 1], dtype=np.int32), words, ["a", "b"], found)
    assert found.tolist() == [-1, -1]
    hash_loops.find_rows(np.full(4, 2**31 - 1, dtype=np.int32), words, ["a", "b"], found)
    assert found.tolist() == [-1, -1]


def test_a_number_and_its_look_alikes_are_different_ids():
    index, words = table_of(["7", "07", "7 "])
    assert find_rows(index, words, ["7 ", "7", "007", "07", "+7"]).tolist() == [2, 0, -1, 1, -1]


def test_an_id_that_stands_twice_is_refused_with_both_rows():
    words, _ = words_of([*map(str, range(500)), "17"], 1)
    with pytest.raises(ItemIdInvalid, match="'17': got it in rows 17 and 500"):
        build_index(np.ascontiguousarray(words))


@pytest.mark.parametrize("wrong", ["", "a\0b", "é" * 513])
def test_an_id_that_no_table_can_hold_is_refused(wrong):
    with pytest.raises(ItemIdInvalid, match="1 to 1024 bytes"):
        words_needed(["fine", wrong])


def test_rows_appended_piece_by_piece_read_as_one_array(tmp_path):
    pieces = [np.arange(rows * 3, dtype=np.int32).reshape(rows, 3) for rows in (2, 0, 5)]
    with GrowingArray(tmp_path / "a.npy", np.dtype(np.int32), 3) as array:
        for piece in pieces:
            array.append(piece)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy", mmap_mode="r"), np.concatenate(pieces))


@pytest.fixture
def folder(item_models, tmp_path):
    """A copy of a bundle with an item table."""
    shutil.copytree(item_models / "layer1" / "1", tmp_path / "1")
    return tmp_path / "1"


def replaced(folder, name, data):
    """Change a file and let the manifest list it as it now is."""
    (folder / name).write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = FileEntry(sha256=sha256_of(folder / name), size_bytes=len(data))
    manifest["files"][name] = entry.model_dump()
    write_manifest(folder, json.dumps(manifest).encode())


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


ITEM_FILES = (
    "items.ids.npy", "items.index.npy", "items.codes.npy", "items.values.npy", "items.given.npy", "items.rows.npy",
    "items.golden.npz", "rank_rows.onnx", "item_rows.onnx",
)  # fmt: skip


@pytest.mark.parametrize("name", ITEM_FILES)
def test_one_flipped_byte_is_refused_by_name(folder, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(FileDigest, match=name):
        read_bundle(folder)


@pytest.mark.parametrize("name", ITEM_FILES)
def test_a_file_that_is_gone_is_refused_by_name(folder, name):
    (folder / name).unlink()
    with pytest.raises(FileMissing, match=name):
        read_bundle(folder)


@pytest.mark.parametrize("name", [name for name in ITEM_FILES if name.endswith("npy")])
def test_an_array_that_does_not_read_or_has_another_shape_or_dtype_is_refused_by_name(folder, name):
    whole = np.load(folder / name)
    for data in (
        b"nothing",
        (folder / name).read_bytes()[:-1] if whole.nbytes else b"",
        npy(whole[: len(whole) - 1]),
        npy(np.zeros(whole.shape, dtype=np.complex64)),
        npy(whole[None]),
    ):
        replaced(folder, name, data)
        with pytest.raises((ItemFileInvalid, ItemIndexInvalid), match=name):
            read_bundle(folder)


@pytest.mark.parametrize("change", ["beyond the rows", "below −1", "an empty index"])
def test_an_index_that_points_nowhere_is_refused(folder, change):
    index = np.load(folder / "items.index.npy")
    index[np.flatnonzero(index >= 0)[:1]] = 10**6 if change == "beyond the rows" else -2
    index = np.full_like(index, -1) if change == "an empty index" else index
    replaced(folder, "items.index.npy", npy(index))
    with pytest.raises(ItemIndexInvalid, match=r"items\.index\.npy"):
        read_bundle(folder)


def test_a_golden_request_without_ids_or_outputs_is_refused(folder):
    golden = dict(np.load(folder / "items.golden.npz"))
    for lacking, error in (("ids", ItemFileInvalid), ("output.p", GoldenInvalid)):
        buffer = io.BytesIO()
        np.savez(buffer, **{name: array for name, array in golden.items() if name != lacking})
        replaced(folder, "items.golden.npz", buffer.getvalue())
        with pytest.raises(error):
            read_bundle(folder)


def test_a_manifest_must_list_the_graphs_of_its_item_table(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["rank_rows.onnx"]
    write_manifest(folder, json.dumps(manifest).encode())
    with pytest.raises(ManifestInvalid, match=r"rank_rows\.onnx"):
        read_bundle(folder)

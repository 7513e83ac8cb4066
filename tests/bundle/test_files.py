"""Files and folders appear whole or not at all."""

from __future__ import annotations

import hashlib

import pytest

from bundle.files import new_folder, sha256_of, write_file


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "deep" / "a.json"
    write_file(path, b"old")
    write_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert names_in(path.parent) == ["a.json"]


def test_a_failed_replace_keeps_the_old_content(tmp_path):
    target = tmp_path / "a"
    target.mkdir()  # a file cannot be renamed over a folder
    with pytest.raises(OSError):
        write_file(target, b"new")
    assert names_in(tmp_path) == ["a"]


def test_a_digest_is_that_of_hashlib(tmp_path):
    data = bytes(range(256)) * 9000  # more than one chunk
    (tmp_path / "a").write_bytes(data)
    assert sha256_of(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_a_folder_appears_when_the_block_ends(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert names_in(tmp_path) == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "1"


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        raise RuntimeError
    assert names_in(tmp_path) == []


def test_an_error_while_replacing_leaves_the_old_folder(tmp_path):
    with new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    with pytest.raises(RuntimeError), new_folder(tmp_path / "out", replace=True) as folder:
        (folder / "b").write_text("2")
        raise RuntimeError
    assert names_in(tmp_path) == ["out"]
    assert names_in(tmp_path / "out") == ["a"]


def test_replacing_swaps_the_whole_folder(tmp_path):
    for name in ("a", "b"):
        with new_folder(tmp_path / "out", replace=True) as folder:
            (folder / name).write_text(name)
    assert names_in(tmp_path) == ["out"]
    assert names_in(tmp_path / "out") == ["b"]


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(FileExistsError, match="out"), new_folder(tmp_path / "out"):
        pass
    assert names_in(tmp_path / "out") == ["mine"]

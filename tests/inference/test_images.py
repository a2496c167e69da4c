"""Paths that name images: each image once, everything else accounted for."""

from __future__ import annotations

import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.data.decoding import SampleError
from pipeline.inference.images import ImageFile, find_images


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Images in folders, beside other files, below the working folder."""
    for name in ("a/1.png", "a/b/2.JPG", "a/b/.hidden.png", "a/notes.txt", "c/3.webp"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(name.encode())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(*paths: str) -> list[str]:
    return [image.name for image in find_images(paths).images]


def test_folder_holds_its_images_at_any_depth(tree):
    found = find_images(["a", "c/"])
    assert [image.name for image in found.images] == ["a/1.png", "a/b/2.JPG", "c/3.webp"]
    assert [image.folder for image in found.images] == ["a", "b", "c"]
    assert [image.read() for image in found.images] == [b"a/1.png", b"a/b/2.JPG", b"c/3.webp"]
    assert sorted(found.left_out.counts.values()) == [1, 1]


def test_file_that_is_named_is_an_image_whatever_its_name(tree):
    assert names("a/notes.txt", "a/b/.hidden.png") == ["a/notes.txt", "a/b/.hidden.png"]


@pytest.mark.parametrize("make", ["tar", "zip"])
def test_archive_is_read_in_place(tree, make):
    if make == "tar":
        with tarfile.open("x.tar", "w") as tar:
            tar.add("a")
    else:
        with zipfile.ZipFile("x.zip", "w") as archive:
            archive.write("a/1.png")
            archive.write("a/b/2.JPG")
    found = find_images([f"x.{make}"])
    assert [image.name for image in found.images] == [f"x.{make}/a/1.png", f"x.{make}/a/b/2.JPG"]
    assert [image.folder for image in found.images] == ["a", "b"]
    assert [image.read() for image in found.images] == [b"a/1.png", b"a/b/2.JPG"]


def test_patterns_name_files_and_folders(tree):
    assert names("a/*.png") == ["a/1.png"]
    assert names("**/*.[pJ]*") == ["a/1.png", "a/b/2.JPG"]
    assert names("?") == ["a/1.png", "a/b/2.JPG", "c/3.webp"]
    (tree / "[x].png").write_bytes(b"")
    assert names("[x].png") == ["[x].png"]


def test_patterns_name_files_at_a_url(tree):
    for name in ("1.png", "b/2.jpg", "b/c/3.png", "b/4.txt"):
        storage.write_atomically(f"memory://patterns/{name}", name.encode())
    ends = {
        "memory://patterns/*": ["/1.png"],
        "memory://patterns/*/*.jpg": ["/b/2.jpg"],
        "memory://patterns/**/*.png": ["/1.png", "/b/c/3.png"],
        "memory://patterns": ["/1.png", "/b/2.jpg", "/b/c/3.png"],
        "memory://patterns/b/2.jpg": ["/b/2.jpg"],
    }
    for path, expected in ends.items():
        found = find_images([path]).images
        assert [image.name.partition("patterns")[2] for image in found] == expected
        assert all(image.read().decode() == image.name[-len(image.read()) :] for image in found)


def test_image_that_is_named_twice_is_listed_once(tree):
    found = find_images(["a/1.png", str(tree / "a"), "./a/1.png"])
    assert [image.name for image in found.images] == ["a/1.png", f"{tree}/a/b/2.JPG"]
    assert found.n_repeated == 2


def test_names_may_hold_any_character(tree):
    odd = ["d/é\n1.png", "d/=1+1.png", "d/ .png", os.fsdecode(b"d/\xff.png")]
    (tree / "d").mkdir()
    for name in odd:
        Path(name).write_bytes(os.fsencode(name))
    assert sorted(names("d")) == sorted(odd)
    assert {os.fsdecode(image.read()) for image in find_images(odd).images} == set(odd)


def test_path_without_an_image_is_a_problem_and_no_error(tree):
    (tree / "empty").mkdir()
    (tree / "cut.tar").write_bytes(b"x" * 700)
    found = find_images(["empty", "cut.tar", "gone.zip", "no/*.png", "c"])
    assert [image.name for image in found.images] == ["c/3.webp"]
    empty, cut, gone, none = found.problems
    assert empty == "empty: contains no image"
    assert "cut.tar: ReadError" in cut and "not a complete plain tar" in cut
    assert "gone.zip" in gone
    assert none == "no/*.png: no file has a name of this form"


def test_file_that_is_missing_is_found_when_it_is_read(tree):
    (image,) = find_images(["gone.png"]).images
    assert image == ImageFile("gone.png", str(tree / "gone.png"))
    with pytest.raises(SampleError, match="cannot be read .*No such file"):
        image.read()

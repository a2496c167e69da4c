"""Every file of a source is read, left out with a reason, or refused; nothing is merged unseen."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.data.index import ShardIndex, read_index
from pipeline.data.prepare.sharding import Recipe, write_shards
from pipeline.data.prepare.target import UNFINISHED_NAME
from pipeline.prepare import main
from tests.shards import draw_image_file


def draw_tree(folder: Path, *groups: str, count: int = 2, suffix: str = "jpg") -> Path:
    """``count`` images in each of ``groups`` (``train/ant``), all different."""
    for group in groups:
        (folder / group).mkdir(parents=True, exist_ok=True)
        for row in range(count):
            seed = [ord(letter) for letter in group]
            (folder / group / f"{row}.{suffix}").write_bytes(draw_image_file(*seed, row))
    return folder


def shard(source: object, out: Path, *options: object) -> int:
    arguments = ["shard", "--source", source, "--out", out, "--jobs", 1, *options]
    return main([str(argument) for argument in arguments])


def counts(out: Path) -> dict[str, dict[str, int]]:
    """Images per split and class folder."""
    index = read_index(str(out))
    return {
        split: {
            index.class_folders[label]: count
            for label, count in index.count(split).items()
            if count
        }
        for split in ("train", "test")
    }


BOTH = ("train/ant", "train/bee", "test/ant", "test/bee")


# Left out


def test_table_at_the_end_has_every_file(tmp_path, capsys):
    source = draw_tree(tmp_path / "in", *BOTH)
    for name in ("notes.txt", "train/list.csv", "train/ant/mask.npy", "train/bee/0", ".DS_Store"):
        (source / name).write_text("x")
    (source / "train/bee/none").symlink_to("nowhere")
    os.mkfifo(source / "train/bee/pipe")
    (source / "train/cow").mkdir()
    assert shard(source, tmp_path / "out") == 0
    table = capsys.readouterr().out
    for words in (
        "read                                                              8",
        "it is not in a folder of a split                        1  notes.txt",
        "it is not in a class folder                             1  train/list.csv",
        "suffix .npy is not one of an image                      1  train/ant/mask.npy",
        "it has no suffix                                        1  train/bee/0",
        "it is a hidden file or one of the operating system      1  .DS_Store",
        "it is a broken link                                     1  train/bee/none",
        "it is not a regular file                                1  train/bee/pipe",
        "it is a folder without a file                           1  train/cow",
    ):
        assert " ".join(words.split()) in " ".join(table.split())


@pytest.mark.parametrize("name", ["notes.txt", "train/ant/x.npy", "train/ant/.hidden.jpg"])
def test_strict_refuses_to_leave_a_file_out_before_it_writes(tmp_path, capsys, name):
    source = draw_tree(tmp_path / "in", *BOTH)
    assert shard(source, tmp_path / "good", "--strict") == 0
    (source / name).write_text("x")
    assert shard(source, tmp_path / "out", "--strict") == 2
    assert f"1 files would be left out: .*{name}".split(".*")[1] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_class_folder_without_an_image_is_named(tmp_path, capsys):
    source = draw_tree(tmp_path / "in", *BOTH)
    (source / "train/cow").mkdir()
    (source / "train/cow/a.webm").write_text("x")
    assert shard(source, tmp_path / "out") == 0
    assert "class folder train/cow: none of its 1 files is read" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", ["jfif", "JPE", "JPG", "dib", "jpeg"])
def test_other_suffixes_of_known_formats_are_read(tmp_path, suffix):
    source = draw_tree(tmp_path / "in", *BOTH, suffix=suffix)
    assert shard(source, tmp_path / "out", "--strict") == 0
    assert counts(tmp_path / "out")["train"] == {"ant": 2, "bee": 2}


def test_source_without_an_image_names_its_files(tmp_path, capsys):
    source = draw_tree(tmp_path / "in", *BOTH, suffix="raw")
    assert shard(source, tmp_path / "out") == 2
    assert "left out 8 files: suffix .raw is not one of an image: 8" in capsys.readouterr().err


def test_name_that_is_not_text_is_shown_on_one_line(tmp_path, capsys):
    source = draw_tree(tmp_path / "in", *BOTH)
    with open(os.fsencode(source / "train/ant") + b"/\xff\n.jpg", "wb") as file:
        file.write(draw_image_file(77))
    with open(os.fsencode(source / "train/ant") + b"/\xfe\n.txt", "wb") as file:
        file.write(b"x")
    assert shard(source, tmp_path / "out") == 0
    assert "train/ant/\\xfe\\n.txt" in capsys.readouterr().out
    assert counts(tmp_path / "out")["train"]["ant"] == 3
    os.rename(source / "train/ant", os.fsencode(source / "train") + b"/\xff")
    assert shard(source, tmp_path / "out2") == 2
    assert "class folder '\\xff' is not valid UTF-8" in capsys.readouterr().err.replace(r"\\", "\\")


# Links


def test_links_to_folders_and_files_are_followed(tmp_path):
    elsewhere = draw_tree(tmp_path / "disk", "cats", "tests")
    source = draw_tree(tmp_path / "in", *BOTH)
    (source / "train/cat").symlink_to(elsewhere / "cats")
    (source / "test/cat").mkdir()
    (source / "test/cat/0.jpg").symlink_to(elsewhere / "tests/0.jpg")
    assert shard(source, tmp_path / "out", "--strict") == 0
    assert counts(tmp_path / "out") == {
        "train": {"ant": 2, "bee": 2, "cat": 2},
        "test": {"ant": 2, "bee": 2, "cat": 1},
    }


def test_circle_of_links_is_named_and_ends(tmp_path, capsys):
    source = draw_tree(tmp_path / "in", *BOTH)
    (source / "train/ant/up").symlink_to(source)
    (source / "train/bee/self").symlink_to("self")
    assert shard(source, tmp_path / "out") == 0
    table = capsys.readouterr().out
    assert "it is a link to a folder that contains it" in table and "train/ant/up" in table
    assert "it is a link to itself" in table or "it is a broken link" in table
    assert counts(tmp_path / "out")["train"] == {"ant": 2, "bee": 2}


def test_folders_that_link_to_each_other_end(tmp_path):
    """must hold also where the number of ways through the links is a factorial"""
    source = draw_tree(tmp_path / "in", *BOTH)
    folders = [source / "train" / "ant" / str(number) for number in range(9)]
    for folder in folders:
        folder.mkdir()
    for folder in folders:
        for other in folders:
            (folder / f"to{other.name}").symlink_to(other)
    assert shard(source, tmp_path / "out") == 0


def test_links_within_a_tar_are_followed_and_others_named(tmp_path, capsys):
    source = draw_tree(tmp_path / "in", *BOTH)
    os.link(source / "train/ant/0.jpg", source / "train/ant/hard.jpg")
    (source / "train/ant/soft.jpg").symlink_to("../bee/1.jpg")
    (source / "train/bee/out.jpg").symlink_to("/etc/passwd")
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(source, "in")
    assert shard(tmp_path / "x.tar", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert counts(tmp_path / "out")["train"] == {"ant": 4, "bee": 2}
    assert "it is a link to no file of the archive" in text and "in/train/bee/out.jpg" in text
    assert "2 train images are copies of another train image" in text


# Doubled


def test_same_file_twice_in_a_table_is_refused(tmp_path, capsys):
    draw_tree(tmp_path, *BOTH)
    for again in ("train/ant/0.jpg", "./train/ant/0.jpg", "train/../train/ant/0.jpg"):
        rows = [("train/ant/0.jpg", "train"), ("test/ant/0.jpg", "test"), (again, "test")]
        lines = [json.dumps({"path": p, "label": "ant", "split": s}) for p, s in rows]
        (tmp_path / "a.jsonl").write_text("\n".join(lines))
        assert shard(tmp_path / "a.jsonl", tmp_path / "out") == 2
        assert "line 3: " in (error := capsys.readouterr().err)
        assert "is listed twice, first in line 1" in error


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["tar", "zip"])
def test_same_member_twice_is_refused(tmp_path, capsys, kind):
    data = draw_tree(tmp_path / "in", "train/ant") / "train/ant/0.jpg"
    if kind == "tar":
        with tarfile.open(tmp_path / "x.tar", "w") as archive:
            archive.add(data, "train/ant/0.jpg")
            archive.add(data, "train/ant/0.jpg")
    else:
        with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
            archive.write(data, "train/ant/0.jpg")
            archive.write(data, "train/ant/0.jpg")
    assert shard(tmp_path / f"x.{kind}", tmp_path / "out") == 2
    assert "train/ant/0.jpg is listed twice in the source" in capsys.readouterr().err


def test_equal_bytes_in_train_and_test_are_counted(tmp_path, capsys):
    source = draw_tree(tmp_path / "in", *BOTH)
    shutil.copy(source / "train/ant/0.jpg", source / "test/ant/new.jpg")
    shutil.copy(source / "train/ant/1.jpg", source / "test/bee/new.jpg")
    assert shard(source, tmp_path / "out") == 0
    assert "2 test images have the same bytes as a training image" in capsys.readouterr().out


def test_images_with_one_stem_are_all_kept(tmp_path):
    source = draw_tree(tmp_path / "in", *BOTH)
    for name in ("0.jpeg", "0.bmp", "0.jpeg.jpg"):
        shutil.copy(source / "train/ant/1.jpg", source / "train/ant" / name)
    assert shard(source, tmp_path / "out", "--strict") == 0
    keys = read_index(str(tmp_path / "out")).select("train", [0]).keys
    assert len(set(keys)) == 5


# Splits


@pytest.mark.parametrize("names", [("val", "test"), ("train", "training"), ("Test", "test")])
def test_two_splits_never_become_one(tmp_path, capsys, names):
    groups = [f"{name}/ant" for name in {"train", "test", *names}]
    assert shard(draw_tree(tmp_path / "in", *groups), tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert "would both become" in error and "--splits" in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("splits", "wanted"),
    [
        ("train,test", {"train": 1, "test": 3}),
        ("train=train,test=val", {"train": 1, "test": 2}),
        ("train=train+val,test=test", {"train": 3, "test": 3}),
        ("train=extra,test=val", {"train": 4, "test": 2}),
    ],
)
def test_splits_are_those_that_the_user_chooses(tmp_path, capsys, splits, wanted):
    for count, name in enumerate(("train", "val", "test", "extra"), start=1):
        draw_tree(tmp_path / "in", f"{name}/ant", count=count)
    # images of the same name would collide
    for number, file in enumerate(sorted((tmp_path / "in").rglob("*.jpg"))):
        file.rename(file.with_name(f"{number}.jpg"))
    assert shard(tmp_path / "in", tmp_path / "out", "--splits", splits) == 0
    assert counts(tmp_path / "out") == {s: {"ant": count} for s, count in wanted.items()}
    text = capsys.readouterr().out
    used = sum(wanted.values())
    assert f"{used:>10,}" in text
    if used < 6:
        assert "its split is not named in --splits" in text


def test_val_alone_is_the_test_split_and_the_table_says_so(tmp_path, capsys):
    assert shard(draw_tree(tmp_path / "in", "train/ant", "val/ant"), tmp_path / "out") == 0
    assert "note: val became test" in capsys.readouterr().out


@pytest.mark.parametrize("bad", ["", "train", "train=dev", "test=train,train=train", "fit=train"])
def test_bad_choice_of_splits_is_explained(tmp_path, capsys, bad):
    source = draw_tree(tmp_path / "in", "train/ant", "test/ant")
    if bad == "train":
        assert shard(source, tmp_path / "out", "--splits", bad) == 0
        assert "there is no test image; a run needs both splits" in capsys.readouterr().out
    else:
        assert shard(source, tmp_path / "out", "--splits", bad) == 2
        assert "--splits" in capsys.readouterr().err


def test_two_data_sets_in_one_folder_are_not_merged(tmp_path, capsys):
    source = draw_tree(tmp_path / "in", "a/train/ant", "b/train/ant", "a/test/ant")
    assert shard(source, tmp_path / "out") == 2
    assert "several folders with splits: 'a', 'b'" in capsys.readouterr().err


def test_test_images_without_classes_are_refused(tmp_path, capsys):
    source = draw_tree(tmp_path / "in", "train/n01", "train/n02", "val/images")
    assert shard(source, tmp_path / "out") == 2
    assert "train and test have no class in common" in capsys.readouterr().err


def test_flat_folder_is_divided_by_a_hash_of_each_name(tmp_path, capsys):
    source = draw_tree(tmp_path / "in", "ant", "bee", count=40)
    assert shard(source, tmp_path / "out") == 2
    assert "looks like <class>/* with 2 classes: add --test-fraction 0.2" in capsys.readouterr().err
    fraction = ("--test-fraction", 0.25)
    assert shard(source, tmp_path / "a", *fraction) == 0
    first = read_index(str(tmp_path / "a"))
    held = set(first.select("test", [0, 1]).keys)
    assert 8 < len(held) < 35
    (source / "ant/0.jpg").unlink()
    draw_tree(source, "cow", count=5)
    assert shard(source.parent, tmp_path / "b", *fraction) == 0  # one level deeper
    assert read_index(str(tmp_path / "b")).class_folders == ("ant", "bee", "cow")
    assert shard(source, tmp_path / "c", *fraction) == 0
    later = read_index(str(tmp_path / "c"))
    assert held - {"ant/0"} == {k for k in later.select("test", [0, 1]).keys}
    assert shard(source, tmp_path / "d", *fraction, "--split-seed", 2) == 0
    assert set(read_index(str(tmp_path / "d")).select("test", [0, 1]).keys) != held


def test_test_fraction_never_replaces_a_test_split(tmp_path, capsys):
    source = draw_tree(tmp_path / "in", *BOTH, count=20)
    assert shard(source, tmp_path / "out", "--test-fraction", 0.5) == 2
    assert "has a test split already" in capsys.readouterr().err
    options = ("--test-fraction", 0.5, "--splits", "train=train")
    assert shard(source, tmp_path / "out", *options) == 0
    assert sum(counts(tmp_path / "out")["train"].values()) < 40
    for bad in (0, 1, -3, "nan"):
        assert shard(source, tmp_path / "x", "--test-fraction", bad) == 2
    assert shard(source, tmp_path / "x", "--split-seed", 3) == 2


# The target


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_leftovers_of_another_attempt_are_removed(tmp_path, monkeypatch):
    source, out = draw_tree(tmp_path / "in", *BOTH), tmp_path / "out"
    write = storage.write_atomically

    def stop(url: str, data: bytes, **options: object) -> None:
        if url.endswith("test-000000.tar"):
            raise KeyboardInterrupt
        write(url, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_atomically", stop)
        with pytest.raises(KeyboardInterrupt):
            write_shards(str(source), str(out), Recipe(shard_bytes=14_000))
    assert UNFINISHED_NAME in files(out)
    (out / ".train-000007.tar.x1.part").write_text("cut off")
    assert shard(source, out) == 0
    assert files(out) == [
        "index.json", "test-000000.json", "test-000000.tar", "train-000000.json", "train-000000.tar"
    ]  # fmt: skip
    assert main(["verify", str(out), "--jobs", "1"]) == 0


def test_shards_of_unknown_origin_are_not_overwritten(tmp_path, capsys):
    source, out = draw_tree(tmp_path / "in", *BOTH), tmp_path / "out"
    (out / "other").mkdir(parents=True)
    (out / "other/train-000000.tar").write_text("of another data set, below")
    assert shard(source, out) == 0
    (out / "index.json").unlink()
    assert shard(source, out) == 2
    assert "has shards that no index names (test-000000.json" in capsys.readouterr().err
    assert shard(source, out, "--overwrite") == 0
    assert (out / "other/train-000000.tar").exists()


def test_missing_classes_are_named_at_the_end(tmp_path, capsys):
    source = draw_tree(tmp_path / "in", *BOTH, "train/cow", "test/dog")
    assert shard(source, tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "warning: classes without a train image: 'dog'" in text
    assert "warning: classes without a test image: 'cow'" in text


def test_equal_input_without_exif_gives_an_index_without_an_orientation(tmp_path):
    shard(draw_tree(tmp_path / "in", *BOTH), tmp_path / "out")
    index: ShardIndex = read_index(str(tmp_path / "out"))
    assert index.orientation is None
    assert b"orientation" not in (tmp_path / "out/index.json").read_bytes()


# Paths


@pytest.mark.parametrize("blank", ["", " ", "\t"])
@pytest.mark.parametrize("option", ["--out", "--source", "--names"])
def test_blank_path_is_refused(tmp_path, capsys, monkeypatch, option, blank):
    monkeypatch.chdir(tmp_path)
    arguments = ["shard", "--source", "in", "--out", "out", option, blank]
    assert main(arguments) == 2
    assert f"{option} " in (error := capsys.readouterr().err) and "is blank" in error
    for command in ("verify", "stats", "copy x", "copy"):
        paths = [*command.split(), blank, *(["x"] if command == "copy" else [])]
        assert main(paths) == 2
        assert "is blank" in capsys.readouterr().err
    assert os.listdir(tmp_path) == []


def test_home_and_variables_are_expanded(tmp_path, monkeypatch):
    draw_tree(tmp_path / "in", *BOTH)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("WHERE", str(tmp_path / "deep"))
    assert main(["shard", "--source=~/in", "--out=$WHERE/out", "--jobs=1"]) == 0
    assert (tmp_path / "deep/out/index.json").exists()

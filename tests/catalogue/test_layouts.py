"""Benchmarks in the layouts of their owners, made small: names, splits, counts and membership."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from pipeline.catalogue.entry import benchmark_names, read_benchmark
from pipeline.data.index import ShardIndex, read_index
from pipeline.data.membership import hash_membership
from pipeline.data.prepare.benchmark import BenchmarkChoice, list_images
from pipeline.data.prepare.folder_source import FolderSource
from pipeline.data.prepare.source_images import Listing
from pipeline.data.prepare.sources import open_source
from pipeline.data.prepare.splits import SplitChoice
from pipeline.errors import DataError, PipelineError
from pipeline.inspect import main as inspect
from pipeline.prepare import main
from tests.fuzz import mutations
from tests.shards import draw_image_file
from tests.videos import video_file


def draw(folder: Path, *paths: str) -> None:
    """A different image at each path."""
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        kind = "PNG" if path.endswith("png") else "JPEG"
        file.write_bytes(draw_image_file(*path.encode(), kind=kind))


def write(folder: Path, name: str, *lines: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("".join(line + "\n" for line in lines))


def shard(source: object, out: Path, *options: object) -> int:
    return main(
        [str(w) for w in ("shard", "--source", source, "--out", out, "--jobs", 1, *options)]
    )


def images_of(index: ShardIndex) -> dict[str, list[str]]:
    """The names of the classes of the images of each split."""
    return {
        split: [index.class_names[c] for c, n in index.count(split).items() for _ in range(n)]
        for split in ("train", "test")
    }


def food101(root: Path) -> None:
    names = ["waffles/1", "apple_pie/1", "apple_pie/2", "waffles/3"]
    draw(root, *(f"food-101/images/{name}.jpg" for name in names))
    write(root, "food-101/meta/train.txt", "waffles/1", "apple_pie/1")
    write(root, "food-101/meta/test.txt", "apple_pie/2", "waffles/3")


def cub200(root: Path) -> None:
    folders = ["002.Laysan_Albatross", "141.Artic_Tern"]
    paths = [f"{folder}/{folder[4:]}_{number}.jpg" for folder in folders for number in (1, 2)]
    draw(root, *(f"images/{path}" for path in paths))
    write(root, "images.txt", *(f"{n} {path}" for n, path in enumerate(paths, start=1)))
    write(root, "train_test_split.txt", "1 1", "2 0", "3 1", "4 0")


def aircraft(root: Path) -> None:
    draw(root, *(f"data/images/{number}.jpg" for number in ("0034", "0056", "0078", "0090")))
    write(root, "data/images_variant_trainval.txt", "0034 F-16A/B", "0056 Boeing 717")
    write(root, "data/images_variant_test.txt", "0078 Boeing 717", "0090 F-16A/B")


def aircraft__coop(root: Path) -> None:
    aircraft(root)
    (root / "data/images_variant_trainval.txt").rename(root / "data/images_variant_train.txt")


def dtd(root: Path) -> None:
    paths = [f"{name}/{name}_{n}.jpg" for name in ("banded", "zigzagged") for n in (1, 2, 3)]
    draw(root, *(f"images/{path}" for path in paths))
    write(root, "labels/train1.txt", paths[0], paths[3])
    write(root, "labels/val1.txt", paths[1])
    write(root, "labels/test1.txt", paths[2], paths[4])


def pets(root: Path) -> None:
    names = ["Abyssinian_1", "Abyssinian_2", "american_bulldog_10", "american_bulldog_11"]
    draw(root, *(f"images/{name}.jpg" for name in names))
    draw(root, *(f"annotations/trimaps/{name}.png" for name in names))
    write(root, "annotations/trainval.txt", "Abyssinian_1 1 1 1", "american_bulldog_10 2 2 1")
    write(root, "annotations/test.txt", "Abyssinian_2 1 1 1", "american_bulldog_11 2 2 1")


def tiny_imagenet(root: Path) -> None:
    folders = ["n01443537", "n01629819"]
    draw(root, *(f"tiny-imagenet-200/train/{w}/images/{w}_0.JPEG" for w in folders))
    draw(root, *(f"tiny-imagenet-200/val/images/val_{n}.JPEG" for n in (0, 1)))
    draw(root, "tiny-imagenet-200/test/images/test_0.JPEG")
    lines = [f"val_{n}.JPEG\t{w}\t0\t0\t9\t9" for n, w in enumerate(folders)]
    write(root, "tiny-imagenet-200/val/val_annotations.txt", *lines)


def sun397(root: Path) -> None:
    paths = [f"{w}/sun_{n}.jpg" for w in ("a/abbey", "a/apse/indoor") for n in "ab"]
    draw(root, *(f"SUN397/{path}" for path in paths))
    write(root, "Partitions/Training_01.txt", f"/{paths[0]}", f"/{paths[2]}")
    write(root, "Partitions/Testing_01.txt", f"/{paths[1]}", f"/{paths[3]}")


def ucf101(root: Path) -> None:
    """The middle frames that CoOp publishes, beside the lists of the authors."""
    videos = [f"v_HandStandPushups_g0{n}_c01" for n in (1, 2)] + ["v_TaiChi_g03_c01"]
    folders = ["Handstand_Pushups", "Handstand_Pushups", "Tai_Chi"]
    frames = [f"{folder}/{video}.jpg" for folder, video in zip(folders, videos, strict=True)]
    draw(root, *(f"UCF-101-midframes/{frame}" for frame in frames))
    write(root, "ucfTrainTestlist/classInd.txt", "37 HandstandPushups", "91 TaiChi")
    write(root, "ucfTrainTestlist/trainlist01.txt", f"HandstandPushups/{videos[0]}.avi 37")
    lines = [f"HandstandPushups/{videos[1]}.avi", f"TaiChi/{videos[2]}.avi"]
    write(root, "ucfTrainTestlist/testlist01.txt", *lines)


def domainnet(root: Path) -> None:
    for domain in ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"):
        paths = [f"{domain}/cell_phone/{domain}_067_00{n}.jpg" for n in (1, 2)]
        draw(root, *paths)
        write(root, f"{domain}_train.txt", f"{paths[0]} 67")
        write(root, f"{domain}_test.txt", f"{paths[1]} 67")


def write_matlab(file: Path, fields: str, *rows: tuple[object, ...], **arrays: object) -> None:
    """A struct array ``annotations``, as the authors of Cars write it, and other variables."""
    values = np.zeros((1, len(rows)), [(name, object) for name in fields.split()])
    values[0] = list(rows)
    file.parent.mkdir(parents=True, exist_ok=True)
    savemat(file, {"annotations": values, **arrays}, do_compression=True)


LABELS = "bbox_x1 class fname"
CAR_NAMES = np.array([["Ram C/V Cargo Van Minivan 2012", "Audi A5 Coupe 2012"]], object)


def cars(root: Path) -> None:
    draw(root, *(f"cars_{split}/0000{n}.jpg" for split in ("train", "test") for n in (1, 2)))
    rows = [(np.uint16(3), np.uint8(label), f"0000{n}.jpg") for label, n in [(2, 1), (1, 2)]]
    write_matlab(root / "devkit/cars_train_annos.mat", LABELS, *rows)
    rows = [(np.uint16(3), np.uint8(label), f"0000{n}.jpg") for label, n in [(1, 1), (2, 2)]]
    write_matlab(root / "cars_test_annos_withlabels.mat", LABELS, *rows)
    savemat(root / "devkit/cars_meta.mat", {"class_names": CAR_NAMES})


def cars__one_list(root: Path) -> None:
    """All images in one folder; the list says which are for tests."""
    rows = [(f"car_ims/00000{n}.jpg", 3, 1 + n % 2, np.uint8(n > 2)) for n in (1, 2, 3, 4)]
    draw(root, *(path for path, *_ in rows))
    fields = "relative_im_path bbox_x1 class test"
    write_matlab(root / "cars_annos.mat", fields, *rows, class_names=CAR_NAMES)


def flowers102(root: Path) -> None:
    draw(root, *(f"jpg/image_{n:05d}.jpg" for n in (1, 2, 3, 4, 5)))
    savemat(root / "imagelabels.mat", {"labels": np.array([[102, 9, 9, 9, 102]], np.uint8)})
    ids = {"trnid": [[1]], "valid": [[3]], "tstid": [[5, 2, 4]]}
    savemat(root / "setid.mat", {name: np.array(each, np.uint16) for name, each in ids.items()})


def imagenet1k(root: Path) -> None:
    folders = ["n01440764", "n01443537"]
    draw(root, *(f"train/{w}/{w}_1.JPEG" for w in folders))
    draw(root, *(f"ILSVRC2012_img_val/ILSVRC2012_val_0000000{n}.JPEG" for n in (1, 2)))
    fields = [(f, object) for f in ("ILSVRC2012_ID", "WNID", "words", "children")]
    synsets = np.zeros((3, 1), fields)
    rows = [(1, folders[1], 0), (2, folders[0], 0), (3, "n1", 2)]  # the third is no class
    synsets[:, 0] = [(n, folder, "a, b", np.arange(children)) for n, folder, children in rows]
    (root / "devkit/data").mkdir(parents=True)
    savemat(root / "devkit/data/meta.mat", {"synsets": synsets}, do_compression=True)
    write(root, "devkit/data/ILSVRC2012_validation_ground_truth.txt", "1", "2")


def imagenet1k__kaggle(root: Path) -> None:
    folders = ["n01440764", "n01443537"]
    data, others = "ILSVRC/Data/CLS-LOC", "ILSVRC/Annotations/CLS-LOC"
    draw(root, *(f"{data}/train/{w}/{w}_1.JPEG" for w in folders))
    draw(root, *(f"{data}/val/ILSVRC2012_val_0000000{n}.JPEG" for n in (1, 2)))
    draw(root, f"{data}/test/ILSVRC2012_test_00000001.JPEG")
    for w in folders:
        write(root, f"{others}/train/{w}/{w}_1.xml", "<annotation/>")
    write(root, "LOC_synset_mapping.txt", f"{folders[0]} tench, Tinca tinca")
    lines = ["ImageId,PredictionString", f"ILSVRC2012_val_00000002,{folders[0]} 1 2 3 4 "]
    lines += [f"ILSVRC2012_val_00000001,{folders[1]} 85 1 499 272 {folders[1]} 1 1 9 9 "]
    write(root, "LOC_val_solution.csv", *lines)
    write(root, "LOC_train_solution.csv", lines[0], f"{folders[0]}_1,{folders[0]} 1 2 3 4 ")


LAYOUTS = {
    food101: ["apple pie", "waffles"],
    cub200: ["Laysan Albatross", "Arctic Tern"],
    aircraft: ["Boeing 717", "F-16A/B"],
    aircraft__coop: ["Boeing 717", "F-16A/B"],
    dtd: ["banded", "zigzagged"],
    pets: ["Abyssinian", "American Bulldog"],
    tiny_imagenet: ["goldfish", "fire salamander"],
    sun397: ["abbey", "apse indoor"],
    ucf101: ["Hand Stand Pushups", "Tai Chi"],
    domainnet: ["cell phone"],
    cars: ["Audi A5 Coupe 2012", "Ram C/V Cargo Van Minivan 2012"],
    flowers102: ["monkshood", "blackberry lily"],
    cars__one_list: ["Audi A5 Coupe 2012", "Ram C/V Cargo Van Minivan 2012"],
    imagenet1k: ["tench", "goldfish"],
    imagenet1k__kaggle: ["tench", "goldfish"],
}
TRAIN = {dtd: ["banded", "banded", "zigzagged"], ucf101: ["Hand Stand Pushups"]}
TRAIN |= {flowers102: ["monkshood", "blackberry lily"], domainnet: ["cell phone"] * 6}


@pytest.mark.parametrize("draw_layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layout_of_the_owner_is_read(tmp_path, capsys, draw_layout: Callable[[Path], None]):
    """must have the names of the catalogue, and the split of the owner's lists"""
    benchmark, _, form = draw_layout.__name__.partition("__")
    names = LAYOUTS[draw_layout]
    draw_layout(tmp_path / "in")
    options = ["--benchmark", benchmark, "--allow-other-counts"]
    assert shard(tmp_path / "in", tmp_path / "out", *options) == 0, capsys.readouterr().err
    index = read_index(str(tmp_path / "out"))
    assert list(index.class_names) == names
    assert images_of(index)["train"] == TRAIN.get(draw_layout, names)
    assert sorted(set(images_of(index)["test"])) == sorted(names)
    split = "coop" if form == "coop" else read_benchmark(benchmark).lists[0].split
    recorded = index.membership
    assert (recorded.benchmark, recorded.split) == (benchmark, f"{split}, other counts")


def test_every_list_of_the_catalogue_is_tried_here():
    listed = [
        name for name in benchmark_names() for form in read_benchmark(name).lists if form.split
    ]
    assert listed == sorted(layout.__name__.partition("__")[0] for layout in LAYOUTS)


def caltech101(root: Path) -> None:
    folders = ("BACKGROUND_Google", "ant", "bass", "emu")
    draw(root, *(f"101_ObjectCategories/{folder}/image_0001.jpg" for folder in folders))


def eurosat(root: Path) -> None:
    draw(root, *(f"2750/Forest/Forest_{number}.jpg" for number in (1, 2, 3)))


def flowers_without_split(root: Path) -> None:
    flowers102(root)
    (root / "setid.mat").unlink()


def middle_frames(root: Path) -> None:
    ucf101(root)
    shutil.rmtree(root / "ucfTrainTestlist")


# A path for training, for validation and for tests; the classes of the first and the last one.
COOP = {
    "caltech101": (
        caltech101,
        ["ant/image_0001.jpg", "bass/image_0001.jpg", "emu/image_0001.jpg"],
        ["ant", "emu"],
    ),
    "eurosat": (
        eurosat,
        ["Forest/Forest_2.jpg", "Forest/Forest_1.jpg", "Forest/Forest_3.jpg"],
        ["forest", "forest"],
    ),
    "dtd": (
        dtd,
        ["banded/banded_3.jpg", "banded/banded_1.jpg", "zigzagged/zigzagged_3.jpg"],
        ["banded", "zigzagged"],
    ),
    "food101": (
        food101,
        ["apple_pie/2.jpg", "waffles/1.jpg", "waffles/3.jpg"],
        ["apple pie", "waffles"],
    ),
    "sun397": (
        sun397,
        ["a/abbey/sun_b.jpg", "a/abbey/sun_a.jpg", "a/apse/indoor/sun_a.jpg"],
        ["abbey", "apse indoor"],
    ),
    "flowers102": (
        flowers_without_split,
        ["image_00001.jpg", "image_00003.jpg", "image_00002.jpg"],
        ["blackberry lily", "monkshood"],
    ),
    "pets": (
        pets,
        ["Abyssinian_2.jpg", "Abyssinian_1.jpg", "american_bulldog_10.jpg"],
        ["Abyssinian", "American Bulldog"],
    ),
    "cars": (
        cars,
        ["cars_train/00002.jpg", "cars_train/00001.jpg", "cars_test/00002.jpg"],
        ["Ram C/V Cargo Van Minivan 2012", "Audi A5 Coupe 2012"],
    ),
    "ucf101": (
        middle_frames,
        [
            "Handstand_Pushups/v_HandStandPushups_g01_c01.jpg",
            "Handstand_Pushups/v_HandStandPushups_g02_c01.jpg",
            "Tai_Chi/v_TaiChi_g03_c01.jpg",
        ],
        ["Hand Stand Pushups", "Tai Chi"],
    ),
}


def test_every_list_of_coop_is_tried_here():
    with_list = (n for n in benchmark_names() for s in read_benchmark(n).splits.values() if s.file)
    assert sorted(with_list) == sorted(COOP)


@pytest.mark.parametrize("benchmark", COOP)
def test_list_of_coop_decides_the_split(tmp_path, benchmark):
    """must be read as CoOp lays the data out, some of it without the lists of the owner"""
    draw_layout, (train, validation, test), names = COOP[benchmark]
    draw_layout(tmp_path / "in")
    entry, url = read_benchmark(benchmark), str(tmp_path / "in")
    coop = entry.splits["coop"]
    entries = {"train": [[train, 0, "a"]], "val": [[validation, 0, "a"]], "test": [[test, 1, "b"]]}
    (tmp_path / coop.file).write_text(json.dumps(entries))

    def read(other_counts: bool) -> Listing:
        choice = BenchmarkChoice(benchmark, str(tmp_path / coop.file), other_counts)
        return list_images(open_source(url), choice, SplitChoice(), url)

    listing = read(other_counts=True)
    found = {image.split: entry.classes[image.folder] for image in listing.images}
    assert found == dict(zip(("train", "test"), names, strict=True)) and len(listing.images) == 2
    assert listing.membership.split == "coop, other counts"
    counts = f"found 1 train images, expected {coop.train:,}; found 1 test images"
    with pytest.raises(DataError, match=f"split 'coop': found .* classes, .*{counts}"):
        read(other_counts=False)


def ucf101_videos(root: Path) -> None:
    """The layout of its owner: videos, each with its number of frames."""
    ucf101(root)
    frames = root / "UCF-101-midframes"
    for n_frames, frame in enumerate(sorted(frames.rglob("*.jpg")), start=1):
        frame.with_suffix(".avi").write_bytes(video_file(n_frames, size=(320, 240)))
        frame.unlink()
    frames.rename(root / "UCF-101")


def read_stored(out: Path) -> list[Image.Image]:
    """The images in the shards, those for training first."""
    images = []
    for file in sorted(out.glob("*.tar"), reverse=True):
        with tarfile.open(file) as shard:
            members = [member for member in shard if member.name.endswith(".jpg")]
            images += [Image.open(io.BytesIO(shard.extractfile(m).read())) for m in members]
    return images


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
def test_middle_frame_of_a_video_is_its_image(tmp_path, capsys, form):
    """must hold for the videos of UCF101 as its owner has them, in a folder or an archive"""
    ucf101_videos(tmp_path / "in")
    source = tmp_path / "in"
    if form != "folder":
        source = Path(shutil.make_archive(str(tmp_path / "in"), form, source))
    options = ["--benchmark", "ucf101", "--allow-other-counts"]
    assert shard(source, tmp_path / "out", *options) == 0, capsys.readouterr().err
    assert "the middle frame of each of 3 videos is its image" in capsys.readouterr().out
    index = read_index(str(tmp_path / "out"))
    assert index.membership.split == "official-1, other counts"
    assert images_of(index)["train"] == ["Hand Stand Pushups"]
    stored = read_stored(tmp_path / "out")
    assert [image.size for image in stored] == 3 * [(320, 240)]
    greys = [np.asarray(image).mean() for image in stored]
    assert np.allclose(greys, [0, 20, 20], atol=6), "of videos of 1, 2 and 3 frames"


def test_frames_beside_videos_are_the_images(tmp_path, capsys):
    ucf101_videos(tmp_path / "in")
    ucf101(tmp_path / "in")
    options = ["--benchmark", "ucf101", "--allow-other-counts"]
    assert shard(tmp_path / "in", tmp_path / "out", *options) == 0
    assert "middle frame" not in capsys.readouterr().out
    assert [image.size for image in read_stored(tmp_path / "out")] == 3 * [(29, 23)]


def test_videos_without_their_reader_are_refused_at_once(tmp_path, capsys, monkeypatch):
    ucf101_videos(tmp_path / "in")
    monkeypatch.setitem(sys.modules, "av", None)
    assert shard(tmp_path / "in", tmp_path / "out", "--benchmark", "ucf101") == 2
    assert "install it: pip install av" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_videos_of_another_form_are_refused_with_a_remedy(tmp_path, capsys):
    ucf101(tmp_path / "in")
    frames = tmp_path / "in/UCF-101-midframes"
    for frame in sorted(frames.rglob("*.jpg")):
        frame.rename(frame.with_suffix(".mp4"))
    assert shard(tmp_path / "in", tmp_path / "out", "--benchmark", "ucf101") == 2
    assert "it has videos: extract one frame of each, as an image" in capsys.readouterr().err
    assert shard(frames, tmp_path / "out", "--benchmark", "ucf101", "--split", "official-1") == 2
    assert "it is a video: extract one frame of each" in capsys.readouterr().err


def test_other_counts_are_an_error_that_says_found_and_expected(tmp_path, capsys):
    food101(tmp_path / "in")
    assert shard(tmp_path / "in", tmp_path / "out", "--benchmark", "food101") == 2
    message = capsys.readouterr().err
    assert "split 'official': found 2 classes, expected 101; found 2 train images, expected 75,750"
    assert "found 2 test images, expected 25,250" in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda root: (root / "images_variant_test.txt").unlink(),
            "has no images_variant_test.txt, b",
        ),
        (lambda root: (root / "images/0078.jpg").unlink(), "no image for 1 lines of its lists"),
        (lambda root: write(root, "images_variant_test.txt", "0078"), "line 1: '0078' has another"),
        (lambda root: write(root, "images_variant_test.txt", "0034 C-47"), "or is listed twice"),
        (lambda root: write(root, "images_variant_test.txt", "0078 Zeppelin"), "'Zeppelin' is not"),
        (lambda root: draw(root, "copy/0078.jpg"), "'0078' stands for several images"),
    ],
    ids=["no list", "no image", "no label", "twice", "no class", "copy"],
)
def test_damaged_layout_is_explained(tmp_path, capsys, spoil, message):
    aircraft(tmp_path / "in")
    spoil(tmp_path / "in/data")
    assert shard(tmp_path / "in", tmp_path / "out", "--benchmark", "aircraft") == 2
    assert message in capsys.readouterr().err


def test_label_without_a_name_is_explained(tmp_path, capsys):
    cars(tmp_path / "in")
    rows = [(3, 1, "00001.jpg"), (3, 9, "2.jpg")]
    write_matlab(tmp_path / "in/devkit/cars_train_annos.mat", LABELS, *rows)
    assert shard(tmp_path / "in", tmp_path / "out", "--benchmark", "cars") == 2
    assert "cars_train_annos.mat, line 2: has an unknown label 9" in capsys.readouterr().err


PATHS = [f"{w}/{n}.jpg" for w in ("n01443537", "n01484850") for n in (0, 1, 2)]


def imagenet_r(root: Path) -> Path:
    draw(root, *(f"imagenet-r/{path}" for path in PATHS))
    return root


def write_split(file: Path, train: list[object], test: list[object]) -> Path:
    file.write_text(json.dumps({"train": train, "test": test}))
    return file


def test_split_file_pins_the_membership(tmp_path, capsys):
    """must record its hash, which neither the layout nor the form of the list changes"""
    root = imagenet_r(tmp_path / "in")
    test = [PATHS[1], PATHS[3]]
    train = [path for path in PATHS if path not in test]
    first = write_split(tmp_path / "mine.json", train, test)
    entries = [[f"./data/imagenet-r/{path}", 0, "name"] for path in reversed(train)]
    second = write_split(tmp_path / "other.json", entries, test)
    divided = tmp_path / "divided"
    for path in PATHS:
        folder = divided / ("test" if path in test else "train") / path
        folder.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(root / "imagenet-r" / path, folder)
    archive = shutil.make_archive(str(tmp_path / "packed"), "tar", root)
    hashes = set()
    for number, (source, split) in enumerate(
        [(root, first), (root, second), (divided, "coda"), (archive, first)]
    ):
        options = ["--benchmark", "imagenet_r", "--split", split, "--allow-other-counts"]
        out = tmp_path / f"out{number}"
        assert shard(source, out, *options) == 0, capsys.readouterr().err
        index = read_index(str(out))
        assert images_of(index)["test"] == ["goldfish", "great white shark"]
        assert index.membership.split.removesuffix(", other counts") == Path(str(split)).stem
        hashes.add(index.membership.sha256)
    triples = [("test" if p in test else "train", *p.split("/")) for p in PATHS]
    assert hashes == {hash_membership(triples)}
    capsys.readouterr()
    assert inspect([str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["facts"]["benchmark_split"] == "mine"


def test_split_file_may_name_images_outside_the_lists_of_the_owner(tmp_path):
    """must find classes whose folders are two or three deep, and classes that only a list gives"""
    sun397(tmp_path / "sun")
    draw(tmp_path / "sun", "SUN397/a/apse/indoor/sun_c.jpg")
    split = write_split(
        tmp_path / "mine.json",
        ["/a/apse/indoor/sun_c.jpg", "/a/abbey/sun_b.jpg"],
        ["/a/apse/indoor/sun_a.jpg"],
    )
    options = ["--split", split, "--allow-other-counts", "--benchmark"]
    assert shard(tmp_path / "sun", tmp_path / "out", *options, "sun397") == 0
    index = read_index(str(tmp_path / "out"))
    assert images_of(index) == {"train": ["abbey", "apse indoor"], "test": ["apse indoor"]}
    aircraft(tmp_path / "air")
    write_split(split, ["F-16A/B/0090.jpg", "Boeing 717/0056.jpg"], ["F-16A/B/0034.jpg"])
    assert shard(tmp_path / "air", tmp_path / "out2", *options, "aircraft") == 0
    index = read_index(str(tmp_path / "out2"))
    assert images_of(index) == {"train": ["Boeing 717", "F-16A/B"], "test": ["F-16A/B"]}


def test_cifar_gets_the_names_of_the_catalogue(tmp_path):
    names = list(read_benchmark("cifar100").classes)
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "fine_label_names.txt").write_text("\n".join(names))
    for split in ("train", "test"):
        records = [bytes([0, label]) + bytes(range(256)) * 12 for label in (1, 31)]
        (folder / f"{split}.bin").write_bytes(b"".join(records))
    options = ["--benchmark", "cifar100", "--allow-other-counts"]
    assert shard(tmp_path, tmp_path / "out", *options) == 0
    index = read_index(str(tmp_path / "out"))
    assert index.class_names == ("aquarium fish", "elephant")
    assert index.membership.split == "official, other counts"


def mnist(root: Path, form: str = "-{}-ubyte") -> np.ndarray:
    """MNIST as torchvision leaves it, with two images in each split; the pixels of one split."""
    pack = gzip.compress if form.endswith(".gz") else bytes
    pixel_NHW = np.arange(2 * 28 * 28, dtype=np.uint32).astype(np.uint8).reshape(2, 28, 28)
    (root / "MNIST/raw").mkdir(parents=True)
    for name in ("train", "t10k"):
        images = struct.pack(">4I", 2051, *pixel_NHW.shape) + pixel_NHW.tobytes()
        (root / f"MNIST/raw/{name}-images{form.format('idx3')}").write_bytes(pack(images))
        labels = struct.pack(">2I", 2049, 2) + bytes([7, 0])
        (root / f"MNIST/raw/{name}-labels{form.format('idx1')}").write_bytes(pack(labels))
    return pixel_NHW


@pytest.mark.parametrize("form", ["-{}-ubyte", ".{}-ubyte", "-{}-ubyte.gz"])
def test_mnist_keeps_its_pixels_and_gets_words_for_digits(tmp_path, form):
    pixel_NHW = mnist(tmp_path / "in", form)
    options = ["--benchmark", "mnist", "--allow-other-counts"]
    assert shard(tmp_path / "in", tmp_path / "out", *options) == 0
    assert read_index(str(tmp_path / "out")).class_names == ("zero", "seven")
    source = open_source(str(tmp_path / "in"))
    for row, image in enumerate(source.list_images(SplitChoice()).images[:2]):
        assert np.array_equal(Image.open(io.BytesIO(source.read(image))), pixel_NHW[row])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data[:-1],
        lambda data: data[:3],
        lambda data: b"",
        lambda data: data + b"x",
        lambda data: b"\xff" * 4 + data[4:],
        lambda data: data[:4] + b"\xff" * 12 + data[16:],
        lambda data: data[:4] + bytes(12),
    ],
)
def test_damaged_file_of_mnist_is_refused(tmp_path, capsys, spoil):
    mnist(tmp_path / "in")
    file = tmp_path / "in/MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(spoil(file.read_bytes()))
    assert shard(tmp_path / "in", tmp_path / "out") == 2
    assert "is not a complete file of MNIST" in capsys.readouterr().err


@pytest.mark.parametrize("spoil", [lambda data: data[:-9], lambda data: data[5:]])
def test_damaged_gzip_file_of_mnist_is_refused(tmp_path, capsys, spoil):
    mnist(tmp_path / "in", "-{}-ubyte.gz")
    file = tmp_path / "in/MNIST/raw/train-images-idx3-ubyte.gz"
    file.write_bytes(spoil(file.read_bytes()))
    assert shard(tmp_path / "in", tmp_path / "out") == 2
    assert "download it again" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "layout"),
    [
        (["mnist"], "mnist is read from train-images-idx3-ubyte and the three other files"),
        (["dtd", "--split", "coop"], "dtd is read from images with labels/train1.txt, "),
        (["imagenet_a"], "imagenet_a is read from train/<class>/* and test/<class>/*"),
    ],
)
def test_source_without_the_benchmark_is_refused_with_its_layout(tmp_path, capsys, options, layout):
    """must say it for each kind of layout: files of the owner, lists, folders of a split"""
    write(tmp_path, "in/deeper/notes.txt", "no image")
    assert shard(tmp_path / "in", tmp_path / "out", "--benchmark", *options) == 2
    assert layout in capsys.readouterr().err


def test_images_that_the_split_does_not_name_are_left_out(tmp_path, capsys):
    root = imagenet_r(tmp_path / "in")
    split = write_split(tmp_path / "few.json", PATHS[:1], PATHS[1:2])
    options = ["--benchmark", "imagenet_r", "--split", split, "--allow-other-counts"]
    assert shard(root, tmp_path / "out", *options) == 0
    assert "left out: the list of the split does not name it" in capsys.readouterr().out
    assert len(read_index(str(tmp_path / "out")).class_names) == 1


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        (PATHS[:2], ["n01443537/9.jpg"], "no image for 1 of the 3 paths of the split, first 'n014"),
        (PATHS[:2], PATHS[:1], "lists 'n01443537/0.jpg' twice"),
        (PATHS[:2], [f"x/{PATHS[0]}"], "'n01443537/0.jpg' is there twice"),
        ([3], [], "3 is not a path"),
        (["\ud800/0.jpg"], [], r"'\ud800/0.jpg' is not a path"),
    ],
)
def test_split_that_does_not_fit_is_explained(tmp_path, capsys, train, test, message):
    root = imagenet_r(tmp_path / "in")
    split = write_split(tmp_path / "wrong.json", train, test)
    assert shard(root, tmp_path / "out", "--benchmark", "imagenet_r", "--split", split) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--benchmark", "imagenet_r"], "imagenet_r has several splits: lamda, rapf, coda"),
        (["--benchmark", "imagenet_r", "--split", "codas"], "did you mean 'coda'?"),
        (["--benchmark", "imagenetr"], "did you mean 'imagenet_r'?"),
        (["--benchmark", "imagenet_r", "--names", "a.json"], "leave out --names"),
        (["--benchmark", "imagenet_r", "--split", "coda", "--test-fraction", "0.2"], "leave out"),
        (["--split", "coda"], "need --benchmark"),
    ],
)
def test_bad_options_are_explained(tmp_path, capsys, options, message):
    root = imagenet_r(tmp_path / "in")
    assert shard(root, tmp_path / "out", *options) == 2
    assert message in capsys.readouterr().err


def test_damaged_lists_are_refused_or_read(tmp_path):
    """must hold for lists of the owner and for a split file: no other error, no hang"""
    draw_root = tmp_path / "in"
    aircraft(draw_root)
    split = write_split(tmp_path / "s.json", ["Boeing 717/0056.jpg"], [["F-16A/B/0034.jpg", 1]])
    files = {draw_root / "data/images_variant_test.txt": None, split: str(split)}
    for file, option in files.items():
        good, refused = file.read_bytes(), 0
        choice = BenchmarkChoice("aircraft", option, other_counts=True)
        for damaged in mutations(good, 200, seed=1):
            file.write_bytes(damaged)
            try:
                list_images(FolderSource(str(draw_root)), choice, SplitChoice(), str(draw_root))
            except PipelineError as error:
                assert "\n" not in str(error)
                refused += 1
        file.write_bytes(good)
        assert refused > 20


def test_line_that_is_too_long_is_refused_at_once(tmp_path, capsys):
    """must not be matched: the time of a pattern may grow with the square of the length"""
    pets(tmp_path / "in")
    write(tmp_path / "in", "annotations/test.txt", "a" + "_1" * 1_000_000)
    assert shard(tmp_path / "in", tmp_path / "out", "--benchmark", "pets") == 2
    assert "annotations/test.txt, line 1: 'a_1_1" in capsys.readouterr().err


def test_zip_of_another_method_is_refused_unread(tmp_path, capsys):
    """must hold for lists too, whose memory could not be bounded"""
    food101(tmp_path / "in")
    with zipfile.ZipFile(tmp_path / "food.zip", "w", zipfile.ZIP_BZIP2) as archive:
        for file in sorted((tmp_path / "in").rglob("*.*")):
            archive.write(file, file.relative_to(tmp_path / "in"))
    assert shard(tmp_path / "food.zip", tmp_path / "out", "--benchmark", "food101") == 2
    assert "is compressed with bzip2" in capsys.readouterr().err


def test_options_about_splits_come_before_the_lists_of_the_owner(tmp_path):
    dtd(tmp_path / "in")
    options = ["--benchmark", "dtd", "--test-fraction", 0.5, "--allow-other-counts"]
    assert shard(tmp_path / "in" / "images", tmp_path / "out", *options) == 0
    drawn = read_index(str(tmp_path / "out"))
    assert shard(tmp_path / "in", tmp_path / "out2", *options) == 0
    assert read_index(str(tmp_path / "out2")).membership == drawn.membership
    assert drawn.membership.split == "drawn: 0.5 with seed 1"


def test_drawn_split_is_recorded_as_drawn(tmp_path):
    draw(tmp_path / "in", *(f"{w}/{n}.jpg" for w in ("Forest", "SeaLake") for n in range(8)))
    options = ["--benchmark", "eurosat", "--test-fraction", 0.5, "--allow-other-counts"]
    assert shard(tmp_path / "in", tmp_path / "out", *options) == 0
    index = read_index(str(tmp_path / "out"))
    assert index.class_names == ("forest", "lake or sea")
    assert index.membership.split == "drawn: 0.5 with seed 1"


def test_index_without_a_benchmark_is_as_before(tmp_path):
    draw(tmp_path / "in", *(f"{split}/ant/0.jpg" for split in ("train", "test")))
    assert shard(tmp_path / "in", tmp_path / "out") == 0
    assert "membership" not in json.loads((tmp_path / "out/index.json").read_text())
    assert read_index(str(tmp_path / "out")).membership is None

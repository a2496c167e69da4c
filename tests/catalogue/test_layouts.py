"""Benchmarks in the layouts of their owners, made small: names, splits, counts and membership."""

from __future__ import annotations

import gzip
import io
import json
import shutil
import struct
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
from pipeline.data.prepare.sources import open_source
from pipeline.data.prepare.splits import SplitChoice
from pipeline.errors import PipelineError
from pipeline.inspect import main as inspect
from pipeline.prepare import main
from tests.fuzz import mutations
from tests.shards import draw_image_file


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
    videos = [f"v_HandStandPushups_g0{n}_c01" for n in (1, 2)] + ["v_TaiChi_g03_c01"]
    draw(root, *(f"UCF-101-midframes/some/{video}.jpg" for video in videos))
    write(root, "lists/trainlist01.txt", f"HandstandPushups/{videos[0]}.avi 37")
    lines = [f"HandstandPushups/{videos[1]}.avi", f"TaiChi/{videos[2]}.avi"]
    write(root, "lists/testlist01.txt", *lines)


def domainnet(root: Path) -> None:
    for domain in ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"):
        paths = [f"{domain}/cell_phone/{domain}_067_00{n}.jpg" for n in (1, 2)]
        draw(root, *paths)
        write(root, f"{domain}_train.txt", f"{paths[0]} 67")
        write(root, f"{domain}_test.txt", f"{paths[1]} 67")


def write_annotations(file: Path, *rows: tuple[int, str]) -> None:
    """Labels of cars, as their authors write them: a struct array."""
    fields = [(name, object) for name in ("bbox_x1", "bbox_x2", "class", "fname")]
    values = np.zeros((1, len(rows)), fields)
    values[0] = [(np.uint16(3), np.uint16(9), np.uint8(label), name) for label, name in rows]
    file.parent.mkdir(exist_ok=True)
    savemat(file, {"annotations": values}, do_compression=True)


def cars(root: Path) -> None:
    paths = [f"cars_{split}/0000{n}.jpg" for split in ("train", "test") for n in (1, 2)]
    draw(root, *paths)
    write_annotations(root / "devkit/cars_train_annos.mat", (2, "00001.jpg"), (1, "00002.jpg"))
    write_annotations(root / "cars_test_annos_withlabels.mat", (1, "00001.jpg"), (2, "00002.jpg"))
    names = np.array([["Ram C/V Cargo Van Minivan 2012", "Audi A5 Coupe 2012"]], object)
    savemat(root / "devkit/cars_meta.mat", {"class_names": names})


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


LAYOUTS = {
    food101: ["apple pie", "waffles"],
    cub200: ["Laysan Albatross", "Arctic Tern"],
    aircraft: ["Boeing 717", "F-16A/B"],
    dtd: ["banded", "zigzagged"],
    pets: ["Abyssinian", "American Bulldog"],
    tiny_imagenet: ["goldfish", "fire salamander"],
    sun397: ["abbey", "apse indoor"],
    ucf101: ["Hand Stand Pushups", "Tai Chi"],
    domainnet: ["cell phone"],
    cars: ["Audi A5 Coupe 2012", "Ram C/V Cargo Van Minivan 2012"],
    flowers102: ["monkshood", "blackberry lily"],
    imagenet1k: ["tench", "goldfish"],
}
TRAIN = {dtd: ["banded", "banded", "zigzagged"], ucf101: ["Hand Stand Pushups"]}
TRAIN |= {flowers102: ["monkshood", "blackberry lily"], domainnet: ["cell phone"] * 6}


@pytest.mark.parametrize("draw_layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_layout_of_the_owner_is_read(tmp_path, capsys, draw_layout: Callable[[Path], None]):
    """must have the names of the catalogue, and the split of the owner's lists"""
    benchmark, names = draw_layout.__name__, LAYOUTS[draw_layout]
    draw_layout(tmp_path / "in")
    options = ["--benchmark", benchmark, "--allow-other-counts"]
    assert shard(tmp_path / "in", tmp_path / "out", *options) == 0, capsys.readouterr().err
    index = read_index(str(tmp_path / "out"))
    assert list(index.class_names) == names
    assert images_of(index)["train"] == TRAIN.get(draw_layout, names)
    assert sorted(set(images_of(index)["test"])) == sorted(names)
    split = read_benchmark(benchmark).lists[0].split
    recorded = index.membership
    assert (recorded.benchmark, recorded.split) == (benchmark, f"{split}, other counts")


def test_every_list_of_the_catalogue_is_tried_here():
    listed = {name for name in benchmark_names() if read_benchmark(name).lists}
    assert listed == {layout.__name__ for layout in LAYOUTS}


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
    write_annotations(tmp_path / "in/devkit/cars_train_annos.mat", (1, "00001.jpg"), (9, "2.jpg"))
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

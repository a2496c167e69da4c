"""Images of every common source become the same shards; the data set can be verified."""

from __future__ import annotations

import io
import itertools
import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import uuid
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
from PIL import Image

from pipeline import storage
from pipeline.data.decoding import open_image
from pipeline.data.index import ShardIndex, read_index
from pipeline.data.prepare import sharding, spool
from pipeline.data.prepare.copying import copy_data_set
from pipeline.data.prepare.sharding import UNFINISHED_NAME, Recipe, write_shards
from pipeline.data.prepare.writer import Sample, build_shards
from pipeline.data.stream import ShardSource, eval_stream
from pipeline.data.transforms import build_transform
from pipeline.errors import DataError
from pipeline.prepare import main
from tests.shards import draw_image_file, overwrite_byte

COUNTS = {"train": {"Bee eater": 5, "ant": 7, "zebra_2": 3}, "test": {"ant": 2, "zebra_2": 4}}


def write_folder(folder: Path) -> Path:
    for split, classes in COUNTS.items():
        for number, (name, count) in enumerate(classes.items()):
            (folder / split / name).mkdir(parents=True)
            for row in range(count):
                data = draw_image_file(split == "test", number, row, size=(40, 31))
                (folder / split / name / f"p.{row}.jpg").write_bytes(data)
    (folder / "README.txt").write_text("not an image")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images") / "birds")


def run(*arguments: object) -> int:
    return main([str(argument) for argument in arguments])


def prepare(source: object, out: object, *options: object) -> ShardIndex:
    assert run("shard", "--source", source, "--out", out, "--jobs", 1, *options) == 0
    return read_index(str(out))


def contents(url: str) -> dict[str, bytes]:
    return {f.rpartition("/")[2]: storage.read_bytes(f) for f in storage.list_files(url)}


def pixels(index: ShardIndex, split: str) -> np.ndarray:
    """Every image of a split, streamed."""
    labels = [label for label, count in index.count(split).items() if count]
    batches = eval_stream(
        ShardSource(index),
        index.select(split, labels),
        batch_size=64,
        transform=build_transform("squash", 32),
    )
    return np.concatenate([batch.image_BCHW.numpy() for batch in batches])


# Sources


def test_image_folder_becomes_shards(images, tmp_path):
    index = prepare(images, tmp_path)
    assert index.class_folders == ("Bee eater", "ant", "zebra_2")
    assert index.class_names == ("Bee eater", "ant", "zebra 2")
    assert index.count("train") == {0: 5, 1: 7, 2: 3}
    assert index.count("test") == {0: 0, 1: 2, 2: 4}
    selection = index.select("train", [0])
    assert selection.keys[0] == "Bee%20eater/p%2E0"
    assert sorted(os.listdir(tmp_path)) == [
        "index.json", "test-000000.json", "test-000000.tar", "train-000000.json", "train-000000.tar"
    ]  # fmt: skip


@pytest.mark.parametrize("form", ["memory://{}", "memory://{}/", "memory://{}//", "memory:///{}"])
def test_folder_at_a_url_is_read_however_its_url_is_written(images, tmp_path, form):
    folder = uuid.uuid4().hex
    for file in images.rglob("*.*"):
        url = storage.join(f"memory://{folder}", str(file.relative_to(images)))
        storage.write_atomically(url, file.read_bytes())
    index = prepare(form.format(folder), tmp_path / "out")
    assert index.sha256 == prepare(images, tmp_path / "local").sha256


def test_shards_are_plain_webdataset(images, tmp_path):
    prepare(images, tmp_path)
    stages = (webdataset.tarfile_to_samples(), webdataset.decode("pil"))
    shard = [{"url": str(tmp_path / "train-000000.tar")}]
    samples = list(webdataset.DataPipeline([shard], *stages))
    assert [sample["cls"] for sample in samples] == [0] * 5 + [1] * 7 + [2] * 3
    assert all(sample["jpg"].size == (40, 31) for sample in samples)


def test_equal_input_gives_equal_bytes_from_every_kind_of_source(images, tmp_path):
    prepare(images, tmp_path / "a")
    wanted = contents(str(tmp_path / "a"))
    moved = tmp_path / "again"
    shutil.copytree(images, moved)
    sources = {"folder": moved, "tar": tmp_path / "x.tar", "zip": tmp_path / "x.zip"}
    with tarfile.open(sources["tar"], "w") as tar:
        tar.add(images, "./birds")
    with zipfile.ZipFile(sources["zip"], "w") as archive:
        for file in sorted(images.rglob("*.jpg"), reverse=True):
            archive.write(file, file.relative_to(images.parent))
    for name, source in sources.items():
        prepare(source, tmp_path / f"from-{name}")
        assert contents(str(tmp_path / f"from-{name}")) == wanted
    assert run("shard", "--source", moved, "--out", tmp_path / "b", "--jobs", 2) == 0
    assert contents(str(tmp_path / "b")) == wanted


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
def test_table_lists_images_in_any_folder(images, tmp_path, kind):
    rows = [
        {"path": str(file.relative_to(images.parent)), "label": file.parts[-2],
         "split": file.parts[-3].replace("test", "val")}
        for file in images.rglob("*.jpg")
    ]  # fmt: skip
    table = images.parent / f"list.{kind}"
    lines = [json.dumps(row) for row in rows]
    if kind == "csv":
        lines = ["path,label,split"] + [",".join(row.values()) for row in rows]
    table.write_text("\n".join(lines))
    by_table = prepare(table, tmp_path / "table")
    by_folder = prepare(images, tmp_path / "folder")
    assert by_table.count("test") == by_folder.count("test")
    for split in ("train", "test"):
        assert np.array_equal(pixels(by_table, split), pixels(by_folder, split))


def test_names_file_gives_the_order_of_classes(images, tmp_path):
    names = tmp_path / "names.json"
    order = [("zebra", "zebra_2"), ("bee-eater", "Bee eater"), ("an ant", "ant")]
    names.write_text(json.dumps([{"name": n, "folder": f} for n, f in order]))
    index = prepare(images, tmp_path / "out", "--names", names)
    assert index.class_names == ("zebra", "bee-eater", "an ant")
    assert index.class_folders == ("zebra_2", "Bee eater", "ant")
    assert index.count("train") == {0: 3, 1: 5, 2: 7}


def write_cifar(folder: Path, *, as_pickle: bool) -> tuple[Path, np.ndarray]:
    """A CIFAR-100 of 6 training and 4 test images; its training pixels."""
    draw = np.random.default_rng(3)
    folder = folder / ("cifar-100-python" if as_pickle else "cifar-100-binary")
    folder.mkdir()
    names = [f"class{number}" for number in range(100)]
    pixel_N = draw.integers(0, 256, (10, 3072), dtype=np.uint8)
    label_N = np.array([4, 99, 4, 0, 7, 0, 4, 0, 99, 7], dtype=np.uint8)
    for split, rows in (("train", slice(0, 6)), ("test", slice(6, 10))):
        if as_pickle:
            content = {b"data": pixel_N[rows], b"fine_labels": label_N[rows].tolist()}
            (folder / split).write_bytes(pickle.dumps(content, protocol=2))
        else:
            coarse_N = np.zeros_like(label_N)
            data = np.column_stack([coarse_N, label_N, pixel_N])[rows]
            (folder / f"{split}.bin").write_bytes(data.tobytes())
    if as_pickle:
        meta = {b"fine_label_names": [name.encode() for name in names]}
        (folder / "meta").write_bytes(pickle.dumps(meta, protocol=2))
    else:
        (folder / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    order = np.lexsort((np.arange(6), np.array([f"class{n}" for n in label_N[:6]])))
    return folder, pixel_N[:6][order].reshape(6, 3, 32, 32)


@pytest.mark.parametrize("as_pickle", [False, True])
def test_cifar_keeps_its_pixels(tmp_path, as_pickle):
    folder, expected = write_cifar(tmp_path, as_pickle=as_pickle)
    index = prepare(folder, tmp_path / "out")
    assert index.class_names == ("class0", "class4", "class7", "class99")
    assert np.array_equal(pixels(index, "train"), expected)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def test_cifar_pickle_cannot_run_code(tmp_path, monkeypatch, capsys):
    folder, _ = write_cifar(tmp_path, as_pickle=True)
    (folder / "train").write_bytes(pickle.dumps({b"data": Bomb(), b"fine_labels": []}))
    monkeypatch.chdir(tmp_path)
    assert run("shard", "--source", folder, "--out", tmp_path / "out") == 2
    assert "system, which a file of images does not need; refused" in capsys.readouterr().err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("as_struct", [True, False])
def test_parquet_as_hugging_face_stores_it(tmp_path, as_struct):
    images = [draw_image_file(9, row, size=(32, 32), kind="PNG") for row in range(7)]
    labels = [2, 0, 1, 2, 0, 2, 1]
    column = [{"bytes": data, "path": None} for data in images] if as_struct else images
    table = pyarrow.table({"image": column, "label": labels})
    names = {"label": {"_type": "ClassLabel", "names": ["owl", "newt", "asp"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": names}})}
    (tmp_path / "data").mkdir()
    for split, rows in (("train", slice(0, 5)), ("test", slice(5, 7))):
        part = table.slice(rows.start, rows.stop - rows.start).replace_schema_metadata(metadata)
        name = tmp_path / "data" / f"{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(part, name, row_group_size=2)
    index = prepare(tmp_path / "data", tmp_path / "out")
    assert index.class_names == ("owl", "newt", "asp")  # the order of ClassLabel
    assert index.count("train") == {0: 2, 1: 1, 2: 2}
    wanted = [np.asarray(open_image(images[row])).transpose(2, 0, 1) for row in (1, 4, 2, 0, 3)]
    assert np.array_equal(pixels(index, "train"), np.stack(wanted))


def test_copying_of_parquet_files_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(spool, "_REPORT_EVERY_S", 0.0)
    (tmp_path / "data").mkdir()
    for split, count in (("train", 5), ("test", 2)):
        images = [draw_image_file(9, row) for row in range(count)]
        table = pyarrow.table({"image": images, "label": [row % 2 for row in range(count)]})
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"{split}.parquet")
    prepare(tmp_path / "data", tmp_path / "out")
    err = capsys.readouterr().err
    assert re.findall(r"copied (\d of \d) images of Parquet files", err) == ["5 of 7", "7 of 7"]


def test_resizing_shrinks_only_images_with_a_longer_short_side(tmp_path):
    folder = tmp_path / "in"
    sizes = {"big": (90, 61), "tall": (61, 120), "small": (20, 30)}
    for name, size in sizes.items():
        for split in ("train", "test"):
            (folder / split / name).mkdir(parents=True)
            (folder / split / name / "0.png").write_bytes(draw_image_file(1, size=size, kind="PNG"))
    prepare(folder, tmp_path / "out", "--resize", 48)
    with tarfile.open(tmp_path / "out" / "train-000000.tar") as tar:
        stored = {m.name: tar.extractfile(m).read() for m in tar if not m.name.endswith("cls")}
    assert list(stored) == ["big/0.jpg", "small/0.png", "tall/0.jpg"]
    shapes = [Image.open(io.BytesIO(data)).size for data in stored.values()]
    assert shapes == [(71, 48), (20, 30), (48, 94)]
    assert stored["small/0.png"] == (folder / "train/small/0.png").read_bytes()


def test_shards_are_at_most_as_long_as_the_option_says(images, tmp_path):
    index = prepare(images, tmp_path, "--shard-size", "20kB")
    assert len(index.shards) > 3
    assert all(shard.bytes <= 20_000 for shard in index.shards)
    assert all(os.path.getsize(tmp_path / s.name) == s.bytes for s in index.shards)


# Refusals


def test_data_set_is_overwritten_only_with_the_option(images, tmp_path, capsys):
    prepare(images, tmp_path, "--shard-size", "20kB")
    many = contents(str(tmp_path))
    assert run("shard", "--source", images, "--out", tmp_path) == 2
    assert "index.json exists already; give another --out" in capsys.readouterr().err
    assert contents(str(tmp_path)) == many
    prepare(images, tmp_path, "--overwrite")
    assert len(os.listdir(tmp_path)) == 5  # the other shards of the longer data set are removed
    assert run("verify", tmp_path, "--jobs", 1) == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "does not exist; give a folder, .tar, .zip, .csv, .jsonl or .parquet"),
        ("nothing", "has no file; give a folder, .tar, .zip"),
        ("empty.csv", "has no column label, path, split"),
        ("bad-split.csv", "line 2: split 'dev' is not one of train"),
        ("missing.csv", "train/ant/gone.jpg cannot be read .*No such file"),
        ("bad.jsonl", "line 1: is not JSON"),
        ("text.tar", "is not a complete plain tar"),
        ("text.zip", "is not a complete zip"),
        ("x.tar.gz", "unpack it and give the folder: `mkdir x && tar -xf .*x.tar.gz -C x`"),
        ("x.tgz", "tar -xf .*x.tgz -C x`, then --source x"),
        ("x.tar.zst", "tar -xf .*x.tar.zst -C x`"),
        (
            "squeezed.tar",
            "ReadError.* not a complete plain tar; .*if it is compressed, decompress it",
        ),
        ("train.parquet", "is not a Parquet file"),
        ("escape.tar", "member '../train/ant/0.jpg' leaves the archive"),
        ("flat", "contains no image of the form train/<class>/"),
        ("broken", "train/ant/0.jpg cannot be decoded"),
    ],
)
def test_bad_source_is_explained_in_one_line(tmp_path, capsys, source, message):
    (tmp_path / "empty.csv").write_text("a,b\n")
    (tmp_path / "bad-split.csv").write_text("path,label,split\nx.jpg,ant,dev\n")
    (tmp_path / "missing.csv").write_text("path,label,split\ngone.jpg,ant,train\n")
    (tmp_path / "bad.jsonl").write_text("{'path': 1}\n")
    for name in ("text.tar", "text.zip", "train.parquet"):
        (tmp_path / name).write_text("text")
    (tmp_path / "nothing").mkdir()
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "0.jpg").write_bytes(draw_image_file(1))
    (tmp_path / "broken/train/ant").mkdir(parents=True)
    (tmp_path / "broken/train/ant/0.jpg").write_bytes(draw_image_file(1)[:-200])
    with tarfile.open(tmp_path / "escape.tar", "w") as tar:
        tar.add(tmp_path / "flat" / "0.jpg", "../train/ant/0.jpg")
    with tarfile.open(tmp_path / "squeezed.tar", "w:gz") as tar:
        tar.add(tmp_path / "flat" / "0.jpg", "train/ant/0.jpg")
    out = tmp_path / "out"
    assert run("shard", "--source", tmp_path / source, "--out", out, "--jobs", 1) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert re.search(message, error)
    assert not (out / "index.json").exists()


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([{"name": "a", "folder": "ant"}], "does not list class 'Bee eater'"),
        ([{"name": x, "folder": x} for x in ("ant", "Bee eater", "zebra_2", "yak")], "class 'yak'"),
        ([{"name": x, "folder": "ant"} for x in "ab"], "lists a folder twice"),
        (["ant"], "is not a JSON list of"),
    ],
)
def test_names_file_must_match_the_source(images, tmp_path, capsys, entries, message):
    (tmp_path / "names.json").write_text(json.dumps(entries))
    names = ("--names", tmp_path / "names.json")
    assert run("shard", "--source", images, "--out", tmp_path / "out", *names) == 2
    assert message in capsys.readouterr().err


def test_bad_images_are_left_out_with_the_option(tmp_path, capsys):
    folder = write_folder(tmp_path / "in")
    (folder / "train/ant/p.3.jpg").write_bytes(b"broken")
    index = prepare(folder, tmp_path / "out", "--on-bad", "skip")
    assert index.count("train")[1] == 6
    assert "train/ant/p.3.jpg cannot be decoded" in capsys.readouterr().out


@pytest.mark.parametrize(
    "options", [["--shard-size", "big"], ["--shard-size", "9TB"], ["--resize", "0"]]
)
def test_bad_option_is_explained(images, tmp_path, capsys, options):
    assert run("shard", "--source", images, "--out", tmp_path, *options) == 2
    assert options[0] in capsys.readouterr().err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["shard", "--help"])
    text = capsys.readouterr().out
    assert "s3://" in text and "AWS_ENDPOINT_URL" in text and "cifar-100-binary" in text


# Restarting


@pytest.mark.parametrize("stopped_at", [1, 2, 5])
def test_interrupted_attempt_resumes(images, tmp_path, monkeypatch, stopped_at):
    whole = prepare(images, tmp_path / "whole", "--shard-size", "20kB")
    out, recipe, write = str(tmp_path / "out"), Recipe(shard_bytes=20_000), storage.write_atomically

    def stop(url: str, data: bytes, **options: object) -> None:
        if url.endswith(whole.shards[stopped_at].name):
            raise KeyboardInterrupt
        write(url, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_atomically", stop)
        with pytest.raises(KeyboardInterrupt):
            write_shards(str(images), out, recipe)
    assert not os.path.exists(f"{out}/index.json")
    outcome = write_shards(str(images), out, recipe)
    assert outcome.resumed == stopped_at
    assert contents(out) == contents(str(tmp_path / "whole"))


def test_state_of_many_shards_stays_small(tmp_path, monkeypatch):
    """must cost bytes in proportion to the shards, and lose little of the work after a kill"""
    counts, size, write = [0], 0, storage.write_atomically
    sample = Sample("train", 0, "ant/0", "jpg", b"x")
    samples = [replace(sample, key=f"ant/{number}") for number in range(1000)]
    work = sharding._Work("fingerprint")

    def record(url: str, data: bytes, **options: object) -> None:
        nonlocal size
        if url.endswith(UNFINISHED_NAME):
            counts.append(len(json.loads(data)["shards"]))
            size += len(data)
        write(url, data, **options)

    monkeypatch.setattr(storage, "write_atomically", record)
    url = f"memory://{uuid.uuid4().hex}"
    sharding._store_all(url, build_shards(samples, shard_bytes=1), work)
    assert counts[-1] == len(work.shards) == 1000
    assert all(after <= before * 65 / 64 + 1 for before, after in itertools.pairwise(counts))
    assert size < 70 * storage.size(storage.join(url, UNFINISHED_NAME))


def test_interruption_is_reported_with_status_75(images, tmp_path, monkeypatch, capsys):
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(storage, "write_atomically", interrupt)
    assert run("shard", "--source", images, "--out", tmp_path / "out", "--jobs", 1) == 75
    assert "stopped by a signal; start the same command again" in capsys.readouterr().err


# The command, held before its last image until a signal comes.
HELD_COMMAND = """
import contextlib, sys, time
from pipeline import prepare

@contextlib.contextmanager
def hold(what):
    yield lambda done, total: time.sleep(600 if done == total - 1 else 0)

prepare._progress_display = hold
sys.exit(prepare.main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_ends_every_process_and_the_same_command_continues(tmp_path, number):
    """must end a command in the middle of its work, however fast the machine is"""
    source, out = tmp_path / "in", tmp_path / "out"
    data = draw_image_file(5, size=(300, 300), kind="PNG")
    for split, count in (("train", 150), ("test", 1)):
        (source / split / "ant").mkdir(parents=True)
        for row in range(count):
            (source / split / "ant" / f"{row}.png").write_bytes(data)
    command = [sys.executable, "-c", HELD_COMMAND, "shard", "--source", str(source)]
    command += ["--out", str(out), "--jobs", "2", "--shard-size", "1MB", "--resize", "200"]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(out.glob("train-*.json")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    output, error = process.communicate(timeout=60)
    stopped = "error: stopped by a signal; start the same command again to continue\n"
    assert (process.returncode, output, error) == (75, "", stopped)
    deadline = time.monotonic() + 60
    while _lives(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _lives(process.pid)
    assert write_shards(str(source), str(out), Recipe(1_000_000, 200)).resumed > 0


def _lives(group: int) -> bool:
    """Whether a process of the group is there, other than one that has ended."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == group and fields[0] != "Z":
            return True
    return False


def test_attempt_with_another_recipe_starts_again(images, tmp_path):
    note = {"fingerprint": "other", "last_key": ["train", "x"], "shards": []}
    storage.write_atomically(str(tmp_path / UNFINISHED_NAME), json.dumps(note).encode())
    assert write_shards(str(images), str(tmp_path), Recipe()).resumed == 0
    assert UNFINISHED_NAME not in os.listdir(tmp_path)


# verify, stats, copy


def test_verify_finds_every_kind_of_fault(images, tmp_path, capsys):
    index = prepare(images, tmp_path, "--shard-size", "20kB")
    assert run("verify", tmp_path, "--jobs", 2) == 0
    assert "21 samples in" in capsys.readouterr().out
    overwrite_byte(str(tmp_path / index.shards[0].name), 700)
    overwrite_byte(str(tmp_path / index.shards[1].table_name), 5)
    (tmp_path / index.shards[2].name).unlink()
    (tmp_path / "stray.tar").write_text("x")
    assert run("verify", tmp_path, "--jobs", 1) == 2
    out = capsys.readouterr()
    assert re.search(r"train-000000.tar: its [0-9,]+ bytes do not match the index", out.out)
    assert "train-000001.json: its sha256 is not the one in the index" in out.out
    assert "train-000002.tar: there is no such file" in out.out
    assert "stray.tar: does not belong to the data set" in out.out
    assert "4 faults" in out.err


def test_copy_that_is_stopped_leaves_no_index_over_mixed_shards(images, tmp_path, monkeypatch):
    """must never show a data set whose shards are partly those of another one"""
    prepare(images, tmp_path / "a", "--shard-size", "20kB")
    prepare(images, tmp_path / "b", "--shard-size", "30kB")
    target, write = str(tmp_path / "copy"), storage.write_atomically
    copy_data_set(str(tmp_path / "a"), target)

    def stop(url: str, data: bytes, **options: object) -> None:
        if url.endswith("test-000000.json"):
            raise KeyboardInterrupt
        write(url, data, **options)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "write_atomically", stop)
        with pytest.raises(KeyboardInterrupt):
            copy_data_set(str(tmp_path / "b"), target, overwrite=True)
    assert not os.path.exists(f"{target}/index.json")
    copy_data_set(str(tmp_path / "b"), target, overwrite=True)
    assert contents(target) == contents(str(tmp_path / "b"))


def test_statistics_find_copies_across_splits(tmp_path, capsys):
    folder = write_folder(tmp_path / "in")
    shutil.copy(folder / "train/ant/p.1.jpg", folder / "test/zebra_2/leak.jpg")
    shutil.copy(folder / "train/ant/p.2.jpg", folder / "train/zebra_2/again.jpg")
    prepare(folder, tmp_path / "out")
    assert run("stats", tmp_path / "out") == 0
    text = capsys.readouterr().out
    assert "test images that are also in train: 1\n  zebra_2/leak = ant/p%2E1" in text
    assert "copies within train: 1" in text and "copies within test: 0" in text
    assert "zebra 2" in text


def test_copy_is_verified_and_resumes(images, tmp_path, capsys):
    prepare(images, tmp_path / "a", "--shard-size", "20kB")
    target = f"memory://{uuid.uuid4().hex}"
    assert run("copy", tmp_path / "a", target) == 0
    assert contents(target) == contents(str(tmp_path / "a"))
    assert "left out 1 files" not in capsys.readouterr().out
    (tmp_path / "a" / "notes.txt").write_text("x")
    assert run("copy", tmp_path / "a", target) == 0
    assert "left out 1 files that the index does not name:\n  file" in capsys.readouterr().out
    (tmp_path / "a" / "notes.txt").unlink()
    overwrite_byte(f"{target}/train-000000.tar", 99)
    assert run("copy", tmp_path / "a", target) == 0
    assert contents(target) == contents(str(tmp_path / "a"))
    prepare(images, tmp_path / "b")
    assert run("copy", tmp_path / "b", target) == 2
    assert "belongs to another data set" in capsys.readouterr().err
    assert run("copy", tmp_path / "b", target, "--overwrite") == 0
    assert contents(target) == contents(str(tmp_path / "b"))  # no file of the longer data set
    overwrite_byte(str(tmp_path / "b" / "train-000000.tar"), 99)
    with pytest.raises(DataError, match="was not copied"):
        copy_data_set(str(tmp_path / "b"), str(tmp_path / "c"))
    assert not (tmp_path / "c" / "index.json").exists()

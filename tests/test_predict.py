"""The command that classifies image files: rows, problems, labels, exit status."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from PIL import Image

from pipeline import storage
from pipeline.output.predictions import read_predictions
from pipeline.output.results import finished_results
from pipeline.predict import main
from tests.tiny import CLASSES, TEST_IMAGES, tiny_tasks

ROOT = Path(__file__).parents[1]
NAMES = [name for task in tiny_tasks() for name in task.names]
N_TEST = sum(TEST_IMAGES)


@pytest.fixture
def predict(learned_run: Path, capsys: pytest.CaptureFixture[str]):
    """Run the command; gives exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main(["--run", str(learned_run), "--device", "cpu", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


@pytest.fixture
def folder(tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder with three images of kites in ``kite/``."""
    shutil.copytree(tiny_images / "test" / CLASSES["kite"], tmp_path / "kite")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_files_are_classified_as_the_run_classified_its_shards(
    predict, learned_run, tiny_images, batch
):
    """must hold for every image, since preparation re-encoded none of them"""
    status, out, err = predict("--batch", batch, "--format", "jsonl", tiny_images / "test")
    assert status == 0 and f"{N_TEST} images classified" in err
    tests = {each.key: each for each in read_predictions(str(learned_run))}
    lines = [json.loads(line) for line in out.splitlines()]
    assert len(lines) == len(tests) == N_TEST
    for line in lines:
        own = tests["/".join(Path(line["path"]).with_suffix("").parts[-2:])]
        assert [best["class"] for best in line["top"]] == [NAMES[n] for n, _ in own.top]
        found = [best["probability"] for best in line["top"]]
        assert found == pytest.approx([probability for _, probability in own.top], abs=2e-6)
        task_of = {name: task.index + 1 for task in tiny_tasks() for name in task.names}
        assert all(best["task"] == task_of[best["class"]] for best in line["top"])


def test_rows_are_a_csv_in_the_order_of_the_paths(predict, folder):
    status, out, _ = predict("--top", 2, "kite/2.png", "kite")
    assert status == 0
    assert out.splitlines()[0] == ("path,class_1,probability_1,task_1,class_2,probability_2,task_2")
    rows = rows_of(out)
    assert [row["path"] for row in rows] == ["kite/2.png", "kite/0.png", "kite/1.png"]
    assert all(float(row["probability_1"]) >= float(row["probability_2"]) for row in rows)


def test_stage_decides_the_classes(predict, folder):
    _, out, _ = predict("--stage", 1, "--top", 9, "kite")
    names = {row[f"class_{rank}"] for row in rows_of(out) for rank in (1, 2, 3)}
    assert names == {*NAMES[:3]} and "class_4" not in out


def test_task_leaves_its_classes_alone(predict, folder, learned_run):
    """must choose among the classes of the task, and name labels of others as unknown"""
    status, out, err = predict("--task", 2, "--top", 9, "--labels", "folders", "kite")
    rows, names = rows_of(out), {*tiny_tasks()[1].names}
    assert status == 0 and all({row[f"class_{n}"] for n in (1, 2, 3)} == names for row in rows)
    assert sum(float(rows[0][f"probability_{n}"]) for n in (1, 2, 3)) == pytest.approx(1, abs=1e-5)
    assert "class_4" not in out and {row["task_1"] for row in rows} == {"2"}
    assert "not in the accuracy: 3 images; at stage 3 the run does not know kite" in err
    assert "task 9 is not learned; choose one from 1 to 3" in predict("--task", 9, "kite")[2]


def test_rows_go_to_a_file_or_url(predict, folder):
    _, expected, _ = predict("kite")
    for place in ("rows.csv", "memory://predict/rows.csv"):
        assert predict("--out", place, "kite")[:2] == (0, "")
        assert storage.read_text(place) == expected


@pytest.mark.parametrize("place", ["kite", "", "kite/0.png/rows.csv"])
def test_place_where_no_rows_can_be_written_is_refused_first(predict, folder, place):
    """must not cost the hours of classification before it"""
    status, out, err = predict("--out", place, "kite")
    assert (status, out, err.count("\n")) == (2, "", 1) and f"--out {place!r} cannot be" in err
    assert sorted(path.name for path in folder.iterdir()) == ["kite"]


def test_unreadable_files_are_named_and_counted(predict, folder):
    good = (folder / "kite" / "0.png").read_bytes()
    (folder / "cut.png").write_bytes(good[:200])
    (folder / "text.jpg").write_text("no image")
    paths = ["cut.png", "text.jpg", "gone.png", "*.none", "kite"]
    status, out, err = predict(*paths)
    assert status == 0 and len(rows_of(out)) == 3
    *_, summary = lines = err.splitlines()
    for name in ("cut.png cannot be decoded", "text.jpg cannot", "gone.png cannot be read"):
        assert any(line.startswith(name) for line in lines)
    assert "*.none: no file has a name of this form" in lines
    assert summary == "3 images classified, 3 not, 1 path without an image"
    status, strict, err = predict("--strict", *paths)
    assert (status, strict) == (2, out)
    assert "error: 4 images or paths could not be classified, and --strict" in err


@pytest.mark.parametrize("paths", [["gone.png"], ["*.none"], [""]])
def test_nothing_to_classify_is_an_error(predict, folder, paths):
    """must leave the rows of an earlier call alone"""
    (folder / "rows.csv").write_text("earlier")
    status, _, err = predict("--out", "rows.csv", *paths)
    assert status == 2 and err.splitlines()[-1].startswith("error: no image ")
    assert (folder / "rows.csv").read_text() == "earlier"


def test_names_are_written_so_that_they_can_be_read_again(predict, folder):
    """must hold for line ends, quotes and formulas: a spreadsheet computes nothing"""
    names = ['a"b,c\n1.png', "=1+1.png", "é.png", "-x.png", "@y.png"]
    for name in names:
        shutil.copy("kite/0.png", name)
    _, out, _ = predict("--", *names)
    written = [row["path"] for row in rows_of(out)]
    assert written == [names[0], "./=1+1.png", "é.png", "./-x.png", "./@y.png"]
    assert all(Path(name).is_file() for name in written)


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
def test_paths_are_read_from_standard_input(predict, folder, monkeypatch, separator):
    listed = separator.join(["kite/0.png", "kite/1.png", ""])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(listed.encode())))
    _, out, _ = predict("-", "kite/2.png")
    assert [row["path"] for row in rows_of(out)] == [f"kite/{n}.png" for n in range(3)]


@pytest.mark.parametrize("mode", ["L", "P", "CMYK", "RGBA", "I;16", "1"])
def test_images_of_every_mode_are_classified(predict, folder, mode):
    suffix = "tif" if mode in ("CMYK", "I;16") else "png"
    Image.open("kite/0.png").convert("L" if mode == "I;16" else mode).convert(mode).save(
        f"x.{suffix}"
    )
    assert predict(f"x.{suffix}")[0] == 0


def test_photo_is_turned_as_its_orientation_says(predict, folder):
    upright = Image.open("kite/0.png")
    upright.save("upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned to the left; a viewer turns it to the right
    upright.transpose(Image.Transpose.ROTATE_90).save("turned.png", exif=exif)
    _, out, _ = predict("upright.png", "turned.png")
    first, second = ([row[f"class_{rank}"] for rank in range(1, 6)] for row in rows_of(out))
    assert first == second


def test_labels_by_folder_give_the_accuracy(predict, learned_run, tiny_images):
    root = tiny_images.parent / "by-name"
    for name, stored in CLASSES.items():
        place = root / name.replace(" ", "_")
        if not place.exists():
            shutil.copytree(tiny_images / "test" / stored, place)
    (root / "dodo").mkdir(exist_ok=True)
    shutil.copy(root / "kite" / "0.png", root / "dodo" / "1.png")
    results = finished_results(str(learned_run))
    status, _, err = predict("--labels", "folders", "--per-class", root)
    assert status == 0
    correct = sum(results.counts.correct[-1])
    assert f"accuracy {100 * correct / N_TEST:.1f} % of {N_TEST} images" in err
    macro = [results.class_accuracies[-1][n] for n in range(len(NAMES))]
    assert f"{100 * sum(macro) / len(macro):.1f} % as the mean of 7 classes" in err
    for number, name in enumerate(NAMES):
        assert f"{name} (task " in err and f", {100 * macro[number]:.1f} %" in err
    assert "not in the accuracy: 1 image; at stage 3 the run does not know dodo" in err
    _, _, err = predict("--labels", "folders", "--stage", 1, root)
    unknown = ", ".join(sorted(name.replace(" ", "_") for name in [*NAMES[3:], "dodo"]))
    assert f"at stage 1 the run does not know {unknown}" in err


def test_labels_by_table_give_the_accuracy(predict, folder):
    (folder / "labels.csv").write_text(
        "path,class\nkite/0.png,kite\nkite/1.png,red_fox\n" + str(folder / "kite/2.png") + ",kite\n"
    )
    status, out, err = predict("--labels", "labels.csv")
    rows = rows_of(out)
    assert [row["label"] for row in rows] == ["kite", "red_fox", "kite"]
    right = sum(row["class_1"] == row["label"].replace("_", " ") for row in rows)
    assert status == 0 and f"accuracy {100 * right / 3:.1f} % of 3 images" in err
    shutil.copy("kite/0.png", "kite/3.png")
    _, _, err = predict("--labels", "labels.csv", "kite")
    assert "without a label: 1 image" in err


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("path,label\na.png,kite\n", "has no column class"),
        ("path,class\na.png,kite\na.png,oak\n", "give an image one class"),
        ("path,class\na.png,\n", "line 2: has no path or no class"),
        ("path,class\n", "lists no image"),
    ],
)
def test_wrong_table_of_labels_is_refused(predict, folder, text, problem):
    (folder / "labels.csv").write_text(text)
    status, out, err = predict("--labels", "labels.csv", "kite")
    assert (status, out) == (2, "") and problem in err


def test_wrong_options_are_refused(predict, folder, learned_run):
    assert predict("--stage", 9, "kite")[0] == 2
    assert predict("--per-class", "kite")[0] == 2
    for words in (["--top", "0", "kite"], []):
        with pytest.raises(SystemExit) as stop:
            predict(*words)
        assert stop.value.code == 2


def test_named_pipe_is_refused_and_not_waited_for(predict, folder):
    os.mkfifo("pipe.png")
    status, _, err = predict("pipe.png")
    assert status == 2 and "pipe.png is not a regular file" in err


def test_signal_stops_the_command_in_order(learned_run):
    """must hold while it reads a list of paths that never ends"""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipeline.predict", "--run", str(learned_run), "-"],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    process.stdin.write(b"a.png\n")
    process.stdin.flush()
    unread = b"1234"
    while any(unread):  # until the command reads the list, long after its start
        time.sleep(0.05)
        unread = fcntl.ioctl(process.stdin, termios.FIONREAD, b"1234")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err.count(b"Traceback")) == (75, 0), err

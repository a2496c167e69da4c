"""A sheet shows the pixels that the model gets, and is drawn alike each time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import storage
from pipeline.config import load_config
from pipeline.data.decoding import open_image
from pipeline.data.transforms import build_transform
from pipeline.errors import ConfigError, DataError
from pipeline.inspection.grid import GridOptions, draw_grid
from pipeline.inspection.sheet import SheetRow, draw_sheet
from pipeline.rng import numpy_stream
from tests.tiny import CLASSES, IMAGE_SIZE, TRAIN_IMAGES

ZOOM = 6  # of 21 pixels, up to 128
CELL, ROW = ZOOM * IMAGE_SIZE + 4, ZOOM * IMAGE_SIZE + 28


def draw(url: str | Path, file: Path, **options) -> list[str]:
    return draw_grid(str(url), str(file), GridOptions(**options), lambda done, total: None)


def images_of(file: Path, row: int, count: int) -> np.ndarray:
    """The first images of a row of a sheet, in their own size: N × H × W × 3."""
    sheet = np.asarray(Image.open(file))
    top = row * ROW + 28
    cells = [
        sheet[top : top + ROW - 28 : ZOOM, 4 + n * CELL : (n + 1) * CELL : ZOOM]
        for n in range(count)
    ]
    return np.stack(cells)


def test_sheet_of_a_run_has_the_pixels_of_its_test(finished_run, tiny_images, tmp_path):
    """must be those of the evaluation transform, in the order of the run's classes"""
    lines = draw(finished_run, tmp_path / "a.png", split="test", per_class=2)
    assert "7 classes, test images, transform clip at 21 × 21 pixels" in lines[0]
    transform = build_transform("clip", IMAGE_SIZE)
    for row, label in enumerate([4, 0, 6]):
        files = sorted((tiny_images / "test" / list(CLASSES.values())[label]).iterdir())
        wanted = [
            transform(open_image(file.read_bytes())).permute(1, 2, 0)
            for file in (files[0], files[-1])
        ]
        found = images_of(tmp_path / "a.png", row, 2)
        assert np.array_equal(found, torch.stack(wanted).numpy())


def test_random_transform_draws_as_in_the_first_epoch(finished_run, tiny_images, tmp_path):
    draw(finished_run, tmp_path / "a.png", per_class=1, classes=["oak"])
    seed = load_config(finished_run / "config.yaml").seed
    # the task of oak is the second one; its first sample follows those of the red fox
    rng = numpy_stream("augment", seed, 1, 0, TRAIN_IMAGES[0])
    (file, *_) = sorted((tiny_images / "train" / CLASSES["oak"]).iterdir())
    image = open_image(file.read_bytes())
    wanted = build_transform("random_crop", IMAGE_SIZE)(image, rng).permute(1, 2, 0).numpy()
    assert np.array_equal(images_of(tmp_path / "a.png", 0, 1)[0], wanted)


def test_two_sheets_are_equal_bytes(tiny_shards, tmp_path):
    options = {"transform": "random_crop", "image_size": IMAGE_SIZE, "per_class": 3}
    for name in ("a.png", "b.png"):
        draw(tiny_shards, tmp_path / name, **options)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_size_is_that_of_the_architecture(tiny_shards, tmp_path):
    (line,) = draw(tiny_shards, tmp_path / "a.png", arch="ViT-L-14-336", per_class=1)
    assert "at 336 × 336 pixels" in line
    file = "memory://inspect/sheet.png"
    draw_grid(tiny_shards, file, GridOptions(per_class=1, image_size=32), lambda done, total: None)
    assert storage.read_bytes(file).startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"classes": ["oka"]}, "--classes: there is no class oka; did you mean 'oak'"),
        ({"per_class": 0}, "--per-class 0 is not possible; choose 1 to 100"),
        ({"image_size": 0}, "--image-size 0 is not possible"),
        ({"transform": "crop"}, "no transform is called 'crop'; choose one of clip"),
        ({"image_size": 8000}, "it may have 200,000,000 in all; choose fewer --classes"),
    ],
)
def test_option_that_does_not_fit_is_refused(tiny_shards, tmp_path, options, words):
    with pytest.raises(ConfigError, match=words):
        draw(tiny_shards, tmp_path / "a.png", **{"per_class": 1, **options})
    assert not (tmp_path / "a.png").exists()


def test_neither_data_set_nor_run_is_refused(finished_run, tmp_path):
    with pytest.raises(DataError, match="is a snapshot folder, and --grid draws images"):
        draw(finished_run / "snapshots", tmp_path / "a.png")


def test_class_names_in_every_script_are_drawn():
    """must write what no font has as its code, and cut what is too long"""
    image_NHW3 = np.zeros((1, 128, 128, 3), np.uint8)

    def title(text: str) -> np.ndarray:
        return np.asarray(draw_sheet([SheetRow(text, image_NHW3)], 128))[:28]

    titles = [title(text) for text in ("a", "ж", "犬", "\U0010ffff", "a" * 500)]
    assert all((each < 128).any() for each in titles)
    assert len({each.tobytes() for each in titles}) == len(titles)
    assert np.array_equal(title("\U0010fffd"), title("\\U0010fffd"))


def test_image_that_cannot_be_decoded_is_crossed_out():
    row = SheetRow("bell", np.zeros((2, 128, 128, 3), np.uint8), frozenset({1}))
    sheet = np.asarray(draw_sheet([row], 128))[28:]
    is_red_W = (sheet == (255, 0, 0)).all(-1).any(0)
    assert is_red_W[136:].any() and not is_red_W[:136].any()

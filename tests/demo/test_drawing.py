"""The demo's drawn images, and the tiny CLIP that was pre-trained on some of them."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.demo.drawing import (
    DEMO_NOUNS,
    DEMO_RENDITIONS,
    IMAGE_SIZE,
    PRETRAINING_NOUNS,
    PRETRAINING_RENDITIONS,
    UNSEEN_NOUNS,
    draw_image,
    draw_sheet,
    write_images,
)
from pipeline.demo.nouns import NOUNS
from pipeline.demo.renditions import RENDITIONS
from pipeline.rng import numpy_stream
from tests.demo_clip import measure, pretrain

CLIP = Path(__file__).parents[2] / "pipeline" / "demo" / "clip"


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by its path below ``folder``."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return {str(f.relative_to(folder)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def test_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for folder, seed in (("first", 1), ("second", 1), ("third", 2)):
        write_images(tmp_path / folder, nouns=["key"], per_class={"train": 6}, seed=seed)
    first, second, third = (digests(tmp_path / name) for name in ("first", "second", "third"))
    assert first == second
    assert first.keys() == third.keys()
    assert not set(first.values()) & set(third.values())


def test_an_image_does_not_depend_on_the_others(tmp_path):
    write_images(tmp_path / "few", nouns=["car"], per_class={"train": 6})
    write_images(tmp_path / "many", nouns=["bus", "car"], per_class={"train": 8, "test": 1})
    few, many = digests(tmp_path / "few"), digests(tmp_path / "many")
    assert few.items() <= many.items()
    assert len(set(many.values())) == len(many)


def test_layout_names_split_noun_and_rendition(tmp_path):
    count = write_images(
        tmp_path,
        nouns=["ice cream"],
        renditions=["grey photograph", "neon"],
        per_class={"train": 3, "test": 1},
    )
    assert count == 4
    assert list(digests(tmp_path)) == [
        "test/ice cream/grey_photograph-000.png",
        "train/ice cream/grey_photograph-000.png",
        "train/ice cream/grey_photograph-002.png",
        "train/ice cream/neon-001.png",
    ]
    image = Image.open(tmp_path / "train" / "ice cream" / "neon-001.png")
    assert (image.size, image.mode) == ((IMAGE_SIZE, IMAGE_SIZE), "RGB")


def test_every_noun_draws_differently():
    """must hold for the shape alone: pose, colours and clutter are the same for all nouns"""
    outlines = {
        noun: np.asarray(draw_image(noun, "silhouette", numpy_stream("same"))).tobytes()
        for noun in NOUNS
    }
    assert len(set(outlines.values())) == len(NOUNS)


@pytest.mark.parametrize("rendition", RENDITIONS)
def test_every_noun_is_visible_in_every_rendition(rendition):
    for noun in NOUNS:
        pixels_HWC = np.asarray(draw_image(noun, rendition, numpy_stream("seen", noun)))
        assert pixels_HWC.std(axis=(0, 1)).max() > 6, noun


def test_renditions_differ_on_the_same_drawing():
    images = {draw_image("house", name, numpy_stream("house")).tobytes() for name in RENDITIONS}
    assert len(images) == len(RENDITIONS)


def test_the_demo_shares_no_rendition_with_pretraining():
    assert set(DEMO_RENDITIONS).isdisjoint(PRETRAINING_RENDITIONS)
    assert set(DEMO_RENDITIONS) | set(PRETRAINING_RENDITIONS) == set(RENDITIONS)
    assert set(UNSEEN_NOUNS) < set(DEMO_NOUNS)
    assert set(UNSEEN_NOUNS).isdisjoint(PRETRAINING_NOUNS)
    assert (len(DEMO_NOUNS), len(UNSEEN_NOUNS), len(NOUNS)) == (20, 4, 60)


def test_contact_sheet_has_a_cell_for_each_noun_and_rendition():
    sheet = draw_sheet(["sun", "key"], ["neon", "mosaic", "sketch"], zoom=1)
    assert sheet.size == (3 * (IMAGE_SIZE + 4) + 4, 2 * (IMAGE_SIZE + 4) + 4)


def test_pretraining_gives_the_same_weights_every_time():
    config = pretrain.PretrainingConfig(images=1, steps=4, batch=8, warmup_steps=1)
    pool = pretrain.draw_pool(config)
    first, second = (pretrain.pretrain(config, *pool).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_saved_clip_is_loaded_as_it_was_trained(tmp_path):
    config = pretrain.PretrainingConfig(images=1, steps=1, batch=4)
    pool = pretrain.draw_pool(config)
    trained = pretrain.pretrain(config, *pool)
    pretrain.save_clip(trained, tmp_path)
    loaded = measure.TinyClip(str(tmp_path))
    features = loaded.encode_images(["key", "sun"], ["neon", "sketch"], 1, "test")
    pixels = [
        np.array(draw_image(noun, style, numpy_stream("measure", "test", noun, style, 0)))
        for noun in ("key", "sun")
        for style in ("neon", "sketch")
    ]
    image_BCHW = pretrain.normalize(torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2))
    with torch.no_grad():
        expected_BE = trained.encode_image(image_BCHW, normalize=True)
    torch.testing.assert_close(features.z_BE, expected_BE, atol=3e-3, rtol=0)  # float16 weights


def test_the_committed_clip_is_small_and_knows_its_pretraining_images():
    size = sum(file.stat().st_size for file in CLIP.iterdir())
    assert size <= 6_000_000
    clip = measure.TinyClip(str(CLIP))
    nouns = PRETRAINING_NOUNS[::2]
    features = clip.encode_images(nouns, PRETRAINING_RENDITIONS, 1, "test")
    accuracy = measure.score_zero_shot(features, clip.encode_nouns(nouns)).mean().item()
    assert accuracy > 0.85  # chance is 1/28


def test_the_committed_clip_has_something_to_learn_in_the_demo():
    clip = measure.TinyClip(str(CLIP))
    test = clip.encode_images(DEMO_NOUNS, DEMO_RENDITIONS, 4, "test")
    train = clip.encode_images(DEMO_NOUNS, DEMO_RENDITIONS, 4, "train")
    zero_shot = measure.score_zero_shot(test, clip.encode_nouns(DEMO_NOUNS)).mean().item()
    assert 0.3 < zero_shot < 0.8
    assert measure.score_class_means(train, test) > zero_shot

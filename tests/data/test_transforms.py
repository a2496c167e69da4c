"""Presets give the pixels of open_clip and torchvision, and depend only on the generator."""

from __future__ import annotations

import pickle

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as reference

from pipeline.data.transforms import build_transform
from pipeline.errors import ConfigError
from pipeline.rng import numpy_stream
from tests.fuzz import PeakMemory

SIZES = [(29, 23), (23, 29), (17, 17), (64, 64), (31, 200), (500, 375), (101, 33)]


def draw(size: tuple[int, int], mode: str = "RGB") -> Image.Image:
    pixel_HWC = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixel_HWC).convert(mode)


@pytest.mark.parametrize("size", SIZES)
def test_clip_equals_open_clip_to_the_bit(size):
    image = draw(size)
    whole = open_clip.image_transform(21, is_train=False)
    expected = (whole.transforms[:2], image)
    for step in expected[0]:
        image = step(image)
    ours = build_transform("clip", 21)(draw(size))
    assert torch.equal(ours, torch.from_numpy(np.array(image)).permute(2, 0, 1))


@pytest.mark.parametrize("size", [(1, 60_000), (60_000, 1), (2, 30_000)])
def test_strip_takes_the_memory_of_its_crop(size):
    strip = Image.new("RGB", size, (10, 120, 240))
    memory = PeakMemory()
    ours = build_transform("clip", 64)(strip)
    assert ours.shape == (3, 64, 64) and ours[:, 0, 0].tolist() == [10, 120, 240]
    assert memory.growth() < 32 << 20


@pytest.mark.parametrize("size", [(700, 20), (20, 700)])
def test_crop_of_a_strip_is_that_of_open_clip(size):
    """must hold to a small difference: PIL rounds in between, in another order"""
    ramp_HWC = np.indices((size[1], size[0])).sum(0)[..., None].repeat(3, 2) % 256
    strip = Image.fromarray(np.uint8(127 + 100 * np.sin(ramp_HWC / 40)))
    image = strip
    for step in open_clip.image_transform(21, is_train=False).transforms[:2]:
        image = step(image)
    ours = build_transform("clip", 21)(strip).permute(1, 2, 0).numpy().astype(int)
    assert np.abs(ours - np.array(image).astype(int)).max() <= 2


@pytest.mark.parametrize("size", SIZES)
def test_squash_equals_torchvision(size):
    expected = reference.resize(draw(size), [21, 21], InterpolationMode.BICUBIC)
    ours = build_transform("squash", 21)(draw(size))
    assert torch.equal(ours, reference.pil_to_tensor(expected))


@pytest.mark.parametrize("size", SIZES)
def test_random_crop_depends_on_its_generator_alone(size):
    crop = pickle.loads(pickle.dumps(build_transform("random_crop", 21)))
    views = [crop(draw(size), numpy_stream("augment", seed)) for seed in (1, 1, 2, 3, 4)]
    assert torch.equal(views[0], views[1])
    assert not all(torch.equal(views[0], view) for view in views[2:])
    assert all(view.shape == (3, 21, 21) and view.dtype == torch.uint8 for view in views)


def test_random_crop_flips_half_and_keeps_most_of_the_area():
    ramp = Image.fromarray(np.tile(np.arange(200, dtype=np.uint8), (200, 1))).convert("RGB")
    crop = build_transform("random_crop", 16)
    views = [crop(ramp, numpy_stream("augment", seed)) for seed in range(200)]
    rises = [int(view[0, 8, -1]) - int(view[0, 8, 0]) for view in views]
    assert 70 < sum(rise < 0 for rise in rises) < 130
    assert all(abs(rise) > 200 * 0.4**0.5 * (3 / 4) ** 0.5 * 0.8 for rise in rises)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1"])
def test_every_colour_mode_becomes_rgb(mode):
    for name in ("clip", "squash"):
        assert build_transform(name, 7)(draw((9, 11), mode)).shape == (3, 7, 7)


def test_unknown_preset_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="'blur'; choose one of clip, squash, random_crop"):
        build_transform("blur", 21)

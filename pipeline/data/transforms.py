"""From a decoded image to the uint8 tensor that leaves the loader.

The device normalises, so the loader sends one byte per channel instead of four.
Every random draw comes from the generator that is passed in, never from the state of a worker.

B images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from pipeline.errors import ConfigError

_BICUBIC = Image.Resampling.BICUBIC
_LONGEST_SIDE = 32  # in multiples of the image size, before only the crop is computed


@dataclass(frozen=True)
class Transform:
    """A named preset at one image size in pixels; equal in every process, small to pickle."""

    name: str
    image_size: int

    @property
    def is_random(self) -> bool:
        """Whether the pixels depend on the generator."""
        return self.name == "random_crop"

    def __call__(self, image: Image.Image, rng: np.random.Generator | None = None) -> torch.Tensor:
        """``image_CHW``, uint8, RGB."""
        rgb = image if image.mode == "RGB" else image.convert("RGB")
        resized = _PRESETS[self.name](rgb, self.image_size, rng)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()


def build_transform(name: str, image_size: int) -> Transform:
    """``clip``, ``squash`` or ``random_crop`` at ``image_size`` pixels a side.

    - ``clip``: short side to ``image_size``, bicubic, centre crop; bit-equal to open_clip's
      evaluation transform of an RGB image before normalisation, unless one side is more than 32
      times the other.
    - ``squash``: both sides to ``image_size``, bicubic; changes the aspect ratio.
    - ``random_crop``: a random 40 to 100 % of the area (aspect 3:4 to 4:3), bicubic, random flip.

    Raises:
        ConfigError: no preset has this name.
    """
    if name not in _PRESETS:
        raise ConfigError(f"no transform is called {name!r}; choose one of {', '.join(_PRESETS)}")
    return Transform(name, image_size)


def _clip(image: Image.Image, size: int, rng: np.random.Generator | None) -> Image.Image:
    width, height = image.size
    if width <= height:
        resized_size = size, int(size * height / width)
    else:
        resized_size = int(size * width / height), size
    # torchvision's CenterCrop rounds half to even, and so does Python's round
    left, top = round((resized_size[0] - size) / 2.0), round((resized_size[1] - size) / 2.0)
    if max(resized_size) > _LONGEST_SIDE * size:
        # Only the crop is computed: the resized image of a 1-pixel-wide strip takes gigabytes.
        across, down = width / resized_size[0], height / resized_size[1]
        box = left * across, top * down, (left + size) * across, (top + size) * down
        return image.resize((size, size), _BICUBIC, box=box)
    return image.resize(resized_size, _BICUBIC).crop((left, top, left + size, top + size))


def _squash(image: Image.Image, size: int, rng: np.random.Generator | None) -> Image.Image:
    return image.resize((size, size), _BICUBIC)


def _random_crop(image: Image.Image, size: int, rng: np.random.Generator | None) -> Image.Image:
    if rng is None:
        raise ValueError("random_crop needs a generator")
    left, top, width, height = _draw_box(image.size, rng)
    resized = image.resize((size, size), _BICUBIC, box=(left, top, left + width, top + height))
    return resized.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else resized


def _draw_box(image_size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Left, top, width, height of a box of random area and aspect within the image."""
    image_width, image_height = image_size
    for _ in range(10):
        area = image_width * image_height * (0.4 + 0.6 * rng.random())
        aspect = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * rng.random())
        width, height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < width <= image_width and 0 < height <= image_height:
            left = int(rng.random() * (image_width - width + 1))
            top = int(rng.random() * (image_height - height + 1))
            return left, top, width, height
    # The image is too oblong for any box: take its middle, as close as possible to the aspects.
    width = min(image_width, round(image_height * 4 / 3))
    height = min(image_height, round(image_width * 4 / 3))
    return (image_width - width) // 2, (image_height - height) // 2, width, height


_PRESETS: dict[str, Callable[[Image.Image, int, np.random.Generator | None], Image.Image]] = {
    "clip": _clip,
    "squash": _squash,
    "random_crop": _random_crop,
}

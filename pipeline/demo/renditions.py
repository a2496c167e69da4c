"""Ways to paint a drawn scene, from natural colours and light to chalk, wire and stone.

Each takes a scene and a random generator and returns an RGB image in about [0, 1], H × W × 3. The
line drawings keep only the edges between parts; the others start from flat colours or from light.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFilter

LUMA = np.array([0.299, 0.587, 0.114], np.float32)


@dataclass(frozen=True)
class Scene:
    """A drawn noun before any colour; it can be painted in every rendition."""

    part_HW: np.ndarray  # number of the part seen at each pixel, 0 for the background
    tone_HW: np.ndarray  # background 0, clutter 1, own colours 2-4, dark 5, white 6
    natural_33: np.ndarray  # the noun's own three colours in nature, RGB in [0, 1]

    @property
    def object_HW(self) -> np.ndarray:
        """1 where the noun is, 0 elsewhere."""
        return (self.tone_HW > 1).astype(np.float32)


def photograph(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Natural colours under one light, with a shadow, a textured background and sensor noise."""
    shape = scene.part_HW.shape
    colour_73 = _natural_colours(scene, rng)
    rgb_HW3 = colour_73[scene.tone_HW]
    ground_HW = _noise(rng, shape, cells=int(rng.integers(2, 7))) * rng.uniform(0.05, 0.2)
    rgb_HW3 = rgb_HW3 + (ground_HW * (1 - scene.object_HW))[..., None]
    angle = rng.uniform(0, 2 * np.pi)
    step = np.array([np.sin(angle), np.cos(angle)])
    relief_HW = _relief(scene, step)
    shadow_HW = np.roll(scene.object_HW, np.rint(step * 9).astype(int), (0, 1))
    shadow_HW = _blur(shadow_HW, 4) * (1 - scene.object_HW)
    light_HW = 1 + 0.9 * relief_HW - 0.35 * shadow_HW + 0.12 * _noise(rng, shape, cells=2)
    rgb_HW3 = _blur(np.clip(rgb_HW3 * light_HW[..., None], 0, 1), rng.uniform(0, 1.6))
    return rgb_HW3 + rng.normal(0, 0.05, rgb_HW3.shape)


def grey_photograph(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """A photograph without colour, slightly toned."""
    grey_HW1 = (photograph(scene, rng) @ LUMA)[..., None]
    return grey_HW1 * (1 + rng.uniform(-0.08, 0.08) * np.array([1.0, 0.2, -1.0]))


def cartoon(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Flat colours of any hue inside dark outlines, on a pale ground."""
    colour_73 = _natural_colours(scene, rng)
    colour_73[2:5] = rng.random((3, 3)) ** 0.6
    colour_73[:2] = 0.75 + 0.25 * rng.random((1, 3))
    colour_73[1] -= 0.1
    edge_HW1 = _edges(scene.part_HW, width=3)[..., None]
    return colour_73[scene.tone_HW] * (1 - edge_HW1) + 0.08 * edge_HW1


def sketch(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Pencil lines of uneven weight on paper, with some grey filling."""
    shape = scene.part_HW.shape
    edge_HW = _blur(_edges(scene.part_HW, width=int(rng.integers(1, 4)) * 2 - 1), 0.8)
    line_HW = np.clip(edge_HW * (0.9 + 0.35 * _noise(rng, shape, cells=8)), 0, 1)
    fill_7 = rng.uniform(0, 0.35, 7) * np.array([0, 0, 1, 1, 1, 2, 0])
    dark_HW = np.maximum(line_HW * rng.uniform(0.7, 0.95), fill_7[scene.tone_HW])
    paper_3 = 0.9 + 0.1 * rng.random(3)
    return (paper_3 * (1 - dark_HW[..., None])) + rng.normal(0, 0.03, (*shape, 1))


def silhouette(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """One dark shape against a sky that changes from top to bottom."""
    top_3, bottom_3 = 0.55 + 0.45 * rng.random((2, 3))
    height_H11 = np.linspace(0, 1, scene.part_HW.shape[0])[:, None, None]
    sky_HW3 = top_3 + (bottom_3 - top_3) * height_H11
    shape_HW = np.where(scene.tone_HW == 6, rng.choice([0.3, 1.0]), scene.object_HW)[..., None]
    return sky_HW3 * (1 - shape_HW) + rng.uniform(0, 0.25, 3) * shape_HW


def watercolour(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Thin paint that bleeds over the outlines and dries darker at the rim."""
    shape = scene.part_HW.shape
    colour_73 = _natural_colours(scene, rng)
    colour_73[:2] = 0.93 + 0.05 * rng.random(3)
    paint_HW3 = _blur(colour_73[scene.tone_HW], rng.uniform(1.5, 3.0))
    rim_HW = _blur(_edges(scene.part_HW, width=3), 1.5)
    depth_HW = 0.75 + 0.35 * _noise(rng, shape, cells=6) + 0.5 * rim_HW
    paper_HW = 0.04 * _noise(rng, shape, cells=40)
    return 1 - (1 - paint_HW3) * depth_HW[..., None] + paper_HW[..., None]


def poster(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Few loud colours of any hue, unrelated to the natural ones."""
    colour_73 = rng.random((7, 3)) ** 0.6
    colour_73[1] = 0.8 * colour_73[0] + 0.2 * colour_73[1]
    colour_73[5:] = [[0.1], [0.95]]
    # Light or dark ground, but always with a contrast that shows the noun.
    contrast = colour_73[2] @ LUMA - colour_73[0] @ LUMA
    colour_73[0] -= np.sign(contrast) * max(0.0, 0.35 - abs(contrast))
    return colour_73[scene.tone_HW]


def chalkboard(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Broken strokes of coloured chalk on a smeared board."""
    shape = scene.part_HW.shape
    board_3 = np.array([0.10, 0.22, 0.17]) + rng.uniform(-0.04, 0.06, 3)
    smear_HW = _noise(rng, shape, cells=4)
    grain_HW = rng.random(shape) < rng.uniform(0.55, 0.8)
    stroke_HW = _edges(scene.part_HW, width=5) * grain_HW
    rub_HW = 0.3 * (scene.tone_HW == 2) * (rng.random(shape) < 0.5)
    chalk_HW1 = np.maximum(stroke_HW, rub_HW)[..., None]
    chalk_3 = 0.8 + 0.2 * rng.random(3)
    return (board_3 + 0.05 * smear_HW[..., None]) * (1 - chalk_HW1) + chalk_3 * chalk_HW1


def neon(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Glowing tubes in the dark, a colour for each tone."""
    tube_73 = rng.random((7, 3)) ** 2
    tube_73 /= tube_73.max(1, keepdims=True)
    lines_HW3 = _edges(scene.part_HW, width=3)[..., None] * tube_73[scene.tone_HW]
    glow_HW3 = 2.2 * _blur(lines_HW3, 4) + 1.2 * _blur(lines_HW3, 9)
    return 0.03 + lines_HW3 * 0.9 + glow_HW3 + 0.3 * lines_HW3.max(-1, keepdims=True)


def blueprint(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Thin white lines over a grid on blue."""
    rows_H1, columns_1W = np.ogrid[: scene.part_HW.shape[0], : scene.part_HW.shape[1]]
    pitch, (start_x, start_y) = int(rng.integers(12, 25)), rng.integers(0, 24, 2)
    grid_HW = ((rows_H1 + start_y) % pitch < 2) | ((columns_1W + start_x) % pitch < 2)
    ink_HW = np.maximum(0.3 * grid_HW, 0.95 * _edges(scene.part_HW, width=3))
    ink_HW = np.maximum(ink_HW, 0.12 * scene.object_HW)[..., None]
    blue_3 = np.array([0.08, 0.25, 0.62]) + rng.uniform(-0.06, 0.06, 3)
    return blue_3 * (1 - ink_HW) + ink_HW


def mosaic(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Square stones of one colour each, set unevenly in grout."""
    side = scene.part_HW.shape[0]
    pitch = int(rng.integers(6, 10))
    rgb_HW3 = photograph(scene, rng)
    centres = np.minimum(np.arange(0, side, pitch) + pitch // 2, side - 1)
    stone_NN3 = rgb_HW3[centres][:, centres]
    stone_NN3 = stone_NN3 * (1 + rng.normal(0, 0.13, (*stone_NN3.shape[:2], 1)))
    index = np.arange(side) // pitch
    gap = np.arange(side) % pitch < 1
    joint_HW1 = (gap[:, None] | gap[None, :])[..., None]
    return np.where(joint_HW1, rng.uniform(0.15, 0.85), stone_NN3[index][:, index])


def negative(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """The film of a photograph: light and colours are inverted."""
    return 1 - photograph(scene, rng) * np.array([0.95, 0.85, 0.75])


def woodcut(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """Black and cream only; shade is cut as parallel grooves that follow no outline."""
    rows_H1, columns_1W = np.ogrid[: scene.part_HW.shape[0], : scene.part_HW.shape[1]]
    angle, pitch = rng.uniform(0, np.pi), rng.uniform(6, 10)
    across_HW = rows_H1 * np.cos(angle) + columns_1W * np.sin(angle)
    groove_HW = 0.5 + 0.5 * np.sin(2 * np.pi * across_HW / pitch)
    grey_HW = _blur(np.clip(photograph(scene, rng) @ LUMA, 0, 1), 1.5)
    low, high = np.quantile(grey_HW, [0.03, 0.97])
    light_HW = (grey_HW - low) / (high - low + 1e-3) + 0.35 * (1 - scene.object_HW)
    ink_HW = light_HW < 0.1 + 0.7 * groove_HW
    ink_HW = np.maximum(ink_HW, _edges(scene.part_HW, width=3))[..., None]
    cream_3 = np.array([0.95, 0.9, 0.78])
    return cream_3 * (1 - ink_HW) + 0.07 * ink_HW


RENDITIONS: dict[str, Callable[[Scene, np.random.Generator], np.ndarray]] = {
    "photograph": photograph,
    "grey photograph": grey_photograph,
    "cartoon": cartoon,
    "sketch": sketch,
    "silhouette": silhouette,
    "watercolour": watercolour,
    "poster": poster,
    "blueprint": blueprint,
    "chalkboard": chalkboard,
    "mosaic": mosaic,
    "negative": negative,
    "neon": neon,
    "woodcut": woodcut,
}


def _natural_colours(scene: Scene, rng: np.random.Generator) -> np.ndarray:
    """RGB of the seven tones: the noun's colours, slightly varied, on a contrasting ground."""
    own_33 = np.clip(scene.natural_33 + rng.normal(0, 0.06, (3, 3)) + rng.normal(0, 0.05), 0, 1)
    ground_3 = rng.random(3) * 0.5 + rng.uniform(0, 0.5)
    contrast = own_33[0] @ LUMA - ground_3 @ LUMA
    ground_3 = ground_3 - np.where(contrast > 0, 1, -1) * max(0.0, 0.22 - abs(contrast))
    clutter_3 = ground_3 + rng.normal(0, 0.1, 3)
    dark_3, white_3 = np.full(3, 0.1), np.full(3, 0.95)
    return np.clip(np.stack([ground_3, clutter_3, *own_33, dark_3, white_3]), 0, 1)


def _relief(scene: Scene, step: np.ndarray) -> np.ndarray:
    """How much each pixel faces the light, as if every part bulged towards the viewer."""
    bulge_HW = _blur(scene.object_HW, 7) + 0.5 * _blur(scene.part_HW / (scene.part_HW.max() + 1), 2)
    slope_y_HW, slope_x_HW = np.gradient(bulge_HW)
    return np.clip((slope_y_HW * step[0] + slope_x_HW * step[1]) * -9, -0.5, 0.5) * scene.object_HW


def _edges(part_HW: np.ndarray, width: int) -> np.ndarray:
    """1 within ``width`` pixels of a border between two parts; ``width`` is odd."""
    differs = np.zeros(part_HW.shape, bool)
    differs[1:] |= part_HW[1:] != part_HW[:-1]
    differs[:, 1:] |= part_HW[:, 1:] != part_HW[:, :-1]
    line = Image.fromarray(differs.astype(np.uint8) * 255)
    if width > 1:
        line = line.filter(ImageFilter.MaxFilter(width))
    return np.asarray(line, np.float32) / 255


def _blur(image: np.ndarray, radius: float) -> np.ndarray:
    """Gaussian blur of an image in [0, 1] with one or three channels, in steps of 1/255."""
    pixels = Image.fromarray((image * 255).astype(np.uint8))
    return np.asarray(pixels.filter(ImageFilter.GaussianBlur(radius)), np.float32) / 255


def _noise(rng: np.random.Generator, shape: tuple[int, int], cells: int) -> np.ndarray:
    """Smooth noise of about unit size with ``cells`` bumps along each side."""
    coarse = Image.fromarray(rng.normal(0, 1, (cells, cells)).astype(np.float32))
    return np.asarray(coarse.resize(shape[::-1], Image.Resampling.BICUBIC))

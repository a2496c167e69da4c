"""Draws the images of the demo: nouns × renditions, which stand for a new image domain.

A noun is a fixed set of parts (``nouns.py``). Each image of it varies the pose, the proportions,
the colours and the clutter in the background, and is painted in a rendition (``renditions.py``).
The tiny CLIP is pre-trained on ``PRETRAINING_RENDITIONS`` of most nouns; the demo learns
``DEMO_NOUNS`` in ``DEMO_RENDITIONS``, which no pre-training image has.

    python -m pipeline.demo.drawing --out FOLDER      the demo's images as an ImageFolder
    python -m pipeline.demo.drawing --sheet FILE      a contact sheet, one column per rendition
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from pipeline.cli import build_parser, run_command
from pipeline.demo.nouns import NOUNS
from pipeline.demo.renditions import RENDITIONS, Scene
from pipeline.rng import numpy_stream

IMAGE_SIZE = 32  # pixels per side of a finished image
OVERSAMPLING = 4  # images are drawn larger by this factor and averaged down

PRETRAINING_RENDITIONS = (
    "photograph",
    "grey photograph",
    "cartoon",
    "sketch",
    "silhouette",
    "watercolour",
    "poster",
)
DEMO_RENDITIONS = ("blueprint", "chalkboard", "mosaic", "negative", "neon", "woodcut")

# A rule, so that nobody can choose nouns that make the demo look good: every third noun of the
# alphabet belongs to the demo, and every fifth of those is never drawn in pre-training.
DEMO_NOUNS = tuple(sorted(NOUNS)[::3])
UNSEEN_NOUNS = DEMO_NOUNS[2::5]
PRETRAINING_NOUNS = tuple(noun for noun in sorted(NOUNS) if noun not in UNSEEN_NOUNS)

TONES = "-kabcdw"  # of a pixel: background, clutter, own colours, dark, white


@dataclass(frozen=True)
class Part:
    """A filled outline, or a stroke of some width, in the unit square."""

    points_P2: np.ndarray
    tone: int
    width: float  # 0 for a filled outline


def draw_image(noun: str, rendition: str, rng: np.random.Generator) -> Image.Image:
    """An image of ``noun``, ``IMAGE_SIZE`` pixels a side; all variation comes from ``rng``."""
    scene = _compose(noun, rng)
    rgb_HW3 = RENDITIONS[rendition](scene, rng)
    blocks = rgb_HW3.reshape(IMAGE_SIZE, OVERSAMPLING, IMAGE_SIZE, OVERSAMPLING, 3)
    small_HW3 = np.clip(blocks.mean((1, 3)), 0.0, 1.0)
    return Image.fromarray(np.rint(small_HW3 * 255).astype(np.uint8))


def write_images(
    folder: str | Path,
    *,
    nouns: Sequence[str] = DEMO_NOUNS,
    renditions: Sequence[str] = DEMO_RENDITIONS,
    per_class: Mapping[str, int] | None = None,
    seed: int = 0,
) -> int:
    """Write ``<split>/<noun>/<rendition>-<number>.png`` and return the number of images.

    ``per_class`` is the number of images of each noun in each split, by default 42 for ``train``
    and 24 for ``test``; the renditions take turns. Every image has its own random stream, so its
    bytes do not depend on the other images.
    """
    counts = {"train": 42, "test": 24} if per_class is None else per_class
    for split, count in counts.items():
        for noun in nouns:
            place = Path(folder) / split / noun
            place.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                rendition = renditions[number % len(renditions)]
                # The name of the stream is part of the drawing: another one gives other images.
                rng = numpy_stream("picture", seed, split, noun, rendition, number)
                image = draw_image(noun, rendition, rng)
                image.save(place / f"{rendition.replace(' ', '_')}-{number:03d}.png")
    return len(nouns) * sum(counts.values())


def draw_sheet(
    nouns: Sequence[str], renditions: Sequence[str], *, seed: int = 0, zoom: int = 2
) -> Image.Image:
    """A row per noun and a column per rendition; each image is enlarged ``zoom`` times."""
    cell = IMAGE_SIZE * zoom + 4
    sheet = Image.new("RGB", (cell * len(renditions) + 4, cell * len(nouns) + 4), "white")
    for row, noun in enumerate(nouns):
        for column, rendition in enumerate(renditions):
            image = draw_image(noun, rendition, numpy_stream("sheet", seed, noun, rendition))
            enlarged = image.resize((cell - 4, cell - 4), Image.Resampling.NEAREST)
            sheet.paste(enlarged, (column * cell + 4, row * cell + 4))
    return sheet


def _compose(noun: str, rng: np.random.Generator) -> Scene:
    """Place the noun's parts over some clutter; returns part numbers and tones."""
    side = IMAGE_SIZE * OVERSAMPLING
    tones, parts = [0], Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(parts)
    for part in [*_clutter(rng), *_pose(_parse(NOUNS[noun].parts), rng)]:
        tones.append(part.tone)
        _paint(pen, part, len(tones) - 1, side)
    part_HW = np.asarray(parts)
    colours = [tuple(bytes.fromhex(colour)) for colour in NOUNS[noun].colours]
    natural_33 = np.array(colours, np.float32) / 255
    return Scene(part_HW, np.array(tones, np.uint8)[part_HW], natural_33)


def _parse(parts: str) -> list[Part]:
    return [_parse_part(words.split()) for words in parts.split(";")]


def _parse_part(words: list[str]) -> Part:
    kind, tone, numbers = words[0], TONES.index(words[1]), [float(word) for word in words[2:]]
    if kind in ("line", "ring", "arc"):
        width, *numbers = numbers
    else:
        width = 0.0
    if kind == "box":
        left, top, right, bottom = numbers
        corners = [left, top, right, top, right, bottom, left, bottom]
        points_P2 = _densify(np.array(corners).reshape(-1, 2), closed=True)
    elif kind in ("disc", "ring", "arc"):
        centre, radius = np.array(numbers[:2]), np.array(numbers[2:4])
        start, stop = numbers[4:] or (0.0, 360.0)
        angle_P = np.radians(np.linspace(start, stop, 33))
        points_P2 = centre + radius * np.stack([np.cos(angle_P), np.sin(angle_P)], 1)
    else:
        points_P2 = _densify(np.array(numbers).reshape(-1, 2), closed=kind == "poly")
    return Part(points_P2 / 100, tone, width / 100)


def _densify(corners_P2: np.ndarray, *, closed: bool) -> np.ndarray:
    """Add points along each edge, so that a warp can bend it."""
    ends_P2 = np.concatenate([corners_P2, corners_P2[:1]]) if closed else corners_P2
    step_S = np.linspace(0, 1, 6, endpoint=False)[:, None]
    edges_EP2 = ends_P2[:-1, None] + np.diff(ends_P2, axis=0)[:, None] * step_S
    return np.concatenate([edges_EP2.reshape(-1, 2), ends_P2[-1:]])


def _pose(parts: list[Part], rng: np.random.Generator) -> list[Part]:
    """Warp, mirror, stretch, turn and move all parts in the same way; a part may be missing."""
    phase_22, bend = rng.uniform(0, 2 * np.pi, (2, 2)), rng.uniform(0, 0.035)
    scale = rng.uniform(0.75, 1.0) * np.exp(rng.normal(0, 0.08, 2))
    turn, shear = np.radians(rng.normal(0, 9)), rng.normal(0, 0.08)
    matrix_22 = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix_22 = matrix_22 @ np.array([[1, shear], [0, 1]]) @ np.diag(scale)
    matrix_22[:, 0] *= rng.choice([-1, 1])
    shift_2, weight = 0.5 + rng.normal(0, 0.035, 2), rng.uniform(0.8, 1.4)
    posed = []
    for number, part in enumerate(parts):
        if number and rng.random() < 0.04:
            continue
        wave_P2 = np.sin(2 * np.pi * part.points_P2[:, ::-1] + phase_22[0])
        wave_P2 = wave_P2 + 0.5 * np.sin(4 * np.pi * part.points_P2 + phase_22[1])
        points_P2 = (part.points_P2 + bend * wave_P2 - 0.5) @ matrix_22.T + shift_2
        posed.append(Part(points_P2, part.tone, part.width * scale.mean() * weight))
    return posed


def _clutter(rng: np.random.Generator) -> list[Part]:
    """Up to two random shapes behind the noun."""
    shapes = []
    for _ in range(rng.integers(0, 3)):
        corners = int(rng.integers(3, 8))
        angle_P = np.sort(rng.uniform(0, 2 * np.pi, corners))
        outline_P2 = np.stack([np.cos(angle_P), np.sin(angle_P)], 1) * rng.uniform(0.05, 0.22, 2)
        width = 0.03 if rng.random() < 0.3 else 0.0
        shapes.append(Part(outline_P2 + rng.uniform(0, 1, 2), TONES.index("k"), width))
    return shapes


def _paint(pen: ImageDraw.ImageDraw, part: Part, number: int, side: int) -> None:
    points = [tuple(point) for point in (part.points_P2 * side).tolist()]
    if not part.width:
        pen.polygon(points, fill=number)
        return
    width = max(2, round(part.width * side))
    pen.line(points, fill=number, width=width, joint="curve")
    for x, y in (points[0], points[-1]):
        radius = width / 2 - 0.5
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the demo's images, or a contact sheet of them; returns the exit status."""
    parser = build_parser(
        "python -m pipeline.demo.drawing",
        f"Draw the demo's images ({len(DEMO_NOUNS)} nouns × {len(DEMO_RENDITIONS)} renditions) "
        "without any download.",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument(
        "--out", metavar="FOLDER", help="write train/<noun>/*.png and test/<noun>/*.png there"
    )
    target.add_argument("--sheet", metavar="FILE", help="write a contact sheet (PNG)")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        metavar="N",
        help="seed of all images; default 0",
    )
    options = parser.parse_args(arguments)
    return run_command(lambda: _draw(options))


def _draw(options: argparse.Namespace) -> int:
    if options.out:
        write_images(options.out, seed=options.seed)
        return 0
    renditions = PRETRAINING_RENDITIONS + DEMO_RENDITIONS
    sheet = draw_sheet(DEMO_NOUNS[::4], renditions, seed=options.seed)
    sheet.quantize(255).save(options.sheet, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

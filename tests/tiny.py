"""Tiny CLIPs with random weights and tiny images, for tests that take milliseconds.

The widths of the two towers and of their joint space differ, so that no test passes with a swap.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pipeline.config import Config
from pipeline.distributed.world import World, process_group, read_world
from pipeline.methods.base import MethodContext, task_prompts
from pipeline.model.backbone import FrozenClip, ImageFeatures
from pipeline.model.weights import load_clip
from pipeline.settings_file import parse_section
from pipeline.tasks import Task, split_classes
from pipeline.templates import TextConfig

IMAGE_SIZE = 21  # 3 × 3 patches of 7 pixels, hence 10 image tokens
VISION_WIDTH, TEXT_WIDTH, JOINT_WIDTH = 26, 22, 19
VISION_LAYERS, TEXT_LAYERS = 3, 2
CONTEXT_LENGTH = 24
MEAN, STD = [0.48, 0.46, 0.41], [0.27, 0.26, 0.28]  # of the pixels, by colour channel

# Names in the order of the index; their folders sort in another order.
CLASSES = {
    "red fox": "n3_red_fox",
    "oak": "n1_oak",
    "grey seal": "n7_grey_seal",
    "lamp": "n2_lamp",
    "kite": "n6_kite",
    "sea urchin": "n5_sea_urchin",
    "bell": "n4_bell",
}
TRAIN_IMAGES = (7, 5, 6, 8, 5, 7, 6)  # of each class, unequal on purpose
TEST_IMAGES = (3, 4, 2, 5, 3, 4, 2)


def model_config() -> dict[str, Any]:
    """The configuration of a tiny ViT CLIP, as open_clip writes it."""
    return {
        "embed_dim": JOINT_WIDTH,
        "vision_cfg": {
            "image_size": IMAGE_SIZE,
            "patch_size": 7,
            "width": VISION_WIDTH,
            "layers": VISION_LAYERS,
            "head_width": 13,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": 49408,
            "width": TEXT_WIDTH,
            "heads": 2,
            "layers": TEXT_LAYERS,
        },
    }


def write_clip(folder: Path, *, custom_text: bool = False, seed: int = 1) -> str:
    """Write a ViT CLIP with random weights as an open_clip folder; returns its ``model.arch``.

    ``custom_text`` selects open_clip's layout with the text tower in a module of its own.
    """
    model = model_config()
    torch.manual_seed(seed)
    kind = open_clip.CustomTextCLIP if custom_text else open_clip.CLIP
    clip = kind(model["embed_dim"], model["vision_cfg"], model["text_cfg"])
    with torch.no_grad():  # open_clip starts some tensors at zero or one, which would hide errors
        for parameter in clip.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
        clip.logit_scale.fill_(float(np.log(17.0)))
    folder.mkdir(parents=True)
    save_file(clip.state_dict(), folder / "open_clip_model.safetensors")
    content = {"model_cfg": model | ({"custom_text": True} if custom_text else {})}
    content["preprocess_cfg"] = {"mean": MEAN, "std": STD}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    return f"local-dir:{folder}"


def write_images(folder: Path) -> Path:
    """Write an ImageFolder of noise around one colour per class; returns the file of the names.

    The images are not square, so that cropping matters.
    """
    draw = np.random.default_rng(5)
    colour_C3 = draw.integers(40, 216, size=(len(CLASSES), 3))
    for split, counts in (("train", TRAIN_IMAGES), ("test", TEST_IMAGES)):
        for label, (name, count) in enumerate(zip(CLASSES.values(), counts, strict=True)):
            (folder / split / name).mkdir(parents=True)
            for number in range(count):
                noise_HWC = draw.normal(0, 40, size=(23, 29, 3))
                pixel_HWC = np.clip(colour_C3[label] + noise_HWC, 0, 255).astype(np.uint8)
                Image.fromarray(pixel_HWC).save(folder / split / name / f"{number}.png")
    names = folder / "names.json"
    names.write_text(json.dumps([{"name": n, "folder": f} for n, f in CLASSES.items()]))
    return names


def build_config(arch: str, index: str, **sections: Any) -> Config:
    """A run of two epochs on tasks of 3, 3 and 1 classes; ``sections`` override its settings."""
    tree: dict[str, Any] = {
        "output": "memory://unused",
        "data": {"index": index, "global_batch": 4, "eval_batch": 5, "workers": 0},
        "tasks": {"class_order": [4, 0, 6, 2, 5, 1, 3], "classes_per_task": 3},
        "model": {"arch": arch},
        "method": {"name": "zeroshot"},
        "optim": {"epochs": 2, "learning_rate": 1e-2},
        "log_every": 1,
        "report": False,  # half a second per run
    }
    for name, value in sections.items():
        merged = {**tree.get(name, {}), **value} if isinstance(value, Mapping) else value
        tree[name] = merged
    return parse_section(Config, tree, place="the test's configuration")


def build_context(clip: FrozenClip, *, ensemble: bool = False, seed: int = 1) -> MethodContext:
    """The context of a method, with two templates."""
    text = TextConfig(templates=["a photo of a {}.", "art of the {}."])
    return MethodContext(clip, partial(task_prompts, text), ensemble, seed)


def tiny_tasks() -> tuple[Task, ...]:
    """The tasks of :func:`build_config`."""
    return split_classes([4, 0, 6, 2, 5, 1, 3], list(CLASSES), classes_per_task=3)


@torch.no_grad()
def draw_batch(
    clip: FrozenClip, task: Task, n_images: int, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor, ImageFeatures]:
    """Random ``image_BCHW``, ``label_B`` over the task's classes in turn, and frozen features."""
    image_BCHW = draw_images(n_images, seed)
    label_B = task.first + torch.arange(n_images) % len(task.labels)
    return image_BCHW, label_B, clip.encode_image(image_BCHW)


def draw_images(n_images: int, seed: int = 0) -> torch.Tensor:
    """Random pixels ``image_BCHW``, uint8."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n_images, 3, IMAGE_SIZE, IMAGE_SIZE)
    return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="session")
def tiny_arch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The ``model.arch`` of a tiny CLIP."""
    return write_clip(tmp_path_factory.mktemp("clip") / "plain")


@pytest.fixture(scope="session")
def tiny_custom_arch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The ``model.arch`` of a tiny CLIP in open_clip's other layout."""
    return write_clip(tmp_path_factory.mktemp("clip") / "custom", custom_text=True)


@pytest.fixture(scope="session")
def tiny_clip(tiny_arch: str) -> FrozenClip:
    """The tiny CLIP."""
    return load_clip(tiny_arch, None, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny_custom_clip(tiny_custom_arch: str) -> FrozenClip:
    """The tiny CLIP in the other layout."""
    return load_clip(tiny_custom_arch, None, device=torch.device("cpu"))


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny images and their ``names.json``."""
    folder = tmp_path_factory.mktemp("images")
    write_images(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_shards(tiny_images: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with these images in several shards per split."""
    from pipeline.data.prepare.sharding import Recipe, write_shards

    out = str(tmp_path_factory.mktemp("shards"))
    names = str(tiny_images / "names.json")
    recipe = Recipe(shard_bytes=60_000)
    write_shards(str(tiny_images), out, recipe, names_url=names)
    return out


@pytest.fixture
def alone() -> Iterator[World]:
    """A process group of one rank, which the gathers of methods need."""
    world = read_world({})
    local_rank = os.environ.get("LOCAL_RANK")
    with process_group(world, timeout_s=60):
        yield world
    if local_rank is None:
        os.environ.pop("LOCAL_RANK", None)


@pytest.fixture(scope="session")
def learned_run(tiny_arch: str, tiny_shards: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a finished run of three tasks: tuned prompts, and a sum of two classifiers."""
    from pipeline.training.checked_run import check_run
    from pipeline.training.run import execute

    options = {
        "visual_prompts": {"components": 3, "length": 2},
        "classifier": {
            "name": "sum",
            "options": {"second": {"name": "ridge", "options": {"projection": 31}}},
        },
    }
    config = build_config(
        tiny_arch,
        tiny_shards,
        output=str(tmp_path_factory.mktemp("learned") / "run"),
        method={"name": "tppt_vt", "options": {"tppt_vt": options}},
        report=False,
    )
    execute(check_run(config, 1), read_world({}))
    return Path(config.output)

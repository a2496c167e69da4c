"""Sizes in a configuration of open_clip, checked before a model of these sizes is made."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_LARGEST: dict[str, dict[str, int]] = {
    "": {"embed_dim": 1 << 14},
    "vision_cfg": {
        "image_size": 1 << 13,
        "patch_size": 1 << 13,
        "width": 1 << 14,
        "head_width": 1 << 14,
        "layers": 1 << 8,
    },
    "text_cfg": {
        "context_length": 1 << 13,
        "vocab_size": 1 << 22,
        "width": 1 << 14,
        "heads": 1 << 10,
        "layers": 1 << 8,
    },
}
_MOST_PARAMETERS = 50_000_000_000  # the largest CLIP of open_clip has a twentieth of it
_TEXT_VOCABULARY = 49408  # open_clip's default
_LEAST_BYTES = 1  # per parameter in a file: half of what float16 takes, since the sum is rough


def sizes_problem(file: Path, model: Mapping[str, Any]) -> str | None:
    """The reason why ``model``, the section ``model_cfg`` of ``file``, has impossible sizes."""
    for section, largest in _LARGEST.items():
        values = model.get(section, {}) if section else model
        for key, most in largest.items():
            found = values.get(key)
            for each in found if isinstance(found, list) else [found]:
                if each is None:  # open_clip's default
                    continue
                if type(each) is not int or not 1 <= each <= most:
                    name = f"{section}.{key}".lstrip(".")
                    return (
                        f"model.arch: {file}: {name} is {str(found)[:40]}, and a whole number from "
                        f"1 to {most:,} is wanted; restore the file from a copy"
                    )
    n_parameters = _count_parameters(model)
    if n_parameters > _MOST_PARAMETERS:
        return (
            f"model.arch: {file}: describes about {n_parameters:,} parameters, and at most "
            f"{_MOST_PARAMETERS:,} are loaded; restore the file from a copy"
        )
    return None


def fit_problem(file: Path, weights: Sequence[Path]) -> str | None:
    """The reason why the files ``weights`` are too small for the model that ``file`` describes."""
    n_parameters = _count_parameters(json.loads(file.read_bytes())["model_cfg"])
    size = sum(path.stat().st_size for path in weights)
    if size >= n_parameters * _LEAST_BYTES:
        return None
    return (
        f"model.arch: {file}: describes about {n_parameters:,} parameters, and the weights beside "
        f"it have {size:,} bytes; give the configuration and the weights of one model"
    )


def _count_parameters(model: Mapping[str, Any]) -> int:
    """About the parameters of both transformers: 12 W² per layer; and of the word embeddings."""
    total = 0
    for section in ("vision_cfg", "text_cfg"):
        layers, width = (model[section].get(key) for key in ("layers", "width"))
        if isinstance(layers, int) and isinstance(width, int):
            total += 12 * layers * width**2
    text = model["text_cfg"]
    return total + (text.get("vocab_size") or _TEXT_VOCABULARY) * (text.get("width") or 0)

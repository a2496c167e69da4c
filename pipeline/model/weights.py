"""The frozen CLIP that a configuration names: its checks and its loading."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import open_clip
import torch
from torch import nn

from pipeline.errors import WeightsError
from pipeline.model.backbone import BlankClip, FrozenClip

_LOCAL = "local-dir:"


def load_clip(arch: str, weights: str | None, *, device: torch.device, seed: int = 0) -> FrozenClip:
    """The CLIP that ``arch`` and ``weights`` name, frozen, on ``device``.

    ``arch`` is any open_clip model name or ``local-dir:FOLDER`` (open_clip's own folder layout);
    ``weights`` is a pretrained tag of the model, a file, ``random`` (seeded, for benchmarks), or
    None for the weights in a ``local-dir:`` folder.

    Raises:
        WeightsError: the architecture, tag or file is unknown or cannot be read, or the activation
            of the model is not that of the weights.
    """
    clip, tokenizer = _create(arch, weights, seed)
    name = arch if weights is None else f"{arch}/{weights}"
    # Hashed before the cast to the type of the device, so that the hash is equal on all devices.
    return FrozenClip(clip, tokenizer, name=name, device=device, sha256=_hash_weights(clip))


def blank_clip(arch: str) -> BlankClip:
    """A stand-in for the CLIP that ``arch`` names, without its weights; raises WeightsError."""
    clip, tokenizer = _create(arch, "random", seed=0)
    return BlankClip(clip, tokenizer, name=arch, device=torch.device("cpu"))


def _create(arch: str, weights: str | None, seed: int) -> tuple[nn.Module, Any]:
    """open_clip's model and tokenizer."""
    problem = weights_problem(arch, weights)
    if problem:
        raise WeightsError(problem)
    pretrained = None if weights == "random" else weights
    torch.manual_seed(seed)
    try:
        with _quiet_open_clip():
            clip, _, _ = open_clip.create_model_and_transforms(arch, pretrained=pretrained)
            return clip, open_clip.get_tokenizer(arch)
    except Exception as error:  # a download, a file or an absent package can raise anything
        reason = " ".join(str(error).split())[:300]
        source = "its own weights" if weights is None else repr(weights)
        raise WeightsError(
            f"model.weights: {source} cannot be loaded into {arch}: {reason}; give other weights"
        ) from error


def weights_problem(arch: str, weights: str | None) -> str | None:
    """The reason why this backbone cannot be loaded, or None; checks names without loading."""
    if arch.startswith(_LOCAL):
        return _local_problem(Path(arch.removeprefix(_LOCAL)), weights)
    if arch not in open_clip.list_models():
        return f"model.arch: open_clip has no model {arch!r}{_nearest(arch)}"
    if weights is None:
        return f"model.weights: missing for {arch}; give a pretrained tag, a file, or 'random'"
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if weights == "random" or Path(weights).is_file():
        return None
    if weights not in tags:
        return (
            f"model.weights: {weights!r} is neither a file nor a pretrained tag of {arch}; "
            f"its tags are {', '.join(tags) or 'none'}"
        )
    return _activation_problem(arch, weights)


def _activation_problem(arch: str, tag: str) -> str | None:
    """Some weights, such as OpenAI's, need QuickGELU; open_clip only warns about a mismatch."""
    wanted = bool(open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu", False))
    found = bool((open_clip.get_model_config(arch) or {}).get("quick_gelu", False))
    if wanted == found:
        return None
    other = f"{arch}-quickgelu" if wanted else arch.removesuffix("-quickgelu")
    return (
        f"model.arch: {arch} has the wrong activation for the weights {tag!r} and would silently "
        f"lose accuracy; use {other}"
    )


def _local_problem(folder: Path, weights: str | None) -> str | None:
    if not folder.is_dir():
        return f"model.arch: there is no folder {folder}; give one in open_clip's layout"
    if not (folder / "open_clip_config.json").is_file():
        return f"model.arch: {folder} has no open_clip_config.json; give an open_clip folder"
    if weights not in (None, "random"):
        return f"model.weights: {_LOCAL} brings its own weights; remove {weights!r}"
    if weights is None and not list(folder.glob("open_clip_*model*.safetensors")):
        return f"model.arch: {folder} has no open_clip_model.safetensors; add it"
    return None


def _hash_weights(clip: nn.Module) -> str:
    """Hash over names, shapes, types and values of all tensors, independent of their file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(clip.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _nearest(arch: str) -> str:
    close = difflib.get_close_matches(arch, open_clip.list_models(), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


@contextlib.contextmanager
def _quiet_open_clip() -> Iterator[None]:
    """Silence open_clip's warnings; this module checks names and activation before loading."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)

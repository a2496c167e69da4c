"""The frozen CLIP that a configuration names: its checks and its loading."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import importlib.util
import json
import logging
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError
from torch import nn

from pipeline.errors import WeightsError
from pipeline.model.backbone import BlankClip, FrozenClip, Precision
from pipeline.model.sizes import fit_problem, sizes_problem
from pipeline.model.weights_file import (
    read_openai,
    refuse_not_finite,
    short_reason,
    weights_format,
)
from pipeline.text import format_bytes

log = logging.getLogger(__name__)

_LOCAL = "local-dir:"
_QUICK = "-quickgelu"
_HUB_FILES = ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"]
_HUB_TIMEOUT_S = 10.0
_IMAGE_SIZE = 224  # open_clip's default


def load_clip(
    arch: str,
    weights: str | None,
    *,
    device: torch.device,
    precision: Precision = "auto",
) -> FrozenClip:
    """The CLIP that ``arch`` and ``weights`` name, frozen, on ``device``.

    ``arch`` is any open_clip model name or ``local-dir:FOLDER`` (open_clip's own folder layout);
    ``weights`` is a pretrained tag of the model, a file, None for the weights in a ``local-dir:``
    folder, or ``random`` for a benchmark, always the same ones.

    Raises:
        WeightsError: the architecture, tag or file is unknown or cannot be read, the activation
            of the model is not that of the weights, or a weight is not a finite number.
    """
    clip, tokenizer = _create(arch, weights)
    name = arch if weights is None else f"{arch}/{weights}"
    # Hashed before the cast to the type of the device, so that the hash is equal on all devices.
    sha256 = _hash_weights(clip)
    return FrozenClip(clip, tokenizer, name=name, device=device, sha256=sha256, precision=precision)


def image_size_of(arch: str) -> int:
    """The side in pixels of the images of ``arch``, from its configuration alone.

    Raises:
        WeightsError: there is no such architecture, or its configuration cannot be used.
    """
    problem = weights_problem(arch, "random")
    if problem:
        raise WeightsError(problem)
    model = open_clip.get_model_config(arch)
    if arch.startswith(_LOCAL):
        file = Path(arch.removeprefix(_LOCAL)) / "open_clip_config.json"
        model = json.loads(file.read_bytes())["model_cfg"]
    size = model["vision_cfg"].get("image_size", _IMAGE_SIZE)
    return size[0] if isinstance(size, list) else size


def blank_clip(arch: str, weights: str | None = "random") -> BlankClip:
    """A stand-in for the CLIP that ``arch`` names; ``weights`` on this disk are read and checked.

    Raises:
        WeightsError: as :func:`load_clip`.
    """
    is_tag = weights in open_clip.list_pretrained_tags_by_model(arch)
    clip, tokenizer = _create(arch, "random" if is_tag else weights)
    return BlankClip(clip, tokenizer, name=arch, device=torch.device("cpu"))


def _create(arch: str, weights: str | None) -> tuple[nn.Module, Any]:
    """open_clip's model and tokenizer."""
    problem = weights_problem(arch, weights)
    if problem:
        raise WeightsError(problem)
    is_random, file = weights == "random", _weights_file(arch, weights)
    openai = _read_openai(arch, file) if file else None
    torch.manual_seed(0)
    try:
        with _quiet_open_clip():
            clip, _, _ = open_clip.create_model_and_transforms(
                arch,
                pretrained=None if is_random or openai else weights,
                load_weights=not is_random and openai is None,
            )
            if openai:
                clip.load_state_dict(openai)
            tokenizer = open_clip.get_tokenizer(arch)
    except Exception as error:  # a download, a file or an absent package can raise anything
        source = "its own weights" if weights is None else repr(weights)
        raise WeightsError(
            f"model.weights: {source} cannot be loaded into {arch}: {short_reason(error)}; give "
            "weights of this model, or the model of these weights"
        ) from error
    if not is_random:
        refuse_not_finite(clip.state_dict(), str(file or weights or arch))
    return clip, tokenizer


def weights_place(arch: str, weights: str | None) -> str:
    """Where weights are: ``on this disk``, or the bytes that must be downloaded.

    Raises:
        WeightsError: they are not on this disk, and cannot be fetched.
    """
    if weights is None or weights not in open_clip.list_pretrained_tags_by_model(arch):
        return "on this disk"
    return _find_tag(arch, weights)


def _find_tag(arch: str, tag: str) -> str:
    repository, _, name = open_clip.get_pretrained_cfg(arch, tag).get("hf_hub", "").rpartition("/")
    names = [name] if name else _HUB_FILES
    if not repository:
        return "to be downloaded from the publisher"
    if any(isinstance(try_to_load_from_cache(repository, each), str) for each in names):
        return "on this disk"
    problem: Exception | None = None
    for each in names:
        try:
            found = get_hf_file_metadata(hf_hub_url(repository, each), timeout=_HUB_TIMEOUT_S)
            return f"{format_bytes(found.size or 0)} to download"
        except EntryNotFoundError as error:
            problem = problem or error
        except Exception as error:  # of the network, of its proxy, or of the hub
            problem = error
            break
    assert problem is not None
    raise WeightsError(
        f"model.weights: {tag!r} of {arch} is not on this disk and cannot be fetched from "
        f"{repository}: {short_reason(problem)}; connect this machine, or download on another one "
        "and copy its HF_HOME, or give a file"
    ) from problem


def _weights_file(arch: str, weights: str | None) -> Path | None:
    """The file of weights that is not one of a tag, or None."""
    if arch.startswith(_LOCAL) or weights in (None, "random"):
        return None
    return None if weights in open_clip.list_pretrained_tags_by_model(arch) else Path(str(weights))


def _read_openai(arch: str, file: Path) -> dict[str, torch.Tensor] | None:
    """The tensors of OpenAI's own file, whose activation must be that of ``arch``; else None."""
    openai = read_openai(file, _openai_hashes())
    other = arch.removesuffix(_QUICK) if arch.endswith(_QUICK) else arch + _QUICK
    if openai and not _has_quick_gelu(arch):
        raise WeightsError(
            f"model.arch: {file} holds OpenAI's weights, which need QuickGELU, and {arch} has "
            f"GELU; use {other}"
        )
    if openai is None and other in open_clip.list_models():
        activation = "QuickGELU" if _has_quick_gelu(arch) else "GELU"
        log.warning(
            "model.weights: %s does not say with which activation it was trained; %s has %s, and "
            "with the wrong one accuracy is lost without an error; the other one is %s",
            file,
            arch,
            activation,
            other,
        )
    return openai


@cache
def _openai_hashes() -> frozenset[str]:
    """SHA-256 of the archives that OpenAI has published; their addresses contain them."""
    found = (
        re.search(r"/([0-9a-f]{64})/", open_clip.get_pretrained_cfg(arch, tag).get("url", ""))
        for arch, tag in open_clip.list_pretrained()
        if tag == "openai"
    )
    return frozenset(match[1] for match in found if match)


def weights_problem(arch: str, weights: str | None) -> str | None:
    """The reason why this backbone cannot be loaded, or None; checks names without loading."""
    if arch.startswith(_LOCAL):
        return _local_problem(Path(arch.removeprefix(_LOCAL)), weights)
    if arch not in open_clip.list_models():
        return f"model.arch: open_clip has no model {arch!r}{_nearest(arch)}"
    if weights is None:
        return f"model.weights: missing for {arch}; give a pretrained tag, a file, or 'random'"
    problem = _tower_problem(arch, open_clip.get_model_config(arch) or {})
    tags = open_clip.list_pretrained_tags_by_model(arch)
    if problem or weights == "random":
        return problem
    if weights not in tags and Path(weights).is_file():
        return _file_problem(Path(weights))
    if weights not in tags:
        return (
            f"model.weights: {weights!r} is neither a file nor a pretrained tag of {arch}; "
            f"its tags are {', '.join(tags) or 'none'}"
        )
    return _activation_problem(arch, weights)


def _activation_problem(arch: str, tag: str) -> str | None:
    """Some weights, such as OpenAI's, need QuickGELU; open_clip only warns about a mismatch."""
    wanted = bool(open_clip.get_pretrained_cfg(arch, tag).get("quick_gelu", False))
    if wanted == _has_quick_gelu(arch):
        return None
    other = f"{arch}{_QUICK}" if wanted else arch.removesuffix(_QUICK)
    return (
        f"model.arch: {arch} has the wrong activation for the weights {tag!r} and would silently "
        f"lose accuracy; use {other}"
    )


def _has_quick_gelu(arch: str) -> bool:
    return bool((open_clip.get_model_config(arch) or {}).get("quick_gelu", False))


def _file_problem(file: Path) -> str | None:
    try:
        weights_format(file)
    except WeightsError as error:
        return str(error)
    return None


def _tower_problem(name: str, model: Mapping[str, Any]) -> str | None:
    """The reason why prompts cannot enter the towers of open_clip's configuration ``model``."""
    for section in ("vision_cfg", "text_cfg"):
        if not isinstance(model.get(section), Mapping):
            return f"model.arch: the configuration of {name} has no section {section}; add it"
    vision, text = model["vision_cfg"], model["text_cfg"]
    remedy = "choose a model with open_clip's own towers, such as ViT-B-16 or ViT-L-14"
    if "timm_model_name" in vision:
        return (
            f"model.arch: the image tower of {name} is {vision['timm_model_name']} of the package "
            f"timm, and prompts need open_clip's own vision transformer; {remedy}"
        )
    if "hf_model_name" in text:
        return (
            f"model.arch: the text tower of {name} is {text['hf_model_name']} of the package "
            f"transformers, and prompts need open_clip's own text transformer; {remedy}"
        )
    if "hf_tokenizer_name" in text and importlib.util.find_spec("transformers") is None:
        return (
            f"model.arch: the tokenizer of {name} is {text['hf_tokenizer_name']} of the package "
            f"transformers, which is not installed; install it, or {remedy}"
        )
    return None


def _local_problem(folder: Path, weights: str | None) -> str | None:
    if not folder.is_dir():
        return f"model.arch: there is no folder {folder}; give one in open_clip's layout"
    file = folder / "open_clip_config.json"
    if not file.is_file():
        return f"model.arch: {folder} has no open_clip_config.json; give an open_clip folder"
    if weights not in (None, "random"):
        return f"model.weights: {_LOCAL} brings its own weights; remove {weights!r}"
    problem = _config_problem(file)
    if problem or weights == "random":
        return problem
    files = sorted(folder.glob("open_clip_*model*.safetensors"))
    if not files:
        return f"model.arch: {folder} has no open_clip_model.safetensors; add it"
    return next(filter(None, map(_file_problem, files)), None) or fit_problem(file, files)


def _config_problem(file: Path) -> str | None:
    """The reason why ``file`` is no configuration of open_clip whose towers take prompts."""
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        return f"model.arch: {file} is not JSON ({short_reason(error)}); restore it from a copy"
    model = content.get("model_cfg") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        return f"model.arch: {file} has no section model_cfg; write it as open_clip does"
    return _tower_problem(str(file.parent), model) or sizes_problem(file, model)


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

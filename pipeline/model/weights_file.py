"""Files of weights, read without running code from them.

Three formats are read: safetensors, PyTorch's archive of plain tensors, and OpenAI's TorchScript
archives. TorchScript can contain a program, so an archive is opened only if its hash is one that
OpenAI has published.
"""

from __future__ import annotations

import hashlib
import re
import textwrap
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from pipeline.errors import WeightsError

# Numbers beside the tensors of OpenAI's archives; no other publisher writes them.
OPENAI_NUMBERS = frozenset({"input_resolution", "context_length", "vocab_size"})

_REMEDY = "give a safetensors file, or a state_dict that torch.save has written"
_MAX_REASON = 300  # characters


def read_openai(path: Path, known_sha256: Collection[str]) -> dict[str, Tensor] | None:
    """The tensors of a file by OpenAI; None if this is not one.

    ``known_sha256`` are the hashes of the TorchScript archives that may be opened.

    Raises:
        WeightsError: the file has no format that is read.
    """
    kind = weights_format(path)
    if kind == "torchscript":
        digest = _sha256(path)
        if digest not in known_sha256:
            raise WeightsError(
                f"model.weights: {path} is a TorchScript archive, which can run code, and none of "
                "those that OpenAI has published; for OpenAI's weights set model.weights=openai, "
                "or save the state_dict() of the model in a safetensors file"
            )
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
        return _without_numbers(state)
    if kind == "pytorch":
        state = _read_pytorch(path)
        if OPENAI_NUMBERS <= state.keys():
            return _without_numbers(state)
    return None


def weights_format(path: Path) -> Literal["safetensors", "pytorch", "torchscript"]:
    """The format of a file of weights, by its content.

    Raises:
        WeightsError: it has none of these formats, or it is damaged.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(9)
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return _archive_format(path, archive)
        if head[:1] == b"\x80":  # a pickle, as torch.save wrote until 2020
            _read_pytorch(path)
            return "pytorch"
        if head[8:9] == b"{":
            with safe_open(path, framework="pt") as tensors:
                tensors.keys()
            return "safetensors"
    except WeightsError:
        raise
    except Exception as error:  # zipfile, torch and safetensors have many error classes
        raise WeightsError(
            f"model.weights: {path} is damaged: {short_reason(error)}; {_REMEDY}"
        ) from error
    raise WeightsError(
        f"model.weights: {path} is neither a safetensors file nor one of PyTorch; {_REMEDY}"
    )


def short_reason(error: BaseException) -> str:
    """The error in one line, cut between words. Missing and unfitting tensors are counted."""
    text = str(error)
    missing = _names_after("Missing key", text)
    unknown = _names_after("Unexpected key", text)
    others = re.findall(r"size mismatch for ([^\s:]+)", text)
    kinds = {"missing": missing, "not of this model": unknown, "of another shape": others}
    parts = [f"{len(names)} tensors {k} (first {names[0]})" for k, names in kinds.items() if names]
    if parts:
        return ", ".join(parts)
    line = " ".join(text.split()) if len(text.split()) > 1 else f"{type(error).__name__} {text}"
    return textwrap.shorten(line.strip(), _MAX_REASON, placeholder=" …")


def refuse_not_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise WeightsError if a tensor of ``source`` has a value that is not a finite number."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            wrong = int((~tensor.isfinite()).sum())
            raise WeightsError(
                f"model.weights: {source}: {wrong} of {tensor.numel()} values of {name} are not "
                "finite; finite numbers are wanted; get an undamaged copy of the weights"
            )


def _archive_format(path: Path, archive: zipfile.ZipFile) -> Literal["pytorch", "torchscript"]:
    entries = archive.infolist()
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > path.stat().st_size + (1 << 20):  # torch.save compresses nothing
        raise WeightsError(
            f"model.weights: {path} is a compressed archive of {unpacked:,} bytes; {_REMEDY}"
        )
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        return "torchscript"
    if any(name.endswith("/data.pkl") for name in names):
        return "pytorch"
    raise WeightsError(f"model.weights: {path} is a zip archive without weights; {_REMEDY}")


def _read_pytorch(path: Path) -> dict[str, Any]:
    """The state_dict in a file of torch.save; only tensors and plain values are read."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling can raise anything
        raise WeightsError(
            f"model.weights: {path} holds more than tensors, or is damaged; {_REMEDY}"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise WeightsError(
            f"model.weights: {path} holds a {type(state).__name__}, not tensors by name; {_REMEDY}"
        )
    wrong = [name for name, value in state.items() if not isinstance(value, Tensor | int)]
    if wrong or not state:
        found = f"no tensor as {wrong[0]!r}" if wrong else "no tensor"
        raise WeightsError(f"model.weights: {path} holds {found}; {_REMEDY}")
    return state


def _without_numbers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name not in OPENAI_NUMBERS}


def _names_after(words: str, text: str) -> list[str]:
    """The quoted names in the line of ``text`` that contains ``words``."""
    line = next((line for line in text.splitlines() if words in line), "")
    return re.findall(r'"([^"]+)"', line)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()

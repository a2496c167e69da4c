"""What a finished run has found, without what depends on the clock, and how two runs differ."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor

from pipeline import storage
from pipeline.errors import DataError
from pipeline.output.results import finished_results

_BY_THE_CLOCK = frozenset({"images_per_second", "data_wait", "train_seconds", "test_seconds"})


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that a run must find again, however often it was interrupted."""

    results: dict[str, Any]  # of results.json, without the manifest
    metrics: list[dict[str, Any]]  # the lines of metrics.jsonl
    learned: dict[str, dict[str, Tensor]]  # by file and name


def read_findings(output: str) -> Findings:
    """What the run in ``output`` has found.

    Raises:
        DataError: it has not finished, or something it has written cannot be understood.
        StorageError: something cannot be read.
    """
    results = finished_results(output)
    try:
        lines = storage.read_text(storage.join(output, "metrics.jsonl")).splitlines()
        metrics = [_timeless(json.loads(line)) for line in lines]
        learned = {
            url.rpartition("/")[2]: from_safetensors(storage.read_bytes(url))
            for url in storage.list_files(storage.join(output, "tasks"))
            if url.endswith(".safetensors")
        }
    except (ValueError, TypeError, SafetensorError) as error:
        raise DataError(f"{storage.redact(output)}: cannot be understood: {error}") from error
    results = {
        key: value for key, value in _timeless(results.content()).items() if key != "manifest"
    }
    return Findings(results, metrics, learned)


def differences(found: Findings, wanted: Findings) -> list[str]:
    """One line for each way in which ``found`` is not ``wanted``; tensors must be bit-equal."""
    return [
        *_different_results(found.results, wanted.results),
        *_different_metrics(found.metrics, wanted.metrics),
        *_different_tensors(found.learned, wanted.learned),
    ]


def _timeless(content: Any) -> Any:
    """``content`` without the seconds and rates at any depth."""
    if isinstance(content, dict):
        return {k: _timeless(v) for k, v in content.items() if k not in _BY_THE_CLOCK}
    return [_timeless(each) for each in content] if isinstance(content, list) else content


def _different_results(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            yield f"results.json: {key} is {found.get(key)}, wanted {wanted.get(key)}"


def _different_metrics(found: list[Any], wanted: list[Any]) -> Iterator[str]:
    if len(found) != len(wanted):
        yield f"metrics.jsonl: {len(found)} lines, wanted {len(wanted)}"
    for number, (mine, theirs) in enumerate(zip(found, wanted, strict=False), start=1):
        if mine != theirs:
            yield f"metrics.jsonl: line {number} is {mine}, wanted {theirs}"
            return  # the lines that follow say the same


def _different_tensors(
    found: dict[str, dict[str, Tensor]], wanted: dict[str, dict[str, Tensor]]
) -> Iterator[str]:
    for file in sorted({*found, *wanted}):
        if file not in found or file not in wanted:
            yield f"{file}: {'missing' if file in wanted else 'not wanted'}"
            continue
        mine, theirs = found[file], wanted[file]
        for name in sorted({*mine, *theirs}):
            if name not in mine or name not in theirs:
                yield f"{file}: {name} is {'missing' if name in theirs else 'not wanted'}"
            elif not _is_bit_equal(mine[name], theirs[name]):
                yield f"{file}: {name} has other values"


def _is_bit_equal(mine: Tensor, theirs: Tensor) -> bool:
    """Whether kind, shape and every bit agree; ``torch.equal`` takes 0.0 and -0.0 for the same."""
    same_kind = mine.dtype == theirs.dtype and mine.shape == theirs.shape
    return same_kind and torch.equal(_bytes(mine), _bytes(theirs))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)

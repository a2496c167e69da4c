"""The content of a finished run without clock readings, and the differences between two runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_safetensors
from torch import Tensor

from pipeline import storage
from pipeline.errors import DataError
from pipeline.output.results import finished_results

_CLOCK_KEYS = frozenset({"images_per_second", "data_wait", "train_seconds", "test_seconds"})


@dataclass(frozen=True, eq=False)
class RunContent:
    """Everything that a run must produce again, however often it was interrupted."""

    results: dict[str, Any]  # results.json without the manifest
    metrics: list[dict[str, Any]]  # the lines of metrics.jsonl
    learned: dict[str, dict[str, Tensor]]  # by file and name

    def assert_equals(self, other: RunContent) -> None:
        """must hold bit by bit, for every figure and every tensor"""
        assert find_differences(self, other) == []


def read_run(output: str | Path) -> RunContent:
    """The content of the finished run in ``output``.

    Raises:
        DataError: the run has not finished, or a file is damaged.
        StorageError: a file cannot be read.
    """
    output = str(output)
    results = finished_results(output)
    try:
        lines = storage.read_text(storage.join(output, "metrics.jsonl")).splitlines()
        metrics = [_without_clock(json.loads(line)) for line in lines]
        learned = {
            url.rpartition("/")[2]: from_safetensors(storage.read_bytes(url))
            for url in storage.list_files(storage.join(output, "tasks"))
            if url.endswith(".safetensors")
        }
    except (ValueError, TypeError, SafetensorError) as error:
        raise DataError(f"{storage.redact(output)}: a file is damaged: {error}") from error
    content = _without_clock(results.content())
    del content["manifest"]
    return RunContent(content, metrics, learned)


def find_differences(found: RunContent, wanted: RunContent) -> list[str]:
    """One line for each difference between ``found`` and ``wanted``; tensors must be bit-equal."""
    return [
        *_compare_results(found.results, wanted.results),
        *_compare_metrics(found.metrics, wanted.metrics),
        *_compare_tensors(found.learned, wanted.learned),
    ]


def _without_clock(content: Any) -> Any:
    """``content`` without seconds and rates, at any depth."""
    if isinstance(content, dict):
        return {k: _without_clock(v) for k, v in content.items() if k not in _CLOCK_KEYS}
    return [_without_clock(each) for each in content] if isinstance(content, list) else content


def _compare_results(found: dict[str, Any], wanted: dict[str, Any]) -> Iterator[str]:
    for key in sorted({*found, *wanted}):
        if found.get(key) != wanted.get(key):
            yield f"results.json: {key} is {found.get(key)}, wanted {wanted.get(key)}"


def _compare_metrics(found: list[Any], wanted: list[Any]) -> Iterator[str]:
    if len(found) != len(wanted):
        yield f"metrics.jsonl: {len(found)} lines, wanted {len(wanted)}"
    for number, (mine, theirs) in enumerate(zip(found, wanted, strict=False), start=1):
        if mine != theirs:
            yield f"metrics.jsonl: line {number} is {mine}, wanted {theirs}"
            return  # later lines would repeat the same difference


def _compare_tensors(
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
    """Whether dtype, shape and every bit agree; ``torch.equal`` treats 0.0 and -0.0 as equal."""
    same_kind = mine.dtype == theirs.dtype and mine.shape == theirs.shape
    return same_kind and torch.equal(_bytes(mine), _bytes(theirs))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)

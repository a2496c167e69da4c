"""Ranks that were started with different settings or files do not train together."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.data.index import INDEX_NAME
from pipeline.distributed.world import World
from pipeline.errors import ConfigError
from pipeline.training.agreement import check_agreement
from pipeline.training.checked_run import check_run
from pipeline.training.run import execute
from tests.interruptions import changed
from tests.ranks import run_ranks
from tests.tiny import build_config

# What rank 1 has, and the words of the error; None: it may differ.
CHANGES: list[tuple[dict[str, Any], str | None]] = [
    ({}, None),
    ({"output": "runs/other", "log_every": 7}, None),
    ({"data": {"workers": 3, "cache": {"folder": "/scratch"}}}, None),
    ({"optim": {"epochs": 3}}, "optim.epochs is 2 on rank 0 and 3 on rank 1; start every rank"),
    ({"snapshot": {"every_steps": 7}}, "snapshot.every_steps is 100 on rank 0 and 7 on rank 1"),
    ({"data": {"feature_cache": "/scratch"}}, "the use of data.feature_cache is False on rank 0"),
]


def errors_of(world: World, config: Config, copy: str, damaged: str) -> list[str]:
    """The error of each change; then with a copy of the index, another one, and other weights."""
    copied, other = ({"data": {"index": folder}} for folder in (copy, damaged))
    sections = [change for change, _ in CHANGES] + [copied, other, {}]
    found = []
    for number, change in enumerate(sections):
        own = changed(config, **change) if world.rank else config
        is_last = number == len(sections) - 1
        try:
            check_agreement(check_run(own, 2), f"{world.rank}" if is_last else "same")
            found.append("")
        except ConfigError as error:
            found.append(str(error))
    return found


def test_only_what_a_node_may_choose_differs(tiny_arch: str, tiny_shards: str, tmp_path: Path):
    """must name the value of both ranks, on each rank"""
    copy, other = tmp_path / "copy", tmp_path / "other"
    for folder in (copy, other):
        shutil.copytree(tiny_shards, folder)
    index = other / INDEX_NAME
    index.write_text(index.read_text() + "\n")
    answers = run_ranks(errors_of, 2, build_config(tiny_arch, tiny_shards), str(copy), str(other))
    assert answers[0] == answers[1]
    expected = [words for _, words in CHANGES]
    expected += [None, "the SHA-256 of data.index is", "the SHA-256 of the backbone is '0' on rank"]
    for found, words in zip(answers[0], expected, strict=True):
        assert found.startswith(f"rank 0: {words}") if words else not found


def error_of(world: World, config: Config) -> str:
    with pytest.raises(ConfigError) as caught:
        execute(check_run(changed(config, seed=world.rank + 5), 2), world)
    return str(caught.value)


def test_a_run_of_two_experiments_does_not_start(tiny_arch: str, tiny_shards: str, tmp_path: Path):
    """must write nothing: a mixture would look like a run of the settings of rank 0"""
    config = build_config(tiny_arch, tiny_shards, output=str(tmp_path / "run"))
    answers = run_ranks(error_of, 2, config, collective_s=None)
    assert answers[0] == answers[1]
    assert answers[0].startswith("rank 0: seed is 5 on rank 0 and 6 on rank 1; start every rank")
    assert not (tmp_path / "run").exists()

"""One finished and one interrupted run for all tests that leave them as they are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.inspection.findings import Findings
from pipeline.inspection.kinds import inspect_url
from tests.interruptions import StopAt, start
from tests.tiny import build_config
from tests.variants import VARIANTS

VT = VARIANTS["anchors kept as learned"].model_dump()


@pytest.fixture(scope="session")
def finished_run(tiny_arch: str, tiny_shards: str, tmp_path_factory) -> Path:
    """The output of a run of three tasks."""
    output = tmp_path_factory.mktemp("inspected") / "finished"
    config = build_config(
        tiny_arch,
        tiny_shards,
        output=str(output),
        method=VT,
        optim={"epochs": 1},
        data={"train_transform": "random_crop"},
    )
    assert start(config)
    return output


@pytest.fixture(scope="session")
def interrupted_run(tiny_arch: str, tiny_shards: str, tmp_path_factory) -> Path:
    """The output of a run that was stopped in its second task."""
    output = tmp_path_factory.mktemp("inspected") / "interrupted"
    config = build_config(
        tiny_arch, tiny_shards, output=str(output), method=VT, optim={"epochs": 1}
    )
    assert not start(config, StopAt(15))
    return output


@pytest.fixture(scope="session")
def look() -> Callable[..., Findings]:
    """Inspect a folder or URL."""

    def inspect(url: str | Path, *, full: bool = False) -> Findings:
        return inspect_url(str(url), full=full, progress=lambda done, total: None)

    return inspect

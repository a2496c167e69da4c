"""One tiny run, learned to two stages, and one service for all tests that leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interruptions import start
from tests.serving.service import Service, serving
from tests.tiny import build_config

LIMITS = (
    "--queue", 6, "--batch", 4, "--max-upload-mb", 1, "--max-megapixels", 1, "--upload-timeout", 6,
)  # fmt: skip


def learn(folder: Path, arch: str, index: str, n_tasks: int | None) -> Path:
    """The output of a run of ``n_tasks`` tasks."""
    config = build_config(
        arch,
        index,
        output=str(folder / f"run-{n_tasks}"),
        tasks={"limit": n_tasks},
        method={"name": "tppt_vt"},
    )
    assert start(config)
    return Path(config.output)


@pytest.fixture(scope="session")
def first_task(tiny_arch: str, tiny_shards: str, tmp_path_factory) -> Path:
    """The output of the run after its first task."""
    return learn(tmp_path_factory.mktemp("serve"), tiny_arch, tiny_shards, 1)


@pytest.fixture(scope="session")
def learned(tiny_arch: str, tiny_shards: str, tmp_path_factory) -> Path:
    """The output of the finished run of three tasks."""
    return learn(tmp_path_factory.mktemp("serve"), tiny_arch, tiny_shards, None)


@pytest.fixture(scope="session")
def service(learned: Path, tmp_path_factory) -> Iterator[Service]:
    """A service with small limits; nothing that is sent to it may cause a traceback.

    Each line of its log has a time, so that no library writes it a second time.
    """
    log = tmp_path_factory.mktemp("service") / "log"
    with serving(learned, log, *LIMITS) as started:
        yield started
    found = log.read_text()
    assert "Traceback" not in found and "WARNING:" not in found

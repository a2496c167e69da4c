"""The setup of a chaos run: its command, environment, outputs and logs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipeline import storage
from pipeline.config import Config
from pipeline.launching.command import (
    Place,
    launch_command,
    launch_environment,
    on_this_host,
    visible_devices,
)
from pipeline.launching.ports import reserved_port
from pipeline.output.recovery import snapshot_folder
from tests.chaos.processes import Start
from tests.services.fault_proxy import FaultProxy


@dataclass(frozen=True)
class Setup:
    """The training command of all rounds, and the places of its outputs and logs."""

    file: str
    overrides: tuple[str, ...]
    config: Config  # resolved from file and overrides
    output: str  # folder or URL of all rounds
    logs: Path
    ranks: int
    proxy: FaultProxy | None = None  # in front of the object store

    @contextmanager
    def start(self, name: str, number: int) -> Iterator[Start]:
        """Start the run ``name`` for the ``number``-th time (from 1).

        No process of the start runs any more when the context ends.
        """
        log = self.logs / name / f"start-{number}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with reserved_port() as port:
            place = on_this_host(visible_devices(self.ranks), port)
            command = self._command(name, place)
            start = Start(command, environment=self._environment(place), log=log)
            try:
                yield start
            finally:
                start.kill()

    def run_output(self, name: str) -> str:
        """The output of the run ``name``."""
        return storage.join(self.output, name, "run")

    def snapshots(self, name: str) -> str:
        """The folder of its snapshots; every run has another one."""
        shared = self.config.snapshot.folder
        own = self.config.model_copy(update={"output": self.run_output(name)})
        return storage.join(shared, name) if shared else snapshot_folder(own)

    def remove_cache(self, name: str) -> None:
        """Remove the cached data of a run from the disk."""
        shutil.rmtree(self._cache(name), ignore_errors=True)

    def _cache(self, name: str) -> Path:
        return self.logs / name / "cache"

    def _command(self, name: str, place: Place) -> list[str]:
        own = (
            f"output={self.run_output(name)}",
            f"snapshot.folder={self.snapshots(name)}",
            f"data.cache.folder={self._cache(name)}",
        )
        return launch_command(self.file, place, overrides=[*self.overrides, *own])

    def _environment(self, place: Place) -> dict[str, str]:
        # Another number of threads would round sums in another order.
        environment = {"OMP_NUM_THREADS": "1", **os.environ}
        if self.proxy:
            environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{self.proxy.port}"
        return launch_environment(environment, place.devices)

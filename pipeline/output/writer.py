"""The files of a run: rank 0 writes them, as long as the run owns its output."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Any

from safetensors.torch import save as to_safetensors
from torch import Tensor

from pipeline import storage
from pipeline.config import Config, dump_config, with_absolute_paths
from pipeline.distributed.collectives import on_main, raise_on_all_ranks
from pipeline.distributed.world import World
from pipeline.output.learned import learned_url
from pipeline.output.live_progress import LiveProgress, ProgressWriter
from pipeline.output.metrics_log import NAME as METRICS_NAME
from pipeline.output.metrics_log import MetricsLog
from pipeline.output.ownership import Ownership
from pipeline.output.predictions import NAME as PREDICTIONS_NAME
from pipeline.output.predictions import Prediction, format_predictions
from pipeline.output.recovery import snapshot_folder
from pipeline.output.results import CONFIG_NAME, RunResults
from pipeline.output.snapshots import Snapshot, SnapshotWriter


class OutputWriter:
    """The files of one run. Every rank calls every method; an error is raised on all ranks.

    Raises, from any method:
        StorageError: a file cannot be written.
        TakenOverError: a later start of the run owns the output.
    """

    def __init__(self, config: Config, world: World, owner: Ownership) -> None:
        self._config = config
        self._world = world
        self._owner = owner
        self._snapshots = SnapshotWriter(snapshot_folder(config), owner.raise_if_taken_over)
        self.metrics = MetricsLog(storage.join(config.output, METRICS_NAME))
        self._progress = ProgressWriter(config.output, owner)

    def write_config(self) -> None:
        """Write ``config.yaml``: all settings, with paths that hold in every working folder."""
        url = storage.join(self._config.output, CONFIG_NAME)
        self._write(url, dump_config(with_absolute_paths(self._config)).encode())

    def write_learned(self, task: int, tensors: Mapping[str, Tensor]) -> str | None:
        """Write the tensors that a task has learned; returns their sha256, None for no tensor."""
        if not tensors:
            return None
        cpu = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        data = to_safetensors(cpu)
        self._write(learned_url(self._config.output, task), data)
        return hashlib.sha256(data).hexdigest()

    def write_predictions(self, predictions: Iterable[Prediction] | None) -> str | None:
        """Write ``predictions.jsonl``; returns its sha256. None: remove that of an earlier start.

        Only rank 0 takes the predictions.
        """
        url = storage.join(self._config.output, PREDICTIONS_NAME)

        def write() -> str | None:
            self._owner.raise_if_taken_over()
            if predictions is None:
                storage.remove(url)
                return None
            data = format_predictions(predictions)
            storage.write_atomically(url, data)
            return hashlib.sha256(data).hexdigest()

        return on_main(write)

    def write_snapshot(
        self,
        task: int,
        step: int,
        groups: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
    ) -> None:
        """Take a snapshot now and write it in the background.

        Raises:
            DivergenceError: a tensor is not finite.
        """
        with raise_on_all_ranks():
            if self._world.is_main:
                complete = {**state, "metrics_lines": len(self.metrics)}
                snapshot = Snapshot.take(task, step, groups, complete)
                self._snapshots.write(snapshot, files_first=self.metrics.contents())

    def write_results(self, results: RunResults) -> None:
        """Write ``results.json`` and ``metrics.jsonl``, after the last snapshot is written."""
        with raise_on_all_ranks():
            if self._world.is_main:
                self._snapshots.wait()
                self._owner.raise_if_taken_over()
                self.metrics.flush()
                results.write(self._config.output)

    def show_progress(self, progress: LiveProgress) -> None:
        """Write ``progress.json`` soon, in the background."""
        if self._world.is_main:
            self._progress.show(progress)

    def restore_metrics(self, n_lines: int) -> None:
        """Continue ``metrics.jsonl`` after its first ``n_lines`` lines."""
        with raise_on_all_ranks():
            if self._world.is_main:
                self.metrics.restore(n_lines)

    def finish(self) -> None:
        """Return on every rank once rank 0 has written everything."""
        with raise_on_all_ranks():
            self._snapshots.wait()

    def close(self) -> None:
        """End the background threads, that of the snapshots once it has written its last one."""
        self._progress.close()
        self._snapshots.close()

    def _write(self, url: str, data: bytes) -> None:
        with raise_on_all_ranks():
            if self._world.is_main:
                self._owner.raise_if_taken_over()
                storage.write_atomically(url, data)

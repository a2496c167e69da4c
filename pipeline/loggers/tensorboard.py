"""Points as scalars of TensorBoard, in a folder."""

from __future__ import annotations

import json

from torch.utils.tensorboard import SummaryWriter

from pipeline import storage
from pipeline.config import LoggerConfig
from pipeline.loggers.base import End, LoggedRun
from pipeline.loggers.points import Point

_FLUSH_S = 10  # seconds until a point is in the file


class TensorBoardLogger:
    """Each start writes one file with all points of the run so far.

    The file lets readers drop those of earlier starts, so no step is there twice.
    """

    last_line = 0

    def __init__(self, settings: LoggerConfig, run: LoggedRun) -> None:
        self._run = run
        self._folder = storage.local_path(settings.place or storage.join(run.output, "tensorboard"))

    def start(self, run_id: str | None) -> str:
        """Start the file of this start; the id of a run is its folder."""
        self._writer = SummaryWriter(self._folder, flush_secs=_FLUSH_S, purge_step=0)
        self._writer.add_text("config", f"```\n{json.dumps(self._run.config, indent=2)}\n```", 0)
        return self._folder

    def log(self, point: Point) -> None:
        """Add a point."""
        for name, value in point.values.items():
            self._writer.add_scalar(name, value, point.step)

    def end(self, end: End) -> None:
        """Close the file."""
        self._writer.close()

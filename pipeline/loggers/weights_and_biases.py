"""Points as the history of a run of Weights & Biases."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from pathlib import Path

import wandb

from pipeline import storage
from pipeline.config import LoggerConfig
from pipeline.loggers.base import End, LoggedRun
from pipeline.loggers.points import Point
from pipeline.loggers.wandb_file import read_history

_START_S = 60  # limit for the first answer of the server
_FLUSH_S = 2  # until a point is in the local file
_FINISH_S = 25  # limit for the upload at the end


class WandbLogger:
    """A run with an id of this program, so that a later start continues it, offline too.

    The number of a point's line is the step of W&B; charts are drawn over optimizer steps. The
    server knows the last line; offline, the files of earlier starts do.
    """

    last_line = 0

    def __init__(self, settings: LoggerConfig, run: LoggedRun) -> None:
        self._settings = settings
        self._run = run
        place = settings.place or (run.output if storage.is_local(run.output) else ".")
        self._folder = Path(storage.local_path(place))

    def start(self, run_id: str | None) -> str:
        """Start or continue a run."""
        wandb.setup(wandb.Settings(silent=True))  # then a missing login is an error, no question
        self._folder.mkdir(parents=True, exist_ok=True)
        before = list(self._folder.glob(f"wandb/*/run-{run_id}.wandb"))
        self._started = wandb.init(
            id=run_id or uuid.uuid4().hex[:8],
            resume="allow",
            project=self._settings.project,
            name=self._run.name,
            config=self._run.config,
            dir=str(self._folder),
            settings=wandb.Settings(
                silent=True,
                console="off",  # the log may name hosts and folders
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_transaction_log_flush_interval=_FLUSH_S,
                init_timeout=_START_S,
                finish_timeout=_FINISH_S,
            ),
        )
        self._started.define_metric("optimizer_step")
        self._started.define_metric("*", step_metric="optimizer_step")
        self.last_line = self._last_line(before)
        return self._started.id

    def _last_line(self, files: Sequence[Path]) -> int:
        """The last line in ``files`` of earlier starts; online, the last one of the server."""
        if not self._started.offline:
            return self._started.step - 1  # ``step`` is the next one
        return max((row["_step"] for file in files for row in read_history(file)), default=0)

    def log(self, point: Point) -> None:
        """Add a point."""
        values = {**point.values, "optimizer_step": point.step}
        self._started.log(values, step=point.line, commit=True)

    def end(self, end: End) -> None:
        """Upload what is left; a stopped run is shown as preempted."""
        if end == "stopped":
            self._started.mark_preempting()
        self._started.finish(exit_code=0 if end == "finished" else 1)

"""Points as the history of a run of Weights & Biases."""

from __future__ import annotations

import uuid
from pathlib import Path

import wandb

from pipeline import storage
from pipeline.config import LoggerConfig
from pipeline.loggers.base import End, LoggedRun
from pipeline.loggers.points import Point

_START_S = 60  # limit for the first answer of the server
_FINISH_S = 25  # limit for the upload at the end


class WandbLogger:
    """A run with an id of this program, so that a later start continues it, offline too.

    The number of a point's line is the step of W&B; charts are drawn over optimizer steps. The last
    line is asked from the server, and read from a small file beside the local files, which is
    all there is offline.
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
                init_timeout=_START_S,
                finish_timeout=_FINISH_S,
            ),
        )
        self._started.define_metric("optimizer_step")
        self._started.define_metric("*", step_metric="optimizer_step")
        self._mark = self._folder / "wandb" / f"{self._started.id}.line"
        on_disk = int(self._mark.read_text()) if self._mark.exists() else 0
        # ``step`` is the next one of a continued run
        self.last_line = max(on_disk, self._started.step - 1)
        return self._started.id

    def log(self, point: Point) -> None:
        """Add a point."""
        values = {**point.values, "optimizer_step": point.step}
        self._started.log(values, step=point.line, commit=True)
        self._mark.write_text(str(point.line))

    def end(self, end: End) -> None:
        """Upload what is left; a stopped run is shown as preempted."""
        if end == "stopped":
            self._started.mark_preempting()
        self._started.finish(exit_code=0 if end == "finished" else 1)

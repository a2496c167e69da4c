"""What a person sees of a run: a live display on a terminal, plain lines in a file."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text

from pipeline.output.live_progress import Doing, LastStep, LiveProgress
from pipeline.progress_bar import ProgressLine
from pipeline.text import format_clock, shows_live_display

log = logging.getLogger(__name__)

_PASS_LINE_S = 10.0  # between two lines about one pass over images
_SPEED_WINDOW_S = 3600.0  # for the time left; two logged steps can be minutes apart
_COLUMN_WIDTH = 8  # of an accuracy in the table, with its borders
_OTHER_WIDTH = 20  # of the table's columns that are no task
_OTHER_HEIGHT = 8  # of title, heading, borders and bar


@dataclass(frozen=True)
class StepReport:
    """Where training stands; every figure is of all ranks together."""

    task: int  # counted from 0
    epoch: int  # counted from 0
    step: int  # of the task, counted from 0
    loss: float
    learning_rate: float
    images_per_second: float
    data_wait: float  # fraction of the time spent waiting for images

    @property
    def figures(self) -> tuple[str, ...]:
        """Loss, learning rate, speed and waiting, in words."""
        return (
            f"loss {self.loss:.3f}",
            f"lr {self.learning_rate:.1e}",
            f"{self.images_per_second:,.0f} images/s",
            f"data wait {self.data_wait:.0%}",
        )

    def __str__(self) -> str:
        return "  ".join(self.figures)


class StepClock:
    """Images per second and the share of waiting since it was last read, or since its start."""

    def __init__(self, global_batch: int) -> None:
        self._global_batch = global_batch
        self._reset()

    def count(self, wait_s: float) -> None:
        """Add a step that waited ``wait_s`` seconds for its images."""
        self._steps += 1
        self._wait_s += wait_s

    def read(self) -> tuple[float, float]:
        """Images per second of all ranks, and the waiting as a fraction of the time."""
        elapsed = time.perf_counter() - self._started
        speed, wait = self._steps * self._global_batch / elapsed, min(1.0, self._wait_s / elapsed)
        self._reset()
        return speed, wait

    def _reset(self) -> None:
        self._started, self._steps, self._wait_s = time.perf_counter(), 0, 0.0


class Display:
    """Progress over all tasks; nothing is shown on ranks other than 0.

    ``note`` is a warning to the reader of the accuracies. ``publish`` gets what the run does, for
    people on other machines.
    """

    def __init__(
        self,
        *,
        n_tasks: int,
        n_epochs: int,
        shown: bool,
        note: str | None = None,
        publish: Callable[[LiveProgress], None] = lambda progress: None,
    ) -> None:
        self._n_tasks, self._n_epochs = n_tasks, n_epochs
        self._shown = shown
        self._live: Live | None = None
        self._note = note
        self._publish = publish
        self._doing: Doing = "testing"
        self._task = 0
        # After each task: its number, all seen, each held-out set, each task.
        self._rows: list[list[str]] = []
        self._n_held_out = 0
        self._console = Console(stderr=True)
        n_figures = 4
        columns = (f"{{task.fields[figures][{place}]}}" for place in range(n_figures))
        self._bar = ProgressLine(
            *(TextColumn(column, markup=False) for column in columns),
            console=self._console,
            window_s=_SPEED_WINDOW_S,
        )
        self._total = self._bar.add_task("all steps", total=None, figures=[""] * n_figures)

    def __enter__(self) -> Display:
        if self._shown and shows_live_display(self._console):
            self._live = Live(
                get_renderable=self._render, console=self._console, refresh_per_second=4
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()
            sys.stderr.flush()

    def expect(self, n_steps: int) -> None:
        """Set the number of optimizer steps of the whole run, all tasks together."""
        self._bar.update(self._total, total=n_steps)

    def step(self, report: StepReport, *, done: int, task_steps: int) -> None:
        """Show a step; ``done`` counts the steps of the whole run so far."""
        place = f"task {report.task + 1}/{self._n_tasks} epoch {report.epoch + 1}/{self._n_epochs}"
        self._bar.update(self._total, completed=done, description=place, figures=report.figures)
        left_s = self._bar.tasks[0].time_remaining
        last_step = LastStep(**vars(report), task_steps=task_steps, seconds_left=left_s)
        self.doing("training", report.task, last_step)
        if self._shown and not self._live:
            eta = format_clock(left_s)
            log.info("%s step %d/%d %s  eta %s", place, report.step + 1, task_steps, report, eta)

    def doing(self, what: Doing, task: int, last_step: LastStep | None = None) -> None:
        """Publish what the run does with ``task``."""
        self._doing, self._task = what, task
        self._publish_now(last_step=last_step)

    def images(self, n_images: int) -> Callable[[int], None]:
        """Start a pass of all ranks over images without steps.

        The result is a function that shows the number of images so far. A log gets a line every
        10 seconds.
        """
        place = f"task {self._task + 1}/{self._n_tasks} {self._doing}"
        started = stated = time.perf_counter()

        def show(done: int) -> None:
            nonlocal stated
            now = time.perf_counter()
            speed = done / (now - started)
            figures = f"{done:,}/{n_images:,} images", f"{speed:,.0f} images/s"
            self._bar.update(self._total, description=place, figures=(*figures, "", ""))
            self._publish_now(images=done, n_images=n_images)
            if self._shown and not self._live and now - stated > _PASS_LINE_S:
                stated = now
                eta = format_clock((n_images - done) / speed)
                log.info("%s %s  %s  eta %s", place, *figures, eta)

        return show

    def _publish_now(self, **more: Any) -> None:
        self._publish(
            LiveProgress(
                doing=self._doing,
                task=self._task,
                n_tasks=self._n_tasks,
                n_epochs=self._n_epochs,
                **more,
            )
        )

    def scored(
        self,
        task: int,
        micro: float,
        row: Sequence[float],
        held_out: Sequence[float | None] = (),
    ) -> None:
        """Add the accuracies after ``task``, and those on held-out sets, to the table."""
        cells = [f"{100 * accuracy:.1f}" for accuracy in row]
        retained = ["-" if each is None else f"{100 * each:.1f}" for each in held_out]
        self._n_held_out = len(retained)
        self._rows.append([str(task + 1), f"{100 * micro:.1f}", *retained, *cells])
        if self._shown and not self._live:
            line = "task %d learned: %.1f %% of all seen; by task: %s%s%s"
            note = f" ({self._note})" if self._note else ""
            held = f"; held out: {' '.join(retained)}" if retained else ""
            log.info(line, task + 1, 100 * micro, " ".join(cells), held, note)

    def _render(self) -> Group:
        """The bar below the part of the table that fits: the last tasks."""
        width, height = self._console.size
        held_out = [f"held {number + 1}" for number in range(self._n_held_out)]
        n_shown = max(1, (width - _OTHER_WIDTH) // _COLUMN_WIDTH - len(held_out))
        last = max(min(self._n_tasks, n_shown), len(self._rows))
        shown = range(max(0, last - n_shown), last)
        title = "accuracy after each task (%)" + (f", {self._note}" if self._note else "")
        table = Table(title=Text(title), title_justify="left")
        for heading in ("task", "all seen", *held_out, *(f"{index + 1}" for index in shown)):
            table.add_column(heading, justify="right", no_wrap=True)
        n_fixed = 2 + len(held_out)
        for row in self._rows[-max(1, height - _OTHER_HEIGHT) :]:
            table.add_row(*row[:n_fixed], *row[n_fixed + shown.start :])
        return Group(table, self._bar)

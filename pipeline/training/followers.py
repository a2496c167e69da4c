"""The followers of a run: its loggers and its page. They neither stop nor slow it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from pipeline import storage
from pipeline.config import Config
from pipeline.distributed.world import World
from pipeline.errors import Preempted
from pipeline.loggers.background import RunLoggers

log = logging.getLogger(__name__)

_PAGE_S = 30.0  # limit for the page to be complete when the run ends
_STOPPED_PAGE_S = 3.0  # the same if the run is stopped or has failed


class Followers:
    """The followers of one start of a run, on rank 0; they end with the block."""

    def __init__(self, config: Config, world: World) -> None:
        self._is_main = world.is_main
        self._loggers = RunLoggers(config)
        self._page = PageWriter(config.output) if config.report and world.is_main else None

    def start(self, lines: Sequence[str], task_steps: Callable[[int], int]) -> None:
        """Start them; ``lines`` are those of ``metrics.jsonl`` from an earlier start.

        ``task_steps`` gives the optimizer steps of a task, counted from 0.
        """
        if self._is_main:
            self._loggers.start(lines, task_steps)

    def add(self, line: int, content: Mapping[str, Any]) -> None:
        """Show them a new line, counted from 1."""
        if self._is_main:
            self._loggers.add(line, content)

    def update_page(self) -> None:
        """Let the page show the results as they are written now."""
        if self._page:
            self._page.update()

    def __enter__(self) -> Followers:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._page:
            self._page.end(_STOPPED_PAGE_S if kind else _PAGE_S)
        if self._is_main:
            is_stopped = kind is not None and issubclass(kind, Preempted)
            self._loggers.end("stopped" if is_stopped else "failed" if kind else "finished")


class PageWriter:
    """Writes ``report.html`` of the run in ``output`` in a thread; an error is a warning.

    While a page is being written, further updates wait and then make one page.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._asked: SimpleQueue[bool] = SimpleQueue()  # True: a page; False: the end
        self._thread: threading.Thread | None = None

    def update(self) -> None:
        """Ask for a page; returns at once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="report", daemon=True)
            self._thread.start()
        self._asked.put(True)

    def end(self, limit_s: float) -> None:
        """Wait for the last page, at most ``limit_s`` seconds."""
        if self._thread:
            self._asked.put(False)
            self._thread.join(limit_s)
            if self._thread.is_alive():
                log.warning("report.html was not complete after %.0f s; %s", limit_s, self._remedy)

    def _live(self) -> None:
        is_open = True
        while is_open:
            asked = [self._asked.get()]
            while not self._asked.empty():
                asked.append(self._asked.get())
            is_open = False not in asked
            if True in asked:
                self._write()

    def _write(self) -> None:
        try:
            from pipeline.run_report.page import PAGE, write_report  # only where a page is wanted

            write_report([self._output], storage.join(self._output, PAGE))
        except Exception as error:  # nothing here may stop a run
            reason = storage.scrub(f"{type(error).__name__}: {error}")
            log.warning("report.html was not written: %s; %s", reason, self._remedy)

    @property
    def _remedy(self) -> str:
        output = storage.redact(self._output)
        return f"the run continues; write it later by `python -m pipeline.report {output}`"

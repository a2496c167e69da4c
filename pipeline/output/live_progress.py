"""``progress.json``: what a running run does now, for ``inspect --watch``.

``metrics.jsonl`` is written with each snapshot, as an object store can only replace files; a
snapshot may be minutes away. This small file is written in between, by a thread, so that training
never waits for it. It is no part of the results: nothing continues from it, and it is removed when
the run ends in any way but a kill.
"""

from __future__ import annotations

import logging
import threading
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import storage
from pipeline.errors import DataError, TakenOverError
from pipeline.output.ownership import Ownership
from pipeline.text import first_problem

log = logging.getLogger(__name__)

NAME = "progress.json"
Doing = Literal["training", "fitting", "testing"]
_EVERY_S = {True: 2.0, False: 60.0}  # between two writes to a local output, to another
_WRITE_S = 10.0  # deadline of one write to a storage that fails
_END_S = 5.0  # limit for the last write when the run ends


class LastStep(BaseModel):
    """The last logged optimizer step; numbers are counted from 0."""

    model_config = ConfigDict(frozen=True)

    task: int
    epoch: int
    step: int  # of the task
    loss: float
    images_per_second: float  # of all ranks
    task_steps: int | None = None  # optimizer steps of the task; None in metrics.jsonl
    seconds_left: float | None = None  # of the training of all tasks; None: not known


class LiveProgress(BaseModel):
    """The content of ``progress.json``; the task is counted from 0."""

    model_config = ConfigDict(frozen=True)

    doing: Doing
    task: int
    n_tasks: int
    n_epochs: int  # of a task
    last_step: LastStep | None = None  # None unless it is training
    images: int | None = None  # read so far by a pass of all ranks over images without steps
    n_images: int | None = None  # of that pass


def read_progress(output: str) -> LiveProgress:
    """What the run in ``output`` does.

    Raises:
        DataError: the file is damaged.
        StorageError: there is no such file, or it cannot be read.
    """
    url = storage.join(output, NAME)
    try:
        return LiveProgress.model_validate_json(storage.read_text(url))
    except ValidationError as error:
        raise DataError(f"{storage.redact(url)}: is damaged ({first_problem(error)})") from None


class ProgressWriter:
    """Writes ``progress.json`` in ``output`` as long as ``owner`` owns it.

    The first content is written at once, later ones at most every 2 seconds, or every 60 seconds if
    the output is not local. An error is one warning; the next content is tried again.
    """

    def __init__(self, output: str, owner: Ownership) -> None:
        self._url = storage.join(output, NAME)
        self._every_s = _EVERY_S[storage.is_local(output)]
        self._owner = owner
        self._newest: LiveProgress | None = None
        self._has_new = threading.Event()
        self._is_closed = threading.Event()
        self._has_failed = False
        self._thread: threading.Thread | None = None

    def show(self, progress: LiveProgress) -> None:
        """Write this soon, in the background."""
        self._newest = progress
        self._has_new.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._live, name="progress", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Remove the file."""
        self._is_closed.set()
        self._has_new.set()
        if self._thread:
            self._thread.join(_END_S)

    def _live(self) -> None:
        try:
            while True:
                self._has_new.wait()
                self._has_new.clear()
                self._try_to_write()
                if self._is_closed.wait(self._every_s):
                    self._newest = None
                    self._try_to_write()
                    return
        except TakenOverError:
            pass  # the run itself ends at its next snapshot

    def _try_to_write(self) -> None:
        try:
            self._owner.raise_if_taken_over()
            if self._newest is None:
                storage.remove(self._url)
            else:
                data = self._newest.model_dump_json(exclude_none=True).encode()
                storage.write_atomically(self._url, data, deadline_s=_WRITE_S)
        except TakenOverError:
            raise
        except Exception as error:  # nothing here may stop a run
            if not self._has_failed:
                reason = storage.scrub(f"{type(error).__name__}: {error}")
                log.warning("%s was not written, the run continues: %s", NAME, reason)
            self._has_failed = True

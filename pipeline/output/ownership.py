"""The owner of an output: only the newest start of a command may write there.

A restarted job may overlap with its previous start on another machine, and a person may start a
command twice. A lock would survive a killed machine, and object stores have no locks. Each start
therefore writes its name into ``<output>/owner.json``, and a start that finds another name stops.
Two starts can still write at the same moment, between check and write. This does no harm: files
are replaced atomically, and all starts of a run write the same content.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any, NamedTuple

from pipeline import storage
from pipeline.errors import DataError, TakenOverError

log = logging.getLogger(__name__)

NAME = "owner.json"


class Start(NamedTuple):
    """A start of a command, as ``owner.json`` names it."""

    process: int
    host: str
    since: str  # ISO 8601, UTC

    @property
    def has_ended(self) -> bool:
        """Whether it has certainly ended: it ran on this host, which has no such process now."""
        return self.host == socket.gethostname() and not _is_running(self.process)


def read_start(output: str) -> Start | None:
    """The start that owns the folder or URL ``output``; None if no start has taken it.

    Raises:
        DataError: ``owner.json`` has other content.
        StorageError: it cannot be read.
    """
    url = storage.join(output, NAME)
    if not storage.exists(url):
        return None
    try:
        found = json.loads(storage.read_text(url))
        return Start(int(found["process"]), str(found["host"]), str(found["since"]))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{storage.redact(url)}: does not name a start of the command ({type(error).__name__}: "
            f"{error}); start the command again, which writes it again"
        ) from None


class Ownership:
    """The right of one start to write to the folder or URL ``output``."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._start = uuid.uuid4().hex

    def take(self) -> None:
        """Take the output over from all earlier starts; warn of one that may still run.

        Raises:
            StorageError: the output cannot be written.
        """
        earlier = self._running_start()
        if earlier:
            log.warning(
                "%s: this start takes the output over from %s; if that one still runs, it stops at "
                "its next snapshot",
                storage.redact(self._output),
                earlier,
            )
        about = {
            "start": self._start,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        storage.write_atomically(self._url, f"{json.dumps(about, indent=2)}\n".encode())

    def _running_start(self) -> str | None:
        """The start that owns the output and may still run, other than one of this process.

        Raises:
            StorageError: the output cannot be read.
        """
        try:
            start = read_start(self._output)
        except DataError:
            return "an unknown start: the file has other content"
        if start is None or start.has_ended or start[:2] == (os.getpid(), socket.gethostname()):
            return None
        return _describe(start._asdict())

    def raise_if_taken_over(self) -> None:
        """Raise if a later start has taken the output over.

        Raises:
            TakenOverError: ``owner.json`` does not name this start.
            StorageError: the output cannot be read.
        """
        try:
            found = json.loads(storage.read_text(self._url))
            if found["start"] == self._start:
                return
            by = _describe(found)
        except (ValueError, KeyError, TypeError):
            by = "unknown: the file has other content"
        raise TakenOverError(
            f"{storage.redact(self._url)}: another start of the command has taken over this output "
            f"({by}); this one stops; set another output= to run both"
        )

    @property
    def _url(self) -> str:
        return storage.join(self._output, NAME)


def _describe(found: Mapping[str, Any]) -> str:
    """Process, host and time of a start."""
    return f"process {found['process']} on {found['host']}, since {found['since']}"


def _is_running(process: int) -> bool:
    """Whether this host has a process of that number."""
    try:
        os.kill(int(process), 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # of another user
        pass
    return True

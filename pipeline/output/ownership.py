"""Which start of a command may write to its output: the newest.

A job that is started again may meet its own last start, still busy on another machine, and a person
may start a command twice. A lock would outlive a killed machine, and an object store has none. So
every start writes its name into ``<output>/owner.json``, and whoever finds another's there stops.
Between looking and writing lies a moment in which both may write, which is why everything that is
written is whole, and the same whichever start of a run has written it.
"""

from __future__ import annotations

import json
import os
import socket
import uuid
from datetime import datetime, timezone

from pipeline import storage
from pipeline.errors import TakenOverError

NAME = "owner.json"


class Ownership:
    """The right of one start to write to the folder or URL ``output``."""

    def __init__(self, output: str) -> None:
        self._output = output
        self._start = uuid.uuid4().hex

    def take(self) -> None:
        """From now on earlier starts find that they have lost it.

        Raises:
            StorageError: the output cannot be written.
        """
        about = {
            "start": self._start,
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }
        storage.write_atomically(self._url, f"{json.dumps(about, indent=2)}\n".encode())

    def raise_if_taken_over(self) -> None:
        """Do nothing as long as no later start has taken it.

        Raises:
            TakenOverError: one has.
            StorageError: the output cannot be read.
        """
        try:
            found = json.loads(storage.read_text(self._url))
            if found["start"] == self._start:
                return
            by = f"process {found['process']} on {found['host']}, since {found['since']}"
        except (ValueError, KeyError, TypeError):
            by = "something that has written another content there"
        raise TakenOverError(
            f"{storage.redact(self._url)}: another start of the command has taken over this output "
            f"({by}); this one stops; give it another output= if both are wanted"
        )

    @property
    def _url(self) -> str:
        return storage.join(self._output, NAME)

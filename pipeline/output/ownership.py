"""The owner of an output: only the newest start of a command may write there.

A restarted job may overlap with its previous start on another machine, and a person may start a
command twice. A lock would survive a killed machine, and object stores have no locks. Each start
therefore writes its name into ``<output>/owner.json``, and a start that finds another name stops.
Two starts can still write at the same moment, between check and write. This does no harm: files
are replaced atomically, and all starts of a run write the same content.
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
        """Take the output over from all earlier starts.

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
        """Raise if a later start has taken the output over.

        Raises:
            TakenOverError: ``owner.json`` does not name this start.
            StorageError: the output cannot be read.
        """
        try:
            found = json.loads(storage.read_text(self._url))
            if found["start"] == self._start:
                return
            by = f"process {found['process']} on {found['host']}, since {found['since']}"
        except (ValueError, KeyError, TypeError):
            by = "unknown: the file has other content"
        raise TakenOverError(
            f"{storage.redact(self._url)}: another start of the command has taken over this output "
            f"({by}); this one stops; set another output= to run both"
        )

    @property
    def _url(self) -> str:
        return storage.join(self._output, NAME)

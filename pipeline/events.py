"""The progress of a run, as lines of JSON for the program that launched it.

The launcher names a file on the local disk in the variable ``TPPT_EVENTS``; without the variable
nothing is written. Rank 0 reports the progress, and every rank its own error. Each line is one
object with ``event`` and ``rank``:

============  ===========================================================================
``imported``  the program is loaded
``loaded``    the backbone is loaded; the tasks come next
``resumed``   ``task``, ``step``: the run continues before this optimizer step, from 0
``step``      ``task``, ``step``: this optimizer step is done, from 0
``learned``   ``task``: this task was learned and tested
``ended``     ``error`` (class name), ``message``, ``status``: the rank ends with this error
============  ===========================================================================
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

VARIABLE = "TPPT_EVENTS"


class EventLog:
    """Appends the events of one rank to the file of the launcher, if it named one."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._path = environment.get(VARIABLE)
        self._rank = int(environment.get("RANK", "0"))

    def add(self, event: str, **values: Any) -> None:
        """Append one event in a single write, so that lines of several ranks never mix."""
        if not self._path:
            return
        line = json.dumps({"event": event, "rank": self._rank, **values}) + "\n"
        file = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(file, line.encode())
        finally:
            os.close(file)

    def add_end(self, error: BaseException, status: int) -> None:
        """Append the end of this rank with ``error`` and exit ``status``."""
        message = " ".join(str(error).split())
        self.add("ended", error=type(error).__name__, message=message, status=status)


def read_events(path: Path, *, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """The events in complete lines from byte ``offset`` on, and the offset after the last one."""
    if not path.exists():
        return [], offset
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read()
    complete = data[: data.rfind(b"\n") + 1]
    return [json.loads(line) for line in complete.splitlines()], offset + len(complete)

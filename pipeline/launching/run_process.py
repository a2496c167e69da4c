"""One training run as a child process on this node.

- The run sees its own devices only. It ends, with all its processes, when it is stopped or when the
  process that started it ends.
- Processes of an earlier launch on this host are ended first: two launches of one run never write
  to the same output.
- The launcher's exit status alone decides nothing: a killed launcher may well return 0. A run is
  finished if its results say so, and has failed for the reason that its ranks have reported.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import storage
from pipeline.config import Config, dump_config
from pipeline.errors import LostRankError, Preempted, TakenOverError
from pipeline.events import read_events
from pipeline.launching.command import Place, hostfile_text, launch_command, launch_environment
from pipeline.launching.private_folder import private_folder
from pipeline.launching.processes import end_processes, processes_of, ranks_below
from pipeline.output.results import read_results

_END_WITH_PARENT = Path(__file__).with_name("end_with_parent.py")
_TAIL_BYTES = 20_000  # of the log, to find its last line
_MAX_REASON = 400  # characters; messages of CUDA and NCCL may fill pages
_LAUNCHER_NOTICES_S = 5.0  # the launcher looks at its ranks every second
_NO_FAULT = tuple(error.__name__ for error in (LostRankError, Preempted, TakenOverError))


@dataclass(frozen=True)
class Ended:
    """How a run ended; ``reason`` is None if it finished."""

    reason: str | None
    lost: bool = False  # its settings are not at fault: the same command resumes it


class RunProcess:
    """The launched run of a configuration on this node, on the devices of ``place``."""

    def __init__(self, config: Config, place: Place) -> None:
        self._config = config
        digest = hashlib.sha256(config.output.encode()).hexdigest()[:16]
        self._folder = private_folder(f"{digest}-{place.node}")
        self._file = self._folder / "config.yaml"
        end_processes(processes_of(self._file))
        self._file.write_text(dump_config(config))
        self._event_file = self._folder / "events.jsonl"
        self._event_file.write_bytes(b"")  # an earlier launch may have left its own
        hostfile = self._folder / "hostfile"
        hostfile.write_text(hostfile_text(place))
        command = [sys.executable, "-I", str(_END_WITH_PARENT), str(os.getpid())]
        command += launch_command(self._file, place, hostfile=hostfile)
        environment = launch_environment(os.environ, place.devices, event_file=self._event_file)
        self._log = self._folder / f"node-{place.node}.log"
        with open(self._log, "ab") as log:  # an interrupted launch may have left its part
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def is_running(self) -> bool:
        """Whether the launcher still runs."""
        return self._process.poll() is None

    def end(self) -> Ended:
        """Wait for the end of the run; no process of it is left on this node afterwards."""
        status = self._process.wait()
        end_processes(processes_of(self._file))
        results = read_results(self._config.output)
        if results is not None and results.is_finished:
            return Ended(None)
        events, _ = read_events(self._event_file)
        ended = how_it_ended(status, events, self._last_line())
        return Ended(storage.scrub(ended.reason or ""), ended.lost)

    def stop(self) -> None:
        """Ask the ranks for a snapshot; no process of the run is left on this node afterwards."""
        if self.is_running():
            end_processes(ranks_below(self._process.pid))
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_LAUNCHER_NOTICES_S)
        if self.is_running():
            self._process.kill()
            self._process.wait()
        end_processes(processes_of(self._file))

    def keep_log(self, url: str) -> None:
        """Append the log to the file ``url`` and remove everything of the run from this host.

        Raises:
            StorageError: it cannot be written.
        """
        before = storage.read_bytes(url) if storage.exists(url) else b""
        added = storage.scrub(self._log.read_text(errors="replace")).encode()
        storage.write_atomically(url, before + added)
        shutil.rmtree(self._folder)

    def _last_line(self) -> str:
        with open(self._log, "rb") as log:
            log.seek(max(self._log_start, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").split("\n")
        return next((line for line in reversed(lines) if line.strip()), "the log is empty")


def how_it_ended(status: int, events: Sequence[Mapping[str, Any]], last_line: str) -> Ended:
    """Why a run that is not finished ended.

    ``status`` is the launcher's exit status, ``events`` are those of the ranks on this node. When
    one rank fails the others lose contact or are sent SIGTERM, so the error of the first rank that
    ended in another way is the reason.
    """
    ends = [event for event in events if event["event"] == "ended"]
    faults = [event for event in ends if event["error"] not in _NO_FAULT]
    killed = Ended(f"a process of the run was killed (the launcher ended with {status})", lost=True)
    if faults:
        first = faults[0]
        if first["status"] != 1:  # an error of ours, which says everything
            return Ended(first["message"])
        # With another status some rank was killed, and this exception is a consequence of that.
        reason = f"{first['error']}: {first['message']}"
        return Ended(textwrap.shorten(reason, _MAX_REASON)) if status == 1 else killed
    if ends:
        return Ended(ends[0]["message"], lost=True)
    if status in (1, 2):
        # No rank could report: the launcher itself failed, or Python could not load the program.
        return Ended(f"exit status {status}: {last_line}")
    return killed

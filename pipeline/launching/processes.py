"""Processes of runs on this host: how to find them and how to end them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

import psutil

_GRACE_S = 60.0  # how long ranks may take to write their last snapshot
_LEVELS_TO_RANKS = 3  # end_with_parent.py, `deepspeed`, deepspeed.launcher.launch, ranks


def processes_of(config: Path) -> list[psutil.Process]:
    """Every process on this host that was started with this configuration file."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(config) in (process.info["cmdline"] or ()) and process.pid != os.getpid()
    ]


def ranks_below(pid: int) -> list[psutil.Process]:
    """The ranks of the run that process ``pid``, an ``end_with_parent.py``, has started."""
    found: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        found = [psutil.Process(pid)]
    for _ in range(_LEVELS_TO_RANKS):
        found = [child for process in found for child in _children(process)]
    return found


def end_processes(processes: Sequence[psutil.Process]) -> None:
    """Send SIGTERM, wait for a last snapshot, then kill; their children included."""
    children = [child for each in processes for child in _children(each, recursive=True)]
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs({*processes, *children}, timeout=_GRACE_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_GRACE_S)


def _children(process: psutil.Process, *, recursive: bool = False) -> list[psutil.Process]:
    """The children of a process; none if it has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.children(recursive=recursive)
    return []

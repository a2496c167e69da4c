"""Finds the processes of one test by a mark in their environment."""

from __future__ import annotations

import contextlib
import time

import psutil


def marked(name: str, value: str) -> list[psutil.Process]:
    """The running processes with this variable in their environment, oldest first."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(name) == value and process.status() != psutil.STATUS_ZOMBIE:
                found.append((process.create_time(), process.pid, process))
    return [process for *_, process in sorted(found, key=lambda entry: entry[:2])]


def running_after(name: str, value: str, *, seconds: float) -> list[psutil.Process]:
    """The marked processes that still run after at most ``seconds``."""
    give_up = time.monotonic() + seconds
    while (left := marked(name, value)) and time.monotonic() < give_up:
        time.sleep(0.2)
    return left


def left_after(name: str, value: str, *, seconds: float) -> list[str]:
    """The commands of these processes."""
    return list(map(command, running_after(name, value, seconds=seconds)))


def command(process: psutil.Process) -> str:
    """The command line of a process, empty if it has ended."""
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""

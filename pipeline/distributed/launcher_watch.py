"""Whether the launcher that started this rank is still there.

DeepSpeed's front process leaves its ranks running when it is killed or gets SIGTERM. No process
would then collect their exit status or end them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import psutil

_LAUNCHER = re.compile(r"(.*/)?(deepspeed|torchrun)|(deepspeed|torch\.distributed)\.[\w.]+")
_DEEPSPEED = "CROSS_SIZE"  # a variable that only DeepSpeed's launcher sets for its ranks
_INNER = "deepspeed.launcher.launch"  # starts the ranks; the front process `deepspeed` starts it


class LauncherWatch:
    """The launchers above this process when it was created, and whether one of them has gone."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._by_deepspeed = _DEEPSPEED in environment
        self._launchers = _launchers_from(os.getppid())

    @property
    def has_launcher(self) -> bool:
        """Whether a launcher started this process."""
        return bool(self._launchers) or self._by_deepspeed

    def is_lost(self) -> bool:
        """Whether a launcher has gone; a zombie, which waits for its parent, counts as gone."""
        return self._was_lost_early() or not all(map(_is_alive, self._launchers))

    def _was_lost_early(self) -> bool:
        """Whether DeepSpeed's front process or inner launcher went before it could be found.

        The front process, the inner launcher and the ranks share a process group. If the parent of
        an inner launcher or of a rank is in another group, another process has adopted it, unless
        it leads a group itself.
        """
        top = self._launchers[-1].pid if self._launchers else os.getpid()
        if not self._by_deepspeed or (self._launchers and _INNER not in _command_line(top)):
            return False
        try:
            parent, group = psutil.Process(top).ppid(), os.getpgid(top)
            # No parent: it is outside of the container, and its group cannot be known.
            return group != top and parent != 0 and os.getpgid(parent) != group
        except (psutil.Error, OSError):
            return False


def _launchers_from(pid: int) -> list[psutil.Process]:
    """``pid`` and the processes above it as long as they are launchers, nearest first."""
    found: list[psutil.Process] = []
    while pid > 1 and any(map(_LAUNCHER.fullmatch, _command_line(pid)[:5])):
        try:
            process = psutil.Process(pid)
            pid = process.ppid()
        except psutil.Error:
            break
        found.append(process)
    return found


def _is_alive(process: psutil.Process) -> bool:
    """Whether it runs, under the same id; a zombie does not."""
    try:
        ended = (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
        return bool(process.is_running() and process.status() not in ended)
    except psutil.Error:
        return False


def _command_line(pid: int) -> list[str]:
    """The words that a process was started with; empty if it has gone or may not be read."""
    try:
        words: list[str] = psutil.Process(pid).cmdline()
    except psutil.Error:
        return []
    return words

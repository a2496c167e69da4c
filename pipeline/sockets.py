"""Short names for the sockets of this process and of the processes that it starts.

The name of a Unix socket has at most 107 characters. ``TMPDIR`` of a batch job is often longer.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from multiprocessing import util

from pipeline.errors import ConfigError

_LONGEST_NAME = 107
_ADDED = len("/pymp-12345678/listener-12345678")  # by multiprocessing, to the temporary folder
_SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def use_short_socket_names() -> None:
    """Let multiprocessing put its sockets into a short folder if ``TMPDIR`` is too long.

    Only the sockets move: files of every size stay in ``TMPDIR``.

    Raises:
        ConfigError: no short folder can be written.
    """
    folder = os.path.abspath(tempfile.gettempdir())
    if len(os.fsencode(folder)) + _ADDED <= _LONGEST_NAME:
        return
    for short in _SHORT_FOLDERS:
        tempfile.tempdir, before = short, tempfile.tempdir
        try:
            with contextlib.suppress(OSError):
                util.get_temp_dir()  # makes the folder and keeps its name for all later sockets
                return
        finally:
            tempfile.tempdir = before
    raise ConfigError(
        f"TMPDIR is {folder}: its {len(folder)} characters leave no room for the name of a socket, "
        f"and {', '.join(_SHORT_FOLDERS)} cannot be written; set TMPDIR to a shorter folder"
    )

"""Folders on this host that a later start of a command finds again."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def private_folder(name: str) -> Path:
    """The folder ``name`` on the local disk; only this user can read or write it.

    Raises:
        PermissionError: the folder around it belongs to another user, or others can use it.
    """
    base = Path(tempfile.gettempdir()) / f"tppt-launching-{os.getuid()}"
    base.mkdir(mode=0o700, exist_ok=True)
    owner = base.stat(follow_symlinks=False)
    if owner.st_uid != os.getuid() or owner.st_mode & 0o077:
        raise PermissionError(f"{base} is not private to this user; remove it, or set TMPDIR")
    folder = base / name
    folder.mkdir(exist_ok=True)
    return folder

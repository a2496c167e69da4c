"""The version of this package and the commit of its checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

VERSION = "0.1.0"  # pyproject.toml reads it here


def describe_version() -> str:
    """Version and commit in one line, as ``--version`` of every command prints them."""
    commit = git_commit()
    return f"tppt {VERSION}" + (f", commit {commit}" if commit else "")


def git_commit() -> str | None:
    """The commit of this package's checkout, with ``+`` if files were changed; None outside one."""
    here = Path(__file__).resolve().parent

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here), *words], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None

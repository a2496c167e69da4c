"""Paths as users write them: ``~`` and ``$VARIABLE`` stand for their values."""

from __future__ import annotations

import os
import re

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")


def expand_path(text: str) -> str:
    """A path or URL with the values of ``~`` and of environment variables in it.

    Raises:
        ValueError: it is blank, or it names a variable or a user that does not exist.
    """
    if not text.strip():
        raise ValueError(f"{text!r} is blank; give a folder, a file or a URL")
    path = os.path.expanduser(os.path.expandvars(text))
    missing = _VARIABLE.search(path)
    if missing:
        raise ValueError(f"{text!r}: the environment variable {missing[0]} is not set; set it")
    if re.match(r"~[\w.-]*(/|$)", path):
        raise ValueError(f"{text!r}: there is no home folder of that user; write a full path")
    return _checked_url(path, text)


def expand_architecture(text: str) -> str:
    """A name of open_clip as it is; the folder after ``local-dir:`` expanded.

    Raises:
        ValueError: the folder is blank, or it names a variable or a user that does not exist.
    """
    marker, found, folder = text.partition("local-dir:")
    return f"{found}{expand_path(folder)}" if found and not marker else text


def _checked_url(path: str, text: str) -> str:
    """``path``, unless it is a URL with a typing error, which would name a local folder."""
    found = re.match(r"(s3|gs|gcs|az|abfs|abfss|http|https):(/*)([^/]?)", path)
    if found and (found[2] != "//" or not found[3]):
        raise ValueError(
            f"{text!r} is not a URL of this form: {found[1]}://BUCKET/FOLDER; correct it"
        )
    return path

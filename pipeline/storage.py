"""Every file anywhere: local paths, ``s3://``, ``memory://`` and whatever fsspec plugin is installed.

The only door to fsspec. Decisions, with their cost:

- A filesystem object is looked up in the process that uses it and never travels to another one
  (s3fs is not safe across forks); fsspec keeps one per process, so this costs a dictionary access.
- Credentials and endpoints come from the environment (``AWS_ACCESS_KEY_ID``, ``AWS_PROFILE``,
  ``AWS_ENDPOINT_URL``, ``FSSPEC_S3_ANON=1`` for public buckets), never from a URL or a file of ours,
  and no message shows the parts of a URL that could hold one.
- Listings are never cached: a file written by another machine must be seen at once.
- Chained URLs (``simplecache::``) and URLs that name a program are refused.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import fsspec
from fsspec.core import url_to_fs

from pipeline.errors import StorageError

_OPTIONS: dict[str, dict[str, Any]] = {
    "s3": {
        "use_listings_cache": False,
        # The retries are ours alone: nested ones multiply, and one stall would last for minutes.
        "config_kwargs": {
            "connect_timeout": 10,
            "read_timeout": 20,
            "retries": {"max_attempts": 1, "mode": "standard"},
            "max_pool_connections": 32,
        },
    }
}
_PROTOCOL = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")
_USERINFO = re.compile(r"://[^/@]*@")


def open_file(url: str, mode: str = "rb") -> IO[Any]:
    """An open file; the caller closes it.

    Raises:
        StorageError: the URL cannot be opened.
    """
    with _explained("open", url):
        filesystem, path = _filesystem(url)
        return filesystem.open(path, mode)


def read_bytes(url: str) -> bytes:
    """The whole content.

    Raises:
        StorageError: the URL cannot be read.
    """
    with _explained("read", url):
        filesystem, path = _filesystem(url)
        return filesystem.cat_file(path)


def read_text(url: str) -> str:
    """The whole content, decoded as UTF-8.

    Raises:
        StorageError: the URL cannot be read or is no text.
    """
    try:
        return read_bytes(url).decode("utf-8")
    except UnicodeDecodeError as error:
        raise StorageError(f"{redact(url)}: is not text ({error.reason} at {error.start})") from None


def read_range(url: str, start: int, stop: int) -> bytes:
    """Bytes ``start`` to ``stop`` (exclusive), fewer where the content ends earlier.

    Raises:
        StorageError: the URL cannot be read.
    """
    with _explained("read", url):
        filesystem, path = _filesystem(url)
        return filesystem.cat_file(path, start=start, end=stop)


def write_atomically(url: str, data: bytes) -> None:
    """Put ``data`` at ``url``: at any moment a reader sees the old content or the new, never a part.

    Raises:
        StorageError: the URL cannot be written.
    """
    with _explained("write", url):
        filesystem, path = _filesystem(url)
        if is_local(url):
            _replace_local(Path(path), data)
        else:
            filesystem.pipe_file(path, data)


def exists(url: str) -> bool:
    """Whether there is a file, or a folder with something in it, at ``url``."""
    with _explained("look for", url):
        filesystem, path = _filesystem(url)
        return filesystem.exists(path)


def size(url: str) -> int:
    """Bytes of the file at ``url``.

    Raises:
        StorageError: there is no such file.
    """
    with _explained("look at", url):
        filesystem, path = _filesystem(url)
        return int(filesystem.info(path)["size"])


def list_files(url: str) -> list[str]:
    """The URLs of all files below the folder ``url``, sorted; empty where there is no such folder."""
    with _explained("list", url):
        filesystem, path = _filesystem(url)
        return sorted(filesystem.unstrip_protocol(name) for name in filesystem.find(path))


def remove(url: str) -> None:
    """Delete the file at ``url``; a missing file is no error."""
    with _explained("delete", url):
        filesystem, path = _filesystem(url)
        try:
            filesystem.rm_file(path)
        except FileNotFoundError:
            pass


def join(url: str, *parts: str) -> str:
    """``url/part/part``, for local paths and URLs alike."""
    return "/".join([url.rstrip("/") if url != "/" else "", *(part.strip("/") for part in parts)])


def is_local(url: str) -> bool:
    """Whether ``url`` names a file that this machine can open without a network."""
    found = _PROTOCOL.match(url)
    return found is None or found[1].lower() in ("file", "local")


def local_path(url: str) -> str:
    """The path to give to ``open`` for a local ``url``."""
    return str(_filesystem(url)[1])


def redact(url: str) -> str:
    """``url`` without user names, passwords and query strings, fit for a message or a log."""
    if not _PROTOCOL.match(url):
        return url
    return _USERINFO.sub("://", url.partition("?")[0])


def _filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    found = _PROTOCOL.match(url)
    protocol = found[1].lower() if found else "file"
    if "::" in url or protocol in ("pipe", "shell"):
        raise StorageError(f"{redact(url)}: chained and program URLs are refused; give one plain URL")
    if found and _USERINFO.match(url[found.end() - 3 :]) and protocol in ("s3", "s3a"):
        raise StorageError(
            f"{redact(url)}: a URL must not hold credentials; set AWS_PROFILE or AWS_ACCESS_KEY_ID"
        )
    return url_to_fs(url, **_OPTIONS.get(protocol, {}))


@contextmanager
def _explained(verb: str, url: str) -> Iterator[None]:
    """Turn whatever a filesystem raises into one sentence with the place and the cause."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError:
        raise StorageError(f"cannot {verb} {redact(url)}: there is no such file") from None
    except PermissionError as error:
        raise StorageError(f"cannot {verb} {redact(url)}: access is refused ({error})") from error
    except ImportError as error:
        raise StorageError(f"cannot {verb} {redact(url)}: {error}") from error
    except Exception as error:  # every plugin has its own error classes
        cause = f"{type(error).__name__}: {error}"
        raise StorageError(f"cannot {verb} {redact(url)}: {cause}") from error


def _replace_local(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask

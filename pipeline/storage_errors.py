"""The errors of object storage in words that name the cause, without secrets."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.credentials import redact, scrub
from pipeline.errors import StorageError
from pipeline.retry import RetryDeadlineExceeded, cannot_be_reached, causes
from pipeline.text import shorten

_NO_KEY = {"NoCredentialsError", "PartialCredentialsError", "NoAuthTokenError"}
_WRONG_SECRET = {"SignatureDoesNotMatch"}
_OLD_TOKEN = {"ExpiredToken", "TokenRefreshRequired", "InvalidToken"}


def explain(error: BaseException, url: str) -> str:
    """The cause of an error at ``url``, on one line."""
    if not url.lower().startswith("s3:"):
        return cause(error)
    found, names = codes(error), {type(each).__name__ for each in causes(error)}
    bucket = url.split("/")[2] if url.count("/") >= 2 else ""
    if "NoSuchBucket" in found:
        return f"there is no bucket {bucket!r} at {_endpoint()}; correct the name, or create it"
    if names & _NO_KEY:
        return (
            "no access key was found; set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or FSSPEC_S3_ANON=true for a public bucket"
        )
    if found & {"401", "403"} or isinstance(error, PermissionError):
        return f"{_refusal(found)} at {_endpoint()}; correct the variable ({cause(error)})"
    if cannot_be_reached(error):
        return (
            f"no server can be reached at {_endpoint()}; start the server, or correct the variable "
            f"({cause(error)})"
        )
    return cause(error)


def cause(error: BaseException) -> str:
    """The error as it is, on one line, without secrets, cut between two words if it is long."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    else:
        text = f"{type(error).__name__}: {error}"
    return shorten(scrub(text)).rstrip(": ")


def codes(error: BaseException) -> set[str]:
    """The error codes and the HTTP status of an answer of S3."""
    found: set[str] = set()
    for each in causes(error):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            found.add(str(response.get("Error", {}).get("Code")))
            found.add(str(response.get("ResponseMetadata", {}).get("HTTPStatusCode")))
    return found


@contextmanager
def explained(verb: str, url: str) -> Iterator[None]:
    """Turn any error of a filesystem into one sentence with the place and the cause."""
    try:
        yield
    except StorageError:
        raise
    except FileNotFoundError as error:
        is_known = verb == "write" or "NoSuchBucket" in codes(error)
        problem = explain(error, url) if is_known else "there is no such file"
        raise StorageError(f"cannot {verb} {redact(url)}: {problem}") from error
    except RetryDeadlineExceeded as error:
        raise StorageError(
            f"cannot {verb} {redact(url)}: {error.attempts} attempts in {error.elapsed_s:.0f} s, "
            f"the last failed with {explain(error.cause, url)}"
        ) from error
    except Exception as error:  # every plugin has its own error classes
        raise StorageError(f"cannot {verb} {redact(url)}: {explain(error, url)}") from error


def _refusal(found: set[str]) -> str:
    """Which key was refused, and from which variable it comes; only its first characters."""
    if found & _WRONG_SECRET:
        return f"AWS_SECRET_ACCESS_KEY does not belong to {_key()}, so it was refused"
    if found & _OLD_TOKEN:
        return f"the session token of {_key()} (AWS_SESSION_TOKEN) has expired or is wrong"
    if "InvalidAccessKeyId" in found:
        return f"{_key()} is not known"
    return f"{_key()} was refused, or it has no right to this bucket"


def _key() -> str:
    key = os.environ.get("AWS_ACCESS_KEY_ID")
    if key:
        return f"the key {key[:4]}… of AWS_ACCESS_KEY_ID"
    if os.environ.get("AWS_PROFILE"):
        return f"the key of the profile {os.environ['AWS_PROFILE']!r} (AWS_PROFILE)"
    return "the key of this machine (~/.aws or its role; AWS_ACCESS_KEY_ID is not set)"


def _endpoint() -> str:
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"):
        if os.environ.get(name):
            return f"{scrub(os.environ[name])} ({name})"
    return "Amazon S3 (AWS_ENDPOINT_URL is not set)"

"""Credentials in a text: refused in settings and URLs, and left out of every message.

A secret key of Amazon may contain ``/``. So ``s3://KEY:SECRET@bucket`` is recognized by its colon,
which no name of a bucket has except an ARN.
"""

from __future__ import annotations

import os
import re

LEAVE_OUT = (
    "leave them out of the URL and set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, in the environment"
)

_LOGIN = re.compile(r"://[^/\s]*@|\bs3a?://(?!arn:)[^/\s]*:\S*@", re.IGNORECASE)
_SIGNATURE = re.compile(r"[?&](x-amz-\w+|sig|signature|token)=", re.IGNORECASE)
_URL = re.compile(
    r"(?:(s3a?://)(?!arn:)[^/\s'\"]*:[^\s'\"]*@|([a-z][a-z0-9+.-]*://)(?:[^/\s'\"]*@)?)"
    r"([^\s?'\"]*)(?:\?[^\s'\"]*)?",
    re.IGNORECASE,
)
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "FSSPEC_S3_SECRET", "FSSPEC_S3_TOKEN")


def contains_credentials(text: str) -> bool:
    """Whether a URL in ``text`` contains a key, a password or a signature."""
    return contains_login(text) or _SIGNATURE.search(text) is not None


def contains_login(text: str) -> bool:
    """Whether a URL in ``text`` contains a key or a user name before the host or the bucket."""
    return _LOGIN.search(text) is not None


def redact(url: str) -> str:
    """``url`` without user name, password and query string, safe in a message or a log."""
    return scrub(url) if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", url) else url


def scrub(text: str) -> str:
    """``text`` without the credentials in its URLs, and with known secrets masked."""
    text = _URL.sub(r"\1\2\3", text)
    for secret in filter(None, map(os.environ.get, _SECRETS)):
        text = text.replace(secret, "***")
    return text

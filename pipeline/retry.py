"""Trying again: which failures pass by themselves, and how long to wait for them.

One loop with growing, jittered pauses stands around each whole fetch; the retries inside the
storage clients are turned off, since nested ones multiply and nobody can say when they end.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import tenacity

log = logging.getLogger(__name__)

T = TypeVar("T")

_PAUSE_S = 0.2  # the first pause is up to this long, each further one up to twice as long
_LONGEST_PAUSE_S = 15.0

_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504, 507, 509}
_TRANSIENT_ERRNO = {
    errno.EAGAIN,
    errno.EBUSY,  # how s3fs says 503 and SlowDown
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.EREMOTEIO,  # how s3fs says 500
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_TRANSIENT_TYPES = (ConnectionError, TimeoutError, asyncio.TimeoutError, socket.gaierror)
# By name, since none of these libraries need be installed: aiohttp, botocore, urllib3, http.client.
_TRANSIENT_NAMES = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectTimeoutError",
    "EndpointConnectionError",
    "HTTPClientError",
    "IncompleteRead",
    "IncompleteReadError",
    "ProxyConnectionError",
    "ReadTimeoutError",
    "ResponseParserError",  # an error page cut in the middle
    "ServerDisconnectedError",
}
_PERMANENT_NAMES = {"ClientConnectorCertificateError", "SSLCertVerificationError"}


class RetryDeadlineExceeded(Exception):
    """A call that failed in a passing way until its deadline; the last failure is ``cause``."""

    def __init__(self, attempts: int, elapsed_s: float, cause: BaseException) -> None:
        super().__init__(f"{attempts} attempts in {elapsed_s:.0f} s, the last: {cause}")
        self.attempts = attempts
        self.elapsed_s = elapsed_s
        self.cause = cause


def retry_until(
    action: Callable[[float], T], *, deadline_s: float, describe: Callable[[BaseException], str]
) -> T:
    """``action(seconds left)``, tried again after each transient failure until ``deadline_s``.

    Raises:
        RetryDeadlineExceeded: it failed in a passing way until the deadline.
        Exception: whatever else ``action`` raises, at once.
    """
    started = time.monotonic()

    def say(state: tenacity.RetryCallState) -> None:
        cause = state.outcome.exception()
        pause = state.next_action.sleep
        log.warning("%s; attempt %d, again in %.1f s", describe(cause), state.attempt_number, pause)

    jitter = tenacity.wait_random_exponential(multiplier=_PAUSE_S, max=_LONGEST_PAUSE_S)
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        # the last attempt begins when the deadline ends, not a long pause after it
        wait=lambda state: min(jitter(state), max(0.0, deadline_s - state.seconds_since_start)),
        stop=tenacity.stop_after_delay(deadline_s),
        before_sleep=say,
    )
    try:
        return retrying(lambda: action(max(1.0, deadline_s - (time.monotonic() - started))))
    except tenacity.RetryError as error:
        last = error.last_attempt
        elapsed_s = time.monotonic() - started
        raise RetryDeadlineExceeded(
            last.attempt_number, elapsed_s, last.exception()
        ) from last.exception()


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    chain = list(_causes(error))
    names = {base.__name__ for cause in chain for base in type(cause).__mro__}
    if names & _PERMANENT_NAMES or isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    return bool(names & _TRANSIENT_NAMES) or any(_is_passing(cause) for cause in chain)


def _is_passing(error: BaseException) -> bool:
    if isinstance(error, _TRANSIENT_TYPES):
        return True
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return True
    return _status(error) in _TRANSIENT_STATUS


def _status(error: BaseException) -> int | None:
    """The HTTP status that botocore, aiohttp or gcsfs put on their errors."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    status = getattr(error, "status", getattr(error, "code", None))
    return status if isinstance(status, int) else None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__

"""Retries: the kinds of failure that are worth a retry, and the pauses between attempts.

One loop with growing, jittered pauses surrounds each complete fetch. The retries inside the storage
clients are turned off, since nested retries multiply and have no known end.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import socket
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

import tenacity

log = logging.getLogger(__name__)

T = TypeVar("T")

_PAUSE_S = 0.2  # the first pause is up to this long, each further one up to twice as long
_LONGEST_PAUSE_S = 15.0
_LONGEST_SHOWN_S = 1e9  # a later end has no date; without an end, it is infinite

_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504, 507, 509}
_TRANSIENT_ERRNO = {
    errno.EAGAIN,
    errno.EBUSY,  # s3fs raises it for 503 and SlowDown
    errno.EHOSTDOWN,
    errno.EHOSTUNREACH,
    errno.ENETDOWN,
    errno.ENETRESET,
    errno.ENETUNREACH,
    errno.EREMOTEIO,  # s3fs raises it for 500
    errno.ESTALE,
    errno.ETIMEDOUT,
}
_TRANSIENT_TYPES = (ConnectionError, TimeoutError, asyncio.TimeoutError, socket.gaierror)
# By name, since these libraries may be missing: aiohttp, botocore, urllib3. And http.client.
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
    "ResponseParserError",  # an error page that was cut off
    "ServerDisconnectedError",
}
_UNREACHABLE_NAMES = {
    "ClientConnectorError",
    "ConnectTimeoutError",
    "EndpointConnectionError",
    "ProxyConnectionError",
}
_PERMANENT_NAMES = {"ClientConnectorCertificateError", "SSLCertVerificationError"}


class RetryDeadlineExceeded(Exception):
    """A call had only transient failures until its deadline; the last one is ``cause``."""

    def __init__(self, attempts: int, elapsed_s: float, cause: BaseException) -> None:
        super().__init__(f"{attempts} attempts in {elapsed_s:.0f} s, the last: {cause}")
        self.attempts = attempts
        self.elapsed_s = elapsed_s
        self.cause = cause


def retry_until(
    action: Callable[[float], T],
    *,
    deadline_s: float,
    describe: Callable[[BaseException], str],
    unreachable_s: float = math.inf,
) -> T:
    """``action(seconds left)``, retried after each transient failure until ``deadline_s``.

    The time is ``unreachable_s`` instead, if that is less, while no server can be reached.
    ``describe`` gives the log line of a failure.

    Raises:
        RetryDeadlineExceeded: every attempt until the deadline had a transient failure.
        Exception: any other error of ``action``, at once.
    """
    started = time.monotonic()
    jitter = tenacity.wait_random_exponential(multiplier=_PAUSE_S, max=_LONGEST_PAUSE_S)

    def limit_s(state: tenacity.RetryCallState) -> float:
        is_unreachable = cannot_be_reached(_failure(state.outcome))
        return min(deadline_s, unreachable_s) if is_unreachable else deadline_s

    def left_s(state: tenacity.RetryCallState) -> float:
        return limit_s(state) - (state.seconds_since_start or 0.0)

    def log_failure(state: tenacity.RetryCallState) -> None:
        end_s = time.time() + min(left_s(state), _LONGEST_SHOWN_S)
        log.warning(
            "%s; attempt %d, again in %.1f s, until %s",
            describe(_failure(state.outcome)),
            state.attempt_number,
            state.upcoming_sleep,
            time.strftime("%H:%M:%S", time.localtime(end_s)),
        )

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        # The last attempt starts when the time ends, not a long pause after it.
        wait=lambda state: min(jitter(state), max(0.0, left_s(state))),
        stop=lambda state: left_s(state) <= 0,
        before_sleep=log_failure,
    )
    try:
        return retrying(lambda: action(max(1.0, deadline_s - (time.monotonic() - started))))
    except tenacity.RetryError as error:
        last, elapsed_s = error.last_attempt, time.monotonic() - started
        cause = _failure(last)
        raise RetryDeadlineExceeded(last.attempt_number, elapsed_s, cause) from cause


def cannot_be_reached(error: BaseException) -> bool:
    """Whether no server was there: refused, unknown name, or no answer to a connection."""
    return any(
        isinstance(cause, (ConnectionRefusedError, socket.gaierror))
        or {base.__name__ for base in type(cause).__mro__} & _UNREACHABLE_NAMES
        for cause in causes(error)
    )


def is_transient(error: BaseException) -> bool:
    """Whether the same call may succeed a little later."""
    chain = list(causes(error))
    names = {base.__name__ for cause in chain for base in type(cause).__mro__}
    if names & _PERMANENT_NAMES or isinstance(error, (FileNotFoundError, PermissionError)):
        return False
    return bool(names & _TRANSIENT_NAMES) or any(_is_transient_itself(cause) for cause in chain)


def _failure(attempt: tenacity.Future | None) -> BaseException:
    """The error of an attempt that failed."""
    error = attempt.exception() if attempt is not None else None
    assert error is not None, "tenacity retries only after an error"
    return error


def _is_transient_itself(error: BaseException) -> bool:
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


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """``error`` and the errors that caused it."""
    while error is not None:
        yield error
        error = error.__cause__

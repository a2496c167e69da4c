"""Transient failures are retried until the deadline, others end at once."""

from __future__ import annotations

import errno
import math
import re
import socket

import pytest

from pipeline.retry import RetryDeadlineExceeded, is_transient, retry_until


class ClientPayloadError(Exception):
    """The name that aiohttp gives to a body that ends early."""


class EndpointConnectionError(Exception):
    """The name that botocore gives to a refused connection."""


class ClientError(Exception):
    """The form in which botocore reports an answer of the server."""

    def __init__(self, status: int) -> None:
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}


def caused_by(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(),
        ConnectionResetError(),
        TimeoutError(),
        socket.gaierror("name resolution"),
        OSError(errno.EBUSY, "reduce your request rate"),
        ClientPayloadError(),
        EndpointConnectionError(),
        ClientError(500),
        ClientError(503),
        caused_by(OSError(errno.EIO, "internal"), ClientError(500)),
    ],
)
def test_transient_failures_are_retried(error):
    assert is_transient(error)
    attempts = []

    def act(seconds_left: float) -> str:
        attempts.append(seconds_left)
        if len(attempts) < 3:
            raise error
        return "done"

    assert retry_until(act, deadline_s=20, describe=str) == "done"
    assert len(attempts) == 3 and attempts == sorted(attempts, reverse=True)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(),
        PermissionError(),
        IsADirectoryError(),
        ValueError("no such protocol"),
        ClientError(403),
        caused_by(PermissionError(), ClientError(403)),
        OSError(errno.ENOSPC, "full"),
    ],
)
def test_other_failures_end_at_once(error):
    assert not is_transient(error)
    with pytest.raises(type(error)):
        retry_until(lambda left: (_ for _ in ()).throw(error), deadline_s=20, describe=str)


def test_error_at_the_deadline_has_attempts_and_cause():
    def act(seconds_left: float) -> None:
        raise ConnectionRefusedError("nobody there")

    with pytest.raises(RetryDeadlineExceeded) as caught:
        retry_until(act, deadline_s=1, describe=str)
    assert caught.value.attempts > 1
    assert 0.5 < caught.value.elapsed_s < 30
    assert "nobody there" in str(caught.value.cause)


def refuse(seconds_left: float) -> None:
    raise ConnectionRefusedError("nobody there")


def test_server_that_cannot_be_reached_gets_less_time():
    with pytest.raises(RetryDeadlineExceeded) as caught:
        retry_until(refuse, deadline_s=60, describe=str, unreachable_s=0.5)
    assert 0.3 < caught.value.elapsed_s < 30


def test_server_that_answers_with_errors_keeps_its_time():
    """must not take an overloaded server for one that is not there"""
    attempts = []

    def act(seconds_left: float) -> str:
        attempts.append(seconds_left)
        if len(attempts) < 4:
            raise ClientError(503)
        return "done"

    assert retry_until(act, deadline_s=30, describe=str, unreachable_s=0.0) == "done"


def test_first_warning_says_until_when(caplog):
    with pytest.raises(RetryDeadlineExceeded):
        retry_until(refuse, deadline_s=1, describe=lambda error: f"cannot read x: {error}")
    assert re.match(
        r"cannot read x: nobody there; attempt 1, again in \d\.\d s, until \d\d:\d\d:\d\d",
        caplog.messages[0],
    )


@pytest.mark.parametrize("deadline_s", [1e300, math.inf])
def test_patience_may_have_no_end(deadline_s):
    failures = [TimeoutError()]

    def act(seconds_left: float) -> str:
        if failures:
            raise failures.pop()
        return "done"

    assert retry_until(act, deadline_s=deadline_s, describe=str) == "done"

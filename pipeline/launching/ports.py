"""The port at which the ranks of a run meet: the only place that looks for a free one."""

from __future__ import annotations

import contextlib
import fcntl
import random
import socket
from collections.abc import Iterator

from pipeline.errors import RefusedBySystemError
from pipeline.launching.private_folder import private_folder

# Below the ports that Linux gives to outgoing connections, which could take one before rank 0 does.
_PORTS = range(20_000, 32_000)
_TRIES = 500


@contextlib.contextmanager
def reserved_port() -> Iterator[int]:
    """A free TCP port of this host that no other run of this user gets within the block.

    The ranks may bind it as often as they like; the block must last as long as the run.

    Raises:
        RefusedBySystemError: no port is free, or none of those that were tried can be bound.
    """
    draw = random.SystemRandom()
    for _ in range(_TRIES):
        port = draw.choice(_PORTS)
        lock = open(private_folder("ports") / str(port), "w")
        with contextlib.suppress(OSError), socket.socket() as probe:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            probe.bind(("", port))
            break
        lock.close()
    else:
        raise RefusedBySystemError(
            f"none of {_TRIES} random TCP ports from {_PORTS[0]} to {_PORTS[-1]} is free on this "
            "host; end runs that are not needed, or allow programs to listen on these ports"
        )
    with lock:  # closing it, or the end of this process, gives the port back
        yield port

"""A port is reserved for one run; a host without a free port is an error, not an endless search."""

from __future__ import annotations

import socket

import pytest

from pipeline.errors import RefusedBySystemError
from pipeline.launching import ports


def test_port_can_be_bound_and_is_given_to_one_run():
    with ports.reserved_port() as first, ports.reserved_port() as second:
        assert first != second
        with socket.socket() as listener:
            listener.bind(("", first))


def test_host_without_a_free_port_is_refused_in_one_sentence(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(ports, "_PORTS", range(port, port + 1))
        monkeypatch.setattr(ports, "_TRIES", 1)
        with pytest.raises(RefusedBySystemError, match="none of 1 random TCP ports .* is free"):
            with ports.reserved_port():
                pass

"""If two starts write to one output, the earlier one stops and the later one continues."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import uuid

import pytest

from pipeline import storage
from pipeline.errors import StorageError, TakenOverError
from pipeline.output.ownership import Ownership
from pipeline.output.results import read_results
from tests.interruptions import Reference, StopAt, changed, start
from tests.tiny import build_config

pytestmark = pytest.mark.usefixtures("one_clip")


@pytest.fixture(params=["local", "memory"])
def output(request, tmp_path) -> str:
    return str(tmp_path / "run") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def test_newest_start_owns_the_output(output):
    first, second = Ownership(output), Ownership(output)
    first.take()
    first.raise_if_taken_over()
    second.take()
    second.raise_if_taken_over()
    with pytest.raises(TakenOverError) as caught:
        first.raise_if_taken_over()
    assert re.fullmatch(
        r".*owner\.json: another start of the command has taken over this output \(process \d+ on "
        r"\S+, since \S+\); this one stops; set another output= to run both",
        str(caught.value),
    )


def test_start_that_cannot_read_its_name_does_not_own_the_output(output):
    owner = Ownership(output)
    owner.take()
    for content in (b"", b"[]", b'{"start": "mine"}'):
        storage.write_atomically(storage.join(output, "owner.json"), content)
        with pytest.raises(TakenOverError, match=r"\(unknown: the file has other content\)"):
            owner.raise_if_taken_over()
    storage.remove(storage.join(output, "owner.json"))
    with pytest.raises(StorageError):
        owner.raise_if_taken_over()


class TakenOverAt(StopAt):
    """Another start takes the output over at the ``count``-th check for a request to stop."""

    def __init__(self, output: str, count: int) -> None:
        super().__init__(count)
        self._output = output

    def raise_if_requested(self) -> None:
        self.count -= 1
        if self.count == 0:
            Ownership(self._output).take()


@pytest.mark.parametrize("count", [1, 9, 14, 22])
def test_later_start_ends_as_if_undisturbed_and_the_earlier_one_stops(
    tiny_arch, tiny_shards, tmp_path, count
):
    """must hold before the first step, in training, and in the tests after each task"""
    reference = Reference(
        build_config(
            tiny_arch,
            tiny_shards,
            output=str(tmp_path / "alone"),
            method={"name": "finetune"},
            snapshot={"every_steps": 2},
        )
    )
    config = changed(reference.config, output=str(tmp_path / "run"))
    with pytest.raises(TakenOverError):
        start(config, TakenOverAt(config.output, count))
    results = read_results(config.output)
    assert results is None or not results.is_finished
    assert start(config)
    reference.assert_equals_run(config)


def other_start(output: str, **changes: object) -> None:
    """Write the name of an earlier start of this host into the output."""
    about = {
        "start": "earlier",
        "host": socket.gethostname(),
        "process": os.getppid(),  # it runs
        "since": "2026-01-02T03:04:05+00:00",
    }
    storage.write_atomically(
        storage.join(output, "owner.json"), json.dumps(about | changes).encode()
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, rf"process {os.getppid()} on \S+, since 2026-01-02T03:04:05\+00:00; if that one "),
        ({"host": "other-node", "process": 7}, "process 7 on other-node, since 2026-01-02"),
        ({"host": None, "process": "x"}, "an unknown start: the file has other content"),
    ],
)
def test_start_warns_of_the_one_that_it_takes_over_from(output, caplog, changes, words):
    other_start(output, **changes)
    with caplog.at_level("WARNING"):
        Ownership(output).take()
    (message,) = caplog.messages
    assert re.search(f"this start takes the output over from {words}", message)


def test_start_after_an_ended_one_of_this_host_does_not_warn(output, caplog):
    """must be silent for every ordinary continuation"""
    with caplog.at_level("WARNING"):
        Ownership(output).take()
        Ownership(output).take()  # of this process
        gone = subprocess.Popen(["true"])
        gone.wait()
        other_start(output, process=gone.pid)
        Ownership(output).take()
    assert caplog.messages == []


def test_damaged_name_of_an_earlier_start_is_replaced(output, caplog):
    storage.write_atomically(storage.join(output, "owner.json"), b"[")
    owner = Ownership(output)
    owner.take()
    owner.raise_if_taken_over()
    assert "an unknown start" in caplog.messages[0]

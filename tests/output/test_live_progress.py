"""``progress.json`` follows a run, stops nothing, and is gone at the end."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from pipeline import storage
from pipeline.errors import DataError
from pipeline.output import live_progress
from pipeline.output.live_progress import NAME, LiveProgress, ProgressWriter, read_progress
from pipeline.output.ownership import Ownership
from tests.services.nodes import wait_until


def state(task: int) -> LiveProgress:
    return LiveProgress(doing="testing", task=task, n_tasks=9, n_epochs=1)


@pytest.fixture(autouse=True)
def at_once(monkeypatch) -> None:
    monkeypatch.setattr(live_progress, "_EVERY_S", {True: 0.01, False: 0.01})
    monkeypatch.setattr(live_progress, "_END_S", 60.0)


def owned(output: str) -> Ownership:
    owner = Ownership(output)
    owner.take()
    return owner


@pytest.mark.parametrize("place", ["local", "memory"])
def test_file_has_the_newest_content_and_is_removed_at_the_end(place, tmp_path: Path):
    output = str(tmp_path) if place == "local" else f"memory://{tmp_path}"
    writer = ProgressWriter(output, owned(output))
    for task in range(5):
        writer.show(state(task))
    url = storage.join(output, NAME)
    assert wait_until(
        lambda: storage.exists(url) and read_progress(output) == state(4), timeout_s=60
    )
    writer.close()
    assert not storage.exists(url)


def test_start_that_was_replaced_leaves_the_file_to_the_other(tmp_path: Path):
    output = str(tmp_path)
    first = ProgressWriter(output, owned(output))
    second = ProgressWriter(output, owned(output))
    second.show(state(1))
    assert wait_until((tmp_path / NAME).exists, timeout_s=60)
    first.show(state(0))
    first.close()
    assert read_progress(output) == state(1)
    second.close()


def test_file_that_cannot_be_written_is_one_warning(tmp_path: Path, caplog):
    (tmp_path / NAME / "a folder with a file").mkdir(parents=True)
    writer = ProgressWriter(str(tmp_path), owned(str(tmp_path)))
    with caplog.at_level(logging.WARNING, logger="pipeline.output.live_progress"):
        writer.show(state(0))
        assert wait_until(lambda: caplog.records, timeout_s=60)
        writer.show(state(1))
        writer.close()
    [record] = caplog.records
    assert "progress.json was not written, the run continues: StorageError" in record.message


def test_file_of_another_form_is_refused(tmp_path: Path):
    (tmp_path / NAME).write_text('{"doing": "sleeping"}')
    with pytest.raises(DataError, match="progress.json: is damaged .doing: Input should be"):
        read_progress(str(tmp_path))

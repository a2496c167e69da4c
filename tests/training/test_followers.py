"""The page of a run follows it, and cannot stop it."""

from __future__ import annotations

import logging
from pathlib import Path
from threading import Event

from pipeline.output.results import read_results
from pipeline.training.followers import PageWriter
from tests.chaos.comparison import read_run
from tests.interruptions import changed, start
from tests.tiny import build_config


def test_finished_run_has_its_page(tiny_arch, tiny_shards, tmp_path):
    """must be complete when the command ends, and change no result"""
    config = build_config(tiny_arch, tiny_shards, output=str(tmp_path / "run"), report=True)
    assert start(config)
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.lower().startswith("<!doctype html>") and "</html>" in page
    plain = changed(config, output=str(tmp_path / "plain"), report=False)
    assert start(plain) and not (tmp_path / "plain" / "report.html").exists()
    read_run(config.output).assert_equals(read_run(plain.output))
    hashes = {read_results(each.output).manifest.config_sha256 for each in (config, plain)}
    assert len(hashes) == 1


def test_page_that_cannot_be_written_is_a_warning(tiny_arch, tiny_shards, tmp_path, caplog):
    (tmp_path / "report.html" / "a folder with a file").mkdir(parents=True)
    config = build_config(tiny_arch, tiny_shards, output=str(tmp_path), report=True)
    with caplog.at_level(logging.WARNING, logger="pipeline.training.followers"):
        assert start(config)
    assert read_results(str(tmp_path)).is_finished
    assert "report.html was not written: StorageError" in caplog.text
    assert f"write it later by `python -m pipeline.report {tmp_path}`" in caplog.text


def test_slow_page_holds_nobody_and_is_written_once_for_all(tmp_path: Path, monkeypatch, caplog):
    """must join the updates that come while a page is being written"""
    written, may_write = [], Event()

    def write(outputs: list[str], target: str) -> None:
        may_write.wait()
        written.append(target)

    monkeypatch.setattr("pipeline.run_report.page.write_report", write)
    page = PageWriter(str(tmp_path))
    for _ in range(5):
        page.update()
    page.end(0.05)
    assert written == [] and "was not complete after" in caplog.text
    may_write.set()
    page.end(60)
    assert 1 <= len(written) <= 2 and set(written) == {f"{tmp_path}/report.html"}

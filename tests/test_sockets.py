"""A long TMPDIR, as batch systems set it, leaves room for the names of sockets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import sockets
from pipeline.errors import ConfigError

ROOT = Path(__file__).parents[1]
PROGRAM = """
import multiprocessing, os, sys, tempfile
from pipeline.sockets import use_short_socket_names

if __name__ == "__main__":
    use_short_socket_names()
    context = multiprocessing.get_context("forkserver")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=os.getpid)
    process.start()
    process.join()
    print(process.exitcode, tempfile.gettempdir() == os.environ["TMPDIR"])
"""


@pytest.mark.parametrize("length", [20, 75, 76, 107, 200])
def test_processes_start_with_a_tmpdir_of_any_length(tmp_path, length):
    """must start them, and leave other temporary files in TMPDIR"""
    folder = tmp_path / "x"
    folder = folder.with_name("x" * max(1, length - len(str(folder))))
    folder.mkdir(exist_ok=True)
    (tmp_path / "program.py").write_text(PROGRAM)
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], env=environment, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("0 True\n", "")
    assert list(folder.iterdir()) == []


def test_no_folder_for_sockets_is_refused_in_one_sentence(tmp_path, monkeypatch):
    folder = tmp_path / ("y" * 100)
    folder.mkdir()
    monkeypatch.setattr(sockets, "_SHORT_FOLDERS", ("/proc/none",))
    monkeypatch.setattr(sockets.tempfile, "tempdir", str(folder))
    monkeypatch.delitem(sockets.util.process.current_process()._config, "tempdir", raising=False)
    with pytest.raises(ConfigError, match=r"TMPDIR is .*y: its \d+ characters .* set TMPDIR to a"):
        sockets.use_short_socket_names()

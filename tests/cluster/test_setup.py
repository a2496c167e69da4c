"""The setup refuses an interpreter that it cannot use, and installs nothing for it."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def write_program(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize("version", ["Python 3.9.2", "Python 3.8.10", "Python 2.7.18"])
def test_old_interpreter_that_was_named_is_refused(tmp_path, version):
    """must not replace it by another one, with apt-get or without"""
    write_program(tmp_path, "apt-get", f"touch {tmp_path}/was-called")
    old = write_program(tmp_path, "old", f'[ "$1" = -V ] && echo {version} && exit 0\nexit 1')
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": str(old)}
    setup = subprocess.run(
        ["bash", ROOT / "cluster" / "setup.sh"], env=environment, capture_output=True, text=True
    )
    assert setup.returncode == 2
    assert f"PYTHON={old} is {version}; Python 3.10 or newer is needed" in setup.stderr
    assert not (tmp_path / "was-called").exists()


def test_missing_interpreter_that_was_named_is_refused(tmp_path):
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(tmp_path / "none")}
    setup = subprocess.run(
        ["bash", ROOT / "cluster" / "setup.sh"], env=environment, capture_output=True, text=True
    )
    assert setup.returncode == 2 and "is no Python that can be started" in setup.stderr


@pytest.mark.parametrize("module", ["train", "tune", "prepare", "compare", "demo"])
def test_older_python_is_named_by_every_command(module):
    """must end with a sentence before any module that an older Python cannot parse"""
    program = (
        "import sys, runpy; sys.version_info = (3, 9, 1, 'final', 0); "
        f"runpy.run_module('pipeline.{module}', run_name='__main__')"
    )
    command = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert command.returncode == 2 and command.stdout == ""
    assert "is Python 3.9.1, and this program needs 3.10 or newer" in command.stderr
    assert command.stderr.startswith("error: ") and command.stderr.count("\n") == 1


def test_older_python_can_parse_what_names_the_version():
    for file in ("__init__.py", "train.py"):  # train.py is also started as a file
        ast.parse((ROOT / "pipeline" / file).read_text(), feature_version=(3, 8))

"""The inspect command: its statuses and forms; and its name, which Python has too."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.inspect import main

ROOT = Path(__file__).parents[1]


def test_complete_data_set_is_shown_with_status_0(capsys, tiny_shards):
    assert main([tiny_shards]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"data set {tiny_shards}: complete, 67 images of 7 classes\n")
    assert "train-000000.tar" in out and err == ""


def test_json_has_all_findings_also_of_damage(capsys, tiny_shards, tmp_path):
    copy = Path(shutil.copytree(tiny_shards, tmp_path / "shards"))
    (copy / "train-000000.tar").unlink()
    assert main([str(copy), "--json"]) == 2
    out, err = capsys.readouterr()
    content = json.loads(out)
    assert (content["kind"], content["state"]) == ("data set", "damaged")
    assert content["faults"] == ["train-000000.tar is missing"]
    assert err == f"error: {copy}: this data set is damaged: train-000000.tar is missing\n"


def test_what_is_unknown_is_refused_in_one_line(capsys, tmp_path):
    assert main([str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {tmp_path}: is no data set, run, ")
    assert err.count("\n") == 1


def test_options_of_a_sheet_need_a_sheet(capsys, tiny_shards):
    with pytest.raises(SystemExit, match="2"):
        main([tiny_shards, "--per-class", "3"])
    assert "need --grid FILE" in capsys.readouterr().err


def test_sheet_is_written_and_described(capsys, tiny_shards, tmp_path):
    file = tmp_path / "sheet.png"
    flags = ["--classes", "oak, lamp", "--image-size", "21", "--transform", "squash"]
    assert main([tiny_shards, "--grid", str(file), *flags]) == 0
    assert capsys.readouterr().out == (
        f"{file}: 2 classes, train images, transform squash at 21 × 21 pixels\n"
    )
    assert file.read_bytes().startswith(b"\x89PNG")


def test_signal_ends_the_watch_with_one_line(tmp_path):
    start = {"host": "elsewhere", "process": 1, "since": "2026-01-01"}
    (tmp_path / "owner.json").write_text(json.dumps(start))
    command = [sys.executable, "-m", "pipeline.inspect", str(tmp_path), "--watch"]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, cwd=ROOT) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().endswith(" task 1: no step logged yet\n")
        process.send_signal(signal.SIGINT)
        assert process.stderr.read().startswith("error: stopped by a signal; ")
    assert process.returncode == 75


# pipeline/inspect.py has the name of a module of Python, which hides that one where pipeline/ is
# the first folder of sys.path: in a command that is started by its file.


def python_versions() -> list[str]:
    """This interpreter, and others of this machine that the package supports."""
    found = [shutil.which(f"python3.{minor}") for minor in range(10, 15)]
    return list(dict.fromkeys([sys.executable, *filter(None, map(works, found))]))


def works(program: str | None) -> str | None:
    """The program, if it starts: one of pyenv may be a script that refuses."""
    if program is None:
        return None
    return (
        program if not subprocess.run([program, "-c", ""], capture_output=True).returncode else None
    )


@pytest.mark.parametrize("program", python_versions())
def test_train_is_started_by_its_file_with_pythons_own_inspect(program):
    """must hold for all modules that it imports, on every version of Python"""
    code = (
        "import runpy, sys; sys.path[0] = 'pipeline'; sys.modules.pop('inspect', None)\n"
        "runpy.run_path('pipeline/train.py', run_name='started')\n"
        "import inspect; print(inspect.__file__, sys.path[0])"
    )
    done = subprocess.run([program, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file, folder = done.stdout.split()
    assert Path(file) != ROOT / "pipeline" / "inspect.py" and Path(folder) == ROOT


def test_train_prints_its_help_if_started_by_its_file():
    command = [sys.executable, "-v", "pipeline/train.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--dry-run" in done.stdout
    assert not re.search(r"import 'inspect'.*pipeline", done.stderr)


def test_other_command_that_is_started_by_its_file_says_how_to_start_it():
    environment = {**os.environ, "PYTHONPATH": "pipeline"}
    done = subprocess.run(
        [sys.executable, "-c", "import inspect"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "ImportError: start this command as `python -m pipeline.NAME`" in done.stderr

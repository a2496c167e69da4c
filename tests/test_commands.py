"""Every command: its help comes at once and is complete; ``tppt`` starts it.

The commands are found in pipeline/: a new one needs nothing here but a row in docs/COMMANDS.md.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

from pipeline.__main__ import find_commands, main
from pipeline.version import VERSION, describe_version, git_commit

ROOT = Path(__file__).parents[1]
TPPT = Path(sys.executable).with_name("tppt")
MODULES = [f"pipeline.{name}" for name in find_commands()] + ["tests.chaos"]
HEAVY = {"torch", "open_clip", "deepspeed", "ray", "pyarrow", "pandas", "webdataset"}
START = """
import json, runpy, sys
module, *sys.argv[1:] = sys.argv[1:]
try:
    runpy.run_module(module, run_name="__main__", alter_sys=True)
finally:
    sys.stderr.write(json.dumps(sorted(sys.modules)))
"""


@dataclass(frozen=True)
class Help:
    """What a command prints for ``--help``, and the modules that it has imported by then."""

    status: int
    text: str
    imported: set[str]


@cache
def help_of(module: str) -> Help:
    shown = run(sys.executable, "-c", START, module, "--help")
    return Help(shown.returncode, shown.stdout, set(json.loads(shown.stderr)))


def run(*words: object, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )


def test_known_commands_are_found():
    assert {"bench", "compare", "demo", "prepare", "train", "tune"} <= set(find_commands())
    assert not {"config", "cli", "data", "methods"} & set(find_commands())


@pytest.mark.parametrize("module", MODULES)
def test_help_imports_nothing_that_takes_seconds(module):
    shown = help_of(module)
    assert shown.status == 0 and shown.text.startswith("usage: ")
    assert "pipeline.cli" in shown.imported
    assert HEAVY & shown.imported == set()


@pytest.mark.parametrize(
    "words",
    [
        ["predict", "x.png", "--run"],
        ["serve", "--run"],
        ["export", "--out", "x", "--run"],
        ["report"],
    ],
)
def test_run_that_does_not_exist_is_refused_before_a_slow_import(words, tmp_path):
    command, *options = words
    shown = run(sys.executable, "-c", START, f"pipeline.{command}", *options, tmp_path / "nowhere")
    message, imported = shown.stderr.splitlines()
    assert shown.returncode == 2 and "nowhere: holds no results.json" in message
    assert HEAVY & set(json.loads(imported)) == set()


@pytest.mark.parametrize("module", MODULES)
def test_help_has_an_example_and_the_exit_statuses(module):
    text = help_of(module).text
    _, _, examples = text.partition("Example")
    assert re.search(rf"(?:-m {re.escape(module)}|tppt {module.rpartition('.')[2]}) ", examples)
    statuses = re.search(r"Exit status:((?:.|\n)+?)(?:\n\n|$)", text)
    assert statuses and re.search(r"\b0\b", statuses[1]) and re.search(r"\b2\b", statuses[1])
    assert "--version" in text


@pytest.mark.parametrize("module", MODULES)
def test_every_option_is_described(module):
    """must hold for each line of the help that begins with an option or an argument"""
    lines = help_of(module).text.splitlines()
    bare = [
        line.strip()
        for line, following in zip(lines, [*lines[1:], ""], strict=True)
        if re.match(r"  -", line) and not re.search(r"\S {2,}\S", line)
        if not re.match(r" {10,}\S", following)
    ]
    assert bare == []


def test_help_of_tppt_names_every_command_with_a_sentence():
    text = help_of("pipeline").text
    for name in find_commands():
        assert re.search(rf"^    {name}\s+[A-Z]\w+,? \w+", text, flags=re.MULTILINE), name
    assert HEAVY & help_of("pipeline").imported == set()


def test_installed_program_works_in_every_folder(tmp_path):
    assert TPPT.exists(), "run `bash cluster/setup.sh`"
    shown = run(TPPT, "--version", cwd=tmp_path, PYTHONPATH="")
    assert (shown.returncode, shown.stdout) == (0, describe_version() + "\n")
    assert VERSION == version("tppt-pipeline") and str(git_commit()) in shown.stdout
    assert run(TPPT, "completion", "--version", cwd=tmp_path).stdout == shown.stdout


def test_unknown_command_is_one_sentence_with_the_nearest_name(capsys):
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "error: 'trian' is not a command; did you mean 'train'?\n"


def test_missing_command_is_refused(capsys):
    with pytest.raises(SystemExit) as end:
        main([])
    assert end.value.code == 2 and "COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ["completion", "zsh"],
        ["completion", "csh"],
        ["compare", "nowhere"],
        ["settings", "snapshot"],
        ["bench", "nothing"],
    ],
    ids=" ".join,
)
def test_program_does_what_the_module_does(words):
    """must have the same output and exit status, and call itself tppt"""
    by_module = run(sys.executable, "-m", f"pipeline.{words[0]}", *words[1:])
    by_program = run(TPPT, *words)
    own_name = by_module.stderr.replace("python -m pipeline.", "tppt ")
    indent = re.compile(r"\n +")  # argparse indents below the name of the program
    assert indent.sub(" ", by_program.stderr) == indent.sub(" ", own_name)
    assert by_program.stdout == by_module.stdout
    assert by_program.returncode == by_module.returncode in (0, 2)


def test_training_ends_with_its_own_status():
    """must hold although it ends its process without the interpreter"""
    shown = run(TPPT, "train", "--config", "no.yaml")
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: no.yaml: no such configuration file")


def test_every_command_has_a_row_in_its_page():
    page = (ROOT / "docs" / "COMMANDS.md").read_text()
    rows = re.findall(r"^\| `tppt (\w+)", page, flags=re.MULTILINE)
    assert sorted(set(find_commands()) - set(rows)) == []

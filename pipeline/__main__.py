"""Learn tasks on CLIP one after another, and use the result: ``tppt COMMAND``.

``tppt COMMAND`` is the same as ``python -m pipeline.COMMAND``, in every folder. Several ranks:
``deepspeed pipeline/train.py``. Every setting: ``tppt settings``, or docs/SETTINGS.md.
"""

from __future__ import annotations

import ast
import os
import re
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.cli import build_parser
from pipeline.text import did_you_mean

_EXAMPLES = """\
Examples:
  tppt prepare shard --source images/ --out data/images
  tppt train --config configs/demo.yaml method.name=finetune
  tppt train --help

Exit status: that of the command; 0 done, 1 a fault of the program or a lost rank, 2 an error that
you can correct, 75 stopped by a signal (the same command continues), 130 interrupted.
"""
_HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that the first word names, in this process; returns an exit status.

    Raises:
        SystemExit: with the exit status of a command that has run.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    commands = find_commands()
    name = _name_to_complete(commands) or next(iter(words), "-")
    if name in commands:
        return _run(name, words[1:])
    if not name.startswith("-"):
        sys.stderr.write(f"error: {name!r} is not a command; {did_you_mean(name, commands)}\n")
        return 2
    parser = build_parser("tppt", __doc__ or "", _EXAMPLES)
    of_commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command, file in commands.items():
        of_commands.add_parser(command, help=_summary(file), add_help=False)
    parser.parse_args(words)
    return 2  # not reached: without a command the parser ends the process


def find_commands() -> Mapping[str, Path]:
    """The file of every command by its name: the modules here that a user starts."""
    files = {file.stem: file for file in _HERE.glob("*.py")}
    files |= {file.parent.name: file for file in _HERE.glob("*/__main__.py")}
    del files["__main__"]
    return {
        name: file
        for name, file in sorted(files.items())
        if '\nif __name__ == "__main__":\n' in file.read_text(encoding="utf-8")
    }


def _run(name: str, arguments: Sequence[str]) -> int:
    """Run a command as ``python -m`` does, so that it also ends in the same way."""
    sys.argv = [f"tppt {name}", *arguments]
    runpy.run_module(f"pipeline.{name}", run_name="__main__", alter_sys=True)
    return 0


def _name_to_complete(commands: Mapping[str, Path]) -> str | None:
    """The command in the line that a shell completes, if a later word is completed."""
    if "_ARGCOMPLETE" not in os.environ:
        return None
    line = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])]
    name = re.match(r"\s*\S+\s+(\S+)\s", line)
    if not name or name[1] not in commands:
        return None
    os.environ["_ARGCOMPLETE"] = "2"  # the words of the command start at the second one
    return name[1]


def _summary(file: Path) -> str:
    """The first sentence of the docstring, up to a colon."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    return re.split(r":\s|\.(?:\s|$)", text)[0]


if __name__ == "__main__":
    sys.exit(main())

"""The completion in real shells: commands, options, files, keys and values of settings."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # with tppt
COMPLETED = {  # the line before the cursor, and the words that complete its last one
    "tppt tr": "train",
    "tppt train --dr": "--dry-run",
    "tppt train --config configs/vitl_inr.y": "configs/vitl_inr.yaml",
    "tppt train --config a.yaml optim.sche": "optim.schedule=",
    "tppt train --config a.yaml seed=2 snapshot.f": "snapshot.folder=",
    "tppt train optim.schedule=": "constant cosine",
    "tppt prepare shard --on-bad ": "fail skip",
    "tppt tune --config a.yaml sampler.s": "sampler.seed=",
    "tppt bench launc": "launch",
}
BASH = """
source <(tppt completion bash)
while read -r line; do
    COMP_LINE=${line%|} COMP_TYPE=9
    COMP_POINT=${#COMP_LINE}
    _python_argcomplete tppt
    echo "${COMPREPLY[*]}"
done
"""
FISH = """
tppt completion fish | source
while read --local line
    complete --do-complete (string trim --right --chars "|" $line) \\
        | string replace --regex "\\t.*" "" | string join " "
end
"""
ZSH = "PS1=; autoload -Uz compinit && compinit -u -D; source <(tppt completion zsh); print rea''dy"
IN_ZSH = {  # the same; zsh puts a completion into the line only if it is the only one
    "tppt tr": "tppt train ",
    "tppt train --config configs/vitl_inr.y": "tppt train --config configs/vitl_inr.yaml ",
    "tppt train --dry-run optim.sche": "tppt train --dry-run optim.schedule=",
    "tppt train optim.schedule=con": "tppt train optim.schedule=constant ",
    "tppt prepare shard --on-bad s": "tppt prepare shard --on-bad skip ",
}


def start(*command: str, **streams: Any) -> subprocess.Popen[str]:
    """A shell in the root of the repository, without settings of a user."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"not installed: {command[0]}")
    environment = os.environ | {"PATH": PATH, "TERM": "dumb"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **streams)


@pytest.mark.parametrize(
    "command", [["bash", "-c", BASH], ["fish", "--no-config", "-c", FISH]], ids=["bash", "fish"]
)
def test_shell_completes_commands_options_files_and_settings(command):
    pipe = subprocess.PIPE
    with start(*command, stdin=pipe, stdout=pipe, stderr=pipe) as shell:
        out, error = shell.communicate("".join(f"{line}|\n" for line in COMPLETED))
    found = dict(zip(COMPLETED, map(str.split, out.splitlines()), strict=True))
    if command[0] == "fish":  # it also completes what stands before the "="
        found["tppt train optim.schedule="] = [
            word.removeprefix("optim.schedule=") for word in found["tppt train optim.schedule="]
        ]
    assert {line: " ".join(sorted(words)) for line, words in found.items()} == COMPLETED, error


def test_zsh_completes_on_a_terminal():
    control, terminal = pty.openpty()
    streams = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    shell = start("zsh", "-f", "-i", start_new_session=True, **streams)
    try:
        type_in(control, f"{ZSH}\r")
        read_until(control, "ready\r\n")
        found = {}
        for line in IN_ZSH:
            # Tab completes; then the line is printed: Ctrl-A and Ctrl-E go to its ends.
            type_in(control, f"{line}\t\x01print -r -- '<\x05>'\r")
            found[line] = re.findall(r"\n<(.*)>\r\n", read_until(control, ">\r\n"))[-1]
    finally:
        shell.kill()
        shell.wait()
        os.close(control)
        os.close(terminal)
    assert {line: text.strip() for line, text in found.items()} == {
        line: text.strip() for line, text in IN_ZSH.items()
    }


def type_in(control: int, keys: str) -> None:
    os.write(control, keys.encode())


def read_until(control: int, end: str) -> str:
    """What the terminal shows up to ``end``."""
    shown, give_up = "", time.monotonic() + 120
    while end not in shown:
        assert time.monotonic() < give_up, shown
        if select.select([control], [], [], 1.0)[0]:
            shown += os.read(control, 1 << 16).decode()
    return shown

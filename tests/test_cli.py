"""Each error of a command is one line on stderr and the exit status of its type."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import errors
from pipeline.cli import build_parser, run_command, stopped_by_signals
from pipeline.errors import ConfigError, LostRankError, PipelineError, RefusedBySystemError

ROOT = Path(__file__).parents[1]

STATUSES = {
    "ConfigError": 2,
    "ContractError": 2,
    "DataError": 2,
    "StorageError": 2,
    "WeightsError": 2,
    "DivergenceError": 2,
    "LostRankError": 1,
    "TakenOverError": 2,
    "RefusedBySystemError": 2,
    "SweepFailedError": 1,
    "Preempted": 75,
}


def raising(error: BaseException) -> int:
    raise error


@pytest.mark.parametrize("status", [0, 1])
def test_status_of_the_work_is_the_status_of_the_command(capsys, status):
    assert run_command(lambda: status) == status
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", STATUSES)
def test_error_is_one_line_and_its_status(capsys, name):
    kind = getattr(errors, name)
    assert run_command(lambda: raising(kind("place: found a, wanted b; do c"))) == STATUSES[name]
    assert capsys.readouterr() == ("", "error: place: found a, wanted b; do c\n")


def test_every_error_has_a_status_here():
    """must include each new type; its status is part of the interface of all commands"""
    kinds = [k for k in PipelineError.__subclasses__() if k.__module__ == PipelineError.__module__]
    assert {kind.__name__ for kind in kinds} == STATUSES.keys()


def test_interrupt_from_the_keyboard_is_one_line_and_status_130(capsys):
    assert run_command(lambda: raising(KeyboardInterrupt())) == 130
    expected = "error: interrupted; start the same command again to continue\n"
    assert capsys.readouterr().err == expected


def test_interrupt_names_the_option_that_continues(capsys):
    """must not advise a command that is then refused, as a sweep would without --resume"""
    from pipeline.tune import _CONTINUE

    run_command(lambda: raising(KeyboardInterrupt()), how_to_continue=_CONTINUE)
    assert "start the same command again with --resume to continue" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "shown"), [(ConfigError, ""), (LostRankError, "error: x\n")])
def test_rank_that_must_not_speak_keeps_its_status(capsys, error, shown):
    status = run_command(
        lambda: raising(error("x")), speaks=lambda error: isinstance(error, LostRankError)
    )
    assert status == error.exit_status
    assert capsys.readouterr().err == shown


def test_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_help_keeps_the_lines_of_its_text():
    parser = build_parser("tool", "First line.\n\n  indented", "Exit status: 0 done.\n  2 not")
    text = parser.format_help()
    assert text.startswith("usage: tool")
    assert "First line.\n\n  indented\n" in text
    assert text.endswith("Exit status: 0 done.\n  2 not\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "the following arguments are required: --run; see `tool --help`"),
        (["--rum", "x", "--run", "x"], "unrecognized arguments: --rum x; did you mean --run? see"),
        (["--run", "x", "--odd"], "unrecognized arguments: --odd; see `tool --help`"),
        (["--run"], "argument --run: expected one argument; see `tool --help`"),
    ],
)
def test_wrong_arguments_are_one_sentence(words, sentence, capsys):
    parser = build_parser("tool", "A tool.")
    parser.add_argument("--run", required=True)
    with pytest.raises(SystemExit) as end:
        parser.parse_args(words)
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith(f"error: {sentence}")
    assert error.count("\n") == 1


def open_missing() -> int:
    with open("/no/such/folder/file"):
        return 0


REFUSALS = {
    "missing file": (open_missing, "/no/such/folder/file: No such file or directory"),
    "full disk": (
        lambda: raising(OSError(28, "No space left on device", "/data/x")),
        "/data/x: No space left on device (OSError at ",
    ),
    "long socket": (lambda: raising(OSError("AF_UNIX path too long")), "AF_UNIX path too long"),
    "text": (lambda: raising_text(), "set LC_ALL=C.UTF-8"),
    "memory": (lambda: raising(MemoryError()), "out of memory at "),
    "memory of torch": (
        lambda: raising(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")),
        "lower engine.micro_batch",
    ),
    "threads": (lambda: raising(RuntimeError("can't start new thread")), "ulimit -u"),
    "open files": (lambda: raising(OSError(24, "Too many open files")), "ulimit -n"),
}


def raising_text() -> int:
    "ü".encode("ascii")
    return 0


@pytest.mark.parametrize(("work", "words"), REFUSALS.values(), ids=REFUSALS)
def test_refusal_of_the_system_is_one_line_and_status_2(capsys, work, words):
    ended = []
    assert run_command(work, on_error=lambda error, status: ended.append((error, status))) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err, err
    ((error, status),) = ended
    assert isinstance(error, RefusedBySystemError) and status == 2


@pytest.mark.parametrize("error", [ConnectionResetError("reset"), EOFError()])
def test_lost_connection_to_another_process_has_status_1(capsys, error):
    assert run_command(lambda: raising(error)) == 1
    assert "the connection to another process was lost at " in capsys.readouterr().err


def test_place_of_a_refusal_is_a_line_of_the_package(tmp_path, capsys):
    from pipeline.launching.private_folder import private_folder

    assert run_command(lambda: bool(private_folder("a/b/c"))) == 2
    assert re.search(r"at pipeline/launching/private_folder\.py:\d+\)", capsys.readouterr().err)


PRINT = """
import sys
from pipeline.cli import run_command

def work():
    sys.stdout.write("größer → ü \\udcff\\n" * 100_000)
    return 0

if __name__ == "__main__":
    sys.exit(run_command(work))
"""


@pytest.fixture(autouse=True, scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The file $PRINT of a command with much output."""
    file = tmp_path_factory.mktemp("program") / "print_much.py"
    file.write_text(PRINT)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PRINT", str(file))
        yield


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The end of a shell command."""
    words = {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), **environment}
    return subprocess.run(
        ["bash", "-c", line],
        env=os.environ | words,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
    )


def test_reader_that_has_gone_ends_the_command_quietly():
    shown = shell('(sleep 0.5; "$PYTHON" "$PRINT"; echo $? >&2) | true')
    assert shown.stderr == "141\n"


def test_output_that_cannot_be_written_is_named():
    shown = shell('"$PYTHON" "$PRINT" >/dev/full')
    assert shown.returncode == 2
    assert shown.stderr.startswith("error: standard output: No space left on device")
    assert shown.stderr.count("\n") == 1


def test_closed_output_is_no_error():
    shown = shell('"$PYTHON" "$PRINT" >&-')
    assert (shown.returncode, shown.stderr) == (0, "")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_terminal_of_any_encoding_is_no_error(encoding):
    shown = shell('"$PYTHON" "$PRINT" | head -c 40', PYTHONIOENCODING=encoding)
    assert "Error" not in shown.stderr and shown.stdout
    shown = shell('"$PYTHON" -m pipeline.train --help', PYTHONIOENCODING=encoding)
    assert (shown.returncode, shown.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_first_signal_stops_in_order_and_the_handlers_come_back(capsys, number):
    before = signal.getsignal(number)

    def work() -> int:
        with stopped_by_signals():
            signal.raise_signal(number)
        return 0

    assert run_command(work) == 75
    expected = "error: stopped by a signal; start the same command again to continue\n"
    assert capsys.readouterr().err == expected
    assert signal.getsignal(number) is before


def test_ignored_signal_stays_ignored():
    """must not end a command that `nohup` or a script protects"""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with stopped_by_signals():
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_status_stays_75_if_the_signal_comes_while_a_module_is_imported(tmp_path):
    """must not become that of SIGINT: dataclasses are made by exec(text)"""
    (tmp_path / "stopped.py").write_text(
        "import signal, sys\nfrom pipeline.cli import run_command, stopped_by_signals\n"
        "def work():\n    with stopped_by_signals():\n"
        "        exec('signal.raise_signal(signal.SIGINT)')\n"
        "sys.exit(run_command(work))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    done = subprocess.run([sys.executable, "-m", "stopped"], env=environment, check=False)
    assert done.returncode == 75

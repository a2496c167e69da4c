"""Each error of a command is one line on stderr and the exit status of its type."""

from __future__ import annotations

import pytest

from pipeline import errors
from pipeline.cli import build_parser, run_command
from pipeline.errors import ConfigError, LostRankError, PipelineError

STATUSES = {
    "ConfigError": 2,
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
    assert {kind.__name__ for kind in PipelineError.__subclasses__()} == STATUSES.keys()


def test_interrupt_from_the_keyboard_is_one_line_and_status_130(capsys):
    assert run_command(lambda: raising(KeyboardInterrupt())) == 130
    expected = "error: interrupted; start the same command again to continue\n"
    assert capsys.readouterr().err == expected


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

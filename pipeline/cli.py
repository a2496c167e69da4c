"""Help, errors and exit status, in the same form for every command.

Exit status: 0 done, 1 a fault of the program or a lost rank, 2 an error that the user can correct,
75 stopped by a signal (the same command continues), 130 interrupted from the keyboard, 141 nobody
reads the output any more.
"""

from __future__ import annotations

import argparse
import contextlib
import difflib
import importlib
import os
import re
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pipeline.errors import LostRankError, PipelineError, Preempted, RefusedBySystemError
from pipeline.sockets import use_short_socket_names
from pipeline.text import shorten
from pipeline.version import describe_version

INTERRUPTED = 130  # 128 + SIGINT, as in shells
NO_READER = 141  # 128 + SIGPIPE, as in shells
CONTINUE = "start the same command again to continue"

_PACKAGE = Path(__file__).parent
_OUT_OF_MEMORY = ("OutOfMemoryError", "can't allocate memory", "cannot allocate memory")


def build_parser(program: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser whose help keeps the line breaks of ``description`` and ``epilog``.

    It knows ``--version``, and completes words for a shell. ``program`` is ``python -m
    pipeline.NAME``; a command that was started as ``tppt NAME`` names itself so.
    """
    make_terminal_safe()
    parser = _Parser(
        prog=_as_started(program),
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_ShowVersion, nargs=0, help="print version and commit")
    return parser


def add_settings(parser: argparse.ArgumentParser, example: str, section: str) -> None:
    """Add the words ``key=value`` of the command line as ``overrides``.

    ``section`` names the class of the settings as ``module:Class``; a shell completes their keys.
    """
    overrides = parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help=f"a setting, e.g. {example}"
    )
    complete_settings(overrides, section)


def complete_settings(words: argparse.Action, section: str, *, also: Iterable[str] = ()) -> None:
    """Let a shell complete the keys, and few values, of the settings in the class ``section``.

    ``also`` are other words that the argument accepts.
    """

    def complete(prefix: str, **about: object) -> list[str]:
        from pipeline.settings_table import list_settings

        module, _, name = section.partition(":")
        settings = list(list_settings(getattr(importlib.import_module(module), name)))
        key, is_value, _ = prefix.partition("=")
        if not is_value:
            return [*also, *(f"{each.key}=" for each in settings if "[" not in each.key)]
        return [f"{key}={value}" for each in settings if each.key == key for value in each.choices]

    words.completer = complete  # type: ignore[attr-defined]  # argcomplete reads it


def add_deadline(parser: argparse.ArgumentParser) -> None:
    """Add the option for the patience with storage, see :func:`pipeline.storage.set_deadline`."""
    parser.add_argument(
        "--deadline",
        type=float,
        metavar="SECONDS",
        default=120.0,
        help="retries of one request to a storage that fails (default: 120); 25 at the start",
    )


def number_from(least: int, most: int) -> Callable[[str], int]:
    """The ``type`` of an option that is a whole number from ``least`` to ``most``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {least} to {most}")
        return int(text)

    return parse


def run_command(
    work: Callable[[], int],
    *,
    on_error: Callable[[Exception, int], None] = lambda error, status: None,
    speaks: Callable[[PipelineError], bool] = lambda error: True,
    how_to_continue: str = CONTINUE,
) -> int:
    """The exit status of ``work()``; an error that the user can correct becomes one line on stderr.

    Such an error is a :class:`PipelineError`, or an error of the system: a file, a process, a port,
    a terminal, memory. ``on_error`` gets every error, also one that keeps its traceback, with the
    exit status. With several ranks, only a rank with ``speaks(error)`` writes the line of a
    :class:`PipelineError`.
    """
    make_terminal_safe()
    try:
        use_short_socket_names()
        status = work()
        _flush_stdout()
        return status
    except PipelineError as error:
        on_error(error, error.exit_status)
        if speaks(error):
            _write_error(str(error))
        return error.exit_status
    except KeyboardInterrupt:
        _write_error(f"interrupted; {how_to_continue}")
        return INTERRUPTED
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _has_no_reader():
            return NO_READER
        refusal = explain_refusal(error)
        if refusal is None:
            on_error(error, 1)
            raise
        on_error(refusal, refusal.exit_status)
        _write_error(str(refusal))
        return refusal.exit_status


@contextlib.contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Let the first Ctrl-C or SIGTERM end the work in order, and a second one end it at once.

    Raises:
        Preempted: a signal came.
    """
    is_main = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGINT, signal.SIGTERM) if is_main else ()
    before = {number: signal.getsignal(number) for number in numbers}

    def stop(number: int, frame: FrameType | None) -> None:
        for each in before:
            signal.signal(each, signal.SIG_DFL)
        raise KeyboardInterrupt  # no handler of errors catches it on its way

    try:
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:  # nohup, or a job in the background of a script
                signal.signal(number, stop)
        yield
    except KeyboardInterrupt:
        exec("")  # else CPython replaces the exit status if the signal came within exec(text)
        raise Preempted(f"stopped by a signal; {CONTINUE}") from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make_terminal_safe() -> None:
    """Let stdout and stderr accept every text: what the terminal cannot show is written as \\u1234.

    A closed stdout or stderr accepts every text too, and drops it.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell: `>&-`
            setattr(sys, name, open(os.devnull, "w", errors="backslashreplace"))
        elif hasattr(stream, "reconfigure"):  # not a stream of a test
            stream.reconfigure(errors="backslashreplace")


def explain_refusal(error: BaseException) -> PipelineError | None:
    """The sentence for an error of the system; None for a fault of the program."""
    where = _place(error)
    text = f"{type(error).__name__}: {error}"
    if isinstance(error, (ConnectionError, EOFError)):
        return LostRankError(
            f"the connection to another process was lost at {where} ({shorten(text)}); "
            f"find out what ended that process, then {CONTINUE}"
        )
    if isinstance(error, MemoryError) or any(words in text for words in _OUT_OF_MEMORY):
        return RefusedBySystemError(
            f"out of memory at {where} ({shorten(text)}); free memory, or lower "
            "engine.micro_batch, data.eval_batch or data.workers, or set engine.recompute=true"
        )
    if "can't start new thread" in text:
        return RefusedBySystemError(
            f"the system starts no further thread at {where}; raise the limit on processes "
            "(`ulimit -u`, --pids-limit of a container), or lower data.workers"
        )
    if "Too many open files" in text:
        return RefusedBySystemError(
            f"the limit on open files is reached at {where}; raise it (`ulimit -n 65536`), or "
            "lower data.workers"
        )
    if isinstance(error, UnicodeError):
        return RefusedBySystemError(
            f"a text cannot be written or read at {where} ({shorten(text)}); "
            "set LC_ALL=C.UTF-8, and use names in UTF-8"
        )
    if isinstance(error, OSError):
        files = " → ".join(str(file) for file in (error.filename, error.filename2) if file)
        if not files and _writes_output(error):
            files = "standard output"
        problem = error.strerror or str(error) or type(error).__name__
        return RefusedBySystemError(
            f"{f'{files}: ' if files else ''}{shorten(problem)} ({type(error).__name__} at "
            f"{where}); correct the file, the limit or the permission, then start again"
        )
    return None


class _Parser(argparse.ArgumentParser):
    """Refuses wrong arguments in one sentence, and completes words where a shell asks for it."""

    def error(self, message: str) -> NoReturn:
        """End with the sentence that every other error of the user has, and status 2."""
        unknown = re.match(r"unrecognized arguments: (--?\w[\w-]*)", message)
        close = (
            difflib.get_close_matches(unknown[1], self._option_string_actions) if unknown else ()
        )
        meant = f"did you mean {close[0]}? " if close else ""
        self.exit(2, f"error: {message}; {meant}see `{self.prog} --help`\n")

    def parse_args(self, *arguments: Any, **options: Any) -> Any:
        self._complete()
        return super().parse_args(*arguments, **options)

    def parse_intermixed_args(self, *arguments: Any, **options: Any) -> Any:
        self._complete()
        return super().parse_intermixed_args(*arguments, **options)

    def _complete(self) -> None:
        if "_ARGCOMPLETE" in os.environ:
            import argcomplete

            argcomplete.autocomplete(self)


class _ShowVersion(argparse.Action):
    """Prints the version; unlike that of argparse, it asks for the commit only then."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        sys.stdout.write(describe_version() + "\n")
        parser.exit()


def _as_started(program: str) -> str:
    """``python -m pipeline.NAME``, or ``tppt NAME`` in a process of that program."""
    is_tppt = any(Path(word).name == "tppt" for word in sys.orig_argv[:2])
    return program.replace("python -m pipeline.", "tppt ") if is_tppt else program


def _has_no_reader() -> bool:
    """Whether stdout or stderr is a pipe that nobody reads; then drop all further output."""
    found = False
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a stream of a test has no file
            file = stream.fileno()
            poll = select.poll()
            poll.register(file, 0)
            if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
                found = True
                os.dup2(os.open(os.devnull, os.O_WRONLY), file)
    return found


def _flush_stdout() -> None:
    """Write the rest of the output.

    Raises:
        BrokenPipeError: nobody reads it.
        RefusedBySystemError: it cannot be written.
    """
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # what is left in the buffer cannot be written either
        raise RefusedBySystemError(
            f"standard output: {error.strerror}; write to another file or free some of its disk"
        ) from None


def _write_error(message: str) -> None:
    with contextlib.suppress(OSError):  # then nothing can be said
        sys.stderr.write(f"error: {message}\n")
        sys.stderr.flush()


def _writes_output(error: BaseException) -> bool:
    """Whether ``error`` was raised by a line that writes to stdout."""
    lines = [frame.line or "" for frame in traceback.extract_tb(error.__traceback__)]
    return any("sys.stdout." in line or "print(" in line for line in lines)


def _place(error: BaseException) -> str:
    """The last line of this package in the traceback of ``error``."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _PACKAGE in Path(frame.filename).parents]
    if not own:
        return "an unknown place"
    return f"{Path(own[-1].filename).relative_to(_PACKAGE.parent)}:{own[-1].lineno}"

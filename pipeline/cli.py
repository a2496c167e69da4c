"""Help, errors and exit status, in the same form for every command.

Exit status: 0 done, 1 a fault of the program or a lost rank, 2 an error that the user can correct,
75 stopped by a signal (the same command continues), 130 interrupted from the keyboard.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable

from pipeline.errors import PipelineError

INTERRUPTED = 130  # 128 + SIGINT, as in shells


def build_parser(program: str, description: str, epilog: str = "") -> argparse.ArgumentParser:
    """A parser whose help keeps the line breaks of ``description`` and ``epilog``."""
    return argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def run_command(
    work: Callable[[], int],
    *,
    on_error: Callable[[Exception, int], None] = lambda error, status: None,
    speaks: Callable[[PipelineError], bool] = lambda error: True,
) -> int:
    """The exit status of ``work()``; a :class:`PipelineError` becomes one line on stderr.

    ``on_error`` gets every error, also one that keeps its traceback, with the exit status. With
    several ranks, only a rank with ``speaks(error)`` writes the line.
    """
    try:
        return work()
    except PipelineError as error:
        on_error(error, error.exit_status)
        if speaks(error):
            sys.stderr.write(f"error: {error}\n")
        return error.exit_status
    except KeyboardInterrupt:
        sys.stderr.write("error: interrupted; start the same command again to continue\n")
        return INTERRUPTED
    except Exception as error:
        on_error(error, 1)
        raise

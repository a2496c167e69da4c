"""Learn a sequence of tasks: ``deepspeed pipeline/train.py --config configs/demo.yaml``.

Examples:
  deepspeed --num_accelerators 2 pipeline/train.py --config configs/demo.yaml
  python -m pipeline.train --config configs/demo.yaml method.name=finetune output=runs/finetune
  python -m pipeline.train --config configs/vitl_inr.yaml --dry-run
  srun --nodes 2 --ntasks-per-node 8 python -m pipeline.train --config configs/vitl_inr.yaml

`deepspeed`, `torchrun` and `srun` start several ranks; `python -m pipeline.train` and `tppt train`
are one rank. Started again, the same command continues from its last snapshot. SIGTERM, SIGUSR2 and
Ctrl-C stop it after the present step, with a snapshot; a second Ctrl-C ends it at once.

Every setting is described in docs/SETTINGS.md and by `python -m pipeline.settings`.

Exit status: 0 finished now or before, 2 an error that you can correct, 75 stopped by a signal
(start the same command again), 1 a lost rank or a fault of the program, 130 interrupted before the
first step or by a second Ctrl-C.
"""

from __future__ import annotations

import os
import sys

if not __package__:  # run as a file, as `deepspeed` does: import from the checkout, not from here
    # Before any other import: pipeline/inspect.py must not hide Python's own inspect.
    _here = os.path.dirname(os.path.realpath(__file__))
    _others = [path for path in sys.path if os.path.realpath(path or ".") != _here]
    sys.path[:] = [os.path.dirname(_here), *_others]

import argparse
import atexit
import contextlib
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal, NoReturn

if TYPE_CHECKING:
    from pipeline.errors import PipelineError


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    # Not above: the path of imports must be right before.
    from pipeline.cli import add_settings, build_parser

    program = "python -m pipeline.train" if __package__ else "pipeline/train.py"
    parser = build_parser(program, __doc__ or "")
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of settings")
    add_settings(parser, "optim.epochs=5", "pipeline.config:Config")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings")
    parser.add_argument(
        "--list-methods",
        action=_ListMethods,
        nargs=0,
        help="print methods and classifiers with all their options",
    )
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed passes it
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)

    from pipeline.cli import run_command  # further imports only after the arguments are right

    return run_command(lambda: learn(options), on_error=_report_end, speaks=_speaks)


def learn(options: argparse.Namespace) -> int:
    """Learn the sequence, or print its plan or its settings; returns the exit status.

    Raises:
        PipelineError: the run cannot be started or finished.
    """
    from pipeline.threads import spin_briefly

    spin_briefly(os.environ)

    from pipeline.imports import without_collection

    with without_collection():
        from pipeline.config import dump_config, load_config
        from pipeline.distributed.preemption import StopRequest
        from pipeline.distributed.slurm import adopt_step

    stop = StopRequest()
    if not (options.dry_run or options.print_config):
        stop.listen()  # at once: a signal that comes while the rest is imported is not lost
    adopt_step(os.environ)
    with _errors_before_meeting("node"):
        config = load_config(options.config, options.overrides)  # a wrong one is reported at once

    with without_collection():  # these import torch, which takes seconds
        from pipeline.distributed.world import read_world
        from pipeline.events import EventLog
        from pipeline.log import setup_logging
        from pipeline.storage import giving_up_early
        from pipeline.training.checked_run import check_run, with_all_options
        from pipeline.training.dry_run import format_plan
        from pipeline.training.run import execute

    if options.print_config:
        sys.stdout.write(dump_config(with_all_options(config)))
        return 0
    with _errors_before_meeting("rank"):
        world = read_world(os.environ)
    if world.is_main:
        EventLog(os.environ).add("imported")
    setup_logging(world.rank)
    with _errors_before_meeting("node"), giving_up_early():
        run = check_run(config, world.world_size)
    if options.dry_run:
        if world.is_main:
            with giving_up_early():
                plan = format_plan(run)
            sys.stdout.write(plan + "\n")
        return 0
    if not execute(run, world, stop) and world.is_main:
        sys.stdout.write(f"{config.output} is finished already: nothing to do\n")
    return 0


class _ListMethods(argparse.Action):
    """Prints the options of methods and classifiers in place of training."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from pipeline.cli import run_command
        from pipeline.settings import method_groups, print_groups

        parser.exit(run_command(lambda: print_groups(method_groups())))


def _report_end(error: Exception, status: int) -> None:
    """Report the end of this rank to the program that has launched it, if that is possible."""
    from pipeline.events import EventLog

    with contextlib.suppress(OSError, ValueError):  # no such file, RANK is not a number
        EventLog(os.environ).add_end(error, status)


@contextlib.contextmanager
def _errors_before_meeting(printed_by: Literal["node", "rank"]) -> Iterator[None]:
    """Name this rank in its errors, and print them: rank 0 may have other files, and no error."""
    from pipeline.errors import PipelineError

    try:
        yield
    except PipelineError as error:
        rank = os.environ.get("RANK", "0")
        if rank == "0":
            raise
        named = type(error)(f"rank {rank} on {socket.gethostname()}: {error}")
        named.printed_by = printed_by
        raise named from error


def _speaks(error: PipelineError) -> bool:
    """Whether this rank prints ``error``."""
    rank = os.environ.get("RANK", "0")
    if not rank.isdigit() or int(rank) == 0 or error.printed_by == "rank":
        return True
    return error.printed_by == "node" and os.environ.get("LOCAL_RANK") == "0"


def leave(status: int) -> NoReturn:
    """End the process with its exit ``status``, whatever signal comes meanwhile.

    The interpreter is not shut down: the threads of its process groups could, very rarely, abort
    a rank that has done all its work.
    """
    from pipeline.distributed.preemption import ignore_stop_signals

    ignore_stop_signals()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    leave(main())

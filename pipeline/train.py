"""Learn a sequence of tasks: ``deepspeed pipeline/train.py --config configs/demo.yaml``.

Examples:
  deepspeed --num_accelerators 2 pipeline/train.py --config configs/demo.yaml
  python -m pipeline.train --config configs/demo.yaml method.name=finetune output=runs/finetune
  python -m pipeline.train --config configs/vitl_inr.yaml --dry-run

Exit status: 0 finished (or was already), 2 something that you can mend, 1 a fault of the program.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

if not __package__:  # run as a file, as `deepspeed` does: import from the checkout, not from here
    _here = Path(__file__).resolve().parent
    sys.path[:] = [str(_here.parent), *(p for p in sys.path if Path(p or ".").resolve() != _here)]


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="pipeline/train.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. optim.epochs=5")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan")
    parser.add_argument("--print-config", action="store_true", help="print the resolved settings")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # deepspeed passes it
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)

    from pipeline.errors import PipelineError  # heavy imports only after the arguments are right

    try:
        return _train(options)
    except PipelineError as error:
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"error: {error}\n")
        return 2


def _train(options: argparse.Namespace) -> int:
    from pipeline.comm import read_world
    from pipeline.config import dump_config, load_config
    from pipeline.log import setup_logging
    from pipeline.run import check_run, describe, execute, is_finished

    config = load_config(options.config, options.overrides)
    if options.print_config:
        sys.stdout.write(dump_config(config))
        return 0
    world = read_world(os.environ)
    setup_logging(world.rank)
    run = check_run(config, world.world_size)
    if options.dry_run:
        if world.is_main:
            sys.stdout.write(describe(run) + "\n")
        return 0
    if is_finished(run):
        if world.is_main:
            sys.stdout.write(f"{config.output} is finished already: nothing to do\n")
        return 0
    execute(run, world)
    return 0


if __name__ == "__main__":
    sys.exit(main())

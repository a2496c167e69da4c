"""Search hyperparameters over a task sequence: ``python -m pipeline.tune --config FILE``.

Examples:
  python -m pipeline.tune --config configs/tune_demo.yaml
  python -m pipeline.tune --config configs/tune_vitl_inr.yaml trials=40 output=s3://runs/tuned
  python -m pipeline.tune --config configs/tune_demo.yaml --resume

Writes to the sweep's output: trials.csv (ranked), best.yaml (for pipeline/train.py --config),
sweep.html, and everything of each trial under trials/. SIGTERM, SIGUSR2 and Ctrl-C stop the trials
with a snapshot each; with --resume the same command goes on, and repeats no finished trial.

Exit status: 0 finished, 1 no trial finished, 2 something that you can mend, 75 stopped by a signal
and to be started again with --resume.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.tune",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of the sweep")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="e.g. trials=40")
    parser.add_argument("--resume", action="store_true", help="go on with the sweep in the output")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)

    from pipeline.errors import PipelineError  # heavy imports only after the arguments are right

    try:
        return _tune(options)
    except PipelineError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_status


def _tune(options: argparse.Namespace) -> int:
    from pipeline.distributed.preemption import StopRequest
    from pipeline.log import setup_logging
    from pipeline.storage import redact
    from pipeline.sweep.config import load_sweep
    from pipeline.sweep.plan import load_plan
    from pipeline.sweep.ray_environment import ray_environment

    setup_logging(0)
    stop = StopRequest()
    stop.listen(signal.SIGINT)
    plan = load_plan(load_sweep(options.config, options.overrides))
    os.environ |= ray_environment(plan.sweep.address)  # before anything imports Ray
    if options.dry_run:
        from pipeline.sweep.dry_run import describe_sweep

        sys.stdout.write(describe_sweep(plan) + "\n")
        return 0

    from pipeline.reporting.sweep_page import write_report
    from pipeline.sweep.progress import SweepDisplay
    from pipeline.sweep.sweep import conclude, open_table, run_sweep

    sweep = plan.sweep
    display = SweepDisplay(
        n_trials=sweep.trials,
        n_tasks=plan.n_tasks * len(sweep.repetitions),
        metric=sweep.metric,
        split="test" if sweep.is_oracle else "validation",
        note=plan.mark,
    )
    table = open_table(plan, resume=options.resume, watch=display.update)
    try:
        with display:
            finished = run_sweep(plan, table, stop)
    finally:
        table.raise_if_taken_over()  # of a sweep that another start has taken over, that one tells
        write_report(plan, table.records)
    if not finished:
        stop.raise_if_requested()
    winner = conclude(plan, table)
    spent = sum(record.device_hours for record in table.records)
    value = 100 * winner.value(sweep.metric)
    sys.stdout.write(
        f"{f'{plan.mark}: ' if plan.mark else ''}trial {winner.number} is the best of "
        f"{len(table.records)} with {sweep.metric} {value:.2f} % after {spent:.3g} device-hours; "
        f"see trials.csv, best.yaml and sweep.html in {redact(sweep.output)}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

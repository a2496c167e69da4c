"""Search hyperparameters over a task sequence: ``python -m pipeline.tune --config FILE``.

Examples:
  python -m pipeline.tune --config configs/tune_demo.yaml
  python -m pipeline.tune --config configs/tune_vitl_inr.yaml trials=40 output=s3://runs/tuned
  python -m pipeline.tune --config configs/tune_demo.yaml --resume

Writes to the output of the sweep: trials.csv (ranked), best.yaml (for pipeline/train.py --config),
sweep.html, and all files of each trial under trials/. SIGTERM, SIGUSR2 and Ctrl-C stop the trials
with a snapshot each; with --resume the same command continues and repeats no finished trial.

Every setting is described in docs/SETTINGS.md and by `python -m pipeline.settings sweep`.

Exit status: 0 finished, 1 no trial finished, 2 an error that you can correct, 75 stopped by a
signal and to be started again with --resume.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from pipeline.cli import add_settings, build_parser, run_command

if TYPE_CHECKING:
    from pipeline.distributed.preemption import StopRequest
    from pipeline.sweep.plan import SweepPlan
    from pipeline.sweep.trial_table import TrialTable

_CONTINUE = "start the same command again with --resume to continue"


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    """The options of the command line."""
    parser = build_parser("python -m pipeline.tune", __doc__)
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of the sweep")
    add_settings(parser, "trials=40", "pipeline.sweep.config:SweepConfig")
    parser.add_argument("--resume", action="store_true", help="continue the sweep in the output")
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the plan")
    return parser.parse_intermixed_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    return run_command(lambda: _tune(options), how_to_continue=_CONTINUE)


def _tune(options: argparse.Namespace) -> int:
    # Imported after the arguments are checked, since these take seconds.
    from pipeline.distributed.preemption import StopRequest
    from pipeline.log import setup_logging
    from pipeline.storage import giving_up_early
    from pipeline.sweep.config import load_sweep
    from pipeline.sweep.ray_environment import ray_environment

    setup_logging(0)
    stop = StopRequest(how_to_continue=_CONTINUE)
    stop.listen()
    sweep = load_sweep(options.config, options.overrides)  # a wrong one is reported at once

    from pipeline.sweep.plan import load_plan

    with giving_up_early():
        plan = load_plan(sweep)
    os.environ |= ray_environment(plan.sweep.address)  # before anything imports Ray
    if options.dry_run:
        from pipeline.sweep.dry_run import describe_sweep

        sys.stdout.write(describe_sweep(plan) + "\n")
        return 0
    table = _run(plan, stop, resume=options.resume)
    sys.stdout.write(_conclude(plan, table) + "\n")
    return 0


def _run(plan: SweepPlan, stop: StopRequest, *, resume: bool) -> TrialTable:
    """The trial table after the last trial, or after a request to stop, which is raised."""
    from pipeline.reporting.sweep_page import write_report
    from pipeline.sweep.progress import SweepDisplay
    from pipeline.sweep.sweep import open_table, run_sweep

    sweep = plan.sweep
    display = SweepDisplay(
        n_trials=sweep.trials,
        n_tasks=plan.n_reports,
        metric=sweep.metric,
        split="test" if sweep.is_oracle else "validation",
        note=plan.mark,
    )
    table = open_table(plan, resume=resume, watch=display.update)
    try:
        with display:
            finished = run_sweep(plan, table, stop)
    finally:
        table.raise_if_taken_over()  # then the later start writes the page
        write_report(plan, table.records)
    if not finished:
        stop.raise_if_requested()
    return table


def _conclude(plan: SweepPlan, table: TrialTable) -> str:
    """Write ``best.yaml``; returns the last line of the command."""
    from pipeline.storage import redact
    from pipeline.sweep.sweep import conclude
    from pipeline.text import format_percent

    winner, metric = conclude(plan, table), plan.sweep.metric
    hours = sum(record.device_hours for record in table.records)
    value = format_percent([winner.value(metric)], digits=2)
    return (
        f"{f'{plan.mark}: ' if plan.mark else ''}trial {winner.number} is the best of "
        f"{len(table.records)} with {metric} {value} % after {hours:.3g} device-hours; "
        f"see trials.csv, best.yaml and sweep.html in {redact(plan.sweep.output)}"
    )


if __name__ == "__main__":
    sys.exit(main())

"""``sweep.html``: the report of a sweep, finished or not.

The same records give the same bytes, so that the page can be made again from the trial table.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline import storage
from pipeline.pages.page import Fact, Heading, TableRow, render_page
from pipeline.reporting.sweep_charts import N_SHADES, SweepCharts, repetition_names
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.plan import BEST, SweepPlan
from pipeline.sweep.progress import SYMBOLS, format_value, parameter_labels
from pipeline.sweep.trial_table import TABLE, TrialRecord, best, rank
from pipeline.text import NOT_KNOWN, format_percent, format_spread

PAGE = "sweep.html"
_FOLDER = Path(__file__).parent
_FIGURES = ("average_incremental_accuracy", "last_accuracy", "forgetting")


def write_report(plan: SweepPlan, records: Sequence[TrialRecord]) -> None:
    """Replace ``sweep.html`` in the sweep's output.

    Raises:
        StorageError: it cannot be written.
    """
    text = render_report(plan, records)
    storage.write_atomically(storage.join(plan.sweep.output, PAGE), text.encode())


def render_report(plan: SweepPlan, records: Sequence[TrialRecord]) -> str:
    """The page of a sweep; the order of ``records`` does not matter."""
    sweep, records = plan.sweep, sorted(records, key=lambda record: record.number)
    labels = parameter_labels(records)
    charts = SweepCharts(plan, records, labels) if records else None
    winner = best(records, sweep.metric)
    return render_page(
        _FOLDER / "templates/sweep.html",
        title=f"Sweep {sweep.name}" + (f" ({plan.mark})" if plan.mark else ""),
        styles=[_FOLDER / "sweep.css"],
        name=sweep.name,
        mark=plan.mark,
        metric=_words(sweep.metric),
        facts=_facts(plan, records),
        best=winner,
        best_figures=[(_words(name), _figure(winner, name)) for name in _FIGURES] if winner else [],
        best_command=f"python -m pipeline.train --config {_best_place(sweep)}",
        excluded=_excluded_tasks(plan),
        n_shades=N_SHADES,
        parameters_chart=charts.parameters_and_metric() if charts else None,
        tasks_chart=charts.metric_after_each_task() if charts else None,
        parameter_charts=charts.each_parameter() if charts else [],
        n_trials=len(records),
        headings=_headings(sweep, labels),
        rows=_rows(plan, records, labels),
        failures=_failures(records),
        method=_method(plan),
    )


def _best_place(sweep: SweepConfig) -> str:
    """The place of ``best.yaml`` as a word of a shell, without what is secret in a URL."""
    return shlex.quote(storage.redact(storage.join(sweep.output, BEST)))


def _facts(plan: SweepPlan, records: Sequence[TrialRecord]) -> list[Fact]:
    """The result of the sweep and its cost."""
    sweep, winner = plan.sweep, best(records, plan.sweep.metric)
    images = "test images" if sweep.is_oracle else "validation images"
    counts = [
        f"{SYMBOLS[status]} {count} {status}"
        for status in SYMBOLS
        if (count := sum(record.status == status for record in records))
    ]
    hours = sum(record.device_hours for record in records)
    devices = "GPUs" if sweep.resources.gpus else "CPU cores"
    names = repetition_names(sweep)
    repetitions = "1 repetition" if len(names) == 1 else f"{len(names)} repetitions"
    return [
        Fact(
            "best trial",
            f"{_metric(winner, sweep)} %" if winner else NOT_KNOWN,
            f"{_words(sweep.metric)}, {images}",
        ),
        Fact(
            "trials", f"{len(records)} of {sweep.trials}", ", ".join(counts) or "none has started"
        ),
        Fact("budget spent", f"{hours:.2f}", f"device-hours of {devices}, {_period(records)}"),
        Fact(
            "protocol",
            _words(sweep.protocol).replace(" k ", f" {plan.n_tasks} "),
            f"{repetitions} of each: {'; '.join(names)}",
        ),
    ]


def _headings(sweep: SweepConfig, labels: Mapping[str, str]) -> list[Heading]:
    figures = [_words(name) for name in (sweep.metric, *_other_figures(sweep))]
    names = ["rank", "trial", "status", *figures, "tasks", "device-hours"]
    parameters = [Heading(label, key) for key, label in labels.items()]
    return [*map(Heading, names), *parameters, Heading("reason")]


def _rows(
    plan: SweepPlan, records: Sequence[TrialRecord], labels: Mapping[str, str]
) -> list[TableRow]:
    """A row for each trial, best first, with a cell for each of ``_headings``."""
    sweep, winner = plan.sweep, best(records, plan.sweep.metric)
    rows = []
    for place, record in enumerate(rank(records, sweep.metric), start=1):
        drawn = record.parameters
        cells = [
            str(place),
            str(record.number),
            f"{SYMBOLS[record.status]} {record.status}",
            _metric(record, sweep),
            *(_figure(record, name) for name in _other_figures(sweep)),
            f"{record.tasks_done}/{plan.n_reports}",
            f"{record.device_hours:.3f}",
            *(format_value(drawn[key]) if key in drawn else NOT_KNOWN for key in labels),
            record.reason or "",
        ]
        kind = f"{record.status} best" if record is winner else record.status
        rows.append(TableRow(cells, str(record.number), kind))
    return rows


def _failures(records: Sequence[TrialRecord]) -> dict[str, str]:
    """The numbers of the trials that failed by reason, the most frequent reason first."""
    trials: dict[str, list[str]] = {}
    for record in records:
        if record.status == "failed":
            trials.setdefault(record.reason or "unknown", []).append(str(record.number))
    frequent = sorted(trials.items(), key=lambda item: -len(item[1]))
    return {reason: ", ".join(numbers) for reason, numbers in frequent}


def _method(plan: SweepPlan) -> dict[str, str]:
    """The settings with which the trials were made and compared."""
    sweep, needs = plan.sweep, plan.sweep.resources
    scheduler = "none: no trial is stopped early"
    if sweep.scheduler.name == "asha":
        factor = sweep.scheduler.reduction_factor
        scheduler = (
            f"ASHA: a trial continues after {sweep.scheduler.grace_tasks} task(s), and each time "
            f"after {factor} times as many, if it is among the best 1/{factor}"
        )
    return {
        "protocol": f"{sweep.protocol}: {_protocol(plan)}",
        "reported": f"{plan.reported.name} ({sweep.report or sweep.run}). {_excluded_tasks(plan)}",
        "varied run": " ".join([sweep.run, *sweep.overrides]),
        "repetitions": "; ".join(repetition_names(sweep)),
        "metric": f"{sweep.metric}, mean over the repetitions",
        "search": f"{sweep.sampler.name}, seed {sweep.sampler.seed}, {sweep.trials} trials wanted",
        "scheduler": scheduler,
        "resources": f"{needs.gpus} GPU(s) and {needs.cpus} core(s) on each of {needs.nodes} "
        "node(s), for one trial",
        "search space": "; ".join(f"{key}: {domain}" for key, domain in plan.space.domains.items()),
        "files": f"{storage.redact(sweep.output)}: {TABLE}, {BEST}, trials/",
    }


def _protocol(plan: SweepPlan) -> str:
    sweep = plan.sweep
    learned = {
        "first_task": "every trial learns the first task",
        "first_k_tasks": f"every trial learns the first {plan.n_tasks} tasks",
        "transfer": "every trial learns all tasks of another benchmark than the reported one",
        "oracle_sequence": "every trial learns all tasks",
    }[sweep.protocol]
    if sweep.is_oracle:
        return f"{learned} and is tested on the test images: {plan.mark}."
    return (
        f"{learned} and is tested on {100 * sweep.validation_fraction:g} % of the training images, "
        "held out by a hash of their key, the same in every trial; no test image was opened."
    )


def _excluded_tasks(plan: SweepPlan) -> str:
    """Whether the reported figures leave out the tasks of the trials."""
    if plan.excluded_tasks:
        tasks = "task" if plan.excluded_tasks == 1 else f"{plan.excluded_tasks} tasks"
        text = f"The summary figures of {BEST} leave out the first {tasks}, used for the selection."
        orders = {order for _, order in plan.sweep.repetitions} - {None}
        if orders <= {plan.reported.tasks.order_seed}:
            return text
        return (
            f"{text} Repetitions in another order of classes start with other classes: the "
            "selection also used training images of tasks that are reported."
        )
    if plan.sweep.protocol in ("first_task", "first_k_tasks"):
        return f"The summary figures of {BEST} include the tasks used for the selection."
    return ""


def _period(records: Sequence[TrialRecord]) -> str:
    """The time of the sweep, to the minute."""
    started = sorted(record.started for record in records if record.started)
    ended = sorted(record.ended for record in records if record.ended)
    if not started:
        return "not started"
    first, last = (moment[:16].replace("T", " ") for moment in (started[0], (ended or started)[-1]))
    is_over = all(record.status != "running" for record in records)
    return f"{first} to {last} UTC" if is_over else f"since {first} UTC"


def _other_figures(sweep: SweepConfig) -> list[str]:
    return [name for name in _FIGURES if name != sweep.metric]


def _metric(record: TrialRecord, sweep: SweepConfig) -> str:
    return format_spread(record.value(sweep.metric), record.spread(sweep.metric))


def _figure(record: TrialRecord, name: str) -> str:
    """A figure after the last task of each repetition, mean ± sd in per cent."""
    last = {report.repetition: getattr(report, name) for report in record.reports}
    return format_percent([*last.values()])


def _words(name: str) -> str:
    return name.replace("_", " ")

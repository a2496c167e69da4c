"""``sweep.html``: everything a reader of a sweep should know, in one file that needs nothing else.

The same records give the same bytes, so a page can be made again from the trial table at any time.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from pipeline import storage
from pipeline.reporting.charts import N_SHADES, Charts
from pipeline.reporting.markup import Element, element, page
from pipeline.sweep.config import SweepConfig
from pipeline.sweep.plan import BEST, Plan
from pipeline.sweep.progress import SYMBOLS, format_value, parameter_labels
from pipeline.sweep.trial_table import TABLE, TaskReport, TrialRecord, best, rank

PAGE = "sweep.html"
_STYLE, _SCRIPT = (Path(__file__).with_name(name) for name in ("sweep.css", "sweep.js"))

_MARKED = (
    "The configurations were compared on the test images of the whole sequence. A figure that is "
    "reported with any of them is no estimate of what it would be on images nobody has looked at."
)

_OTHER_ORDERS = (
    "Repetitions in another order of classes began with other classes, so that training images of "
    "tasks that are reported have had a say as well."
)


def write_report(plan: Plan, records: Sequence[TrialRecord]) -> None:
    """Replace ``sweep.html`` in the sweep's output.

    Raises:
        StorageError: it cannot be written.
    """
    text = render_report(plan, records)
    storage.write_atomically(storage.join(plan.sweep.output, PAGE), text.encode())


def render_report(plan: Plan, records: Sequence[TrialRecord]) -> str:
    """The page of a sweep, finished or not."""
    sweep, records = plan.sweep, sorted(records, key=lambda record: record.number)
    labels = parameter_labels(records)
    told = {record.number: _told(record, sweep, labels) for record in records}
    charts = Charts(records, plan.space.domains, sweep.metric, told)
    return page(
        f"Sweep {sweep.name}" + (f" ({plan.mark})" if plan.mark else ""),
        _STYLE.read_text(encoding="utf-8"),
        _SCRIPT.read_text(encoding="utf-8"),
        element("header", {}, element("h1", {}, f"Sweep {sweep.name}"), _banner(plan)),
        element(
            "main",
            {},
            _facts(plan, records),
            _best(plan, records),
            *_pictures(plan, records, charts),
            _table(plan, records, labels),
            _failures(records),
            _method(plan),
        ),
        element("p", {"id": "told", "role": "status", "aria-live": "polite"}),
    )


def _banner(plan: Plan) -> Element | None:
    """What stands over everything where the sweep has looked at what it reports."""
    if not plan.mark:
        return None
    mark = element("strong", {}, f"⚠ {plan.mark}")
    return element("p", {"class": "mark", "role": "note"}, mark, f" {_MARKED}")


def _facts(plan: Plan, records: Sequence[TrialRecord]) -> Element:
    """The sweep at a glance: what it found and what it cost."""
    sweep, winner = plan.sweep, best(records, plan.sweep.metric)
    hours = sum(record.device_hours for record in records)
    found = f"{_percent(winner, sweep)} %" if winner else "–"
    images = "test images" if plan.mark else "validation images"
    protocol = _words(sweep.protocol).replace(" k ", f" {plan.n_tasks} ")
    devices = "GPUs" if sweep.resources.gpus else "CPU cores"
    counts = [
        f"{SYMBOLS[status]} {count} {status}"
        for status in SYMBOLS
        if (count := sum(record.status == status for record in records))
    ]
    return element(
        "section",
        {"class": "facts", "aria-label": "at a glance"},
        _fact("best trial", found, f"{_words(sweep.metric)}, {images}"),
        _fact("trials", f"{len(records)} of {sweep.trials}", ", ".join(counts) or "none was begun"),
        _fact("budget spent", f"{hours:.2f}", f"device-hours of {devices}, {_period(records)}"),
        _fact("protocol", protocol, _repetitions(sweep)),
    )


def _fact(name: str, value: str, more: str) -> Element:
    return element(
        "div",
        {"class": "fact"},
        element("h2", {}, name),
        element("p", {"class": "value"}, value),
        element("p", {"class": "more"}, more),
    )


def _best(plan: Plan, records: Sequence[TrialRecord]) -> Element:
    """The best configuration and how to run it."""
    winner = best(records, plan.sweep.metric)
    if winner is None:
        return _section("Best configuration", element("p", {}, "No trial has finished."))
    rows = [
        element("tr", {}, element("th", {"scope": "row"}, key), element("td", {}, str(value)))
        for key, value in winner.parameters.items()
    ]
    command = f"python -m pipeline.train --config {storage.join(plan.sweep.output, BEST)}"
    figures = [
        f"{_words(name)} {_mean(winner, name)}"
        for name in ("average_incremental_accuracy", "last_accuracy", "forgetting")
    ]
    return _section(
        f"Best configuration: trial {winner.number}",
        element("p", {}, f"{', '.join(figures)} (%). {_left_out(plan)}"),
        element("table", {"class": "plain"}, element("tbody", {}, *rows)),
        element("pre", {}, command),
    )


def _pictures(plan: Plan, records: Sequence[TrialRecord], charts: Charts) -> Iterable[Element]:
    """The charts, each with how to read it."""
    if not records:
        return
    shades = [
        element("span", {"class": f"key shade{n}"}, "lowest" if n == 0 else "")
        for n in range(N_SHADES)
    ]
    legend = element(
        "p",
        {"class": "legend"},
        "Finished trials by rank: ",
        *shades,
        element("span", {"class": "key best"}, "best"),
        element("span", {"class": "key dashed"}, "stopped or running"),
        element("span", {"class": "key dotted"}, "failed"),
    )
    yield _section(
        "Parameters and metric",
        _words_of("Each line is a trial. Point at one, or choose its row below, to follow it."),
        legend,
        _scroll(charts.parallel_coordinates(), "parallel coordinates"),
    )
    curves = charts.learning_curves(plan.n_tasks, _names(plan.sweep))
    if curves is not None:
        yield _section(
            f"{_words(plan.sweep.metric).capitalize()} after each task (%)",
            _words_of("Compare trials at the same task; one that was stopped ends early."),
            _scroll(curves, "learning curves"),
        )
    slices = charts.slices()
    if slices:
        yield _section(
            "Each parameter against the metric (%)",
            _words_of(
                "Below each axis lie the trials that did not finish. Other parameters differ as "
                "well from point to point, so a trend here is a hint and no proof."
            ),
            element("div", {"class": "slices"}, *slices),
        )


def _table(plan: Plan, records: Sequence[TrialRecord], labels: dict[str, str]) -> Element:
    """Every trial, best first."""
    sweep, n_tasks = plan.sweep, plan.n_tasks * len(plan.sweep.repetitions)
    keys = list(labels)
    names = ["rank", "trial", "status", _words(sweep.metric), *_other_figures(sweep)]
    names += ["tasks", "device-hours"]
    head = [_heading(name, name) for name in names] + [_heading(labels[key], key) for key in keys]
    winner, rows = best(records, sweep.metric), []
    for place, record in enumerate(rank(records, sweep.metric), start=1):
        cells = [
            str(place),
            str(record.number),
            f"{SYMBOLS[record.status]} {record.status}",
            _percent(record, sweep),
            *(_mean(record, name) for name in _OTHERS if name != sweep.metric),
            f"{record.tasks_done}/{n_tasks}",
            f"{record.device_hours:.3f}",
            *(
                format_value(record.parameters[key]) if key in record.parameters else "–"
                for key in keys
            ),
            record.reason or "",
        ]
        kinds = f"trial {record.status}{' best' if record is winner else ''}"
        attributes = {"class": kinds, "data-trial": record.number, "tabindex": 0}
        rows.append(element("tr", attributes, *(element("td", {}, cell) for cell in cells)))
    return _section(
        f"All {len(records)} trials, best first",
        _words_of(f"Accuracies in %, {plan.mark}." if plan.mark else "Accuracies in %."),
        _scroll(
            element(
                "table",
                {"class": "trials"},
                element("thead", {}, element("tr", {}, *head, _heading("reason", "reason"))),
                element("tbody", {}, *rows),
            ),
            "all trials",
        ),
    )


def _failures(records: Sequence[TrialRecord]) -> Element | None:
    """What went wrong, by reason."""
    trials: dict[str, list[str]] = {}
    for record in records:
        if record.status == "failed":
            trials.setdefault(record.reason or "unknown", []).append(str(record.number))
    if not trials:
        return None
    lines = [
        element("li", {}, f"{reason} ", element("small", {}, f"(trial {', '.join(numbers)})"))
        for reason, numbers in sorted(trials.items(), key=lambda item: -len(item[1]))
    ]
    return _section("What failed", element("ul", {}, *lines))


def _method(plan: Plan) -> Element:
    """How the trials were made and compared."""
    sweep = plan.sweep
    scheduler = "no trial is stopped for being weak"
    if sweep.scheduler.name == "asha":
        scheduler = (
            f"ASHA: after {sweep.scheduler.grace_tasks} tasks, and each time a trial has learned "
            f"{sweep.scheduler.reduction_factor} times as many, it goes on if it is among the best "
            f"1/{sweep.scheduler.reduction_factor}"
        )
    needs = sweep.resources
    facts = {
        "protocol": f"{sweep.protocol}: {_protocol(plan)}",
        "reported": f"{plan.reported.name} ({sweep.report or sweep.run}). {_left_out(plan)}",
        "varied run": " ".join([sweep.run, *sweep.overrides]),
        "repetitions": "; ".join(_names(sweep)),
        "metric": f"{sweep.metric}, mean over the repetitions",
        "search": f"{sweep.sampler.name}, seed {sweep.sampler.seed}, {sweep.trials} trials wanted",
        "scheduler": scheduler,
        "resources": f"{needs.gpus} GPU(s) and {needs.cpus} core(s) on {needs.nodes} node(s) each",
        "search space": "; ".join(f"{key}: {domain}" for key, domain in plan.space.domains.items()),
        "files": f"{storage.redact(sweep.output)}: {TABLE}, {BEST}, trials/",
    }
    rows = [
        child
        for name, value in facts.items()
        for child in (element("dt", {}, name), element("dd", {}, value))
    ]
    return _section("How this was made", element("dl", {}, *rows))


def _protocol(plan: Plan) -> str:
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


def _left_out(plan: Plan) -> str:
    """What becomes of the tasks that chose the configuration."""
    if plan.excluded_tasks:
        tasks = "task" if plan.excluded_tasks == 1 else f"{plan.excluded_tasks} tasks"
        text = f"{BEST} leaves the first {tasks}, which chose it, out of its summary figures."
        orders = {order for _, order in plan.sweep.repetitions} - {None}
        return text if orders <= {plan.reported.tasks.order_seed} else f"{text} {_OTHER_ORDERS}"
    if plan.sweep.protocol in ("first_task", "first_k_tasks"):
        return f"The summary figures of {BEST} include the tasks that chose it."
    return ""


def _repetitions(sweep: SweepConfig) -> str:
    count = len(sweep.repetitions)
    return f"{count} repetition{'s' if count > 1 else ''} of each: {'; '.join(_names(sweep))}"


def _names(sweep: SweepConfig) -> list[str]:
    """What each repetition differs in."""
    return [
        f"seed {seed}" + ("" if order is None else f", class order {order}")
        for seed, order in sweep.repetitions
    ]


def _period(records: Sequence[TrialRecord]) -> str:
    started = sorted(record.started for record in records if record.started)
    ended = sorted(record.ended for record in records if record.ended)
    if not started:
        return "not begun"
    first, last = (moment[:16].replace("T", " ") for moment in (started[0], (ended or started)[-1]))
    is_over = all(record.status != "running" for record in records)
    return f"{first} to {last} UTC" if is_over else f"since {first} UTC"


_OTHERS = ("average_incremental_accuracy", "last_accuracy", "forgetting")


def _other_figures(sweep: SweepConfig) -> list[str]:
    return [_words(name) for name in _OTHERS if name != sweep.metric]


def _told(record: TrialRecord, sweep: SweepConfig, labels: dict[str, str]) -> str:
    """A trial in a line."""
    parameters = (f"{labels[k]} = {format_value(v)}" for k, v in record.parameters.items())
    told = f"trial {record.number}, {record.status}: {_percent(record, sweep)} %"
    reason = [record.reason] if record.reason else []
    return " · ".join([told, *parameters, *reason])


def _percent(record: TrialRecord, sweep: SweepConfig) -> str:
    """The metric of a trial, with its spread over repetitions."""
    value, spread = record.value(sweep.metric), record.spread(sweep.metric)
    if value is None:
        return "–"
    return f"{100 * value:.1f}" + ("" if spread is None else f" ± {100 * spread:.1f}")


def _mean(record: TrialRecord, name: str) -> str:
    """A figure's mean over the last tasks of the repetitions, in %."""
    last: dict[int, TaskReport] = {report.repetition: report for report in record.reports}
    values = [getattr(report, name) for report in last.values()]
    return f"{100 * sum(values) / len(values):.1f}" if values and None not in values else "–"


def _words(name: str) -> str:
    return name.replace("_", " ")


def _words_of(text: str) -> Element:
    return element("p", {"class": "more"}, text)


def _heading(name: str, whole: str) -> Element:
    button = element("button", {"type": "button", "title": whole}, name)
    return element("th", {"scope": "col", "aria-sort": "none"}, button)


def _section(title: str, *content: Element | None) -> Element:
    return element("section", {}, element("h2", {}, title), *content)


def _scroll(content: Element, label: str) -> Element:
    """A part that may be wider than the page; the keyboard can reach and move it."""
    attributes = {"class": "scroll", "tabindex": 0, "role": "region", "aria-label": label}
    return element("div", attributes, content)

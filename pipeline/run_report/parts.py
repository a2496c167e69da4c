"""Figures and tables of a run's page, as texts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from pipeline import storage
from pipeline.config import Config
from pipeline.output.protocol import minimal_config, setting_of
from pipeline.output.results import Retention, TransferFigures
from pipeline.pages.page import Fact
from pipeline.run_report.run import ReportedRun
from pipeline.settings_file import flatten
from pipeline.text import NOT_KNOWN, format_clock, format_percent

Table = list[list[str]]


def title(run: ReportedRun) -> str:
    """The method and the names of the data."""
    index = setting_of(run.results.manifest.config, "data.index") or "unknown data"
    names = [_last_part(str(url)) for url in (index if isinstance(index, list) else [index])]
    return f"{run.results.method} on {' + '.join(names)}"


def headline(run: ReportedRun) -> str:
    """What was learned, in one sentence."""
    results, config = run.results, run.results.manifest.config
    sizes = sorted({len(names) for names in results.tasks})
    of_each = f" of {sizes[0]} each" if len(sizes) == 1 else ""
    return (
        f"Run {config.get('name', '')}: {len(run.class_names)} classes in {len(results.tasks)} "
        f"tasks{of_each}, seed {config.get('seed', 1)}."
    )


def facts(run: ReportedRun) -> list[Fact]:
    """The figures at a glance."""
    results = run.results
    images = "" if results.evaluation.split == "test" else f", {results.evaluation.split} images"
    speed = results.images_per_second
    return [
        Fact(
            "average accuracy",
            _with_unit(results.average_incremental_accuracy),
            f"mean over {results.n_learned} stages{images}",
        ),
        Fact(
            "last accuracy",
            _with_unit(results.last_accuracy),
            f"over {_n_seen(run)} classes after task {results.n_learned}{images}",
        ),
        Fact(
            "forgetting",
            _with_unit(results.forgetting),
            f"backward transfer {_with_unit(results.backward_transfer)}",
        ),
        Fact(
            "trained parameters",
            f"{results.n_trained_parameters:,}",
            "in the task with most of them",
        ),
        Fact(
            "time",
            format_clock(results.seconds),
            f"training and tests; {speed:,.0f} images/s" if speed else "training and tests",
        ),
        *_transferred(results.transfer),
        *map(_retained, results.retention),
    ]


def _transferred(figures: TransferFigures | None) -> list[Fact]:
    """The accuracy on tasks before they are learned."""
    if figures is None:
        return []
    change = _with_unit(figures.forward_transfer)
    return [Fact("transfer", _with_unit(figures.transfer), f"forward transfer {change}")]


def _retained(held_out: Retention) -> Fact:
    """The accuracy on a data set that is never learned, now and before the first task."""
    first, *stages = held_out.accuracy or [None]
    now = stages[-1] if stages else None
    return Fact(
        f"zero-shot on {_last_part(held_out.index)}",
        _with_unit(now),
        f"never learned, {held_out.classes} classes; {_with_unit(first)} before task 1",
    )


def stage_table(run: ReportedRun) -> Table:
    """A row per learned task: new classes, all classes, accuracies, forgetting."""
    stages, seen, table = run.results.stage_accuracy, 0, []
    for stage in range(run.results.n_learned):
        seen += len(run.results.tasks[stage])
        table.append(
            [
                str(stage + 1),
                str(len(run.results.tasks[stage])),
                str(seen),
                format_percent([stages.micro[stage]]),
                format_percent([stages.macro[stage]]),
                format_percent([run.forgetting[stage]]),
            ]
        )
    return table


def class_table(run: ReportedRun) -> Table | None:
    """A row per class that was learned, the lowest accuracy first; None without such figures.

    Class, task, tested images, accuracy when it was learned, accuracy now, difference.
    """
    accuracies, images = run.results.class_accuracies, run.results.class_images
    if not accuracies or not images:
        return None
    rows = []
    for number, now in enumerate(accuracies[-1]):
        if now is not None:
            task = run.task_of_class[number]
            first = accuracies[task][number] if accuracies[task] else None
            change = NOT_KNOWN if first is None else f"{100 * (now - first):+.1f}"
            cells = [run.class_names[number], str(task + 1), str(images[number])]
            cells += [format_percent([first]), format_percent([now]), change]
            rows.append((now, number, cells))
    return [cells for _, _, cells in sorted(rows)]


def time_table(run: ReportedRun) -> Table:
    """A row per learned task: seconds of training and test, images per second, waiting, size."""
    table = []
    sizes = run.results.trainable_parameters
    for stage, size in zip(run.results.diagnostics, sizes, strict=False):
        steps = [step for step in run.steps if step.task == stage.task]
        table.append(
            [
                str(stage.task + 1),
                f"{stage.train_seconds:.1f}",
                f"{stage.test_seconds:.1f}",
                f"{fmean(s.images_per_second for s in steps):,.0f}" if steps else NOT_KNOWN,
                f"{100 * fmean(s.data_wait for s in steps):.0f} %" if steps else NOT_KNOWN,
                f"{size:,}",
            ]
        )
    return table


def time_summary(run: ReportedRun) -> str:
    """Where the time went, in one sentence."""
    train = sum(stage.train_seconds for stage in run.results.diagnostics)
    test = sum(stage.test_seconds for stage in run.results.diagnostics)
    share = f" ({100 * train / (train + test):.0f} %)" if train + test else ""
    ranks = run.results.manifest.world_size
    return (
        f"Training took {train:,.1f} s{share} and tests took {test:,.1f} s, on {ranks} "
        f"rank{'s' if ranks > 1 else ''}. Loading the backbone and the launch are not included."
    )


def skipped(run: ReportedRun) -> list[str]:
    """A line for each sample and each step that was skipped."""
    lines = [
        f"sample {sample.key} in {sample.shard}: {sample.reason}"
        for sample in run.results.skipped_samples
    ]
    lines += [
        f"task {step.task + 1}, step {step.step + 1}: loss {step.loss}"
        for step in run.results.skipped_steps
    ]
    lines += [
        f"sample {sample.key} in {sample.shard} of {_last_part(held_out.index)}: {sample.reason}"
        for held_out in run.results.retention
        for sample in held_out.skipped_samples
    ]
    return lines


def settings(run: ReportedRun) -> tuple[dict[str, str], dict[str, str]]:
    """The settings that were given or differ from their defaults, and all settings."""
    defaults = _defaults()
    found = flatten(run.results.manifest.config)
    everything = {key: _show(value) for key, value in found.items()}
    changed = {
        key: text
        for key, text in everything.items()
        if key not in defaults or defaults[key] != found[key]
    }
    return changed, everything


def protocol(run: ReportedRun) -> dict[str, str]:
    """The settings that compared runs must share; the classes are in other parts of the page."""
    found = run.results.protocol
    aside = {"tasks", "known_classes", "data"}
    shown = {key: _show(value) for key, value in found.settings.items() if key not in aside}
    return {"protocol sha256": found.sha256, **shown}


def environment(run: ReportedRun) -> dict[str, str]:
    """Versions and hashes, which together with the settings reproduce the run."""
    manifest = run.results.manifest
    membership = manifest.membership.facts if manifest.membership else {}
    return {
        "output": storage.redact(run.output),
        "commit": manifest.git_commit or NOT_KNOWN,
        "ranks": str(manifest.world_size),
        **{f"{name} version": version for name, version in manifest.packages.items()},
        "configuration sha256": manifest.config_sha256,
        "index sha256": manifest.index_sha256,
        **{name.replace("_", " "): text for name, text in membership.items()},
        "backbone sha256": manifest.backbone_sha256,
    }


def learned_hashes(run: ReportedRun) -> dict[str, str]:
    """The hash of each task's file of learned tensors."""
    return {
        f"task {number}": digest or "no file"
        for number, digest in enumerate(run.results.learned_sha256 or (), start=1)
    }


def tuning(run: ReportedRun) -> str:
    """The origin of the settings, or nothing."""
    return run.results.tuning.summary if run.results.tuning else ""


def _n_seen(run: ReportedRun) -> int:
    return sum(map(len, run.results.tasks[: run.results.n_learned]))


def _with_unit(fraction: float | None) -> str:
    return NOT_KNOWN if fraction is None else f"{format_percent([fraction])} %"


def _last_part(url: str) -> str:
    """The last folder of an index's place."""
    return storage.redact(url).rstrip("/").removesuffix("/index.json").rpartition("/")[2]


def _show(value: Any) -> str:
    """A setting as text, without what may be secret in a URL."""
    value = _redacted(value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _redacted(value: Any) -> Any:
    if isinstance(value, str):
        return storage.redact(value)
    if isinstance(value, list):
        return list(map(_redacted, value))
    return value


def _defaults() -> Mapping[str, Any]:
    """The default of each setting that has one, by dotted key."""
    required = minimal_config()
    complete = flatten(Config.model_validate(required).model_dump(mode="json"))
    return {key: value for key, value in complete.items() if key not in flatten(required)}

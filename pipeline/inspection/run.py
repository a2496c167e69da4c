"""The output of a run: its figures, and its files against the hashes in ``results.json``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pipeline import storage
from pipeline.errors import PipelineError
from pipeline.inspection.findings import Findings, Part, check_file
from pipeline.output.metrics_log import NAME as METRICS
from pipeline.output.ownership import read_start
from pipeline.output.predictions import NAME as PREDICTIONS
from pipeline.output.results import CONFIG_NAME, NAME, RunResults, read_results_with_protocol
from pipeline.yaml_text import parse_yaml


def inspect_run(output: str) -> Findings:
    """The run in ``output``, finished or not.

    Raises:
        DataError: ``results.json`` or its manifest is damaged.
        StorageError: a file cannot be read.
    """
    results = read_results_with_protocol(output)
    settings, config = _read_config(output)
    parts = [config]
    if results is None:
        stage, facts = "the first task is not learned yet", _settings_facts(settings)
    else:
        settings = results.manifest.config
        stage = f"{results.n_learned} of {len(results.tasks)} tasks learned"
        facts = _facts(results)
        parts += _result_parts(output, results)
    is_finished = results is not None and results.is_finished
    n_learned = results.n_learned if results else 0
    parts += _snapshots(output, settings, is_needed=not is_finished and n_learned > 0)
    facts |= _owner(output)
    return Findings("run", storage.redact(output), stage, is_finished, facts, parts)


def _facts(results: RunResults) -> dict[str, Any]:
    manifest = results.manifest
    return {
        **_settings_facts(manifest.config),
        "classes": len(manifest.class_order),
        "tasks": len(results.tasks),
        "average_incremental_accuracy": results.average_incremental_accuracy,
        "last_accuracy": results.last_accuracy,
        "forgetting": results.forgetting,
        "backward_transfer": results.backward_transfer,
        "accuracy_after_each_task": results.stage_accuracy.micro,
        "trained_parameters": results.n_trained_parameters,
        "seconds": round(results.seconds, 1),
        "skipped_samples": len(results.skipped_samples),
        "skipped_steps": len(results.skipped_steps),
        "protocol_sha256": results.protocol.sha256,
        "config_sha256": manifest.config_sha256,
        "index_sha256": manifest.index_sha256,
        **(manifest.membership.facts if manifest.membership else {}),
        "backbone_sha256": manifest.backbone_sha256,
        "ranks": manifest.world_size,
        "commit": manifest.git_commit,
        "packages": manifest.packages,
    }


def _settings_facts(settings: dict[str, Any]) -> dict[str, Any]:
    """Some settings of a run, as any version wrote them."""

    def at(section: str, key: str) -> Any:
        values = settings.get(section)
        return values.get(key) if isinstance(values, dict) else None

    index = at("data", "index")
    urls = index if isinstance(index, list) else [index]
    return {
        "method": at("method", "name"),
        "seed": settings.get("seed"),
        "index": [storage.redact(str(url)) for url in urls],
        "arch": at("model", "arch"),
        "weights": at("model", "weights"),
        "evaluated_split": at("evaluation", "split"),
    }


def _read_config(output: str) -> tuple[dict[str, Any], Part]:
    """The settings in ``config.yaml``, as any version wrote them, and its part."""
    part = check_file(output, CONFIG_NAME)
    if part.fault:
        return {}, part
    url = storage.join(output, CONFIG_NAME)
    try:
        tree = parse_yaml(storage.read_text(url), place=storage.redact(url))
    except PipelineError as error:
        return {}, Part(CONFIG_NAME, part.bytes, fault=f"cannot be read: {error}")
    if not isinstance(tree, dict):
        return {}, Part(CONFIG_NAME, part.bytes, fault="holds no settings")
    return tree, part


def _result_parts(output: str, results: RunResults) -> Iterator[Part]:
    yield check_file(output, NAME)
    yield _metrics(output)
    for task, sha256 in enumerate(results.learned_sha256 or ()):
        if sha256 is not None:
            yield check_file(output, f"tasks/task-{task:03d}.safetensors", sha256)
    sha256 = getattr(results, "predictions_sha256", None)
    if sha256 is not None:
        yield check_file(output, PREDICTIONS, sha256)


def _metrics(output: str) -> Part:
    part = check_file(output, METRICS)
    if part.fault:
        return part
    lines = storage.read_text(storage.join(output, METRICS), most=None).splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            json.loads(line)
        except ValueError:
            return Part(METRICS, part.bytes, fault=f"has another text than JSON in line {number}")
    return Part(METRICS, part.bytes, note=f"{len(lines):,} lines")


def _snapshots(output: str, settings: dict[str, Any], *, is_needed: bool) -> list[Part]:
    """The snapshots; a fault if the run needs one to continue and has none."""
    from pipeline.inspection.snapshot import snapshot_parts  # imports torch: seconds

    given = settings.get("snapshot")
    chosen = given.get("folder") if isinstance(given, dict) else None
    folder = chosen or storage.join(output, "snapshots")
    shown = storage.redact(chosen) if chosen else "snapshots"
    try:
        parts = snapshot_parts(folder)
    except PipelineError as error:
        return [Part(shown, note=f"cannot be read: {error}")]
    if is_needed and not any(part.note is None for part in parts):
        return [*parts, Part(shown, fault="has no complete snapshot, so the run cannot continue")]
    return [Part(f"{shown}/{part.name}", part.bytes, note=part.note) for part in parts]


def _owner(output: str) -> dict[str, Any]:
    """The last start of the run."""
    start = read_start(output)
    return {f"last_start_{key}": value for key, value in start._asdict().items()} if start else {}

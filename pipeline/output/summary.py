"""The summary of a finished run, which can change without a new measurement."""

from __future__ import annotations

from pipeline import storage
from pipeline.config import Config, dump_config, with_absolute_paths
from pipeline.output.identity import config_hash
from pipeline.output.metrics import summarise
from pipeline.output.results import CONFIG_NAME, NAME, StageAccuracy, read_results
from pipeline.settings_file import parse_section


def update_summary(config: Config) -> None:
    """Update the summary of finished results to ``config``; no measurement changes.

    The summary depends on the excluded tasks and on the source of the settings (``tuning``). The
    source can be replaced but not removed.
    """
    results = read_results(config.output)
    assert results is not None, "only a finished run has a summary"
    changes = {"evaluation": config.evaluation, "tuning": config.tuning or results.tuning}
    if all(getattr(results, key) == value for key, value in changes.items()):
        return
    sections = {key: value and value.model_dump(mode="json") for key, value in changes.items()}
    recorded = parse_section(
        Config, {**results.manifest.config, **sections}, place=storage.join(config.output, NAME)
    )
    manifest = results.manifest.model_copy(
        update={
            "config": recorded.model_dump(mode="json"),
            "config_sha256": config_hash(recorded),
        }
    )
    summary = summarise(
        results.counts.correct,
        results.counts.images,
        exclude_tasks=config.evaluation.exclude_tasks,
    )
    summary["stage_accuracy"] = StageAccuracy(**summary["stage_accuracy"])
    url = storage.join(config.output, CONFIG_NAME)
    storage.write_atomically(url, dump_config(with_absolute_paths(recorded)).encode())
    updated = results.model_copy(update={**changes, "manifest": manifest, **summary})
    manifest = manifest.model_copy(update={"protocol": updated.protocol})
    updated.model_copy(update={"manifest": manifest}).write(config.output)

"""The settings of a run are frozen, and those that decide its result make its hash."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.config import (
    TUNED_ON_EVALUATION,
    Config,
    decisive_settings,
    dump_config,
    load_config,
)
from pipeline.errors import ConfigError
from pipeline.output.identity import config_hash
from pipeline.settings_file import Section

SMALLEST = """\
data: {index: shards}
tasks: {classes_per_task: 3}
model: {arch: ViT-B-32, weights: random}
method: {name: zeroshot}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(SMALLEST)
    return path


def test_smallest_file_gets_all_defaults(file):
    config = load_config(file)
    assert config.data.index == "shards" and config.tasks.classes_per_task == 3
    assert config.optim.gradient_clipping == 1.0 and config.seed == 1


def test_settings_cannot_change_after_loading(file):
    with pytest.raises(ValidationError, match="frozen"):
        load_config(file).optim.epochs = 3


def test_hash_depends_on_all_settings_that_decide_the_result(file):
    """must ignore only the place of the output and the use of the machine"""
    expected = config_hash(load_config(file))
    for override in (
        "output=x", "name=x", "log_every=3", "engine.zero_stage=1", "data.workers=0",
        "data.eval_batch=3", "data.cache.deadline_s=9", "data.cache.limit_gb=1",
        "snapshot.every_steps=3", "method.options.tppt_v.x=1",  # of another method
        "tuning={protocol: first_task, sweep: x, trials: 9}",
    ):  # fmt: skip
        assert config_hash(load_config(file, [override])) == expected, override
    for override in (
        "seed=2", "data.global_batch=3", "data.index=x", "data.tail=drop", "optim.epochs=3",
        "tasks.limit=2", "model.weights=x", "text.ensemble=true", "method.options.zeroshot.x=1",
        "data.validation_fraction=0.1", "data.train_transform=squash", "evaluation.exclude_tasks=1",
    ):  # fmt: skip
        assert config_hash(load_config(file, [override])) != expected, override


def test_settings_of_the_report_alone_are_not_decisive(file):
    """must let a run continue with other excluded tasks, or with the origin of its settings"""
    plain = decisive_settings(load_config(file))
    for override in ("evaluation.exclude_tasks=1", "tuning={protocol: first_task, sweep: x}"):
        assert decisive_settings(load_config(file, [override])) == plain
    held_out = ["evaluation.split=validation", "data.validation_fraction=0.2"]
    assert decisive_settings(load_config(file, held_out)) != plain


def test_origin_of_the_settings_is_one_line(file):
    tuning = "tuning={protocol: transfer, sweep: runs/s, trials: 12, device_hours: 3.456}"
    expected = "tuned by protocol transfer, 12 trials, 3.46 device-hours, sweep runs/s"
    assert load_config(file, [tuning]).tuning.summary == expected
    assert load_config(file).tuning is None


@pytest.mark.parametrize("note", ["null", "'chosen with care'"])
def test_settings_chosen_on_the_evaluation_sequence_need_a_note(file, note):
    tuning = f"tuning={{protocol: oracle_sequence, sweep: runs/s, note: {note}}}"
    with pytest.raises(ConfigError, match="the note must say 'tuned on the evaluation sequence'"):
        load_config(file, [tuning])
    noted = load_config(file, [tuning.replace(note, TUNED_ON_EVALUATION)])
    assert noted.tuning.summary.endswith("sweep runs/s: tuned on the evaluation sequence")
    assert load_config_text(dump_config(noted), file) == noted


def load_config_text(text: str, file: Path) -> Config:
    """The configuration in a file with this text."""
    other = file.with_name("other.yaml")
    other.write_text(text)
    return load_config(other)


def all_sections(kind: type[Section]) -> list[type[Section]]:
    """``kind`` and every section within it."""
    inner = [field.annotation for field in kind.model_fields.values()]
    sections = [a for a in inner if isinstance(a, type) and issubclass(a, Section)]
    return [kind, *(found for section in sections for found in all_sections(section))]


@pytest.mark.parametrize("kind", all_sections(Config), ids=lambda kind: kind.__name__)
def test_every_section_refuses_unknown_keys(kind):
    with pytest.raises(ValidationError) as caught:
        kind.model_validate({"unheard_of": 1})
    assert "extra_forbidden" in [error["type"] for error in caught.value.errors()]

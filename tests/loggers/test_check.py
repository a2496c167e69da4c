"""Loggers that cannot start are refused before work begins."""

from __future__ import annotations

import pytest

from pipeline.config import load_config
from pipeline.errors import ConfigError
from pipeline.loggers import check
from pipeline.training.checked_run import check_run
from tests.tiny import build_config


@pytest.mark.parametrize(
    ("entry", "output", "words"),
    [
        ("tensorboard", "s3://bucket/run", "tensorboard writes to a local folder and output is s3"),
        ({"name": "wandb", "place": "s3://bucket/run"}, "run", "wandb writes to a local folder"),
    ],
)
def test_logger_that_cannot_write_is_refused(tiny_arch, tiny_shards, entry, output, words):
    config = build_config(tiny_arch, tiny_shards, output=output, loggers=[entry])
    with pytest.raises(ConfigError, match=rf"loggers\.0.*{words}"):
        check_run(config, 1)


def test_library_that_is_missing_is_named(tiny_arch, tiny_shards, monkeypatch):
    monkeypatch.setattr(check, "find_spec", lambda name: None)
    config = build_config(tiny_arch, tiny_shards, loggers=["mlflow"])
    with pytest.raises(ConfigError, match="mlflow is not installed; `pip install mlflow-skinny`"):
        check_run(config, 1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tensorbord]", "loggers.0.name: input should be 'tensorboard', 'wandb' or 'mlflow'"),
        ("[wandb, {name: wandb, project: x}]", "loggers names one logger twice"),
        ("[{name: tensorboard, project: x}]", "loggers.0: tensorboard has no projects; take"),
        ("[{name: wandb, projct: x}]", "projct is not a known key; did you mean 'project'"),
        ("[{name: mlflow, place: 'http://me:word@host'}]", "holds credentials"),
    ],
)
def test_wrong_setting_is_explained(tmp_path, text, words):
    file = tmp_path / "run.yaml"
    file.write_text(
        "data: {index: x}\ntasks: {classes_per_task: 1}\nmodel: {arch: x}\nmethod: {name: zeroshot}"
        f"\nloggers: {text}\n"
    )
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert words in str(caught.value)

"""Every setting that is a path expands ``~`` and variables, and refuses what has no value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.config import dump_config, load_config
from pipeline.errors import ConfigError
from pipeline.paths import expand_path
from pipeline.sweep.config import load_sweep

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "configs" / "demo.yaml"
EXPANDED = ("output", "data.index", "data.feature_cache", "snapshot.folder")
SETTINGS = (*EXPANDED, "data.cache.folder")  # each node expands the last one


def value(path: str, text: str) -> str:
    """The setting ``path`` of a configuration in which it is written as ``text``."""
    found = load_config(DEMO, [f"{path}={text}"])
    for name in path.split("."):
        found = getattr(found, name)
    return str(found)


@pytest.mark.parametrize("path", EXPANDED)
def test_settings_expand_home_and_variables(path, monkeypatch):
    monkeypatch.setenv("SCRATCH_OF_TEST", "/scratch/me")
    monkeypatch.setenv("HOME", "/home/me")
    assert value(path, "$SCRATCH_OF_TEST/a") == "/scratch/me/a"
    assert value(path, "s3://b/${SCRATCH_OF_TEST}") == "s3://b//scratch/me"
    assert value(path, "~/a b") == "/home/me/a b"
    assert value(path, "relative/a~b") == "relative/a~b"


@pytest.mark.parametrize("path", SETTINGS)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("$NO_SUCH_VARIABLE/a", r"the environment variable \$NO_SUCH_VARIABLE is not set"),
        ("~nobody-of-that-name/a", "no home folder of that user"),
        ("s3://", "not a URL of this form: s3://BUCKET/FOLDER"),
        ("s3:/bucket/a", "not a URL of this form: s3://BUCKET/FOLDER"),
        ("s3:bucket", "not a URL of this form"),
        ("s3:///a", "not a URL of this form"),
        ('""', "'' is blank; give a folder, a file or a URL"),
        ('"  "', "'  ' is blank"),
    ],
)
def test_settings_refuse_paths_without_a_value(path, text, words):
    with pytest.raises(ConfigError, match=f"{path}: .*{words}"):
        load_config(DEMO, [f"{path}={text}"])


def test_every_index_of_a_list_is_expanded(monkeypatch):
    monkeypatch.setenv("WEEKS", "/weeks")
    config = load_config(DEMO, ["data.index=[$WEEKS/1, $WEEKS/2]"])
    assert config.data.index == ["/weeks/1", "/weeks/2"]


def test_expanded_settings_are_read_back_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("SCRATCH_OF_TEST", "/scratch/me")
    config = load_config(DEMO, ["output=$SCRATCH_OF_TEST/a"])
    (tmp_path / "config.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "config.yaml") == config


def test_model_files_are_expanded(monkeypatch):
    monkeypatch.setenv("MODELS", "/models")
    config = load_config(DEMO, ["model={arch: 'local-dir:$MODELS/a', weights: ~/b.pt}"])
    assert config.model.arch == "local-dir:/models/a"
    assert config.model.weights == f"{Path.home()}/b.pt"
    plain = load_config(DEMO, ["model={arch: ViT-B-16, weights: openai}"])
    assert (plain.model.arch, plain.model.weights) == ("ViT-B-16", "openai")
    with pytest.raises(ConfigError, match=r"model.arch: .*\$NO_SUCH_VARIABLE is not set"):
        load_config(DEMO, ["model.arch=local-dir:$NO_SUCH_VARIABLE/a"])


@pytest.mark.parametrize("name", ["output", "run"])
def test_settings_of_a_sweep_are_expanded(monkeypatch, name):
    monkeypatch.setenv("MODELS", "/models")
    tune = ROOT / "configs" / "tune_demo.yaml"
    assert getattr(load_sweep(tune, [f"{name}=$MODELS/a"]), name) == "/models/a"
    with pytest.raises(ConfigError, match=f"{name}: '' is blank"):
        load_sweep(tune, [f"{name}=''"])


def test_plain_paths_stay_as_they_are():
    for text in ("runs/a", "/a/b", "s3://bucket/a?b", "memory://x", "a$", "a$-b", os.sep):
        assert expand_path(text) == text

"""A run that died and continued is in each service once, under one id, with every figure."""

from __future__ import annotations

import json
import logging
import math
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pipeline.config import Config
from pipeline.loggers import background
from pipeline.loggers.points import Point, point_of
from pipeline.loggers.wandb_file import read_history
from pipeline.output.results import read_results
from tests.chaos.comparison import read_run
from tests.conftest import skip_or_fail
from tests.interruptions import changed, dying_before_step, start
from tests.tiny import build_config

try:
    import wandb
    from mlflow import MlflowClient
except ImportError as error:
    skip_or_fail(f"{error}; run `bash cluster/setup.sh --tests`", at_import=True)

TASK_STEPS = [10, 10, 4]  # 18, 18 and 8 images in batches of 4, two epochs
SECRET = "a-key-that-must-not-be-written"
pytestmark = pytest.mark.usefixtures("one_clip")


@pytest.fixture(scope="module", autouse=True)
def offline() -> Iterator[None]:
    """No server of W&B is asked; a key is in the environment, as on a user's machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_API_KEY", SECRET)
        yield


def build(arch: str, shards: str, output: Path, loggers: list[Any]) -> Config:
    return build_config(
        arch,
        shards,
        output=str(output),
        method={"name": "finetune"},
        snapshot={"every_steps": 3},
        loggers=loggers,
    )


@pytest.fixture(scope="module")
def logged(tiny_arch, tiny_shards, tmp_path_factory) -> Config:
    """A run that died two steps after a snapshot, and was started again."""
    folder = tmp_path_factory.mktemp("logged")
    mlflow = {"name": "mlflow", "project": "clip", "place": f"sqlite:///{folder}/mlflow.db"}
    wandb = {"name": "wandb", "project": "clip"}
    config = build(tiny_arch, tiny_shards, folder / "run", ["tensorboard", wandb, mlflow])
    with dying_before_step(TASK_STEPS, 18):
        assert not start(config)
    ids = run_ids(config)
    assert start(config)
    assert run_ids(config) == ids and len(ids) == 3
    return config


def run_ids(config: Config) -> dict[str, str]:
    return json.loads((Path(config.output) / "loggers.json").read_text())


@pytest.fixture(scope="module")
def points(logged) -> list[Point]:
    """Every line of the metrics as a point."""
    lines = (Path(logged.output) / "metrics.jsonl").read_text().splitlines()
    return [
        point_of(n, json.loads(line), TASK_STEPS.__getitem__)
        for n, line in enumerate(lines, start=1)
    ]


def series(points: list[Point]) -> dict[str, list[tuple[int, float]]]:
    """The steps and values of each name."""
    found: dict[str, list[tuple[int, float]]] = {}
    for point in points:
        for name, value in point.values.items():
            found.setdefault(name, []).append((point.step, value))
    return found


def assert_equal_series(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """must have the same names and steps, each once, and the same values"""
    assert found.keys() == expected.keys()
    for name, rows in expected.items():
        assert [step for step, _ in found[name]] == [step for step, _ in rows], name
        if not is_of_the_clock(name):  # a step that was done twice has the first reading
            values = [value for _, value in rows]
            assert [value for _, value in found[name]] == pytest.approx(values, rel=1e-6), name


def is_of_the_clock(name: str) -> bool:
    return name in ("images_per_second", "data_wait") or name.endswith("_seconds")


def test_points_are_the_losses_accuracies_and_diagnostics(logged, points):
    names = series(points)
    results = read_results(logged.output)
    assert [step for step, _ in names["loss/total"]] == list(range(1, 25))
    assert names["accuracy/all_seen"] == list(
        zip([10, 20, 24], results.stage_accuracy.micro, strict=True)
    )
    assert [value for _, value in names["accuracy/task_001"]] == [
        row[0] for row in results.accuracy_matrix
    ]
    gaps = [entry.modality_gap for entry in results.diagnostics]
    assert [value for _, value in names["diagnostics/modality_gap"]] == gaps
    assert [step for step, _ in names["diagnostics/feature_drift"]] == [20, 24]
    assert all(math.isfinite(value) for rows in names.values() for _, value in rows)


def test_tensorboard_reads_each_step_once(logged, points):
    """must read the points of both starts from one folder with TensorBoard's own reader"""
    folder = Path(logged.output) / "tensorboard"
    assert len(list(folder.iterdir())) == 2 and run_ids(logged)["tensorboard"] == str(folder)
    reader = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = {
        name: [(event.step, event.value) for event in reader.Scalars(name)]
        for name in reader.Tags()["scalars"]
    }
    assert_equal_series(found, series(points))


def test_wandb_has_each_line_once_in_one_run(logged, points):
    """must have two files of the same run, which `wandb sync` joins"""
    files = sorted((Path(logged.output) / "wandb").glob("offline-run-*/run-*.wandb"))
    assert {file.stem for file in files} == {f"run-{run_ids(logged)['wandb']}"}
    first, second = (list(read_history(file)) for file in files)
    rows = [*first, *second]
    assert len(first) > 0 and len(second) > 0
    assert [row["_step"] for row in rows] == [point.line for point in points]
    names = {name for row in rows for name in row if name[0] != "_"} - {"optimizer_step"}
    found = {
        name: [(row["optimizer_step"], row[name]) for row in rows if name in row] for name in names
    }
    assert_equal_series(found, series(points))


def test_mlflow_has_each_step_once_in_one_run(logged, points):
    (settings,) = (each for each in logged.loggers if each.name == "mlflow")
    client = MlflowClient(tracking_uri=settings.place)
    experiment = client.get_experiment_by_name("clip")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == run_ids(logged)["mlflow"] and run.info.status == "FINISHED"
    assert run.data.params["optim.learning_rate"] == "0.01"
    names = [name for name in run.data.metrics if name != "metrics_line"]
    found = {
        name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))
        for name in names
    }
    assert_equal_series(found, series(points))


def test_loggers_change_no_result_and_write_no_secret(logged, tmp_path):
    plain = changed(logged, output=str(tmp_path), loggers=[])
    assert start(plain)
    read_run(logged.output).assert_equals(read_run(plain.output))
    manifests = [read_results(config.output).manifest for config in (logged, plain)]
    assert len({manifest.config_sha256 for manifest in manifests}) == 1
    assert not (tmp_path / "loggers.json").exists()
    for file in Path(logged.output).parent.rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes(), file


# Loggers that fail.


def test_logger_that_fails_is_off_after_one_warning(tiny_arch, tiny_shards, tmp_path, caplog):
    """must finish the run, and the other logger must have every point"""
    (tmp_path / "file").write_text("this is no folder")
    broken = {"name": "wandb", "place": str(tmp_path / "file" / "inside")}
    config = build(tiny_arch, tiny_shards, tmp_path / "run", [broken, "tensorboard"])
    with caplog.at_level(logging.WARNING, logger="pipeline.loggers"):
        assert start(config)
    (record,) = (r for r in caplog.records if r.name.startswith("pipeline.loggers"))
    assert record.getMessage().startswith("logger wandb is off, the run continues: NotADirectory")
    reader = EventAccumulator(str(tmp_path / "run" / "tensorboard")).Reload()
    assert len(reader.Scalars("loss/total")) == 24


def test_nobody_logged_in_is_a_warning_and_no_question(
    tiny_arch, tiny_shards, tmp_path, caplog, monkeypatch
):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.delenv("WANDB_API_KEY")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    wandb.teardown()  # it has read the environment
    config = build(tiny_arch, tiny_shards, tmp_path / "run", ["wandb"])
    with caplog.at_level(logging.WARNING, logger="pipeline.loggers"):
        assert start(changed(config, tasks={"limit": 1}))
    wandb.teardown()
    assert "is off, the run continues: UsageError: No API key configured" in caplog.text


def test_server_that_never_answers_does_not_hold_the_run(
    tiny_arch, tiny_shards, tmp_path, caplog, monkeypatch
):
    """must end the run within its limit although the logger's thread waits for ever"""
    monkeypatch.setitem(background._END_S, "finished", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"http://127.0.0.1:{silent.getsockname()[1]}"
        config = build(tiny_arch, tiny_shards, tmp_path / "run", [])
        config = changed(config, loggers=[{"name": "mlflow", "place": place}])
        with caplog.at_level(logging.WARNING, logger="pipeline.loggers"):
            assert start(config)
        assert "logger mlflow is off, the run continues: it did not end in time" in caplog.text
    assert all(t.daemon for t in threading.enumerate() if t.name == "logger mlflow")


def test_logger_that_takes_no_points_is_off(tmp_path, caplog, monkeypatch):
    """must drop points instead of waiting for room in the queue"""
    monkeypatch.setattr(background, "_MAX_WAITING", 3)
    config = build("local-dir:clip", "shards", tmp_path, ["tensorboard"])
    loggers = background.RunLoggers(config)
    loggers._task_steps = TASK_STEPS.__getitem__  # its threads have not started, and take nothing
    line = {"kind": "stage", "task": 0, "micro": 0.5, "accuracy": [0.5]}
    for number in range(1, 9):
        loggers.add(number, line)
    assert caplog.text.count("is off") == 1 and "has not taken 3 points" in caplog.text

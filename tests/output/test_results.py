"""``results.json`` holds every documented key at every stage, and its manifest is sufficient."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.config import EvaluationConfig, TuningConfig, load_config, with_absolute_paths
from pipeline.errors import DataError
from pipeline.output.identity import config_hash
from pipeline.output.metrics import backward_transfer, forgetting
from pipeline.output.results import RunResults, read_results
from pipeline.output.results_builder import ResultsBuilder, Stage
from pipeline.output.summary import update_summary
from tests.stages import build_results, stage
from tests.tiny import build_config

KEYS = {
    "schema", "status", "method", "evaluation", "tuning", "tasks", "accuracy_matrix", "counts",
    "stage_accuracy", "class_accuracies", "class_images", "predictions_sha256",
    "average_incremental_accuracy", "last_accuracy", "forgetting", "backward_transfer",
    "diagnostics", "trainable_parameters", "images_per_second", "retention", "manifest",
}  # fmt: skip
MANIFEST_KEYS = {
    "config", "config_sha256", "class_order", "index_sha256", "backbone_sha256", "packages",
    "git_commit", "world_size", "identity", "protocol", "membership", "memberships",
    "train_images",
}  # fmt: skip


@pytest.fixture
def results() -> ResultsBuilder:
    """The results of a run that has learned two of three tasks."""
    return build_results([stage([3], [4]), stage([1, 9], [4, 12], speed=300.0)])


def test_every_documented_key_is_there_before_during_and_after_the_run(results):
    results.stages, stages = [], [*results.stages, stage([2, 6, 1], [4, 12, 2])]
    for number in range(4):
        results.stages = stages[:number]
        content = results.build().content()
        assert content.keys() >= KEYS and content["manifest"].keys() == MANIFEST_KEYS
        assert content["status"] == ("finished" if number == 3 else "running")
        assert len(content["accuracy_matrix"]) == len(content["diagnostics"]) == number
        json.dumps(content, allow_nan=False)


def test_figures_are_fractions_of_the_counts(results):
    content = results.build().content()
    assert content["schema"] == 2 and content["method"] == "tppt_v"
    assert content["tasks"][0] == ["kite", "red fox", "bell"]
    assert content["accuracy_matrix"] == [[0.75, None, None], [0.25, 0.75, None]]
    assert content["counts"] == {"correct": [[3], [1, 9]], "images": [[4], [4, 12]]}
    assert content["stage_accuracy"] == {"micro": [0.75, 10 / 16], "macro": [0.75, 0.5]}
    assert content["average_incremental_accuracy"] == pytest.approx((0.75 + 10 / 16) / 2)
    assert content["last_accuracy"] == 10 / 16
    assert content["forgetting"] == forgetting([[0.75], [0.25, 0.75]]) == 0.5
    assert content["backward_transfer"] == backward_transfer([[0.75], [0.25, 0.75]]) == -0.5
    assert content["trainable_parameters"] == [7, 14]
    assert content["images_per_second"] == 200.0
    assert content["diagnostics"][1] == {
        "task": 1, "anchor_cosine": 0.5, "modality_gap": 0.25, "feature_drift": 0.125,
        "train_seconds": 1.235, "test_seconds": 0.5,
        "frozen_anchor_cosine": None, "cosine_to_frozen": None,
    }  # fmt: skip


def with_classes(stage: Stage, correct: list[int], images: list[int]) -> Stage:
    """``stage`` with counts of its classes, whose sums are those of its tasks."""
    return replace(stage, class_correct=tuple(correct), class_images=tuple(images))


def test_class_accuracies_are_fractions_of_the_counts(results):
    """must be None for a class without images, and empty for a stage of an older version"""
    first, second = results.stages
    results.stages = [first]
    results.add(with_classes(second, [0, 1, 0, 2, 3, 4], [1, 3, 0, 3, 4, 5]))
    content = results.build().content()
    row = [0.0, 0.3333, None, 0.6667, 0.75, 0.8]
    assert content["class_accuracies"] == [[], row]
    assert content["class_images"] == [1, 3, 0, 3, 4, 5]
    state = json.loads(json.dumps(results.state()))
    blank = ResultsBuilder(results.method, results.tasks, results.manifest)
    blank.restore(state)
    assert blank.build().content() == content


def test_large_run_keeps_the_classes_of_its_last_stage(results, monkeypatch):
    monkeypatch.setattr("pipeline.output.results_builder._MAX_CLASS_FIGURES", 15)
    stages = [
        with_classes(results.stages[0], [1, 1, 1], [1, 2, 1]),
        with_classes(results.stages[1], [1] * 6, [2] * 6),
    ]
    results.stages = []
    for stage_ in stages:
        results.add(stage_)
    assert [len(row) for row in results.build().class_accuracies] == [0, 6]  # 3 + 6 + 7 > 15
    assert results.build().class_images == [2] * 6


def anchors(n_before: int, classes: list[int]) -> dict:
    """Cosines of ``n_before`` pairs before learning and one now, that of two classes."""
    pair = {"classes": classes, "before": 0.5, "now": 0.25}
    return {"before": [n_before, *[0] * 39], "now": [1, *[0] * 39], "closest": [pair]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"class_accuracies": [[0.5, 0.5]]}, "after task 1 are of other classes"),
        ({"class_accuracies": [[], [], []]}, "after task 3 are of other classes"),
        ({"class_accuracies": [[0.5, 1.5, None]]}, "after task 1 are not possible"),
        ({"class_images": [1] * 7}, "class_images does not count"),
        ({"class_images": [-1] * 6}, "class_images does not count"),
        ({"anchor_cosines": anchors(1, [6, 0])}, "a class that is not learned"),
        ({"anchor_cosines": anchors(2, [1, 0])}, "different numbers of pairs"),
        ({"anchor_cosines": anchors(1, [-1, 0])}, "greater than or equal to 0"),
    ],
)
def test_accuracies_of_other_classes_are_refused(results, change, words):
    content = results.build().content()
    with pytest.raises(ValueError, match=words):
        RunResults.model_validate(content | change)
    for name in ("class_accuracies", "class_images", "predictions_sha256"):  # as an older version
        del content[name]
    assert RunResults.model_validate(content).class_accuracies == []


def test_method_that_trains_nothing_has_no_speed(results):
    results.stages = [stage([3], [4], speed=None)]
    assert results.build().content()["images_per_second"] is None


def test_manifest_is_enough_to_repeat_the_run(results):
    config = build_config("local-dir:clip", "shards", method={"name": "tppt_v"})
    manifest = results.build().content()["manifest"]
    assert build_config(**_sections(manifest["config"])) == config
    assert manifest["config_sha256"] == config_hash(config)
    assert manifest["class_order"] == [4, 0, 6, 2, 5, 1, 3]
    assert manifest["world_size"] == 2
    assert {"torch", "deepspeed", "webdataset", "open_clip_torch"} <= manifest["packages"].keys()
    commit = manifest["git_commit"]
    assert commit is None or len(commit.removesuffix("+")) == 40


def _sections(config: dict) -> dict:
    return {"arch": config["model"]["arch"], "index": config["data"]["index"], **config}


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_results_are_read_as_written(results, tmp_path: Path, kind):
    output = str(tmp_path / "run") if kind == "folder" else f"memory://{tmp_path.name}"
    assert read_results(output) is None
    results.build().write(output)
    assert read_results(output) == results.build()
    results.stages = results.stages[:1]
    results.build().write(output)
    assert len(read_results(output).accuracy_matrix) == 1
    if kind == "folder":
        assert [file.name for file in (tmp_path / "run").iterdir()] == ["results.json"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 1}', '{"schema": 99, "manifest": {}}'])
def test_file_that_holds_no_results_is_refused(tmp_path: Path, text):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DataError, match="results.json: does not hold results of schema 2 "):
        read_results(str(tmp_path))


TUNING = TuningConfig(protocol="first_task", sweep="runs/sweep", trials=12, device_hours=3.5)


def test_excluded_tasks_are_measured_but_not_in_the_summary(results):
    complete = results.build().content()
    results.evaluation = EvaluationConfig(exclude_tasks=1)
    rest = results.build().content()
    assert rest["evaluation"] == EvaluationConfig(exclude_tasks=1).model_dump(mode="json")
    for key in ("accuracy_matrix", "counts", "diagnostics", "tasks"):
        assert rest[key] == complete[key]
    assert rest["stage_accuracy"] == {"micro": [None, 9 / 12], "macro": [None, 9 / 12]}
    assert rest["average_incremental_accuracy"] == rest["last_accuracy"] == 9 / 12
    assert rest["forgetting"] is None and rest["backward_transfer"] is None
    assert results.accuracy_after(1) == (10 / 16, [0.25, 0.75])  # the log shows all tasks


def test_state_restores_all_results(results):
    """must keep the source of the settings, even if the configuration no longer has it"""
    results.tuning = TUNING
    state = json.loads(json.dumps(results.state()))
    blank = ResultsBuilder(results.method, results.tasks, results.manifest)
    blank.restore(state)
    assert blank.build().content() == results.build().content()
    other = TuningConfig(protocol="transfer", sweep="runs/other")
    newer = ResultsBuilder(results.method, results.tasks, results.manifest, tuning=other)
    newer.restore(state)
    assert newer.tuning == other


def test_updated_summary_equals_that_of_a_run_with_these_settings(results, tmp_path):
    output = str(tmp_path)
    sections = {"output": output, "method": {"name": "tppt_v"}}
    plain = build_config("local-dir:clip", "shards", **sections)
    updated = build_config(
        "local-dir:clip", "shards", **sections, evaluation={"exclude_tasks": 1},
        tuning=TUNING.model_dump(),
    )  # fmt: skip
    results.manifest |= {"config": plain.model_dump(mode="json")}
    results.build().write(output)
    before = (tmp_path / "results.json").read_bytes()
    update_summary(plain)
    assert (tmp_path / "results.json").read_bytes() == before
    update_summary(updated)
    results.evaluation, results.tuning = updated.evaluation, TUNING
    manifest = {"config": updated.model_dump(mode="json"), "config_sha256": config_hash(updated)}
    results.manifest |= manifest
    results.manifest |= {"protocol": results.build().protocol.model_dump()}
    assert read_results(output) == results.build()
    assert load_config(tmp_path / "config.yaml") == with_absolute_paths(updated)
    update_summary(plain)
    again = read_results(output).content()
    assert again["last_accuracy"] == 10 / 16 and again["evaluation"]["exclude_tasks"] == 0
    assert again["tuning"] == TUNING.model_dump(), "the source of the settings cannot be removed"

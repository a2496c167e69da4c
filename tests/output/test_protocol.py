"""The protocol of a run has the settings that must match, and no place, seed or machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline import storage
from pipeline.data.index import read_index
from pipeline.output.identity import identify
from pipeline.output.protocol import compared_settings, protocol_of, setting_of
from pipeline.output.results import RunResults
from pipeline.settings_file import flatten
from tests.stages import build_results, stage
from tests.tiny import build_config, tiny_tasks

TASKS = [{"names": ["kite", "oak"], "sha256": "1" * 64}, {"names": ["bell"], "sha256": "2" * 64}]


def config_of(arch: str = "local-dir:clip", index: str = "shards", **sections: Any) -> dict:
    """A configuration as a manifest holds it."""
    return build_config(arch, index, **sections).model_dump(mode="json")


def hash_of(config: dict, tasks: list[dict] = TASKS, backbone: str = "b" * 64, **more: Any) -> str:
    """The hash of a protocol."""
    return protocol_of(config, tasks, backbone, **more)["sha256"]


def test_places_machine_seed_and_method_do_not_change_the_hash():
    other = config_of(
        "local-dir:/elsewhere/clip",
        "s3://bucket/shards",
        seed=7,
        output="memory://other",
        name="other",
        log_every=3,
        data={"workers": 5, "eval_batch": 2, "global_batch": 9, "tail": "drop"},
        method={"name": "tppt_vt"},
        optim={"epochs": 9, "learning_rate": 1e-4},
        engine={"micro_batch": 3},
    )
    assert hash_of(other) == hash_of(config_of())


def test_copy_of_shards_at_another_url_is_the_same_data(tiny_shards: str):
    copy = "memory://protocol/copied-shards"
    for file in Path(tiny_shards).iterdir():
        storage.write_atomically(storage.join(copy, file.name), file.read_bytes())
    hashes = set()
    for url in (tiny_shards, copy):
        config = build_config("local-dir:clip", url)
        identity = identify(config, read_index(url), tiny_tasks(), "b" * 64)
        hashes.add(hash_of(config.model_dump(mode="json"), identity["tasks"]))
    assert len(hashes) == 1


@pytest.mark.parametrize(
    "sections",
    [
        {"data": {"train_transform": "squash"}},
        {"data": {"eval_transform": "squash"}},
        {"data": {"validation_fraction": 0.5}},
        {"text": {"names": "raw"}},
        {"text": {"templates": ["a {}", "the {}"]}},
        {"text": {"ensemble": True}},
        {"evaluation": {"split": "validation"}, "data": {"validation_fraction": 0.5}},
        {"evaluation": {"exclude_tasks": 1}},
        {"model": {"arch": "ViT-B-16", "weights": "openai"}},
    ],
)
def test_each_setting_of_the_protocol_changes_the_hash(sections: dict[str, Any]):
    assert hash_of(config_of(**sections)) != hash_of(config_of())


def test_images_order_boundaries_weights_and_metrics_change_the_hash():
    config = config_of()
    first, second = TASKS
    hashes = [
        hash_of(config),
        hash_of(config, [{**first, "sha256": "3" * 64}, second]),
        hash_of(config, [{**first, "names": ["oak", "kite"]}, second]),
        hash_of(config, [first]),
        hash_of(config, backbone="c" * 64),
        hash_of(config, metrics_version=2),
    ]
    assert len(set(hashes)) == len(hashes)


def test_results_hold_the_protocol_that_is_derived_from_their_manifest():
    """must be equal for results of older versions, which hold none"""
    content = build_results([stage([3], [4])]).build().content()
    stored = content["manifest"]["protocol"]
    assert stored["settings"]["tasks"] == content["tasks"]
    older = {k: v for k, v in content["manifest"].items() if k != "protocol"}
    results = RunResults.model_validate({**content, "manifest": older})
    assert results.manifest.protocol is None
    assert results.protocol.model_dump() == stored


def test_results_of_another_metric_version_keep_it():
    content = build_results([stage([3], [4])]).build().content()
    content["manifest"]["protocol"]["settings"]["metrics_version"] = 5
    assert RunResults.model_validate(content).protocol.settings["metrics_version"] == 5


def test_compared_settings_have_all_options_and_nothing_of_the_protocol():
    config = config_of(method={"name": "finetune"}, optim={"epochs": 3})
    given = compared_settings(config, {}, with_defaults=False)
    complete = compared_settings(config, {}, with_defaults=True)
    assert given["optim.epochs"] == 3 and given["method.name"] == "finetune"
    assert complete["method.options.finetune.loss_classes"] == "current"
    sections = {key.partition(".")[0] for key in complete}
    assert sections == {"data", "method", "model", "optim"}
    assert [key for key in complete if key.startswith("model")] == ["model.precision"]
    assert complete.keys() >= given.keys() and "data.eval_transform" not in complete


def test_configuration_of_another_version_is_read_from_the_identity():
    config = {**config_of(), "unknown": 1}
    identity = {"settings": {"seed": 1, "optim": {"epochs": 4}}}
    expected = {"optim.epochs": 4, "model.precision": "auto"}
    assert compared_settings(config, identity, with_defaults=True) == expected


def test_absent_setting_has_its_default():
    assert setting_of({}, "text.templates") == ["a photo of a {}."]
    assert setting_of({"tasks": {"limit": 3}}, "tasks.limit") == 3
    assert setting_of({"tasks": {}}, "tasks.limit") is None
    assert flatten({"a": {"b": 1, "c": {}}, "d": None}) == {"a.b": 1, "d": None}

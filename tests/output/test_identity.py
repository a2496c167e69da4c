"""Which runs are the same, so that one may go on where the other stopped, and which are not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pipeline.config import Config
from pipeline.data.index import ShardIndex, join_indexes, read_index
from pipeline.output.identity import conflict, identify
from pipeline.tasks import grouped_class_order, split_classes
from tests.shards import draw_samples, store
from tests.tiny import build_config

INDEX = "memory://identity/shards"
OTHER = "memory://identity/other"


@pytest.fixture(scope="module")
def index() -> ShardIndex:
    return store(INDEX, draw_samples())


def identity(index: ShardIndex, backbone: str = "abc", **sections: Any) -> dict[str, Any]:
    """The identity of a run of three tasks with these settings, as a snapshot gives it back."""
    base: dict[str, Any] = {"tasks": {"class_order": "natural", "classes_per_task": 2}}
    for name, values in sections.items():
        base[name] = base.get(name, {}) | values if isinstance(values, dict) else values
    config: Config = build_config("local-dir:clip", INDEX, **base)
    order = grouped_class_order(
        config.tasks.class_order, index.group_sizes, config.tasks.order_seed
    )
    tasks = split_classes(
        order,
        index.class_names,
        classes_per_task=config.tasks.classes_per_task,
        initial_classes=config.tasks.initial_classes,
        limit=config.tasks.limit,
        group_sizes=index.group_sizes,
    )
    return json.loads(json.dumps(identify(config, index, tasks, backbone)))


ORDER = "the classes or their order differ"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"seed": 2}, "it was run with seed=1, and this is 2"),
        ({"data": {"global_batch": 2}}, "it was run with data.global_batch=4, and this is 2"),
        ({"data": {"train_transform": "squash"}}, "it was run with data.train_transform='clip', a"),
        ({"data": {"tail": "drop"}}, "it was run with data.tail='wrap', and this is 'drop'"),
        ({"method": {"name": "tppt_v"}}, "it was run with method.name='zeroshot', and this is 'tp"),
        ({"optim": {"learning_rate": 0.5}}, "it was run with optim.learning_rate=0.01, and this i"),
        ({"optim": {"epsilon": 1e-4}}, "it was run with optim.epsilon=1e-08, and this is 0.0001"),
        ({"optim": {"epochs": 3}}, "it was run with optim.epochs=2, and this is 3"),
        ({"text": {"templates": ["{}"]}}, "it was run with text.templates=['a photo of a {}.'], a"),
        ({"model": {"weights": "x"}}, "it was run with model.weights=None, and this is 'x'"),
        ({"tasks": {"class_order": [1, 0, 2, 3, 4]}}, f"{ORDER} in task 1"),
        ({"tasks": {"class_order": [0, 1, 3, 2, 4]}}, f"{ORDER} in task 2"),
        ({"tasks": {"classes_per_task": 1}}, f"{ORDER} in task 1"),
        ({"tasks": {"initial_classes": 3}}, f"{ORDER} in task 1"),
        ({"tasks": {"limit": 1}}, "it has begun 2 tasks, and these settings make 1"),
        ({"backbone": "abd"}, "its backbone had other weights"),
    ],
)
def test_other_science_is_another_run(index, sections, words):
    """must say in a few words what differs, as it was and as it is"""
    backbone = sections.pop("backbone", "abc")
    problem = conflict(identity(index), identity(index, backbone, **sections), begun=2)
    assert problem.startswith(words)


def test_other_option_of_the_method_is_another_run(index):
    method = {"name": "finetune", "options": {"finetune": {"loss_classes": "seen"}}}
    found, wanted = (identity(index, method=m) for m in (method, {"name": "finetune"}))
    words = "it was run with method.options.finetune.loss_classes='seen', and this is None"
    assert conflict(found, wanted, begun=0) == words


@pytest.mark.parametrize(
    "sections",
    [
        {"output": "memory://elsewhere", "name": "another"},
        {"log_every": 7},
        {"snapshot": {"every_steps": 1, "folder": "memory://elsewhere/snapshots"}},
        {"engine": {"zero_stage": 1, "micro_batch": 1, "timeout_s": 5}},
        {"data": {"workers": 3, "eval_batch": 1, "feature_cache": "memory://features"}},
        {"data": {"cache": {"folder": "elsewhere", "limit_gb": 1, "deadline_s": 1}}},
        {"data": {"index": "memory://a/copy"}},
        {"data": {"on_bad_sample": "skip", "bad_sample_budget": 3}},
        {"optim": {"on_nonfinite_loss": "skip", "nonfinite_loss_budget": 3}},
        {"method": {"options": {"finetune": {"loss_classes": "seen"}}}},
        {"tasks": {"order_seed": 7}},  # of a rule that is not used
    ],
    ids=str,
)
def test_machine_and_patience_may_change(index, sections):
    assert conflict(identity(index), identity(index, **sections), begun=3) is None


def test_more_tasks_may_follow_and_what_was_not_begun_may_change(index):
    short = identity(index, tasks={"limit": 1})
    assert conflict(short, identity(index), begun=1) is None
    reordered = identity(index, tasks={"class_order": [0, 1, 4, 3, 2]})
    assert conflict(identity(index), reordered, begun=1) is None
    assert conflict(identity(index), reordered, begun=2) is not None


def test_other_pictures_are_another_run(index):
    """must find one picture that differs, in training or in test, or has another number"""
    wanted = identity(index)
    for key in ("ant/002", "ant/010"):  # one of training and of test, one of training only
        other = store(OTHER, draw_samples(), damaged={key: b"another picture"})
        problem = conflict(identity(other), wanted, begun=1)
        assert problem == "the pictures of task 1 are not those it was run with"
        assert conflict(identity(other), wanted, begun=0) is None
    fewer = store(OTHER, [s for s in draw_samples() if s.key != "ant/010"])
    problem = conflict(identity(fewer), wanted, begun=3)  # all later samples have other numbers
    assert problem == "the pictures of task 1 are not those it was run with"


def test_copy_of_the_shards_is_the_same_and_so_are_shards_that_others_follow(index):
    copy = store(OTHER, draw_samples())
    assert identity(copy) == identity(index)
    late = [s for s in draw_samples(data_seed=3) if s.label < 2]
    store("memory://identity/late", late)
    joined = join_indexes([read_index(INDEX), rename(read_index("memory://identity/late"))])
    longer = identity(joined)
    assert longer["tasks"][:3] == identity(index)["tasks"]
    assert conflict(identity(index), longer, begun=3) is None


def rename(index: ShardIndex) -> ShardIndex:
    """The same shards of classes with other names."""
    return replace(index, class_names=tuple(f"late {name}" for name in index.class_names))

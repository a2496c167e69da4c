"""The settings and data that a run may change when it continues, and those that it may not."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from pipeline.config import Config, MethodConfig
from pipeline.data.index import ShardIndex, read_index
from pipeline.data.joining import join_indexes
from pipeline.methods import METHODS, resolve_options
from pipeline.methods.tppt_v import TextToImageOptions, TpptV, TpptVOptions
from pipeline.output.first_options import FIRST_OPTIONS
from pipeline.output.identity import config_hash, conflict, identify
from pipeline.tasks import grouped_class_order, split_classes
from tests.shards import draw_samples, store
from tests.tiny import build_config

INDEX = "memory://identity/shards"
OTHER = "memory://identity/other"


@pytest.fixture(scope="module")
def index() -> ShardIndex:
    return store(INDEX, draw_samples())


def identity(index: ShardIndex, backbone: str = "abc", **sections: Any) -> dict[str, Any]:
    """The identity of a run of three tasks with these settings, as a snapshot returns it."""
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


SETTING = "it was started with"
ORDER = "the classes or their order differ"


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"seed": 2}, f"{SETTING} seed=1 instead of 2"),
        ({"data": {"global_batch": 2}}, f"{SETTING} data.global_batch=4 instead of 2"),
        ({"data": {"train_transform": "squash"}}, f"{SETTING} data.train_transform='clip' instead"),
        ({"data": {"tail": "drop"}}, f"{SETTING} data.tail='wrap' instead of 'drop'"),
        ({"method": {"name": "tppt_v"}}, f"{SETTING} method.name='zeroshot' instead of 'tppt_v'"),
        ({"optim": {"learning_rate": 0.5}}, f"{SETTING} optim.learning_rate=0.01 instead of 0.5"),
        ({"optim": {"epsilon": 1e-4}}, f"{SETTING} optim.epsilon=1e-08 instead of 0.0001"),
        ({"optim": {"epochs": 3}}, f"{SETTING} optim.epochs=2 instead of 3"),
        ({"text": {"templates": ["{}"]}}, f"{SETTING} text.templates=['a photo of a {{}}.'] inst"),
        ({"model": {"weights": "x"}}, f"{SETTING} model.weights=None instead of 'x'"),
        ({"model": {"precision": "bf16"}}, f"{SETTING} model.precision='auto' instead of 'bf16'"),
        ({"tasks": {"class_order": [1, 0, 2, 3, 4]}}, f"{ORDER} in task 1"),
        ({"tasks": {"class_order": [0, 1, 3, 2, 4]}}, f"{ORDER} in task 2"),
        ({"tasks": {"classes_per_task": 1}}, f"{ORDER} in task 1"),
        ({"tasks": {"initial_classes": 3}}, f"{ORDER} in task 1"),
        ({"tasks": {"limit": 1}}, "it has started 2 tasks, and these settings give 1"),
        ({"backbone": "abd"}, "its backbone has other weights"),
    ],
)
def test_settings_that_change_figures_make_another_run(index, sections, words):
    """must name the difference with its old and its new value"""
    backbone = sections.pop("backbone", "abc")
    problem = conflict(identity(index), identity(index, backbone, **sections), started=2)
    assert problem.startswith(words)


def test_other_method_option_makes_another_run(index):
    method = {"name": "finetune", "options": {"finetune": {"loss_classes": "seen"}}}
    found, wanted = (identity(index, method=m) for m in (method, {"name": "finetune"}))
    words = f"{SETTING} method.options.finetune.loss_classes='seen' instead of 'current'"
    assert conflict(found, wanted, started=0) == words


def shortened(identity: dict[str, Any], method: dict[str, Any]) -> dict[str, Any]:
    """The identity as a run of ``fead5fe`` has recorded it: with the given options alone."""
    options = {k: v for k, v in method.get("options", {}).items() if k == method["name"]}
    settings = identity["settings"] | {"method": {"name": method["name"], "options": options}}
    return identity | {"settings": settings}


@pytest.mark.parametrize("name", FIRST_OPTIONS)
def test_option_written_out_with_its_default_makes_no_other_run(index, name):
    """must hold for a run whose record names no option, or some of them"""
    plain = {"name": name}
    for options in (FIRST_OPTIONS[name], {"classifier": {"name": "text_anchors"}}):
        written = {"name": name, "options": {name: options}}
        one, other = (identity(index, method=method) for method in (plain, written))
        assert one == other
        for found in (shortened(one, plain), shortened(other, written)):
            assert conflict(found, other, started=3) is None


def test_option_that_an_old_record_does_not_name_had_its_first_default(index):
    plain = {"name": "tppt_v"}
    changed = {"name": "tppt_v", "options": {"tppt_v": {"text_to_image": {"weight": 0.5}}}}
    words = f"{SETTING} method.options.tppt_v.text_to_image.weight=0.3 instead of 0.5"
    found = shortened(identity(index, method=plain), plain)
    assert conflict(found, identity(index, method=changed), started=0) == words


@pytest.mark.parametrize("weight", [10.0, 5.0])
def test_weight_alone_keeps_the_form_of_the_method(index, weight):
    """must differ from a run of that time, where it also set the form to 'none'"""
    plain = {"name": "tppt_vt"}
    written = {"name": "tppt_vt", "options": {"tppt_vt": {"diversity": {"weight": weight}}}}
    found = identity(index, method=plain)
    assert (conflict(found, identity(index, method=written), started=3) is None) == (weight == 10)
    of_that_time = shortened(found, written)
    words = f"{SETTING} method.options.tppt_vt.diversity.form='none' instead of 'relation_matching'"
    assert conflict(of_that_time, identity(index, method=written), started=3) == words
    same = {"weight": weight, "form": "none"}
    method = {"name": "tppt_vt", "options": {"tppt_vt": {"diversity": same}}}
    assert conflict(of_that_time, identity(index, method=method), started=3) is None


def test_later_default_changes_neither_an_old_run_nor_its_hash(index, monkeypatch):
    """must take the default of that time for an option that the record does not name"""
    plain = {"name": "tppt_v"}
    found = shortened(identity(index, method=plain), plain)
    before = config_hash(build_config("local-dir:clip", INDEX, method=plain))

    class LaterOptions(TpptVOptions):
        text_to_image: TextToImageOptions = TextToImageOptions(weight=0.9)

    monkeypatch.setattr(TpptV, "Options", LaterOptions)
    words = f"{SETTING} method.options.tppt_v.text_to_image.weight=0.3 instead of 0.9"
    assert conflict(found, identity(index, method=plain), started=3) == words
    written = {"name": "tppt_v", "options": {"tppt_v": {"text_to_image": {"weight": 0.3}}}}
    assert conflict(found, identity(index, method=written), started=3) is None
    configs = [build_config("local-dir:clip", INDEX, method=m) for m in (plain, written)]
    assert config_hash(configs[0]) != before == config_hash(configs[1])


def test_first_options_are_all_options_of_that_time():
    """must name every option without which a figure of that time could not be repeated

    ``first_layer`` came later, with the value of that time as its default.
    """
    for name, options in FIRST_OPTIONS.items():
        assert resolve_options(MethodConfig(name=name, options={name: options})).options[name]
        today = METHODS[name].Options().model_dump(mode="json")
        assert _keys(options) <= _keys(today)
    n_options = {name: len(_keys(options)) for name, options in FIRST_OPTIONS.items()}
    assert n_options == {"zeroshot": 2, "finetune": 9, "tppt_v": 16, "tppt_vt": 21}


def _keys(tree: dict[str, Any], prefix: str = "") -> set[str]:
    """The dotted keys of all values that are no sections."""
    found: set[str] = set()
    for key, value in tree.items():
        is_section = isinstance(value, dict) and value
        found |= _keys(value, f"{prefix}{key}.") if is_section else {f"{prefix}{key}"}
    return found


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("local-dir:models/clip", "local-dir:/home/models/clip", True),
        ("local-dir:/home/models/clip", "local-dir:./models/clip", True),
        ("local-dir:../models/clip", "local-dir:/models/clip", True),
        ("local-dir:models/clip", "local-dir:/home/other/clip", False),
        ("local-dir:models/clip", "local-dir:models/other", False),
        ("local-dir:/models/clip", "local-dir:/home/models/clip", False),
        ("ViT-B-16", "ViT-B-32", False),
    ],
)
def test_backbone_may_be_named_from_another_working_folder(index, old, new, same):
    """must leave the choice to the hash of the weights, if the folders can be the same"""
    found, wanted = (identity(index, model={"arch": arch}) for arch in (old, new))
    assert (conflict(found, wanted, started=1) is None) == same
    found["backbone_sha256"] = "abd"
    assert conflict(found, wanted, started=1) is not None


def test_appended_setting_that_came_later_changes_no_hash():
    plain = build_config("local-dir:clip", INDEX)
    one_task = build_config("local-dir:clip", INDEX, tasks={"appended": "one_task"})
    split = build_config("local-dir:clip", INDEX, tasks={"appended": "split"})
    assert config_hash(plain) == config_hash(split) != config_hash(one_task)


def test_precision_that_came_later_changes_neither_hash_nor_identity(index):
    plain = build_config("local-dir:clip", INDEX)
    auto, half = (
        build_config("local-dir:clip", INDEX, model={"arch": "local-dir:clip", "precision": value})
        for value in ("auto", "bf16")
    )
    assert config_hash(plain) == config_hash(auto) != config_hash(half)
    before = identity(index)
    del before["settings"]["model"]["precision"]  # as a run of the time before has recorded it
    assert conflict(before, identity(index), started=3) is None
    model = {"arch": "local-dir:clip", "precision": "bf16"}
    assert "model.precision='auto'" in conflict(before, identity(index, model=model), started=0)


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
        {"tasks": {"order_seed": 7}},  # the given order does not use it
    ],
    ids=str,
)
def test_machine_settings_and_tolerances_may_change(index, sections):
    assert conflict(identity(index), identity(index, **sections), started=3) is None


def test_tasks_may_be_added_and_unstarted_tasks_may_change(index):
    short = identity(index, tasks={"limit": 1})
    assert conflict(short, identity(index), started=1) is None
    reordered = identity(index, tasks={"class_order": [0, 1, 4, 3, 2]})
    assert conflict(identity(index), reordered, started=1) is None
    assert conflict(identity(index), reordered, started=2) is not None


def test_tasks_are_fixed_where_every_test_is_over_their_classes(index):
    """must not mix figures of two label spaces in one run"""
    united = {"evaluation": {"label_space": "all"}}
    short = identity(index, tasks={"limit": 2}, **united)
    problem = conflict(short, identity(index, **united), started=1)
    assert problem and "(2 tasks instead of 3, or other classes or templates)" in problem
    assert conflict(short, short, started=1) is None


def test_other_images_make_another_run(index):
    """must find one different image, in training or in test, and one other sample number"""
    wanted = identity(index)
    for key in ("ant/002", "ant/010"):  # the first key is in both splits, the second in train only
        other = store(OTHER, draw_samples(), damaged={key: b"another image"})
        problem = conflict(identity(other), wanted, started=1)
        assert problem == "the images of task 1 differ from those of the run"
        assert conflict(identity(other), wanted, started=0) is None
    fewer = store(OTHER, [s for s in draw_samples() if s.key != "ant/010"])
    problem = conflict(identity(fewer), wanted, started=3)  # all later samples have other numbers
    assert problem == "the images of task 1 differ from those of the run"


def test_copied_shards_and_appended_shards_keep_the_identity(index):
    copy = store(OTHER, draw_samples())
    assert identity(copy) == identity(index)
    late = [s for s in draw_samples(data_seed=3) if s.label < 2]
    store("memory://identity/late", late)
    joined = join_indexes([read_index(INDEX), rename(read_index("memory://identity/late"))])
    longer = identity(joined)
    assert longer["tasks"][:3] == identity(index)["tasks"]
    assert conflict(identity(index), longer, started=3) is None


def rename(index: ShardIndex) -> ShardIndex:
    """The same shards of classes with other names."""
    return replace(index, class_names=tuple(f"late {name}" for name in index.class_names))

"""Names, orders and lists of indexes are checked before training, and by ``--dry-run``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import dump_config
from pipeline.data.index import format_index
from pipeline.data.shard import Segment, Shard
from pipeline.errors import ConfigError, DataError
from pipeline.train import main
from pipeline.training.checked_run import Run, check_run
from tests.tiny import build_config

METHODS = ("zeroshot", "finetune", "tppt_v", "tppt_vt")


def write_index(folder: Path, names: list[str], folders: list[str] | None = None) -> str:
    """An index with one image per class and split, without the images."""
    shards = [
        Shard(f"{split}.tar", split, len(names), len(names), "", "", segments)
        for split in ("train", "test")
        for segments in [tuple(Segment(label, 1, label, 1, "") for label in range(len(names)))]
    ]
    folder.mkdir(parents=True, exist_ok=True)
    content = format_index(names, folders or [f"n{n}" for n in range(len(names))], shards)
    (folder / "index.json").write_bytes(content)
    for shard in shards:
        (folder / shard.name).write_bytes(bytes(shard.bytes))
        (folder / shard.table_name).touch()
    return str(folder)


def check(arch: str, index: str | list[str], **sections: Any) -> Run:
    tasks = {"class_order": "natural", "classes_per_task": 2, **sections.pop("tasks", {})}
    data = {"index": index, **sections.pop("data", {})}
    return check_run(build_config(arch, "unused", tasks=tasks, data=data, **sections), 1)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["crane", "bee", "crane"], "folders 'n0' and 'n2' are both called 'crane'; give every"),
        (["ant", "  ", "bee"], "the class in folder 'n1' has an empty name; give every class"),
        (["ant", "bee", "Ant"], "classes 'ant' and 'Ant' give the text tower the same tokens"),
        (["ant", "a  bee", "a bee"], "classes 'a  bee' and 'a bee' give the text tower the same"),
        (["ant", "so " * 30 + "big", "bee"], "'so so .*…': its prompt has 38 tokens and .* take"),
    ],
)  # fmt: skip
def test_names_that_the_text_tower_cannot_tell_apart_are_refused(
    tiny_arch, tmp_path, method, names, words
):
    """must hold for every method, with fixed anchors and with learned ones"""
    index = write_index(tmp_path, names)
    with pytest.raises(ConfigError, match=words):
        check(tiny_arch, index, method={"name": method})


def test_names_of_tasks_that_are_not_learned_may_be_equal(tiny_arch, tmp_path):
    index = write_index(tmp_path, ["ant", "bee", "ant", "cow"])
    with pytest.raises(ConfigError, match="both called 'ant'"):
        check(tiny_arch, index)
    assert len(check(tiny_arch, index, tasks={"limit": 1}).tasks) == 1


def test_folders_as_names_are_checked_instead(tiny_arch, tmp_path):
    """must let a user choose the folders where the readable names are equal, and the reverse"""
    index = write_index(tmp_path, ["t shirt", "t shirt"], ["t_shirt", "t shirt"])
    assert check(tiny_arch, index, text={"names": "raw"}).tasks[0].names == ("t_shirt", "t shirt")
    equal_folders = write_index(tmp_path / "b", ["a", "b"], ["x", "x"])
    with pytest.raises(ConfigError, match="are both called 'x'"):
        check(tiny_arch, equal_folders, text={"names": "raw"})


def test_every_template_of_an_ensemble_is_checked_for_its_length(tiny_arch, tmp_path):
    index = write_index(tmp_path, ["ant", "bee"])
    templates = ["a {}.", "a very" + " very" * 30 + " big {}."]
    assert check(tiny_arch, index, text={"templates": templates})
    with pytest.raises(ConfigError, match="its prompt has 37 tokens"):
        check(tiny_arch, index, text={"templates": templates, "ensemble": True})


def test_learned_context_is_counted_before_training(tiny_arch, tmp_path):
    """must hold for a class of a late task, too"""
    index = write_index(tmp_path, ["ant", "bee", "cow", "a small grey dog"])
    prompts = {"length": 20}
    method = {"name": "tppt_vt", "options": {"tppt_vt": {"textual_prompts": prompts}}}
    with pytest.raises(ConfigError, match="with 20 learned tokens its prompt has 27 tokens"):
        check(tiny_arch, index, method=method)
    assert check(tiny_arch, index, method={"name": "tppt_vt"})


def test_dry_run_checks_names_too(tiny_arch, tmp_path, capsys):
    index = write_index(tmp_path / "data", ["ant", "ANT"])
    config = build_config(tiny_arch, index, tasks={"class_order": "natural", "classes_per_task": 2})
    (tmp_path / "run.yaml").write_text(dump_config(config))
    assert main(["--config", str(tmp_path / "run.yaml"), "--dry-run"]) == 2
    assert "give the text tower the same tokens" in capsys.readouterr().err


@pytest.mark.parametrize("order", ["natural", [1, 0]])
def test_seed_of_an_order_without_a_seed_is_refused(tiny_arch, tmp_path, order):
    """must not refuse the default, which every printed configuration contains"""
    index = write_index(tmp_path, ["ant", "bee"])
    with pytest.raises(ConfigError, match=r"order_seed is 7 .*; set tasks.class_order=lamda, or"):
        check(tiny_arch, index, tasks={"class_order": order, "order_seed": 7})
    assert check(tiny_arch, index, tasks={"class_order": order, "order_seed": 1993})
    assert check(tiny_arch, index, tasks={"class_order": "lamda", "order_seed": 7})


@pytest.mark.parametrize(
    ("section", "budget", "rule"),
    [
        ("data", "bad_sample_budget", "on_bad_sample"),
        ("optim", "nonfinite_loss_budget", "on_nonfinite_loss"),
    ],
)
def test_budget_that_nothing_uses_is_refused(tiny_arch, tmp_path, section, budget, rule):
    index = write_index(tmp_path, ["ant", "bee"])
    words = f"{section}.{budget} is 3 and {section}.{rule} is 'fail', .*; set {section}.{rule}=skip"
    with pytest.raises(ConfigError, match=words):
        check(tiny_arch, index, **{section: {budget: 3}})
    assert check(tiny_arch, index, **{section: {budget: 3, rule: "skip"}})


NO_OTHER_TERM = {"text_to_image": {"weight": 0}, "diversity": {"form": "none"}}


@pytest.mark.parametrize(
    ("method", "options", "refused"),
    [
        ("finetune", {}, True),
        ("finetune", {"loss_classes": "seen"}, False),
        ("tppt_v", {}, False),
        ("tppt_v", NO_OTHER_TERM, True),
        ("tppt_vt", NO_OTHER_TERM, True),
        ("zeroshot", {}, False),
    ],
)
def test_tasks_without_a_loss_are_refused(tiny_arch, tmp_path, method, options, refused):
    index = write_index(tmp_path, ["ant", "bee", "cow"])
    sections = {"method": {"name": method, "options": {method: options}}}
    assert check(tiny_arch, index, **sections), "one class in the last task is usual"
    if refused:
        words = "3 of 3 tasks have one class, so their loss is always 0 .*; set loss_classes=seen"
        with pytest.raises(ConfigError, match=words):
            check(tiny_arch, index, tasks={"classes_per_task": 1}, **sections)
        with pytest.raises(ConfigError, match="2 of 2 tasks have one class"):
            check(tiny_arch, index, tasks={"classes_per_task": 1, "limit": 2}, **sections)
    else:
        check(tiny_arch, index, tasks={"classes_per_task": 1}, **sections)


RIDGE = {"name": "ridge", "options": {"projection": 31}}
GIVEN = {"name": "ridge", "options": {"projection": 31, "strength": 3.0}}
LINEAR = {"name": "linear"}
FIRST_ALONE = "the first task has one class and alone trains prompts .*; raise tasks.initial_class"
NO_STRENGTH = "the first task has one class, and the strength of 'ridge' .*; give `strength`"


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("acil", {}, None),
        ("ranpac", {"first_session": False}, NO_STRENGTH),
        ("ranpac", {"first_session": False, "classifier": GIVEN}, None),
        ("ranpac", {"classifier": GIVEN}, FIRST_ALONE),
        ("finetune", {"visual_prompts": {"growth": "first_task"}}, FIRST_ALONE),
        ("zeroshot", {"classifier": {"name": "sum", "options": {"second": RIDGE}}}, NO_STRENGTH),
        ("zeroshot", {"classifier": {"name": "sum", "options": {"second": GIVEN}}}, None),
        ("linear_probe", {}, "loss_classes=seen among the options of the classifier"),
        ("zeroshot", {"classifier": LINEAR | {"options": {"loss_classes": "seen"}}}, None),
    ],
)
def test_tasks_of_one_class_are_refused_where_they_teach_nothing(
    tiny_arch, tmp_path, method, options, words
):
    """must be accepted by a closed form, which adds up its statistics class by class"""
    index = write_index(tmp_path, ["ant", "bee", "cow"])
    sections = {"method": {"name": method, "options": {method: options}}}
    if words is None:
        check(tiny_arch, index, tasks={"classes_per_task": 1}, **sections)
    else:
        with pytest.raises(ConfigError, match=words):
            check(tiny_arch, index, tasks={"classes_per_task": 1}, **sections)


def test_later_tasks_of_one_class_are_accepted_if_the_first_alone_trains_prompts(
    tiny_arch, tmp_path
):
    index = write_index(tmp_path, ["ant", "bee", "cow", "dog"])
    tasks = {"classes_per_task": 1, "initial_classes": 2}
    check(tiny_arch, index, method={"name": "ranpac"}, tasks=tasks)
    with pytest.raises(ConfigError, match="2 of 3 tasks have one class"):
        check(tiny_arch, index, method={"name": "finetune"}, tasks=tasks)


def write_weeks(folder: Path) -> list[str]:
    """Three indexes of 3, 3 and 1 classes."""
    groups = ["ant bee cow".split(), "dog elk fox".split(), ["gnu"]]
    return [write_index(folder / f"week-{n}", names) for n, names in enumerate(groups)]


def names_of(run: Run) -> list[tuple[str, ...]]:
    return [task.names for task in run.tasks]


def test_each_appended_index_can_be_one_task(tiny_arch, tmp_path):
    weeks = write_weeks(tmp_path)
    split = [("ant", "bee"), ("cow",), ("dog", "elk"), ("fox",), ("gnu",)]
    assert names_of(check(tiny_arch, weeks)) == split
    one_task = [("ant", "bee"), ("cow",), ("dog", "elk", "fox"), ("gnu",)]
    assert names_of(check(tiny_arch, weeks, tasks={"appended": "one_task"})) == one_task
    limited = check(tiny_arch, weeks, tasks={"appended": "one_task", "limit": 3})
    assert names_of(limited) == one_task[:3]
    big = check(tiny_arch, weeks, tasks={"appended": "one_task", "initial_classes": 3})
    assert names_of(big) == [("ant", "bee", "cow"), ("dog", "elk", "fox"), ("gnu",)]


def test_benchmarks_may_share_a_name_where_classes_are_apart(tiny_arch, tmp_path):
    """must still refuse two classes of one index that the text tower cannot tell apart"""
    pair = [["ant", "bee"], ["bee", "elk"], ["fox", "Fox"]]
    urls = [write_index(tmp_path / str(n), names) for n, names in enumerate(pair)]
    apart = {"classes_per_task": "all", "known_classes": "apart"}
    assert names_of(check(tiny_arch, urls[:2], tasks=apart)) == [("ant", "bee"), ("bee", "elk")]
    with pytest.raises(DataError, match=r"'bee' is in more than one index"):
        check(tiny_arch, urls[:2], tasks={"classes_per_task": "all"})
    with pytest.raises(ConfigError, match="'fox' and 'Fox' give the text tower the same tokens"):
        check(tiny_arch, urls, tasks=apart)
    with pytest.raises(ConfigError, match=r"remove tasks\.initial_classes"):
        check(tiny_arch, urls, tasks={"classes_per_task": "all", "initial_classes": 1})


def test_indexes_are_listed_in_a_file_that_is_read_at_each_start(tiny_arch, tmp_path, monkeypatch):
    """must take relative paths from the folder of the file, not from the working folder"""
    weeks = write_weeks(tmp_path / "data")
    file = tmp_path / "data" / "arrivals.yaml"
    file.write_text(f"- week-0\n- {weeks[1]}\n")
    tasks = {"appended": "one_task"}
    found = check(tiny_arch, f"@{file}", tasks=tasks)
    assert found.index.sha256 == check(tiny_arch, weeks[:2], tasks=tasks).index.sha256
    file.write_text(f"- week-0\n- {weeks[1]}\n- ./week-2\n")
    monkeypatch.chdir(tmp_path)
    again = check(tiny_arch, "@data/arrivals.yaml", tasks=tasks)
    assert names_of(again) == names_of(check(tiny_arch, weeks, tasks=tasks))
    assert names_of(again)[: len(found.tasks)] == names_of(found)
    file.write_text("- week-1\n")
    mixed = check(tiny_arch, [weeks[0], f"@{file}"], tasks=tasks)
    assert names_of(mixed) == names_of(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "arrivals.yaml: must hold `- text` lines, found None; correct it"),
        ("[]", "must hold `- text` lines, found"),
        ("- 3", "must hold `- text` lines, found .3."),
        ("weeks: [a]", "must hold `- text` lines, found .'weeks'"),
        ("- [", "arrivals.yaml: not valid YAML"),
        ("- nowhere", "data.index: .*nowhere/index.json: there is no such file; give the folder"),
        ("- '@arrivals.yaml'", "an index of a list cannot be another list; write its entries"),
        ("- $NO_SUCH_VARIABLE/a", r"data.index: @.*: the environment variable .* is not set"),
        ("- s3://key:hush@bucket/a", "arrivals.yaml: .*holds credentials"),
        (None, "arrivals.yaml: there is no such file; give"),
    ],
)
def test_wrong_list_of_indexes_is_refused(tiny_arch, tmp_path, text, words):
    file = tmp_path / "arrivals.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=words) as refused:
        check(tiny_arch, f"@{file}")
    assert "hush" not in str(refused.value)
    with pytest.raises(ConfigError, match="'' is blank; give a folder"):
        check(tiny_arch, "@")


def test_configuration_of_an_output_holds_in_every_working_folder(
    tiny_arch, tmp_path, monkeypatch, capsys
):
    """must name the same run, whatever the folder in which it is read"""
    from pipeline.config import load_config, with_absolute_paths

    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip").symlink_to(tiny_arch.removeprefix("local-dir:"))
    config = build_config(
        "local-dir:clip", "unused", output="runs/a", snapshot={"folder": "snapshots"},
        data={"index": ["shards", "@weeks.yaml", "s3://bucket/x", "/a"], "feature_cache": "f"},
    )  # fmt: skip
    found = with_absolute_paths(config)
    assert found.data.index == [
        f"{tmp_path}/shards", f"@{tmp_path}/weeks.yaml", "s3://bucket/x", "/a"
    ]  # fmt: skip
    assert found.model.arch == f"local-dir:{tmp_path}/clip"
    assert found.output == f"{tmp_path}/runs/a" and found.data.feature_cache == f"{tmp_path}/f"
    assert found.snapshot.folder == f"{tmp_path}/snapshots"
    assert found.data.cache.folder == config.data.cache.folder == "~/.cache/tppt-shards"
    (tmp_path / "again.yaml").write_text(dump_config(found))
    assert with_absolute_paths(load_config(tmp_path / "again.yaml")) == found
    assert json.loads(json.dumps(found.model_dump(mode="json")))

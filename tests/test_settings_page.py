"""docs/SETTINGS.md lists every setting of the code with its default and meaning."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest

from pipeline.bench.settings import BenchSizes
from pipeline.classifiers import CLASSIFIERS
from pipeline.config import Config, load_config
from pipeline.methods import METHODS
from pipeline.settings import Group, main, method_groups, run_groups
from pipeline.settings_file import parse_section
from pipeline.settings_table import list_settings
from pipeline.train import parse_arguments
from pipeline.yaml_text import format_yaml

FILE = Path(__file__).parents[1] / "docs" / "SETTINGS.md"
HEAD = """\
# Settings

Every setting with its values, default and meaning, from the code. Write it into a configuration as
YAML, or on the command line as `key=value`. `required` means that there is no default. The same
lists in a terminal: `tppt settings`, `tppt settings optim tppt_vt`.

A shell completes the keys: [COMMANDS.md](COMMANDS.md#completion).
"""
SMALLEST = {
    "data": {"index": "shards"},
    "tasks": {"classes_per_task": 3},
    "model": {"arch": "ViT-B-32"},
    "method": {"name": "zeroshot"},
}


@cache
def groups() -> dict[str, list[Group]]:
    """The groups of settings below each heading of the page."""
    of_run = {group.name: group for group in run_groups()}
    sweep = of_run.pop("sweep")
    of_method = [group for group in method_groups() if "METHOD" not in group.prefix]
    of_classifier = [group for group in method_groups() if "METHOD" in group.prefix]
    sizes = Group("bench", "Sizes of benchmarks, beside the settings of a run.", "", [])
    sizes.settings.extend(list_settings(BenchSizes, prefix="bench."))
    return {
        "Of a run": list(of_run.values()),
        "Of methods": of_method,
        "Of classifiers": of_classifier,
        "Of a sweep": [sweep],
        "Of a benchmark": [sizes],
    }


def table(group: Group) -> Iterable[str]:
    """The lines of one group."""
    yield f"\n### {group.name}\n\n{group.about}"
    if group.prefix and group.settings:
        yield f"Keys start with `{group.prefix}`."
    if group.settings:
        yield "\n| setting | values | default | meaning |\n|---|---|---|---|"
    for each in group.settings:
        cells = (f"`{each.key}`", each.type, f"`{each.default}`", each.meaning)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def current_page() -> str:
    """The content that the page must have."""
    lines = [HEAD.rstrip()]
    for heading, members in groups().items():
        lines.append(f"\n## {heading}")
        for group in members:
            lines += table(group)
    return "\n".join(lines) + "\n"


def all_groups() -> list[Group]:
    return [group for members in groups().values() for group in members]


def test_page_is_current():
    assert FILE.read_text() == current_page(), (
        "docs/SETTINGS.md is out of date; write it anew with `python -m tests.test_settings_page`"
    )


def test_every_setting_has_a_meaning():
    """must be a comment beside the field or above it"""
    missing = [
        f"{setting.owner.__module__}.{setting.owner.__name__}.{setting.name}"
        for group in all_groups()
        for setting in group.settings
        if not setting.meaning
    ]
    assert missing == []


def value_at(section: object, key: str) -> object:
    for name in key.split("."):
        section = getattr(section, name)
    return section


def test_listed_defaults_are_those_that_a_run_gets():
    config = parse_section(Config, SMALLEST, place="here")
    listed = [
        each
        for each in list_settings(Config)
        if each.value is not ... and not each.key.startswith("tuning.") and "[]." not in each.key
    ]
    assert len(listed) > 40
    assert [e.key for e in listed if value_at(config, e.key) != e.value] == []


@pytest.mark.parametrize("name", METHODS)
def test_listed_options_are_those_that_a_method_gets(name):
    """must include sections whose defaults a method changes, as the diversity of tppt_vt"""
    options = METHODS[name].Options()
    (group,) = (group for group in method_groups() if group.name == name)
    assert group.settings
    assert [e.key for e in group.settings if value_at(options, e.key) != e.value] == []


def test_every_choice_is_accepted(tmp_path):
    """must hold for the values that a shell completes"""
    file = tmp_path / "run.yaml"
    file.write_text(format_yaml(SMALLEST))
    with_choices = [e for e in list_settings(Config) if e.choices and "tuning." not in e.key]
    overrides = [f"{e.key}={each}" for e in with_choices for each in e.choices if "[" not in e.key]
    assert {"engine.recompute=true", "engine.zero_stage=1", "data.tail=drop"} <= set(overrides)
    needed = ["data.validation_fraction=0.2", "tasks.appended=one_task"]
    for override in overrides:
        load_config(file, [*needed, "evaluation.label_space=task", override])


@pytest.mark.parametrize(
    ("names", "shown", "hidden"),
    [
        (["optim"], "optim.warmup_steps", "data.index"),
        (["tppt_vt"], "textual_prompts.initial_words", "optim.epochs"),
        (["ridge", "sweep"], "scheduler.grace_tasks", "optim.epochs"),
        ([], "log_every", "no such key"),
    ],
)
def test_command_lists_what_is_named(capsys, names, shown, hidden):
    assert main(names) == 0
    out = capsys.readouterr().out
    assert shown in out and hidden not in out


def test_unknown_name_is_refused_with_a_similar_one(capsys):
    assert main(["optm"]) == 2
    assert capsys.readouterr().err == "error: 'optm' has no settings; did you mean 'optim'?\n"


def test_train_lists_methods_and_classifiers(capsys):
    with pytest.raises(SystemExit) as end:
        parse_arguments(["--list-methods"])
    out = capsys.readouterr().out
    assert end.value.code == 0
    assert [name for name in (*METHODS, *CLASSIFIERS) if f"{name}: " not in out] == []
    assert "λ_t" in out and "optim.epochs" not in out


if __name__ == "__main__":
    FILE.write_text(current_page())

"""The identity of a run: a run continues only where a run of the same identity stopped.

A run may continue on other machines, with further tasks after its last one, and with other
tolerances for errors. It may not continue with another method, backbone, batch or image, nor with
other tasks where each test is over the classes of all tasks.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from pipeline.config import Config, MethodConfig, decisive_settings
from pipeline.data.index import ShardIndex
from pipeline.output.first_options import FIRST_OPTIONS, recorded_options, resolved_options
from pipeline.settings_file import flatten
from pipeline.tasks import Task, known_names, labels_with_images

# A tolerance decides whether a run ends at an error; it does not change the steps before.
_TOLERANCES = {
    "data": ("on_bad_sample", "bad_sample_budget"),
    "optim": ("on_nonfinite_loss", "nonfinite_loss_budget"),
}
# Settings of the tasks that came later, with the value of the runs before.
_LATER_TASKS = {"appended": "split", "known_classes": "refuse"}
# Other settings that came later, with the value of the runs before.
_LATER_SETTINGS = {"model.precision": "auto", "evaluation.label_space": "seen"}
_PLACES = ("model.arch", "model.weights")  # may name a folder or a file


def identify(
    config: Config, index: ShardIndex, tasks: Sequence[Task], backbone_sha256: str
) -> dict[str, Any]:
    """Settings, backbone and data of each task, in plain JSON types.

    All options of the method are written out, so that a later default makes no other run.
    Templates that depend on the index are part of the tasks, so that an index can be appended.
    """
    settings = decisive_settings(config)
    by_index = len(config.text.template_lists) > 1
    if by_index:
        del settings["text"]["templates"]
    settings["method"]["options"] = {config.method.name: resolved_options(config.method)}
    for section, names in _TOLERANCES.items():
        settings[section] = {k: v for k, v in settings[section].items() if k not in names}
    return {
        "settings": settings,
        "backbone_sha256": backbone_sha256,
        "tasks": [
            {
                "names": list(task.names),
                **({"known_classes": known} if known else {}),
                **({"templates": config.text.templates_of(task.group)} if by_index else {}),
                "sha256": index.digest(labels, group=task.group),
            }
            for task, known, labels in zip(
                tasks, known_names(tasks), labels_with_images(tasks), strict=True
            )
        ],
    }


def config_hash(config: Config) -> str:
    """SHA-256 in hex of all settings that decide the figures, tasks and data included.

    It is the same whether an option that has its first default is written out or not.
    """
    settings, method = decisive_settings(config), config.method
    for key, value in _LATER_SETTINGS.items():
        section, _, name = key.partition(".")
        if settings[section][name] == value:
            del settings[section][name]
    defaults = FIRST_OPTIONS.get(method.name) or resolved_options(MethodConfig(name=method.name))
    options = _without(resolved_options(method), defaults)
    settings["method"]["options"] = {method.name: options} if options else {}
    tasks = config.tasks.model_dump(mode="json")
    content = {
        **settings,
        "tasks": {k: v for k, v in tasks.items() if (k, v) not in _LATER_TASKS.items()},
        "exclude_tasks": config.evaluation.exclude_tasks,
        "index": config.data.index,
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def conflict(found: Mapping[str, Any], wanted: Mapping[str, Any], *, started: int) -> str | None:
    """The reason why the run ``found`` cannot continue as ``wanted``, or None if it can.

    The run has started the first ``started`` tasks, which must be equal; later tasks may differ.
    """
    before, now = _comparable(found["settings"]), _comparable(wanted["settings"])
    for key in sorted((before.keys() | now.keys()) - {"text.templates"}):
        old, new = before.get(key), now.get(key)
        if old != new and not (key in _PLACES and _is_same_place(old, new)):
            return f"it was started with {key}={old!r} instead of {new!r}"
    if found["backbone_sha256"] != wanted["backbone_sha256"]:
        return "its backbone has other weights"
    names = [[task["names"] for task in each["tasks"]] for each in (found, wanted)]
    templates = list(map(_templates, (found, wanted)))
    is_same = names[0] == names[1] and templates[0] == templates[1]
    if now["evaluation.label_space"] == "all" and not is_same:
        return (
            "evaluation.label_space=all has the classes of all tasks, and its tasks were others "
            f"({len(names[0])} tasks instead of {len(names[1])}, or other classes or templates)"
        )
    if started > len(wanted["tasks"]):
        return (
            f"it has started {started} tasks, and these settings give {len(wanted['tasks'])}; take "
            "data.index and tasks from its config.yaml"
        )
    pairs = zip(found["tasks"][:started], wanted["tasks"], strict=False)
    for number, (old, new) in enumerate(pairs, start=1):
        if any(old.get(key, []) != new.get(key, []) for key in ("names", "known_classes")):
            return f"the classes or their order differ in task {number}"
        if old["sha256"] != new["sha256"]:
            return f"the images of task {number} differ from those of the run"
        one, other = (of_task[number - 1] for of_task in templates)
        if one != other:
            return f"it was started with text.templates={one!r} instead of {other!r}"
    return None


def _comparable(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key, with all options of the method."""
    method = settings["method"]
    options = {method["name"]: recorded_options(method)}
    return {**_LATER_SETTINGS, **flatten({**settings, "method": {**method, "options": options}})}


def _templates(identity: Mapping[str, Any]) -> list[list[str]]:
    """The templates of each task."""
    of_all = identity["settings"].get("text", {}).get("templates", [])
    return [task.get("templates", of_all) for task in identity["tasks"]]


def _is_same_place(old: str | None, new: str | None) -> bool:
    """Whether two paths can be those of one folder or file, seen from two working folders.

    The hash of the weights decides whether it is the same backbone.
    """
    if old is None or new is None:
        return False
    one, other = (
        PurePath(os.path.normpath(text.removeprefix("local-dir:"))) for text in (old, new)
    )
    if one.is_absolute() == other.is_absolute():
        return one == other
    relative, absolute = (other, one) if one.is_absolute() else (one, other)
    n_parts = len([part for part in relative.parts if part != ".."])
    return absolute.parts[len(absolute.parts) - n_parts :] == relative.parts[-n_parts:]


def _without(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """``options`` without those that equal ``defaults``."""
    kept: dict[str, Any] = {}
    for key, value in options.items():
        if key in defaults and value == defaults[key]:
            continue
        both = isinstance(value, Mapping) and isinstance(defaults.get(key), Mapping)
        kept[key] = _without(value, defaults[key]) if both else value
    return kept

"""The protocol of a run: the settings that must be equal for a fair comparison of figures.

The protocol has the data by content, not by place: a copy on object storage is the same data. All
other decisive settings are compared (method, optimizer, batch) or repeated (seed).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.config import Config, decisive_settings
from pipeline.settings_file import flatten
from pipeline.templates import TextConfig

METRICS_VERSION = 1  # raised when a figure of pipeline.output.metrics gets another definition
# Of a backbone in a folder: the name of the folder does not matter, its content does.
_FOLDER = "local-dir"
_CODE = re.compile(r'"\w[\w.]*:\w+"')  # package.module:Class

# Settings of a configuration that belong to the protocol as they are.
PROTOCOL_SETTINGS = (
    "data.train_transform",
    "data.eval_transform",
    "data.validation_fraction",
    *(f"text.{name}" for name in TextConfig.model_fields),
    "evaluation.split",
    "evaluation.exclude_tasks",
)
# The same of settings that came later, with the value of the runs before; it is left out.
LATER_SETTINGS = {"evaluation.label_space": "seen"}
# Settings that decide whether a run ends at an error, not its figures.
_TOLERANCES = (
    "data.on_bad_sample",
    "data.bad_sample_budget",
    "optim.on_nonfinite_loss",
    "optim.nonfinite_loss_budget",
)


def protocol_of(
    config: Mapping[str, Any],
    tasks: Sequence[Mapping[str, Any]],
    backbone_sha256: str,
    *,
    metrics_version: int = METRICS_VERSION,
) -> dict[str, Any]:
    """The protocol as ``{"sha256": …, "settings": …}``, in plain JSON types.

    ``config`` are the settings of a run, by default those that it lacks. ``tasks`` have the
    ``names`` of their new classes in order, those of their ``known_classes`` if they have further
    images of any, their ``templates`` if these depend on the index, and the ``sha256`` of their
    images, as in the run identity.
    """
    arch = setting_of(config, "model.arch")
    known = [list(task.get("known_classes", ())) for task in tasks]
    settings = {
        "tasks": [list(task["names"]) for task in tasks],
        **({"known_classes": known} if any(known) else {}),
        "data": [task["sha256"] for task in tasks if "sha256" in task],
        "model.arch": _FOLDER if arch.startswith(f"{_FOLDER}:") else arch,
        "backbone_sha256": backbone_sha256,
        **{key: setting_of(config, key) for key in PROTOCOL_SETTINGS},
        "metrics_version": metrics_version,
    }
    templates = [task["templates"] for task in tasks if "templates" in task]
    if templates:
        is_one = all(each == templates[0] for each in templates)
        settings["text.templates"] = templates[0] if is_one else templates
    later = {key: setting_of(config, key) for key in LATER_SETTINGS}
    settings |= {key: value for key, value in later.items() if value != LATER_SETTINGS[key]}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    return {"sha256": digest.hexdigest(), "settings": settings}


def compared_settings(
    config: Mapping[str, Any], identity: Mapping[str, Any], *, with_defaults: bool
) -> dict[str, Any]:
    """The settings in which compared runs may differ, by dotted key; equal for all seeds.

    ``with_defaults`` adds the options of the method that are not given, which imports the method.
    Left out: the protocol, the seed, the tasks, and the settings of the machine.
    """
    try:
        settings = decisive_settings(Config.model_validate(config))
    except ValidationError:  # of a version with other settings
        settings = dict(identity.get("settings", {}))
    aside = {"seed", "tasks", "model", "text", "evaluation"}
    compared = {key: value for key, value in settings.items() if key not in aside}
    compared["model"] = {"precision": settings.get("model", {}).get("precision", "auto")}
    if with_defaults and "method" in compared:
        compared["method"] = {**compared["method"], "options": _options(compared["method"])}
    left_out = {*PROTOCOL_SETTINGS, *_TOLERANCES}
    return {key: value for key, value in flatten(compared).items() if key not in left_out}


def default_settings(method: str, *, with_defaults: bool) -> dict[str, Any]:
    """:func:`compared_settings` of a run that gives only the settings without a default."""
    return compared_settings(minimal_config(method), {}, with_defaults=with_defaults)


def minimal_config(method: str = "-") -> dict[str, Any]:
    """The settings that have no default, with placeholders as values."""
    return {
        "data": {"index": "-"},
        "tasks": {"classes_per_task": 1},
        "model": {"arch": "-"},
        "method": {"name": method},
    }


def setting_of(config: Mapping[str, Any], key: str) -> Any:
    """The setting at a dotted key, or its default where an older configuration lacks it."""
    kind: Any = Config
    value: Any = config
    for name in key.split("."):
        field = kind.model_fields[name]
        value = value.get(name) if isinstance(value, Mapping) else getattr(value, name, None)
        if value is None and not field.is_required():
            value = field.get_default(call_default_factory=True)
        kind = field.annotation
    return value.model_dump(mode="json") if isinstance(value, BaseModel) else value


def _options(method: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the method by its name, complete with defaults for a method of this package.

    Those of another package remain as they are: no code is imported because a result names it.
    """
    from pipeline.output.first_options import recorded_options  # imports torch: seconds

    name = method["name"]
    given = method.get("options", {}).get(name, {})
    if _CODE.search(json.dumps([name, given])):
        return {name: given}
    return {name: recorded_options(method)}

"""Settings as frozen, checked values, read from YAML files; the only door to yaml.

A module declares its settings as a :class:`Section`. A file is read in this order: the files that
its key ``base`` names, then the file itself, then ``key.sub=value`` overrides. The later value
replaces the earlier one, section by section.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.errors import ConfigError
from pipeline.text import did_you_mean

_CREDENTIALS = re.compile(r"://[^/\s]*@|[?&](x-amz-\w+|sig|signature|token)=", re.IGNORECASE)


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SectionT = typing.TypeVar("SectionT", bound=Section)


def load_section(kind: type[SectionT], path: str | Path, overrides: Sequence[str] = ()) -> SectionT:
    """The settings of a YAML file: its bases first, then the file, then the overrides.

    Raises:
        ConfigError: a file is missing or not YAML, a key is unknown, a value has the wrong type.
    """
    tree = _read_tree(Path(path), seen=())
    for override in overrides:
        _apply_override(tree, override)
    return parse_section(kind, tree, place=str(path))


def parse_section(kind: type[SectionT], tree: Mapping[str, Any], *, place: str) -> SectionT:
    """``tree`` as a checked ``kind``; every error message begins with ``place``.

    Raises:
        ConfigError: the message names the first wrong key, the value found and the value wanted.
    """
    _refuse_credentials(tree, place)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(f"{place}: {_explain(kind, error)}") from None


def dump_section(section: Section) -> str:
    """All settings as YAML; :func:`load_section` reads the same value from it."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, width=100)


def _read_tree(path: Path, seen: tuple[Path, ...]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `base` leads back to this file; remove the circle")
    try:
        tree = yaml.load(path.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
        raise ConfigError(f"{path}: not valid YAML: {problem}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines, found {type(tree).__name__}")
    bases = tree.pop("base", [])
    bases = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: `base` must name a file or a list of files, found {bases!r}")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = _merge(merged, _read_tree(path.parent / base, (*seen, path.resolve())))
    return _merge(merged, tree)


def _refuse_credentials(value: Any, place: str, key: str = "") -> None:
    """Refuse secrets: settings are copied into results and logs."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _refuse_credentials(inner, place, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            _refuse_credentials(inner, place, key)
    elif isinstance(value, str) and _CREDENTIALS.search(value):
        raise ConfigError(
            f"{place}: {key}: holds credentials; leave them out of the URL and set AWS_PROFILE, or "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, in the environment"
        )


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a repeated key: YAML would drop the first of the two values."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} is written twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _merge(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """``below``, with the values of ``above`` in place of its own, section by section."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if not separator or not dotted:
        raise ConfigError(f"override {override!r}: write key=value, for instance seed=2")
    *path, last = dotted.split(".")
    node = tree
    for key in path:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {key!r} holds a value, not a section")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(f"override {override!r}: {text!r} is not a YAML value") from None


def _explain(kind: type[Section], error: ValidationError) -> str:
    """One line about the first wrong key."""
    errors = error.errors()
    path = _path_of(errors[0])
    within = (each for each in errors if path == _path_of(each)[: len(path)])
    first = max(within, key=lambda each: len(_path_of(each)))  # the innermost is the most precise
    path = _path_of(first)
    place = ".".join(path) or "configuration"
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(path[-1], _fields_at(kind, path[:-1]))
        return f"{place} is not a known key; {hint}"
    if first["type"] == "missing":
        return f"{place} is missing; it must be given"
    if first["type"] == "value_error":
        problem = str(first["ctx"]["error"])
        return f"{place}: {problem}" if path and path[0] not in problem else problem
    if first["type"] in ("model_type", "dict_type"):
        return f"{place}: must hold `key: value` lines, found {first['input']!r}"
    # A setting of several allowed types has one message for each type.
    messages = [each["msg"] for each in errors if _path_of(each) == path]
    wanted = ", or ".join(text[0].lower() + text[1:] for text in dict.fromkeys(messages))
    return f"{place}: {wanted}, found {first['input']!r}"


def _path_of(error: Any) -> list[str]:
    """The keys that lead to the wrong value; pydantic adds types such as ``list[int]``."""
    return [str(part) for part in error["loc"] if "[" not in str(part)]


def _fields_at(kind: type[BaseModel], path: Sequence[str]) -> list[str]:
    """The field names of the section at ``path``."""
    for key in path:
        field = kind.model_fields.get(key)
        inner = _section_of(field.annotation) if field else None
        if inner is None:
            return list(kind.model_fields)
        kind = inner
    return list(kind.model_fields)


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section in a type annotation, or None."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(filter(None, map(_section_of, typing.get_args(annotation))), None)
    return None

"""Settings as frozen, checked values, read from YAML files.

A module declares its settings as a :class:`Section`. A file is read in this order: the files that
its key ``base`` names, then the file itself, then ``key.sub=value`` overrides. The later value
replaces the earlier one, section by section.
"""

from __future__ import annotations

import re
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline.credentials import LEAVE_OUT, contains_credentials, scrub
from pipeline.errors import ConfigError
from pipeline.text import did_you_mean
from pipeline.yaml_text import MAX_BYTES, MAX_DEPTH, format_yaml, parse_yaml

_MAX_SHOWN = 80  # characters of a value in a message
_MAX_FILES = 100  # files that one file may be based on


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


SectionT = typing.TypeVar("SectionT", bound=Section)


def load_section(kind: type[SectionT], path: str | Path, overrides: Sequence[str] = ()) -> SectionT:
    """The settings of a YAML file: its bases first, then the file, then the overrides.

    Raises:
        ConfigError: a file is missing or not YAML, a key is unknown, a value has the wrong type.
    """
    tree = _read_tree(Path(path), seen=(), read=[])
    of_file = deepcopy(tree)
    for override in overrides:
        _apply_override(tree, override)

    def place_of(key: Sequence[str]) -> str:
        for override in reversed(overrides):
            path_of_override = override.partition("=")[0].split(".")
            if all(a == b for a, b in zip(path_of_override, key, strict=False)) and key:
                return f"override {_show(override)}"
        if overrides and not key and _is_valid(kind, of_file):
            return f"{path} with {' '.join(map(_show, overrides))}"
        return str(path)

    return _parse(kind, tree, place_of)


def parse_section(kind: type[SectionT], tree: Mapping[str, Any], *, place: str) -> SectionT:
    """``tree`` as a checked ``kind``; every error message begins with ``place``.

    Raises:
        ConfigError: the message names the first wrong key, the value found and the value wanted.
    """
    return _parse(kind, tree, lambda key: place)


def parse_list(text: str, *, place: str) -> list[str]:
    """The lines ``- text`` of a YAML text.

    Raises:
        ConfigError: the text is something else, or an entry holds credentials.
    """
    entries = parse_yaml(text, place=place)
    if (
        not isinstance(entries, list)
        or not entries
        or not all(isinstance(entry, str) for entry in entries)
    ):
        raise ConfigError(f"{place}: must hold `- text` lines, found {_show(entries)}; correct it")
    _check_texts(entries, lambda key: place)
    return entries


def dump_section(section: Section) -> str:
    """All settings as YAML; :func:`load_section` reads the same value from it."""
    return format_yaml(section.model_dump(mode="json"))


def overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``below``, with the values of ``above`` in place of its own, section by section."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = overlay(merged[key], value) if both else value
    return merged


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted key."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        inner = isinstance(value, Mapping)
        flat |= flatten(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return flat


def section_of(annotation: Any) -> type[Section] | None:
    """The section in a type annotation, or None."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
        return next(filter(None, map(section_of, typing.get_args(annotation))), None)
    return None


def _parse(
    kind: type[SectionT], tree: Mapping[str, Any], place_of: Callable[[Sequence[str]], str]
) -> SectionT:
    """``tree`` as a ``kind``; ``place_of`` gives the origin of the value at a key."""
    _check_texts(tree, place_of)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        key, problem = _explain(kind, error)
        raise ConfigError(f"{place_of(key)}: {problem}") from None


def _is_valid(kind: type[Section], tree: Mapping[str, Any]) -> bool:
    try:
        kind.model_validate(tree)
    except ValidationError:
        return False
    return True


def _read_tree(path: Path, seen: tuple[Path, ...], read: list[Path]) -> dict[str, Any]:
    if path.resolve() in seen:
        raise ConfigError(f"{path}: `base` leads back to this file; remove the circle")
    read.append(path)
    if len(read) > _MAX_FILES:
        raise ConfigError(f"{path}: `base` leads to more than {_MAX_FILES} files; name fewer")
    tree = parse_yaml(_read_text(path), place=str(path))
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: must hold `key: value` lines, found {type(tree).__name__}")
    bases = tree.pop("base", [])
    bases = bases if isinstance(bases, list) else [bases]
    if not all(isinstance(base, str) and "\0" not in base for base in bases):
        raise ConfigError(
            f"{path}: `base` must name a file or a list of files, found {_show(bases)}"
        )
    merged: dict[str, Any] = {}
    for base in bases:
        merged = overlay(merged, _read_tree(path.parent / base, (*seen, path.resolve()), read))
    return overlay(merged, tree)


def _read_text(path: Path) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        start = "" if path.is_absolute() else f"; its path starts at {Path.cwd()}"
        raise ConfigError(f"{path}: no such configuration file{start}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; give a file, such as one of configs/") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as text: {error}") from None


def _check_texts(
    value: Any, place_of: Callable[[Sequence[str]], str], key: tuple[str, ...] = ()
) -> None:
    """Refuse text that no file can hold, and secrets: settings are copied into results and logs."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            _check_texts(name, place_of, key)
            _check_texts(inner, place_of, (*key, str(name)))
    elif isinstance(value, list):
        for inner in value:
            _check_texts(inner, place_of, key)
    elif isinstance(value, str) and contains_credentials(value):
        raise ConfigError(f"{place_of(key)}: {'.'.join(key)}: holds credentials; {LEAVE_OUT}")
    elif isinstance(value, str) and re.search("[\0\ud800-\udfff]", value):
        raise ConfigError(
            f"{place_of(key)}: {'.'.join(key) or 'a key'}: holds a character that no file can "
            f"hold, found {_show(value)}; remove it"
        )


def _apply_override(tree: dict[str, Any], override: str) -> None:
    dotted, separator, text = override.partition("=")
    if contains_credentials(override):
        raise ConfigError(f"override {_show(dotted)}: holds credentials; {LEAVE_OUT}")
    if not separator or not dotted:
        raise ConfigError(f"override {_show(override)}: write key=value, for instance seed=2")
    if re.search("[\ud800-\udfff]", override):
        raise ConfigError(
            f"override {_show(override)}: is not text in UTF-8; write it in UTF-8, and rename a "
            "file of such a name"
        )
    if text[:1] not in "@\"'[{" and re.search(r"\s#", text):
        raise ConfigError(
            f"override {_show(override)}: ' #' starts a comment of YAML, which would cut "
            "the value; write it in quotes within those of the shell"
        )
    *path, last = dotted.split(".")
    if len(path) > MAX_DEPTH:
        raise ConfigError(f"override {_show(override)}: no key has so many parts; shorten it")
    node = tree
    for key in path:
        node = node.setdefault(key, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {key!r} holds a value, not a section")
    try:
        # No plain text of YAML starts with @, which marks a file with a list.
        node[last] = text if text.startswith("@") else parse_yaml(text, place="")
    except ConfigError:
        raise ConfigError(
            f"override {_show(override)}: {_show(text)} is not a YAML value; correct it, or put "
            "it in quotes"
        ) from None


def _explain(kind: type[Section], error: ValidationError) -> tuple[list[str], str]:
    """The first wrong key, and one line about it."""
    errors = error.errors()
    own = (each for each in errors if each["type"] == "value_error")  # there the type is right
    path = _path_of(next(own, errors[0]))
    within = (each for each in errors if path == _path_of(each)[: len(path)])
    first = max(within, key=lambda each: len(_path_of(each)))  # the innermost is the most precise
    path = _path_of(first)
    place = _shorten(".".join(path)) or "configuration"
    if first["type"] == "extra_forbidden":
        hint = did_you_mean(_shorten(path[-1]), _fields_at(kind, path[:-1]))
        return path, f"{place} is not a known key; {hint}"
    if first["type"] == "missing":
        return path, f"{place} is missing; it must be given"
    if first["type"] == "value_error":
        problem = str(first["ctx"]["error"])
        is_named = not path or problem.startswith(".".join(path))
        return path, problem if is_named else f"{place}: {problem}"
    found = _show(first["input"])
    if first["type"] in ("model_type", "dict_type"):
        return path, f"{place}: must hold `key: value` lines, found {found}"
    # A setting of several allowed types has one message for each type.
    messages = [each["msg"] for each in errors if _path_of(each) == path]
    wanted = ", or ".join(text[0].lower() + text[1:] for text in dict.fromkeys(messages))
    return path, f"{place}: {wanted}, found {found}"


def _show(value: Any) -> str:
    """``value`` for a message, without credentials, cut if it is long."""
    try:
        return _shorten(scrub(repr(value)))
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of thousands of digits"


def _shorten(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]} …"


def _path_of(error: Any) -> list[str]:
    """The keys that lead to the wrong value; pydantic adds types: ``list[int]``, ``PartConfig``."""
    added = re.compile(r".*\[|constrained-int$|[A-Z]\w*Config$")
    return [part for part in map(str, error["loc"]) if not added.match(part)]


def _fields_at(kind: type[Section], path: Sequence[str]) -> list[str]:
    """The field names of the section at ``path``."""
    for key in path:
        if key.isdigit():  # an entry of a list of sections
            continue
        field = kind.model_fields.get(key)
        annotation = field.annotation if field else None
        if typing.get_origin(annotation) is list:
            (annotation,) = typing.get_args(annotation)
        inner = section_of(annotation)
        if inner is None:
            return list(kind.model_fields)
        kind = inner
    return list(kind.model_fields)

"""The settings of a section as rows: key, type, default and meaning, all read from the code.

The meaning is the comment beside a field, or above it.
"""

from __future__ import annotations

import ast
import inspect
import io
import json
import re
import textwrap
import tokenize
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pipeline.settings_file import Section, section_of

_TYPES = {
    "boolean": "true or false",
    "integer": "whole number",
    "null": "null",
    "number": "number",
    "object": "mapping",
    "string": "text",
}
_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


@dataclass(frozen=True)
class Setting:
    """One setting: a field of the section class ``owner``."""

    key: str  # dotted
    owner: type[Section]
    name: str
    value: Any  # the default; ... for a setting that must be given

    @property
    def type(self) -> str:
        """The values that are allowed: ``whole number > 0``, ``'clip' or 'squash'``."""
        return _describe(self._schema)

    @property
    def choices(self) -> list[str]:
        """The allowed values if they are few, as a configuration writes them."""
        if self._schema.get("type") == "boolean":
            return ["false", "true"]
        return [str(value) for value in self._schema.get("enum", [])]

    @property
    def default(self) -> str:
        """The default as a configuration writes it; ``required`` if the setting must be given."""
        if self.value is ...:
            return "required"
        return self.value if isinstance(self.value, str) else json.dumps(_plain(self.value))

    @property
    def meaning(self) -> str:
        """The comment of the field, or else that of a base class, in words of a configuration."""
        comments = (_comments(kind).get(self.name) for kind in self.owner.__mro__)
        return re.sub(r"\bNone\b", "null", next(filter(None, comments), ""))

    @property
    def _schema(self) -> dict[str, Any]:
        properties: dict[str, dict[str, Any]] = _schema_of(self.owner)["properties"]
        return properties[self.name]


def list_settings(
    kind: type[Section], *, prefix: str = "", default: Any = None
) -> Iterator[Setting]:
    """Every setting of a section and of the sections in it, in the order of the code.

    ``key[].name`` is a setting of each entry of a list of sections.

    ``default`` is the section itself, where it has other values than those of its class.
    """
    for name, field in kind.model_fields.items():
        key = f"{prefix}{name}"
        own = ... if field.is_required() else field.get_default(call_default_factory=True)
        value = getattr(default, name, own)
        inner, entry = section_of(field.annotation), entry_of(field.annotation)
        if inner is None or value is None:
            yield Setting(key, kind, name, value)
        if inner is not None:
            yield from list_settings(inner, prefix=f"{key}.", default=value)
        if entry is not None:
            yield from list_settings(entry, prefix=f"{key}[].")


def entry_of(annotation: Any) -> type[Section] | None:
    """The section that each entry of a list is, or None."""
    is_list = typing.get_origin(annotation) is list
    return section_of(typing.get_args(annotation)[0]) if is_list else None


@cache
def _schema_of(kind: type[Section]) -> dict[str, Any]:
    return kind.model_json_schema()


@cache
def _comments(kind: type) -> Mapping[str, str]:
    """The comment of each field that ``kind`` itself declares."""
    if not issubclass(kind, Section) or kind is Section:
        return {}
    source = textwrap.dedent(inspect.getsource(kind))
    (tree,) = ast.parse(source).body
    assert isinstance(tree, ast.ClassDef)
    lines = source.splitlines()
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            first = node.lineno
            while lines[first - 2].lstrip().startswith("#"):
                first -= 1
            end = node.end_lineno or node.lineno
            texts = [comments[line] for line in range(first, end + 1) if line in comments]
            found[node.target.id] = " ".join(texts)
    return found


def _plain(value: Any) -> Any:
    """``value`` in plain JSON types."""
    if isinstance(value, Section):
        return value.model_dump(mode="json")
    return [_plain(each) for each in value] if isinstance(value, (list, tuple)) else value


def _describe(schema: Mapping[str, Any]) -> str:
    """The values that a JSON schema allows, in words."""
    if "anyOf" in schema:
        return ", or ".join(dict.fromkeys(map(_describe, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        *most, last = map(repr, schema.get("enum", [schema.get("const")]))
        return f"{', '.join(most)} or {last}" if most else last
    if "prefixItems" in schema:
        return f"[{', '.join(map(_describe, schema['prefixItems']))}]"
    if schema.get("type") == "array":
        return f"list of: {_describe(schema['items'])}"
    if "$ref" in schema:
        return "section"
    bounds = [f"{sign} {_number(schema[key])}" for key, sign in _BOUNDS.items() if key in schema]
    return " ".join([_TYPES[schema["type"]], " and ".join(bounds)]).rstrip()


def _number(bound: float) -> str:
    """A bound, a large power of two as ``2^32``."""
    size = int(bound)
    is_power = size > 1000 and size & (size - 1) == 0
    return f"2^{size.bit_length() - 1}" if is_power else f"{bound:g}"

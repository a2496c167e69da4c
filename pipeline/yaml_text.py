"""YAML text as plain values, with limits on its size; the only door to yaml.

A text of a few bytes can stand for more values than a machine can store, by aliases of aliases.
So the nodes are counted as if every alias were written out, before any value is made.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from typing import Any

import yaml

from pipeline.credentials import LEAVE_OUT, contains_credentials
from pipeline.errors import ConfigError

MAX_BYTES = 1 << 20  # of a text
MAX_NODES = 100_000  # values, with every alias written out
MAX_DEPTH = 50  # of lists and sections within each other
_MAX_REASON = 200  # characters


def parse_yaml(text: str, *, place: str) -> Any:
    """The value of a YAML text; ``place`` begins every message.

    Raises:
        ConfigError: the text is not YAML, is too large, or repeats a key.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(f"{place}: has more than {MAX_BYTES:,} characters; shorten it")
    loader = None
    try:
        loader = _Loader(text)  # refuses control characters at once
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_large(node)
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        problem = " ".join(str(error).replace('in "<unicode string>", ', "at ").split())
    except RecursionError:
        problem = f"more than {MAX_DEPTH} lists and sections are within each other"
    except Exception as error:  # of values such as 2024-99-99 and numbers of 5,000 digits
        problem = f"{type(error).__name__}: {error}"
    finally:
        if loader is not None:
            loader.dispose()
    if contains_credentials(text):  # which ``problem`` may show
        raise ConfigError(f"{place}: not valid YAML, and a URL holds credentials; {LEAVE_OUT}")
    short = textwrap.shorten(problem, _MAX_REASON, placeholder=" …")
    is_marker = "'@'" in short  # of a file with a list
    remedy = "write the value that starts with @ in quotes" if is_marker else "correct the text"
    raise ConfigError(f"{place}: not valid YAML: {short}; {remedy}")


def format_yaml(value: Any) -> str:
    """A plain value as YAML, keys in their order; :func:`parse_yaml` reads the same value."""
    return yaml.safe_dump(value, sort_keys=False, width=100)


class _Loader(yaml.SafeLoader):
    """Safe YAML that refuses a repeated key: YAML would drop the first of the two values."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = sorted(key for key, count in Counter(keys).items() if count > 1)
        if twice:
            raise yaml.constructor.ConstructorError(
                None, None, f"{twice[0]!r} is written twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


def _refuse_large(root: yaml.Node) -> None:
    """Raise YAMLError if the nodes below ``root`` are too many, too deep or in a circle."""
    sizes: dict[int, tuple[int, int]] = {}  # nodes and depth, with aliases written out
    above: set[int] = set()

    def measure(node: yaml.Node) -> tuple[int, int]:
        if isinstance(node, yaml.ScalarNode):
            return 1, 0
        key = id(node)
        if key in above:
            raise yaml.YAMLError("an alias stands within its own anchor")
        if key not in sizes:
            above.add(key)
            inner = node.value
            if isinstance(node, yaml.MappingNode):
                inner = [each for pair in node.value for each in pair]
            parts = [measure(each) for each in inner]
            sizes[key] = (
                1 + sum(size for size, _ in parts),
                1 + max((depth for _, depth in parts), default=0),
            )
            above.discard(key)
        return sizes[key]

    n_nodes, depth = measure(root)
    if n_nodes > MAX_NODES:
        raise yaml.YAMLError(f"it stands for {n_nodes:,} values and at most {MAX_NODES:,} are read")
    if depth > MAX_DEPTH:
        raise yaml.YAMLError(f"more than {MAX_DEPTH} lists and sections are within each other")

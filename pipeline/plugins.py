"""Classes named in a configuration: by a short name of ours, or as ``package.module:Class``."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TypeVar

from pipeline.errors import ConfigError
from pipeline.text import did_you_mean

T = TypeVar("T")


def find_class(name: str, known: Mapping[str, type[T]], base: type[T], *, place: str) -> type[T]:
    """The class called ``name``: one of ``known``, or a subclass of ``base`` in a module of yours.

    A module that is named is imported, so name only code that you trust.

    Raises:
        ConfigError: there is no such name, module or class, or it is no ``base``.
    """
    kind = base.__name__.lower()
    module_name, separator, class_name = name.partition(":")
    if not separator:
        if name not in known:
            raise ConfigError(f"{place}: {name!r} is not a {kind}; {did_you_mean(name, known)}")
        return known[name]
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{place}: {name!r} cannot be imported ({error}); write package.module:Class, and put "
            "the package on PYTHONPATH"
        ) from error
    if not (isinstance(found, type) and issubclass(found, base)):
        raise ConfigError(f"{place}: {name!r} is no {kind}; derive it from {base.__module__}")
    return found

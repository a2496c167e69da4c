"""The methods by name. A new one is one file beside these and one line in ``METHODS``."""

from __future__ import annotations

import difflib

from pipeline.config import MethodConfig
from pipeline.errors import ConfigError
from pipeline.methods.base import Method, MethodContext
from pipeline.methods.finetune import Finetune
from pipeline.methods.tppt_v import TpptV
from pipeline.methods.tppt_vt import TpptVT
from pipeline.methods.zeroshot import ZeroShot
from pipeline.settings_file import Section, parse_section

METHODS: dict[str, type[Method]] = {
    "zeroshot": ZeroShot,
    "finetune": Finetune,
    "tppt_v": TpptV,
    "tppt_vt": TpptVT,
}


def parse_options(method: MethodConfig) -> Section:
    """The checked options of the method that a configuration names.

    The options of the others are checked too: a file that compares methods is right as a whole.

    Raises:
        ConfigError: no such method, or an option that it does not know or cannot take.
    """
    for place, name in [("method.name", method.name)] + [
        ("method.options", name) for name in method.options
    ]:
        if name not in METHODS:
            close = difflib.get_close_matches(name, METHODS, n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(METHODS)}"
            raise ConfigError(f"{place}: {name!r} is not a method; {hint}")
    options = {
        name: parse_section(METHODS[name].Options, tree, place=f"method.options.{name}")
        for name, tree in {method.name: {}, **method.options}.items()
    }
    return options[method.name]


def build_method(method: MethodConfig, setting: MethodContext) -> Method:
    """The method that a configuration names, before its first task."""
    return METHODS[method.name](setting, parse_options(method))

"""List every setting with its values, default and meaning: ``python -m pipeline.settings``.

Examples:
  python -m pipeline.settings                  # everything
  python -m pipeline.settings optim data       # sections of a run
  python -m pipeline.settings tppt_v ridge     # options of methods and classifiers
  python -m pipeline.settings sweep            # of python -m pipeline.tune

docs/SETTINGS.md holds the same lists.

Exit status: 0 printed, 2 an unknown name.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from pipeline.cli import build_parser, run_command
from pipeline.errors import ConfigError
from pipeline.text import did_you_mean

if TYPE_CHECKING:
    from pipeline.settings_table import Setting

_WIDTH = 110  # of the tables in a file


class Group(NamedTuple):
    """Settings that belong together."""

    name: str
    about: str
    prefix: str  # of the keys in a configuration
    settings: list[Setting]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    options = _build_parser().parse_args(arguments)
    return run_command(lambda: _list(options))


def run_groups() -> Iterator[Group]:
    """The settings of a run, section by section, and those of a sweep."""
    from pipeline.config import Config
    from pipeline.settings_file import section_of
    from pipeline.settings_table import entry_of, list_settings
    from pipeline.sweep.config import SweepConfig

    sections = {
        name: section
        for name, field in Config.model_fields.items()
        if (section := section_of(field.annotation) or entry_of(field.annotation))
    }
    settings: dict[str, list[Setting]] = {name: [] for name in ("run", *sections)}
    for each in list_settings(Config):
        first = re.split(r"[.\[]", each.key)[0]
        settings[first if first in sections else "run"].append(each)
    yield Group("run", "What has no section.", "", settings.pop("run"))
    for name, own in settings.items():
        yield Group(name, _about(sections[name]), "", own)
    yield Group("sweep", _about(SweepConfig), "", list(list_settings(SweepConfig)))


def method_groups() -> Iterator[Group]:
    """The options of every method and of every classifier."""
    from pipeline.classifiers import CLASSIFIERS
    from pipeline.methods import METHODS
    from pipeline.settings_table import list_settings

    for name, method in METHODS.items():
        options = list(list_settings(method.Options))
        yield Group(name, _about(method), f"method.options.{name}.", options)
    for name, classifier in CLASSIFIERS.items():
        prefix = "method.options.METHOD.classifier.options."
        yield Group(name, _about(classifier), prefix, list(list_settings(classifier.Options)))


def print_groups(groups: Iterable[Group]) -> int:
    """Print a table of each group; returns the exit status."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(width=None if sys.stdout.isatty() else _WIDTH, highlight=False)
    for group in groups:
        console.print(Text(f"{group.name}: {group.about}", style="bold"))
        if group.prefix and group.settings:
            console.print(Text(f"  keys start with {group.prefix}"))
        table = Table("setting", "values", "default", "meaning", box=None, padding=(0, 1, 0, 2))
        table.columns[0].no_wrap = True
        for each in group.settings:
            cells = (each.key, each.type, each.default, each.meaning)
            table.add_row(*(Text(cell, overflow="fold") for cell in cells))
        if group.settings:
            console.print(table)
        console.print()
    return 0


def _build_parser() -> argparse.ArgumentParser:
    parser = build_parser("python -m pipeline.settings", __doc__ or "")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="a section, a method or a classifier; default: all"
    )
    return parser


def _list(options: argparse.Namespace) -> int:
    groups = list(run_groups())
    if not options.names or not {group.name for group in groups}.issuperset(options.names):
        groups += method_groups()  # torch is imported, which takes seconds
    known = dict.fromkeys(group.name for group in groups)
    for name in options.names:
        if name not in known:
            raise ConfigError(f"{name!r} has no settings; {did_you_mean(name, known)}")
    return print_groups(group for group in groups if group.name in (options.names or known))


def _about(kind: type) -> str:
    """The first line of the docstring of ``kind``, without the marks of code."""
    return (kind.__doc__ or "").split("\n")[0].replace("``", "")


if __name__ == "__main__":
    sys.exit(main())

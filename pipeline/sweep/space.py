"""The search space of a sweep: settings of a run by dotted key, each with its possible values.

    space:
      method.name: {choice: [finetune, tppt_vt]}
      optim.learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}
      method.options.tppt_vt:                                  # sections may be nested
        text_to_image.weight: {uniform: [0, 1], when: {method.name: tppt_vt}}

Settings are drawn in the order of the file. A setting with ``when`` is drawn only if the settings
that ``when`` names have those values. The proposal of values is elsewhere, in ``searcher``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import Field, model_validator

from pipeline.errors import ConfigError
from pipeline.settings_file import Section, parse_section

Parameters = dict[str, Any]  # drawn values by dotted key

_KINDS = ("uniform", "log_uniform", "int", "choice")
# Tasks, tests and outputs: the sweep decides these settings for every trial.
_DECIDED = ("output", "name", "seed", "tasks", "evaluation", "tuning", "snapshot")
_DECIDED_DATA = ("data.index", "data.validation_fraction")


class Domain(Section):
    """The possible values of one setting, and the condition on which it is drawn."""

    uniform: tuple[float, float] | None = None
    log_uniform: tuple[float, float] | None = None
    integer: tuple[int, int] | None = Field(None, alias="int")  # both ends may be drawn
    choice: list[Any] | None = Field(None, min_length=1)
    when: dict[str, Any] = {}

    @model_validator(mode="after")
    def _check_one_kind(self) -> Domain:
        given = [kind for kind in (self.uniform, self.log_uniform, self.integer) if kind]
        if len(given) + (self.choice is not None) != 1:
            raise ValueError(f"give exactly one of {', '.join(_KINDS)}")
        for low, high in given:
            if low >= high:
                raise ValueError(f"[{low}, {high}] is empty; write the lower end first")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform must start above 0, found {self.log_uniform[0]}")
        return self

    @property
    def extremes(self) -> list[Any]:
        """The ends of a range, or every choice."""
        return list(self.uniform or self.log_uniform or self.integer or self.choice or ())

    def holds(self, value: Any) -> bool:
        """Whether ``value`` may be drawn."""
        if self.choice is not None:
            return value in self.choice
        kinds = (int,) if self.integer else (int, float)
        low, high = self.extremes
        return type(value) in kinds and low <= value <= high

    def __str__(self) -> str:
        kind, values = next(
            (kind, values)
            for kind, values in self.model_dump(by_alias=True, exclude={"when"}).items()
            if values is not None
        )
        only = ", ".join(f"{key} = {value}" for key, value in self.when.items())
        return f"{kind} {list(values)}" + (f", only if {only}" if only else "")


@dataclass(frozen=True)
class Space:
    """The domains by dotted key, in the order in which they are drawn.

    ``settings`` are those of the run that is varied; a condition on a setting that is not drawn
    reads it there.
    """

    domains: Mapping[str, Domain]
    settings: Mapping[str, Any]

    def draw(self, propose: Callable[[str, Domain], Any]) -> Parameters:
        """The value that ``propose`` gives for each setting whose condition holds."""
        drawn: Parameters = {}
        for key, domain in self.domains.items():
            if self._holds(domain.when, drawn):
                drawn[key] = propose(key, domain)
        return drawn

    def corners(self) -> Iterator[Parameters]:
        """Parameters that together set every setting to each of its extremes at least once."""
        for key, domain in self.domains.items():
            for extreme in domain.extremes:
                wanted = {key: extreme, **self._conditions(domain.when)}
                corner = self.draw(partial(_wanted_or_first, wanted))
                if key in corner:
                    yield corner

    def validate(self, given: Mapping[str, Any]) -> Parameters:
        """Given parameters, checked and in the order of the space.

        Raises:
            ConfigError: one is missing, outside its domain, or would not have been drawn.
        """

        def take(key: str, domain: Domain) -> Any:
            if key not in given or not domain.holds(given[key]):
                raise ConfigError(f"first: {key} must be {domain}, found {given.get(key)!r}")
            return given[key]

        drawn = self.draw(take)
        extra = sorted(given.keys() - drawn.keys())
        if extra:
            raise ConfigError(
                f"first: {extra[0]} is not drawn together with {dict(drawn)}; leave it out"
            )
        return drawn

    def _conditions(self, when: Mapping[str, Any]) -> Parameters:
        """Values with which ``when`` holds, conditions of conditions included."""
        wanted = dict(when)
        for key in when:
            if key in self.domains:
                wanted |= self._conditions(self.domains[key].when)
        return wanted

    def _holds(self, when: Mapping[str, Any], drawn: Parameters) -> bool:
        def current(key: str) -> Any:
            return drawn[key] if key in drawn else find_setting(self.settings, key)

        return all(current(key) == value for key, value in when.items())


def parse_space(tree: Mapping[str, Any], settings: Mapping[str, Any]) -> Space:
    """The space of a sweep file, over the ``settings`` of its run.

    Raises:
        ConfigError: an entry is wrong; the message names it.
    """
    domains: dict[str, Domain] = {}
    for key, entry in _entries(tree):
        place = f"space: {key}"
        if key.split(".")[0] in _DECIDED or key in _DECIDED_DATA:
            raise ConfigError(f"{place}: is the same in every trial; remove it from the space")
        if key in domains:
            raise ConfigError(f"{place}: appears twice, nested and dotted; keep one of them")
        domain = parse_section(Domain, entry, place=place)
        for name, value in domain.when.items():
            known = domains.get(name)
            if known is None and find_setting(settings, name) is None:
                raise ConfigError(
                    f"{place}: its condition names {name}, which is neither a setting of the run "
                    f"nor drawn before; write {name} above it"
                )
            if known and known.choice is not None and value not in known.choice:
                raise ConfigError(
                    f"{place}: it is drawn if {name} is {value!r}, and the choices of {name} are "
                    f"{known.choice}; use one of them"
                )
        domains[key] = domain
    return Space(domains, settings)


def with_settings(settings: Mapping[str, Any], changes: Parameters) -> dict[str, Any]:
    """A copy of nested ``settings`` with the values of dotted ``changes``."""
    changed = dict(settings)
    for dotted, value in changes.items():
        first, _, rest = dotted.partition(".")
        if rest:
            inner = changed.get(first)
            changed[first] = with_settings(
                inner if isinstance(inner, Mapping) else {}, {rest: value}
            )
        else:
            changed[first] = value
    return changed


def find_setting(settings: Mapping[str, Any], dotted: str) -> Any:
    """The value at a dotted key of nested ``settings``; None if it is missing."""
    value: Any = settings
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def format_parameters(parameters: Parameters) -> str:
    """Parameters in one line: ``optim.epochs=3 seed=1``."""
    return " ".join(f"{key}={value}" for key, value in parameters.items())


def _wanted_or_first(wanted: Parameters, key: str, domain: Domain) -> Any:
    return wanted.get(key, domain.extremes[0])


def _entries(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every setting by dotted key with the description of its domain."""
    for name, entry in tree.items():
        key = f"{prefix}{name}"
        if not isinstance(entry, Mapping) or not entry:
            raise ConfigError(
                f"space: {key}: must be one of {', '.join(f'{{{kind}: […]}}' for kind in _KINDS)} "
                f"or a section of settings, found {entry!r}"
            )
        if any(kind in entry for kind in (*_KINDS, "when")):
            yield key, entry
        elif all(isinstance(inner, Mapping) for inner in entry.values()):
            yield from _entries(entry, f"{key}.")
        else:
            found = ", ".join(itertools.islice(map(str, entry), 3))
            raise ConfigError(
                f"space: {key}: must have one of {', '.join(_KINDS)}, and may have when; found "
                f"{found}"
            )

"""What a sweep may change: settings of a run by dotted key, each with the values it may take.

    space:
      method.name: {choice: [finetune, tppt_vt]}
      optim.learning_rate: {log_uniform: [1.0e-4, 1.0e-2]}
      method.options.tppt_vt:                                  # sections may be nested
        text_to_image.weight: {uniform: [0, 1], when: {method.name: tppt_vt}}

Settings are drawn one after the other in the order of the file; one with ``when`` is drawn only if
the settings named there have those values. Nothing here knows how values are proposed.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from pipeline.errors import ConfigError
from pipeline.settings_file import Section, parse_section

Parameters = dict[str, Any]  # what was drawn, by dotted key

_KINDS = ("uniform", "log_uniform", "int", "choice")
# These say what is learned and tested and where it goes: the sweep decides them for every trial.
_DECIDED = ("output", "name", "seed", "tasks", "evaluation", "tuning", "snapshot")
_DECIDED_DATA = ("data.index", "data.validation_fraction")


class Domain(Section):
    """The values that one setting may take, and when it is drawn at all."""

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
                raise ValueError(f"[{low}, {high}] is empty; the lower end comes first")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError(f"log_uniform must begin above 0, found {self.log_uniform[0]}")
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

    ``settings`` are those of the run that is varied; conditions on what is not drawn look there.
    """

    domains: Mapping[str, Domain]
    settings: Mapping[str, Any]

    def draw(self, propose: Callable[[str, Domain], Any]) -> Parameters:
        """What ``propose`` gives for each setting that is to be drawn."""
        drawn: Parameters = {}
        for key, domain in self.domains.items():
            if self._holds(domain.when, drawn):
                drawn[key] = propose(key, domain)
        return drawn

    def corners(self) -> Iterator[Parameters]:
        """Parameters that together have every setting at each of its extremes at least once."""
        for key, domain in self.domains.items():
            for extreme in domain.extremes:
                wanted = {key: extreme, **self._conditions(domain.when)}
                corner = self.draw(
                    lambda name, domain, wanted=wanted: wanted.get(name, domain.extremes[0])
                )
                if key in corner:
                    yield corner

    def validate(self, given: Mapping[str, Any]) -> Parameters:
        """Parameters that were given, not drawn, in the order of the space.

        Raises:
            ConfigError: one is missing, outside its domain, or would not have been drawn.
        """

        def take(key: str, domain: Domain) -> Any:
            if key not in given or not domain.holds(given[key]):
                raise ConfigError(f"first: {key} must be {domain}, found {given.get(key)!r}")
            return given[key]

        drawn = self.draw(take)
        strange = sorted(given.keys() - drawn.keys())
        if strange:
            raise ConfigError(f"first: {strange[0]} is not drawn beside {dict(drawn)}")
        return drawn

    def apply(self, parameters: Parameters) -> dict[str, Any]:
        """The run's settings with the parameters in their places."""
        return with_settings(self.settings, parameters)

    def _conditions(self, when: Mapping[str, Any]) -> Parameters:
        """What must be drawn, conditions of conditions included, so that ``when`` holds."""
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
    """The space that a sweep file describes, over the ``settings`` of its run.

    Raises:
        ConfigError: naming the entry, what was found and what is wanted.
    """
    domains: dict[str, Domain] = {}
    for key, entry in _entries(tree):
        place = f"space: {key}"
        if key.split(".")[0] in _DECIDED or key in _DECIDED_DATA:
            raise ConfigError(f"{place}: is the same in every trial; take it out of the space")
        if key in domains:
            raise ConfigError(f"{place}: is there twice, nested and dotted; keep one of them")
        domain = parse_section(Domain, entry, place=place)
        for name, value in domain.when.items():
            known = domains.get(name)
            if known is None and find_setting(settings, name) is None:
                raise ConfigError(
                    f"{place}: its condition names {name}, which is neither a setting of the run "
                    "nor drawn before; write that one above it"
                )
            if known and known.choice is not None and value not in known.choice:
                raise ConfigError(
                    f"{place}: it is drawn when {name} is {value!r}, which is none of its choices "
                    f"{known.choice}"
                )
        domains[key] = domain
    return Space(domains, settings)


def with_settings(settings: Mapping[str, Any], changes: Parameters) -> dict[str, Any]:
    """A copy of nested ``settings`` with dotted ``changes`` laid over it."""
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
    """The value at a dotted key of nested ``settings``; None if there is none."""
    value: Any = settings
    for key in dotted.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _entries(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every setting with the description of its domain; nested sections are joined by dots."""
    for name, entry in tree.items():
        key = f"{prefix}{name}"
        if not isinstance(entry, Mapping) or not entry:
            raise ConfigError(
                f"space: {key}: must be one of {', '.join(f'{{{kind}: […]}}' for kind in _KINDS)} "
                f"or a section of such, found {entry!r}"
            )
        if any(kind in entry for kind in (*_KINDS, "when")):
            yield key, entry
        elif all(isinstance(inner, Mapping) for inner in entry.values()):
            yield from _entries(entry, f"{key}.")
        else:
            found = ", ".join(itertools.islice(map(str, entry), 3))
            raise ConfigError(f"space: {key}: knows {', '.join(_KINDS)} and when, found {found}")

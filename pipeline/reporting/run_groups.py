"""Finished runs, divided into groups whose figures have a mean: equal in all but the seed.

A table has the runs of one protocol, see :mod:`pipeline.output.protocol`. A group in it has the
runs of one method with equal settings; its label names the settings that other groups of the same
method have differently.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline import storage
from pipeline.errors import DataError
from pipeline.output.protocol import compared_settings, default_settings
from pipeline.output.results import NAME, RunResults, finished_results
from pipeline.reporting.protocols import Difference, differences, explain
from pipeline.text import first_problem


@dataclass(frozen=True, eq=False)
class FinishedRun:
    """The results of one output, with the other outputs that hold the same run."""

    output: str
    results: RunResults
    copies: list[str] = field(default_factory=list)

    @property
    def repetition(self) -> tuple[int, tuple[int, ...]]:
        """Seed and class order: the runs of a group differ in them alone."""
        manifest = self.results.manifest
        return manifest.config.get("seed", 1), tuple(manifest.class_order)


@dataclass(frozen=True, eq=False)
class RunGroup:
    """The runs of one row or column: one method with equal settings, in other repetitions."""

    label: str
    runs: list[FinishedRun]

    @property
    def method(self) -> str:
        """The name of the method."""
        return self.runs[0].results.method

    @property
    def results(self) -> list[RunResults]:
        """The results of each run."""
        return [run.results for run in self.runs]

    @property
    def outputs(self) -> list[str]:
        """The output of each run and of its copies."""
        return [output for run in self.runs for output in (run.output, *run.copies)]


@dataclass(frozen=True, eq=False)
class RunTable:
    """The groups of one protocol; ``differences`` are those to the first protocol."""

    groups: list[RunGroup]
    differences: list[Difference]

    @property
    def results(self) -> list[RunResults]:
        """The results of all runs."""
        return [results for group in self.groups for results in group.results]


def group_runs(
    outputs: Sequence[str],
    *,
    by_protocol: bool = False,
    over_order: bool = False,
    single: bool = False,
) -> list[RunTable]:
    """The tables of the runs in ``outputs``: one, or one per protocol with ``by_protocol``.

    With ``over_order`` runs of several class orders are one group. With ``single`` each run is a
    group of its own.

    Raises:
        DataError: an output holds no finished run; the runs follow several protocols, without
            ``by_protocol``; or two runs have equal settings and seeds but other figures.
    """
    runs = [_read_run(output) for output in dict.fromkeys(outputs)]
    protocols = _divide_by_protocol(runs, over_order)
    if len(protocols) > 1 and not by_protocol:
        raise DataError(_refusal(runs, protocols, over_order))
    distinctions = _Distinctions(runs)
    first = protocols[0][0].results
    return [
        RunTable(
            [
                RunGroup(distinctions.label(group[0]), group)
                for group in _groups(members, distinctions, single)
            ],
            differences(first, members[0].results, over_order=over_order),
        )
        for members in protocols
    ]


class _Data(BaseModel):
    index: str | list[str]


class _Model(BaseModel):
    arch: str
    weights: str | None = None


class _Method(BaseModel):
    name: str
    options: dict[str, dict[str, Any]] = {}


class _Config(BaseModel):
    seed: int = 1
    data: _Data
    tasks: dict[str, Any]
    model: _Model
    method: _Method


class _Task(BaseModel):
    sha256: str


class _Identity(BaseModel):
    settings: dict[str, dict[str, Any] | int] = {}
    tasks: list[_Task] = []


class _Manifest(BaseModel):
    """The parts of a manifest that are compared, as any version wrote them."""

    config: _Config
    identity: _Identity


def _read_run(output: str) -> FinishedRun:
    results = finished_results(output)
    try:
        _Manifest.model_validate(results.manifest.model_dump())
    except ValidationError as error:
        raise DataError(
            f"{storage.redact(storage.join(output, NAME))}: manifest is damaged "
            f"({first_problem(error)}); run it again into another output"
        ) from None
    return FinishedRun(output, results)


def _divide_by_protocol(runs: Iterable[FinishedRun], over_order: bool) -> list[list[FinishedRun]]:
    protocols: list[list[FinishedRun]] = []
    for run in runs:
        for members in protocols:
            if not differences(members[0].results, run.results, over_order=over_order):
                members.append(run)
                break
        else:
            protocols.append([run])
    return protocols


def _refusal(
    runs: Sequence[FinishedRun], protocols: Sequence[Sequence[FinishedRun]], over_order: bool
) -> str:
    first = protocols[0][0]
    found: dict[str, tuple[Difference, str, str]] = {}
    for other, *_ in protocols[1:]:
        for difference in differences(first.results, other.results, over_order=over_order):
            one, two = (storage.redact(run.output) for run in (first, other))
            found.setdefault(difference.setting, (difference, one, two))
    is_order = found.keys() == {"tasks.class_order"}
    order = ", or average class orders with --over order" if is_order else ""
    return (
        f"the {len(runs)} runs follow {len(protocols)} protocols: {explain(list(found.values()))}; "
        f"compare runs of one protocol, or make a table of each with --group-by protocol{order}"
    )


def _groups(
    runs: Iterable[FinishedRun], distinctions: _Distinctions, single: bool
) -> list[list[FinishedRun]]:
    """Runs of equal settings together, each run once, in the order of their first output."""
    groups: dict[str, list[FinishedRun]] = {}
    for run in runs:
        group = groups.setdefault(distinctions.key(run), [])
        known = next((other for other in group if other.repetition == run.repetition), None)
        if known is None:
            group.append(run)
        elif known.results.counts == run.results.counts:
            known.copies.append(run.output)
        elif single:
            group.append(run)
        else:
            raise DataError(_ambiguity(known, run))
    if single:
        return [[run] for group in groups.values() for run in group]
    return list(groups.values())


def _ambiguity(one: FinishedRun, other: FinishedRun) -> str:
    places = [storage.redact(run.output) for run in (one, other)]
    commits = [str(run.results.manifest.git_commit)[:8] for run in (one, other)]
    return (
        f"{places[0]} and {places[1]}: have equal settings and the same seed "
        f"{one.repetition[0]}, but other figures (commits {commits[0]} and {commits[1]}); only "
        "seeds are averaged; give one of the two, or list single runs with --runs"
    )


class _Distinctions:
    """The settings in which the runs of each method differ."""

    def __init__(self, runs: Iterable[FinishedRun]) -> None:
        by_method: dict[str, list[FinishedRun]] = {}
        for run in runs:
            by_method.setdefault(run.results.method, []).append(run)
        self._differing: dict[FinishedRun, dict[str, Any]] = {}
        self._defaults: dict[str, dict[str, Any]] = {}
        for method, members in by_method.items():
            self._add(method, members)

    def key(self, run: FinishedRun) -> str:
        """Equal for the runs of one group."""
        return json.dumps([run.results.method, self._differing[run]], sort_keys=True)

    def label(self, run: FinishedRun) -> str:
        """The method with its differing settings, except those that have their default."""
        method = run.results.method
        defaults = self._defaults[method]
        settings = (
            f"{key.removeprefix(f'method.options.{method}.')}={_show(value)}"
            for key, value in self._differing[run].items()
            if key not in defaults or value != defaults[key]
        )
        return " ".join([method, *settings])

    def _add(self, method: str, members: Sequence[FinishedRun]) -> None:
        settings, differing, defaults = _compare(method, members, with_defaults=False)
        # Only differing options are completed: the import of a method takes seconds.
        if any(key.startswith("method.options.") for key in differing):
            settings, differing, defaults = _compare(method, members, with_defaults=True)
        self._defaults[method] = defaults
        for run, each in zip(members, settings, strict=True):
            self._differing[run] = {key: each[key] for key in differing if key in each}


def _compare(
    method: str, runs: Sequence[FinishedRun], *, with_defaults: bool
) -> tuple[list[dict[str, Any]], list[str], dict[str, Any]]:
    """The settings of each run, the keys that differ, and the defaults of the settings.

    A setting that the record of an older version lacks has its default.
    """
    defaults = default_settings(method, with_defaults=with_defaults)
    manifests = [run.results.manifest for run in runs]
    settings = [
        {**defaults, **compared_settings(m.config, m.identity, with_defaults=with_defaults)}
        for m in manifests
    ]
    keys = dict.fromkeys(key for each in settings for key in each)
    shown = [{key: json.dumps(value) for key, value in each.items()} for each in settings]
    return settings, [k for k in keys if len({each.get(k) for each in shown}) > 1], defaults


def _show(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

"""Which settings make the figures of two runs incomparable, in words with both values."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise, zip_longest
from typing import Any, NamedTuple

from pipeline import storage
from pipeline.output.protocol import LATER_SETTINGS, PROTOCOL_SETTINGS, setting_of
from pipeline.output.results import RunResults
from pipeline.tasks import SEEDED_ORDERS
from pipeline.text import first_few

_LONGEST_VALUE = 160  # characters of a value in a sentence
_DIGEST = 8  # hexadecimal digits that name a hash in a sentence


class Difference(NamedTuple):
    """A setting that two runs do not share, with the value of each."""

    setting: str
    one: str
    other: str


def differences(
    one: RunResults, other: RunResults, *, over_order: bool = False
) -> list[Difference]:
    """The differences of two protocols; none if the figures of the runs may be compared.

    Runs are compared by the content of their data and weights, not by their places. With
    ``over_order`` the class order may differ.
    """
    mine, theirs = one.protocol.settings, other.protocol.settings
    found = [*_data(one, other), *_sizes(one, other)]
    if not found and mine["text.names"] == theirs["text.names"]:
        found += _names(one, other)
    if not over_order:
        found += _order(one, other)
    found += _backbone(one, other)
    for key in (*PROTOCOL_SETTINGS, *LATER_SETTINGS, "metrics_version"):
        a, b = (settings.get(key, LATER_SETTINGS.get(key)) for settings in (mine, theirs))
        if a != b:
            found.append(Difference(key, _show(a, b), _show(b, a)))
    if not found and not over_order:
        found += _classes(one, other) or _tested_images(one, other)
    return found


def explain(found: Sequence[tuple[Difference, str, str]]) -> str:
    """One clause per setting: both values, each with the output that has it."""
    return "; ".join(
        f"{difference.setting} is {difference.one} in {one} and {difference.other} in {other}"
        for difference, one, other in found
    )


def _data(one: RunResults, other: RunResults) -> Iterator[Difference]:
    mine, theirs = one.protocol.settings, other.protocol.settings
    pairs = list(zip(mine["data"], theirs["data"], strict=False))
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    hashes = one.manifest.index_sha256, other.manifest.index_sha256
    # An index may have further classes that no task uses, so the images of the tasks decide. Only
    # where tasks of equal number have other classes does the index decide.
    if differing and mine["tasks"] == theirs["tasks"]:
        hashes = hashes if hashes[0] != hashes[1] else differing[0]
    elif (pairs and not differing) or hashes[0] == hashes[1]:
        return
    places = (
        f"{_name_index(run)} (sha256 {digest[:_DIGEST]}…)"
        for run, digest in zip((one, other), hashes, strict=True)
    )
    yield Difference("data.index", *places)


def _names(one: RunResults, other: RunResults) -> Iterator[Difference]:
    """The same images under another class name, as if prepared with other names."""
    if _shares_index(one, other):
        mine, theirs = (
            dict(zip(run.manifest.class_order, chain.from_iterable(run.tasks), strict=False))
            for run in (one, other)
        )
        pairs = [(name, theirs[label]) for label, name in mine.items() if label in theirs]
        pairs = [(a, b) for a, b in pairs if a != b]
    else:
        names = [list(chain.from_iterable(run.tasks)) for run in (one, other)]
        alone = [[name for name in names[k] if name not in names[1 - k]] for k in (0, 1)]
        pairs = list(zip(*alone, strict=False))
    if pairs:
        yield Difference("the name of a class", *map(_show, pairs[0]))


def _order(one: RunResults, other: RunResults) -> Iterator[Difference]:
    if _shares_index(one, other):
        orders: list[list[Any]] = [list(run.manifest.class_order) for run in (one, other)]
    else:
        orders = [list(chain.from_iterable(run.tasks)) for run in (one, other)]
        if Counter(orders[0]) != Counter(orders[1]):
            return  # other classes, hence other data
    if all(a == b for a, b in zip(*orders, strict=False)):
        return
    rules = [name_order(run.manifest.config) for run in (one, other)]
    if rules[0] == rules[1]:  # as far as they are shown
        position = next(i for i, (a, b) in enumerate(zip(*orders, strict=False)) if a != b)
        rules = [f"{order[position]} at position {position + 1}" for order in orders]
    yield Difference("tasks.class_order", *rules)


def _sizes(one: RunResults, other: RunResults) -> Iterator[Difference]:
    """The boundaries of the tasks: the number of classes of each."""
    sizes = [[len(names) for names in run.tasks] for run in (one, other)]
    if sizes[0] == sizes[1]:
        return
    words = [name_sizes(size) for size in sizes]
    for key in ("initial_classes", "classes_per_task", "limit", "appended", "known_classes"):
        values = [setting_of(run.manifest.config, f"tasks.{key}") for run in (one, other)]
        if values[0] != values[1]:
            shown = (f"{_show(value)} ({word})" for value, word in zip(values, words, strict=True))
            yield Difference(f"tasks.{key}", *shown)
            return
    yield Difference("the division into tasks", *words)


def _backbone(one: RunResults, other: RunResults) -> Iterator[Difference]:
    mine, theirs = one.protocol.settings, other.protocol.settings
    if mine["model.arch"] != theirs["model.arch"]:
        models = (setting_of(run.manifest.config, "model.arch") for run in (one, other))
        yield Difference("model.arch", *map(str, models))
    elif mine["backbone_sha256"] != theirs["backbone_sha256"]:
        yield Difference("model.weights", _name_weights(one), _name_weights(other))


def _classes(one: RunResults, other: RunResults) -> list[Difference]:
    """Any other difference of the classes, their names or their order."""
    for key, words in (("tasks", "a task"), ("known_classes", "the known classes of a task")):
        none: list[str] = []
        mine, theirs = (run.protocol.settings.get(key, none) for run in (one, other))
        pairs = [pair for pair in zip_longest(mine, theirs, fillvalue=none) if pair[0] != pair[1]]
        if pairs:
            return [Difference(words, *(first_few(names) or "none" for names in pairs[0]))]
    return []


def _tested_images(one: RunResults, other: RunResults) -> list[Difference]:
    """Images that could not be decoded are skipped; then a test has fewer."""
    counts = [run.counts.images[-1] if run.counts.images else [] for run in (one, other)]
    if counts[0] == counts[1]:
        return []
    shown = (f"{sum(count)} ({first_few(count)} by task)" for count in counts)
    return [Difference("the number of tested images", *shown)]


def _shares_index(one: RunResults, other: RunResults) -> bool:
    return one.manifest.index_sha256 == other.manifest.index_sha256


def _name_index(run: RunResults) -> str:
    index = setting_of(run.manifest.config, "data.index")
    return " + ".join(map(storage.redact, [index] if isinstance(index, str) else index))


def name_order(config: Mapping[str, Any]) -> str:
    """The rule of the class order with its seed, or the first entries of a list."""
    rule = setting_of(config, "tasks.class_order")
    if rule in SEEDED_ORDERS:
        return f"{rule} with tasks.order_seed={setting_of(config, 'tasks.order_seed')}"
    return rule if isinstance(rule, str) else f"[{first_few(rule)}]"


def name_sizes(sizes: Sequence[int]) -> str:
    """``5 tasks of 4 classes``, or each number of classes where they differ."""
    if all(a == b for a, b in pairwise(sizes)):
        return f"{len(sizes)} task(s) of {sizes[0]} classes" if sizes else "no task"
    return f"{len(sizes)} tasks of {first_few(sizes)} classes"


def _name_weights(run: RunResults) -> str:
    config = run.manifest.config
    arch, weights = (setting_of(config, f"model.{key}") for key in ("arch", "weights"))
    name = arch if weights is None else f"{arch} {weights}"
    return f"{name} (sha256 {run.manifest.backbone_sha256[:_DIGEST]}…)"


def _show(value: Any, other: Any = None) -> str:
    """A value in words; of a long list only the entries that ``other`` lacks."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if len(text) <= _LONGEST_VALUE or not isinstance(value, list):
        return text
    alone = [entry for entry in value if entry not in (other or ())] or value
    return f"a list of {len(value)} with {first_few([json.dumps(entry) for entry in alone], 2)}"

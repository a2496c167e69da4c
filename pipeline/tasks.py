"""Classes in an order, cut into tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.errors import ConfigError


@dataclass(frozen=True)
class Task:
    """The classes that arrive together.

    Classes are numbered in class order: this task's are ``first .. last - 1``, those seen before
    are ``0 .. first - 1``. ``labels`` gives each class's number in the shard index.
    """

    index: int
    first: int
    labels: tuple[int, ...]
    names: tuple[str, ...]

    @property
    def last(self) -> int:
        """One past the last class, hence the number of classes seen once this task is learned."""
        return self.first + len(self.labels)


def class_order(rule: str | Sequence[int], n_classes: int, seed: int) -> tuple[int, ...]:
    """Index labels in the order in which they are learned.

    ``natural`` is the index's own order. ``lamda`` is the seeded permutation of PILOT and its
    descendants (``numpy.random.seed(seed); permutation(n)``, position = new label). A list is
    taken as it stands.

    Raises:
        ConfigError: the list is no permutation of the classes, or the rule is unknown.
    """
    if rule == "natural":
        return tuple(range(n_classes))
    if rule == "lamda":
        return tuple(int(label) for label in np.random.RandomState(seed).permutation(n_classes))
    if isinstance(rule, str):
        raise ConfigError(f"tasks.class_order: {rule!r} is not 'natural', 'lamda' or a list")
    if sorted(rule) != list(range(n_classes)):
        raise ConfigError(
            f"tasks.class_order: a list must hold each of 0..{n_classes - 1} once, "
            f"found {len(rule)} entries, {len(set(rule))} of them different"
        )
    return tuple(rule)


def grouped_class_order(
    rule: str | Sequence[int], group_sizes: Sequence[int], seed: int
) -> tuple[int, ...]:
    """:func:`class_order` for classes that arrive in groups of ``group_sizes`` classes, in order.

    A rule orders each group by itself, so that what arrives later changes nothing before it.

    Raises:
        ConfigError: as there, or a list mixes the groups.
    """
    if not isinstance(rule, str):
        order = class_order(rule, sum(group_sizes), seed)
        group_of = np.repeat(np.arange(len(group_sizes)), group_sizes)[list(order)]
        if (np.diff(group_of) < 0).any():
            raise ConfigError(
                "tasks.class_order: the list must name every class of an index before those of "
                f"the next one; data.index gives groups of {list(group_sizes)} classes"
            )
        return order
    order, first = (), 0
    for n_classes in group_sizes:
        order += tuple(first + label for label in class_order(rule, n_classes, seed))
        first += n_classes
    return order


def split_classes(
    order: Sequence[int],
    names: Sequence[str],
    *,
    classes_per_task: int,
    initial_classes: int = 0,
    limit: int | None = None,
    group_sizes: Sequence[int] | None = None,
) -> tuple[Task, ...]:
    """Cut ``order`` into tasks; ``names[label]`` is the name of an index label.

    The first task has ``initial_classes`` classes (0: as many as every other), the last one what
    is left. ``limit`` keeps the first tasks only. Classes that arrive in groups of ``group_sizes``
    share no task with those of another group.

    Raises:
        ConfigError: the first task alone would take more classes than there are.
    """
    first_size = initial_classes or classes_per_task
    groups = group_sizes or [len(order)]
    if first_size > groups[0]:
        raise ConfigError(
            f"tasks: the first task wants {first_size} classes and there are {groups[0]}"
        )
    starts: list[int] = []
    begin = 0
    for n_classes in groups:
        size = classes_per_task if starts else first_size
        starts += [begin, *range(begin + size, begin + n_classes, classes_per_task)]
        begin += n_classes
    ends = [*starts[1:], len(order)]
    tasks = (
        Task(
            index=index,
            first=start,
            labels=tuple(order[start:end]),
            names=tuple(names[label] for label in order[start:end]),
        )
        for index, (start, end) in enumerate(zip(starts, ends, strict=True))
    )
    return tuple(tasks)[:limit]

"""The order of the classes, and their division into tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from pipeline.errors import ConfigError

SEEDED_ORDERS = ("lamda", "mammoth")  # the class orders that tasks.order_seed changes

# The order of CIFAR100 in the code of iCaRL (arXiv 1611.07725), which many later codes keep.
_ICARL = (
    *(87, 0, 52, 58, 44, 91, 68, 97, 51, 15, 94, 92, 10, 72, 49, 78, 61, 14, 8, 86),
    *(84, 96, 18, 24, 32, 45, 88, 11, 4, 67, 69, 66, 77, 47, 79, 93, 29, 50, 57, 83),
    *(17, 81, 41, 12, 37, 59, 25, 20, 80, 73, 1, 28, 6, 46, 62, 82, 53, 9, 31, 75),
    *(38, 63, 33, 74, 27, 22, 36, 3, 16, 21, 60, 19, 70, 90, 89, 43, 5, 42, 65, 76),
    *(40, 30, 23, 85, 2, 95, 56, 48, 71, 64, 98, 13, 99, 7, 34, 55, 54, 26, 35, 39),
)


@dataclass(frozen=True)
class Task:
    """The classes that are learned together.

    Classes are numbered in the order of learning: ``first .. last - 1`` are new in this task and
    ``0 .. first - 1`` belong to earlier ones. ``labels`` are the numbers of the new classes in the
    shard index. ``known`` are the numbers of earlier classes that the task has further images of,
    ascending. ``group`` is the position in ``data.index`` of the index with its images.
    """

    index: int
    first: int
    labels: tuple[int, ...]
    names: tuple[str, ...]
    known: tuple[int, ...] = ()
    group: int = 0

    @property
    def last(self) -> int:
        """One past the last class; also the number of classes seen after this task."""
        return self.first + len(self.labels)

    @property
    def classes(self) -> tuple[int, ...]:
        """The numbers of all classes that the task has images of, ascending."""
        return (*self.known, *range(self.first, self.last))


def class_order(rule: str | Sequence[int], n_classes: int, seed: int) -> tuple[int, ...]:
    """The labels of the index in the order in which they are learned.

    ``natural`` is the order of the index. ``lamda`` is the seeded permutation of the LAMDA-PILOT
    toolbox (``numpy.random.seed(seed); permutation(n)``; the position is the new class number).
    ``mammoth`` is the order of the Mammoth toolbox: it reads the same permutation the other way
    round (``permutation[label]`` is the new class number), so that its tasks differ. ``icarl`` is
    the fixed order of iCaRL for 100 classes. A list is the order itself.

    Raises:
        ConfigError: the list is not a permutation of the labels, the rule is unknown, or it is for
            another number of classes.
    """
    if rule == "natural":
        return tuple(range(n_classes))
    if rule in SEEDED_ORDERS:
        order = np.random.RandomState(seed).permutation(n_classes)
        return tuple((order if rule == "lamda" else np.argsort(order)).tolist())
    if rule == "icarl":
        if n_classes != len(_ICARL):
            raise ConfigError(
                f"tasks.class_order: 'icarl' is an order of {len(_ICARL)} classes and these are "
                f"{n_classes}; use 'lamda' or a list"
            )
        return _ICARL
    if isinstance(rule, str):
        raise ConfigError(
            f"tasks.class_order: found {rule!r}; use 'natural', 'lamda', 'mammoth', 'icarl' or a "
            "list"
        )
    if sorted(rule) != list(range(n_classes)):
        raise ConfigError(
            f"tasks.class_order: the list must contain each label 0..{n_classes - 1} once, "
            f"found {len(rule)} entries, {len(set(rule))} of them different"
        )
    return tuple(rule)


def grouped_class_order(
    rule: str | Sequence[int], group_sizes: Sequence[int], seed: int
) -> tuple[int, ...]:
    """:func:`class_order` for groups of ``group_sizes`` classes that are learned one after another.

    A rule orders each group separately, so that a later group changes nothing before it.

    Raises:
        ConfigError: as in :func:`class_order`, or a list mixes the groups.
    """
    if not isinstance(rule, str):
        order = class_order(rule, sum(group_sizes), seed)
        group_of = np.repeat(np.arange(len(group_sizes)), group_sizes)[list(order)]
        if (np.diff(group_of) < 0).any():
            raise ConfigError(
                "tasks.class_order: the list must name all classes of an index before those of "
                f"the next one; data.index has groups of {list(group_sizes)} classes"
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
    classes_per_task: int | Literal["all"],
    initial_classes: int = 0,
    limit: int | None = None,
    group_sizes: Sequence[int] | None = None,
    appended: Literal["split", "one_task"] = "split",
) -> tuple[Task, ...]:
    """Divide ``order`` into tasks; ``names[label]`` is the name of a label of the index.

    The first task has ``initial_classes`` classes (0: ``classes_per_task``); the last task has the
    rest. ``limit`` keeps the first tasks only. No task contains classes of two groups; with
    ``classes_per_task="all"`` each group is one task, with ``appended="one_task"`` each after the
    first one. A group may have no class of its own; it is one task.

    Raises:
        ConfigError: there are too few classes for the first task.
    """
    groups = group_sizes or [len(order)]
    is_index_per_task = classes_per_task == "all" or appended == "one_task"
    per_task = max(1, groups[0]) if classes_per_task == "all" else classes_per_task
    first_size = initial_classes or per_task
    if first_size > groups[0]:
        raise ConfigError(
            f"tasks: the first task needs {first_size} classes and data.index has {groups[0]}; "
            "lower tasks.initial_classes or tasks.classes_per_task"
        )
    starts: list[int] = []
    group_of: list[int] = []
    begin = 0
    for group, n_classes in enumerate(groups):
        size = per_task if starts else first_size
        if starts and is_index_per_task:
            size = n_classes
        starts += [begin, *range(begin + size, begin + n_classes, per_task)]
        group_of += [group] * (len(starts) - len(group_of))
        begin += n_classes
    ends = [*starts[1:], len(order)]
    tasks = (
        Task(
            index=index,
            first=start,
            labels=tuple(order[start:end]),
            names=tuple(names[label] for label in order[start:end]),
            group=group,
        )
        for index, (start, end, group) in enumerate(zip(starts, ends, group_of, strict=True))
    )
    return tuple(tasks)[:limit]


def with_known_classes(
    tasks: Sequence[Task], known_labels: Sequence[Sequence[int]]
) -> tuple[Task, ...]:
    """``tasks``, one per group after the first, with the earlier classes of each group.

    ``known_labels`` has for each group the labels of classes that earlier groups have too.
    """
    number_of = {label: number for number, label in enumerate(_all_labels(tasks))}
    return tuple(
        replace(task, known=tuple(sorted(number_of[label] for label in known_labels[task.group])))
        for task in tasks
    )


def lone_classes_problem(tasks: Sequence[Task], owner: str) -> str | None:
    """The reason why a softmax over the classes of each task teaches nothing, or None.

    ``owner`` has the option ``loss_classes``. One task of one class among several is accepted: the
    last task has the rest of the classes.
    """
    alone = sum(len(task.classes) == 1 for task in tasks)
    if alone == 0 or alone <= 1 < len(tasks):
        return None
    return (
        f"tasks: {alone} of {len(tasks)} tasks have one class, so their loss is always 0 and "
        "nothing is learned; at least two classes must compete; set loss_classes=seen among "
        f"the options of the {owner}, or raise tasks.classes_per_task"
    )


def labels_with_images(tasks: Sequence[Task]) -> list[tuple[int, ...]]:
    """For each task the labels of the index that it has images of, in the order of its classes."""
    labels = _all_labels(tasks)
    return [tuple(labels[number] for number in task.classes) for task in tasks]


def known_names(tasks: Sequence[Task]) -> list[list[str]]:
    """For each task the names of the earlier classes that it has further images of."""
    names = [name for task in tasks for name in task.names]
    return [[names[number] for number in task.known] for task in tasks]


def _all_labels(tasks: Sequence[Task]) -> list[int]:
    """The label of each class, in class order."""
    return [label for task in tasks for label in task.labels]

"""Classifiers over embedded images, chosen by an option of any method; one file each.

A new one is one file and one line in ``CLASSIFIERS``. Imports the base modules and ``model``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.classifiers.base import (
    Classifier,
    ClassifierConfig,
    ClassifierContext,
    Embedded,
    EmbeddedImages,
    Moment,
)
from pipeline.classifiers.class_means import ClassMeans
from pipeline.classifiers.fitted_anchors import FittedAnchors
from pipeline.classifiers.heads import LinearHead
from pipeline.classifiers.linear import Linear
from pipeline.classifiers.ridge import Ridge
from pipeline.classifiers.text_anchors import TextAnchors
from pipeline.classifiers.weighted_sum import WeightedSum
from pipeline.errors import ConfigError
from pipeline.plugins import find_class
from pipeline.settings_file import Section, parse_section
from pipeline.tasks import Task

__all__ = [
    "CLASSIFIERS",
    "ClassMeans",
    "Classifier",
    "ClassifierConfig",
    "ClassifierContext",
    "Embedded",
    "EmbeddedImages",
    "FittedAnchors",
    "Linear",
    "LinearHead",
    "Moment",
    "Ridge",
    "TextAnchors",
    "WeightedSum",
    "build_classifier",
    "classifier_problem",
    "find_classifiers",
    "parse_classifier",
    "shared_options",
]

CLASSIFIERS: dict[str, type[Classifier]] = {
    "text_anchors": TextAnchors,
    "fitted_anchors": FittedAnchors,
    "class_means": ClassMeans,
    "ridge": Ridge,
    "linear": Linear,
    "sum": WeightedSum,
}


def parse_classifier(classifier: ClassifierConfig, *, place: str) -> Section:
    """The checked options of the classifier that an option of a method names.

    Raises:
        ConfigError: no such classifier, or an option that it does not know or cannot take.
    """
    kind = find_class(classifier.name, CLASSIFIERS, Classifier, place=f"{place}.name")
    options = parse_section(kind.Options, classifier.options, place=f"{place}.options")
    for name, part in options:
        if isinstance(part, ClassifierConfig):
            parse_classifier(part, place=f"{place}.options.{name}")
    return options


def shared_options(name: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``options`` that the classifier called ``name`` has; none without such a one."""
    try:
        kind = find_class(str(name), CLASSIFIERS, Classifier, place="classifier.name")
    except ConfigError:  # reported with its place by parse_classifier
        return {}
    return {key: value for key, value in options.items() if key in kind.Options.model_fields}


def find_classifiers(classifier: ClassifierConfig) -> Iterator[tuple[str, type[Classifier]]]:
    """The name and class of a classifier that a configuration names, and of those in its options.

    Raises:
        ConfigError: as :func:`parse_classifier`.
    """
    yield classifier.name, find_class(classifier.name, CLASSIFIERS, Classifier, place="classifier")
    for _, part in parse_classifier(classifier, place="classifier"):
        if isinstance(part, ClassifierConfig):
            yield from find_classifiers(part)


def classifier_problem(classifier: ClassifierConfig, tasks: Sequence[Task]) -> str | None:
    """The reason why a classifier, or one in its options, cannot learn ``tasks``, or None.

    Raises:
        ConfigError: as :func:`parse_classifier`.
    """
    options = parse_classifier(classifier, place="classifier")
    kind = find_class(classifier.name, CLASSIFIERS, Classifier, place="classifier.name")
    parts = [part for _, part in options if isinstance(part, ClassifierConfig)]
    problems = (classifier_problem(part, tasks) for part in parts)
    return kind.check(options, tasks) or next(filter(None, problems), None)


def build_classifier(classifier: ClassifierConfig, context: ClassifierContext) -> Classifier:
    """The classifier that an option of a method names, before its first task.

    Raises:
        ConfigError: as :func:`parse_classifier`, or the classifier does not fit the method.
    """
    options = parse_classifier(classifier, place="classifier")
    kind = find_class(classifier.name, CLASSIFIERS, Classifier, place="classifier.name")
    return kind(replace(context, build=build_classifier), options)

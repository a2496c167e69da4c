"""Classifiers over embedded images, chosen by an option of any method; one file each.

A new one is one file and one line in ``CLASSIFIERS``. Imports the base modules and ``model``.
"""

from __future__ import annotations

from pipeline.classifiers.base import (
    Classifier,
    ClassifierConfig,
    ClassifierContext,
    Embedded,
    EmbeddedImages,
    Moment,
)
from pipeline.classifiers.text_anchors import TextAnchors
from pipeline.plugins import find_class
from pipeline.settings_file import Section, parse_section

__all__ = [
    "CLASSIFIERS",
    "Classifier",
    "ClassifierConfig",
    "ClassifierContext",
    "Embedded",
    "EmbeddedImages",
    "Moment",
    "TextAnchors",
    "build_classifier",
    "parse_classifier",
]

CLASSIFIERS: dict[str, type[Classifier]] = {
    "text_anchors": TextAnchors,
}


def parse_classifier(classifier: ClassifierConfig, *, place: str) -> Section:
    """The checked options of the classifier that an option of a method names.

    Raises:
        ConfigError: no such classifier, or an option that it does not know or cannot take.
    """
    kind = find_class(classifier.name, CLASSIFIERS, Classifier, place=f"{place}.name")
    return parse_section(kind.Options, classifier.options, place=f"{place}.options")


def build_classifier(classifier: ClassifierConfig, context: ClassifierContext) -> Classifier:
    """The classifier that an option of a method names, before its first task.

    Raises:
        ConfigError: as :func:`parse_classifier`, or the classifier does not fit the method.
    """
    options = parse_classifier(classifier, place="classifier")
    kind = find_class(classifier.name, CLASSIFIERS, Classifier, place="classifier.name")
    return kind(context, options)

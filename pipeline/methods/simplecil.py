"""SimpleCIL: the nearest class mean of the frozen features; nothing is trained.

Source: arXiv 2303.07338. Its reference averages features that are not normalised; with
``classifier.options.vectors: [embedding]`` they are scaled to length 1 before.
"""

from __future__ import annotations

from pipeline.classifiers import ClassifierConfig
from pipeline.methods.base import MethodOptions
from pipeline.methods.frozen import Frozen


class SimpleCilOptions(MethodOptions):
    """Class means of the frozen joint features."""

    classifier: ClassifierConfig = ClassifierConfig(
        name="class_means", options={"vectors": ["frozen_joint"]}
    )


class SimpleCil(Frozen):
    """Class means of frozen features; no class name is read."""

    Options = SimpleCilOptions

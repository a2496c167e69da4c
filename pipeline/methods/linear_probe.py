"""A linear layer on the frozen features, trained task by task; each image is encoded once."""

from __future__ import annotations

from pipeline.classifiers import ClassifierConfig
from pipeline.methods.base import MethodOptions
from pipeline.methods.frozen import Frozen


class LinearProbeOptions(MethodOptions):
    """The linear classifier."""

    classifier: ClassifierConfig = ClassifierConfig(name="linear")


class LinearProbe(Frozen):
    """Only the classifier is trained; no class name is read."""

    Options = LinearProbeOptions

"""A linear layer on the frozen features, trained task by task; each image is encoded once."""

from __future__ import annotations

from pipeline.classifiers import ClassifierConfig
from pipeline.methods.base import MethodOptions
from pipeline.methods.zeroshot import ZeroShot


class LinearProbeOptions(MethodOptions):
    """The linear classifier."""

    classifier: ClassifierConfig = ClassifierConfig(name="linear")


class LinearProbe(ZeroShot):
    """Only the classifier is trained."""

    Options = LinearProbeOptions

    def build_anchors(self) -> None:
        """No class name is read."""

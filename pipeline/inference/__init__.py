"""A finished run as an image classifier, without its training data.

Imports the base modules, ``data``, ``data.prepare``, ``model``, ``classifiers``, ``methods`` and
``output``.
"""

from pipeline.inference.classifier import Classifier, load_classifier

__all__ = ["Classifier", "load_classifier"]

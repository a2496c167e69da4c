"""Exports of a finished run: files that other programs load, each checked against the run.

Imports the base modules, ``data``, ``model``, ``classifiers``, ``methods``, ``output`` and
``inference``.
"""

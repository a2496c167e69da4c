"""From a checked configuration to a finished run: the loop, the step, the tests of each task.

Imports the base modules, ``distributed``, ``data``, ``model``, ``classifiers``, ``methods``,
``output``, ``loggers`` and ``run_report``.
"""

"""From a checked configuration to a finished run: the loop, the step, the tests of each task.

Imports the words, ``distributed``, ``data``, ``model``, ``methods`` and ``output``.
"""

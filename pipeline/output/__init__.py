"""The files of a run, written and read: results, metrics, learned tensors, snapshots.

Imports the base modules, ``distributed``, ``data``, ``model``, ``classifiers`` and ``methods``;
never ``training``.
"""

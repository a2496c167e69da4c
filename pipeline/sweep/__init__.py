"""A hyperparameter search: its plan, its trials on Ray, its trial table.

Imports the base modules, ``distributed``, ``data``, ``model``, ``methods``, ``output``,
``training`` and ``launching``.
"""

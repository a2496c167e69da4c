"""A hyperparameter search on Ray Tune; ``sweep.py`` shows the way of a trial through the modules.

Imports the base modules, ``distributed``, ``data``, ``model``, ``methods``, ``output``,
``training`` and ``launching``.
"""

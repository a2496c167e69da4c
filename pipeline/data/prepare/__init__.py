"""From images in folders, archives and tables to shards with an index; no training run imports it.

Imports the base modules, ``data`` and ``catalogue``.
"""

"""From prepared shards to batches of images; ``data.prepare`` makes the shards.

Imports the base modules and ``distributed``; never ``data.prepare``.
"""

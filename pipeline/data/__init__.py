"""From prepared shards to batches of images; ``data.prepare`` makes the shards.

Imports the words and ``distributed``; never ``data.prepare``.
"""

"""What a run writes and reads again: results, metrics, learned tensors, snapshots.

Imports the words, ``distributed``, ``data``, ``model`` and ``methods``; never ``training``.
"""

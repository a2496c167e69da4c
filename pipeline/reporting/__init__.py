"""Pages for people: one file each, which needs no network and no other file.

Imports the words, ``output`` and ``sweep``.
"""

"""Pages for people: each is one file that needs no network and no other file.

Imports the base modules, ``output`` and ``sweep``.
"""

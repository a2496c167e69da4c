"""The demo: images drawn here, a tiny CLIP, three methods, one table of their results.

Imports the base modules, ``data.prepare``, ``launching``, ``reporting`` and the commands.
"""

"""The demo: drawn images, a tiny CLIP, and a command that runs three methods on them.

Imports the base modules, ``data.prepare``, ``launching``, ``reporting`` and the commands.
"""

"""Continual learning on CLIP by incremental prompt tuning.

The modules of this folder are the base modules, which every folder uses, and the commands.
"""

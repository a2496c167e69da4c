"""The ranks of a run: their process group, their collectives, and their common stop.

Imports the base modules.
"""

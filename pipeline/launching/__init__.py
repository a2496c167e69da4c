"""Runs as child processes: the launch command, its environment, its port and its end.

Imports the words and ``output``.
"""

"""Public benchmarks: class names, templates, splits, counts and protocols, one YAML file for each.

Imports the base modules.
"""

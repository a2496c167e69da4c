"""The ranks of a run: how they meet, compute together, and stop together.

Imports the base modules.
"""

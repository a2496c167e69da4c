"""The frozen CLIP, and the tensors that are trained beside it.

Imports the base modules.
"""

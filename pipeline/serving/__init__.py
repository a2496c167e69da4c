"""The HTTP service around a classifier: uploads, batches, metrics, and a page to drop an image on.

Imports the base modules, ``data`` and ``inference``.
"""

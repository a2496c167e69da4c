"""Tests of ``pipeline/loggers``."""

"""Searching hyperparameters over a whole task sequence; the command is ``pipeline.tune``."""

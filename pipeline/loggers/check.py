"""Loggers that cannot start are found before work begins."""

from __future__ import annotations

from importlib.util import find_spec

from pipeline import storage
from pipeline.config import Config

# The library of each logger, and the package that has it.
_LIBRARIES = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}


def loggers_problem(config: Config) -> str | None:
    """The reason why a logger of the configuration cannot start, with its remedy, or None."""
    for number, logger in enumerate(config.loggers):
        library, package = _LIBRARIES[logger.name]
        if find_spec(library) is None:
            return (
                f"loggers.{number}: {logger.name} is not installed; `pip install {package}`, or "
                "take it out of loggers"
            )
        folder = logger.place or config.output
        if logger.name != "mlflow" and logger.place and not storage.is_local(logger.place):
            return f"loggers.{number}.place: {logger.name} writes to a local folder; give one"
        if logger.name == "tensorboard" and not storage.is_local(folder):
            return (
                f"loggers.{number}: tensorboard writes to a local folder and output is "
                f"{storage.redact(config.output)}; set its place to a folder"
            )
    return None

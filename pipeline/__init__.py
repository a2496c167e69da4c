"""Continual learning on CLIP by incremental prompt tuning.

The modules of this folder are the base modules, which every folder uses, and the commands.
``load_classifier`` gives what a run has learned, see :mod:`pipeline.inference.classifier`.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pipeline.inference import load_classifier as load_classifier

# Older versions of Python can parse this module, but not the others.
if sys.version_info < (3, 10):  # noqa: UP036
    _found = ".".join(map(str, sys.version_info[:3]))
    sys.stderr.write(
        f"error: {sys.executable} is Python {_found}, and this program needs 3.10 or newer; use "
        "the Python of the environment that `bash cluster/setup.sh` makes: .venv/bin/python\n"
    )
    sys.exit(2)


def __getattr__(name: str) -> object:
    """Import torch and open_clip, which take seconds, only for :func:`load_classifier`."""
    if name != "load_classifier":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipeline.inference import load_classifier

    return load_classifier

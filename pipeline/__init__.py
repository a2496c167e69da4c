"""Continual learning on CLIP by incremental prompt tuning.

The modules of this folder are the base modules, which every folder uses, and the commands.
"""

import sys

# Older versions of Python can parse this module, but not the others.
if sys.version_info < (3, 10):  # noqa: UP036
    _found = ".".join(map(str, sys.version_info[:3]))
    sys.stderr.write(
        f"error: {sys.executable} is Python {_found}, and this program needs 3.10 or newer; use "
        "the Python of the environment that `bash cluster/setup.sh` makes: .venv/bin/python\n"
    )
    sys.exit(2)

"""Makes the packages of ``.venv-loggers`` importable, behind those of this environment."""

from __future__ import annotations

import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]
sys.path += map(str, (_ROOT / ".venv-loggers" / "lib").glob("python3*/site-packages"))
